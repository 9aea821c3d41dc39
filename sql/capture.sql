CREATE FUNCTION audit_db.slow_query_records(from_number bigint DEFAULT NULL, until_number bigint DEFAULT NULL)
RETURNS TABLE (captured_at timestamptz, sequence bigint, query_id bigint, query text, database_oid oid, role_oid oid,
               application_name text, client_addr text, pid integer, duration_ms double precision, planning_ms double precision,
               rows bigint, blocks bigint[], wal_bytes bigint, parameters text, plan text, status text, sqlstate text,
               nested_level integer, waits text)
LANGUAGE c VOLATILE PARALLEL RESTRICTED ROWS 100 AS 'MODULE_PATHNAME', 'slow_query_records_wrapper';
COMMENT ON FUNCTION audit_db.slow_query_records IS
'Slow statements in shared memory, newest first, with numbers from the first to before the second: the base of the view slow_queries. Errors: 55000 the library is not preloaded';
REVOKE EXECUTE ON FUNCTION audit_db.slow_query_records FROM PUBLIC;
GRANT EXECUTE ON FUNCTION audit_db.slow_query_records TO pg_monitor;

CREATE FUNCTION audit_db.running_statements()
RETURNS TABLE (pid integer, database_oid oid, role_oid oid, duration_ms double precision, waits text)
LANGUAGE c VOLATILE PARALLEL RESTRICTED ROWS 10 AS 'MODULE_PATHNAME', 'running_statements_wrapper';
COMMENT ON FUNCTION audit_db.running_statements IS
'Statements of clients that have been running for audit_db.slow_query_threshold. Errors: 55000 the library is not preloaded';
REVOKE EXECUTE ON FUNCTION audit_db.running_statements FROM PUBLIC;
GRANT EXECUTE ON FUNCTION audit_db.running_statements TO pg_monitor;

CREATE FUNCTION audit_db.normalize_query(query text) RETURNS text
LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'normalize_query_wrapper';
COMMENT ON FUNCTION audit_db.normalize_query IS
'A statement without its constants and comments, by the server''s scanner. What the scanner cannot read is left out';

CREATE FUNCTION audit_db.slow_query_rows(from_number bigint DEFAULT NULL, until_number bigint DEFAULT NULL)
RETURNS TABLE (captured_at timestamptz, sequence bigint, query_id bigint, query text, database name, role name,
               application_name text, client_addr inet, pid integer, duration_ms double precision, planning_ms double
               precision, rows bigint, shared_blks_hit bigint, shared_blks_read bigint, shared_blks_dirtied bigint,
               shared_blks_written bigint, local_blks_hit bigint, local_blks_read bigint, local_blks_dirtied bigint,
               local_blks_written bigint, temp_blks_read bigint, temp_blks_written bigint, wal_bytes bigint, parameters
               jsonb, plan jsonb, status text, sqlstate text, nested_level integer, waits jsonb)
LANGUAGE sql VOLATILE PARALLEL RESTRICTED ROWS 100
SET search_path = pg_catalog, pg_temp
AS $function$
SELECT r.captured_at, r.sequence, r.query_id, r.query, d.datname, pg_catalog.pg_get_userbyid(r.role_oid),
       r.application_name, r.client_addr::pg_catalog.inet, r.pid, r.duration_ms, r.planning_ms, r.rows, r.blocks[1],
       r.blocks[2], r.blocks[3], r.blocks[4], r.blocks[5], r.blocks[6], r.blocks[7], r.blocks[8], r.blocks[9],
       r.blocks[10], r.wal_bytes, r.parameters::jsonb, r.plan::jsonb, r.status, r.sqlstate, r.nested_level,
       r.waits::jsonb
  FROM audit_db.slow_query_records(from_number, until_number) r
  LEFT JOIN pg_catalog.pg_database d ON d.oid = r.database_oid
$function$;
COMMENT ON FUNCTION audit_db.slow_query_rows IS 'The same with names in place of OIDs';
REVOKE EXECUTE ON FUNCTION audit_db.slow_query_rows FROM PUBLIC;
GRANT EXECUTE ON FUNCTION audit_db.slow_query_rows TO pg_monitor;

