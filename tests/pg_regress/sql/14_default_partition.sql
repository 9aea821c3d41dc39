-- Rows that wait in the default partition.
\set SHOW_CONTEXT never
\set ON_ERROR_ROLLBACK on
SET TimeZone = 'UTC';
SET DateStyle = 'ISO, YMD';
SET IntervalStyle = 'postgres';
SET client_min_messages = error; -- the warning about the lock table depends on the server's configuration
-- Partitions of a table with their bounds, those around today left out.
CREATE FUNCTION pg_temp.parts(regclass) RETURNS TABLE (partition name, bounds text) LANGUAGE sql AS $$
    SELECT c.relname, pg_get_expr(c.relpartbound, c.oid)
      FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
     WHERE i.inhparent = $1
       AND NOT coalesce(substring(pg_get_expr(c.relpartbound, c.oid) FROM $r$FROM \('(\d{4})$r$)::int BETWEEN 2020 AND 2200, false)
     ORDER BY c.relname COLLATE "C"
$$;
BEGIN;
CREATE SCHEMA app;
CREATE TABLE app.log (
    id bigint GENERATED ALWAYS AS IDENTITY,
    at timestamptz NOT NULL,
    what text,
    gone int,
    shout text GENERATED ALWAYS AS (upper(what)) STORED,
    "Odd Column" jsonb
) PARTITION BY RANGE (at);
ALTER TABLE app.log DROP COLUMN gone;
SELECT audit_db.manage_table('app.log', premake => 0);
INSERT INTO app.log (at, what, "Odd Column") VALUES ('2001-01-31 23:59:59.999999+00', 'january', '{}'), ('2001-02-01 00:00+00', 'first', '[1]'),
    ('2001-02-28 23:59:59.999999+00', 'last', NULL), ('2001-03-01 00:00+00', 'march', 'null'), ('-infinity', 'never', NULL), ('infinity', 'for ever', NULL);
SELECT audit_db.create_partition('app.log', '2001-02-01');
SELECT tableoid::regclass, * FROM app.log ORDER BY id;
-- Several at once.
SELECT audit_db.create_partitions('app.log', '2001-01-01', 4);
SELECT tableoid::regclass, id, at FROM app.log ORDER BY id;
-- The sequence goes on.
INSERT INTO app.log (at, what) VALUES ('2001-02-02', 'next');
SELECT max(id) FROM app.log;
-- 1,000 rows that a month could be made for are moved; with one more nothing is.
INSERT INTO app.log (at) SELECT timestamptz '2002-01-01 00:00+00' + n * interval '1 minute' FROM generate_series(1, 1000) n;
SELECT count(*) FROM ONLY app.log_default;
SELECT audit_db.create_partition('app.log', '2002-01-01');
SELECT count(*) FROM app.log_2002_01;
SELECT count(*) FROM ONLY app.log_default;
INSERT INTO app.log (at) SELECT timestamptz '2003-01-01 00:00+00' + n * interval '1 minute' FROM generate_series(1, 1001) n;
SELECT audit_db.create_partition('app.log', '2003-01-01');
\echo :SQLSTATE
-- Also where none of them belongs to the new partition: ATTACH would look at each.
SELECT audit_db.create_partition('app.log', '2004-01-01');
\echo :SQLSTATE
SELECT audit_db.create_partitions('app.log', '2004-01-01', 2);
\echo :SQLSTATE
-- What is there already needs no look.
SELECT audit_db.create_partition('app.log', '2002-01-01');
SELECT count(*) FROM app.log;
-- Rows of absurd times, which stay for good, do not count.
DELETE FROM app.log WHERE at >= '2003-01-01' AND at < '2004-01-01';
INSERT INTO app.log (at) SELECT timestamptz '3000-01-01 00:00+00' + n * interval '1 minute' FROM generate_series(1, 1001) n;
SELECT audit_db.create_partition('app.log', '2004-01-01');
ROLLBACK;

-- A row that the owner's row security would hide is moved too.
BEGIN;
CREATE ROLE regress_owner;
CREATE SCHEMA app AUTHORIZATION regress_owner;
SET LOCAL ROLE regress_owner;
CREATE TABLE app.hidden (at date NOT NULL, what text) PARTITION BY RANGE (at);
RESET ROLE;
SELECT audit_db.manage_table('app.hidden', premake => 0);
INSERT INTO app.hidden VALUES ('2001-01-15', 'seen'), ('2001-01-16', 'hidden');
ALTER TABLE app.hidden ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY only_seen ON app.hidden USING (what = 'seen');
ALTER TABLE app.hidden_default ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
SELECT audit_db.create_partition('app.hidden', '2001-01-01');
SELECT tableoid::regclass, * FROM app.hidden ORDER BY at;
ROLLBACK;

-- Nobody sees the rows being moved: where somebody would, they stay.
BEGIN;
CREATE SCHEMA app;
CREATE FUNCTION app.watch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'seen'; END $$;
CREATE TABLE app.watched (at date NOT NULL) PARTITION BY RANGE (at);
SELECT audit_db.manage_table('app.watched', premake => 0);
INSERT INTO app.watched VALUES ('2001-01-15'), ('2002-01-15'), ('2003-01-15'), ('2004-01-15');
CREATE TRIGGER watch AFTER DELETE ON app.watched_default FOR EACH ROW EXECUTE FUNCTION app.watch();
SELECT audit_db.create_partition('app.watched', '2001-01-01');
\echo :SQLSTATE
-- Another range is none of the trigger's business.
SELECT audit_db.create_partition('app.watched', '1991-01-01');
DROP TRIGGER watch ON app.watched_default;
-- A trigger of the parent is a trigger of the default too.
CREATE TRIGGER watch AFTER INSERT OR DELETE ON app.watched FOR EACH ROW EXECUTE FUNCTION app.watch();
SELECT audit_db.create_partition('app.watched', '2001-01-01');
\echo :SQLSTATE
DROP TRIGGER watch ON app.watched;
-- Statement triggers of the parent do not fire either: the rows do not move through it.
CREATE TRIGGER watch AFTER INSERT OR DELETE OR UPDATE ON app.watched FOR EACH STATEMENT EXECUTE FUNCTION app.watch();
SELECT audit_db.create_partition('app.watched', '2001-01-01');
DROP TRIGGER watch ON app.watched;
CREATE RULE quiet AS ON DELETE TO app.watched_default DO INSTEAD NOTHING;
SELECT audit_db.create_partition('app.watched', '2002-01-01');
\echo :SQLSTATE
DROP RULE quiet ON app.watched_default;
SET LOCAL client_min_messages = error;
CREATE PUBLICATION regress_one FOR TABLE app.watched;
SELECT audit_db.create_partition('app.watched', '2002-01-01');
\echo :SQLSTATE
DROP PUBLICATION regress_one;
CREATE PUBLICATION regress_default FOR TABLE app.watched_default;
SELECT audit_db.create_partition('app.watched', '2002-01-01');
\echo :SQLSTATE
DROP PUBLICATION regress_default;
CREATE PUBLICATION regress_schema FOR TABLES IN SCHEMA app;
SELECT audit_db.create_partition('app.watched', '2002-01-01');
\echo :SQLSTATE
DROP PUBLICATION regress_schema;
CREATE PUBLICATION regress_all FOR ALL TABLES;
SELECT audit_db.create_partition('app.watched', '2002-01-01');
\echo :SQLSTATE
-- A partition without waiting rows can be made all the same.
SELECT audit_db.create_partition('app.watched', '1992-01-01');
DROP PUBLICATION regress_all;
SELECT audit_db.create_partition('app.watched', '2002-01-01');
-- Foreign keys that refer to the default.
ALTER TABLE app.watched_default ADD PRIMARY KEY (at);
CREATE TABLE app.referring (at date REFERENCES app.watched_default);
INSERT INTO app.referring VALUES ('2003-01-15');
SELECT audit_db.create_partition('app.watched', '2003-01-01');
\echo :SQLSTATE
DROP TABLE app.referring;
SELECT audit_db.create_partition('app.watched', '2003-01-01');
SELECT tableoid::regclass, at FROM app.watched ORDER BY at;
ROLLBACK;

-- Foreign keys to the table itself: its rows cannot leave the default.
BEGIN;
CREATE SCHEMA app;
CREATE TABLE app.target (at date PRIMARY KEY) PARTITION BY RANGE (at);
SELECT audit_db.manage_table('app.target', premake => 0);
INSERT INTO app.target VALUES ('2001-01-15');
CREATE TABLE app.referring (at date REFERENCES app.target);
INSERT INTO app.referring VALUES ('2001-01-15');
SELECT audit_db.create_partition('app.target', '2001-01-01');
\echo :SQLSTATE
SELECT audit_db.create_partition('app.target', '2002-01-01');
SELECT tableoid::regclass, at FROM app.target;
ROLLBACK;

-- A default that is partitioned itself.
BEGIN;
CREATE SCHEMA app;
CREATE TABLE app.log (at date NOT NULL) PARTITION BY RANGE (at);
CREATE TABLE app.log_rest PARTITION OF app.log DEFAULT PARTITION BY RANGE (at);
CREATE TABLE app.log_rest_old PARTITION OF app.log_rest FOR VALUES FROM (MINVALUE) TO ('2000-01-01');
CREATE TABLE app.log_rest_new PARTITION OF app.log_rest FOR VALUES FROM ('2000-01-01') TO (MAXVALUE);
INSERT INTO app.log VALUES ('1999-12-31'), ('2001-01-01');
SELECT audit_db.manage_table('app.log', 'yearly', premake => 0);
SELECT audit_db.create_partition('app.log', '1999-01-01');
SELECT audit_db.create_partition('app.log', '2001-01-01');
SELECT tableoid::regclass, at FROM app.log ORDER BY at;
-- Its triggers are found too.
CREATE FUNCTION app.watch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'seen'; END $$;
CREATE TRIGGER watch AFTER DELETE ON app.log_rest_old FOR EACH ROW EXECUTE FUNCTION app.watch();
INSERT INTO app.log VALUES ('1998-12-31');
SELECT audit_db.create_partition('app.log', '1998-01-01');
\echo :SQLSTATE
ROLLBACK;
