//! The swap: one short transaction in which the months and a fresh default partition take the place of the old one.

use super::changes::Changes;
use super::stage::{self, RANGE_CHECK, has_range_check, is_captured};
use super::{Exchange, as_owner, shape};
use crate::error::{Error, Result};
use crate::partition::create::Maker;
use crate::partition::inspect::{Calendar, Table};
use crate::partition::{events, indexes, managed, unfinished};
use crate::pg::catalog;
use crate::pg::guc::Scope;
use crate::pg::lock::{Deadline, Mode};
use crate::pg::spi::{self, quote_identifier, quote_qualified_identifier};
use crate::pg::xact;
use crate::settings;
use audit_db_core::naming::partition_name;
use audit_db_core::partition_plan::{self, Placement, Range};
use pgrx::pg_sys::Oid;
use std::time::{Duration, Instant};

/// Changes that may be left for the moment in which nobody can read or write: some ten milliseconds' worth.
const UNDER_LOCK: usize = 2_000;
/// Longest time for which nobody can use the table. Where it is not enough the swap is undone and tried again.
const SWAP_TIMEOUT: Duration = Duration::from_secs(2);
/// Only an autovacuum holds the tables that we made ourselves; it gives way within a second.
const OWN_LOCKS: Duration = Duration::from_secs(3);

/// Exchanges the default partition. 55P03 when the locks were not to be had, or too much came meanwhile: try again.
pub(super) fn swap(exchange: &Exchange, changes: &Changes<'_>) -> Result<()> {
    xact::in_transaction(|| {
        let scope = Scope::new();
        let own = Deadline::start(&scope, OWN_LOCKS);
        for copy in &exchange.copies {
            own.lock(copy.oid, Mode::AccessExclusive);
        }
        stage::release_copies(exchange)?;
        as_owner(exchange, || stage::give_sequence_defaults(exchange))?;
        let before = Table::load(exchange.parent)?;
        let managed = managed::get(exchange.parent)?;
        let calendar = Calendar::new(before.key, &managed.time_zone)?;
        let maker = Maker::new(&before, &managed, calendar)?;
        // A quarter of it for the wait: who waits behind it waits for the swap too, and then learns of the new partitions.
        let timeout = settings::lock_timeout() / 4;
        maker.lock_others(&scope, Some(Mode::AccessExclusive), timeout);
        let locked = Instant::now();
        xact::hurry(SWAP_TIMEOUT);
        check(exchange, &before)?;
        let contents = changes.finish(UNDER_LOCK)?;
        as_owner(exchange, || detach(exchange, &before))?;
        add_foreign_keys(exchange)?;
        as_owner(exchange, || attach(exchange, &maker))?;
        unfinished::begin_verification(exchange.default, exchange.log, contents)?;
        let months: Vec<&str> = exchange
            .months()
            .map(|(copy, _)| copy.name.as_str())
            .collect();
        events::done(
            "default partition emptied",
            &exchange.default_qualified(),
            &format!(
                "of its {} rows those of {} went there; nobody could use the table for {} ms",
                contents.rows,
                months.join(", "),
                locked.elapsed().as_millis()
            ),
        )
    })
}

/// Whether the table is still what it was, now that nobody can change it.
fn check(exchange: &Exchange, before: &Table) -> Result<()> {
    let broken = |reason| Error::ExchangeBroken {
        default: exchange.default_qualified(),
        reason,
    };
    let table = Table::load(exchange.parent)?;
    if table != *before
        || table.owner != exchange.owner
        || shape(exchange.parent)? != exchange.shape
        || table
            .default
            .as_ref()
            .map(|default| (default.oid, &default.name))
            != Some((exchange.default, &exchange.default_name))
        || catalog::schema_of(exchange.default).as_ref() != Some(&exchange.schema)
    {
        return Err(broken("The table was changed meanwhile."));
    }
    let ranges = table.ranges();
    let grown = ranges.iter().any(|range| !exchange.ranges.contains(range));
    let taken = exchange.months().any(|(_, month)| {
        !matches!(
            partition_plan::place_exact(&ranges, Range::new(month.lower, month.upper)),
            Placement::Free(_)
        )
    });
    if grown || taken {
        return Err(broken("Partitions were attached to the table meanwhile."));
    }
    if let Some(default) = &table.default
        && stage::why_not(&table, default)?.is_some()
    {
        return Err(broken(
            "It got something of its own meanwhile that would be lost with it.",
        ));
    }
    if !is_captured(exchange.default)? {
        return Err(broken(
            "The trigger that logs its changes was removed or disabled.",
        ));
    }
    Ok(())
}

/// Takes the old default partition off its table, and its name.
fn detach(exchange: &Exchange, table: &Table) -> Result<()> {
    let default = exchange.default_qualified();
    let old_name = partition_name(&exchange.default_name, "exchanged");
    for sql in [
        format!(
            "ALTER TABLE {} DETACH PARTITION {default}",
            table.qualified()
        ),
        format!(
            "ALTER TABLE {default} RENAME TO {}",
            quote_identifier(old_name)
        ),
    ] {
        spi::execute(&sql, &[])?;
    }
    Ok(())
}

/// Gives the copies the table's foreign keys without looking at their rows: they are the rows of the old default partition, for
/// which the same foreign keys held until this moment. Made earlier, the keys would have acted on the copies too when somebody
/// changed the table that they refer to.
fn add_foreign_keys(exchange: &Exchange) -> Result<()> {
    let foreign_keys = indexes::foreign_keys(exchange.parent)?;
    if foreign_keys.is_empty() {
        return Ok(());
    }
    as_owner(exchange, || {
        for copy in &exchange.copies {
            for (name, definition) in &foreign_keys {
                spi::execute(
                    &format!(
                        "ALTER TABLE {} ADD CONSTRAINT {name} {definition} NOT VALID",
                        copy.qualified
                    ),
                    &[],
                )?;
            }
        }
        Ok(())
    })?;
    // What VALIDATE CONSTRAINT does once it has looked at the rows; with the worker's own rights.
    let copies: Vec<Oid> = exchange.copies.iter().map(|copy| copy.oid).collect();
    spi::execute(
        "UPDATE pg_catalog.pg_constraint SET convalidated = true
          WHERE conrelid = ANY ($1) AND contype = 'f' AND NOT convalidated",
        &[copies.into()],
    )?;
    Ok(())
}

/// Puts the months and the new default partition into place.
fn attach(exchange: &Exchange, maker: &Maker<'_>) -> Result<()> {
    // The months first: beside a default partition each would have to be compared with it.
    for (copy, month) in exchange.months() {
        maker.attach(copy.oid, &copy.qualified, &maker.range_clause(month)?)?;
        drop_range_check(&copy.qualified)?;
    }
    let Some(rest) = exchange.copies.last() else {
        return Err(Error::Internal(
            "an exchange without a default partition".into(),
        ));
    };
    spi::execute(
        &format!(
            "ALTER TABLE {} RENAME TO {}",
            rest.qualified,
            quote_identifier(&exchange.default_name)
        ),
        &[],
    )?;
    let rest_name = quote_qualified_identifier(&exchange.schema, &exchange.default_name);
    maker.attach(rest.oid, &rest_name, "DEFAULT")?;
    if has_range_check(rest.oid)? {
        drop_range_check(&rest_name)?;
    }
    Ok(())
}

fn drop_range_check(qualified: &str) -> Result<()> {
    spi::execute(
        &format!("ALTER TABLE {qualified} DROP CONSTRAINT {RANGE_CHECK}"),
        &[],
    )?;
    Ok(())
}
