//! What keeps an audit log safe when things around it are not as they should be: a clock that jumped, a default partition that
//! somebody dropped.

use audit_db_e2e::{Cluster, SOON, Session, wait_until};

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
    wait_until("the worker has had its cycle, and noted it", SOON, || {
        client.number(
            "SELECT count(*) FROM audit_db.maintenance_state, audit_db.workers, audit_db.managed_tables
              WHERE state = 'idle' AND workers.last_cycle > managed_since",
        ) == 1
    });
    // As after the clock jumped by a month while the server was down. A cycle that was still to come writes over it once.
    wait_until("the last cycle lies a month back", SOON, || {
        let old = client
            .holds("SELECT last_cycle < now() - interval '1 day' FROM audit_db.maintenance_state");
        client.run("UPDATE audit_db.maintenance_state SET last_cycle = now() - interval '1 month'");
        old
    });
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
