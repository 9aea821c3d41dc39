//! The launcher: finds the databases with the extension and keeps one worker in each.

use crate::capture;
use crate::error::Error;
use crate::pg::worker::{Handle, Status};
use crate::pg::{catalog, clock, guc, signal, worker, xact};
use crate::shmem::queue;
use crate::shmem::workers::{self, MAX_DATABASES, State};
use audit_db_core::backoff::Backoff;
use pgrx::pg_sys;
use std::collections::HashSet;
use std::time::{Duration, Instant};

/// Waits between restarts of a worker that ends with an error.
const RESTART: Backoff = Backoff {
    base: Duration::from_secs(1),
    cap: Duration::from_secs(300),
};
/// Workers that look for the extension at the same time: a server with hundreds of databases must not lose all its slots.
const MAX_PROBES: usize = 2;
/// Without news the launcher still looks this often.
const IDLE: Duration = Duration::from_secs(60);
/// How often to look whether a worker has ended that nobody watches, or whether one may be started at last.
const SOON: Duration = Duration::from_millis(100);
/// The next look after a scan.
const RESCANNED: Duration = Duration::from_millis(10);
/// How often what backends have counted is moved to where there is more room.
const MERGED: Duration = Duration::from_secs(1);
/// A worker that ran this long counts as healthy: its failures are forgotten.
const HEALTHY_MICROS: i64 = 600_000_000;

/// Entry point of the launcher.
#[pgrx::pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn audit_db_launcher_main(_argument: pg_sys::Datum) {
    worker::install_signal_handlers();
    worker::connect_to_no_database();
    worker::at_exit(launcher_exit, 0);
    workers::attach_launcher(signal::my_pid());
    Launcher::new().run();
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn launcher_exit(_code: i32, _argument: pg_sys::Datum) {
    workers::attach_launcher(0);
}

struct Launcher {
    handles: [Option<Handle>; MAX_DATABASES],
    /// Databases that a worker has looked into since this launcher started, or is about to.
    probed: HashSet<u32>,
    /// Databases that the last scan found.
    present: HashSet<u32>,
    scanned: Instant,
    /// The last scan found more databases than there was room for.
    crowded: bool,
    /// Whether the server had no slot for a worker the last time one was wanted; said once.
    short_of_slots: bool,
    /// When what backends have counted was moved last.
    merged: Instant,
    /// When to look after databases again.
    tend_at: Instant,
}

impl Launcher {
    fn new() -> Self {
        Self {
            handles: [const { None }; MAX_DATABASES],
            probed: HashSet::new(),
            present: HashSet::new(),
            scanned: Instant::now(),
            crowded: false,
            short_of_slots: false,
            merged: Instant::now(),
            tend_at: Instant::now(),
        }
    }

    fn run(mut self) -> ! {
        self.adopt();
        self.scan();
        loop {
            let next = self.tend();
            self.tend_at = Instant::now() + next;
            self.wait();
            if worker::reload_requested() {
                guc::reload_configuration();
            }
            // Now and then also unasked: a database may have become a template.
            if workers::take_scan_request() || self.scanned.elapsed() > IDLE {
                self.scan();
            }
        }
    }

    /// Looks at what statements do until something else is due.
    fn wait(&mut self) {
        loop {
            let left = self.tend_at.saturating_duration_since(Instant::now());
            let merge = self.merged.elapsed() >= MERGED;
            if merge {
                self.merged = Instant::now();
            }
            match capture::tend(merge) {
                Some(look) if look < left => {
                    if signal::wait(look) {
                        return;
                    }
                }
                _ => {
                    signal::wait(left);
                    return;
                }
            }
        }
    }

    /// After a launcher that died alone: ends the workers it left, so that each is watched by somebody.
    fn adopt(&mut self) {
        for index in 0..MAX_DATABASES {
            let slot = workers::get(index);
            if slot.state != State::Free {
                signal::terminate(slot.pid);
                workers::update(index, |slot| slot.state = State::Wanted);
            }
        }
    }

