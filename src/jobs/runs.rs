//! Every run of a job: a row of `audit_db.job_runs`, which is the queue and the history. All of it with the rights of the
//! extension's owner.

use crate::error::{Ending, Failure, JobError, Result};
use crate::jobs::definition::Definition;
use crate::partition::managed::as_extension_owner;
use crate::pg::spi;
use crate::settings;
use pgrx::datum::TimestampWithTimeZone;
use pgrx::pg_sys::Oid;

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Succeeded,
    Failed,
    Cancelled,
}

impl Status {
    const fn name(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

fn time(micros: Option<i64>) -> Option<TimestampWithTimeZone> {
    micros.and_then(|micros| TimestampWithTimeZone::try_from(micros).ok())
}

/// Puts runs into the queue, each with the time that it was scheduled for, if any. Returns their numbers.
pub fn enqueue(runs: &[(&Definition, Option<i64>)]) -> Result<Vec<i64>> {
    if runs.is_empty() {
        return Ok(Vec::new());
    }
    let texts = |text: fn(&Definition) -> &String| -> Vec<String> {
        runs.iter().map(|(job, _)| text(job).clone()).collect()
    };
    let owners: Vec<Oid> = runs.iter().map(|(job, _)| job.owner).collect();
    let times: Vec<Option<TimestampWithTimeZone>> =
        runs.iter().map(|(_, slot)| time(*slot)).collect();
    as_extension_owner(|| {
        Ok(spi::written(
            "INSERT INTO audit_db.job_runs (name, owner, task, args, time_zone, scheduled_for)
             SELECT a.name, a.owner::pg_catalog.regrole, a.task, a.args::pg_catalog.jsonb, a.time_zone, a.slot
               FROM ROWS FROM (pg_catalog.unnest($1::pg_catalog.text[]), pg_catalog.unnest($2::pg_catalog.oid[]),
                               pg_catalog.unnest($3::pg_catalog.text[]), pg_catalog.unnest($4::pg_catalog.text[]),
                               pg_catalog.unnest($5::pg_catalog.text[]), pg_catalog.unnest($6::pg_catalog.timestamptz[]))
                    WITH ORDINALITY AS a(name, owner, task, args, time_zone, slot, place)
              ORDER BY a.place RETURNING id",
            &[
                texts(|job| &job.name).into(),
                owners.into(),
                texts(|job| &job.task).into(),
                texts(|job| &job.args).into(),
                texts(|job| &job.time_zone).into(),
                times.into(),
            ],
            |row| row.get::<i64>(1),
        )?
        .into_iter()
        .flatten()
        .collect())
    })
}

/// Puts on record what did not take place.
pub fn missed(job: &Definition, scheduled_for: i64, message: &str) -> Result<()> {
    as_extension_owner(|| {
        spi::execute(
            "INSERT INTO audit_db.job_runs (name, owner, task, args, time_zone, scheduled_for, finished, status, message)
             VALUES ($1, $2::pg_catalog.oid::pg_catalog.regrole, $3, $4::pg_catalog.jsonb, $5, $6, pg_catalog.clock_timestamp(), 'missed', $7)",
            &[
                job.name.as_str().into(),
                job.owner.into(),
                job.task.as_str().into(),
                job.args.as_str().into(),
                job.time_zone.as_str().into(),
                time(Some(scheduled_for)).into(),
                message.into(),
            ],
        )?;
        Ok(())
    })
}

/// A run that waits or goes on.
#[derive(Clone, Debug)]
pub struct Open {
    pub id: i64,
    pub name: String,
    pub owner: Oid,
    pub queued: bool,
}

/// All of them, in the order in which they came.
pub fn open() -> Result<Vec<Open>> {
    as_extension_owner(|| {
        spi::rows_of_kept(
            "SELECT id, name, owner::pg_catalog.oid, status = 'queued' FROM audit_db.job_runs
              WHERE status IN ('queued', 'running') ORDER BY id",
            &[],
            |row| {
                Ok(Open {
                    id: row.get(1)?.unwrap_or_default(),
                    name: row.get(2)?.unwrap_or_default(),
                    owner: row.get(3)?.unwrap_or(Oid::INVALID),
                    queued: row.get(4)?.unwrap_or(false),
                })
            },
        )
    })
}

/// What a run is to do.
#[derive(Clone, Debug)]
pub struct Run {
    pub id: i64,
    pub task: String,
    pub args: String,
    pub time_zone: String,
}

/// The process of a run takes it. `None`: it has been cancelled meanwhile.
pub fn claim(run: i64, owner: Oid, pid: i32) -> Result<Option<Run>> {
    as_extension_owner(|| {
        Ok(spi::written(
            "UPDATE audit_db.job_runs SET status = 'running', started = pg_catalog.clock_timestamp(), pid = $2
              WHERE id = $1 AND status = 'queued' AND owner::pg_catalog.oid = $3
             RETURNING id, task, args::pg_catalog.text, time_zone",
            &[run.into(), pid.into(), owner.into()],
            |row| {
                Ok(Run {
                    id: row.get(1)?.unwrap_or_default(),
                    task: row.get(2)?.unwrap_or_default(),
                    args: row.get(3)?.unwrap_or_default(),
                    time_zone: row.get(4)?.unwrap_or_default(),
                })
            },
        )?
        .pop())
    })
}

/// Adds steps, a JSON array.
pub fn add_steps(run: i64, steps: &str) -> Result<()> {
    as_extension_owner(|| {
        spi::execute(
            "UPDATE audit_db.job_runs SET steps = steps || $2::pg_catalog.jsonb WHERE id = $1",
            &[run.into(), steps.into()],
        )?;
        Ok(())
    })
}

/// A run ends; unless somebody else has said so already.
pub fn finish(run: i64, status: Status, failure: Option<&Failure>) -> Result<()> {
    as_extension_owner(|| {
        spi::execute(
            "UPDATE audit_db.job_runs
                SET status = $2, finished = pg_catalog.clock_timestamp(), sqlstate = $3, message = $4, detail = $5, hint = $6
              WHERE id = $1 AND status IN ('queued', 'running')",
            &[
                run.into(),
                status.name().into(),
                failure.map(|failure| failure.sqlstate.as_str()).into(),
                failure.map(|failure| failure.message.as_str()).into(),
                failure.and_then(|failure| failure.detail.as_deref()).into(),
                failure.and_then(|failure| failure.hint.as_deref()).into(),
            ],
        )?;
        Ok(())
    })
}

/// A run whose process is gone fails, if it has not ended. One that the process has not taken fails too: it would fail again.
pub fn end_for(run: &Open, ending: Ending) -> Result<()> {
    let ending = match ending {
        Ending::Process if run.queued => Ending::Start,
        other => other,
    };
    let error = crate::error::Error::from(JobError::Ended(ending));
    finish(run.id, Status::Failed, Some(&error.failure()))
}

/// Takes what waits of a job out of the queue.
pub fn cancel_queued(name: &str, owner: Oid, reason: &str) -> Result<()> {
    as_extension_owner(|| {
        spi::execute(
            "UPDATE audit_db.job_runs SET status = 'cancelled', finished = pg_catalog.clock_timestamp(), message = $2
              WHERE name = $1 AND owner::pg_catalog.oid = $3 AND status = 'queued'",
            &[name.into(), reason.into(), owner.into()],
        )?;
        Ok(())
    })
}

/// Takes one run out of the queue. Otherwise: the process that it runs in, if it does.
pub fn cancel(run: i64, reason: &str) -> Result<Option<i32>> {
    as_extension_owner(|| {
        spi::execute(
            "UPDATE audit_db.job_runs SET status = 'cancelled', finished = pg_catalog.clock_timestamp(), message = $2
              WHERE id = $1 AND status = 'queued'",
            &[run.into(), reason.into()],
        )?;
        Ok(spi::rows(
            "SELECT pid FROM audit_db.job_runs WHERE id = $1 AND status = 'running'",
            &[run.into()],
            |row| row.get::<i32>(1),
        )?
        .pop()
        .flatten())
    })
}

/// How a run ended.
#[derive(Debug)]
pub struct Outcome {
    pub status: String,
    /// The error that it ended with.
    pub failure: Option<Failure>,
    /// Why it did not take place.
    pub message: Option<String>,
}

/// How a run ended. `None`: it has not.
pub fn outcome(run: i64) -> Result<Option<Outcome>> {
    as_extension_owner(|| {
        let found = spi::rows(
            "SELECT status, sqlstate, message, detail, hint FROM audit_db.job_runs
              WHERE id = $1 AND status NOT IN ('queued', 'running')",
            &[run.into()],
            |row| {
                let message = row.get::<String>(3)?;
                let failure = match row.get::<String>(2)? {
                    Some(sqlstate) => Some(Failure {
                        sqlstate,
                        message: message.clone().unwrap_or_default(),
                        detail: row.get(4)?,
                        hint: row.get(5)?,
                    }),
                    None => None,
                };
                Ok(Outcome {
                    status: row.get(1)?.unwrap_or_default(),
                    failure,
                    message,
                })
            },
        )?;
        Ok(found.into_iter().next())
    })
}

/// Deletes what is older than `audit_db.job_history`, and sizes of indexes that are gone.
pub fn purge() -> Result<()> {
    let kept = settings::job_history().as_secs_f64();
    as_extension_owner(|| {
        spi::execute(
            "DELETE FROM audit_db.job_runs
              WHERE queued_at < pg_catalog.now() - pg_catalog.make_interval(secs => $1) AND status NOT IN ('queued', 'running')",
            &[kept.into()],
        )?;
        spi::execute(
            "DELETE FROM audit_db.index_sizes WHERE index NOT IN (SELECT oid FROM pg_catalog.pg_class)",
            &[],
        )?;
        Ok(())
    })
}
