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

/// Runs `body` in memory and with resources of its own, which are freed afterwards, and without interrupts. `None`: it raised
/// something, which nobody hears of.
pub fn contained<T>(body: impl FnOnce() -> T) -> Option<T> {
    // SAFETY: memory context, resource owner, error context, levels of messages and counters are put back, whatever happens; what is
    // made here is deleted once.
    unsafe {
        let memory = pg_sys::CurrentMemoryContext;
        let errors = pg_sys::error_context_stack;
        pg_sys::error_context_stack = std::ptr::null_mut();
        // A notice (of a long name, of an output function) would be one that the statement did not give.
        let messages = (pg_sys::client_min_messages, pg_sys::log_min_messages);
        pg_sys::client_min_messages = pgrx::PgLogLevel::PANIC as c_int;
        pg_sys::log_min_messages = pgrx::PgLogLevel::PANIC as c_int;
        // In a process that is about to exit an error would be FATAL, and leave what it still has to clean up.
        let exiting = pg_sys::proc_exit_inprogress;
        pg_sys::proc_exit_inprogress = false;
        let cancels = pg_sys::QueryCancelHoldoffCount;
        let resources = Resources::new();
        let mut own = std::ptr::null_mut();
        let outcome = signal::uninterrupted(|| {
            let outcome = xact::catch(|| {
                own = pg_sys::AllocSetContextCreateInternal(
                    pg_sys::TopMemoryContext,
                    c"audit_db contained".as_ptr(),
                    pg_sys::ALLOCSET_DEFAULT_MINSIZE as usize,
                    pg_sys::ALLOCSET_DEFAULT_INITSIZE as usize,
                    pg_sys::ALLOCSET_DEFAULT_MAXSIZE as usize,
                );
                pg_sys::MemoryContextSwitchTo(own);
                Ok(body())
            });
            resources.release(outcome.is_ok());
            outcome
        });
        pg_sys::MemoryContextSwitchTo(memory);
        if !own.is_null() {
            pg_sys::MemoryContextDelete(own);
        }
        pg_sys::QueryCancelHoldoffCount = cancels;
        pg_sys::proc_exit_inprogress = exiting;
        pg_sys::error_context_stack = errors;
        (pg_sys::client_min_messages, pg_sys::log_min_messages) = messages;
        outcome.ok()
    }
}

/// What is held of the server's: buffers, references to cached rows, locks.
struct Resources {
    before: pg_sys::ResourceOwner,
    own: pg_sys::ResourceOwner,
}

impl Resources {
    fn new() -> Self {
        // SAFETY: a child of the current owner, which is the current one until it is released. Where there is none (a process that
        // is about to exit) nothing is done that needs one.
        unsafe {
            let before = pg_sys::CurrentResourceOwner;
            if before.is_null() {
                return Self {
                    before,
                    own: before,
                };
            }
            let own = pg_sys::ResourceOwnerCreate(before, c"audit_db contained".as_ptr());
            pg_sys::CurrentResourceOwner = own;
            Self { before, own }
        }
    }

    fn release(self, done: bool) {
        use pg_sys::ResourceReleasePhase as Phase;
        // SAFETY: as for a subtransaction: in three phases; nobody who calls this holds a light-weight lock of his own.
        unsafe {
            if !done {
                pg_sys::LWLockReleaseAll();
            }
            pg_sys::CurrentResourceOwner = self.before;
            if self.own.is_null() {
                return;
            }
            for phase in [
                Phase::RESOURCE_RELEASE_BEFORE_LOCKS,
                Phase::RESOURCE_RELEASE_LOCKS,
                Phase::RESOURCE_RELEASE_AFTER_LOCKS,
            ] {
                pg_sys::ResourceOwnerRelease(self.own, phase, done, false);
            }
            pg_sys::ResourceOwnerDelete(self.own);
        }
    }
}

/// Gives a value to the current memory context, which drops it when it is freed itself, whatever happens until then.
pub fn owned_by_context<T>(value: T) -> *mut T {
    pgrx::PgMemoryContexts::CurrentMemoryContext.leak_and_drop_on_delete(value)
}

/// A part of such a value.
pub fn field_of<T, F>(value: *mut T, field: impl FnOnce(&mut T) -> &mut F) -> *mut F {
    // SAFETY: from `owned_by_context`, in the same call.
    field(unsafe { &mut *value })
}

/// Does something with such a value.
pub fn with<T>(value: *mut T, body: impl FnOnce(&mut T)) {
    // SAFETY: from `owned_by_context`, whose memory lives as long as the call.
    body(unsafe { &mut *value });
}
