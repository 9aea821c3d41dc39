//! Work beside a user's statement, of which the statement must not notice anything.

use crate::pg::{signal, xact};
use pgrx::pg_sys;
use std::cell::UnsafeCell;
use std::ffi::c_int;

/// What a backend keeps for itself, to be reached from hooks without a look for other threads: there are none.
pub struct BackendLocal<T>(UnsafeCell<T>);

// SAFETY: a backend has one thread.
unsafe impl<T> Sync for BackendLocal<T> {}

impl<T> BackendLocal<T> {
    pub const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    /// Not to be kept across a call that may come here again.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)]
    pub fn get(&self) -> &mut T {
        // SAFETY: one thread; callers keep it no longer than said.
        unsafe { &mut *self.0.get() }
    }
}

/// Runs `body` in memory of its own, which is freed afterwards, and without interrupts. `None`: it raised something, which nobody
/// hears of.
pub fn contained<T>(body: impl FnOnce() -> T) -> Option<T> {
    // SAFETY: memory context, error context and levels of messages are put back, whatever happens; the context is deleted once.
    unsafe {
        let memory = pg_sys::CurrentMemoryContext;
        let errors = pg_sys::error_context_stack;
        pg_sys::error_context_stack = std::ptr::null_mut();
        // A notice (of a long name, of an output function) would be one that the statement did not give.
        let messages = (pg_sys::client_min_messages, pg_sys::log_min_messages);
        pg_sys::client_min_messages = pgrx::PgLogLevel::PANIC as c_int;
        pg_sys::log_min_messages = pgrx::PgLogLevel::PANIC as c_int;
        let mut own = std::ptr::null_mut();
        let outcome = signal::uninterrupted(|| {
            xact::catch(|| {
                own = pg_sys::AllocSetContextCreateInternal(
                    pg_sys::TopMemoryContext,
                    c"audit_db contained".as_ptr(),
                    pg_sys::ALLOCSET_DEFAULT_MINSIZE as usize,
                    pg_sys::ALLOCSET_DEFAULT_INITSIZE as usize,
                    pg_sys::ALLOCSET_DEFAULT_MAXSIZE as usize,
                );
                pg_sys::MemoryContextSwitchTo(own);
                Ok(body())
            })
        });
        pg_sys::MemoryContextSwitchTo(memory);
        if !own.is_null() {
            pg_sys::MemoryContextDelete(own);
        }
        pg_sys::error_context_stack = errors;
        (pg_sys::client_min_messages, pg_sys::log_min_messages) = messages;
        outcome.ok()
    }
}
