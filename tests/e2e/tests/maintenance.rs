//! Statistics and indexes: what is due, what is done about it, and what that costs those who write meanwhile.

use audit_db_e2e::{Client, Cluster, SOON, Session, Shared, wait_until};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

static CLUSTER: Shared = Shared::new(|| {
    Cluster::builder()
        .fast()
        .set("audit_db.maintenance_interval", "1h")
        .set("autovacuum", "off")
        .set("shared_buffers", "256MB")
        .set("max_wal_size", "4GB")
        .set("log_min_messages", "fatal")
});

/// A database with the standard table, which knows last month and this one.
fn database(name: &str) -> Client {
    let mut client = CLUSTER.database(name);
    client.run(
        "SET client_min_messages = error; SELECT audit_db.create_audit_log(premake => 1);
         SELECT audit_db.create_partitions('audit_log', now() - interval '1 month', 1)",
    );
    audit_db_e2e::wait_until_workers_rest(&mut client);
    client
}

/// Rows from a month ago on, so many a month.
fn load(client: &mut Client, months_ago: u32, rows: u32) {
    client.run(&format!(
        "INSERT INTO audit_log (\"timestamp\", action, status, principal_id, resource_type, resource_id, metadata)
         SELECT date_trunc('month', now() - interval '{months_ago} months') + i * (interval '1 day' / {rows}),
                CASE WHEN i % 100 = 0 THEN 'patient.export' ELSE 'patient.read' END, 'success', (i * 7919 % 5000)::text, 'patient',
                md5((i % 20000)::text), '{{\"ward\": \"7b\"}}'
           FROM generate_series(1, {rows}) i"
    ));
    client.run("SELECT pg_stat_force_next_flush()");
}

fn this_month(client: &mut Client, months_ago: u32) -> String {
    client.value(&format!(
        "SELECT 'public.audit_log_' || to_char(now() AT TIME ZONE 'UTC' - interval '{months_ago} months', 'YYYY_MM')"
    ))
}

/// Step, object and action of each row.
fn steps(client: &mut Client, arguments: &str) -> Vec<Vec<String>> {
    client.rows(&format!(
        "SELECT step, object, action FROM audit_db.maintain_partitions({arguments})"
    ))
}

/// What a run has done, by its job's name.
fn done(client: &mut Client, job: &str) -> Vec<Vec<String>> {
    client.rows(&format!(
        "SELECT s->>'step', s->>'object', s->>'action', s->>'detail'
           FROM (SELECT steps FROM audit_db.job_runs WHERE name = '{job}' ORDER BY id DESC LIMIT 1) r, jsonb_array_elements(r.steps) s"
    ))
}

fn job(client: &mut Client, name: &str, task: &str, args: &str) {
    client.run(&format!(
        "SELECT audit_db.schedule_job('{name}', '0 0 1 1 *', '{task}', '{args}')"
    ));
}

#[test]
fn a_dry_run_lists_what_the_call_then_does() {
    let mut client = database("dry");
    // Rows for months that do not exist, a month that has changed, one that has expired, and a bloated index.
    load(&mut client, 0, 60_000);
    client.run("DELETE FROM audit_log WHERE id % 10 <> 0");
    client.run("SELECT pg_stat_force_next_flush()");
    client.run("VACUUM (ANALYZE) audit_log");
    load(&mut client, 1, 1_000);
    client.run(
        "INSERT INTO audit_log (\"timestamp\", action, status) SELECT now() - i * interval '1 month', 'late', 'ok' FROM generate_series(3, 6) i,
                generate_series(1, 20);
         SELECT audit_db.create_partitions('audit_log', now() - interval '8 years', 2)",
    );
    let mut waiting = CLUSTER.connect("dry");
    waiting.run("SET audit_db.lock_timeout = '5s'");
    let dry = steps(&mut waiting, "dry_run => true");
    assert_eq!(steps(&mut waiting, "dry_run => true"), dry);
    let real = steps(&mut waiting, "");
    assert_eq!(real, dry);
    let of = |step: &str| real.iter().filter(|row| row[0] == step).count();
    assert_eq!(of("create partition"), 4, "{real:#?}");
    assert_eq!(of("retention"), 2, "{real:#?}");
    // The months that were made, the one that has changed, and the default partition.
    assert_eq!(of("analyze"), 6, "{real:#?}");
    assert_eq!(of("update statistics"), 1, "{real:#?}");
    assert_eq!(of("reindex"), 4, "{real:#?}");
    assert!(
        real.iter()
            .filter(|row| row[0] == "reindex")
            .all(|row| row[2] == "queued")
    );
    // What was queued is done once the caller lets go of it.
    wait_until("the indexes are rebuilt", SOON, || {
        client.holds(
            "SELECT EXISTS (SELECT FROM audit_db.job_runs WHERE name = 'maintain_partitions public.audit_log' AND status = 'succeeded')",
        )
    });
    assert_eq!(
        done(&mut client, "maintain_partitions public.audit_log").len(),
        of("reindex")
    );
    // Then there is nothing left to do.
    assert_eq!(
        steps(&mut waiting, "dry_run => true"),
        Vec::<Vec<String>>::new()
    );
    assert_eq!(steps(&mut waiting, ""), Vec::<Vec<String>>::new());
}

