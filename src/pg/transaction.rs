//! The events of transactions. All of ours hang on one callback of the server: each statement that is a transaction of its own pays
//! for each of them.

use pgrx::pg_sys;
use std::ffi::c_void;

pub use pg_sys::XactEvent::{
    Type as Event, XACT_EVENT_ABORT as ABORT, XACT_EVENT_COMMIT as COMMIT,
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
pub fn install<A: Listener, B: Listener>() {
    // SAFETY: the callback has the signature the server asks for.
    unsafe { pg_sys::RegisterXactCallback(Some(trampoline::<A, B>), std::ptr::null_mut()) };
}

unsafe extern "C-unwind" fn trampoline<A: Listener, B: Listener>(
    event: Event,
    _argument: *mut c_void,
) {
    if A::has_news() || B::has_news() {
        tell::<A, B>(event);
    }
}

#[inline(never)]
extern "C-unwind" fn tell<A: Listener, B: Listener>(event: Event) {
    if A::has_news() {
        A::event(event);
    }
    if B::has_news() {
        B::event(event);
    }
}
