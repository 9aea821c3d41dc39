-- create_partition: intervals, key types, names, time zones, idempotency.
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
-- SQLSTATE of a statement; what it did is undone.
CREATE FUNCTION pg_temp.state(statement text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE statement;
    RAISE EXCEPTION SQLSTATE '00001';
EXCEPTION
    WHEN SQLSTATE '00001' THEN RETURN 'no error';
    WHEN OTHERS THEN RETURN sqlstate;
END $$;
BEGIN;
CREATE SCHEMA app;
-- Five intervals by three key types: bounds and names.
DO $$
DECLARE
    step text; type text;
BEGIN
    FOREACH step IN ARRAY '{daily,weekly,monthly,quarterly,yearly}'::text[] LOOP
        FOREACH type IN ARRAY '{date,timestamp,timestamptz}'::text[] LOOP
            EXECUTE format('CREATE TABLE app.%I (at %s NOT NULL) PARTITION BY RANGE (at)', step || '_' || type, type);
            PERFORM audit_db.manage_table(format('app.%I', step || '_' || type)::regclass, step, premake => 0, default_partition => false);
        END LOOP;
    END LOOP;
END $$;
-- A start on the calendar's grid, and none: 2001-01-29 is a Monday.
SELECT t.table_name, audit_db.create_partition(format('app.%I', t.table_name)::regclass, start)
  FROM information_schema.tables t,
       LATERAL (VALUES (CASE split_part(t.table_name, '_', 1)
                             WHEN 'daily' THEN timestamp '2001-01-31' WHEN 'weekly' THEN '2001-01-29'
                             WHEN 'monthly' THEN '2001-01-01' WHEN 'quarterly' THEN '2001-01-01' ELSE '2001-01-01' END),
                       ('2003-11-05')) v (start)
 WHERE t.table_schema = 'app' AND t.table_name ~ '^(daily|weekly|monthly|quarterly|yearly)_(date|timestamp|timestamptz)$'
 ORDER BY t.table_name COLLATE "C", start;
SELECT t.table_name, p.*
  FROM information_schema.tables t, pg_temp.parts(format('app.%I', t.table_name)::regclass) p
 WHERE t.table_schema = 'app' AND t.table_name ~ '^(daily|weekly|monthly|quarterly|yearly)_(date|timestamp|timestamptz)$'
 ORDER BY t.table_name COLLATE "C", p.partition COLLATE "C";
-- ISO weeks belong to the year of their Thursday; a 53rd week.
SELECT audit_db.create_partition('app.weekly_date', d) FROM unnest('{2000-12-25,2001-01-01,2003-12-29,2004-12-27}'::date[]) d;
-- The last days of long and leap months.
SELECT audit_db.create_partition('app.monthly_date', d) FROM unnest('{2000-01-31,2000-03-31}'::date[]) d;
SELECT * FROM pg_temp.parts('app.monthly_date');
ROLLBACK;

BEGIN;
CREATE SCHEMA app;
CREATE TABLE app.log (at timestamptz NOT NULL, what text) PARTITION BY RANGE (at);
SELECT audit_db.manage_table('app.log', premake => 0);
-- Idempotent: the same bounds are the same partition, whatever name is asked for.
SELECT audit_db.create_partition('app.log', '2001-01-01');
SELECT audit_db.create_partition('app.log', '2001-01-01');
SELECT audit_db.create_partition('app.log', '2001-01-01', '2001-02-01');
SELECT audit_db.create_partition('app.log', '2001-01-01', name => 'other');
SELECT audit_db.create_partition(parent => 'app.log', start_date => '2001-01-01', end_date => '2001-02-01', name => 'other');
-- A date is a start; named arguments in any order.
SELECT audit_db.create_partition(start_date => date '2001-02-01', parent => 'app.log');
-- An explicit end: one period in other words, several periods, a part of one.
SELECT audit_db.create_partition('app.log', '2001-03-01', '2001-04-01');
SELECT audit_db.create_partition('app.log', '2001-04-01', '2001-07-01');
SELECT audit_db.create_partition('app.log', '2001-07-01 12:00', '2001-07-01 18:30:00.123456');
-- The same day again: the default name is taken.
SELECT audit_db.create_partition('app.log', '2001-07-01 19:00', '2001-07-01 20:00');
\echo :SQLSTATE
SELECT audit_db.create_partition('app.log', '2001-07-01 19:00', '2001-07-01 20:00', 'log_2001_07_01_evening');
-- An explicit name, and what needs quotes.
SELECT audit_db.create_partition('app.log', '2001-08-01', name => 'august');
SELECT audit_db.create_partition('app.log', '2001-09-01', name => 'The "9th" of ''01');
SELECT audit_db.create_partition('app.log', '2001-10-01', name => 'app.dotted');
SELECT audit_db.create_partition('app.log', '2001-11-01', name => repeat('n', 63));
SELECT audit_db.create_partition('app.log', '2001-12-01', name => repeat('n', 64));
\echo :SQLSTATE
SELECT audit_db.create_partition('app.log', '2001-12-01', name => repeat('ä', 32));
\echo :SQLSTATE
SELECT audit_db.create_partition('app.log', '2001-12-01', name => '');
\echo :SQLSTATE
-- The name of another relation.
CREATE VIEW app.december AS SELECT 1 AS one;
SELECT audit_db.create_partition('app.log', '2001-12-01', name => 'december');
\echo :SQLSTATE
CREATE TABLE app.log_2001_12 (LIKE app.log);
SELECT audit_db.create_partition('app.log', '2001-12-01');
\echo :SQLSTATE
SELECT * FROM pg_temp.parts('app.log');
SELECT relname, relowner::regrole::text = current_user AS same_owner, relnamespace::regnamespace FROM pg_class
 WHERE oid = 'app.august'::regclass;

-- Overlap in every way.
SELECT audit_db.create_partition('app.log', '2001-01-15');
\echo :SQLSTATE
SELECT audit_db.create_partition('app.log', '2000-12-31', '2001-01-02');
\echo :SQLSTATE
SELECT audit_db.create_partition('app.log', '2001-01-10', '2001-01-20');
\echo :SQLSTATE
SELECT audit_db.create_partition('app.log', '2000-01-01', '2010-01-01');
\echo :SQLSTATE
SELECT audit_db.create_partition('app.log', '2001-01-01', '2001-01-31');
\echo :SQLSTATE
-- Reversed and empty.
SELECT audit_db.create_partition('app.log', '2005-02-01', '2005-01-01');
\echo :SQLSTATE
SELECT audit_db.create_partition('app.log', '2005-01-01', '2005-01-01');
\echo :SQLSTATE
-- Not finite, or nowhere on the calendar.
SELECT audit_db.create_partition('app.log', '-infinity');
\echo :SQLSTATE
SELECT audit_db.create_partition('app.log', 'infinity');
\echo :SQLSTATE
SELECT audit_db.create_partition('app.log', '2005-01-01', 'infinity');
\echo :SQLSTATE
SELECT audit_db.create_partition('app.log', '0044-03-15 BC');
\echo :SQLSTATE
SELECT audit_db.create_partition('app.log', '9999-12-01');
\echo :SQLSTATE
SELECT audit_db.create_partition('app.log', '9999-11-01');
SELECT pg_temp.state($$SELECT audit_db.create_partition('app.log', '294276-12-01')$$);
SELECT audit_db.create_partition('app.log', '0001-01-01');
-- Nulls.
SELECT audit_db.create_partition(NULL, '2005-01-01');
\echo :SQLSTATE
SELECT audit_db.create_partition('app.log', NULL);
\echo :SQLSTATE
SELECT audit_db.create_partition('app.log', '2005-01-01', NULL, NULL);
-- Times of day and a date key.
CREATE TABLE app.days (at date NOT NULL) PARTITION BY RANGE (at);
SELECT audit_db.manage_table('app.days', 'daily', premake => 0);
SELECT audit_db.create_partition('app.days', '2001-01-01 06:00');
\echo :SQLSTATE
SELECT audit_db.create_partition('app.days', '2001-01-01', '2001-01-02 06:00');
\echo :SQLSTATE
SELECT audit_db.create_partition('app.days', '2001-01-01', '2001-01-08');
SELECT * FROM pg_temp.parts('app.days');
-- Not managed, not partitioned, not there, not one of ours.
CREATE TABLE app.loose (at date NOT NULL) PARTITION BY RANGE (at);
SELECT audit_db.create_partition('app.loose', '2001-01-01');
\echo :SQLSTATE
CREATE TABLE app.plain (at date);
SELECT audit_db.create_partition('app.plain', '2001-01-01');
\echo :SQLSTATE
CREATE TABLE app.by_list (at date) PARTITION BY LIST (at);
SELECT audit_db.create_partition('app.by_list', '2001-01-01');
\echo :SQLSTATE
SELECT audit_db.create_partition('app.august', '2001-01-01');
\echo :SQLSTATE
SELECT audit_db.create_partition('app.nothing', '2001-01-01');
\echo :SQLSTATE
SELECT audit_db.create_partition(4000000000::oid::regclass, '2001-01-01');
\echo :SQLSTATE
-- An open cursor of the session reads the table, or the statement itself does: no obstacle.
DECLARE reading CURSOR FOR SELECT * FROM app.log;
FETCH reading;
SELECT audit_db.create_partition('app.log', '2006-01-01');
CLOSE reading;
INSERT INTO app.log VALUES ('2001-01-01');
SELECT audit_db.create_partition('app.log', '2007-01-01') FROM app.log;
-- A statement that writes it is one.
CREATE FUNCTION app.make() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM audit_db.create_partition('app.log', '2008-01-01'); RETURN new; END $$;
CREATE TRIGGER make BEFORE INSERT ON app.log FOR EACH ROW EXECUTE FUNCTION app.make();
INSERT INTO app.log VALUES ('2001-01-01');
\echo :SQLSTATE
ROLLBACK;

-- Local time of the table's zone, whatever the session's.
BEGIN;
CREATE SCHEMA app;
CREATE TABLE app.berlin (at timestamptz NOT NULL) PARTITION BY RANGE (at);
SELECT audit_db.manage_table('app.berlin', premake => 0, time_zone => 'Europe/Berlin');
SET LOCAL TimeZone = 'America/New_York';
SELECT audit_db.create_partition('app.berlin', '2001-03-01');
SET LOCAL TimeZone = 'Europe/Berlin';
SELECT audit_db.create_partition('app.berlin', '2001-04-01');
SELECT * FROM pg_temp.parts('app.berlin');
SET LOCAL TimeZone = 'UTC';
SELECT * FROM pg_temp.parts('app.berlin');
-- The hour that the clock skips: 02:30 is the instant at which it shows 03:00. The hour that it shows twice: the first.
SELECT audit_db.manage_table('app.berlin', 'daily', premake => 0, time_zone => 'Europe/Berlin');
SELECT audit_db.create_partition('app.berlin', '2002-03-31 02:30', '2002-04-01');
SELECT audit_db.create_partition('app.berlin', '2002-10-27 02:30', '2002-10-28');
-- A range that does not exist at all.
SELECT pg_temp.state($$SELECT audit_db.create_partition('app.berlin', '2003-03-30 02:10', '2003-03-30 02:50')$$);
SELECT * FROM pg_temp.parts('app.berlin') WHERE partition LIKE '%_2002_%' OR partition LIKE '%_2003_%';
-- A zone at the other end of the world; a zone without a whole day (Apia skipped 2011-12-30).
CREATE TABLE app.apia (at timestamptz NOT NULL) PARTITION BY RANGE (at);
SELECT audit_db.manage_table('app.apia', 'daily', premake => 0, time_zone => 'Pacific/Apia');
SELECT audit_db.create_partition('app.apia', d) FROM unnest('{2011-12-29,2011-12-31}'::date[]) d;
SELECT pg_temp.state($$SELECT audit_db.create_partition('app.apia', '2011-12-30')$$);
SELECT audit_db.create_partitions('app.apia', '2011-12-28 12:00+00', 5);
SELECT * FROM pg_temp.parts('app.apia');
-- A month that was made in UTC has a neighbour in local time: they meet without a gap or an overlap.
CREATE TABLE app.moved (at timestamptz NOT NULL) PARTITION BY RANGE (at);
CREATE TABLE app.moved_2001_02 PARTITION OF app.moved FOR VALUES FROM ('2001-02-01 00:00+00') TO ('2001-03-01 00:00+00');
SELECT audit_db.manage_table('app.moved', premake => 0, time_zone => 'Asia/Tokyo');
SELECT audit_db.create_partition('app.moved', d) FROM unnest('{2001-01-01,2001-02-01,2001-03-01}'::date[]) d;
SELECT * FROM pg_temp.parts('app.moved');
-- With both ends given nothing is moved.
SELECT audit_db.create_partition('app.moved', '2001-02-01', '2001-03-01');
\echo :SQLSTATE
ROLLBACK;

-- Names from the table's name.
BEGIN;
CREATE SCHEMA "My Schema";
CREATE TABLE "My Schema"."Odd "" Name\" (at date NOT NULL) PARTITION BY RANGE (at);
SELECT audit_db.manage_table('"My Schema"."Odd "" Name\"', premake => 0);
SELECT audit_db.create_partition('"My Schema"."Odd "" Name\"', '2001-01-01');
SELECT * FROM pg_temp.parts('"My Schema"."Odd "" Name\"');
-- Long names are cut and marked, so that two tables do not meet.
CREATE TABLE aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaax (at date NOT NULL) PARTITION BY RANGE (at);
CREATE TABLE aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaay (at date NOT NULL) PARTITION BY RANGE (at);
CREATE TABLE "ääääääääääääääääääääääääääääääx" (at date NOT NULL) PARTITION BY RANGE (at);
SELECT audit_db.manage_table(t, 'daily', premake => 0)
  FROM unnest('{aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaax,aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaay,ääääääääääääääääääääääääääääääx}'::regclass[]) t;
SELECT p, octet_length(p::text) FROM unnest('{aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaax,aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaay,ääääääääääääääääääääääääääääääx}'::regclass[]) t,
       audit_db.create_partition(t, '2001-01-31') p;
-- A renamed table: new partitions bear the new name; a table moved to another schema has them there.
CREATE TABLE was (at date NOT NULL) PARTITION BY RANGE (at);
SELECT audit_db.manage_table('was', premake => 0);
ALTER TABLE was RENAME TO "is";
ALTER TABLE "is" SET SCHEMA "My Schema";
SELECT audit_db.create_partition('"My Schema"."is"', '2001-01-01');
ROLLBACK;
