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
    let (mut looked_after, mut due) = (Vec::new(), Vec::new());
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
        let from = match handled.get(&job.name) {
            Some(handled) if *handled <= now + TRUSTED_STEP_BACK_MICROS => *handled,
            // New, or looked after by a clock that was far ahead.
            _ => {
                looked_after.push(job.name.clone());
                now
            }
        };
        let slots = schedule.due(from, now, &zone);
        if let Some(slots) = slots {
            looked_after.push(job.name.clone());
            // One that cannot be looked at does not keep the others from running.
            match xact::in_subtransaction(|| may_run(&job, slots, &open)) {
                Ok(true) => due.push((job, slots.last)),
                Ok(false) => {}
                Err(error) => error.warn(),
            }
        }
        let soonest = schedule.next(from.max(now), &zone);
        next = match (next, soonest) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
    }
    note_handled(&looked_after, now)?;
    let queued: Vec<_> = due.iter().map(|(job, slot)| (job, Some(*slot))).collect();
    for (id, (job, _)) in runs::enqueue(&queued)?.into_iter().zip(&due) {
        open.push(Open {
            id,
            name: job.name.clone(),
            owner: job.owner,
            queued: true,
        });
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

/// Whether a job that is due is to run, at the last of these times. What does not take place is put on record.
fn may_run(job: &Definition, slots: Slots, open: &[Open]) -> Result<bool> {
    let because = if let Some(run) = open.iter().find(|run| run.name == job.name) {
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
