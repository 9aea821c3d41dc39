//! Three ways to the same time: ours, croner with chrono's own zones, and a search that knows neither.

use super::*;
use crate::calendar::from_postgres_micros;
use chrono::{DateTime, Days, LocalResult, TimeDelta, TimeZone as _, Utc};
use chrono_tz::Tz;
use proptest::prelude::*;
use std::collections::BTreeSet;

struct Named(Tz);

impl Zone for Named {
    fn position(&self, local: NaiveDateTime) -> Option<i64> {
        let instant = match self.0.from_local_datetime(&local) {
            LocalResult::Single(instant) | LocalResult::Ambiguous(instant, _) => instant,
            LocalResult::None => first_after_gap(self.0, local),
        };
        Some(micros(instant.with_timezone(&Utc)))
    }

    fn local(&self, position: i64) -> Option<NaiveDateTime> {
        let utc = from_postgres_micros(position)?;
        Some(self.0.from_utc_datetime(&utc).naive_local())
    }
}

fn micros(instant: DateTime<Utc>) -> i64 {
    to_postgres_micros(instant.naive_utc())
}

/// The first instant whose local time is later than one that does not exist: by halving, in whole seconds.
fn first_after_gap(zone: Tz, local: NaiveDateTime) -> DateTime<Tz> {
    let around = zone.from_utc_datetime(&local);
    let (mut before, mut after) = (around - TimeDelta::days(2), around + TimeDelta::days(2));
    while after - before > TimeDelta::seconds(1) {
        let seconds = (after - before).num_seconds() / 2;
        let middle = before + TimeDelta::seconds(seconds);
        if middle.naive_local() < local {
            before = middle;
        } else {
            after = middle;
        }
    }
    after
}

/// One field of an expression as text, and the numbers it stands for.
#[derive(Clone, Debug)]
struct Field {
    text: String,
    values: BTreeSet<u32>,
    wildcard: bool,
}

fn field(low: u32, high: u32, names: &'static [&'static str]) -> impl Strategy<Value = Field> {
    let every = Just(Field {
        text: "*".into(),
        values: (low..=high).collect(),
        wildcard: true,
    });
    let step = (2..=high.max(3)).prop_map(move |step| Field {
        text: format!("*/{}", step.min(high)),
        values: (low..=high).step_by(step.min(high) as usize).collect(),
        wildcard: true,
    });
    let spell = move |value: u32| match names.get((value - low) as usize) {
        Some(name) => (*name).to_owned(),
        None => value.to_string(),
    };
    let one = (low..=high).prop_map(move |value| Field {
        text: spell(value),
        values: [value].into(),
        wildcard: false,
    });
    let list = proptest::collection::btree_set(low..=high, 1..4).prop_map(move |values| Field {
        text: values
            .iter()
            .map(|value| spell(*value))
            .collect::<Vec<_>>()
            .join(","),
        values,
        wildcard: false,
    });
    let range = (low..=high, low..=high, 1..4_u32).prop_map(move |(one, other, step)| {
        let (from, to) = (one.min(other), one.max(other));
        // SUN at the end of a range is day 7: SUN-SUN would be the whole week.
        let text = if step == 1 && to > low {
            format!("{}-{}", spell(from), spell(to))
        } else {
            format!("{from}-{to}/{step}")
        };
        Field {
            text,
            values: (from..=to).step_by(step as usize).collect(),
            wildcard: false,
        }
    });
    prop_oneof![3 => every, 1 => step, 4 => one, 2 => list, 2 => range]
}

const MONTHS: &[&str] = &[
    "JAN", "feb", "Mar", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC",
];
const WEEKDAYS: &[&str] = &["SUN", "mon", "Tue", "WED", "THU", "FRI", "SAT"];

#[derive(Clone, Debug)]
struct Expression {
    minute: Field,
    hour: Field,
    day: Field,
    month: Field,
    weekday: Field,
}

impl Expression {
    fn text(&self) -> String {
        [
            &self.minute,
            &self.hour,
            &self.day,
            &self.month,
            &self.weekday,
        ]
        .map(|field| field.text.as_str())
        .join(" ")
    }

    fn names_one_time(&self) -> bool {
        [&self.minute, &self.hour]
            .iter()
            .all(|field| !field.wildcard && field.values.len() == 1 && !field.text.contains('/'))
    }

