//! Slow statements and statistics, as clients of several kinds see them.

use audit_db_e2e::{Client, Cluster, SOON, Session, Shared, wait_until};
use std::io::Write as _;
use std::time::Instant;

static SHARED: Shared = Shared::new(|| {
    Cluster::builder()
        .fast()
        .set("max_worker_processes", "64")
        .set("audit_db.slow_query_threshold", "200ms")
        .set("audit_db.slow_query_ring_size", "32MB")
        .set("audit_db.query_stats", "on")
        .set("audit_db.query_stats_max", "1000")
        .set("audit_db.metrics_interval", "1s")
});

/// Slow statements of this database whose text holds `part`: level, status, SQLSTATE, whole milliseconds, rows.
fn slow(client: &mut Client, part: &str) -> Vec<Vec<String>> {
    client.rows(&format!(
        "SELECT nested_level, status, sqlstate, trunc(duration_ms)::int, rows FROM audit_db.slow_queries
          WHERE database = current_database() AND query LIKE '%{part}%' AND status <> 'running'"
    ))
}

/// Checks that one statement was captured, and that it took no less than it slept and no more than the client waited.
#[track_caller]
fn once(client: &mut Client, part: &str, level: &str, status: &str, least: i64, started: Instant) {
    let most = started.elapsed().as_millis() as i64;
    // The client has an error before the server has cleaned up after it.
    wait_until(part, SOON, || !slow(client, part).is_empty());
    let found: Vec<_> = slow(client, part)
        .into_iter()
        .filter(|row| row[0] == level)
        .collect();
    assert_eq!(found.len(), 1, "{part}: {found:?}");
    assert_eq!(found[0][1], status, "{part}");
    let took: i64 = found[0][3].parse().unwrap();
    assert!((least..=most).contains(&took), "{part}: {took} of {most}");
}

