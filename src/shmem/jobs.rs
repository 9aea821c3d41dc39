//! Runs of jobs that have a process, or are about to get one.

use pgrx::lwlock::PgLwLock;
use pgrx::{PGRXSharedMemory, pg_guard, pg_shmem_init, pg_sys};

/// Runs of all databases that can go on at a time.
pub const MAX_RUNNING: usize = 128;

/// One of them.
#[derive(Clone, Copy, Debug)]
pub struct Running {
    pub database: pg_sys::Oid,
    /// The extension that has the run in its tables: one that is created anew counts from 1 again.
    pub extension: pg_sys::Oid,
    pub run: i64,
    pub owner: pg_sys::Oid,
    /// 0: the process has not started yet.
    pub pid: i32,
}

#[derive(Clone, Copy)]
struct Jobs([Option<Running>; MAX_RUNNING]);

impl Default for Jobs {
    fn default() -> Self {
        Self([None; MAX_RUNNING])
    }
}

// SAFETY: plain data of fixed size without pointers.
unsafe impl PGRXSharedMemory for Jobs {}

// SAFETY: the name is ours alone.
static JOBS: PgLwLock<Jobs> = unsafe { PgLwLock::new(c"audit_db jobs") };

pub(super) fn request() {
    pg_shmem_init!(JOBS);
}

/// Takes a slot for a run. `None`: all are taken.
pub fn reserve(running: Running) -> Option<usize> {
    let mut jobs = JOBS.exclusive();
    let index = jobs.0.iter().position(Option::is_none)?;
    jobs.0[index] = Some(running);
    Some(index)
}

/// The process of a run has started. `None`: it comes too late.
pub fn attach(index: usize, pid: i32) -> Option<Running> {
    let mut jobs = JOBS.exclusive();
    let slot = jobs
        .0
        .get_mut(index)?
        .as_mut()
        .filter(|slot| slot.pid == 0)?;
    slot.pid = pid;
    Some(*slot)
}

/// The process of a run ends.
pub fn leave(index: usize, pid: i32) {
    let mut jobs = JOBS.exclusive();
    if jobs.0[index].is_some_and(|slot| slot.pid == pid) {
        jobs.0[index] = None;
    }
}

/// A run will get no process after all: whoever was to start it has not, or could not.
pub fn abandon(database: pg_sys::Oid, run: Option<i64>) {
    for slot in &mut JOBS.exclusive().0 {
        if slot.is_some_and(|slot| {
            slot.database == database && slot.pid == 0 && run.is_none_or(|run| run == slot.run)
        }) {
            *slot = None;
        }
    }
}

/// What runs in a database.
pub fn running_in(database: pg_sys::Oid) -> Vec<Running> {
    let jobs = *JOBS.share();
    jobs.0
        .into_iter()
        .flatten()
        .filter(|slot| slot.database == database)
        .collect()
}