#[test]
fn the_call_says_what_the_callers_own_locks_keep_it_from() {
    let mut client = database("locked");
    client.run("BEGIN; LOCK TABLE audit_log IN ROW EXCLUSIVE MODE");
    assert_eq!(
        client.sqlstate("SELECT * FROM audit_db.maintain_partitions('audit_log')"),
        "55006"
    );
    client.run("ROLLBACK; BEGIN; LOCK TABLE audit_log IN ROW EXCLUSIVE MODE");
    let skipped = steps(&mut client, "");
    assert_eq!(
        skipped,
        [[
            "maintenance",
            "public.audit_log",
            "skip: table public.audit_log is in use by the open transaction"
        ]]
    );
    client.run("ROLLBACK");
}

/// The plan of a dashboard's query, and what the planner expects of it.
fn plan(client: &mut Client, query: &str) -> (String, f64) {
    let text = client
        .column(&format!("EXPLAIN (COSTS ON) {query}"))
        .join("\n");
    let scan = text
        .lines()
        .find(|line| line.contains("Scan") && line.contains("audit_log_"))
        .unwrap_or_else(|| panic!("{text}"));
    let expected = scan
        .split("rows=")
        .nth(1)
        .and_then(|rest| rest.split(' ').next())
        .and_then(|rows| rows.parse().ok())
        .unwrap_or_else(|| panic!("{scan}"));
    (text, expected)
}

#[test]
fn a_bad_plan_becomes_a_good_one() {
    let mut client = database("plans");
    load(&mut client, 0, 100_000);
    client.run(
        "CREATE TABLE wards (ward int PRIMARY KEY); INSERT INTO wards SELECT generate_series(1, 5000); ANALYZE wards;
         SET max_parallel_workers_per_gather = 0",
    );
    let query = "SELECT count(*) FROM audit_log l JOIN wards w ON w.ward::text = l.principal_id
                  WHERE l.action = 'patient.read' AND l.\"timestamp\" >= date_trunc('month', now())";
    let groups = "EXPLAIN SELECT principal_id, count(*) FROM audit_log GROUP BY principal_id";
    let expected_groups = |client: &mut Client| -> i64 {
        let line = &client.column(groups)[0];
        line.split("rows=")
            .nth(1)
            .unwrap()
            .split(' ')
            .next()
            .unwrap()
            .parse()
            .unwrap()
    };
    let (before, rows_before) = plan(&mut client, query);
    let groups_before = expected_groups(&mut client);
    // 99 % of the rows, of which the planner expects next to none.
    assert!(rows_before < 5_000.0, "{before}");
    assert!(
        before.contains("audit_log_") && !before.contains("Seq Scan on audit_log_2"),
        "{before}"
    );
    assert!(groups_before <= 200, "{groups_before}");

    job(&mut client, "nightly", "analyze", "{}");
    client.run("CALL audit_db.run_job('nightly')");
    let (after, rows_after) = plan(&mut client, query);
    assert!((90_000.0..110_000.0).contains(&rows_after), "{after}");
    assert!(after.contains("Seq Scan on audit_log_2"), "{after}");
    let groups_after = expected_groups(&mut client);
    assert!((4_000..6_000).contains(&groups_after), "{groups_after}");
    println!(
        "expected rows {rows_before} -> {rows_after} of 99,000; groups {groups_before} -> {groups_after} of 5,000"
    );
}

