//! Tables of every kind: taken over, supplied with months, emptied and retired, or refused with a reason.

use audit_db_e2e::{Client, Cluster, SOON, Session, Shared, wait_until};

static CLUSTER: Shared = Shared::new(|| {
    Cluster::builder()
        .fast()
        .set("audit_db.maintenance_interval", "200ms")
        .set("audit_db.max_partitions_dropped", "100")
        .set("wal_level", "logical")
});

/// Two months of 2024 with more rows than are simply moved, as days or times.
const TIMES: &str = "SELECT timestamptz '2024-01-01 00:00+00' + n * interval '30 minutes' AS at FROM generate_series(0, 2879) n";

/// Waits until nothing is left to do for a table.
#[track_caller]
fn settle(client: &mut Client, what: &str, condition: &str) {
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        wait_until(what, SOON, || client.holds(condition));
    }));
    if outcome.is_err() {
        panic!(
            "{what}: {:#?}",
            client.rows("SELECT event, object, message, detail FROM audit_db.events_log WHERE severity = 'error'")
        );
    }
}

/// Takes a table over, waits until its default is empty, has an expired month detached, and one made again.
fn whole_life(client: &mut Client, table: &str, default: &str) {
    let rows = client.number(&format!("SELECT count(*) FROM {table}"));
    assert!(rows >= 2880, "{table}");
    client.run(&format!(
        "SELECT audit_db.manage_table('{table}', premake => 2)"
    ));
    settle(
        client,
        &format!("{table} is emptied"),
        &format!(
            "SELECT NOT EXISTS (SELECT FROM {default}) AND NOT EXISTS (SELECT FROM audit_db.unfinished)"
        ),
    );
    assert_eq!(
        client.number(&format!("SELECT count(*) FROM {table}")),
        rows,
        "{table}"
    );
    let months = format!(
        "SELECT partition FROM audit_db.partition_info('{table}') WHERE range_start IN ('2024-01-01 00:00+00', '2024-02-01 00:00+00') ORDER BY range_start"
    );
    let made = client.column(&months);
    assert_eq!(made.len(), 2, "{table}: {made:?}");
    // A month that is missing comes back.
    let ahead = client.value(&format!(
        "SELECT partition FROM audit_db.partition_info('{table}') WHERE range_start > now() ORDER BY range_start LIMIT 1"
    ));
    client.run(&format!("DROP TABLE {ahead}"));
    settle(
        client,
        &format!("{ahead} is made again"),
        &format!("SELECT to_regclass('{ahead}') IS NOT NULL"),
    );
    // January expires; February is the one that is asked for.
    let retention = "SELECT extract(days FROM now() - '2024-02-15 00:00+00')::int";
    let days = client.value(retention);
    client.run(&format!(
        "SELECT audit_db.manage_table('{table}', premake => 2, retention => '{days} days', retention_action => 'detach')"
    ));
    settle(
        client,
        &format!("January of {table} is detached"),
        &format!(
            "SELECT NOT relispartition FROM pg_class WHERE oid = '{}'::regclass",
            made[0]
        ),
    );
    assert_eq!(client.column(&months), made[1..], "{table}");
    assert_eq!(
        client.number(&format!("SELECT count(*) FROM {}", made[0])),
        1488,
        "{table}"
    );
    assert_eq!(
        client.number(&format!("SELECT count(*) FROM {table}")),
        rows - 1488,
        "{table}"
    );
    assert_eq!(
        client.rows("SELECT event, object, message, detail FROM audit_db.events_log WHERE severity = 'error'"),
        Vec::<Vec<String>>::new(),
        "{table}"
    );
    client.run(&format!("SELECT audit_db.unmanage_table('{table}')"));
}

