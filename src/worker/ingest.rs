//! The ingest worker of a database: stores queued events, batch after batch. Told to end, it stores what is queued first.

use crate::error::Error;
use crate::ingest::writer::Writer;
use crate::pg::{clock, guc, signal, worker, xact};
use crate::settings;
use crate::shmem::queue::{self, Look};
use crate::shmem::workers;
use audit_db_core::backoff::Backoff;
use pgrx::pg_sys;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Waits between attempts to store a batch.
const RETRY: Backoff = Backoff {
    base: Duration::from_millis(100),
    cap: Duration::from_secs(5),
};
/// Longest wait for one lock: whoever waits for an event sees what the worker waits for meanwhile.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);
/// With no event for so long the worker ends; the next event brings it back.
const IDLE: Duration = Duration::from_secs(600);

/// For so long after an event the worker waits in the way that costs who wakes it least.
const LIGHT: Duration = Duration::from_millis(300);

/// For so long after an event that somebody waited for it does not wait at all.
const LINGER: Duration = Duration::from_micros(100);

/// The database that this process must leave in order, for the exit path.
static DATABASE: AtomicU32 = AtomicU32::new(0);

/// Entry point; the argument is the database's slot.
#[pgrx::pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn audit_db_ingest_worker_main(argument: pg_sys::Datum) {
    let slot = workers::get(argument.value());
    worker::install_draining_handlers();
    // Once it has the queue, events come.
    if slot.held_by != 0 || slot.database == pg_sys::InvalidOid || worker::is_ending() {
        return;
    }
    DATABASE.store(slot.database.to_u32(), Ordering::Relaxed);
    worker::at_exit(ingest_exit, argument.value());
    let Some(index) = queue::claim(slot.database) else {
        return;
    };
    worker::connect_to_database(slot.database);
    guc::fix_for_worker(c"synchronous_commit", guc::at_least_flushed());
    limit_lock_waits();
    worker::begin_storing();
    Ingest::new(index).run();
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn ingest_exit(_code: i32, slot: pg_sys::Datum) {
    queue::leave(DATABASE.load(Ordering::Relaxed).into());
    signal::wake(workers::get(slot.value()).pid);
}

struct Ingest {
    index: usize,
    writer: Writer,
    /// Failures in a row.
    failures: u32,
    /// When the batch is tried again.
    again: Option<Instant>,
    /// When it must have ended.
    deadline: Option<Instant>,
}

impl Ingest {
    fn new(index: usize) -> Self {
        Self {
            index,
            writer: Writer::new(),
            failures: 0,
            again: None,
            deadline: None,
        }
    }

    fn run(mut self) {
        let mut busy = Instant::now();
        loop {
            if worker::reload_requested() {
                guc::reload_configuration();
                limit_lock_waits();
            }
            if worker::is_ending() && self.must_end() {
                return;
            }
            let now = Instant::now();
            let waits = self.again.filter(|again| *again > now);
            let ending = self.deadline.is_some();
            // Just after some events the next ones are near.
            let deep = now - busy > LIGHT || waits.is_some();
            let (look, due) = queue::look(self.index, deep, |look| {
                waits.is_none() && (look.in_flight || look.events > 0 && (ending || is_due(look)))
            });
            if due {
                self.store();
                busy = Instant::now();
                if look.urgent {
                    self.linger(busy);
                }
                continue;
            }
            if now - busy > IDLE && queue::end_if_empty(self.index) {
                return;
            }
            let timeout = match waits {
                Some(again) => again - now,
                None if look.events > 0 => until_due(&look),
                None => IDLE,
            };
            let timeout = match self.deadline {
                Some(deadline) => timeout.min(deadline.saturating_duration_since(now)),
                None => timeout,
            }
            .max(Duration::from_millis(1));
            if deep {
                xact::report_activity(None);
                signal::wait(timeout);
            } else {
                queue::wait_lightly(&look, self.index, timeout);
                signal::check();
            }
        }
    }

    /// Who waited for an event has the next one soon: to be awake then saves him the time of being woken. Whoever else wants the
    /// processor gets it.
    fn linger(&self, since: Instant) {
        while since.elapsed() < LINGER && !queue::has_events(self.index) {
            std::thread::yield_now();
        }
    }

    /// Told to end: whether all is stored, or time is up.
    fn must_end(&mut self) -> bool {
        if queue::end_if_empty(self.index) {
            return true;
        }
        let timeout = settings::shutdown_drain_timeout();
        let deadline = *self
            .deadline
            .get_or_insert_with(|| Instant::now() + timeout);
        let over = Instant::now() >= deadline;
        if over {
            let left = queue::statistics().queued;
            Error::NotDrained {
                events: left,
                waited_ms: timeout.as_millis(),
            }
            .warn();
        }
        over
    }

    fn store(&mut self) {
        xact::report_activity(Some("storing events"));
        if !queue::take(self.index) {
            return;
        }
        let mut limit = settings::shutdown_drain_timeout();
        if let Some(deadline) = self.deadline {
            limit = limit.min(deadline.saturating_duration_since(Instant::now()));
        }
        match self
            .writer
            .store(self.index, limit.max(Duration::from_millis(1)))
        {
            Ok(()) => {
                self.failures = 0;
                self.again = None;
            }
            Err(error) => {
                queue::note_error(self.index, &error.failure().message);
                // Once, and now and then: the log must not fill while a disk is full.
                if self.failures.is_power_of_two() || self.failures == 0 {
                    error.warn();
                }
                let delay = RETRY.delay(self.failures, signal::my_pid() as u64);
                self.failures = self.failures.saturating_add(1);
                self.again = Some(Instant::now() + delay);
            }
        }
    }
}

/// A batch that waits for a lock must end for that, and not for being slow.
fn limit_lock_waits() {
    let timeout = LOCK_TIMEOUT.min(settings::shutdown_drain_timeout() / 2);
    guc::fix_for_worker(c"lock_timeout", &format!("{}ms", timeout.as_millis()));
}

fn is_due(look: &Look) -> bool {
    look.urgent || look.events >= settings::batch_max_events() || until_due(look).is_zero()
}

/// How long the events may wait yet.
fn until_due(look: &Look) -> Duration {
    settings::batch_max_delay().saturating_sub(clock::elapsed(look.oldest))
}