#[test]
fn only_what_has_changed_is_analyzed_and_the_parent_alone() {
    let mut client = database("changed");
    load(&mut client, 1, 10_000);
    load(&mut client, 0, 10_000);
    let (last, this) = (this_month(&mut client, 1), this_month(&mut client, 0));
    job(&mut client, "stats", "analyze", "{}");
    client.run("CALL audit_db.run_job('stats')");
    let all = [
        vec![
            "analyze".to_owned(),
            last.clone(),
            "analyze".to_owned(),
            "it was never analyzed".to_owned(),
        ],
        vec![
            "analyze".to_owned(),
            this.clone(),
            "analyze".to_owned(),
            "it was never analyzed".to_owned(),
        ],
        vec![
            "update statistics".to_owned(),
            "public.audit_log".to_owned(),
            "analyze".to_owned(),
            "it was never analyzed".to_owned(),
        ],
    ];
    assert_eq!(done(&mut client, "stats"), all);
    client.run("CALL audit_db.run_job('stats')");
    assert_eq!(done(&mut client, "stats"), Vec::<Vec<String>>::new());
    // A tenth and a little more.
    load(&mut client, 0, 1_100);
    wait_until("the statistics know", SOON, || {
        client.holds(&format!("SELECT n_mod_since_analyze = 1100 FROM pg_stat_user_tables WHERE relid = '{this}'::regclass"))
    });
    let times = "SELECT relname, last_analyze FROM pg_stat_user_tables WHERE schemaname = 'public' AND last_analyze IS NOT NULL ORDER BY 1";
    let before = client.rows(times);
    client.run("CALL audit_db.run_job('stats')");
    assert_eq!(
        done(&mut client, "stats"),
        [
            ["analyze", &this, "analyze", "1100 rows have changed"],
            [
                "update statistics",
                "public.audit_log",
                "analyze",
                "its partitions were analyzed, or will be"
            ],
        ]
    );
    let after = client.rows(times);
    let changed: Vec<&str> = before
        .iter()
        .zip(&after)
        .filter(|(before, after)| before != after)
        .map(|(_, after)| after[0].as_str())
        .collect();
    assert_eq!(changed, ["audit_log", this.trim_start_matches("public.")]);
    // The planner knows both: the rows of all months together, and the histogram of the parent.
    assert_eq!(
        client.value("SELECT count(*) FROM pg_stats WHERE tablename = 'audit_log' AND inherited AND attname = 'timestamp' AND histogram_bounds IS NOT NULL"),
        "1"
    );
    // A partition that somebody holds is given up after a while, on record, and the others are not.
    load(&mut client, 1, 2_000);
    load(&mut client, 0, 3_000);
    wait_until("the statistics know", SOON, || {
        client.number("SELECT count(*) FROM pg_stat_user_tables WHERE n_mod_since_analyze >= 2000")
            == 2
    });
    CLUSTER.reload(&[("audit_db.lock_retry", "300ms")]);
    let mut holder = CLUSTER.connect("changed");
    holder.run(&format!("BEGIN; LOCK TABLE {last}"));
    assert_eq!(client.sqlstate("CALL audit_db.run_job('stats')"), "55P03");
    let steps = done(&mut client, "stats");
    assert!(
        steps[0][1] == last && steps[0][2].starts_with("failed: "),
        "{steps:#?}"
    );
    assert!(
        steps[1][1] == this && steps[1][2] == "analyze",
        "{steps:#?}"
    );
    holder.run("ROLLBACK");
    CLUSTER.reload(&[("audit_db.lock_retry", "10s")]);
}

