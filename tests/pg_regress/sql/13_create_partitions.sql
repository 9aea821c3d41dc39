-- create_partitions, and how gaps between odd partitions are filled.
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
CREATE TABLE app.log (at timestamptz NOT NULL) PARTITION BY RANGE (at);
SELECT audit_db.manage_table('app.log', premake => 3);
-- The default count is the table's premake; the period that contains from_date is the first.
SELECT audit_db.create_partitions('app.log', '2001-01-31 23:59');
SELECT audit_db.create_partitions('app.log', '2001-01-31 23:59');
SELECT audit_db.create_partitions('app.log', '2001-01-31 23:59', NULL);
-- Only those that are missing.
SELECT audit_db.create_partitions('app.log', '2000-12-01', 5);
SELECT audit_db.create_partitions(count => 1, from_date => '1999-01-01', parent => 'app.log');
SELECT * FROM pg_temp.parts('app.log');
-- From now: these are there already.
SELECT audit_db.create_partitions('app.log');
-- A table with premake 0 has nothing to make by default.
SELECT audit_db.manage_table('app.log', premake => 0);
SELECT audit_db.create_partitions('app.log', '2010-01-01');
-- The month of from_date is that of the table's zone: 23:30 UTC is January in Tokyo.
CREATE TABLE app.tokyo (at timestamptz NOT NULL) PARTITION BY RANGE (at);
SELECT audit_db.manage_table('app.tokyo', premake => 0, time_zone => 'Asia/Tokyo');
SELECT audit_db.create_partitions('app.tokyo', '2000-12-31 23:30+00', 1);
SELECT * FROM pg_temp.parts('app.tokyo');
-- Many at once, across a leap day and the change of the year.
CREATE TABLE app.daily (at date NOT NULL) PARTITION BY RANGE (at);
SELECT audit_db.manage_table('app.daily', 'daily', premake => 0);
SELECT count(*), min(p::text), max(p::text) FROM audit_db.create_partitions('app.daily', '2003-12-30', 62) p;
SELECT partition FROM pg_temp.parts('app.daily') WHERE partition LIKE '%\_02\_29';

-- Errors.
SELECT audit_db.create_partitions('app.log', '2001-01-01', 0);
\echo :SQLSTATE
SELECT audit_db.create_partitions('app.log', '2001-01-01', -1);
\echo :SQLSTATE
SELECT audit_db.create_partitions('app.log', '2001-01-01', 10001);
\echo :SQLSTATE
SELECT audit_db.create_partitions('app.log', 'infinity', 1);
\echo :SQLSTATE
SELECT audit_db.create_partitions('app.log', '-infinity', 1);
\echo :SQLSTATE
SELECT audit_db.create_partitions('app.log', '0044-03-15 BC', 1);
\echo :SQLSTATE
SELECT audit_db.create_partitions('app.log', '9999-11-15', 2);
\echo :SQLSTATE
SELECT audit_db.create_partitions('app.log', NULL, 1);
\echo :SQLSTATE
SELECT audit_db.create_partitions(NULL);
\echo :SQLSTATE
CREATE TABLE app.loose (at date NOT NULL) PARTITION BY RANGE (at);
SELECT audit_db.create_partitions('app.loose');
\echo :SQLSTATE
SELECT audit_db.create_partitions('pg_class');
\echo :SQLSTATE
SELECT audit_db.create_partitions(4000000000::oid::regclass);
\echo :SQLSTATE
-- All or nothing: the third name is taken.
CREATE TABLE app.log_2011_03 ();
SELECT audit_db.create_partitions('app.log', '2011-01-01', 3);
\echo :SQLSTATE
SELECT partition FROM pg_temp.parts('app.log') WHERE partition LIKE '%2011%';
ROLLBACK;

-- Odd partitions: gaps are filled, nothing overlaps.
BEGIN;
CREATE SCHEMA app;
CREATE TABLE app.odd (at timestamp NOT NULL) PARTITION BY RANGE (at);
CREATE TABLE app.before_time PARTITION OF app.odd FOR VALUES FROM (MINVALUE) TO ('1990-01-01');
CREATE TABLE app.one_week PARTITION OF app.odd FOR VALUES FROM ('2001-01-10') TO ('2001-01-17');
CREATE TABLE app.three_hours PARTITION OF app.odd FOR VALUES FROM ('2001-01-20 03:00') TO ('2001-01-20 06:00');
CREATE TABLE app.two_months PARTITION OF app.odd FOR VALUES FROM ('2001-03-15') TO ('2001-05-15');
CREATE TABLE app.to_the_end PARTITION OF app.odd FOR VALUES FROM ('3000-06-15') TO (MAXVALUE);
SELECT audit_db.manage_table('app.odd', premake => 0);
SELECT audit_db.create_partitions('app.odd', '2001-01-01', 5);
SELECT * FROM pg_temp.parts('app.odd');
-- Now everything from January to May is covered once.
SELECT audit_db.create_partitions('app.odd', '2001-01-01', 5);
SELECT sum(range_end - range_start) = timestamp '2001-06-01' - timestamp '2001-01-01' AS covered_once
  FROM audit_db.partition_ranges('app.odd')
 WHERE range_start >= '2001-01-01' AND range_end <= '2001-06-01';
