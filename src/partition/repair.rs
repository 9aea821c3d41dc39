//! Gives partitions the indexes of their table that they lack: made while others write, then attached. A table's index is valid
//! once every partition has its own.

use crate::error::{Error, Result};
use crate::partition::create::require_same_owner;
use crate::partition::indexes::{self, Constraint, Definition};
use crate::partition::inspect::{Partition, Table};
use crate::partition::{events, steps, waiting};
use crate::pg::guc;
use crate::pg::lock::{Deadline, Mode};
use crate::pg::spi::{self, quote_identifier};
use crate::pg::utility::run_at_top_level;
use crate::pg::{catalog, identity, xact};
use crate::settings;
use pgrx::pg_sys::Oid;

/// One index that a partition lacks.
struct Gap {
    index: Definition,
    /// Of the table's index, qualified.
    index_name: String,
    partition: Partition,
    partition_name: String,
    owner: Oid,
}

/// Repairs all indexes of a table. `true`: something was made.
pub fn run(parent: Oid, name: &str) -> Result<bool> {
    let gaps = xact::in_transaction(|| gaps(parent))?;
    let mut outcome = Ok(false);
    for gap in gaps {
        let object = format!("{} on {}", gap.index_name, gap.partition_name);
        // What cannot be built (its rows are not unique) would be built in vain every time, which takes long where it is large.
        if xact::in_transaction(|| {
            Ok(waiting::is_large(gap.partition.oid)? && events::has_failed_lately(EVENT, &object)?)
        })? {
            continue;
        }
        match fill(&gap, name) {
            Ok(()) => outcome = outcome.map(|_| true),
            Err(error) => {
                error.warn();
                if error.is_lock_timeout() || error.is_cancel() {
                    outcome = outcome.and(Err(error));
                } else {
                    xact::in_transaction(|| events::failed(EVENT, &object, &error.failure()))?;
                }
            }
        }
    }
    outcome
}

const EVENT: &str = "index";

fn gaps(parent: Oid) -> Result<Vec<Gap>> {
    let table = Table::load(parent)?;
    // Somebody is at it.
    let busy = spi::rows(
        "SELECT 1 FROM pg_catalog.pg_stat_progress_create_index
          WHERE relid IN (SELECT relid FROM pg_catalog.pg_partition_tree($1)) LIMIT 1",
        &[parent.into()],
        |row| row.get::<i32>(1),
    )?;
    if table.invalid_index.is_none() || !busy.is_empty() {
        return Ok(Vec::new());
    }
    let mut gaps = Vec::new();
    for index in indexes::of_table(parent, &table.qualified())? {
        let attached = spi::rows(
            "SELECT c.indrelid FROM pg_catalog.pg_inherits h
               JOIN pg_catalog.pg_index c ON c.indexrelid = h.inhrelid
              WHERE h.inhparent = $1",
            &[index.oid.into()],
            |row| row.get::<Oid>(1),
        )?;
        for partition in table.partitions.iter().chain(&table.default) {
            if !attached.contains(&Some(partition.oid)) {
                gaps.push(Gap {
                    index_name: format!("{}.{}", quote_identifier(&table.schema), index.name),
                    index: index.clone(),
                    partition_name: table.qualified_partition(partition),
                    partition: partition.clone(),
                    owner: table.owner,
                });
                require_same_owner(&table, partition)?;
            }
        }
    }
    Ok(gaps)
}

fn fill(gap: &Gap, name: &str) -> Result<()> {
    let refuse = |reason| Error::CannotRepair {
        index: gap.index_name.clone(),
        partition: gap.partition_name.clone(),
        reason,
    };
    if !xact::in_transaction(|| Ok(catalog::is_plain_table(gap.partition.oid)))? {
        return Err(refuse("The partition is not a plain table."));
    }
    let constraint = gap.index.constraint.as_ref();
    if constraint.is_some_and(|constraint| constraint.kind == "x") {
        return Err(refuse(
            "An exclusion constraint cannot be made while others write.",
        ));
    }
    if find(gap)?.is_none() {
        drop_invalid(gap)?;
        guc::fix_for_worker(c"default_tablespace", gap.index.tablespace().unwrap_or(""));
        let made = run_at_top_level(
            gap.owner,
            &gap.index.concurrent_command(&gap.partition_name),
            None,
        );
        guc::fix_for_worker(c"default_tablespace", "");
        made?;
    }
    let found = find(gap)?.ok_or_else(|| {
        Error::Internal(format!("an index of {} is gone again", gap.partition_name))
    })?;
    let schema = xact::in_transaction(|| Ok(catalog::schema_of(gap.partition.oid)))?;
    let schema = quote_identifier(schema.unwrap_or_default());
    steps::in_transactions_with_retries(name, |_scope| {
        identity::as_role(gap.owner, || {
            if found.constraint.is_none()
                && let Some(constraint) = constraint
            {
                let kind = if constraint.kind == "p" {
                    "PRIMARY KEY"
                } else {
                    "UNIQUE"
                };
                spi::execute(
                    &format!(
                        "ALTER TABLE {} ADD {kind} USING INDEX {}{}",
                        gap.partition_name,
                        found.name,
                        constraint.deferrability()
                    ),
                    &[],
                )?;
            }
            spi::execute(
                &format!(
                    "ALTER INDEX {} ATTACH PARTITION {schema}.{}",
                    gap.index_name, found.name
                ),
                &[],
            )
        })?;
        events::done(
            "index attached",
            &format!("{schema}.{}", found.name),
            &format!("{} of {}", gap.index_name, gap.partition_name),
        )
    })
}

/// A valid index of the partition that is made like the table's and belongs to no other.
fn find(gap: &Gap) -> Result<Option<Definition>> {
    xact::in_transaction(|| {
        let like = |constraint: &Constraint| {
            (
                constraint.kind.clone(),
                constraint.deferrability().to_owned(),
            )
        };
        let wanted = gap.index.constraint.as_ref().map(like);
        Ok(indexes::unattached(gap.partition.oid, &gap.partition_name)?
            .into_iter()
            .find(|index| {
                let found = index.constraint.as_ref().map(like);
                index.equals(&gap.index) && (found.is_none() || found == wanted)
            }))
    })
}

/// What an earlier attempt that was interrupted has left. Looked at again under the lock: somebody may be making it just now.
fn drop_invalid(gap: &Gap) -> Result<()> {
    steps::in_transactions_with_retries(&gap.partition_name, |scope| {
        let deadline = Deadline::start(scope, settings::lock_timeout());
        deadline.lock(gap.partition.oid, Mode::ShareUpdateExclusive);
        let left = indexes::invalid(gap.partition.oid, &gap.partition_name)?;
        let schema = quote_identifier(catalog::schema_of(gap.partition.oid).unwrap_or_default());
        deadline.arm();
        identity::as_role(gap.owner, || {
            for index in left.iter().filter(|index| index.equals(&gap.index)) {
                spi::execute(&format!("DROP INDEX {schema}.{}", index.name), &[])?;
            }
            Ok(())
        })
    })
}
