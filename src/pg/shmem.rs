//! A piece of shared memory whose size is known only when the settings are, with locks of its own; and conditions to wait
//! for in shared memory.

use pgrx::PgSharedMemoryInitialization;
use pgrx::pg_sys;
use std::ffi::{CStr, c_long};
use std::sync::atomic::{AtomicPtr, Ordering};
use std::time::Duration;

/// The server's lock for making structures in shared memory: its place in the array of fixed locks, in 14 to 18.
const ADDIN_SHMEM_INIT_LOCK: usize = 21;

/// The memory. Declare it as a static, and request it with `pg_shmem_init!(AREA = ())`.
pub struct Area {
    name: &'static CStr,
    size: fn() -> usize,
    locks: u16,
    /// Fills fresh memory, which may hold anything.
    fill: unsafe fn(*mut u8),
    address: AtomicPtr<u8>,
    first_lock: AtomicPtr<pg_sys::LWLockPadded>,
}

impl Area {
    /// # Safety
    /// The name must be used once. `fill` must make what it is given, of the size that `size` says, valid.
    pub const unsafe fn new(
        name: &'static CStr,
        size: fn() -> usize,
        locks: u16,
        fill: unsafe fn(*mut u8),
    ) -> Self {
        Self {
            name,
            size,
            locks,
            fill,
            address: AtomicPtr::new(std::ptr::null_mut()),
            first_lock: AtomicPtr::new(std::ptr::null_mut()),
        }
    }

    /// Where the memory is; aligned to eight bytes at least. Only with the library preloaded.
    pub fn address(&self) -> *mut u8 {
        self.address.load(Ordering::Relaxed)
    }

    /// Takes the first lock, alone. While it is held nothing may raise, wait or call SQL.
    pub fn lock(&self) -> Held {
        self.lock_at(0)
    }

    /// The same with another of the area's locks.
    pub fn lock_at(&self, index: usize) -> Held {
        self.acquire(index, pg_sys::LWLockMode::LW_EXCLUSIVE)
    }

    /// The same beside others who only read.
    pub fn lock_shared_at(&self, index: usize) -> Held {
        self.acquire(index, pg_sys::LWLockMode::LW_SHARED)
    }

    fn acquire(&self, index: usize, mode: pg_sys::LWLockMode::Type) -> Held {
        assert!(index < usize::from(self.locks));
        // SAFETY: set at the server's start, before any process that could come here; as many were asked for.
        let lock = unsafe { &raw mut (*self.first_lock.load(Ordering::Relaxed).add(index)).lock };
        // SAFETY: a lock of the server's array.
        unsafe { pg_sys::LWLockAcquire(lock, mode) };
        Held(lock)
    }
}

/// The lock of an area, until this value is dropped.
pub struct Held(*mut pg_sys::LWLock);

impl Drop for Held {
    fn drop(&mut self) {
        // SAFETY: acquired by this process; an error cannot have happened in between, nothing under the lock raises.
        unsafe { pg_sys::LWLockRelease(self.0) };
    }
}

impl PgSharedMemoryInitialization for Area {
    type Value = ();

    unsafe fn on_shmem_request(&'static self) {
        // SAFETY: called by the server's hook while it sizes its shared memory.
        unsafe {
            pg_sys::RequestAddinShmemSpace((self.size)());
            if self.locks > 0 {
                pg_sys::RequestNamedLWLockTranche(self.name.as_ptr(), self.locks.into());
            }
        }
    }

    unsafe fn on_shmem_startup(&'static self, (): ()) {
        // SAFETY: called by the server's hook when shared memory is there; the lock keeps other processes away.
        unsafe {
            let init_lock = &raw mut (*pg_sys::MainLWLockArray.add(ADDIN_SHMEM_INIT_LOCK)).lock;
            pg_sys::LWLockAcquire(init_lock, pg_sys::LWLockMode::LW_EXCLUSIVE);
            let mut found = false;
            let address =
                pg_sys::ShmemInitStruct(self.name.as_ptr(), (self.size)(), &mut found).cast::<u8>();
            if !found {
                (self.fill)(address);
            }
            self.address.store(address, Ordering::Relaxed);
            if self.locks > 0 {
                let first = pg_sys::GetNamedLWLockTranche(self.name.as_ptr());
                self.first_lock.store(first, Ordering::Relaxed);
            }
            pg_sys::LWLockRelease(init_lock);
        }
    }
}

/// Something in shared memory that processes wait for.
#[repr(transparent)]
pub struct Condition(pg_sys::ConditionVariable);

