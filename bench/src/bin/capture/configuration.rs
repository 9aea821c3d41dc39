//! What is compared: servers that differ in nothing but the modules they preload and how those are set.

use audit_db_e2e::{Builder, Client, Cluster, Session};

pub const DATABASE: &str = "bench";

/// Who they are in [`ALL`].
pub const NOTHING: usize = 0;
pub const AUTO_EXPLAIN: usize = 2;
pub const AUTO_EXPLAIN_ANALYZE: usize = 3;
pub const OFF: usize = 5;
pub const CAPTURE: usize = 6;
pub const CAPTURE_ANALYZE: usize = 7;
pub const CAPTURE_AND_STATISTICS: usize = 8;

pub struct Configuration {
    pub name: &'static str,
    /// Preloaded libraries, with commas between them.
    pub libraries: &'static str,
    /// Each value as SHOW prints it.
    pub settings: &'static [(&'static str, &'static str)],
}

pub const ALL: [Configuration; 9] = [
    Configuration {
        name: "nothing",
        libraries: "",
        settings: &[],
    },
    Configuration {
        name: "pg_stat_statements",
        libraries: "pg_stat_statements",
        settings: &[],
    },
    Configuration {
        name: "auto_explain",
        libraries: "auto_explain",
        settings: &[("auto_explain.log_min_duration", "500ms")],
    },
    Configuration {
        name: "auto_explain, analyze",
        libraries: "auto_explain",
        settings: &[
            ("auto_explain.log_min_duration", "500ms"),
            ("auto_explain.log_analyze", "on"),
        ],
    },
    Configuration {
        name: "pg_stat_statements and auto_explain",
        libraries: "pg_stat_statements,auto_explain",
        settings: &[("auto_explain.log_min_duration", "500ms")],
    },
    Configuration {
        name: "audit_db, all off",
        libraries: "audit_db",
        settings: &[
            ("audit_db.slow_query_threshold", "-1"),
            ("audit_db.query_stats", "off"),
        ],
    },
    Configuration {
        name: "audit_db, capture",
        libraries: "audit_db",
        settings: &[
            ("audit_db.slow_query_threshold", "500ms"),
            ("audit_db.slow_query_plan", "on"),
            ("audit_db.query_stats", "off"),
        ],
    },
    Configuration {
        name: "audit_db, capture, analyze",
        libraries: "audit_db",
        settings: &[
            ("audit_db.slow_query_threshold", "500ms"),
            ("audit_db.slow_query_plan", "analyze"),
            ("audit_db.query_stats", "off"),
        ],
    },
    Configuration {
        name: "audit_db, capture and statistics",
        libraries: "audit_db",
        settings: &[
            ("audit_db.slow_query_threshold", "500ms"),
            ("audit_db.slow_query_plan", "on"),
            ("audit_db.query_stats", "on"),
        ],
    },
];

impl Configuration {
    pub fn all_settings(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        std::iter::once(("shared_preload_libraries", self.libraries))
            .chain(self.settings.iter().copied())
    }

    /// A server takes a setting that no library knows for one of a library to come, or drops it with a warning; either way
    /// something else would be measured than what is printed.
    pub fn check(&self, client: &mut Client) {
        for (name, value) in self.all_settings() {
            let found = client.value(&format!("SHOW {name}"));
            assert_eq!(found, value, "{name} of \"{}\"", self.name);
        }
    }
}

/// What all servers have in common: nothing but the sessions works while something is measured.
pub fn server() -> Builder {
    Cluster::builder()
        .not_preloaded()
        .fast()
        .set("shared_buffers", "128MB")
        .set("autovacuum", "off")
        .set("checkpoint_timeout", "1h")
        .set("jit", "off")
        .set("max_parallel_workers_per_gather", "0")
}

pub fn print() {
    println!("autovacuum, fsync and jit off, no parallel workers. Beside nothing but PostgreSQL:");
    for configuration in &ALL[NOTHING + 1..] {
        let settings: Vec<String> = configuration
            .settings
            .iter()
            .map(|(name, value)| {
                format!("{} = {value}", name.split('.').next_back().unwrap_or(name))
            })
            .collect();
        println!("  {:<36} {}", configuration.name, settings.join(", "));
    }
}
