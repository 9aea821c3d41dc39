//! Background workers: the launcher (one a server), the worker (one a database with the extension), the slow worker (beside it
//! when there is work that takes long), the ingest worker (when there are events to store), jobs (one a run), and tasks (one a
//! call of a session that waits for work which needs transactions of its own).
#![allow(unsafe_code)]

mod announce;
mod database;
mod ingest;
mod job;
mod jobs;
mod launcher;
mod slow;
mod slow_log;
mod state;
pub mod task;

pub use announce::{Transactions, jobs_change_at_commit, want_cycle_at_commit};

/// Registers what only the postmaster can register, while it preloads the library.
pub fn init() {
    announce::install();
    crate::pg::worker::register_launcher("audit_db_launcher_main");
}
