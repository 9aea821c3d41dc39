//! Statements that end in unusual ways, and what must not become of the server, of the figures and of health data then.

use audit_db_e2e::{Client, Cluster, SOON, Session, Shared, wait_until};

static SHARED: Shared = Shared::new(|| {
    Cluster::builder()
        .fast()
        .set("max_worker_processes", "64")
        .set("audit_db.slow_query_threshold", "0")
        .set("audit_db.slow_query_ring_size", "32MB")
        .set("audit_db.query_stats", "on")
});

/// Columns of the last statements of this database whose text holds `part`.
fn captured(client: &mut Client, columns: &str, part: &str) -> Vec<Vec<String>> {
    client.rows(&format!(
        "SELECT {columns} FROM audit_db.slow_queries
          WHERE database = current_database() AND query LIKE '%{part}%' AND query NOT LIKE '%slow_queries%'
            AND status <> 'running' ORDER BY captured_at DESC"
    ))
}

/// Whether the session's statements are still counted as a client's.
fn is_followed(client: &mut Client, watch: &mut Client, mark: &str) {
    client.run(&format!("SELECT 1 AS {mark}"));
    assert_eq!(
        captured(watch, "nested_level", mark),
        [["0"]],
        "{mark}: what follows is not followed"
    );
}

#[test]
fn a_rollback_in_a_procedure_is_no_error() {
    let mut client = SHARED.database("rollback_after_notice");
    let mut watch = SHARED.connect("rollback_after_notice");
    client.run(
        "CREATE TABLE t (a int);
         CREATE PROCEDURE p() LANGUAGE plpgsql AS $$ BEGIN
           CREATE TABLE IF NOT EXISTS t (a int); ROLLBACK;
           CREATE TABLE IF NOT EXISTS t (a int); PERFORM count(*) FROM t;
           ROLLBACK; PERFORM 1; END $$",
    );
    client.run("CALL p()");
    is_followed(&mut client, &mut watch, "after_the_call");
    assert_eq!(
        captured(&mut watch, "status, nested_level", "CALL p"),
        [["ok", "0"]]
    );
    assert_eq!(client.sqlstate("SELECT 1 / 0"), "22012");
    is_followed(&mut client, &mut watch, "after_the_error");
}

#[test]
fn a_terminated_session_leaves_no_locks() {
    let mut client = SHARED.database("terminated");
    let mut watch = SHARED.connect("terminated");
    client.run("CREATE TABLE locked (a int)");
    let pid = client.value("SELECT pg_backend_pid()");
    let sleeper = std::thread::spawn(move || {
        client.run("BEGIN; LOCK TABLE locked");
        let long = "x".repeat(9_000);
        // The connection may be closed before the error is read.
        let statement = format!("SELECT pg_sleep(60) AS sleeping, '{long}'");
        assert!(client.batch_execute(&statement).is_err());
    });
    wait_until("sleep", SOON, || {
        watch.value("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'") == "1"
    });
    watch.run(&format!("SELECT pg_terminate_backend({pid})"));
    sleeper.join().unwrap();
    wait_until("the end of the session", SOON, || {
        watch.value(&format!(
            "SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}"
        )) == "0"
    });
    assert_eq!(
        watch.value(&format!("SELECT count(*) FROM pg_locks WHERE pid = {pid}")),
        "0"
    );
    watch.run("BEGIN; LOCK TABLE locked NOWAIT; COMMIT");
    assert_eq!(
        captured(&mut watch, "status, sqlstate", "AS sleeping"),
        [["error", "57P01"]]
    );
}

