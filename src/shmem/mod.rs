//! What audit_db keeps in shared memory. The locks of `workers`, `jobs`, `exchanges`, `queue` and `statistics` are never held
//! together; nothing that can raise, wait or call SQL happens under them. `slow_ring` has none.
#![allow(unsafe_code)]

pub mod cache;
pub mod exchanges;
pub mod jobs;
pub mod queue;
pub mod slow_ring;
pub mod statistics;
pub mod workers;

use std::sync::atomic::{AtomicBool, Ordering};

/// Set in the postmaster while it preloads the library, and inherited by every process.
static PRELOADED: AtomicBool = AtomicBool::new(false);

pub fn is_preloaded() -> bool {
    PRELOADED.load(Ordering::Relaxed)
}

/// Asks for the memory. Only while libraries are preloaded.
pub fn request() {
    PRELOADED.store(true, Ordering::Relaxed);
    workers::request();
    cache::request();
    exchanges::request();
    jobs::request();
    queue::request();
    slow_ring::request();
    statistics::request();
}
