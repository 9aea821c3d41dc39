//! A default partition is exchanged while things happen to it that the copy must not miss, or that end the exchange.

use audit_db_e2e::{Client, Cluster, SOON, Session, Shared};
use std::sync::atomic::{AtomicBool, Ordering};

/// Cycles come only when a test asks for one.
static CLUSTER: Shared = Shared::new(|| {
    Cluster::builder()
        .fast()
        .set("audit_db.maintenance_interval", "1d")
        .set("max_prepared_transactions", "10")
});

/// More rows than are simply moved, in three months of 2024.
const FILL: &str = "SELECT timestamptz '2024-01-20 00:00+00' + n * interval '10 minutes' FROM generate_series(1, 7500) n";

/// Waits like the harness, and says what the workers were doing when it was in vain.
#[track_caller]
fn wait_until(what: &str, client: &mut Client, mut condition: impl FnMut(&mut Client) -> bool) {
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        audit_db_e2e::wait_until(what, SOON, || condition(client));
    }));
    if outcome.is_err() {
        panic!(
            "{what}: {:#?}",
            client.rows(
                "SELECT event, message, detail FROM audit_db.events_log
                 UNION ALL SELECT backend_type, query, wait_event FROM pg_stat_activity
                 WHERE backend_type LIKE 'audit_db%' AND datname = current_database()"
            )
        );
    }
}

/// A session whose snapshot holds the exchange before its end.
fn hold(database: &str) -> Client {
    let mut session = CLUSTER.connect(database);
    session.run("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_class");
    session
}

fn start(client: &mut Client, table: &str) {
    client.run(&format!(
        "SELECT audit_db.manage_table('{table}', premake => 1)"
    ));
}

#[track_caller]
fn wait_until_it_waits(client: &mut Client) {
    wait_until("the exchange waits for older snapshots", client, |client| {
        client.holds(
            "SELECT EXISTS (SELECT FROM pg_stat_activity
                             WHERE backend_type = 'audit_db slow worker' AND datname = current_database()
                               AND query LIKE '%waiting for older snapshots%')",
        )
    });
}

/// Until the slow worker has nothing to do any more.
#[track_caller]
fn wait_until_it_ends(client: &mut Client) {
    wait_until("the slow worker has ended", client, |client| {
        client.holds(
            "SELECT slow_pid IS NULL AND state = 'idle' FROM audit_db.workers WHERE database = current_database()",
        )
    });
}

fn emptied(client: &mut Client, table: &str) -> bool {
    client.holds(&format!(
        "SELECT count(*) = 1 FROM audit_db.events_log
          WHERE event = 'default partition emptied' AND object = 'public.{table}_default'"
    ))
}

#[track_caller]
fn wait_until_emptied(client: &mut Client, table: &str) {
    wait_until("the default partition is emptied", client, |client| {
        emptied(client, table)
    });
    wait_until_it_ends(client);
    assert_nothing_left(client);
}

/// Nothing that was made for an exchange is there.
#[track_caller]
fn assert_nothing_left(client: &mut Client) {
    assert_eq!(
        client.value("SELECT count(*) FROM audit_db.unfinished"),
        "0"
    );
    assert_eq!(
        client.column(
            "SELECT c.oid::regclass::text FROM pg_class c
              WHERE c.relname ~ 'staging|new_default|exchanged|^changes_' AND c.relkind IN ('r', 'p')
             UNION ALL SELECT tgname FROM pg_trigger WHERE tgname LIKE 'audit_db%'"
        ),
        Vec::<String>::new()
    );
}

fn failures(client: &mut Client) -> Vec<Vec<String>> {
    client.rows("SELECT event, object, sqlstate, detail FROM audit_db.events_log WHERE severity = 'error' ORDER BY id")
}

const NONE: [[&str; 4]; 0] = [];

/// All rows, as text, in an order of their own: what a table holds, whatever the partitions.
fn contents(client: &mut Client, table: &str) -> Vec<Vec<String>> {
    client.rows(&format!(
        "SELECT count(*), md5(string_agg(row, '|' ORDER BY row)) FROM (SELECT t::text AS row FROM {table} t) rows"
    ))
}

