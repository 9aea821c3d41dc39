//! `create_partition`, `create_partitions`, and the ranges behind `partition_info`.

use super::{require_ownership, required};
use crate::error::{Error, Result, or_raise};
use crate::partition::create::{self, Maker};
use crate::partition::inspect::{Calendar, Table};
use crate::partition::managed::{self, Managed};
use crate::partition::{steps, waiting};
use crate::pg::guc::Scope;
use audit_db_core::calendar::from_postgres_micros;
use audit_db_core::naming::partition_name;
use audit_db_core::partition_plan::{self, Bound, Facts, NewPartition, Placement, Range, Zone};
use audit_db_core::retention;
use pgrx::datum::{Timestamp, TimestampWithTimeZone};
use pgrx::pg_sys::Oid;
use pgrx::prelude::*;

/// More than this many partitions in one call are a mistake.
const MAX_COUNT: i32 = 10_000;

#[pg_extern(sql = "")]
fn create_partition(
    parent: Option<Oid>,
    start_date: Option<Timestamp>,
    end_date: Option<Timestamp>,
    name: Option<&str>,
) -> Oid {
    super::changing("create_partition", || {
        let oid = required(parent, "parent")?;
        let start = i64::from(required(start_date, "start_date")?);
        let end = end_date.map(i64::from);
        require_ownership(oid)?;
        // A table of the wrong kind is told so before it is told that nobody manages it.
        let table = Table::load(oid)?;
        let managed = managed::get(oid)?;
        let wanted = |table: &Table| Wanted::new(table, &managed, start, end);
        // Without a lock first: a partition that is there already costs nobody anything.
        if let Some(partition) = wanted(&table)?.existing(&table) {
            return Ok(partition);
        }
        let qualified = crate::pg::catalog::qualified_name(oid).unwrap_or_default();
        steps::with_retries(&qualified, |scope| {
            let table = create::lock_and_load(scope, oid)?;
            let wanted = wanted(&table)?;
            match wanted.placement {
                Placement::Same(index) => Ok(table.partitions[index].oid),
                Placement::Overlaps(index) => Err(wanted.overlap(&table, index)),
                Placement::Free(range) => {
                    let (Bound::At(lower), Bound::At(upper)) = (range.lower, range.upper) else {
                        return Err(Error::Internal("a new partition has an open end".into()));
                    };
                    let new = NewPartition {
                        name: match name {
                            Some(name) => name.to_owned(),
                            None => wanted.name(&table, &managed),
                        },
                        lower,
                        upper,
                    };
                    waiting::require_few(&table, &managed, &wanted.calendar)?;
                    let made =
                        Maker::new(&table, &managed, wanted.calendar)?.make(scope, &[new])?;
                    made.into_iter()
                        .next()
                        .ok_or_else(|| Error::Internal("no partition was made".into()))
                }
            }
        })
    })
}

/// A partition that was asked for, and where it stands among those there are.
struct Wanted {
    calendar: Calendar,
    start: chrono::NaiveDateTime,
    range: Range,
    placement: Placement,
}

impl Wanted {
    fn new(table: &Table, managed: &Managed, start: i64, end: Option<i64>) -> Result<Self> {
        let calendar = Calendar::new(table.key, &managed.time_zone)?;
        let local = |micros: i64| {
            from_postgres_micros(micros).ok_or_else(|| {
                Error::OutOfRange(
                    if micros == i64::MAX {
                        "infinity"
                    } else {
                        "-infinity"
                    }
                    .to_owned(),
                )
            })
        };
        let position = |time: chrono::NaiveDateTime| {
            calendar
                .position(time)
                .ok_or_else(|| Error::OutOfRange(time.to_string()))
        };
        let start = local(start)?;
        let default_end = end.is_none();
        let end = match end {
            Some(end) => local(end)?,
            None => managed
                .interval
                .after(start)
                .ok_or_else(|| Error::OutOfRange(start.to_string()))?,
        };
        if end <= start {
            return Err(Error::ReversedBounds {
                lower: start.to_string(),
                upper: end.to_string(),
            });
        }
        let (lower, upper) = (position(start)?, position(end)?);
        if lower >= upper {
            return Err(Error::NoTime {
                lower: start.to_string(),
                upper: end.to_string(),
                zone: managed.time_zone.clone(),
            });
        }
        // Raises what the key cannot hold, before anything is locked.
        calendar.literal(lower)?;
        calendar.literal(upper)?;
        let ranges = table.ranges();
        let range = Range::new(lower, upper);
        let placement = if default_end && managed.interval.floor(start) == Some(start) {
            partition_plan::place_period(&ranges, lower, upper, managed.interval)
        } else {
            partition_plan::place_exact(&ranges, range)
        };
        Ok(Self {
            calendar,
            start,
            range,
            placement,
        })
    }

    fn existing(&self, table: &Table) -> Option<Oid> {
        match self.placement {
            Placement::Same(index) => Some(table.partitions[index].oid),
            _ => None,
        }
    }

