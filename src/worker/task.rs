//! One piece of work of a session, done in a worker of its own: each step is a transaction, and the session gets the rows as
//! they come. When the session is cancelled the worker stops after the step it is in.

use crate::error::{Error, Failure, Result};
use crate::jobs::{definition, runs};
use crate::maintenance::plan::{self, Options};
use crate::maintenance::{Emit, Limits, Step, analyze};
use crate::partition::maintain::{self, Memory};
use crate::partition::retire::{self, Outcome};
use crate::partition::steps::Place;
use crate::pg::clock::NamedZone;
use crate::pg::queue::{Receiver, Sender};
use crate::pg::{catalog, clock, guc, identity, worker, xact};
use crate::settings;
use crate::shmem::workers;
use pgrx::pg_sys::{self, Oid};
use serde::{Deserialize, Serialize};
use std::time::Instant;

const ENTRY: &str = "audit_db_task_main";

/// What the session asks for.
#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    pub work: Work,
    /// Tables that it is about; the session has checked its right to each.
    pub tables: Vec<u32>,
    /// The session's own `audit_db.lock_timeout` and `audit_db.lock_retry`, in milliseconds.
    lock_timeout_ms: u64,
    lock_retry_ms: u64,
}

#[derive(Debug, Serialize, Deserialize)]
pub enum Work {
    /// Expired partitions go.
    DropExpired,
    Maintain {
        options: Options,
        /// Only says what it would do.
        dry_run: bool,
        /// Whose job it is to rebuild indexes.
        role: u32,
    },
}

impl Request {
    pub fn new(work: Work, tables: &[Oid]) -> Self {
        Self {
            work,
            tables: tables.iter().map(|table| table.to_u32()).collect(),
            lock_timeout_ms: settings::lock_timeout().as_millis() as u64,
            lock_retry_ms: settings::lock_retry().as_millis() as u64,
        }
    }
}

/// What the worker answers.
#[derive(Debug, Serialize, Deserialize)]
enum Message {
    Outcome(Outcome),
    Step(Step),
    Failed(Failure),
    Done,
}

/// Lets a worker drop expired partitions and waits for it.
pub fn drop_expired(tables: &[Oid]) -> Result<Vec<Outcome>> {
    let mut outcomes = Vec::new();
    let request = Request::new(Work::DropExpired, tables);
    ask("audit_db drop_expired_partitions", &request, |message| {
        if let Message::Outcome(outcome) = message {
            outcomes.push(outcome);
        }
    })?;
    Ok(outcomes)
}

/// Lets a worker do what `maintain_partitions` does, and waits for it.
pub fn maintain(work: Work, tables: &[Oid]) -> Result<Vec<Step>> {
    let mut steps = Vec::new();
    let request = Request::new(work, tables);
    ask("audit_db maintain_partitions", &request, |message| {
        if let Message::Step(step) = message {
            steps.push(step);
        }
    })?;
    Ok(steps)
}

fn ask(name: &str, request: &Request, mut take: impl FnMut(Message)) -> Result<()> {
    let bytes = serde_json::to_vec(request).map_err(|error| Error::Internal(error.to_string()))?;
    let mut receiver = Receiver::start(ENTRY, name, &bytes)?;
    let result = loop {
        let Some(message) = receiver.receive() else {
            break Err(Error::WorkerEnded);
        };
        match serde_json::from_slice(&message) {
            Ok(Message::Done) => break Ok(()),
            Ok(Message::Failed(failure)) => break Err(Error::Server(failure)),
            Ok(message) => take(message),
            Err(error) => break Err(Error::Internal(error.to_string())),
        }
    };
    receiver.close();
    result
}

/// Entry point of a task; the argument is the shared segment that the session made.
#[pgrx::pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn audit_db_task_main(argument: pg_sys::Datum) {
    worker::install_signal_handlers();
    let Some((mut sender, request)) = Sender::attach(argument.value() as u32) else {
        return;
    };
    let Some(database) = worker::task_database() else {
        return;
    };
    worker::connect_to_database(database);
    let answer = match run(&mut sender, &request) {
        Ok(()) => Message::Done,
        Err(error) => Message::Failed(error.failure()),
    };
    send(&mut sender, &answer);
}

