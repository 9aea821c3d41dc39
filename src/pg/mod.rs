//! The boundary to the server: the only place with raw server calls. What it offers upwards is safe to call.
#![allow(unsafe_code)]

pub mod analyze;
pub mod cached_functions;
pub mod catalog;
pub mod clock;
pub mod compat;
pub mod disk;
pub mod event_functions;
pub mod explain;
pub mod extension;
pub mod futex;
pub mod guc;
pub mod hooks;
pub mod identity;
pub mod insert;
pub mod inval;
pub mod json;
pub mod lock;
pub mod memory;
pub mod policy;
pub mod procedure;
pub mod query;
pub mod queue;
pub mod row_trigger;
pub mod scanner;
pub mod session;
pub mod shmem;
pub mod signal;
pub mod snapshot;
pub mod spi;
pub mod statement_hooks;
pub mod transaction;
pub mod utility;
pub mod worker;
pub mod writes;
pub mod xact;

/// pg_upgrade runs servers in which nothing of ours must happen.
pub fn is_binary_upgrade() -> bool {
    // SAFETY: reads a variable.
    unsafe { pgrx::pg_sys::IsBinaryUpgrade }
}

/// Whether the postmaster is loading the libraries of shared_preload_libraries.
pub fn is_preloading() -> bool {
    // SAFETY: reads a variable.
    unsafe { pgrx::pg_sys::process_shared_preload_libraries_in_progress }
}
