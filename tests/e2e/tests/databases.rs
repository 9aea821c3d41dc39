//! Workers come and go with their databases, and never stand in the way.

use audit_db_e2e::{Builder, Client, Cluster, Mode, SOON, Session, Shared, wait_until};
use std::time::{Duration, Instant};

/// The server itself waits 5 s for other sessions before it refuses.
const AT_ONCE: Duration = Duration::from_secs(4);

/// Workers that are always about something.
fn busy() -> Builder {
    Cluster::builder()
        .fast()
        .set("audit_db.maintenance_interval", "100ms")
}

static CLUSTER: Shared = Shared::new(busy);

const MANAGED: &str = "CREATE TABLE log (at timestamptz NOT NULL) PARTITION BY RANGE (at);
                       SELECT audit_db.manage_table('log', premake => 2)";

/// Process ids of the workers of a database.
fn workers(admin: &mut Client, database: &str) -> Vec<String> {
    admin.column(&format!(
        "SELECT pid FROM pg_stat_activity WHERE backend_type = 'audit_db worker' AND datname = '{database}' ORDER BY 1"
    ))
}

/// Waits for the one worker of a database, and returns its pid.
#[track_caller]
fn worker(admin: &mut Client, database: &str) -> String {
    let mut found = Vec::new();
    wait_until(&format!("{database} has a worker"), SOON, || {
        found = workers(admin, database);
        !found.is_empty()
    });
    assert_eq!(found.len(), 1, "{database}");
    found.swap_remove(0)
}

#[track_caller]
fn new_worker(admin: &mut Client, database: &str, old: &str) -> String {
    let mut pid = String::new();
    wait_until(&format!("{database} has a new worker"), SOON, || {
        pid = workers(admin, database).pop().unwrap_or_default();
        !pid.is_empty() && pid != old
    });
    pid
}

#[track_caller]
fn no_worker(admin: &mut Client, database: &str) {
    wait_until(&format!("{database} has no worker"), SOON, || {
        workers(admin, database).is_empty()
    });
}

#[track_caller]
fn at_once(client: &mut Client, sql: &str) {
    let started = Instant::now();
    client.run(sql);
    let took = started.elapsed();
    assert!(took < AT_ONCE, "{sql}: {took:?}");
}

#[test]
fn commands_on_whole_databases_work_at_once() {
    let mut admin = CLUSTER.connect("postgres");
    for folder in ["ts", "ts2"] {
        let location = CLUSTER.folder().join(folder);
        std::fs::create_dir(&location).unwrap();
        admin.run(&format!(
            "CREATE TABLESPACE {folder} LOCATION '{}'",
            location.display()
        ));
    }
    CLUSTER.database("db_one").run(MANAGED);
    worker(&mut admin, "db_one");
    for round in 0..4 {
        at_once(&mut admin, "ALTER DATABASE db_one RENAME TO db_two");
        worker(&mut admin, "db_two");
        let strategy = if round % 2 == 0 {
            "wal_log"
        } else {
            "file_copy"
        };
        at_once(
            &mut admin,
            &format!("CREATE DATABASE db_copy TEMPLATE db_two STRATEGY {strategy}"),
        );
        worker(&mut admin, "db_two");
        worker(&mut admin, "db_copy");
        at_once(&mut admin, "ALTER DATABASE db_copy SET TABLESPACE ts");
        worker(&mut admin, "db_copy");
        at_once(&mut admin, "ALTER DATABASE db_copy SET TABLESPACE ts2");
        worker(&mut admin, "db_copy");
        // The copy looks after its own table.
        let mut copy = CLUSTER.connect("db_copy");
        let month =
            copy.value("SELECT i.inhrelid::regclass FROM pg_inherits i JOIN audit_db.managed_tables t ON i.inhparent = t.parent ORDER BY inhrelid DESC LIMIT 1");
        copy.run(&format!("DROP TABLE {month}"));
        wait_until("the copy has made its month again", SOON, || {
            copy.holds(&format!("SELECT to_regclass('{month}') IS NOT NULL"))
        });
        drop(copy);
        let force = if round % 2 == 0 { "" } else { " WITH (FORCE)" };
        wait_until("the session has left", SOON, || {
            admin.value("SELECT count(*) FROM pg_stat_activity WHERE datname = 'db_copy' AND backend_type = 'client backend'") == "0"
        });
        at_once(&mut admin, &format!("DROP DATABASE db_copy{force}"));
        at_once(&mut admin, "ALTER DATABASE db_two RENAME TO db_one");
    }
    let mut monitor = CLUSTER.database("db_monitor");
    wait_until("the dropped database is no longer listed", SOON, || {
        monitor.value("SELECT count(*) FROM audit_db.workers WHERE database IN ('db_copy', 'db_two')") == "0"
            && monitor.value("SELECT count(*) FROM audit_db.worker_slots() WHERE database_oid NOT IN (SELECT oid FROM pg_database)") == "0"
    });
    at_once(&mut admin, "DROP DATABASE db_one");
}

