//! The same log somewhere else: on a standby, after its promotion, in a restored dump, and on a machine with a wrong clock.

use audit_db_e2e::{Cluster, SOON, Session, tools, wait_until};

const WORKERS: &str = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'audit_db worker' AND datname = current_database()";

#[test]
fn a_standby_looks_and_waits_and_works_after_promotion() {
    let primary = Cluster::builder().set("wal_level", "replica").start();
    let mut client = primary.database("log");
    client.run(
        "SET client_min_messages = error;
         SELECT audit_db.create_audit_log('public.audit_log', premake => 2);
         INSERT INTO audit_log (\"timestamp\", action, status) SELECT now(), 'x', 'success' FROM generate_series(1, 100)",
    );
    let standby = Cluster::builder()
        .set("audit_db.maintenance_interval", "200ms")
        .start_standby_of(&primary);
    let mut reader = standby.connect("log");
    assert_eq!(reader.number(WORKERS), 0);
    assert_eq!(reader.number("SELECT count(*) FROM audit_log"), 100);
    assert_eq!(
        reader.number("SELECT count(*) FROM audit_db.partition_info"),
        4
    );
    assert_eq!(reader.number("SELECT count(*) FROM audit_db.workers"), 0);
    assert_eq!(
        reader.number("SELECT count(*) FROM audit_db.drop_expired_partitions(dry_run => true)"),
        0
    );
    for change in [
        "SELECT audit_db.create_partition('audit_log', '2020-01-01')",
        "SELECT audit_db.create_partitions('audit_log')",
        "SELECT audit_db.manage_table('audit_log')",
        "SELECT audit_db.unmanage_table('audit_log')",
        "SELECT audit_db.create_audit_log('public.other')",
        "SELECT * FROM audit_db.drop_expired_partitions()",
    ] {
        assert_eq!(reader.sqlstate(change), "25006", "{change}");
    }

    standby.promote();
    wait_until("the worker runs after promotion", SOON, || {
        reader.number(WORKERS) == 1
    });
    reader.run("INSERT INTO audit_log (\"timestamp\", action, status) VALUES (now() - interval '3 months', 'late', 'success')");
    wait_until("the worker has made a month of the past", SOON, || {
        reader.number(
            "SELECT count(*) FROM audit_log WHERE action = 'late' AND tableoid <> 'audit_log_default'::regclass",
        ) == 1
    });
}

#[test]
fn a_dump_carries_tables_rows_and_settings() {
    let cluster = Cluster::builder().fast().start();
    let mut client = cluster.database("source");
    client.run(
        "SET client_min_messages = error;
         SELECT audit_db.create_audit_log('public.audit_log', premake => 2, retention => '3 years', time_zone => 'Europe/Berlin');
         CREATE TABLE \"Odd Name\" (at date) PARTITION BY RANGE (at);
         SELECT audit_db.manage_table('\"Odd Name\"', 'quarterly', retention => '1 year', retention_action => 'detach',
                                      storage_parameters => ARRAY['fillfactor=90']);
         SELECT audit_db.create_partition('audit_log', '2026-01-01');
         INSERT INTO audit_log (\"timestamp\", action, status)
         SELECT timestamptz '2026-01-10' + n * interval '1 hour', 'x', 'success' FROM generate_series(1, 100) n;
         CREATE TABLE dropped (at date) PARTITION BY RANGE (at);
         SELECT audit_db.manage_table('dropped');
         DROP TABLE dropped",
    );
    cluster.empty_database("target");
    let dump = cluster.folder().join("dump.sql");
    let connection = ["-U", "postgres", "-h"];
    tools::run(
        tools::command("pg_dump")
            .args(connection)
            .arg(cluster.socket())
            .args(["-d", "source", "-f"])
            .arg(&dump),
    );
    tools::run(
        tools::command("psql")
            .args(connection)
            .arg(cluster.socket())
            .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", "target", "-f"])
            .arg(&dump),
    );
    let mut target = cluster.connect("target");
    for question in [
        "SELECT parent, partition_interval, premake, retention, retention_action, time_zone, default_partition,
                storage_parameters, managed_since
           FROM audit_db.managed_tables m JOIN pg_class c ON c.oid = m.parent ORDER BY parent::text",
        "SELECT partition, range_start, range_end, is_default, expires_at FROM audit_db.partition_info
          ORDER BY partition::text",
        "SELECT tableoid::regclass, md5(string_agg(a::text, '|' ORDER BY id)) FROM audit_log a GROUP BY 1 ORDER BY 1::text",
        "SELECT count(*) FROM pg_index WHERE NOT indisvalid",
    ] {
        assert_eq!(client.rows(question), target.rows(question), "{question}");
    }
    assert_eq!(
        target.number("SELECT count(*) FROM audit_db.managed_tables"),
        2
    );
    wait_until("the restored database has a worker", SOON, || {
        target.number(WORKERS) == 1
    });
    // The log is the user's.
    target.run("SET client_min_messages = error; DROP EXTENSION audit_db CASCADE");
    assert_eq!(target.number("SELECT count(*) FROM audit_log"), 100);
    wait_until("the worker has left", SOON, || target.number(WORKERS) == 0);
}

/// A machine may come up with a clock that is years ahead: then nothing must expire.
#[test]
fn a_long_gap_before_the_start_suspends_retention() {
    let cluster = Cluster::builder().fast().start();
    let mut client = cluster.database("log");
    client.run(
        "CREATE TABLE log (at timestamptz) PARTITION BY RANGE (at);
         SELECT audit_db.manage_table('log', premake => 0);
         SELECT audit_db.create_partition('log', '2001-01-01')",
    );
    wait_until("the worker has noted its cycle", SOON, || {
        client.number("SELECT count(*) FROM audit_db.maintenance_state") == 1
    });
    // As after the clock jumped by a month while the server was down.
    client.run(
        "UPDATE audit_db.maintenance_state SET last_cycle = last_cycle - interval '1 month';
         SELECT audit_db.manage_table('log', premake => 0)",
    );
    drop(client);
    cluster.restart();
    let mut client = cluster.connect("log");
    wait_until("the worker is there again", SOON, || {
        client.number("SELECT count(*) FROM audit_db.workers WHERE last_cycle IS NOT NULL") == 1
    });
    client.run("SELECT audit_db.manage_table('log', premake => 0, retention => '1 year')");
    let rows = client.rows("SELECT action FROM audit_db.drop_expired_partitions('log')");
    assert!(rows[0][0].starts_with("skipped"), "{rows:?}");
    assert_eq!(
        client.value("SELECT to_regclass('log_2001_01')"),
        "log_2001_01"
    );
    wait_until("the worker has said so", SOON, || {
        client.number("SELECT count(*) FROM audit_db.events_log WHERE event = 'retention' AND sqlstate = '55000'") == 1
    });
    // A crash does not lift the suspension.
    assert!(
        client
            .holds("SELECT last_cycle < now() - interval '1 day' FROM audit_db.maintenance_state")
    );

    // A short gap is nothing.
    client.run("UPDATE audit_db.maintenance_state SET last_cycle = now() - interval '1 hour'");
    drop(client);
    cluster.restart();
    let mut client = cluster.connect("log");
    wait_until("the expired month is gone", SOON, || {
        client.value("SELECT to_regclass('log_2001_01')") == "null"
    });
}

#[test]
fn a_lost_default_partition_comes_back() {
    let cluster = Cluster::builder()
        .fast()
        .set("audit_db.maintenance_interval", "100ms")
        .start();
    let mut client = cluster.database("log");
    client.run(
        "CREATE TABLE log (at timestamptz) PARTITION BY RANGE (at);
         SELECT audit_db.manage_table('log', premake => 0);
         DROP TABLE log_default",
    );
    wait_until("the default partition is there again", SOON, || {
        client.value("SELECT to_regclass('log_default')") == "log_default"
    });
    client.run("INSERT INTO log VALUES ('infinity'), ('-infinity'), ('1999-01-01')");
    // Those of absurd times stay, the others leave.
    client.run("SELECT audit_db.manage_table('log', premake => 0, retention => '2 years')");
    wait_until("a cycle has passed", SOON, || {
        client.number("SELECT count(*) FROM audit_db.workers WHERE state = 'idle'") == 1
    });
    assert_eq!(
        client.number(
            "SELECT count(*) FROM log WHERE NOT isfinite(at) AND tableoid = 'log_default'::regclass"
        ),
        2
    );
}
