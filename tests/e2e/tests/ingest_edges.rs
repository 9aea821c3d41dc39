//! Events where the worker meets with locks, standbys, triggers and roles.

use audit_db_e2e::{Client, Cluster, Mode, SOON, Session, Shared, wait_until};
use std::time::{Duration, Instant};

static SHARED: Shared = Shared::new(|| {
    Cluster::builder()
        .fast()
        .set("max_worker_processes", "64")
        .set("audit_db.batch_max_delay", "100ms")
        // A lock is waited for half as long at a time.
        .set("audit_db.shutdown_drain_timeout", "1s")
});

fn log(name: &str) -> Client {
    let mut client = SHARED.database(name);
    client.run("SELECT audit_db.create_audit_log(premake => 1)");
    client
}

fn balanced(client: &mut Client) {
    assert_eq!(
        client.rows(
            "SELECT queued_events, enqueued - written - rejected - withdrawn FROM audit_db.ingest_stats"
        ),
        [["0", "0"]]
    );
}

/// Waits until the worker waits for a lock.
fn wait_until_blocked(client: &mut Client) {
    wait_until("the worker waits for a lock", SOON, || {
        client.holds(
            "SELECT EXISTS (SELECT FROM audit_db.ingest_stats s JOIN pg_stat_activity a ON a.pid = s.worker_pid
                             WHERE a.wait_event_type = 'Lock')",
        )
    });
}

#[test]
fn what_may_be_stored_is_not_taken_back_by_what_follows() {
    let mut client = log("follows");
    client.run("SELECT audit_db.log_event('first', durability => 'durable')");
    let mut blocker = SHARED.connect("follows");
    blocker.run("BEGIN; LOCK TABLE audit_log IN SHARE MODE");
    client.run("SET statement_timeout = '700ms'");
    assert_eq!(
        client.sqlstate("SELECT audit_db.log_event('in a batch', durability => 'durable')"),
        "57014"
    );
    // Queued behind the batch that waits: taken back.
    for _ in 0..3 {
        assert_eq!(
            client.sqlstate("SELECT audit_db.log_event('taken back', durability => 'durable')"),
            "57014"
        );
    }
    assert_eq!(
        client.rows("SELECT queued_events, withdrawn FROM audit_db.ingest_stats"),
        [["1", "3"]]
    );
    client.run("SET statement_timeout = '60s'");
    // The worker gives up at least once, and tries the batch again.
    wait_until("the worker has given up", SOON, || {
        client.holds("SELECT last_error LIKE '%lock timeout%' FROM audit_db.ingest_stats")
    });
    blocker.run("ROLLBACK");
    client.run("SELECT audit_db.log_event('last', durability => 'durable')");
    assert_eq!(
        client.column("SELECT action FROM audit_log ORDER BY id"),
        ["first", "in a batch", "last"]
    );
    balanced(&mut client);
}

#[test]
fn no_standby_holds_up_a_stop() {
    let cluster = Cluster::builder()
        .fast()
        .set("audit_db.batch_max_delay", "1h")
        .set("audit_db.batch_max_events", "1000000")
        .start();
    let mut client = cluster.database("alone");
    client.run("SELECT audit_db.create_audit_log(premake => 1)");
    client.run("SELECT audit_db.log_event('first', durability => 'durable')");
    cluster.reload(&[("synchronous_standby_names", "nobody")]);
    client.run("SET synchronous_commit = local");
    client.run(
        "SELECT audit_db.log_event('queued', durability => 'async') FROM generate_series(1, 100)",
    );
    drop(client);
    let started = Instant::now();
    cluster.stop(Mode::Fast);
    assert!(
        started.elapsed() < Duration::from_secs(20),
        "{:?}",
        started.elapsed()
    );
    cluster.start();
    let mut client = cluster.connect("alone");
    assert_eq!(client.number("SELECT count(*) FROM audit_log"), 101);
    // A durable event waits for the standby, as a commit does; cancelled, it may be stored.
    assert_eq!(
        client.sqlstate("SET statement_timeout = '1s'; SELECT audit_db.log_event('waits', durability => 'durable')"),
        "57014"
    );
}