/// Rows that come and go leave indexes larger than they need to be.
fn churn(client: &mut Client) {
    load(client, 0, 200_000);
    let month = this_month(client, 0);
    client.run(&format!(
        "ANALYZE {month}; UPDATE audit_log SET resource_id = md5(resource_id) WHERE id % 2 = 0; DELETE FROM audit_log WHERE id % 5 <> 0"
    ));
    client.run("SELECT pg_stat_force_next_flush()");
    client.run(&format!("VACUUM (ANALYZE, INDEX_CLEANUP ON) {month}"));
}

fn index_bytes(client: &mut Client) -> i64 {
    let month = this_month(client, 0);
    client.number(&format!("SELECT pg_indexes_size('{month}')"))
}

#[test]
fn bloated_indexes_shrink_while_others_write() {
    let mut client = database("bloat");
    churn(&mut client);
    let before = index_bytes(&mut client);
    job(
        &mut client,
        "rebuild",
        "reindex",
        "{\"table\": \"public.audit_log\"}",
    );
    let stop = AtomicBool::new(false);
    let (longest, written) = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..4)
            .map(|writer| {
                let stop = &stop;
                scope.spawn(move || {
                    let mut session = CLUSTER.connect("bloat");
                    let (mut longest, mut written) = (Duration::ZERO, 0_i64);
                    while !stop.load(Ordering::Relaxed) {
                        let begun = Instant::now();
                        session.run(&format!(
                            "INSERT INTO audit_log (\"timestamp\", action, status, principal_id) VALUES (now(), 'written', 'ok', '{writer}')"
                        ));
                        longest = longest.max(begun.elapsed());
                        written += 1;
                    }
                    (longest, written)
                })
            })
            .collect();
        client.run("CALL audit_db.run_job('rebuild')");
        stop.store(true, Ordering::Relaxed);
        writers
            .into_iter()
            .map(|writer| writer.join().unwrap())
            .fold((Duration::ZERO, 0), |(longest, sum), (one, written)| {
                (longest.max(one), sum + written)
            })
    });
    let steps = done(&mut client, "rebuild");
    let after = index_bytes(&mut client);
    println!(
        "{} indexes rebuilt, {before} bytes before, {after} after; meanwhile {written} rows by 4 writers, longest INSERT {longest:?}",
        steps.len()
    );
    for step in &steps {
        println!("{}: {}", step[1], step[3]);
    }
    assert!(steps.len() >= 4, "{steps:#?}");
    assert!(after < before / 2, "{before} -> {after}");
    assert_eq!(
        client.number("SELECT count(*) FROM audit_log WHERE action = 'written'"),
        written
    );
    assert_eq!(
        client.value("SELECT count(*) FROM pg_index WHERE NOT indisvalid"),
        "0"
    );
    // Each partition's index is still its table's.
    assert_eq!(
        client.value(
            "SELECT count(*) FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid AND c.relispartition
              WHERE NOT EXISTS (SELECT FROM pg_inherits h WHERE h.inhrelid = i.indexrelid)"
        ),
        "0"
    );
    // The rows that were written meanwhile may make statistics due, but no index.
    client.run("CALL audit_db.run_job('rebuild')");
    let steps = done(&mut client, "rebuild");
    assert!(steps.iter().all(|step| step[0] == "analyze"), "{steps:#?}");
}

