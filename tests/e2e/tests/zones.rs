//! A period starts at the first instant whose local time has reached it, in the table's time zone, whatever the session's.

use audit_db_e2e::{Client, Cluster, Session, Shared};

/// Without workers: nobody but the test makes partitions.
static CLUSTER: Shared = Shared::new(|| Cluster::builder().fast().not_preloaded());

/// Sessions whose own settings must not matter.
const SESSIONS: &[(&str, &str)] = &[
    ("UTC", "ISO, YMD"),
    ("Asia/Kolkata", "SQL, DMY"),
    ("America/St_Johns", "Postgres, MDY"),
    ("Pacific/Kiritimati", "German"),
];

/// Bounds of all partitions but the default as the server prints them for UTC, in order.
const BOUNDS: &str = r"
SELECT (regexp_match(bound, $$FROM \('([^']*)'\)$$))[1], (regexp_match(bound, $$TO \('([^']*)'\)$$))[1]
  FROM (SELECT pg_get_expr(c.relpartbound, c.oid) AS bound
          FROM pg_inherits h JOIN pg_class c ON c.oid = h.inhrelid WHERE h.inhparent = 'log'::regclass) b
 WHERE bound <> 'DEFAULT' ORDER BY 1";

/// Whether `t` is the first instant at which the session's local clock shows `b` or later, asked of the server's own
/// conversion: earlier steps catch the second midnight of a night in which midnight happens twice.
fn first_instant(t: &str, b: &str) -> String {
    format!(
        "(({t})::timestamp >= {b}
          AND ({t} - interval '1 microsecond')::timestamp < {b}
          AND ({t} - interval '30 minutes')::timestamp < {b}
          AND ({t} - interval '1 hour')::timestamp < {b}
          AND ({t} - interval '2 hours')::timestamp < {b})"
    )
}

fn table(client: &mut Client, key: &str, interval: &str, zone: &str) {
    client.run(&format!(
        "CREATE TABLE log (at {key} NOT NULL) PARTITION BY RANGE (at);
         SELECT audit_db.manage_table('log', '{interval}', premake => 0, time_zone => '{zone}');"
    ));
    // Only what the test asks for.
    let made = client
        .column("SELECT inhrelid::regclass FROM pg_inherits WHERE inhparent = 'log'::regclass");
    for partition in made {
        client.run(&format!("DROP TABLE {partition}"));
    }
}

#[track_caller]
fn assert_starts(client: &mut Client, zone: &str, starts: &[&str], end: &str) {
    let bounds = client.rows(BOUNDS);
    client.run(&format!("SET TimeZone = '{zone}'"));
    assert_eq!(bounds.len(), starts.len(), "{zone}: {bounds:?}");
    for (index, bound) in bounds.iter().enumerate() {
        let next = starts.get(index + 1).copied().unwrap_or(end);
        for (t, b) in [(&bound[0], starts[index]), (&bound[1], next)] {
            let check = first_instant(&format!("timestamptz '{t}'"), &format!("timestamp '{b}'"));
            assert!(
                client.holds(&format!("SELECT {check}")),
                "{zone}: {t} for {b}"
            );
        }
    }
    client.run("SET TimeZone = 'UTC'");
}

/// Zone, interval, a day in the first period, and the local starts of consecutive periods with the end of the last.
type Case = (
    &'static str,
    &'static str,
    &'static str,
    &'static [&'static str],
    &'static str,
);

