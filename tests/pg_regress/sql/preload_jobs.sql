-- A job that is run by hand, and its record.
SET client_min_messages = error;
SELECT audit_db.create_audit_log('public.jobs_log', premake => 1);
RESET client_min_messages;
SELECT audit_db.schedule_job('count', '0 6 * * *', 'sql', '{"command": "SELECT count(*) FROM public.jobs_log; SELECT 1"}') IS NOT NULL AS scheduled;
CALL audit_db.run_job('count');
SELECT name, task, status, started IS NOT NULL AS started, finished >= started AS finished, scheduled_for, sqlstate, message FROM audit_db.job_runs
 WHERE name = 'count';
SELECT s->>'step' AS step, s->>'action' AS action, s->>'detail' AS detail, (s->>'duration_ms')::float8 >= 0 AS timed
  FROM audit_db.job_runs r, jsonb_array_elements(r.steps) s WHERE name = 'count';
SELECT last_status, last_run IS NOT NULL AS has_run, running_since FROM audit_db.jobs WHERE name = 'count';
SELECT audit_db.alter_job('count', args => '{"command": "SELECT 1/0"}');
CALL audit_db.run_job('count');
SELECT status, sqlstate, message FROM audit_db.job_runs WHERE name = 'count' ORDER BY id DESC LIMIT 1;
INSERT INTO jobs_log ("timestamp", action, status) SELECT now(), 'read', 'ok' FROM generate_series(1, 100);
SELECT step, regexp_replace(object, '\d{4}_\d\d', 'YYYY_MM') AS object, action, detail FROM audit_db.maintain_partitions('jobs_log', dry_run => true);
SELECT step, regexp_replace(object, '\d{4}_\d\d', 'YYYY_MM') AS object, action, detail FROM audit_db.maintain_partitions('jobs_log');
SELECT step, object, action, detail FROM audit_db.maintain_partitions('jobs_log');
SELECT audit_db.unschedule_job('count');
SELECT audit_db.unmanage_table('jobs_log');
DROP TABLE jobs_log;