    fn has_day(&self, date: NaiveDate) -> bool {
        let day = self.day.values.contains(&date.day());
        let weekday = self
            .weekday
            .values
            .contains(&date.weekday().num_days_from_sunday());
        let days = match (self.day.text == "*", self.weekday.text == "*") {
            (false, false) => day || weekday,
            _ => day && weekday,
        };
        days && self.month.values.contains(&date.month())
    }

    /// All instants of a local date, by asking for each minute of it what becomes of it.
    fn instants(&self, date: NaiveDate, zone: Tz) -> BTreeSet<DateTime<Utc>> {
        let mut found = BTreeSet::new();
        for hour in &self.hour.values {
            for minute in &self.minute.values {
                let local = date.and_hms_opt(*hour, *minute, 0).unwrap();
                match zone.from_local_datetime(&local) {
                    LocalResult::Single(instant) => {
                        found.insert(instant.with_timezone(&Utc));
                    }
                    LocalResult::Ambiguous(first, second) => {
                        found.insert(first.with_timezone(&Utc));
                        if !self.names_one_time() {
                            found.insert(second.with_timezone(&Utc));
                        }
                    }
                    LocalResult::None if self.names_one_time() => {
                        found.insert(first_after_gap(zone, local).with_timezone(&Utc));
                    }
                    LocalResult::None => {}
                }
            }
        }
        found
    }

    fn next(&self, after: DateTime<Utc>, zone: Tz) -> Option<DateTime<Utc>> {
        let start = after.with_timezone(&zone).date_naive();
        let mut soonest: Option<DateTime<Utc>> = None;
        // Nine years: 29 February can be eight away.
        for day in 0..366 * 9 {
            let date = start
                .checked_sub_days(Days::new(1))?
                .checked_add_days(Days::new(day))?;
            if self.has_day(date) {
                let later = self
                    .instants(date, zone)
                    .into_iter()
                    .find(|instant| *instant > after);
                // A day's instants do not overlap with those of the day after next.
                soonest = match (soonest, later) {
                    (Some(one), Some(other)) => return Some(one.min(other)),
                    (one, other) => one.or(other),
                };
            } else if soonest.is_some() {
                return soonest;
            }
        }
        soonest
    }
}

fn expression() -> impl Strategy<Value = Expression> {
    (
        field(0, 59, &[]),
        field(0, 23, &[]),
        field(1, 31, &[]),
        field(1, 12, MONTHS),
        field(0, 6, WEEKDAYS),
    )
        .prop_map(|(minute, hour, day, month, weekday)| Expression {
            minute,
            hour,
            day,
            month,
            weekday,
        })
}

/// Two with an hour, one with half an hour, one whose midnight does not exist, one that follows the moon, one with none.
const ZONES: [Tz; 6] = [
    chrono_tz::America::New_York,
    chrono_tz::Europe::Berlin,
    chrono_tz::Australia::Lord_Howe,
    chrono_tz::America::Havana,
    chrono_tz::Africa::Casablanca,
    chrono_tz::Asia::Kolkata,
];

fn compare(expression: &Expression, after: DateTime<Utc>, zone: Tz) {
    let text = expression.text();
    let ours: Schedule = text.parse().unwrap();
    let next = ours.next(micros(after), &Named(zone));
    let theirs = text
        .parse::<croner::Cron>()
        .unwrap()
        .find_next_occurrence(&after.with_timezone(&zone), false)
        .ok()
        .map(|instant| micros(instant.with_timezone(&Utc)));
    assert_eq!(next, theirs, "{text} after {after} in {zone}: croner's");
    let searched = expression.next(after, zone).map(micros);
    if searched.is_some()
        || next.is_some_and(|next| next - micros(after) < 8 * 365 * 86_400 * MICROS)
    {
        assert_eq!(next, searched, "{text} after {after} in {zone}: searched");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, ..ProptestConfig::default() })]

    #[test]
    fn the_next_time_is_croners_and_the_searched_one(
        expression in expression(),
        // 1990 to 2037: before and after that zones are projected.
        seconds in 631_152_000_i64..2_114_380_800,
        zone in proptest::sample::select(&ZONES[..]),
    ) {
        compare(&expression, DateTime::from_timestamp(seconds, 0).unwrap(), zone);
    }
}

