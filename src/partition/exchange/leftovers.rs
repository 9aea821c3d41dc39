//! What an exchange leaves behind: after the swap the old default partition, which is compared and dropped; before it, the
//! tables that were made, which are dropped.

use super::apply::contents_of;
use super::{hash_expression, stage};
use crate::error::{Error, Result};
use crate::partition::indexes::{self, Definition};
use crate::partition::inspect::Table;
use crate::partition::steps;
use crate::partition::unfinished::{self, Step, Unfinished};
use crate::pg::lock::{Deadline, Mode};
use crate::pg::spi::{self, quote_identifier};
use crate::pg::xact::{self, Kind};
use crate::pg::{catalog, extension, identity};
use crate::settings;
use pgrx::pg_sys::Oid;

/// Finishes or clears away what exchanges of a table have left. `name` is for messages: the table may be gone.
pub fn clear(parent: Oid, name: &str) -> Result<()> {
    let left = xact::in_transaction(|| unfinished::of_table(parent))?;
    let mut outcome = Ok(());
    for entry in left {
        let cleared = match entry.step {
            Step::Exchange => undo(&entry, name),
            Step::Verification => verify(&entry, parent, name),
            Step::Detach => Ok(()),
        };
        outcome = outcome.and(cleared);
    }
    outcome.and_then(|()| clear_stray_triggers(parent, name))
}

/// Triggers without an exchange came with a dump that was made in the middle of one.
fn clear_stray_triggers(parent: Oid, name: &str) -> Result<()> {
    let stray = xact::in_transaction(|| {
        if catalog::relation_owner(parent).is_none() {
            return Ok(None);
        }
        let unfinished = unfinished::of_table(parent)?;
        let Some(default) = Table::load(parent)?.default else {
            return Ok(None);
        };
        let exchanged = unfinished.iter().any(|entry| entry.object == default.oid);
        Ok((!exchanged && stage::has_triggers(default.oid)?).then_some(default.oid))
    })?;
    stray.map_or(Ok(()), |default| remove_triggers(default, name))
}

fn remove_triggers(table: Oid, name: &str) -> Result<()> {
    steps::in_transactions_with_retries(name, |scope| {
        if let Some(owner) = catalog::relation_owner(table) {
            Deadline::start(scope, settings::lock_timeout()).lock(table, Mode::AccessExclusive);
            if let Some(qualified) = catalog::qualified_name(table) {
                identity::as_role(owner, || stage::drop_triggers(table, &qualified))?;
            }
        }
        Ok(())
    })
}

/// Drops the tables of an exchange that did not come to its swap.
fn undo(entry: &Unfinished, name: &str) -> Result<()> {
    remove_triggers(entry.object, name)?;
    steps::in_transactions_with_retries(name, |_scope| {
        drop_own(&entry.tables)?;
        unfinished::remove(entry.object)
    })
}

/// Drops tables that were made for an exchange, the last first: the staging table takes its partitions along.
fn drop_own(tables: &[Oid]) -> Result<()> {
    // A number that is in use again belongs to somebody else.
    let ours: Vec<Oid> = tables
        .iter()
        .copied()
        .filter(|table| extension::has_table(*table))
        .collect();
    for table in &ours {
        extension::remove_table(*table);
    }
    ours.iter().rev().try_for_each(|table| drop_table(*table))
}

/// Drops a table, if it is there, as its owner.
fn drop_table(table: Oid) -> Result<()> {
    if let (Some(owner), Some(qualified)) = (
        catalog::relation_owner(table),
        catalog::qualified_name(table),
    ) {
        identity::as_role(owner, || {
            spi::execute(&format!("DROP TABLE {qualified}"), &[])
        })?;
    }
    Ok(())
}

/// Compares the old default partition with what was copied, and drops it.
fn verify(entry: &Unfinished, parent: Oid, name: &str) -> Result<()> {
    let owner = xact::in_transaction(|| Ok(catalog::relation_owner(entry.object)))?;
    let (Some(owner), Some(expected)) = (owner, entry.contents) else {
        return xact::in_transaction(|| {
            drop_own(&entry.tables)?;
            unfinished::remove(entry.object)
        });
    };
    let verified = xact::in_transaction_of(Kind::Long, || {
        let qualified = catalog::qualified_name(entry.object).unwrap_or_default();
        let hash = hash_expression(entry.object)?;
        let found = identity::as_role(owner, || contents_of(&hash, &format!("ONLY {qualified}")))?;
        if found == expected {
            return Ok(Ok(()));
        }
        Ok(Err(Error::ContentsDiffer {
            default: qualified,
            rows: found.rows,
            copied: expected.rows,
            kept: true,
        }))
    })?;
    steps::in_transactions_with_retries(name, |_scope| {
        drop_own(&entry.tables)?;
        let qualified = catalog::qualified_name(entry.object).unwrap_or_default();
        if verified.is_ok() {
            let names = indexes::of_table(entry.object, &qualified)?;
            drop_table(entry.object)?;
            // A name that cannot be given must not undo the drop.
            if let Err(error) = xact::in_subtransaction(|| name_indexes(parent, owner, names)) {
                error.warn();
            }
        } else {
            // It stays, for people to look at.
            identity::as_role(owner, || stage::drop_triggers(entry.object, &qualified))?;
        }
        unfinished::remove(entry.object)
    })?;
    verified
}

/// Names the indexes of the new default partition as those of the old one were named.
fn name_indexes(parent: Oid, owner: Oid, mut old: Vec<Definition>) -> Result<()> {
    if catalog::relation_owner(parent).is_none() {
        return Ok(());
    }
    let Some(default) = Table::load(parent)?.default else {
        return Ok(());
    };
    let qualified = catalog::qualified_name(default.oid).unwrap_or_default();
    let schema = catalog::schema_of(default.oid).unwrap_or_default();
    identity::as_role(owner, || {
        for index in indexes::of_table(default.oid, &qualified)? {
            let Some(same) = old.iter().position(|old| old.equals(&index)) else {
                continue;
            };
            let same = old.remove(same);
            spi::execute(
                &format!(
                    "ALTER INDEX {}.{} RENAME TO {}",
                    quote_identifier(&schema),
                    index.name,
                    same.name
                ),
                &[],
            )?;
        }
        Ok(())
    })
}
