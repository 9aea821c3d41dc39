-- Who may do what.
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
CREATE ROLE regress_owner;
CREATE ROLE regress_member IN ROLE regress_owner;
CREATE ROLE regress_heir NOINHERIT IN ROLE regress_owner;
CREATE ROLE regress_stranger;
CREATE ROLE regress_monitor IN ROLE pg_monitor;
CREATE SCHEMA app AUTHORIZATION regress_owner;
GRANT USAGE ON SCHEMA app TO PUBLIC;
SET LOCAL ROLE regress_owner;
CREATE TABLE app.log (at date NOT NULL, what text) PARTITION BY RANGE (at);
-- EXECUTE is nobody's until it is granted.
SELECT audit_db.manage_table('app.log');
\echo :SQLSTATE
SELECT audit_db.create_audit_log('app.audit_log');
\echo :SQLSTATE
SELECT audit_db.create_partition('app.log', '2001-01-01');
\echo :SQLSTATE
SELECT audit_db.create_partitions('app.log');
\echo :SQLSTATE
SELECT audit_db.unmanage_table('app.log');
\echo :SQLSTATE
SELECT audit_db.drop_expired_partitions('app.log');
\echo :SQLSTATE
SELECT audit_db.partition_info('app.log');
\echo :SQLSTATE
SELECT audit_db.partition_ranges('app.log');
\echo :SQLSTATE
SELECT * FROM audit_db.partition_info;
\echo :SQLSTATE
SELECT * FROM audit_db.workers;
\echo :SQLSTATE
SELECT * FROM audit_db.events_log;
\echo :SQLSTATE
RESET ROLE;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA audit_db TO regress_owner, regress_stranger;
-- The owner, and who has the owner's rights.
SET LOCAL ROLE regress_owner;
SELECT audit_db.manage_table('app.log', premake => 0);
SELECT audit_db.create_partition('app.log', '2001-01-01');
SELECT audit_db.create_audit_log('app.audit_log', premake => 0);
SELECT relname, relowner::regrole FROM pg_class WHERE relname IN ('audit_log', 'audit_log_default', 'audit_log_id_seq', 'log_2001_01') AND relnamespace = 'app'::regnamespace ORDER BY 1;
SELECT count(*) FROM audit_db.partition_info('app.log');
SET LOCAL ROLE regress_member;
SELECT audit_db.create_partition('app.log', '2001-02-01');
SELECT relowner::regrole FROM pg_class WHERE oid = 'app.log_2001_02'::regclass;
SELECT audit_db.manage_table('app.log', premake => 0, retention => '100 years');
SET LOCAL ROLE regress_heir;
SELECT audit_db.create_partition('app.log', '2001-03-01');
\echo :SQLSTATE
RESET ROLE;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA audit_db TO regress_heir;
SET LOCAL ROLE regress_heir;
SELECT audit_db.create_partition('app.log', '2001-03-01');
\echo :SQLSTATE
-- Strangers, even with all rights to the rows.
RESET ROLE;
GRANT ALL ON app.log TO regress_stranger;
SET LOCAL ROLE regress_stranger;
SELECT audit_db.manage_table('app.log');
\echo :SQLSTATE
SELECT audit_db.unmanage_table('app.log');
\echo :SQLSTATE
SELECT audit_db.create_partition('app.log', '2001-01-01');
\echo :SQLSTATE
SELECT audit_db.create_partitions('app.log');
\echo :SQLSTATE
SELECT audit_db.drop_expired_partitions('app.log');
\echo :SQLSTATE
SELECT audit_db.drop_expired_partitions('app.log', dry_run => true);
\echo :SQLSTATE
-- Without a table: those of the caller, none here.
SELECT * FROM audit_db.drop_expired_partitions();
SELECT * FROM audit_db.drop_expired_partitions(dry_run => true);
SELECT audit_db.create_audit_log('app.stranger_log');
\echo :SQLSTATE
RESET ROLE;
-- A table of the catalog is nobody's to manage.
SET LOCAL ROLE regress_owner;
SELECT audit_db.manage_table('pg_class');
\echo :SQLSTATE
-- An archive where the owner may not create.
RESET ROLE;
CREATE SCHEMA "Cold Store";
SELECT audit_db.manage_table('app.log', retention_action => 'archive:Cold Store');
\echo :SQLSTATE
SET LOCAL ROLE regress_member;
SELECT audit_db.manage_table('app.log', retention_action => 'archive:Cold Store');
\echo :SQLSTATE
RESET ROLE;
GRANT CREATE ON SCHEMA "Cold Store" TO regress_owner;
SET LOCAL ROLE regress_member;
SELECT audit_db.manage_table('app.log', premake => 0, retention_action => 'archive:Cold Store');
RESET ROLE;
-- The partitions' schema is closed to the owner: a superuser's call does not get round it.
ALTER SCHEMA app OWNER TO CURRENT_USER;
REVOKE ALL ON SCHEMA app FROM regress_owner;
GRANT USAGE ON SCHEMA app TO regress_owner;
SELECT audit_db.create_partition('app.log', '2005-01-01');
\echo :SQLSTATE
-- Monitoring roles see everything and change nothing.
SET LOCAL ROLE regress_monitor;
SELECT count(*) > 0 AS seen FROM audit_db.partition_info;
SELECT count(*) > 0 AS seen FROM audit_db.partition_info('app.log');
SELECT count(*) > 0 AS seen FROM audit_db.partition_ranges('app.log');
SELECT count(*) >= 0 AS seen FROM audit_db.events_log;
DELETE FROM audit_db.events_log;
\echo :SQLSTATE
SELECT audit_db.create_partition('app.log', '2001-01-01');
\echo :SQLSTATE
ROLLBACK;

-- What an owner puts into his table runs with his own rights, even when a superuser makes the partition.
BEGIN;
CREATE ROLE regress_owner;
CREATE SCHEMA app AUTHORIZATION regress_owner;
SET LOCAL ROLE regress_owner;
CREATE FUNCTION app.spy(text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN RAISE WARNING 'run by %', current_user; RETURN $1; END $$;
CREATE TABLE app.trap (at date NOT NULL, what text CHECK (app.spy(what) IS NOT NULL)) PARTITION BY RANGE (at);
CREATE TABLE app.trap_default PARTITION OF app.trap DEFAULT;
CREATE INDEX ON app.trap (app.spy(what));
INSERT INTO app.trap VALUES ('2001-01-01', 'x');
RESET ROLE;
SET LOCAL client_min_messages = warning;
SELECT audit_db.manage_table('app.trap', premake => 0);
SELECT audit_db.create_partition('app.trap', '2001-01-01');
SELECT current_user = session_user AS same_user;
ROLLBACK;
