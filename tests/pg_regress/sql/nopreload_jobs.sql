-- Without the preloaded library jobs can be defined, but nobody runs them.
SELECT audit_db.schedule_job('later', '0 6 * * *', 'sql', '{"command": "SELECT 1"}') IS NOT NULL AS scheduled;
SELECT audit_db.submit_job('later');
CALL audit_db.run_job('later');
SELECT audit_db.unschedule_job('later');

-- maintain_partitions does in the caller's transaction what can be done there.
SET client_min_messages = error;
CREATE ROLE regress_jobs_owner;
GRANT CREATE ON SCHEMA public TO regress_jobs_owner;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA audit_db TO regress_jobs_owner;
SET ROLE regress_jobs_owner;
CREATE TABLE public.jobs_log (at timestamptz NOT NULL, what text) PARTITION BY RANGE (at);
CREATE INDEX ON jobs_log (what);
SELECT audit_db.manage_table('jobs_log', premake => 0, retention => '5 years');
SELECT audit_db.create_partition('jobs_log', '2001-01-01');
INSERT INTO jobs_log SELECT date_trunc('month', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' + i * interval '1 second', i::text FROM generate_series(1, 60000) i;
INSERT INTO jobs_log SELECT now() - interval '3 months', 'late' FROM generate_series(1, 100);
DELETE FROM jobs_log WHERE what <> 'late' AND what::int % 20 <> 0;
RESET ROLE;
VACUUM (ANALYZE) jobs_log;
SET ROLE regress_jobs_owner;
SELECT step, regexp_replace(object, '\d{4}_\d\d', 'YYYY_MM') AS object, action FROM audit_db.maintain_partitions(dry_run => true);
SELECT step, regexp_replace(object, '\d{4}_\d\d', 'YYYY_MM') AS object, action FROM audit_db.maintain_partitions();
SELECT step, regexp_replace(object, '\d{4}_\d\d', 'YYYY_MM') AS object, action FROM audit_db.maintain_partitions('jobs_log');
DROP TABLE jobs_log;
RESET ROLE;
REVOKE ALL ON SCHEMA public FROM regress_jobs_owner;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA audit_db FROM regress_jobs_owner;
DROP ROLE regress_jobs_owner;
