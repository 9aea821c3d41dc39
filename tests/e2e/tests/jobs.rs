//! Jobs: when they run, as whom, and what is on record of those that did not. No test waits for a clock: the setting
//! audit_db.job_clock_offset moves the one that jobs go by.

use audit_db_e2e::{Client, Cluster, Mode, SOON, Session, Shared, wait_until};

static CLUSTER: Shared = Shared::new(|| {
    Cluster::builder()
        .fast()
        .set("audit_db.maintenance_interval", "1h")
        .set("log_min_messages", "fatal")
});

const NO_CYCLE: &str = "1h";

fn cluster() -> Cluster {
    Cluster::builder()
        .fast()
        .set("audit_db.maintenance_interval", NO_CYCLE)
        .start()
}

/// Runs of a job as `status:how many`, in the order of the statuses.
fn runs(client: &mut Client, job: &str) -> String {
    client.value(&format!(
        "SELECT COALESCE(string_agg(status || ':' || n, ' ' ORDER BY status), '')
           FROM (SELECT status, count(*) AS n FROM audit_db.job_runs WHERE name = '{job}' GROUP BY status) s"
    ))
}

#[track_caller]
fn wait_for_runs(client: &mut Client, job: &str, expected: &str) {
    wait_until(&format!("{job}: {expected}"), SOON, || {
        runs(client, job) == expected
    });
}

/// A daily job that the scheduler has seen: only what becomes due from now on counts.
fn daily(client: &mut Client, name: &str, command: &str) {
    let command = command.replace('\'', "''");
    client.run(&format!(
        "SELECT audit_db.schedule_job('{name}', '0 3 * * *', 'sql', jsonb_build_object('command', '{command}'))"
    ));
    wait_until("the scheduler knows the job", SOON, || {
        client.holds(&format!(
            "SELECT EXISTS (SELECT FROM audit_db.job_slots WHERE name = '{name}')"
        ))
    });
}

fn move_clock(cluster: &Cluster, days: u32) {
    cluster.reload(&[("audit_db.job_clock_offset", &format!("{days}d"))]);
}

#[test]
fn a_job_runs_at_its_time_and_fifty_do_at_the_same_time() {
    let cluster = cluster();
    let mut client = cluster.database("times");
    client.run("CREATE TABLE ran (job int)");
    for job in 1..=50 {
        client.run(&format!(
            "SELECT audit_db.schedule_job('job {job}', '0 3 * * *', 'sql', '{{\"command\": \"INSERT INTO public.ran VALUES ({job})\"}}')"
        ));
    }
    wait_until("the scheduler knows the jobs", SOON, || {
        client.number("SELECT count(*) FROM audit_db.job_slots WHERE name LIKE 'job %'") == 50
    });
    assert_eq!(client.number("SELECT count(*) FROM ran"), 0);
    move_clock(&cluster, 1);
    wait_until("all have run", SOON, || {
        client.number("SELECT count(*) FROM audit_db.job_runs WHERE name LIKE 'job %' AND status = 'succeeded'") == 50
    });
    assert_eq!(
        client.rows("SELECT count(*), count(DISTINCT job) FROM ran"),
        [["50", "50"]]
    );
    // All for the same second, and never more at a time than may be.
    assert_eq!(
        client.value(
            "SELECT count(DISTINCT scheduled_for) FROM audit_db.job_runs WHERE name LIKE 'job %'"
        ),
        "1"
    );
    assert_eq!(
        client.value(
            "SELECT max(n) <= 2 FROM (SELECT (SELECT count(*) FROM audit_db.job_runs o
                WHERE o.started <= r.started AND o.finished > r.started) AS n FROM audit_db.job_runs r WHERE r.name LIKE 'job %') s"
        ),
        "t"
    );
    // The next day, the same again.
    move_clock(&cluster, 2);
    wait_until("all have run again", SOON, || {
        client.number("SELECT count(*) FROM ran") == 100
    });
    assert_eq!(
        client.value("SELECT count(*) FROM audit_db.job_runs WHERE status NOT IN ('succeeded', 'queued', 'running')"),
        "0"
    );
}

