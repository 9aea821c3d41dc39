//! Events: what is logged is stored, in each mode, and what cannot be stored is kept.

use audit_db_e2e::{Client, Cluster, SOON, Session, Shared, cloudtrail, wait_until};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

static SHARED: Shared = Shared::new(|| {
    Cluster::builder()
        .fast()
        .set("max_worker_processes", "64")
        // What is queued stays until somebody asks for it.
        .set("audit_db.batch_max_delay", "1h")
        .set("audit_db.batch_max_events", "100000")
        .set("audit_db.queue_size", "1MB")
        .set("audit_db.queue_timeout", "300ms")
        .set("audit_db.durable_timeout", "20s")
});

/// A database with an audit log.
fn log(name: &str) -> Client {
    let mut client = SHARED.database(name);
    client.run("SELECT audit_db.create_audit_log(premake => 1)");
    client
}

fn actions(client: &mut Client) -> Vec<String> {
    client.column("SELECT action FROM audit_log ORDER BY id")
}

/// The only row of the statistics: queued, enqueued, written, rejected, withdrawn, fallbacks.
fn statistics(client: &mut Client) -> Vec<String> {
    client.rows(
        "SELECT queued_events, enqueued, written, rejected, withdrawn, fallbacks FROM audit_db.ingest_stats",
    )
    .remove(0)
}

#[test]
fn an_event_survives_the_transaction_that_it_reports_on_or_not() {
    let mut client = log("survives");
    for durability in ["transaction", "durable", "async"] {
        client.run(&format!(
            "BEGIN; SELECT audit_db.log_event('{durability} rolled back', durability => '{durability}'); ROLLBACK;
             BEGIN; SELECT audit_db.log_event('{durability} committed', durability => '{durability}'); COMMIT"
        ));
    }
    client.run("SELECT audit_db.flush_events()");
    let mut found = actions(&mut client);
    found.sort_unstable();
    assert_eq!(
        found,
        [
            "async committed",
            "async rolled back",
            "durable committed",
            "durable rolled back",
            "transaction committed",
        ]
    );
    assert_eq!(statistics(&mut client), ["0", "4", "4", "0", "0", "0"]);
}

#[test]
fn a_durable_event_is_there_when_the_call_returns() {
    let mut client = log("returns");
    let mut other = SHARED.connect("returns");
    for number in 0..50 {
        client.run(&format!(
            "SET synchronous_commit = off; SELECT audit_db.log_event('event {number}', durability => 'durable')"
        ));
        assert_eq!(
            other.number("SELECT count(*) FROM audit_log"),
            i64::from(number) + 1
        );
    }
    // Also from a transaction that may not write, and in one that sees an older state.
    client.run(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
         SELECT audit_db.log_event('read only', durability => 'durable'); COMMIT",
    );
    assert_eq!(other.number("SELECT count(*) FROM audit_log"), 51);
    assert_eq!(
        client.sqlstate(
            "BEGIN READ ONLY; SELECT audit_db.log_event('x', durability => 'transaction')"
        ),
        "25006"
    );
}

/// An event of CloudTrail as an event of ours. What has no column goes into the metadata by its own name.
fn mapped(line: &str, number: usize) -> Value {
    let record: Value = serde_json::from_str(line).expect("a JSON record");
    let identity = &record["userIdentity"];
    let failed = !record["errorCode"].is_null();
    json!({
        "timestamp": record["eventTime"],
        "action": record["eventName"],
        "status": if failed { "failure" } else { "success" },
        "principal_id": identity["arn"],
        "principal_type": identity["type"],
        "organization_id": record["recipientAccountId"],
        "resource_type": record["eventSource"],
        "resource_id": record["resources"][0]["ARN"],
        "outcome_description": record["errorMessage"],
        "correlation_id": record["eventID"],
        "number": number,
        "record": record,
    })
}

