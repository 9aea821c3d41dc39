//! Events: what a session pays for one, and what the server can take, beside plain SQL on the same table. pgbench is the client.

mod pgbench;

use audit_db_bench::{Contender, goal, measure, milliseconds, rounds};
use audit_db_e2e::{Client, Cluster, Session};
use pgbench::Pgbench;
use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Instant;

const DATABASE: &str = "bench";
/// Events of a burst, and of what the worker stores alone.
const BURST: usize = 10_000;
const BACKLOG: usize = 100_000;

const COLUMNS: &str = "\"timestamp\", action, status, principal_id, principal_type, resource_type, resource_id, metadata";
const RANDOM: &str = "\\set p random(1, 1000)\n\\set r random(1, 100000)\n";

fn row(number: usize) -> String {
    let resource = if number == 0 {
        ":r".to_owned()
    } else {
        format!(":r || '/{number}'")
    };
    format!(
        "(clock_timestamp(), 'patient.read', 'success', :p, 'practitioner', 'patient', {resource},
          '{{\"ward\": \"7b\", \"reason\": \"treatment\"}}')"
    )
}

fn insert(rows: usize) -> String {
    let rows: Vec<String> = (0..rows).map(row).collect();
    format!(
        "{RANDOM}INSERT INTO audit_log ({COLUMNS}) VALUES {};\n",
        rows.join(", ")
    )
}

fn log_event(durability: &str) -> String {
    format!(
        "{RANDOM}SELECT audit_db.log_event('patient.read', principal_id => :p, principal_type => 'practitioner',
            resource_type => 'patient', resource_id => :r,
            metadata => '{{\"ward\": \"7b\", \"reason\": \"treatment\"}}', durability => '{durability}');\n"
    )
    .replace("\n            ", " ")
}

fn main() {
    let cluster = cluster("16MB");
    let mut client = database(&cluster);
    println!(
        "{}; audit_db {}; fsync on, {} processors",
        client.value("SELECT split_part(version(), ' on ', 1)"),
        client.value("SELECT extversion FROM pg_extension WHERE extname = 'audit_db'"),
        std::thread::available_parallelism().map_or(0, usize::from),
    );
    for sessions in [1, 8, 32] {
        one_by_one(&cluster, &mut client, sessions);
    }
    drop(client);
    drop(cluster);
    let cluster = self::cluster("256MB");
    let mut client = database(&cluster);
    for sessions in [1, 8, 32] {
        burst(&cluster, &mut client, sessions);
    }
    backlog(&cluster, &mut client);
}

fn cluster(queue_size: &str) -> Cluster {
    Cluster::builder()
        .set("shared_buffers", "512MB")
        .set("max_wal_size", "8GB")
        .set("checkpoint_timeout", "1h")
        .set("audit_db.queue_size", queue_size)
        .start()
}

fn database(cluster: &Cluster) -> Client {
    let mut client = cluster.database(DATABASE);
    client.run("SET statement_timeout = 0; SET client_min_messages = warning");
    client.run("SELECT audit_db.create_audit_log()");
    // The worker has its plan, as in a server that works all day.
    client.run("SELECT audit_db.log_event('first', durability => 'durable')");
    client
}

/// Every session logs one event after the other, for some seconds.
fn one_by_one(cluster: &Cluster, client: &mut Client, sessions: usize) {
    const SECONDS: u32 = 4;
    let pgbench = Pgbench {
        cluster,
        database: DATABASE,
        sessions,
    };
    let client = std::cell::RefCell::new(client);
    let contender = |name: &'static str, script: String, events: f64| {
        let client = &client;
        let pgbench = &pgbench;
        Contender::new(name, move || {
            let mut client = client.borrow_mut();
            client.run("TRUNCATE audit_log");
            client.run("CHECKPOINT");
            let done = pgbench.for_seconds(&script, SECONDS);
            let started = Instant::now();
            client.run("SELECT audit_db.flush_events()");
            // What is queued is not done.
            let seconds = f64::from(SECONDS) + started.elapsed().as_secs_f64();
            vec![events * done.transactions / seconds, done.latency_ms]
        })
    };
    let medians = measure(
        &format!("{sessions} sessions, each one event after the other, {SECONDS} seconds"),
        &["events a second", "mean latency of a call, ms"],
        rounds(3),
        vec![
            contender("plain INSERT, prepared, and commit", insert(1), 1.0),
            contender("log_event, transaction", log_event("transaction"), 1.0),
            contender("log_event, durable", log_event("durable"), 1.0),
            contender(
                "log_event, async, until it is on disk",
                log_event("async"),
                1.0,
            ),
            contender("plain INSERT of 50 rows, and commit", insert(50), 50.0),
            contender("SELECT 1", format!("{RANDOM}SELECT 1;\n"), 1.0),
        ],
    );
    let plain = medians.of(0, 0);
    goal(
        "transaction within 15 % of a plain INSERT",
        medians.of(1, 0) >= 0.85 * plain,
    );
    match sessions {
        1 => goal(
            "durable no slower than 0.8 of a plain INSERT",
            medians.of(2, 0) >= 0.8 * plain,
        ),
        32 => {
            goal(
                "durable at least 2 times a plain INSERT",
                medians.of(2, 0) >= 2.0 * plain,
            );
            goal(
                "durable at least 3 times a plain INSERT",
                medians.of(2, 0) >= 3.0 * plain,
            );
        }
        _ => {}
    }
    if sessions > 1 {
        goal(
            "async at least 40,000 a second",
            medians.of(3, 0) >= 40_000.0,
        );
    }
}

