//! Who may do what, whose rights the worker uses, and that no row shows to anybody through a partition that the table hides.

use audit_db_e2e::{Client, Cluster, SOON, Session, Shared, wait_until};

static CLUSTER: Shared = Shared::new(|| Cluster::builder().fast());

/// Everything that changes something, on a table `log` that is managed.
const CHANGES: &[&str] = &[
    "SELECT audit_db.create_audit_log('other_log')",
    "SELECT audit_db.manage_table('log')",
    "SELECT audit_db.manage_table('plain_log')",
    "SELECT audit_db.unmanage_table('log')",
    "SELECT audit_db.create_partition('log', '2031-01-01')",
    "SELECT audit_db.create_partitions('log', '2031-01-01')",
    "SELECT audit_db.drop_expired_partitions('log')",
    "SELECT audit_db.drop_expired_partitions('log', dry_run => true)",
    "INSERT INTO audit_db.managed_tables SELECT * FROM audit_db.managed_tables",
    "UPDATE audit_db.managed_tables SET retention = '1 day'",
    "DELETE FROM audit_db.managed_tables",
    "TRUNCATE audit_db.managed_tables",
    "INSERT INTO audit_db.events_log (severity, event, object, message) VALUES ('info', 'e', 'o', 'm')",
    "UPDATE audit_db.events_log SET message = ''",
    "DELETE FROM audit_db.events_log",
    "TRUNCATE audit_db.events_log",
    "CREATE TABLE audit_db.mine (id int)",
    "ALTER TABLE log RENAME TO elsewhere",
];

const READS: &[&str] = &[
    "SELECT * FROM audit_db.workers",
    "SELECT * FROM audit_db.worker_slots()",
    "SELECT * FROM audit_db.partition_info",
    "SELECT * FROM audit_db.partition_info('log')",
    "SELECT * FROM audit_db.partition_ranges('log')",
    "SELECT * FROM audit_db.events_log",
];

