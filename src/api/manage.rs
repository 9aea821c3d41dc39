//! `manage_table` and `unmanage_table`.

use super::{require_ownership, required};
use crate::error::{Error, Result};
use crate::partition::create::{self, Maker, storage_parameter};
use crate::partition::inspect::{Calendar, Table};
use crate::partition::managed::{self, Wanted};
use crate::partition::waiting::{self, Waiting};
use crate::partition::{maintain, retire, steps};
use crate::pg::clock::NamedZone;
use crate::pg::guc::Scope;
use crate::pg::lock::{Deadline, Mode};
use crate::pg::spi::quote_identifier;
use crate::pg::{catalog, compat, identity, inval, lock};
use crate::settings;
use crate::worker;
use audit_db_core::calendar::PartitionInterval;
use audit_db_core::retention::RetentionAction;
use pgrx::datum::Interval;
use pgrx::pg_sys::Oid;
use pgrx::prelude::*;

/// More than this many periods ahead are a mistake.
const MAX_PREMAKE: i32 = 1_000;

#[pg_extern(sql = "")]
#[allow(clippy::too_many_arguments)]
fn manage_table(
    parent: Option<Oid>,
    partition_interval: Option<&str>,
    premake_count: Option<i32>,
    retention_interval: Option<Interval>,
    retention_action: Option<&str>,
    time_zone: Option<&str>,
    default_partition: Option<bool>,
    compress_after: Option<Interval>,
    storage_parameters: Option<Vec<Option<String>>>,
) {
    super::changing("manage_table", || {
        let table = required(parent, "parent")?;
        require_ownership(table)?;
        if compress_after.is_some() {
            return Err(Error::NoCompression);
        }
        let storage_parameters = match storage_parameters {
            None => None,
            Some(list) => {
                let list: Vec<String> = list
                    .into_iter()
                    .map(|parameter| required(parameter, "storage_parameters"))
                    .collect::<Result<_>>()?;
                for parameter in &list {
                    storage_parameter(parameter)?;
                }
                Some(list)
            }
        };
        let wanted = Wanted {
            interval: interval(partition_interval)?,
            premake: premake(premake_count)?,
            retention: retention(retention_interval)?,
            action: action(retention_action, table)?,
            time_zone: zone(time_zone)?,
            default_partition: required(default_partition, "default_partition")?,
            storage_parameters,
            audit_table: false,
        };
        take_over(table, &wanted)
    });
}

#[pg_extern(sql = "")]
fn unmanage_table(parent: Option<Oid>) {
    super::changing("unmanage_table", || {
        let table = required(parent, "parent")?;
        require_ownership(table)?;
        let name = catalog::qualified_name(table).unwrap_or_default();
        managed::get(table)?;
        // Retention that is under way either ends first or finds the table forgotten.
        steps::with_retries(&name, |scope| {
            Deadline::start(scope, settings::lock_timeout())
                .lock(table, Mode::ShareUpdateExclusive);
            managed::forget(table).map(|_| inval::announce(table))
        })
    });
}

pub(super) fn interval(text: Option<&str>) -> Result<PartitionInterval> {
    let text = required(text, "partition_interval")?;
    text.parse().map_err(|()| {
        Error::invalid_with_hint(
            format!("partition interval \"{text}\" is not valid"),
            "Intervals are daily, weekly, monthly, quarterly and yearly.",
        )
    })
}

pub(super) fn premake(count: Option<i32>) -> Result<i32> {
    let count = required(count, "premake")?;
    if (0..=MAX_PREMAKE).contains(&count) {
        Ok(count)
    } else {
        Err(Error::invalid(format!(
            "premake must lie between 0 and {MAX_PREMAKE}, not {count}"
        )))
    }
}

/// Null keeps for ever; what is not longer than nothing is a mistake.
pub(super) fn retention(interval: Option<Interval>) -> Result<Option<Interval>> {
    match interval {
        Some(interval) if !managed::span(interval).is_positive() => Err(Error::invalid_with_hint(
            "retention must be longer than zero",
            "Use null to keep partitions for ever.",
        )),
        other => Ok(other),
    }
}

pub(super) fn zone(name: Option<&str>) -> Result<String> {
    let name = required(name, "time_zone")?;
    NamedZone::named(name)?;
    Ok(name.to_owned())
}

fn action(text: Option<&str>, table: Oid) -> Result<String> {
    let text = required(text, "retention_action")?;
    let action = RetentionAction::parse(text).ok_or_else(|| {
        Error::invalid_with_hint(
            format!("retention action \"{text}\" is not valid"),
            "Actions are drop, detach and archive:SCHEMA.",
        )
    })?;
    if let RetentionAction::Archive(schema) = &action {
        let oid = catalog::schema_oid(schema)
            .ok_or_else(|| Error::NoSuchSchema(quote_identifier(schema)))?;
        let owner = Table::load(table)?.owner;
        for role in [identity::current_role(), owner] {
            if !compat::may_create_in_schema(oid, role) {
                return Err(Error::NoCreateOnSchema {
                    owner: quote_identifier(identity::role_name(role)),
                    schema: quote_identifier(schema),
                });
            }
        }
    }
    Ok(text.to_owned())
}

