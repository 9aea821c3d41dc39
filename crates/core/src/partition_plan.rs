//! From what a table has to what it should get: which partitions to make, and where exactly.
//!
//! Positions are microseconds in the order of the partition key (an instant for `timestamptz`, local time for `timestamp` and
//! `date`). A [`Zone`] turns local time into positions, so the calendar is the table's and the rules are the server's.

use crate::calendar::PartitionInterval;
use crate::naming::partition_name;
use chrono::{NaiveDateTime, TimeDelta};
use std::collections::HashSet;

/// One end of a partition's range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bound {
    MinValue,
    At(i64),
    MaxValue,
}

/// `lower` belongs to the range, `upper` does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub lower: Bound,
    pub upper: Bound,
}

impl Range {
    pub const fn new(lower: i64, upper: i64) -> Self {
        Self {
            lower: Bound::At(lower),
            upper: Bound::At(upper),
        }
    }

    pub fn overlaps(self, other: Self) -> bool {
        self.lower < other.upper && other.lower < self.upper
    }

    pub fn contains(self, position: i64) -> bool {
        self.lower <= Bound::At(position) && Bound::At(position) < self.upper
    }
}

/// Local time to positions and back. `None`: no such position (out of the server's range).
pub trait Zone {
    /// The first instant at which the local clock shows `local` or later.
    fn position(&self, local: NaiveDateTime) -> Option<i64>;
    fn local(&self, position: i64) -> Option<NaiveDateTime>;
}

/// Bounds of neighbours may differ from the calendar by the distance of two zones (a table that was made in UTC and is now
/// looked after in local time, or the other way round): up to 26 hours.
const ZONE_SLACK_MICROS: i64 = 26 * 3_600_000_000;

/// How far a bound may be moved to meet a neighbour. Days are too short to have any.
const fn slack(interval: PartitionInterval) -> i64 {
    match interval {
        PartitionInterval::Daily => 0,
        _ => ZONE_SLACK_MICROS,
    }
}

/// Where a wanted range stands among those that exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Nothing is there; make it with this range.
    Free(Range),
    /// The partition at this index is what was wanted.
    Same(usize),
    /// The partition at this index is in the way.
    Overlaps(usize),
}

/// Places a range whose ends were given: nothing is moved.
pub fn place_exact(existing: &[Range], wanted: Range) -> Placement {
    place(existing, wanted, 0)
}

/// Places one period of the calendar: a new month starts where its neighbour ends.
pub fn place_period(
    existing: &[Range],
    lower: i64,
    upper: i64,
    interval: PartitionInterval,
) -> Placement {
    place(existing, Range::new(lower, upper), slack(interval))
}

fn near(one: Bound, other: Bound, slack: i64) -> bool {
    one == other || distance(one, other).is_some_and(|away| away <= slack)
}

fn distance(one: Bound, other: Bound) -> Option<i64> {
    match (one, other) {
        (Bound::At(one), Bound::At(other)) => Some(one.saturating_sub(other).saturating_abs()),
        _ => None,
    }
}

fn place(existing: &[Range], wanted: Range, slack: i64) -> Placement {
    if let Some(index) = existing.iter().position(|range| {
        near(range.lower, wanted.lower, slack) && near(range.upper, wanted.upper, slack)
    }) {
        return Placement::Same(index);
    }
    let mut placed = wanted;
    if slack > 0 {
        // Clip or stretch to neighbours whose bounds are near ours, so that neither an overlap nor a sliver remains.
        let before = existing
            .iter()
            .filter(|range| range.lower < wanted.lower)
            .filter_map(|range| distance(range.upper, wanted.lower).map(|away| (away, range.upper)))
            .min_by_key(|(away, _)| *away);
        let after = existing
            .iter()
            .filter(|range| range.upper > wanted.upper)
            .filter_map(|range| distance(range.lower, wanted.upper).map(|away| (away, range.lower)))
            .min_by_key(|(away, _)| *away);
        if let Some((away, bound)) = before
            && away <= slack
        {
            placed.lower = bound;
        }
        if let Some((away, bound)) = after
            && away <= slack
        {
            placed.upper = bound;
        }
    }
    match existing.iter().position(|range| range.overlaps(placed)) {
        Some(index) => Placement::Overlaps(index),
        None => Placement::Free(placed),
    }
}