#[test]
fn nobody_changes_what_is_not_his() {
    let mut admin = CLUSTER.database("priv_changes");
    admin.run(
        "CREATE ROLE pc_stranger LOGIN; CREATE ROLE pc_monitor LOGIN IN ROLE pg_monitor;
         SELECT audit_db.create_audit_log('log');
         CREATE TABLE plain_log (at timestamptz) PARTITION BY RANGE (at);
         INSERT INTO log (\"timestamp\", action, status) VALUES (now(), 'a', 's')",
    );
    let state = "SELECT (SELECT array_agg(m::text) FROM audit_db.managed_tables m),
                        (SELECT array_agg(inhrelid::regclass ORDER BY 1) FROM pg_inherits WHERE inhrelid::regclass::text NOT LIKE '%slow_query_log%')";
    let before = admin.rows(state);

    let mut stranger = CLUSTER.connect_as("priv_changes", "pc_stranger");
    for sql in CHANGES.iter().chain(READS) {
        assert_eq!(stranger.sqlstate(sql), "42501", "without EXECUTE: {sql}");
    }
    assert_eq!(
        stranger.sqlstate("SELECT * FROM audit_db.managed_tables"),
        "00000"
    );

    admin.run("GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA audit_db TO pc_stranger");
    for sql in CHANGES {
        assert_eq!(stranger.sqlstate(sql), "42501", "with EXECUTE: {sql}");
    }
    // Without a table it is about his own tables, and he has none.
    assert_eq!(
        stranger.rows("SELECT * FROM audit_db.drop_expired_partitions()"),
        Vec::<Vec<String>>::new()
    );

    let mut monitor = CLUSTER.connect_as("priv_changes", "pc_monitor");
    for sql in READS {
        assert!(
            !monitor.rows(sql).is_empty() || sql.contains("events_log"),
            "{sql}"
        );
    }
    for sql in CHANGES {
        assert_eq!(monitor.sqlstate(sql), "42501", "as a monitor: {sql}");
    }
    assert_eq!(admin.rows(state), before);
}

#[test]
fn an_owner_who_is_no_superuser_does_everything() {
    let mut admin = CLUSTER.database("priv_owner");
    admin.run(
        "CREATE ROLE po_owner LOGIN; CREATE SCHEMA mine AUTHORIZATION po_owner; CREATE SCHEMA closed;
         GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA audit_db TO po_owner",
    );
    let mut owner = CLUSTER.connect_as("priv_owner", "po_owner");
    assert_eq!(
        owner.value("SELECT audit_db.create_audit_log('mine.log', retention => '1 year')"),
        "mine.log"
    );
    assert_eq!(
        owner.sqlstate("SELECT audit_db.create_audit_log('closed.log')"),
        "42501"
    );
    owner.run("SELECT audit_db.manage_table('mine.log', premake => 2)");
    assert_eq!(
        owner.sqlstate("SELECT audit_db.manage_table('mine.log', retention => '1 year', retention_action => 'archive:closed')"),
        "42501",
        "no CREATE on the archive schema"
    );
    for month in ["2019-01-01", "2019-02-01"] {
        owner.run(&format!(
            "SELECT audit_db.create_partition('mine.log', '{month}')"
        ));
    }
    assert_eq!(
        owner
            .column("SELECT audit_db.create_partitions('mine.log', '2019-03-15', 2)")
            .len(),
        2
    );
    assert_eq!(
        owner.column("SELECT DISTINCT relowner::regrole FROM pg_class WHERE relnamespace = 'mine'::regnamespace"),
        ["po_owner"]
    );
    // The retention of his own table, by his own call or by the worker that the setting wakes.
    owner.run("SELECT audit_db.manage_table('mine.log', premake => 2, retention => '1 year')");
    owner.run("SELECT * FROM audit_db.drop_expired_partitions('mine.log')");
    wait_until("what has expired is gone", SOON, || {
        owner.run("SELECT * FROM audit_db.drop_expired_partitions()");
        owner.value("SELECT count(*) FROM audit_db.partition_info('mine.log') WHERE range_start < '2020-01-01'") == "0"
    });
    owner.run("SELECT audit_db.unmanage_table('mine.log')");
    assert_eq!(
        owner.value("SELECT count(*) FROM audit_db.managed_tables"),
        "0"
    );
    owner.run("DROP TABLE mine.log");
    assert_eq!(
        admin.rows("SELECT event, message FROM audit_db.events_log WHERE severity = 'error'"),
        Vec::<Vec<String>>::new()
    );
}

/// A role of its own database, a tenant that it claims, and what it reads.
struct Reader {
    user: String,
    tenant: &'static str,
    columns: &'static str,
}

fn readers(prefix: &str) -> Vec<Reader> {
    let mut readers = Vec::new();
    for (role, columns) in [
        ("ann", "at, principal, tenant, secret"),
        ("ben", "at, principal, tenant, secret"),
        ("auditor", "at, principal, tenant"),
    ] {
        for tenant in ["red", "blue", "none"] {
            readers.push(Reader {
                user: format!("{prefix}_{role}"),
                tenant,
                columns,
            });
        }
    }
    readers
}

/// What each reader sees in January 2019 in a relation.
fn seen(database: &str, readers: &[Reader], relation: &str) -> Vec<Vec<Vec<String>>> {
    readers
        .iter()
        .map(|reader| {
            let mut client = CLUSTER.connect_as(database, &reader.user);
            client.run(&format!("SET app.tenant = '{}'", reader.tenant));
            client.rows(&format!(
                "SELECT {} FROM {relation} WHERE at >= '2019-01-01 00:00+00' AND at < '2019-02-01 00:00+00' ORDER BY at, principal",
                reader.columns
            ))
        })
        .collect()
}

/// Everything that a relation's protection is made of, columns by name.
fn protection(admin: &mut Client, relation: &str) -> Vec<Vec<String>> {
    admin.rows(&format!(
        "SELECT 'flags', c.relrowsecurity::text, c.relforcerowsecurity::text, '' FROM pg_class c WHERE c.oid = '{relation}'::regclass
         UNION ALL
         SELECT 'grant', a.grantee::regrole::text, a.privilege_type, a.is_grantable::text
           FROM pg_class c, aclexplode(c.relacl) a WHERE c.oid = '{relation}'::regclass AND a.grantee <> c.relowner
         UNION ALL
         SELECT 'column ' || att.attname, a.grantee::regrole::text, a.privilege_type, a.is_grantable::text
           FROM pg_attribute att, aclexplode(att.attacl) a WHERE att.attrelid = '{relation}'::regclass
         UNION ALL
         SELECT 'policy ' || p.polname, p.polcmd::text || p.polpermissive::text, p.polroles::regrole[]::text,
                concat(regexp_replace(pg_get_expr(p.polqual, p.polrelid), '\\m(log_2019_01|log)\\.', 'T.', 'g'), ' / ',
                       pg_get_expr(p.polwithcheck, p.polrelid))
           FROM pg_policy p WHERE p.polrelid = '{relation}'::regclass
         ORDER BY 1, 2, 3, 4"
    ))
}

/// The rows each reader sees are the same through the table before, and in the detached month after; nobody reads an attached one.
fn row_security(prefix: &str, forced: bool, action: &str, detached: &str) {
    let database = format!("priv_{prefix}");
    let mut admin = CLUSTER.database(&database);
    admin.run(&format!(
        r#"CREATE ROLE {prefix}_keeper LOGIN; CREATE ROLE {prefix}_ann LOGIN; CREATE ROLE {prefix}_ben LOGIN;
           CREATE ROLE {prefix}_auditor LOGIN; CREATE ROLE {prefix}_writer LOGIN; CREATE ROLE {prefix}_stranger LOGIN;
           GRANT CREATE ON SCHEMA public TO {prefix}_keeper;
           CREATE SCHEMA "old months" AUTHORIZATION {prefix}_keeper;
           GRANT USAGE ON SCHEMA "old months" TO PUBLIC;
           GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA audit_db TO {prefix}_keeper;
           SET ROLE {prefix}_keeper;
           -- The partitions that are made later have no hole where the dropped columns were: other attribute numbers.
           CREATE TABLE log (gone int, at timestamptz NOT NULL, lost text, principal text NOT NULL, tenant text, secret text,
                             PRIMARY KEY (at, principal)) PARTITION BY RANGE (at);
           ALTER TABLE log DROP COLUMN gone, DROP COLUMN lost;
           CREATE TABLE clearance (who name, principal text);
           INSERT INTO clearance VALUES ('{prefix}_auditor', '{prefix}_ann');
           GRANT SELECT ON clearance TO {prefix}_auditor, {prefix}_writer;
           GRANT SELECT ON log TO {prefix}_ann, {prefix}_ben WITH GRANT OPTION;
           GRANT SELECT (at, principal, tenant), UPDATE (tenant) ON log TO {prefix}_auditor;
           GRANT SELECT, INSERT, DELETE ON log TO {prefix}_writer;
           ALTER TABLE log ENABLE ROW LEVEL SECURITY;
           CREATE POLICY own ON log FOR SELECT TO {prefix}_ann, {prefix}_ben USING (principal = current_user);
           CREATE POLICY cleared ON log FOR SELECT TO {prefix}_auditor
               USING (EXISTS (SELECT FROM clearance c WHERE c.who = current_user AND c.principal = log.principal));
           CREATE POLICY "the tenant" ON log AS RESTRICTIVE USING (tenant = current_setting('app.tenant', true));
           CREATE POLICY writing ON log FOR INSERT TO {prefix}_writer WITH CHECK (secret IS NULL);
           -- Whoever makes a table here opens it to everybody; a partition must not be.
           ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC;
           ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO {prefix}_stranger;
           RESET ROLE;
           ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC"#
    ));
    if forced {
        admin.run("ALTER TABLE log FORCE ROW LEVEL SECURITY");
    }
    let mut keeper = CLUSTER.connect_as(&database, &format!("{prefix}_keeper"));
    keeper.run("SELECT audit_db.manage_table('log', premake => 1)");
    // A row that waits in the default moves into its month with the rights of the owner, forced row security or not.
    admin.run(&format!(
        "INSERT INTO log (at, principal, tenant, secret)
         SELECT timestamptz '2019-01-01 00:00+00' + n * interval '1 hour', '{prefix}_' || p, t, 'secret ' || n
           FROM generate_series(1, 5) n, unnest('{{ann,ben,cid}}'::text[]) WITH ORDINALITY p (p, i),
                LATERAL (SELECT CASE WHEN (n + i) % 2 = 0 THEN 'red' ELSE 'blue' END) t (t)"
    ));
    keeper.run("SELECT audit_db.create_partition('log', '2019-01-01')");
    assert_eq!(
        admin.rows("SELECT DISTINCT tableoid::regclass, count(*) FROM log GROUP BY 1"),
        [["log_2019_01", "15"]]
    );

    let readers = readers(prefix);
    let through_table = seen(&database, &readers, "log");
    let rows: usize = through_table.iter().map(Vec::len).sum();
    assert!(
        rows > 0 && through_table.iter().any(Vec::is_empty),
        "{through_table:?}"
    );
    assert!(
        through_table.iter().all(|rows| rows.len() < 4),
        "each sees a part of his own rows only: {through_table:?}"
    );

    let partitions = admin
        .column("SELECT inhrelid::regclass FROM pg_inherits WHERE inhparent = 'log'::regclass");
    assert!(partitions.len() >= 3);
    for role in ["ann", "ben", "auditor", "writer", "stranger"] {
        let mut client = CLUSTER.connect_as(&database, &format!("{prefix}_{role}"));
        client.run("SET app.tenant = 'red'");
        for partition in &partitions {
            for sql in [
                format!("SELECT count(*) FROM {partition}"),
                format!("SELECT at FROM {partition}"),
                format!("DELETE FROM {partition}"),
                format!("UPDATE {partition} SET tenant = 'red'"),
                format!(
                    "INSERT INTO {partition} (at, principal, tenant) VALUES (now(), 'x', 'red')"
                ),
                format!("TRUNCATE {partition}"),
            ] {
                assert_eq!(client.sqlstate(&sql), "42501", "{role}: {sql}");
            }
        }
    }
    if forced {
        keeper.run("SET app.tenant = 'red'");
        for relation in ["log", "log_2019_01"] {
            assert_eq!(
                keeper.value(&format!("SELECT count(*) FROM {relation}")),
                "0",
                "the owner, forced"
            );
        }
    }

    let expected = protection(&mut admin, "log");
    keeper.run(&format!(
        "SELECT audit_db.manage_table('log', premake => 1, retention => '1 year', retention_action => '{action}')"
    ));
    wait_until("the month has left the table", SOON, || {
        admin.value(&format!(
            "SELECT to_regclass('{detached}') IS NOT NULL AND NOT EXISTS (
                         SELECT FROM pg_inherits WHERE inhrelid = to_regclass('{detached}'))"
        )) == "t"
    });
    assert_eq!(admin.value("SELECT count(*) FROM log"), "0");
    assert_eq!(protection(&mut admin, detached), expected);
    assert_eq!(seen(&database, &readers, detached), through_table);

    let mut auditor = CLUSTER.connect_as(&database, &format!("{prefix}_auditor"));
    assert_eq!(
        auditor.sqlstate(&format!("SELECT secret FROM {detached}")),
        "42501"
    );
    let mut writer = CLUSTER.connect_as(&database, &format!("{prefix}_writer"));
    writer.run("SET app.tenant = 'red'");
    for (secret, sqlstate) in [("NULL", "00000"), ("'no'", "42501")] {
        let sql = format!(
            "INSERT INTO {detached} VALUES ('2019-01-31 00:00+00', 'w' || random(), 'red', {secret})"
        );
        assert_eq!(writer.sqlstate(&sql), sqlstate, "{sql}");
    }
    let mut stranger = CLUSTER.connect_as(&database, &format!("{prefix}_stranger"));
    assert_eq!(
        stranger.sqlstate(&format!("SELECT FROM {detached}")),
        "42501"
    );
    assert_eq!(
        keeper.value(&format!(
            "SELECT relowner::regrole FROM pg_class WHERE oid = '{detached}'::regclass"
        )),
        format!("{prefix}_keeper")
    );
}

