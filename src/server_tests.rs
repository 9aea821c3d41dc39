//! Tests that need a server's functions but no second session. Each runs in a transaction that is rolled back.

#[pgrx::pg_schema]
mod tests {
    use crate::error::Error;
    use crate::partition::inspect::{Calendar, Table};
    use crate::pg::catalog::KeyType;
    use crate::pg::clock::NamedZone;
    use crate::pg::{guc, identity, policy, xact};
    use audit_db_core::calendar::{PartitionInterval, from_postgres_micros};
    use audit_db_core::partition_plan::Zone;
    use chrono::{Datelike, NaiveDate};
    use pgrx::prelude::*;

    fn text(sql: &str) -> Option<String> {
        Spi::get_one::<String>(sql).unwrap()
    }

    fn oid(name: &str) -> pg_sys::Oid {
        Spi::get_one::<pg_sys::Oid>(&format!("SELECT '{name}'::regclass::oid"))
            .unwrap()
            .unwrap()
    }

    /// The first instant at which the local clock shows the start of a month, against the server's own conversions.
    #[pg_test]
    fn months_start_at_the_first_instant_of_the_month() {
        let zones = [
            "UTC",
            "America/New_York",
            "Europe/Berlin",
            "Australia/Lord_Howe",
            "Asia/Amman",
            "America/Havana",
            "Asia/Tehran",
            "America/Sao_Paulo",
            "Asia/Gaza",
            "Africa/Cairo",
            "Pacific/Apia",
            "America/Asuncion",
            "Asia/Beirut",
            "Asia/Kathmandu",
            "Africa/Casablanca",
        ];
        for name in zones {
            let zone = NamedZone::named(name).unwrap();
            for year in 1970..2038 {
                for month in 1..=12 {
                    let local = NaiveDate::from_ymd_opt(year, month, 1)
                        .unwrap()
                        .and_hms_opt(0, 0, 0)
                        .unwrap();
                    let position = zone.position(local).unwrap();
                    let at = zone.local(position).unwrap();
                    let before = zone.local(position - 1).unwrap();
                    assert!(at >= local, "{name} {local}: starts at {at}");
                    assert!(
                        before < local,
                        "{name} {local}: {before} is before the start"
                    );
                }
            }
        }
        let oracle = text(
            "SELECT string_agg(to_char((make_timestamp(2026, m, 1, 0, 0, 0) AT TIME ZONE 'Europe/Berlin')
                    AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI'), ' ' ORDER BY m) FROM generate_series(1, 12) m",
        );
        let zone = NamedZone::named("Europe/Berlin").unwrap();
        let ours: Vec<String> = (1..=12)
            .map(|month| {
                let local = NaiveDate::from_ymd_opt(2026, month, 1)
                    .unwrap()
                    .and_hms_opt(0, 0, 0)
                    .unwrap();
                from_postgres_micros(zone.position(local).unwrap())
                    .unwrap()
                    .format("%Y-%m-%d %H:%M")
                    .to_string()
            })
            .collect();
        assert_eq!(oracle, Some(ours.join(" ")));
    }

    #[pg_test]
    fn a_day_that_a_zone_skips_has_no_length() {
        let apia = NamedZone::named("Pacific/Apia").unwrap();
        let day = |day| {
            apia.position(
                NaiveDate::from_ymd_opt(2011, 12, day)
                    .unwrap()
                    .and_hms_opt(0, 0, 0)
                    .unwrap(),
            )
            .unwrap()
        };
        assert_eq!(day(30), day(31));
        assert!(day(29) < day(30));
    }

    #[pg_test]
    fn unknown_zones_are_refused() {
        for name in ["", "Mars/Olympus", "Europe/Berlin\0"] {
            assert!(
                matches!(NamedZone::named(name), Err(Error::UnknownZone(_))),
                "{name}"
            );
        }
    }

    #[pg_test]
    fn literals_are_read_back_as_the_same_position() {
        Spi::run("SET LOCAL TimeZone = 'Asia/Kolkata'; SET LOCAL DateStyle = 'SQL, DMY'").unwrap();
        let _scope = guc::Scope::new();
        for (key, cast) in [
            (KeyType::Timestamptz, "timestamptz"),
            (KeyType::Timestamp, "timestamp"),
            (KeyType::Date, "date"),
        ] {
            let calendar = Calendar::new(key, "UTC").unwrap();
            let local = NaiveDate::from_ymd_opt(2026, 3, 1)
                .unwrap()
                .and_hms_opt(0, 0, 0)
                .unwrap();
            let literal = calendar.literal(calendar.position(local).unwrap()).unwrap();
            let read = text(&format!(
                "SELECT to_char(('{literal}'::{cast})::timestamp {} , 'YYYY-MM-DD')",
                if key == KeyType::Timestamptz {
                    "- interval '5:30'"
                } else {
                    ""
                }
            ));
            assert_eq!(read.as_deref(), Some("2026-03-01"), "{cast}");
        }
        let calendar = Calendar::new(KeyType::Date, "UTC").unwrap();
        assert!(calendar.literal(1).is_err(), "not a whole day");
        assert!(calendar.literal(i64::MAX).is_err());
    }

