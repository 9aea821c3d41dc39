//! The result cache through its functions: what must never be returned, and what is.

use audit_db_e2e::{Client, Cluster, SOON, Session, Shared, wait_until, wait_until_workers_rest};

static SHARED: Shared = Shared::new(|| {
    Cluster::builder()
        .fast()
        .set("max_prepared_transactions", "10")
        .set("max_worker_processes", "64")
        .set("max_connections", "150")
});

fn cached(client: &mut Client, query: &str, consistency: &str) -> String {
    client.value(&format!(
        "SELECT audit_db.cached_json($query${query}$query$, consistency => '{consistency}')"
    ))
}

/// The result of a call with consistency `snapshot`, which must be that of the query.
#[track_caller]
fn exact(client: &mut Client, query: &str) -> String {
    let plain = client.value(&format!(
        "SELECT coalesce(jsonb_agg(to_jsonb(q)), '[]') FROM ({query}) q"
    ));
    let found = cached(client, query, "snapshot");
    assert_eq!(found, plain, "{query}");
    found
}

/// How often this query's result in this database was looked at.
fn hits(client: &mut Client, query: &str) -> i64 {
    client.number(&format!(
        "SELECT coalesce(sum(hits), 0)::bigint FROM audit_db.cache_entries WHERE database = current_database() AND query = $query${query}$query$"
    ))
}

/// Has a result stored, and sees that it is used.
#[track_caller]
fn warm(client: &mut Client, query: &str) {
    // Not before transactions have ended that began before anything was stored, in whatever database.
    wait_until(&format!("it is cached: {query}"), SOON, || {
        exact(client, query);
        let before = hits(client, query);
        exact(client, query);
        hits(client, query) > before
    });
}