#[test]
fn what_was_missed_while_the_server_was_down_runs_once() {
    let cluster = cluster();
    let mut client = cluster.database("down");
    client.run("CREATE TABLE ran (at timestamptz DEFAULT clock_timestamp())");
    daily(
        &mut client,
        "night",
        "INSERT INTO public.ran DEFAULT VALUES",
    );
    drop(client);
    // The clock of jobs goes on by five days while the server is down.
    cluster.stop(Mode::Fast);
    cluster.write_settings(&[("audit_db.job_clock_offset", "5d")]);
    cluster.start();
    let mut client = cluster.connect("down");
    wait_for_runs(&mut client, "night", "missed:1 succeeded:1");
    assert_eq!(client.number("SELECT count(*) FROM ran"), 1);
    let message = client
        .value("SELECT message FROM audit_db.job_runs WHERE name = 'night' AND status = 'missed'");
    assert!(message.starts_with("missed 4 times from "), "{message}");
    // The one that ran stands for the last of the times.
    assert_eq!(
        client.value(
            "SELECT r.scheduled_for - m.scheduled_for FROM audit_db.job_runs r, audit_db.job_runs m
              WHERE r.name = 'night' AND m.name = 'night' AND r.status = 'succeeded' AND m.status = 'missed'"
        ),
        "4 days"
    );
    // Nothing more comes of a restart.
    drop(client);
    cluster.restart();
    let mut client = cluster.connect("down");
    move_clock(&cluster, 6);
    wait_for_runs(&mut client, "night", "missed:1 succeeded:2");
}

#[test]
fn a_job_that_is_killed_has_failed_and_runs_next_time() {
    let cluster = cluster();
    let mut client = cluster.database("killed");
    client.run("CREATE TABLE ran (); CREATE TABLE gate ()");
    daily(
        &mut client,
        "night",
        "INSERT INTO public.ran DEFAULT VALUES; TABLE public.gate",
    );
    let mut holder = cluster.connect("killed");
    holder.run("BEGIN; LOCK TABLE gate");
    move_clock(&cluster, 1);
    wait_for_runs(&mut client, "night", "running:1");
    let pid = client
        .number("SELECT pid FROM audit_db.job_runs WHERE name = 'night' AND status = 'running'");
    assert_eq!(
        client.value(&format!(
            "SELECT backend_type || ' ' || usename FROM pg_stat_activity WHERE pid = {pid}"
        )),
        "audit_db job postgres"
    );
    cluster.signal("KILL", u32::try_from(pid).unwrap());
    drop(holder);
    drop(client);
    let mut client = cluster.wait_for_connection("killed");
    wait_for_runs(&mut client, "night", "failed:1");
    assert_eq!(
        client.rows("SELECT sqlstate, message FROM audit_db.job_runs WHERE name = 'night'"),
        [["57P02", "the server ended while the job ran"]]
    );
    assert_eq!(client.number("SELECT count(*) FROM ran"), 0);
    move_clock(&cluster, 2);
    wait_for_runs(&mut client, "night", "failed:1 succeeded:1");
    assert_eq!(client.number("SELECT count(*) FROM ran"), 1);
}

#[test]
fn a_job_never_overlaps_itself() {
    let cluster = cluster();
    let mut client = cluster.database("overlap");
    client.run("CREATE TABLE gate ()");
    daily(&mut client, "long", "TABLE public.gate");
    let mut holder = cluster.connect("overlap");
    holder.run("BEGIN; LOCK TABLE gate");
    move_clock(&cluster, 1);
    wait_for_runs(&mut client, "long", "running:1");
    let run =
        client.value("SELECT id FROM audit_db.job_runs WHERE name = 'long' AND status = 'running'");
    move_clock(&cluster, 3);
    wait_for_runs(&mut client, "long", "missed:1 running:1");
    let message = client
        .value("SELECT message FROM audit_db.job_runs WHERE name = 'long' AND status = 'missed'");
    assert!(
        message.starts_with("missed 2 times from ")
            && message.ends_with(&format!("because run {run} still goes on")),
        "{message}"
    );
    // One that is submitted waits for its turn.
    client.run("SELECT audit_db.submit_job('long')");
    move_clock(&cluster, 4);
    wait_for_runs(&mut client, "long", "missed:2 queued:1 running:1");
    assert_eq!(
        client.value("SELECT running_since IS NOT NULL FROM audit_db.jobs WHERE name = 'long'"),
        "t"
    );
    holder.run("COMMIT");
    wait_for_runs(&mut client, "long", "missed:2 succeeded:2");
    assert_eq!(
        client.value("SELECT count(*) FROM audit_db.job_runs a, audit_db.job_runs b WHERE a.name = 'long' AND b.name = 'long' AND a.id < b.id AND b.started < a.finished"),
        "0"
    );
}