/// A partition to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewPartition {
    pub name: String,
    pub lower: i64,
    pub upper: i64,
}

/// What the planner knows of a table.
pub struct Facts<'a> {
    /// Name of the table, from which partitions are named.
    pub table: &'a str,
    /// Ranges of all partitions but the default.
    pub ranges: &'a [Range],
    /// Names that are taken among the partitions.
    pub names: &'a [String],
    /// Now, in the table's zone.
    pub now: NaiveDateTime,
    /// Local times of rows that wait in the default partition (±infinity left out), in any order.
    pub waiting: &'a [NaiveDateTime],
}

/// What the table should have.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    pub interval: PartitionInterval,
    /// Periods to keep ready after the current one.
    pub premake: u32,
    /// Nothing that ends before this local time is made for waiting rows. `None`: no limit.
    pub earliest: Option<NaiveDateTime>,
    /// Nothing that starts after this local time is made.
    pub latest: NaiveDateTime,
    /// At most this many in one run.
    pub limit: usize,
}

/// The partitions that are missing: the current period first, then those ahead, then those of waiting rows.
pub fn missing(facts: &Facts<'_>, policy: &Policy, zone: &dyn Zone) -> Vec<NewPartition> {
    let interval = policy.interval;
    let mut starts: Vec<NaiveDateTime> = Vec::new();
    let mut next = interval.floor(facts.now);
    for _ in 0..=policy.premake {
        let Some(start) = next else { break };
        starts.push(start);
        next = interval.after(start);
    }
    let mut waiting: Vec<NaiveDateTime> = facts
        .waiting
        .iter()
        .filter_map(|local| interval.floor(*local))
        .collect();
    waiting.sort_unstable_by(|one, other| other.cmp(one));
    starts.extend(waiting);

    let mut seen = HashSet::new();
    starts.retain(|start| {
        let in_window = *start <= policy.latest
            && policy
                .earliest
                .is_none_or(|earliest| interval.after(*start).is_some_and(|end| end > earliest));
        in_window && seen.insert(*start)
    });
    let rows: Vec<i64> = facts
        .waiting
        .iter()
        .filter_map(|local| zone.position(*local))
        .collect();
    let needed = |lower, upper| rows.iter().any(|row| (lower..upper).contains(row));
    fill(
        facts,
        interval,
        starts.into_iter(),
        policy.limit,
        zone,
        needed,
    )
}

/// The partitions that are missing in `count` periods from the one that contains `from`.
pub fn missing_from(
    facts: &Facts<'_>,
    interval: PartitionInterval,
    from: NaiveDateTime,
    count: usize,
    zone: &dyn Zone,
) -> Vec<NewPartition> {
    let starts =
        std::iter::successors(interval.floor(from), |start| interval.after(*start)).take(count);
    fill(facts, interval, starts, usize::MAX, zone, |_, _| true)
}

