//! What the worker does in a cycle: months ahead, the default partition, retention, and what it does when it cannot.

use audit_db_e2e::{Client, Cluster, SOON, Session, Shared, wait_until, wait_until_workers_rest};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Cycles come only when a test asks for one.
static CLUSTER: Shared = Shared::new(|| {
    Cluster::builder()
        .fast()
        .set("audit_db.maintenance_interval", "1d")
        .set("audit_db.lock_retry", "1s")
});

/// A database with a bell: managing that table again asks for a cycle.
fn database(name: &str) -> Client {
    let mut client = CLUSTER.database(name);
    client.run("CREATE TABLE bell (at timestamptz) PARTITION BY RANGE (at)");
    cycle(&mut client);
    client
}

/// Lets the worker do a cycle that begins after everything before, and waits for its end.
#[track_caller]
fn cycle(client: &mut Client) {
    let asked = client.value("SELECT clock_timestamp()");
    client.run("SELECT audit_db.manage_table('bell', premake => 0)");
    cycle_since(client, &asked);
    // A cycle that somebody asked for before may have counted as ours; then ours follows at once.
    wait_until_workers_rest(client);
}

#[track_caller]
fn cycle_since(client: &mut Client, asked: &str) {
    wait_until("the worker has done a cycle", SOON, || {
        client.value(&format!(
            "SELECT count(*) FROM audit_db.workers
              WHERE database = current_database() AND state = 'idle' AND last_cycle > '{asked}'"
        )) == "1"
    });
}

/// Suffix of the month that is `ahead` months from now.
fn month(client: &mut Client, ahead: i32) -> String {
    client.value(&format!(
        "SELECT to_char(now() AT TIME ZONE 'UTC' + interval '{ahead} months', 'YYYY_MM')"
    ))
}

fn exists(client: &mut Client, relation: &str) -> bool {
    client.holds(&format!("SELECT to_regclass('{relation}') IS NOT NULL"))
}

/// Failures in the log: event, object, SQLSTATE, occurrences.
fn failures(client: &mut Client) -> Vec<Vec<String>> {
    client.rows(
        "SELECT event, object, sqlstate, occurrences FROM audit_db.events_log WHERE severity = 'error' ORDER BY id",
    )
}

const NONE: [[&str; 4]; 0] = [];

#[test]
fn months_ahead_are_made() {
    let mut client = database("w_ahead");
    client.run(
        "CREATE TABLE log (at timestamptz NOT NULL) PARTITION BY RANGE (at);
         SELECT audit_db.manage_table('log', premake => 3)",
    );
    let months: Vec<String> = (0..4)
        .map(|ahead| format!("log_{}", month(&mut client, ahead)))
        .collect();
    let ranges =
        "SELECT partition, range_start, range_end FROM audit_db.partition_info('log') ORDER BY 2";
    let before = client.rows(ranges);
    // The current one, one in the middle and the last.
    for index in [0, 2, 3] {
        client.run(&format!("DROP TABLE {}", months[index]));
    }
    cycle(&mut client);
    assert_eq!(client.rows(ranges), before);
    assert_eq!(
        client.column(
            "SELECT object FROM audit_db.events_log WHERE event = 'partition created' ORDER BY id"
        ),
        [0, 2, 3].map(|index| format!("public.{}", months[index]))
    );
    // Nothing to do: nothing done, nothing logged.
    let log = client.rows("SELECT * FROM audit_db.events_log");
    cycle(&mut client);
    assert_eq!(client.rows("SELECT * FROM audit_db.events_log"), log);
}