CREATE VIEW audit_db.slow_queries AS
SELECT s.captured_at, s.query_id, s.query, s.database, s.role, s.application_name, s.client_addr, s.pid,
       s.duration_ms, s.planning_ms, s.rows, s.shared_blks_hit, s.shared_blks_read, s.shared_blks_dirtied,
       s.shared_blks_written, s.local_blks_hit, s.local_blks_read, s.local_blks_dirtied, s.local_blks_written,
       s.temp_blks_read, s.temp_blks_written, s.wal_bytes, s.parameters, s.plan, s.status, s.sqlstate,
       s.nested_level, s.waits
  FROM (SELECT * FROM audit_db.slow_query_rows() s ORDER BY s.sequence DESC) s
UNION ALL
SELECT pg_catalog.clock_timestamp(), a.query_id, audit_db.normalize_query(a.query), a.datname,
       pg_catalog.pg_get_userbyid(r.role_oid), a.application_name, a.client_addr, r.pid, r.duration_ms, NULL, NULL,
       NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 'running', NULL, 0,
       r.waits::jsonb
  FROM audit_db.running_statements() r
  JOIN pg_catalog.pg_stat_activity a ON a.pid OPERATOR(pg_catalog.=) r.pid;
COMMENT ON VIEW audit_db.slow_queries IS 'The last slow statements of all databases, newest first, and then those that are still running, with status running';

COMMENT ON COLUMN audit_db.slow_queries.captured_at IS 'When it ended; now for one that is running';
COMMENT ON COLUMN audit_db.slow_queries.query_id IS 'The server''s id of the statement; null where none is computed (compute_query_id)';
COMMENT ON COLUMN audit_db.slow_queries.query IS 'The statement, with its constants replaced unless audit_db.slow_query_parameters is full';
COMMENT ON COLUMN audit_db.slow_queries.database IS 'The database';
COMMENT ON COLUMN audit_db.slow_queries.role IS 'The role that ran it';
COMMENT ON COLUMN audit_db.slow_queries.application_name IS 'Name that the client''s program gave itself';
COMMENT ON COLUMN audit_db.slow_queries.client_addr IS 'Address of the client; null for a socket of the machine';
COMMENT ON COLUMN audit_db.slow_queries.pid IS 'Process of the session';
COMMENT ON COLUMN audit_db.slow_queries.duration_ms IS 'Time in the executor, or in the utility command, in milliseconds';
COMMENT ON COLUMN audit_db.slow_queries.planning_ms IS 'Time in the planner, in milliseconds';
COMMENT ON COLUMN audit_db.slow_queries.rows IS 'Rows returned or changed';
COMMENT ON COLUMN audit_db.slow_queries.shared_blks_hit IS 'Shared blocks found in the cache while it was open';
COMMENT ON COLUMN audit_db.slow_queries.shared_blks_read IS 'Shared blocks read while it was open';
COMMENT ON COLUMN audit_db.slow_queries.shared_blks_dirtied IS 'Shared blocks dirtied while it was open';
COMMENT ON COLUMN audit_db.slow_queries.shared_blks_written IS 'Shared blocks written while it was open';
COMMENT ON COLUMN audit_db.slow_queries.local_blks_hit IS 'Local blocks found in the cache while it was open';
COMMENT ON COLUMN audit_db.slow_queries.local_blks_read IS 'Local blocks read while it was open';
COMMENT ON COLUMN audit_db.slow_queries.local_blks_dirtied IS 'Local blocks dirtied while it was open';
COMMENT ON COLUMN audit_db.slow_queries.local_blks_written IS 'Local blocks written while it was open';
COMMENT ON COLUMN audit_db.slow_queries.temp_blks_read IS 'Temporary blocks read while it was open';
COMMENT ON COLUMN audit_db.slow_queries.temp_blks_written IS 'Temporary blocks written while it was open';
COMMENT ON COLUMN audit_db.slow_queries.wal_bytes IS 'WAL written while it was open, in bytes';
COMMENT ON COLUMN audit_db.slow_queries.parameters IS 'Its parameters, as audit_db.slow_query_parameters says';
COMMENT ON COLUMN audit_db.slow_queries.plan IS 'Its plan as EXPLAIN (FORMAT JSON) writes it, and whether the figures in it are those of this run (actual)';
COMMENT ON COLUMN audit_db.slow_queries.status IS 'ok, error, cancelled or running';
COMMENT ON COLUMN audit_db.slow_queries.sqlstate IS 'SQLSTATE where it failed';
COMMENT ON COLUMN audit_db.slow_queries.nested_level IS '0: sent by a client; 1: run by such a statement, and so on';
COMMENT ON COLUMN audit_db.slow_queries.waits IS 'What it waited for while it was sampled: wait event and number of samples';
GRANT SELECT ON audit_db.slow_queries TO pg_monitor;

