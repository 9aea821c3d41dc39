-- Without the preloaded library: what needs it says so, everything else works.
\set SHOW_CONTEXT never
SELECT * FROM audit_db.workers;
\echo :SQLSTATE
SELECT * FROM audit_db.worker_slots();
\echo :SQLSTATE
-- The settings are there once the library is loaded; no other name is refused, since nothing was reserved.
SELECT count(*) > 0 AS defined FROM pg_settings WHERE name LIKE 'audit\_db.%';
SET audit_db.no_such_setting = 1;
SHOW audit_db.no_such_setting;
SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'audit\_db%';
