-- Whatever the session has set, and wherever the functions are called.
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
-- An empty search_path.
BEGIN;
CREATE SCHEMA app;
CREATE TABLE app.log (at timestamptz NOT NULL, what text DEFAULT 'x' || 1) PARTITION BY RANGE (at);
SET LOCAL search_path = '';
SELECT audit_db.manage_table('app.log', premake => 0, retention => '1 year');
SELECT audit_db.create_partition('app.log', '2001-01-01');
SELECT audit_db.create_partitions('app.log', '2001-01-01', 2);
SELECT count(*) FROM audit_db.partition_info('app.log');
SELECT count(*) FROM audit_db.partition_info;
SELECT partition, action FROM audit_db.drop_expired_partitions('app.log', dry_run => true);
SELECT audit_db.create_audit_log('app.audit_log', premake => 0);
SELECT audit_db.unmanage_table('app.log');
SHOW search_path;
ROLLBACK;

-- Objects that shadow the server's: none is called.
BEGIN;
CREATE SCHEMA evil;
CREATE FUNCTION evil.caught() RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'called by %', current_user; END $$;
CREATE FUNCTION evil.now() RETURNS timestamptz LANGUAGE sql AS 'SELECT NULL::timestamptz FROM evil.caught()';
CREATE FUNCTION evil.quote_ident(text) RETURNS text LANGUAGE sql AS 'SELECT NULL::text FROM evil.caught()';
CREATE FUNCTION evil.format(text, VARIADIC text[]) RETURNS text LANGUAGE sql AS 'SELECT NULL::text FROM evil.caught()';
CREATE FUNCTION evil.nextval(regclass) RETURNS bigint LANGUAGE sql AS 'SELECT NULL::bigint FROM evil.caught()';
CREATE FUNCTION evil.pg_total_relation_size(regclass) RETURNS bigint LANGUAGE sql AS 'SELECT NULL::bigint FROM evil.caught()';
CREATE FUNCTION evil.pg_partition_tree(regclass) RETURNS SETOF regclass LANGUAGE sql AS 'SELECT NULL::regclass FROM evil.caught()';
CREATE FUNCTION evil.sum(bigint, bigint) RETURNS bigint LANGUAGE sql AS 'SELECT NULL::bigint FROM evil.caught()';
CREATE FUNCTION evil.eq(regclass, regclass) RETURNS boolean LANGUAGE sql AS 'SELECT evil.caught()';
CREATE FUNCTION evil.eq(oid, regclass) RETURNS boolean LANGUAGE sql AS 'SELECT evil.caught()';
CREATE FUNCTION evil.eq(regclass, oid) RETURNS boolean LANGUAGE sql AS 'SELECT evil.caught()';
CREATE FUNCTION evil.eq(oid, oid) RETURNS boolean LANGUAGE sql AS 'SELECT evil.caught()';
CREATE FUNCTION evil.eq(name, text) RETURNS boolean LANGUAGE sql AS 'SELECT evil.caught()';
CREATE FUNCTION evil.eq(text, text) RETURNS boolean LANGUAGE sql AS 'SELECT evil.caught()';
CREATE FUNCTION evil.eq("char", "char") RETURNS boolean LANGUAGE sql AS 'SELECT evil.caught()';
CREATE FUNCTION evil.ge(timestamptz, timestamptz) RETURNS boolean LANGUAGE sql AS 'SELECT evil.caught()';
CREATE OPERATOR evil.= (LEFTARG = regclass, RIGHTARG = regclass, FUNCTION = evil.eq);
CREATE OPERATOR evil.= (LEFTARG = oid, RIGHTARG = regclass, FUNCTION = evil.eq);
CREATE OPERATOR evil.= (LEFTARG = regclass, RIGHTARG = oid, FUNCTION = evil.eq);
CREATE OPERATOR evil.= (LEFTARG = oid, RIGHTARG = oid, FUNCTION = evil.eq);
CREATE OPERATOR evil.= (LEFTARG = name, RIGHTARG = text, FUNCTION = evil.eq);
CREATE OPERATOR evil.= (LEFTARG = text, RIGHTARG = text, FUNCTION = evil.eq);
CREATE OPERATOR evil.= (LEFTARG = "char", RIGHTARG = "char", FUNCTION = evil.eq);
CREATE OPERATOR evil.>= (LEFTARG = timestamptz, RIGHTARG = timestamptz, FUNCTION = evil.ge);
CREATE TABLE evil.pg_class (oid oid);
CREATE TABLE evil.pg_inherits (inhparent oid);
CREATE TABLE evil.log (at timestamptz NOT NULL, what text) PARTITION BY RANGE (at);
CREATE TABLE evil.second (at timestamptz NOT NULL, what text) PARTITION BY RANGE (at);
SELECT audit_db.manage_table('evil.log', premake => 0, retention => '1 year');
INSERT INTO evil.log VALUES ('2001-01-01');
SET LOCAL search_path = evil, pg_catalog;
SELECT audit_db.manage_table('evil.second', premake => 0, retention => '1 year');
SELECT audit_db.manage_table('evil.log', premake => 0, retention => '1 year', retention_action => 'archive:public');
SELECT audit_db.create_partition('evil.log', '2001-01-01');
SELECT audit_db.create_partitions('evil.log', '2001-01-01', 2);
SELECT count(*) FROM audit_db.partition_ranges('evil.log');
SELECT count(*) FROM audit_db.partition_info('evil.log');
SELECT partition, action FROM audit_db.drop_expired_partitions('evil.log', dry_run => true);
SELECT partition, action FROM audit_db.drop_expired_partitions(dry_run => true);
SELECT audit_db.create_audit_log('evil.audit_log', premake => 0);
SELECT audit_db.unmanage_table('evil.second');
SELECT audit_db.unmanage_table('evil.log');
SELECT count(*) FROM audit_db.managed_tables;
ROLLBACK;

