-- Slow statements and statistics as one session sees them.
SELECT audit_db.reset_stats();
SET audit_db.slow_query_threshold = 0;
SET audit_db.query_stats = on;
SET audit_db.slow_query_plan = 'off';
SELECT count(*) AS captured_here FROM generate_series(1, 3) i WHERE i <> 5 AND 'x' <> 'y'; -- a comment
SELECT 1 / 0 AS captured_here;
ALTER ROLE CURRENT_USER SET my.captured_here = here;
RESET audit_db.slow_query_threshold;
RESET audit_db.query_stats;
ALTER ROLE CURRENT_USER RESET my.captured_here;
SELECT query, database, rows, parameters, plan, status, sqlstate, nested_level, duration_ms >= 0 AS timed, captured_at <= clock_timestamp() AS captured
  FROM audit_db.slow_queries WHERE query LIKE '%captured_here%' AND query NOT LIKE '%reset%' ORDER BY captured_at;
SELECT query, top_level, calls, errors, rows, total_ms = mean_ms AS once, min_ms = max_ms AS single, p50_ms BETWEEN min_ms AND max_ms AS within,
       first_seen = last_seen AS seen_once
  FROM audit_db.query_stats WHERE query LIKE '%captured_here%' AND calls > 0 ORDER BY query;
SELECT queries_total >= queries_successful AS total, queries_failed, success_rate BETWEEN 0 AND 1 AS rate, mean_ms > 0 AS mean, p95_ms <= p99_ms AS ordered,
       queries_slow >= 3 AS slow, queries_untracked, plans_failed, ingest_queue_depth FROM audit_db.performance_metrics;
SELECT audit_db.reset_stats('slow_queries');
SELECT count(*) FROM audit_db.slow_queries WHERE query LIKE '%captured_here%' AND status <> 'running';
SELECT audit_db.reset_stats('nothing');
SELECT audit_db.reset_stats(NULL);
SELECT audit_db.normalize_query($$SELECT 'a', 5, E'\n', U&'x', B'1', X'F', $x$y$x$, $1 /* c */ FROM "T" -- d$$);
SELECT audit_db.normalize_query($$SELECT 'not closed$$);
SET audit_db.slow_query_plan = 'maybe';
SET audit_db.slow_query_sample_rate = 2;