#[test]
fn a_failed_command_brings_the_worker_back() {
    let mut admin = CLUSTER.connect("postgres");
    let guest = CLUSTER.database("db_guest");
    worker(&mut admin, "db_guest");
    for sql in [
        "DROP DATABASE db_guest",
        "ALTER DATABASE db_guest RENAME TO db_elsewhere",
        "CREATE DATABASE db_elsewhere TEMPLATE db_guest",
    ] {
        assert_eq!(admin.sqlstate(sql), "55006", "{sql}");
        worker(&mut admin, "db_guest");
    }
    drop(guest);
    assert_eq!(
        admin.sqlstate("BEGIN; DROP DATABASE db_guest; COMMIT"),
        "25001"
    );
    let mut monitor = CLUSTER.connect("postgres");
    worker(&mut monitor, "db_guest");
    admin.run("ROLLBACK");
    worker(&mut admin, "db_guest");
    assert_eq!(
        admin.sqlstate("CREATE DATABASE postgres TEMPLATE db_guest"),
        "42P04"
    );
    worker(&mut admin, "db_guest");
    assert_eq!(
        admin.sqlstate("ALTER DATABASE db_guest SET TABLESPACE nowhere"),
        "42704"
    );
    worker(&mut admin, "db_guest");
}

#[test]
fn who_may_not_drop_the_database_does_not_stop_its_worker() {
    let mut admin = CLUSTER.connect("postgres");
    drop(CLUSTER.database("db_foreign"));
    admin.run("CREATE ROLE db_stranger LOGIN CREATEDB");
    let before = worker(&mut admin, "db_foreign");
    let mut stranger = CLUSTER.connect_as("postgres", "db_stranger");
    for sql in [
        "DROP DATABASE db_foreign",
        "ALTER DATABASE db_foreign RENAME TO db_mine",
        "ALTER DATABASE db_foreign SET TABLESPACE pg_default",
        "CREATE DATABASE db_mine TEMPLATE db_foreign",
    ] {
        assert_eq!(stranger.sqlstate(sql), "42501", "{sql}");
        assert_eq!(
            workers(&mut admin, "db_foreign"),
            std::slice::from_ref(&before),
            "{sql}"
        );
    }
}

#[test]
fn a_terminated_worker_comes_back_and_is_counted() {
    let mut admin = CLUSTER.database("db_terminated");
    admin.run(MANAGED);
    let mut pid = worker(&mut admin, "db_terminated");
    for restarts in 1..=2 {
        admin.run(&format!("SELECT pg_terminate_backend({pid})"));
        pid = new_worker(&mut admin, "db_terminated", &pid);
        let mine = format!(
            "SELECT restarts FROM audit_db.workers WHERE database = current_database() AND pid = {pid}"
        );
        assert_eq!(admin.column(&mine), [restarts.to_string()]);
    }
    // A worker's bad luck is nobody else's.
    assert_eq!(
        admin.value("SELECT count(*) FROM audit_db.workers WHERE database = current_database()"),
        "1"
    );
}

