//! A hundred jobs that are due in the same minute and take one second each: how late they start, and what they cost beyond
//! their second, beside pg_cron with its libpq connections and with its background workers.

use audit_db_bench::{Contender, goal, measure, rounds};
use audit_db_e2e::{Client, Cluster, Session, wait_until};
use std::time::Duration;

const JOBS: u32 = 100;
/// Runs at the same time, for all of them.
const AT_A_TIME: &str = "50";
/// To the next minute, and until all are done.
const BOUND: Duration = Duration::from_secs(200);
const COLUMNS: [&str; 5] = [
    "a quarter has started after, ms",
    "all have started after, ms",
    "beyond its second, median, ms",
    "all done after, ms",
    "failed or lost, of 100",
];

fn main() {
    let libpq = cluster("off");
    let background = cluster("on");
    let mut ours = libpq.connect("postgres");
    println!(
        "{}; audit_db {}, pg_cron {}; {JOBS} jobs of one second, at most {AT_A_TIME} at a time, {} processors",
        ours.value("SELECT split_part(version(), ' on ', 1)"),
        ours.value("SELECT extversion FROM pg_extension WHERE extname = 'audit_db'"),
        ours.value("SELECT extversion FROM pg_extension WHERE extname = 'pg_cron'"),
        std::thread::available_parallelism().map_or(0, usize::from),
    );
    let mut by_libpq = libpq.connect("postgres");
    let mut by_background = background.connect("postgres");
    let medians = measure(
        "100 one-second jobs due in the same minute",
        &COLUMNS,
        rounds(3),
        vec![
            Contender::new("pg_cron, libpq", || cron(&mut by_libpq)),
            Contender::new("pg_cron, background workers", || cron(&mut by_background)),
            Contender::new("audit_db", || audit_db(&mut ours)),
        ],
    );
    goal(
        "the first jobs start no later than pg_cron's",
        medians.of(2, 0) <= medians.of(0, 0).min(medians.of(1, 0)),
    );
    goal(
        "all are done no later than pg_cron's",
        medians.of(2, 3) <= medians.of(0, 3).min(medians.of(1, 3)),
    );
    goal("none is lost", medians.of(2, 4) == 0.0);
}

fn cluster(background_workers: &str) -> Cluster {
    let cluster = Cluster::builder()
        .set("shared_preload_libraries", "audit_db,pg_cron")
        .set("cron.use_background_workers", background_workers)
        .set("cron.max_running_jobs", AT_A_TIME)
        .set("audit_db.max_job_workers", AT_A_TIME)
        .set("max_worker_processes", "100")
        .set("max_connections", "200")
        .start();
    let socket = cluster.socket().display().to_string();
    cluster.write_settings(&[("cron.host", &socket)]);
    cluster.restart();
    let mut client = cluster.connect("postgres");
    client.run("CREATE EXTENSION audit_db; CREATE EXTENSION pg_cron");
    cluster
}

/// Waits until the minute has so many seconds left that all jobs can be scheduled before it ends.
fn wait_for_room(client: &mut Client) {
    wait_until("the next minute", BOUND, || {
        client.holds("SELECT date_part('second', clock_timestamp()) BETWEEN 1 AND 50")
    });
}

fn cron(client: &mut Client) -> Vec<f64> {
    client.run("DELETE FROM cron.job_run_details");
    wait_for_room(client);
    client.run(&format!(
        "SELECT cron.schedule('bench ' || i, '* * * * *', 'SELECT pg_sleep(1)') FROM generate_series(1, {JOBS}) i"
    ));
    let started = "SELECT count(*) FROM cron.job_run_details";
    wait_until("the minute", BOUND, || client.number(started) > 0);
    // They take less than a minute: nothing starts twice. Unscheduling them earlier would take those away that wait.
    wait_until("all have ended", BOUND, || {
        client.number("SELECT count(*) FROM cron.job_run_details WHERE end_time IS NOT NULL")
            >= i64::from(JOBS)
            || client.holds("SELECT date_part('second', clock_timestamp()) > 50")
    });
    client.run("SELECT cron.unschedule(jobid) FROM cron.job");
    figures(
        client,
        "SELECT start_time AS started, end_time AS finished, status = 'succeeded' AS succeeded FROM cron.job_run_details",
    )
}

fn audit_db(client: &mut Client) -> Vec<f64> {
    client.run("DELETE FROM audit_db.job_runs");
    wait_for_room(client);
    client.run(&format!(
        "SELECT audit_db.schedule_job('bench ' || i, '* * * * *', 'sql', '{{\"command\": \"SELECT pg_sleep(1)\"}}') FROM generate_series(1, {JOBS}) i"
    ));
    wait_until("all have been queued", BOUND, || {
        client.number("SELECT count(*) FROM audit_db.job_runs WHERE name LIKE 'bench %'")
            >= i64::from(JOBS)
    });
    wait_until("all have ended", BOUND, || {
        client
            .number("SELECT count(*) FROM audit_db.job_runs WHERE status IN ('queued', 'running')")
            == 0
    });
    client.run(&format!(
        "SELECT audit_db.unschedule_job('bench ' || i) FROM generate_series(1, {JOBS}) i"
    ));
    figures(
        client,
        "SELECT started, finished, status = 'succeeded' AS succeeded FROM audit_db.job_runs WHERE name LIKE 'bench %'",
    )
}

/// One figure a column, from the runs of one minute.
fn figures(client: &mut Client, runs: &str) -> Vec<f64> {
    let row = client
        .rows(&format!(
            "WITH runs AS ({runs}), due AS (SELECT date_trunc('minute', min(started)) AS at FROM runs)
             SELECT percentile_cont(0.25) WITHIN GROUP (ORDER BY 1e3 * date_part('epoch', started - due.at)),
                    max(1e3 * date_part('epoch', started - due.at)),
                    percentile_cont(0.5) WITHIN GROUP (ORDER BY 1e3 * date_part('epoch', finished - started) - 1e3),
                    max(1e3 * date_part('epoch', finished - due.at)),
                    {JOBS} - count(*) FILTER (WHERE succeeded)
               FROM runs, due"
        ))
        .swap_remove(0);
    row.iter()
        .map(|figure| figure.parse().expect("a figure"))
        .collect()
}