-- Output styles, quoting, the session's zone and row security.
BEGIN;
CREATE SCHEMA app;
CREATE TABLE app."back\slash 'quoted'" (at timestamptz NOT NULL, what text) PARTITION BY RANGE (at);
CREATE TABLE app.days (at date NOT NULL) PARTITION BY RANGE (at);
SET LOCAL DateStyle = 'SQL, DMY';
SET LOCAL IntervalStyle = 'iso_8601';
SET LOCAL TimeZone = 'Asia/Kolkata';
SET LOCAL standard_conforming_strings = off;
SET LOCAL backslash_quote = off;
SET LOCAL escape_string_warning = off;
SET LOCAL quote_all_identifiers = on;
SET LOCAL row_security = off;
SET LOCAL bytea_output = 'escape';
SET LOCAL extra_float_digits = 0;
SET LOCAL transform_null_equals = on;
SET LOCAL check_function_bodies = off;
SET LOCAL default_table_access_method = 'heap';
SET LOCAL enable_partition_pruning = off;
SELECT audit_db.manage_table(oid, premake => 0, retention => '1 year') FROM pg_class WHERE relname LIKE 'back%quoted%' AND relkind = 'p';
SELECT audit_db.manage_table('app.days', premake => 0);
INSERT INTO app."back\slash 'quoted'" VALUES ('2001-02-03 04:05:06+00');
SELECT audit_db.create_partition('app."back\\slash ''quoted''"', '03/02/2001');
SELECT audit_db.create_partition('app."back\\slash ''quoted''"', '01/02/2001', '03/02/2001');
SELECT audit_db.create_partition('app.days', '01/02/2001');
SELECT audit_db.create_partition('app."back\\slash ''quoted''"', '01/12/2000', '15/02/2001');
\echo :SQLSTATE
SELECT audit_db.create_audit_log(E'app."audit\\log"', premake => 0, time_zone => 'Asia/Kolkata');
RESET quote_all_identifiers;
RESET standard_conforming_strings;
SET LOCAL DateStyle = 'ISO, YMD';
SET LOCAL TimeZone = 'UTC';
SELECT * FROM pg_temp.parts('app.days');
SELECT * FROM pg_temp.parts('app."back\slash ''quoted''"');
SELECT tableoid::regclass, at FROM app."back\slash 'quoted'";
ROLLBACK;

-- The functions leave the session's settings as they were.
SET search_path = public;
SET DateStyle = 'German';
SET lock_timeout = '7s';
BEGIN;
CREATE TABLE log (at date NOT NULL) PARTITION BY RANGE (at);
SELECT audit_db.manage_table('log', premake => 0);
SELECT audit_db.create_partition('log', '01.01.2001');
SELECT audit_db.create_partition('log', '15.01.2001');
\echo :SQLSTATE
SHOW search_path;
SHOW DateStyle;
SHOW lock_timeout;
SELECT current_user = session_user AS same_user;
ROLLBACK;
RESET search_path;
RESET lock_timeout;
SET DateStyle = 'ISO, YMD';

