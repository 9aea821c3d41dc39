//! The worker of one database: every `audit_db.maintenance_interval` it makes partitions ahead, empties default partitions
//! and applies retention, one table after the other; a failure in one is recorded and the others go on. In between, and between
//! two tables, it starts the other processes of its database: ingest worker, slow worker, jobs.

use crate::error::{Error, Result};
use crate::partition::maintain::{self, Memory};
use crate::partition::{events, managed, unfinished};
use crate::pg::worker::{Handle, Status};
use crate::pg::{catalog, clock, guc, identity, signal, worker, xact};
use crate::settings;
use crate::shmem::queue;
use crate::shmem::workers::{self, Ripe, State};
use crate::worker::jobs::Scheduler;
use crate::worker::slow_log::Keeper;
use crate::worker::state;
use audit_db_core::backoff::Backoff;
use pgrx::pg_sys;
use std::time::{Duration, Instant};

/// Entry point of a database's worker; the argument is its slot.
#[pgrx::pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn audit_db_worker_main(argument: pg_sys::Datum) {
    let index = argument.value();
    worker::install_signal_handlers();
    // Registered before connecting: it runs once the process has left its database, which DROP DATABASE waits for.
    worker::at_exit(worker_exit, index);
    let Some(database) = workers::claim(index, signal::my_pid()) else {
        return;
    };
    worker::connect_to_database(database);
    run(index);
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn worker_exit(_code: i32, index: pg_sys::Datum) {
    workers::leave(index.value(), signal::my_pid());
}

fn run(index: usize) {
    let mut due = Instant::now();
    let mut first = true;
    let mut memory = Memory::new();
    let mut slow = Child::default();
    let mut helpers = Helpers {
        ingest: Child::default(),
        jobs: Scheduler::new(index),
        statements: Keeper::new(),
    };
    // Every turn looks at everything there is to see before it waits: what came during a cycle is not missed.
    loop {
        if worker::reload_requested() {
            guc::reload_configuration();
            due = due.min(Instant::now() + settings::maintenance_interval());
            helpers.jobs.hurry();
        }
        if !extension_is_here(index) {
            // Who created the extension meanwhile has asked for a cycle: look again.
            let leave = workers::update(index, |slot| {
                let leave = !std::mem::take(&mut slot.cycle_wanted);
                if leave {
                    slot.state = State::Absent;
                    slot.finished = true;
                }
                leave
            });
            if leave {
                return;
            }
            continue;
        }
        if first {
            note(index, xact::in_transaction(|| state::remember_clock(index)));
            first = false;
        }
        // Events and jobs wait for no cycle.
        let helpers_due = helpers.tend(index);
        if Instant::now() >= due
            || workers::update(index, |slot| std::mem::take(&mut slot.cycle_wanted))
        {
            let more = cycle(index, &mut memory, &mut helpers);
            due = Instant::now();
            if !more {
                due += settings::maintenance_interval();
            }
            continue;
        }
        let slow_due = tend_slow(&mut slow, index);
        workers::update(index, |slot| slot.state = State::Idle);
        xact::report_activity(None);
        let next = slow_due.map_or(due, |slow| slow.min(due)).min(helpers_due);
        signal::wait(
            next.saturating_duration_since(Instant::now())
                .max(Duration::from_millis(1)),
        );
    }
}

/// What goes on beside the cycles.
struct Helpers {
    ingest: Child,
    jobs: Scheduler,
    statements: Keeper,
}

impl Helpers {
    /// Starts what is due. Returns when the next look is.
    fn tend(&mut self, index: usize) -> Instant {
        let ingest = tend_ingest(&mut self.ingest, index);
        let jobs = self.jobs.tend();
        let statements = self.statements.tend(|outcome| note(index, outcome));
        ingest
            .map_or(jobs, |ingest| ingest.min(jobs))
            .min(statements)
    }
}

/// Waits between restarts of a worker that did not come to its end.
const RESTART: Backoff = Backoff {
    base: Duration::from_secs(1),
    cap: Duration::from_secs(300),
};

/// A worker beside this one, as long as this one lives.
#[derive(Default)]
struct Child {
    handle: Option<Handle>,
    /// Ends in a row that were not its own.
    failures: u32,
    /// When it may be started again.
    again: Option<Instant>,
    /// How much had been done when it was started.
    done: u64,
    /// Whether the server had no slot for it the last time; said once.
    short: bool,
}

