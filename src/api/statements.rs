//! What stands behind the views of slow statements and of statistics.

use crate::capture::{self, Part};
use crate::error::{Error, Result, or_raise};
use crate::pg::session::printable;
use crate::settings;
use crate::shmem;
use crate::shmem::slow_ring::{self, Slow};
use crate::shmem::statistics::{self, Statistics, Sum};
use audit_db_core::statement_text::Values;
use pgrx::datum::TimestampWithTimeZone;
use pgrx::pg_sys::Oid;
use pgrx::prelude::*;

fn require_preloaded(what: &'static str) {
    if !shmem::is_preloaded() {
        Error::NotPreloaded { what }.raise();
    }
}

fn time(micros: i64) -> Option<TimestampWithTimeZone> {
    TimestampWithTimeZone::try_from(micros).ok()
}

fn milliseconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e6
}

/// Numbers of the server that SQL has no type for; they would take centuries to become too large.
fn big(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A text in a field of fixed size.
fn text(field: &[u8]) -> Option<String> {
    let end = field
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(field.len());
    (end > 0).then(|| printable(String::from_utf8_lossy(&field[..end]).into_owned()))
}

/// The five characters of a packed SQLSTATE.
fn sqlstate(packed: i32) -> Option<String> {
    (packed != 0).then(|| {
        (0..5)
            .map(|index| char::from(((packed >> (6 * index) & 0x3f) as u8).wrapping_add(b'0')))
            .collect()
    })
}

fn waits(waits: &[(u32, u32)]) -> Option<String> {
    capture::wait_samples(waits).map(|samples| samples.to_string())
}

type SlowRow = (
    Option<TimestampWithTimeZone>,
    i64,
    Option<i64>,
    Option<String>,
    Oid,
    Oid,
    Option<String>,
    Option<String>,
    i32,
    f64,
    f64,
    i64,
    Vec<i64>,
    i64,
    Option<String>,
    Option<String>,
    &'static str,
    Option<String>,
    i32,
    Option<String>,
);

#[pg_extern(sql = "")]
#[allow(clippy::type_complexity)]
fn slow_query_records(
    from_number: Option<i64>,
    until_number: Option<i64>,
) -> TableIterator<
    'static,
    (
        name!(captured_at, Option<TimestampWithTimeZone>),
        name!(sequence, i64),
        name!(query_id, Option<i64>),
        name!(query, Option<String>),
        name!(database_oid, Oid),
        name!(role_oid, Oid),
        name!(application_name, Option<String>),
        name!(client_addr, Option<String>),
        name!(pid, i32),
        name!(duration_ms, f64),
        name!(planning_ms, f64),
        name!(rows, i64),
        name!(blocks, Vec<i64>),
        name!(wal_bytes, i64),
        name!(parameters, Option<String>),
        name!(plan, Option<String>),
        name!(status, &'static str),
        name!(sqlstate, Option<String>),
        name!(nested_level, i32),
        name!(waits, Option<String>),
    ),
> {
    require_preloaded("audit_db.slow_queries");
    let number = |given: Option<i64>, usual: u64| {
        given.map_or(usual, |given| u64::try_from(given).unwrap_or(0))
    };
    let from = number(from_number, 0).max(slow_ring::oldest());
    let until = number(until_number, u64::MAX).min(slow_ring::next());
    TableIterator::new(
        (from..until)
            .rev()
            .filter_map(slow_ring::read)
            .map(slow_row),
    )
}

fn slow_row(slow: Slow) -> SlowRow {
    let record = &slow.record;
    (
        time(record.captured_at),
        big(slow.number),
        (record.query_id != 0).then_some(record.query_id as i64),
        slow.query.map(printable),
        Oid::from(record.database),
        Oid::from(record.role),
        text(&record.application_name),
        text(&record.client_address),
        record.pid,
        milliseconds(record.nanoseconds),
        milliseconds(record.planning_nanoseconds),
        big(record.rows),
        record.blocks.iter().map(|blocks| big(*blocks)).collect(),
        big(record.wal_bytes),
        slow.parameters.map(printable),
        slow.plan.map(printable),
        record.status().name(),
        sqlstate(record.sqlstate),
        i32::try_from(record.level).unwrap_or(i32::MAX),
        waits(&record.waits),
    )
}

#[pg_extern(sql = "")]
#[allow(clippy::type_complexity)]
fn running_statements() -> TableIterator<
    'static,
    (
        name!(pid, i32),
        name!(database_oid, Oid),
        name!(role_oid, Oid),
        name!(duration_ms, f64),
        name!(waits, Option<String>),
    ),
> {
    require_preloaded("audit_db.slow_queries");
    // The statement that asks has hardly begun; with a threshold of 0 it would always see itself.
    let own = crate::pg::signal::my_pid();
    let running = match u64::try_from(settings::slow_query_threshold()) {
        Ok(threshold) => statistics::running(threshold * 1_000_000),
        Err(_) => Vec::new(),
    };
    TableIterator::new(
        running
            .into_iter()
            .filter(move |one| one.pid != own)
            .map(|one| {
                (
                    one.pid,
                    Oid::from(one.database),
                    Oid::from(one.role),
                    milliseconds(one.nanoseconds),
                    waits(&one.waits),
                )
            }),
    )
}

#[pg_extern(sql = "")]
fn normalize_query(query: &str) -> String {
    capture::normalize(query.as_bytes(), Values::Settings)
}

#[pg_extern(sql = "")]
#[allow(clippy::type_complexity)]
fn query_statistics() -> TableIterator<
    'static,
    (
        name!(query_id, i64),
        name!(query, Option<String>),
        name!(database_oid, Oid),
        name!(role_oid, Oid),
        name!(top_level, bool),
        name!(calls, i64),
        name!(errors, i64),
        name!(total_ms, f64),
        name!(min_ms, f64),
        name!(max_ms, f64),
        name!(p50_ms, f64),
        name!(p95_ms, f64),
        name!(p99_ms, f64),
        name!(planning_ms, f64),
        name!(rows, i64),
        name!(blocks, Vec<i64>),
        name!(wal_bytes, i64),
        name!(first_seen, Option<TimestampWithTimeZone>),
        name!(last_seen, Option<TimestampWithTimeZone>),
    ),
> {
    require_preloaded("audit_db.query_stats");
    statistics::merge();
    TableIterator::new(statistics::snapshot().into_iter().map(statistics_row))
}

#[allow(clippy::type_complexity)]
fn statistics_row(
    one: Statistics,
) -> (
    i64,
    Option<String>,
    Oid,
    Oid,
    bool,
    i64,
    i64,
    f64,
    f64,
    f64,
    f64,
    f64,
    f64,
    f64,
    i64,
    Vec<i64>,
    i64,
    Option<TimestampWithTimeZone>,
    Option<TimestampWithTimeZone>,
) {
    let sum = |sum| big(one.sum(sum));
    let blocks = [
        Sum::SharedHit,
        Sum::SharedRead,
        Sum::SharedDirtied,
        Sum::SharedWritten,
        Sum::TempRead,
        Sum::TempWritten,
    ];
    (
        one.key.query as i64,
        one.text.clone().map(printable),
        Oid::from(one.key.database),
        Oid::from(one.key.role),
        one.key.top_level,
        sum(Sum::Calls),
        sum(Sum::Errors),
        milliseconds(one.sum(Sum::Nanoseconds)),
        milliseconds(one.least),
        milliseconds(one.most),
        one.p50 / 1e6,
        one.p95 / 1e6,
        one.p99 / 1e6,
        milliseconds(one.sum(Sum::PlanningNanoseconds)),
        sum(Sum::Rows),
        blocks.into_iter().map(sum).collect(),
        sum(Sum::WalBytes),
        time(one.first_seen),
        time(one.last_seen),
    )
}

#[pg_extern(sql = "")]
#[allow(clippy::type_complexity)]
fn statement_totals() -> TableIterator<
    'static,
    (
        name!(total, i64),
        name!(failed, i64),
        name!(slow, i64),
        name!(total_ms, f64),
        name!(p95_ms, Option<f64>),
        name!(p99_ms, Option<f64>),
        name!(untracked, i64),
        name!(evicted, i64),
        name!(slow_lost, i64),
        name!(plans_failed, i64),
        name!(stats_reset, Option<TimestampWithTimeZone>),
    ),
> {
    require_preloaded("audit_db.performance_metrics");
    let totals = statistics::totals();
    let (lost, plans) = slow_ring::losses();
    TableIterator::once((
        big(totals.statements),
        big(totals.failed),
        big(totals.slow),
        milliseconds(totals.nanoseconds),
        totals.quantile(0.95).map(|part| part / 1e6),
        totals.quantile(0.99).map(|part| part / 1e6),
        big(totals.untracked),
        statistics::evicted().into(),
        big(lost),
        big(plans),
        time(statistics::resets().1),
    ))
}

#[pg_extern(sql = "")]
fn reset_stats(what: Option<&str>) {
    require_preloaded("audit_db.reset_stats");
    or_raise(reset(what));
}

fn reset(what: Option<&str>) -> Result<()> {
    let what = super::required(what, "what")?;
    let parts: Vec<Part> = Part::ALL
        .into_iter()
        .filter(|part| what == "all" || part.name() == what)
        .collect();
    if parts.is_empty() {
        return Err(Error::InvalidArgument {
            message: format!("statistics \"{what}\" not recognized"),
            detail: None,
            hint: Some(
                "Use 'all', 'query_stats', 'slow_queries' or 'performance_metrics'.".to_owned(),
            ),
        });
    }
    for part in parts {
        part.reset();
    }
    Ok(())
}