/// Every change of the clock in these zones and years, from an hour before it to an hour after it.
#[test]
fn around_every_change_of_the_clock() {
    let fixed = |minute: u32, hour: u32| {
        let one = |value: u32| Field {
            text: value.to_string(),
            values: [value].into(),
            wildcard: false,
        };
        let every = |low: u32, high: u32| Field {
            text: "*".into(),
            values: (low..=high).collect(),
            wildcard: true,
        };
        Expression {
            minute: one(minute),
            hour: one(hour),
            day: every(1, 31),
            month: every(1, 12),
            weekday: every(0, 6),
        }
    };
    let mut changes = 0;
    for zone in ZONES {
        let mut hour = Utc.with_ymd_and_hms(2024, 1, 1, 0, 0, 0).unwrap();
        while hour.year() < 2028 {
            let next = hour + TimeDelta::minutes(30);
            let local = |at: DateTime<Utc>| at.with_timezone(&zone).naive_local();
            if local(next) - local(hour) != TimeDelta::minutes(30) {
                changes += 1;
                for minutes in (-90..90).step_by(15) {
                    let after = next + TimeDelta::minutes(minutes);
                    for at in 0..4 * 6 {
                        let mut expression = fixed(15 * (at % 4), at / 4);
                        compare(&expression, after, zone);
                        let last = fixed(15 * (at % 4), 23 - at / 4);
                        compare(&last, after, zone);
                        expression.minute = Field {
                            text: "*/10".into(),
                            values: (0..60).step_by(10).collect(),
                            wildcard: true,
                        };
                        compare(&expression, after, zone);
                    }
                }
            }
            hour = next;
        }
    }
    assert!(changes >= 30, "{changes}");
}

