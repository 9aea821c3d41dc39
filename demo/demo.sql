-- The main job in one sitting: an audit log, its months, its retention. Run by "make demo".
\set ON_ERROR_STOP on
\set QUIET on
\pset border 2
\pset linestyle unicode
\pset null '·'
\pset footer off
\set demo_months 18
SET client_min_messages = notice;
SET TimeZone = 'UTC';
\set QUIET off
\set ECHO queries

\echo
\echo === 1. An audit log that looks after itself ===
\echo
CREATE EXTENSION audit_db;
SELECT audit_db.create_audit_log('public.audit_log', retention => '2 years');

\echo Its columns, its indexes and the months made in advance:
\d+ public.audit_log

\echo
\echo === 2. Eighteen months of hospital events ===
\echo
\echo Months in the past are made on request; without them the events would wait in the default partition.
SELECT count(*) AS past_months
FROM audit_db.create_partitions('public.audit_log', now() - make_interval(months => :demo_months), :demo_months + 1);

\echo Loading 200,000 invented events:
\set months :demo_months
\set ECHO none
\timing on
\ir generate_events.sql
\timing off
\set ECHO queries
ANALYZE public.audit_log;

\echo
\echo Events by partition:
SELECT tableoid::regclass AS partition, count(*) AS events,
    min("timestamp")::date AS first, max("timestamp")::date AS last,
    repeat('█', (count(*) * 30 / max(count(*)) OVER ())::int) AS " "
FROM public.audit_log
GROUP BY 1
ORDER BY min("timestamp");

\echo What the extension says of them, without reading a row:
SELECT partition, range_start, range_end, is_default, record_count, pg_size_pretty(size_bytes) AS size
FROM audit_db.partition_info('public.audit_log');

\echo
\echo === 3. Events with absurd times are kept, not refused ===
\echo
\echo They wait in the default partition: older than retention, or further ahead than months are made.
SELECT CASE WHEN "timestamp" < now() THEN 'past' ELSE 'future' END AS waiting,
    metadata ->> 'source' AS source, count(*) AS events,
    min("timestamp")::date AS first, max("timestamp")::date AS last,
    CASE
        WHEN "timestamp" < now() THEN 'before retention (2 years): a month made for it would expire at once'
        ELSE 'after audit_db.max_future: most likely a wrong clock'
    END AS why
FROM public.audit_log
WHERE "timestamp" < now() - interval '2 years' OR "timestamp" > now() + interval '13 months'
GROUP BY 1, 2, 6
ORDER BY 1 DESC;

\echo Events that come late, from a month that was never made, wait there too:
INSERT INTO public.audit_log ("timestamp", action, status, principal_id, principal_type)
SELECT date_trunc('month', now()) - interval '20 months' + n * interval '1 hour', 'device.upload', 'success', 'device/0007', 'system'
FROM generate_series(1, 500) n;
\echo The worker makes their month at its next cycle and moves them; so does this call:
SELECT audit_db.create_partition('public.audit_log', (date_trunc('month', now()) - interval '20 months')::timestamp);
SELECT tableoid::regclass AS partition, count(*) AS events
FROM public.audit_log WHERE principal_id = 'device/0007' AND action = 'device.upload' GROUP BY 1;

\echo
\echo === 4. Retention ===
\echo
\echo A month that ended two and a half years ago, with one event in it:
SELECT audit_db.create_partition('public.audit_log', (date_trunc('month', now()) - interval '30 months')::timestamp);
INSERT INTO public.audit_log ("timestamp", action, status, principal_id, principal_type)
VALUES (date_trunc('month', now()) - interval '30 months' + interval '5 days', 'patient.read', 'success',
        'practitioner/0001', 'practitioner');

\echo What would go:
SELECT * FROM audit_db.drop_expired_partitions('public.audit_log', dry_run => true);
\echo What goes:
SELECT * FROM audit_db.drop_expired_partitions('public.audit_log');
\echo What is left to go:
SELECT * FROM audit_db.drop_expired_partitions('public.audit_log', dry_run => true);

\echo
\echo === 5. Events that stay when the transaction fails ===
\echo
\echo A refused access must be on record, although the transaction that noticed it rolls back:
BEGIN;
SELECT audit_db.log_event('patient.read', 'failure', principal_id => 'practitioner/0007', principal_type => 'practitioner',
    resource_type => 'patient', resource_id => 'patient/4711', outcome_description => 'not on this ward', durability => 'durable');
