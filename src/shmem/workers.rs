//! The workers of all databases: who runs, since when, and who must not run for a while.

use crate::error::{Error, Result};
use crate::pg::{clock, signal};
use audit_db_core::retention::{self, ClockReading};
use pgrx::lwlock::PgLwLock;
use pgrx::{PGRXSharedMemory, pg_guard, pg_shmem_init, pg_sys};

/// Databases that can have a worker. Each needs one of max_worker_processes, so more would not run.
pub const MAX_DATABASES: usize = 128;
const ERROR_BYTES: usize = 256;
/// Tables of a database that the slow worker is told about at a time; the others get their turn after them.
const RIPE: usize = 16;
/// Retention stays suspended this long after a clock was moved.
const SUSPENDED_MICROS: i64 = 86_400_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// The slot is free.
    Free,
    /// To be started by the launcher.
    Wanted,
    Starting,
    Idle,
    Running,
    /// Ended by an error; started again after a while.
    Failed,
    /// No background worker slot was free.
    NoSlot,
    /// Found its database without the extension.
    Absent,
}

impl State {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Wanted => "wanted",
            Self::Starting => "starting",
            Self::Idle => "idle",
            Self::Running => "running",
            Self::Failed => "failed",
            Self::NoSlot => "no worker slot",
            Self::Absent => "absent",
        }
    }
}

/// Some tables of a database.
#[derive(Clone, Copy)]
pub struct Ripe([pg_sys::Oid; RIPE]);

impl Ripe {
    /// As many of the tables as there is room for.
    pub fn of(tables: &[pg_sys::Oid]) -> Self {
        let mut ripe = Self([pg_sys::InvalidOid; RIPE]);
        for (place, table) in ripe.0.iter_mut().zip(tables) {
            *place = *table;
        }
        ripe
    }

    pub fn contains(&self, table: pg_sys::Oid) -> bool {
        self.0.contains(&table)
    }
}

/// One database. Times are microseconds of the server's epoch.
#[derive(Clone, Copy)]
pub struct Slot {
    pub database: pg_sys::Oid,
    pub pid: i32,
    pub state: State,
    pub started: i64,
    pub last_cycle: Option<ClockReading>,
    pub restarts: u32,
    /// Failures in a row, for the back-off.
    pub failures: u32,
    /// Not to be started before this time.
    pub not_before: i64,
    /// The session that keeps the worker out of its database, for DROP DATABASE and the like.
    pub held_by: i32,
    /// How long the last cycle took, in microseconds.
    pub cycle_micros: Option<i64>,
    /// The process that does what takes long; 0: none.
    pub slow_pid: i32,
    /// There is work for such a process.
    pub slow_wanted: bool,
    /// It is about to be started.
    pub slow_starting: bool,
    /// It has come to its end by itself.
    pub slow_finished: bool,
    /// The session that keeps it away, for DROP EXTENSION.
    pub slow_held_by: i32,
    /// Tables that have lacked an index for so long that nobody can be about to make it.
    pub ripe_for_repair: Ripe,
    /// Tables with a detach that has been pending for so long that nobody can be at it.
    pub ripe_for_finish: Ripe,
    /// Somebody asks for a cycle now.
    pub cycle_wanted: bool,
    /// Jobs have changed, or a run has ended.
    pub jobs_changed: bool,
    /// The worker was asked to leave its database: its end is no failure.
    pub told_to_leave: bool,
    /// The worker has found nothing to do and ends by itself: no failure either.
    pub finished: bool,
    /// A clock that was moved, by how much, and the boot clock when that was noticed.
    pub clock_jump: Option<(i64, i64)>,
    error: [u8; ERROR_BYTES],
    error_length: u16,
}

