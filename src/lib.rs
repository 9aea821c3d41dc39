//! audit_db: a PostgreSQL extension that makes a server good at audit logs. Wiring only: modules, SQL files, start-up.
#![deny(unsafe_code)]

use pgrx::prelude::*;

mod api;
mod cache;
mod capture;
mod error;
mod ingest;
mod jobs;
mod maintenance;
mod partition;
mod pg;
#[cfg(any(test, feature = "pg_test"))]
mod server_tests;
mod settings;
mod shmem;
mod worker;

::pgrx::pg_module_magic!(name, version);

extension_sql_file!("../sql/schema.sql", name = "schema", bootstrap);
extension_sql_file!("../sql/tables.sql", name = "tables", requires = ["schema"]);
extension_sql_file!(
    "../sql/partitions.sql",
    name = "partitions",
    requires = ["tables"]
);
// Each requires the one before it: the order of what is independent changes from build to build.
extension_sql_file!(
    "../sql/events.sql",
    name = "events",
    requires = ["partitions"]
);
extension_sql_file!("../sql/jobs.sql", name = "jobs", requires = ["events"]);
extension_sql_file!("../sql/cache.sql", name = "cache", requires = ["jobs"]);
extension_sql_file!("../sql/capture.sql", name = "capture", requires = ["cache"]);
extension_sql_file!(
    "../sql/workers.sql",
    name = "workers",
    requires = ["capture"]
);

/// Called when the library is loaded: by the postmaster (preloaded), or by the first session that needs it.
#[pg_guard]
#[allow(non_snake_case)]
pub extern "C-unwind" fn _PG_init() {
    if pg::is_binary_upgrade() {
        return;
    }
    settings::define();
    pg::row_trigger::install(api::capture_change);
    pg::event_functions::install(api::log_event, api::log_events);
    pg::cached_functions::install(api::CACHED_FUNCTIONS);
    if !pg::is_preloading() {
        return;
    }
    settings::define_for_start();
    settings::reserve_prefix();
    shmem::request();
    pg::transaction::install::<capture::Transactions, worker::Transactions, cache::Transactions>();
    capture::install();
    worker::init();
}

/// Set-up of the server in which #[pg_test] functions run.
#[cfg(test)]
pub mod pg_test {
    pub fn setup(_options: Vec<&str>) {}

    pub fn postgresql_conf_options() -> Vec<&'static str> {
        vec!["shared_preload_libraries = 'audit_db'"]
    }
}
