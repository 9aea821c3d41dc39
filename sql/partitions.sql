CREATE FUNCTION audit_db.create_audit_log(
    name text DEFAULT 'public.audit_log',
    partition_interval text DEFAULT 'monthly',
    premake integer DEFAULT 12,
    retention interval DEFAULT '2555 days',
    time_zone text DEFAULT 'UTC'
) RETURNS regclass
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'create_audit_log_wrapper';
COMMENT ON FUNCTION audit_db.create_audit_log IS
'Creates a partitioned audit log with the standard columns and indexes, owned by the caller, and manages it. Returns the table. Errors: 42P07 the name is taken, 3F000 no such schema, 22023 bad interval, premake, retention or time zone, 42501 no right to create tables there';
REVOKE EXECUTE ON FUNCTION audit_db.create_audit_log FROM PUBLIC;

CREATE FUNCTION audit_db.manage_table(
    parent regclass,
    partition_interval text DEFAULT 'monthly',
    premake integer DEFAULT 12,
    retention interval DEFAULT NULL,
    retention_action text DEFAULT 'drop',
    time_zone text DEFAULT 'UTC',
    default_partition boolean DEFAULT true,
    compress_after interval DEFAULT NULL,
    storage_parameters text[] DEFAULT NULL
) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'manage_table_wrapper';
COMMENT ON FUNCTION audit_db.manage_table IS
'Takes over a table partitioned by RANGE on one timestamptz, timestamp or date column, or changes its settings. Makes the default partition and the partitions ahead at once. Errors: 42809 not such a table, 22023 bad interval, premake, retention, action, time zone or storage parameter, 3F000 no such archive schema, 0A000 compress_after, 42501 not the owner, 55P03 a lock was not to be had';
REVOKE EXECUTE ON FUNCTION audit_db.manage_table FROM PUBLIC;

CREATE FUNCTION audit_db.unmanage_table(parent regclass) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'unmanage_table_wrapper';
COMMENT ON FUNCTION audit_db.unmanage_table IS
'Forgets a managed table; touches no data. Errors: 55000 the table is not managed, 42501 not the owner';
REVOKE EXECUTE ON FUNCTION audit_db.unmanage_table FROM PUBLIC;

CREATE FUNCTION audit_db.create_partition(
    parent regclass,
    start_date timestamp,
    end_date timestamp DEFAULT NULL,
    name text DEFAULT NULL
) RETURNS regclass
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'create_partition_wrapper';
COMMENT ON FUNCTION audit_db.create_partition IS
'Makes one partition, from start_date to end_date (default: one interval later) in local time of the table''s time zone, and moves the rows into it that wait for it in the default partition. Returns the partition, also when it was there already. Errors: 42P17 it would overlap another, 22023 reversed bounds or not whole days for a date key, 22008 not a finite date, 42P07 the name is taken, 42622 the name is too long, 42809 not a range-partitioned table, 55000 not managed or too many rows in the default, 42501 not the owner, 55P03 a lock was not to be had';
REVOKE EXECUTE ON FUNCTION audit_db.create_partition FROM PUBLIC;

CREATE FUNCTION audit_db.create_partitions(
    parent regclass,
    from_date timestamptz DEFAULT now(),
    count integer DEFAULT NULL
) RETURNS SETOF regclass
LANGUAGE c VOLATILE PARALLEL UNSAFE ROWS 12 AS 'MODULE_PATHNAME', 'create_partitions_wrapper';
COMMENT ON FUNCTION audit_db.create_partitions IS
'Makes the partitions that are missing in count periods (default: the table''s premake) from the one that contains from_date. Returns those it made. Errors: as create_partition, and 22023 for a count out of range';
REVOKE EXECUTE ON FUNCTION audit_db.create_partitions FROM PUBLIC;

CREATE FUNCTION audit_db.drop_expired_partitions(
    parent regclass DEFAULT NULL,
    dry_run boolean DEFAULT false
) RETURNS TABLE (partition text, range_start timestamptz, range_end timestamptz, action text, size_bytes bigint)
LANGUAGE c VOLATILE PARALLEL UNSAFE ROWS 3 AS 'MODULE_PATHNAME', 'drop_expired_partitions_wrapper';
COMMENT ON FUNCTION audit_db.drop_expired_partitions IS
'Applies retention to a table (default: all managed tables of the caller) in a worker, one transaction a partition, or says with dry_run what it would do. Returns a row a partition; size in bytes. A partition that cannot go is reported with its reason and a WARNING, and the others go on. Errors: 55000 not managed, 55006 in use by the open transaction, 42501 not the owner, 53000 no worker slot is free, 25006 read-only transaction';
REVOKE EXECUTE ON FUNCTION audit_db.drop_expired_partitions FROM PUBLIC;

