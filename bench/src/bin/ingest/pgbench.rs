//! pgbench as the client: it costs less than any client in Rust, and the server has to share the machine with it.

use audit_db_e2e::{Cluster, tools};

pub struct Pgbench<'a> {
    pub cluster: &'a Cluster,
    pub database: &'a str,
    pub sessions: usize,
}

pub struct Done {
    pub transactions: f64,
    /// Transactions a second, without the time to connect.
    pub rate: f64,
    pub latency_ms: f64,
}

impl Pgbench<'_> {
    pub fn for_seconds(&self, script: &str, seconds: u32) -> Done {
        self.run(script, &["-T", &seconds.to_string()])
    }

    /// So many times in each session.
    pub fn times(&self, script: &str, times: usize) -> Done {
        self.run(script, &["-t", &times.to_string()])
    }

    fn run(&self, script: &str, arguments: &[&str]) -> Done {
        let file = self.cluster.folder().join("script.sql");
        std::fs::write(&file, script).expect("script");
        let sessions = self.sessions.to_string();
        let output = tools::run(
            tools::command("pgbench")
                .arg("-h")
                .arg(self.cluster.socket())
                .args(["-p", "5432", "-U", "postgres", "-n", "-M", "prepared"])
                .args([
                    "-c",
                    &sessions,
                    "-j",
                    if self.sessions > 1 { "2" } else { "1" },
                ])
                .args(arguments)
                .arg("-f")
                .arg(&file)
                .arg(self.database),
        );
        let figure = |label: &str| -> f64 {
            output
                .lines()
                .find_map(|line| line.strip_prefix(label))
                .and_then(|rest| {
                    rest.split([' ', '/'])
                        .find(|word| !word.is_empty())?
                        .parse()
                        .ok()
                })
                .unwrap_or_else(|| panic!("no \"{label}\" in:\n{output}"))
        };
        Done {
            transactions: figure("number of transactions actually processed: "),
            rate: figure("tps = "),
            latency_ms: figure("latency average = "),
        }
    }
}