#[test]
fn the_worker_goes_with_the_extension() {
    let mut admin = CLUSTER.empty_database("db_extension");
    admin.run("BEGIN; CREATE EXTENSION audit_db; ROLLBACK");
    // Another database's news pass the launcher after this one's would have.
    drop(CLUSTER.database("db_sentinel"));
    worker(&mut admin, "db_sentinel");
    assert_eq!(workers(&mut admin, "db_extension"), Vec::<String>::new());

    for round in 0..3 {
        admin.run("CREATE EXTENSION audit_db");
        if round == 0 {
            admin.run(&format!(
                "{MANAGED}; INSERT INTO log SELECT now() FROM generate_series(1, 7)"
            ));
        }
        worker(&mut admin, "db_extension");
        admin.run("BEGIN; DROP EXTENSION audit_db; ROLLBACK");
        worker(&mut admin, "db_extension");
        // The schema is the extension's; it does not go alone.
        assert_eq!(admin.sqlstate("DROP SCHEMA audit_db CASCADE"), "2BP01");
        worker(&mut admin, "db_extension");
        admin.run("DROP EXTENSION audit_db CASCADE");
        no_worker(&mut admin, "db_extension");
        assert!(admin.holds("SELECT to_regnamespace('audit_db') IS NULL"));
        assert_eq!(admin.value("SELECT count(*) FROM log"), "7");
    }
    // Dropped and made in one transaction: it stays.
    admin.run("CREATE EXTENSION audit_db");
    worker(&mut admin, "db_extension");
    admin.run("BEGIN; DROP EXTENSION audit_db; CREATE EXTENSION audit_db; COMMIT");
    let mut monitor = CLUSTER.connect("db_extension");
    wait_until(
        "the worker has done a cycle of the new extension",
        SOON,
        || {
            monitor.value(
            "SELECT count(*) FROM audit_db.workers WHERE database = current_database() AND state = 'idle' AND last_error IS NULL",
        ) == "1"
        },
    );
}

#[test]
fn no_worker_connects_to_templates_and_closed_databases() {
    let cluster = busy().start();
    let mut admin = cluster.connect("postgres");
    // Made while one could connect, then closed.
    drop(cluster.database("closed"));
    drop(cluster.database("pattern"));
    for database in ["closed", "pattern"] {
        let pid = worker(&mut admin, database);
        admin.run(match database {
            "closed" => "ALTER DATABASE closed ALLOW_CONNECTIONS false",
            _ => "ALTER DATABASE pattern IS_TEMPLATE true",
        });
        admin.run(&format!("SELECT pg_terminate_backend({pid})"));
    }
    cluster
        .connect("template1")
        .run("CREATE EXTENSION audit_db");
    cluster.restart();
    let mut admin = cluster.connect("postgres");
    drop(cluster.empty_database("open"));
    worker(&mut admin, "open");
    for database in ["closed", "pattern", "template0", "template1"] {
        assert_eq!(
            workers(&mut admin, database),
            Vec::<String>::new(),
            "{database}"
        );
    }
    // As a template it can be copied at once, though somebody wanted a worker in it.
    at_once(&mut admin, "CREATE DATABASE from_pattern TEMPLATE pattern");
    worker(&mut admin, "from_pattern");
    assert_eq!(workers(&mut admin, "pattern"), Vec::<String>::new());
    assert!(
        !cluster
            .log()
            .contains("is not currently accepting connections"),
        "{}",
        cluster.log()
    );
}

#[test]
fn the_launcher_comes_back_and_nobody_works_twice() {
    let cluster = busy().start();
    let mut admin = cluster.connect("postgres");
    for database in ["one", "two", "three"] {
        cluster.database(database).run(MANAGED);
    }
    let launcher = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'audit_db launcher'";
    for _ in 0..2 {
        for database in ["one", "two", "three"] {
            worker(&mut admin, database);
        }
        let old = admin.value(launcher);
        admin.run(&format!("SELECT pg_terminate_backend({old})"));
        wait_until("there is a new launcher", SOON, || {
            let now = admin.column(launcher);
            now.len() == 1 && now[0] != old
        });
    }
    // News reach the new one.
    drop(cluster.database("four"));
    for database in ["one", "two", "three", "four"] {
        worker(&mut admin, database);
    }
    wait_until("all are at work", SOON, || {
        cluster.connect("one").rows(
            "SELECT database FROM audit_db.workers WHERE state IN ('idle', 'running') AND pid IS NOT NULL ORDER BY 1",
        ) == [["four"], ["one"], ["three"], ["two"]]
    });
    assert_eq!(
        admin.value("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'audit_db worker'"),
        "4"
    );
}

