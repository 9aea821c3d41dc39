-- The launcher and this database's worker.
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
-- Whether the worker has finished a cycle that began after a time. It reads shared memory only: locks would keep the worker waiting.
CREATE FUNCTION pg_temp.settled(begun timestamptz) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    deadline timestamptz := clock_timestamp() + interval '10 s';
BEGIN
    LOOP
        IF EXISTS (SELECT FROM audit_db.workers WHERE database = current_database() AND state = 'idle' AND last_cycle > begun) THEN
            RETURN true;
        END IF;
        IF clock_timestamp() > deadline THEN RETURN false; END IF;
        PERFORM pg_sleep(0.02);
    END LOOP;
END $$;
SELECT pg_temp.settled('-infinity');
SELECT database = current_database() AS here, pid IS NOT NULL AS running, started <= clock_timestamp() AS started, last_cycle >= started AS cycled,
       state, restarts >= 0 AS restarts, last_error
  FROM audit_db.workers WHERE database = current_database();
SELECT backend_type, count(*), bool_and(datname IS NOT DISTINCT FROM CASE backend_type WHEN 'audit_db worker' THEN current_database() END) AS database
  FROM pg_stat_activity WHERE backend_type = 'audit_db launcher' OR backend_type = 'audit_db worker' AND datname = current_database() GROUP BY 1 ORDER BY 1;
SELECT a.pid = w.pid AS same_process FROM pg_stat_activity a, audit_db.workers w
 WHERE a.backend_type = 'audit_db worker' AND a.datname = current_database() AND w.database = current_database();
SELECT count(*) FROM audit_db.workers w JOIN audit_db.worker_slots() s USING (pid) WHERE w.database = current_database();
-- Monitoring roles may look.
BEGIN;
CREATE ROLE regress_monitor IN ROLE pg_monitor;
CREATE ROLE regress_nobody;
SET LOCAL ROLE regress_monitor;
SELECT count(*) FROM audit_db.workers WHERE database = current_database();
SET LOCAL ROLE regress_nobody;
SELECT count(*) FROM audit_db.workers;
\echo :SQLSTATE
ROLLBACK;
-- The prefix is ours: a name that is misspelt is an error.
SET audit_db.no_such_setting = 1;
\echo :SQLSTATE

