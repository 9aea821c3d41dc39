//! Seven years are kept, and what is older goes: dropped, detached or archived, with a default partition beside it or without.

use audit_db_e2e::{Client, Cluster, SOON, Session, Shared, wait_until};
use std::time::{Duration, Instant};

static CLUSTER: Shared = Shared::new(|| {
    Cluster::builder()
        .fast()
        .set("audit_db.maintenance_interval", "100ms")
        .set("max_locks_per_transaction", "1024")
});

/// Eight years and a bit, ten rows a month.
fn eight_years(client: &mut Client, table: &str, default: bool) {
    client.run(&format!(
        "CREATE TABLE {table} (at timestamptz NOT NULL, who text, what text, PRIMARY KEY (at, what)) PARTITION BY RANGE (at);
         GRANT SELECT ON {table} TO auditor; GRANT INSERT ON {table} TO writer;
         ALTER TABLE {table} ENABLE ROW LEVEL SECURITY;
         CREATE POLICY own ON {table} FOR SELECT USING (who = current_user);
         SELECT audit_db.manage_table('{table}', premake => 1, default_partition => {default});
         SELECT count(*) FROM audit_db.create_partitions('{table}', now() - interval '98 months', 98);
         INSERT INTO {table} SELECT now() - m * interval '1 month', CASE WHEN n % 2 = 0 THEN 'auditor' ELSE 'somebody' END, m || '/' || n
           FROM generate_series(0, 98) m, generate_series(1, 10) n"
    ));
}

/// Months that are older than seven years.
const EXPIRED: &str = "range_end + interval '84 months' <= now()";

#[test]
fn seven_years_stay_and_the_rest_goes() {
    let mut client = CLUSTER.database("r_seven");
    client.run("CREATE ROLE auditor LOGIN; CREATE ROLE writer LOGIN; CREATE SCHEMA \"the cellar\"; GRANT USAGE ON SCHEMA \"the cellar\" TO auditor");
    let tables = [
        ("dropping", "drop", true),
        ("detaching", "detach", true),
        ("archiving", "archive:the cellar", true),
        ("dropping_beside", "drop", false),
        ("detaching_beside", "detach", false),
        ("archiving_beside", "archive:the cellar", false),
    ];
    // In the middle of them one on which nothing works.
    for (table, _, default) in tables {
        eight_years(&mut client, table, default);
    }
    eight_years(&mut client, "sick", true);
    let oldest = client.column(
        "SELECT partition FROM audit_db.partition_info('sick') ORDER BY range_start LIMIT 3",
    );
    for partition in &oldest {
        client.run(&format!(
            "CREATE VIEW on_{partition} AS SELECT * FROM {partition}"
        ));
    }
    let mut expected = Vec::new();
    for (table, ..) in tables {
        expected.push(client.column(&format!(
            "SELECT partition FROM audit_db.partition_info('{table}') WHERE {EXPIRED} ORDER BY range_start"
        )));
    }
    assert!(
        expected
            .iter()
            .all(|expired| (13..=15).contains(&expired.len())),
        "{expected:?}"
    );
    client.run("SELECT audit_db.manage_table('sick', premake => 1, retention => '84 months')");
    for (table, action, default) in tables {
        client.run(&format!(
            "SELECT audit_db.manage_table('{table}', premake => 1, default_partition => {default}, retention => '84 months', retention_action => '{action}')"
        ));
    }
    for (table, ..) in tables {
        wait_until(
            &format!("the expired months of {table} have gone"),
            Duration::from_secs(60),
            || {
                client.number(&format!(
                    "SELECT count(*) FROM audit_db.partition_info('{table}') WHERE {EXPIRED}"
                )) == 0
            },
        );
    }
    wait_until("nothing is unfinished", SOON, || {
        client.value("SELECT count(*) FROM audit_db.unfinished") == "0"
    });
    for ((table, action, _), expired) in tables.iter().zip(&expected) {
        // Ten rows a month.
        let rows = client.number(&format!("SELECT count(*) FROM {table}"));
        assert_eq!(rows, 990 - 10 * expired.len() as i64, "{table}");
        let mut kept = 0;
        for partition in expired {
            let place = if action.starts_with("archive") {
                format!("\"the cellar\".{partition}")
            } else {
                partition.clone()
            };
            let there = client.holds(&format!("SELECT to_regclass('{place}') IS NOT NULL"));
            assert_eq!(there, *action != "drop", "{place}");
            if !there {
                continue;
            }
            kept += client.number(&format!("SELECT count(*) FROM {place}"));
            // As closed as the table: the policy and the grants came along.
            let mut auditor = CLUSTER.connect_as("r_seven", "auditor");
            assert_eq!(
                auditor.column(&format!("SELECT DISTINCT who FROM {place}")),
                ["auditor"],
                "{place}"
            );
            assert_eq!(auditor.sqlstate(&format!("DELETE FROM {place}")), "42501");
            assert!(client.holds(&format!("SELECT relrowsecurity AND NOT relispartition FROM pg_class WHERE oid = '{place}'::regclass")));
        }
        if *action != "drop" {
            assert_eq!(kept + rows, 990, "{table}");
        }
        let verb = match *action {
            "drop" => "dropped",
            "detach" => "detached",
            _ => "archived",
        };
        let logged = client.column(&format!(
            "SELECT object FROM audit_db.events_log WHERE event = 'partition {verb}' AND object LIKE 'public.{table}\\_2%' ORDER BY id"
        ));
        let names: Vec<String> = expired
            .iter()
            .map(|partition| format!("public.{partition}"))
            .collect();
        assert_eq!(logged, names, "oldest first, each once");
    }
    // The sick one keeps what cannot go, says why, and the others of it went.
    wait_until("the others of the sick table have gone", SOON, || {
        client.column(&format!("SELECT partition FROM audit_db.partition_info('sick') WHERE {EXPIRED} ORDER BY range_start")) == oldest
    });
    assert_eq!(
        client.column("SELECT DISTINCT sqlstate FROM audit_db.events_log WHERE severity = 'error'"),
        ["2BP01"]
    );
}

