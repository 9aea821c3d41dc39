//! A throw-away cluster: its own data folder and socket, gone with the value or with the process.

use crate::reaper::Reaper;
use crate::session::Session;
use crate::tools;
use postgres::{Client, Config, NoTls};
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// How a server is told to stop.
#[derive(Clone, Copy, Debug)]
pub enum Mode {
    Fast,
    Immediate,
}

/// What a cluster should be like.
#[derive(Clone, Debug)]
pub struct Builder {
    settings: Vec<(String, String)>,
}

impl Builder {
    /// A line of postgresql.conf; the last one of a name wins.
    pub fn set(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Without the library; sessions can still load it.
    pub fn not_preloaded(self) -> Self {
        self.set("shared_preload_libraries", "")
    }

    /// Without fsync, where no test is about the data after the machine's end.
    pub fn fast(self) -> Self {
        self.set("fsync", "off")
    }

    /// Makes the cluster and starts it.
    pub fn start(self) -> Cluster {
        let cluster = self.prepare();
        tools::run(
            tools::command("initdb")
                .args(["-U", "postgres", "-A", "trust", "--no-locale", "-E", "UTF8"])
                .args(["--no-sync", "-D"])
                .arg(cluster.data()),
        );
        cluster.configure(&self.settings);
        cluster.start();
        cluster
    }

    /// Makes a standby of another cluster and starts it.
    pub fn start_standby_of(self, primary: &Cluster) -> Cluster {
        let cluster = self.prepare();
        tools::run(
            tools::command("pg_basebackup")
                .args(["-U", "postgres", "-c", "fast", "--no-sync", "-R", "-h"])
                .arg(primary.socket())
                .arg("-D")
                .arg(cluster.data()),
        );
        cluster.configure(&self.settings);
        cluster.start();
        cluster
    }

    /// The folders, and who deletes them.
    fn prepare(&self) -> Cluster {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        // Short: a socket's path has at most 107 bytes.
        let folder = PathBuf::from(format!(
            "/tmp/adb_e2e.{}.{}",
            std::process::id(),
            NUMBER.fetch_add(1, Ordering::Relaxed)
        ));
        fs::create_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let reaper = Reaper::new(&folder);
        fs::create_dir(folder.join("s")).expect("socket folder");
        Cluster {
            folder,
            reaper: Some(reaper),
        }
    }
}

/// A running server with data of its own.
pub struct Cluster {
    folder: PathBuf,
    reaper: Option<Reaper>,
}

impl Cluster {
    /// A cluster that preloads the library, with enough room for many databases.
    pub fn builder() -> Builder {
        Builder {
            settings: Vec::new(),
        }
        .set("shared_preload_libraries", "audit_db")
        .set("max_worker_processes", "32")
        .set("max_connections", "60")
        .set("max_locks_per_transaction", "512")
        .set("shared_buffers", "32MB")
        .set("log_min_messages", "warning")
        .set("log_line_prefix", "%m [%p] %b %d ")
    }

    pub fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.join("s")
    }

