//! Waiting, and waking other processes.

use pgrx::pg_sys;
use std::ffi::c_long;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Waits until somebody sets this process's latch (`true`) or the time is over. A cancel or termination that came meanwhile is
/// raised.
pub fn wait(timeout: Duration) -> bool {
    let events = pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
    let milliseconds = c_long::try_from(timeout.as_millis()).unwrap_or(c_long::MAX);
    // SAFETY: MyLatch is this process's own latch.
    let happened = unsafe {
        let happened = pg_sys::WaitLatch(
            pg_sys::MyLatch,
            events as i32,
            milliseconds,
            pg_sys::PG_WAIT_EXTENSION,
        );
        pg_sys::ResetLatch(pg_sys::MyLatch);
        happened
    };
    check();
    happened as u32 & pg_sys::WL_LATCH_SET != 0
}

/// The same without raising. Returns whether there is something to raise.
pub fn wait_for_interrupt(timeout: Duration) -> bool {
    let events = pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
    let milliseconds = c_long::try_from(timeout.as_millis()).unwrap_or(c_long::MAX);
    // SAFETY: as above.
    unsafe {
        pg_sys::WaitLatch(
            pg_sys::MyLatch,
            events as i32,
            milliseconds,
            pg_sys::PG_WAIT_EXTENSION,
        );
        pg_sys::ResetLatch(pg_sys::MyLatch);
        pg_sys::QueryCancelPending != 0 || pg_sys::ProcDiePending != 0
    }
}

/// Runs something that must be done although this session is to be cancelled.
pub fn uninterrupted<T>(body: impl FnOnce() -> T) -> T {
    // SAFETY: a counter of this process. An error sets it to nothing, so it is put back and not counted down.
    unsafe {
        let before = pg_sys::InterruptHoldoffCount;
        pg_sys::InterruptHoldoffCount = before + 1;
        let value = body();
        pg_sys::InterruptHoldoffCount = before;
        value
    }
}

/// Serves what has come but a cancel: termination, and what other processes wait for (barriers).
pub fn serve() {
    // SAFETY: the counter of holds on cancels alone. Nothing else that is served here comes back with an error.
    unsafe {
        pg_sys::QueryCancelHoldoffCount += 1;
        pgrx::check_for_interrupts!();
        pg_sys::QueryCancelHoldoffCount -= 1;
    }
}

/// A cancel that has come is too late.
pub fn forget_cancel() {
    // SAFETY: a variable of this process.
    unsafe { pg_sys::QueryCancelPending = 0 };
}

/// A cancel that hit something else than what it was meant for.
pub fn note_cancelled() {
    CANCELLED.store(true, Ordering::Relaxed);
}

/// Raises a cancel or termination that has come, as [`wait`] does, without waiting.
pub fn check() {
    // A cancel that hits a worker between two transactions has nothing to cancel, and must not end the worker.
    // SAFETY: reads and writes variables of this process.
    unsafe {
        if !pg_sys::IsTransactionState() && pg_sys::QueryCancelPending != 0 {
            pg_sys::QueryCancelPending = 0;
            CANCELLED.store(true, Ordering::Relaxed);
        }
    }
    pgrx::check_for_interrupts!();
}

static CANCELLED: AtomicBool = AtomicBool::new(false);

/// Whether somebody has cancelled this worker between two transactions.
pub fn was_cancelled() -> bool {
    check();
    CANCELLED.load(Ordering::Relaxed)
}

/// Shows in pg_stat_activity that this process waits, until the value is dropped.
pub struct WaitEvent(());

impl WaitEvent {
    pub fn new() -> Self {
        // SAFETY: writes a word of the process's own entry.
        unsafe { pg_sys::pgstat_report_wait_start(pg_sys::PG_WAIT_EXTENSION) };
        Self(())
    }
}

impl Drop for WaitEvent {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe { pg_sys::pgstat_report_wait_end() };
    }
}

/// Sets the latch of another process of this server; nothing happens when it is gone.
pub fn wake(pid: i32) {
    if pid == 0 {
        return;
    }
    // SAFETY: the entry of a process stays mapped even when the process ends meanwhile; setting a latch too many is harmless.
    unsafe {
        let process = pg_sys::BackendPidGetProc(pid);
        if !process.is_null() {
            pg_sys::SetLatch(&raw mut (*process).procLatch);
        }
    }
}

/// Asks a process of this server to end.
pub fn terminate(pid: i32) {
    if pid > 0 {
        // SAFETY: sends a signal; a process that is gone is no error worth reporting.
        unsafe { libc::kill(pid, libc::SIGTERM) };
    }
}

/// Cancels what a process of this server is doing.
pub fn cancel(pid: i32) {
    if pid > 0 {
        // SAFETY: as above.
        unsafe { libc::kill(pid, libc::SIGINT) };
    }
}

/// This process.
pub fn my_pid() -> i32 {
    // SAFETY: reads a variable.
    unsafe { pg_sys::MyProcPid }
}