#[test]
fn real_events_come_out_as_they_went_in() {
    let Some(lines) = cloudtrail::lines() else {
        return;
    };
    let events: Vec<Value> = lines
        .iter()
        .enumerate()
        .map(|(number, line)| mapped(line, number))
        .collect();
    let mut client = log("cloudtrail");
    // Not read by serde on the way: a number of 30 digits stays one.
    for durability in ["transaction", "durable", "async"] {
        client.run("TRUNCATE audit_log");
        let mut logged = 0;
        for part in events.chunks(100) {
            let text = serde_json::to_string(part).unwrap().replace('\'', "''");
            logged += client.number(&format!(
                "SELECT audit_db.log_events('{text}', durability => '{durability}')"
            ));
        }
        assert_eq!(logged, events.len() as i64);
        client.run("SELECT audit_db.flush_events()");
        let mut found = client
            .query(
                "SELECT (metadata->>'number')::int, extract(epoch FROM \"timestamp\")::int8, action, status, principal_id,
                        principal_type, organization_id, resource_type, resource_id, outcome_description, correlation_id,
                        data_classification, metadata::text FROM audit_log",
                &[],
            )
            .unwrap();
        assert_eq!(found.len(), events.len(), "{durability}");
        found.sort_unstable_by_key(|row| row.get::<_, i32>(0));
        for (row, event) in found.iter().zip(&events) {
            for (place, key) in [
                (2, "action"),
                (3, "status"),
                (4, "principal_id"),
                (5, "principal_type"),
                (6, "organization_id"),
                (7, "resource_type"),
                (8, "resource_id"),
                (9, "outcome_description"),
                (10, "correlation_id"),
                (11, "data_classification"),
            ] {
                assert_eq!(
                    row.get::<_, Option<String>>(place).as_deref(),
                    event[key].as_str(),
                    "{key}"
                );
            }
            let metadata: Value = serde_json::from_str(&row.get::<_, String>(12)).unwrap();
            assert_eq!(metadata["record"], event["record"], "{durability}");
            assert_eq!(metadata.as_object().unwrap().len(), 2, "{metadata}");
            let time = chrono_seconds(event["timestamp"].as_str().unwrap());
            assert_eq!(row.get::<_, i64>(1), time);
        }
    }
    assert_eq!(
        client.value("SELECT fallbacks FROM audit_db.ingest_stats"),
        "0"
    );
}

/// Seconds since 1970 of a time like 2023-07-10T19:22:12Z.
fn chrono_seconds(text: &str) -> i64 {
    let number = |range: std::ops::Range<usize>| text[range].parse::<i64>().unwrap();
    let (year, month, day) = (number(0..4), number(5..7), number(8..10));
    // Days from civil, after Howard Hinnant.
    let shifted = if month <= 2 { year - 1 } else { year };
    let era = shifted.div_euclid(400);
    let of_era = shifted.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
    days * 86_400 + number(11..13) * 3_600 + number(14..16) * 60 + number(17..19)
}

