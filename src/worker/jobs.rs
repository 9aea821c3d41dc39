//! The scheduler of a database: a part of its worker. It puts into the queue what is due, starts a process for each run, and
//! never waits for one.

use crate::error::{Ending, Result};
use crate::jobs::runs::{self, Open};
use crate::jobs::schedule;
use crate::pg::worker::{Handle, Role, Status};
use crate::pg::{catalog, identity, xact};
use crate::settings;
use crate::shmem::jobs::{self, Running};
use crate::shmem::workers;
use audit_db_core::backoff::Backoff;
use pgrx::pg_sys::Oid;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Waits between looks that fail.
const RETRY: Backoff = Backoff {
    base: Duration::from_secs(1),
    cap: Duration::from_secs(60),
};
/// Runs that another process has started are looked after this often: nobody tells when they end.
const ADOPTED: Duration = Duration::from_millis(500);
/// The longest time between two looks: the clock may be moved.
const LONGEST: Duration = Duration::from_secs(60);
/// History is deleted this often.
const PURGE: Duration = Duration::from_secs(3_600);
/// With no slot for a process free, the next try comes after this time.
const SHORT_OF_SLOTS: Duration = Duration::from_secs(1);

pub struct Scheduler {
    slot: usize,
    /// The extension whose runs these are.
    extension: Oid,
    /// Runs that this process has started. None: one that it found when it came.
    started: HashMap<i64, Option<Handle>>,
    next: Instant,
    purged: Option<Instant>,
    failures: u32,
    /// Whether the server had no slot for a process the last time; said once.
    short: bool,
}

impl Scheduler {
    pub fn new(slot: usize) -> Self {
        Self {
            slot,
            extension: Oid::INVALID,
            started: HashMap::new(),
            next: Instant::now(),
            purged: None,
            failures: 0,
            short: false,
        }
    }

    /// Does what is due; cheap where nothing is. Returns when the next look is.
    pub fn tend(&mut self) -> Instant {
        let changed = workers::update(self.slot, |slot| std::mem::take(&mut slot.jobs_changed));
        let now = Instant::now();
        // After a failure nothing hurries it: what is wrong may well be wrong again.
        let news = self.failures == 0 && (changed || self.any_ended());
        if news || now >= self.next {
            self.next = match self.look() {
                Ok(wait) => {
                    self.failures = 0;
                    now + wait
                }
                Err(error) => {
                    error.warn();
                    workers::record_error(self.slot, &error.failure().message);
                    self.failures = self.failures.saturating_add(1);
                    now + RETRY.delay(self.failures, u64::from(self.failures))
                }
            };
        }
        self.next
    }

    /// Has the next call look, as after a change of settings.
    pub fn hurry(&mut self) {
        self.next = Instant::now();
    }

    fn any_ended(&self) -> bool {
        self.started
            .values()
            .flatten()
            .any(|handle| handle.status() == Status::Stopped)
    }

    fn look(&mut self) -> Result<Duration> {
        let database = identity::my_database();
        let extension = xact::in_transaction(|| Ok(catalog::extension_oid()))?;
        if extension == Oid::INVALID {
            return Ok(LONGEST);
        }
        let first = extension != self.extension;
        if first {
            // Whoever was to start them is gone.
            jobs::abandon(database, None);
            self.started.clear();
            for slot in running(extension) {
                self.started.insert(slot.run, None);
            }
        }
        self.reap(extension, first)?;
        self.extension = extension;
        // DROP EXTENSION is on its way.
        if workers::get(self.slot).slow_held_by != 0 {
            return Ok(SHORT_OF_SLOTS);
        }
        let free = settings::max_job_workers().saturating_sub(self.started.len());
        let clock = schedule::now();
        let started: Vec<i64> = self.started.keys().copied().collect();
        let found = xact::in_transaction(|| schedule::look(clock, &started, free))?;
        let mut wait = found.next.map_or(LONGEST, |next| {
            Duration::from_micros(u64::try_from(next - clock).unwrap_or(0)).min(LONGEST)
        });
        for run in found.start {
            if !self.start(&run)? {
                wait = wait.min(SHORT_OF_SLOTS);
                break;
            }
        }
        if self.started.values().any(Option::is_none) || self.any_ended() {
            wait = wait.min(ADOPTED);
        }
        if self.purged.is_none_or(|last| last.elapsed() >= PURGE) {
            self.purged = Some(Instant::now());
            xact::in_transaction(runs::purge)?;
        }
        Ok(wait)
    }

    /// Notices runs that have ended, and sees to it that each has an end on record.
    fn reap(&mut self, extension: Oid, first: bool) -> Result<()> {
        let database = identity::my_database();
        let there = running(extension);
        let ended: Vec<i64> = self
            .started
            .iter()
            .filter(|(run, handle)| match handle {
                Some(handle) => handle.status() == Status::Stopped,
                None => there.iter().all(|slot| slot.run != **run),
            })
            .map(|(run, _)| *run)
            .collect();
        if ended.is_empty() && !first {
            return Ok(());
        }
        for run in &ended {
            // A process that never came has not given its slot back.
            jobs::abandon(database, Some(*run));
        }
        // After a start nobody is at what is said to be going on. A row that somebody has locked has to wait.
        let mut locked = Vec::new();
        let mut problem = None;
        xact::in_transaction(|| {
            for run in runs::open()? {
                let ending = if ended.contains(&run.id) {
                    Ending::Process
                } else if first && !run.queued && !self.started.contains_key(&run.id) {
                    Ending::Server
                } else {
                    continue;
                };
                if let Err(error) = xact::in_subtransaction(|| runs::end_for(&run, ending)) {
                    locked.push(run.id);
                    problem = Some(error);
                }
            }
            Ok(())
        })?;
        if let Some(problem) = problem {
            if first {
                return Err(problem);
            }
            problem.warn();
        }
        for run in ended.iter().filter(|run| !locked.contains(run)) {
            self.started.remove(run);
        }
        Ok(())
    }

    /// `false`: there is no room at the moment.
    fn start(&mut self, run: &Open) -> Result<bool> {
        let database = identity::my_database();
        let handle = jobs::reserve(Running {
            database,
            extension: self.extension,
            run: run.id,
            owner: run.owner,
            pid: 0,
        })
        .and_then(|index| {
            let handle = Role::Job.start(index);
            if handle.is_none() {
                jobs::abandon(database, Some(run.id));
            }
            handle
        });
        let short = handle.is_none();
        if short && !std::mem::replace(&mut self.short, short) {
            let error = crate::error::Error::NoWorkerSlot;
            workers::record_error(self.slot, &error.failure().message);
            error.warn();
        }
        self.short = short;
        if let Some(handle) = handle {
            self.started.insert(run.id, Some(handle));
        }
        Ok(!short)
    }
}

/// Runs of this database that have a process, of one extension.
fn running(extension: Oid) -> Vec<Running> {
    let mut running = jobs::running_in(identity::my_database());
    running.retain(|slot| slot.extension == extension);
    running
}
