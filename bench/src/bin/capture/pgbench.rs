//! pgbench as the client, and the statements it repeats.

use crate::configuration::DATABASE;
use audit_db_e2e::{Client, Cluster, Session, tools};

/// Rows of `pgbench_accounts` at scale 1.
const ACCOUNTS: u32 = 100_000;

/// One statement a transaction.
#[derive(Clone, Copy, PartialEq)]
pub enum Statement {
    /// pgbench's own: one row by its key.
    Select,
    /// 1,000 rows by a range of the key, where what a module does to each row shows.
    Aggregate,
}

pub struct Pgbench<'a> {
    pub cluster: &'a Cluster,
    pub sessions: u32,
    /// `prepared` or `simple`, as pgbench calls them.
    pub protocol: &'a str,
    /// What the server's log knows the sessions by.
    pub name: &'a str,
}

impl Pgbench<'_> {
    /// So many transactions, the same ones in each run.
    pub fn times(&self, statement: Statement, times: u32) {
        self.run(statement, &["-t", &times.to_string()]);
    }

    /// Transactions a second, without the time to connect.
    pub fn rate(&self, statement: Statement, seconds: u32) -> f64 {
        let output = self.run(statement, &["-T", &seconds.to_string()]);
        output
            .lines()
            .find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok())
            .unwrap_or_else(|| panic!("no \"tps\" in:\n{output}"))
    }

    fn run(&self, statement: Statement, arguments: &[&str]) -> String {
        let mut command = tools::command("pgbench");
        command
            .env("PGAPPNAME", self.name)
            .arg("-h")
            .arg(self.cluster.socket())
            .args(["-p", "5432", "-U", "postgres", "-n", "--random-seed=1"])
            .args(["-M", self.protocol])
            .args(["-c", &self.sessions.to_string()])
            .args(["-j", &self.sessions.to_string()])
            .args(arguments);
        match statement {
            Statement::Select => {
                command.arg("-S");
            }
            Statement::Aggregate => {
                let file = self.cluster.folder().join("aggregate.sql");
                let script = format!(
                    "\\set a random(1, {})\n\
                     SELECT sum(abalance) FROM pgbench_accounts WHERE aid BETWEEN :a AND :a + 999;\n",
                    ACCOUNTS - 999
                );
                std::fs::write(&file, script).expect("aggregate.sql");
                command.arg("-f").arg(file);
            }
        }
        tools::run(command.arg(DATABASE))
    }
}

/// pgbench's tables.
pub fn fill(cluster: &Cluster) {
    tools::run(
        tools::command("pgbench")
            .arg("-h")
            .arg(cluster.socket())
            .args(["-p", "5432", "-U", "postgres", "-i", "-s", "1", "-q"])
            .arg(DATABASE),
    );
}

/// Reads the table and its index into the server's memory.
pub fn warm(client: &mut Client) {
    client.run("SET enable_seqscan = off; SET enable_bitmapscan = off");
    client.run("SELECT sum(abalance) FROM pgbench_accounts WHERE aid > 0");
}
