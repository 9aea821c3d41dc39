//! A default partition with two million rows of two years is emptied into months, while a session inserts.

use crate::table::{DATABASE, PARTITION_OF, Place, WRITE, fill, months, plain_months};
use audit_db_bench::{Contender, Load, goal, measure, milliseconds, rounds};
use audit_db_e2e::{Client, Session, wait_until};
use std::time::{Duration, Instant};

const MONTHS: i32 = 24;
const ROWS: i32 = 2_000_000 / MONTHS;
/// An event of the next month.
const WRITE_AHEAD: &str = "INSERT INTO log (at, action, status, principal_id, resource_id) \
                           VALUES (date_trunc('month', now(), 'UTC') + interval '1 month', 'read', 'success', 'user7', 'bench')";
const LONG: Duration = Duration::from_secs(600);

fn full_default(place: &Place) -> Client {
    let mut session = place.table_with_default();
    fill(&mut session, 1 - MONTHS, MONTHS, ROWS);
    session.run("VACUUM ANALYZE log");
    session
}

fn run(
    place: &Place,
    mut session: Client,
    write: &str,
    work: impl FnOnce(&mut Client),
) -> Vec<f64> {
    let rows = session.number("SELECT count(*) FROM log");
    let load = Load {
        cluster: place.cluster,
        database: DATABASE,
        writers: 1,
        write,
        readers: 0,
        read: "",
    };
    let (time, longest) = load.during(|| {
        let started = Instant::now();
        work(&mut session);
        milliseconds(started.elapsed()) / 1e3
    });
    assert_eq!(
        session.number("SELECT count(*) FROM log WHERE resource_id <> 'bench'"),
        rows
    );
    assert!(months(&mut session) >= i64::from(MONTHS));
    assert_eq!(
        session.number("SELECT count(*) FROM log_default WHERE resource_id <> 'bench'"),
        0
    );
    vec![time, longest.write]
}

pub fn two_million_rows(place: &Place) {
    let medians = measure(
        "a default partition with 2,000,000 rows of 24 months is emptied while a session inserts",
        &["time in all, seconds", "longest INSERT, ms"],
        rounds(3),
        vec![
            Contender::new(
                "plain: detach, months, INSERT SELECT, one transaction",
                || {
                    run(place, full_default(place), WRITE, |session| {
                        session.run("BEGIN");
                        session.run("ALTER TABLE log DETACH PARTITION log_default");
                        session.run(&plain_months(1 - MONTHS, MONTHS, PARTITION_OF));
                        session.run("INSERT INTO log SELECT * FROM log_default");
                        session.run("DROP TABLE log_default");
                        session.run("CREATE TABLE log_default PARTITION OF log DEFAULT");
                        session.run("COMMIT");
                    })
                },
            ),
            Contender::new("pg_partman partition_data_proc", || {
                let mut session = full_default(place);
                // It insists on making the default partition, and makes months around now at once, for which there must
                // be no rows yet: the table with the rows becomes the default afterwards.
                session.run("ALTER TABLE log DETACH PARTITION log_default");
                session.run("ALTER TABLE log_default RENAME TO full_default");
                session.run(
                    "SELECT partman.create_parent('public.log', 'at', 'native', 'monthly', p_premake => 1)",
                );
                session.run("DO $$ DECLARE month text; BEGIN
                    FOR month IN SELECT inhrelid::regclass FROM pg_inherits
                                  WHERE inhparent = 'log'::regclass
                                    AND inhrelid::regclass::text <> to_char(now() + interval '1 month', '\"log_p\"YYYY_MM') LOOP
                      EXECUTE 'DROP TABLE ' || month;
                    END LOOP; END $$");
                session.run("ALTER TABLE full_default RENAME TO log_default");
                session.run("ALTER TABLE log ATTACH PARTITION log_default DEFAULT");
                // Where somebody writes to a month that it empties, it ends with an error: its writer writes to the next month.
                run(place, session, WRITE_AHEAD, |session| {
                    session.run("CALL partman.partition_data_proc('public.log', p_quiet => true)");
                })
            }),
            Contender::new("audit_db, by its slow worker", || {
                run(place, full_default(place), WRITE, |session| {
                    let begun = session.value("SELECT clock_timestamp()");
                    session.run("SELECT audit_db.manage_table('log', premake => 1, time_zone => 'UTC', retention => '200 months')");
                    wait_until("the default partition is emptied", LONG, || {
                        session.holds(&format!(
                            "SELECT EXISTS (SELECT FROM audit_db.events_log WHERE event = 'default partition emptied' AND logged_at > '{begun}')
                                    AND NOT EXISTS (SELECT FROM audit_db.unfinished)"
                        ))
                    });
                })
            }),
        ],
    );
    goal("longest INSERT at most 250 ms", medians.of(2, 1) <= 250.0);
    goal(
        "sooner than pg_partman",
        medians.of(2, 0) < medians.of(1, 0),
    );
}