impl Child {
    /// Notices its end; `well`: whether that was its own.
    fn note_end(&mut self, well: impl FnOnce() -> bool) {
        if self
            .handle
            .as_ref()
            .is_some_and(|handle| handle.status() == Status::Stopped)
        {
            self.handle = None;
            if well() {
                self.failures = 0;
            } else {
                let delay = RESTART.delay(self.failures, signal::my_pid() as u64);
                self.failures = self.failures.saturating_add(1);
                self.again = Some(Instant::now() + delay);
            }
        }
    }

    fn start(&mut self, index: usize, handle: Option<Handle>) {
        self.again = None;
        self.handle = handle;
        let short = self.handle.is_none();
        if short && !std::mem::replace(&mut self.short, short) {
            note(index, Err(Error::NoWorkerSlot));
        }
        self.short = short;
        if short {
            self.again = Some(Instant::now() + Duration::from_secs(1));
        }
    }
}

/// Starts the slow worker where it is wanted, and again where it ended before its time. Returns when the next look is due.
fn tend_slow(slow: &mut Child, index: usize) -> Option<Instant> {
    slow.note_end(|| workers::get(index).slow_finished);
    if slow.again.is_some_and(|again| Instant::now() >= again) {
        slow.again = None;
        workers::update(index, |slot| slot.slow_wanted = true);
    }
    if slow.handle.is_none() && workers::take_slow_wanted(index) {
        slow.start(index, worker::Role::Slow.start(index));
    }
    slow.again
}

/// The same for the ingest worker, which is wanted whenever there are events.
fn tend_ingest(ingest: &mut Child, index: usize) -> Option<Instant> {
    let database = identity::my_database();
    let done = ingest.done;
    // One that has stored something is started again at once.
    ingest.note_end(|| !queue::needs_worker(database) || queue::done(database) > done);
    if ingest.again.is_some_and(|again| Instant::now() < again) {
        return ingest.again;
    }
    if ingest.handle.is_none() && queue::needs_worker(database) && workers::get(index).held_by == 0
    {
        ingest.done = queue::done(database);
        ingest.start(index, worker::Role::Ingest.start(index));
    }
    ingest.again
}

fn extension_is_here(index: usize) -> bool {
    match xact::in_transaction(|| Ok(catalog::extension_exists())) {
        Ok(exists) => exists,
        Err(error) => {
            workers::record_error(index, &error.failure().message);
            true
        }
    }
}

/// One round over all managed tables. `true`: there is more to do at once.
fn cycle(index: usize, memory: &mut Memory, helpers: &mut Helpers) -> bool {
    let begun = Instant::now();
    xact::report_activity(Some("maintenance cycle"));
    let clock_moved = workers::begin_cycle(index, clock::reading());
    let mut last_error = None;
    let (mut more, mut slow) = (false, false);
    let (mut repair, mut finish) = (Vec::new(), Vec::new());
    match xact::in_transaction(managed::oids_without_dropped) {
        Ok(tables) => {
            for table in &tables {
                helpers.tend(index);
                let turn = maintain::table(*table, clock_moved, memory, &mut |_| {});
                last_error = turn.error.or(last_error);
                more |= turn.more;
                slow |= turn.slow;
                repair.extend(turn.repair.then_some(*table));
                finish.extend(turn.finish.then_some(*table));
            }
            memory.cycle_ended(&tables);
            // Also of tables that are no longer managed.
            slow |= xact::in_transaction(unfinished::parents).is_ok_and(|left| !left.is_empty());
            if memory.is_time_for_records() {
                note(index, xact::in_transaction(events::purge));
                if clock_moved.is_none() {
                    note(index, xact::in_transaction(state::save_clock));
                }
            }
        }
        Err(error) => {
            error.warn();
            last_error = Some(error);
        }
    }
    let last_error = last_error.map_or(String::new(), |error| error.failure().message);
    workers::record_error(index, &last_error);
    workers::update(index, |slot| {
        slot.failures = 0;
        slot.slow_wanted |= slow;
        slot.ripe_for_repair = Ripe::of(&repair);
        slot.ripe_for_finish = Ripe::of(&finish);
        slot.cycle_micros = i64::try_from(begun.elapsed().as_micros()).ok();
    });
    more
}

fn note(index: usize, outcome: Result<()>) {
    if let Err(error) = outcome {
        let error: Error = error;
        workers::record_error(index, &error.failure().message);
        error.warn();
    }
}
