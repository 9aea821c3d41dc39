//! One piece of work of a session, done in a worker of its own: each step is a transaction, and the session gets the rows as
//! they come. When the session is cancelled the worker stops after the step it is in.

use crate::error::{Error, Failure, Result};
use crate::partition::retire::{self, Outcome};
use crate::pg::queue::{Receiver, Sender};
use crate::pg::{clock, guc, identity, worker, xact};
use crate::shmem::workers;
use pgrx::pg_sys;
use serde::{Deserialize, Serialize};

const ENTRY: &str = "audit_db_task_main";

/// What the session asks for.
#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    /// Tables whose expired partitions go; the session has checked its right to each.
    pub tables: Vec<u32>,
    /// The session's own `audit_db.lock_timeout` and `audit_db.lock_retry`, in milliseconds.
    pub lock_timeout_ms: u64,
    pub lock_retry_ms: u64,
}

/// What the worker answers.
#[derive(Debug, Serialize, Deserialize)]
enum Message {
    Outcome(Outcome),
    Failed(Failure),
    Done,
}

/// Lets a worker drop expired partitions and waits for it.
pub fn drop_expired(request: &Request) -> Result<Vec<Outcome>> {
    let bytes = serde_json::to_vec(request).map_err(|error| Error::Internal(error.to_string()))?;
    let mut receiver = Receiver::start(ENTRY, "audit_db drop_expired_partitions", &bytes)?;
    let mut outcomes = Vec::new();
    let result = loop {
        let Some(message) = receiver.receive() else {
            break Err(Error::WorkerEnded);
        };
        match serde_json::from_slice(&message) {
            Ok(Message::Outcome(outcome)) => outcomes.push(outcome),
            Ok(Message::Done) => break Ok(outcomes),
            Ok(Message::Failed(failure)) => break Err(Error::Server(failure)),
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
    let single = request.tables.len() == 1;
    for table in request.tables {
        xact::report_activity(Some("drop expired partitions"));
        let (mut listening, mut slow) = (true, false);
        let clock_moved = workers::clock_jump(identity::my_database(), clock::reading());
        let done = retire::expired_of_table(table.into(), clock_moved, &mut |outcome| {
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
                let outcome =
                    xact::in_transaction(|| Ok(retire::table_failed(table.into(), &error)))?;
                listening = send(sender, &Message::Outcome(outcome));
            }
        }
        if !listening {
            return Ok(());
        }
    }
    Ok(())
}

fn send(sender: &mut Sender, message: &Message) -> bool {
    serde_json::to_vec(message).is_ok_and(|bytes| sender.send(&bytes))
}
