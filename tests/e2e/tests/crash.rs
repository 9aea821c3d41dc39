//! Processes are killed and the server is stopped in the middle of things; afterwards nothing is lost or doubled, and the work
//! goes on by itself.

use audit_db_e2e::{Client, Cluster, Mode, SOON, Session, wait_until};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const ROWS: i64 = 200_000;
const ROUNDS: usize = 16;
/// Crash recovery, and the exchange itself, on a busy machine.
const LONG: Duration = Duration::from_secs(120);

fn connect(cluster: &Cluster, database: &str) -> Client {
    let mut client = None;
    wait_until("the server takes connections", LONG, || {
        client = cluster.try_connect(database, "postgres").ok();
        client.is_some()
    });
    client.unwrap()
}

const DONE: &str =
    "SELECT EXISTS (SELECT FROM audit_db.events_log WHERE event = 'default partition emptied')";

/// A session that is made anew when it is lost.
struct Lasting<'a> {
    cluster: &'a Cluster,
    database: &'a str,
    session: Option<Client>,
}

impl<'a> Lasting<'a> {
    fn new(cluster: &'a Cluster, database: &'a str) -> Self {
        Self {
            cluster,
            database,
            session: None,
        }
    }

    /// The rows of a query; `None` while the server is not there.
    fn ask(&mut self, sql: &str) -> Option<Vec<Vec<String>>> {
        if self
            .session
            .as_mut()
            .is_none_or(|session| session.simple_query("SELECT 1").is_err())
        {
            self.session = self.cluster.try_connect(self.database, "postgres").ok();
        }
        let outcome = self.session.as_mut()?.simple_query(sql);
        match outcome {
            Ok(messages) => Some(
                messages
                    .into_iter()
                    .filter_map(|message| match message {
                        audit_db_e2e::SimpleQueryMessage::Row(row) => Some(
                            (0..row.len())
                                .map(|index| row.get(index).unwrap_or_default().to_owned())
                                .collect(),
                        ),
                        _ => None,
                    })
                    .collect(),
            ),
            Err(_) => {
                self.session = None;
                None
            }
        }
    }
}

/// Inserts rows and remembers those that were acknowledged; comes back after each crash.
fn write(
    cluster: &Cluster,
    writer: usize,
    working: &AtomicBool,
    acknowledged: &Mutex<Vec<(usize, i64)>>,
) {
    let mut number = 0i64;
    while working.load(Ordering::Relaxed) {
        let Ok(mut session) = cluster.try_connect("crash", "postgres") else {
            std::thread::yield_now();
            continue;
        };
        while working.load(Ordering::Relaxed) {
            number += 1;
            let insert = format!(
                "INSERT INTO log (at, writer, number) VALUES (timestamptz '2024-01-01' + {number} % 10000 * interval '37 minutes', {writer}, {number})"
            );
            if session.simple_query(&insert).is_err() {
                break;
            }
            acknowledged.lock().unwrap().push((writer, number));
        }
    }
}

/// Small, seeded, good enough to choose victims and moments.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