    /// A folder of this cluster that goes with it.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What the server has logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    fn configure(&self, settings: &[(String, String)]) {
        let mut text = format!(
            "listen_addresses = ''\nunix_socket_directories = '{}'\nport = 5432\n",
            self.socket().display()
        );
        for (name, value) in settings {
            let _ = writeln!(text, "{name} = '{}'", value.replace('\'', "''"));
        }
        fs::write(self.data().join("e2e.conf"), text).expect("e2e.conf");
        let main = self.data().join("postgresql.conf");
        let mut text = fs::read_to_string(&main).expect("postgresql.conf");
        if !text.contains("include 'e2e.conf'") {
            text.push_str("\ninclude 'e2e.conf'\n");
            fs::write(&main, text).expect("postgresql.conf");
        }
    }

    fn pg_ctl(&self, arguments: &[&str]) {
        let mut command = tools::command("pg_ctl");
        command
            .arg("-D")
            .arg(self.data())
            .args(["-s", "-w", "-t", "60"])
            .args(arguments);
        let output = command.output().expect("pg_ctl");
        assert!(
            output.status.success(),
            "pg_ctl {arguments:?}: {}\n{}",
            String::from_utf8_lossy(&output.stderr),
            self.log_tail()
        );
    }

    /// Starts a server that was stopped.
    pub fn start(&self) {
        let log = self.folder.join("log");
        self.pg_ctl(&["-l", &log.display().to_string(), "start"]);
    }

    /// Starts a stopped server with a file system of its own, of this size, in the folder `small` of the cluster; only its processes
    /// see it. `false`: this machine does not allow that, and the server was started without.
    pub fn start_with_small_disk(&self, size: &str) -> bool {
        let small = self.folder.join("small");
        fs::create_dir(&small).expect("small");
        let owner = fs::metadata(&small).expect("small");
        let started = tools::command_elsewhere("unshare")
            .args(["--user", "--keep-caps", "--mount"])
            .arg(format!("--map-user={}", owner.uid()))
            .arg(format!("--map-group={}", owner.gid()))
            .args([
                "sh",
                "-c",
                "mount -t tmpfs -o size=$0 tmpfs \"$1\" && shift && exec \"$@\"",
            ])
            .arg(size)
            .arg(&small)
            .arg(tools::bin().join("pg_ctl"))
            .arg("-D")
            .arg(self.data())
            .args(["-s", "-w", "-t", "60", "-l"])
            .arg(self.folder.join("log"))
            .arg("start")
            .status()
            .is_ok_and(|status| status.success());
        if !started {
            self.start();
        }
        started
    }

    pub fn stop(&self, mode: Mode) {
        let mode = match mode {
            Mode::Fast => "fast",
            Mode::Immediate => "immediate",
        };
        self.pg_ctl(&["-m", mode, "stop"]);
    }

    pub fn restart(&self) {
        self.stop(Mode::Fast);
        self.start();
    }

    pub fn promote(&self) {
        self.pg_ctl(&["promote"]);
    }

    /// Writes settings that hold when the server starts or reads its configuration again.
    pub fn write_settings(&self, settings: &[(&str, &str)]) {
        let file = self.data().join("e2e.conf");
        let mut text = fs::read_to_string(&file).expect("e2e.conf");
        for (name, value) in settings {
            let _ = writeln!(text, "{name} = '{value}'");
        }
        fs::write(&file, text).expect("e2e.conf");
    }

    /// Changes settings of a running server; each value as SHOW prints it. Other processes read them a moment later.
    pub fn reload(&self, settings: &[(&str, &str)]) {
        self.write_settings(settings);
        let mut client = self.connect("postgres");
        client.run("SELECT pg_reload_conf()");
        for (name, value) in settings {
            crate::wait_until(&format!("{name} is {value}"), crate::SOON, || {
                client.value(&format!("SHOW {name}")) == *value
            });
        }
    }

    pub fn postmaster_pid(&self) -> u32 {
        fs::read_to_string(self.data().join("postmaster.pid"))
            .ok()
            .and_then(|text| text.lines().next()?.trim().parse().ok())
            .expect("postmaster.pid")
    }

    /// Sends a signal, by its short name, to a process of the server.
    pub fn signal(&self, name: &str, pid: u32) {
        tools::run(tools::command_elsewhere("sh").args(["-c", &format!("kill -s {name} {pid}")]));
    }

    fn config(&self, database: &str, user: &str) -> Config {
        let mut config = Config::new();
        config
            .host_path(self.socket())
            .port(5432)
            .user(user)
            .dbname(database)
            // A statement that hangs fails its test.
            .options("-c statement_timeout=60s")
            .connect_timeout(Duration::from_secs(30));
        config
    }

    /// A session of the superuser.
    #[track_caller]
    pub fn connect(&self, database: &str) -> Client {
        self.connect_as(database, "postgres")
    }

    #[track_caller]
    pub fn connect_as(&self, database: &str, user: &str) -> Client {
        match self.try_connect(database, user) {
            Ok(client) => client,
            Err(error) => panic!("{user} at {database}: {error:?}\n{}", self.log_tail()),
        }
    }

    /// A session of the superuser in a server that is on its way up again.
    #[track_caller]
    pub fn wait_for_connection(&self, database: &str) -> Client {
        let mut client = None;
        crate::wait_until("the server takes connections", crate::SOON, || {
            client = self.try_connect(database, "postgres").ok();
            client.is_some()
        });
        client.expect("a session")
    }

    /// Dumps a database as a script; returns its file.
    pub fn dump(&self, database: &str) -> PathBuf {
        let script = self.folder.join(format!("{database}.sql"));
        tools::run(
            tools::command("pg_dump")
                .args(["-U", "postgres", "-d", database, "-h"])
                .arg(self.socket())
                .arg("-f")
                .arg(&script),
        );
        script
    }

    /// Runs a script in a database; each statement must succeed.
    pub fn restore(&self, database: &str, script: &Path) {
        tools::run(
            tools::command("psql")
                .args(["-U", "postgres", "-X", "-q", "-v", "ON_ERROR_STOP=1"])
                .args(["-d", database, "-h"])
                .arg(self.socket())
                .arg("-f")
                .arg(script),
        );
    }

    pub fn try_connect(&self, database: &str, user: &str) -> Result<Client, postgres::Error> {
        self.config(database, user).connect(NoTls)
    }

    /// Makes a database with the extension and returns a session of the superuser in it.
    #[track_caller]
    pub fn database(&self, name: &str) -> Client {
        let mut client = self.empty_database(name);
        client.run("CREATE EXTENSION audit_db");
        client
    }

    /// Makes a database without the extension.
    #[track_caller]
    pub fn empty_database(&self, name: &str) -> Client {
        self.connect("postgres")
            .run(&format!("CREATE DATABASE {name}"));
        self.connect(name)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- end of the server log\n{}", self.log_tail());
        }
        // Stops the server and deletes the folder.
        drop(self.reaper.take());
    }
}

/// A cluster that the tests of one file share; made by the first that needs it, gone with the process.
pub struct Shared {
    cluster: OnceLock<Cluster>,
    build: fn() -> Builder,
}

impl Shared {
    pub const fn new(build: fn() -> Builder) -> Self {
        Self {
            cluster: OnceLock::new(),
            build,
        }
    }
}

impl std::ops::Deref for Shared {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        self.cluster.get_or_init(|| (self.build)().start())
    }
}
