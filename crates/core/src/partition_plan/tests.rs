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

fn facts<'a>(ranges: &'a [Range], names: &'a [String], waiting: &'a [NaiveDateTime]) -> Facts<'a> {
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

const DAY: i64 = 86_400_000_000;

/// Ranges from (start in days, length in days, offset in seconds), those that overlap an earlier one left out.
fn random_ranges(days: &[(i64, i64, i64)]) -> Vec<Range> {
    let base = micros("2025-06-01 00:00");
    let mut ranges: Vec<Range> = Vec::new();
    for (start, length, offset) in days {
        let lower = base + start * DAY + offset * 1_000_000;
        let candidate = Range::new(lower, lower + length * DAY);
        if !ranges.iter().any(|range| range.overlaps(candidate)) {
            ranges.push(candidate);
        }
    }
    ranges
}

#[test]
fn a_sliver_is_its_neighbours_and_made_for_rows_that_wait_in_it() {
    let berlin = Named(chrono_tz::Europe::Berlin);
    let ranges = [range("2026-11-01 00:00", "2026-12-01 00:00")];
    // November of Berlin begins an hour before that of UTC.
    let waiting = [at("2026-11-01 00:30")];
    let made = missing(&facts(&ranges, &[], &waiting), &policy(0), &berlin);
    let made: Vec<_> = made
        .iter()
        .map(|new| (new.name.as_str(), new.lower, new.upper))
        .collect();
    assert_eq!(
        made,
        [(
            "audit_log_2026_10",
            micros("2026-09-30 22:00"),
            micros("2026-11-01 00:00")
        )]
    );
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
        let ranges = random_ranges(&days);
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
        while position < to_postgres_micros(end) {
            let covered = all.iter().find(|range| range.contains(position));
            prop_assert!(covered.is_some(), "hole at {:?}", from_postgres_micros(position));
            position += DAY / 12;
        }
        // A second plan has nothing left to do.
        let rest = missing_from(&facts(&all, &[], &[]), interval, from, count, &Plain);
        prop_assert_eq!(rest, []);
    }

    /// No row that may have a partition waits for ever.
    #[test]
    fn every_waiting_row_gets_its_partition(
        days in proptest::collection::vec((0i64..800, 1i64..90, 0i64..86_400), 0..12),
        interval in 0usize..5,
        rows in proptest::collection::vec(0i64..(800 * 24), 0..20),
        tokyo: bool,
    ) {
        let zone: &dyn Zone =
            if tokyo { &Named(chrono_tz::Asia::Tokyo) } else { &Plain };
        let ranges = random_ranges(&days);
        let rows: Vec<NaiveDateTime> = rows
            .iter()
            .filter_map(|hour| zone.local(micros("2025-06-01 00:00") + hour * (DAY / 24)))
            .collect();
        let policy = Policy {
            interval: PartitionInterval::ALL[interval],
            limit: usize::MAX,
            earliest: None,
            ..policy(1)
        };
        let mut all = ranges.clone();
        for new in missing(&facts(&ranges, &[], &rows), &policy, zone) {
            let range = Range::new(new.lower, new.upper);
            prop_assert!(!all.iter().any(|other| other.overlaps(range)), "{new:?}");
            all.push(range);
        }
        for row in rows {
            let position = zone.position(row).unwrap();
            prop_assert!(all.iter().any(|range| range.contains(position)), "{row}");
        }
        let again = missing(&facts(&all, &[], &[]), &policy, zone);
        prop_assert_eq!(again, []);
    }
}
