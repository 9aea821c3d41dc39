//! A server under valgrind, and what its callgrind tool counted for one process.

use crate::configuration::Configuration;
use crate::cost::Cost;
use audit_db_e2e::{Cluster, Mode, tools, wait_until};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The postmaster runs under valgrind, and so does what it forks: each process counts for itself and writes a file of its own when
/// it ends. callgrind_control could set the counters of a process to zero, but not between two given transactions.
const SCRIPT: &str = r#"#!/bin/sh
exec valgrind -q --tool=callgrind --vgdb=no --dump-line=no --callgrind-out-file="$CAPTURE_PROFILES/%p" \
    "$AUDIT_DB_PG_BIN/postgres" "$@"
"#;

/// Long enough for a process to write its file on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// A cluster whose server counts its instructions; stopped with the value.
pub struct Counted<'a> {
    pub cluster: &'a Cluster,
    profiles: PathBuf,
}

impl<'a> Counted<'a> {
    /// Starts a stopped server with these settings.
    pub fn start(cluster: &'a Cluster, configuration: &Configuration) -> Self {
        let profiles = cluster.folder().join("profiles");
        fs::create_dir_all(&profiles).expect("profiles");
        let script = cluster.folder().join("postgres.sh");
        fs::write(&script, SCRIPT).expect("postgres.sh");
        let mut options = String::new();
        for (name, value) in configuration.all_settings() {
            options += &format!("-c {name}='{value}' ");
        }
        let output = tools::command("pg_ctl")
            .env("CAPTURE_PROFILES", &profiles)
            .arg("-D")
            .arg(cluster.data())
            .args(["-s", "-w", "-t", "120", "-l"])
            .arg(cluster.folder().join("log"))
            .arg("-p")
            .arg(executable(&script))
            .args(["-o", &options, "start"])
            .output()
            .expect("pg_ctl");
        assert!(
            output.status.success(),
            "\"{}\" does not start: {}\n{}",
            configuration.name,
            String::from_utf8_lossy(&output.stderr),
            cluster.log()
        );
        Self { cluster, profiles }
    }

    /// What the session of this name did that did most: pgbench has another one in which it only looks at its tables.
    pub fn profile(&self, session: &str, libraries: &[&str]) -> Cost {
        let log = self.cluster.log();
        let mark = format!("application_name={session}");
        let pids: Vec<&str> = log
            .lines()
            .filter(|line| line.ends_with(&mark))
            .filter_map(|line| line.split_once('[')?.1.split(']').next())
            .collect();
        assert!(!pids.is_empty(), "no session {session} in:\n{log}");
        pids.iter()
            .map(|pid| {
                let file = self.profiles.join(pid);
                let mut text = String::new();
                // The session ends after its client; the last line says that the file is whole.
                wait_until(&format!("profile of {session}"), PATIENCE, || {
                    text = fs::read_to_string(&file).unwrap_or_default();
                    text.contains("\ntotals: ") && text.ends_with('\n')
                });
                fs::remove_file(&file).expect("profile");
                Cost::of(&text, libraries)
            })
            .max_by(|one, other| one.all.total_cmp(&other.all))
            .expect("a profile")
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The cluster's own end prints the log and stops the server.
            return;
        }
        self.cluster.stop(Mode::Fast);
        let _ = fs::remove_dir_all(&self.profiles);
    }
}

fn executable(script: &Path) -> &Path {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(script, fs::Permissions::from_mode(0o755)).expect("postgres.sh");
    script
}