#[test]
fn what_a_trigger_logs_in_the_worker_is_stored_once() {
    let mut client = log("echo");
    client.run(
        "CREATE FUNCTION echo() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN IF NEW.action = 'loud' THEN
                 PERFORM audit_db.log_event('echo', resource_id => NEW.resource_id, durability => 'async');
                 PERFORM audit_db.log_event('durable echo', resource_id => NEW.resource_id, durability => 'durable');
             END IF; RETURN NEW; END $$;
         CREATE TRIGGER echo AFTER INSERT ON audit_log FOR EACH ROW EXECUTE FUNCTION echo();
         ALTER TABLE audit_log ADD CONSTRAINT fine CHECK (resource_id <> '13')",
    );
    client.run(
        "SELECT audit_db.log_events((SELECT jsonb_agg(jsonb_build_object('action', 'loud', 'resource_id', n)) FROM generate_series(1, 20) n),
                'async')",
    );
    client.run("SELECT audit_db.flush_events()");
    assert_eq!(
        client.rows("SELECT action, count(*), count(DISTINCT resource_id) FROM audit_log GROUP BY 1 ORDER BY 1"),
        [["durable echo", "19", "19"], ["echo", "19", "19"], ["loud", "19", "19"]]
    );
    balanced(&mut client);
}

#[test]
fn an_error_that_never_passes_costs_only_its_event() {
    let mut client = log("never");
    client.run(
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN IF NEW.resource_id = '13' THEN RAISE 'never' USING ERRCODE = 'serialization_failure'; END IF; RETURN NEW; END $$;
         CREATE TRIGGER fail BEFORE INSERT ON audit_log FOR EACH ROW EXECUTE FUNCTION fail()",
    );
    client.run("SELECT audit_db.log_event('e', resource_id => n::text, durability => 'async') FROM generate_series(1, 50) n");
    wait_until("the others are stored", Duration::from_secs(90), || {
        client.number("SELECT count(*) FROM audit_log") == 49
    });
    assert_eq!(
        client.rows("SELECT event->>'resource_id', sqlstate, message FROM audit_log_rejected"),
        [["13", "40001", "never"]]
    );
    balanced(&mut client);
}

#[test]
fn a_month_that_cannot_be_made_yet_delays_its_events() {
    let mut client = SHARED.database("delayed");
    client.run(
        "CREATE TABLE log (\"timestamp\" timestamptz NOT NULL, action text, metadata jsonb) PARTITION BY RANGE (\"timestamp\");
         SELECT audit_db.manage_table('log', premake => 0, default_partition => false);
         ALTER DATABASE delayed SET audit_db.audit_table = 'public.log';
         ALTER DATABASE delayed SET audit_db.lock_retry = '500ms'",
    );
    let mut client = SHARED.connect("delayed");
    client.run("SELECT audit_db.log_event('now', durability => 'durable')");
    let mut blocker = SHARED.connect("delayed");
    blocker.run("BEGIN; LOCK TABLE log IN SHARE UPDATE EXCLUSIVE MODE");
    client.run(
        "SELECT audit_db.log_event('then', event_time => '2024-05-17', durability => 'async')",
    );
    wait_until("the worker could not make the month", SOON, || {
        client.holds("SELECT last_error LIKE 'could not lock%' FROM audit_db.ingest_stats")
    });
    blocker.run("ROLLBACK");
    wait_until("the event is stored", SOON, || {
        client.number("SELECT count(*) FROM log WHERE tableoid = to_regclass('log_2024_05')") == 1
    });
    assert_eq!(client.value("SELECT to_regclass('log_rejected')"), "null");
    balanced(&mut client);
}