/// A table without a key, with duplicates, and with types that can be neither compared nor hashed.
#[test]
fn changes_of_every_kind_are_brought_over() {
    let mut client = CLUSTER.database("x_changes");
    client.run(&format!(
        "CREATE TABLE log (gone int, at timestamptz, note json, big text, number float8, tags text[], doubled text
                               GENERATED ALWAYS AS (big || big) STORED) PARTITION BY RANGE (at);
         CREATE INDEX ON log (at);
         ALTER TABLE log DROP COLUMN gone;
         CREATE TABLE log_late PARTITION OF log FOR VALUES FROM ('2024-06-01 00:00+00') TO ('2024-07-01 00:00+00');
         -- The columns of the default are in another order.
         CREATE TABLE log_default (tags text[], big text, at timestamptz, doubled text GENERATED ALWAYS AS (big || big) STORED,
                                   number float8, note json);
         ALTER TABLE log ATTACH PARTITION log_default DEFAULT;
         INSERT INTO log (at, note, big) SELECT *, '{{\"a\": 1, \"a\": 2}}', 'x' FROM ({FILL}) t;
         INSERT INTO log (at, number, tags) SELECT '2024-02-02 00:00+00', 'NaN', '{{same}}' FROM generate_series(1, 10);
         INSERT INTO log (at, big) VALUES ('infinity', 'never'), ('-infinity', 'always'), (NULL, 'when'), ('2090-01-01', 'far');
         INSERT INTO log (at, big) SELECT '2024-02-03 00:00+00', string_agg(md5(n::text), '') FROM generate_series(1, 3000) n"
    ));
    let mut holder = hold("x_changes");
    // Before the trigger is there, and not yet committed when the copy begins.
    start(&mut client, "log");
    wait_until_it_waits(&mut client);
    let mut other = CLUSTER.connect("x_changes");
    other.run("BEGIN; INSERT INTO log (at, big) VALUES ('2024-03-01 12:00+00', 'slow')");
    client.run(
        "INSERT INTO log (at, big) VALUES ('2024-02-10 00:00+00', 'new'), ('2091-01-01', 'new and far'), (NULL, 'new and when'),
                                          (now(), 'now'), ('infinity', 'new and never');
         INSERT INTO log_default (at, big) VALUES ('2024-02-11 00:00+00', 'by the side door');
         UPDATE log SET big = 'changed' WHERE at < '2024-01-22 00:00+00';
         UPDATE log SET at = at + interval '1 month' WHERE at >= '2024-01-22 00:00+00' AND at < '2024-01-23 00:00+00';
         -- Into an attached month, and into what stays in the default.
         UPDATE log SET at = '2024-06-15 00:00+00' WHERE at >= '2024-01-23 00:00+00' AND at < '2024-01-24 00:00+00';
         UPDATE log SET at = '2092-01-01' WHERE at >= '2024-01-24 00:00+00' AND at < '2024-01-25 00:00+00';
         DELETE FROM log WHERE at >= '2024-01-25 00:00+00' AND at < '2024-01-26 00:00+00';
         DELETE FROM log_default WHERE ctid IN (SELECT ctid FROM log_default WHERE tags = '{same}' LIMIT 3);
         UPDATE log SET number = 1 WHERE ctid IN (SELECT ctid FROM log_default WHERE tags = '{same}' LIMIT 2);
         UPDATE log SET number = 'NaN' WHERE number = 1;
         DELETE FROM log WHERE big = 'always' OR big = 'when'",
    );
    client.run("BEGIN; INSERT INTO log (at, big) VALUES ('2024-02-12', 'here'); SAVEPOINT s;
                INSERT INTO log (at, big) VALUES ('2024-02-12', 'undone'); DELETE FROM log WHERE at < '2024-01-28'; ROLLBACK TO s;
                UPDATE log SET big = 'here again' WHERE big = 'here'; COMMIT");
    client.run("BEGIN; DELETE FROM log; ROLLBACK");
    client.run("BEGIN; INSERT INTO log (at, big) VALUES ('2024-02-13', 'short-lived'); DELETE FROM log WHERE big = 'short-lived'; COMMIT");
    client.run(
        "MERGE INTO log USING (VALUES ('never'), ('nobody')) v (name) ON log.big = v.name
         WHEN MATCHED THEN UPDATE SET big = 'merged' WHEN NOT MATCHED THEN INSERT (at, big) VALUES ('2024-02-14', v.name)",
    );
    // As a subscription's worker writes: ordinary triggers do not fire.
    client.run(
        "SET session_replication_role = replica; INSERT INTO log (at, big) VALUES ('2024-02-15', 'replicated');
         DELETE FROM log WHERE at >= '2024-02-20' AND at < '2024-02-21'; RESET session_replication_role",
    );
    client.run("BEGIN; INSERT INTO log (at, big) VALUES ('2024-02-16', 'prepared'); PREPARE TRANSACTION 'x'");
    client.run("COPY log (at, big) FROM PROGRAM 'printf \"2024-02-17\\\\tcopied\\\\n2024-06-17\\\\tcopied\\\\n2093-06-17\\\\tcopied\\\\n\"'");
    // Some rounds go by while the slow ones are still open.
    let waiting = "SELECT count(*) FROM pg_class WHERE relname LIKE 'changes_%' AND relkind = 'r'";
    assert_eq!(client.value(waiting), "1");
    wait_until(
        "what was committed is brought over",
        &mut client,
        |client| {
            let log = client.value(
                "SELECT relname FROM pg_class WHERE relname LIKE 'changes_%' AND relkind = 'r'",
            );
            client.value(&format!("SELECT count(*) FROM audit_db.{log}")) == "0"
        },
    );
    other.run("COMMIT");
    client.run("COMMIT PREPARED 'x'");
    let before = contents(
        &mut client,
        "(SELECT at, note::text, big, number, tags, doubled FROM log)",
    );
    assert!(!emptied(&mut client, "log"));
    holder.run("COMMIT");
    wait_until_emptied(&mut client, "log");
    assert_eq!(
        contents(
            &mut client,
            "(SELECT at, note::text, big, number, tags, doubled FROM log)"
        ),
        before
    );
    assert_eq!(
        client.column("SELECT DISTINCT coalesce(date_trunc('year', at)::date::text, 'null') FROM log_default ORDER BY 1"),
        ["-infinity", "2090-01-01", "2091-01-01", "2092-01-01", "2093-01-01", "infinity", "null"]
    );
    assert_eq!(failures(&mut client), NONE);
}

