//! `cached_query`, `cached_json`, and what stands behind the views and functions of the result cache.

use crate::cache::{self, Answer, Consistency, Form, Request, Running};
use crate::error::{CacheError, Error, Result, or_raise};
use crate::pg::cached_functions::{Handlers, Step};
use crate::pg::event_functions::Call;
use crate::pg::session::printable;
use crate::pg::{clock, identity, inval, memory};
use crate::settings;
use crate::shmem;
use crate::shmem::cache as shared;
use pgrx::datum::TimestampWithTimeZone;
use pgrx::pg_sys::Oid;
use pgrx::prelude::*;
use std::ffi::c_void;
use std::time::Duration;

/// Places of the arguments of both functions.
const QUERY: usize = 0;
const PARAMS: usize = 1;
const CACHE_TYPE: usize = 2;
const CACHE_KEY: usize = 3;
const TTL: usize = 4;
const REFRESH: usize = 5;
const CONSISTENCY: usize = 6;

pub const HANDLERS: Handlers = Handlers {
    begin,
    end,
    differ: |detail| Error::from(CacheError::Columns(detail)).raise(),
};

fn begin(call: Call, rows: bool) -> Step {
    or_raise(try_begin(call, rows))
}

fn try_begin(call: Call, rows: bool) -> Result<Step> {
    let Some(text) = call.text(QUERY) else {
        return Err(Error::MissingArgument("query"));
    };
    let params = call.json(PARAMS);
    let ttl = match call.seconds(TTL) {
        None => None,
        Some(seconds) => {
            Some(
                Duration::try_from_secs_f64(seconds).map_err(|_| Error::InvalidArgument {
                    message: "ttl must not be negative".to_owned(),
                    detail: None,
                    hint: None,
                })?,
            )
        }
    };
    let consistency = match call.text(CONSISTENCY) {
        None => None,
        Some(name) => Some(
            Consistency::named(name).ok_or_else(|| Error::InvalidArgument {
                message: format!("there is no consistency \"{name}\""),
                detail: None,
                hint: Some("It is snapshot or ttl.".to_owned()),
            })?,
        ),
    };
    let request = Request {
        form: if rows { Form::Rows } else { Form::Json },
        text,
        params: params.as_deref(),
        label: call.text(CACHE_KEY),
        kind: cache::kind(call.text(CACHE_TYPE))?,
        ttl,
        refresh: call.boolean(REFRESH).unwrap_or(false),
        consistency,
    };
    Ok(match cache::answer(&request)? {
        Answer::Hit(stored) if rows => {
            Step::Rows(stored.columns().to_vec(), stored.data().to_vec())
        }
        Answer::Hit(stored) => Step::Value(stored.data().to_vec()),
        Answer::Run(running) => {
            let columns = running.columns.clone();
            let running = memory::owned_by_context(running);
            Step::Run {
                execution: memory::field_of(running, |running: &mut Running| {
                    &mut running.execution
                }),
                columns,
                token: running.cast(),
            }
        }
    })
}

fn end(token: *mut c_void) {
    memory::with(token.cast::<Running>(), cache::finish);
}

fn require_preloaded(what: &'static str) {
    if !shmem::is_preloaded() {
        Error::NotPreloaded { what }.raise();
    }
}

fn big(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn milliseconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e6
}

#[pg_extern(sql = "")]
#[allow(clippy::type_complexity)]
fn cache_counters() -> TableIterator<
    'static,
    (
        name!(cache_type, String),
        name!(counters, Vec<i64>),
        name!(saved_ms, f64),
    ),
> {
    require_preloaded("audit_db.cache_stats_by_type");
    TableIterator::new(shared::type_names().into_iter().map(|(kind, name)| {
        let counters = shared::counters(kind);
        (
            printable(name),
            counters.iter().map(|count| big(*count)).collect(),
            milliseconds(counters[shared::Counter::Saved as usize]),
        )
    }))
}