#[test]
fn limits_of_a_rebuild() {
    let mut client = database("limits");
    churn(&mut client);
    let before = index_bytes(&mut client);
    let window = client.value(
        "SELECT to_char(t + interval '2 hours', 'HH24:MI') || '-' || to_char(t + interval '3 hours', 'HH24:MI') FROM (SELECT now() AT TIME ZONE 'UTC' AS t) s",
    );
    job(
        &mut client,
        "closed",
        "reindex",
        &format!("{{\"window\": \"{window}\"}}"),
    );
    client.run("CALL audit_db.run_job('closed')");
    let skipped = done(&mut client, "closed");
    assert!(!skipped.is_empty());
    assert!(
        skipped
            .iter()
            .all(|step| step[2] == "skip: the maintenance window has closed"),
        "{skipped:#?}"
    );
    job(&mut client, "small", "reindex", "{\"max_size\": 100000}");
    client.run("CALL audit_db.run_job('small')");
    assert_eq!(done(&mut client, "small"), Vec::<Vec<String>>::new());
    job(&mut client, "strict", "reindex", "{\"min_bloat\": 1}");
    client.run("CALL audit_db.run_job('strict')");
    assert_eq!(done(&mut client, "strict"), Vec::<Vec<String>>::new());
    assert_eq!(index_bytes(&mut client), before);
    // A rebuild waits for a transaction that is older; what it has made by then goes when its time is over.
    let mut holder = CLUSTER.connect("limits");
    holder.run(
        "BEGIN; INSERT INTO audit_log (\"timestamp\", action, status) VALUES (now(), 'held', 'ok')",
    );
    job(&mut client, "short", "reindex", "{\"timeout\": \"1s\"}");
    assert_eq!(client.sqlstate("CALL audit_db.run_job('short')"), "57014");
    assert_eq!(
        client.value("SELECT status FROM audit_db.job_runs WHERE name = 'short'"),
        "failed"
    );
    holder.run("COMMIT");
    // What it could not take back while the other held the table, the next run does.
    job(&mut client, "next", "reindex", "{\"min_bloat\": 1}");
    client.run("CALL audit_db.run_job('next')");
    assert_eq!(
        client.value("SELECT count(*) FROM pg_index WHERE NOT indisvalid"),
        "0"
    );
}

#[test]
fn leftovers_of_an_interrupted_rebuild_go_and_invalid_indexes_are_rebuilt() {
    let mut client = database("leftovers");
    load(&mut client, 0, 1_000);
    client.run("ANALYZE audit_log");
    let month = this_month(&mut client, 0);
    let mut holder = CLUSTER.connect("leftovers");
    holder.run(
        "BEGIN; INSERT INTO audit_log (\"timestamp\", action, status) VALUES (now(), 'held', 'ok')",
    );
    let mut interrupted = CLUSTER.connect("leftovers");
    for command in [
        format!("REINDEX TABLE CONCURRENTLY {month}"),
        format!("CREATE INDEX CONCURRENTLY own_index ON {month} (status)"),
    ] {
        interrupted.run("SET statement_timeout = '500ms'");
        assert_eq!(interrupted.sqlstate(&command), "57014");
    }
    holder.run("COMMIT");
    let invalid = "SELECT count(*) FROM pg_index WHERE NOT indisvalid";
    let left = client.number(invalid);
    assert!(left >= 2, "{left}");
    // Somebody else's rebuild that is going on is none of ours.
    job(&mut client, "sweep", "reindex", "{}");
    holder.run(
        "BEGIN; INSERT INTO audit_log (\"timestamp\", action, status) VALUES (now(), 'held', 'ok')",
    );
    let mut other = CLUSTER.connect("leftovers");
    let index = client.value(&format!(
        "SELECT indexrelid::regclass FROM pg_index WHERE indrelid = '{month}'::regclass AND indisprimary"
    ));
    let going_on =
        std::thread::spawn(move || other.sqlstate(&format!("REINDEX INDEX CONCURRENTLY {index}")));
    wait_until("it goes on", SOON, || {
        client.value("SELECT count(*) FROM pg_stat_progress_create_index") != "0"
    });
    client.run("CALL audit_db.run_job('sweep')");
    assert_eq!(done(&mut client, "sweep"), Vec::<Vec<String>>::new());
    holder.run("COMMIT");
    assert_eq!(going_on.join().unwrap(), "00000");
    wait_until("nothing goes on", SOON, || {
        client.value("SELECT count(*) FROM pg_stat_progress_create_index") == "0"
    });

    client.run("CALL audit_db.run_job('sweep')");
    let steps = done(&mut client, "sweep");
    assert!(steps.iter().any(|step| step[2] == "drop"), "{steps:#?}");
    assert!(
        steps
            .iter()
            .any(|step| step[1] == "public.own_index" && step[2] == "reindex"),
        "{steps:#?}"
    );
    assert_eq!(client.number(invalid), 0, "{steps:#?}");
    assert_eq!(
        client.value("SELECT indisvalid FROM pg_index WHERE indexrelid = 'own_index'::regclass"),
        "t"
    );
}

