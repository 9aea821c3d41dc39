-- manage_table and unmanage_table.
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
-- SQLSTATE of a statement; what it did is undone.
CREATE FUNCTION pg_temp.state(statement text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE statement;
    RAISE EXCEPTION SQLSTATE '00001';
EXCEPTION
    WHEN SQLSTATE '00001' THEN RETURN 'no error';
    WHEN OTHERS THEN RETURN sqlstate;
END $$;
BEGIN;
CREATE SCHEMA app;
CREATE TABLE app.events (at timestamptz NOT NULL, what text) PARTITION BY RANGE (at);
SELECT audit_db.manage_table('app.events');
SELECT parent, partition_interval, premake, retention, retention_action, time_zone, default_partition, storage_parameters
  FROM audit_db.managed_tables;
SELECT count(*) FILTER (WHERE NOT is_default) AS months, count(*) FILTER (WHERE is_default) AS defaults,
       bool_and(partition::text = format('app.events_%s', to_char(range_start, 'YYYY_MM'))) FILTER (WHERE NOT is_default) AS named,
       bool_and(partition::text = 'app.events_default') FILTER (WHERE is_default) AS default_named
  FROM audit_db.partition_ranges('app.events');
-- Again: other settings, what was not given is the default again; nothing is made twice.
SELECT audit_db.manage_table('app.events', premake => 2, retention => '1 year 2 mons 3 days', retention_action => 'detach',
                             time_zone => 'Asia/Tokyo', storage_parameters => '{fillfactor=70}');
SELECT parent, partition_interval, premake, retention, retention_action, time_zone, default_partition, storage_parameters
  FROM audit_db.managed_tables;
SELECT count(*) FROM audit_db.partition_ranges('app.events');
-- By position.
SELECT audit_db.manage_table('app.events', 'quarterly', 0, '10 years', 'archive:app', 'UTC', false, NULL, NULL);
SELECT parent, partition_interval, premake, retention, retention_action, time_zone, default_partition, storage_parameters
  FROM audit_db.managed_tables;
-- The default partition that is there stays.
SELECT partition FROM audit_db.partition_ranges('app.events') WHERE is_default;
-- The settings may be read by everybody and written by nobody but the functions.
CREATE ROLE regress_reader;
SET LOCAL ROLE regress_reader;
SELECT count(*) FROM audit_db.managed_tables;
DELETE FROM audit_db.managed_tables;
\echo :SQLSTATE
RESET ROLE;
SELECT audit_db.unmanage_table('app.events');
SELECT count(*) FROM audit_db.managed_tables;
SELECT count(*) > 0 AS partitions_stay FROM pg_inherits WHERE inhparent = 'app.events'::regclass;
SELECT audit_db.unmanage_table('app.events');
\echo :SQLSTATE
SELECT audit_db.unmanage_table(NULL);
\echo :SQLSTATE
SELECT audit_db.unmanage_table('pg_class');
\echo :SQLSTATE
SELECT audit_db.unmanage_table(4000000000::oid::regclass);
\echo :SQLSTATE
ROLLBACK;

BEGIN;
CREATE SCHEMA app;
-- Without a default partition.
CREATE TABLE app.strict (at timestamp NOT NULL) PARTITION BY RANGE (at);
SELECT audit_db.manage_table('app.strict', premake => 0, default_partition => false);
SELECT count(*) FILTER (WHERE NOT is_default) AS months, count(*) FILTER (WHERE is_default) AS defaults
  FROM audit_db.partition_ranges('app.strict');
INSERT INTO app.strict VALUES ('2001-01-01');
\echo :SQLSTATE
-- A table that has a default partition of another name keeps it.
CREATE TABLE app.has_one (at date NOT NULL) PARTITION BY RANGE (at);
CREATE TABLE app.rest PARTITION OF app.has_one DEFAULT;
SELECT audit_db.manage_table('app.has_one', premake => 0);
SELECT partition FROM audit_db.partition_ranges('app.has_one') WHERE is_default;
-- The default's name is in use by another table.
CREATE TABLE app.unlucky (at date NOT NULL) PARTITION BY RANGE (at);
CREATE TABLE app.unlucky_default ();
SELECT audit_db.manage_table('app.unlucky', premake => 0);
\echo :SQLSTATE
SELECT count(*) FROM audit_db.managed_tables WHERE parent = 'app.unlucky'::regclass;
-- Each interval makes the current period and those ahead, wherever the zone is.
CREATE TABLE app.steps (at timestamptz NOT NULL) PARTITION BY RANGE (at);
CREATE FUNCTION pg_temp.steps(step text, zone text) RETURNS TABLE (made bigint, first_ok boolean, last_ok boolean, seamless boolean)
LANGUAGE plpgsql AS $$
DECLARE
    unit text := CASE step WHEN 'daily' THEN 'day' WHEN 'weekly' THEN 'week' WHEN 'monthly' THEN 'month' WHEN 'quarterly' THEN 'quarter' ELSE 'year' END;
    length interval := CASE step WHEN 'daily' THEN '1 day' WHEN 'weekly' THEN '1 week' WHEN 'monthly' THEN '1 month' WHEN 'quarterly' THEN '3 months' ELSE '1 year' END;
BEGIN
    DROP TABLE IF EXISTS app.steps;
    CREATE TABLE app.steps (at timestamptz NOT NULL) PARTITION BY RANGE (at);
    -- Not further than audit_db.max_future.
    PERFORM audit_db.manage_table('app.steps', step, CASE step WHEN 'yearly' THEN 1 WHEN 'quarterly' THEN 2 ELSE 3 END, time_zone => zone);
    RETURN QUERY
        SELECT count(*),
               min(range_start) = date_trunc(unit, now() AT TIME ZONE zone) AT TIME ZONE zone,
               max(range_end) = (date_trunc(unit, now() AT TIME ZONE zone) + count(*) * length) AT TIME ZONE zone,
               max(range_end) - min(range_start) = sum(range_end - range_start)
          FROM audit_db.partition_ranges('app.steps') WHERE NOT is_default;
END $$;
SELECT step, zone, made.* FROM unnest('{daily,weekly,monthly,quarterly,yearly}'::text[]) step,
       unnest('{UTC,Asia/Kathmandu,America/St_Johns,Pacific/Kiritimati}'::text[]) zone, pg_temp.steps(step, zone) made
 ORDER BY zone COLLATE "C", step COLLATE "C";
-- However long premake is, nothing is made beyond audit_db.max_future.
SELECT audit_db.manage_table('app.steps', 'yearly', 1000);
SELECT count(*) BETWEEN 1 AND 12 FROM audit_db.partition_ranges('app.steps');
ROLLBACK;

-- Storage parameters.
BEGIN;
CREATE SCHEMA app;
CREATE TABLE app.stored (at date NOT NULL, note text) PARTITION BY RANGE (at);
SELECT audit_db.manage_table('app.stored', premake => 0,
    storage_parameters => '{fillfactor=80,autovacuum_enabled=false,toast.autovacuum_enabled=false}');
SELECT audit_db.create_partition('app.stored', '2001-01-01');
SELECT c.relname, c.reloptions, t.reloptions AS toast
  FROM pg_class c LEFT JOIN pg_class t ON t.oid = c.reltoastrelid WHERE c.oid = 'app.stored_2001_01'::regclass;
-- Null: those of the newest sibling.
SELECT audit_db.manage_table('app.stored', premake => 0);
SELECT audit_db.create_partition('app.stored', '3001-01-01');
SELECT c.relname, c.reloptions, t.reloptions AS toast
  FROM pg_class c LEFT JOIN pg_class t ON t.oid = c.reltoastrelid WHERE c.oid = 'app.stored_3001_01'::regclass;
ALTER TABLE app.stored_3001_01 RESET (fillfactor, autovacuum_enabled, toast.autovacuum_enabled);
ALTER TABLE app.stored_3001_01 SET (fillfactor = 60);
SELECT audit_db.create_partition('app.stored', '2002-01-01');
SELECT c.relname, c.reloptions, t.reloptions AS toast
  FROM pg_class c LEFT JOIN pg_class t ON t.oid = c.reltoastrelid WHERE c.oid = 'app.stored_2002_01'::regclass;
-- Empty: none.
SELECT audit_db.manage_table('app.stored', premake => 0, storage_parameters => '{}');
SELECT audit_db.create_partition('app.stored', '2003-01-01');
SELECT reloptions FROM pg_class WHERE oid = 'app.stored_2003_01'::regclass;
-- Wrong ones.
SELECT audit_db.manage_table('app.stored', storage_parameters => '{fillfactor}');
\echo :SQLSTATE
SELECT audit_db.manage_table('app.stored', storage_parameters => '{"fillfactor=90) TABLESPACE x --"}');
\echo :SQLSTATE
SELECT audit_db.manage_table('app.stored', storage_parameters => '{"Fill factor=90"}');
\echo :SQLSTATE
-- Also where nothing is to be made at once.
SELECT parameters, pg_temp.state(format('SELECT audit_db.manage_table(''app.stored'', premake => 0, storage_parameters => %L)', parameters))
  FROM unnest('{"{fillfactor=1}","{no_such_parameter=1}","{user_catalog_table=true,fillfactor=}"}'::text[]) parameters;
CREATE TABLE app.fresh (at date NOT NULL) PARTITION BY RANGE (at);
SELECT audit_db.manage_table('app.fresh', premake => 0, storage_parameters => '{no_such_parameter=1}');
\echo :SQLSTATE
SELECT audit_db.manage_table('app.fresh', premake => 0, storage_parameters => '{fillfactor=1}');
\echo :SQLSTATE
ROLLBACK;

-- Tables that cannot be managed, and bad arguments.
BEGIN;
CREATE SCHEMA app;
CREATE TABLE app.plain (at date);
SELECT audit_db.manage_table('app.plain');
\echo :SQLSTATE
CREATE VIEW app.seen AS SELECT * FROM app.plain;
SELECT audit_db.manage_table('app.seen');
\echo :SQLSTATE
CREATE TABLE app.indexed (at date PRIMARY KEY) PARTITION BY RANGE (at);
SELECT audit_db.manage_table('app.indexed_pkey');
\echo :SQLSTATE
CREATE TABLE app.by_list (at date) PARTITION BY LIST (at);
SELECT audit_db.manage_table('app.by_list');
\echo :SQLSTATE
CREATE TABLE app.by_hash (at date) PARTITION BY HASH (at);
SELECT audit_db.manage_table('app.by_hash');
\echo :SQLSTATE
CREATE TABLE app.by_two (at date, tenant int) PARTITION BY RANGE (at, tenant);
SELECT audit_db.manage_table('app.by_two');
\echo :SQLSTATE
CREATE TABLE app.by_expression (at timestamp) PARTITION BY RANGE (date_trunc('day', at));
SELECT audit_db.manage_table('app.by_expression');
\echo :SQLSTATE
CREATE TABLE app.by_number (at bigint) PARTITION BY RANGE (at);
SELECT audit_db.manage_table('app.by_number');
\echo :SQLSTATE
CREATE TABLE app.by_text ("At" varchar(10)) PARTITION BY RANGE ("At");
SELECT audit_db.manage_table('app.by_text');
\echo :SQLSTATE
CREATE DOMAIN app.moment AS timestamptz;
CREATE TABLE app.by_domain (at app.moment) PARTITION BY RANGE (at);
SELECT audit_db.manage_table('app.by_domain');
\echo :SQLSTATE
CREATE TEMPORARY TABLE fleeting (at date) PARTITION BY RANGE (at);
SELECT audit_db.manage_table('fleeting');
\echo :SQLSTATE
SELECT audit_db.manage_table(NULL);
\echo :SQLSTATE
SELECT audit_db.manage_table(4000000000::oid::regclass);
\echo :SQLSTATE
CREATE TABLE app.good (at date) PARTITION BY RANGE (at);
SELECT audit_db.manage_table('app.good', 'hourly');
\echo :SQLSTATE
SELECT audit_db.manage_table('app.good', NULL);
\echo :SQLSTATE
SELECT audit_db.manage_table('app.good', premake => -1);
\echo :SQLSTATE
SELECT audit_db.manage_table('app.good', premake => NULL);
\echo :SQLSTATE
SELECT audit_db.manage_table('app.good', retention => '0 days');
\echo :SQLSTATE
SELECT audit_db.manage_table('app.good', retention => '-1 month');
\echo :SQLSTATE
SELECT audit_db.manage_table('app.good', retention_action => 'delete');
\echo :SQLSTATE
SELECT audit_db.manage_table('app.good', retention_action => 'archive:');
\echo :SQLSTATE
SELECT audit_db.manage_table('app.good', retention_action => NULL);
\echo :SQLSTATE
SELECT audit_db.manage_table('app.good', retention_action => 'archive:Cold Store');
\echo :SQLSTATE
SELECT audit_db.manage_table('app.good', time_zone => 'Mars/Olympus');
\echo :SQLSTATE
SELECT audit_db.manage_table('app.good', time_zone => NULL);
\echo :SQLSTATE
SELECT audit_db.manage_table('app.good', default_partition => NULL);
\echo :SQLSTATE
SELECT audit_db.manage_table('app.good', compress_after => '90 days');
\echo :SQLSTATE
-- Nothing of that was kept.
SELECT count(*) FROM audit_db.managed_tables;
SELECT count(*) FROM pg_inherits WHERE inhparent = 'app.good'::regclass;
-- A partition of another table can be managed itself.
CREATE TABLE app.top (at date NOT NULL) PARTITION BY RANGE (at);
CREATE TABLE app.nineties PARTITION OF app.top FOR VALUES FROM ('1990-01-01') TO ('2000-01-01') PARTITION BY RANGE (at);
SELECT audit_db.manage_table('app.nineties', 'yearly', premake => 0, default_partition => false);
SELECT * FROM pg_temp.parts('app.nineties');
SELECT audit_db.create_partition('app.nineties', '1995-01-01');
SELECT * FROM pg_temp.parts('app.nineties');
-- A full default: managed all the same, with a warning; months that none of the rows wait for are made.
CREATE TABLE app.full_default (at date NOT NULL) PARTITION BY RANGE (at);
CREATE TABLE app.full_default_default PARTITION OF app.full_default DEFAULT;
INSERT INTO app.full_default SELECT date '2001-01-01' FROM generate_series(1, 1001);
SET LOCAL client_min_messages = warning;
SELECT audit_db.manage_table('app.full_default', premake => 1);
SELECT count(*) FILTER (WHERE range_start > now()) AS ahead, count(*) FROM audit_db.partition_ranges('app.full_default');
-- With an invalid index none is made.
CREATE TABLE app.restoring (at date NOT NULL) PARTITION BY RANGE (at);
CREATE TABLE app.restoring_old PARTITION OF app.restoring FOR VALUES FROM ('2001-01-01') TO ('2001-02-01');
CREATE INDEX "by At" ON ONLY app.restoring (at);
SELECT audit_db.manage_table('app.restoring', premake => 1);
SELECT partition FROM audit_db.partition_ranges('app.restoring');
SELECT audit_db.create_partition('app.restoring', '2002-01-01');
\echo :SQLSTATE
SELECT count(*) FROM audit_db.create_partitions('app.restoring', '2002-01-01', 2);
\echo :SQLSTATE
SET LOCAL client_min_messages = error;
-- In a read-only transaction.
CREATE TABLE app.readonly (at date NOT NULL) PARTITION BY RANGE (at);
\set ON_ERROR_ROLLBACK off
SET TRANSACTION READ ONLY;
SAVEPOINT here;
SELECT audit_db.manage_table('app.readonly');
\echo :SQLSTATE
ROLLBACK TO here;
SELECT audit_db.unmanage_table('app.restoring');
\echo :SQLSTATE
ROLLBACK TO here;
SELECT audit_db.create_partition('app.nineties', '1996-01-01');
\echo :SQLSTATE
ROLLBACK TO here;
SELECT audit_db.create_partitions('app.nineties', '1996-01-01', 1);
\echo :SQLSTATE
ROLLBACK TO here;
SELECT audit_db.create_audit_log('app.audit_log');
\echo :SQLSTATE
ROLLBACK TO here;
-- Not even for what is there already.
SELECT audit_db.create_partition('app.nineties', '1995-01-01');
ROLLBACK;