const CASES: &[Case] = &[
    // Summer time begins and ends inside, and every interval.
    (
        "America/New_York",
        "monthly",
        "2026-03-05",
        &["2026-03-01", "2026-04-01"],
        "2026-05-01",
    ),
    (
        "America/New_York",
        "monthly",
        "2026-10-05",
        &["2026-10-01", "2026-11-01", "2026-12-01"],
        "2027-01-01",
    ),
    (
        "America/New_York",
        "daily",
        "2026-03-07",
        &["2026-03-07", "2026-03-08", "2026-03-09"],
        "2026-03-10",
    ),
    (
        "America/New_York",
        "weekly",
        "2026-10-28",
        &["2026-10-26", "2026-11-02"],
        "2026-11-09",
    ),
    (
        "Europe/Berlin",
        "monthly",
        "2026-03-31",
        &["2026-03-01", "2026-04-01"],
        "2026-05-01",
    ),
    (
        "Europe/Berlin",
        "daily",
        "2026-10-24",
        &["2026-10-24", "2026-10-25", "2026-10-26"],
        "2026-10-27",
    ),
    (
        "Europe/Berlin",
        "weekly",
        "2026-01-01",
        &["2025-12-29", "2026-01-05"],
        "2026-01-12",
    ),
    (
        "Europe/Berlin",
        "quarterly",
        "2026-03-31",
        &["2026-01-01", "2026-04-01", "2026-07-01"],
        "2026-10-01",
    ),
    (
        "Europe/Berlin",
        "yearly",
        "2026-07-01",
        &["2026-01-01", "2027-01-01"],
        "2028-01-01",
    ),
    // Half an hour of summer time.
    (
        "Australia/Lord_Howe",
        "monthly",
        "2026-04-01",
        &["2026-04-01", "2026-05-01"],
        "2026-06-01",
    ),
    (
        "Australia/Lord_Howe",
        "daily",
        "2026-10-03",
        &["2026-10-03", "2026-10-04", "2026-10-05"],
        "2026-10-06",
    ),
    // The clock went from midnight to one: the first of April has no midnight.
    (
        "Asia/Amman",
        "monthly",
        "2011-03-15",
        &["2011-03-01", "2011-04-01", "2011-05-01"],
        "2011-06-01",
    ),
    (
        "Asia/Amman",
        "daily",
        "2011-03-31",
        &["2011-03-31", "2011-04-01", "2011-04-02"],
        "2011-04-03",
    ),
    (
        "Asia/Amman",
        "quarterly",
        "2011-03-31",
        &["2011-01-01", "2011-04-01"],
        "2011-07-01",
    ),
    // At one it was midnight again: the first of November has two, and starts at the first.
    (
        "America/Havana",
        "monthly",
        "2015-10-31",
        &["2015-10-01", "2015-11-01"],
        "2015-12-01",
    ),
    (
        "America/Havana",
        "daily",
        "2015-10-31",
        &["2015-10-31", "2015-11-01", "2015-11-02"],
        "2015-11-03",
    ),
    // A minute after midnight it was 23:01 again: the day, and in 2009 the month, starts at the first midnight.
    (
        "America/St_Johns",
        "daily",
        "2006-10-28",
        &["2006-10-28", "2006-10-29"],
        "2006-10-30",
    ),
    (
        "America/St_Johns",
        "monthly",
        "2009-10-31",
        &["2009-10-01", "2009-11-01"],
        "2009-12-01",
    ),
    // Offsets with seconds, before there were zones.
    (
        "Europe/Amsterdam",
        "monthly",
        "1930-01-05",
        &["1930-01-01", "1930-02-01"],
        "1930-03-01",
    ),
    (
        "UTC",
        "monthly",
        "2024-02-29",
        &["2024-02-01", "2024-03-01"],
        "2024-04-01",
    ),
];

#[test]
fn periods_start_where_the_zone_says_whatever_the_session_says() {
    let mut client = CLUSTER.database("zones_sessions");
    for (zone, interval, day, starts, end) in CASES {
        let mut names = Vec::new();
        for (session_zone, date_style) in SESSIONS {
            client.run("BEGIN");
            table(&mut client, "timestamptz", interval, zone);
            client.run(&format!(
                "SET LOCAL TimeZone = '{session_zone}'; SET LOCAL DateStyle = '{date_style}'"
            ));
            // Given as an instant, because that is what the function takes.
            let made = client.column(&format!(
                "SELECT audit_db.create_partitions('log', timestamp '{day} 12:00' AT TIME ZONE '{zone}', {})",
                starts.len()
            ));
            // And one by one in local time: the same partitions.
            for (start, made) in starts.iter().zip(&made) {
                let again = client.value(&format!(
                    "SELECT audit_db.create_partition('log', date '{start}')"
                ));
                assert_eq!(&again, made, "{zone} {interval}");
            }
            client.run("SET LOCAL TimeZone = 'UTC'; SET LOCAL DateStyle = 'ISO, YMD'");
            assert_starts(&mut client, zone, starts, end);
            client.run("ROLLBACK");
            names.push(made);
        }
        assert!(
            names.iter().all(|made| made == &names[0]),
            "{zone}: {names:?}"
        );
    }
}

#[test]
fn create_partition_takes_local_time() {
    let mut client = CLUSTER.database("zones_local");
    for (zone, interval, _, starts, end) in CASES {
        client.run("BEGIN");
        table(&mut client, "timestamptz", interval, zone);
        client.run("SET LOCAL TimeZone = 'Asia/Tokyo'; SET LOCAL DateStyle = 'SQL, DMY'");
        // From the last to the first, so that each must meet a neighbour that is already there.
        for start in starts.iter().rev() {
            client.run(&format!(
                "SELECT audit_db.create_partition('log', timestamp '{start}')"
            ));
        }
        client.run("SET LOCAL TimeZone = 'UTC'; SET LOCAL DateStyle = 'ISO, YMD'");
        assert_starts(&mut client, zone, starts, end);
        client.run("ROLLBACK");
    }
}