#[test]
fn late_rows_move_to_months_of_their_own() {
    let mut client = database("w_drain");
    client.run(
        "CREATE TABLE log (id bigint GENERATED ALWAYS AS IDENTITY, at timestamptz NOT NULL, what text,
                           twice text GENERATED ALWAYS AS (what || what) STORED, PRIMARY KEY (at, id)) PARTITION BY RANGE (at);
         SELECT audit_db.manage_table('log', premake => 1, retention => '2 years')",
    );
    wait_until_workers_rest(&mut client);
    client.run(
        "INSERT INTO log (at, what)
         SELECT date_trunc('month', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' - m * interval '1 month' + n * interval '2 hours',
                'row ' || m || ' ' || n
           FROM unnest(ARRAY[2, 5, 11]) m, generate_series(1, 300) n;
         INSERT INTO log (at, what) VALUES (now() + interval '20 months', 'too far'), (now() - interval '3 years', 'too old'),
                                           ('infinity', 'never'), ('-infinity', 'always')",
    );
    let all = "SELECT count(*), md5(string_agg(id || '/' || at || '/' || what || '/' || twice, ',' ORDER BY id)) FROM log";
    let before = client.rows(all);
    assert_eq!(client.value("SELECT count(*) FROM log_default"), "904");
    cycle(&mut client);
    assert_eq!(client.rows(all), before);
    let mut expected = Vec::new();
    for ago in [11, 5, 2] {
        expected.push([
            format!("log_{}", month(&mut client, -ago)),
            "300".to_owned(),
        ]);
    }
    expected.sort();
    assert_eq!(
        client.rows("SELECT tableoid::regclass::text, count(*) FROM log WHERE what LIKE 'row%' GROUP BY 1 ORDER BY 1"),
        expected
    );
    assert_eq!(
        client.column("SELECT what FROM log_default ORDER BY 1"),
        ["always", "never", "too far", "too old"]
    );
    // They stay, and nobody complains about them.
    cycle(&mut client);
    assert_eq!(client.value("SELECT count(*) FROM log_default"), "4");
    assert_eq!(failures(&mut client), NONE);
    // The sequence goes on: nobody's id is given twice.
    client.run("INSERT INTO log (at, what) VALUES (now(), 'new')");
    assert!(client.holds(
        "SELECT (SELECT id FROM log WHERE what = 'new') > max(id) FROM log WHERE what <> 'new'"
    ));
}

/// Rows keep coming while the months for them are made: none is refused, and no count that a reader sees ever goes down.
#[test]
fn nothing_is_lost_while_rows_come() {
    const WRITERS: usize = 2;
    const ROWS: usize = 300;
    let mut client = database("w_stream");
    client.run(
        "CREATE TABLE log (at timestamptz NOT NULL, what text, PRIMARY KEY (at, what)) PARTITION BY RANGE (at);
         SELECT audit_db.manage_table('log', premake => 1)",
    );
    let writing = AtomicBool::new(true);
    let (refused, shrunk) = std::thread::scope(|scope| {
        let mut writers = Vec::new();
        for writer in 0..WRITERS {
            let mut session = CLUSTER.connect("w_stream");
            writers.push(scope.spawn(move || {
                let mut refused = Vec::new();
                for row in 0..ROWS {
                    let insert = format!(
                        "INSERT INTO log VALUES (now() - {} * interval '1 month', 'row {writer} {row}')",
                        row % 40
                    );
                    let sqlstate = session.sqlstate(&insert);
                    if sqlstate != "00000" {
                        refused.push(sqlstate);
                        session.run(&insert);
                    }
                }
                refused
            }));
        }
        let (mut reader, writing) = (CLUSTER.connect("w_stream"), &writing);
        let reading = scope.spawn(move || {
            let (mut seen, mut shrunk) = (0, Vec::new());
            while writing.load(Ordering::Relaxed) {
                let count = reader.number("SELECT count(*) FROM log");
                if count < seen {
                    shrunk.push((seen, count));
                }
                seen = count;
            }
            shrunk
        });
        while writers.iter().any(|writer| !writer.is_finished()) {
            cycle(&mut client);
        }
        writing.store(false, Ordering::Relaxed);
        let refused: Vec<String> = writers
            .into_iter()
            .flat_map(|writer| writer.join().unwrap())
            .collect();
        (refused, reading.join().unwrap())
    });
    // At most 24 months are made in a run.
    cycle(&mut client);
    cycle(&mut client);
    let all = (WRITERS * ROWS).to_string();
    assert_eq!(
        client.rows("SELECT count(*), count(DISTINCT what), count(*) FILTER (WHERE tableoid = 'log_default'::regclass) FROM log"),
        [[all.clone(), all, "0".to_owned()]]
    );
    assert!(
        refused.is_empty() && shrunk.is_empty(),
        "rows refused with {refused:?}; counts that went down: {shrunk:?}"
    );
}