#[test]
fn arguments_and_keys_that_are_no_columns() {
    let mut client = log("keys");
    client.run("SET TimeZone = 'America/New_York'");
    client.run(
        "SELECT audit_db.log_events('[
            {\"action\": \"a\", \"ward\": \"7b\", \"metadata\": {\"ward\": \"own\", \"n\": 123456789012345678901234567890.5}},
            {\"action\": \"b\", \"status\": null, \"metadata\": [1, 2], \"x\": {\"y\": null}},
            {\"action\": \"c\", \"resource_id\": 42, \"metadata\": null, \"timestamp\": \"2026-11-01 12:00\"},
            {\"action\": \"d\", \"metadata\": \"text\"}]')",
    );
    assert_eq!(
        client.rows("SELECT action, status, resource_id, metadata FROM audit_log ORDER BY action"),
        [
            [
                "a",
                "success",
                "null",
                "{\"n\": 123456789012345678901234567890.5, \"ward\": \"own\"}"
            ],
            [
                "b",
                "success",
                "null",
                "{\"x\": {\"y\": null}, \"metadata\": [1, 2]}"
            ],
            ["c", "success", "42", "null"],
            ["d", "success", "null", "\"text\""],
        ]
    );
    assert!(
        client.holds(
            "SELECT \"timestamp\" = '2026-11-01 17:00+00' FROM audit_log WHERE action = 'c'"
        )
    );
    for (wrong, sqlstate) in [
        ("audit_db.log_event(NULL)", "22004"),
        ("audit_db.log_event('a', status => NULL)", "22004"),
        ("audit_db.log_event('a', durability => 'Durable')", "22023"),
        ("audit_db.log_events(NULL)", "22004"),
        ("audit_db.log_events('{}')", "22023"),
        ("audit_db.log_events('[1]')", "22023"),
        ("audit_db.log_events('[{\"action\": \"a\"}, {}]')", "22004"),
        (
            "audit_db.log_events('[{\"action\": \"a\", \"timestamp\": \"yesterday at noon\"}]')",
            "22007",
        ),
    ] {
        for durability in ["transaction", "durable", "async"] {
            client.run(&format!("SET audit_db.durability = {durability}"));
            assert_eq!(
                client.sqlstate(&format!("SELECT {wrong}")),
                sqlstate,
                "{wrong}"
            );
        }
    }
    assert_eq!(client.number("SELECT count(*) FROM audit_log"), 4);
    assert_eq!(client.number("SELECT audit_db.log_events('[]')"), 0);
    // Nothing of these was queued.
    assert_eq!(client.number("SELECT audit_db.flush_events()"), 0);
    assert_eq!(
        client.sqlstate("SET audit_db.durability = sometimes"),
        "22023"
    );
}

#[test]
fn who_may_insert_may_log() {
    let mut client = log("rights");
    client.run(
        "CREATE ROLE clerk LOGIN; CREATE ROLE guest LOGIN; CREATE ROLE columns LOGIN;
         GRANT INSERT ON audit_log TO clerk; GRANT USAGE ON SEQUENCE audit_log_id_seq TO clerk, columns;
         GRANT INSERT (\"timestamp\", action, status, principal_id, principal_type, organization_id, resource_type, resource_id,
                outcome_description, correlation_id, data_classification, metadata) ON audit_log TO columns;
         ALTER TABLE audit_log ENABLE ROW LEVEL SECURITY;
         CREATE POLICY own ON audit_log FOR INSERT WITH CHECK (principal_id = current_user OR principal_id IS NULL)",
    );
    for durability in ["transaction", "durable", "async"] {
        let call = |action: &str, principal: &str| {
            format!(
                "SELECT audit_db.log_event('{action}', principal_id => {principal}, durability => '{durability}')"
            )
        };
        let mut guest = SHARED.connect_as("rights", "guest");
        assert_eq!(
            guest.sqlstate(&call("guest", "NULL")),
            "42501",
            "{durability}"
        );
        for role in ["clerk", "columns"] {
            let mut session = SHARED.connect_as("rights", role);
            session.run(&call("mine", "current_user"));
            let sqlstate = session.sqlstate(&call("forged", "'postgres'"));
            let expected = if durability == "async" {
                "00000"
            } else {
                "42501"
            };
            assert_eq!(sqlstate, expected, "{role} {durability}");
        }
    }
    client.run("SELECT audit_db.flush_events()");
    assert_eq!(
        client
            .rows("SELECT principal_id, action, count(*) FROM audit_log GROUP BY 1, 2 ORDER BY 1"),
        [["clerk", "mine", "3"], ["columns", "mine", "3"]]
    );
    // The row security of the table refused them in the worker, as it does in a session: they are kept, for the owner alone.
    assert_eq!(
        client.rows(
            "SELECT role, sqlstate, event->>'action', event->>'principal_id', count(*)
               FROM audit_log_rejected GROUP BY 1, 2, 3, 4 ORDER BY 1"
        ),
        [
            ["clerk", "42501", "forged", "postgres", "2"],
            ["columns", "42501", "forged", "postgres", "2"]
        ]
    );
    assert!(!client.holds("SELECT has_table_privilege('clerk', 'audit_log_rejected', 'SELECT')"));
    // A right that was taken away while the event was queued.
    let mut clerk = SHARED.connect_as("rights", "clerk");
    clerk.run("SELECT audit_db.log_event('too late', principal_id => current_user, durability => 'async')");
    client.run("REVOKE INSERT ON audit_log FROM clerk");
    client.run("SELECT audit_db.flush_events()");
    assert_eq!(
        client.rows(
            "SELECT role, sqlstate FROM audit_log_rejected WHERE event->>'action' = 'too late'"
        ),
        [["clerk", "42501"]]
    );
    client.run("REVOKE ALL ON SCHEMA public FROM clerk");
}

#[test]
fn the_session_is_stamped_where_a_superuser_says_so() {
    let mut client = log("stamp");
    client.run("CREATE ROLE nurse LOGIN; GRANT INSERT ON audit_log TO nurse; GRANT USAGE ON SEQUENCE audit_log_id_seq TO nurse");
    client.run("ALTER DATABASE stamp SET audit_db.stamp_session = on");
    let mut nurse = SHARED.connect_as("stamp", "nurse");
    assert_eq!(nurse.sqlstate("SET audit_db.stamp_session = off"), "42501");
    nurse.run("SET application_name = 'ward \"7\"'");
    for durability in ["transaction", "durable"] {
        nurse.run(&format!(
            "SELECT audit_db.log_event('a', durability => '{durability}',
                metadata => '{{\"session\": {{\"role\": \"postgres\"}}, \"kept\": 1}}')"
        ));
    }
    let found = client.rows(
        "SELECT metadata->'session'->>'role', metadata->'session'->>'session_user', metadata->'session'->>'application_name',
                metadata->'session' ? 'client_addr', metadata->>'kept' FROM audit_log",
    );
    assert_eq!(found, vec![["nurse", "nurse", "ward \"7\"", "f", "1"]; 2]);
}

#[test]
fn a_poisonous_event_costs_only_itself() {
    let mut client = log("poison");
    client.run("ALTER TABLE audit_log ADD CONSTRAINT fine CHECK (resource_id::int % 100 <> 7)");
    client.run(
        "SELECT audit_db.log_event('e', resource_id => n::text, durability => 'async') FROM generate_series(1, 3000) n;
         SELECT audit_db.flush_events()",
    );
    assert_eq!(client.number("SELECT count(*) FROM audit_log"), 2970);
    assert_eq!(
        client.rows(
            "SELECT count(*), count(DISTINCT event->>'resource_id'), min(sqlstate), max(sqlstate), min(audit_table),
                    bool_and((event->>'resource_id')::int % 100 = 7) FROM audit_log_rejected"
        ),
        [["30", "30", "23514", "23514", "public.audit_log", "t"]]
    );
    assert_eq!(
        statistics(&mut client),
        ["0", "3000", "2970", "30", "0", "0"]
    );
    // Who waits for a rejected event gets the table's own error, and is told where the event is.
    let error =
        client.error("SELECT audit_db.log_event('e', resource_id => '7', durability => 'durable')");
    assert_eq!(error.code().code(), "23514");
    assert!(
        error
            .message()
            .contains("violates check constraint \"fine\""),
        "{error}"
    );
    assert!(
        error
            .detail()
            .unwrap()
            .contains("public.audit_log_rejected"),
        "{error:?}"
    );
    // In a call of many the others are stored.
    assert_eq!(
        client.sqlstate(
            "SELECT audit_db.log_events('[{\"action\":\"m\",\"resource_id\":\"1\"},{\"action\":\"m\",\"resource_id\":\"107\"},
                {\"action\":\"m\",\"resource_id\":\"2\"}]', durability => 'durable')"
        ),
        "23514"
    );
    assert_eq!(
        client.number("SELECT count(*) FROM audit_log WHERE action = 'm'"),
        2
    );
    // In the caller's own transaction the error keeps all its fields, and all or none is stored.
    let error = client.error("SELECT audit_db.log_event('e', resource_id => '7')");
    assert_eq!(error.constraint(), Some("fine"));
    assert!(
        error
            .table()
            .is_some_and(|table| table.starts_with("audit_log_")),
        "{error:?}"
    );
    assert_eq!(error.schema(), Some("public"));
    client.sqlstate(
        "SELECT audit_db.log_events('[{\"action\":\"t\",\"resource_id\":\"1\"},{\"action\":\"t\",\"resource_id\":\"107\"}]')",
    );
    assert_eq!(
        client.number("SELECT count(*) FROM audit_log WHERE action = 't'"),
        0
    );
    // The table itself is gone when its events come.
    client.run(
        "SELECT audit_db.log_event('orphan', resource_id => '1', durability => 'async');
         DROP TABLE audit_log_rejected",
    );
    client.run("DROP TABLE audit_log");
    client.run("SELECT audit_db.flush_events()");
    assert_eq!(
        client.rows("SELECT event->>'action', sqlstate FROM audit_db.rejected_events"),
        [["orphan", "42P01"]]
    );
}

#[test]
fn a_full_queue_makes_callers_wait_and_loses_nothing() {
    let mut client = log("full_queue");
    client.run("SELECT audit_db.log_event('first', durability => 'durable')");
    // The worker cannot store anything.
    let mut blocker = SHARED.connect("full_queue");
    blocker.run("BEGIN; LOCK TABLE audit_log IN SHARE MODE");
    client.run("SELECT audit_db.log_event('taken', durability => 'async')");
    let mut other = SHARED.connect("full_queue");
    let fill = "SELECT audit_db.log_event('full', metadata => to_jsonb(repeat('x', 60000)), durability => 'async')";
    let fill_durable = fill.replace("'async'", "'durable'");
    let mut queued = 0;
    while client.holds("SELECT queue_bytes < 0.7 * queue_capacity_bytes FROM audit_db.ingest_stats")
    {
        client.run(fill);
        queued += 1;
    }
    // A durable event is refused, and an async one waits for the lock like any INSERT.
    other.run("SET statement_timeout = '2s'");
    let errors: Vec<_> = (0..5).map(|_| other.error(&fill_durable)).collect();
    // Those that found room waited until they were cancelled.
    let codes: Vec<_> = errors.iter().map(|error| error.code().code()).collect();
    assert!(
        codes.iter().all(|code| matches!(*code, "57014" | "53400")),
        "{codes:?}"
    );
    let refused = errors.last().unwrap();
    assert_eq!(refused.code().code(), "53400");
    assert!(
        refused.detail().unwrap().contains("Nothing was stored"),
        "{refused:?}"
    );
    let error = client.error("SET lock_timeout = '1s'; SELECT audit_db.log_event('x', metadata => to_jsonb(repeat('x', 600000)), durability => 'async')");
    assert_eq!(error.code().code(), "55P03", "{error}");
    client.run("RESET lock_timeout");
    // Too large for the queue at any time.
    assert_eq!(
        client.sqlstate("SELECT audit_db.log_event('x', metadata => to_jsonb(repeat('x', 1000000)), durability => 'durable')"),
        "53400"
    );
    blocker.run("COMMIT");
    client.run("SELECT audit_db.log_event('large', metadata => to_jsonb(repeat('x', 1000000)), durability => 'async')");
    client.run("SELECT audit_db.flush_events()");
    assert_eq!(
        client.rows(
            "SELECT action, count(*) FROM audit_log WHERE action <> 'full' GROUP BY 1 ORDER BY 1"
        ),
        [["first", "1"], ["large", "1"], ["taken", "1"]]
    );
    assert!(client.holds(
        "SELECT queued_events = 0 AND enqueued = written + withdrawn AND rejected = 0 AND fallbacks = 2
                AND written = (SELECT count(*) - 1 FROM audit_log) FROM audit_db.ingest_stats"
    ));
    assert!(client.number("SELECT count(*) FROM audit_log WHERE action = 'full'") >= queued);
}

#[test]
fn a_caller_that_the_worker_waits_for_gets_an_error_and_does_not_hang() {
    let mut client = log("deadlock");
    client.run("SELECT audit_db.log_event('first', durability => 'durable')");
    let started = Instant::now();
    client.run("BEGIN; LOCK TABLE audit_log IN ACCESS EXCLUSIVE MODE");
    let error = client.error("SELECT audit_db.log_event('mine', durability => 'durable')");
    assert_eq!(error.code().code(), "40P01", "{error}");
    assert!(started.elapsed() < Duration::from_secs(15));
    client.run("ROLLBACK");
    // Through another session.
    let mut other = SHARED.connect("deadlock");
    other.run("CREATE TABLE ward (id int)");
    other.run("BEGIN; LOCK TABLE ward");
    let pid = client.number("SELECT pg_backend_pid()");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            client.run("BEGIN; LOCK TABLE audit_log IN ACCESS EXCLUSIVE MODE");
            client.run("LOCK TABLE ward; COMMIT");
        });
        let mut watch = SHARED.connect("deadlock");
        wait_until("the other session waits", SOON, || {
            watch.holds(&format!("SELECT cardinality(pg_blocking_pids({pid})) > 0"))
        });
        let error = other.error("SELECT audit_db.log_event('chain', durability => 'durable')");
        assert_eq!(error.code().code(), "40P01", "{error}");
        other.run("ROLLBACK");
        waiting.join().unwrap();
    });
    // Cancelled while it waits for the worker, which waits for somebody else.
    other.run("BEGIN; LOCK TABLE audit_log IN ACCESS EXCLUSIVE MODE");
    assert_eq!(
        client.sqlstate("SET statement_timeout = '500ms'; SELECT audit_db.log_event('cancelled', durability => 'durable')"),
        "57014"
    );
    client.run("SET statement_timeout = '60s'");
    other.run("COMMIT");
    client.run("SELECT audit_db.log_event('last', durability => 'durable')");
    assert!(client.holds(
        "SELECT enqueued = written + withdrawn AND queued_events = 0 FROM audit_db.ingest_stats"
    ));
}