/// What the owner of a table has put into it runs with his rights, whoever the job belongs to.
#[test]
fn tables_are_looked_after_as_their_owners() {
    let mut client = CLUSTER.database("as_owner");
    client.run(
        "CREATE ROLE careful LOGIN; GRANT CREATE ON SCHEMA public TO careful;
         GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA audit_db TO careful; GRANT EXECUTE ON PROCEDURE audit_db.run_job TO careful",
    );
    let mut owner = CLUSTER.connect_as("as_owner", "careful");
    owner.run(
        "SET client_min_messages = error;
         CREATE FUNCTION public.checked(text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS
            $$BEGIN IF current_user <> 'careful' THEN RAISE 'run by %', current_user; END IF; RETURN $1; END$$;
         CREATE TABLE log (at timestamptz NOT NULL, who text) PARTITION BY RANGE (at);
         CREATE INDEX log_checked ON log (public.checked(who));
         SELECT audit_db.manage_table('log', premake => 1);
         INSERT INTO log SELECT now(), i::text FROM generate_series(1, 60000) i; DELETE FROM log WHERE who::int % 10 <> 0",
    );
    owner.run("VACUUM log");
    owner.run("INSERT INTO log SELECT now() - interval '2 months', 'late'");
    for client in [&mut owner, &mut client] {
        let steps = steps(client, "reindex_if_needed => false");
        assert!(
            steps.iter().all(|step| !step[2].starts_with("failed")),
            "{steps:#?}"
        );
    }
    job(&mut owner, "own", "maintain_partitions", "{}");
    owner.run("CALL audit_db.run_job('own')");
    let steps = done(&mut owner, "own");
    assert!(steps.iter().any(|step| step[2] == "reindex"), "{steps:#?}");
    client.run("DELETE FROM log WHERE who::int % 100 <> 0 AND who <> 'late'");
    client.run("VACUUM (ANALYZE) log");
    client.run("CALL audit_db.run_job('maintenance')");
    assert_eq!(
        client.value("SELECT count(*) FROM audit_db.job_runs WHERE status <> 'succeeded'"),
        "0"
    );
    // Another role's tables are not his.
    client.run("CREATE TABLE public.theirs (x int); INSERT INTO theirs VALUES (1)");
    assert_eq!(
        owner.sqlstate("SELECT audit_db.schedule_job('x', '@daily', 'analyze', '{\"table\": \"public.theirs\"}')"),
        "42501"
    );
    job(
        &mut client,
        "plain",
        "analyze",
        "{\"table\": \"public.theirs\"}",
    );
    client.run("CALL audit_db.run_job('plain')");
    assert_eq!(done(&mut client, "plain").len(), 1);
}

/// A job whose work could not be done has not succeeded, also where no step stands for what failed.
#[test]
fn what_cannot_be_planned_is_a_failure() {
    let mut client = database("unplanned");
    client.run("CREATE INDEX lame ON ONLY audit_log (status)");
    client.run("SELECT audit_db.unmanage_table('audit_log'); SELECT audit_db.manage_table('audit_log', premake => 9)");
    assert_eq!(
        client.sqlstate("CALL audit_db.run_job('maintenance')"),
        "55000"
    );
    let steps = done(&mut client, "maintenance");
    assert!(
        steps.iter().any(|step| step[2].starts_with("failed: ")),
        "{steps:#?}"
    );
    // A job that can no longer run can be switched off.
    job(
        &mut client,
        "broken",
        "analyze",
        "{\"table\": \"public.audit_log\"}",
    );
    client.run("DROP TABLE audit_log");
    client.run("SELECT audit_db.alter_job('broken', enabled => false)");
    assert_eq!(
        client.sqlstate("SELECT audit_db.alter_job('broken', enabled => true)"),
        "42P01"
    );
}

/// Tables often belong to a role that cannot log in.
#[test]
fn who_acts_for_an_owner_has_his_indexes_rebuilt() {
    let mut client = CLUSTER.database("acting");
    client.run(
        "CREATE ROLE audit_group; CREATE ROLE acting LOGIN; GRANT audit_group TO acting; GRANT CREATE ON SCHEMA public TO audit_group;
         GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA audit_db TO audit_group",
    );
    let mut acting = CLUSTER.connect_as("acting", "acting");
    acting.run(
        "SET client_min_messages = error; SET ROLE audit_group; SELECT audit_db.create_audit_log(premake => 1)",
    );
    load(&mut acting, 0, 60_000);
    acting.run("DELETE FROM audit_log WHERE id % 10 <> 0");
    acting.run("SELECT pg_stat_force_next_flush()");
    acting.run("VACUUM (ANALYZE) audit_log");
    let steps = steps(&mut acting, "");
    assert_eq!(steps.len(), 4, "{steps:#?}");
    assert!(steps.iter().all(|step| step[2] == "queued"), "{steps:#?}");
    wait_until("the indexes are rebuilt", SOON, || {
        client.rows("SELECT owner, status FROM audit_db.job_runs") == [["acting", "succeeded"]]
    });
    // Leftovers go too, those of TOAST tables as well, which their owner cannot even name.
    let month = this_month(&mut client, 0);
    let mut holder = CLUSTER.connect("acting");
    holder.run(
        "BEGIN; INSERT INTO audit_log (\"timestamp\", action, status) VALUES (now(), 'held', 'ok')",
    );
    acting.run("SET statement_timeout = '500ms'");
    assert_eq!(
        acting.sqlstate(&format!("REINDEX TABLE CONCURRENTLY {month}")),
        "57014"
    );
    holder.run("COMMIT");
    let invalid = "SELECT count(*) FROM pg_index WHERE NOT indisvalid";
    assert!(client.number(invalid) > 1);
    acting.run("RESET statement_timeout; RESET ROLE");
    client.run("GRANT EXECUTE ON PROCEDURE audit_db.run_job TO acting");
    job(&mut acting, "sweep", "reindex", "{}");
    acting.run("CALL audit_db.run_job('sweep')");
    assert_eq!(client.number(invalid), 0);
}

#[test]
fn vacuum_and_optimize() {
    let mut client = database("vacuum");
    churn(&mut client);
    let month = this_month(&mut client, 0);
    client.run("DELETE FROM audit_log WHERE id % 2 = 0");
    client.run("SELECT pg_stat_force_next_flush()");
    wait_until("the statistics know", SOON, || {
        client.holds(&format!(
            "SELECT n_dead_tup > 10000 FROM pg_stat_user_tables WHERE relid = '{month}'::regclass"
        ))
    });
    job(&mut client, "v", "vacuum", "{\"freeze\": true}");
    client.run("CALL audit_db.run_job('v')");
    let steps = done(&mut client, "v");
    assert_eq!(
        (steps.len(), steps[0][1].as_str(), steps[0][2].as_str()),
        (1, month.as_str(), "vacuum")
    );
    assert_eq!(
        client.value(&format!(
            "SELECT n_dead_tup FROM pg_stat_user_tables WHERE relid = '{month}'::regclass"
        )),
        "0"
    );
    client.run("CALL audit_db.run_job('optimize')");
    assert_eq!(
        done(&mut client, "optimize"),
        [[
            "optimize",
            "",
            "skip: audit_db.auto_optimization is off",
            "null"
        ]]
    );
    CLUSTER.reload(&[("audit_db.auto_optimization", "on")]);
    client.run("CALL audit_db.run_job('optimize')");
    let steps = done(&mut client, "optimize");
    let rebuilt: Vec<_> = steps.iter().filter(|step| step[0] == "reindex").collect();
    assert_eq!(rebuilt.len(), 4, "{steps:#?}");
    // What the statistics have promised is what came of it: within the per cent that they are rounded to, and a tenth.
    for step in rebuilt {
        let numbers: Vec<f64> = step[3]
            .split(|letter: char| !letter.is_ascii_digit())
            .filter_map(|word| word.parse().ok())
            .collect();
        let [bloat, size, _, made] = numbers[..] else {
            panic!("{}", step[3]);
        };
        let promised = size * (1.0 - bloat / 100.0);
        assert!(
            (promised - made).abs() <= 0.1 * made + 0.005 * size,
            "{}: {promised}",
            step[3]
        );
    }
    CLUSTER.reload(&[("audit_db.auto_optimization", "off")]);
}
