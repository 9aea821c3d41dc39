//! Detaching while others use the table, which the server can do only without a default partition, in two transactions and at
//! top level. An interruption in between leaves the partition pending: its rows are no longer seen through the table, its range
//! cannot be written, and nothing else can be detached, until it is finished.

use crate::error::{Error, Result};
use crate::partition::inspect::{Calendar, Partition, Table};
use crate::partition::unfinished::{self, Step, Unfinished};
use crate::partition::{events, managed, retire, steps};
use crate::pg::guc::Scope;
use crate::pg::lock::{Deadline, Mode};
use crate::pg::spi;
use crate::pg::utility::{WAIT_LIMIT, run_at_top_level};
use crate::pg::{catalog, clock, identity, xact};
use crate::settings;
use audit_db_core::partition_plan::{Bound, Range};
use audit_db_core::retention::{self, RetentionAction};
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

/// How the detach of a partition ended.
pub enum Outcome {
    /// It is detached, and what the settings say was done with it.
    Retired,
    /// It is gone, no longer expired, or somebody else is detaching it.
    NotOurs,
    /// It is detached, but the rest could not be done: it is kept as a plain table.
    Kept(Error),
}

/// Detaches an expired partition and does with it what the settings say. `still` looks again whether it may go.
pub fn concurrently(
    parent: Oid,
    name: &str,
    still: impl Fn(&Table) -> Result<Option<(Partition, RetentionAction)>>,
) -> Result<Outcome> {
    let begun = steps::in_transactions_with_retries(name, |scope| {
        Deadline::start(scope, settings::lock_timeout()).arm();
        let table = Table::load(parent)?;
        let Some((partition, action)) = still(&table)? else {
            return Ok(None);
        };
        let Some(Bound::At(range_end)) = partition.range.map(|range| range.upper) else {
            return Ok(None);
        };
        // What somebody else began may be meant to be kept.
        if pending(parent)?.contains(&partition.oid) {
            return Ok(None);
        }
        // Found out beforehand: once it is detached it is too late.
        retire::require_disposable(&table, &partition, &action)?;
        unfinished::begin_detach(parent, partition.oid, &action.text(), range_end)?;
        Ok(Some((
            partition.oid,
            table.owner,
            command(&table, partition.oid, "CONCURRENTLY"),
        )))
    })?;
    let Some((partition, owner, sql)) = begun else {
        return Ok(Outcome::NotOurs);
    };
    if let Err(error) = run_at_top_level(owner, &sql, Some(WAIT_LIMIT)) {
        xact::in_transaction(|| {
            if pending(parent)?.contains(&partition) {
                return Ok(());
            }
            unfinished::remove(partition)
        })?;
        return Err(error);
    }
    conclude(parent, partition, name)
}

fn command(table: &Table, partition: Oid, how: &str) -> String {
    format!(
        "ALTER TABLE {} DETACH PARTITION {} {how}",
        table.qualified(),
        catalog::qualified_name(partition).unwrap_or_default()
    )
}

/// Finishes detaches of a table that were interrupted, and what was to follow: our own, and with `others` whoever began them.
/// `true`: there was some.
pub fn finish(parent: Oid, name: &str, others: bool) -> Result<bool> {
    let (begun, left, table) = xact::in_transaction(|| {
        let left = unfinished::of_table(parent)?;
        let ours = |oid: &Oid| {
            left.iter()
                .any(|entry| entry.step == Step::Detach && entry.object == *oid)
        };
        let mut begun = pending(parent)?;
        begun.retain(|oid| others || ours(oid));
        let table = if begun.is_empty() {
            None
        } else {
            Some(Table::load(parent)?)
        };
        Ok((begun, left, table))
    })?;
    for partition in &begun {
        if let Some(table) = &table {
            let sql = xact::in_transaction(|| Ok(command(table, *partition, "FINALIZE")))?;
            run_at_top_level(table.owner, &sql, Some(WAIT_LIMIT))?;
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
    let mut outcome = Ok(!begun.is_empty());
    for entry in left.iter().filter(|entry| entry.step == Step::Detach) {
        outcome = match conclude(parent, entry.object, name)? {
            // Its entry is gone: whoever reads the log must find it there.
            Outcome::Kept(error) => Err(error),
            _ => outcome.map(|_| true),
        };
    }
    outcome
}

/// What follows a detach: the partition is dropped, or protected and perhaps moved. While it was being detached nobody was kept
/// from changing his mind: what the settings no longer say is not done.
fn conclude(parent: Oid, partition: Oid, name: &str) -> Result<Outcome> {
    let done = steps::in_transactions_with_retries(name, |scope: &Scope| {
        let Some(entry) = unfinished::of_table(parent)?
            .into_iter()
            .find(|entry| entry.object == partition && entry.step == Step::Detach)
        else {
            return Ok(Outcome::NotOurs);
        };
        unfinished::remove(partition)?;
        let (Some(qualified), Some(partition_name)) = (
            catalog::qualified_name(partition),
            catalog::relation_name(partition),
        ) else {
            return Ok(Outcome::NotOurs);
        };
        // Still attached: the detach was not begun, and the next run decides anew.
        if catalog::is_partition(partition) {
            return Ok(Outcome::NotOurs);
        }
        // The table is gone: what was detached from it stays.
        if catalog::relation_owner(parent).is_none() {
            return Ok(Outcome::NotOurs);
        }
        let deadline = Deadline::start(scope, settings::lock_timeout());
        deadline.lock(parent, Mode::ShareUpdateExclusive);
        deadline.lock(partition, Mode::AccessExclusive);
        let table = Table::load(parent)?;
        let wanted = wanted_still(&table, &entry)?;
        let action = wanted.clone().unwrap_or(RetentionAction::Detach);
        identity::as_role(table.owner, || {
            retire::dispose(&table, partition, &partition_name, &qualified, &action)
        })?;
        match wanted {
            Some(action) => events::done(
                &format!("partition {}", action.done()),
                &qualified,
                &format!("retention of {name}"),
            )?,
            None => events::done(
                "partition detached",
                &qualified,
                &format!("kept: the settings of {name} were changed while it was being detached"),
            )?,
        }
        Ok(Outcome::Retired)
    });
    match done {
        Err(error) if !error.is_lock_timeout() && !error.is_cancel() => {
            // It will not get better by itself, and must not keep the table from everything else. It has no grants: a
            // partition never had any.
            xact::in_transaction(|| unfinished::remove(partition))?;
            Ok(Outcome::Kept(error))
        }
        done => done,
    }
}

/// What is to be done with a partition that was detached, if the table's settings still say so.
fn wanted_still(table: &Table, entry: &Unfinished) -> Result<Option<RetentionAction>> {
    let Some(managed) = managed::find(table.oid)? else {
        return Ok(None);
    };
    let calendar = Calendar::new(table.key, &managed.time_zone)?;
    let (Some(end), Some(now)) = (
        entry.range_end,
        calendar.position_at(clock::transaction_start()),
    ) else {
        return Ok(None);
    };
    let range = Range::new(end.saturating_sub(1), end);
    let expired = !retention::expired(&[range], managed.retention, now, &calendar).is_empty();
    let same = entry.action.as_deref() == Some(managed.action.text().as_str());
    Ok((expired && same).then_some(managed.action))
}