#[test]
fn local_keys_have_plain_bounds() {
    let mut client = CLUSTER.database("zones_plain");
    for (key, midnight) in [("date", ""), ("timestamp", " 00:00:00")] {
        for (zone, interval, day, starts, end) in CASES {
            client.run("BEGIN");
            table(&mut client, key, interval, zone);
            client.run("SET LOCAL TimeZone = 'Pacific/Kiritimati'; SET LOCAL DateStyle = 'German'");
            client.run(&format!(
                "SELECT audit_db.create_partitions('log', timestamp '{day} 12:00' AT TIME ZONE '{zone}', {})",
                starts.len()
            ));
            client.run("SET LOCAL DateStyle = 'ISO, YMD'");
            let expected: Vec<Vec<String>> = starts
                .iter()
                .zip(starts[1..].iter().chain([end]))
                .map(|(lower, upper)| {
                    vec![format!("{lower}{midnight}"), format!("{upper}{midnight}")]
                })
                .collect();
            assert_eq!(client.rows(BOUNDS), expected, "{key} {zone} {interval}");
            client.run("ROLLBACK");
        }
    }
}

/// Samoa went from the 29th of December 2011 straight to the 31st.
#[test]
fn a_day_that_never_was() {
    let mut client = CLUSTER.database("zones_apia");
    client.run("SET TimeZone = 'UTC'");
    table(&mut client, "timestamptz", "daily", "Pacific/Apia");
    let made = client.column(
        "SELECT audit_db.create_partitions('log', timestamp '2011-12-28 12:00' AT TIME ZONE 'Pacific/Apia', 5)",
    );
    assert_eq!(
        made,
        [
            "log_2011_12_28",
            "log_2011_12_29",
            "log_2011_12_31",
            "log_2012_01_01"
        ]
    );
    assert_starts(
        &mut client,
        "Pacific/Apia",
        &["2011-12-28", "2011-12-29", "2011-12-31", "2012-01-01"],
        "2012-01-02",
    );
    let sqlstate = client.sqlstate("SELECT audit_db.create_partition('log', '2011-12-30')");
    assert_eq!(sqlstate, "22023", "a partition without a single instant");
    // Local days have no gap: there the day is like any other.
    client.run("DROP TABLE log");
    table(&mut client, "date", "daily", "Pacific/Apia");
    client.run("SELECT audit_db.create_partition('log', '2011-12-30')");
    assert_eq!(client.rows(BOUNDS), [["2011-12-30", "2011-12-31"]]);
}

/// Every zone the server knows, every month from 1970 to 2037. A table of days has the same bounds in every zone; their instants
/// are what `partition_ranges` works out, with the code that makes the bounds of a table of instants.
#[test]
fn every_month_of_every_zone() {
    let mut client = CLUSTER.database("zones_sweep");
    client.run(
        "CREATE TABLE log (at date NOT NULL) PARTITION BY RANGE (at);
         DO $$
         DECLARE month date;
         BEGIN
             FOR month IN SELECT generate_series(timestamp '1970-01-01', '2037-11-01', '1 month') LOOP
                 EXECUTE format('CREATE TABLE log_%s PARTITION OF log FOR VALUES FROM (%L) TO (%L)',
                                to_char(month, 'YYYY_MM'), month, month + interval '1 month');
             END LOOP;
         END $$;
         SELECT audit_db.manage_table('log', premake => 0, default_partition => false);
         CREATE TEMP TABLE months AS
         SELECT c.oid AS partition, to_date(right(c.relname, 7), 'YYYY_MM')::timestamp AS month
           FROM pg_inherits h JOIN pg_class c ON c.oid = h.inhrelid WHERE h.inhparent = 'log'::regclass",
    );
    let zones =
        client.column("SELECT name FROM pg_timezone_names WHERE name !~ '^posix/' ORDER BY 1");
    assert!(zones.len() > 300, "only {} zones", zones.len());
    let mut bounds = 0;
    for zone in &zones {
        // Written here because manage_table looks at all partitions again each time. AT TIME ZONE would take CET and its like for
        // abbreviations, without summer time; SET takes zones.
        client.run(&format!(
            "UPDATE audit_db.managed_tables SET time_zone = '{zone}'; SET TimeZone = '{zone}'"
        ));
        let rows = client.rows(&format!(
            "SELECT count(*), count(*) FILTER (WHERE NOT {start} OR NOT {end}),
                    min(m.month) FILTER (WHERE NOT {start} OR NOT {end})
               FROM audit_db.partition_ranges('log') r JOIN months m USING (partition)",
            start = first_instant("r.range_start", "m.month"),
            end = first_instant("r.range_end", "(m.month + interval '1 month')"),
        ));
        assert_eq!(rows, [["815", "0", "null"]], "{zone}");
        bounds += 2 * 815;
    }
    println!("{} zones, {bounds} bounds", zones.len());
}