#[test]
fn every_kind_of_slow_statement_is_captured_once() {
    let mut client = SHARED.database("kinds");
    let mut watch = SHARED.connect("kinds");
    client.run(
        "CREATE TABLE some_rows AS SELECT i FROM generate_series(1, 5) i;
         CREATE TABLE big_table AS SELECT i FROM generate_series(1, 200000) i; ANALYZE big_table;
         CREATE FUNCTION sleeper() RETURNS void LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.21) AS in_function; END $$;
         CREATE FUNCTION slow_row(integer) RETURNS integer LANGUAGE plpgsql PARALLEL SAFE AS
         $$ BEGIN IF $1 % 100000 = 0 THEN PERFORM pg_sleep(0.25); END IF; RETURN $1; END $$",
    );

    let started = Instant::now();
    client.run("SELECT pg_sleep(0.3) AS plain");
    once(&mut watch, "AS plain", "0", "ok", 300, started);

    let started = Instant::now();
    assert_eq!(
        client.sqlstate("SELECT pg_sleep(0.25), 1 / (i - 1) AS fails FROM some_rows"),
        "22012"
    );
    once(&mut watch, "AS fails", "0", "error", 250, started);
    assert_eq!(slow(&mut watch, "AS fails")[0][2], "22012");

    let started = Instant::now();
    client.run("SET statement_timeout = '250ms'");
    assert_eq!(
        client.sqlstate("SELECT pg_sleep(60) AS cancelled_one"),
        "57014"
    );
    client.run("RESET statement_timeout");
    // The server's timer runs from before the executor.
    once(
        &mut watch,
        "AS cancelled_one",
        "0",
        "cancelled",
        200,
        started,
    );

    let started = Instant::now();
    client.run("SELECT sleeper() AS calls_it");
    once(&mut watch, "AS calls_it", "0", "ok", 210, started);
    once(&mut watch, "AS in_function", "1", "ok", 210, started);

    let started = Instant::now();
    client.run(
        "BEGIN; DECLARE pieces CURSOR FOR SELECT i, pg_sleep(0.1) AS in_pieces FROM some_rows",
    );
    for _ in 0..3 {
        client.run("FETCH 1 FROM pieces");
    }
    client.run("COMMIT");
    once(&mut watch, "AS in_pieces", "0", "ok", 300, started);
    assert_eq!(slow(&mut watch, "AS in_pieces")[0][4], "3");
    assert!(slow(&mut watch, "FETCH").is_empty());

    // One that a ROLLBACK closes, and one that an error of another statement does.
    for (end, name) in [
        ("ROLLBACK", "rolled_back"),
        ("SELECT nothing", "swept_away"),
    ] {
        let started = Instant::now();
        client.run(&format!(
            "BEGIN; DECLARE c CURSOR FOR SELECT i, pg_sleep(0.25) AS {name} FROM some_rows; FETCH 1 FROM c"
        ));
        client.sqlstate(end);
        client.run("ROLLBACK");
        once(&mut watch, &format!("AS {name}"), "0", "ok", 250, started);
    }

    let started = Instant::now();
    let statement = client
        .prepare("SELECT pg_sleep($1) AS prepared_one")
        .unwrap();
    client.query(&statement, &[&0.22f64]).unwrap();
    once(&mut watch, "AS prepared_one", "0", "ok", 220, started);

    let started = Instant::now();
    client.run("PREPARE by_name AS SELECT pg_sleep(0.22) AS executed_one; EXECUTE by_name; DEALLOCATE by_name");
    once(&mut watch, "AS executed_one", "0", "ok", 220, started);

    let started = Instant::now();
    client.run("CREATE TABLE copied (i int)");
    client.run(
        "CREATE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.13); RETURN NEW; END $$;
         CREATE TRIGGER slowly BEFORE INSERT ON copied FOR EACH ROW EXECUTE FUNCTION slowly()",
    );
    let mut copy = client.copy_in("COPY copied FROM STDIN").unwrap();
    copy.write_all(b"1\n2\n").unwrap();
    assert_eq!(copy.finish().unwrap(), 2);
    once(&mut watch, "COPY copied", "0", "ok", 260, started);
    assert_eq!(slow(&mut watch, "COPY copied")[0][4], "2");

    let started = Instant::now();
    client.run("DO $$ BEGIN PERFORM pg_sleep(0.21) AS in_block; END $$");
    once(&mut watch, "DO", "0", "ok", 210, started);
    once(&mut watch, "AS in_block", "1", "ok", 210, started);

    // What a function catches is an error on its level and none above.
    let started = Instant::now();
    client.run(
        "DO $$ BEGIN PERFORM pg_sleep(0.21), 1 / (i - 1) AS caught_one FROM some_rows; EXCEPTION WHEN division_by_zero THEN NULL; END $$",
    );
    once(&mut watch, "AS caught_one", "1", "error", 210, started);
    // And the levels are right again afterwards.
    let started = Instant::now();
    client.run("SELECT pg_sleep(0.21) AS after_it");
    once(&mut watch, "AS after_it", "0", "ok", 210, started);

    // A procedure that ends transactions is one statement.
    let started = Instant::now();
    client.run(
        "CREATE PROCEDURE steps() LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.11); COMMIT; PERFORM pg_sleep(0.11); ROLLBACK; END $$",
    );
    client.run("CALL steps()");
    once(&mut watch, "CALL steps()", "0", "ok", 220, started);

    // Parallel workers count with their leader.
    client.run(
        "SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0;
         SET max_parallel_workers_per_gather = 2",
    );
    let started = Instant::now();
    client.run("SELECT count(slow_row(i)) AS in_parallel FROM big_table");
    let parallel: Vec<_> = slow(&mut watch, "AS in_parallel");
    assert_eq!(parallel.len(), 1);
    assert!(started.elapsed().as_millis() as i64 >= parallel[0][3].parse::<i64>().unwrap());
    assert!(watch.holds(
        "SELECT plan::text LIKE '%Gather%' AND shared_blks_hit + shared_blks_read > 800 FROM audit_db.slow_queries WHERE query LIKE '%AS in_parallel%'"
    ));

    // A session that is terminated in its statement.
    let started = Instant::now();
    let pid = client.number("SELECT pg_backend_pid()");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            assert!(
                client
                    .simple_query("SELECT pg_sleep(60) AS terminated_one")
                    .is_err()
            );
        });
        wait_until("it runs", SOON, || {
            watch.holds(&format!(
                "SELECT count(*) = 1 FROM audit_db.slow_queries WHERE status = 'running' AND pid = {pid} AND duration_ms > 250
                    AND query = 'SELECT pg_sleep($1) AS terminated_one' AND waits ? 'Timeout:PgSleep'"
            ))
        });
        watch.run(&format!("SELECT pg_terminate_backend({pid})"));
    });
    wait_until("it is on record", SOON, || {
        slow(&mut watch, "AS terminated_one").len() == 1
    });
    once(&mut watch, "AS terminated_one", "0", "error", 250, started);

    // All of it is kept in the table, once.
    let ours = "WHERE database = current_database() AND status <> 'running'";
    let count = watch.number(&format!(
        "SELECT count(*) FROM audit_db.slow_queries {ours}"
    ));
    wait_until("the worker has stored them", SOON, || {
        watch.number("SELECT count(*) FROM audit_db.slow_query_log") >= count
    });
    assert!(watch.holds(&format!(
        "SELECT count(*) = 0 FROM audit_db.slow_queries q {ours} AND (SELECT count(*) FROM audit_db.slow_query_log l
          WHERE l.captured_at = q.captured_at AND l.query = q.query AND l.status = q.status) <> 1"
    )));
    wait_until("metrics are stored", SOON, || {
        watch.holds("SELECT count(*) >= 2 AND max(queries_slow) > 0 FROM audit_db.metrics_history")
    });
}