#[test]
fn a_table_that_is_not_committed_takes_no_events_of_others() {
    let mut client = SHARED.database("uncommitted");
    assert_eq!(client.sqlstate("SELECT audit_db.log_event('a')"), "55000");
    client.run("BEGIN; SELECT audit_db.create_audit_log()");
    client.run("SELECT audit_db.log_event('a')");
    for durability in ["durable", "async"] {
        client.run("SAVEPOINT s");
        assert_eq!(
            client.sqlstate(&format!(
                "SELECT audit_db.log_event('b', durability => '{durability}')"
            )),
            "55000"
        );
        client.run("ROLLBACK TO s");
    }
    client.run("COMMIT; SELECT audit_db.log_event('b', durability => 'durable')");
    assert_eq!(actions(&mut client), ["a", "b"]);
}

#[test]
fn events_go_where_the_setting_says() {
    let mut client = log("elsewhere");
    client.run(
        "CREATE SCHEMA app;
         CREATE TABLE app.visits (at timestamp NOT NULL, action varchar(20) NOT NULL, principal_id inet, status text,
                note text DEFAULT 'none', metadata json) PARTITION BY RANGE (at);
         SELECT audit_db.manage_table('app.visits', time_zone => 'America/New_York', premake => 1);
         CREATE TABLE app.plain (at date, x int)",
    );
    client.run("SET audit_db.audit_table = 'app.visits'");
    for durability in ["transaction", "durable"] {
        client.run(&format!(
            "SELECT audit_db.log_event('{durability}', principal_id => '10.0.0.7', resource_id => 'bed 4', organization_id => 'h',
                event_time => '2026-07-01 12:00+00', metadata => '{{\"n\": 1}}', durability => '{durability}')"
        ));
    }
    assert_eq!(
        client.rows("SELECT at, principal_id, note, metadata::jsonb FROM app.visits"),
        vec![
            [
                "2026-07-01 08:00:00",
                "10.0.0.7",
                "none",
                "{\"n\": 1, \"resource_id\": \"bed 4\", \"organization_id\": \"h\"}"
            ];
            2
        ]
    );
    // Too long, and not an address.
    for durability in ["transaction", "durable"] {
        client.run(&format!("SET audit_db.durability = {durability}"));
        assert_eq!(
            client.sqlstate("SELECT audit_db.log_event(repeat('x', 21))"),
            "22001"
        );
        assert_eq!(
            client.sqlstate("SELECT audit_db.log_event('x', principal_id => 'me')"),
            "22P02"
        );
    }
    // Another column appears; the next event has it.
    client.run("ALTER TABLE app.visits ADD resource_id text");
    client.run("SELECT audit_db.log_event('third', resource_id => 'bed 5')");
    assert_eq!(
        client.rows("SELECT resource_id, metadata FROM app.visits WHERE action = 'third'"),
        [["bed 5", "null"]]
    );
    for wrong in ["visits", "app.gone", "app.plain", "nonsense.x.y.z"] {
        client.run(&format!("SET audit_db.audit_table = '{wrong}'"));
        let sqlstate = client.sqlstate("SELECT audit_db.log_event('a')");
        assert!(
            matches!(sqlstate.as_str(), "55000" | "42601"),
            "{wrong} {sqlstate}"
        );
    }
    client.run("CREATE ROLE visitor LOGIN");
    let mut visitor = SHARED.connect_as("elsewhere", "visitor");
    assert_eq!(
        visitor.sqlstate("SET audit_db.audit_table = 'app.visits'"),
        "42501"
    );
}

