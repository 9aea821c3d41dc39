-- New partitions lie in their table's tablespace, not in the session's.
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
SET allow_in_place_tablespaces = on;
CREATE TABLESPACE "regress Space" LOCATION '';
CREATE TABLESPACE regress_session LOCATION '';
SET default_tablespace = regress_session;
BEGIN;
CREATE TABLE spaced (at date NOT NULL, what text) PARTITION BY RANGE (at) TABLESPACE "regress Space";
CREATE INDEX ON spaced (at) TABLESPACE "regress Space";
SELECT audit_db.manage_table('spaced', premake => 0);
SELECT audit_db.create_partition('spaced', '2001-01-01');
SET LOCAL default_tablespace = '';
CREATE TABLE unspaced (at date NOT NULL, what text) PARTITION BY RANGE (at);
SET LOCAL default_tablespace = regress_session;
SELECT audit_db.manage_table('unspaced', premake => 0);
SELECT audit_db.create_partition('unspaced', '2001-01-01');
SELECT c.relname, s.spcname FROM pg_class c LEFT JOIN pg_tablespace s ON s.oid = c.reltablespace
 WHERE c.relname ~ '^(un)?spaced(_2001_01|_default)?(_at_idx)?$' ORDER BY c.relname COLLATE "C";
SHOW default_tablespace;
ROLLBACK;
-- A role that may not create there.
BEGIN;
CREATE ROLE regress_owner;
CREATE SCHEMA app AUTHORIZATION regress_owner;
CREATE TABLE app.spaced (at date NOT NULL) PARTITION BY RANGE (at) TABLESPACE "regress Space";
ALTER TABLE app.spaced OWNER TO regress_owner;
SELECT audit_db.manage_table('app.spaced', premake => 0);
\echo :SQLSTATE
ROLLBACK;
DROP TABLESPACE "regress Space";
DROP TABLESPACE regress_session;