#[test]
fn sick_tables_are_recorded_and_do_not_stop_others() {
    let mut client = database("w_sick");
    client.run(
        "CREATE ROLE w_poor; CREATE SCHEMA poor; GRANT ALL ON SCHEMA poor TO w_poor;
         CREATE TABLE taken (at timestamptz NOT NULL) PARTITION BY RANGE (at);
         CREATE TABLE poor.rightless (at timestamptz NOT NULL) PARTITION BY RANGE (at);
         ALTER TABLE poor.rightless OWNER TO w_poor;
         CREATE TABLE viewed (at timestamptz NOT NULL) PARTITION BY RANGE (at);
         CREATE TABLE restored (at timestamptz NOT NULL) PARTITION BY RANGE (at);
         CREATE TABLE healthy (at timestamptz NOT NULL) PARTITION BY RANGE (at);
         SELECT audit_db.manage_table(t::regclass, premake => 1) FROM unnest(ARRAY['taken', 'poor.rightless', 'viewed', 'restored']) t",
    );
    // The last in order: what happens to the others happens before it.
    client.run("SELECT audit_db.manage_table('healthy', premake => 1)");
    cycle(&mut client);
    let next = month(&mut client, 1);
    client.run(&format!(
        "DROP TABLE taken_{next}; CREATE TABLE taken_{next} (something int);
         DROP TABLE poor.rightless_{next}; REVOKE ALL ON SCHEMA poor FROM w_poor;
         DROP TABLE restored_{next}; CREATE INDEX restored_at ON ONLY restored (at);
         DROP TABLE healthy_{next};
         SELECT audit_db.create_partition('viewed', m) FROM unnest(ARRAY['2019-01-01', '2019-02-01']::date[]) m;
         CREATE VIEW looking AS SELECT * FROM viewed_2019_01;
         UPDATE audit_db.managed_tables SET retention = '1 year' WHERE parent = 'viewed'::regclass"
    ));
    let expected = |times: &str| {
        [
            ["create partition", "public.taken", "42P07", times].map(str::to_owned),
            ["create partition", "poor.rightless", "42501", times].map(str::to_owned),
            ["retention", "public.viewed_2019_01", "2BP01", times].map(str::to_owned),
            ["create partition", "public.restored", "55000", times].map(str::to_owned),
        ]
    };
    cycle(&mut client);
    assert_eq!(failures(&mut client), expected("1"));
    assert!(
        exists(&mut client, &format!("healthy_{next}")),
        "the healthy table was looked after"
    );
    assert!(
        !exists(&mut client, "viewed_2019_02"),
        "the next expired partition went"
    );
    assert_eq!(client.value("SELECT count(*) FROM looking"), "0");
    assert!(client.holds(
        "SELECT last_error IS NOT NULL AND restarts = 0 FROM audit_db.workers WHERE database = current_database()"
    ));
    // The same again is one entry that counts.
    cycle(&mut client);
    cycle(&mut client);
    assert_eq!(failures(&mut client), expected("3"));
    assert!(client.holds(
        "SELECT bool_and(last_at > logged_at) FROM audit_db.events_log WHERE severity = 'error'"
    ));

    client.run(&format!(
        "DROP TABLE taken_{next}; GRANT ALL ON SCHEMA poor TO w_poor; DROP VIEW looking; DROP INDEX restored_at"
    ));
    cycle(&mut client);
    assert_eq!(failures(&mut client), expected("3"));
    for made in [
        format!("taken_{next}"),
        format!("poor.rightless_{next}"),
        format!("restored_{next}"),
    ] {
        assert!(exists(&mut client, &made), "{made}");
    }
    assert!(!exists(&mut client, "viewed_2019_01"));
}

