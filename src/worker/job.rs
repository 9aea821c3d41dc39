//! One run of a job, in a process of its own that is connected as the job's owner. What the user wrote runs with his rights; what
//! audit_db does itself runs step by step with the rights of each table's owner.

use crate::error::{Error, Failure, JobError, Result};
use crate::jobs::runs::{self, Run, Status};
use crate::jobs::schedule;
use crate::jobs::task::{Kind, Task};
use crate::maintenance::plan::{self, Options};
use crate::maintenance::{self, Limits, Step, analyze, milliseconds, reindex, vacuum};
use crate::partition::maintain::{self, Memory};
use crate::partition::managed;
use crate::partition::steps::{self, Place};
use crate::pg::clock::NamedZone;
use crate::pg::{catalog, clock, guc, identity, signal, utility, worker, xact};
use crate::settings;
use crate::shmem::jobs::Running;
use crate::shmem::{jobs, workers};
use pgrx::pg_sys::{self, Oid};
use std::time::{Duration, Instant};

/// Steps are written down this often while a run goes on.
const FLUSH: Duration = Duration::from_secs(1);
/// How often to look whether the slow worker has done its work.
const POLL: Duration = Duration::from_millis(50);
/// The slow worker waits no longer for others.
const SLOW_LIMIT: Duration = Duration::from_secs(4_000);

/// Entry point; the argument is the run's slot.
#[pgrx::pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn audit_db_job_main(argument: pg_sys::Datum) {
    let index = argument.value();
    worker::install_signal_handlers();
    worker::at_exit(job_exit, index);
    let Some(slot) = jobs::attach(index, signal::my_pid()) else {
        return;
    };
    // Without a role it would be connected as the one that has all rights.
    if slot.owner == Oid::INVALID {
        return;
    }
    worker::connect_as(slot.database, slot.owner);
    if let Err(error) = run(&slot) {
        error.warn();
    }
    workers::want_jobs(slot.database);
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn job_exit(_code: i32, index: pg_sys::Datum) {
    jobs::leave(index.value(), signal::my_pid());
}

const RECORD: &str = "audit_db.job_runs";

fn run(slot: &Running) -> Result<()> {
    let claimed = steps::in_transactions_with_retries(RECORD, |_scope| {
        if catalog::extension_oid() != slot.extension {
            return Ok(None);
        }
        runs::claim(slot.run, slot.owner, signal::my_pid())
    })?;
    let Some(run) = claimed else {
        return Ok(());
    };
    let mut record = Record::new(run.id);
    let begun = Instant::now();
    let outcome = execute(&run, slot.owner, &mut record);
    let (status, failure) = match outcome {
        Ok(()) => match record.failure.take() {
            None => (Status::Succeeded, None),
            Some(failure) => (Status::Failed, Some(failure)),
        },
        Err(error) => {
            let cancelled = matches!(error, Error::Job(JobError::Cancelled))
                || matches!(error, Error::Server(_))
                    && error.is_cancel_of_statement()
                    && record.limit.is_none_or(|limit| begun.elapsed() < limit);
            let status = if cancelled {
                Status::Cancelled
            } else {
                Status::Failed
            };
            (status, Some(error.failure()))
        }
    };
    // What was done is done: a cancel that comes now must not make it a failure.
    signal::forget_cancel();
    match end(slot, &record, status, failure.as_ref()) {
        Err(error) if error.is_cancel_of_statement() => {
            end(slot, &record, status, failure.as_ref())
        }
        ended => ended,
    }
}

fn end(slot: &Running, record: &Record, status: Status, failure: Option<&Failure>) -> Result<()> {
    steps::in_transactions_with_retries(RECORD, |_scope| {
        // Its record may have gone with the extension.
        if catalog::extension_oid() != slot.extension {
            return Ok(());
        }
        record.flush()?;
        runs::finish(slot.run, status, failure)
    })
}

/// What a run has done.
struct Record {
    run: i64,
    steps: Vec<Step>,
    flushed: Instant,
    /// The first one.
    failure: Option<Failure>,
    /// How long it may take.
    limit: Option<Duration>,
}

impl Record {
    fn new(run: i64) -> Self {
        Self {
            run,
            steps: Vec::new(),
            flushed: Instant::now(),
            failure: None,
            limit: None,
        }
    }

    fn add(&mut self, step: Step) -> bool {
        if self.failure.is_none() {
            self.failure.clone_from(&step.failure);
        }
        self.steps.push(step);
        if self.flushed.elapsed() >= FLUSH {
            self.flushed = Instant::now();
            match xact::in_transaction(|| self.flush()) {
                Ok(()) => self.steps.clear(),
                Err(error) => {
                    if error.is_cancel_of_statement() {
                        signal::note_cancelled();
                    }
                    error.warn();
                }
            }
        }
        true
    }

    /// Writes what has not been written, inside a transaction; it is forgotten when that has committed.
    fn flush(&self) -> Result<()> {
        if self.steps.is_empty() {
            return Ok(());
        }
        let json = serde_json::to_string(&self.steps)
            .map_err(|error| Error::Internal(error.to_string()))?;
        runs::add_steps(self.run, &json)
    }
}

