//! From what a table has to what it should get: which partitions to make, and where exactly.
//!
//! Positions are microseconds in the order of the partition key (an instant for `timestamptz`, local time for `timestamp` and
//! `date`). A [`Zone`] turns local time into positions, so the calendar is the table's and the rules are the server's.

use crate::calendar::PartitionInterval;
use crate::naming::partition_name;
use chrono::NaiveDateTime;
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
    fill(facts, interval, starts.into_iter(), policy.limit, zone)
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
    fill(facts, interval, starts, usize::MAX, zone)
}

/// Makes each period whole where nothing is, and fills the gaps that are left where something is.
fn fill(
    facts: &Facts<'_>,
    interval: PartitionInterval,
    starts: impl Iterator<Item = NaiveDateTime>,
    limit: usize,
    zone: &dyn Zone,
) -> Vec<NewPartition> {
    let mut ranges = facts.ranges.to_vec();
    let mut names: HashSet<String> = facts.names.iter().cloned().collect();
    let mut made = Vec::new();
    for start in starts {
        if made.len() >= limit {
            break;
        }
        let Some((lower, upper)) = interval
            .after(start)
            .and_then(|end| Some((zone.position(start)?, zone.position(end)?)))
        else {
            continue;
        };
        // A zone may skip a whole day (Apia, 2011-12-30): nothing can happen in it.
        if lower >= upper {
            continue;
        }
        for (lower, upper) in gaps(&ranges, lower, upper, slack(interval)) {
            if made.len() >= limit {
                break;
            }
            let piece_start = if zone.position(start) == Some(lower) {
                Some(start)
            } else {
                zone.local(lower)
            };
            let name = free_name(facts.table, interval, start, piece_start, &names);
            names.insert(name.clone());
            ranges.push(Range::new(lower, upper));
            made.push(NewPartition { name, lower, upper });
        }
    }
    made
}