CREATE TABLE audit_db.slow_query_log (
    captured_at timestamptz NOT NULL,
    sequence bigint NOT NULL,
    query_id bigint,
    query text,
    database name,
    role name,
    application_name text,
    client_addr inet,
    pid integer,
    duration_ms double precision NOT NULL,
    planning_ms double precision,
    rows bigint,
    shared_blks_hit bigint,
    shared_blks_read bigint,
    shared_blks_dirtied bigint,
    shared_blks_written bigint,
    local_blks_hit bigint,
    local_blks_read bigint,
    local_blks_dirtied bigint,
    local_blks_written bigint,
    temp_blks_read bigint,
    temp_blks_written bigint,
    wal_bytes bigint,
    parameters jsonb,
    plan jsonb,
    status text NOT NULL,
    sqlstate text,
    nested_level integer,
    waits jsonb,
    PRIMARY KEY (captured_at, sequence)
) PARTITION BY RANGE (captured_at);
COMMENT ON TABLE audit_db.slow_query_log IS 'Slow statements of this database, a partition a day, kept for audit_db.slow_query_retention; the database''s worker writes them';
COMMENT ON COLUMN audit_db.slow_query_log.captured_at IS 'When it ended';
COMMENT ON COLUMN audit_db.slow_query_log.sequence IS 'Number of the record: grows within a run of the server; each run has numbers of its own';
COMMENT ON COLUMN audit_db.slow_query_log.query_id IS 'The server''s id of the statement; null where none is computed (compute_query_id)';
COMMENT ON COLUMN audit_db.slow_query_log.query IS 'The statement, with its constants replaced unless audit_db.slow_query_parameters is full';
COMMENT ON COLUMN audit_db.slow_query_log.database IS 'The database';
COMMENT ON COLUMN audit_db.slow_query_log.role IS 'The role that ran it';
COMMENT ON COLUMN audit_db.slow_query_log.application_name IS 'Name that the client''s program gave itself';
COMMENT ON COLUMN audit_db.slow_query_log.client_addr IS 'Address of the client; null for a socket of the machine';
COMMENT ON COLUMN audit_db.slow_query_log.pid IS 'Process of the session';
COMMENT ON COLUMN audit_db.slow_query_log.duration_ms IS 'Time in the executor, or in the utility command, in milliseconds';
COMMENT ON COLUMN audit_db.slow_query_log.planning_ms IS 'Time in the planner, in milliseconds';
COMMENT ON COLUMN audit_db.slow_query_log.rows IS 'Rows returned or changed';
COMMENT ON COLUMN audit_db.slow_query_log.shared_blks_hit IS 'Shared blocks found in the cache while it was open';
COMMENT ON COLUMN audit_db.slow_query_log.shared_blks_read IS 'Shared blocks read while it was open';
COMMENT ON COLUMN audit_db.slow_query_log.shared_blks_dirtied IS 'Shared blocks dirtied while it was open';
COMMENT ON COLUMN audit_db.slow_query_log.shared_blks_written IS 'Shared blocks written while it was open';
COMMENT ON COLUMN audit_db.slow_query_log.local_blks_hit IS 'Local blocks found in the cache while it was open';
COMMENT ON COLUMN audit_db.slow_query_log.local_blks_read IS 'Local blocks read while it was open';
COMMENT ON COLUMN audit_db.slow_query_log.local_blks_dirtied IS 'Local blocks dirtied while it was open';
COMMENT ON COLUMN audit_db.slow_query_log.local_blks_written IS 'Local blocks written while it was open';
COMMENT ON COLUMN audit_db.slow_query_log.temp_blks_read IS 'Temporary blocks read while it was open';
COMMENT ON COLUMN audit_db.slow_query_log.temp_blks_written IS 'Temporary blocks written while it was open';
COMMENT ON COLUMN audit_db.slow_query_log.wal_bytes IS 'WAL written while it was open, in bytes';
COMMENT ON COLUMN audit_db.slow_query_log.parameters IS 'Its parameters, as audit_db.slow_query_parameters says';
COMMENT ON COLUMN audit_db.slow_query_log.plan IS 'Its plan as EXPLAIN (FORMAT JSON) writes it, and whether the figures in it are those of this run (actual)';
COMMENT ON COLUMN audit_db.slow_query_log.status IS 'ok, error, cancelled';
COMMENT ON COLUMN audit_db.slow_query_log.sqlstate IS 'SQLSTATE where it failed';
COMMENT ON COLUMN audit_db.slow_query_log.nested_level IS '0: sent by a client; 1: run by such a statement, and so on';
COMMENT ON COLUMN audit_db.slow_query_log.waits IS 'What it waited for while it was sampled: wait event and number of samples';
GRANT SELECT ON audit_db.slow_query_log TO pg_monitor;

