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
struct Jobs {
    /// Counts reservations: a process that comes late must not take a slot that was meant for another one.
    tickets: u32,
    slots: [Option<(u32, Running)>; MAX_RUNNING],
}

impl Default for Jobs {
    fn default() -> Self {
        Self {
            tickets: 0,
            slots: [None; MAX_RUNNING],
        }
    }
}

/// A reserved slot as the argument of a process, and back.
const fn pack(index: usize, ticket: u32) -> usize {
    (ticket as usize) << 8 | index
}

const fn unpack(argument: usize) -> (usize, u32) {
    (argument & 0xff, (argument >> 8) as u32)
}

// SAFETY: plain data of fixed size without pointers.
unsafe impl PGRXSharedMemory for Jobs {}

// SAFETY: the name is ours alone.
static JOBS: PgLwLock<Jobs> = unsafe { PgLwLock::new(c"audit_db jobs") };

pub(super) fn request() {
    pg_shmem_init!(JOBS);
}

/// Takes a slot for a run. Returns what its process gets as its argument. `None`: all are taken.
pub fn reserve(running: Running) -> Option<usize> {
    let mut jobs = JOBS.exclusive();
    let index = jobs.slots.iter().position(Option::is_none)?;
    jobs.tickets = jobs.tickets.wrapping_add(1);
    let ticket = jobs.tickets;
    jobs.slots[index] = Some((ticket, running));
    Some(pack(index, ticket))
}

/// The process of a run has started. `None`: it comes too late.
pub fn attach(argument: usize, pid: i32) -> Option<Running> {
    let (index, ticket) = unpack(argument);
    let mut jobs = JOBS.exclusive();
    let (reserved, running) = jobs.slots.get_mut(index)?.as_mut()?;
    if *reserved != ticket || running.pid != 0 {
        return None;
    }
    running.pid = pid;
    Some(*running)
}

/// The process of a run ends.
pub fn leave(argument: usize, pid: i32) {
    let (index, _) = unpack(argument);
    let mut jobs = JOBS.exclusive();
    if let Some(slot) = jobs.slots.get_mut(index)
        && slot.is_some_and(|(_, running)| running.pid == pid)
    {
        *slot = None;
    }
}

/// A run will get no process after all: whoever was to start it has not, or could not, or it must not come any more.
pub fn abandon(database: pg_sys::Oid, run: Option<i64>) {
    for slot in &mut JOBS.exclusive().slots {
        if slot.is_some_and(|(_, running)| {
            running.database == database
                && running.pid == 0
                && run.is_none_or(|run| run == running.run)
        }) {
            *slot = None;
        }
    }
}

/// What runs in a database.
pub fn running_in(database: pg_sys::Oid) -> Vec<Running> {
    let jobs = *JOBS.share();
    jobs.slots
        .into_iter()
        .flatten()
        .map(|(_, running)| running)
        .filter(|running| running.database == database)
        .collect()
}