-- manage_table asks for a cycle at its commit: the worker makes the months of rows that wait in the default.
CREATE SCHEMA app;
CREATE TABLE app.log (at timestamptz NOT NULL) PARTITION BY RANGE (at);
CREATE TABLE app.log_default PARTITION OF app.log DEFAULT;
INSERT INTO app.log VALUES ('2001-01-15 00:00+00'), ('2001-03-15 00:00+00'), ('infinity'), ('9000-01-01 00:00+00');
SELECT clock_timestamp() AS begun \gset
SELECT audit_db.manage_table('app.log', premake => 0);
SELECT pg_temp.settled(:'begun');
SELECT tableoid::regclass, at FROM app.log ORDER BY at;
SELECT severity, event, object, sqlstate, message, detail, hint FROM audit_db.events_log WHERE object LIKE 'app.log%' ORDER BY object COLLATE "C";
-- Row security that was switched on later reaches the partitions there are.
ALTER TABLE app.log ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
SELECT clock_timestamp() AS begun \gset
SELECT audit_db.manage_table('app.log', premake => 0);
SELECT pg_temp.settled(:'begun');
SELECT bool_and(relrowsecurity AND relforcerowsecurity) FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid WHERE inhparent = 'app.log'::regclass;
ALTER TABLE app.log DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY;
-- What it cannot do it records, and goes on with the next table.
CREATE TABLE app.stuck (at date NOT NULL) PARTITION BY RANGE (at);
CREATE TABLE app.stuck_default PARTITION OF app.stuck DEFAULT;
CREATE TABLE app.stuck_2001_01 ();
INSERT INTO app.stuck VALUES ('2001-01-15');
CREATE TABLE app.after (at date NOT NULL) PARTITION BY RANGE (at);
CREATE TABLE app.after_default PARTITION OF app.after DEFAULT;
INSERT INTO app.after VALUES ('2001-01-15');
SELECT clock_timestamp() AS begun \gset
BEGIN;
SELECT audit_db.manage_table('app.stuck', premake => 0);
SELECT audit_db.manage_table('app.after', premake => 0);
COMMIT;
SELECT pg_temp.settled(:'begun');
SELECT to_regclass('app.after_2001_01');
SELECT severity, event, object, sqlstate, message, detail, hint, occurrences >= 1 AS counted FROM audit_db.events_log WHERE object LIKE 'app.%' AND severity = 'error' ORDER BY id;
SELECT last_error FROM audit_db.workers WHERE database = current_database();
-- The same failure again raises the count of its entry.
SELECT clock_timestamp() AS begun \gset
SELECT audit_db.manage_table('app.after', premake => 0);
SELECT pg_temp.settled(:'begun');
SELECT event, object, occurrences > 1 AS again, last_at > logged_at AS later FROM audit_db.events_log WHERE object LIKE 'app.%' AND severity = 'error' ORDER BY id;
-- With the obstacle gone the next cycle succeeds, and the error is no longer shown.
DROP TABLE app.stuck_2001_01;
SELECT clock_timestamp() AS begun \gset
SELECT audit_db.manage_table('app.after', premake => 0);
SELECT pg_temp.settled(:'begun');
SELECT last_error FROM audit_db.workers WHERE database = current_database();
SELECT tableoid::regclass, at FROM app.stuck;
-- Retention that cannot be applied is recorded too.
CREATE VIEW app.report AS SELECT * FROM app.after_2001_01;
SET client_min_messages = warning;
SELECT clock_timestamp() AS begun \gset
SELECT audit_db.manage_table('app.after', premake => 0, retention => '1 year');
SELECT pg_temp.settled(:'begun');
SELECT event, object, sqlstate, message, detail, hint FROM audit_db.events_log WHERE object LIKE 'app.after%' AND severity = 'error' ORDER BY id;
DROP VIEW app.report;
SET client_min_messages = error;
-- Dropped tables are forgotten in the next cycle.
DROP TABLE app.log;
SELECT clock_timestamp() AS begun \gset
SELECT audit_db.manage_table('app.after', premake => 0);
SELECT pg_temp.settled(:'begun');
SELECT parent FROM audit_db.managed_tables ORDER BY managed_since, parent;
-- Operators in a schema that a worker's search_path might name are not called by it.
CREATE FUNCTION public.regress_eq(oid, regclass) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'called by %', current_user; END $$;
CREATE FUNCTION public.regress_eq(regclass, regclass) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'called by %', current_user; END $$;
CREATE OPERATOR public.= (LEFTARG = oid, RIGHTARG = regclass, FUNCTION = public.regress_eq);
CREATE OPERATOR public.= (LEFTARG = regclass, RIGHTARG = regclass, FUNCTION = public.regress_eq);
SELECT clock_timestamp() AS begun \gset
SET search_path = pg_catalog;
SELECT audit_db.manage_table('app.after', premake => 0);
SELECT pg_temp.settled(:'begun');
SELECT coalesce(last_error, '') LIKE 'called by%' AS called FROM audit_db.workers WHERE database = current_database();
RESET search_path;
DROP FUNCTION public.regress_eq(oid, regclass), public.regress_eq(regclass, regclass) CASCADE;
SET client_min_messages = warning;
DROP SCHEMA app CASCADE;
DELETE FROM audit_db.managed_tables m WHERE NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = m.parent);
DELETE FROM audit_db.events_log WHERE object LIKE 'app.%';

-- Without the extension there is no worker; with it there is one again.
DROP EXTENSION audit_db;
DO $$
BEGIN
    FOR try IN 1 .. 500 LOOP
        PERFORM pg_stat_clear_snapshot();
        EXIT WHEN NOT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'audit_db worker' AND datname = current_database());
        PERFORM pg_sleep(0.02);
    END LOOP;
END $$;
SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'audit_db worker' AND datname = current_database();
BEGIN;
CREATE EXTENSION audit_db;
ROLLBACK;
CREATE EXTENSION audit_db;
SELECT pg_temp.settled('-infinity');
SELECT state, last_error FROM audit_db.workers WHERE database = current_database();