impl Slot {
    const EMPTY: Self = Self {
        database: pg_sys::InvalidOid,
        pid: 0,
        state: State::Free,
        started: 0,
        last_cycle: None,
        restarts: 0,
        failures: 0,
        not_before: 0,
        held_by: 0,
        cycle_micros: None,
        slow_pid: 0,
        slow_wanted: false,
        slow_starting: false,
        slow_finished: false,
        slow_held_by: 0,
        ripe_for_repair: Ripe([pg_sys::InvalidOid; RIPE]),
        ripe_for_finish: Ripe([pg_sys::InvalidOid; RIPE]),
        cycle_wanted: false,
        jobs_changed: false,
        told_to_leave: false,
        finished: false,
        clock_jump: None,
        error: [0; ERROR_BYTES],
        error_length: 0,
    };

    pub fn last_error(&self) -> Option<String> {
        let bytes = &self.error[..usize::from(self.error_length).min(ERROR_BYTES)];
        (!bytes.is_empty()).then(|| String::from_utf8_lossy(bytes).into_owned())
    }

    pub fn set_error(&mut self, text: &str) {
        let mut end = text.len().min(ERROR_BYTES);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        self.error[..end].copy_from_slice(&text.as_bytes()[..end]);
        self.error_length = end as u16;
    }
}

#[derive(Clone, Copy)]
pub struct Workers {
    launcher: i32,
    /// New databases may have come.
    rescan: bool,
    slots: [Slot; MAX_DATABASES],
}

impl Default for Workers {
    fn default() -> Self {
        Self {
            launcher: 0,
            rescan: false,
            slots: [Slot::EMPTY; MAX_DATABASES],
        }
    }
}

// SAFETY: plain data of fixed size without pointers.
unsafe impl PGRXSharedMemory for Workers {}

// SAFETY: the name is ours alone.
static WORKERS: PgLwLock<Workers> = unsafe { PgLwLock::new(c"audit_db workers") };

pub(super) fn request() {
    pg_shmem_init!(WORKERS);
}

/// A copy of all slots that are in use.
pub fn snapshot() -> Result<Vec<Slot>> {
    if !super::is_preloaded() {
        return Err(Error::NotPreloaded {
            what: "audit_db.workers",
        });
    }
    let all = *WORKERS.share();
    Ok(all
        .slots
        .into_iter()
        .filter(|slot| slot.state != State::Free && slot.state != State::Absent)
        .collect())
}

/// A copy of one slot.
pub fn get(index: usize) -> Slot {
    WORKERS.share().slots[index]
}

/// Changes one slot. `change` must not raise.
pub fn update<T>(index: usize, change: impl FnOnce(&mut Slot) -> T) -> T {
    change(&mut WORKERS.exclusive().slots[index])
}

/// The slot of a database, taken now if it has none. `None`: all are in use.
fn find_or_take(workers: &mut Workers, database: pg_sys::Oid) -> Option<&mut Slot> {
    let index = workers
        .slots
        .iter()
        .position(|slot| slot.state != State::Free && slot.database == database)
        .or_else(|| {
            workers
                .slots
                .iter()
                .position(|slot| slot.state == State::Free)
        })?;
    let slot = &mut workers.slots[index];
    if slot.state == State::Free {
        *slot = Slot {
            database,
            state: State::Absent,
            ..Slot::EMPTY
        };
    }
    Some(slot)
}

/// Asks the launcher for a worker in a database. `false`: there is no room.
pub fn want(database: pg_sys::Oid) -> bool {
    let launcher = {
        let mut workers = WORKERS.exclusive();
        let launcher = workers.launcher;
        let Some(slot) = find_or_take(&mut workers, database) else {
            return false;
        };
        if matches!(slot.state, State::Absent | State::Failed) {
            slot.state = State::Wanted;
            slot.not_before = 0;
        }
        slot.cycle_wanted = true;
        launcher
    };
    signal::wake(launcher);
    true
}

