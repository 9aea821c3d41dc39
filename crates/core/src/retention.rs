//! What may go, and when nothing may.

use crate::partition_plan::{Bound, Range, Zone};
use crate::span::Span;

/// What happens to an expired partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RetentionAction {
    Drop,
    /// Kept as a plain table.
    Detach,
    /// Detached and moved to this schema.
    Archive(String),
}

impl RetentionAction {
    /// Reads `drop`, `detach` or `archive:SCHEMA`.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "drop" => Some(Self::Drop),
            "detach" => Some(Self::Detach),
            _ => text
                .strip_prefix("archive:")
                .filter(|schema| !schema.is_empty())
                .map(|schema| Self::Archive(schema.to_owned())),
        }
    }

    /// The spelling that `parse` reads.
    pub fn text(&self) -> String {
        match self {
            Self::Archive(schema) => format!("archive:{schema}"),
            other => other.verb().to_owned(),
        }
    }

    /// The verb for what will be done.
    pub const fn verb(&self) -> &'static str {
        match self {
            Self::Drop => "drop",
            Self::Detach => "detach",
            Self::Archive(_) => "archive",
        }
    }

    /// What was done as one would say it beforehand: `dropped` becomes `drop`. Other words stay.
    pub fn as_intended(done: &str) -> String {
        for action in [Self::Drop, Self::Detach, Self::Archive(String::new())] {
            if done == action.done() {
                return action.verb().to_owned();
            }
        }
        match done.strip_prefix("skipped: ") {
            Some(reason) => format!("skip: {reason}"),
            None => done.to_owned(),
        }
    }

    /// The word for what was done.
    pub const fn done(&self) -> &'static str {
        match self {
            Self::Drop => "dropped",
            Self::Detach => "detached",
            Self::Archive(_) => "archived",
        }
    }
}

/// The position from which a partition that ends at `upper` has expired. `None`: it never does.
pub fn expires_at(upper: Bound, retention: Option<Span>, zone: &dyn Zone) -> Option<i64> {
    let Bound::At(upper) = upper else { return None };
    zone.position(retention?.after(zone.local(upper)?)?)
}

/// Indexes of the ranges that have wholly expired at `now`, oldest first.
///
/// Decided by the real upper bound, so a wide partition that may still hold a young row stays; a range that has not ended
/// never expires, however short the retention.
pub fn expired(ranges: &[Range], retention: Option<Span>, now: i64, zone: &dyn Zone) -> Vec<usize> {
    let mut indexes: Vec<usize> = (0..ranges.len())
        .filter(|index| {
            let Range { lower, upper } = ranges[*index];
            lower < upper
                && upper <= Bound::At(now)
                && expires_at(upper, retention, zone).is_some_and(|at| at <= now)
        })
        .collect();
    indexes.sort_by_key(|index| ranges[*index].upper);
    indexes
}

/// A reading of both clocks, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockReading {
    /// Time of day; somebody can set it.
    pub wall: i64,
    /// Time since the machine booted; nobody can.
    pub boot: i64,
}

/// More than this between the wall clock and the boot clock means that the wall clock was moved.
const TOLERATED_JUMP_MICROS: i64 = 86_400_000_000;