/// Writes the settings and makes the partitions that are due, all in the caller's transaction.
pub(super) fn take_over(oid: Oid, wanted: &Wanted) -> Result<()> {
    // Before anything is written: whether audit_db can look after this table at all.
    let name = Table::load(oid)?.qualified();
    let before = managed::find(oid)?;
    steps::with_retries(&name, |scope| {
        let table = create::lock_and_load(scope, oid)?;
        managed::save(oid, table.index_count, wanted)?;
        let managed = managed::get(oid)?;
        let calendar = Calendar::new(table.key, &managed.time_zone)?;
        if wanted.storage_parameters.is_some() && table.invalid_index.is_none() {
            Maker::new(&table, &managed, calendar)?.check_storage_parameters()?;
        }
        make_due(scope, table, &managed, calendar, wanted.default_partition)
    })?;
    let managed = managed::get(oid)?;
    let table = Table::load(oid)?;
    announce_retention(&table, &managed, before.and_then(|before| before.retention))?;
    warn_about_locks(&table, &managed)?;
    worker::want_cycle_at_commit();
    Ok(())
}

/// The default partition and the periods ahead. Months for which many rows wait are the worker's business.
fn make_due(
    scope: &Scope,
    mut table: Table,
    managed: &managed::Managed,
    calendar: Calendar,
    default_partition: bool,
) -> Result<()> {
    if table.invalid_index.is_some() {
        Error::InvalidIndex {
            table: table.qualified(),
            index: table.invalid_index.clone().unwrap_or_default(),
        }
        .warn();
        return Ok(());
    }
    if default_partition && table.default.is_none() {
        Maker::new(&table, managed, calendar)?.make_default(scope)?;
        table = Table::load(table.oid)?;
    }
    // Those ahead are made at once, so that the table is ready; rows that wait for other months are the worker's business.
    let ahead = Waiting::default();
    let planned = maintain::missing(&table, managed, &calendar, &ahead, usize::MAX)?;
    let all = planned.len();
    let (mut new, many) = match &table.default {
        Some(default) if waiting::is_large(default.oid)? => (Vec::new(), true),
        _ => {
            let waiting = Waiting::look(&table, managed, &calendar)?;
            let new = maintain::without_copying(&table, &waiting, planned)?;
            (new, waiting.rows() > waiting::MOVED_LIMIT)
        }
    };
    if many || new.len() < all {
        waiting::too_many(&table).warn();
    }
    let room = create::room_in_lock_table(&table);
    let too_many = new.len().saturating_sub(room);
    if too_many > 0 {
        new.truncate(room);
        ereport!(
            PgLogLevel::NOTICE,
            PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION,
            format!("{too_many} partitions of table {} are made later", table.qualified()),
            "One transaction has no room for more in the lock table. The worker makes the others; without it, call audit_db.create_partitions.".to_owned()
        );
    }
    if !new.is_empty() {
        Maker::new(&table, managed, calendar)?.make(scope, &new)?;
    }
    Ok(())
}

/// Says which partitions a new retention expires at once.
fn announce_retention(
    table: &Table,
    managed: &managed::Managed,
    before: Option<audit_db_core::span::Span>,
) -> Result<()> {
    if managed.retention.is_none() || managed.retention == before {
        return Ok(());
    }
    let expired = retire::expired_now(table, managed)?;
    if !expired.is_empty() {
        ereport!(
            PgLogLevel::NOTICE,
            PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION,
            format!(
                "retention of table {} expires {} partitions at once",
                table.qualified(),
                expired.len()
            ),
            format!("They are {}.", expired.join(", "))
        );
    }
    Ok(())
}

/// A session that reads the whole table locks every partition and every index of it; warns where the server's lock table is
/// too small for a quarter of its connections doing so.
fn warn_about_locks(table: &Table, managed: &managed::Managed) -> Result<()> {
    let indexes = catalog::index_count(table.oid);
    let days = match managed.interval {
        PartitionInterval::Daily => 1,
        PartitionInterval::Weekly => 7,
        PartitionInterval::Monthly => 30,
        PartitionInterval::Quarterly => 91,
        PartitionInterval::Yearly => 365,
    };
    let kept = managed
        .retention
        .map_or(table.partitions.len() as i64, |retention| {
            retention.approximate_days() / days
        });
    let partitions = kept + i64::from(managed.premake) + 1;
    let (capacity, backends, sessions) = lock::table_capacity();
    let needed = partitions * (1 + indexes) * sessions;
    if needed > capacity {
        let per_transaction = needed.div_euclid(backends.max(1)) + 1;
        ereport!(
            PgLogLevel::WARNING,
            PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
            format!(
                "the lock table is too small for table {}",
                table.qualified()
            ),
            format!(
                "{sessions} sessions that read all of its {partitions} partitions with {indexes} indexes need {needed} locks; there is room for {capacity}. Set max_locks_per_transaction to {per_transaction} or more and restart the server."
            )
        );
    }
    Ok(())
}
