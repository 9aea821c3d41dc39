//! Calendar periods in local time: where a day, ISO week, month, quarter or year starts and what it is called.
//!
//! Everything here is civil time (`NaiveDateTime`). The instant at which a local time happens is decided by the server's
//! time-zone database, never by this crate: two databases can disagree.

use chrono::{DateTime, Datelike, Days, Months, NaiveDate, NaiveDateTime, NaiveTime};
use std::fmt;
use std::str::FromStr;

/// Microseconds from the Unix epoch to PostgreSQL's epoch, 2000-01-01 00:00:00.
const POSTGRES_EPOCH_UNIX_MICROS: i64 = 946_684_800_000_000;

/// Local time as PostgreSQL's `timestamp` stores it: microseconds since 2000-01-01 00:00:00.
/// `None` for ±infinity and for what lies outside chrono's range (±262,000 years).
pub fn from_postgres_micros(micros: i64) -> Option<NaiveDateTime> {
    let unix = micros.checked_add(POSTGRES_EPOCH_UNIX_MICROS)?;
    DateTime::from_timestamp_micros(unix).map(|instant| instant.naive_utc())
}

/// The inverse of [`from_postgres_micros`].
pub fn to_postgres_micros(local: NaiveDateTime) -> i64 {
    local.and_utc().timestamp_micros() - POSTGRES_EPOCH_UNIX_MICROS
}

/// Length of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PartitionInterval {
    Daily,
    /// ISO weeks: Monday to Sunday.
    Weekly,
    Monthly,
    Quarterly,
    Yearly,
}

impl PartitionInterval {
    pub const ALL: [Self; 5] = [
        Self::Daily,
        Self::Weekly,
        Self::Monthly,
        Self::Quarterly,
        Self::Yearly,
    ];

    /// The spelling used in SQL.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Daily => "daily",
            Self::Weekly => "weekly",
            Self::Monthly => "monthly",
            Self::Quarterly => "quarterly",
            Self::Yearly => "yearly",
        }
    }

    /// Start of the period that contains `local`. `None` outside chrono's range.
    pub fn floor(self, local: NaiveDateTime) -> Option<NaiveDateTime> {
        let date = local.date();
        let start = match self {
            Self::Daily => date,
            Self::Weekly => {
                date.checked_sub_days(Days::new(date.weekday().num_days_from_monday().into()))?
            }
            Self::Monthly => date.with_day(1)?,
            Self::Quarterly => {
                NaiveDate::from_ymd_opt(date.year(), (date.month0() / 3) * 3 + 1, 1)?
            }
            Self::Yearly => NaiveDate::from_ymd_opt(date.year(), 1, 1)?,
        };
        Some(start.and_time(NaiveTime::MIN))
    }

    /// One interval after `local`; for a period's start, the start of the following period.
    pub fn after(self, local: NaiveDateTime) -> Option<NaiveDateTime> {
        match self {
            Self::Daily => local.checked_add_days(Days::new(1)),
            Self::Weekly => local.checked_add_days(Days::new(7)),
            Self::Monthly => local.checked_add_months(Months::new(1)),
            Self::Quarterly => local.checked_add_months(Months::new(3)),
            Self::Yearly => local.checked_add_months(Months::new(12)),
        }
    }

    /// What a period that starts at `start` is called: `2026_01`, `2026_q1`, `2026`, `2026_w05`, `2026_01_31`.
    /// A start that is not on the calendar's grid is called by its day, so that two pieces of a month differ.
    pub fn suffix(self, start: NaiveDateTime) -> String {
        let date = start.date();
        let on_grid = self.floor(start) == Some(start);
        match self {
            Self::Monthly if on_grid => format!("{:04}_{:02}", date.year(), date.month()),
            Self::Quarterly if on_grid => format!("{:04}_q{}", date.year(), date.month0() / 3 + 1),
            Self::Yearly if on_grid => format!("{:04}", date.year()),
            Self::Weekly if on_grid => {
                let week = date.iso_week();
                format!("{:04}_w{:02}", week.year(), week.week())
            }
            _ => format!("{:04}_{:02}_{:02}", date.year(), date.month(), date.day()),
        }
    }
}