#[test]
fn a_lock_that_is_held_too_long_is_given_up_and_tried_again_later() {
    let mut client = database("w_lock");
    client.run(
        "CREATE TABLE log (at timestamptz NOT NULL) PARTITION BY RANGE (at);
         SELECT audit_db.manage_table('log', premake => 1)",
    );
    cycle(&mut client);
    let next = format!("log_{}", month(&mut client, 1));
    client.run(&format!("DROP TABLE {next}"));
    let mut other = CLUSTER.connect("w_lock");
    other.run("BEGIN; LOCK TABLE log IN SHARE UPDATE EXCLUSIVE MODE");
    cycle(&mut client);
    assert_eq!(
        failures(&mut client),
        [["create partition", "public.log", "55P03", "1"]]
    );
    assert!(!exists(&mut client, &next));
    // A session that asks is told the same.
    assert_eq!(
        client.sqlstate("SELECT audit_db.create_partition('log', now()::date + 400)"),
        "55P03"
    );
    other.run("COMMIT");
    cycle(&mut client);
    assert!(exists(&mut client, &next));
    assert_eq!(
        failures(&mut client),
        [["create partition", "public.log", "55P03", "1"]]
    );
}

#[test]
fn retention_takes_three_a_run_oldest_first() {
    let mut client = database("w_retention");
    client.run(r#"CREATE SCHEMA "the archive"; CREATE SEQUENCE numbers"#);
    let tables = [
        ("dropping", "drop"),
        ("detaching", "detach"),
        ("archiving", "archive:the archive"),
    ];
    for (table, _) in tables {
        client.run(&format!(
            "CREATE TABLE {table} (id bigint NOT NULL DEFAULT nextval('numbers'), at timestamptz NOT NULL) PARTITION BY RANGE (at);
             SELECT audit_db.manage_table('{table}', premake => 0);
             SELECT audit_db.create_partitions('{table}', '2019-01-15', 5);
             INSERT INTO {table} (at) SELECT timestamptz '2019-01-10 00:00+00' + n * interval '1 day' FROM generate_series(0, 130) n"
        ));
    }
    cycle(&mut client);
    // All in one transaction, so that it is one cycle that we look at.
    client.run("BEGIN");
    for (table, action) in tables {
        client.run(&format!(
            "SELECT audit_db.manage_table('{table}', premake => 0, retention => '6 months', retention_action => '{action}')"
        ));
    }
    let asked = client.value("SELECT clock_timestamp()");
    client.run("COMMIT");
    cycle_since(&mut client, &asked);
    for (table, action) in tables {
        assert_eq!(
            client.column(&format!(
                "SELECT partition FROM audit_db.partition_info('{table}') WHERE range_start < '2020-01-01' ORDER BY range_start"
            )),
            [format!("{table}_2019_04"), format!("{table}_2019_05")],
            "{action}: the three oldest are gone"
        );
    }
    // What is left is within the limit again.
    assert_eq!(
        client.rows("SELECT partition, action FROM audit_db.drop_expired_partitions('dropping', dry_run => true)"),
        [["public.dropping_2019_04", "drop"], ["public.dropping_2019_05", "drop"]]
    );
    cycle(&mut client);
    for (table, _) in tables {
        assert_eq!(
            client.value(&format!("SELECT count(*) FROM audit_db.partition_info('{table}') WHERE range_start < '2020-01-01'")),
            "0"
        );
        assert_eq!(client.value(&format!("SELECT count(*) FROM {table}")), "0");
    }
    for (month, rows) in [
        ("2019_01", "22"),
        ("2019_02", "28"),
        ("2019_03", "31"),
        ("2019_04", "30"),
        ("2019_05", "20"),
    ] {
        assert!(!exists(&mut client, &format!("dropping_{month}")));
        assert_eq!(
            client.value(&format!("SELECT count(*) FROM detaching_{month}")),
            rows
        );
        assert_eq!(
            client.value(&format!(
                r#"SELECT count(*) FROM "the archive".archiving_{month}"#
            )),
            rows
        );
    }
    assert_eq!(
        client.rows("SELECT event, count(*) FROM audit_db.events_log WHERE event ~ 'ped$|hed$|ved$' GROUP BY 1 ORDER BY 1"),
        [["partition archived", "5"], ["partition detached", "5"], ["partition dropped", "5"]]
    );
    assert_eq!(failures(&mut client), NONE);
}

#[test]
fn a_table_that_was_dropped_is_forgotten() {
    let mut client = database("w_forget");
    client.run(
        "CREATE TABLE log (at timestamptz NOT NULL) PARTITION BY RANGE (at);
         SELECT audit_db.manage_table('log', premake => 1);
         DROP TABLE log",
    );
    assert_eq!(
        client.column("SELECT DISTINCT parent FROM audit_db.partition_info"),
        ["bell"]
    );
    cycle(&mut client);
    assert_eq!(
        client.column("SELECT parent FROM audit_db.managed_tables"),
        ["bell"]
    );
    assert_eq!(failures(&mut client), NONE);
}

/// Rows of a default with triggers or subscribers are not deleted from it: it is exchanged, and nobody notices.
#[test]
fn a_default_that_somebody_watches_is_exchanged() {
    let mut client = database("w_watched");
    client.run(
        "CREATE FUNCTION watch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'fired'; END $$;
         CREATE TABLE triggered (at timestamptz NOT NULL) PARTITION BY RANGE (at);
         CREATE TABLE published (at timestamptz NOT NULL) PARTITION BY RANGE (at);
         SELECT audit_db.manage_table(t::regclass, premake => 1) FROM unnest(ARRAY['triggered', 'published']) t",
    );
    cycle(&mut client);
    client.run(
        "INSERT INTO triggered VALUES ('2025-01-15 00:00+00'); INSERT INTO published VALUES ('2025-01-15 00:00+00');
         CREATE TRIGGER watch AFTER DELETE ON triggered FOR EACH ROW EXECUTE FUNCTION watch();
         CREATE PUBLICATION everything FOR TABLE published",
    );
    // A session cannot do it.
    for table in ["triggered", "published"] {
        assert_eq!(
            client.sqlstate(&format!(
                "SELECT audit_db.create_partition('{table}', '2025-01-01')"
            )),
            "55000"
        );
    }
    let next = month(&mut client, 1);
    client.run(&format!("DROP TABLE triggered_{next}, published_{next}"));
    cycle(&mut client);
    for table in ["triggered", "published"] {
        wait_until("the rows are in their month", SOON, || {
            client.column(&format!("SELECT tableoid::regclass FROM {table}"))
                == [format!("{table}_2025_01")]
        });
        assert!(exists(&mut client, &format!("{table}_{next}")));
    }
    assert_eq!(failures(&mut client), NONE);
    assert_eq!(
        client.sqlstate("DELETE FROM triggered"),
        "P0001",
        "the table's trigger is on the new months"
    );
    assert_eq!(
        client
            .column("SELECT tablename FROM pg_publication_tables WHERE tablename LIKE '%2025_01'"),
        ["published_2025_01"]
    );
}

#[test]
fn a_full_default_is_not_emptied_under_its_readers_noses() {
    let mut client = database("w_full");
    client.run(
        "CREATE TABLE log (at timestamptz NOT NULL) PARTITION BY RANGE (at);
         SELECT audit_db.manage_table('log', premake => 1)",
    );
    cycle(&mut client);
    client.run("INSERT INTO log SELECT timestamptz '2025-01-01 00:00+00' + n * interval '1 minute' FROM generate_series(0, 1000) n");
    for sql in [
        "SELECT audit_db.create_partition('log', '2025-01-01')",
        "SELECT audit_db.create_partition('log', '2025-06-01')",
        "SELECT audit_db.create_partitions('log', '2025-01-01', 1)",
    ] {
        assert_eq!(client.sqlstate(sql), "55000", "{sql}");
    }
    assert_eq!(client.value("SELECT count(*) FROM log_default"), "1001");
    // The worker can.
    client.run("SELECT audit_db.manage_table('log', premake => 2)");
    wait_until("the rows are in their month", SOON, || {
        client.rows("SELECT tableoid::regclass, count(*) FROM log GROUP BY 1")
            == [["log_2025_01", "1001"]]
    });
    assert_eq!(failures(&mut client), NONE);
}

/// A reader keeps the default busy, a maker wants it: writers wait for one attempt of the maker, not for the reader.
#[test]
fn writers_wait_for_an_attempt_only() {
    let mut client = database("w_wait");
    client.run(
        "CREATE TABLE log (at timestamptz NOT NULL) PARTITION BY RANGE (at);
         SELECT audit_db.manage_table('log', premake => 1);
         INSERT INTO log VALUES (now())",
    );
    let (mut reader, mut maker) = (CLUSTER.connect("w_wait"), CLUSTER.connect("w_wait"));
    std::thread::scope(|scope| {
        let reading = scope.spawn(move || {
            reader
                .value("SELECT clock_timestamp() FROM (SELECT pg_sleep(3) FROM log OFFSET 0) slept")
        });
        wait_until("the reader reads", SOON, || {
            client.value("SELECT count(*) FROM pg_locks WHERE relation = 'log_default'::regclass AND mode = 'AccessShareLock' AND pid <> pg_backend_pid()") == "1"
        });
        let making = scope.spawn(move || {
            maker.run("SET audit_db.lock_retry = '30s'; SELECT audit_db.create_partition('log', '2025-01-01')");
            maker.value("SELECT clock_timestamp()")
        });
        let mut longest = Duration::ZERO;
        let mut inserted = 0;
        while !making.is_finished() {
            let started = Instant::now();
            client.run("INSERT INTO log VALUES ('2024-05-05 00:00+00')");
            longest = longest.max(started.elapsed());
            inserted += 1;
            // Fewer than a default may hold for the maker.
            wait_until("a little time has passed", SOON, || {
                started.elapsed() > Duration::from_millis(10)
            });
        }
        let (read, made) = (reading.join().unwrap(), making.join().unwrap());
        assert!(
            read < made,
            "the maker got through before the reader was done"
        );
        println!("{inserted} inserts, the longest took {longest:?}");
        assert!(longest < Duration::from_secs(2), "{longest:?}");
    });
    assert!(exists(&mut client, "log_2025_01"));
}

#[test]
fn a_standby_reads_and_works_after_promotion() {
    let primary = Cluster::builder()
        .fast()
        .set("audit_db.maintenance_interval", "100ms")
        .start();
    let mut client = primary.database("pair");
    client.run(
        "CREATE TABLE log (at timestamptz NOT NULL) PARTITION BY RANGE (at);
         SELECT audit_db.manage_table('log', premake => 1);
         INSERT INTO log VALUES (now())",
    );
    let standby = Cluster::builder()
        .fast()
        .set("audit_db.maintenance_interval", "100ms")
        .start_standby_of(&primary);
    let mut reader = standby.connect("pair");
    client.run("INSERT INTO log VALUES (now())");
    wait_until("the standby follows", SOON, || {
        reader.value("SELECT count(*) FROM log") == "2"
    });
    assert!(reader.holds("SELECT pg_is_in_recovery()"));
    let info = "SELECT partition, range_start, range_end FROM audit_db.partition_info ORDER BY 2";
    assert_eq!(reader.rows(info), client.rows(info));
    reader.run("SELECT * FROM audit_db.workers; SELECT * FROM audit_db.events_log; SELECT * FROM audit_db.managed_tables");
    for sql in [
        "SELECT audit_db.create_audit_log('other_log')",
        "SELECT audit_db.manage_table('log', premake => 4)",
        "SELECT audit_db.unmanage_table('log')",
        "SELECT audit_db.create_partition('log', '2019-01-01')",
        "SELECT audit_db.create_partitions('log', '2019-01-01', 2)",
        "SELECT * FROM audit_db.drop_expired_partitions('log')",
        "SELECT * FROM audit_db.drop_expired_partitions()",
        "CREATE EXTENSION audit_db",
        "DROP EXTENSION audit_db",
    ] {
        let expected = if sql.starts_with("CREATE EXT") {
            ["25006", "42710"]
        } else {
            ["25006"; 2]
        };
        let sqlstate = reader.sqlstate(sql);
        assert!(expected.contains(&sqlstate.as_str()), "{sql}: {sqlstate}");
    }
    assert_eq!(
        reader.rows("SELECT * FROM audit_db.drop_expired_partitions('log', dry_run => true)"),
        Vec::<Vec<String>>::new()
    );
    let ours = "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'audit_db%'";
    assert_eq!(reader.value(ours), "0");
    assert_eq!(reader.value("SELECT count(*) FROM audit_db.workers"), "0");

    standby.promote();
    wait_until("the new primary has a worker", SOON, || {
        reader.column("SELECT state FROM audit_db.workers") == ["idle"]
    });
    let next = format!("log_{}", month(&mut reader, 1));
    reader.run(&format!("DROP TABLE {next}"));
    wait_until("the month is made again", SOON, || {
        exists(&mut reader, &next)
    });
}

/// While the worker turns round every 100 ms, so that it looks at tables that are half restored.
#[test]
fn a_dump_brings_everything_back() {
    use audit_db_e2e::tools::{command, run};
    let cluster = Cluster::builder()
        .fast()
        .set("audit_db.maintenance_interval", "100ms")
        .start();
    let mut client = cluster.database("origin");
    client.run(
        "SELECT audit_db.create_audit_log('log', premake => 6, time_zone => 'Europe/Berlin');
         SELECT audit_db.create_audit_log('other', 'weekly', premake => 3, retention => NULL);
         SELECT audit_db.manage_table('log', premake => 6, retention => '3 years', retention_action => 'detach',
                                      time_zone => 'Europe/Berlin', storage_parameters => ARRAY['fillfactor=90']);
         INSERT INTO log (\"timestamp\", action, status, metadata)
         SELECT now() - n * interval '13 hours', 'a' || n % 7, 's', jsonb_build_object('n', n) FROM generate_series(1, 900) n",
    );
    wait_until("the worker has emptied the default", SOON, || {
        client.value("SELECT count(*) FROM log_default") == "0"
    });
    let state = [
        "SELECT parent, partition_interval, premake, retention, retention_action, time_zone, default_partition,
                storage_parameters FROM audit_db.managed_tables ORDER BY 1",
        "SELECT parent, partition, range_start, range_end, is_default FROM audit_db.partition_info ORDER BY 1, 3, 2",
        "SELECT count(*), md5(string_agg(log::text, ',' ORDER BY id)), max(id) FROM log",
        "SELECT tableoid::regclass::text, count(*) FROM log GROUP BY 1 ORDER BY 1",
        "SELECT c.relname, i.indisvalid, pg_get_indexdef(c.oid) FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
          WHERE c.relnamespace = 'public'::regnamespace ORDER BY 1",
        "SELECT relname, reloptions FROM pg_class WHERE relname LIKE 'log%' AND relkind = 'r' ORDER BY 1",
    ];
    let before = state.map(|sql| client.rows(sql));
    assert!(before[4].iter().all(|index| index[1] == "t"));
    // The log of what happened is the old database's; settings and rows are what must come back.
    let dump = cluster.folder().join("dump");
    let connection = |program: &str| {
        let mut command = command(program);
        command.args(["-U", "postgres", "-h"]).arg(cluster.socket());
        command
    };
    run(connection("pg_dump")
        .args(["-Fc", "-d", "origin", "-f"])
        .arg(&dump));
    let script = cluster.folder().join("dump.sql");
    run(connection("pg_dump")
        .args(["-d", "origin", "-f"])
        .arg(&script));
    for (name, restore) in [("by_psql", "psql"), ("by_jobs", "pg_restore")] {
        drop(cluster.empty_database(name));
        let mut restore = connection(restore);
        match name {
            "by_psql" => restore
                .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", name, "-f"])
                .arg(&script),
            _ => restore.args(["-e", "-j", "2", "-d", name]).arg(&dump),
        };
        run(&mut restore);
        let mut copy = cluster.connect(name);
        let asked = copy.value("SELECT clock_timestamp()");
        wait_until("the worker has done a cycle in the copy", SOON, || {
            copy.value(&format!(
                "SELECT count(*) FROM audit_db.workers WHERE database = current_database() AND last_cycle > '{asked}'"
            )) == "1"
        });
        for (sql, expected) in state.iter().zip(&before) {
            assert_eq!(&copy.rows(sql), expected, "{name}: {sql}");
        }
        // The copy is looked after.
        let next = format!(
            "log_{}",
            copy.value(
                "SELECT to_char(now() AT TIME ZONE 'Europe/Berlin' + interval '1 month', 'YYYY_MM')"
            )
        );
        copy.run(&format!("DROP TABLE {next}"));
        wait_until("the month is made again", SOON, || exists(&mut copy, &next));
        // And survives without us.
        copy.run("DROP EXTENSION audit_db CASCADE; INSERT INTO log (\"timestamp\", action, status) VALUES (now(), 'a', 's')");
        assert_eq!(copy.value("SELECT count(*) FROM log"), "901");
    }
}