    fn overlap(&self, table: &Table, index: usize) -> Error {
        let other = &table.partitions[index];
        Error::Overlap {
            wanted: self.calendar.describe(self.range),
            partition: table.qualified_partition(other),
            range: other
                .range
                .map(|range| self.calendar.describe(range))
                .unwrap_or_default(),
        }
    }

    /// The period's name where the range is one period, else the first day's.
    fn name(&self, table: &Table, managed: &Managed) -> String {
        use audit_db_core::calendar::PartitionInterval;
        let period_end = managed
            .interval
            .after(self.start)
            .and_then(|end| self.calendar.position(end));
        let is_period = managed.interval.floor(self.start) == Some(self.start)
            && period_end.map(Bound::At) == Some(self.range.upper);
        let interval = if is_period {
            managed.interval
        } else {
            PartitionInterval::Daily
        };
        partition_name(&table.name, &interval.suffix(self.start))
    }
}

#[pg_extern(sql = "")]
fn create_partitions(
    parent: Option<Oid>,
    from_date: Option<TimestampWithTimeZone>,
    count: Option<i32>,
) -> SetOfIterator<'static, Oid> {
    let made = super::changing("create_partitions", || {
        let oid = required(parent, "parent")?;
        let from = i64::from(required(from_date, "from_date")?);
        require_ownership(oid)?;
        let table = Table::load(oid)?;
        let managed = managed::get(oid)?;
        let count = match count {
            None => managed.premake as usize,
            Some(count @ 1..=MAX_COUNT) => count as usize,
            Some(count) => {
                return Err(Error::invalid(format!(
                    "count must lie between 1 and {MAX_COUNT}, not {count}"
                )));
            }
        };
        let plan = |table: &Table| -> Result<(Calendar, Vec<NewPartition>)> {
            let calendar = Calendar::new(table.key, &managed.time_zone)?;
            let from = calendar
                .local_at(from)
                .filter(|_| from != i64::MAX && from != i64::MIN)
                .ok_or_else(|| Error::OutOfRange("from_date".to_owned()))?;
            let facts = Facts {
                table: &table.name,
                ranges: &table.ranges(),
                names: &table.names(),
                now: from,
                waiting: &[],
            };
            let new =
                partition_plan::missing_from(&facts, managed.interval, from, count, &calendar);
            Ok((calendar, new))
        };
        if plan(&table)?.1.is_empty() {
            return Ok(Vec::new());
        }
        let qualified = crate::pg::catalog::qualified_name(oid).unwrap_or_default();
        steps::with_retries(&qualified, |scope| {
            let table = create::lock_and_load(scope, oid)?;
            let (calendar, new) = plan(&table)?;
            if new.is_empty() {
                return Ok(Vec::new());
            }
            waiting::require_few(&table, &managed, &calendar)?;
            Maker::new(&table, &managed, calendar)?.make(scope, &new)
        })
    });
    SetOfIterator::new(made)
}

type RangeRow = (
    Oid,
    Option<TimestampWithTimeZone>,
    Option<TimestampWithTimeZone>,
    bool,
    Option<TimestampWithTimeZone>,
);

/// The partitions of a table with their ranges as instants; the SQL function `partition_info` adds sizes and statistics.
#[pg_extern(sql = "")]
#[allow(clippy::type_complexity)]
fn partition_ranges(
    parent: Option<Oid>,
) -> TableIterator<
    'static,
    (
        name!(partition, Oid),
        name!(range_start, Option<TimestampWithTimeZone>),
        name!(range_end, Option<TimestampWithTimeZone>),
        name!(is_default, bool),
        name!(expires_at, Option<TimestampWithTimeZone>),
    ),
> {
    let rows = {
        let _scope = Scope::reading();
        ranges(parent)
    };
    TableIterator::new(or_raise(rows))
}

fn ranges(parent: Option<Oid>) -> Result<Vec<RangeRow>> {
    let oid = required(parent, "parent")?;
    let table = Table::load(oid)?;
    let managed = managed::find(oid)?;
    let zone = managed.as_ref().map_or("UTC", |managed| &managed.time_zone);
    let calendar = Calendar::new(table.key, zone)?;
    let kept = managed.as_ref().and_then(|managed| managed.retention);
    let time = |instant: i64| TimestampWithTimeZone::try_from(instant).ok();
    let end = |bound: Bound| match bound {
        Bound::MinValue => time(i64::MIN),
        Bound::MaxValue => time(i64::MAX),
        Bound::At(position) => calendar.instant(position).and_then(time),
    };
    let mut rows: Vec<RangeRow> = table
        .partitions
        .iter()
        .filter_map(|partition| {
            let range = partition.range?;
            let expires = retention::expires_at(range.upper, kept, &calendar)
                .and_then(|position| calendar.instant(position))
                .and_then(time);
            Some((
                partition.oid,
                end(range.lower),
                end(range.upper),
                false,
                expires,
            ))
        })
        .collect();
    rows.extend(
        table
            .default
            .map(|default| (default.oid, None, None, true, None)),
    );
    Ok(rows)
}