/// Wakes the worker of a database: to look whether the extension is still there, or for a cycle.
pub fn wake(database: pg_sys::Oid, cycle: bool) {
    let pid = {
        let mut workers = WORKERS.exclusive();
        workers
            .slots
            .iter_mut()
            .find(|slot| slot.state != State::Free && slot.database == database)
            .map_or(0, |slot| {
                slot.cycle_wanted |= cycle;
                slot.pid
            })
    };
    signal::wake(pid);
}

/// Has the worker of a database look at its jobs.
pub fn want_jobs(database: pg_sys::Oid) {
    let pid = {
        let mut workers = WORKERS.exclusive();
        workers
            .slots
            .iter_mut()
            .find(|slot| slot.state != State::Free && slot.database == database)
            .map_or(0, |slot| {
                slot.jobs_changed = true;
                slot.pid
            })
    };
    signal::wake(pid);
}

/// Makes the launcher look for new and gone databases.
pub fn request_scan() {
    let launcher = {
        let mut workers = WORKERS.exclusive();
        workers.rescan = true;
        workers.launcher
    };
    signal::wake(launcher);
}

/// The launcher says who it is, and asks whether a scan is due.
pub fn attach_launcher(pid: i32) {
    WORKERS.exclusive().launcher = pid;
}

pub fn take_scan_request() -> bool {
    std::mem::take(&mut WORKERS.exclusive().rescan)
}

/// Keeps the workers of a database away for this session. Returns those that run now, 0 for none.
pub fn hold(database: pg_sys::Oid, holder: i32) -> [i32; 2] {
    let mut workers = WORKERS.exclusive();
    find_or_take(&mut workers, database).map_or([0; 2], |slot| {
        slot.held_by = holder;
        slot.told_to_leave |= slot.pid != 0;
        [slot.pid, slot.slow_pid]
    })
}

/// Keeps the slow worker of a database away for this session. Returns the one that runs now, 0 for none.
pub fn hold_slow(database: pg_sys::Oid, holder: i32) -> i32 {
    let mut workers = WORKERS.exclusive();
    workers
        .slots
        .iter_mut()
        .find(|slot| slot.state != State::Free && slot.database == database)
        .map_or(0, |slot| {
            slot.slow_held_by = holder;
            slot.slow_pid
        })
}

/// The workers that run in a database, 0 for none.
pub fn pids_in(database: pg_sys::Oid) -> [i32; 2] {
    WORKERS
        .share()
        .slots
        .iter()
        .find(|slot| slot.state != State::Free && slot.database == database)
        .map_or([0; 2], |slot| [slot.pid, slot.slow_pid])
}

/// Ends every hold of this session. The database may be gone: the launcher looks before it starts a worker.
pub fn release(holder: i32) {
    let (launcher, worker) = {
        let mut workers = WORKERS.exclusive();
        workers.rescan = true;
        let mut worker = 0;
        for slot in &mut workers.slots {
            if slot.held_by == holder {
                slot.held_by = 0;
            }
            if slot.slow_held_by == holder {
                slot.slow_held_by = 0;
                // Its slow worker was ended in the middle of its work, perhaps.
                slot.slow_wanted = true;
                // A session holds that of its own database only.
                worker = slot.pid;
            }
        }
        (workers.launcher, worker)
    };
    signal::wake(worker);
    signal::wake(launcher);
}

/// Records why a worker does not run or what its last cycle met with.
pub fn record_error(index: usize, text: &str) {
    WORKERS.exclusive().slots[index].set_error(text);
}

/// By how much the wall clock was moved against the boot clock since the last cycle in a database, where that was noticed less
/// than a day ago: people need time to see it before retention goes on.
pub fn clock_jump(database: pg_sys::Oid, now: ClockReading) -> Option<i64> {
    let workers = WORKERS.share();
    let slot = workers
        .slots
        .iter()
        .find(|slot| slot.state != State::Free && slot.database == database)?;
    slot.last_cycle
        .and_then(|last| retention::clock_jump(last, now))
        .or_else(|| {
            slot.clock_jump
                .filter(|(_, noticed)| now.boot - noticed < SUSPENDED_MICROS)
                .map(|(moved, _)| moved)
        })
}