fn run(sender: &mut Sender, request: &[u8]) -> Result<()> {
    let request: Request =
        serde_json::from_slice(request).map_err(|error| Error::Internal(error.to_string()))?;
    for (name, value) in [
        (c"audit_db.lock_timeout", request.lock_timeout_ms),
        (c"audit_db.lock_retry", request.lock_retry_ms),
    ] {
        guc::fix_for_worker(name, &format!("{value}ms"));
    }
    let tables: Vec<Oid> = request.tables.into_iter().map(Oid::from).collect();
    match request.work {
        Work::DropExpired => retire(sender, &tables),
        Work::Maintain {
            options,
            dry_run,
            role,
        } => keep_up(sender, &tables, options, dry_run, role.into()),
    }
}

fn retire(sender: &mut Sender, tables: &[Oid]) -> Result<()> {
    let single = tables.len() == 1;
    for table in tables {
        xact::report_activity(Some("drop expired partitions"));
        let (mut listening, mut slow) = (true, false);
        let clock_moved = workers::clock_jump(identity::my_database(), clock::reading());
        let done = retire::expired_of_table(*table, clock_moved, &mut |outcome| {
            slow |= outcome.action == retire::QUEUED;
            listening = send(sender, &Message::Outcome(outcome));
            listening
        });
        if slow {
            workers::want_slow(identity::my_database());
        }
        match done {
            Ok(()) => {}
            Err(error) if single => return Err(error),
            // One sick table does not stop the others.
            Err(error) => {
                let outcome = xact::in_transaction(|| Ok(retire::table_failed(*table, &error)))?;
                listening = send(sender, &Message::Outcome(outcome));
            }
        }
        if !listening {
            return Ok(());
        }
    }
    Ok(())
}

fn keep_up(
    sender: &mut Sender,
    tables: &[Oid],
    options: Options,
    dry_run: bool,
    role: Oid,
) -> Result<()> {
    let single = tables.len() == 1;
    for table in tables {
        let mut listening = true;
        let mut emit = |step| {
            listening = send(sender, &Message::Step(step));
            listening
        };
        match keep_up_one(*table, options, dry_run, role, &mut emit) {
            Ok(()) => {}
            Err(error) if single => return Err(error),
            // One sick table does not stop the others.
            Err(error) => {
                let name = xact::in_transaction(|| Ok(catalog::qualified_name(*table)))?;
                let name = name.unwrap_or_else(|| table.to_u32().to_string());
                emit(Step::new("maintenance", &name, "").done(Instant::now(), Err(error)));
            }
        }
        if !listening {
            break;
        }
    }
    Ok(())
}

/// The plan is made first, so that what is done is what a dry run would have said.
fn keep_up_one(
    table: Oid,
    options: Options,
    dry_run: bool,
    role: Oid,
    emit: Emit<'_>,
) -> Result<()> {
    let database = identity::my_database();
    let clock_moved = workers::clock_jump(database, clock::reading());
    let limits = Limits::from_settings(NamedZone::named("UTC")?);
    let plan = xact::in_transaction(|| plan::plan(table, clock_moved, options, &limits))?;
    if dry_run {
        plan.steps().into_iter().all(emit);
        return Ok(());
    }
    let mut listening = true;
    let turn = maintain::table(table, clock_moved, &mut Memory::new(), &mut |report| {
        listening &= emit(report.into());
    });
    if turn.slow {
        workers::want_slow(database);
    }
    if !listening
        || !plan::analyze_leaves(Place::Worker, &plan.leaves, &limits, emit)?
        || !plan::analyze_leaves(
            Place::Worker,
            &xact::in_transaction(|| analyze::named(&plan.filled))?,
            &limits,
            emit,
        )?
        || !plan::analyze_parents(Place::Worker, &plan.parents, &limits, emit)?
        || plan.indexes.is_empty()
    {
        return Ok(());
    }
    xact::in_transaction(|| {
        let name = catalog::qualified_name(table).unwrap_or_default();
        let job = definition::reindex_of(&name, role);
        // One that waits will do the same.
        let waits = runs::open()?
            .iter()
            .any(|run| run.queued && run.name == job.name && run.owner == role);
        if !waits {
            runs::enqueue(&[(&job, None)])?;
        }
        Ok(())
    })?;
    workers::want_jobs(database);
    plan.indexes.iter().map(plan::queued).all(emit);
    Ok(())
}

fn send(sender: &mut Sender, message: &Message) -> bool {
    serde_json::to_vec(message).is_ok_and(|bytes| sender.send(&bytes))
}
