-- Jobs: what can be scheduled, and what is refused with which words.
SET timezone = 'UTC';
SELECT name, schedule, task, args, time_zone, enabled, owner = current_user AS mine, next_run > now() AS next, last_run, last_status,
       running_since, shipped, disabled_reason FROM audit_db.jobs;

-- When: around the changes of the clock in six zones, by the server's own zone rules.
SELECT zone, schedule, after, audit_db.next_run(schedule, zone, after) AS next
  FROM (VALUES ('America/New_York', '30 2 * * *', '2026-03-08 06:00+00'::timestamptz),
               ('America/New_York', '30 2 * * *', '2026-03-08 07:00+00'),
               ('America/New_York', '30 1 * * *', '2026-11-01 05:00+00'),
               ('America/New_York', '30 1 * * *', '2026-11-01 05:30+00'),
               ('America/New_York', '*/30 * * * *', '2026-11-01 05:30+00'),
               ('Europe/Berlin', '30 2 * * *', '2026-03-28 12:00+00'),
               ('Europe/Berlin', '30 2 * * *', '2026-10-24 12:00+00'),
               ('Europe/Berlin', '30 2 * * *', '2026-10-25 00:30+00'),
               ('Australia/Lord_Howe', '15 2 * * *', '2026-10-03 12:00+00'),
               ('Australia/Lord_Howe', '45 1 * * *', '2026-04-04 12:00+00'),
               ('America/Havana', '0 0 * * *', '2026-03-08 00:00+00'),
               ('Africa/Casablanca', '30 2 * * *', '2026-02-14 12:00+00'),
               ('Africa/Casablanca', '30 2 * * *', '2026-03-21 12:00+00'),
               ('Asia/Kolkata', '@daily', '2026-03-08 18:29:59.5+00'),
               ('UTC', '0 0 29 2 *', '2026-01-01'),
               ('UTC', '0 0 31 * *', '2026-03-31'),
               ('UTC', '0 12 L * *', '2026-02-01'),
               ('UTC', '59 23 31 12 *', '2026-12-31 23:59'),
               ('UTC', '*/10 * * * * *', '2026-12-31 23:59:55'),
               ('UTC', '0 0 30 2 *', '2026-01-01')) v(zone, schedule, after);
SELECT audit_db.next_run('* * * *');
SELECT audit_db.next_run('* * * * *', 'Nowhere/At_All');
SELECT audit_db.next_run(NULL) IS NULL AS none;