CREATE FUNCTION audit_db.query_statistics()
RETURNS TABLE (query_id bigint, query text, database_oid oid, role_oid oid, top_level boolean, calls bigint, errors bigint,
               total_ms double precision, min_ms double precision, max_ms double precision, p50_ms double precision,
               p95_ms double precision, p99_ms double precision, planning_ms double precision, rows bigint, blocks bigint[],
               wal_bytes bigint, first_seen timestamptz, last_seen timestamptz)
LANGUAGE c VOLATILE PARALLEL RESTRICTED ROWS 1000 AS 'MODULE_PATHNAME', 'query_statistics_wrapper';
COMMENT ON FUNCTION audit_db.query_statistics IS
'Statistics of statements of all databases, from shared memory: the base of the view query_stats. Errors: 55000 the library is not preloaded';
REVOKE EXECUTE ON FUNCTION audit_db.query_statistics FROM PUBLIC;
GRANT EXECUTE ON FUNCTION audit_db.query_statistics TO pg_monitor;

CREATE VIEW audit_db.query_stats AS
SELECT s.query_id, d.datname AS database, pg_catalog.pg_get_userbyid(s.role_oid) AS role, s.top_level, s.query, s.calls, s.errors,
       s.total_ms, s.total_ms OPERATOR(pg_catalog./) s.calls::double precision AS mean_ms, s.min_ms, s.max_ms, s.p50_ms, s.p95_ms,
       s.p99_ms, s.planning_ms, s.rows, s.blocks[1] AS shared_blks_hit, s.blocks[2] AS shared_blks_read,
       s.blocks[3] AS shared_blks_dirtied, s.blocks[4] AS shared_blks_written, s.blocks[5] AS temp_blks_read,
       s.blocks[6] AS temp_blks_written, s.wal_bytes, s.first_seen, s.last_seen
  FROM audit_db.query_statistics() s
  LEFT JOIN pg_catalog.pg_database d ON d.oid OPERATOR(pg_catalog.=) s.database_oid;
