CREATE FUNCTION audit_db.log_event(
    action text,
    status text DEFAULT 'success',
    principal_id text DEFAULT NULL,
    principal_type text DEFAULT NULL,
    organization_id text DEFAULT NULL,
    resource_type text DEFAULT NULL,
    resource_id text DEFAULT NULL,
    outcome_description text DEFAULT NULL,
    correlation_id text DEFAULT NULL,
    data_classification text DEFAULT NULL,
    metadata jsonb DEFAULT NULL,
    event_time timestamptz DEFAULT clock_timestamp(),
    durability text DEFAULT NULL
) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'audit_db_log_event';
COMMENT ON FUNCTION audit_db.log_event IS
'Logs an event to the audit table. durability: transaction (with the caller''s transaction), durable (on disk when the call returns, also if the caller rolls back), async (on disk within audit_db.batch_max_delay); null: as audit_db.durability says. Needs INSERT on the audit table. Errors: 55000 no audit table, not preloaded, or the table is not committed yet; 42501 no right to insert; 22004 no action; 22023 unknown durability; 22008 no partition for the time; of durable: 53400 the queue is full, 55P03 not stored in time, 40P01 the worker waits for the caller, 57P01 shutdown, 25006 standby, and what the table raises';

CREATE FUNCTION audit_db.log_events(events jsonb, durability text DEFAULT NULL) RETURNS bigint
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'audit_db_log_events';
COMMENT ON FUNCTION audit_db.log_events IS
'Logs the events of a JSON array of objects, whose keys are the columns of the standard audit table; other keys go into metadata. Returns how many. With durability transaction all or none. Errors: as log_event, and 22023 not an array of objects';

CREATE FUNCTION audit_db.flush_events() RETURNS bigint
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'flush_events_wrapper';
COMMENT ON FUNCTION audit_db.flush_events IS
'Returns when everything that was queued before the call is on disk: how many events that were. Errors: 55000 the library is not preloaded, 55P03 not stored in audit_db.durable_timeout, 40P01 the worker waits for the caller, 25006 standby';

CREATE FUNCTION audit_db.ingest_statistics()
RETURNS TABLE (queued_events bigint, queue_bytes bigint, queue_capacity_bytes bigint, enqueued bigint, written bigint,
               rejected bigint, withdrawn bigint, batches bigint, mean_batch_events double precision, mean_wait_ms double precision,
               max_wait_ms double precision, fallbacks bigint, last_flush timestamptz, worker_pid integer, last_error text,
               stats_reset timestamptz)
LANGUAGE c VOLATILE PARALLEL RESTRICTED ROWS 1 AS 'MODULE_PATHNAME', 'ingest_statistics_wrapper';
COMMENT ON FUNCTION audit_db.ingest_statistics IS
'Queue of events and ingest worker of this database, from shared memory: the base of the view ingest_stats. Errors: 55000 the library is not preloaded';
REVOKE EXECUTE ON FUNCTION audit_db.ingest_statistics FROM PUBLIC;
GRANT EXECUTE ON FUNCTION audit_db.ingest_statistics TO pg_monitor;

CREATE VIEW audit_db.ingest_stats AS SELECT * FROM audit_db.ingest_statistics();
COMMENT ON VIEW audit_db.ingest_stats IS 'Queue of events and ingest worker of this database, since the server started; enqueued = written + rejected + withdrawn + queued_events';
COMMENT ON COLUMN audit_db.ingest_stats.queued_events IS 'Events that are not on disk';
COMMENT ON COLUMN audit_db.ingest_stats.queue_bytes IS 'Shared memory that they take';
COMMENT ON COLUMN audit_db.ingest_stats.queue_capacity_bytes IS 'Shared memory for events of all databases; one database may use four times what is free';
COMMENT ON COLUMN audit_db.ingest_stats.enqueued IS 'Events that were queued';
COMMENT ON COLUMN audit_db.ingest_stats.written IS 'Events that were stored in their table';
COMMENT ON COLUMN audit_db.ingest_stats.rejected IS 'Events that their table refused; they are in the table of rejected events beside it';
COMMENT ON COLUMN audit_db.ingest_stats.withdrawn IS 'Events whose session was cancelled or ran out of time before they were taken; they were not stored';
COMMENT ON COLUMN audit_db.ingest_stats.batches IS 'Batches that were stored';
COMMENT ON COLUMN audit_db.ingest_stats.mean_batch_events IS 'Events of a batch, on average';
COMMENT ON COLUMN audit_db.ingest_stats.mean_wait_ms IS 'Time from queueing an event to its being on disk, on average, in milliseconds';
COMMENT ON COLUMN audit_db.ingest_stats.max_wait_ms IS 'The longest such time, in milliseconds';
COMMENT ON COLUMN audit_db.ingest_stats.fallbacks IS 'Async events that were written in their caller''s transaction because the queue had no room';
COMMENT ON COLUMN audit_db.ingest_stats.last_flush IS 'When the last batch was stored';
COMMENT ON COLUMN audit_db.ingest_stats.worker_pid IS 'Process of the ingest worker; null while there is none';
COMMENT ON COLUMN audit_db.ingest_stats.last_error IS 'Why the batch at hand could not be stored yet; null when it is';
COMMENT ON COLUMN audit_db.ingest_stats.stats_reset IS 'Since when is counted';
GRANT SELECT ON audit_db.ingest_stats TO pg_monitor;
