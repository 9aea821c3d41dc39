//! The months of events that are about to be stored in a table without a default partition.

use crate::error::Result;
use crate::partition::create::{self, Maker};
use crate::partition::inspect::{Calendar, Table};
use crate::partition::managed;
use crate::partition::{steps, waiting};
use audit_db_core::partition_plan::{self, Bound, Facts, Policy, Zone};
use pgrx::pg_sys::Oid;

/// Months made for the events of one batch: a wrong clock must not make a hundred.
const LIMIT: usize = 24;

/// Makes the partitions that events of these times need, in the open transaction, where the table is managed, has no default
/// partition, and the times are neither expired nor absurd. `true`: some were made.
pub fn make_for(oid: Oid, times: &[i64]) -> Result<bool> {
    let Some(managed) = managed::find(oid)? else {
        return Ok(false);
    };
    let name = crate::pg::catalog::qualified_name(oid).unwrap_or_default();
    let lacking = |table: &Table| -> Result<Option<(Calendar, Vec<_>)>> {
        if table.default.is_some() {
            return Ok(None);
        }
        let calendar = Calendar::new(table.key, &managed.time_zone)?;
        let ranges = table.ranges();
        let positions: Vec<i64> = times
            .iter()
            .filter(|time| **time != i64::MIN && **time != i64::MAX)
            .filter_map(|time| calendar.position_at(*time))
            .filter(|position| {
                !ranges.iter().any(|range| {
                    range.lower <= Bound::At(*position) && Bound::At(*position) < range.upper
                })
            })
            .collect();
        if positions.is_empty() {
            return Ok(None);
        }
        let Some((earliest, latest)) = waiting::window(&managed, &calendar) else {
            return Ok(None);
        };
        let Some(now) = calendar.local_at(crate::pg::clock::transaction_start()) else {
            return Ok(None);
        };
        let waiting: Vec<_> = positions
            .iter()
            .filter_map(|position| calendar.local(*position))
            .collect();
        let facts = Facts {
            table: &table.name,
            ranges: &ranges,
            names: &table.names(),
            now,
            waiting: &waiting,
        };
        let policy = Policy {
            interval: managed.interval,
            premake: 0,
            earliest,
            latest,
            limit: LIMIT,
        };
        let mut new = partition_plan::missing(&facts, &policy, &calendar);
        new.retain(|month| {
            positions
                .iter()
                .any(|position| month.lower <= *position && *position < month.upper)
        });
        Ok((!new.is_empty()).then_some((calendar, new)))
    };
    // Without a lock first: mostly nothing is missing.
    if lacking(&Table::load(oid)?)?.is_none() {
        return Ok(false);
    }
    steps::with_retries(&name, |scope| {
        let table = create::lock_and_load(scope, oid)?;
        let Some((calendar, new)) = lacking(&table)? else {
            return Ok(true);
        };
        Maker::new(&table, &managed, calendar)?.make(scope, &new)?;
        Ok(true)
    })
}

/// The ranges of a managed table's partitions, as instants. `None`: nobody manages it.
pub fn ranges(oid: Oid) -> Result<Option<Vec<std::ops::Range<i64>>>> {
    let Some(managed) = managed::find(oid)? else {
        return Ok(None);
    };
    let table = Table::load(oid)?;
    let calendar = Calendar::new(table.key, &managed.time_zone)?;
    let instant = |bound| match bound {
        Bound::MinValue => Some(i64::MIN),
        Bound::At(position) => calendar.instant(position),
        Bound::MaxValue => Some(i64::MAX),
    };
    Ok(Some(
        table
            .ranges()
            .iter()
            .filter_map(|range| Some(instant(range.lower)?..instant(range.upper)?))
            .collect(),
    ))
}
