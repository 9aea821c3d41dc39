//! What sessions tell the workers: that an extension came or went, that a table is now managed, that a database must be empty.

use crate::error::Error;
use crate::ingest;
use crate::pg::hooks::{self, Listeners};
use crate::pg::transaction;
use crate::pg::{catalog, identity, signal};
use crate::settings;
use crate::shmem::{self, jobs, queue, workers};
use pgrx::pg_sys::Oid;
use std::ffi::CStr;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

/// What this transaction tells when it commits.
static AT_COMMIT: AtomicU8 = AtomicU8::new(0);
const EXTENSION_CREATED: u8 = 1;
const EXTENSION_DROPPED: u8 = 2;
const DATABASES_CHANGED: u8 = 4;
const CYCLE_WANTED: u8 = 8;
const JOBS_CHANGED: u8 = 16;
/// This session keeps a worker out of its database; not only until it commits.
const HOLDING: u8 = 32;

/// How long DROP DATABASE and the like wait for the worker to leave; the server itself waits 5 s for others.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);

/// The part of the events of transactions that workers need.
pub struct Transactions;

impl transaction::Listener for Transactions {
    const NEWS: u8 = transaction::ANNOUNCED;

    #[inline]
    fn is_concerned() -> bool {
        false
    }

    fn event(event: transaction::Event) {
        hooks::transaction_event(event);
    }
}

fn announce(what: u8) {
    AT_COMMIT.fetch_or(what, Ordering::Relaxed);
    transaction::note(transaction::ANNOUNCED);
}

pub fn install() {
    hooks::install(Listeners {
        database_command: keep_worker_away,
        drop_extension: prepare_drop,
        swept_away: || Error::SweptAway.raise(),
        extension,
        databases_changed,
        transaction_end,
    });
}

/// Asks for a maintenance cycle in this database once the transaction has committed.
pub fn want_cycle_at_commit() {
    if shmem::is_preloaded() {
        announce(CYCLE_WANTED);
    }
}

/// Has the worker look at the jobs of this database once the transaction has committed.
pub fn jobs_change_at_commit() {
    if shmem::is_preloaded() {
        announce(JOBS_CHANGED);
    }
}

/// Which extension it is the worker finds out itself.
fn extension(created: bool) {
    let news = if created {
        EXTENSION_CREATED
    } else {
        EXTENSION_DROPPED
    };
    announce(news);
}

fn databases_changed() {
    announce(DATABASES_CHANGED);
}

fn keep_worker_away(name: &CStr) {
    let Some(database) = catalog::database_oid(name) else {
        return;
    };
    // Who may not run the command must not stop the worker either.
    if database == identity::my_database() || !identity::owns_database(database) {
        return;
    }
    // What is queued belongs to the database: a copy of it should have it.
    if let Some(queued) = queue::request_flush(database) {
        workers::wake(database, false);
        queue::wait_for_flush(queued, settings::shutdown_drain_timeout());
    }
    announce(HOLDING);
    for pid in workers::hold(database, signal::my_pid()) {
        signal::terminate(pid);
    }
    terminate_jobs(database);
    // What came since is stored first.
    signal::terminate(queue::worker_in(database));
    wait_until_left(LEAVE_TIMEOUT + settings::shutdown_drain_timeout(), || {
        workers::pids_in(database) == [0; 2]
            && queue::worker_in(database) == 0
            && no_job_runs(database)
    });
}

fn terminate_jobs(database: Oid) {
    // Those whose process is on its way find no slot.
    jobs::abandon(database, None);
    for job in jobs::running_in(database) {
        // A job may itself be what drops the extension.
        if job.pid != signal::my_pid() {
            signal::terminate(job.pid);
        }
    }
}

/// Whether no job runs any more. One that has come since is told to leave too.
fn no_job_runs(database: Oid) -> bool {
    terminate_jobs(database);
    jobs::running_in(database)
        .iter()
        .all(|job| job.pid == signal::my_pid())
}

/// DROP EXTENSION would wait for what takes long, and the record of runs goes with it. What is queued is stored first: nobody starts a worker for it afterwards.
fn prepare_drop() {
    if !identity::owns_extension() {
        return;
    }
    if let Err(error) = ingest::session::flush() {
        error.warn();
    }
    let database = identity::my_database();
    announce(HOLDING);
    signal::terminate(workers::hold_slow(database, signal::my_pid()));
    terminate_jobs(database);
    wait_until_left(LEAVE_TIMEOUT, || {
        workers::pids_in(database)[1] == 0 && no_job_runs(database)
    });
}

fn wait_until_left(timeout: Duration, left: impl Fn() -> bool) {
    let started = Instant::now();
    while !left() && started.elapsed() < timeout {
        signal::wait(Duration::from_millis(5));
    }
}

fn transaction_end(committed: bool) {
    let news = AT_COMMIT.swap(0, Ordering::Relaxed);
    transaction::forget(transaction::ANNOUNCED);
    if news & HOLDING != 0 {
        workers::release(signal::my_pid());
    }
    if news & !HOLDING == 0 || !committed {
        return;
    }
    let database = identity::my_database();
    if news & EXTENSION_CREATED != 0 {
        workers::want(database);
    }
    if news & (EXTENSION_DROPPED | CYCLE_WANTED) != 0 {
        workers::wake(database, news & CYCLE_WANTED != 0);
    }
    if news & JOBS_CHANGED != 0 {
        workers::want_jobs(database);
    }
    if news & DATABASES_CHANGED != 0 {
        workers::request_scan();
    }
}
