//! Events: what a session does to log one, and what the worker does to store those that are queued.

pub mod rejected;
pub mod session;
pub mod target;
pub mod writer;