#[test]
fn a_missing_month_is_made_where_no_default_partition_takes_the_event() {
    let mut client = SHARED.database("months");
    client.run(
        "CREATE ROLE writer LOGIN;
         CREATE TABLE log (\"timestamp\" timestamptz NOT NULL, action text, metadata jsonb) PARTITION BY RANGE (\"timestamp\");
         SELECT audit_db.manage_table('log', premake => 0, default_partition => false, retention => '10 years');
         GRANT INSERT ON log TO writer;
         ALTER DATABASE months SET audit_db.audit_table = 'public.log'",
    );
    let mut writer = SHARED.connect_as("months", "writer");
    for (durability, year) in [("transaction", 2020), ("durable", 2021), ("async", 2022)] {
        writer.run(&format!(
            "SELECT audit_db.log_event('{durability}', event_time => '{year}-05-17 12:00+00', durability => '{durability}')"
        ));
    }
    writer.run("SELECT audit_db.flush_events()");
    assert_eq!(
        client.rows("SELECT tableoid::regclass, action FROM log ORDER BY 1"),
        [
            ["log_2020_05", "transaction"],
            ["log_2021_05", "durable"],
            ["log_2022_05", "async"]
        ]
    );
    // Expired, too far ahead, and never.
    for time in ["1999-01-01", "2100-01-01", "infinity"] {
        assert_eq!(
            writer.sqlstate(&format!(
                "SELECT audit_db.log_event('x', event_time => '{time}')"
            )),
            "22008",
            "{time}"
        );
        assert_eq!(
            writer.sqlstate(&format!(
                "SELECT audit_db.log_event('x', event_time => '{time}', durability => 'durable')"
            )),
            "23514",
            "{time}"
        );
    }
    assert_eq!(client.number("SELECT count(*) FROM log_rejected"), 3);
}

#[test]
fn triggers_defaults_and_deferred_constraints_hold_in_the_worker() {
    let mut client = log("triggers");
    client.run(
        "CREATE ROLE app LOGIN; GRANT INSERT ON audit_log TO app; GRANT USAGE ON SEQUENCE audit_log_id_seq TO app;
         CREATE TABLE seen (who text, action text);
         ALTER TABLE audit_log ADD upper text GENERATED ALWAYS AS (upper(action)) STORED, ADD at timestamptz DEFAULT now();
         CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN INSERT INTO public.seen VALUES (current_user, NEW.action); RETURN NEW; END $$;
         CREATE TRIGGER note BEFORE INSERT ON audit_log FOR EACH ROW EXECUTE FUNCTION note();
         CREATE CONSTRAINT TRIGGER later AFTER INSERT ON audit_log DEFERRABLE INITIALLY DEFERRED
             FOR EACH ROW EXECUTE FUNCTION note();
         GRANT INSERT ON seen TO app",
    );
    let mut app = SHARED.connect_as("triggers", "app");
    app.run("SELECT audit_db.log_event('read', durability => 'durable')");
    assert_eq!(
        client.rows("SELECT action, upper, at IS NOT NULL FROM audit_log"),
        [["read", "READ", "t"]]
    );
    // Both with the rights of the role that logged the event, and neither with those of the worker.
    assert_eq!(client.rows("SELECT * FROM seen"), vec![["app", "read"]; 2]);
    // From a trigger, and from a function that itself is one of many.
    client.run(
        "CREATE TABLE patient (id int);
         CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN PERFORM audit_db.log_event('patient.' || lower(TG_OP), resource_id => NEW.id::text, durability => 'durable');
                   RETURN NEW; END $$;
         CREATE TRIGGER audit AFTER INSERT ON patient FOR EACH ROW EXECUTE FUNCTION audit()",
    );
    client.sqlstate("BEGIN; INSERT INTO patient VALUES (1), (2); ROLLBACK");
    assert_eq!(
        client
            .column("SELECT resource_id FROM audit_log WHERE action = 'patient.insert' ORDER BY 1"),
        ["1", "2"]
    );
    // A trigger of the audit table that logs an event itself.
    client.run(
        "CREATE FUNCTION echo() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN IF NEW.action = 'loud' THEN PERFORM audit_db.log_event('echo', durability => 'async'); END IF; RETURN NEW; END $$;
         CREATE TRIGGER echo AFTER INSERT ON audit_log FOR EACH ROW EXECUTE FUNCTION echo()",
    );
    client.run("SELECT audit_db.log_event('loud')");
    client.run("SELECT audit_db.log_event('loud', durability => 'durable')");
    client.run("SELECT audit_db.flush_events()");
    assert_eq!(
        client.number("SELECT count(*) FROM audit_log WHERE action = 'echo'"),
        2
    );
}

#[test]
fn the_extension_is_dropped_and_its_queue_is_stored_first() {
    let mut client = log("dropped");
    client.run(
        "SELECT audit_db.log_event('queued', durability => 'async') FROM generate_series(1, 500)",
    );
    client.run("DROP EXTENSION audit_db CASCADE");
    assert_eq!(client.number("SELECT count(*) FROM audit_log"), 500);
    // And again, in the same session.
    client.run("CREATE EXTENSION audit_db; SET audit_db.audit_table = 'public.audit_log'");
    client.run("SELECT audit_db.log_event('again', durability => 'durable')");
    assert_eq!(client.number("SELECT count(*) FROM audit_log"), 501);
}

#[test]
fn a_database_is_dropped_or_copied_while_events_are_queued() {
    let mut client = log("moving");
    client.run(
        "SELECT audit_db.log_event('queued', durability => 'async') FROM generate_series(1, 500)",
    );
    drop(client);
    let mut control = SHARED.connect("postgres");
    control.run("CREATE DATABASE copied TEMPLATE moving");
    assert_eq!(
        SHARED
            .connect("copied")
            .number("SELECT count(*) FROM audit_log"),
        500
    );
    let mut client = SHARED.connect("moving");
    client.run(
        "SELECT audit_db.log_event('queued', durability => 'async') FROM generate_series(1, 500)",
    );
    client.run("SELECT audit_db.log_event('durable', durability => 'durable')");
    assert_eq!(client.number("SELECT count(*) FROM audit_log"), 1001);
    client.run(
        "SELECT audit_db.log_event('queued', durability => 'async') FROM generate_series(1, 500)",
    );
    drop(client);
    control.run("DROP DATABASE moving");
    // Its place in the queue is free again.
    let mut other = SHARED.connect("copied");
    wait_until("the queue is empty", SOON, || {
        other.number("SELECT queued_events FROM audit_db.ingest_stats") == 0
    });
}

#[test]
fn a_stuck_database_never_takes_the_whole_queue() {
    let mut stuck = log("stuck");
    let mut well = log("well");
    let mut blocker = SHARED.connect("stuck");
    blocker.run("BEGIN; LOCK TABLE audit_log IN SHARE MODE");
    stuck.run("SET lock_timeout = '100ms'");
    while stuck.sqlstate(
        "SELECT audit_db.log_event('s', metadata => to_jsonb(repeat('x', 5000)), durability => 'async')",
    ) == "00000"
    {}
    for _ in 0..20 {
        well.run("SELECT audit_db.log_event('w', metadata => to_jsonb(repeat('x', 5000)), durability => 'durable')");
    }
    assert_eq!(well.number("SELECT count(*) FROM audit_log"), 20);
    blocker.run("ROLLBACK");
    stuck.run("SELECT audit_db.flush_events()");
    assert!(
        stuck.holds("SELECT written = (SELECT count(*) FROM audit_log) FROM audit_db.ingest_stats")
    );
}