COMMENT ON VIEW audit_db.query_stats IS 'Statistics of statements of all databases, by id, database and role, while audit_db.query_stats is on; the least used of more than audit_db.query_stats_max make room';
COMMENT ON COLUMN audit_db.query_stats.query_id IS 'The server''s id of the statement; utility commands have one for each kind';
COMMENT ON COLUMN audit_db.query_stats.database IS 'The database';
COMMENT ON COLUMN audit_db.query_stats.role IS 'The role that ran it';
COMMENT ON COLUMN audit_db.query_stats.top_level IS 'Whether a client sent it, or another statement ran it';
COMMENT ON COLUMN audit_db.query_stats.query IS 'The statement with its constants replaced, at most 1,024 bytes of it; a utility command''s tag';
COMMENT ON COLUMN audit_db.query_stats.calls IS 'Executions';
COMMENT ON COLUMN audit_db.query_stats.errors IS 'Executions that failed or were cancelled';
COMMENT ON COLUMN audit_db.query_stats.total_ms IS 'Time of all executions in the executor or the utility command, in milliseconds';
COMMENT ON COLUMN audit_db.query_stats.mean_ms IS 'The same of one, on average';
COMMENT ON COLUMN audit_db.query_stats.min_ms IS 'The shortest, in milliseconds';
COMMENT ON COLUMN audit_db.query_stats.max_ms IS 'The longest, in milliseconds';
COMMENT ON COLUMN audit_db.query_stats.p50_ms IS 'Half of the executions took no longer, in milliseconds; within 12 %';
COMMENT ON COLUMN audit_db.query_stats.p95_ms IS '95 % of the executions took no longer, in milliseconds; within 12 %';
COMMENT ON COLUMN audit_db.query_stats.p99_ms IS '99 % of the executions took no longer, in milliseconds; within 12 %';
COMMENT ON COLUMN audit_db.query_stats.planning_ms IS 'Time of all executions in the planner, in milliseconds';
COMMENT ON COLUMN audit_db.query_stats.rows IS 'Rows returned or changed';
COMMENT ON COLUMN audit_db.query_stats.shared_blks_hit IS 'Shared blocks found in the cache';
COMMENT ON COLUMN audit_db.query_stats.shared_blks_read IS 'Shared blocks read';
COMMENT ON COLUMN audit_db.query_stats.shared_blks_dirtied IS 'Shared blocks dirtied';
COMMENT ON COLUMN audit_db.query_stats.shared_blks_written IS 'Shared blocks written';
COMMENT ON COLUMN audit_db.query_stats.temp_blks_read IS 'Temporary blocks read';
COMMENT ON COLUMN audit_db.query_stats.temp_blks_written IS 'Temporary blocks written';
COMMENT ON COLUMN audit_db.query_stats.wal_bytes IS 'WAL written, in bytes';
COMMENT ON COLUMN audit_db.query_stats.first_seen IS 'When the client''s message came in which it ran first since the statistics were reset';
COMMENT ON COLUMN audit_db.query_stats.last_seen IS 'When the client''s message came in which it ran last';
GRANT SELECT ON audit_db.query_stats TO pg_monitor;

CREATE FUNCTION audit_db.statement_totals()
RETURNS TABLE (total bigint, failed bigint, slow bigint, total_ms double precision, p95_ms double precision,
               p99_ms double precision, untracked bigint, evicted bigint, slow_lost bigint, plans_failed bigint, stats_reset timestamptz)
LANGUAGE c VOLATILE PARALLEL RESTRICTED ROWS 1 AS 'MODULE_PATHNAME', 'statement_totals_wrapper';
COMMENT ON FUNCTION audit_db.statement_totals IS
'Totals of the statements of all clients, from shared memory: a base of the view performance_metrics. Errors: 55000 the library is not preloaded';
REVOKE EXECUTE ON FUNCTION audit_db.statement_totals FROM PUBLIC;
GRANT EXECUTE ON FUNCTION audit_db.statement_totals TO pg_monitor;