fn at(text: &str) -> i64 {
    to_postgres_micros(NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S").unwrap())
}

fn next(schedule: &str, after: &str, zone: Tz) -> String {
    let schedule: Schedule = schedule.parse().unwrap();
    let zone = Named(zone);
    match schedule.next(at(after), &zone) {
        Some(position) => format!(
            "{} {}",
            from_postgres_micros(position).unwrap(),
            zone.local(position).unwrap().format("%H:%M")
        ),
        None => "never".into(),
    }
}

#[test]
fn the_ends_of_months_and_years() {
    let utc = chrono_tz::UTC;
    for (schedule, after, expected) in [
        (
            "0 0 29 2 *",
            "2024-02-29 00:00:00",
            "2028-02-29 00:00:00 00:00",
        ),
        (
            "0 0 29 2 *",
            "2096-03-01 00:00:00",
            "2104-02-29 00:00:00 00:00",
        ),
        (
            "30 4 31 * *",
            "2026-03-31 04:30:00",
            "2026-05-31 04:30:00 04:30",
        ),
        (
            "0 12 L * *",
            "2028-02-01 00:00:00",
            "2028-02-29 12:00:00 12:00",
        ),
        (
            "59 23 31 12 *",
            "2026-12-31 23:59:00",
            "2027-12-31 23:59:00 23:59",
        ),
        (
            "0 0 1 1 *",
            "2026-12-31 23:59:59",
            "2027-01-01 00:00:00 00:00",
        ),
        ("@daily", "2026-12-31 23:59:59", "2027-01-01 00:00:00 00:00"),
        (
            "@hourly",
            "2026-12-31 23:00:00",
            "2027-01-01 00:00:00 00:00",
        ),
        (
            "0 9 * * MON#1",
            "2026-11-03 00:00:00",
            "2026-12-07 09:00:00 09:00",
        ),
        (
            "0 9 13 * FRI",
            "2026-11-01 00:00:00",
            "2026-11-06 09:00:00 09:00",
        ),
        (
            "*/20 * * * * *",
            "2026-11-01 00:00:21",
            "2026-11-01 00:00:40 00:00",
        ),
        ("0 0 30 2 *", "2026-01-01 00:00:00", "never"),
    ] {
        assert_eq!(
            next(schedule, after, utc),
            expected,
            "{schedule} after {after}"
        );
    }
}

#[test]
fn a_time_that_is_skipped_or_occurs_twice_runs_once() {
    let new_york = chrono_tz::America::New_York;
    // 2026-03-08: 02:00 EST is 03:00 EDT.
    assert_eq!(
        next("30 2 * * *", "2026-03-08 06:00:00", new_york),
        "2026-03-08 07:00:00 03:00"
    );
    assert_eq!(
        next("30 2 * * *", "2026-03-08 07:00:00", new_york),
        "2026-03-09 06:30:00 02:30"
    );
    // 2026-11-01: 01:30 occurs at 05:30 and at 06:30 UTC.
    assert_eq!(
        next("30 1 * * *", "2026-11-01 05:00:00", new_york),
        "2026-11-01 05:30:00 01:30"
    );
    assert_eq!(
        next("30 1 * * *", "2026-11-01 05:30:00", new_york),
        "2026-11-02 06:30:00 01:30"
    );
    // What runs every half hour does so through both.
    assert_eq!(
        next("*/30 * * * *", "2026-11-01 05:30:00", new_york),
        "2026-11-01 06:00:00 01:00"
    );
    // Midnight does not exist in Havana on 2026-03-08.
    assert_eq!(
        next(
            "0 0 * * *",
            "2026-03-08 04:00:00",
            chrono_tz::America::Havana
        ),
        "2026-03-08 05:00:00 01:00"
    );
}

#[test]
fn what_is_no_schedule_says_why() {
    for text in [
        "",
        "*",
        "* * * *",
        "60 * * * *",
        "* 24 * * *",
        "* * 0 * *",
        "* * * 13 *",
        "* * * * 8",
        "a * * * *",
        "5-1 * * * *",
        "*/0 * * * *",
        "@reboot",
        "@never",
        "0 0 0 1 1 * 2027 *",
        "0 0 1 1 * * 2027",
        "; DROP",
        "* * * * * * * *",
    ] {
        let error = text.parse::<Schedule>();
        assert!(error.is_err(), "{text}");
        assert!(!error.unwrap_err().to_string().is_empty());
    }
}

#[test]
fn slots_of_a_stretch_are_counted() {
    let schedule: Schedule = "0 * * * *".parse().unwrap();
    let zone = Named(chrono_tz::UTC);
    assert_eq!(
        schedule.due(at("2026-01-01 00:00:00"), at("2026-01-01 00:59:59"), &zone),
        None
    );
    let slots = schedule
        .due(at("2026-01-01 00:00:00"), at("2026-01-04 00:00:00"), &zone)
        .unwrap();
    assert_eq!(
        (slots.count, slots.first, slots.last, slots.uncounted),
        (
            72,
            at("2026-01-01 01:00:00"),
            at("2026-01-04 00:00:00"),
            false
        )
    );
    let every_minute: Schedule = "* * * * *".parse().unwrap();
    let slots = every_minute
        .due(at("2026-01-01 00:00:00"), at("2027-01-01 00:00:30"), &zone)
        .unwrap();
    assert_eq!(
        (slots.count, slots.last, slots.uncounted),
        (10_000, at("2027-01-01 00:00:00"), true)
    );
}

proptest! {
    #[test]
    fn anything_is_a_schedule_or_an_error(text in ".{0,40}") {
        if let Ok(schedule) = text.parse::<Schedule>() {
            let after = at("2026-06-15 12:34:56");
            if let Some(next) = schedule.next(after, &Named(chrono_tz::UTC)) {
                prop_assert!(next > after);
            }
        }
    }
}

#[test]
fn windows_open_and_close() {
    let left = |window: &str, time: &str| {
        let window: Window = window.parse().unwrap();
        let time =
            NaiveDateTime::parse_from_str(&format!("2026-01-01 {time}"), "%Y-%m-%d %H:%M:%S");
        window.left(time.unwrap()).map(|left| left.as_secs())
    };
    assert_eq!(left("01:00-05:00", "00:59:59"), None);
    assert_eq!(left("01:00-05:00", "01:00:00"), Some(4 * 3_600));
    assert_eq!(left("01:00-05:00", "04:59:59"), Some(1));
    assert_eq!(left("01:00-05:00", "05:00:00"), None);
    assert_eq!(left("22:00 - 04:00", "23:00:00"), Some(5 * 3_600));
    assert_eq!(left("22:00-04:00", "03:00:00"), Some(3_600));
    assert_eq!(left("22:00-04:00", "12:00:00"), None);
    for text in [
        "",
        "1",
        "01:00",
        "01:00-01:00",
        "25:00-26:00",
        "01:00-05:00-06:00",
    ] {
        assert!(text.parse::<Window>().is_err(), "{text}");
    }
}
