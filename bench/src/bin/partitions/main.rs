//! Partitions: audit_db beside plain SQL and pg_partman, in one run on one server with fsync on.

mod create;
mod empty;
mod idle;
mod retire;
mod table;

use audit_db_e2e::{Cluster, Session};
use table::{DATABASE, Place};

fn main() {
    let cluster = Cluster::builder()
        .set("shared_buffers", "512MB")
        .set("max_wal_size", "8GB")
        .set("checkpoint_timeout", "1h")
        .set("max_locks_per_transaction", "1024")
        .set("audit_db.max_partitions_dropped", "1000")
        .start();
    let mut client = cluster.database(DATABASE);
    client.run("CREATE SCHEMA partman; CREATE EXTENSION pg_partman SCHEMA partman");
    println!(
        "{}; audit_db {}, pg_partman {}; fsync on, {} processors",
        client.value("SELECT split_part(version(), ' on ', 1)"),
        client.value("SELECT extversion FROM pg_extension WHERE extname = 'audit_db'"),
        client.value("SELECT extversion FROM pg_extension WHERE extname = 'pg_partman'"),
        std::thread::available_parallelism().map_or(0, usize::from),
    );
    let place = Place { cluster: &cluster };
    create::alone(&place);
    create::under_load(&place);
    retire::two_years(&place);
    retire::behind_a_reader(&place);
    empty::two_million_rows(&place);
    idle::nothing_to_do(&place);
    idle::growth(&place);
}
