//! The server's programs.

use std::path::PathBuf;
use std::process::{Command, Stdio};

/// The folder of the server's programs.
pub fn bin() -> PathBuf {
    match std::env::var_os("AUDIT_DB_PG_BIN") {
        Some(bin) => bin.into(),
        None => panic!(
            "AUDIT_DB_PG_BIN is not set: it names the bin folder of the server to test; `make test` sets it"
        ),
    }
}

/// A program of the server, without what the caller's environment says about other servers.
pub fn command(program: &str) -> Command {
    command_elsewhere(bin().join(program))
}

/// The same for a program that is not the server's.
pub fn command_elsewhere(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    for variable in [
        "PGDATA",
        "PGHOST",
        "PGHOSTADDR",
        "PGPORT",
        "PGUSER",
        "PGDATABASE",
        "PGSERVICE",
        "PGOPTIONS",
        "PGTZ",
        // A backtrace in the server's environment would show up in every client's error DETAIL.
        "RUST_BACKTRACE",
    ] {
        command.env_remove(variable);
    }
    command.stdin(Stdio::null());
    command
}

/// Runs a program to its end and returns what it printed.
#[track_caller]
pub fn run(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}
