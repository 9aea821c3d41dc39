-- partition_info (view and function) and partition_ranges.
\set SHOW_CONTEXT never
\set ON_ERROR_ROLLBACK on
SET TimeZone = 'UTC';
SET DateStyle = 'ISO, YMD';
SET IntervalStyle = 'postgres';
SET client_min_messages = error; -- the warning about the lock table depends on the server's configuration
-- Partitions of a table with their bounds, those around today left out.
CREATE FUNCTION pg_temp.parts(regclass) RETURNS TABLE (partition name, bounds text) LANGUAGE sql AS $$
    SELECT c.relname, pg_get_expr(c.relpartbound, c.oid)
      FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
     WHERE i.inhparent = $1
       AND NOT coalesce(substring(pg_get_expr(c.relpartbound, c.oid) FROM $r$FROM \('(\d{4})$r$)::int BETWEEN 2020 AND 2200, false)
     ORDER BY c.relname COLLATE "C"
$$;
BEGIN;
CREATE SCHEMA app;
CREATE TABLE app.log (id bigint, at timestamptz NOT NULL, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
CREATE TABLE app.log_past PARTITION OF app.log FOR VALUES FROM (MINVALUE) TO ('2001-01-01 00:00+00');
CREATE TABLE app.log_2001 PARTITION OF app.log FOR VALUES FROM ('2001-01-01 00:00+00') TO ('2002-01-01 00:00+00') PARTITION BY RANGE (id);
CREATE TABLE app.log_2001_low PARTITION OF app.log_2001 FOR VALUES FROM (0) TO (100);
CREATE TABLE app.log_2001_high PARTITION OF app.log_2001 FOR VALUES FROM (100) TO (200);
CREATE TABLE app.log_end PARTITION OF app.log FOR VALUES FROM ('3000-01-01 00:00+00') TO (MAXVALUE);
CREATE TABLE app.log_default PARTITION OF app.log DEFAULT;
INSERT INTO app.log SELECT n, '2001-06-01' FROM generate_series(0, 199) n;
-- A table that is not managed has ranges too.
SELECT * FROM audit_db.partition_ranges('app.log');
SELECT parent, partition, range_start, range_end, is_default, is_compressed, expires_at FROM audit_db.partition_info('app.log');
SELECT count(*) FROM audit_db.partition_info;
-- Managed, with a retention.
SELECT audit_db.manage_table('app.log', 'yearly', premake => 0, retention => '1 year 1 mon');
SELECT * FROM audit_db.partition_ranges('app.log') WHERE is_default OR range_start NOT BETWEEN '2020-01-01' AND '2200-01-01';
SELECT parent, partition, range_start, range_end, is_default, is_compressed, expires_at FROM audit_db.partition_info
 WHERE is_default OR range_start NOT BETWEEN '2020-01-01' AND '2200-01-01';
-- Sizes and estimates are those of all the leaves; no table is read for them.
ANALYZE app.log;
SELECT pg_stat_clear_snapshot();
SELECT i.partition, i.size_bytes = (SELECT sum(pg_total_relation_size(relid)) FROM pg_partition_tree(i.partition)) AS size_ok,
       i.index_bytes = (SELECT sum(pg_indexes_size(relid)) FROM pg_partition_tree(i.partition)) AS index_ok,
       i.index_bytes > 0 AND i.size_bytes >= i.index_bytes AS index_is_part, i.record_count, i.last_analyzed IS NOT NULL AS analyzed
  FROM audit_db.partition_info('app.log') i WHERE partition = 'app.log_2001'::regclass;
SELECT record_count IS NOT NULL AS estimated FROM audit_db.partition_info('app.log') GROUP BY 1;
-- A partitioned table without a leaf.
DROP TABLE app.log_end;
CREATE TABLE app.log_4000 PARTITION OF app.log FOR VALUES FROM ('4000-01-01 00:00+00') TO ('4001-01-01 00:00+00') PARTITION BY RANGE (id);
SELECT partition, size_bytes, index_bytes, record_count, last_analyzed FROM audit_db.partition_info('app.log') WHERE partition = 'app.log_4000'::regclass;
-- Every row of the view is a row of the function and the other way round.
SELECT count(*) FROM (SELECT * FROM audit_db.partition_info EXCEPT SELECT * FROM audit_db.partition_info('app.log')) d;
SELECT count(*) FROM (SELECT * FROM audit_db.partition_info('app.log') EXCEPT SELECT * FROM audit_db.partition_info) d;
ROLLBACK;

-- Instants: bounds of timestamp and date keys are local time of the table's zone.
BEGIN;
CREATE SCHEMA app;
CREATE TABLE app.local (at timestamp NOT NULL) PARTITION BY RANGE (at);
SELECT audit_db.manage_table('app.local', 'daily', premake => 0, time_zone => 'Europe/Berlin', retention => '1 day');
SELECT audit_db.create_partition('app.local', d) FROM unnest('{2001-03-24,2001-03-25,2001-10-28}'::date[]) d;
SELECT * FROM audit_db.partition_ranges('app.local') WHERE range_start < '2010-01-01';
CREATE TABLE app.days (at date NOT NULL) PARTITION BY RANGE (at);
SELECT audit_db.manage_table('app.days', 'monthly', premake => 0, time_zone => 'Asia/Kolkata', retention => '1 mon');
SELECT audit_db.create_partition('app.days', '2001-01-01');
SELECT * FROM audit_db.partition_ranges('app.days') WHERE range_start < '2010-01-01';
-- Retention counts from the end of the range, in calendar months: the end of January and one month.
CREATE TABLE app.ends (at timestamptz NOT NULL) PARTITION BY RANGE (at);
SELECT audit_db.manage_table('app.ends', 'monthly', premake => 0, retention => '1 mon 1 day');
SELECT audit_db.create_partition('app.ends', '2001-01-01', '2001-01-31');
SELECT audit_db.create_partition('app.ends', '2001-02-01');
SELECT * FROM audit_db.partition_ranges('app.ends') WHERE range_start < '2010-01-01';
-- A retention that ends after the end of time.
SELECT audit_db.manage_table('app.ends', 'monthly', premake => 0, retention => '170000000 years');
SELECT * FROM audit_db.partition_ranges('app.ends') WHERE range_start < '2010-01-01';
-- The same rows whatever the session's settings.
SET LOCAL TimeZone = 'Asia/Kolkata';
SET LOCAL DateStyle = 'SQL, DMY';
SELECT * FROM audit_db.partition_ranges('app.days') WHERE range_start < '2010-01-01';
SET LOCAL TimeZone = 'UTC';
SET LOCAL DateStyle = 'ISO, YMD';
-- Bounds at infinity, which are not MINVALUE and MAXVALUE, read the same.
CREATE FUNCTION pg_temp.endless(type text) RETURNS TABLE (lower timestamptz, upper timestamptz) LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('CREATE TABLE app.endless (at %s NOT NULL) PARTITION BY RANGE (at)', type);
    CREATE TABLE app.endless_past PARTITION OF app.endless FOR VALUES FROM ('-infinity') TO ('2000-01-01');
    CREATE TABLE app.endless_future PARTITION OF app.endless FOR VALUES FROM ('3000-01-01') TO ('infinity');
    RETURN QUERY SELECT range_start, range_end FROM audit_db.partition_ranges('app.endless');
    DROP TABLE app.endless;
END $$;
SELECT type, e.* FROM unnest('{date,timestamp,timestamptz}'::text[]) type, pg_temp.endless(type) e;
-- No partitions at all.
CREATE TABLE app.bare (at date NOT NULL) PARTITION BY RANGE (at);
SELECT * FROM audit_db.partition_info('app.bare');
-- Errors.
SELECT * FROM audit_db.partition_info(NULL);
\echo :SQLSTATE
SELECT * FROM audit_db.partition_ranges(NULL);
\echo :SQLSTATE
SELECT * FROM audit_db.partition_info('pg_class');
\echo :SQLSTATE
SELECT * FROM audit_db.partition_info('app.local_2001_03_24');
\echo :SQLSTATE
CREATE TABLE app.by_number (at int) PARTITION BY RANGE (at);
SELECT * FROM audit_db.partition_info('app.by_number');
\echo :SQLSTATE
SELECT * FROM audit_db.partition_info(4000000000::oid::regclass);
\echo :SQLSTATE
-- A dropped table is no longer in the view; its settings go with the next cycle.
DROP TABLE app.local, app.days;
SELECT count(*) FILTER (WHERE parent::text LIKE 'app.%') FROM audit_db.partition_info WHERE parent::oid <> 'app.ends'::regclass;
DROP TABLE app.ends;
SELECT * FROM audit_db.partition_info;
ROLLBACK;
