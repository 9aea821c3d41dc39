//! Harness of the end-to-end tests: throw-away clusters, client sessions, and waiting with a bound.

pub mod cloudtrail;
mod cluster;
mod reaper;
mod session;
pub mod tools;
mod wait;

pub use cluster::{Builder, Cluster, Mode, Shared};
pub use postgres::error::DbError;
pub use postgres::{Client, NoTls, SimpleQueryMessage};
pub use session::Session;
pub use wait::{SOON, wait_until, wait_until_workers_rest};