#[pg_extern(sql = "")]
#[allow(clippy::type_complexity)]
fn cache_totals() -> TableIterator<
    'static,
    (
        name!(entries, i64),
        name!(used_bytes, i64),
        name!(size_bytes, i64),
        name!(bypasses, String),
        name!(stats_reset, Option<TimestampWithTimeZone>),
    ),
> {
    require_preloaded("audit_db.cache_stats");
    let (bypasses, since) = shared::resets();
    let bypasses: serde_json::Map<String, serde_json::Value> = bypasses
        .into_iter()
        .map(|(name, count)| (name.to_owned(), count.into()))
        .collect();
    TableIterator::once((
        big(shared::entries()),
        shared::used_bytes() as i64,
        settings::cache_size() as i64,
        serde_json::Value::Object(bypasses).to_string(),
        TimestampWithTimeZone::try_from(since).ok(),
    ))
}

#[pg_extern(sql = "")]
#[allow(clippy::type_complexity)]
fn cache_list() -> TableIterator<
    'static,
    (
        name!(database_oid, Oid),
        name!(role_oid, Oid),
        name!(cache_type, String),
        name!(cache_key, Option<String>),
        name!(query, String),
        name!(params, Option<String>),
        name!(relations, Vec<Oid>),
        name!(exact, bool),
        name!(bytes, i64),
        name!(hits, i64),
        name!(age_ms, f64),
        name!(fill_ms, f64),
    ),
> {
    require_preloaded("audit_db.cache_entries");
    let names = shared::type_names();
    let now = clock::monotonic();
    let mut rows = Vec::new();
    shared::for_each(|one| {
        let Some((key, relations, exact)) = cache::described(&one.payload) else {
            return;
        };
        let Some(listed) = cache::listed(&key) else {
            return;
        };
        let text = |bytes: &[u8]| printable(String::from_utf8_lossy(bytes).into_owned());
        let some = |bytes: &[u8]| (!bytes.is_empty()).then(|| text(bytes));
        rows.push((
            Oid::from(one.database),
            Oid::from(listed.role),
            names
                .iter()
                .find(|(kind, _)| *kind == one.kind)
                .map(|(_, name)| name.clone())
                .unwrap_or_default(),
            some(listed.label),
            text(listed.text),
            some(listed.params),
            relations.into_iter().map(Oid::from).collect(),
            exact,
            i64::from(one.bytes),
            big(one.hits),
            milliseconds(now.saturating_sub(one.filled_at)),
            milliseconds(one.cost),
        ));
    });
    TableIterator::new(rows)
}

#[pg_extern(sql = "")]
fn cache_invalidate(
    cache_key: Option<&str>,
    cache_type: Option<&str>,
    relation: Option<Oid>,
) -> i64 {
    require_preloaded("audit_db.cache_invalidate");
    let database = identity::my_database().to_u32();
    let kind = cache_type.map(|name| {
        shared::type_names()
            .into_iter()
            .find(|(_, known)| known == name)
            .map(|(kind, _)| kind)
    });
    let removed = shared::remove_if(|one| {
        one.database == database
            && kind.is_none_or(|kind| kind == Some(one.kind))
            && cache::described(&one.payload).is_some_and(|(key, relations, _)| {
                relation.is_none_or(|relation| relations.contains(&relation.to_u32()))
                    && cache_key.is_none_or(|label| {
                        cache::listed(&key).is_some_and(|listed| listed.label == label.as_bytes())
                    })
            })
    });
    for kind in &removed {
        shared::count(*kind, shared::Counter::Invalidations, 1);
    }
    big(removed.len() as u64)
}

#[pg_extern(sql = "")]
fn cache_reset() {
    require_preloaded("audit_db.cache_reset");
    shared::clear();
    shared::reset_counters();
}

/// Has all sessions read the tables of types and of safe functions again.
#[pg_extern(sql = "")]
fn cache_tables_changed(table: Oid) {
    inval::announce(table);
}