#[test]
fn a_long_job_keeps_no_other_waiting() {
    let mut client = CLUSTER.database("long");
    client.run("CREATE TABLE gate ()");
    daily(&mut client, "long", "TABLE public.gate");
    daily(&mut client, "short", "SELECT 1");
    let mut holder = CLUSTER.connect("long");
    holder.run("BEGIN; LOCK TABLE gate");
    client.run("SELECT audit_db.submit_job('long')");
    wait_for_runs(&mut client, "long", "running:1");
    for _ in 0..3 {
        client.run("CALL audit_db.run_job('short')");
    }
    client.run("SELECT audit_db.create_audit_log(premake => 1)");
    assert_eq!(
        client.outcome("SELECT audit_db.log_event('while.a.job.runs', durability => 'durable')"),
        Ok(String::new())
    );
    holder.run("COMMIT");
    wait_for_runs(&mut client, "long", "succeeded:1");
}

#[test]
fn the_owner_cancels_and_terminates_his_job() {
    let mut client = CLUSTER.database("cancel");
    client.run(
        "CREATE TABLE gate (); CREATE ROLE cancel_owner LOGIN; GRANT ALL ON gate TO cancel_owner;
         GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA audit_db TO cancel_owner;
         GRANT EXECUTE ON PROCEDURE audit_db.run_job TO cancel_owner",
    );
    let mut owner = CLUSTER.connect_as("cancel", "cancel_owner");
    daily(&mut client, "unused", "SELECT 1");
    owner.run(
        "SELECT audit_db.schedule_job('waits', '0 0 1 1 *', 'sql', '{\"command\": \"TABLE public.gate\"}')",
    );
    let mut holder = CLUSTER.connect("cancel");
    holder.run("BEGIN; LOCK TABLE gate");
    for (how, expected, sqlstate) in [
        ("pg_cancel_backend", "cancelled", "57014"),
        ("pg_terminate_backend", "failed", "57P01"),
    ] {
        let run = owner.value("SELECT audit_db.submit_job('waits')");
        wait_until("it waits", SOON, || {
            owner.holds(&format!(
                "SELECT EXISTS (SELECT FROM pg_stat_activity a JOIN audit_db.job_runs r USING (pid)
                                 WHERE r.id = {run} AND r.status = 'running' AND a.wait_event_type = 'Lock')"
            ))
        });
        owner.run(&format!(
            "SELECT {how}(pid) FROM audit_db.job_runs WHERE id = {run}"
        ));
        wait_until(how, SOON, || {
            owner.rows(&format!(
                "SELECT status, sqlstate FROM audit_db.job_runs WHERE id = {run}"
            )) == [[expected, sqlstate]]
        });
    }
    // Who waits for a run and is cancelled cancels the run.
    let pid = owner.value("SELECT pg_backend_pid()");
    let cancelled = std::thread::spawn(move || owner.error("CALL audit_db.run_job('waits')"));
    wait_until("it waits", SOON, || {
        client.holds(
            "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'audit_db job' AND wait_event_type = 'Lock' AND datname = 'cancel')",
        )
    });
    client.run(&format!("SELECT pg_cancel_backend({pid})"));
    assert_eq!(cancelled.join().unwrap().code().code(), "57014");
    wait_until("the run is cancelled", SOON, || {
        client.value("SELECT status FROM audit_db.job_runs ORDER BY id DESC LIMIT 1") == "cancelled"
    });
    holder.run("COMMIT");
}

