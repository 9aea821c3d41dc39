//! The table in which a database's worker keeps its slow statements: what is stored, what is lost, what expires.

use audit_db_e2e::{Client, Cluster, Mode, SOON, Session, Shared, wait_until};

static SHARED: Shared = Shared::new(|| {
    Cluster::builder()
        .fast()
        .set("max_worker_processes", "64")
        .set("audit_db.slow_query_threshold", "200ms")
});

fn is_stored(client: &mut Client, mark: &str) {
    wait_until(mark, SOON, || {
        client.number(&format!(
            "SELECT count(*) FROM audit_db.slow_query_log WHERE query LIKE '%AS {mark}%'"
        )) == 1
    });
}

/// A statement that is captured whatever it takes.
fn slow(client: &mut Client, mark: &str) {
    client.run(&format!(
        "SET audit_db.slow_query_threshold = 0; SELECT 1 AS {mark}; RESET audit_db.slow_query_threshold"
    ));
}

fn end_worker(client: &mut Client) {
    client.run("SELECT pg_terminate_backend(pid) FROM audit_db.workers WHERE database = current_database()");
}

#[test]
fn a_day_without_a_partition_gets_one() {
    let mut client = SHARED.database("days");
    slow(&mut client, "first_one");
    is_stored(&mut client, "first_one");
    // As if the worker had been away until the next day.
    client.run(
        "DO $$ DECLARE day text; BEGIN
           FOR day IN SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'audit_db.slow_query_log'::regclass LOOP
             EXECUTE 'ALTER EXTENSION audit_db DROP TABLE ' || day; EXECUTE 'DROP TABLE ' || day;
           END LOOP; END $$",
    );
    // Somebody who reads the log is in nobody's way.
    let mut reader = SHARED.connect("days");
    reader.run("BEGIN; SELECT count(*) FROM audit_db.slow_query_log");
    slow(&mut client, "second_one");
    is_stored(&mut client, "second_one");
    reader.run("COMMIT");
}

#[test]
fn rows_of_another_run_hold_nothing_up() {
    let mut client = SHARED.database("other_run");
    slow(&mut client, "before_it");
    is_stored(&mut client, "before_it");
    // As after a failover: the old server's rows are newer than this one's start, and have numbers of their own.
    client.run(
        "INSERT INTO audit_db.slow_query_log (captured_at, sequence, query, database, duration_ms, status)
         SELECT clock_timestamp(), sequence + (1000000::bigint << 20), 'of another run', 'other_run', 1, 'ok'
           FROM audit_db.slow_query_log LIMIT 1",
    );
    end_worker(&mut client);
    slow(&mut client, "after_it");
    is_stored(&mut client, "after_it");
    assert_eq!(
        client
            .number("SELECT count(*) FROM audit_db.slow_query_log WHERE query LIKE '%before_it%'"),
        1
    );
}

#[test]
fn what_expires_does_so_one_by_one() {
    let mut client = SHARED.database("expires");
    client.run(
        "INSERT INTO audit_db.metrics_history (sampled_at) VALUES (now() - interval '40 days');
         CREATE TABLE audit_db.slow_query_log_2020_01_01 PARTITION OF audit_db.slow_query_log
         FOR VALUES FROM ('2020-01-01 00:00:00+00') TO ('2020-01-02 00:00:00+00');
         CREATE TABLE audit_db.slow_query_log_2020_01_02 PARTITION OF audit_db.slow_query_log
         FOR VALUES FROM ('2020-01-02 00:00:00+00') TO ('2020-01-03 00:00:00+00');
         ALTER EXTENSION audit_db ADD TABLE audit_db.slow_query_log_2020_01_01;
         ALTER EXTENSION audit_db ADD TABLE audit_db.slow_query_log_2020_01_02;
         CREATE VIEW depends AS SELECT * FROM audit_db.slow_query_log_2020_01_01",
    );
    // A worker looks for what has expired when it starts, also where nothing is slow.
    end_worker(&mut client);
    wait_until("what nothing depends on has gone", SOON, || {
        client.holds(
            "SELECT to_regclass('audit_db.slow_query_log_2020_01_02') IS NULL
                AND NOT EXISTS (SELECT FROM audit_db.metrics_history WHERE sampled_at < now() - interval '30 days')",
        )
    });
    assert!(client.holds("SELECT to_regclass('audit_db.slow_query_log_2020_01_01') IS NOT NULL"));
    slow(&mut client, "in_spite_of_it");
    is_stored(&mut client, "in_spite_of_it");
}

