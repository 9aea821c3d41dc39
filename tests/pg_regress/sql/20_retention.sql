-- Retention: what expires, what a dry run says, and what is refused. The runs themselves are in the files preload_retention and
-- nopreload_retention.
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
CREATE TABLE app.log (at timestamptz NOT NULL, what text) PARTITION BY RANGE (at);
SELECT audit_db.manage_table('app.log', premake => 1);
SELECT audit_db.create_partitions('app.log', '2001-01-01', 5);
CREATE TABLE app.log_past PARTITION OF app.log FOR VALUES FROM (MINVALUE) TO ('1990-01-01 00:00+00');
DO $$ BEGIN EXECUTE format('CREATE TABLE app.log_wide PARTITION OF app.log FOR VALUES FROM (%L) TO (%L)', timestamptz '2002-01-01 00:00+00', now() - interval '300 days'); END $$;
INSERT INTO app.log VALUES ('1995-01-01', 'in the default');
-- Without a retention nothing expires.
SELECT * FROM audit_db.drop_expired_partitions('app.log', dry_run => true);
-- With one the NOTICE says what goes, once.
SET LOCAL client_min_messages = notice;
SELECT audit_db.manage_table('app.log', premake => 1, retention => '1 year');
SELECT audit_db.manage_table('app.log', premake => 1, retention => '1 year');
SELECT audit_db.manage_table('app.log', premake => 1, retention => '2 years');
SET LOCAL client_min_messages = error;
SELECT audit_db.manage_table('app.log', premake => 1, retention => '1 year');
-- The past goes first; the default, the wide partition and the present stay; three at most (audit_db.max_partitions_dropped).
SELECT partition, range_start, range_end, action, size_bytes > 0 AS has_size FROM audit_db.drop_expired_partitions('app.log', dry_run => true);
SELECT partition, action FROM audit_db.drop_expired_partitions(dry_run => true);
SELECT count(*) FROM pg_inherits WHERE inhparent = 'app.log'::regclass;
SELECT partition, expires_at FROM audit_db.partition_info('app.log') WHERE expires_at < now();
-- The other actions.
CREATE SCHEMA "Cold Store";
SELECT audit_db.manage_table('app.log', premake => 1, retention => '1 year', retention_action => 'detach');
SELECT partition, action FROM audit_db.drop_expired_partitions('app.log', dry_run => true) LIMIT 1;
SELECT audit_db.manage_table('app.log', premake => 1, retention => '1 year', retention_action => 'archive:Cold Store');
SELECT partition, action FROM audit_db.drop_expired_partitions('app.log', dry_run => true) LIMIT 1;
-- A range that has not ended never expires, however short the retention.
SELECT audit_db.manage_table('app.log', premake => 1, retention => '1 microsecond');
SELECT count(*) FILTER (WHERE range_end > now()) FROM audit_db.drop_expired_partitions('app.log', dry_run => true);
SELECT count(*) FILTER (WHERE partition = 'app.log_wide') FROM audit_db.drop_expired_partitions('app.log', dry_run => true);
-- An event of the future suspends it; one that is a little ahead does not.
SELECT audit_db.manage_table('app.log', premake => 2, retention => '1 year');
INSERT INTO app.log VALUES (now() + interval '1 hour', 'a clock that runs ahead');
SELECT partition, action FROM audit_db.drop_expired_partitions('app.log', dry_run => true) LIMIT 1;
INSERT INTO app.log VALUES (now() + interval '40 days', 'of the future');
SELECT partition, action FROM audit_db.drop_expired_partitions('app.log', dry_run => true) LIMIT 2;
DELETE FROM app.log WHERE at > now();
-- In the default it does not count.
INSERT INTO app.log VALUES ('3000-01-01', 'far ahead');
SELECT partition, action FROM audit_db.drop_expired_partitions('app.log', dry_run => true) LIMIT 1;
-- Local time decides at date and timestamp keys too.
CREATE TABLE app.days (at date NOT NULL) PARTITION BY RANGE (at);
SELECT audit_db.manage_table('app.days', 'daily', premake => 0, retention => '2 days', time_zone => 'Pacific/Kiritimati');
SELECT count(*) FROM audit_db.create_partitions('app.days', now() - interval '4 days', 4);
SELECT bool_and((range_end + interval '2 days' <= now()) = (expires_at <= now())) FROM audit_db.partition_ranges('app.days') WHERE NOT is_default;
SELECT count(*) = (SELECT count(*) FROM audit_db.partition_ranges('app.days') WHERE expires_at <= now())
  FROM audit_db.drop_expired_partitions('app.days', dry_run => true);
-- All managed tables, in the order in which they were taken over.
SELECT split_part(partition, '_', 1) AS of_table, count(*) > 0 FROM audit_db.drop_expired_partitions(dry_run => true) GROUP BY 1 ORDER BY 1;
-- A sub-partitioned partition expires as a whole.
CREATE TABLE app.deep (at date NOT NULL, id int) PARTITION BY RANGE (at);
CREATE TABLE app.deep_2001 PARTITION OF app.deep FOR VALUES FROM ('2001-01-01') TO ('2002-01-01') PARTITION BY LIST (id);
CREATE TABLE app.deep_2001_one PARTITION OF app.deep_2001 FOR VALUES IN (1);
SELECT audit_db.manage_table('app.deep', 'yearly', premake => 0, retention => '1 year');
SELECT partition, action FROM audit_db.drop_expired_partitions('app.deep', dry_run => true);
-- Errors.
SELECT * FROM audit_db.drop_expired_partitions('app.log', dry_run => NULL);
\echo :SQLSTATE
CREATE TABLE app.loose (at date NOT NULL) PARTITION BY RANGE (at);
SELECT * FROM audit_db.drop_expired_partitions('app.loose');
\echo :SQLSTATE
SELECT * FROM audit_db.drop_expired_partitions('app.loose', dry_run => true);
\echo :SQLSTATE
SELECT * FROM audit_db.drop_expired_partitions('app.log_past');
\echo :SQLSTATE
SELECT * FROM audit_db.drop_expired_partitions('pg_class');
\echo :SQLSTATE
SELECT * FROM audit_db.drop_expired_partitions(4000000000::oid::regclass);
\echo :SQLSTATE
-- A dry run needs no right to write.
\set ON_ERROR_ROLLBACK off
SET TRANSACTION READ ONLY;
SAVEPOINT here;
SELECT partition, action FROM audit_db.drop_expired_partitions('app.deep', dry_run => true);
SELECT * FROM audit_db.drop_expired_partitions('app.deep');
\echo :SQLSTATE
ROLLBACK TO here;
SELECT * FROM audit_db.drop_expired_partitions();
\echo :SQLSTATE
ROLLBACK;