#[test]
fn run_job_raises_the_jobs_own_error_and_submit_waits_for_the_commit() {
    let mut client = CLUSTER.database("calls");
    client.run("CREATE TABLE t (x int CHECK (x > 0))");
    daily(&mut client, "bad", "INSERT INTO public.t VALUES (-1)");
    let error = client.error("CALL audit_db.run_job('bad')");
    assert_eq!(error.code().code(), "23514");
    assert!(error.detail().unwrap().contains("Failing row"));
    assert_eq!(
        client.sqlstate("BEGIN; CALL audit_db.run_job('bad')"),
        "2D000"
    );
    client.run("ROLLBACK");
    assert_eq!(
        client.sqlstate("DO $$BEGIN PERFORM 1; CALL audit_db.run_job('bad'); END$$"),
        "23514"
    );
    assert_eq!(client.sqlstate("CALL audit_db.run_job('none')"), "42704");

    daily(&mut client, "good", "INSERT INTO public.t VALUES (1)");
    client.run("BEGIN; SELECT audit_db.submit_job('good'); ROLLBACK");
    assert_eq!(runs(&mut client, "good"), "");
    client.run("BEGIN");
    client.run("SELECT audit_db.submit_job('good')");
    let mut other = CLUSTER.connect("calls");
    assert_eq!(runs(&mut other, "good"), "");
    client.run("COMMIT");
    wait_for_runs(&mut client, "good", "succeeded:1");
    // What an aborted transaction would have changed is not changed.
    client.run("BEGIN; SELECT audit_db.unschedule_job('good'); ROLLBACK");
    client.run("CALL audit_db.run_job('good')");
    assert_eq!(client.number("SELECT count(*) FROM t"), 2);
}

#[test]
fn commands_that_no_function_can_run() {
    let mut client = CLUSTER.database("top");
    client.run("CREATE TABLE t (x int); INSERT INTO t SELECT generate_series(1, 1000); CREATE INDEX t_x ON t (x)");
    client.run(
        "CREATE PROCEDURE public.commits() LANGUAGE plpgsql AS $$BEGIN
            FOR i IN 1..3 LOOP INSERT INTO public.t VALUES (-i); COMMIT; END LOOP; END$$",
    );
    for (name, command) in [
        ("vacuum", "VACUUM (ANALYZE) public.t"),
        ("reindex", "REINDEX INDEX CONCURRENTLY public.t_x"),
        ("index", "CREATE INDEX CONCURRENTLY t_x2 ON public.t (x)"),
        ("call", "CALL public.commits()"),
        (
            "several",
            "CREATE TEMP TABLE own AS SELECT 1 AS a; SELECT * FROM own; DROP TABLE own",
        ),
    ] {
        daily(&mut client, name, command);
        client.run(&format!("CALL audit_db.run_job('{name}')"));
    }
    assert_eq!(client.number("SELECT count(*) FROM t WHERE x < 0"), 3);
    assert_eq!(
        client.value(
            "SELECT string_agg(s->>'action' || ' ' || (s->>'detail'), ', ') FROM audit_db.job_runs r, jsonb_array_elements(steps) s
              WHERE name = 'several'"
        ),
        "SELECT 1 rows, SELECT 1 rows, DROP TABLE 0 rows"
    );
    daily(
        &mut client,
        "mixed",
        "INSERT INTO public.t VALUES (0); VACUUM public.t",
    );
    assert_eq!(client.sqlstate("CALL audit_db.run_job('mixed')"), "25001");
    assert_eq!(client.number("SELECT count(*) FROM t WHERE x = 0"), 0);
}

