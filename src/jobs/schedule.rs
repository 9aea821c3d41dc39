//! What is due: one look at all jobs puts into the queue what should run, and on record what should have run and did not.

use crate::error::{Error, JobError, Result};
use crate::jobs::definition::{self, Definition};
use crate::jobs::runs::{self, Open};
use crate::partition::managed::as_extension_owner;
use crate::pg::clock::{self, NamedZone};
use crate::pg::{identity, spi, xact};
use crate::settings;
use audit_db_core::schedule::{Schedule, Slots};
use pgrx::datum::TimestampWithTimeZone;
use pgrx::pg_sys::Oid;
use std::collections::{HashMap, HashSet};

/// A clock that was set back by less than this makes jobs wait; by more, it was wrong before.
const TRUSTED_STEP_BACK_MICROS: i64 = 3 * 3_600_000_000;

/// A job that could not be looked at gets its turn after this time.
const AGAIN_MICROS: i64 = 1_000_000;

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
    let (mut new, mut due) = (Vec::new(), Vec::new());
    for job in definition::all()? {
        if !job.enabled {
            continue;
        }
        let (schedule, zone) = match parse(&job.schedule, &job.time_zone) {
            Ok(parsed) => parsed,
            Err(error) => {
                // Its schedule or its zone means nothing to this server.
                let reason = error.failure().message;
                note(xact::in_subtransaction(|| {
                    definition::disable(&job, &reason)
                }));
                continue;
            }
        };
        let from = match handled.get(&job.name) {
            Some(handled) if *handled <= now + TRUSTED_STEP_BACK_MICROS => *handled,
            // New, or looked after by a clock that was far ahead.
            _ => {
                new.push(job.name.clone());
                now
            }
        };
        let soonest = schedule.next(from.max(now), &zone);
        if let Some(slots) = schedule.due(from, now, &zone) {
            due.push((job, slots));
        }
        next = earlier(next, soonest);
    }
    // Who has changed a job and not committed yet must not keep the others from running: his has to wait.
    let free_names = lock_slots(&due)?;
    let all = due.len();
    due.retain(|(job, _)| free_names.contains(&job.name));
    if due.len() < all {
        next = earlier(next, Some(now + AGAIN_MICROS));
    }
    let (mut looked_after, mut queued) = (new, Vec::new());
    for (job, slots) in due {
        // One that cannot be looked at does not keep the others from running either.
        match xact::in_subtransaction(|| may_run(&job, slots, &open)) {
            Ok(may_run) => {
                looked_after.push(job.name.clone());
                if may_run {
                    queued.push((job, slots.last));
                }
            }
            Err(error) => {
                error.warn();
                next = earlier(next, Some(now + AGAIN_MICROS));
            }
        }
    }
    note_handled(&looked_after, now)?;
    let runs: Vec<_> = queued
        .iter()
        .map(|(job, slot)| (job, Some(*slot)))
        .collect();
    for (id, (job, _)) in runs::enqueue(&runs)?.into_iter().zip(&queued) {
        open.push(Open {
            id,
            name: job.name.clone(),
            owner: job.owner,
            queued: true,
        });
    }
    let mut busy: HashSet<(&str, Oid)> = open
        .iter()
        .filter(|run| !run.queued || started.contains(&run.id))
        .map(|run| (run.name.as_str(), run.owner))
        .collect();
    let start = open
        .iter()
        .filter(|run| run.queued && busy.insert((&run.name, run.owner)))
        .take(free)
        .cloned()
        .collect();
    Ok(Found { start, next })
}

fn earlier(one: Option<i64>, other: Option<i64>) -> Option<i64> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

fn note(outcome: Result<()>) {
    if let Err(error) = outcome {
        error.warn();
    }
}

/// Which of these jobs nobody is changing: their slots stay locked until the look ends.
fn lock_slots(due: &[(Definition, Slots)]) -> Result<HashSet<String>> {
    if due.is_empty() {
        return Ok(HashSet::new());
    }
    let names: Vec<String> = due.iter().map(|(job, _)| job.name.clone()).collect();
    as_extension_owner(|| {
        Ok(spi::written(
            "SELECT name FROM audit_db.job_slots WHERE name = ANY ($1) FOR UPDATE SKIP LOCKED",
            &[names.into()],
            |row| row.get::<String>(1),
        )?
        .into_iter()
        .flatten()
        .collect())
    })
}

/// Whether a job that is due is to run, at the last of these times. What does not take place is put on record.
fn may_run(job: &Definition, slots: Slots, open: &[Open]) -> Result<bool> {
    let because = if let Some(run) = open
        .iter()
        .find(|run| run.name == job.name && run.owner == job.owner)
    {
        let state = if run.queued { "waits" } else { "goes on" };
        format!("run {} still {state}", run.id)
    } else if settings::max_job_workers() == 0 {
        "audit_db.max_job_workers is 0".to_owned()
    } else if let Some(reason) = definition::why_not_connect(job.owner)? {
        definition::disable(job, reason)?;
        let role = identity::role_name(job.owner);
        Error::from(JobError::CannotConnect { role, reason })
            .failure()
            .message
    } else {
        if slots.count > 1 {
            let earlier = Slots {
                count: slots.count - 1,
                ..slots
            };
            let message = format!(
                "{} before {} because the server or its worker was not there",
                missed_times(earlier),
                clock::text(slots.last)
            );
            runs::missed(job, slots.first, &message)?;
        }
        return Ok(true);
    };
    let message = format!("{} because {because}", missed_times(slots));
    runs::missed(job, slots.first, &message)?;
    Ok(false)
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

fn note_handled(names: &[String], until: i64) -> Result<()> {
    if names.is_empty() {
        return Ok(());
    }
    as_extension_owner(|| {
        spi::execute(
            "INSERT INTO audit_db.job_slots AS s (name, handled_until)
             SELECT DISTINCT a.name, $2::pg_catalog.timestamptz FROM pg_catalog.unnest($1::pg_catalog.text[]) AS a(name)
             ON CONFLICT (name) DO UPDATE SET handled_until = excluded.handled_until",
            &[
                names.to_vec().into(),
                TimestampWithTimeZone::try_from(until).ok().into(),
            ],
        )?;
        Ok(())
    })
}