CREATE TABLE audit_db.metrics_history (
    sampled_at timestamptz PRIMARY KEY,
    queries_total bigint,
    queries_successful bigint,
    queries_failed bigint,
    success_rate double precision,
    mean_ms double precision,
    p95_ms double precision,
    p99_ms double precision,
    queries_slow bigint,
    queries_untracked bigint,
    query_stats_evicted bigint,
    slow_queries_lost bigint,
    plans_failed bigint,
    cache_hit_rate double precision,
    cache_used_ratio double precision,
    cache_eviction_rate double precision,
    ingest_queue_depth bigint,
    ingest_events_written bigint,
    ingest_events_per_second double precision,
    stats_reset timestamptz
);
COMMENT ON TABLE audit_db.metrics_history IS 'Rows of performance_metrics, every audit_db.metrics_interval, kept for 30 days';
COMMENT ON COLUMN audit_db.metrics_history.sampled_at IS 'When it was read';
COMMENT ON COLUMN audit_db.metrics_history.queries_total IS 'Statements that clients sent';
COMMENT ON COLUMN audit_db.metrics_history.queries_successful IS 'Those that succeeded';
COMMENT ON COLUMN audit_db.metrics_history.queries_failed IS 'Those that failed or were cancelled';
COMMENT ON COLUMN audit_db.metrics_history.success_rate IS 'Part of the statements that succeeded';
COMMENT ON COLUMN audit_db.metrics_history.mean_ms IS 'Time of a statement in planner and executor, on average, in milliseconds';
COMMENT ON COLUMN audit_db.metrics_history.p95_ms IS '95 % of the statements took no longer, in milliseconds; within 12 %';
COMMENT ON COLUMN audit_db.metrics_history.p99_ms IS '99 % of the statements took no longer, in milliseconds; within 12 %';
COMMENT ON COLUMN audit_db.metrics_history.queries_slow IS 'Those that were captured because they took audit_db.slow_query_threshold';
COMMENT ON COLUMN audit_db.metrics_history.queries_untracked IS 'Statements that were not followed because too many were open in their session';
COMMENT ON COLUMN audit_db.metrics_history.query_stats_evicted IS 'Statements that have made room for others in query_stats, since the last reset of query_stats';
COMMENT ON COLUMN audit_db.metrics_history.slow_queries_lost IS 'Slow statements that were overwritten in shared memory before the worker of their database had stored them, or that it could not store; since the last reset of slow_queries';
COMMENT ON COLUMN audit_db.metrics_history.plans_failed IS 'Plans of slow statements that could not be made, since the last reset of slow_queries';
COMMENT ON COLUMN audit_db.metrics_history.cache_hit_rate IS 'Part of the calls of cached_query and cached_json that were hits, since the last cache_reset';
COMMENT ON COLUMN audit_db.metrics_history.cache_used_ratio IS 'Part of audit_db.cache_size that is taken';
COMMENT ON COLUMN audit_db.metrics_history.cache_eviction_rate IS 'Results that made room for others, as a part of those that were stored';
COMMENT ON COLUMN audit_db.metrics_history.ingest_queue_depth IS 'Events of this database that are not on disk';
COMMENT ON COLUMN audit_db.metrics_history.ingest_events_written IS 'Events of this database that were stored';
COMMENT ON COLUMN audit_db.metrics_history.ingest_events_per_second IS 'The same per second, since the last row of metrics_history of this server''s run';
COMMENT ON COLUMN audit_db.metrics_history.stats_reset IS 'Since when statements are counted: the last reset of performance_metrics';
GRANT SELECT ON audit_db.metrics_history TO pg_monitor;

CREATE VIEW audit_db.performance_metrics AS
SELECT t.total AS queries_total, t.total OPERATOR(pg_catalog.-) t.failed AS queries_successful, t.failed AS queries_failed,
       CASE WHEN t.total OPERATOR(pg_catalog.>) 0
            THEN (t.total OPERATOR(pg_catalog.-) t.failed)::double precision OPERATOR(pg_catalog./) t.total::double precision END AS success_rate,
       CASE WHEN t.total OPERATOR(pg_catalog.>) 0 THEN t.total_ms OPERATOR(pg_catalog./) t.total::double precision END AS mean_ms,
       t.p95_ms, t.p99_ms, t.slow AS queries_slow, t.untracked AS queries_untracked, t.evicted AS query_stats_evicted,
       t.slow_lost AS slow_queries_lost, t.plans_failed,
       c.hit_rate AS cache_hit_rate, c.used_ratio AS cache_used_ratio, c.eviction_rate AS cache_eviction_rate,
       i.queued_events AS ingest_queue_depth, i.written AS ingest_events_written,
       h.per_second AS ingest_events_per_second, t.stats_reset
  FROM audit_db.statement_totals() t
 CROSS JOIN audit_db.ingest_statistics() i
 CROSS JOIN audit_db.cache_stats c
  LEFT JOIN LATERAL (
      SELECT (i.written OPERATOR(pg_catalog.-) h.ingest_events_written)::double precision OPERATOR(pg_catalog./)
             NULLIF(pg_catalog.date_part('epoch', pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) h.sampled_at), 0) AS per_second
        FROM audit_db.metrics_history h
       WHERE h.sampled_at OPERATOR(pg_catalog.>=) pg_catalog.pg_postmaster_start_time()
         AND h.ingest_events_written OPERATOR(pg_catalog.<=) i.written
       ORDER BY h.sampled_at DESC LIMIT 1) h ON true;
