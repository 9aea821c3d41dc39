//! Waiting for a word in shared memory: one system call to sleep and one to wake, for who waits a moment and is woken thousands of
//! times a second. Linux only. A signal ends the wait, but one that comes just before it does not: waits are short, and whoever waits
//! again looks for interrupts in between.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// The longest wait at a time.
const LONGEST: Duration = Duration::from_millis(100);

/// A word that processes wait for.
#[repr(transparent)]
pub struct Word(AtomicU32);

impl Word {
    pub fn get(&self) -> u32 {
        self.0.load(Ordering::Acquire)
    }

    pub fn set(&self, value: u32) {
        self.0.store(value, Ordering::Release);
    }

    pub fn increment(&self) {
        self.0.fetch_add(1, Ordering::Release);
    }

    /// Waits while the word has this value: until it is woken, a signal comes, or the time (at most 100 ms) is over. `true`: it was
    /// woken, or the value was another.
    pub fn wait_while(&self, value: u32, timeout: Duration) -> bool {
        let timeout = timeout.min(LONGEST);
        let time = libc::timespec {
            tv_sec: 0,
            tv_nsec: timeout.subsec_nanos().into(),
        };
        // SAFETY: the word is mapped as long as the process lives; the server's libraries install handlers that return.
        let outcome = unsafe {
            libc::syscall(
                libc::SYS_futex,
                self.0.as_ptr(),
                libc::FUTEX_WAIT,
                value,
                &raw const time,
            )
        };
        // EAGAIN: the value was another.
        outcome == 0 || std::io::Error::last_os_error().raw_os_error() == Some(libc::EAGAIN)
    }

    /// Wakes whoever waits.
    pub fn wake(&self) {
        // SAFETY: as above.
        unsafe { libc::syscall(libc::SYS_futex, self.0.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
    }
}
