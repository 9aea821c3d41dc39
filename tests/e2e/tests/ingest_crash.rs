//! Sessions, the ingest worker and the whole server are killed while events are written: what was acknowledged is there, once.

use audit_db_e2e::{Client, Cluster, Mode, SOON, Session, tools, wait_until};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const ROUNDS: usize = 20;
const DURABLE_WRITERS: usize = 8;
/// Crash recovery on a busy machine.
const LONG: Duration = Duration::from_secs(120);
/// What a crash may lose: async events of this time, and of the time that storing a batch takes.
const DELAY: Duration = Duration::from_millis(200);
const STORING: Duration = Duration::from_secs(2);

fn connect(cluster: &Cluster) -> Client {
    let mut client = None;
    wait_until("the server takes connections", LONG, || {
        client = cluster.try_connect("crash", "postgres").ok();
        client.is_some()
    });
    client.unwrap()
}

/// What the writers know, kept outside of the database.
#[derive(Default)]
struct Known {
    /// Durable events whose call has returned.
    durable: Mutex<Vec<String>>,
    /// Async events, and when their call had returned.
    lazy: Mutex<Vec<(String, Instant)>>,
    acknowledged: AtomicUsize,
    number: AtomicUsize,
}

impl Known {
    /// Logs events until told to stop; comes back after each crash.
    fn write(&self, cluster: &Cluster, durability: &str, working: &AtomicBool) {
        while working.load(Ordering::Relaxed) {
            let Ok(mut session) = cluster.try_connect("crash", "postgres") else {
                std::thread::yield_now();
                continue;
            };
            while working.load(Ordering::Relaxed) {
                let event = format!("e{}", self.number.fetch_add(1, Ordering::Relaxed));
                let call = format!(
                    "SELECT audit_db.log_event('{durability}', correlation_id => '{event}', durability => '{durability}')"
                );
                if session.simple_query(&call).is_err() {
                    break;
                }
                if durability == "durable" {
                    self.durable.lock().unwrap().push(event);
                } else {
                    self.lazy.lock().unwrap().push((event, Instant::now()));
                    // No more than there are durable ones.
                    wait_until("durable events come in", LONG, || {
                        !working.load(Ordering::Relaxed)
                            || self.lazy.lock().unwrap().len() <= self.durable.lock().unwrap().len()
                    });
                }
                self.acknowledged.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// Processes of the server, but for the postmaster.
fn children(session: &mut Client) -> Vec<u32> {
    session
        .column("SELECT pid FROM pg_stat_activity")
        .iter()
        .map(|pid| pid.parse().unwrap())
        .collect()
}

fn kill(pid: u32) {
    tools::run(tools::command("pg_ctl").args(["kill", "KILL", &pid.to_string()]));
}

#[test]
fn what_was_acknowledged_is_there_once() {
    let cluster = Cluster::builder()
        .set("restart_after_crash", "on")
        .set("audit_db.batch_max_delay", "200ms")
        .set("audit_db.batch_max_events", "50")
        .start();
    let mut client = cluster.database("crash");
    client.run("SELECT audit_db.create_audit_log(premake => 1)");
    drop(client);
    let known = Known::default();
    let working = AtomicBool::new(true);
    // When the server was killed: async events of the moment before may be gone.
    let mut crashes = Vec::new();
    std::thread::scope(|scope| {
        let _stop = Stop(&working);
        for writer in 0..=DURABLE_WRITERS {
            let durability = if writer == 0 { "async" } else { "durable" };
            let (known, cluster, working) = (&known, &cluster, &working);
            scope.spawn(move || known.write(cluster, durability, working));
        }
        for round in 0..ROUNDS {
            let before = known.acknowledged.load(Ordering::Relaxed);
            wait_until("events come in", LONG, || {
                known.acknowledged.load(Ordering::Relaxed) > before + 300 + 61 * round
            });
            let mut session = connect(&cluster);
            let worker = |session: &mut Client| {
                let mut pid = None;
                wait_until("there is an ingest worker", SOON, || {
                    let found = session.column("SELECT worker_pid FROM audit_db.ingest_stats");
                    pid = found[0].parse::<u32>().ok();
                    pid.is_some()
                });
                pid.unwrap()
            };
            match round % 4 {
                // A session in the middle of its call.
                0 => {
                    let victim = session
                        .column("SELECT pid FROM pg_stat_activity WHERE query LIKE '%log_event%' AND pid <> pg_backend_pid() LIMIT 1")
                        [0].parse()
                        .unwrap();
                    crashes.push(Instant::now());
                    kill(victim);
                }
                1 => {
                    let victim = worker(&mut session);
                    crashes.push(Instant::now());
                    kill(victim);
                }
                // The worker alone: no crash of the server, nothing may be gone.
                2 => {
                    for _ in 0..5 {
                        let victim = worker(&mut session).to_string();
                        for _ in 0..2 {
                            let _ = tools::command("pg_ctl")
                                .args(["kill", "TERM", &victim])
                                .status();
                        }
                        let before = known.acknowledged.load(Ordering::Relaxed);
                        wait_until("events come in again", LONG, || {
                            known.acknowledged.load(Ordering::Relaxed) > before + 100
                        });
                    }
                }
                _ => {
                    let processes = children(&mut session);
                    crashes.push(Instant::now());
                    kill(cluster.postmaster_pid());
                    wait_until("the server's processes are gone", LONG, || {
                        processes
                            .iter()
                            .all(|pid| !Path::new(&format!("/proc/{pid}/status")).exists())
                    });
                    cluster.start();
                }
            }
        }
    });

    let mut client = connect(&cluster);
    client.run("SELECT audit_db.flush_events()");
    let stored: Vec<String> = client.column("SELECT correlation_id FROM audit_log");
    let mut times = HashMap::new();
    for event in &stored {
        *times.entry(event.as_str()).or_insert(0) += 1;
    }
    let doubled: Vec<_> = times.iter().filter(|(_, count)| **count > 1).collect();
    assert!(doubled.is_empty(), "{doubled:?}");
    let durable = known.durable.into_inner().unwrap();
    let missing: Vec<_> = durable
        .iter()
        .filter(|event| !times.contains_key(event.as_str()))
        .collect();
    assert!(missing.is_empty(), "{} of {}", missing.len(), durable.len());
    let lazy = known.lazy.into_inner().unwrap();
    let (mut lost, mut too_early) = (0, Vec::new());
    for (event, returned) in &lazy {
        if times.contains_key(event.as_str()) {
            continue;
        }
        lost += 1;
        let within = crashes
            .iter()
            .any(|crash| *returned <= *crash + STORING && *returned + DELAY + STORING >= *crash);
        if !within {
            too_early.push(event);
        }
    }
    assert!(
        too_early.is_empty(),
        "{} of {} lost, the first {:?}",
        too_early.len(),
        lazy.len(),
        too_early[0]
    );
    println!(
        "{ROUNDS} rounds, {} crashes: of {} durable events 0 missing, 0 doubled; of {} async ones {lost} lost",
        crashes.len(),
        durable.len(),
        lazy.len()
    );
    assert!(durable.len() > 5_000, "{}", durable.len());
    assert_eq!(
        client.number("SELECT count(*) FROM pg_class WHERE relname = 'audit_log_rejected'"),
        0
    );
}

#[test]
fn an_orderly_stop_loses_nothing() {
    let cluster = Cluster::builder()
        .fast()
        .set("audit_db.batch_max_delay", "1h")
        .set("audit_db.batch_max_events", "1000000")
        .start();
    let mut client = cluster.database("crash");
    client.run("SELECT audit_db.create_audit_log(premake => 1)");
    for round in 1..=5 {
        // Also while sessions are at it: what they were told is there.
        let (working, counted) = (AtomicBool::new(true), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            let _stop = Stop(&working);
            for _ in 0..4 {
                let mut session = connect(&cluster);
                let counted = &counted;
                scope.spawn(move || {
                    while session
                        .simple_query("SELECT audit_db.log_event('busy', durability => 'async')")
                        .is_ok()
                    {
                        counted.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            let mut session = connect(&cluster);
            session.run("SELECT audit_db.log_event('queued', durability => 'async') FROM generate_series(1, 5000)");
            wait_until("sessions are at it", SOON, || {
                counted.load(Ordering::Relaxed) > 500
            });
            cluster.restart();
        });
        let mut client = connect(&cluster);
        assert_eq!(
            client.number("SELECT count(*) FROM audit_log WHERE action = 'queued'"),
            5_000 * round
        );
        let stored = client.number("SELECT count(*) FROM audit_log WHERE action = 'busy'");
        let told = counted.into_inner() as i64;
        // A session may have been ended between its event and its answer.
        assert!(
            (told..=told + 4).contains(&stored),
            "{told} told, {stored} stored"
        );
        client.run("DELETE FROM audit_log WHERE action = 'busy'");
    }
    assert!(
        !cluster.log().contains("could not be stored"),
        "{}",
        cluster.log()
    );
}

#[test]
fn a_stopped_worker_and_a_full_disk_delay_events_and_lose_none() {
    let cluster = Cluster::builder()
        .fast()
        .set("audit_db.batch_max_delay", "100ms")
        .set("audit_db.durable_timeout", "3s")
        .set("audit_db.queue_size", "4MB")
        .set("audit_db.queue_timeout", "200ms")
        .start();
    let mut client = cluster.database("crash");
    client.run("SELECT audit_db.create_audit_log(premake => 1)");
    client.run("SELECT audit_db.log_event('first', durability => 'durable')");

    // Stopped: callers are told so, and told that their event may come yet.
    let worker = client.number("SELECT worker_pid FROM audit_db.ingest_stats") as u32;
    tools::run(std::process::Command::new("kill").args(["-STOP", &worker.to_string()]));
    client.run(
        "SELECT audit_db.log_event('stopped', durability => 'async') FROM generate_series(1, 1000)",
    );
    let error = client.error("SELECT audit_db.log_event('withdrawn', durability => 'durable')");
    assert_eq!(error.code().code(), "55P03");
    assert!(
        error
            .detail()
            .unwrap()
            .contains("not stored, and will not be"),
        "{error:?}"
    );
    let error = client.error("SELECT audit_db.flush_events()");
    assert_eq!(error.code().code(), "55P03");
    tools::run(std::process::Command::new("kill").args(["-CONT", &worker.to_string()]));
    client.run("SELECT audit_db.log_event('after', durability => 'durable')");
    assert_eq!(
        client.rows("SELECT action, count(*) FROM audit_log GROUP BY 1 ORDER BY 1"),
        [["after", "1"], ["first", "1"], ["stopped", "1000"]]
    );

    // Full: a tablespace in a small file system of its own, where the machine allows one.
    drop(client);
    cluster.stop(Mode::Fast);
    if !cluster.start_with_small_disk("3m") {
        println!("skipped: no file system can be mounted here, so no disk is full");
        return;
    }
    let mut client = connect(&cluster);
    let small = cluster.folder().join("small").display().to_string();
    let shell = |command: &str| {
        connect(&cluster).run(&format!("COPY (SELECT 1) TO PROGRAM '{command}'"));
    };
    shell(&format!("mkdir {small}/space"));
    client.run(&format!("CREATE TABLESPACE small LOCATION '{small}/space'"));
    for partition in
        client.column("SELECT relid::regclass FROM pg_partition_tree('audit_log') WHERE isleaf")
    {
        client.run(&format!("ALTER TABLE {partition} SET TABLESPACE small"));
    }
    shell(&format!("head -c 2500000 /dev/zero > {small}/filler"));
    let event = "SELECT audit_db.log_event('large', metadata => to_jsonb(md5(n::text) || repeat(md5(n::text), 30)), durability => 'async')
                   FROM generate_series(1, 1000) n";
    client.run(event);
    wait_until("the worker says what is wrong", SOON, || {
        client
            .value("SELECT last_error FROM audit_db.ingest_stats")
            .contains("could not extend file")
    });
    assert!(client.holds("SELECT queued_events > 0 AND rejected = 0 FROM audit_db.ingest_stats"));
    shell(&format!("rm {small}/filler"));
    wait_until("all is stored", SOON, || {
        client.number("SELECT queued_events FROM audit_db.ingest_stats") == 0
    });
    assert_eq!(
        client.number("SELECT count(*) FROM audit_log WHERE action = 'large'"),
        1_000
    );
    assert!(client.holds(
        "SELECT enqueued = written AND written = 1000 AND rejected = 0 AND fallbacks = 0 AND last_error IS NULL
           FROM audit_db.ingest_stats"
    ));
}