    #[pg_test]
    fn all_kinds_of_bounds_are_read() {
        Spi::run(
            "CREATE TABLE t (d date) PARTITION BY RANGE (d);
             CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (MINVALUE) TO ('2001-01-01');
             CREATE TABLE t2 PARTITION OF t FOR VALUES FROM ('2001-01-01') TO ('infinity');
             CREATE TABLE t3 PARTITION OF t FOR VALUES FROM ('infinity') TO (MAXVALUE);
             CREATE TABLE t4 PARTITION OF t DEFAULT",
        )
        .unwrap();
        let table = Table::load(oid("t")).unwrap();
        let calendar = Calendar::new(table.key, "UTC").unwrap();
        let shown: Vec<String> = table
            .ranges()
            .into_iter()
            .map(|range| calendar.describe(range))
            .collect();
        assert_eq!(shown[0], "MINVALUE to 2001-01-01 00:00:00");
        assert!(shown[2].ends_with("to MAXVALUE"));
        assert_eq!(shown.len(), 3);
        assert_eq!(table.default.unwrap().name, "t4");
    }

    #[pg_test]
    fn a_failed_subtransaction_leaves_nothing() {
        let outcome = xact::in_subtransaction(|| {
            crate::pg::spi::execute("CREATE TABLE left_over (a int)", &[])?;
            crate::pg::spi::execute("SELECT 1 / 0", &[])
        });
        let failure = outcome.unwrap_err().failure();
        assert_eq!(failure.sqlstate, "22012");
        assert_eq!(text("SELECT to_regclass('left_over')::text"), None);
        // And the transaction goes on.
        assert_eq!(xact::in_subtransaction(|| Ok(7)).unwrap(), 7);
    }

    #[pg_test]
    fn settings_hold_for_their_scope_only() {
        Spi::run("SET LOCAL lock_timeout = '7s'").unwrap();
        {
            let scope = guc::Scope::new();
            scope.set(c"lock_timeout", "3ms");
            assert_eq!(text("SHOW lock_timeout").as_deref(), Some("3ms"));
            assert_eq!(
                text("SHOW search_path").as_deref(),
                Some("pg_catalog, pg_temp")
            );
        }
        assert_eq!(text("SHOW lock_timeout").as_deref(), Some("7s"));
    }

    #[pg_test]
    fn identity_comes_back_also_after_an_error() {
        Spi::run("CREATE ROLE identity_test").unwrap();
        let role = Spi::get_one::<pg_sys::Oid>("SELECT 'identity_test'::regrole::oid")
            .unwrap()
            .unwrap();
        let me = identity::current_role();
        assert_eq!(identity::as_role(role, identity::current_role), role);
        let outcome = xact::in_subtransaction(|| {
            identity::as_role(role, || {
                crate::pg::spi::execute("CREATE ROLE forbidden", &[])
            })
        });
        assert_eq!(outcome.unwrap_err().failure().sqlstate, "42501");
        assert_eq!(identity::current_role(), me);
    }

    #[pg_test]
    fn policies_are_rewritten_for_other_column_numbers() {
        Spi::run(
            "CREATE TABLE source (gone int, a int, b text);
             ALTER TABLE source DROP COLUMN gone;
             CREATE TABLE target (a int, b text);
             CREATE POLICY p ON source USING (b = CURRENT_USER AND EXISTS (SELECT FROM pg_class c WHERE c.oid = source.a))",
        )
        .unwrap();
        let stored = text("SELECT polqual::text FROM pg_policy WHERE polname = 'p'").unwrap();
        let written = policy::expression_for(&stored, oid("source"), oid("target")).unwrap();
        assert!(written.contains("target.a"), "{written}");
        Spi::run(&format!("CREATE POLICY p ON target USING ({written})")).unwrap();
    }

    #[pg_test]
    fn sqlstates_survive_packing() {
        for state in ["42P07", "55P03", "22023", "3F000", "2BP01"] {
            let outcome = xact::in_subtransaction(|| {
                crate::pg::spi::execute(
                    &format!(
                        "DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '{state}', HINT = 'h', DETAIL = 'd'; END $$"
                    ),
                    &[],
                )
            });
            let failure = outcome.unwrap_err().failure();
            assert_eq!(failure.sqlstate, state);
            assert_eq!(failure.hint.as_deref(), Some("h"));
            assert_eq!(failure.detail.as_deref(), Some("d"));
        }
    }

    #[pg_test]
    fn periods_do_not_depend_on_the_session() {
        Spi::run("SET LOCAL TimeZone = 'Asia/Tokyo'").unwrap();
        let calendar = Calendar::new(KeyType::Timestamptz, "America/New_York").unwrap();
        let local = calendar.local(0).unwrap();
        assert_eq!(local.to_string(), "1999-12-31 19:00:00");
        let start = PartitionInterval::Monthly.floor(local).unwrap();
        assert_eq!((start.year(), start.month()), (1999, 12));
    }
}
