//! Many months are made: alone, and while sessions write and read.

use crate::table::{
    DATABASE, LIKE_AND_ATTACH, PARTITION_OF, Place, READ, WRITE, audit_db_months, fill, managed,
    month, months, partman_parent, plain_months,
};
use audit_db_bench::{Contender, Load, goal, measure, milliseconds, rounds};
use audit_db_e2e::{Client, Session, wait_until_workers_rest};
use std::time::Instant;

/// 48 back, the current one, 48 ahead.
const BACK: i32 = 48;
const ALL: i32 = 2 * BACK + 1;

fn timed(session: &mut Client, sql: &str) -> Vec<f64> {
    let started = Instant::now();
    session.run(sql);
    let time = milliseconds(started.elapsed());
    assert_eq!(months(session), i64::from(ALL));
    vec![time]
}

pub fn alone(place: &Place) {
    let medians = measure(
        "97 months with 4 indexes, default partition empty, nobody else at work",
        &["milliseconds"],
        rounds(7),
        vec![
            Contender::new("plain LIKE and ATTACH, one transaction", || {
                timed(
                    &mut place.table_with_default(),
                    &plain_months(-BACK, ALL, LIKE_AND_ATTACH),
                )
            }),
            Contender::new("plain PARTITION OF, one transaction", || {
                timed(
                    &mut place.table_with_default(),
                    &plain_months(-BACK, ALL, PARTITION_OF),
                )
            }),
            // It makes the default partition as well.
            Contender::new("pg_partman create_parent", || {
                timed(&mut place.table(), &partman_parent(-BACK, BACK))
            }),
            // As well.
            Contender::new("audit_db manage_table, create_partitions", || {
                timed(
                    &mut place.table(),
                    &format!("{}; {}", managed(1), audit_db_months(-BACK, ALL)),
                )
            }),
        ],
    );
    let ours = medians.of(3, 0);
    goal(
        "at most 1.25 times plain LIKE and ATTACH",
        ours <= 1.25 * medians.of(0, 0),
    );
    goal("less than pg_partman", ours < medians.of(2, 0));
}

/// What a table that works all day has: the months around now.
fn working_table(place: &Place, sql: &str) -> Client {
    let mut session = place.table_with_default();
    session.run(sql);
    fill(&mut session, 0, 1, 20_000);
    session
}

pub fn under_load(place: &Place) {
    for (title, first) in [
        (
            "96 months of the past while 4 sessions write and 1 reads",
            -97,
        ),
        ("96 months ahead while 4 sessions write and 1 reads", 2),
    ] {
        let load = Load {
            cluster: place.cluster,
            database: DATABASE,
            writers: 4,
            write: WRITE,
            readers: 1,
            read: READ,
        };
        let around = plain_months(-1, 3, LIKE_AND_ATTACH);
        let run = |mut session: Client, sql: &str| {
            let had = months(&mut session);
            let (time, longest) = load.during(|| {
                let started = Instant::now();
                session.run(sql);
                milliseconds(started.elapsed())
            });
            assert_eq!(months(&mut session), had + 96);
            vec![longest.write, longest.read, time]
        };
        let medians = measure(
            title,
            &[
                "longest INSERT, ms",
                "longest SELECT, ms",
                "time in all, ms",
            ],
            rounds(5),
            vec![
                Contender::new("plain LIKE and ATTACH, one transaction", || {
                    run(
                        working_table(place, &around),
                        &plain_months(first, 96, LIKE_AND_ATTACH),
                    )
                }),
                Contender::new("plain PARTITION OF, one transaction", || {
                    run(
                        working_table(place, &around),
                        &plain_months(first, 96, PARTITION_OF),
                    )
                }),
                Contender::new("pg_partman create_partition_time", || {
                    let mut session = place.table();
                    session.run(&partman_parent(-1, 1));
                    fill(&mut session, 0, 1, 20_000);
                    run(
                        session,
                        &format!(
                            "SELECT partman.create_partition_time('public.log',
                                    ARRAY(SELECT {} + m * interval '1 month' FROM generate_series(0, 95) m))",
                            month(first)
                        ),
                    )
                }),
                Contender::new("audit_db create_partitions", || {
                    let mut session = working_table(place, &around);
                    session.run(&managed(1));
                    wait_until_workers_rest(&mut session);
                    run(session, &audit_db_months(first, 96))
                }),
            ],
        );
        goal("longest INSERT at most 250 ms", medians.of(3, 0) <= 250.0);
    }
}