#[test]
fn a_job_runs_as_its_owner_with_his_rights_and_settings() {
    let mut client = CLUSTER.database("owners");
    client.run(
        "CREATE ROLE job_owner LOGIN; CREATE ROLE job_other LOGIN; CREATE ROLE job_monitor LOGIN; GRANT pg_monitor TO job_monitor;
         CREATE TABLE public.who (who text, setting text); GRANT INSERT ON public.who TO job_owner; CREATE TABLE public.secret ();
         ALTER ROLE job_owner SET work_mem = '7MB'; ALTER ROLE job_owner SET default_transaction_isolation = 'serializable';
         ALTER ROLE job_owner SET search_path = 'public'; ALTER ROLE job_owner SET statement_timeout = '3s';
         GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA audit_db TO job_owner, job_other;
         GRANT EXECUTE ON PROCEDURE audit_db.run_job TO job_owner, job_other",
    );
    let mut owner = CLUSTER.connect_as("owners", "job_owner");
    let mut other = CLUSTER.connect_as("owners", "job_other");
    let mut monitor = CLUSTER.connect_as("owners", "job_monitor");
    let schedule = |client: &mut Client, name: &str, command: &str| {
        client.sqlstate(&format!(
            "SELECT audit_db.schedule_job('{name}', '0 3 * * *', 'sql', jsonb_build_object('command', $a${command}$a$))"
        ))
    };
    assert_eq!(
        schedule(
            &mut owner,
            "mine",
            "INSERT INTO who SELECT current_user || ' ' || session_user, current_setting('work_mem')"
        ),
        "00000"
    );
    owner.run("CALL audit_db.run_job('mine')");
    assert_eq!(
        client.rows("SELECT * FROM public.who"),
        [["job_owner job_owner", "7MB"]]
    );
    // His rights are the end of it.
    assert_eq!(
        schedule(&mut owner, "more", "SELECT * FROM public.secret"),
        "00000"
    );
    assert_eq!(owner.sqlstate("CALL audit_db.run_job('more')"), "42501");
    for escape in [
        "RESET ROLE; SELECT * FROM public.secret",
        "RESET SESSION AUTHORIZATION; SELECT * FROM public.secret",
        "SET SESSION AUTHORIZATION postgres",
        "SET ROLE postgres",
    ] {
        assert_eq!(schedule(&mut owner, "more", escape), "00000");
        assert_eq!(
            owner.sqlstate("CALL audit_db.run_job('more')"),
            "42501",
            "{escape}"
        );
    }
    // What he has set does not bend the record of the run.
    client.run("ALTER ROLE job_owner SET default_transaction_read_only = on");
    assert_eq!(schedule(&mut client, "unused", "SELECT 1"), "00000");
    assert_eq!(schedule(&mut other, "theirs", "SELECT 1"), "00000");
    client.run("SELECT audit_db.submit_job('mine')");
    wait_for_runs(&mut client, "mine", "failed:1 succeeded:1");
    assert_eq!(
        client.value(
            "SELECT sqlstate FROM audit_db.job_runs WHERE name = 'mine' AND status = 'failed'"
        ),
        "25006"
    );
    client.run("ALTER ROLE job_owner RESET default_transaction_read_only");
    let mut owner = CLUSTER.connect_as("owners", "job_owner");
    assert_eq!(schedule(&mut owner, "slow", "SELECT pg_sleep(60)"), "00000");
    let error = owner.error("CALL audit_db.run_job('slow')");
    assert_eq!(error.code().code(), "57014");
    assert_eq!(
        client.value("SELECT status FROM audit_db.job_runs WHERE name = 'slow'"),
        "failed"
    );

    // Each sees his own.
    let names = "SELECT string_agg(DISTINCT name, ' ' ORDER BY name) FROM audit_db.";
    assert_eq!(owner.value(&format!("{names}jobs")), "mine more slow");
    assert_eq!(owner.value(&format!("{names}job_runs")), "mine more slow");
    assert_eq!(owner.value(&format!("{names}job_list()")), "mine more slow");
    assert_eq!(other.value(&format!("{names}jobs")), "theirs");
    assert_eq!(other.value(&format!("{names}job_runs")), "null");
    assert_eq!(
        monitor.value(&format!("{names}jobs")),
        "maintenance mine more optimize slow theirs unused"
    );
    assert_eq!(monitor.value(&format!("{names}job_runs")), "mine more slow");
    assert_eq!(
        other.sqlstate("SELECT * FROM audit_db.job_definitions"),
        "42501"
    );
    for statement in [
        "UPDATE audit_db.job_runs SET status = 'queued'",
        "DELETE FROM audit_db.job_runs",
        "INSERT INTO audit_db.job_runs (name, owner, task, args, time_zone) VALUES ('x', 'postgres', 'sql', '{}', 'UTC')",
        "SELECT audit_db.unschedule_job('mine')",
        "SELECT audit_db.alter_job('mine', enabled => false)",
        "SELECT audit_db.submit_job('mine')",
        "CALL audit_db.run_job('mine')",
        "SELECT audit_db.schedule_job('mine', '0 0 * * *', 'sql', '{\"command\": \"SELECT 1\"}')",
        "SELECT audit_db.schedule_job('maintenance', '0 0 * * *', 'sql', '{\"command\": \"SELECT 1\"}')",
        "SELECT audit_db.alter_job('maintenance', enabled => false)",
        "CALL audit_db.run_job('maintenance')",
        "SELECT audit_db.schedule_job('o', '0 0 * * *', 'optimize')",
        "SELECT audit_db.schedule_job('o', '0 0 * * *', 'vacuum', '{\"table\": \"public.secret\"}')",
    ] {
        assert_eq!(other.sqlstate(statement), "42501", "{statement}");
    }
    // Another's job is not replaced by a superuser either, but he can change it.
    assert_eq!(schedule(&mut client, "mine", "SELECT 1"), "42501");
    client.run("SELECT audit_db.alter_job('mine', schedule => '0 4 * * *')");
    assert_eq!(
        client.rows("SELECT owner, schedule FROM audit_db.jobs WHERE name = 'mine'"),
        [["job_owner", "0 4 * * *"]]
    );
}

