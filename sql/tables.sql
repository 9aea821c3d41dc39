CREATE TABLE audit_db.managed_tables (
    parent regclass PRIMARY KEY,
    partition_interval text NOT NULL
        CHECK (partition_interval IN ('daily', 'weekly', 'monthly', 'quarterly', 'yearly')),
    premake integer NOT NULL CHECK (premake >= 0),
    retention interval CHECK (retention > interval '0'),
    retention_action text NOT NULL CHECK (retention_action ~ '^(drop|detach|archive:.+)$'),
    time_zone text NOT NULL,
    default_partition boolean NOT NULL,
    storage_parameters text[],
    index_count integer NOT NULL DEFAULT 0,
    home text,
    audit_table boolean NOT NULL DEFAULT false,
    managed_since timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE audit_db.managed_tables IS 'Settings of the tables that audit_db looks after; written by manage_table and unmanage_table';
COMMENT ON COLUMN audit_db.managed_tables.parent IS 'The partitioned table';
COMMENT ON COLUMN audit_db.managed_tables.partition_interval IS 'Length of new partitions: daily, weekly, monthly, quarterly or yearly';
COMMENT ON COLUMN audit_db.managed_tables.premake IS 'Number of partitions kept ready after the current one';
COMMENT ON COLUMN audit_db.managed_tables.retention IS 'Partitions expire this long after the end of their range; null keeps them for ever';
COMMENT ON COLUMN audit_db.managed_tables.retention_action IS 'What happens to expired partitions: drop, detach or archive:SCHEMA';
COMMENT ON COLUMN audit_db.managed_tables.time_zone IS 'Time zone in which periods start';
COMMENT ON COLUMN audit_db.managed_tables.default_partition IS 'Whether the table is to have a default partition';
COMMENT ON COLUMN audit_db.managed_tables.storage_parameters IS 'Storage parameters of new partitions, each name=value; null copies those of the newest partition';
COMMENT ON COLUMN audit_db.managed_tables.index_count IS 'Number of indexes that the table had when the worker last saw it complete';
COMMENT ON COLUMN audit_db.managed_tables.home IS 'Server, database and table that the row was written for; where it differs the table was restored, and the worker waits until its indexes are complete';
COMMENT ON COLUMN audit_db.managed_tables.audit_table IS 'Whether create_audit_log made the table: events go to the oldest such table unless audit_db.audit_table names another';
COMMENT ON COLUMN audit_db.managed_tables.managed_since IS 'When the table was taken over';
-- Like the catalog's own description of partitioned tables, the settings hold nothing that must be hidden.
GRANT SELECT ON audit_db.managed_tables TO PUBLIC;
-- A row of a table that was dropped would be restored as a bare number.
SELECT pg_catalog.pg_extension_config_dump('audit_db.managed_tables', 'WHERE parent IN (SELECT oid FROM pg_catalog.pg_class)');

CREATE TABLE audit_db.unfinished (
    object oid PRIMARY KEY,
    parent oid NOT NULL,
    step text NOT NULL CHECK (step IN ('exchange', 'verification', 'detach')),
    tables oid[] NOT NULL DEFAULT '{}',
    action text,
    range_end bigint,
    record_count bigint,
    record_hash numeric,
    started_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE audit_db.unfinished IS 'What the slow worker is in the middle of: after a crash it knows from here what to finish or to clear away';
COMMENT ON COLUMN audit_db.unfinished.object IS 'The partition: the default partition that is exchanged, or the one that is detached';
COMMENT ON COLUMN audit_db.unfinished.parent IS 'The managed table';
COMMENT ON COLUMN audit_db.unfinished.step IS 'exchange: rows are being copied; verification: the old default partition is to be compared and dropped; detach: a concurrent detach';
COMMENT ON COLUMN audit_db.unfinished.tables IS 'Tables that were made for an exchange';
COMMENT ON COLUMN audit_db.unfinished.action IS 'What happens after a detach: drop, detach or archive:SCHEMA';
COMMENT ON COLUMN audit_db.unfinished.range_end IS 'Upper bound of the partition that is detached, in microseconds since 2000-01-01, for keys without a time zone in local time';
COMMENT ON COLUMN audit_db.unfinished.record_count IS 'Number of rows that the old default partition must have';
COMMENT ON COLUMN audit_db.unfinished.record_hash IS 'Sum of the hashes of its rows';
COMMENT ON COLUMN audit_db.unfinished.started_at IS 'When it began';
GRANT SELECT ON audit_db.unfinished TO pg_monitor;

CREATE TABLE audit_db.maintenance_state (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    last_cycle timestamptz NOT NULL
);
COMMENT ON TABLE audit_db.maintenance_state IS 'When the worker of this database last trusted the clock: retention is suspended for a day where that lies further back than a day';
COMMENT ON COLUMN audit_db.maintenance_state.only_row IS 'There is one row';
COMMENT ON COLUMN audit_db.maintenance_state.last_cycle IS 'Time of the last maintenance cycle, by the wall clock';

CREATE TABLE audit_db.events_log (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    logged_at timestamptz NOT NULL DEFAULT now(),
    last_at timestamptz NOT NULL DEFAULT now(),
    occurrences bigint NOT NULL DEFAULT 1,
    severity text NOT NULL CHECK (severity IN ('info', 'error')),
    event text NOT NULL,
    object text NOT NULL,
    sqlstate text,
    message text NOT NULL,
    detail text,
    hint text
);
CREATE INDEX events_log_recent ON audit_db.events_log (event, object, last_at);
COMMENT ON TABLE audit_db.events_log IS 'What maintenance did and what it could not do; entries are kept 90 days';
COMMENT ON COLUMN audit_db.events_log.id IS 'Number of the entry';
COMMENT ON COLUMN audit_db.events_log.logged_at IS 'When it happened, for a failure that repeats the first time';
COMMENT ON COLUMN audit_db.events_log.last_at IS 'When it happened last';
COMMENT ON COLUMN audit_db.events_log.occurrences IS 'How often the same failure happened within a day of the one before';
COMMENT ON COLUMN audit_db.events_log.severity IS 'info: done; error: could not be done';
COMMENT ON COLUMN audit_db.events_log.event IS 'The step, as in "partition created" or "retention"';
COMMENT ON COLUMN audit_db.events_log.object IS 'The table or partition';
COMMENT ON COLUMN audit_db.events_log.sqlstate IS 'SQLSTATE of the failure';
COMMENT ON COLUMN audit_db.events_log.message IS 'What was done, or the primary message of the failure';
COMMENT ON COLUMN audit_db.events_log.detail IS 'DETAIL of the failure';
COMMENT ON COLUMN audit_db.events_log.hint IS 'HINT of the failure';
GRANT SELECT ON audit_db.events_log TO pg_monitor;

CREATE TABLE audit_db.rejected_events (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    rejected_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    audit_table text NOT NULL,
    role text NOT NULL,
    event jsonb NOT NULL,
    sqlstate text NOT NULL,
    message text NOT NULL,
    detail text
);
COMMENT ON TABLE audit_db.rejected_events IS 'Events that could be stored neither in their audit table nor in the table of rejected events beside it';
COMMENT ON COLUMN audit_db.rejected_events.id IS 'Number of the entry';
COMMENT ON COLUMN audit_db.rejected_events.rejected_at IS 'When the event was rejected';
COMMENT ON COLUMN audit_db.rejected_events.audit_table IS 'The table it was meant for; a number where that is gone';
COMMENT ON COLUMN audit_db.rejected_events.role IS 'The role that logged it';
COMMENT ON COLUMN audit_db.rejected_events.event IS 'The event, as log_events takes it';
COMMENT ON COLUMN audit_db.rejected_events.sqlstate IS 'SQLSTATE of the failure';
COMMENT ON COLUMN audit_db.rejected_events.message IS 'Primary message of the failure';
COMMENT ON COLUMN audit_db.rejected_events.detail IS 'DETAIL of the failure';
SELECT pg_catalog.pg_extension_config_dump('audit_db.rejected_events', '');
SELECT pg_catalog.pg_extension_config_dump('audit_db.rejected_events_id_seq', '');