#[test]
fn row_security_holds_through_detaching() {
    row_security("rd", false, "detach", "public.log_2019_01");
}

#[test]
fn row_security_holds_through_archiving() {
    row_security(
        "ra",
        false,
        "archive:old months",
        r#""old months".log_2019_01"#,
    );
}

#[test]
fn forced_row_security_holds_through_archiving() {
    row_security(
        "rf",
        true,
        "archive:old months",
        r#""old months".log_2019_01"#,
    );
}

/// Row security that comes after the partitions reaches them by the worker's next cycle.
#[test]
fn late_row_security_reaches_partitions() {
    let mut admin = CLUSTER.database("priv_late");
    admin.run(
        "CREATE TABLE log (at timestamptz NOT NULL) PARTITION BY RANGE (at);
         SELECT audit_db.manage_table('log', premake => 1);
         ALTER TABLE log ENABLE ROW LEVEL SECURITY; ALTER TABLE log FORCE ROW LEVEL SECURITY;
         SELECT audit_db.manage_table('log', premake => 1)",
    );
    wait_until("partitions have the flags of their table", SOON, || {
        admin.holds(
            "SELECT bool_and(c.relrowsecurity AND c.relforcerowsecurity)
               FROM pg_inherits h JOIN pg_class c ON c.oid = h.inhrelid WHERE h.inhparent = 'log'::regclass",
        )
    });
}