#[test]
fn an_owner_who_cannot_connect() {
    let cluster = cluster();
    let mut client = cluster.database("locked_out");
    client.run(
        "CREATE ROLE no_login; CREATE ROLE leaves LOGIN; CREATE ROLE goes LOGIN;
         GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA audit_db TO no_login, leaves, goes",
    );
    let job = "SELECT audit_db.schedule_job(current_user || ' job', '0 3 * * *', 'sql', '{\"command\": \"SELECT 1\"}')";
    client.run("SET ROLE no_login");
    assert_eq!(client.sqlstate(job), "28000");
    client.run("RESET ROLE");
    for role in ["leaves", "goes"] {
        client.run(&format!("SET ROLE {role}; {job}; RESET ROLE"));
    }
    wait_until("the scheduler knows the jobs", SOON, || {
        client.number("SELECT count(*) FROM audit_db.job_slots WHERE name LIKE '% job'") == 2
    });
    client.run(
        "ALTER ROLE leaves NOLOGIN; REVOKE ALL ON ALL FUNCTIONS IN SCHEMA audit_db FROM goes; DROP ROLE goes",
    );
    move_clock(&cluster, 1);
    wait_until("both are disabled", SOON, || {
        client.rows("SELECT name, disabled_reason FROM audit_db.jobs WHERE NOT enabled ORDER BY 1")
            == [
                ["goes job", "The role does not exist any more."],
                ["leaves job", "It may not log in."],
            ]
    });
    assert_eq!(runs(&mut client, "leaves job"), "missed:1");
    assert_eq!(
        client.sqlstate("SELECT audit_db.alter_job('leaves job', enabled => true)"),
        "28000"
    );
    client.run("ALTER ROLE leaves LOGIN; SELECT audit_db.alter_job('leaves job', enabled => true)");
    client.run("CALL audit_db.run_job('leaves job')");
    // It may log in, but not here: seen when it is started at the latest.
    client.run("REVOKE CONNECT ON DATABASE locked_out FROM PUBLIC");
    assert_eq!(
        client.sqlstate("SELECT audit_db.submit_job('leaves job')"),
        "28000"
    );
}

#[test]
fn runs_go_on_when_their_scheduler_is_replaced() {
    let mut client = CLUSTER.database("replaced");
    client.run("CREATE TABLE gate ()");
    daily(&mut client, "long", "TABLE public.gate");
    let mut holder = CLUSTER.connect("replaced");
    holder.run("BEGIN; LOCK TABLE gate");
    client.run("SELECT audit_db.submit_job('long'); SELECT audit_db.submit_job('long')");
    wait_for_runs(&mut client, "long", "queued:1 running:1");
    let worker = "SELECT pid FROM audit_db.workers WHERE database = 'replaced' AND pid IS NOT NULL";
    let before = client.value(worker);
    client.run(&format!("SELECT pg_terminate_backend({before})"));
    wait_until("there is another worker", SOON, || {
        client
            .column(worker)
            .first()
            .is_some_and(|pid| *pid != before)
    });
    daily(&mut client, "other", "SELECT 1");
    client.run("CALL audit_db.run_job('other')");
    assert_eq!(runs(&mut client, "long"), "queued:1 running:1");
    holder.run("COMMIT");
    wait_for_runs(&mut client, "long", "succeeded:2");
}