    /// Wants a worker in every database that none has looked into, and forgets databases that are gone.
    fn scan(&mut self) {
        let databases = match xact::in_transaction(|| Ok(catalog::connectable_databases())) {
            Ok(databases) => databases,
            Err(error) => {
                error.warn();
                return;
            }
        };
        self.scanned = Instant::now();
        self.present = databases.iter().map(|oid| oid.to_u32()).collect();
        self.probed.retain(|oid| self.present.contains(oid));
        for index in 0..MAX_DATABASES {
            let slot = workers::get(index);
            if slot.state == State::Free || self.present.contains(&slot.database.to_u32()) {
                continue;
            }
            // Gone, a template, or closed to connections.
            if self.handles[index].is_some() {
                signal::terminate(slot.pid);
            } else if slot.held_by == 0 {
                workers::free(index);
            }
        }
        self.forget_queues();
        let was_crowded = self.crowded;
        self.crowded = false;
        for database in databases {
            let database_oid = database.to_u32();
            if self.probed.contains(&database_oid) || workers::want(database) {
                continue;
            }
            self.crowded = true;
            if !was_crowded {
                Error::TooManyDatabases {
                    limit: MAX_DATABASES,
                    database: database_oid,
                }
                .warn();
            }
            break;
        }
    }

    /// Starts what should run, notices what has ended. Returns the time until something is due.
    fn tend(&mut self) -> Duration {
        let mut next = IDLE;
        let mut rescan = false;
        let mut probes = self.running_probes();
        for index in 0..MAX_DATABASES {
            if self.handles[index]
                .as_ref()
                .is_some_and(|handle| handle.status() == Status::Stopped)
            {
                self.handles[index] = None;
                rescan |= Self::note_end(index);
            }
            let slot = workers::get(index);
            if slot.state == State::Free || self.handles[index].is_some() {
                continue;
            }
            if slot.held_by != 0 {
                continue;
            }
            if slot.pid != 0 {
                // Left by a launcher that died; it was told to end.
                next = next.min(SOON);
                continue;
            }
            if slot.state == State::Absent {
                workers::free(index);
                rescan |= self.crowded;
                continue;
            }
            if !self.present.contains(&slot.database.to_u32()) {
                // Wanted by a session in a template, or a database that is newer than the last scan.
                rescan = true;
                continue;
            }
            let wait = slot.not_before - clock::wall();
            if wait > 0 {
                next = next.min(Duration::from_micros(wait as u64));
            } else if probes >= MAX_PROBES {
                // Nobody tells when one has found the extension and goes on to its work.
                next = next.min(SOON);
            } else {
                self.probed.insert(slot.database.to_u32());
                if self.start(index) {
                    probes += 1;
                } else {
                    next = next.min(Duration::from_secs(1));
                }
            }
        }
        if rescan {
            self.scan();
            // What the scan wanted is started at once.
            next = next.min(RESCANNED);
        }
        next
    }

    /// Events of databases that were dropped.
    fn forget_queues(&self) {
        let queued = queue::databases();
        if queued
            .iter()
            .all(|database| self.present.contains(&database.to_u32()))
        {
            return;
        }
        match xact::in_transaction(|| {
            Ok(queued
                .into_iter()
                .filter(|database| !catalog::database_exists(*database))
                .collect::<Vec<_>>())
        }) {
            Ok(gone) => queue::forget(&gone),
            Err(error) => error.warn(),
        }
    }

    /// Workers that have not yet found out whether the extension is there.
    fn running_probes(&self) -> usize {
        (0..MAX_DATABASES)
            .filter(|index| {
                self.handles[*index].is_some()
                    && matches!(workers::get(*index).state, State::Wanted | State::Starting)
            })
            .count()
    }

    fn start(&mut self, index: usize) -> bool {
        match worker::Role::Database.start(index) {
            Some(handle) => {
                self.handles[index] = Some(handle);
                self.short_of_slots = false;
                true
            }
            None => {
                workers::update(index, |slot| slot.state = State::NoSlot);
                workers::record_error(
                    index,
                    "no background worker slot was free; raise max_worker_processes",
                );
                if !self.short_of_slots {
                    Error::NoWorkerSlot.warn();
                    self.short_of_slots = true;
                }
                false
            }
        }
    }

    /// A worker has ended: without the extension its slot is free, else it comes back after a while. Returns whether the
    /// database itself may be gone.
    fn note_end(index: usize) -> bool {
        let now = clock::wall();
        workers::update(index, |slot| {
            let by_itself = std::mem::take(&mut slot.finished);
            if std::mem::take(&mut slot.told_to_leave) || by_itself {
                if slot.state != State::Absent {
                    slot.state = State::Wanted;
                    slot.not_before = 0;
                }
                return !by_itself;
            }
            slot.set_error("the worker ended unexpectedly; see the server log");
            if now - slot.started > HEALTHY_MICROS {
                slot.failures = 0;
            }
            let delay = RESTART.delay(slot.failures, now as u64);
            slot.state = State::Failed;
            slot.failures = slot.failures.saturating_add(1);
            slot.restarts = slot.restarts.saturating_add(1);
            slot.not_before = now + delay.as_micros() as i64;
            true
        })
    }
}