-- Beside MINVALUE and MAXVALUE.
SELECT audit_db.create_partitions('app.odd', '1989-12-01', 2);
SELECT audit_db.create_partitions('app.odd', '3000-06-01', 3);
SELECT * FROM pg_temp.parts('app.odd') WHERE bounds ~ '''(1990|3000)';
SELECT audit_db.create_partition('app.odd', '1980-01-01');
\echo :SQLSTATE
SELECT audit_db.create_partition('app.odd', '3001-01-01');
\echo :SQLSTATE

-- Bounds at infinity, which are not MINVALUE and MAXVALUE.
CREATE TABLE app.endless (at timestamptz NOT NULL) PARTITION BY RANGE (at);
CREATE TABLE app.endless_past PARTITION OF app.endless FOR VALUES FROM ('-infinity') TO ('2000-01-01 00:00+00');
CREATE TABLE app.endless_future PARTITION OF app.endless FOR VALUES FROM ('3000-01-01 00:00+00') TO ('infinity');
SELECT audit_db.manage_table('app.endless', premake => 0);
SELECT audit_db.create_partition('app.endless', '1999-01-01');
\echo :SQLSTATE
SELECT audit_db.create_partition('app.endless', '3001-01-01');
\echo :SQLSTATE
SELECT audit_db.create_partitions('app.endless', '1999-12-01', 2);
CREATE TABLE app.endless_days (at date NOT NULL) PARTITION BY RANGE (at);
CREATE TABLE app.endless_days_past PARTITION OF app.endless_days FOR VALUES FROM ('-infinity') TO ('2000-01-01');
CREATE TABLE app.endless_days_future PARTITION OF app.endless_days FOR VALUES FROM ('3000-01-01') TO ('infinity');
SELECT audit_db.manage_table('app.endless_days', premake => 0);
SELECT audit_db.create_partition('app.endless_days', '1999-01-01');
\echo :SQLSTATE

-- A change of the interval: what is there stays, what is missing is filled.
CREATE TABLE app.changed (at date NOT NULL) PARTITION BY RANGE (at);
SELECT audit_db.manage_table('app.changed', premake => 0);
SELECT audit_db.create_partition('app.changed', '2001-02-01');
SELECT audit_db.manage_table('app.changed', 'quarterly', premake => 0);
SELECT audit_db.create_partitions('app.changed', '2001-01-01', 2);
SELECT audit_db.manage_table('app.changed', 'weekly', premake => 0);
SELECT audit_db.create_partitions('app.changed', '2001-06-25', 2);
SELECT * FROM pg_temp.parts('app.changed');
-- A foreign partition bears the name that a month would get: the month is called otherwise.
CREATE TABLE app.named (at date NOT NULL) PARTITION BY RANGE (at);
CREATE TABLE app.named_2001_02 PARTITION OF app.named FOR VALUES FROM ('2001-01-01') TO ('2001-02-01');
SELECT audit_db.manage_table('app.named', premake => 0);
SELECT audit_db.create_partitions('app.named', '2001-01-01', 3);
SELECT audit_db.create_partition('app.named', '2001-04-01', name => 'named_2001_05');
SELECT audit_db.create_partition('app.named', '2001-05-01');
\echo :SQLSTATE

-- manage_table on a table that has odd partitions around today.
CREATE TABLE app.around (at timestamptz NOT NULL) PARTITION BY RANGE (at);
DO $$
DECLARE
    month timestamptz := date_trunc('month', now());
BEGIN
    EXECUTE format('CREATE TABLE app.around_piece PARTITION OF app.around FOR VALUES FROM (%L) TO (%L)', month + interval '3 days', month + interval '9 days');
    EXECUTE format('CREATE TABLE app.around_wide PARTITION OF app.around FOR VALUES FROM (%L) TO (%L)', month + interval '1 month 12 days', month + interval '3 months 2 days');
END $$;
SELECT audit_db.manage_table('app.around', premake => 6);
WITH r AS (
    SELECT range_start, range_end, lead(range_start) OVER (ORDER BY range_start) AS next_start
      FROM audit_db.partition_ranges('app.around') WHERE NOT is_default
)
SELECT count(*), bool_and(range_end = next_start) AS seamless, min(range_start) = date_trunc('month', now()) AS from_this_month,
       max(range_end) = date_trunc('month', now()) + interval '7 months' AS six_ahead
  FROM r;
ROLLBACK;