ROLLBACK;
SELECT "timestamp"::timestamptz(0), action, status, principal_id, outcome_description
FROM public.audit_log WHERE resource_id = 'patient/4711' AND status = 'failure' AND "timestamp" > now() - interval '1 minute';

\echo 20,000 events that nobody waits for, then until they are on disk:
\timing on
SELECT count(audit_db.log_event('device.heartbeat', principal_id => 'device/' || n % 50, principal_type => 'system',
    resource_id => 'monitor/' || n % 200, durability => 'async')) AS logged
FROM generate_series(1, 20000) n;
SELECT audit_db.flush_events() AS were_still_queued;
\timing off
SELECT enqueued, written, rejected, batches, mean_batch_events::int AS events_a_batch, mean_wait_ms::numeric(10, 1) AS mean_wait_ms, queued_events
FROM audit_db.ingest_stats;

\echo
\echo === 6. Upkeep on a schedule ===
\echo
\echo What is due for the table now, and what would be done about it:
SELECT step, object, action, detail FROM audit_db.maintain_partitions('public.audit_log', dry_run => true);
\echo The shipped job that does it every Sunday, run by hand:
CALL audit_db.run_job('maintenance');
SELECT s->>'step' AS step, s->>'object' AS object, s->>'action' AS action, (s->>'duration_ms')::numeric(10, 1) AS duration_ms
FROM audit_db.job_runs r, jsonb_array_elements(r.steps) s WHERE r.name = 'maintenance';
\echo A job of your own, at half past three on working days in Berlin:
SELECT audit_db.schedule_job('failures', '30 3 * * MON-FRI', 'sql',
    '{"command": "SELECT count(*) FROM public.audit_log WHERE status = $$failure$$", "timeout": "5 min"}', 'Europe/Berlin') AS job;
CALL audit_db.run_job('failures');
SELECT name, schedule, time_zone, task, next_run, last_status FROM audit_db.jobs;

\echo
\echo === 7. What takes long ===
\echo
SET audit_db.slow_query_threshold = '20ms';
SET audit_db.query_stats = on;
SELECT count(*) AS events, count(DISTINCT a.principal_id) AS principals FROM public.audit_log a WHERE a.metadata::text LIKE '%Smith%';
\echo Captured with its plan and without the name:
SELECT status, duration_ms::numeric(10, 1), shared_blks_hit + shared_blks_read AS blocks, query, plan #>> '{Plan,Node Type}' AS plan
FROM audit_db.slow_queries WHERE query LIKE '%principals%' LIMIT 1;
SELECT calls, errors, mean_ms::numeric(10, 1), p95_ms::numeric(10, 1), query FROM audit_db.query_stats WHERE query LIKE '%principals%';
SELECT queries_total, success_rate, mean_ms::numeric(10, 3), p99_ms::numeric(10, 1), queries_slow FROM audit_db.performance_metrics;
RESET audit_db.slow_query_threshold;
RESET audit_db.query_stats;

\echo
\echo === 8. Who does this when nobody is looking ===
\echo
SELECT * FROM audit_db.workers;

\echo
\echo === 9. A question that an auditor asks ===
\echo
SELECT principal_id AS principal
FROM public.audit_log
WHERE "timestamp" > now() - interval '1 month' AND "timestamp" <= now() AND principal_type = 'practitioner'
GROUP BY 1
ORDER BY count(*) DESC, 1
LIMIT 1
\gset
\echo The newest ten events of the busiest practitioner, :principal, in the last month:
SELECT "timestamp"::timestamptz(0), action, status, resource_type, resource_id
FROM public.audit_log
WHERE principal_id = :'principal' AND "timestamp" > now() - interval '1 month' AND "timestamp" <= now()
ORDER BY "timestamp" DESC
LIMIT 10;

\echo Only the months in question are read, through the index on principal and time:
EXPLAIN (COSTS OFF)
SELECT "timestamp", action, status, resource_type, resource_id
FROM public.audit_log
WHERE principal_id = :'principal' AND "timestamp" > now() - interval '1 month' AND "timestamp" <= now()
ORDER BY "timestamp" DESC
LIMIT 10;
