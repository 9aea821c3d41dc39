//! Calls that a worker does for a session: their locks, their cancellation, and several at once.

use audit_db_e2e::{Cluster, SOON, Session, Shared, wait_until, wait_until_workers_rest};
use std::time::{Duration, Instant};

static CLUSTER: Shared = Shared::new(|| Cluster::builder().fast());

const TASKS: &str = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'audit_db task' AND datname = current_database()";

fn log_with_expired(database: &str) -> audit_db_e2e::Client {
    let mut client = CLUSTER.database(database);
    client.run(
        "CREATE TABLE log (at timestamptz) PARTITION BY RANGE (at);
         SELECT audit_db.manage_table('log', premake => 0);
         SELECT audit_db.create_partitions('log', '2001-01-01', 5)",
    );
    // Nobody else takes a hand in what follows.
    wait_until_workers_rest(&mut client);
    client
}

/// Sets the retention without waking the worker.
fn expire(client: &mut audit_db_e2e::Client) {
    client.run("UPDATE audit_db.managed_tables SET retention = '1 year'");
}

#[test]
fn a_locked_partition_is_given_up_and_the_others_go() {
    let mut client = log_with_expired("locked");
    let mut reader = CLUSTER.connect("locked");
    reader.run("BEGIN; SELECT count(*) FROM log_2001_01");
    expire(&mut client);
    // The session's own settings hold in the worker: by default it would try for ten seconds.
    client.run("SET audit_db.lock_retry = '300ms'; SET audit_db.lock_timeout = '50ms'");
    let started = Instant::now();
    let rows = client.rows("SELECT partition, action FROM audit_db.drop_expired_partitions('log')");
    assert!(started.elapsed() < Duration::from_secs(9));
    assert!(rows[0][1].starts_with("failed"), "{rows:?}");
    let done = rows.iter().filter(|row| row[1] == "dropped").count();
    assert_eq!(done, 3, "{rows:?}");
    assert_eq!(
        client.value("SELECT sqlstate FROM audit_db.events_log WHERE severity = 'error'"),
        "55P03"
    );
    reader.run("COMMIT");
    let rows = client.rows("SELECT partition, action FROM audit_db.drop_expired_partitions('log')");
    assert!(rows.iter().all(|row| row[1] == "dropped"), "{rows:?}");
    assert_eq!(
        client.number("SELECT count(*) FROM audit_db.partition_info WHERE range_end < now()"),
        0
    );
}

#[test]
fn a_cancelled_session_stops_the_worker() {
    let mut client = log_with_expired("cancelled");
    let mut reader = CLUSTER.connect("cancelled");
    reader.run("BEGIN; SELECT count(*) FROM log");
    expire(&mut client);
    client.run("SET statement_timeout = '400ms'; SET audit_db.lock_retry = '2s'");
    assert_eq!(
        client.sqlstate("SELECT * FROM audit_db.drop_expired_partitions('log')"),
        "57014"
    );
    client.run("RESET statement_timeout");
    wait_until("the worker has stopped", SOON, || client.number(TASKS) == 0);
    assert_eq!(
        client.number("SELECT count(*) FROM audit_db.partition_info WHERE range_end < now()"),
        5
    );
    reader.run("COMMIT");
}

#[test]
fn two_sessions_at_once_lose_nothing_and_fail_in_nothing() {
    let mut client = log_with_expired("twice");
    client.run("SELECT audit_db.create_partitions('log', '1990-01-01', 40)");
    expire(&mut client);
    let dropped: usize = std::thread::scope(|scope| {
        let sessions: Vec<_> = (0..2)
            .map(|_| {
                let mut session = CLUSTER.connect("twice");
                scope.spawn(move || {
                    let mut dropped = 0;
                    for _ in 0..12 {
                        let rows = session
                            .rows("SELECT action FROM audit_db.drop_expired_partitions('log')");
                        assert!(
                            !rows.iter().any(|row| row[0].starts_with("failed")),
                            "{rows:?}"
                        );
                        dropped += rows.iter().filter(|row| row[0] == "dropped").count();
                    }
                    dropped
                })
            })
            .collect();
        sessions
            .into_iter()
            .map(|session| session.join().unwrap())
            .sum()
    });
    assert_eq!(dropped, 45);
    assert_eq!(
        client.number("SELECT count(*) FROM audit_db.partition_info WHERE range_end < now()"),
        0
    );
    assert_eq!(
        client.number("SELECT count(*) FROM audit_db.events_log WHERE event = 'partition dropped'"),
        45
    );
}

#[test]
fn writers_get_through_while_a_reader_keeps_retention_away() {
    let mut client = log_with_expired("writers");
    let mut reader = CLUSTER.connect("writers");
    reader.run("BEGIN; SELECT count(*) FROM log");
    expire(&mut client);
    let mut writer = CLUSTER.connect("writers");
    let (sender, receiver) = std::sync::mpsc::channel();
    let longest = std::thread::scope(|scope| {
        scope.spawn(move || {
            client.run("SET audit_db.lock_retry = '1s'");
            let rows = client.rows("SELECT action FROM audit_db.drop_expired_partitions('log')");
            sender.send(rows).unwrap();
        });
        let mut longest = Duration::ZERO;
        loop {
            let started = Instant::now();
            writer.run("INSERT INTO log VALUES (now())");
            longest = longest.max(started.elapsed());
            if let Ok(rows) = receiver.try_recv() {
                assert!(rows[0][0].starts_with("failed"), "{rows:?}");
                assert!(!rows.iter().any(|row| row[0] == "dropped"), "{rows:?}");
                return longest;
            }
        }
    });
    println!("longest INSERT behind a reader: {longest:?}");
    assert!(longest < Duration::from_secs(2));
}

/// A query that has read the list of partitions, and then waits for the default while rows leave it, must not miss them.
#[test]
fn readers_never_miss_rows_that_move() {
    const MONTHS: usize = 40;
    let mut client = CLUSTER.database("movers");
    client.run(&format!(
        "CREATE TABLE log (at timestamptz NOT NULL, id int) PARTITION BY RANGE (at);
         SELECT audit_db.manage_table('log', premake => 0, retention => '1 year');
         INSERT INTO log SELECT timestamptz '2001-01-15' + make_interval(months => n % {MONTHS}), n FROM generate_series(1, 800) n"
    ));
    // The cycle that manage_table asks for would find the first of these months expired.
    wait_until_workers_rest(&mut client);
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|_| {
                let mut reader = CLUSTER.connect("movers");
                let done = &done;
                scope.spawn(move || {
                    let mut queries = 0;
                    while !done.load(std::sync::atomic::Ordering::Relaxed) {
                        assert_eq!(reader.number("SELECT count(*) FROM log"), 800);
                        queries += 1;
                    }
                    queries
                })
            })
            .collect();
        for month in 0..MONTHS {
            client.run(&format!(
                "SELECT audit_db.create_partition('log', timestamp '2001-01-01' + make_interval(months => {month}))"
            ));
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        for reader in readers {
            assert!(reader.join().unwrap() > 0);
        }
    });
    assert_eq!(client.number("SELECT count(*) FROM log_default"), 0);
    assert_eq!(
        client.number("SELECT count(*) FROM log WHERE tableoid <> 'log_default'::regclass"),
        800
    );
}