CREATE FUNCTION audit_db.capture_change() RETURNS trigger
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'audit_db_capture_change';
COMMENT ON FUNCTION audit_db.capture_change IS
'Trigger that the worker puts on a default partition while it moves the rows of that partition into their months; does nothing at other times. Errors: 0A000 not called as a trigger';
REVOKE EXECUTE ON FUNCTION audit_db.capture_change FROM PUBLIC;

CREATE FUNCTION audit_db.partition_ranges(parent regclass)
RETURNS TABLE (partition regclass, range_start timestamptz, range_end timestamptz, is_default boolean, expires_at timestamptz)
LANGUAGE c STABLE PARALLEL RESTRICTED ROWS 100 AS 'MODULE_PATHNAME', 'partition_ranges_wrapper';
COMMENT ON FUNCTION audit_db.partition_ranges IS
'Partitions of a table with their ranges as instants: the base of partition_info. Errors: 42809 not a range-partitioned table';
REVOKE EXECUTE ON FUNCTION audit_db.partition_ranges FROM PUBLIC;
GRANT EXECUTE ON FUNCTION audit_db.partition_ranges TO pg_monitor;

CREATE FUNCTION audit_db.partition_info(parent regclass)
RETURNS TABLE (
    parent regclass,
    partition regclass,
    range_start timestamptz,
    range_end timestamptz,
    is_default boolean,
    size_bytes bigint,
    index_bytes bigint,
    record_count bigint,
    is_compressed boolean,
    last_analyzed timestamptz,
    expires_at timestamptz
)
LANGUAGE sql STABLE PARALLEL RESTRICTED ROWS 100
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT $1, r.partition, r.range_start, r.range_end, r.is_default,
           (SELECT sum(pg_total_relation_size(t.relid))::int8 FROM pg_partition_tree(r.partition) t),
           (SELECT sum(pg_indexes_size(t.relid))::int8 FROM pg_partition_tree(r.partition) t WHERE t.isleaf),
           (SELECT sum(CASE WHEN c.reltuples >= 0 AND pg_stat_get_live_tuples(c.oid) = 0 THEN c.reltuples
                            ELSE pg_stat_get_live_tuples(c.oid) END)::int8
              FROM pg_partition_tree(r.partition) t JOIN pg_class c ON c.oid = t.relid WHERE t.isleaf),
           false,
           (SELECT max(greatest(pg_stat_get_last_analyze_time(t.relid), pg_stat_get_last_autoanalyze_time(t.relid)))
              FROM pg_partition_tree(r.partition) t WHERE t.isleaf),
           r.expires_at
      FROM audit_db.partition_ranges($1) r
$$;
COMMENT ON FUNCTION audit_db.partition_info IS
'Partitions of one table: range as instants, size in bytes (index_bytes is a part of size_bytes), estimated number of rows (from statistics, never a scan), last ANALYZE, and when retention removes it. Errors: 42809 not a range-partitioned table';
REVOKE EXECUTE ON FUNCTION audit_db.partition_info FROM PUBLIC;
GRANT EXECUTE ON FUNCTION audit_db.partition_info TO pg_monitor;

CREATE VIEW audit_db.partition_info AS
SELECT i.*
  FROM audit_db.managed_tables m
  JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) m.parent::pg_catalog.oid
                           AND c.relkind OPERATOR(pg_catalog.=) 'p',
       LATERAL audit_db.partition_info(m.parent) i;
COMMENT ON VIEW audit_db.partition_info IS 'Partitions of all managed tables';
COMMENT ON COLUMN audit_db.partition_info.parent IS 'The managed table';
COMMENT ON COLUMN audit_db.partition_info.partition IS 'The partition';
COMMENT ON COLUMN audit_db.partition_info.range_start IS 'First instant of its range; -infinity for MINVALUE, null for the default';
COMMENT ON COLUMN audit_db.partition_info.range_end IS 'First instant after its range; infinity for MAXVALUE, null for the default';
COMMENT ON COLUMN audit_db.partition_info.is_default IS 'Whether it is the default partition';
COMMENT ON COLUMN audit_db.partition_info.size_bytes IS 'Size on disk with indexes and TOAST, in bytes';
COMMENT ON COLUMN audit_db.partition_info.index_bytes IS 'Size of its indexes, in bytes';
COMMENT ON COLUMN audit_db.partition_info.record_count IS 'Estimated number of rows, from statistics';
COMMENT ON COLUMN audit_db.partition_info.is_compressed IS 'Whether its rows are compressed';
COMMENT ON COLUMN audit_db.partition_info.last_analyzed IS 'When its statistics were last gathered, by hand or by autovacuum';
COMMENT ON COLUMN audit_db.partition_info.expires_at IS 'When retention removes it; null for never';
GRANT SELECT ON audit_db.partition_info TO pg_monitor;