/// A cycle begins: remembers when, and a clock that was moved.
pub fn begin_cycle(index: usize, now: ClockReading) -> Option<i64> {
    let database = get(index).database;
    let moved = clock_jump(database, now);
    update(index, |slot| {
        let fresh = slot
            .last_cycle
            .and_then(|last| retention::clock_jump(last, now));
        if let Some(moved) = fresh {
            slot.clock_jump = Some((moved, now.boot));
        }
        slot.state = State::Running;
        slot.cycle_wanted = false;
        slot.last_cycle = Some(now);
    });
    moved
}

/// A worker takes its slot at its start. `None`: it must not run.
pub fn claim(index: usize, pid: i32) -> Option<pg_sys::Oid> {
    let now = clock::wall();
    let mut workers = WORKERS.exclusive();
    let slot = workers.slots.get_mut(index)?;
    if slot.state == State::Free || slot.held_by != 0 || slot.pid != 0 {
        slot.finished = true;
        return None;
    }
    slot.pid = pid;
    slot.finished = false;
    slot.state = State::Starting;
    slot.started = now;
    Some(slot.database)
}

/// Asks for the slow worker of a database.
pub fn want_slow(database: pg_sys::Oid) {
    let pid = {
        let mut workers = WORKERS.exclusive();
        workers
            .slots
            .iter_mut()
            .find(|slot| slot.state != State::Free && slot.database == database)
            .map_or(0, |slot| {
                slot.slow_wanted = true;
                slot.pid
            })
    };
    signal::wake(pid);
}

/// Whether there is work for the slow worker of a database, or it is at it.
pub fn is_slow_at_work(database: pg_sys::Oid) -> bool {
    WORKERS
        .share()
        .slots
        .iter()
        .find(|slot| slot.state != State::Free && slot.database == database)
        .is_some_and(|slot| slot.slow_wanted || slot.slow_pid != 0 || slot.slow_starting)
}

/// Whether a slow worker is to be started now; asks once.
pub fn take_slow_wanted(index: usize) -> bool {
    update(index, |slot| {
        let free = slot.slow_pid == 0 && slot.slow_held_by == 0 && slot.held_by == 0;
        let start = free && std::mem::take(&mut slot.slow_wanted);
        if start {
            slot.slow_finished = false;
            slot.slow_starting = true;
        }
        start
    })
}

/// A slow worker takes its place at its start. `None`: it must not run.
pub fn claim_slow(index: usize, pid: i32) -> Option<pg_sys::Oid> {
    let mut workers = WORKERS.exclusive();
    let slot = workers.slots.get_mut(index)?;
    if slot.state == State::Free
        || slot.held_by != 0
        || slot.slow_held_by != 0
        || slot.slow_pid != 0
    {
        return None;
    }
    slot.slow_pid = pid;
    slot.slow_starting = false;
    Some(slot.database)
}

/// A slow worker's process has ended. Runs in its exit path.
pub fn leave_slow(index: usize, pid: i32) {
    let waiting = {
        let mut workers = WORKERS.exclusive();
        workers.slots.get_mut(index).map_or(0, |slot| {
            if slot.slow_pid == pid {
                slot.slow_pid = 0;
            }
            slot.pid
        })
    };
    signal::wake(waiting);
}

/// A worker's process has ended. Runs in its exit path.
pub fn leave(index: usize, pid: i32) {
    let mut workers = WORKERS.exclusive();
    if let Some(slot) = workers.slots.get_mut(index)
        && slot.pid == pid
    {
        slot.pid = 0;
    }
}

/// Forgets a database.
pub fn free(index: usize) {
    WORKERS.exclusive().slots[index] = Slot::EMPTY;
}
