//! Exchanges a default partition that holds many rows: while everybody goes on reading and writing it, its rows are copied into
//! ready-made months, and what happens to it meanwhile is logged by a trigger and brought over; then, in one short
//! transaction, a fresh default partition and the months take its place. The old one goes only after its rows were counted and
//! hashed against what was copied.
//!
//! Nothing here depends on what a process remembers: after a crash the tables that were made are cleared away and the exchange
//! begins anew (before the swap), or the comparison is made again (after it).

mod apply;
mod changes;
mod leftovers;
mod stage;
mod swap;

use crate::error::{Error, Result};
use crate::partition::inspect::Calendar;
use crate::pg::guc::Scope;
use crate::pg::snapshot::OldSnapshots;
use crate::pg::{identity, signal, spi, xact};
use crate::shmem::exchanges;
use audit_db_core::partition_plan::{NewPartition, Range};
use changes::Changes;
use pgrx::pg_sys::Oid;
use std::time::{Duration, Instant};

pub use leftovers::clear;

/// How long an exchange waits in all for old snapshots and for the locks of its swap.
const PATIENCE: Duration = Duration::from_secs(3_600);
/// A wait that is longer than this is worth a line in pg_stat_activity and a second look at what came meanwhile.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// How long the swap waits for snapshots that miss the latest changes, before it is tried all the same.
const FOR_LATEST: Duration = Duration::from_secs(10);
/// How long it waits for the transactions that are writing to the default partition when it begins.
const FOR_WRITERS: Duration = Duration::from_secs(600);
/// Between two attempts at the swap those who waited behind it get through.
const BETWEEN_SWAPS: Duration = Duration::from_millis(500);

/// A table that rows are copied into.
#[derive(Clone, Debug)]
struct Copy {
    oid: Oid,
    name: String,
    qualified: String,
    /// The month it will be; `None` for the new default partition.
    month: Option<NewPartition>,
    /// Defaults on sequences of the table, as quoted column and expression. It gets them with the swap: before, they would keep
    /// the table from being dropped.
    defaults: Vec<(String, String)>,
}

/// An exchange and the tables that were made for it.
struct Exchange {
    parent: Oid,
    /// The parent's name, qualified.
    name: String,
    schema: String,
    owner: Oid,
    default: Oid,
    default_name: String,
    calendar: Calendar,
    /// The key column, quoted.
    column: String,
    /// Whether rows can be found by it through an index.
    key_is_indexed: bool,
    /// All columns that are not generated, quoted, in the order of the default partition.
    columns: Vec<String>,
    /// Columns, constraints and indexes of the table, for comparison.
    shape: String,
    /// Ranges of the partitions there were.
    ranges: Vec<Range>,
    /// The months in the order of time, then the new default partition.
    copies: Vec<Copy>,
    /// The partitioned table whose partitions the copies are until the swap; its name is qualified.
    staging: Oid,
    staging_name: String,
    log: Oid,
    /// Qualified.
    log_name: String,
}

impl Exchange {
    fn months(&self) -> impl Iterator<Item = (&Copy, &NewPartition)> {
        self.copies
            .iter()
            .filter_map(|copy| copy.month.as_ref().map(|month| (copy, month)))
    }

    /// Everything that was made, in the order in which it was made.
    fn tables(&self) -> Vec<Oid> {
        self.copies
            .iter()
            .map(|copy| copy.oid)
            .chain([self.log, self.staging])
            .collect()
    }

    fn default_qualified(&self) -> String {
        spi::quote_qualified_identifier(&self.schema, &self.default_name)
    }

    fn report(&self, what: &str) {
        xact::report_activity(Some(&format!(
            "exchange of the default partition of {}: {what}",
            self.name
        )));
    }
}

/// Empties a default partition, where months are missing for more rows than can simply be moved. `false`: they are not.
pub fn run_if_due(parent: Oid) -> Result<bool> {
    let Some(exchange) = stage::prepare(parent)? else {
        return Ok(false);
    };
    let outcome = copy_and_swap(&exchange);
    exchanges::end(signal::my_pid());
    // What was made and not used is cleared away, what was exchanged is compared and dropped.
    let cleared = clear(parent, &exchange.name);
    outcome.and(cleared).map(|()| true)
}