fn execute(run: &Run, owner: Oid, record: &mut Record) -> Result<()> {
    let task = xact::in_transaction(|| Task::new(&run.task, &run.args))?;
    if task.kind == Kind::Sql {
        let command = task.arguments.command.unwrap_or_default();
        let limit = match (task.timeout, identity::statement_timeout()) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        record.limit = limit;
        let begun = Instant::now();
        let done = utility::run_as_client(&command, limit)?;
        for completion in done {
            let rows = format!("{} rows", completion.rows);
            let step = Step::new("sql", "", &completion.tag).with_detail(rows);
            record.add(Step {
                duration_ms: milliseconds(begun.elapsed()),
                ..step
            });
        }
        return Ok(());
    }
    let zone = NamedZone::named(&run.time_zone)?;
    worker::fix_settings();
    // Commands at top level wait for others as long as they may; steps set their own timeout.
    guc::fix_for_worker(c"lock_timeout", "0");
    identity::become_role(xact::in_transaction(managed::extension_owner)?);
    let mut limits = Limits::from_settings(zone);
    limits.deadline = task.timeout.map(|timeout| Instant::now() + timeout);
    limits.min_bloat = task.arguments.min_bloat.unwrap_or(limits.min_bloat);
    limits.max_size = task.arguments.max_size.or(limits.max_size);
    if let Some(window) = task.window {
        limits.window = Some((window, zone));
    }
    builtin(&task, owner, &limits, record)
}

fn builtin(task: &Task, owner: Oid, limits: &Limits, record: &mut Record) -> Result<()> {
    if task.kind == Kind::Optimize && !settings::auto_optimization() {
        let off = "skip: audit_db.auto_optimization is off";
        record.add(Step::new("optimize", "", off));
        return Ok(());
    }
    let tables =
        xact::in_transaction(|| maintenance::tables(task.arguments.table.as_deref(), owner))?;
    match task.kind {
        Kind::MaintainPartitions => {
            let options = Options {
                analyze_tables: task.arguments.analyze_tables,
                update_statistics: task.arguments.update_statistics,
                reindex_if_needed: task.arguments.reindex_if_needed,
            };
            partitions(&tables, limits, record)?;
            statistics(&tables, options, limits, record)?;
            if options.reindex_if_needed {
                indexes(&tables, limits, record)?;
            }
            Ok(())
        }
        Kind::Analyze => statistics(&tables, ALL, limits, record),
        Kind::Reindex => {
            // Bloat is judged by the statistics, so these come first.
            statistics(&tables, ANALYZE, limits, record)?;
            indexes(&tables, limits, record)
        }
        Kind::Vacuum => {
            let mut due = Vec::new();
            for table in tables {
                due.extend(xact::in_transaction(|| vacuum::due(table))?);
            }
            let freeze = task.arguments.freeze;
            plan::vacuum_all(&due, freeze, limits, &mut |step| record.add(step)).map(|_| ())
        }
        Kind::Optimize => {
            statistics(&tables, ALL, limits, record)?;
            indexes(&tables, limits, record)
        }
        Kind::Sql => Err(Error::Internal("a command is no task of ours".into())),
    }
}

const ANALYZE: Options = Options {
    analyze_tables: true,
    update_statistics: false,
    reindex_if_needed: false,
};

const ALL: Options = Options {
    analyze_tables: true,
    update_statistics: true,
    reindex_if_needed: true,
};

/// Makes, empties and retires partitions, and waits for what the slow worker does.
fn partitions(tables: &[Oid], limits: &Limits, record: &mut Record) -> Result<()> {
    let database = identity::my_database();
    let mut memory = Memory::new();
    let mut slow = false;
    for table in tables {
        // More than one turn where many months are missing.
        loop {
            limits.left()?;
            let clock_moved = workers::clock_jump(database, clock::reading());
            let begun = Instant::now();
            let turn = maintain::table(*table, clock_moved, &mut memory, &mut |report| {
                record.add(report.into());
            });
            slow |= turn.slow;
            let by_somebody = |error: &Error| {
                error.is_cancel_of_statement() && begun.elapsed() < xact::STEP_LIMIT
            };
            if signal::was_cancelled() || turn.error.as_ref().is_some_and(by_somebody) {
                return Err(JobError::Cancelled.into());
            }
            if let Some(error) = turn.error
                && record.failure.is_none()
            {
                // One that no step stands for, as where nothing could be planned.
                let name = xact::in_transaction(|| Ok(catalog::qualified_name(*table)))?;
                let name = name.unwrap_or_else(|| table.to_u32().to_string());
                record.add(Step::new("maintenance", &name, "").done(begun, Err(error)));
            }
            if !turn.more {
                break;
            }
        }
    }
    if !slow {
        return Ok(());
    }
    let begun = Instant::now();
    xact::report_activity(Some("waiting for the slow worker"));
    workers::want_slow(database);
    while workers::is_slow_at_work(database) && begun.elapsed() < SLOW_LIMIT {
        signal::wait(POLL);
        limits.left()?;
        if signal::was_cancelled() {
            return Err(JobError::Cancelled.into());
        }
    }
    let waited = if workers::is_slow_at_work(database) {
        Err(Error::NoWorkerSlot)
    } else {
        Ok(None)
    };
    record.add(Step::new("slow worker", "", "waited for").done(begun, waited));
    Ok(())
}

fn statistics(
    tables: &[Oid],
    options: Options,
    limits: &Limits,
    record: &mut Record,
) -> Result<()> {
    for table in tables {
        let due = xact::in_transaction(|| analyze::due(*table, &analyze::Ahead::default()))?;
        let emit = &mut |step| record.add(step);
        if options.analyze_tables {
            plan::analyze_leaves(Place::Worker, &due.leaves, limits, emit)?;
        }
        if options.update_statistics {
            plan::analyze_parents(Place::Worker, &due.parents, limits, emit)?;
        }
    }
    Ok(())
}

fn indexes(tables: &[Oid], limits: &Limits, record: &mut Record) -> Result<()> {
    let mut due = Vec::new();
    for table in tables {
        due.extend(xact::in_transaction(|| reindex::due(*table, limits))?);
    }
    reindex::order(&mut due);
    plan::rebuild(&due, limits, schedule::now, &mut |step| record.add(step)).map(|_| ())
}
