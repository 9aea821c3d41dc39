//! An error looks the same with the library as without it, in every field that the server sends.

use audit_db_e2e::{Client, Cluster, DbError, Session};

const SETUP: &str = r#"
CREATE DOMAIN positive AS int CONSTRAINT is_positive CHECK (VALUE > 0);
CREATE TABLE parent (id int PRIMARY KEY);
CREATE TABLE child (
    id int PRIMARY KEY,
    name text NOT NULL,
    amount int CONSTRAINT amount_small CHECK (amount < 100),
    parent int REFERENCES parent (id),
    later int REFERENCES parent (id) DEFERRABLE INITIALLY DEFERRED,
    period tstzrange,
    whole positive,
    CONSTRAINT no_overlap EXCLUDE USING gist (period WITH &&)
);
INSERT INTO parent VALUES (1);
INSERT INTO child VALUES (1, 'one', 1, 1, 1, '[2026-01-01,2026-02-01)', 1);
CREATE TABLE doubles AS SELECT 1 AS id FROM generate_series(1, 2);
CREATE TABLE log (at timestamptz NOT NULL) PARTITION BY RANGE (at);
CREATE FUNCTION inner_function(divisor int) RETURNS int LANGUAGE plpgsql AS $$
BEGIN
    RETURN 1 / divisor;
END $$;
CREATE FUNCTION outer_function() RETURNS int LANGUAGE plpgsql AS $$
DECLARE result int;
BEGIN
    SELECT inner_function(0) INTO result;
    RETURN result;
END $$;
CREATE FUNCTION bad_query() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM no_such_column FROM parent;
END $$;
CREATE FUNCTION bad_command() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE 'CREATE TABLE parent (id int)';
END $$;
CREATE FUNCTION raising() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION USING errcode = 'P0042', message = 'm', detail = 'd', hint = 'h', schema = 's', table = 't',
                          column = 'c', datatype = 'y', constraint = 'k';
END $$;
CREATE PROCEDURE calling() LANGUAGE plpgsql AS $$ BEGIN PERFORM raising(); END $$;
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM outer_function(); RETURN NEW; END $$;
CREATE TABLE guarded (id int);
CREATE TRIGGER refuse BEFORE INSERT ON guarded FOR EACH ROW EXECUTE FUNCTION refuse();
CREATE FUNCTION refuse_table() RETURNS event_trigger LANGUAGE plpgsql AS $$
BEGIN
    IF tg_tag = 'CREATE SEQUENCE' THEN PERFORM raising(); END IF;
END $$;
CREATE EVENT TRIGGER refuse_sequences ON ddl_command_end EXECUTE FUNCTION refuse_table();
"#;