impl Condition {
    /// # Safety
    /// The memory must be shared and writable; nobody may use the condition yet.
    pub unsafe fn init(condition: *mut Self) {
        // SAFETY: by contract; the types have the same layout.
        unsafe { pg_sys::ConditionVariableInit(condition.cast()) };
    }

    /// Wakes everybody who waits.
    pub fn broadcast(condition: *mut Self) {
        // SAFETY: a condition in shared memory was initialised at the server's start.
        unsafe { pg_sys::ConditionVariableBroadcast(condition.cast()) };
    }

    /// Waits until `ready` says so, looking whenever the condition is broadcast. `false`: the time is over. A cancel is raised.
    pub fn wait(condition: *mut Self, timeout: Duration, mut ready: impl FnMut() -> bool) -> bool {
        let started = std::time::Instant::now();
        // SAFETY: as above; the abort of the transaction ends a wait that an error left.
        unsafe {
            pg_sys::ConditionVariablePrepareToSleep(condition.cast());
            let done = loop {
                if ready() {
                    break true;
                }
                let left = timeout.saturating_sub(started.elapsed());
                if left.is_zero() {
                    break false;
                }
                let milliseconds = c_long::try_from(left.as_millis())
                    .unwrap_or(c_long::MAX)
                    .max(1);
                pg_sys::ConditionVariableTimedSleep(
                    condition.cast(),
                    milliseconds,
                    pg_sys::PG_WAIT_EXTENSION,
                );
            };
            pg_sys::ConditionVariableCancelSleep();
            done
        }
    }
}

#[cfg(feature = "pg14")]
unsafe extern "C" {
    /// Not in pgrx's bindings.
    static autovacuum_max_workers: std::ffi::c_int;
}

/// Most processes that can be connected to a database at a time.
pub fn max_backends() -> usize {
    // SAFETY: reads variables that are set before shared memory is sized.
    let count = unsafe {
        // 14 computes the sum later than it loads libraries.
        #[cfg(feature = "pg14")]
        let count = pg_sys::MaxConnections
            + autovacuum_max_workers
            + 1
            + pg_sys::max_worker_processes
            + pg_sys::max_wal_senders;
        #[cfg(not(feature = "pg14"))]
        let count = pg_sys::MaxBackends;
        count
    };
    usize::try_from(count).unwrap_or(0)
}

/// The place of this process among them, which is connected to a database.
pub fn my_place() -> usize {
    // SAFETY: both are set in every process that is connected to a database; MyProc points into the array.
    unsafe { pg_sys::MyProc.offset_from((*pg_sys::ProcGlobal).allProcs) as usize }
}

/// The same for any process: one that is not connected, or not yet, may have none.
pub fn my_place_if_any() -> Option<usize> {
    // SAFETY: where both are set, MyProc points into the array.
    unsafe {
        if pg_sys::MyProc.is_null() || pg_sys::ProcGlobal.is_null() {
            return None;
        }
        usize::try_from(pg_sys::MyProc.offset_from((*pg_sys::ProcGlobal).allProcs)).ok()
    }
}

/// What the process in a place waits for (0: nothing). `None`: another process has the place by now.
pub fn wait_event(place: usize, pid: i32) -> Option<u32> {
    // SAFETY: places are those of the server's array, whose entries stay mapped; words that their process may write meanwhile.
    unsafe {
        let process = (*pg_sys::ProcGlobal).allProcs.add(place);
        let wait = std::ptr::read_volatile(&raw const (*process).wait_event_info);
        (std::ptr::read_volatile(&raw const (*process).pid) == pid).then_some(wait)
    }
}

/// The names of a wait event: its type and itself.
pub fn wait_event_names(event: u32) -> Option<(String, String)> {
    // SAFETY: the functions take any number and return constant strings, or null.
    unsafe {
        let kind = pg_sys::pgstat_get_wait_event_type(event);
        let name = pg_sys::pgstat_get_wait_event(event);
        if kind.is_null() || name.is_null() {
            return None;
        }
        let text =
            |text: *const std::ffi::c_char| CStr::from_ptr(text).to_string_lossy().into_owned();
        Some((text(kind), text(name)))
    }
}

/// Sets the latch of the process that has this place now, if any.
pub fn wake_place(place: usize) {
    // SAFETY: places are those of the server's array, whose entries stay mapped; a latch too many is harmless.
    unsafe { pg_sys::SetLatch(&raw mut (*(*pg_sys::ProcGlobal).allProcs.add(place)).procLatch) };
}