#[test]
fn a_cursor_that_nobody_ended_is_forgotten() {
    let mut client = SHARED.database("lost_cursors");
    let mut watch = SHARED.connect("lost_cursors");
    let comment = "c".repeat(300_000);
    for round in 0..3 {
        client.run(&format!(
            "BEGIN; DECLARE c NO SCROLL CURSOR FOR SELECT {round} /* {comment} */"
        ));
        client.run("SAVEPOINT s");
        assert_eq!(client.sqlstate("FETCH BACKWARD 1 FROM c"), "55000");
        client.run("ROLLBACK TO s");
        client.run("CLOSE c");
        client.run("ROLLBACK");
    }
    // Following ends while a cursor is open, and begins again after it was closed.
    client.run(&format!(
        "BEGIN; DECLARE c CURSOR FOR SELECT 1 /* {comment} */; FETCH c"
    ));
    client.run("SET audit_db.slow_query_threshold = -1; SET audit_db.query_stats = off");
    client.run("CLOSE c");
    client.run("RESET audit_db.slow_query_threshold; RESET audit_db.query_stats");
    client.run("ROLLBACK");
    is_followed(&mut client, &mut watch, "after_all_cursors");
}

#[test]
fn an_error_that_is_passed_on_ends_what_it_went_through() {
    let mut client = SHARED.database("passed_on");
    let mut watch = SHARED.connect("passed_on");
    client.run("SET log_min_messages = fatal");
    for _ in 0..40 {
        assert_eq!(
            client.sqlstate(
                "DO $$ BEGIN BEGIN PERFORM 1 / 0; EXCEPTION WHEN others THEN RAISE; END; END $$"
            ),
            "22012"
        );
    }
    is_followed(&mut client, &mut watch, "after_forty");
    assert!(
        captured(&mut watch, "status, sqlstate", "DO ")
            .iter()
            .all(|row| *row == ["error", "22012"])
    );

    // A notice on the way is not the error.
    client.run("RESET log_min_messages; CREATE TABLE log (a int)");
    client.run(
        "CREATE FUNCTION logs() RETURNS void LANGUAGE plpgsql AS $$ BEGIN
           PERFORM 1 / 0;
         EXCEPTION WHEN others THEN CREATE TABLE IF NOT EXISTS log (a int); RAISE; END $$",
    );
    assert_eq!(client.sqlstate("SELECT logs() AS with_notice"), "22012");
    wait_until("with_notice", SOON, || {
        captured(&mut watch, "status, sqlstate", "AS with_notice") == [["error", "22012"]]
    });
}

#[test]
fn nobody_mistakes_values_for_words() {
    let mut client = SHARED.database("values");
    let mut watch = SHARED.connect("values");
    client.run(
        "CREATE TABLE patient (name text); CREATE TABLE parted (a text) PARTITION BY LIST (a)",
    );
    // Read with another setting than the one that holds when it ends.
    client.run(r"SET standard_conforming_strings = off; SELECT 'a\', 1, 'Zyx1mark'");
    client.run(r"SET standard_conforming_strings = off");
    client.run(r"SELECT set_config('standard_conforming_strings', 'on', false), 1, 'O\'Zyx2mark'");
    client.run(r"PREPARE p AS SELECT 1, 'O'");
    client.run(r"SET standard_conforming_strings = off");
    client.run(r"PREPARE q AS SELECT 1, 'O\'Zyx3mark'");
    client.run(r"SET standard_conforming_strings = on");
    client.run(r"EXECUTE q");
    // Not understood, while the command runs.
    for sql in [
        r#"COPY (SELECT * FROM patient WHERE name = "Zyx4mark") TO STDOUT"#,
        r#"CREATE VIEW v AS SELECT * FROM patient WHERE name = "Zyx5mark""#,
        r#"CREATE INDEX ON patient (name) WHERE name = "Zyx6mark""#,
        r#"CREATE POLICY p ON patient USING (name = "Zyx7mark")"#,
        r#"CREATE TABLE part PARTITION OF parted FOR VALUES IN ("Zyx8mark")"#,
    ] {
        assert!(["42", "0A"].contains(&&client.sqlstate(sql)[..2]), "{sql}");
    }
    client.run(
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql
         SET app.patient = zyx9mark SET app.doctor = zyx10mark SET search_path TO zyx11mark, zyx12mark AS 'SELECT 1'",
    );
    client.run("ALTER FUNCTION f() SET app.patient = zyx13mark SET app.doctor = zyx14mark");
    is_followed(&mut client, &mut watch, "after_all_values");
    for view in ["slow_queries", "query_stats"] {
        assert_eq!(
            watch.rows(&format!(
                "SELECT query FROM audit_db.{view} v WHERE v::text ~* ('zyx[0-9]+m' || 'ark')"
            )),
            Vec::<Vec<String>>::new(),
            "{view}"
        );
    }
}

