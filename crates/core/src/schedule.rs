//! When a job runs: cron expressions in local time, and daily windows.
//!
//! The expressions are croner's: five fields (a sixth for seconds in front), names, ranges, steps, lists, `L`, `W`, `#`, and
//! nicknames such as `@daily`. Where both day fields are restricted, either is enough, as in Vixie's cron. Zone rules come
//! from the caller. A schedule that names one time of day runs once a day whatever the clock does: at the next instant where its
//! local time is skipped, the first time where it occurs twice. One that names several times or an interval (`*/15 * * * *`) goes
//! by the clock: what is skipped is skipped, and what occurs twice runs twice.

use crate::calendar::to_postgres_micros;
use crate::partition_plan::Zone;
use chrono::{Datelike, NaiveDate, NaiveDateTime, NaiveTime, Timelike};
use croner::errors::CronError;
use croner::parser::{CronParser, Seconds, Year};
use croner::time::{CivilDateTime, CronDateTime, Resolution, Weekday};
use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

const MICROS: i64 = 1_000_000;
/// Slots that are counted one by one; of more only the last is looked for.
const COUNTED: u32 = 10_000;
/// A clock is set back by less than this.
const LONGEST_FOLD_MICROS: i64 = 86_400 * MICROS;

/// A cron expression.
#[derive(Clone, Debug)]
pub struct Schedule(croner::Cron);

/// Why an expression is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadSchedule(String);

impl fmt::Display for BadSchedule {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl FromStr for Schedule {
    type Err = BadSchedule;

    fn from_str(text: &str) -> Result<Self, BadSchedule> {
        CronParser::builder()
            .seconds(Seconds::Optional)
            .year(Year::Disallowed)
            .build()
            .parse(text)
            .map(Self)
            .map_err(|error| BadSchedule(error.to_string()))
    }
}

/// What became due in a stretch of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slots {
    pub first: i64,
    pub last: i64,
    /// How many there are, both included; where `uncounted` holds, at least.
    pub count: u32,
    pub uncounted: bool,
}

impl Schedule {
    /// The first time after `after`, both in microseconds of PostgreSQL's epoch. `None`: never again.
    pub fn next<Z: Zone>(&self, after: i64, zone: &Z) -> Option<i64> {
        let start = Moment::at(after.div_euclid(MICROS) * MICROS, zone)?;
        let next = self.0.find_next_occurrence(&start, false).ok()?;
        (next.position > after).then_some(next.position)
    }

    /// What became due after `after` and is not later than `now`.
    pub fn due<Z: Zone>(&self, after: i64, now: i64, zone: &Z) -> Option<Slots> {
        let first = self.next(after, zone).filter(|slot| *slot <= now)?;
        let mut slots = Slots {
            first,
            last: first,
            count: 1,
            uncounted: false,
        };
        while let Some(slot) = self.next(slots.last, zone).filter(|slot| *slot <= now) {
            if slots.count == COUNTED {
                slots.uncounted = true;
                let end = Moment::at(now.div_euclid(MICROS) * MICROS, zone)?;
                if let Ok(last) = self.0.find_previous_occurrence(&end, true) {
                    slots.last = last.position.max(slots.last);
                }
                break;
            }
            slots.last = slot;
            slots.count += 1;
        }
        Some(slots)
    }
}

/// An instant together with the zone that gives it a local time.
struct Moment<'a, Z> {
    position: i64,
    local: NaiveDateTime,
    zone: &'a Z,
}

impl<Z> Clone for Moment<'_, Z> {
    fn clone(&self) -> Self {
        Self { ..*self }
    }
}

impl<'a, Z: Zone> Moment<'a, Z> {
    fn at(position: i64, zone: &'a Z) -> Option<Self> {
        Some(Self {
            position,
            local: zone.local(position)?,
            zone,
        })
    }
}

impl<Z: Zone> CronDateTime for Moment<'_, Z> {
    fn to_civil(&self) -> CivilDateTime {
        let local = self.local;
        // Chrono's fields are all in range.
        CivilDateTime::from_ymd_hms_opt(
            local.year(),
            local.month(),
            local.day(),
            local.hour(),
            local.minute(),
            local.second(),
        )
        .unwrap_or_else(|| unreachable!("a date of chrono is a date"))
    }

    fn civil_weekday(&self) -> Weekday {
        Weekday::from_days_from_sunday(self.local.weekday().num_days_from_sunday())
    }

    fn resolve_civil(&self, civil: CivilDateTime) -> Result<Resolution<Self>, CronError> {
        let local = NaiveDate::from_ymd_opt(civil.year(), civil.month(), civil.day())
            .and_then(|date| date.and_hms_opt(civil.hour(), civil.minute(), civil.second()))
            .ok_or(CronError::InvalidDate)?;
        let at = |position| Moment::at(position, self.zone).ok_or(CronError::InvalidTime);
        let first = at(self.zone.position(local).ok_or(CronError::InvalidTime)?)?;
        if first.local != local {
            return Ok(Resolution::Gap);
        }
        // Where the clock is set back after it, the same local time comes again: by as much later as the offset has changed.
        let later = at(first.position + LONGEST_FOLD_MICROS)?;
        let offset = to_postgres_micros(later.local) - later.position;
        let second = to_postgres_micros(local) - offset;
        if second > first.position {
            let second = at(second)?;
            if second.local == local {
                return Ok(Resolution::Ambiguous(first, second));
            }
        }
        Ok(Resolution::Single(first))
    }

    fn checked_add_seconds(&self, seconds: i64) -> Option<Self> {
        Moment::at(
            self.position.checked_add(seconds.checked_mul(MICROS)?)?,
            self.zone,
        )
    }

    fn cmp_instant(&self, other: &Self) -> Ordering {
        self.position.cmp(&other.position)
    }
}

/// A part of each day, in local time: `01:00-05:00`, or `22:00-04:00` over midnight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    start: NaiveTime,
    end: NaiveTime,
}

impl FromStr for Window {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (start, end) = text.split_once('-').ok_or(())?;
        let time = |text: &str| NaiveTime::parse_from_str(text.trim(), "%H:%M").map_err(|_| ());
        let (start, end) = (time(start)?, time(end)?);
        if start == end {
            return Err(());
        }
        Ok(Self { start, end })
    }
}

impl Window {
    /// How long the window stays open from a local time on; `None` where it is closed.
    pub fn left(self, local: NaiveDateTime) -> Option<Duration> {
        let time = local.time();
        let over_midnight = self.end < self.start;
        let open = if over_midnight {
            time >= self.start || time < self.end
        } else {
            time >= self.start && time < self.end
        };
        if !open {
            return None;
        }
        let mut left = self.end - time;
        if left < chrono::TimeDelta::zero() {
            left += chrono::TimeDelta::days(1);
        }
        left.to_std().ok()
    }

    /// The same at an instant in a zone.
    pub fn left_at<Z: Zone>(self, now: i64, zone: &Z) -> Option<Duration> {
        self.left(zone.local(now)?)
    }
}

#[cfg(test)]
mod tests;