/// What it is about, the SQLSTATE, and the statement (of several in a block, the first that fails).
const CASES: &[(&str, &str, &str)] = &[
    (
        "unique",
        "23505",
        "INSERT INTO child (id, name) VALUES (1, 'again')",
    ),
    (
        "check",
        "23514",
        "INSERT INTO child (id, name, amount) VALUES (2, 'two', 100)",
    ),
    (
        "foreign key",
        "23503",
        "INSERT INTO child (id, name, parent) VALUES (2, 'two', 7)",
    ),
    ("foreign key, other side", "23503", "DELETE FROM parent"),
    (
        "foreign key at commit",
        "23503",
        "BEGIN; INSERT INTO child (id, name, later) VALUES (2, 'two', 7); COMMIT",
    ),
    ("not null", "23502", "INSERT INTO child (id) VALUES (2)"),
    (
        "exclusion",
        "23P01",
        "INSERT INTO child (id, name, period) VALUES (2, 'two', '[2026-01-15,2026-03-01)')",
    ),
    (
        "domain",
        "23514",
        "INSERT INTO child (id, name, whole) VALUES (2, 'two', -1)",
    ),
    (
        "no partition",
        "23514",
        "INSERT INTO log VALUES ('2026-01-01 00:00+00')",
    ),
    ("division", "22012", "SELECT 1 / 0"),
    ("input", "22P02", "SELECT 'twelve'::int"),
    ("syntax", "42601", "SELECT 1 FROM WHERE"),
    (
        "unknown column",
        "42703",
        "SELECT no_such_column FROM parent",
    ),
    (
        "unknown column with a hint",
        "42703",
        "SELECT child.nam FROM child",
    ),
    ("unknown function", "42883", "SELECT no_such_function(1)"),
    ("nested functions", "22012", "SELECT outer_function()"),
    ("query in a function", "42703", "SELECT bad_query()"),
    ("command in a function", "42P07", "SELECT bad_command()"),
    ("raise", "P0042", "SELECT raising()"),
    (
        "raise in a block",
        "P0042",
        "DO $$ BEGIN PERFORM raising(); END $$",
    ),
    ("raise in a procedure", "P0042", "CALL calling()"),
    (
        "nested blocks",
        "22012",
        "DO $$ BEGIN EXECUTE 'DO $x$ BEGIN PERFORM outer_function(); END $x$'; END $$",
    ),
    ("trigger", "22012", "INSERT INTO guarded VALUES (1)"),
    ("event trigger", "P0042", "CREATE SEQUENCE never"),
    ("command", "42P07", "CREATE TABLE parent (id int)"),
    (
        "command with a position",
        "42704",
        "CREATE TABLE other (id no_such_type)",
    ),
    (
        "command with a constraint",
        "23514",
        "ALTER TABLE child ADD CONSTRAINT none CHECK (amount < 0)",
    ),
    (
        "command with an index",
        "23505",
        "CREATE UNIQUE INDEX ON doubles (id)",
    ),
    ("dependency", "2BP01", "DROP TABLE parent"),
    (
        "overlapping partition",
        "42P17",
        "BEGIN; CREATE TABLE one PARTITION OF log FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
      CREATE TABLE two PARTITION OF log FOR VALUES FROM ('2026-01-15') TO ('2026-03-01'); COMMIT",
    ),
    ("database there", "42P04", "CREATE DATABASE errors"),
    ("database not there", "3D000", "DROP DATABASE never"),
    ("own database", "55006", "DROP DATABASE errors"),
    (
        "template not there",
        "3D000",
        "CREATE DATABASE other TEMPLATE never",
    ),
    (
        "rename to a name in use",
        "42P04",
        "ALTER DATABASE sibling RENAME TO errors",
    ),
    (
        "rename own",
        "0A000",
        "ALTER DATABASE errors RENAME TO other",
    ),
    (
        "tablespace not there",
        "42704",
        "ALTER DATABASE sibling SET TABLESPACE never",
    ),
    (
        "database in a block",
        "25001",
        "BEGIN; DROP DATABASE sibling; COMMIT",
    ),
    (
        "database option",
        "42601",
        "CREATE DATABASE other nonsense = 1",
    ),
    ("extension not there", "0A000", "CREATE EXTENSION never"),
    (
        "extension to drop not there",
        "42704",
        "DROP EXTENSION never",
    ),
    (
        "prepared",
        "22012",
        "PREPARE p AS SELECT 1 / $1::int; EXECUTE p (0)",
    ),
    ("copy", "22P02", "COPY parent FROM PROGRAM 'echo twelve'"),
    (
        "cursor",
        "22012",
        "BEGIN; DECLARE c CURSOR FOR SELECT 1 / (x - 2) FROM generate_series(1, 3) x; FETCH ALL FROM c",
    ),
    (
        "explain",
        "22012",
        "EXPLAIN (ANALYZE) SELECT outer_function()",
    ),
    (
        "materialised view",
        "22012",
        "CREATE MATERIALIZED VIEW v AS SELECT outer_function()",
    ),
    ("role", "42704", "GRANT SELECT ON parent TO nobody_at_all"),
    ("setting", "22023", "SET work_mem = 'much'"),
];

/// Errors over the simple and, for single statements, the extended protocol.
fn errors(client: &mut Client, sql: &str) -> Vec<DbError> {
    let mut errors = vec![client.error(sql)];
    client.run("ROLLBACK");
    if !sql.contains("BEGIN;") && !sql.contains("PREPARE") {
        let error = client.execute(sql, &[]).expect_err(sql);
        errors.push(error.as_db_error().expect(sql).clone());
    }
    errors
}

fn prepare(cluster: &Cluster) -> Client {
    cluster.empty_database("sibling");
    let mut client = cluster.empty_database("errors");
    client.run(SETUP);
    client
}

#[test]
fn every_field_is_the_same_with_and_without_the_library() {
    let with = Cluster::builder().fast().start();
    let without = Cluster::builder().fast().not_preloaded().start();
    let (mut with, mut without) = (prepare(&with), prepare(&without));
    with.run("CREATE EXTENSION audit_db");
    // Also with code of the extension having run in the session.
    assert_eq!(with.number("SELECT count(*) FROM audit_db.workers"), 1);
    for (what, sqlstate, sql) in CASES {
        let (ours, plain) = (errors(&mut with, sql), errors(&mut without, sql));
        assert_eq!(plain[0].code().code(), *sqlstate, "{what}: {}", plain[0]);
        assert_eq!(ours, plain, "{what}");
    }
    // The comparison would be empty if these fields never came.
    let raised = with.error("SELECT raising()");
    assert_eq!(
        [
            raised.schema(),
            raised.table(),
            raised.column(),
            raised.datatype(),
            raised.constraint()
        ],
        [Some("s"), Some("t"), Some("c"), Some("y"), Some("k")]
    );
    assert!(raised.where_().is_some() && raised.detail().is_some() && raised.hint().is_some());
}