#[test]
fn a_database_goes_although_a_job_runs_in_it_and_so_does_the_extension() {
    let mut client = CLUSTER.database("going");
    client.run("CREATE TABLE gate ()");
    daily(&mut client, "long", "TABLE public.gate");
    let mut holder = CLUSTER.connect("going");
    holder.run("BEGIN; LOCK TABLE gate");
    client.run("SELECT audit_db.submit_job('long')");
    wait_for_runs(&mut client, "long", "running:1");
    client.run("DROP EXTENSION audit_db");
    holder.run("COMMIT");
    wait_until("the job has ended", SOON, || {
        client.value("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'audit_db job' AND datname = 'going'") == "0"
    });
    client.run("CREATE EXTENSION audit_db");
    daily(&mut client, "long", "SELECT pg_sleep(3600)");
    client.run("SELECT audit_db.submit_job('long')");
    wait_for_runs(&mut client, "long", "running:1");
    drop((client, holder));
    CLUSTER.connect("postgres").run("DROP DATABASE going");
}

/// DROP DATABASE waits for every session of the server to notice something; who waits for a job must notice it too.
#[test]
fn who_waits_for_a_job_holds_up_nobody() {
    let mut client = CLUSTER.database("waits_long");
    drop(CLUSTER.empty_database("dropped_meanwhile"));
    client.run("CREATE TABLE gate ()");
    daily(&mut client, "long", "TABLE public.gate");
    let mut holder = CLUSTER.connect("waits_long");
    holder.run("BEGIN; LOCK TABLE gate");
    let mut caller = CLUSTER.connect("waits_long");
    let waits = std::thread::spawn(move || caller.sqlstate("CALL audit_db.run_job('long')"));
    wait_for_runs(&mut client, "long", "running:1");
    // The session's statement_timeout of a minute bounds it.
    CLUSTER
        .connect("postgres")
        .run("DROP DATABASE dropped_meanwhile");
    assert_eq!(runs(&mut client, "long"), "running:1");
    holder.run("COMMIT");
    assert_eq!(waits.join().unwrap(), "00000");
}

#[test]
fn two_roles_cannot_take_the_same_name() {
    let mut client = CLUSTER.database("names");
    client.run(
        "CREATE ROLE name_one LOGIN; CREATE ROLE name_two LOGIN;
         GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA audit_db TO name_one, name_two",
    );
    let job =
        "SELECT audit_db.schedule_job('same', '@daily', 'sql', '{\"command\": \"SELECT 1\"}')";
    let mut one = CLUSTER.connect_as("names", "name_one");
    let mut two = CLUSTER.connect_as("names", "name_two");
    one.run(&format!("BEGIN; {job}"));
    let pid = two.value("SELECT pg_backend_pid()");
    let waits = std::thread::spawn(move || two.sqlstate(job));
    wait_until("the second waits, or has given up", SOON, || {
        waits.is_finished()
            || client.holds(&format!(
                "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = {pid} AND wait_event_type = 'Lock')"
            ))
    });
    one.run("COMMIT");
    // In time it is refused; else it has given up waiting.
    let second = waits.join().unwrap();
    assert!(["42501", "55P03"].contains(&second.as_str()), "{second}");
    assert_eq!(
        client.value("SELECT owner FROM audit_db.jobs WHERE name = 'same'"),
        "name_one"
    );
}

