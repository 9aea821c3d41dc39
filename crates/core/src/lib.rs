//! Pure logic of audit_db.
//!
//! Nothing here knows a server, does I/O or reads a clock: every function takes what it needs and returns what to do.
//! That keeps the decisions (which month to make, what may be dropped, when to try again) testable without PostgreSQL.
#![forbid(unsafe_code)]

pub mod backoff;
pub mod btree_size;
pub mod calendar;
pub mod change_log;
pub mod eviction;
pub mod histogram;
pub mod naming;
pub mod partition_plan;
pub mod plan_text;
pub mod record;
pub mod retention;
pub mod schedule;
pub mod span;
pub mod statement_text;
pub mod validity;