COMMENT ON VIEW audit_db.performance_metrics IS 'How the server does, in one row: statements of all databases, while audit_db.slow_query_threshold or audit_db.query_stats has them followed, and events of this one';
COMMENT ON COLUMN audit_db.performance_metrics.queries_total IS 'Statements that clients sent';
COMMENT ON COLUMN audit_db.performance_metrics.queries_successful IS 'Those that succeeded';
COMMENT ON COLUMN audit_db.performance_metrics.queries_failed IS 'Those that failed or were cancelled';
COMMENT ON COLUMN audit_db.performance_metrics.success_rate IS 'Part of the statements that succeeded';
COMMENT ON COLUMN audit_db.performance_metrics.mean_ms IS 'Time of a statement in planner and executor, on average, in milliseconds';
COMMENT ON COLUMN audit_db.performance_metrics.p95_ms IS '95 % of the statements took no longer, in milliseconds; within 12 %';
COMMENT ON COLUMN audit_db.performance_metrics.p99_ms IS '99 % of the statements took no longer, in milliseconds; within 12 %';
COMMENT ON COLUMN audit_db.performance_metrics.queries_slow IS 'Those that were captured because they took audit_db.slow_query_threshold';
COMMENT ON COLUMN audit_db.performance_metrics.queries_untracked IS 'Statements that were not followed because too many were open in their session';
COMMENT ON COLUMN audit_db.performance_metrics.query_stats_evicted IS 'Statements that have made room for others in query_stats, since the last reset of query_stats';
COMMENT ON COLUMN audit_db.performance_metrics.slow_queries_lost IS 'Slow statements that were overwritten in shared memory before the worker of their database had stored them, or that it could not store; since the last reset of slow_queries';
COMMENT ON COLUMN audit_db.performance_metrics.plans_failed IS 'Plans of slow statements that could not be made, since the last reset of slow_queries';
COMMENT ON COLUMN audit_db.performance_metrics.cache_hit_rate IS 'Part of the calls of cached_query and cached_json that were hits, since the last cache_reset';
COMMENT ON COLUMN audit_db.performance_metrics.cache_used_ratio IS 'Part of audit_db.cache_size that is taken';
COMMENT ON COLUMN audit_db.performance_metrics.cache_eviction_rate IS 'Results that made room for others, as a part of those that were stored';
COMMENT ON COLUMN audit_db.performance_metrics.ingest_queue_depth IS 'Events of this database that are not on disk';
COMMENT ON COLUMN audit_db.performance_metrics.ingest_events_written IS 'Events of this database that were stored';
COMMENT ON COLUMN audit_db.performance_metrics.ingest_events_per_second IS 'The same per second, since the last row of metrics_history of this server''s run';
COMMENT ON COLUMN audit_db.performance_metrics.stats_reset IS 'Since when statements are counted: the last reset of performance_metrics';
GRANT SELECT ON audit_db.performance_metrics TO pg_monitor;

CREATE FUNCTION audit_db.reset_stats(what text DEFAULT 'all') RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'reset_stats_wrapper';
COMMENT ON FUNCTION audit_db.reset_stats IS
'Forgets statistics of all databases: query_stats, slow_queries (what is in slow_query_log stays), performance_metrics, or all. Errors: 22023 none of these, 22004 null, 55000 the library is not preloaded';
REVOKE EXECUTE ON FUNCTION audit_db.reset_stats FROM PUBLIC;