#[test]
fn modes_differ_in_nothing_but_when() {
    let mut client = log("parity");
    client.run(
        "CREATE ROLE parity_user LOGIN; CREATE ROLE parity_role; GRANT parity_role TO parity_user;
         GRANT INSERT ON audit_log TO parity_role;
         CREATE TABLE ward (id text PRIMARY KEY); INSERT INTO ward VALUES ('7b');
         CREATE TABLE visit (ward text REFERENCES ward DEFERRABLE INITIALLY DEFERRED);
         GRANT INSERT ON visit TO parity_role; GRANT SELECT ON ward TO parity_role;
         CREATE FUNCTION visits() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN INSERT INTO public.visit VALUES (NEW.resource_id); RETURN NEW; END $$;
         CREATE TRIGGER visits AFTER INSERT ON audit_log FOR EACH ROW EXECUTE FUNCTION visits();
         ALTER TABLE audit_log ADD who name DEFAULT session_user, ADD whose name DEFAULT current_user;
         ALTER TABLE audit_log ENABLE ROW LEVEL SECURITY;
         CREATE POLICY own ON audit_log FOR INSERT WITH CHECK (principal_id = session_user)",
    );
    let mut user = SHARED.connect_as("parity", "parity_user");
    user.run("SET ROLE parity_role");
    for durability in ["transaction", "durable"] {
        let call = |principal: &str, ward: &str| {
            format!(
                "SELECT audit_db.log_event('{durability}', principal_id => '{principal}', resource_id => '{ward}', durability => '{durability}')"
            )
        };
        user.run(&call("parity_user", "7b"));
        assert_eq!(
            user.sqlstate(&call("postgres", "7b")),
            "42501",
            "{durability}"
        );
        assert_eq!(
            user.sqlstate(&call("parity_user", "none")),
            "23503",
            "{durability}"
        );
    }
    assert_eq!(
        client.rows("SELECT action, who, whose FROM audit_log ORDER BY id"),
        [
            ["transaction", "parity_user", "parity_role"],
            ["durable", "parity_user", "parity_role"]
        ]
    );
    // A deferrable constraint on one month only.
    client.run(
        "DO $$ DECLARE month text := (SELECT tableoid::regclass FROM audit_log LIMIT 1); BEGIN
             EXECUTE format('ALTER TABLE %s ADD CONSTRAINT later UNIQUE (correlation_id) DEFERRABLE INITIALLY DEFERRED', month); END $$",
    );
    // The schema gets another name, between two events of the same sessions.
    for name in ["public", "renamed", "again"] {
        if name != "public" {
            let from = if name == "renamed" {
                "public"
            } else {
                "renamed"
            };
            client.run(
                "DROP TRIGGER IF EXISTS visits ON audit_log"
                    .replace("audit_log", &format!("{from}.audit_log"))
                    .as_str(),
            );
            client.run(&format!("ALTER SCHEMA {from} RENAME TO {name}"));
        }
        for durability in ["transaction", "durable"] {
            user.run(&format!(
                "SELECT audit_db.log_event('{name}', principal_id => 'parity_user', resource_id => '7b',
                    correlation_id => '{name} {durability}', durability => '{durability}')"
            ));
        }
    }
    assert_eq!(client.number("SELECT count(*) FROM again.audit_log"), 8);
    balanced(&mut client);
}

#[test]
fn the_worker_says_what_it_waits_for() {
    let mut client = log("waits");
    client.run("SELECT audit_db.log_event('first', durability => 'durable')");
    let mut blocker = SHARED.connect("waits");
    blocker.run("BEGIN; LOCK TABLE audit_log IN ACCESS EXCLUSIVE MODE");
    // Sessions that queue an event wait for nobody.
    let started = Instant::now();
    SHARED
        .connect("waits")
        .run("SELECT audit_db.log_event('queued', durability => 'async')");
    assert!(started.elapsed() < Duration::from_secs(5));
    wait_until_blocked(&mut client);
    blocker.run("COMMIT");
    client.run("SELECT audit_db.flush_events()");
    assert_eq!(client.number("SELECT count(*) FROM audit_log"), 2);
}

#[test]
fn a_worker_that_is_ended_in_the_middle_hands_its_batch_over() {
    let cluster = Cluster::builder().fast().start();
    let mut client = cluster.database("handed");
    client.run("SELECT audit_db.create_audit_log(premake => 1)");
    client.run("SELECT audit_db.log_event('first', durability => 'durable')");
    let mut blocker = cluster.connect("handed");
    blocker.run("BEGIN; LOCK TABLE audit_log IN SHARE MODE");
    let worker = client.value("SELECT worker_pid FROM audit_db.ingest_stats");
    std::thread::scope(|scope| {
        let mut session = cluster.connect("handed");
        let waiting = scope.spawn(move || {
            session.sqlstate("SELECT audit_db.log_event('handed over', durability => 'durable')")
        });
        wait_until_blocked(&mut client);
        // The postmaster's signal comes twice at once and leaves it time; whoever insists ends it in the middle of its statement.
        wait_until("the worker has ended", SOON, || {
            let _ = std::process::Command::new("kill")
                .args(["-TERM", &worker])
                .stderr(std::process::Stdio::null())
                .status();
            !client.holds(&format!(
                "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = {worker})"
            ))
        });
        blocker.run("ROLLBACK");
        assert_eq!(waiting.join().unwrap(), "00000");
    });
    assert_eq!(
        client.column("SELECT action FROM audit_log ORDER BY id"),
        ["first", "handed over"]
    );
    assert_ne!(
        client.value("SELECT worker_pid FROM audit_db.ingest_stats"),
        worker
    );
    balanced(&mut client);
}