impl fmt::Display for PartitionInterval {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for PartitionInterval {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL
            .into_iter()
            .find(|interval| interval.name() == text)
            .ok_or(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(text: &str) -> NaiveDateTime {
        NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M").unwrap()
    }

    #[test]
    fn periods_start_where_the_calendar_says() {
        let leap_day = at("2024-02-29 13:45");
        for (interval, start, next, suffix) in [
            (
                PartitionInterval::Daily,
                "2024-02-29 00:00",
                "2024-03-01 00:00",
                "2024_02_29",
            ),
            (
                PartitionInterval::Weekly,
                "2024-02-26 00:00",
                "2024-03-04 00:00",
                "2024_w09",
            ),
            (
                PartitionInterval::Monthly,
                "2024-02-01 00:00",
                "2024-03-01 00:00",
                "2024_02",
            ),
            (
                PartitionInterval::Quarterly,
                "2024-01-01 00:00",
                "2024-04-01 00:00",
                "2024_q1",
            ),
            (
                PartitionInterval::Yearly,
                "2024-01-01 00:00",
                "2025-01-01 00:00",
                "2024",
            ),
        ] {
            let floor = interval.floor(leap_day).unwrap();
            assert_eq!(floor, at(start), "{interval}");
            assert_eq!(interval.after(floor).unwrap(), at(next), "{interval}");
            assert_eq!(interval.suffix(floor), suffix, "{interval}");
        }
    }

    #[test]
    fn a_week_belongs_to_the_year_of_its_thursday() {
        // 2024-12-30 is a Monday of ISO week 1 of 2025.
        let start = PartitionInterval::Weekly
            .floor(at("2025-01-01 00:00"))
            .unwrap();
        assert_eq!(start, at("2024-12-30 00:00"));
        assert_eq!(PartitionInterval::Weekly.suffix(start), "2025_w01");
        // 2021-01-03 still belongs to week 53 of 2020.
        let start = PartitionInterval::Weekly
            .floor(at("2021-01-03 23:59"))
            .unwrap();
        assert_eq!(PartitionInterval::Weekly.suffix(start), "2020_w53");
    }

    #[test]
    fn off_grid_starts_are_called_by_their_day() {
        assert_eq!(
            PartitionInterval::Monthly.suffix(at("2026-01-17 00:00")),
            "2026_01_17"
        );
        assert_eq!(
            PartitionInterval::Yearly.suffix(at("2026-02-01 00:00")),
            "2026_02_01"
        );
        assert_eq!(
            PartitionInterval::Monthly.suffix(at("2026-01-01 06:00")),
            "2026_01_01"
        );
    }

    #[test]
    fn names_round_trip_and_nothing_else_is_taken() {
        for interval in PartitionInterval::ALL {
            assert_eq!(interval.name().parse(), Ok(interval));
        }
        for wrong in ["", "Monthly", "month", "hourly", " monthly"] {
            assert_eq!(wrong.parse::<PartitionInterval>(), Err(()));
        }
    }

    #[test]
    fn infinity_is_not_a_local_time() {
        assert_eq!(from_postgres_micros(i64::MAX), None);
        assert_eq!(from_postgres_micros(i64::MIN), None);
        assert_eq!(from_postgres_micros(0), Some(at("2000-01-01 00:00")));
    }

    proptest! {
        #[test]
        fn periods_tile_time(micros in -60_000_000_000_000_000i64..250_000_000_000_000_000, index in 0usize..5) {
            let interval = PartitionInterval::ALL[index];
            let local = from_postgres_micros(micros).unwrap();
            prop_assert_eq!(to_postgres_micros(local), micros);
            let start = interval.floor(local).unwrap();
            let next = interval.after(start).unwrap();
            prop_assert!(start <= local && local < next);
            prop_assert_eq!(interval.floor(start), Some(start));
            prop_assert_eq!(interval.floor(next), Some(next));
            // The last microsecond before `next` still belongs to this period.
            prop_assert_eq!(interval.floor(next - chrono::Duration::microseconds(1)), Some(start));
            prop_assert_ne!(interval.suffix(start), interval.suffix(next));
        }
    }
}
