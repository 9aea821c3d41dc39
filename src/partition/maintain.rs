//! What the worker does for one table in each cycle.

use crate::error::{Error, Result};
use crate::partition::create::{self, Maker};
use crate::partition::inspect::{Calendar, Table};
use crate::partition::managed::{self, Managed};
use crate::partition::{events, retire, steps};
use crate::pg::guc::Scope;
use crate::pg::spi;
use crate::pg::{clock, identity, xact};
use audit_db_core::partition_plan::{self, Facts, NewPartition, Placement, Policy, Zone};
use pgrx::pg_sys::Oid;

/// Partitions made in one run of the worker.
const MADE_IN_A_RUN: usize = 24;

/// Makes partitions ahead, empties the default partition and applies retention. Each step is a transaction; what fails is
/// recorded and returned, and never keeps the next step from running.
pub fn table(oid: Oid, clock_moved: Option<i64>) -> Option<Error> {
    let name = xact::in_transaction(|| Ok(crate::pg::catalog::qualified_name(oid)))
        .ok()
        .flatten()
        .unwrap_or_else(|| oid.to_u32().to_string());
    let mut last = None;
    let mut check = |event: &str, outcome: Result<()>| {
        if let Err(error) = outcome {
            record(event, &name, &error);
            last = Some(error);
        }
    };
    xact::report_activity(Some(&format!("partitions of {name}")));
    check("row security", close_side_doors(oid, &name));
    check("default partition", restore_default(oid, &name));
    check("create partition", make_missing(oid, &name));
    let mut failed = None;
    let retired = retire::expired_of_table(oid, clock_moved, &mut |outcome| {
        // Recorded by the step itself.
        if let Some(failure) = outcome.failure {
            let error = Error::Server(failure);
            error.warn();
            failed = Some(error);
        }
        true
    });
    check("retention", retired);
    last.or(failed)
}

fn record(event: &str, name: &str, error: &Error) {
    error.warn();
    let recorded = xact::in_transaction(|| events::failed(event, name, &error.failure()));
    if let Err(error) = recorded {
        error.warn();
    }
}

/// The partitions that a table should get now. The default partition's rows are looked at, a few at most.
fn missing(table: &Table, managed: &Managed, calendar: &Calendar) -> Result<Vec<NewPartition>> {
    let no_date = || Error::Internal("the clock shows no calendar date".into());
    let now = calendar
        .local_at(clock::transaction_start())
        .ok_or_else(no_date)?;
    let (earliest, latest) = create::window(managed, calendar).ok_or_else(no_date)?;
    let waiting: Vec<_> = create::waiting_positions(table, managed, calendar)?
        .unwrap_or_default()
        .into_iter()
        .filter_map(|position| calendar.local(position))
        .collect();
    let policy = Policy {
        interval: managed.interval,
        premake: managed.premake,
        earliest,
        latest,
        limit: MADE_IN_A_RUN,
    };
    let facts = Facts {
        table: &table.name,
        ranges: &table.ranges(),
        names: &table.names(),
        now,
        waiting: &waiting,
    };
    Ok(partition_plan::missing(&facts, &policy, calendar))
}

/// Somebody dropped or detached the default partition: without it events outside all months are refused.
fn restore_default(oid: Oid, name: &str) -> Result<()> {
    let lacking = steps::in_transactions_with_retries(name, |_scope| {
        let managed = managed::get(oid)?;
        Ok(managed.default_partition && Table::load(oid)?.default.is_none())
    })?;
    if !lacking {
        return Ok(());
    }
    steps::in_transactions_with_retries(name, |scope| {
        let table = create::lock_and_load(scope, oid)?;
        let managed = managed::get(oid)?;
        if table.default.is_some() || !managed.default_partition {
            return Ok(());
        }
        let calendar = Calendar::new(table.key, &managed.time_zone)?;
        Maker::new(&table, &managed, calendar)?.make_default(scope)?;
        events::done("default partition created", name, "the table had none")
    })
}

fn make_missing(oid: Oid, name: &str) -> Result<()> {
    let planned = steps::in_transactions_with_retries(name, |_scope| {
        let managed = managed::get(oid)?;
        let table = Table::load(oid)?;
        let calendar = Calendar::new(table.key, &managed.time_zone)?;
        missing(&table, &managed, &calendar)
    })?;
    let mut first_error = None;
    for new in planned {
        let outcome = steps::in_transactions_with_retries(name, |scope| make_one(scope, oid, &new));
        if let Err(error) = outcome {
            // Who keeps the table locked keeps it from the other months too.
            let stop = error.is_lock_timeout();
            if first_error.is_none() {
                first_error = Some(error);
            }
            if stop {
                break;
            }
        }
    }
    first_error.map_or(Ok(()), Err)
}

fn make_one(scope: &Scope, oid: Oid, new: &NewPartition) -> Result<()> {
    let table = create::lock_and_load(scope, oid)?;
    let managed = managed::get(oid)?;
    let range = partition_plan::Range::new(new.lower, new.upper);
    // Somebody else may have been faster.
    if !matches!(
        partition_plan::place_exact(&table.ranges(), range),
        Placement::Free(_)
    ) {
        return Ok(());
    }
    let calendar = Calendar::new(table.key, &managed.time_zone)?;
    Maker::new(&table, &managed, calendar)?.make(scope, new)?;
    events::done(
        "partition created",
        &spi::quote_qualified_identifier(&table.schema, &new.name),
        &calendar.describe(range),
    )
}

/// Row security that the table got after its partitions were made.
fn close_side_doors(oid: Oid, name: &str) -> Result<()> {
    let open = xact::in_transaction(|| {
        spi::rows(
            "SELECT pg_catalog.quote_ident(n.nspname), pg_catalog.quote_ident(c.relname),
                    p.relrowsecurity AND NOT c.relrowsecurity, p.relforcerowsecurity AND NOT c.relforcerowsecurity
               FROM pg_catalog.pg_inherits h
               JOIN pg_catalog.pg_class p ON p.oid = h.inhparent
               JOIN pg_catalog.pg_class c ON c.oid = h.inhrelid
               JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
              WHERE h.inhparent = $1 AND c.relkind IN ('r', 'p')
                AND (p.relrowsecurity AND NOT c.relrowsecurity OR p.relforcerowsecurity AND NOT c.relforcerowsecurity)",
            &[oid.into()],
            |row| {
                Ok((
                    row.get::<String>(1)?.unwrap_or_default(),
                    row.get::<String>(2)?.unwrap_or_default(),
                    row.get::<bool>(3)?.unwrap_or(false),
                    row.get::<bool>(4)?.unwrap_or(false),
                ))
            },
        )
    })?;
    for (schema, partition, enable, force) in open {
        steps::in_transactions_with_retries(name, |_scope| {
            let table = Table::load(oid)?;
            identity::as_role(table.owner, || {
                for (wanted, word) in [(enable, "ENABLE"), (force, "FORCE")] {
                    if wanted {
                        spi::execute(
                            &format!("ALTER TABLE {schema}.{partition} {word} ROW LEVEL SECURITY"),
                            &[],
                        )?;
                    }
                }
                Ok(())
            })
        })?;
    }
    Ok(())
}
