//! Detaching while others use the table, which the server can do only without a default partition, in two transactions and at
//! top level. An interruption in between leaves the partition pending: its rows are no longer seen through the table, its range
//! cannot be written, and nothing else can be detached, until it is finished.

use crate::error::{Error, Result};
use crate::partition::create::{is_needed, require_same_owner};
use crate::partition::inspect::{Partition, Table};
use crate::partition::unfinished::{self, Step};
use crate::partition::{events, retire, steps};
use crate::pg::guc::Scope;
use crate::pg::lock::Deadline;
use crate::pg::spi;
use crate::pg::utility::run_at_top_level;
use crate::pg::{catalog, identity, xact};
use crate::settings;
use audit_db_core::retention::RetentionAction;
use pgrx::pg_sys::Oid;

/// Partitions of a table whose detach was begun and not finished.
pub fn pending(parent: Oid) -> Result<Vec<Oid>> {
    Ok(spi::rows(
        "SELECT inhrelid FROM pg_catalog.pg_inherits WHERE inhparent = $1 AND inhdetachpending",
        &[parent.into()],
        |row| row.get::<Oid>(1),
    )?
    .into_iter()
    .flatten()
    .collect())
}

/// Detaches an expired partition and does with it what the settings say. `still` looks again whether it may go.
pub fn concurrently(
    parent: Oid,
    name: &str,
    still: impl Fn(&Table) -> Result<Option<(Partition, RetentionAction)>>,
) -> Result<bool> {
    let begun = steps::in_transactions_with_retries(name, |_scope| {
        let table = Table::load(parent)?;
        let Some((partition, action)) = still(&table)? else {
            return Ok(None);
        };
        require_same_owner(&table, &partition)?;
        // Found out beforehand: once it is detached it is too late.
        if action == RetentionAction::Drop && is_needed(partition.oid)? {
            return Err(Error::StillNeeded(table.qualified_partition(&partition)));
        }
        unfinished::begin_detach(parent, partition.oid, &action.text())?;
        Ok(Some((
            partition.oid,
            table.owner,
            command(&table, partition.oid, "CONCURRENTLY"),
        )))
    })?;
    let Some((partition, owner, sql)) = begun else {
        return Ok(false);
    };
    if let Err(error) = run_at_top_level(owner, &sql, true) {
        xact::in_transaction(|| {
            if pending(parent)?.contains(&partition) {
                return Ok(());
            }
            unfinished::remove(partition)
        })?;
        return Err(error);
    }
    conclude(parent, partition, name)?;
    Ok(true)
}

fn command(table: &Table, partition: Oid, how: &str) -> String {
    format!(
        "ALTER TABLE {} DETACH PARTITION {} {how}",
        table.qualified(),
        catalog::qualified_name(partition).unwrap_or_default()
    )
}

/// Finishes every detach of a table that was interrupted, whoever began it, and what was to follow. `true`: there was some.
pub fn finish(parent: Oid, name: &str) -> Result<bool> {
    let (begun, table) = xact::in_transaction(|| {
        let begun = pending(parent)?;
        let table = if begun.is_empty() {
            None
        } else {
            Some(Table::load(parent)?)
        };
        Ok((begun, table))
    })?;
    for partition in &begun {
        if let Some(table) = &table {
            let sql = xact::in_transaction(|| Ok(command(table, *partition, "FINALIZE")))?;
            run_at_top_level(table.owner, &sql, true)?;
            xact::in_transaction(|| {
                let partition = catalog::qualified_name(*partition).unwrap_or_default();
                events::done(
                    "detach finished",
                    &partition,
                    &format!("partition of {name}"),
                )
            })?;
        }
    }
    let left = xact::in_transaction(|| unfinished::of_table(parent))?;
    let mut any = !begun.is_empty();
    for entry in left.iter().filter(|entry| entry.step == Step::Detach) {
        any = true;
        conclude(parent, entry.object, name)?;
    }
    Ok(any)
}

/// What follows a detach: the partition is dropped, or protected and perhaps moved.
fn conclude(parent: Oid, partition: Oid, name: &str) -> Result<()> {
    steps::in_transactions_with_retries(name, |scope: &Scope| {
        let entry = unfinished::of_table(parent)?
            .into_iter()
            .find(|entry| entry.object == partition);
        let action = entry
            .and_then(|entry| entry.action)
            .and_then(|text| RetentionAction::parse(&text));
        unfinished::remove(partition)?;
        let (Some(action), Some(qualified)) = (action, catalog::qualified_name(partition)) else {
            return Ok(());
        };
        // Still attached: the detach was not begun, and the next run decides anew.
        if catalog::is_partition(partition) {
            return Ok(());
        }
        let table = Table::load(parent)?;
        let partition_name =
            catalog::relation_name(partition).ok_or(Error::NoSuchRelation(partition.to_u32()))?;
        Deadline::start(scope, settings::lock_timeout()).arm();
        identity::as_role(table.owner, || {
            retire::dispose(&table, partition, &partition_name, &qualified, &action)
        })?;
        events::done(
            &format!("partition {}", action.done()),
            &qualified,
            &format!("retention of {name}"),
        )
    })
}