#[test]
fn no_way_to_write_goes_unseen() {
    let mut writer = SHARED.database("probes");
    let mut reader = SHARED.connect("probes");
    writer.run(
        "CREATE TABLE t (a int, b text);
         INSERT INTO t SELECT i, 'x' FROM generate_series(1, 100) i;
         CREATE TABLE logged (a int);
         CREATE TABLE other (a int); INSERT INTO other VALUES (3);
         CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO logged VALUES (1); RETURN NEW; END $$;
         CREATE TRIGGER note AFTER INSERT ON other FOR EACH ROW EXECUTE FUNCTION note();
         CREATE TABLE parent (id int PRIMARY KEY);
         CREATE TABLE child (id int REFERENCES parent ON DELETE CASCADE ON UPDATE CASCADE);
         INSERT INTO parent VALUES (1), (2), (3); INSERT INTO child VALUES (1), (2), (3);
         CREATE FUNCTION changes() RETURNS void LANGUAGE sql AS 'UPDATE t SET a = a + 1 WHERE a < 10';
         CREATE TABLE months (at int) PARTITION BY RANGE (at);
         CREATE TABLE m1 PARTITION OF months FOR VALUES FROM (0) TO (100);
         CREATE TABLE m2 PARTITION OF months FOR VALUES FROM (100) TO (200);
         INSERT INTO months VALUES (1), (150);
         CREATE MATERIALIZED VIEW made AS SELECT count(*) AS n FROM t;
         CREATE VIEW seen AS SELECT sum(a) AS s FROM t;
         CREATE FUNCTION times(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1 * 2'",
    );
    let sum = "SELECT sum(a), count(*) FROM t";
    for (query, writes) in [
        (sum, "UPDATE t SET a = a + 1 WHERE a = 5"),
        (sum, "SELECT changes()"),
        (sum, "DO $$ BEGIN UPDATE t SET a = 0 WHERE a = 50; END $$"),
        (
            sum,
            "MERGE INTO t USING (SELECT 60 AS a) s ON t.a = s.a WHEN MATCHED THEN UPDATE SET a = -1",
        ),
        (
            sum,
            "PREPARE p AS UPDATE t SET a = a + 1;; EXECUTE p;; DEALLOCATE p",
        ),
        (sum, "COPY t (a) FROM PROGRAM 'echo 7'"),
        (
            sum,
            "WITH d AS (DELETE FROM t WHERE a = 20 RETURNING a) INSERT INTO t SELECT a + 1000 FROM d",
        ),
        (
            sum,
            "BEGIN;; UPDATE t SET a = a + 5 WHERE a = 30;; PREPARE TRANSACTION 'x';; COMMIT PREPARED 'x'",
        ),
        (
            sum,
            "BEGIN;; SAVEPOINT s;; UPDATE t SET a = 1;; RELEASE s;; COMMIT",
        ),
        (
            "SELECT sum(a) FROM other",
            "ALTER TABLE other ALTER a TYPE bigint USING a * 2",
        ),
        (sum, "CLUSTER t USING t_pkey"),
        (sum, "TRUNCATE t"),
        (
            "SELECT count(*) FROM logged",
            "INSERT INTO other VALUES (1)",
        ),
        (
            "SELECT count(*) FROM child",
            "DELETE FROM parent WHERE id = 1",
        ),
        (
            "SELECT sum(id) FROM child",
            "UPDATE parent SET id = 20 WHERE id = 2",
        ),
        ("SELECT count(*) FROM m1", "INSERT INTO months VALUES (2)"),
        ("SELECT count(*) FROM months", "INSERT INTO m2 VALUES (160)"),
        (
            "SELECT count(*) FROM months",
            "ALTER TABLE months DETACH PARTITION m2",
        ),
        (
            "SELECT count(*) FROM months",
            "ALTER TABLE months ATTACH PARTITION m2 FOR VALUES FROM (100) TO (200)",
        ),
        (
            "SELECT count(*) FROM months",
            "CREATE TABLE m3 PARTITION OF months FOR VALUES FROM (200) TO (300)",
        ),
        ("SELECT n FROM made", "REFRESH MATERIALIZED VIEW made"),
        (
            "SELECT * FROM seen",
            "CREATE OR REPLACE VIEW seen AS SELECT 7::bigint AS s FROM t LIMIT 1",
        ),
        (
            "SELECT times(4)",
            "CREATE OR REPLACE FUNCTION times(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1 * 3'",
        ),
        ("SELECT count(*) FROM child", "DROP TABLE parent CASCADE"),
    ] {
        warm(&mut reader, query);
        if writes.starts_with("CLUSTER") {
            writer.run("ALTER TABLE t ADD id serial PRIMARY KEY");
            warm(&mut reader, query);
        }
        for statement in writes.split(";; ") {
            writer.run(statement);
        }
        exact(&mut reader, query);
    }
    // What was rolled back was never there.
    warm(&mut reader, sum);
    writer.run("BEGIN; INSERT INTO t VALUES (1); ROLLBACK");
    exact(&mut reader, sum);
    // What a transaction has written itself is seen by it alone.
    writer.run("BEGIN; INSERT INTO t (a) VALUES (77)");
    exact(&mut writer, sum);
    exact(&mut reader, sum);
    writer.run("COMMIT");
    exact(&mut reader, sum);
    // A snapshot stays what it is.
    reader.run("BEGIN ISOLATION LEVEL REPEATABLE READ");
    let before = exact(&mut reader, sum);
    writer.run("INSERT INTO t (a) VALUES (78)");
    exact(&mut writer, sum);
    assert_eq!(exact(&mut reader, sum), before);
    assert_eq!(
        cached(&mut reader, sum, "ttl"),
        before,
        "also where it may be old"
    );
    reader.run("COMMIT");
    assert_ne!(exact(&mut reader, sum), before);
}

#[test]
fn nobody_gets_what_is_anothers() {
    let mut admin = SHARED.database("keys");
    admin.run(
        "CREATE ROLE keys_ann; CREATE ROLE keys_bob;
         CREATE TABLE chart (owner name, patient text, note text, at timestamptz DEFAULT '2026-01-01 12:00+00');
         INSERT INTO chart VALUES ('keys_ann', 'p1', 'of ann'), ('keys_bob', 'p2', 'of bob');
         GRANT SELECT ON chart TO keys_ann, keys_bob;
         ALTER TABLE chart ENABLE ROW LEVEL SECURITY;
         CREATE POLICY own ON chart FOR SELECT USING (owner = current_user AND patient = coalesce(current_setting('app.patient', true), patient));
         CREATE SCHEMA one; CREATE SCHEMA two;
         CREATE TABLE one.t AS SELECT 1 AS a; CREATE TABLE two.t AS SELECT 2 AS a",
    );
    let notes = "SELECT note FROM chart";
    for role in ["keys_ann", "keys_bob", "keys_ann"] {
        admin.run(&format!("SET ROLE {role}"));
        let found = exact(&mut admin, notes);
        assert!(found.contains(role.trim_start_matches("keys_")), "{found}");
        admin.run("RESET ROLE");
    }
    admin.run("SET ROLE keys_ann");
    for patient in ["p1", "p9", "p1"] {
        admin.run(&format!("SET app.patient = '{patient}'"));
        assert_eq!(exact(&mut admin, notes).contains("of ann"), patient == "p1");
    }
    admin.run("RESET ROLE");
    assert_eq!(
        exact(&mut admin, notes).matches("of ").count(),
        2,
        "a superuser sees all"
    );

    let times = "SELECT at FROM chart";
    for setting in [
        "TimeZone = 'UTC'",
        "TimeZone = 'Asia/Tokyo'",
        "TimeZone = 'UTC'",
    ] {
        admin.run(&format!("SET {setting}"));
        exact(&mut admin, times);
    }
    for (setting, query) in [
        ("DateStyle = 'German'", "SELECT at::text FROM chart"),
        ("DateStyle = 'ISO, MDY'", "SELECT at::text FROM chart"),
        (
            "IntervalStyle = 'iso_8601'",
            "SELECT (at - '2020-01-01')::text FROM chart",
        ),
        (
            "IntervalStyle = 'postgres'",
            "SELECT (at - '2020-01-01')::text FROM chart",
        ),
        (
            "bytea_output = 'escape'",
            "SELECT note::bytea::text FROM chart",
        ),
        (
            "bytea_output = 'hex'",
            "SELECT note::bytea::text FROM chart",
        ),
        (
            "extra_float_digits = 0",
            "SELECT (1.1::float8 / 3)::text FROM one.t",
        ),
        (
            "extra_float_digits = 1",
            "SELECT (1.1::float8 / 3)::text FROM one.t",
        ),
        ("search_path = one", "SELECT a FROM t"),
        ("search_path = two", "SELECT a FROM t"),
    ] {
        admin.run(&format!("SET {setting}"));
        exact(&mut admin, query);
    }
    admin.run("SET search_path = one; CREATE TEMP TABLE t AS SELECT 3 AS a");
    assert_eq!(admin.value("SELECT a FROM t"), "3");
    assert_eq!(
        admin.sqlstate("SELECT audit_db.cached_json('SELECT a FROM t')"),
        "0A000"
    );
    admin.run("DROP TABLE pg_temp.t; SET search_path = one");
    exact(&mut admin, "SELECT a FROM t");
    admin.run("RESET ALL");

    // Parameters, as the types that the query gives them; and labels.
    let call =
        |query: &str, rest: &str| format!("SELECT audit_db.cached_json('{query}', {rest})::text");
    assert_eq!(
        admin.value(&call("SELECT $1::int AS v", "'[\"007\"]'")),
        "[{\"v\": 7}]"
    );
    assert_eq!(
        admin.value(&call("SELECT $1::text AS v", "'[\"007\"]'")),
        "[{\"v\": \"007\"}]"
    );
    assert_eq!(
        admin.value(&call("SELECT $1::text AS v", "'[null]'")),
        "[{\"v\": null}]"
    );
    assert_eq!(
        admin.value(&call("SELECT $1::jsonb AS v", "'[{\"a\": [1]}]'")),
        "[{\"v\": {\"a\": [1]}}]"
    );
    assert_eq!(admin.sqlstate(&call("SELECT $1::int", "'[]'")), "22023");
    assert_eq!(admin.sqlstate(&call("SELECT $1::int", "'{}'")), "22023");
    assert_eq!(
        admin.sqlstate(&call("SELECT $1::int", "'[\"x\"]'")),
        "22P02"
    );
    assert_eq!(
        admin.sqlstate(&call("SELECT 1", "cache_type => 'nothing'")),
        "42704"
    );
    assert_eq!(
        admin.sqlstate(&call("SELECT 1", "consistency => 'nothing'")),
        "22023"
    );
    assert_eq!(admin.sqlstate(&call("SELECT 1", "ttl => '-1 s'")), "22023");

    // An error of the query keeps all that it says.
    admin.run(
        "CREATE FUNCTION fails(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS
         $$ BEGIN RAISE unique_violation USING CONSTRAINT = 'a_constraint', TABLE = 'a_table', DETAIL = 'a detail'; END $$",
    );
    for query in ["SELECT fails(1)", "SELECT fails(a) FROM one.t"] {
        let error = admin
            .batch_execute(&format!("SELECT audit_db.cached_json('{query}')"))
            .unwrap_err();
        let error = error.as_db_error().unwrap();
        assert_eq!(
            (error.constraint(), error.table(), error.detail()),
            (Some("a_constraint"), Some("a_table"), Some("a detail")),
            "{query}"
        );
        assert!(
            error
                .where_()
                .is_some_and(|context| context.contains("fails("))
        );
    }

    // Who lost a right has no more hits; nor has who may not run a function any more.
    admin.run(
        "CREATE TABLE open_to_ann AS SELECT 1 AS a; GRANT SELECT ON open_to_ann TO keys_ann;
         CREATE FUNCTION for_ann() RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT 1';
         REVOKE EXECUTE ON FUNCTION for_ann FROM PUBLIC; GRANT EXECUTE ON FUNCTION for_ann TO keys_ann",
    );
    let mut ann = SHARED.connect("keys");
    ann.run("SET ROLE keys_ann");
    let (table, function) = (
        "SELECT a FROM open_to_ann",
        "SELECT for_ann() + a AS b FROM open_to_ann",
    );
    for consistency in ["snapshot", "ttl"] {
        for _ in 0..2 {
            cached(&mut ann, table, consistency);
            cached(&mut ann, function, consistency);
        }
        admin.run("REVOKE EXECUTE ON FUNCTION for_ann FROM keys_ann");
        let call =
            format!("SELECT audit_db.cached_json('{function}', consistency => '{consistency}')");
        assert_eq!(ann.sqlstate(&call), "42501", "{consistency}");
        cached(&mut ann, table, consistency);
        admin.run("REVOKE SELECT ON open_to_ann FROM keys_ann");
        let call =
            format!("SELECT audit_db.cached_json('{table}', consistency => '{consistency}')");
        assert_eq!(ann.sqlstate(&call), "42501", "{consistency}");
        admin.run("GRANT SELECT ON open_to_ann TO keys_ann; GRANT EXECUTE ON FUNCTION for_ann TO keys_ann");
    }
    ann.run("RESET ROLE");
}

#[test]
fn what_nobody_can_judge_is_refused() {
    let mut client = SHARED.database("refused");
    client.run(
        "CREATE TABLE t (a int, at timestamptz); INSERT INTO t VALUES (1, now()); CREATE SEQUENCE s;
         CREATE FUNCTION policy() RETURNS boolean STABLE LANGUAGE plpgsql AS $$ BEGIN RETURN current_setting('app.x', true) = 'yes'; END $$;
         CREATE FUNCTION lies() RETURNS int VOLATILE LANGUAGE sql AS 'SELECT 1';
         CREATE TABLE guarded (a int); INSERT INTO guarded VALUES (1); ALTER TABLE guarded ENABLE ROW LEVEL SECURITY;
         CREATE POLICY p ON guarded USING (policy()); CREATE ROLE refused_user; GRANT SELECT ON guarded, t TO refused_user;
         CREATE TEMP TABLE temporary (a int);
         CREATE EXTENSION postgres_fdw; CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw;
         CREATE FOREIGN TABLE away (a int) SERVER far; CREATE VIEW over_catalog AS SELECT relname FROM pg_class",
    );
    for query in [
        "SELECT random()",
        "SELECT lies()",
        "SELECT * FROM pg_class",
        "SELECT * FROM over_catalog",
        "SELECT table_name FROM information_schema.tables",
        "SELECT * FROM temporary",
        "SELECT * FROM away",
        "SELECT last_value FROM s",
        "SELECT nextval(''s'')",
        "SELECT a FROM t FOR UPDATE",
        "WITH w AS (INSERT INTO t VALUES (2) RETURNING a) SELECT * FROM w",
        "INSERT INTO t VALUES (3)",
        "SELECT pg_backend_pid()",
        "SELECT txid_current_snapshot()",
        "SELECT * FROM t TABLESAMPLE BERNOULLI (50)",
        "SELECT policy()",
        "SELECT current_setting(''app.'' || a) FROM t",
        "SELECT a INTO x FROM t",
    ] {
        for consistency in ["snapshot", "ttl"] {
            assert_eq!(
                client.sqlstate(&format!(
                    "SELECT audit_db.cached_json('{query}', consistency => '{consistency}')"
                )),
                "0A000",
                "{query}"
            );
        }
    }
    assert_eq!(client.number("SELECT count(*) FROM t"), 1);
    for query in [
        "SELECT now()",
        "SELECT current_date",
        "SELECT a FROM t WHERE at < ''now''",
        "SELECT age(at) FROM t",
    ] {
        assert_eq!(
            client.sqlstate(&format!(
                "SELECT audit_db.cached_json('{query}', consistency => 'snapshot')"
            )),
            "0A000",
            "{query}"
        );
        client.run(&format!(
            "SELECT audit_db.cached_json('{query}', consistency => 'ttl')"
        ));
    }

    // A policy that is a function: two sessions of one role must not share.
    let mut one = SHARED.connect("refused");
    let mut two = SHARED.connect("refused");
    one.run("SET ROLE refused_user; SET app.x = 'yes'");
    two.run("SET ROLE refused_user; SET app.x = 'no'");
    let call = "SELECT audit_db.cached_json('SELECT a FROM guarded', consistency => 'snapshot')";
    assert_eq!(one.sqlstate(call), "0A000");
    client.run("INSERT INTO audit_db.cache_safe_functions VALUES ('policy()', '{app.x}')");
    for _ in 0..2 {
        assert_eq!(one.value(call), "[{\"a\": 1}]");
        assert_eq!(two.value(call), "[]");
    }
    client.run("DELETE FROM audit_db.cache_safe_functions");
    assert_eq!(two.sqlstate(call), "0A000");

    let serializable = "SELECT a FROM t";
    client.run("BEGIN ISOLATION LEVEL SERIALIZABLE");
    exact(&mut client, serializable);
    exact(&mut client, serializable);
    client.run("COMMIT");
    assert_eq!(hits(&mut client, serializable), 0);
    client.run("SET audit_db.cache_mode = off");
    exact(&mut client, serializable);
    client.run("RESET audit_db.cache_mode");
    assert_eq!(hits(&mut client, serializable), 0);
    let reasons = client.value("SELECT string_agg(k, ' ' ORDER BY k) FROM audit_db.cache_stats, jsonb_object_keys(bypasses) k");
    for reason in [
        "clock_function",
        "foreign_table",
        "opaque_function",
        "row_locks",
        "sample",
        "sequence",
        "serializable",
        "session_function",
        "system_catalog",
        "temporary_table",
        "volatile_function",
    ] {
        assert!(reasons.contains(reason), "{reason} in {reasons}");
    }
}

#[test]
fn a_result_is_as_old_as_was_said() {
    // Of its own: roles that come elsewhere in a server end all results.
    let cluster = Cluster::builder().fast().start();
    let mut client = cluster.database("old");
    // The worker makes tables when it begins.
    wait_until_workers_rest(&mut client);
    let mut writer = cluster.connect("old");
    client.run("CREATE TABLE t (a int); INSERT INTO t VALUES (1)");
    let count = "SELECT count(*) AS n FROM t";
    let of_type = |client: &mut Client, rest: &str| {
        client.value(&format!(
            "SELECT audit_db.cached_json('{count}', cache_type => 'dashboard_metrics'{rest})"
        ))
    };
    let one = of_type(&mut client, "");
    writer.run("INSERT INTO t VALUES (2)");
    assert_eq!(
        of_type(&mut client, ""),
        one,
        "within the type's 15 minutes"
    );
    let two = of_type(&mut client, ", ttl => '0 s'");
    assert_ne!(two, one);
    writer.run("INSERT INTO t VALUES (3)");
    assert_eq!(of_type(&mut client, ""), two);
    let three = of_type(&mut client, ", refresh => true");
    assert_ne!(three, two);
    writer.run("INSERT INTO t VALUES (4)");
    assert_ne!(of_type(&mut client, ", consistency => 'snapshot'"), three);
    // Until the transaction writes itself.
    client.run("BEGIN");
    let four = of_type(&mut client, "");
    client.run("INSERT INTO t VALUES (5)");
    assert_ne!(of_type(&mut client, ""), four);
    client.run("COMMIT");
    // What an old snapshot saw is no answer for those who only care for its age.
    client.run("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1");
    writer.run("INSERT INTO t VALUES (50)");
    let old = of_type(&mut client, ", refresh => true");
    let new = of_type(&mut writer, "");
    assert_ne!(old, new);
    client.run("COMMIT");
    writer.run("DELETE FROM t WHERE a = 50");
    // A type that changes holds for all sessions at once.
    writer.run(
        "UPDATE audit_db.cache_types SET consistency = 'snapshot' WHERE name = 'dashboard_metrics'",
    );
    let now = of_type(&mut client, "");
    assert_eq!(now, "[{\"n\": 5}]");
    writer.run("INSERT INTO t VALUES (6)");
    assert_ne!(of_type(&mut client, ""), now);
    // By label, type and relation.
    client.run("SELECT audit_db.cached_json('SELECT 1 AS a', cache_key => 'labelled')");
    assert_eq!(
        client.number("SELECT audit_db.cache_invalidate('labelled')"),
        1
    );
    assert_eq!(
        client.number("SELECT audit_db.cache_invalidate('labelled')"),
        0
    );
    assert!(client.number("SELECT audit_db.cache_invalidate(relation => 't')") >= 1);
    assert_eq!(
        client.number("SELECT audit_db.cache_invalidate(cache_type => 'nothing')"),
        0
    );
}

#[test]
fn many_who_want_the_same_wait_for_one() {
    let mut admin = SHARED.database("stampede");
    admin.run(
        "CREATE TABLE ran (at timestamptz DEFAULT clock_timestamp());
         CREATE TABLE t AS SELECT i FROM generate_series(1, 10) i;
         CREATE FUNCTION slowly(int) RETURNS int STABLE LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.1); RETURN $1; END $$;
         INSERT INTO audit_db.cache_safe_functions VALUES ('slowly(int)', '{}')",
    );
    let query = "SELECT sum(slowly(i)) AS s FROM t";
    let sessions: Vec<_> = (0..64).map(|_| SHARED.connect("stampede")).collect();
    let misses =
        "SELECT misses FROM audit_db.cache_stats_by_type WHERE cache_type = 'system_health'";
    let call = format!(
        "SELECT audit_db.cached_json('{query}', cache_type => 'system_health', consistency => 'snapshot')::text"
    );
    let answers: Vec<_> = sessions
        .into_iter()
        .map(|mut session| {
            let call = call.clone();
            std::thread::spawn(move || session.value(&call))
        })
        .collect::<Vec<_>>()
        .into_iter()
        .map(|session| session.join().unwrap())
        .collect();
    assert!(answers.iter().all(|answer| answer == "[{\"s\": 55}]"));
    assert_eq!(admin.number(misses), 1, "it ran once");

    // The one that computes is killed off: another one does it.
    admin.run("SELECT audit_db.cache_invalidate()");
    let mut first = SHARED.connect("stampede");
    let pid = first.value("SELECT pg_backend_pid()");
    let first_call = call.clone();
    let first = std::thread::spawn(move || first.batch_execute(&first_call).is_err());
    wait_until("the first one computes", SOON, || {
        admin.value(&format!(
            "SELECT coalesce(wait_event, '') FROM pg_stat_activity WHERE pid = {pid}"
        )) == "PgSleep"
    });
    let mut second = SHARED.connect("stampede");
    let second = std::thread::spawn(move || second.value(&call));
    wait_until("the second one waits", SOON, || {
        admin.number("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
            == 1
    });
    admin.run(&format!("SELECT pg_terminate_backend({pid})"));
    assert!(first.join().unwrap());
    assert_eq!(second.join().unwrap(), "[{\"s\": 55}]");
    assert_eq!(
        admin.number("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"),
        0
    );
}

#[test]
fn closed_months_stay_while_the_open_one_is_written() {
    let cluster = Cluster::builder().fast().start();
    let mut client = cluster.database("closed");
    // The worker makes tables when it begins.
    wait_until_workers_rest(&mut client);
    client.run(
        "CREATE TABLE log (at date, v int) PARTITION BY RANGE (at);
         CREATE TABLE log_1 PARTITION OF log FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
         CREATE TABLE log_2 PARTITION OF log FOR VALUES FROM ('2026-02-01') TO ('2026-03-01');
         INSERT INTO log SELECT '2026-01-15', i FROM generate_series(1, 1000) i",
    );
    let report = "SELECT count(*), sum(v) FROM log WHERE at < '2026-02-01'";
    warm(&mut client, report);
    let before = hits(&mut client, report);
    let mut writer = cluster.connect("closed");
    for round in 0..200 {
        writer.run(&format!("INSERT INTO log VALUES ('2026-02-10', {round})"));
        exact(&mut client, report);
    }
    assert_eq!(hits(&mut client, report) - before, 200, "every one a hit");
    // Nor do temporary tables matter.
    writer.run("CREATE TEMP TABLE mine AS SELECT 1 AS a");
    writer.run("INSERT INTO mine VALUES (2)");
    writer.run("DROP TABLE IF EXISTS mine, not_there");
    exact(&mut client, report);
    assert_eq!(hits(&mut client, report) - before, 201);
    let all = "SELECT count(*) FROM log";
    exact(&mut client, all);
    writer.run("INSERT INTO log VALUES ('2026-02-11', 1)");
    exact(&mut client, all);
}

#[test]
fn memory_has_a_bound() {
    let cluster = Cluster::builder()
        .fast()
        .set("audit_db.cache_size", "1MB")
        .set("audit_db.cache_max_entries", "1024")
        .start();
    let mut client = cluster.database("bound");
    client.run(
        "CREATE TABLE t AS SELECT i, repeat('x', 50) AS filler FROM generate_series(1, 2000) i",
    );
    let mut popular_hits = 0;
    for round in 0..1_500 {
        let rows = 1 + round * 37 % 500;
        client.run(&format!(
            "SELECT audit_db.cached_json('SELECT i, filler, {round} AS r FROM t WHERE i <= {rows} ORDER BY i', consistency => 'snapshot')"
        ));
        let before = hits(&mut client, "SELECT count(*) AS popular FROM t");
        exact(&mut client, "SELECT count(*) AS popular FROM t");
        popular_hits += i64::from(hits(&mut client, "SELECT count(*) AS popular FROM t") > before);
        let row = client
            .rows(
                "SELECT used_bytes <= size_bytes, size_bytes, used_bytes FROM audit_db.cache_stats",
            )
            .remove(0);
        assert_eq!(row[0], "t", "{row:?}");
    }
    assert!(
        popular_hits > 1_400,
        "what is asked for all the time stays: {popular_hits}"
    );
    assert!(client.number("SELECT evictions FROM audit_db.cache_stats") > 500);
    // One that is too large is returned all the same.
    let long = client.value("SELECT length(audit_db.cached_json('SELECT * FROM t')::text)");
    assert!(long.parse::<i64>().unwrap() > 100_000);
    assert!(client.number("SELECT sum(too_big)::bigint FROM audit_db.cache_stats_by_type") >= 1);
    client.run("SELECT audit_db.cache_reset()");
    assert_eq!(
        client.rows("SELECT entries, used_bytes, hits FROM audit_db.cache_stats"),
        [["0", "0", "0"]]
    );
}