/// Sessions do whatever they like from the beginning to the end.
#[test]
fn whatever_sessions_do_arrives() {
    const SESSIONS: usize = 4;
    let mut client = CLUSTER.database("x_random");
    client.run(&format!(
        "CREATE TABLE log (session int, id int, at timestamptz NOT NULL, value int, PRIMARY KEY (at, session, id)) PARTITION BY RANGE (at);
         CREATE TABLE log_default PARTITION OF log DEFAULT;
         CREATE TABLE expected (session int, id int, at timestamptz NOT NULL, value int, PRIMARY KEY (at, session, id));
         INSERT INTO log (session, id, at) SELECT 0, row_number() OVER (), at FROM ({FILL}) t (at);
         INSERT INTO expected TABLE log;
         CREATE FUNCTION step(me int, n int) RETURNS void LANGUAGE plpgsql AS $$
         DECLARE target text; kind int := floor(random() * 10); moment timestamptz := timestamptz '2024-01-20' + random() * interval '50 days';
         BEGIN
             -- The same to both tables, in one transaction.
             IF kind < 5 THEN
                 FOREACH target IN ARRAY ARRAY['log', 'expected'] LOOP
                     EXECUTE format('INSERT INTO %I VALUES ($1, $2, $3, 0)', target) USING me, n, moment;
                 END LOOP;
             ELSIF kind < 7 THEN
                 FOREACH target IN ARRAY ARRAY['log', 'expected'] LOOP
                     EXECUTE format('UPDATE %I SET value = $3 WHERE session = $1 AND id %% 7 = $2 %% 7', target) USING me, n, n;
                 END LOOP;
             ELSIF kind < 8 THEN
                 FOREACH target IN ARRAY ARRAY['log', 'expected'] LOOP
                     EXECUTE format('UPDATE %I SET at = at + interval ''11 days'' WHERE session = $1 AND id %% 13 = $2 %% 13', target) USING me, n;
                 END LOOP;
             ELSE
                 FOREACH target IN ARRAY ARRAY['log', 'expected'] LOOP
                     EXECUTE format('DELETE FROM %I WHERE session = $1 AND id %% 5 = $2 %% 5', target) USING me, n;
                 END LOOP;
             END IF;
             IF random() < 0.1 THEN
                 RAISE EXCEPTION 'changed my mind';
             END IF;
         END $$"
    ));
    let working = AtomicBool::new(true);
    std::thread::scope(|scope| {
        let working = &working;
        let _stop = Stop(working);
        let sessions: Vec<_> = (1..=SESSIONS)
            .map(|me| {
                let mut session = CLUSTER.connect("x_random");
                scope.spawn(move || {
                    let mut steps = 0;
                    while working.load(Ordering::Relaxed) {
                        steps += 1;
                        let sqlstate = session.sqlstate(&format!("SELECT step({me}, {steps})"));
                        assert!(
                            ["00000", "P0001"].contains(&sqlstate.as_str()),
                            "{sqlstate}"
                        );
                    }
                    steps
                })
            })
            .collect();
        let mut holder = hold("x_random");
        start(&mut client, "log");
        wait_until_it_waits(&mut client);
        let mut reader = CLUSTER.connect("x_random");
        for _ in 0..20 {
            assert!(reader.holds("SELECT count(*) = 7500 FROM log WHERE session = 0"));
        }
        holder.run("COMMIT");
        wait_until("the default partition is emptied", &mut client, |client| {
            emptied(client, "log")
        });
        working.store(false, Ordering::Relaxed);
        for session in sessions {
            println!("{} steps", session.join().unwrap());
        }
    });
    wait_until_emptied(&mut client, "log");
    assert_eq!(
        client.rows(
            "(TABLE log EXCEPT ALL TABLE expected) UNION ALL (TABLE expected EXCEPT ALL TABLE log)"
        ),
        Vec::<Vec<String>>::new()
    );
    assert_eq!(failures(&mut client), NONE);
}