#[test]
fn figures_belong_to_the_statement() {
    let mut client = SHARED.database("figures");
    let mut watch = SHARED.connect("figures");
    client.run(
        "CREATE TABLE counter (a int); INSERT INTO counter VALUES (1);
         CREATE TABLE big AS SELECT i FROM generate_series(1, 20000) i",
    );

    // What an UPDATE waits for was sampled before its triggers fired.
    let mut other = SHARED.connect("figures");
    other.run("BEGIN; UPDATE counter SET a = 2");
    let waiter = std::thread::spawn(move || {
        client.run("UPDATE counter SET a = 3 /* waits */");
        client
    });
    wait_until("a sample of the wait", SOON, || {
        watch.value(
            "SELECT count(*) FROM audit_db.slow_queries WHERE status = 'running'
               AND waits ? 'Lock:transactionid'",
        ) == "1"
    });
    other.run("COMMIT");
    let mut client = waiter.join().unwrap();
    let waits = captured(&mut watch, "waits", "UPDATE counter SET a = $1");
    assert!(
        waits
            .iter()
            .any(|row| row[0].contains("Lock:transactionid")),
        "{waits:?}"
    );

    // A cursor does not pay for what happens between its pieces.
    client.run("BEGIN");
    client.run("DECLARE c CURSOR FOR SELECT 1 AS a_cursor");
    client.run("UPDATE big SET i = i");
    client.run("FETCH c");
    client.run("UPDATE big SET i = i");
    client.run("FETCH c; CLOSE c");
    client.run("COMMIT");
    assert_eq!(
        captured(
            &mut watch,
            "wal_bytes, shared_blks_hit + shared_blks_dirtied",
            "AS a_cursor"
        ),
        [["0", "0"]]
    );

    // Planning counts, though the text of a prepared statement is copied.
    client.run("PREPARE planned (int) AS SELECT count(*) AS is_planned FROM big a JOIN big b USING (i) WHERE i = $1");
    client.run("EXECUTE planned (1)");
    assert_eq!(
        captured(&mut watch, "planning_ms > 0", "AS is_planned"),
        [["t"]]
    );

    // What the server runs at a commit, or to plan, is nobody's statement.
    client.run(
        "CREATE TABLE parent (a int PRIMARY KEY);
         CREATE TABLE child (a int REFERENCES parent DEFERRABLE INITIALLY DEFERRED);
         INSERT INTO parent VALUES (1);
         CREATE FUNCTION pure(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS
         $$ BEGIN RETURN (SELECT count(*) AS in_planner FROM parent); END $$",
    );
    client.run("BEGIN; INSERT INTO child SELECT 1 FROM generate_series(1, 100); COMMIT");
    client.run("SELECT a FROM parent WHERE a = pure(1)");
    assert_eq!(
        watch.value(
            "SELECT count(*) FROM audit_db.slow_queries
              WHERE database = current_database() AND nested_level = 0
                AND (query LIKE '%FOR KEY SHARE%' OR query LIKE '%in_planner%')"
        ),
        "0"
    );
    assert!(!captured(&mut watch, "nested_level", "in_planner").is_empty());

    // A statement that may not even start has its text.
    client.run("CREATE ROLE figures_nobody; SET ROLE figures_nobody");
    assert_eq!(
        client.sqlstate("SELECT count(*) AS not_allowed FROM counter"),
        "42501"
    );
    client.run("RESET ROLE");
    wait_until("not_allowed", SOON, || {
        captured(&mut watch, "status, sqlstate", "AS not_allowed") == [["error", "42501"]]
    });

    // Of two statements in a message the second has its own time.
    assert_eq!(
        client.sqlstate("SELECT pg_sleep(0.3); SELECT * FROM not_there"),
        "42P01"
    );
    assert_eq!(
        captured(&mut watch, "duration_ms < 200", "($2); SELECT"),
        [["t"]]
    );
}