/// Makes each period whole where nothing is, and fills the gaps that are left where something is. A sliver at an end of a period
/// is its neighbour's, which starts or ends there; `needed` says whether that neighbour is wanted for the sliver's sake.
fn fill(
    facts: &Facts<'_>,
    interval: PartitionInterval,
    starts: impl Iterator<Item = NaiveDateTime>,
    limit: usize,
    zone: &dyn Zone,
    needed: impl Fn(i64, i64) -> bool,
) -> Vec<NewPartition> {
    let mut ranges = facts.ranges.to_vec();
    let mut names: HashSet<String> = facts.names.iter().cloned().collect();
    let mut made: Vec<NewPartition> = Vec::new();
    let positions = |start: NaiveDateTime| {
        Some((
            zone.position(start)?,
            zone.position(interval.after(start)?)?,
        ))
        // A zone may skip a whole day (Apia, 2011-12-30): nothing can happen in it.
        .filter(|(lower, upper)| lower < upper)
    };
    for start in starts {
        let Some((lower, upper)) = positions(start) else {
            continue;
        };
        for piece in pieces(&ranges, lower, upper, slack(interval)) {
            let (period, lower, upper) = match piece {
                Piece::Own(lower, upper) => (start, lower, upper),
                Piece::Neighbours(sliver_lower, sliver_upper) => {
                    if !needed(sliver_lower, sliver_upper) {
                        continue;
                    }
                    let neighbour = if sliver_lower == lower {
                        start
                            .checked_sub_signed(TimeDelta::microseconds(1))
                            .and_then(|before| interval.floor(before))
                    } else {
                        interval.after(start)
                    };
                    let piece = neighbour.and_then(|period| {
                        let (lower, upper) = positions(period)?;
                        pieces(&ranges, lower, upper, slack(interval))
                            .into_iter()
                            .find_map(|piece| match piece {
                                Piece::Own(lower, upper)
                                    if lower <= sliver_lower && sliver_upper <= upper =>
                                {
                                    Some((period, lower, upper))
                                }
                                _ => None,
                            })
                    });
                    // At the end of what the server can store there is no neighbour.
                    piece.unwrap_or((start, sliver_lower, sliver_upper))
                }
            };
            if made.len() >= limit {
                return made;
            }
            let piece_start = if zone.position(period) == Some(lower) {
                Some(period)
            } else {
                zone.local(lower)
            };
            let name = free_name(facts.table, interval, period, piece_start, &names);
            names.insert(name.clone());
            ranges.push(Range::new(lower, upper));
            made.push(NewPartition { name, lower, upper });
        }
    }
    made
}

/// A part of a period that no range covers.
enum Piece {
    /// It may reach a little over the period's ends, to a range that starts or ends near them.
    Own(i64, i64),
    /// A sliver at an end of the period, with nothing beyond that end.
    Neighbours(i64, i64),
}

/// What of `lower..upper` no range covers. What a gap becomes depends only on the gap and the calendar: whichever of its periods
/// comes first, the pieces meet.
fn pieces(ranges: &[Range], lower: i64, upper: i64, slack: i64) -> Vec<Piece> {
    let mut sorted = ranges.to_vec();
    sorted.sort_unstable_by_key(|range| range.lower);
    let mut found = Vec::new();
    let mut gap_lower = Bound::MinValue;
    let ends = sorted
        .iter()
        .map(|range| (range.lower, range.upper))
        .chain(std::iter::once((Bound::MaxValue, Bound::MaxValue)));
    for (gap_upper, next) in ends {
        let from = gap_lower.max(Bound::At(lower));
        let to = gap_upper.min(Bound::At(upper));
        if let (Bound::At(mut from), Bound::At(mut to)) = (from, to)
            && from < to
        {
            let open_before = gap_lower < Bound::At(lower);
            let open_after = Bound::At(upper) < gap_upper;
            let ends_before = open_before && near(gap_lower, Bound::At(lower), slack);
            let ends_after = open_after && near(gap_upper, Bound::At(upper), slack);
            let sliver = to.saturating_sub(from) <= slack
                && (open_before && !ends_before || open_after && !ends_after);
            if sliver {
                found.push(Piece::Neighbours(from, to));
            } else {
                if ends_before && let Bound::At(bound) = gap_lower {
                    from = bound;
                }
                if ends_after && let Bound::At(bound) = gap_upper {
                    to = bound;
                }
                found.push(Piece::Own(from, to));
            }
        }
        gap_lower = gap_lower.max(next);
    }
    found
}

/// The period's name; for a piece of a period whose name is taken, its day's; then numbered.
fn free_name(
    table: &str,
    interval: PartitionInterval,
    period: NaiveDateTime,
    piece: Option<NaiveDateTime>,
    taken: &HashSet<String>,
) -> String {
    let whole = interval.suffix(period);
    let day = piece.map(|start| PartitionInterval::Daily.suffix(start));
    std::iter::once(whole.clone())
        .chain(day)
        .chain((2..).map(|number: u32| format!("{whole}_{number}")))
        .map(|suffix| partition_name(table, &suffix))
        .find(|name| !taken.contains(name))
        .unwrap_or_else(|| partition_name(table, &whole))
}

#[cfg(test)]
mod tests;