/// What happens to the tables that events refer to reaches the default partition, and the copies only through it.
#[test]
fn foreign_keys_act_once() {
    let mut client = CLUSTER.database("x_keys");
    client.run(&format!(
        "CREATE TABLE kind (name text PRIMARY KEY); CREATE TABLE place (name text PRIMARY KEY);
         INSERT INTO kind VALUES ('read'), ('write'), ('rare'); INSERT INTO place VALUES ('here'), ('there');
         CREATE TABLE log (at timestamptz NOT NULL, kind text REFERENCES kind ON DELETE CASCADE ON UPDATE CASCADE,
                           place text REFERENCES place) PARTITION BY RANGE (at);
         CREATE TABLE log_default PARTITION OF log DEFAULT;
         INSERT INTO log SELECT at, CASE extract(minute FROM at)::int % 30 WHEN 0 THEN 'read' ELSE 'write' END, 'here' FROM ({FILL}) t (at);
         INSERT INTO log SELECT at, 'rare', 'there' FROM ({FILL}) t (at) LIMIT 1000"
    ));
    let mut holder = hold("x_keys");
    start(&mut client, "log");
    wait_until_it_waits(&mut client);
    client.run("UPDATE kind SET name = 'reading' WHERE name = 'read'; DELETE FROM kind WHERE name = 'rare'");
    // Nothing refers to it any more, and the copies must not know better.
    client.run("DELETE FROM place WHERE name = 'there'");
    assert_eq!(
        client.sqlstate("DELETE FROM place WHERE name = 'here'"),
        "23503"
    );
    let before = contents(&mut client, "log");
    holder.run("COMMIT");
    wait_until_emptied(&mut client, "log");
    assert_eq!(contents(&mut client, "log"), before);
    assert_eq!(
        client.column("SELECT DISTINCT kind FROM log ORDER BY 1"),
        ["reading", "write"]
    );
    assert_eq!(failures(&mut client), NONE);
    assert!(client.holds("SELECT bool_and(convalidated) FROM pg_constraint WHERE contype = 'f'"));
    assert_eq!(
        client.sqlstate("INSERT INTO log VALUES ('2024-02-02 00:00+00', 'nothing', 'here')"),
        "23503"
    );
    client.run("DELETE FROM kind WHERE name = 'reading'");
    assert_eq!(client.column("SELECT DISTINCT kind FROM log"), ["write"]);
    assert_eq!(client.sqlstate("DELETE FROM place"), "23503");
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

fn table(client: &mut Client) {
    client.run(&format!(
        "CREATE TABLE log (at timestamptz NOT NULL, what text) PARTITION BY RANGE (at);
         CREATE TABLE log_default PARTITION OF log DEFAULT;
         INSERT INTO log {FILL}"
    ));
}

/// What makes the copy worthless begins it anew; in the end every row is in its month.
#[test]
fn an_exchange_that_is_broken_off_begins_anew() {
    for (name, meanwhile, left) in [
        (
            "truncated",
            "TRUNCATE log; INSERT INTO log VALUES ('2024-02-02 00:00+00', 'a')",
            "1",
        ),
        ("truncated_alone", "TRUNCATE log_default", "0"),
        (
            "widened",
            "ALTER TABLE log ADD COLUMN more int DEFAULT 7; INSERT INTO log (at) VALUES ('2024-02-02 00:00+00')",
            "7501",
        ),
        (
            "narrowed",
            "ALTER TABLE log DROP COLUMN what; INSERT INTO log (at) VALUES ('2024-02-02 00:00+00')",
            "7501",
        ),
        (
            "retyped",
            "ALTER TABLE log ALTER COLUMN what TYPE int USING NULL; INSERT INTO log (at) VALUES ('2024-02-02 00:00+00')",
            "7501",
        ),
        (
            "renamed",
            "ALTER TABLE log RENAME COLUMN what TO that; INSERT INTO log (at) VALUES ('2024-02-02 00:00+00')",
            "7501",
        ),
        (
            "unheard",
            "ALTER TABLE log_default DISABLE TRIGGER ALL; INSERT INTO log (at) VALUES ('2024-02-02 00:00+00')",
            "7501",
        ),
        (
            "joined",
            "CREATE TABLE log_june PARTITION OF log FOR VALUES FROM ('2024-06-01') TO ('2024-07-01')",
            "7500",
        ),
        (
            "constrained",
            "ALTER TABLE log ADD CHECK (at > '2000-01-01')",
            "7500",
        ),
        ("indexed", "CREATE INDEX ON log (what)", "7500"),
    ] {
        let database = format!("x_{name}");
        let mut client = CLUSTER.database(&database);
        table(&mut client);
        let mut holder = hold(&database);
        start(&mut client, "log");
        wait_until_it_waits(&mut client);
        client.run(meanwhile);
        holder.run("COMMIT");
        wait_until(
            &format!("{name}: the rows are in their months"),
            &mut client,
            |client| client.value("SELECT count(*) FROM log_default") == "0",
        );
        wait_until_it_ends(&mut client);
        assert_nothing_left(&mut client);
        assert_eq!(client.value("SELECT count(*) FROM log"), left, "{name}");
        assert!(
            client.holds("SELECT bool_and(indisvalid) FROM pg_index"),
            "{name}"
        );
        assert_eq!(failures(&mut client), NONE, "{name}");
    }
}

/// What ends the exchange for good.
#[test]
fn an_exchange_gives_way() {
    for (name, meanwhile) in [
        ("forgotten", "SELECT audit_db.unmanage_table('log')"),
        ("dropped", "DROP TABLE log"),
        ("detached", "ALTER TABLE log DETACH PARTITION log_default"),
        ("orphaned", "DROP EXTENSION audit_db"),
    ] {
        let database = format!("x_{name}");
        let mut client = CLUSTER.database(&database);
        table(&mut client);
        client.run(
            "CREATE SEQUENCE log_id_seq; ALTER TABLE log ADD id bigint DEFAULT nextval('log_id_seq');
             ALTER SEQUENCE log_id_seq OWNED BY log.id",
        );
        let mut holder = hold(&database);
        start(&mut client, "log");
        wait_until_it_waits(&mut client);
        // The tables it has made belong to the extension, which must not go with a schema.
        assert_eq!(client.sqlstate("DROP SCHEMA public CASCADE"), "55006");
        let started = std::time::Instant::now();
        client.run(meanwhile);
        println!("{name}: {:?}", started.elapsed());
        if name != "orphaned" {
            holder.run("COMMIT");
            wait_until_it_ends(&mut client);
            assert_nothing_left(&mut client);
        }
        if name != "dropped" {
            assert_eq!(
                client.value("SELECT count(*) FROM log_default"),
                "7500",
                "{name}"
            );
            client.run("INSERT INTO log_default VALUES ('2024-02-02 00:00+00')");
        }
        assert_eq!(
            client.column("SELECT relname FROM pg_class WHERE relname ~ '^log_(20|new|stag)' AND relname !~ to_char(now(), 'YYYY')"),
            Vec::<String>::new(),
            "{name}"
        );
        if name == "orphaned" {
            assert_eq!(client.value("SELECT count(*) FROM pg_trigger"), "0");
            client.run("CREATE EXTENSION audit_db");
        }
    }
    // DROP DATABASE does not wait for it either.
    let mut client = CLUSTER.database("x_gone");
    table(&mut client);
    let mut elsewhere = CLUSTER.connect("postgres");
    start(&mut client, "log");
    drop(client);
    let started = std::time::Instant::now();
    elsewhere.run("DROP DATABASE x_gone");
    println!("DROP DATABASE: {:?}", started.elapsed());
}

/// Cancelled or ended, the exchange clears away what it made, and the next cycle tries again.
#[test]
fn an_exchange_that_is_cancelled_or_ended_leaves_nothing() {
    let mut client = CLUSTER.database("x_ended");
    table(&mut client);
    let mut holder = hold("x_ended");
    start(&mut client, "log");
    wait_until_it_waits(&mut client);
    // Between two transactions there is nothing to cancel: it goes on.
    client
        .run("SELECT pg_cancel_backend(slow_pid) FROM audit_db.workers WHERE slow_pid IS NOT NULL AND database = current_database()");
    client.run("INSERT INTO log VALUES ('2024-02-02 00:00+00')");
    wait_until_it_waits(&mut client);
    client.run(
        "SELECT pg_terminate_backend(slow_pid) FROM audit_db.workers WHERE slow_pid IS NOT NULL AND database = current_database()",
    );
    wait_until_it_ends(&mut client);
    // Its trigger does nothing now.
    client.run("INSERT INTO log VALUES ('2024-02-02 00:00+00'); UPDATE log SET what = 'x' WHERE at < '2024-01-22'; DELETE FROM log WHERE what = 'x'");
    let before = contents(&mut client, "log");
    holder.run("COMMIT");
    start(&mut client, "log");
    wait_until_emptied(&mut client, "log");
    assert_eq!(contents(&mut client, "log"), before);
    assert_eq!(failures(&mut client), NONE);
}

/// A dump that is made in the middle holds the table, and nothing of the exchange.
#[test]
fn a_dump_in_the_middle_is_whole() {
    let mut client = CLUSTER.database("x_dumped");
    table(&mut client);
    let _holder = hold("x_dumped");
    start(&mut client, "log");
    wait_until_it_waits(&mut client);
    let before = contents(&mut client, "log");
    let script = CLUSTER.dump("x_dumped");
    let mut copy = CLUSTER.empty_database("x_restored");
    CLUSTER.restore("x_restored", &script);
    assert_eq!(contents(&mut copy, "log"), before);
    // The trigger came along; it does nothing, and goes with the copy's own exchange.
    copy.run("INSERT INTO log VALUES ('2024-02-02 00:00+00')");
    start(&mut copy, "log");
    wait_until_emptied(&mut copy, "log");
    assert_eq!(copy.value("SELECT count(*) FROM log"), "7501");
}
