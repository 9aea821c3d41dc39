//! Query capture: what it costs a statement that is not slow, beside PostgreSQL's own modules for the same purpose. First in
//! instructions, which repeat on a busy machine too, then in transactions a second.

mod callgrind;
mod configuration;
mod cost;
mod instructions;
mod pgbench;
mod throughput;

use audit_db_e2e::{Session, tools};

fn main() {
    let data = instructions::prepare();
    let mut client = data.connect(configuration::DATABASE);
    println!(
        "{}; audit_db {}, pg_stat_statements {}, auto_explain of the same server; {}; {} processors",
        client.value("SELECT split_part(version(), ' on ', 1)"),
        client.value("SELECT extversion FROM pg_extension WHERE extname = 'audit_db'"),
        client.value(
            "SELECT default_version FROM pg_available_extensions WHERE name = 'pg_stat_statements'"
        ),
        tools::run(tools::command_elsewhere("valgrind").arg("--version")).trim(),
        std::thread::available_parallelism().map_or(0, usize::from),
    );
    configuration::print();
    drop(client);
    instructions::per_transaction(&data);
    drop(data);
    throughput::in_turn();
}
