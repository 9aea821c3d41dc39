//! The events of transactions. All of ours hang on one callback of the server: each statement that is a transaction of its own pays
//! for each of them.

use pgrx::pg_sys;
use std::ffi::c_void;

pub use pg_sys::XactEvent::{
    Type as Event, XACT_EVENT_ABORT as ABORT, XACT_EVENT_COMMIT as COMMIT,
    XACT_EVENT_PRE_COMMIT as PRE_COMMIT, XACT_EVENT_PRE_PREPARE as PRE_PREPARE,
    XACT_EVENT_PREPARE as PREPARE,
};

/// Who wants to know. Nothing here may raise or panic, unless it is guarded.
pub trait Listener {
    /// Whether this transaction matters. Asked at each of its events.
    fn has_news() -> bool;
    fn event(event: Event);
}

/// Registers the callback. Only while libraries are preloaded, once, before all others: of several callbacks the first that was
/// registered is the last to be called.
pub fn install<A: Listener, B: Listener, C: Listener>() {
    // SAFETY: the callback has the signature the server asks for.
    unsafe { pg_sys::RegisterXactCallback(Some(trampoline::<A, B, C>), std::ptr::null_mut()) };
}

unsafe extern "C-unwind" fn trampoline<A: Listener, B: Listener, C: Listener>(
    event: Event,
    _argument: *mut c_void,
) {
    if A::has_news() || B::has_news() || C::has_news() {
        tell::<A, B, C>(event);
    }
}

#[inline(never)]
extern "C-unwind" fn tell<A: Listener, B: Listener, C: Listener>(event: Event) {
    if A::has_news() {
        A::event(event);
    }
    if B::has_news() {
        B::event(event);
    }
    if C::has_news() {
        C::event(event);
    }
}

/// Whether all statements of the transaction see the same state.
pub fn is_repeatable() -> bool {
    // SAFETY: reads a variable.
    unsafe { pg_sys::XactIsoLevel >= pg_sys::XACT_REPEATABLE_READ as i32 }
}

pub fn is_serializable() -> bool {
    // SAFETY: reads a variable.
    unsafe { pg_sys::XactIsoLevel == pg_sys::XACT_SERIALIZABLE as i32 }
}
