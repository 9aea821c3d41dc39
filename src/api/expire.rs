//! `drop_expired_partitions`.

use super::{require_ownership, require_writable, required};
use crate::error::{Error, Result, or_raise};
use crate::partition::inspect::Table;
use crate::partition::managed;
use crate::partition::retire::{self, Outcome};
use crate::pg::guc::Scope;
use crate::pg::{catalog, clock, compat, identity};
use crate::shmem;
use crate::shmem::workers;
use crate::worker::task;
use pgrx::datum::TimestampWithTimeZone;
use pgrx::pg_sys::Oid;
use pgrx::prelude::*;

#[pg_extern(sql = "")]
#[allow(clippy::type_complexity)]
fn drop_expired_partitions(
    parent: Option<Oid>,
    dry_run: Option<bool>,
) -> TableIterator<
    'static,
    (
        name!(partition, String),
        name!(range_start, Option<TimestampWithTimeZone>),
        name!(range_end, Option<TimestampWithTimeZone>),
        name!(action, String),
        name!(size_bytes, i64),
    ),
> {
    let outcomes = or_raise({
        let _scope = Scope::reading();
        expire(parent, dry_run)
    });
    for outcome in &outcomes {
        if let Some(failure) = &outcome.failure {
            Error::Server(failure.clone()).warn();
        }
    }
    let time =
        |end: Option<i64>, open: i64| TimestampWithTimeZone::try_from(end.unwrap_or(open)).ok();
    TableIterator::new(outcomes.into_iter().map(move |outcome| {
        (
            outcome.partition,
            time(outcome.lower, i64::MIN),
            time(outcome.upper, i64::MAX),
            outcome.action,
            outcome.size_bytes,
        )
    }))
}

fn expire(parent: Option<Oid>, dry_run: Option<bool>) -> Result<Vec<Outcome>> {
    // A null must not mean "really".
    let dry_run = required(dry_run, "dry_run")?;
    let tables = match parent {
        Some(table) => {
            require_ownership(table)?;
            Table::load(table)?;
            managed::get(table)?;
            vec![table]
        }
        // Without a table: all that the caller could name.
        None => managed::oids()?
            .into_iter()
            .filter(|table| compat::owns_relation(*table, identity::current_role()))
            .collect(),
    };
    let mut outcomes = Vec::new();
    if dry_run {
        let clock_moved = if shmem::is_preloaded() {
            workers::clock_jump(identity::my_database(), clock::reading())
        } else {
            None
        };
        for table in tables {
            outcomes.extend(retire::dry_run(table, clock_moved, "")?);
        }
        return Ok(outcomes);
    }
    require_writable("drop_expired_partitions")?;
    if !shmem::is_preloaded() {
        for table in tables {
            let done = retire::expired_in_session(table, &mut |outcome| {
                outcomes.push(outcome);
                true
            });
            match done {
                Err(error) if parent.is_some() || error.is_cancel() => return Err(error),
                Err(error) => outcomes.push(retire::table_failed(table, &error)),
                Ok(()) => {}
            }
        }
        return Ok(outcomes);
    }
    for table in &tables {
        if retire::held_by_open_transaction(*table)? {
            return Err(Error::OpenTransaction(
                catalog::qualified_name(*table).unwrap_or_default(),
            ));
        }
    }
    if tables.is_empty() {
        return Ok(outcomes);
    }
    task::drop_expired(&tables)
}
