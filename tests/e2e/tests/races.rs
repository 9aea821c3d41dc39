//! Two sessions and the worker make the same partition at the same time.

use audit_db_e2e::{Cluster, SOON, Session, wait_until};
use std::sync::Barrier;
use std::sync::mpsc;

const ROUNDS: usize = 200;

/// What each round wants: a month of the past that a row waits for in the default partition, so that the worker wants it too.
const MONTH: &str = "2024-03-01";

#[test]
fn one_partition_whoever_makes_it() {
    let cluster = Cluster::builder()
        .fast()
        .set("audit_db.maintenance_interval", "100ms")
        .start();
    let mut control = cluster.database("races");
    control.run(
        "CREATE TABLE log (at timestamptz NOT NULL, round int NOT NULL, PRIMARY KEY (at, round)) PARTITION BY RANGE (at);
         SELECT audit_db.manage_table('log', premake => 1)",
    );

    let barrier = Barrier::new(3);
    let (results, received) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let (barrier, results, mut client) =
                (&barrier, results.clone(), cluster.connect("races"));
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    barrier.wait();
                    // In every other round the worker gets a head start: its cycle has begun, and it competes for the locks.
                    if round % 2 == 1 {
                        wait_for_waking(&mut client);
                    }
                    let outcome = client
                        .query_one(
                            "SELECT audit_db.create_partition('log', $1::text::date)::text",
                            &[&MONTH],
                        )
                        .map(|row| row.get::<_, String>(0))
                        .map_err(|error| format!("{error:?}"));
                    results.send((round, outcome)).unwrap();
                    barrier.wait();
                }
            });
        }
        for round in 0..ROUNDS {
            // All at once: the month goes, a row for it comes, and the worker is woken at the commit.
            control.run(&format!(
                "BEGIN;
                 DROP TABLE IF EXISTS log_2024_03;
                 INSERT INTO log VALUES (timestamptz '2024-03-17 12:00+00', {round});
                 SELECT audit_db.manage_table('log', premake => 1);
                 COMMIT"
            ));
            barrier.wait();
            barrier.wait();
            for _ in 0..2 {
                let (of_round, outcome) = received.recv_timeout(SOON).unwrap();
                assert_eq!(of_round, round);
                assert_eq!(outcome, Ok("log_2024_03".to_owned()), "round {round}");
            }
            assert_eq!(
                control.rows("SELECT tableoid::regclass, round FROM log"),
                [["log_2024_03".to_owned(), round.to_string()]],
                "round {round}"
            );
            assert_eq!(
                control.value(
                    "SELECT count(*) FROM audit_db.partition_info('log') WHERE range_start = '2024-03-01 00:00+00'"
                ),
                "1",
                "round {round}"
            );
        }
    });

    assert_eq!(
        control.rows("SELECT event, sqlstate, message, detail FROM audit_db.events_log WHERE severity = 'error'"),
        Vec::<Vec<String>>::new()
    );
    let by_worker = control.number(
        "SELECT count(*) FROM audit_db.events_log WHERE event = 'partition created' AND object = 'public.log_2024_03'",
    );
    println!("the worker was first in {by_worker} of {ROUNDS} rounds");
    assert!(by_worker >= 1, "the worker never took part");
    assert!(by_worker < ROUNDS as i64, "the sessions never took part");
}

/// Until the worker is in a cycle, or has made the month already.
fn wait_for_waking(client: &mut audit_db_e2e::Client) {
    wait_until("the worker wakes", SOON, || {
        client.holds(
            "SELECT state = 'running' OR to_regclass('log_2024_03') IS NOT NULL
               FROM audit_db.workers WHERE database = current_database()",
        )
    });
}

/// A session that comes while a month is being made waits for it; then it neither misses a row that moved nor is refused.
#[test]
fn who_waited_for_a_new_month_finds_every_row() {
    // Without workers: the month is made by nobody else.
    let cluster = Cluster::builder().fast().not_preloaded().start();
    let mut maker = cluster.database("waiting");
    maker.run(
        "CREATE TABLE log (at timestamptz NOT NULL, what text) PARTITION BY RANGE (at);
         SELECT audit_db.manage_table('log', premake => 1)",
    );
    // Not the maker: inside a transaction pg_stat_activity does not change.
    let mut watcher = cluster.connect("waiting");
    let mut wrong = Vec::new();
    for (waiting_rows, sql, expected) in [
        (100, "SELECT count(*) FROM log", "100"),
        (
            100,
            "SELECT count(*) FROM log WHERE at < '2025-01-01 00:00+00'",
            "100",
        ),
        (100, "EXECUTE counting", "100"),
        (
            100,
            "WITH new AS (UPDATE log SET what = 'seen' RETURNING at) SELECT count(*) FROM new",
            "100",
        ),
        (
            100,
            "WITH old AS (DELETE FROM log RETURNING at) SELECT count(*) FROM old",
            "100",
        ),
        (
            100,
            "WITH new AS (INSERT INTO log VALUES ('2024-03-20 00:00+00') RETURNING at) SELECT count(*) FROM new",
            "1",
        ),
        (
            0,
            "WITH new AS (INSERT INTO log VALUES ('2024-03-20 00:00+00') RETURNING at) SELECT count(*) FROM new",
            "1",
        ),
    ] {
        maker.run(&format!(
            "TRUNCATE log; DROP TABLE IF EXISTS log_2024_03;
             INSERT INTO log SELECT timestamptz '2024-03-17 12:00+00' FROM generate_series(1, {waiting_rows})"
        ));
        let mut waiter = cluster.connect("waiting");
        waiter.run("SET plan_cache_mode = force_generic_plan; PREPARE counting AS SELECT count(*) FROM log; EXECUTE counting");
        let pid = waiter.value("SELECT pg_backend_pid()");
        maker.run("BEGIN");
        maker.run("SELECT audit_db.create_partition('log', '2024-03-01')");
        let outcome = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| waiter.outcome(sql));
            wait_until("it waits for a lock", SOON, || {
                watcher.holds(&format!(
                    "SELECT wait_event_type IS NOT DISTINCT FROM 'Lock' FROM pg_stat_activity WHERE pid = {pid}"
                ))
            });
            maker.run("COMMIT");
            waiting.join().unwrap()
        });
        if outcome != Ok(expected.to_owned()) {
            wrong.push((waiting_rows, sql, outcome));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
