//! Retention: how long it takes, and how long others wait for it.

use crate::table::{
    DATABASE, LIKE_AND_ATTACH, Place, WRITE, audit_db_months, fill, month, months, partman_parent,
    plain_months,
};
use audit_db_bench::{Contender, Load, goal, measure, milliseconds, rounds};
use audit_db_e2e::{Client, Session, wait_until, wait_until_workers_rest};
use std::time::{Duration, Instant};

/// Eight years in the past, the current month, the next.
const BACK: i32 = 96;
const ALL: i32 = BACK + 2;
const LONG: Duration = Duration::from_secs(120);

fn plain(place: &Place, default: bool, rows: i32) -> Client {
    let mut session = if default {
        place.table_with_default()
    } else {
        place.table()
    };
    session.run(&plain_months(-BACK, ALL, LIKE_AND_ATTACH));
    fill(&mut session, -BACK, BACK + 1, rows);
    session
}

fn partman(place: &Place, keep_months: i32, keep_table: bool, rows: i32) -> Client {
    let mut session = place.table();
    session.run(&partman_parent(-BACK, 1));
    fill(&mut session, -BACK, BACK + 1, rows);
    session.run(&format!(
        "UPDATE partman.part_config SET retention = '{keep_months} months', retention_keep_table = {keep_table}"
    ));
    session
}

fn ours(place: &Place, default: bool, keep_months: i32, action: &str, rows: i32) -> Client {
    let mut session = place.table();
    session.run(&format!(
        "SELECT audit_db.manage_table('log', premake => 1, default_partition => {default}, time_zone => 'UTC',
                                      retention => '200 months', retention_action => '{action}')"
    ));
    session.run(&audit_db_months(-BACK, ALL));
    fill(&mut session, -BACK, BACK + 1, rows);
    wait_until_workers_rest(&mut session);
    // manage_table would ask for a cycle at once, and the months would be gone before they are asked for.
    session.run(&format!(
        "UPDATE audit_db.managed_tables SET retention = '{keep_months} months'"
    ));
    session
}

/// Runs it, waits until the months have gone, and returns the milliseconds.
fn gone(session: &mut Client, expired: i64, sql: &[String]) -> f64 {
    let left = months(session) - expired;
    let started = Instant::now();
    for sql in sql {
        session.run(sql);
    }
    if months(session) != left {
        wait_until("the expired months have gone", LONG, || {
            months(session) == left
        });
    }
    milliseconds(started.elapsed())
}

/// The statements for each of the `count` oldest months, the names of their partitions filled in.
fn statements(session: &mut Client, count: i32, templates: &[&str]) -> Vec<String> {
    let names = session.column(&format!(
        "SELECT to_char({} + m * interval '1 month', '\"log_\"YYYY_MM') FROM generate_series(0, {count} - 1) m",
        month(-BACK)
    ));
    names
        .iter()
        .flat_map(|name| {
            templates
                .iter()
                .map(|template| template.replace("$name", name))
        })
        .collect()
}

const RUN_PARTMAN: &str = "SELECT partman.run_maintenance('public.log', p_analyze => false)";
const RUN_OURS: &str = "SELECT count(*) FROM audit_db.drop_expired_partitions('log')";
const DROP: &[&str] = &["DROP TABLE $name"];
const DETACH: &[&str] = &["ALTER TABLE log DETACH PARTITION $name"];
const DROP_CONCURRENTLY: &[&str] = &[
    "ALTER TABLE log DETACH PARTITION $name CONCURRENTLY",
    "DROP TABLE $name",
];

pub fn two_years(place: &Place) {
    const KEEP: i32 = BACK - 24;
    const ROWS: i32 = 2_000;
    let plainly = |templates: &'static [&'static str], default: bool| {
        move || {
            let mut session = plain(place, default, ROWS);
            let sql = statements(&mut session, 24, templates);
            vec![gone(&mut session, 24, &sql)]
        }
    };
    let partman = |keep_table: bool| {
        move || {
            vec![gone(
                &mut partman(place, KEEP, keep_table, ROWS),
                24,
                &[RUN_PARTMAN.to_owned()],
            )]
        }
    };
    let ours = |action: &'static str, default: bool| {
        move || {
            vec![gone(
                &mut ours(place, default, KEEP, action, ROWS),
                24,
                &[RUN_OURS.to_owned()],
            )]
        }
    };
    measure(
        "retention drops 24 of 98 months of 2,000 rows",
        &["milliseconds"],
        rounds(5),
        vec![
            Contender::new(
                "plain DROP TABLE, a transaction a month",
                plainly(DROP, true),
            ),
            Contender::new("pg_partman, one transaction", partman(false)),
            Contender::new("audit_db, a transaction a month", ours("drop", true)),
        ],
    );
    measure(
        "retention detaches 24 of 98 months of 2,000 rows",
        &["milliseconds"],
        rounds(5),
        vec![
            Contender::new("plain DETACH, a transaction a month", plainly(DETACH, true)),
            Contender::new("pg_partman, one transaction", partman(true)),
            Contender::new("audit_db, a transaction a month", ours("detach", true)),
        ],
    );
    measure(
        "the same concurrently: no default partition, detach and drop",
        &["milliseconds"],
        rounds(5),
        vec![
            Contender::new(
                "plain DETACH CONCURRENTLY and DROP",
                plainly(DROP_CONCURRENTLY, false),
            ),
            Contender::new("audit_db, by its slow worker", ours("drop", false)),
        ],
    );
}

pub fn behind_a_reader(place: &Place) {
    const KEEP: i32 = BACK - 1;
    const ROWS: i32 = 100;
    let run = |mut session: Client, sql: &[String]| {
        let mut reader = place.session();
        reader.run("BEGIN");
        reader.run("SELECT count(*) FROM log");
        let load = Load {
            cluster: place.cluster,
            database: DATABASE,
            writers: 1,
            write: WRITE,
            readers: 0,
            read: "",
        };
        let (time, longest) = std::thread::scope(|scope| {
            scope.spawn(move || reader.run("SELECT pg_sleep(6); COMMIT"));
            load.during(|| gone(&mut session, 1, sql))
        });
        vec![longest.write, time]
    };
    let medians = measure(
        "one month expires while somebody reads the whole table for 6 seconds and another session inserts",
        &["longest INSERT, ms", "time in all, ms"],
        rounds(3),
        vec![
            Contender::new("plain DROP TABLE", || {
                let mut session = plain(place, true, ROWS);
                let sql = statements(&mut session, 1, DROP);
                run(session, &sql)
            }),
            Contender::new("pg_partman run_maintenance", || {
                run(partman(place, KEEP, false, ROWS), &[RUN_PARTMAN.to_owned()])
            }),
            Contender::new("audit_db, with a default partition", || {
                run(
                    ours(place, true, KEEP, "drop", ROWS),
                    &[RUN_OURS.to_owned()],
                )
            }),
            Contender::new("audit_db, without a default partition", || {
                run(
                    ours(place, false, KEEP, "drop", ROWS),
                    &[RUN_OURS.to_owned()],
                )
            }),
        ],
    );
    for (contender, which) in [(2, "with"), (3, "without")] {
        goal(
            &format!("longest INSERT at most 250 ms, {which} a default partition"),
            medians.of(contender, 0) <= 250.0,
        );
    }
}