/// Functions that a table's owner wrote run when the worker moves rows and builds indexes; they find his rights, not the worker's.
#[test]
fn the_owners_functions_never_run_as_superuser() {
    let mut admin = CLUSTER.database("priv_worker");
    admin.run(
        "CREATE ROLE pw_mallory LOGIN; CREATE SCHEMA lair AUTHORIZATION pw_mallory;
         GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA audit_db TO pw_mallory;
         CREATE TABLE crown (jewel text); INSERT INTO crown VALUES ('safe')",
    );
    let mut mallory = CLUSTER.connect_as("priv_worker", "pw_mallory");
    mallory.run(
        "SET search_path = lair;
         CREATE TABLE evidence (what text, who name, session name);
         CREATE FUNCTION try(command text) RETURNS void LANGUAGE plpgsql AS $$
         BEGIN
             EXECUTE command;
             INSERT INTO lair.evidence VALUES ('succeeded: ' || command, current_user, session_user);
         EXCEPTION WHEN OTHERS THEN
             INSERT INTO lair.evidence VALUES (sqlstate, current_user, session_user);
         END $$;
         CREATE FUNCTION attack() RETURNS void LANGUAGE plpgsql AS $$
         BEGIN
             PERFORM lair.try('ALTER ROLE pw_mallory SUPERUSER');
             PERFORM lair.try('UPDATE public.crown SET jewel = ''stolen''');
             PERFORM lair.try('SET ROLE postgres');
             PERFORM lair.try('RESET ROLE');
             PERFORM lair.try('SET SESSION AUTHORIZATION postgres');
             PERFORM lair.try('COPY lair.evidence TO PROGRAM ''cat > audit_db_e2e.stolen''');
             PERFORM lair.try('CREATE TEMP TABLE left_behind (id int)');
             PERFORM lair.try('INSERT INTO lair.deferred VALUES (1)');
             -- Allowed, and it must be over when the step is: with it bare operators would be found in the lair first.
             PERFORM pg_catalog.set_config('search_path', 'lair, pg_catalog', false);
         END $$;
         DO $do$
         DECLARE kind text;
         BEGIN
             FOREACH kind IN ARRAY ARRAY['oid', 'regclass', 'text', '\"char\"', 'smallint', 'integer', 'bigint', 'name'] LOOP
                 EXECUTE format('CREATE FUNCTION same(a %1$s, b %1$s) RETURNS boolean LANGUAGE plpgsql AS $$
                     BEGIN
                         PERFORM lair.attack();
                         RETURN a::text OPERATOR(pg_catalog.=) b::text;
                     END $$', kind);
                 EXECUTE format('CREATE OPERATOR = (LEFTARG = %1$s, RIGHTARG = %1$s, FUNCTION = same)', kind);
             END LOOP;
         END $do$;
         CREATE FUNCTION spy(at timestamptz) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $$
         BEGIN
             PERFORM lair.attack();
             RETURN true;
         END $$;
         CREATE FUNCTION spying_trigger() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN
             PERFORM lair.attack();
             RETURN NEW;
         END $$;
         CREATE FUNCTION at_commit() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN
             PERFORM lair.try('ALTER ROLE pw_mallory SUPERUSER');
             RETURN NULL;
         END $$;
         CREATE TABLE deferred (id int);
         CREATE CONSTRAINT TRIGGER later AFTER INSERT ON deferred DEFERRABLE INITIALLY DEFERRED
             FOR EACH ROW EXECUTE FUNCTION at_commit();
         CREATE TABLE log (at timestamptz NOT NULL, by_default boolean DEFAULT spy(now()),
                           made boolean GENERATED ALWAYS AS (spy(at)) STORED,
                           CHECK (spy(at))) PARTITION BY RANGE (at);
         CREATE INDEX ON log (spy(at));
         CREATE INDEX ON log (at) WHERE spy(at);
         CREATE POLICY p ON log USING (spy(at));
         ALTER TABLE log ENABLE ROW LEVEL SECURITY;
         ALTER TABLE log FORCE ROW LEVEL SECURITY;
         SELECT audit_db.manage_table('log', premake => 1);
         CREATE TRIGGER spying BEFORE INSERT OR DELETE ON log FOR EACH ROW EXECUTE FUNCTION spying_trigger();
         INSERT INTO log SELECT timestamptz '2025-03-03 00:00+00' + n * interval '1 hour' FROM generate_series(1, 5) n",
    );
    // With a trigger on the table its default partition is exchanged; without it the rows are moved.
    mallory.run("SET search_path = lair; TRUNCATE evidence; SELECT audit_db.manage_table('log', premake => 2)");
    wait_until("the rows have been copied", SOON, || {
        admin
            .value("SELECT count(*) FROM lair.log WHERE tableoid = to_regclass('lair.log_2025_03')")
            == "5"
    });
    mallory.run(
        "DROP TRIGGER spying ON log; DROP TABLE log_2025_03;
         INSERT INTO log SELECT timestamptz '2025-03-03 00:00+00' + n * interval '1 hour' FROM generate_series(1, 5) n;
         SELECT audit_db.manage_table('log', premake => 2)",
    );
    wait_until("the rows have moved", SOON, || {
        admin
            .value("SELECT count(*) FROM lair.log WHERE tableoid = to_regclass('lair.log_2025_03')")
            == "5"
    });
    // The expired month goes with the owner's rights, too.
    mallory.run("SELECT audit_db.manage_table('log', premake => 2, retention => '1 day', retention_action => 'detach')");
    wait_until("the month has left", SOON, || {
        admin.value("SELECT count(*) FROM audit_db.events_log WHERE event = 'partition detached'")
            == "1"
    });

    // A superuser who looks after the table himself is as safe, and his session stays as it was.
    mallory.run("INSERT INTO log (at) VALUES ('2025-05-05 00:00+00')");
    let mut helper = CLUSTER.connect("priv_worker");
    helper.run("SET search_path = public");
    helper.run("SELECT audit_db.create_partition('lair.log', '2025-05-01')");
    assert_eq!(helper.value("SHOW search_path"), "public");

    let by_worker = admin.rows(
        "SELECT DISTINCT what, who FROM lair.evidence WHERE session <> 'pw_mallory' ORDER BY 1",
    );
    assert!(
        !by_worker.is_empty(),
        "the owner's functions never ran in the worker"
    );
    for row in &by_worker {
        assert_eq!(row[1], "pw_mallory", "{row:?}");
        assert!(!row[0].starts_with("succeeded"), "{row:?}");
    }
    assert!(!admin.holds("SELECT rolsuper FROM pg_roles WHERE rolname = 'pw_mallory'"));
    assert_eq!(admin.value("SELECT jewel FROM crown"), "safe");
    assert!(!CLUSTER.data().join("audit_db_e2e.stolen").exists());
}