/// The worker is held; what is looked at is how fast sessions get rid of their events.
fn burst(cluster: &Cluster, client: &mut Client, sessions: usize) {
    let each = BURST / sessions;
    let pgbench = Pgbench {
        cluster,
        database: DATABASE,
        sessions,
    };
    cluster.reload(&[
        ("audit_db.batch_max_delay", "1h"),
        ("audit_db.batch_max_events", "1000000"),
    ]);
    let client = std::cell::RefCell::new(client);
    let contender = |name: &'static str, script: String| {
        let (client, pgbench) = (&client, &pgbench);
        Contender::new(name, move || {
            let mut client = client.borrow_mut();
            client.run("TRUNCATE audit_log");
            let rate = pgbench.times(&script, each).rate;
            client.run("SELECT audit_db.flush_events()");
            vec![rate]
        })
    };
    let medians = measure(
        &format!("a burst of {BURST} events from {sessions} sessions while the worker is held"),
        &["events a second"],
        rounds(9),
        vec![
            contender("SELECT 1", format!("{RANDOM}SELECT 1;\n")),
            contender("log_event, async", log_event("async")),
        ],
    );
    goal(
        "at least 0.8 of SELECT 1",
        medians.of(1, 0) >= 0.8 * medians.of(0, 0),
    );
}

/// What one process can store: the worker from its queue, a session with COPY.
fn backlog(cluster: &Cluster, client: &mut Client) {
    let pgbench = Pgbench {
        cluster,
        database: DATABASE,
        sessions: 8,
    };
    let mut lines = String::new();
    let now = client.value("SELECT now()");
    for number in 0..BACKLOG {
        let _ = writeln!(
            lines,
            "{now}\tpatient.read\tsuccess\t{}\tpractitioner\tpatient\t{}\t{{\"ward\": \"7b\", \"reason\": \"treatment\"}}",
            number % 1_000,
            number * 7_919 % 100_000
        );
    }
    let client = std::cell::RefCell::new(client);
    let (client, script) = (&client, log_event("async"));
    let medians = measure(
        &format!("{BACKLOG} events stored by one process"),
        &["events a second", "milliseconds"],
        rounds(3),
        vec![
            Contender::new("COPY by one session", || {
                let mut client = client.borrow_mut();
                client.run("TRUNCATE audit_log");
                client.run("CHECKPOINT");
                let started = Instant::now();
                let mut copy = client
                    .copy_in(&format!("COPY audit_log ({COLUMNS}) FROM STDIN"))
                    .expect("COPY");
                copy.write_all(lines.as_bytes()).expect("COPY");
                copy.finish().expect("COPY");
                let time = started.elapsed();
                vec![BACKLOG as f64 / time.as_secs_f64(), milliseconds(time)]
            }),
            Contender::new("the ingest worker, from the queue", || {
                let mut client = client.borrow_mut();
                client.run("TRUNCATE audit_log");
                pgbench.times(&script, BACKLOG / 8);
                client.run("CHECKPOINT");
                let queued = client.number("SELECT queued_events FROM audit_db.ingest_stats");
                assert_eq!(queued, BACKLOG as i64, "the worker did not wait");
                let started = Instant::now();
                client.run("SELECT audit_db.flush_events()");
                let time = started.elapsed();
                assert_eq!(
                    client.number("SELECT count(*) FROM audit_log"),
                    BACKLOG as i64
                );
                vec![BACKLOG as f64 / time.as_secs_f64(), milliseconds(time)]
            }),
        ],
    );
    goal(
        "at least 0.8 of COPY",
        medians.of(1, 0) >= 0.8 * medians.of(0, 0),
    );
}
