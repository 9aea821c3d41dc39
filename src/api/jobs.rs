//! Jobs: `schedule_job` and its neighbours, and what stands behind the view `jobs`.

use super::required;
use crate::error::{Error, JobError, Result, or_raise};
use crate::jobs::definition::{self, Definition};
use crate::jobs::runs;
use crate::jobs::schedule;
use crate::jobs::task::{Kind, Task};
use crate::maintenance;
use crate::pg::guc::Scope;
use crate::pg::{catalog, identity, procedure, signal, xact};
use crate::settings;
use crate::shmem;
use crate::worker;
use pgrx::datum::{JsonB, TimestampWithTimeZone};
use pgrx::pg_sys::{self, Oid};
use pgrx::prelude::*;
use std::time::Duration;

const MAX_NAME: usize = 200;
/// How often `run_job` looks whether the run has ended: at first often, then less.
const POLLS: [Duration; 2] = [Duration::from_millis(5), Duration::from_millis(100)];

#[pg_extern(sql = "")]
fn schedule_job(
    name: Option<&str>,
    schedule: Option<&str>,
    task: Option<&str>,
    args: Option<JsonB>,
    time_zone: Option<&str>,
) -> i64 {
    super::changing("schedule_job", || {
        let name = required(name, "name")?;
        if name.is_empty() || name.chars().count() > MAX_NAME {
            return Err(JobError::BadName(name.to_owned()).into());
        }
        let owner = identity::current_role();
        let job = Definition {
            name: name.to_owned(),
            owner,
            schedule: required(schedule, "schedule")?.to_owned(),
            task: required(task, "task")?.to_owned(),
            args: required(args, "args")?.0.to_string(),
            time_zone: required(time_zone, "time_zone")?.to_owned(),
            enabled: true,
            disabled_reason: None,
            shipped: false,
            unchanged: false,
        };
        check(&job)?;
        if let Some(other) = definition::find(name)? {
            if other.unchanged {
                require_superuser_for_shipped(&other)?;
            } else if other.owner != owner {
                return Err(JobError::OthersJob {
                    name: other.name,
                    owner: identity::role_name(other.owner),
                }
                .into());
            }
        }
        if let Some(reason) = definition::why_not_connect(owner)? {
            let role = identity::role_name(owner);
            return Err(JobError::CannotConnect { role, reason }.into());
        }
        let id = definition::save(&job)?;
        worker::jobs_change_at_commit();
        Ok(id)
    })
}

/// All that can be wrong with a job.
fn check(job: &Definition) -> Result<()> {
    let (parsed, zone) = schedule::parse(&job.schedule, &job.time_zone)?;
    if parsed.next(schedule::now(), &zone).is_none() {
        return Err(JobError::NeverDue(job.schedule.clone()).into());
    }
    let task = Task::new(&job.task, &job.args)?;
    if task.kind == Kind::Optimize && !identity::is_superuser(job.owner) {
        return Err(JobError::ForSuperusers("schedule the task optimize").into());
    }
    if let Some(table) = &task.arguments.table {
        let oid = maintenance::named_table(table, job.owner)?;
        if task.kind == Kind::MaintainPartitions {
            crate::partition::managed::get(oid)?;
        }
    }
    Ok(())
}

fn require_superuser_for_shipped(job: &Definition) -> Result<()> {
    if identity::is_superuser(identity::current_role()) {
        Ok(())
    } else {
        Err(JobError::Shipped(job.name.clone()).into())
    }
}

/// A job that the caller may change and run.
fn own_job(name: Option<&str>) -> Result<Definition> {
    let name = required(name, "name")?;
    let Some(job) = definition::find(name)? else {
        return Err(JobError::NoSuchJob(name.to_owned()).into());
    };
    let role = identity::current_role();
    if job.unchanged {
        require_superuser_for_shipped(&job)?;
    } else if job.owner != role && !identity::is_superuser(role) {
        return Err(JobError::OthersJob {
            name: job.name,
            owner: identity::role_name(job.owner),
        }
        .into());
    }
    Ok(job)
}

#[pg_extern(sql = "")]
fn alter_job(
    name: Option<&str>,
    schedule: Option<&str>,
    args: Option<JsonB>,
    enabled: Option<bool>,
) {
    super::changing("alter_job", || {
        let mut job = own_job(name)?;
        let changed = schedule.is_some() || args.is_some();
        if let Some(schedule) = schedule {
            schedule.clone_into(&mut job.schedule);
        }
        if let Some(args) = args {
            job.args = args.0.to_string();
        }
        if let Some(enabled) = enabled {
            job.enabled = enabled;
            job.disabled_reason = None;
        }
        // One that can no longer run can still be switched off.
        if job.enabled || changed {
            check(&job)?;
        }
        if job.enabled
            && let Some(reason) = definition::why_not_connect(job.owner)?
        {
            let role = identity::role_name(job.owner);
            return Err(JobError::CannotConnect { role, reason }.into());
        }
        definition::save(&job)?;
        worker::jobs_change_at_commit();
        Ok(())
    });
}

