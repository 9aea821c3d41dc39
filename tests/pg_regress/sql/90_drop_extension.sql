-- DROP EXTENSION never takes an audit row along.
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
SELECT audit_db.create_audit_log('public.kept', premake => 0);
INSERT INTO kept ("timestamp", action, status) VALUES (now(), 'kept', 'success'), ('1999-01-01', 'old', 'success');
DROP EXTENSION audit_db;
SELECT count(*) FROM pg_namespace WHERE nspname = 'audit_db';
INSERT INTO kept ("timestamp", action, status) VALUES (now(), 'kept', 'success');
SELECT count(*) FROM kept;
-- Created again it manages nothing, and takes over what is there.
CREATE EXTENSION audit_db;
SELECT count(*) FROM audit_db.managed_tables;
SELECT audit_db.manage_table('kept', premake => 0);
SELECT count(*) FROM audit_db.partition_ranges('kept');
DROP EXTENSION audit_db CASCADE;
SELECT count(*) FROM kept;
ROLLBACK;
-- Its parts cannot be dropped one by one.
DROP TABLE audit_db.managed_tables;
\echo :SQLSTATE
DROP FUNCTION audit_db.partition_ranges;
\echo :SQLSTATE
-- A view on its tables keeps it.
BEGIN;
CREATE VIEW mine AS SELECT * FROM audit_db.partition_info;
DROP EXTENSION audit_db;
\echo :SQLSTATE
ROLLBACK;
SELECT count(*) FROM pg_extension WHERE extname = 'audit_db';