#[test]
fn kill_9_of_the_worker_costs_a_restart_and_no_row() {
    let cluster = Cluster::builder()
        .set("audit_db.maintenance_interval", "100ms")
        .start();
    let mut client = cluster.database("crash");
    client.run(MANAGED);
    client.run("INSERT INTO log SELECT now() FROM generate_series(1, 1000)");
    let old = worker(&mut client, "crash");
    cluster.signal("KILL", old.parse().unwrap());
    // The server ends every session and recovers.
    wait_until("the session has ended", SOON, || {
        client.simple_query("SELECT 1").is_err()
    });
    let mut client = None;
    wait_until("the server is back", SOON, || {
        client = cluster.try_connect("crash", "postgres").ok();
        client.is_some()
    });
    let mut client = client.unwrap();
    new_worker(&mut client, "crash", &old);
    assert_eq!(client.value("SELECT count(*) FROM log"), "1000");
    let month =
        client.value("SELECT i.inhrelid::regclass FROM pg_inherits i JOIN audit_db.managed_tables t ON i.inhparent = t.parent ORDER BY inhrelid DESC LIMIT 1");
    client.run(&format!("DROP TABLE {month}"));
    wait_until("the month is made again", SOON, || {
        client.holds(&format!("SELECT to_regclass('{month}') IS NOT NULL"))
    });
}

#[test]
fn a_reload_changes_the_interval() {
    let cluster = Cluster::builder()
        .fast()
        .set("audit_db.maintenance_interval", "1d")
        .start();
    let mut client = cluster.database("reload");
    let pid = worker(&mut client, "reload");
    let cycles = "SELECT last_cycle FROM audit_db.workers WHERE last_cycle IS NOT NULL";
    wait_until("the first cycle", SOON, || {
        !client.column(cycles).is_empty()
    });
    cluster.reload(&[("audit_db.maintenance_interval", "100ms")]);
    let mut last = client.value(cycles);
    for _ in 0..3 {
        wait_until("another cycle", SOON, || client.value(cycles) != last);
        last = client.value(cycles);
    }
    assert_eq!(workers(&mut client, "reload"), [pid]);
}

#[test]
fn a_fast_shutdown_does_not_wait_for_the_worker() {
    let cluster = busy()
        .set("audit_db.lock_retry", "10min")
        .set("audit_db.lock_timeout", "1min")
        .start();
    let mut client = cluster.database("stopping");
    client.run(MANAGED);
    let month =
        client.value("SELECT i.inhrelid::regclass FROM pg_inherits i JOIN audit_db.managed_tables t ON i.inhparent = t.parent ORDER BY inhrelid DESC LIMIT 1");
    // The worker wants a month and a lock that it does not get.
    client.run(&format!(
        "DROP TABLE {month}; BEGIN; LOCK TABLE log IN SHARE UPDATE EXCLUSIVE MODE"
    ));
    let mut admin = cluster.connect("postgres");
    wait_until("the worker waits for the lock", SOON, || {
        admin.value(
            "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'audit_db worker' AND wait_event_type = 'Lock'",
        ) == "1"
    });
    let started = Instant::now();
    cluster.stop(Mode::Fast);
    assert!(
        started.elapsed() < Duration::from_secs(20),
        "{:?}",
        started.elapsed()
    );
    cluster.start();
    let mut client = cluster.connect("stopping");
    wait_until("the month is made after all", SOON, || {
        client.holds(&format!("SELECT to_regclass('{month}') IS NOT NULL"))
    });
}

#[test]
fn too_few_worker_slots_are_seen_and_harm_no_session() {
    // One for the server's own logical replication launcher, one for ours.
    let cluster = busy().set("max_worker_processes", "2").start();
    let mut client = cluster.database("crowded");
    client.run(MANAGED);
    wait_until("the shortage is shown", SOON, || {
        client.rows("SELECT state, pid FROM audit_db.workers WHERE database = current_database()")
            == [["no worker slot", "null"]]
    });
    assert!(
        client.holds(
            "SELECT bool_and(last_error LIKE '%max_worker_processes%') FROM audit_db.workers"
        )
    );
    assert!(cluster.log().contains("max_worker_processes"));
    client.run("SELECT audit_db.create_partition('log', '2019-01-01')");
    client.run("SELECT audit_db.manage_table('log', retention => '1 year')");
    assert_eq!(
        client.sqlstate("SELECT audit_db.drop_expired_partitions('log')"),
        "53000"
    );
    assert_eq!(
        client.rows(
            "SELECT partition, action FROM audit_db.drop_expired_partitions('log', dry_run => true)"
        ),
        [["public.log_2019_01", "drop"]]
    );
    client.run("INSERT INTO log VALUES (now())");
    at_once(
        &mut cluster.connect("postgres"),
        "CREATE DATABASE elsewhere",
    );
}
