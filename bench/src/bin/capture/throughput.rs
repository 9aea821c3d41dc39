//! Transactions a second, with the servers of all configurations up at once and short bursts in turn: what the machine does beside
//! falls on all of them.

use crate::configuration::{ALL, Configuration, DATABASE, NOTHING, server};
use crate::pgbench::{self, Pgbench, Statement};
use audit_db_bench::{Contender, measure, rounds};
use audit_db_e2e::Cluster;

const SESSIONS: u32 = 2;
const SECONDS: u32 = 2;

pub fn in_turn() {
    // One configuration twice: how much of a difference is none.
    let again = Configuration {
        name: "nothing, another server",
        ..ALL[NOTHING]
    };
    let configurations: Vec<&Configuration> = ALL.iter().chain([&again]).collect();
    let clusters: Vec<Cluster> = configurations
        .iter()
        .map(|configuration| {
            let mut builder = server();
            for (name, value) in configuration.all_settings() {
                builder = builder.set(name, value);
            }
            let cluster = builder.start();
            let mut client = cluster.database(DATABASE);
            configuration.check(&mut client);
            pgbench::fill(&cluster);
            pgbench::warm(&mut client);
            cluster
        })
        .collect();
    let contenders = configurations
        .iter()
        .zip(&clusters)
        .map(|(configuration, cluster)| {
            let pgbench = Pgbench {
                cluster,
                sessions: SESSIONS,
                protocol: "prepared",
                name: "burst",
            };
            Contender::new(configuration.name, move || {
                vec![
                    pgbench.rate(Statement::Select, SECONDS),
                    pgbench.rate(Statement::Aggregate, SECONDS),
                ]
            })
        })
        .collect();
    measure(
        &format!("{SESSIONS} sessions in turn at each server, {SECONDS} seconds a burst, prepared"),
        &[
            "one row by its key, a second",
            "sums of 1,000 rows a second",
        ],
        rounds(10),
        contenders,
    );
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    println!(
        "  The last line of each table shows what is noise. On {processors} processors, which pgbench shares, nothing can be seen\n  \
         of many sessions that wait for each other's locks."
    );
}
