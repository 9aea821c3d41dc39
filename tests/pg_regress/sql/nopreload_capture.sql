-- Without the preloaded library no statement is followed.
SELECT count(*) FROM audit_db.slow_queries;
SELECT count(*) FROM audit_db.query_stats;
SELECT count(*) FROM audit_db.performance_metrics;
SELECT audit_db.reset_stats();
SELECT count(*) FROM audit_db.slow_query_log;
SELECT audit_db.normalize_query('SELECT 1');
SHOW audit_db.slow_query_threshold;
