//! Indexes: partitions get those that they lack, and a restore is left alone until it has brought its own.

use audit_db_e2e::tools::{command, run};
use audit_db_e2e::{Client, Cluster, SOON, Session, Shared, wait_until};
use std::process::Command;

static CLUSTER: Shared = Shared::new(|| {
    Cluster::builder()
        .fast()
        .set("audit_db.maintenance_interval", "100ms")
});

fn failures(client: &mut Client) -> Vec<Vec<String>> {
    client.rows("SELECT event, object, sqlstate, detail FROM audit_db.events_log WHERE severity = 'error' ORDER BY id")
}

#[test]
fn partitions_get_the_indexes_that_they_lack() {
    let mut client = CLUSTER.database("i_repair");
    client.run(
        "CREATE TABLE log (at timestamptz NOT NULL, id bigint NOT NULL, \"What\" text) PARTITION BY RANGE (at);
         SELECT audit_db.manage_table('log', premake => 2);
         INSERT INTO log SELECT now() + n * interval '1 hour', n, 'w' || n FROM generate_series(1, 1200) n",
    );
    // Staged, as one does it by hand to lock nobody out.
    client.run(
        "CREATE INDEX plain ON ONLY log (at);
         CREATE INDEX complicated ON ONLY log USING btree (lower(\"What\") COLLATE \"C\" DESC NULLS LAST, at) INCLUDE (id) WITH (fillfactor = 77) WHERE id > 3;
         CREATE UNIQUE INDEX unique_one ON ONLY log (id, at);
         ALTER TABLE ONLY log ADD CONSTRAINT the_key PRIMARY KEY (at, id)",
    );
    // One of them is there already on one partition.
    let first = client
        .value("SELECT partition FROM audit_db.partition_info('log') ORDER BY range_start LIMIT 1");
    client.run(&format!("CREATE INDEX by_hand ON {first} (at)"));
    wait_until("all indexes are valid", SOON, || {
        client.holds("SELECT bool_and(indisvalid) FROM pg_index WHERE indrelid = 'log'::regclass")
    });
    assert_eq!(
        client.rows(
            "SELECT indrelid::regclass, count(*), bool_and(indisvalid), bool_and(c.relispartition) FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
              WHERE indrelid IN (SELECT partition FROM audit_db.partition_info('log')) GROUP BY 1 ORDER BY 1"
        )
        .into_iter()
        .filter(|row| row[1..] != ["4", "t", "t"])
        .collect::<Vec<_>>(),
        Vec::<Vec<String>>::new()
    );
    assert!(
        client.holds("SELECT relispartition FROM pg_class WHERE relname = 'by_hand'"),
        "no second one was made"
    );
    assert_eq!(
        client.sqlstate("INSERT INTO log SELECT * FROM log LIMIT 1"),
        "23505"
    );
    let shape = "SELECT DISTINCT regexp_replace(pg_get_indexdef(i.indexrelid), ' INDEX \\S+ ON (ONLY )?\\S+', '') FROM pg_index i
                  WHERE indrelid = 'log'::regclass OR indrelid IN (SELECT partition FROM audit_db.partition_info('log')) ORDER BY 1";
    assert_eq!(client.column(shape).len(), 4, "{:?}", client.column(shape));
    // New months have them from the start.
    let ahead = client.value("SELECT partition FROM audit_db.partition_info('log') WHERE range_start > now() ORDER BY range_start LIMIT 1");
    client.run(&format!("DROP TABLE {ahead}"));
    wait_until("the month is made again", SOON, || {
        client.holds(&format!(
            "SELECT count(*) = 4 FROM pg_index WHERE indrelid = to_regclass('{ahead}')"
        ))
    });
}

/// What an interrupted build has left is removed; a build that is going on is left alone.
#[test]
fn leftovers_are_replaced_and_others_left_alone() {
    let mut client = CLUSTER.database("i_left");
    client.run(
        "CREATE TABLE log (at timestamptz NOT NULL, id int) PARTITION BY RANGE (at);
         SELECT audit_db.manage_table('log', premake => 0);
         INSERT INTO log VALUES (now(), 1), (now(), 1)",
    );
    let month = client
        .value("SELECT partition FROM audit_db.partition_info('log') ORDER BY range_start LIMIT 1");
    // A unique index that cannot be: its build fails and leaves an invalid one.
    client.run("CREATE UNIQUE INDEX no_doubles ON ONLY log (id, at)");
    wait_until("the failure is recorded", SOON, || {
        client.holds("SELECT EXISTS (SELECT FROM audit_db.events_log WHERE event = 'index' AND sqlstate = '23505')")
    });
    client.run(&format!("DELETE FROM {month} WHERE ctid = '(0,1)'"));
    wait_until("the index is valid", SOON, || {
        client.holds("SELECT indisvalid FROM pg_index WHERE indexrelid = 'no_doubles'::regclass")
    });
    assert!(client.holds("SELECT bool_and(indisvalid) FROM pg_index"));
    assert_eq!(
        client.value(&format!(
            "SELECT count(*) FROM pg_index WHERE indrelid = '{month}'::regclass"
        )),
        "1"
    );

    client.run("TRUNCATE audit_db.events_log; CREATE INDEX staged ON ONLY log (at)");
    client.run("CREATE INDEX excluded ON ONLY log (id)");
    wait_until("both are valid", SOON, || {
        client.holds("SELECT count(*) = 2 AND bool_and(indisvalid) FROM pg_index WHERE indexrelid IN ('staged'::regclass, 'excluded'::regclass)")
    });
    assert_eq!(
        failures(&mut client)
            .iter()
            .filter(|row| row[0] == "index")
            .count(),
        0
    );
}

fn connection(program: &str) -> Command {
    let mut command = command(program);
    command.args(["-U", "postgres", "-h"]).arg(CLUSTER.socket());
    command
}

/// A dump that lacks months which are due is restored while the worker turns round every 100 ms: whatever it makes, and
/// whenever, every index is valid in the end.
#[test]
fn a_restore_ends_with_every_index_valid() {
    let mut client = CLUSTER.database("i_origin");
    client.run(
        "SELECT audit_db.create_audit_log('log', premake => 3);
         CREATE INDEX more ON log (principal_type) WHERE principal_type IS NOT NULL;
         INSERT INTO log (\"timestamp\", action, status, metadata)
         SELECT now() - n * interval '10 seconds', 'a' || n % 7, 's', jsonb_build_object('n', md5(n::text)) FROM generate_series(1, 60000) n",
    );
    wait_until("the default is emptied", SOON, || {
        client.value("SELECT count(*) FROM log_default") == "0"
    });
    let due = client.column("SELECT partition FROM audit_db.partition_info('log') WHERE range_end > now() AND range_start > now() - interval '1 month' ORDER BY range_start DESC LIMIT 2");
    let contents = "SELECT count(*), md5(string_agg(log::text, ',' ORDER BY id)) FROM log";
    let before = client.rows(contents);
    let archive = CLUSTER.folder().join("months.dump");
    let script = CLUSTER.folder().join("months.sql");
    for (format, file) in [("-Fc", &archive), ("-Fp", &script)] {
        let mut dump = connection("pg_dump");
        dump.args([format, "-d", "i_origin", "-f"]).arg(file);
        for month in &due {
            dump.args(["-T", month]);
        }
        run(&mut dump);
    }
    let mut interrupted = 0;
    for round in 0..8 {
        let name = format!("i_copy_{round}");
        drop(CLUSTER.empty_database(&name));
        match round % 3 {
            0 => run(connection("psql")
                .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", &name, "-f"])
                .arg(&script)),
            1 => run(connection("pg_restore")
                .args(["-e", "-d", &name])
                .arg(&archive)),
            _ => run(connection("pg_restore")
                .args(["-e", "-j", "2", "-d", &name])
                .arg(&archive)),
        };
        let mut copy = CLUSTER.connect(&name);
        wait_until("the months are there", SOON, || {
            copy.holds(&format!(
                "SELECT to_regclass('{}') IS NOT NULL AND to_regclass('{}') IS NOT NULL",
                due[0], due[1]
            ))
        });
        assert!(
            copy.holds("SELECT bool_and(indisvalid) AND count(*) >= 5 * 4 FROM pg_index WHERE indrelid::regclass::text LIKE 'log%'"),
            "round {round}"
        );
        assert_eq!(
            copy.rows(
                "SELECT partition, (SELECT count(*) FROM pg_index WHERE indrelid = partition) FROM audit_db.partition_info('log')"
            )
            .into_iter()
            .filter(|row| row[1] != "5")
            .collect::<Vec<_>>(),
            Vec::<Vec<String>>::new(),
            "round {round}"
        );
        assert_eq!(copy.rows(contents), before, "round {round}");
        let events = failures(&mut copy);
        assert!(
            // On a slow machine the restore holds its locks for longer than a cycle tries.
            events
                .iter()
                .all(|event| event[0] == "restore" || event[2] == "55P03"),
            "round {round}: {events:?}"
        );
        interrupted += usize::from(!events.is_empty());
        drop(copy);
        CLUSTER
            .connect("postgres")
            .run(&format!("DROP DATABASE {name}"));
    }
    println!("a cycle of the worker fell into {interrupted} of 8 restores");
    assert!(
        interrupted > 0,
        "no cycle fell into a restore: nothing was shown"
    );
}