#[test]
fn nothing_is_lost_whoever_is_killed_while_a_default_is_emptied() {
    let cluster = Cluster::builder()
        .fast()
        .set("shared_buffers", "128MB")
        .set("restart_after_crash", "on")
        .start();
    let mut client = cluster.database("crash");
    client.run(&format!(
        "CREATE TABLE log (at timestamptz NOT NULL, writer int NOT NULL, number bigint NOT NULL, what text, PRIMARY KEY (at, writer, number))
             PARTITION BY RANGE (at);
         CREATE INDEX ON log (what, at);
         CREATE TABLE log_default PARTITION OF log DEFAULT;
         INSERT INTO log SELECT timestamptz '2024-01-01 00:00+00' + n * interval '4 minutes', 0, n, md5(n::text) FROM generate_series(1, {ROWS}) n"
    ));
    let seed =
        "SELECT count(*), sum(hash_record_extended(ROW(log.*), 0)) FROM log WHERE writer = 0";
    let before = client.rows(seed);
    let (working, acknowledged) = (AtomicBool::new(true), Mutex::new(Vec::new()));
    let mut hit = Vec::new();
    std::thread::scope(|scope| {
        let _stop = Stop(&working);
        for writer in 1..=2 {
            let (cluster, working, acknowledged) = (&cluster, &working, &acknowledged);
            scope.spawn(move || write(cluster, writer, working, acknowledged));
        }
        client.run("SELECT audit_db.manage_table('log', premake => 1)");
        let mut random = Random(20_240_101);
        let mut session = Lasting::new(&cluster, "crash");
        let mut before_pid = String::new();
        for round in 0..ROUNDS {
            // From the start of the exchange on, at a moment of its own.
            let slow = "SELECT pid, query FROM pg_stat_activity WHERE backend_type = 'audit_db slow worker'";
            let mut last: Vec<Vec<String>> = Vec::new();
            wait_until("the exchange begins by itself", LONG, || {
                last = session.ask(slow).unwrap_or_default();
                // For a moment the server does not know yet.
                last.retain(|row| row[0] != before_pid);
                !last.is_empty() || session.ask(DONE).is_some_and(|rows| rows[0][0] == "t")
            });
            if last.is_empty() {
                break;
            }
            before_pid.clone_from(&last[0][0]);
            // The later ones also when it may be done.
            let latest = if round < ROUNDS / 2 { 800 } else { 3_000 };
            let moment = Instant::now() + Duration::from_millis(random.below(latest));
            while Instant::now() < moment {
                match session.ask(slow) {
                    Some(now) if !now.is_empty() => last = now,
                    _ => break,
                }
            }
            let victim = match random.below(4) {
                0 => last[0][0].clone(),
                1 => "SELECT pid FROM audit_db.workers WHERE database = 'crash'".to_owned(),
                2 => "SELECT pg_backend_pid()".to_owned(),
                _ => String::new(),
            };
            let victim = if victim.starts_with("SELECT") {
                session
                    .ask(&victim)
                    .map_or(last[0][0].clone(), |rows| rows[0][0].clone())
            } else {
                victim
            };
            hit.push(format!(
                "{round}: {} at {}",
                if victim.is_empty() {
                    "immediate stop"
                } else {
                    "kill -9"
                },
                last[0][1]
            ));
            if victim.is_empty() {
                cluster.stop(Mode::Immediate);
                cluster.start();
            } else {
                cluster.signal("KILL", victim.parse().unwrap());
            }
        }
        wait_until("the default partition is emptied in the end", LONG, || {
            session.ask(DONE).is_some_and(|rows| rows[0][0] == "t")
        });
        working.store(false, Ordering::Relaxed);
    });
    println!("{hit:#?}");
    let mut client = connect(&cluster, "crash");
    wait_until("nothing is unfinished", LONG, || {
        client.holds("SELECT NOT EXISTS (SELECT FROM audit_db.unfinished) AND NOT EXISTS (SELECT FROM audit_db.workers WHERE slow_pid IS NOT NULL)")
    });
    assert_eq!(client.rows(seed), before, "none lost, none doubled");
    let acknowledged = acknowledged.into_inner().unwrap();
    let there: std::collections::HashSet<(usize, i64)> = client
        .rows("SELECT writer, number FROM log WHERE writer > 0")
        .into_iter()
        .map(|row| (row[0].parse().unwrap(), row[1].parse().unwrap()))
        .collect();
    let missing = acknowledged
        .iter()
        .filter(|row| !there.contains(row))
        .count();
    assert_eq!(missing, 0, "of {} acknowledged rows", acknowledged.len());
    println!("{} rows were acknowledged meanwhile", acknowledged.len());
    assert_eq!(client.value("SELECT count(*) FROM log_default"), "0");
    assert_eq!(
        client.column(
            "SELECT c.oid::regclass::text FROM pg_class c
              WHERE c.relname ~ 'staging|new_default|exchanged|^changes_' AND c.relkind IN ('r', 'p')
             UNION ALL SELECT tgname FROM pg_trigger WHERE tgname LIKE 'audit_db%'"
        ),
        Vec::<String>::new()
    );
    assert!(client.holds("SELECT bool_and(indisvalid) FROM pg_index"));
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// A detach that somebody began concurrently and that a crash interrupted is finished when the server is up again.
#[test]
fn a_pending_detach_is_finished_at_start() {
    let cluster = Cluster::builder().fast().start();
    let mut client = cluster.database("pending");
    client.run(
        "CREATE TABLE log (at timestamptz NOT NULL) PARTITION BY RANGE (at);
         SELECT audit_db.manage_table('log', premake => 1, default_partition => false);
         SELECT audit_db.create_partitions('log', '2024-01-01', 3);
         INSERT INTO log SELECT '2024-02-02' FROM generate_series(1, 7)",
    );
    for how in ["by hand", "by retention"] {
        // Somebody who has read the table keeps the second half from its locks.
        let mut reader = cluster.connect("pending");
        reader.run("BEGIN; SELECT count(*) FROM log");
        let mut detacher = cluster.connect("pending");
        std::thread::scope(|scope| {
            let detaching = scope.spawn(move || {
                if how == "by hand" {
                    let _ = detacher
                        .simple_query("ALTER TABLE log DETACH PARTITION log_2024_02 CONCURRENTLY");
                }
            });
            if how == "by retention" {
                client.run("SELECT audit_db.manage_table('log', premake => 1, default_partition => false, retention => '1 month', retention_action => 'detach')");
            }
            wait_until("the detach is pending", SOON, || {
                client.holds("SELECT EXISTS (SELECT FROM pg_inherits WHERE inhdetachpending)")
            });
            cluster.stop(Mode::Immediate);
            detaching.join().unwrap();
            cluster.start();
        });
        drop(reader);
        client = connect(&cluster, "pending");
        wait_until("it is finished", SOON, || {
            client.holds("SELECT NOT EXISTS (SELECT FROM pg_inherits WHERE inhdetachpending)")
        });
        if how == "by hand" {
            assert_eq!(client.value("SELECT count(*) FROM log_2024_02"), "7");
            assert_eq!(client.value("SELECT count(*) FROM log"), "0");
            assert_eq!(
                client.column(
                    "SELECT object FROM audit_db.events_log WHERE event = 'detach finished'"
                ),
                ["public.log_2024_02"]
            );
            // There again, for the other way.
            client.run("ALTER TABLE log ATTACH PARTITION log_2024_02 FOR VALUES FROM ('2024-02-01') TO ('2024-03-01')");
        }
    }
    wait_until("retention has done the rest", SOON, || {
        client.value("SELECT count(*) FROM audit_db.partition_info('log') WHERE range_end < now()")
            == "0"
    });
    assert_eq!(client.value("SELECT count(*) FROM log_2024_02"), "7");
    assert_eq!(
        client.value("SELECT count(*) FROM audit_db.unfinished"),
        "0"
    );
}

/// After the swap the old default partition is compared and dropped, after a crash too; one that differs is kept.
#[test]
fn the_old_default_goes_only_when_it_agrees() {
    let cluster = Cluster::builder()
        .fast()
        .set("audit_db.maintenance_interval", "1d")
        .set("audit_db.lock_retry", "300ms")
        .start();
    let mut client = cluster.database("verify");
    for spoilt in [false, true] {
        client.run(
            "CREATE TABLE log (at timestamptz NOT NULL, what text) PARTITION BY RANGE (at);
             CREATE TABLE log_default PARTITION OF log DEFAULT;
             INSERT INTO log SELECT timestamptz '2024-01-01' + n * interval '10 minutes' FROM generate_series(1, 5000) n",
        );
        // An old snapshot keeps the exchange from its swap until the log is locked.
        let mut old = cluster.connect("verify");
        old.run("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_class");
        client.run("SELECT audit_db.manage_table('log', premake => 1)");
        let mut log = String::new();
        wait_until("the log is there", SOON, || {
            let found = client.column(
                "SELECT relname FROM pg_class WHERE relname LIKE 'changes_%' AND relkind = 'r'",
            );
            log = found.into_iter().next().unwrap_or_default();
            !log.is_empty()
        });
        let mut reader = cluster.connect("verify");
        reader.run(&format!("BEGIN; SELECT count(*) FROM audit_db.{log}"));
        old.run("COMMIT");
        wait_until(
            "the old default is still there after the swap",
            SOON,
            || {
                client.holds(
                    "SELECT EXISTS (SELECT FROM audit_db.unfinished WHERE step = 'verification')
                    AND NOT EXISTS (SELECT FROM audit_db.workers WHERE slow_pid IS NOT NULL)",
                )
            },
        );
        assert_eq!(client.value("SELECT count(*) FROM log"), "5000");
        assert_eq!(client.value("SELECT count(*) FROM log_default"), "0");
        if spoilt {
            client.run("UPDATE log_default_exchanged SET what = 'spoilt' WHERE ctid = '(0,1)'");
        }
        cluster.stop(Mode::Immediate);
        cluster.start();
        drop((reader, old));
        client = connect(&cluster, "verify");
        wait_until("it is looked at again", SOON, || {
            client.holds("SELECT NOT EXISTS (SELECT FROM audit_db.unfinished)")
        });
        assert_eq!(client.value("SELECT count(*) FROM log"), "5000");
        let kept = client.column("SELECT to_regclass('log_default_exchanged')");
        let said = "SELECT sqlstate FROM audit_db.events_log WHERE event = 'default partition' AND severity = 'error'";
        if spoilt {
            assert_eq!(kept, ["log_default_exchanged"]);
            // Put on record after the look itself has ended.
            wait_until("it is said", SOON, || {
                client
                    .column(said)
                    .last()
                    .is_some_and(|state| state == "XX001")
            });
            assert_eq!(
                client.value("SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'audit_db%'"),
                "0"
            );
            assert!(client.number("SELECT count(*) FROM log_default_exchanged") > 1_000);
            client.run("DROP TABLE log_default_exchanged");
        } else {
            assert_eq!(kept, ["null"]);
        }
        client.run("DROP TABLE log; TRUNCATE audit_db.events_log");
    }
}

/// A standby is promoted while its primary is in the middle of an exchange: what was half done is cleared away, and done anew.
#[test]
fn a_standby_takes_over_in_the_middle() {
    let primary = Cluster::builder()
        .fast()
        .set("audit_db.maintenance_interval", "1d")
        .start();
    let mut client = primary.database("pair");
    client.run(
        "CREATE TABLE log (at timestamptz NOT NULL, what text) PARTITION BY RANGE (at);
         CREATE TABLE log_default PARTITION OF log DEFAULT;
         INSERT INTO log SELECT timestamptz '2024-01-01' + n * interval '10 minutes' FROM generate_series(1, 8000) n",
    );
    let standby = Cluster::builder()
        .fast()
        .set("audit_db.maintenance_interval", "1d")
        .start_standby_of(&primary);
    let mut old = primary.connect("pair");
    old.run("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_class");
    client.run("SELECT audit_db.manage_table('log', premake => 1)");
    wait_until("the exchange waits", SOON, || {
        client.holds("SELECT EXISTS (SELECT FROM pg_stat_activity WHERE query LIKE '%waiting for older snapshots%' AND backend_type = 'audit_db slow worker')")
    });
    client.run("INSERT INTO log VALUES ('2024-02-02', 'meanwhile')");
    let mut reader = standby.connect("pair");
    wait_until("the standby follows", SOON, || {
        reader.value("SELECT count(*) FROM log") == "8001"
    });
    assert!(reader.holds("SELECT EXISTS (SELECT FROM audit_db.unfinished)"));
    primary.stop(Mode::Immediate);
    standby.promote();
    wait_until("the new primary has done it all", LONG, || {
        reader.holds(
            "SELECT NOT EXISTS (SELECT FROM log_default) AND NOT EXISTS (SELECT FROM audit_db.unfinished)",
        )
    });
    assert_eq!(reader.value("SELECT count(*) FROM log"), "8001");
    assert_eq!(
        reader.column("SELECT event FROM audit_db.events_log WHERE severity = 'error'"),
        Vec::<String>::new()
    );
}