#[test]
fn a_plan_shows_what_happened_from_the_second_time_on() {
    let mut client = SHARED.database("plans");
    client.run(
        "CREATE TABLE planned AS SELECT i FROM generate_series(1, 1000) i; ANALYZE planned;
         SET audit_db.slow_query_threshold = 0; SET audit_db.slow_query_plan = 'analyze'",
    );
    for _ in 0..3 {
        client.run("SELECT count(*) AS twice FROM planned WHERE i < 500");
    }
    assert_eq!(
        client.rows(
            "SELECT plan->>'actual', plan #>> '{Plan,Plans,0,Actual Rows}', plan #>> '{Plan,Plans,0,Filter}'
               FROM audit_db.slow_queries WHERE query LIKE '%AS twice%' ORDER BY captured_at"
        ),
        [
            ["false", "null", "(i < $1)"],
            ["true", "499", "(i < $1)"],
            ["true", "499", "(i < $1)"]
        ]
    );
    client.run("SET audit_db.slow_query_plan = 'off'; SELECT 1 AS no_plan");
    assert!(
        client.holds(
            "SELECT plan IS NULL FROM audit_db.slow_queries WHERE query LIKE '%AS no_plan%'"
        )
    );
}

#[test]
fn parameters_are_kept_as_the_setting_says() {
    let mut client = SHARED.database("parameters");
    client.run("SET audit_db.slow_query_threshold = 0");
    for mode in ["none", "types", "full"] {
        client.run(&format!("SET audit_db.slow_query_parameters = '{mode}'"));
        client
            .query(&format!("SELECT $1::text, 42 AS mode_{mode}"), &[&"Smith"])
            .unwrap();
    }
    assert_eq!(
        client.rows(
            "SELECT query, parameters FROM audit_db.slow_queries WHERE query LIKE '%AS mode%' ORDER BY captured_at"
        ),
        [
            ["SELECT $1::text, $2 AS mode_none", "null"],
            ["SELECT $1::text, $2 AS mode_types", r#"[{"type": "text"}]"#],
            [
                "SELECT $1::text, 42 AS mode_full",
                r#"[{"type": "text", "value": "Smith"}]"#
            ],
        ]
    );
}

#[test]
fn percentiles_are_those_of_the_durations() {
    let mut client = SHARED.database("percentiles");
    client.run("SET audit_db.slow_query_threshold = 0");
    for step in 0..300 {
        // 1 to 20 ms, most of them short.
        let milliseconds = 1 + (step * step) / 4_700;
        client.run(&format!(
            "SELECT pg_sleep(0.001 * {milliseconds}) AS distributed"
        ));
    }
    let exact =
        "SELECT percentile_disc(%) WITHIN GROUP (ORDER BY duration_ms) FROM audit_db.slow_queries
                  WHERE query LIKE '%AS distributed%' AND database = current_database()";
    for (column, part) in [("p50_ms", "0.5"), ("p95_ms", "0.95"), ("p99_ms", "0.99")] {
        let exact: f64 = client.value(&exact.replacen('%', part, 1)).parse().unwrap();
        let found: f64 = client
            .value(&format!(
                "SELECT {column} FROM audit_db.query_stats WHERE query LIKE '%AS distributed%' AND database = current_database()"
            ))
            .parse()
            .unwrap();
        println!("{column}: {found:.3} ms, exact {exact:.3} ms");
        assert!(
            (found / exact - 1.0).abs() <= 0.12,
            "{column}: {found} {exact}"
        );
    }
    assert_eq!(
        client.rows(
            "SELECT calls, errors, rows, top_level FROM audit_db.query_stats
              WHERE query LIKE '%AS distributed%' AND database = current_database()"
        ),
        [["300", "0", "300", "t"]]
    );
}

#[test]
fn ten_thousand_statements_in_room_for_a_thousand() {
    // The totals are those of the whole server: nobody else may be there.
    let cluster = Cluster::builder()
        .fast()
        .set("audit_db.query_stats", "on")
        .set("audit_db.query_stats_max", "1000")
        .set("autovacuum", "off")
        .start();
    let mut client = cluster.connect("postgres");
    client.run("CREATE EXTENSION audit_db");
    client.run("SELECT audit_db.reset_stats()");
    let mut longest = 0.0f64;
    for number in 0..10_000u32 {
        let operators: Vec<&str> = (0..14)
            .map(|bit| {
                if number >> bit & 1 == 1 {
                    "1 + 1"
                } else {
                    "1 - 1"
                }
            })
            .collect();
        let started = Instant::now();
        client.run(&format!("SELECT {}", operators.join(", ")));
        longest = longest.max(started.elapsed().as_secs_f64() * 1e3);
    }
    // Only what ran since the reset, and this one is not over.
    assert_eq!(
        client.rows("SELECT queries_total, queries_failed FROM audit_db.performance_metrics"),
        [["10001", "0"]]
    );
    let kept = client.number("SELECT count(*) FROM audit_db.query_stats");
    let evicted = client.number("SELECT query_stats_evicted FROM audit_db.performance_metrics");
    println!("kept {kept}, made room {evicted}, longest statement {longest:.1} ms");
    assert!((500..=1_024).contains(&kept), "{kept}");
    assert!(kept + evicted >= 10_000, "{kept} {evicted}");
    assert!(client.holds("SELECT bool_and(query IS NOT NULL) FROM audit_db.query_stats"));
    // Statements of several sessions add up, also of those that are gone.
    client.run("SELECT audit_db.reset_stats('query_stats')");
    for _ in 0..5 {
        let mut other = cluster.connect("postgres");
        other.run("SELECT 'counted' AS of_many");
        assert_eq!(
            other.sqlstate("SELECT 1 / (random() * 0)::int AS of_failed"),
            "22012"
        );
    }
    assert_eq!(
        client.rows(
            "SELECT substring(query from 'of_\\w+'), calls, errors FROM audit_db.query_stats WHERE query LIKE '%AS of_%' ORDER BY 1"
        ),
        [["of_failed", "5", "5"], ["of_many", "5", "0"]]
    );
}

/// Stands for health data.
const MARKER: &str = "Zq7marker";
const NUMBER: &str = "918273645546372";

#[test]
fn health_data_goes_nowhere() {
    let mut client = SHARED.database("phi");
    client.run(
        "SET audit_db.slow_query_threshold = 0; SET audit_db.slow_query_plan = 'analyze';
         CREATE TABLE patient (id int PRIMARY KEY, name text UNIQUE, CHECK (name <> 'nobody'));
         INSERT INTO patient SELECT i, 'n' || i FROM generate_series(1, 100) i; ANALYZE patient",
    );
    let statements = [
        "SELECT * FROM patient WHERE name = 'MARK'",
        "SELECT * FROM patient WHERE name = 'MARK'",
        "SELECT * FROM patient WHERE id = NUM % 7",
        "SELECT * FROM patient WHERE name IN ('a', 'MARK')",
        "SELECT * FROM patient WHERE name = ANY (ARRAY['MARK', 'b'])",
        "SELECT * FROM patient WHERE name LIKE 'MARK%'",
        "SELECT * FROM patient WHERE name ~ '^MARK'",
        "SELECT * FROM patient WHERE lower(name) = lower(E'MARK\\n')",
        "SELECT * FROM patient WHERE name = U&'MARK'",
        "SELECT * FROM patient WHERE name = $$MARK$$",
        "SELECT * FROM patient WHERE name = $x$MARK$x$",
        "SELECT /* MARK */ 1",
        "SELECT 1 -- MARK",
        "/* MARK */ BEGIN; COMMIT",
        "SELECT NUM, NUM.5, 1e3, 'MARK' || id FROM patient",
        "INSERT INTO patient VALUES (1000, 'MARK')",
        "INSERT INTO patient VALUES (1001, 'MARK')",
        "INSERT INTO patient VALUES (1, 'MARK2')",
        "INSERT INTO patient VALUES (1002, 'x'), (1003, 'MARK3')",
        "UPDATE patient SET name = 'MARK4' WHERE name = 'MARK'",
        "UPDATE patient SET name = 'nobody' WHERE name = 'MARK4'",
        "DELETE FROM patient WHERE name = 'MARK4'",
        "SELECT 'MARK'::int",
        "SELECT length('MARK'), repeat('MARK', 3), count(*) FROM patient GROUP BY 'MARK' || name",
        "SELECT name FROM patient ORDER BY name || 'MARK' LIMIT 3",
        "WITH c AS (SELECT 'MARK' AS m) SELECT * FROM c, patient WHERE name = m",
        "SELECT * FROM (VALUES ('MARK'), ('x')) v(a) JOIN patient ON a = name",
        "SELECT '{\"name\": \"MARK\"}'::jsonb @> '{\"name\": \"MARK\"}'",
        "SELECT jsonb_path_exists('{}'::jsonb, '$.MARK')",
        "SELECT set_config('my.patient', 'MARK', false)",
        "SET my.patient = 'MARK'",
        "SET my.patient = MARK",
        "SET my.patient TO MARK, MARK",
        "SET LOCAL my.patient = MARK",
        "ALTER ROLE postgres SET my.patient = MARK",
        "ALTER ROLE postgres RESET my.patient",
        "CREATE ROLE nurse PASSWORD 'MARK'",
        "ALTER ROLE nurse PASSWORD 'MARK'",
        "ALTER ROLE nurse VALID UNTIL 'MARK'",
        "DROP ROLE nurse",
        "COMMENT ON TABLE patient IS 'MARK'",
        "NOTIFY channel, 'MARK'",
        "CREATE VIEW one AS SELECT * FROM patient WHERE name = 'MARK'",
        "SELECT * FROM one",
        "CREATE INDEX ON patient (id) WHERE name = 'MARK'",
        "ALTER TABLE patient ADD note text DEFAULT 'MARK' CHECK (note <> 'xMARK')",
        "SELECT note FROM patient WHERE id < 3",
        "DO $$ BEGIN PERFORM 'MARK'; RAISE NOTICE 'MARK'; END $$",
        "DO $$ BEGIN RAISE EXCEPTION 'MARK %', 'MARK'; END $$",
        "DO $$ BEGIN EXECUTE format('SELECT * FROM patient WHERE name = %L', 'MARK'); END $$",
        "CREATE FUNCTION find_one(text DEFAULT 'MARK') RETURNS bigint LANGUAGE sql AS $$ SELECT count(*) FROM patient WHERE name = $1 AND name <> 'MARK9' $$",
        "SELECT find_one(), find_one('MARK')",
        "PREPARE p AS SELECT * FROM patient WHERE name = 'MARK'; EXECUTE p; DEALLOCATE p",
        "PREPARE p (text) AS SELECT * FROM patient WHERE name = $1; EXECUTE p ('MARK'); DEALLOCATE p",
        "BEGIN; DECLARE c CURSOR FOR SELECT * FROM patient WHERE name = 'MARK'; FETCH ALL FROM c; COMMIT",
        "COPY (SELECT * FROM patient WHERE name = 'MARK') TO STDOUT",
        "EXPLAIN SELECT * FROM patient WHERE name = 'MARK'",
        "CREATE TABLE copy_of AS SELECT * FROM patient WHERE name = 'MARK'",
        "SELECT * FROM patient WHERE name = 'MARK",
        "SELECT MARK FROM",
        "SELECT * FROM no_table WHERE name = 'MARK'",
        "SELECT pg_sleep(0), 1 / (id - 1), 'MARK' FROM patient",
        "SELECT * FROM patient WHERE id = B'101'::int AND name = 'MARK' AND X'1F'::int > 3",
        "MERGE INTO patient USING (SELECT 'MARK' AS n) s ON name = n WHEN MATCHED THEN DELETE WHEN NOT MATCHED THEN INSERT VALUES (2000, 'MARK7')",
    ];
    assert!(statements.len() >= 50);
    for statement in statements {
        let statement = statement.replace("MARK", MARKER).replace("NUM", NUMBER);
        // COPY ... TO STDOUT needs the copy protocol of the client.
        if statement.starts_with("COPY") {
            std::io::Read::read_to_end(&mut client.copy_out(&statement).unwrap(), &mut Vec::new())
                .unwrap();
        } else {
            client.sqlstate(&statement);
        }
        client.sqlstate("ROLLBACK");
    }
    client
        .query("SELECT * FROM patient WHERE name = $1", &[&MARKER])
        .unwrap();
    client.run("DELETE FROM patient WHERE id > 999");
    let mut copy = client
        .copy_in("COPY patient (id, name) FROM STDIN")
        .unwrap();
    copy.write_all(format!("3000\t{MARKER}\n3001\t{MARKER}\n").as_bytes())
        .unwrap();
    assert!(copy.finish().is_err());

    let mut watch = SHARED.connect("phi");
    let captured = watch.number(
        "SELECT count(*) FROM audit_db.slow_queries WHERE database = current_database() AND status <> 'running'",
    );
    assert!(captured > 80, "{captured}");
    wait_until("the worker has stored them", SOON, || {
        watch.number("SELECT count(*) FROM audit_db.slow_query_log") >= captured
    });
    assert!(
        watch.number("SELECT count(*) FROM audit_db.slow_query_log WHERE status = 'error'") >= 9
    );
    for source in [
        "audit_db.slow_queries",
        "audit_db.slow_query_log",
        "audit_db.query_stats",
        "audit_db.performance_metrics",
        "audit_db.metrics_history",
        "audit_db.workers",
        "audit_db.running_statements()",
    ] {
        let found = watch.column(&format!(
            "SELECT s::text FROM {source} s WHERE s::text ILIKE '%{MARKER}%' OR s::text LIKE '%{NUMBER}%'"
        ));
        assert!(found.is_empty(), "{source}: {found:?}");
    }
    let ours: Vec<_> = SHARED
        .log()
        .lines()
        .filter(|line| line.contains("audit_db") && line.contains(MARKER))
        .map(str::to_owned)
        .collect();
    assert!(ours.is_empty(), "{ours:?}");
}

#[test]
fn who_may_see_and_reset() {
    let mut client = SHARED.database("rights");
    client.run("CREATE ROLE clerk LOGIN; CREATE ROLE watcher LOGIN IN ROLE pg_monitor");
    let mut clerk = SHARED.connect_as("rights", "clerk");
    let mut watcher = SHARED.connect_as("rights", "watcher");
    for view in [
        "slow_queries",
        "slow_query_log",
        "query_stats",
        "performance_metrics",
        "metrics_history",
    ] {
        let sql = format!("SELECT count(*) FROM audit_db.{view}");
        assert_eq!(clerk.sqlstate(&sql), "42501", "{view}");
        watcher.run(&sql);
    }
    for session in [&mut clerk, &mut watcher] {
        assert_eq!(session.sqlstate("SELECT audit_db.reset_stats()"), "42501");
        assert_eq!(
            session.sqlstate("SET audit_db.slow_query_threshold = -1"),
            "42501"
        );
        assert_eq!(
            session.sqlstate("SET audit_db.slow_query_parameters = 'full'"),
            "42501"
        );
    }
    assert_eq!(
        client.sqlstate("SELECT audit_db.reset_stats('nothing')"),
        "22023"
    );
}

#[test]
fn partitions_of_the_log_are_the_extensions_and_expire() {
    let mut client = SHARED.database("expiry");
    client.run(
        "SET audit_db.slow_query_threshold = 0; SELECT 1 AS logged_one;
         CREATE TABLE audit_db.slow_query_log_2020_01_01 PARTITION OF audit_db.slow_query_log
         FOR VALUES FROM ('2020-01-01 00:00:00+00') TO ('2020-01-02 00:00:00+00');
         ALTER EXTENSION audit_db ADD TABLE audit_db.slow_query_log_2020_01_01",
    );
    wait_until("it is stored", SOON, || {
        client.holds(
            "SELECT EXISTS (SELECT FROM audit_db.slow_query_log WHERE query LIKE '%logged_one%')",
        )
    });
    let dump = std::fs::read_to_string(SHARED.dump("expiry")).unwrap();
    assert!(
        !dump.contains("slow_query_log_20"),
        "a dump holds partitions of the log"
    );
    // A worker looks for what has expired when it starts.
    client.run("SELECT pg_terminate_backend(pid) FROM audit_db.workers WHERE database = current_database()");
    wait_until("the old day is dropped", SOON, || {
        client.holds("SELECT to_regclass('audit_db.slow_query_log_2020_01_01') IS NULL")
    });
    assert!(client.holds(
        "SELECT EXISTS (SELECT FROM audit_db.slow_query_log WHERE query LIKE '%logged_one%')"
    ));
    client.run("DROP EXTENSION audit_db CASCADE");
    assert_eq!(
        client.number("SELECT count(*) FROM pg_class WHERE relname LIKE 'slow_query_log%'"),
        0
    );
}