#[test]
fn losses_are_those_that_were_not_stored() {
    let cluster = Cluster::builder()
        .fast()
        .set("audit_db.slow_query_ring_size", "256kB")
        .set("audit_db.slow_query_plan", "off")
        .start();
    let mut busy = cluster.database("busy");
    let mut quiet = cluster.database("quiet");
    let mut watch = cluster.connect("busy");
    let lost = |client: &mut Client| {
        client.number("SELECT slow_queries_lost FROM audit_db.performance_metrics")
    };
    busy.run("SET audit_db.slow_query_threshold = 0");
    for number in 0..60 {
        busy.run(&format!("SELECT {number} AS paced"));
        if number % 10 == 9 {
            let sofar = number + 1;
            wait_until("stored", SOON, || {
                watch.number("SELECT count(*) FROM audit_db.slow_query_log WHERE query LIKE 'SELECT $1 AS paced'")
                    >= sofar
            });
        }
    }
    // One statement of a database that has looked at nothing until now.
    slow(&mut quiet, "of_the_quiet_one");
    is_stored(&mut quiet, "of_the_quiet_one");
    assert_eq!(lost(&mut quiet), 0);

    // Overwritten while the worker is stopped: counted, each once.
    let pid = busy.number("SELECT pid FROM audit_db.workers WHERE database = 'busy'");
    cluster.signal("STOP", u32::try_from(pid).unwrap());
    let burst: String = (0..500)
        .map(|number| format!("SELECT {number} AS burst;"))
        .collect();
    busy.batch_execute(&burst).unwrap();
    cluster.signal("CONT", u32::try_from(pid).unwrap());
    busy.run("RESET audit_db.slow_query_threshold");
    slow(&mut busy, "after_the_burst");
    is_stored(&mut busy, "after_the_burst");
    let stored =
        watch.number("SELECT count(*) FROM audit_db.slow_query_log WHERE query LIKE '%AS burst%'");
    let lost_now = lost(&mut busy);
    assert!(
        stored < 500 && lost_now > 0,
        "{stored} stored, {lost_now} lost"
    );
    busy.run("SELECT audit_db.reset_stats('slow_queries')");
    slow(&mut busy, "after_the_reset");
    is_stored(&mut busy, "after_the_reset");
    assert_eq!(lost(&mut busy), 0);
    cluster.stop(Mode::Fast);
}

#[test]
fn other_encodings_can_read_what_is_not_theirs() {
    let mut client = SHARED.database("in_utf8");
    client.run("CREATE DATABASE in_latin1 ENCODING 'LATIN1' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'");
    client.run("CREATE DATABASE in_euc_jp ENCODING 'EUC_JP' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'");
    client.run("SET audit_db.query_stats = on");
    slow(&mut client, "\"日本語é_mark\"");
    for database in ["in_latin1", "in_euc_jp"] {
        let mut other = SHARED.connect(database);
        other.run("CREATE EXTENSION audit_db");
        for view in ["slow_queries", "query_stats"] {
            assert_eq!(
                other.rows(&format!(
                    "SELECT query FROM audit_db.{view} WHERE query LIKE '%\\_mark%' AND database = 'in_utf8'"
                )),
                [["SELECT $1 AS \"????_mark\""]],
                "{view} in {database}"
            );
        }
    }
}
