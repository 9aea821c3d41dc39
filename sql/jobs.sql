CREATE TABLE audit_db.job_definitions (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL UNIQUE CHECK (name <> '' AND pg_catalog.length(name) <= 200),
    owner regrole NOT NULL CHECK (owner::oid <> 0),
    schedule text NOT NULL,
    task text NOT NULL CHECK (task IN ('maintain_partitions', 'analyze', 'reindex', 'vacuum', 'optimize', 'sql')),
    args jsonb NOT NULL DEFAULT '{}' CHECK (pg_catalog.jsonb_typeof(args) = 'object'),
    time_zone text NOT NULL,
    enabled boolean NOT NULL DEFAULT true,
    disabled_reason text,
    created_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE audit_db.job_definitions IS 'Jobs that were scheduled, and changes to the shipped ones; written by schedule_job, alter_job and unschedule_job';
COMMENT ON COLUMN audit_db.job_definitions.id IS 'Number of the job';
COMMENT ON COLUMN audit_db.job_definitions.name IS 'Its name, unique in the database';
COMMENT ON COLUMN audit_db.job_definitions.owner IS 'Role that it runs as';
COMMENT ON COLUMN audit_db.job_definitions.schedule IS 'Cron expression';
COMMENT ON COLUMN audit_db.job_definitions.task IS 'What it does: maintain_partitions, analyze, reindex, vacuum, optimize or sql';
COMMENT ON COLUMN audit_db.job_definitions.args IS 'Arguments of the task';
COMMENT ON COLUMN audit_db.job_definitions.time_zone IS 'Time zone of the schedule';
COMMENT ON COLUMN audit_db.job_definitions.enabled IS 'Whether it runs at its times';
COMMENT ON COLUMN audit_db.job_definitions.disabled_reason IS 'Why the server disabled it';
COMMENT ON COLUMN audit_db.job_definitions.created_at IS 'When it was scheduled or changed last';
-- The owner of a job whose role was dropped would be restored as a bare number, which may be another role's there.
SELECT pg_catalog.pg_extension_config_dump('audit_db.job_definitions', 'WHERE owner::oid IN (SELECT oid FROM pg_catalog.pg_roles)');
SELECT pg_catalog.pg_extension_config_dump('audit_db.job_definitions_id_seq', '');

CREATE TABLE audit_db.job_slots (
    name text PRIMARY KEY,
    handled_until timestamptz NOT NULL
);
COMMENT ON TABLE audit_db.job_slots IS 'Until when the times of each job have been looked after: run, or on record as missed';
COMMENT ON COLUMN audit_db.job_slots.name IS 'The job';
COMMENT ON COLUMN audit_db.job_slots.handled_until IS 'Times after this one are still to come, or were missed while the server was down';

CREATE TABLE audit_db.job_runs (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL,
    owner regrole NOT NULL,
    task text NOT NULL,
    args jsonb NOT NULL,
    time_zone text NOT NULL,
    scheduled_for timestamptz,
    queued_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    started timestamptz,
    finished timestamptz,
    status text NOT NULL DEFAULT 'queued'
        CHECK (status IN ('queued', 'running', 'succeeded', 'failed', 'missed', 'cancelled')),
    pid integer,
    steps jsonb NOT NULL DEFAULT '[]',
    sqlstate text,
    message text,
    detail text,
    hint text
);
CREATE INDEX job_runs_open ON audit_db.job_runs (id) WHERE status IN ('queued', 'running');
CREATE INDEX job_runs_by_name ON audit_db.job_runs (name, id);
CREATE INDEX job_runs_by_age ON audit_db.job_runs (queued_at);
COMMENT ON TABLE audit_db.job_runs IS 'Every run of a job, those that did not take place too; kept audit_db.job_history. A role sees its own, members of pg_monitor see all';
COMMENT ON COLUMN audit_db.job_runs.id IS 'Number of the run';
COMMENT ON COLUMN audit_db.job_runs.name IS 'The job';
COMMENT ON COLUMN audit_db.job_runs.owner IS 'Role that it runs as';
COMMENT ON COLUMN audit_db.job_runs.task IS 'What it does';
COMMENT ON COLUMN audit_db.job_runs.args IS 'Arguments of the task';
COMMENT ON COLUMN audit_db.job_runs.time_zone IS 'Time zone of the job';
COMMENT ON COLUMN audit_db.job_runs.scheduled_for IS 'The time of its schedule; null where it was submitted';
COMMENT ON COLUMN audit_db.job_runs.queued_at IS 'When it was put into the queue';
COMMENT ON COLUMN audit_db.job_runs.started IS 'When it began; null before, and where it never did';
COMMENT ON COLUMN audit_db.job_runs.finished IS 'When it ended; null before';
COMMENT ON COLUMN audit_db.job_runs.status IS 'queued, running, succeeded, failed, missed (did not take place: see message) or cancelled';
COMMENT ON COLUMN audit_db.job_runs.pid IS 'Process that it runs or ran in';
COMMENT ON COLUMN audit_db.job_runs.steps IS 'What it did: an array of objects with step, object, action, duration_ms (milliseconds) and detail';
COMMENT ON COLUMN audit_db.job_runs.sqlstate IS 'SQLSTATE of the failure';
COMMENT ON COLUMN audit_db.job_runs.message IS 'Primary message of the failure, or why the run did not take place';
COMMENT ON COLUMN audit_db.job_runs.detail IS 'DETAIL of the failure';
COMMENT ON COLUMN audit_db.job_runs.hint IS 'HINT of the failure';
ALTER TABLE audit_db.job_runs ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_runs ON audit_db.job_runs FOR SELECT
    USING (pg_catalog.pg_has_role(owner, 'USAGE') OR pg_catalog.pg_has_role('pg_monitor', 'USAGE'));
COMMENT ON POLICY own_runs ON audit_db.job_runs IS 'Runs of the roles whose rights the reader has; all of them for members of pg_monitor';
GRANT SELECT ON audit_db.job_runs TO PUBLIC;

CREATE TABLE audit_db.index_sizes (
    index oid PRIMARY KEY,
    bytes_per_tuple double precision NOT NULL,
    measured_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE audit_db.index_sizes IS 'How dense indexes were when they had just been rebuilt: one that is no worse than that has no bloat, whatever the estimate says';
COMMENT ON COLUMN audit_db.index_sizes.index IS 'The index';
COMMENT ON COLUMN audit_db.index_sizes.bytes_per_tuple IS 'Its size in bytes divided by its number of entries';
COMMENT ON COLUMN audit_db.index_sizes.measured_at IS 'When it was rebuilt';
GRANT SELECT ON audit_db.index_sizes TO pg_monitor;

CREATE FUNCTION audit_db.schedule_job(
    name text,
    schedule text,
    task text,
    args jsonb DEFAULT '{}',
    time_zone text DEFAULT 'UTC'
) RETURNS bigint
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'schedule_job_wrapper';
COMMENT ON FUNCTION audit_db.schedule_job IS
'Schedules a job that runs as the current role, or replaces the role''s own job of that name. The schedule is a cron expression of five fields (six with seconds in front) in the given time zone; tasks are maintain_partitions, analyze, reindex, vacuum, optimize and sql. Returns the number of the job. Errors: 22023 bad schedule, task, argument or time zone, 42601 syntax error in a command, 42501 another role''s job, a task for superusers, or a table of others, 28000 a role that cannot log in or connect, 25006 read-only transaction';
REVOKE EXECUTE ON FUNCTION audit_db.schedule_job FROM PUBLIC;

CREATE FUNCTION audit_db.alter_job(
    name text,
    schedule text DEFAULT NULL,
    args jsonb DEFAULT NULL,
    enabled boolean DEFAULT NULL
) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'alter_job_wrapper';
COMMENT ON FUNCTION audit_db.alter_job IS
'Changes a job: what is null stays as it is. A shipped job can be changed by a superuser. Errors: 42704 no such job, 42501 another role''s job, and those of schedule_job';
REVOKE EXECUTE ON FUNCTION audit_db.alter_job FROM PUBLIC;

CREATE FUNCTION audit_db.unschedule_job(name text) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'unschedule_job_wrapper';
COMMENT ON FUNCTION audit_db.unschedule_job IS
'Removes a job; a run that is going on ends, one that waits is cancelled, and the history stays. For a shipped job it undoes what alter_job has changed. Errors: 42704 no such job, 42501 another role''s job';
REVOKE EXECUTE ON FUNCTION audit_db.unschedule_job FROM PUBLIC;

CREATE FUNCTION audit_db.submit_job(name text) RETURNS bigint
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'submit_job_wrapper';
COMMENT ON FUNCTION audit_db.submit_job IS
'Has a job run once, from the commit of the transaction on; enabled or not. Returns the number of the run (job_runs.id). Errors: 42704 no such job, 42501 another role''s job, 55000 the library is not preloaded, 25006 read-only transaction';
REVOKE EXECUTE ON FUNCTION audit_db.submit_job FROM PUBLIC;

CREATE PROCEDURE audit_db.run_job(name text)
LANGUAGE c AS 'MODULE_PATHNAME', 'run_job_wrapper';
COMMENT ON PROCEDURE audit_db.run_job IS
'Runs a job and waits for its end, without a transaction that it could wait for; a cancel of the call cancels the run. Errors: the job''s own, 2D000 within a transaction block or a function, and those of submit_job';
REVOKE EXECUTE ON PROCEDURE audit_db.run_job FROM PUBLIC;

CREATE FUNCTION audit_db.next_run(schedule text, time_zone text DEFAULT 'UTC', after timestamptz DEFAULT now())
RETURNS timestamptz
LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'next_run_wrapper';
COMMENT ON FUNCTION audit_db.next_run IS
'The first time after a given one at which a schedule is due; null if never. Errors: 22023 bad schedule or time zone';

CREATE FUNCTION audit_db.job_list()
RETURNS TABLE (name text, schedule text, task text, args jsonb, time_zone text, enabled boolean, owner oid, shipped boolean,
               disabled_reason text, next_run timestamptz)
LANGUAGE c STABLE PARALLEL RESTRICTED ROWS 10 AS 'MODULE_PATHNAME', 'job_list_wrapper';
COMMENT ON FUNCTION audit_db.job_list IS
'Jobs of the roles whose rights the caller has, for members of pg_monitor of all roles, shipped ones too: the base of the view jobs';

CREATE VIEW audit_db.jobs AS
SELECT j.name, j.schedule, j.task, j.args, j.time_zone, j.enabled, pg_catalog.pg_get_userbyid(j.owner) AS owner, j.next_run,
       l.last_run, l.last_status, r.running_since, j.shipped, j.disabled_reason
  FROM audit_db.job_list() j
  LEFT JOIN LATERAL (SELECT u.started AS last_run, u.status AS last_status
                       FROM audit_db.job_runs u
                      WHERE u.name OPERATOR(pg_catalog.=) j.name AND u.owner OPERATOR(pg_catalog.=) j.owner
                        AND u.started IS NOT NULL AND u.finished IS NOT NULL
                      ORDER BY u.id DESC LIMIT 1) l ON true
  LEFT JOIN LATERAL (SELECT u.started AS running_since
                       FROM audit_db.job_runs u
                      WHERE u.name OPERATOR(pg_catalog.=) j.name AND u.owner OPERATOR(pg_catalog.=) j.owner
                        AND u.status OPERATOR(pg_catalog.=) 'running'
                      ORDER BY u.id DESC LIMIT 1) r ON true;
COMMENT ON VIEW audit_db.jobs IS 'Jobs of this database: a role sees its own, members of pg_monitor see all';
COMMENT ON COLUMN audit_db.jobs.name IS 'The job';
COMMENT ON COLUMN audit_db.jobs.schedule IS 'Cron expression';
COMMENT ON COLUMN audit_db.jobs.task IS 'What it does';
COMMENT ON COLUMN audit_db.jobs.args IS 'Arguments of the task';
COMMENT ON COLUMN audit_db.jobs.time_zone IS 'Time zone of the schedule';
COMMENT ON COLUMN audit_db.jobs.enabled IS 'Whether it runs at its times';
COMMENT ON COLUMN audit_db.jobs.owner IS 'Role that it runs as';
COMMENT ON COLUMN audit_db.jobs.next_run IS 'The next time of its schedule; null while it is not enabled, or if there is none';
COMMENT ON COLUMN audit_db.jobs.last_run IS 'When its last run began that has ended';
COMMENT ON COLUMN audit_db.jobs.last_status IS 'How that run ended: succeeded, failed or cancelled';
COMMENT ON COLUMN audit_db.jobs.running_since IS 'When the run began that is going on; null while there is none';
COMMENT ON COLUMN audit_db.jobs.shipped IS 'Whether the job came with the extension';
COMMENT ON COLUMN audit_db.jobs.disabled_reason IS 'Why the server disabled it; null where it did not';
GRANT SELECT ON audit_db.jobs TO PUBLIC;

CREATE FUNCTION audit_db.maintain_partitions(
    parent regclass DEFAULT NULL,
    analyze_tables boolean DEFAULT true,
    update_statistics boolean DEFAULT true,
    reindex_if_needed boolean DEFAULT true,
    compress_old_partitions boolean DEFAULT false,
    dry_run boolean DEFAULT false
) RETURNS TABLE (step text, object text, action text, duration_ms double precision, detail text)
LANGUAGE c VOLATILE PARALLEL UNSAFE ROWS 20 AS 'MODULE_PATHNAME', 'maintain_partitions_wrapper';
COMMENT ON FUNCTION audit_db.maintain_partitions IS
'Makes the partitions that a table (default: all managed tables of the caller) should have, empties its default partition and applies retention; then analyzes partitions that have changed, the partitioned table itself, and rebuilds indexes that are bloated or invalid. The work is done by a worker, a transaction a step; what has to wait for the caller''s own transaction is queued. Where the library is not preloaded it is done in the caller''s transaction, without what needs one of its own. With dry_run it says what it would do. Durations are in milliseconds. Errors: 55000 not managed, 55006 in use by the open transaction, 42501 not the owner, 0A000 compression, 53000 no worker slot is free, 25006 read-only transaction';
REVOKE EXECUTE ON FUNCTION audit_db.maintain_partitions FROM PUBLIC;