/// By how much the wall clock was moved between two readings, where that is more than a day. Retention then waits: a clock
/// that jumped ahead would expire years of events at once.
pub fn clock_jump(before: ClockReading, now: ClockReading) -> Option<i64> {
    let moved =
        (now.wall.saturating_sub(before.wall)).saturating_sub(now.boot.saturating_sub(before.boot));
    (moved.saturating_abs() > TOLERATED_JUMP_MICROS).then_some(moved)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calendar::{from_postgres_micros, to_postgres_micros};
    use chrono::NaiveDateTime;
    use proptest::prelude::*;

    struct Plain;

    impl Zone for Plain {
        fn position(&self, local: NaiveDateTime) -> Option<i64> {
            Some(to_postgres_micros(local))
        }
        fn local(&self, position: i64) -> Option<NaiveDateTime> {
            from_postgres_micros(position)
        }
    }

    fn micros(text: &str) -> i64 {
        to_postgres_micros(NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M").unwrap())
    }

    #[test]
    fn actions_parse() {
        assert_eq!(RetentionAction::parse("drop"), Some(RetentionAction::Drop));
        assert_eq!(
            RetentionAction::parse("detach"),
            Some(RetentionAction::Detach)
        );
        assert_eq!(
            RetentionAction::parse("archive:Cold Store"),
            Some(RetentionAction::Archive("Cold Store".into()))
        );
        for text in ["drop", "detach", "archive:Cold Store"] {
            assert_eq!(
                RetentionAction::parse(text).map(|action| action.text()),
                Some(text.to_owned())
            );
        }
        for wrong in ["", "Drop", "archive", "archive:", "delete"] {
            assert_eq!(RetentionAction::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_wide_partition_with_a_young_end_stays() {
        let ranges = [
            Range {
                lower: Bound::At(micros("2015-01-01 00:00")),
                upper: Bound::At(micros("2026-11-01 00:00")),
            },
            Range {
                lower: Bound::MinValue,
                upper: Bound::At(micros("2015-01-01 00:00")),
            },
            Range {
                lower: Bound::At(micros("2026-11-01 00:00")),
                upper: Bound::MaxValue,
            },
        ];
        let now = micros("2026-11-23 00:00");
        assert_eq!(expired(&ranges, Some(Span::days(365)), now, &Plain), [1]);
        assert_eq!(expired(&ranges, None, now, &Plain), [] as [usize; 0]);
    }

    #[test]
    fn expires_to_the_day() {
        let range = [Range::new(
            micros("2024-01-01 00:00"),
            micros("2024-02-01 00:00"),
        )];
        let retention = Some(Span::months(12));
        assert_eq!(
            expired(&range, retention, micros("2025-01-31 23:59"), &Plain),
            [] as [usize; 0]
        );
        assert_eq!(
            expired(&range, retention, micros("2025-02-01 00:00"), &Plain),
            [0]
        );
    }

    #[test]
    fn a_range_that_has_not_ended_never_expires() {
        let range = [Range::new(
            micros("2026-11-01 00:00"),
            micros("2026-12-01 00:00"),
        )];
        let nonsense = Some(Span {
            months: 0,
            days: -365,
            micros: 0,
        });
        assert_eq!(
            expired(&range, nonsense, micros("2026-11-23 00:00"), &Plain),
            [] as [usize; 0]
        );
    }

    #[test]
    fn a_moved_clock_is_noticed() {
        let day = 86_400_000_000;
        let before = ClockReading { wall: 0, boot: 0 };
        // A month of waiting is no jump.
        assert_eq!(
            clock_jump(
                before,
                ClockReading {
                    wall: 30 * day,
                    boot: 30 * day
                }
            ),
            None
        );
        assert_eq!(
            clock_jump(
                before,
                ClockReading {
                    wall: 3 * day,
                    boot: day
                }
            ),
            Some(2 * day)
        );
        assert_eq!(
            clock_jump(
                before,
                ClockReading {
                    wall: -2 * day,
                    boot: 1
                }
            ),
            Some(-2 * day - 1)
        );
        assert_eq!(
            clock_jump(before, ClockReading { wall: day, boot: 0 }),
            None
        );
    }

    proptest! {
        #[test]
        fn expiry_is_monotonic_and_ordered(
            uppers in proptest::collection::vec(0i64..8_000, 1..40),
            days in 1i32..3_000,
            now in 0i64..10_000,
        ) {
            let day = 86_400_000_000i64;
            let ranges: Vec<Range> = uppers.iter().map(|upper| Range::new((upper - 1) * day, upper * day)).collect();
            let retention = Some(Span::days(days));
            let gone = expired(&ranges, retention, now * day, &Plain);
            for (index, upper) in uppers.iter().enumerate() {
                let old = upper + i64::from(days) <= now;
                prop_assert_eq!(gone.contains(&index), old);
            }
            prop_assert!(gone.windows(2).all(|pair| uppers[pair[0]] <= uppers[pair[1]]));
        }
    }
}
