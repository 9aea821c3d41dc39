//! The events of transactions. All of ours hang on one callback of the server: each statement that is a transaction of its own pays
//! for each of them.

use pgrx::pg_sys;
use std::ffi::c_void;
use std::sync::atomic::{AtomicU8, Ordering};

pub use pg_sys::XactEvent::{
    Type as Event, XACT_EVENT_ABORT as ABORT, XACT_EVENT_COMMIT as COMMIT,
    XACT_EVENT_PRE_COMMIT as PRE_COMMIT, XACT_EVENT_PRE_PREPARE as PRE_PREPARE,
    XACT_EVENT_PREPARE as PREPARE,
};

/// What has happened in this transaction that matters at its end: one byte for all, because every transaction looks at it.
static NEWS: AtomicU8 = AtomicU8::new(0);
/// Something failed that may not have been followed.
pub const FAILED: u8 = 1;
/// Workers have to hear of something.
pub const ANNOUNCED: u8 = 2;
/// Commands have changed what statements mean, or what is read is being recorded.
pub const CHANGED: u8 = 4;

/// The end of the transaction matters.
pub fn note(news: u8) {
    NEWS.fetch_or(news, Ordering::Relaxed);
}

/// Whether this has been noted.
#[inline]
pub fn has(news: u8) -> bool {
    NEWS.load(Ordering::Relaxed) & news != 0
}

/// It matters no more.
pub fn forget(news: u8) {
    NEWS.fetch_and(!news, Ordering::Relaxed);
}

/// Who wants to know. Nothing here may raise or panic, unless it is guarded.
pub trait Listener {
    /// Which news it is for.
    const NEWS: u8;
    /// Whether this transaction matters for another reason. Asked at each of its events.
    fn is_concerned() -> bool;
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
    if NEWS.load(Ordering::Relaxed) != 0
        || A::is_concerned()
        || B::is_concerned()
        || C::is_concerned()
    {
        tell::<A, B, C>(event);
    }
}

#[inline(never)]
extern "C-unwind" fn tell<A: Listener, B: Listener, C: Listener>(event: Event) {
    if has(A::NEWS) || A::is_concerned() {
        A::event(event);
    }
    if has(B::NEWS) || B::is_concerned() {
        B::event(event);
    }
    if has(C::NEWS) || C::is_concerned() {
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
