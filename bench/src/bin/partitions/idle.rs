//! Maintenance that finds nothing to do, and how it grows with the number of partitions.

use crate::table::{Place, month, months, partman_parent};
use audit_db_bench::{Contender, goal, measure, milliseconds, rounds};
use audit_db_e2e::{Client, SOON, Session, wait_until, wait_until_workers_rest};
use std::time::Instant;

/// How long the worker's next cycle took, in milliseconds.
fn next_cycle(session: &mut Client) -> f64 {
    let last = |session: &mut Client| {
        session.rows(
            "SELECT last_cycle, last_cycle_ms FROM audit_db.workers WHERE database = current_database()",
        )
    };
    let (before, mut after) = (last(session), Vec::new());
    wait_until("the next cycle", SOON, || {
        after = last(session);
        after != before
    });
    after[0][1].parse().expect("milliseconds")
}

pub fn nothing_to_do(place: &Place) {
    // Two tables with the same months, each known to one of the two.
    let mut session = place.table();
    session.run(&partman_parent(-96, 1));
    assert_eq!(months(&mut session), 98);
    session.run("DROP TABLE IF EXISTS ours; CREATE TABLE ours (LIKE log INCLUDING ALL) PARTITION BY RANGE (at)");
    session.run("SELECT audit_db.manage_table('ours', premake => 1, time_zone => 'UTC', retention => '200 months')");
    session.run(&format!(
        "SELECT audit_db.create_partitions('ours', {}, 98)",
        month(-96)
    ));
    wait_until_workers_rest(&mut session);
    place
        .cluster
        .reload(&[("audit_db.maintenance_interval", "100ms")]);
    let mut other = place.session();
    let medians = measure(
        "maintenance with nothing to do, 98 months",
        &["milliseconds"],
        rounds(21),
        vec![
            Contender::new("pg_partman run_maintenance", || {
                let started = Instant::now();
                session.run("SELECT partman.run_maintenance('public.log', p_analyze => false)");
                vec![milliseconds(started.elapsed())]
            }),
            Contender::new("audit_db, a cycle of its worker", || {
                vec![next_cycle(&mut other)]
            }),
        ],
    );
    place
        .cluster
        .reload(&[("audit_db.maintenance_interval", "1h")]);
    other.run("SELECT audit_db.unmanage_table('ours'); DROP TABLE ours");
    goal("below 2 ms", medians.of(1, 0) < 2.0);
}

/// Private memory of the worker, in MB.
fn memory(session: &mut Client) -> f64 {
    let pid =
        session.number("SELECT pid FROM audit_db.workers WHERE database = current_database()");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the worker");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kilobytes: f64 = line
        .and_then(|line| line.trim().strip_suffix("kB")?.trim().parse().ok())
        .expect("RssAnon");
    kilobytes / 1024.0
}

/// Not contenders: the same cycle with ever more partitions.
pub fn growth(place: &Place) {
    println!(
        "\na cycle with nothing to do, by the number of partitions of one table (medians of 21 cycles)"
    );
    println!(
        "    {:<24} {:>12} {:>12} {:>22}",
        "partitions", "cycle, ms", "worker, MB", "after 200 cycles, MB"
    );
    for (interval, count) in [
        ("monthly", 98),
        ("daily", 366),
        ("daily", 1_001),
        ("daily", 2_001),
    ] {
        let mut session = place.table_with_default();
        session.run(&format!(
            "SELECT audit_db.manage_table('log', '{interval}', premake => 1, time_zone => 'UTC', retention => '200 months')"
        ));
        let unit = if interval == "daily" { "day" } else { "month" };
        let mut made = months(&mut session);
        while made < count {
            let some = (count - made).min(500);
            session.run(&format!(
                "SELECT audit_db.create_partitions('log', date_trunc('{unit}', now(), 'UTC') - {} * interval '1 {unit}', {some})",
                count - 2 - (made - 2)
            ));
            made = months(&mut session);
        }
        assert_eq!(made, count);
        wait_until_workers_rest(&mut session);
        // Its memory shall be that of this number.
        let pid =
            session.value("SELECT pid FROM audit_db.workers WHERE database = current_database()");
        session.run(&format!("SELECT pg_terminate_backend({pid})"));
        place
            .cluster
            .reload(&[("audit_db.maintenance_interval", "100ms")]);
        wait_until("another worker", SOON, || {
            session.holds(&format!(
                "SELECT EXISTS (SELECT FROM audit_db.workers WHERE database = current_database() AND pid <> {pid} AND last_cycle_ms IS NOT NULL)"
            ))
        });
        for _ in 0..5 {
            next_cycle(&mut session);
        }
        let first = memory(&mut session);
        let mut cycles: Vec<f64> = (0..21).map(|_| next_cycle(&mut session)).collect();
        cycles.sort_by(f64::total_cmp);
        for _ in 0..200 {
            next_cycle(&mut session);
        }
        println!(
            "    {count:<24} {:>12.2} {first:>12.1} {:>22.1}",
            cycles[10],
            memory(&mut session)
        );
        place
            .cluster
            .reload(&[("audit_db.maintenance_interval", "1h")]);
    }
    place.table();
}