#[pg_extern(sql = "")]
fn unschedule_job(name: Option<&str>) {
    super::changing("unschedule_job", || {
        let job = own_job(name)?;
        if !job.unchanged {
            definition::delete(&job.name, job.owner)?;
            runs::cancel_queued(&job.name, job.owner, "the job was unscheduled")?;
        }
        worker::jobs_change_at_commit();
        Ok(())
    });
}

#[pg_extern(sql = "")]
fn submit_job(name: Option<&str>) -> i64 {
    super::changing("submit_job", || submit(name, "audit_db.submit_job"))
}

fn submit(name: Option<&str>, what: &'static str) -> Result<i64> {
    if !shmem::is_preloaded() {
        return Err(Error::NotPreloaded { what });
    }
    let job = own_job(name)?;
    if let Some(reason) = definition::why_not_connect(job.owner)? {
        let role = identity::role_name(job.owner);
        return Err(JobError::CannotConnect { role, reason }.into());
    }
    let run = runs::enqueue(&[(&job, None)])?.pop().unwrap_or_default();
    worker::jobs_change_at_commit();
    Ok(run)
}

#[pg_extern(sql = "")]
fn run_job(name: Option<&str>, fcinfo: pg_sys::FunctionCallInfo) {
    if procedure::is_atomic(fcinfo) {
        Error::from(JobError::InTransactionBlock).raise();
    }
    if settings::max_job_workers() == 0 {
        Error::from(JobError::NoneAllowed).raise();
    }
    let name = name.map(str::to_owned);
    let run = super::changing("run_job", || submit(name.as_deref(), "audit_db.run_job"));
    procedure::commit();
    let mut poll = POLLS[0];
    let outcome = loop {
        if signal::wait_for_interrupt(poll) {
            signal::uninterrupted(|| cancel(run));
            signal::check();
        }
        // Others may wait for this session to notice something, as DROP DATABASE does.
        signal::serve();
        poll = (poll * 2).min(POLLS[1]);
        let looked = {
            let _scope = Scope::reading();
            xact::in_subtransaction(|| runs::outcome(run))
        };
        let outcome = match looked {
            Ok(outcome) => outcome,
            // Somebody holds the table: look again.
            Err(error) if error.is_lock_timeout() => None,
            Err(error) => {
                signal::uninterrupted(|| cancel(run));
                error.raise()
            }
        };
        procedure::commit();
        if let Some(outcome) = outcome {
            break outcome;
        }
    };
    if let Some(failure) = outcome.failure {
        Error::Server(failure).raise();
    }
    if outcome.status != "succeeded" {
        Error::from(JobError::NotRun {
            name: name.unwrap_or_default(),
            run,
            status: outcome.status,
            message: outcome.message,
        })
        .raise();
    }
}

/// The call is cancelled: so is its run.
fn cancel(run: i64) {
    let cancelled = {
        let _scope = Scope::reading();
        runs::cancel(run, "the call that waited for it was cancelled")
    };
    if let Err(error) = cancelled {
        error.warn();
    }
    procedure::commit();
    let running = shmem::jobs::running_in(identity::my_database());
    if let Some(slot) = running.iter().find(|slot| slot.run == run) {
        signal::cancel(slot.pid);
    }
}

#[pg_extern(sql = "")]
fn next_run(
    schedule_text: &str,
    time_zone: &str,
    after: TimestampWithTimeZone,
) -> Option<TimestampWithTimeZone> {
    let (schedule, zone) = or_raise(schedule::parse(schedule_text, time_zone));
    let next = schedule.next(i64::from(after), &zone)?;
    TimestampWithTimeZone::try_from(next).ok()
}

#[pg_extern(sql = "")]
#[allow(clippy::type_complexity)]
fn job_list() -> TableIterator<
    'static,
    (
        name!(name, String),
        name!(schedule, String),
        name!(task, String),
        name!(args, Option<JsonB>),
        name!(time_zone, String),
        name!(enabled, bool),
        name!(owner, Oid),
        name!(shipped, bool),
        name!(disabled_reason, Option<String>),
        name!(next_run, Option<TimestampWithTimeZone>),
    ),
> {
    let role = identity::current_role();
    let monitors = identity::role_named(c"pg_monitor")
        .is_some_and(|monitor| identity::has_privileges_of(role, monitor));
    let jobs = or_raise({
        let _scope = Scope::reading();
        definition::all()
    });
    let now = schedule::now();
    TableIterator::new(
        jobs.into_iter()
            .filter(move |job| {
                monitors
                    || catalog::role_exists(job.owner)
                        && identity::has_privileges_of(role, job.owner)
            })
            .map(move |job| {
                let next = schedule::parse(&job.schedule, &job.time_zone)
                    .ok()
                    .filter(|_| job.enabled)
                    .and_then(|(schedule, zone)| schedule.next(now, &zone))
                    .and_then(|next| TimestampWithTimeZone::try_from(next).ok());
                (
                    job.name,
                    job.schedule,
                    job.task,
                    serde_json::from_str(&job.args).ok().map(JsonB),
                    job.time_zone,
                    job.enabled,
                    job.owner,
                    job.shipped,
                    job.disabled_reason,
                    next,
                )
            }),
    )
}
