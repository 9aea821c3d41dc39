-- create_audit_log: the standard table, its columns, indexes and settings.
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
SELECT audit_db.create_audit_log();
\d public.audit_log
SELECT relkind, relowner = (SELECT oid FROM pg_roles WHERE rolname = current_user) AS is_mine, obj_description(oid, 'pg_class')
  FROM pg_class WHERE oid = 'public.audit_log'::regclass;
SELECT partition_interval, premake, retention, retention_action, time_zone, default_partition, storage_parameters,
       managed_since = now() AS managed_now
  FROM audit_db.managed_tables WHERE parent = 'public.audit_log'::regclass;
-- The table belongs to the caller, not to the extension.
SELECT count(*) FROM pg_depend WHERE objid = 'public.audit_log'::regclass AND deptype = 'e';
-- This month, twelve ahead and the default, each with the parent's indexes.
SELECT count(*) FILTER (WHERE NOT is_default) AS months, count(*) FILTER (WHERE is_default) AS defaults,
       min(range_start) = date_trunc('month', now()) AS from_this_month,
       max(range_end) = date_trunc('month', now()) + interval '13 months' AS twelve_ahead,
       bool_and(partition::text = format('audit_log_%s', to_char(range_start, 'YYYY_MM'))) FILTER (WHERE NOT is_default) AS named
  FROM audit_db.partition_ranges('public.audit_log');
SELECT count(*) AS leaf_indexes, bool_and(i.indisvalid) AS valid
  FROM pg_partition_tree('public.audit_log') t JOIN pg_index i ON i.indrelid = t.relid WHERE t.isleaf;
-- No sequence but the table's own.
SELECT count(*) FROM pg_class WHERE relkind = 'S' AND relname LIKE 'audit\_log%';

-- Writing and reading.
INSERT INTO audit_log ("timestamp", action, status) VALUES (now(), 'login', 'success'), (now(), 'logout', 'success');
INSERT INTO audit_log ("timestamp", action, status, metadata) VALUES ('1999-12-31', 'old', 'failure', '{"a": 1}');
SELECT id, action, status, metadata, tableoid::regclass = 'audit_log_default'::regclass AS in_default FROM audit_log ORDER BY id;
INSERT INTO audit_log (action, status) VALUES ('no time', 'failure');
\echo :SQLSTATE

-- The same name again.
SELECT audit_db.create_audit_log();
\echo :SQLSTATE
ROLLBACK;

-- Other names and settings.
BEGIN;
CREATE SCHEMA "Acme ""Inc""";
SELECT audit_db.create_audit_log(name => '"Acme ""Inc"""."Log of ""x"" 1"', partition_interval => 'yearly', premake => 1,
                                 retention => NULL, time_zone => 'Europe/Berlin');
SELECT partition_interval, premake, retention, time_zone FROM audit_db.managed_tables;
SELECT audit_db.create_partition('"Acme ""Inc"""."Log of ""x"" 1"', '2001-01-01');
\d "Acme ""Inc"""."Log of ""x"" 1_2001"
-- A name without a schema is made where CREATE TABLE would make it, and folded as there.
SET LOCAL search_path = "Acme ""Inc""", public;
SELECT audit_db.create_audit_log('MixedCase', premake => 0);
SELECT audit_db.create_audit_log('"MixedCase"', premake => 0);
SELECT relname, relnamespace::regnamespace FROM pg_class WHERE relname IN ('mixedcase', 'MixedCase') ORDER BY relname COLLATE "C";
SET LOCAL search_path = nowhere;
SELECT audit_db.create_audit_log('homeless');
\echo :SQLSTATE
SET LOCAL search_path = '';
SELECT audit_db.create_audit_log('public.by_name', premake => 0);
RESET search_path;

-- 63 bytes fit.
SELECT audit_db.create_audit_log('public.' || repeat('a', 63), premake => 0);
SELECT relkind, length(relname), relname FROM pg_class WHERE relname LIKE 'aaaaaaaa%' AND relname !~ '_20\d\d_' ORDER BY relname COLLATE "C";
SELECT pg_temp.state($$SELECT audit_db.create_audit_log('public.' || repeat('b', 64), premake => 0)$$);
SELECT audit_db.create_audit_log('public."' || repeat('ä', 31) || 'x"', premake => 0);
SELECT relname FROM pg_class WHERE relname LIKE 'ää%' AND relkind IN ('i', 'I', 'S') AND relname !~ '_20\d\d_' ORDER BY relname COLLATE "C";

-- Errors.
SELECT audit_db.create_audit_log('a.b.c');
\echo :SQLSTATE
SELECT audit_db.create_audit_log('not a name');
\echo :SQLSTATE
SELECT audit_db.create_audit_log('');
\echo :SQLSTATE
SELECT audit_db.create_audit_log('public.""');
\echo :SQLSTATE
SELECT audit_db.create_audit_log(NULL);
\echo :SQLSTATE
SELECT audit_db.create_audit_log('nowhere.audit_log');
\echo :SQLSTATE
SELECT audit_db.create_audit_log('"no Where".audit_log');
\echo :SQLSTATE
SELECT audit_db.create_audit_log('pg_temp.audit_log');
\echo :SQLSTATE
SELECT audit_db.create_audit_log('public.x', partition_interval => 'Monthly');
\echo :SQLSTATE
SELECT audit_db.create_audit_log('public.x', partition_interval => NULL);
\echo :SQLSTATE
SELECT audit_db.create_audit_log('public.x', premake => -1);
\echo :SQLSTATE
SELECT audit_db.create_audit_log('public.x', premake => 1001);
\echo :SQLSTATE
SELECT audit_db.create_audit_log('public.x', premake => NULL);
\echo :SQLSTATE
SELECT audit_db.create_audit_log('public.x', retention => '0');
\echo :SQLSTATE
SELECT audit_db.create_audit_log('public.x', retention => '-1 day');
\echo :SQLSTATE
SELECT audit_db.create_audit_log('public.x', retention => '1 month -40 days');
\echo :SQLSTATE
SELECT audit_db.create_audit_log('public.x', time_zone => 'Mars/Olympus');
\echo :SQLSTATE
SELECT audit_db.create_audit_log('public.x', time_zone => '');
\echo :SQLSTATE
SELECT audit_db.create_audit_log('public.x', time_zone => NULL);
\echo :SQLSTATE
-- Any relation with the name is in the way, and so are those of the sequence and the indexes.
CREATE VIEW public.taken AS SELECT 1 AS one;
SELECT audit_db.create_audit_log('public.taken');
\echo :SQLSTATE
CREATE TABLE public.second_id_seq ();
SELECT audit_db.create_audit_log('public.second');
\echo :SQLSTATE
CREATE TABLE public.third_default ();
SELECT audit_db.create_audit_log('public.third');
\echo :SQLSTATE
SELECT to_regclass('public.third'), to_regclass('public.third_id_seq');
ROLLBACK;