#[test]
fn keys_and_names() {
    let mut client = CLUSTER.database("k_names");
    let long = "a_table_name_of_sixty_three_bytes_which_is_the_longest_there_is";
    assert_eq!(long.len(), 63);
    for (table, key) in [
        ("by_date", "date"),
        ("by_timestamp", "timestamp"),
        (long, "timestamptz"),
        ("\"Mixed Case\"", "timestamptz"),
        ("\"quo\"\"ted.na'me\"", "timestamptz"),
        (
            "\"schöne Tabelle, deren Name dreiundsechzig Byte hat, Umlaute auch\"",
            "timestamptz",
        ),
    ] {
        let quoted = table.replace('\'', "''");
        client.run(&format!(
            "CREATE TABLE {table} (\"the Key\" {key} NOT NULL, \"User\" text) PARTITION BY RANGE (\"the Key\");
             CREATE INDEX ON {table} (\"the Key\", \"User\");
             CREATE TABLE the_default PARTITION OF {table} DEFAULT;
             INSERT INTO {table} (\"the Key\") {TIMES}"
        ));
        client.run(&format!("SET TIME ZONE 'UTC'; SELECT '{quoted}'::regclass"));
        whole_life_of(&mut client, table, &quoted);
        client.run(&format!("DROP TABLE {table}"));
    }
}

fn whole_life_of(client: &mut Client, table: &str, quoted: &str) {
    if table == quoted {
        whole_life(client, table, "the_default");
    } else {
        // The name is written both as an identifier and inside a literal.
        let view = "CREATE OR REPLACE FUNCTION pg_temp.t() RETURNS regclass LANGUAGE sql AS";
        client.run(&format!("{view} $$ SELECT '{quoted}'::regclass $$"));
        client.run(&format!(
            "ALTER TABLE {table} RENAME TO \"quoted name\"\"s\""
        ));
        whole_life(client, "\"quoted name\"\"s\"", "the_default");
        client.run(&format!(
            "ALTER TABLE \"quoted name\"\"s\" RENAME TO {table}"
        ));
    }
}

/// Nothing may be changed or deleted; moving the rows is neither.
#[test]
fn append_only_triggers() {
    let mut client = CLUSTER.database("k_append");
    client.run(&format!(
        "CREATE TABLE fired (what text);
         CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'append only'; END $$;
         CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO fired VALUES (tg_op); RETURN NULL; END $$;
         CREATE TABLE log (at timestamptz NOT NULL, what text) PARTITION BY RANGE (at);
         CREATE TABLE log_default PARTITION OF log DEFAULT;
         CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON log FOR EACH ROW EXECUTE FUNCTION refuse();
         CREATE TRIGGER no_truncate BEFORE TRUNCATE ON log FOR EACH STATEMENT EXECUTE FUNCTION refuse();
         INSERT INTO log {TIMES};
         CREATE TRIGGER notes AFTER INSERT OR UPDATE OR DELETE ON log FOR EACH ROW EXECUTE FUNCTION note()"
    ));
    whole_life(&mut client, "log", "log_default");
    assert_eq!(client.value("SELECT count(*) FROM fired"), "0");
    for sql in [
        "DELETE FROM log",
        "UPDATE log SET what = 'x'",
        "TRUNCATE log",
        "DELETE FROM log_2024_02",
    ] {
        assert_eq!(client.sqlstate(sql), "P0001", "{sql}");
    }
    client.run("INSERT INTO log VALUES (now()), ('2024-02-02 00:00+00'), ('1999-01-01 00:00+00')");
    assert_eq!(client.column("SELECT what FROM fired"), ["INSERT"; 3]);
}

/// Events refer to another table, and another table refers to events.
#[test]
fn foreign_keys() {
    let mut client = CLUSTER.database("k_foreign");
    client.run(&format!(
        "CREATE TABLE kind (name text PRIMARY KEY);
         INSERT INTO kind VALUES ('read'), ('write');
         CREATE TABLE log (at timestamptz NOT NULL, kind text REFERENCES kind ON DELETE CASCADE, PRIMARY KEY (at)) PARTITION BY RANGE (at);
         CREATE TABLE log_default PARTITION OF log DEFAULT;
         INSERT INTO log SELECT at, CASE WHEN extract(minute FROM at) = 0 THEN 'read' ELSE 'write' END FROM ({TIMES}) t"
    ));
    whole_life(&mut client, "log", "log_default");
    assert_eq!(
        client.sqlstate("INSERT INTO log VALUES ('2024-02-02 00:15+00', 'nothing')"),
        "23503"
    );
    assert!(client.holds(
        "SELECT bool_and(convalidated) AND count(*) = count(DISTINCT conrelid) FROM pg_constraint
          WHERE contype = 'f' AND confrelid = 'kind'::regclass"
    ));
    // The cascade reaches the months, the detached one too.
    client.run("DELETE FROM kind WHERE name = 'read'");
    assert_eq!(client.value("SELECT count(*) FROM log"), "696");
    assert_eq!(client.value("SELECT count(*) FROM log_2024_01"), "744");

    // From elsewhere: many rows cannot leave the default, and it is said why; months that none waits for are made.
    client.run(&format!(
        "CREATE TABLE pointed (at timestamptz PRIMARY KEY) PARTITION BY RANGE (at);
         CREATE TABLE pointed_default PARTITION OF pointed DEFAULT;
         INSERT INTO pointed {TIMES};
         CREATE TABLE follow_up (event timestamptz REFERENCES pointed);
         INSERT INTO follow_up VALUES ('2024-01-15 00:00+00');
         SELECT audit_db.manage_table('pointed', premake => 2)"
    ));
    settle(
        &mut client,
        "it is said why",
        "SELECT EXISTS (SELECT FROM audit_db.events_log WHERE event = 'empty default partition' AND sqlstate = '55000'
                           AND detail LIKE 'Foreign keys refer to the table%')",
    );
    assert_eq!(client.value("SELECT count(*) FROM pointed_default"), "2880");
    assert_eq!(
        client.value("SELECT count(*) FROM audit_db.partition_info('pointed')"),
        "4"
    );
    // A month that is referred to stays, and others go.
    client.run(
        "SELECT audit_db.unmanage_table('pointed');
         CREATE TABLE refd (at timestamptz PRIMARY KEY) PARTITION BY RANGE (at);
         SELECT audit_db.manage_table('refd', premake => 0);
         SELECT audit_db.create_partitions('refd', '2020-01-01', 3);
         INSERT INTO refd VALUES ('2020-01-10'), ('2020-02-10'), ('2020-03-10');
         CREATE TABLE follows (event timestamptz REFERENCES refd);
         INSERT INTO follows VALUES ('2020-02-10');
         SELECT audit_db.manage_table('refd', premake => 0, retention => '1 year')",
    );
    settle(
        &mut client,
        "the others have gone",
        "SELECT count(*) = 1 FROM audit_db.partition_info('refd') WHERE range_end < now()",
    );
    assert_eq!(client.column("SELECT at::date FROM refd"), ["2020-02-10"]);
    assert_eq!(
        client.rows("SELECT object, sqlstate FROM audit_db.events_log WHERE event = 'retention' AND severity = 'error'"),
        [["public.refd_2020_02", "23503"]]
    );
}

/// The function that logs changes, as a trigger that somebody else made.
#[test]
fn only_an_exchange_logs_changes() {
    let mut client = CLUSTER.database("k_capture");
    client.run("CREATE TABLE log (at timestamptz NOT NULL)");
    for when in [
        "AFTER INSERT ON log FOR EACH STATEMENT",
        "BEFORE INSERT ON log FOR EACH ROW",
    ] {
        client.run(&format!(
            "CREATE TRIGGER mine {when} EXECUTE FUNCTION audit_db.capture_change()"
        ));
        assert_eq!(
            client.sqlstate("INSERT INTO log VALUES (now())"),
            "0A000",
            "{when}"
        );
        client.run("DROP TRIGGER mine ON log");
    }
    // It has nothing to say to one of its own kind on a table that is not being exchanged.
    client.run("CREATE TRIGGER mine AFTER INSERT ON log FOR EACH ROW EXECUTE FUNCTION audit_db.capture_change()");
    client.run("INSERT INTO log VALUES (now())");
}

/// Why a default partition is not exchanged.
#[test]
fn refused_with_a_reason() {
    let mut client = CLUSTER.database("k_refused");
    client
        .run("CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$");
    for (what, reason) in [
        (
            "CREATE RULE r AS ON DELETE TO log_default DO INSTEAD NOTHING",
            "It bears rules of its own.",
        ),
        (
            "CREATE TRIGGER t BEFORE INSERT ON log_default FOR EACH ROW EXECUTE FUNCTION f()",
            "It bears triggers of its own, which the table does not have.",
        ),
        (
            "CREATE POLICY p ON log_default",
            "It bears policies of its own.",
        ),
        (
            "ALTER TABLE log_default ADD CHECK (what <> 'x')",
            "It bears constraints or unique indexes of its own, which the table does not have.",
        ),
        (
            "CREATE UNIQUE INDEX ON log_default (at, what)",
            "It bears constraints or unique indexes of its own, which the table does not have.",
        ),
        (
            "CREATE SEQUENCE owned OWNED BY log_default.what",
            "It owns a sequence, which would be dropped with it. Give that to the table: ALTER SEQUENCE ... OWNED BY.",
        ),
        (
            "CREATE TABLE log_default_exchanged ()",
            "A table has the name that it would get until it is compared and dropped: its own, followed by _exchanged.",
        ),
        (
            "CREATE VIEW v AS SELECT * FROM log_default",
            "Views, functions or columns of other tables depend on it.",
        ),
        (
            "CREATE TABLE composite (part log_default)",
            "Views, functions or columns of other tables depend on it.",
        ),
        (
            "CREATE PUBLICATION alone FOR TABLE log_default",
            "It is published by its own name.",
        ),
        (
            "CREATE PUBLICATION everything FOR ALL TABLES",
            "New tables in its schema are published for logical replication, and a replication slot of this database would send the copied rows to the subscribers a second time.",
        ),
    ] {
        if what.ends_with("ALL TABLES") {
            client.run("SELECT pg_create_logical_replication_slot('slot', 'pgoutput')");
        }
        client.run(&format!(
            "CREATE TABLE log (at timestamptz NOT NULL, what text) PARTITION BY RANGE (at);
             CREATE TABLE log_default PARTITION OF log DEFAULT;
             INSERT INTO log {TIMES};
             {what};
             SELECT audit_db.manage_table('log', premake => 2)"
        ));
        settle(
            &mut client,
            what,
            "SELECT EXISTS (SELECT FROM audit_db.events_log WHERE event = 'empty default partition' AND sqlstate = '55000')",
        );
        assert_eq!(
            client
                .column("SELECT DISTINCT detail FROM audit_db.events_log WHERE severity = 'error'"),
            [reason]
        );
        assert_eq!(
            client.value("SELECT count(*) FROM log_default"),
            "2880",
            "{what}"
        );
        // Months ahead are there all the same.
        assert_eq!(
            client.value("SELECT count(*) FROM audit_db.partition_info('log')"),
            "4",
            "{what}"
        );
        client.run(
            "SELECT audit_db.unmanage_table('log'); DROP TABLE log CASCADE; TRUNCATE audit_db.events_log;
             DROP TABLE IF EXISTS composite, log_default_exchanged; DROP PUBLICATION IF EXISTS alone",
        );
    }
    // Without somebody who receives it, it does not matter what is published.
    client.run(&format!(
        "SELECT pg_drop_replication_slot('slot');
         CREATE TABLE log (at timestamptz NOT NULL, what text) PARTITION BY RANGE (at);
         CREATE TABLE log_default PARTITION OF log DEFAULT;
         INSERT INTO log {TIMES}"
    ));
    whole_life(&mut client, "log", "log_default");
}

/// What a subscriber has is not touched by the exchange, and what comes afterwards arrives.
#[test]
fn subscribers_notice_nothing() {
    let mut client = CLUSTER.database("k_published");
    let table = "CREATE TABLE log (id bigint GENERATED ALWAYS AS IDENTITY, at timestamptz NOT NULL, what text, PRIMARY KEY (at, id)) PARTITION BY RANGE (at);
         CREATE TABLE log_default PARTITION OF log DEFAULT";
    client.run(&format!(
        "{table}; INSERT INTO log (at) {TIMES};
         CREATE PUBLICATION p FOR TABLE log WITH (publish_via_partition_root = true)"
    ));
    let mut subscriber = CLUSTER.empty_database("k_subscriber");
    subscriber.run(
        "CREATE TABLE log (id bigint, at timestamptz NOT NULL, what text, PRIMARY KEY (at, id))",
    );
    client.run("SELECT pg_create_logical_replication_slot('k_slot', 'pgoutput')");
    subscriber.run(&format!(
        "CREATE SUBSCRIPTION s CONNECTION 'host={} port=5432 user=postgres dbname=k_published' PUBLICATION p WITH (create_slot = false, slot_name = k_slot)",
        CLUSTER.socket().display()
    ));
    let same = "SELECT count(*), md5(string_agg(id || '/' || at || '/' || coalesce(what, '-'), ',' ORDER BY id)) FROM log";
    wait_until("the subscriber has the rows", SOON, || {
        subscriber.rows(same) == client.rows(same)
    });
    client.run("SELECT audit_db.manage_table('log', premake => 2)");
    let mut written = 0;
    wait_until("the default is emptied", SOON, || {
        written += 1;
        client.run("INSERT INTO log (at, what) VALUES ('2024-02-03 00:00+00', 'new'); UPDATE log SET what = what || '!' WHERE what LIKE 'new%' AND id % 3 = 0");
        client.run("DELETE FROM log WHERE what LIKE 'new%' AND id % 7 = 0");
        client.value("SELECT count(*) FROM log_default") == "0"
    });
    client.run("INSERT INTO log (at, what) VALUES (now(), 'after'); UPDATE log SET what = 'changed' WHERE at = '2024-01-05 00:00+00'; DELETE FROM log WHERE at = '2024-01-06 00:00+00'");
    wait_until("the subscriber has what came", SOON, || {
        subscriber.rows(same) == client.rows(same)
    });
    assert!(written > 1);
    assert_eq!(
        client.rows(
            "SELECT event, object, message FROM audit_db.events_log WHERE severity = 'error'"
        ),
        Vec::<Vec<String>>::new()
    );
    subscriber.run("DROP SUBSCRIPTION s");
}

/// A subscription writes into partitions by their names: it would not find the rows' new places.
#[test]
fn a_default_that_a_subscription_fills_is_left_alone() {
    let mut client = CLUSTER.database("k_source");
    let table = "CREATE TABLE log (at timestamptz NOT NULL, what text) PARTITION BY RANGE (at);
         CREATE TABLE log_default PARTITION OF log DEFAULT";
    client.run(&format!(
        "{table}; INSERT INTO log {TIMES}; CREATE PUBLICATION p FOR TABLE log"
    ));
    let mut subscriber = CLUSTER.database("k_target");
    subscriber.run(table);
    client.run("SELECT pg_create_logical_replication_slot('k_target', 'pgoutput')");
    subscriber.run(&format!(
        "CREATE SUBSCRIPTION s CONNECTION 'host={} port=5432 user=postgres dbname=k_source' PUBLICATION p WITH (create_slot = false, slot_name = k_target)",
        CLUSTER.socket().display()
    ));
    wait_until("the rows are there", SOON, || {
        subscriber.value("SELECT count(*) FROM log_default") == "2880"
    });
    subscriber.run("SELECT audit_db.manage_table('log', premake => 1)");
    settle(
        &mut subscriber,
        "it is said why",
        "SELECT EXISTS (SELECT FROM audit_db.events_log WHERE event = 'empty default partition' AND detail = 'A subscription writes into it.')",
    );
    client.run("INSERT INTO log VALUES ('2024-02-02 00:00+00', 'new')");
    wait_until("what comes arrives", SOON, || {
        subscriber.value("SELECT count(*) FROM log_default") == "2881"
    });
    subscriber.run("DROP SUBSCRIPTION s");
}

/// A table that another tool made: names and bounds of its own, gaps, open ends.
#[test]
fn a_table_of_another_tool() {
    let mut client = CLUSTER.database("k_odd");
    client.run(&format!(
        "CREATE TABLE log (at timestamptz NOT NULL, what text) PARTITION BY RANGE (at);
         CREATE TABLE log_p2023 PARTITION OF log FOR VALUES FROM (MINVALUE) TO ('2023-11-17 05:00+00');
         CREATE TABLE \"log Part 7\" PARTITION OF log FOR VALUES FROM ('2024-01-10 12:34:56+00') TO ('2024-01-20 00:00+00');
         CREATE TABLE log_default PARTITION OF log DEFAULT;
         CREATE TABLE log_2024_02 (squatter int);
         INSERT INTO log {TIMES};
         SELECT audit_db.manage_table('log', premake => 1)"
    ));
    // A name that is taken by a stranger is the one thing that stops it.
    settle(
        &mut client,
        "the name is reported",
        "SELECT EXISTS (SELECT FROM audit_db.events_log WHERE event = 'empty default partition' AND sqlstate = '42P07')",
    );
    assert_eq!(client.value("SELECT count(*) FROM log"), "2880");
    client.run("DROP TABLE log_2024_02");
    settle(
        &mut client,
        "the rows are in their months",
        "SELECT NOT EXISTS (SELECT FROM log_default)",
    );
    assert_eq!(client.value("SELECT count(*) FROM log"), "2880");
    assert_eq!(
        client.rows(
            "SELECT range_start, range_end FROM audit_db.partition_info('log') WHERE range_end < '2024-06-01' ORDER BY range_start"
        ),
        [
            ["-infinity", "2023-11-17 05:00:00+00"],
            ["2024-01-01 00:00:00+00", "2024-01-10 12:34:56+00"],
            ["2024-01-10 12:34:56+00", "2024-01-20 00:00:00+00"],
            ["2024-01-20 00:00:00+00", "2024-02-01 00:00:00+00"],
            ["2024-02-01 00:00:00+00", "2024-03-01 00:00:00+00"],
        ]
    );
}