#[test]
fn who_is_changing_a_job_keeps_no_other_waiting() {
    let cluster = cluster();
    let mut client = cluster.database("changing");
    daily(&mut client, "changed", "SELECT 1");
    daily(&mut client, "other", "SELECT 1");
    let mut changing = cluster.connect("changing");
    changing.run("BEGIN; SELECT audit_db.alter_job('changed', schedule => '0 3 * * *')");
    move_clock(&cluster, 1);
    wait_for_runs(&mut client, "other", "succeeded:1");
    assert_eq!(runs(&mut client, "changed"), "");
    // A run that somebody is about to take back cannot begin; when he does not, it is on record that it could not.
    changing.run("ROLLBACK");
    wait_for_runs(&mut client, "changed", "succeeded:1");
    changing.run("BEGIN; SELECT audit_db.alter_job('changed', enabled => false)");
    move_clock(&cluster, 2);
    wait_for_runs(&mut client, "other", "succeeded:2");
    changing.run("COMMIT");
    move_clock(&cluster, 3);
    wait_for_runs(&mut client, "other", "succeeded:3");
    assert_eq!(runs(&mut client, "changed"), "succeeded:1");
}

#[test]
fn settings_of_jobs_take_effect_without_a_restart() {
    let cluster = cluster();
    let mut client = cluster.database("settings");
    daily(&mut client, "night", "SELECT 1");
    cluster.reload(&[("audit_db.max_job_workers", "0")]);
    move_clock(&cluster, 1);
    wait_for_runs(&mut client, "night", "missed:1");
    assert!(
        client
            .value("SELECT message FROM audit_db.job_runs WHERE name = 'night'")
            .ends_with("because audit_db.max_job_workers is 0")
    );
    // Nobody waits for what cannot come.
    assert_eq!(client.sqlstate("CALL audit_db.run_job('night')"), "55000");
    client.run("SELECT audit_db.submit_job('night')");
    assert_eq!(runs(&mut client, "night"), "missed:1 queued:1");
    cluster.reload(&[("audit_db.max_job_workers", "1")]);
    wait_for_runs(&mut client, "night", "missed:1 succeeded:1");
    // Disabled: not even on record.
    client.run("SELECT audit_db.alter_job('night', enabled => false)");
    move_clock(&cluster, 3);
    daily(&mut client, "later", "SELECT 1");
    assert_eq!(runs(&mut client, "night"), "missed:1 succeeded:1");
    // Enabled again it does not make up for what it was not meant to do.
    client.run("SELECT audit_db.alter_job('night', enabled => true)");
    move_clock(&cluster, 4);
    wait_for_runs(&mut client, "night", "missed:1 succeeded:2");
    // History has an end.
    client.run(
        "UPDATE audit_db.job_runs SET queued_at = now() - interval '91 days' WHERE name = 'night'",
    );
    let pid = client.value("SELECT pid FROM audit_db.workers WHERE database = 'settings'");
    client.run(&format!("SELECT pg_terminate_backend({pid})"));
    wait_for_runs(&mut client, "night", "");
}

#[test]
fn jobs_are_dumped_and_restored_with_their_owners() {
    let mut client = CLUSTER.database("dumped");
    client.run(
        "CREATE ROLE dump_owner LOGIN; GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA audit_db TO dump_owner; SET ROLE dump_owner;
         SELECT audit_db.schedule_job('theirs', '0 3 * * MON', 'sql', '{\"command\": \"SELECT 1\"}', 'Europe/Berlin'); RESET ROLE;
         SELECT audit_db.alter_job('maintenance', schedule => '0 5 * * *')",
    );
    daily(&mut client, "mine", "SELECT 1");
    // A job of a role that is gone would be restored as a number, and that number may be somebody else there.
    client.run(
        "CREATE ROLE dump_gone LOGIN; GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA audit_db TO dump_gone; SET ROLE dump_gone;
         SELECT audit_db.schedule_job('orphan', '0 3 * * *', 'sql', '{\"command\": \"SELECT 1\"}'); RESET ROLE;
         REVOKE ALL ON ALL FUNCTIONS IN SCHEMA audit_db FROM dump_gone; DROP ROLE dump_gone",
    );
    let dump = CLUSTER.dump("dumped");
    client.run("SELECT audit_db.unschedule_job('orphan')");
    let mut restored = CLUSTER.empty_database("restored_jobs");
    CLUSTER.restore("restored_jobs", &dump);
    let jobs = "SELECT name, owner, schedule, task, args, time_zone, enabled FROM audit_db.jobs ORDER BY 1";
    assert_eq!(restored.rows(jobs), client.rows(jobs));
    daily(&mut restored, "another", "SELECT 1");
    restored.run("CALL audit_db.run_job('mine')");
}
