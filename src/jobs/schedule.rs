//! What is due: one look at all jobs puts into the queue what should run, and on record what should have run and did not.

use crate::error::{Error, JobError, Result};
use crate::jobs::definition::{self, Definition};
use crate::jobs::runs::{self, Open};
use crate::partition::managed::as_extension_owner;
use crate::pg::clock::{self, NamedZone};
use crate::pg::{spi, xact};
use crate::settings;
use audit_db_core::schedule::{Schedule, Slots};
use pgrx::datum::TimestampWithTimeZone;
use std::collections::{HashMap, HashSet};

/// A clock that was set back by less than this makes jobs wait; by more, it was wrong before.
const TRUSTED_STEP_BACK_MICROS: i64 = 3 * 3_600_000_000;

/// What a look has found.
pub struct Found {
    /// Runs to be started now, in this order.
    pub start: Vec<Open>,
    /// When the next look is due, by the clock of jobs.
    pub next: Option<i64>,
}

/// The time that jobs go by.
pub fn now() -> i64 {
    clock::wall().saturating_add(settings::job_clock_offset())
}

/// A schedule and its zone.
pub fn parse(schedule: &str, time_zone: &str) -> Result<(Schedule, NamedZone)> {
    let zone = NamedZone::named(time_zone)?;
    let parsed = schedule
        .parse::<Schedule>()
        .map_err(|reason| JobError::BadSchedule {
            schedule: schedule.to_owned(),
            reason: reason.to_string(),
        })?;
    Ok((parsed, zone))
}

/// Looks at all jobs. `started`: runs that have a process, or are about to get one. `free`: how many more can be started.
pub fn look(now: i64, started: &[i64], free: usize) -> Result<Found> {
    let mut open = runs::open()?;
    let handled = handled()?;
    let mut next: Option<i64> = None;
    for job in definition::all()? {
        if !job.enabled {
            continue;
        }
        let (schedule, zone) = match parse(&job.schedule, &job.time_zone) {
            Ok(parsed) => parsed,
            Err(error) => {
                // Its schedule or its zone means nothing to this server.
                definition::disable(&job, &error.failure().message)?;
                continue;
            }
        };
        let handled = handled.get(&job.name).copied();
        let before = open.len();
        // One that cannot be looked at does not keep the others from running.
        let due = xact::in_subtransaction(|| due(&job, &schedule, zone, handled, now, &mut open));
        let due = due.unwrap_or_else(|error| {
            error.warn();
            open.truncate(before);
            schedule.next(now, &zone)
        });
        next = match (next, due) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
    }
    let mut busy: HashSet<&str> = open
        .iter()
        .filter(|run| !run.queued || started.contains(&run.id))
        .map(|run| run.name.as_str())
        .collect();
    let start = open
        .iter()
        .filter(|run| run.queued && busy.insert(&run.name))
        .take(free)
        .cloned()
        .collect();
    Ok(Found { start, next })
}

/// Puts what is due of one job into the queue. Returns its next time.
fn due(
    job: &Definition,
    schedule: &Schedule,
    zone: NamedZone,
    handled: Option<i64>,
    now: i64,
    open: &mut Vec<Open>,
) -> Result<Option<i64>> {
    let from = match handled {
        Some(handled) if handled <= now + TRUSTED_STEP_BACK_MICROS => handled,
        // New, or looked after by a clock that was far ahead.
        _ => {
            note_handled(&job.name, now)?;
            now
        }
    };
    let Some(slots) = schedule.due(from, now, &zone) else {
        return Ok(schedule.next(from.max(now), &zone));
    };
    note_handled(&job.name, now)?;
    if let Some(run) = open.iter().find(|run| run.name == job.name) {
        let state = if run.queued { "waits" } else { "goes on" };
        runs::missed(
            job,
            slots.first,
            &format!(
                "{} because run {} still {state}",
                missed_times(slots),
                run.id
            ),
        )?;
    } else if settings::max_job_workers() == 0 {
        let reason = "because audit_db.max_job_workers is 0";
        runs::missed(
            job,
            slots.first,
            &format!("{} {reason}", missed_times(slots)),
        )?;
    } else if let Some(reason) = definition::why_not_connect(job.owner)? {
        definition::disable(job, reason)?;
        let role = crate::pg::identity::role_name(job.owner);
        let error = Error::from(JobError::CannotConnect { role, reason });
        let message = format!(
            "{} because {}",
            missed_times(slots),
            error.failure().message
        );
        runs::missed(job, slots.first, &message)?;
        return Ok(None);
    } else {
        if slots.count > 1 {
            let earlier = Slots {
                count: slots.count - 1,
                ..slots
            };
            runs::missed(
                job,
                slots.first,
                &format!(
                    "{} before {} because the server or its worker was not there",
                    missed_times(earlier),
                    clock::text(slots.last)
                ),
            )?;
        }
        open.push(Open {
            id: runs::enqueue(job, Some(slots.last))?,
            name: job.name.clone(),
            owner: job.owner,
            queued: true,
        });
    }
    Ok(schedule.next(now, &zone))
}

fn missed_times(slots: Slots) -> String {
    match (slots.count, slots.uncounted) {
        (1, _) => format!("missed at {}", clock::text(slots.first)),
        (count, false) => format!("missed {count} times from {} on", clock::text(slots.first)),
        (count, true) => format!(
            "missed more than {count} times from {} on",
            clock::text(slots.first)
        ),
    }
}

/// Until when the times of each job were looked after.
fn handled() -> Result<HashMap<String, i64>> {
    as_extension_owner(|| {
        Ok(spi::rows_of_kept(
            "SELECT name, handled_until FROM audit_db.job_slots",
            &[],
            |row| {
                Ok((
                    row.get::<String>(1)?.unwrap_or_default(),
                    row.get::<TimestampWithTimeZone>(2)?.map_or(0, i64::from),
                ))
            },
        )?
        .into_iter()
        .collect())
    })
}

fn note_handled(name: &str, until: i64) -> Result<()> {
    as_extension_owner(|| {
        spi::execute(
            "INSERT INTO audit_db.job_slots AS s (name, handled_until) VALUES ($1, $2)
             ON CONFLICT (name) DO UPDATE SET handled_until = excluded.handled_until",
            &[
                name.into(),
                TimestampWithTimeZone::try_from(until).ok().into(),
            ],
        )?;
        Ok(())
    })
}