/// What of `lower..upper` no range covers; ends that are near a neighbour's meet it.
fn gaps(ranges: &[Range], lower: i64, upper: i64, slack: i64) -> Vec<(i64, i64)> {
    match place(ranges, Range::new(lower, upper), slack) {
        Placement::Same(_) => Vec::new(),
        Placement::Free(Range {
            lower: Bound::At(lower),
            upper: Bound::At(upper),
        }) => vec![(lower, upper)],
        Placement::Free(_) => Vec::new(),
        Placement::Overlaps(_) => {
            let wanted = Range::new(lower, upper);
            let mut covering: Vec<Range> = ranges
                .iter()
                .copied()
                .filter(|range| range.overlaps(wanted))
                .collect();
            covering.sort_unstable_by_key(|range| range.lower);
            let mut free = Vec::new();
            let mut position = lower;
            for range in covering {
                if let Bound::At(end) = range.lower
                    && end > position
                {
                    free.push((position, end));
                }
                match range.upper {
                    Bound::At(end) => position = position.max(end),
                    _ => return free,
                }
            }
            if position < upper {
                free.push((position, upper));
            }
            free
        }
    }
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
mod tests {
    use super::*;
    use crate::calendar::{from_postgres_micros, to_postgres_micros};
    use chrono::TimeZone;
    use proptest::prelude::*;

    /// Local time is position: `timestamp` and `date` keys, and UTC.
    struct Plain;

    impl Zone for Plain {
        fn position(&self, local: NaiveDateTime) -> Option<i64> {
            Some(to_postgres_micros(local))
        }
        fn local(&self, position: i64) -> Option<NaiveDateTime> {
            from_postgres_micros(position)
        }
    }

    struct Named(chrono_tz::Tz);

    impl Zone for Named {
        fn position(&self, local: NaiveDateTime) -> Option<i64> {
            let instant = self.0.from_local_datetime(&local).earliest().or_else(|| {
                self.0
                    .from_local_datetime(&(local + chrono::Duration::hours(1)))
                    .earliest()
            })?;
            Some(to_postgres_micros(instant.naive_utc()))
        }
        fn local(&self, position: i64) -> Option<NaiveDateTime> {
            Some(
                self.0
                    .from_utc_datetime(&from_postgres_micros(position)?)
                    .naive_local(),
            )
        }
    }

    fn at(text: &str) -> NaiveDateTime {
        NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M").unwrap()
    }

    fn micros(text: &str) -> i64 {
        to_postgres_micros(at(text))
    }

    fn range(lower: &str, upper: &str) -> Range {
        Range::new(micros(lower), micros(upper))
    }

    fn policy(premake: u32) -> Policy {
        Policy {
            interval: PartitionInterval::Monthly,
            premake,
            earliest: Some(at("2024-11-23 12:00")),
            latest: at("2027-12-23 12:00"),
            limit: 24,
        }
    }

    fn facts<'a>(
        ranges: &'a [Range],
        names: &'a [String],
        waiting: &'a [NaiveDateTime],
    ) -> Facts<'a> {
        Facts {
            table: "audit_log",
            ranges,
            names,
            now: at("2026-11-23 12:00"),
            waiting,
        }
    }

    #[test]
    fn an_empty_table_gets_the_current_month_and_those_ahead() {
        let made = missing(&facts(&[], &[], &[]), &policy(2), &Plain);
        let names: Vec<_> = made.iter().map(|new| new.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "audit_log_2026_11",
                "audit_log_2026_12",
                "audit_log_2027_01"
            ]
        );
        assert_eq!(made[0].lower, micros("2026-11-01 00:00"));
        assert_eq!(made[2].upper, micros("2027-02-01 00:00"));
    }

    #[test]
    fn nothing_to_do_when_all_is_there() {
        let ranges = [range("2026-01-01 00:00", "2027-02-01 00:00")];
        assert_eq!(missing(&facts(&ranges, &[], &[]), &policy(2), &Plain), []);
    }

    #[test]
    fn waiting_rows_get_their_month_within_the_window() {
        let waiting = [
            at("2026-10-31 23:59"),
            at("2026-10-02 00:00"),
            at("2025-01-01 00:00"),
            at("2024-11-24 00:00"), // its month ends within the window
            at("2024-10-31 00:00"), // expired
            at("1999-01-01 00:00"), // absurd
            at("2027-12-31 00:00"), // its month starts within max_future
            at("2028-01-01 00:00"), // beyond
        ];
        let made = missing(&facts(&[], &[], &waiting), &policy(0), &Plain);
        let names: Vec<_> = made.iter().map(|new| new.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "audit_log_2026_11",
                "audit_log_2027_12",
                "audit_log_2026_10",
                "audit_log_2025_01",
                "audit_log_2024_11"
            ]
        );
    }

    #[test]
    fn premake_ends_at_the_latest_time_and_a_run_at_its_limit() {
        assert_eq!(
            missing(&facts(&[], &[], &[]), &policy(100), &Plain).len(),
            14
        );
        let few = Policy {
            limit: 3,
            ..policy(100)
        };
        assert_eq!(missing(&facts(&[], &[], &[]), &few, &Plain).len(), 3);
    }

    #[test]
    fn odd_neighbours_leave_gaps_that_are_filled() {
        // Someone else's tool: a wide partition that ends in the middle of November, and a week in December.
        let ranges = [
            Range {
                lower: Bound::MinValue,
                upper: Bound::At(micros("2026-11-10 00:00")),
            },
            range("2026-12-07 00:00", "2026-12-14 00:00"),
        ];
        let names = ["audit_log_2026_12".to_owned()];
        let made = missing(&facts(&ranges, &names, &[]), &policy(1), &Plain);
        let made: Vec<_> = made
            .iter()
            .map(|new| (new.name.as_str(), new.lower, new.upper))
            .collect();
        assert_eq!(
            made,
            [
                (
                    "audit_log_2026_11",
                    micros("2026-11-10 00:00"),
                    micros("2026-12-01 00:00")
                ),
                (
                    "audit_log_2026_12_01",
                    micros("2026-12-01 00:00"),
                    micros("2026-12-07 00:00")
                ),
                (
                    "audit_log_2026_12_14",
                    micros("2026-12-14 00:00"),
                    micros("2027-01-01 00:00")
                ),
            ]
        );
    }

    #[test]
    fn a_new_month_starts_where_its_neighbour_ends() {
        // Months were made in UTC; the table is now looked after in Berlin.
        let berlin = Named(chrono_tz::Europe::Berlin);
        let ranges = [range("2026-11-01 00:00", "2026-12-01 00:00")];
        let made = missing(&facts(&ranges, &[], &[]), &policy(2), &berlin);
        assert_eq!(made.len(), 2);
        assert_eq!(
            made[0].lower,
            micros("2026-12-01 00:00"),
            "clipped, no overlap"
        );
        assert_eq!(made[0].upper, micros("2026-12-31 23:00"), "local midnight");
        assert_eq!(made[1].lower, made[0].upper);
        // A gap between two UTC months leaves no sliver of one hour.
        let ranges = [
            range("2026-11-01 00:00", "2026-12-01 00:00"),
            range("2027-01-01 00:00", "2027-02-01 00:00"),
        ];
        let made = missing(&facts(&ranges, &[], &[]), &policy(1), &berlin);
        assert_eq!(made.len(), 1);
        assert_eq!(
            (made[0].lower, made[0].upper),
            (micros("2026-12-01 00:00"), micros("2027-01-01 00:00"))
        );
    }

    #[test]
    fn placing_knows_same_free_and_overlapping() {
        let ranges = [range("2026-01-01 00:00", "2026-02-01 00:00")];
        let exact = |lower, upper| place_exact(&ranges, range(lower, upper));
        assert_eq!(
            exact("2026-01-01 00:00", "2026-02-01 00:00"),
            Placement::Same(0)
        );
        assert_eq!(
            exact("2026-01-31 00:00", "2026-02-01 00:00"),
            Placement::Overlaps(0)
        );
        assert_eq!(
            exact("2025-12-01 00:00", "2026-03-01 00:00"),
            Placement::Overlaps(0)
        );
        let free = range("2026-02-01 00:00", "2026-03-01 00:00");
        assert_eq!(place_exact(&ranges, free), Placement::Free(free));
        // Days never snap to a neighbour.
        assert_eq!(
            place_period(
                &ranges,
                micros("2026-01-31 00:00"),
                micros("2026-02-01 00:00"),
                PartitionInterval::Daily
            ),
            Placement::Overlaps(0)
        );
    }

    #[test]
    fn the_nearest_neighbour_counts() {
        // Days from February on; January is wanted as a whole month.
        let days: Vec<Range> = (1..=5)
            .rev()
            .map(|day| {
                range(
                    &format!("2026-02-0{day} 00:00"),
                    &format!("2026-02-0{} 00:00", day + 1),
                )
            })
            .collect();
        let january = range("2026-01-01 00:00", "2026-02-01 00:00");
        let placed = place_period(
            &days,
            micros("2026-01-01 00:00"),
            micros("2026-02-01 00:00"),
            PartitionInterval::Monthly,
        );
        assert_eq!(placed, Placement::Free(january));
    }

    proptest! {
        /// Whatever exists: what is made overlaps nothing, stays in order, and leaves no gap in the wanted periods.
        #[test]
        fn fills_without_overlap(
            days in proptest::collection::vec((0i64..800, 1i64..90, 0i64..86_400), 0..12),
            interval in 0usize..5,
            count in 1usize..20,
        ) {
            let interval = PartitionInterval::ALL[interval];
            let day = 86_400_000_000i64;
            let base = micros("2025-06-01 00:00");
            let mut ranges: Vec<Range> = Vec::new();
            for (start, length, offset) in days {
                let lower = base + start * day + offset * 1_000_000;
                let candidate = Range::new(lower, lower + length * day);
                if !ranges.iter().any(|range| range.overlaps(candidate)) {
                    ranges.push(candidate);
                }
            }
            let from = at("2025-09-17 03:00");
            let made = missing_from(&facts(&ranges, &[], &[]), interval, from, count, &Plain);
            let mut all = ranges.clone();
            let mut names = HashSet::new();
            for new in &made {
                let range = Range::new(new.lower, new.upper);
                prop_assert!(new.lower < new.upper);
                prop_assert!(!all.iter().any(|other| other.overlaps(range)), "{new:?}");
                prop_assert!(names.insert(new.name.clone()));
                all.push(range);
            }
            let start = interval.floor(from).unwrap();
            let mut position = to_postgres_micros(start);
            let mut end = start;
            for _ in 0..count {
                end = interval.after(end).unwrap();
            }
            // Slack may leave the last hours before a neighbour's bound to that neighbour, never more.
            while position < to_postgres_micros(end) {
                let covered = all.iter().find(|range| range.contains(position));
                prop_assert!(covered.is_some(), "hole at {:?}", from_postgres_micros(position));
                position += day / 2;
            }
            // A second plan has nothing left to do.
            let rest = missing_from(&facts(&all, &[], &[]), interval, from, count, &Plain);
            prop_assert_eq!(rest, []);
        }
    }
}