fn copy_and_swap(exchange: &Exchange) -> Result<()> {
    exchange.report("waiting for writers");
    let started = Instant::now();
    stage::announce(exchange)?;
    while let Err(error) = stage::capture(exchange) {
        if !error.is_lock_timeout() || started.elapsed() > FOR_WRITERS {
            return Err(error);
        }
        pause(BETWEEN_SWAPS);
    }
    exchange.report("copying");
    stage::copy(exchange)?;
    exchange.report("making indexes");
    stage::complete(exchange)?;
    let started = Instant::now();
    let mut changes = Changes::new(exchange)?;
    settle(exchange, &mut changes, started, PATIENCE)?;
    exchange.report("comparing");
    changes.verify()?;
    loop {
        // What is brought over under the lock is missing for sessions whose snapshot is older: it should be next to nothing.
        settle(exchange, &mut changes, started, FOR_LATEST)?;
        exchange.report("exchanging");
        match swap::swap(exchange, &changes) {
            Err(error)
                if (error.is_lock_timeout() || error.is_cancel())
                    && started.elapsed() < PATIENCE =>
            {
                exchange.report("waiting for locks");
                pause(BETWEEN_SWAPS);
            }
            outcome => return outcome,
        }
    }
}

/// Brings over what changed, and waits until nobody has a snapshot that does not see it. Holds no lock while it waits.
fn settle(
    exchange: &Exchange,
    changes: &mut Changes<'_>,
    started: Instant,
    patience: Duration,
) -> Result<()> {
    exchange.report("bringing over changes");
    changes.catch_up()?;
    let begun = Instant::now();
    let mut old = OldSnapshots::now();
    while old.any_left() {
        if started.elapsed() > PATIENCE {
            return Err(Error::OldSnapshots {
                default: exchange.default_qualified(),
                waited_s: started.elapsed().as_secs(),
            });
        }
        if begun.elapsed() > patience {
            break;
        }
        if begun.elapsed() > LOOK_AGAIN {
            exchange.report("waiting for older snapshots");
            changes.catch_up()?;
            pause(LOOK_AGAIN);
        } else {
            pause(Duration::from_millis(2));
        }
    }
    Ok(())
}

/// What new partitions must equal, in a form that can be compared.
fn shape(table: Oid) -> Result<String> {
    Ok(spi::rows(
        "SELECT pg_catalog.concat(
            (SELECT pg_catalog.string_agg((a.attname, a.attnum, a.xmin, a.atttypid, a.atttypmod, a.attcollation, a.attnotnull, a.attgenerated, a.attidentity,
                                           pg_catalog.pg_get_expr(d.adbin, d.adrelid))::pg_catalog.text, ';' ORDER BY a.attnum)
               FROM pg_catalog.pg_attribute a
               LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
              WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped), '/',
            (SELECT pg_catalog.string_agg((oid, convalidated)::pg_catalog.text, ';' ORDER BY oid) FROM pg_catalog.pg_constraint WHERE conrelid = $1), '/',
            (SELECT pg_catalog.string_agg((indexrelid, indisvalid)::pg_catalog.text, ';' ORDER BY indexrelid) FROM pg_catalog.pg_index WHERE indrelid = $1))",
        &[table.into()],
        |row| row.get::<String>(1),
    )?
    .pop()
    .flatten()
    .unwrap_or_default())
}

fn pause(duration: Duration) {
    let end = Instant::now() + duration;
    while let Some(left) = end
        .checked_duration_since(Instant::now())
        .filter(|left| !left.is_zero())
    {
        signal::wait(left.max(Duration::from_millis(1)));
    }
}

/// An expression for the hash of a row, of columns as they come from the catalog. Types without a hash function are hashed as text.
fn hash_expression(table: Oid) -> Result<String> {
    let columns = spi::rows(
        "SELECT pg_catalog.quote_ident(attname), atttypid FROM pg_catalog.pg_attribute
          WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attnum",
        &[table.into()],
        |row| Ok(row.get::<String>(1)?.zip(row.get::<Oid>(2)?)),
    )?;
    let values: Vec<String> = columns
        .into_iter()
        .flatten()
        .map(|(column, type_oid)| {
            if crate::pg::catalog::is_hashable(type_oid) {
                column
            } else {
                format!("{column}::pg_catalog.text")
            }
        })
        .collect();
    Ok(format!(
        "pg_catalog.hash_record_extended(ROW({}), 0)",
        values.join(", ")
    ))
}

/// Runs a short step with the rights of the table's owner.
fn as_owner<T>(exchange: &Exchange, body: impl FnOnce() -> Result<T>) -> Result<T> {
    identity::as_role(exchange.owner, body)
}

/// The same for work that holds up nobody while it waits for a lock.
fn as_owner_patiently<T>(exchange: &Exchange, body: impl FnOnce(&Scope) -> Result<T>) -> Result<T> {
    identity::as_role(exchange.owner, || {
        let scope = Scope::new();
        scope.set(c"lock_timeout", "60s");
        body(&scope)
    })
}