-- What is refused.
SELECT audit_db.schedule_job('', '* * * * *', 'analyze');
SELECT audit_db.schedule_job(repeat('x', 201), '* * * * *', 'analyze');
SELECT audit_db.schedule_job(NULL, '* * * * *', 'analyze');
SELECT audit_db.schedule_job('a', NULL, 'analyze');
SELECT audit_db.schedule_job('a', '* * * * *', 'analyze', NULL);
SELECT audit_db.schedule_job('a', '61 * * * *', 'analyze');
SELECT audit_db.schedule_job('a', '0 0 30 2 *', 'analyze');
SELECT audit_db.schedule_job('a', '* * * * *', 'analyze', time_zone => 'Mars/Olympus');
SELECT audit_db.schedule_job('a', '* * * * *', 'defragment');
SELECT audit_db.schedule_job('a', '* * * * *', 'sql');
SELECT audit_db.schedule_job('a', '* * * * *', 'sql', '[]');
SELECT audit_db.schedule_job('a', '* * * * *', 'sql', '{"command": "SELEC 1"}');
SELECT audit_db.schedule_job('a', '* * * * *', 'sql', '{"command": ""}');
SELECT audit_db.schedule_job('a', '* * * * *', 'sql', '{"command": "BEGIN; SELECT 1; COMMIT"}');
SELECT audit_db.schedule_job('a', '* * * * *', 'sql', '{"command": "COPY pg_class TO STDOUT"}');
SELECT audit_db.schedule_job('a', '* * * * *', 'sql', '{"command": "SELECT 1; COPY public.x FROM STDIN"}');
SELECT audit_db.schedule_job('a', '* * * * *', 'sql', '{"command": "SELECT 1", "table": "x"}');
SELECT audit_db.schedule_job('a', '* * * * *', 'sql', '{"command": 1}');
SELECT audit_db.schedule_job('a', '* * * * *', 'sql', '{"command": "SELECT 1", "timeout": "soon"}');
SELECT audit_db.schedule_job('a', '* * * * *', 'sql', '{"command": "SELECT 1", "timeout": "-1 s"}');
SELECT audit_db.schedule_job('a', '* * * * *', 'reindex', '{"min_bloat": 2}');
SELECT audit_db.schedule_job('a', '* * * * *', 'reindex', '{"max_size": 0}');
SELECT audit_db.schedule_job('a', '* * * * *', 'reindex', '{"window": "at night"}');
SELECT audit_db.schedule_job('a', '* * * * *', 'vacuum', '{"table": "public.no_such_table"}');
SELECT audit_db.schedule_job('a', '* * * * *', 'vacuum', '{"table": "audit_db.jobs"}');
CREATE TABLE jobs_plain ();
SELECT audit_db.schedule_job('a', '* * * * *', 'maintain_partitions', '{"table": "public.jobs_plain"}');
DROP TABLE jobs_plain;
SELECT audit_db.alter_job('none', enabled => false);
SELECT audit_db.unschedule_job('none');
BEGIN READ ONLY;
SELECT audit_db.schedule_job('a', '* * * * *', 'analyze');
ROLLBACK;

-- What is taken, changed, replaced and removed.
SELECT audit_db.schedule_job('nightly', '30 2 * * MON-FRI', 'sql', '{"command": "SELECT 1; SELECT 2"}', 'Europe/Berlin') IS NOT NULL AS scheduled;
SELECT name, schedule, task, args, time_zone, enabled FROM audit_db.jobs WHERE NOT shipped;
SELECT audit_db.alter_job('nightly', enabled => false);
SELECT audit_db.alter_job('nightly', schedule => 'bad');
SELECT audit_db.alter_job('nightly', args => '{"table": "x"}');
SELECT name, schedule, enabled, next_run FROM audit_db.jobs WHERE NOT shipped;
SELECT audit_db.schedule_job('nightly', '@weekly', 'vacuum', '{"freeze": true}') IS NOT NULL AS replaced;
SELECT name, schedule, task, args, time_zone, enabled FROM audit_db.jobs WHERE NOT shipped;
SELECT audit_db.unschedule_job('nightly');
SELECT audit_db.alter_job('maintenance', schedule => '0 4 * * *', args => '{"reindex_if_needed": false}');
SELECT name, schedule, args, shipped FROM audit_db.jobs;
SELECT audit_db.unschedule_job('maintenance');
SELECT name, schedule, args, shipped FROM audit_db.jobs;
SELECT audit_db.unschedule_job('maintenance');
SELECT count(*) FROM audit_db.job_definitions;

-- Run only outside a transaction block.
BEGIN;
CALL audit_db.run_job('maintenance');
ROLLBACK;

-- Settings.
SELECT name, setting, unit, context FROM pg_settings WHERE name IN ('audit_db.max_job_workers', 'audit_db.job_history',
       'audit_db.maintenance_window', 'audit_db.reindex_min_bloat', 'audit_db.reindex_max_size', 'audit_db.auto_optimization',
       'audit_db.job_clock_offset') ORDER BY 1;
ALTER SYSTEM SET audit_db.maintenance_window = 'late';

-- maintain_partitions.
SELECT * FROM audit_db.maintain_partitions(compress_old_partitions => true);
SELECT * FROM audit_db.maintain_partitions(dry_run => NULL);
SELECT * FROM audit_db.maintain_partitions('pg_class');
RESET timezone;