-- REPEATABLE READ and SERIALIZABLE.
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT 1 AS snapshot;
CREATE TABLE log (at date NOT NULL) PARTITION BY RANGE (at);
SELECT audit_db.manage_table('log', premake => 0);
INSERT INTO log VALUES ('2001-01-15');
SELECT audit_db.create_partition('log', '2001-01-01');
SELECT tableoid::regclass, at FROM log;
ROLLBACK;
BEGIN ISOLATION LEVEL SERIALIZABLE;
CREATE TABLE log (at date NOT NULL) PARTITION BY RANGE (at);
SELECT audit_db.manage_table('log', premake => 0);
SELECT audit_db.create_partition('log', '2001-01-01');
ROLLBACK;

-- In functions, in exception blocks, in savepoints that are rolled back.
\set ON_ERROR_ROLLBACK off
BEGIN;
CREATE TABLE log (at date NOT NULL) PARTITION BY RANGE (at);
SELECT audit_db.manage_table('log', premake => 0);
INSERT INTO log VALUES ('2001-01-15'), ('2001-02-15');
CREATE FUNCTION pg_temp.make(start date) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    code text; said text; detail text; hint text;
BEGIN
    RETURN audit_db.create_partition('log', start)::text;
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS code = RETURNED_SQLSTATE, said = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
    RETURN concat_ws(E'\n', code, said, detail, hint);
END $$;
SELECT pg_temp.make('2001-01-01');
SELECT pg_temp.make('2001-01-15');
SELECT pg_temp.make('infinity');
SELECT pg_temp.make(NULL);
SAVEPOINT before;
SELECT pg_temp.make('2001-02-01');
SELECT tableoid::regclass, at FROM log ORDER BY at;
ROLLBACK TO before;
SELECT tableoid::regclass, at FROM log ORDER BY at;
SELECT to_regclass('log_2001_02');
SAVEPOINT again;
SELECT audit_db.create_partition('log', '2001-02-15', '2001-01-15');
\echo :SQLSTATE
ROLLBACK TO again;
SELECT audit_db.create_partition('log', '2001-02-01');
SELECT tableoid::regclass, at FROM log ORDER BY at;
ROLLBACK;
SELECT to_regclass('log');
\set ON_ERROR_ROLLBACK on

-- In an SQL function, a default expression, a prepared statement.
BEGIN;
CREATE TABLE log (at date NOT NULL) PARTITION BY RANGE (at);
SELECT audit_db.manage_table('log', premake => 0);
CREATE FUNCTION pg_temp.make(date) RETURNS regclass LANGUAGE sql AS $$ SELECT audit_db.create_partition('log', $1) $$;
SELECT pg_temp.make('2001-01-01');
CREATE TEMPORARY TABLE made (name regclass DEFAULT audit_db.create_partition('log', '2001-02-01'));
INSERT INTO made DEFAULT VALUES;
TABLE made;
PREPARE make(timestamp) AS SELECT audit_db.create_partition('log', $1);
EXECUTE make('2001-03-01');
EXECUTE make('2001-04-01');
DEALLOCATE make;
-- A set-returning call that is not read to its end has made all the same.
SELECT audit_db.create_partitions('log', '2002-01-01', 3) LIMIT 1;
SELECT count(*) FROM pg_temp.parts('log') WHERE partition LIKE 'log\_2002%';
DECLARE made_here CURSOR FOR SELECT audit_db.create_partitions('log', '2003-01-01', 3);
FETCH 1 FROM made_here;
CLOSE made_here;
SELECT count(*) FROM pg_temp.parts('log') WHERE partition LIKE 'log\_2003%';
ROLLBACK;

-- Two-phase and deferred things: rows whose checks wait for the commit.
BEGIN;
CREATE TABLE kind (name text PRIMARY KEY);
CREATE TABLE log (at date NOT NULL, kind text REFERENCES kind DEFERRABLE INITIALLY DEFERRED) PARTITION BY RANGE (at);
SELECT audit_db.manage_table('log', premake => 0);
INSERT INTO log VALUES ('2001-01-15', 'later');
SELECT audit_db.create_partition('log', '2001-01-01');
\echo :SQLSTATE
INSERT INTO kind VALUES ('later');
SET CONSTRAINTS ALL IMMEDIATE;
SELECT audit_db.create_partition('log', '2001-01-01');
SELECT tableoid::regclass, * FROM log;
ROLLBACK;