/// A reader holds the table; who writes waits for nobody, and the month goes when the reader has ended.
#[test]
fn a_concurrent_detach_holds_up_nobody() {
    let mut client = CLUSTER.database("r_beside");
    client.run(
        "CREATE TABLE log (at timestamptz NOT NULL) PARTITION BY RANGE (at);
         SELECT audit_db.manage_table('log', premake => 1, default_partition => false);
         SELECT count(*) FROM audit_db.create_partitions('log', '2020-01-01', 2)",
    );
    let mut reader = CLUSTER.connect("r_beside");
    reader.run("BEGIN; SELECT count(*) FROM log");
    client.run("SELECT audit_db.manage_table('log', premake => 1, default_partition => false, retention => '1 year')");
    // A session that asks is told that it is on its way.
    let rows = client.rows("SELECT partition, action FROM audit_db.drop_expired_partitions('log')");
    assert!(rows.iter().all(|row| row[1] == "queued"), "{rows:?}");
    wait_until("the detach waits for the reader", SOON, || {
        client.holds("SELECT EXISTS (SELECT FROM pg_inherits WHERE inhdetachpending)")
    });
    let mut longest = Duration::ZERO;
    for _ in 0..200 {
        let started = Instant::now();
        client.run("INSERT INTO log VALUES (now())");
        longest = longest.max(started.elapsed());
    }
    println!("longest INSERT beside a concurrent detach that waits: {longest:?}");
    assert!(longest < Duration::from_secs(2));
    assert!(client.holds("SELECT to_regclass('log_2020_01') IS NOT NULL"));
    reader.run("COMMIT");
    wait_until("both months have gone", SOON, || {
        client.holds(
            "SELECT to_regclass('log_2020_01') IS NULL AND to_regclass('log_2020_02') IS NULL",
        )
    });
    assert_eq!(
        client.rows("SELECT event, message FROM audit_db.events_log WHERE severity = 'error'"),
        Vec::<Vec<String>>::new()
    );
}

/// What is still needed is not detached first and then left lying about.
#[test]
fn a_month_that_is_needed_stays_attached() {
    let mut client = CLUSTER.database("r_needed");
    client.run(
        "CREATE TABLE log (at timestamptz NOT NULL) PARTITION BY RANGE (at);
         SELECT audit_db.manage_table('log', premake => 0, default_partition => false);
         SELECT count(*) FROM audit_db.create_partitions('log', '2020-01-01', 3);
         INSERT INTO log VALUES ('2020-02-02 00:00+00');
         CREATE VIEW february AS SELECT * FROM log_2020_02;
         SELECT audit_db.manage_table('log', premake => 0, default_partition => false, retention => '1 year')",
    );
    wait_until("the others have gone", SOON, || {
        client
            .column("SELECT partition FROM audit_db.partition_info('log') WHERE range_end < now()")
            == ["log_2020_02"]
    });
    wait_until("it is said why", SOON, || {
        client.holds("SELECT EXISTS (SELECT FROM audit_db.events_log WHERE object = 'public.log_2020_02' AND sqlstate = '2BP01')")
    });
    assert_eq!(client.value("SELECT count(*) FROM log"), "1");
    client.run("DROP VIEW february");
    wait_until("it goes too", SOON, || {
        client.value("SELECT count(*) FROM log") == "0"
    });
}
