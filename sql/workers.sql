CREATE FUNCTION audit_db.worker_slots()
RETURNS TABLE (database_oid oid, pid integer, started timestamptz, last_cycle timestamptz, last_cycle_ms double precision,
               state text, slow_pid integer, restarts integer, last_error text)
LANGUAGE c VOLATILE PARALLEL RESTRICTED ROWS 10 AS 'MODULE_PATHNAME', 'worker_slots_wrapper';
COMMENT ON FUNCTION audit_db.worker_slots IS
'Background workers of all databases, from shared memory: the base of the view workers. Errors: 55000 the library is not preloaded';
REVOKE EXECUTE ON FUNCTION audit_db.worker_slots FROM PUBLIC;
GRANT EXECUTE ON FUNCTION audit_db.worker_slots TO pg_monitor;

CREATE VIEW audit_db.workers AS
SELECT d.datname AS database, w.pid, w.started, w.last_cycle, w.last_cycle_ms, w.state, w.slow_pid, w.restarts, w.last_error
  FROM audit_db.worker_slots() w
  JOIN pg_catalog.pg_database d ON d.oid OPERATOR(pg_catalog.=) w.database_oid;
COMMENT ON VIEW audit_db.workers IS 'Background workers, one a database with the extension';
COMMENT ON COLUMN audit_db.workers.database IS 'The database';
COMMENT ON COLUMN audit_db.workers.pid IS 'Process of the worker; null while none runs';
COMMENT ON COLUMN audit_db.workers.started IS 'When it started';
COMMENT ON COLUMN audit_db.workers.last_cycle IS 'When its last maintenance cycle began';
COMMENT ON COLUMN audit_db.workers.last_cycle_ms IS 'How long that cycle took, in milliseconds; null before the first has ended';
COMMENT ON COLUMN audit_db.workers.state IS 'wanted, starting, idle, running, failed (to be started again), no worker slot';
COMMENT ON COLUMN audit_db.workers.slow_pid IS 'Process that does the work which waits for other sessions or takes long (see pg_stat_activity); null while there is none';
COMMENT ON COLUMN audit_db.workers.restarts IS 'How often it was started again since the server started';
COMMENT ON COLUMN audit_db.workers.last_error IS 'Why it ended, or what its last cycle met with';
GRANT SELECT ON audit_db.workers TO pg_monitor;
