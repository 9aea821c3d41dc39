-- Retention in the worker: one transaction a partition.
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
-- Whether the worker has finished a cycle that began after a time. It reads shared memory only: locks would keep the worker waiting.
CREATE FUNCTION pg_temp.settled(begun timestamptz) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    deadline timestamptz := clock_timestamp() + interval '10 s';
BEGIN
    LOOP
        IF EXISTS (SELECT FROM audit_db.workers WHERE database = current_database() AND state = 'idle' AND last_cycle > begun) THEN
            RETURN true;
        END IF;
        IF clock_timestamp() > deadline THEN RETURN false; END IF;
        PERFORM pg_sleep(0.02);
    END LOOP;
END $$;
SELECT clock_timestamp() AS begun \gset
CREATE FUNCTION pg_temp.granted(acl aclitem[], owner oid) RETURNS text LANGUAGE sql AS $$
    SELECT string_agg(format('%s to %s%s', privilege_type, CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END,
                             CASE WHEN is_grantable THEN ' with grant option' END), ', ' ORDER BY grantee::regrole::text COLLATE "C", privilege_type)
      FROM aclexplode(acl) a WHERE a.grantee <> owner
$$;
CREATE ROLE regress_owner;
CREATE ROLE regress_reader;
CREATE SCHEMA app AUTHORIZATION regress_owner;
CREATE SCHEMA "Cold Store" AUTHORIZATION regress_owner;
GRANT USAGE ON SCHEMA app, "Cold Store" TO regress_reader;
GRANT EXECUTE ON FUNCTION audit_db.drop_expired_partitions TO regress_owner;
SET ROLE regress_owner;
CREATE TABLE app.drops (at timestamptz NOT NULL, what text) PARTITION BY RANGE (at);
CREATE TABLE app.keeps (at timestamptz NOT NULL, what text) PARTITION BY RANGE (at);
CREATE TABLE app.edges (at date NOT NULL, what text) PARTITION BY RANGE (at);
CREATE TABLE app.edges_past PARTITION OF app.edges FOR VALUES FROM (MINVALUE) TO ('1990-01-01');
CREATE TABLE app.edges_deep PARTITION OF app.edges FOR VALUES FROM ('1990-01-01') TO ('1991-01-01') PARTITION BY LIST (what);
CREATE TABLE app.edges_deep_leaf PARTITION OF app.edges_deep DEFAULT;
CREATE TABLE app.detaches (
    id bigint GENERATED ALWAYS AS IDENTITY, at timestamp NOT NULL, who name, "Odd Column" text DEFAULT 'kept', gone int,
    PRIMARY KEY (at, id)
) PARTITION BY RANGE (at);
ALTER TABLE app.detaches DROP COLUMN gone;
CREATE TABLE app.archives (id bigint NOT NULL, at timestamptz NOT NULL) PARTITION BY RANGE (at);
CREATE SEQUENCE app.archives_id OWNED BY app.archives.id;
ALTER TABLE app.archives ALTER id SET DEFAULT nextval('app.archives_id');
CREATE TABLE app.viewed (at date NOT NULL) PARTITION BY RANGE (at);
CREATE TABLE app.target (at date PRIMARY KEY) PARTITION BY RANGE (at);
CREATE TABLE app.future (at timestamptz NOT NULL) PARTITION BY RANGE (at);
RESET ROLE;
DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY '{drops,keeps,edges,detaches,archives,viewed,target,future}'::text[] LOOP
        PERFORM audit_db.manage_table(format('app.%I', name)::regclass, premake => 2);
        PERFORM audit_db.create_partitions(format('app.%I', name)::regclass, '2001-01-01 00:00+00', CASE name WHEN 'drops' THEN 5 ELSE 3 END);
        EXECUTE format('CREATE TABLE app.%I PARTITION OF app.%I FOR VALUES FROM (%L) TO (%L)', name || '_wide', name, '2010-01-01', (now() - interval '300 days')::date);
        EXECUTE format('ALTER TABLE app.%I OWNER TO regress_owner', name || '_wide');
        EXECUTE format('INSERT INTO app.%I (at) VALUES (%L), (%L), (%L)', name, '2001-01-15', '2015-01-01', now());
    END LOOP;
END $$;
GRANT SELECT, INSERT ON app.detaches TO regress_reader WITH GRANT OPTION;
GRANT UPDATE ("Odd Column") ON app.detaches TO PUBLIC;
ALTER TABLE app.detaches ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY own ON app.detaches FOR SELECT TO regress_reader, regress_owner USING (who = current_user OR "Odd Column" = 'kept' AND id = 1);
CREATE POLICY "Restrict" ON app.detaches AS RESTRICTIVE FOR UPDATE USING (who IS NOT NULL) WITH CHECK (at > '2000-01-01');
CREATE POLICY all_of_it ON app.detaches USING (EXISTS (SELECT FROM app.keeps k WHERE k.at = detaches.at));
GRANT ALL ON app.detaches_2001_01 TO PUBLIC;
CREATE POLICY side_door ON app.detaches_2001_01 USING (true);
GRANT SELECT ON app.archives TO regress_reader;
CREATE TABLE "Cold Store".archives_2001_02 ();
CREATE VIEW app.report AS SELECT * FROM app.viewed_2001_02;
CREATE TABLE app.referring (at date REFERENCES app.target);
ALTER TABLE app.referring OWNER TO regress_owner;
INSERT INTO app.referring VALUES ('2001-01-15');
INSERT INTO app.future VALUES (now() + interval '40 days');
-- The cycle that manage_table asked for has passed.
SELECT pg_temp.settled(:'begun');
SET client_min_messages = warning;
-- Set behind the functions' back, so that no maintenance cycle comes before the calls below.
UPDATE audit_db.managed_tables SET retention = '1 year' WHERE parent::text LIKE 'app.%' AND parent <> 'app.keeps'::regclass;
UPDATE audit_db.managed_tables SET retention_action = 'detach' WHERE parent = 'app.detaches'::regclass;
UPDATE audit_db.managed_tables SET retention_action = 'archive:Cold Store' WHERE parent = 'app.archives'::regclass;

-- Three partitions a run (audit_db.max_partitions_dropped), as the owner too.
SET ROLE regress_owner;
SELECT partition, range_start, range_end, action, size_bytes > 0 AS has_size FROM audit_db.drop_expired_partitions('app.drops');
SELECT partition, action FROM audit_db.drop_expired_partitions('app.drops', dry_run => true);
SELECT partition, action FROM audit_db.drop_expired_partitions('app.drops');
SELECT partition, action FROM audit_db.drop_expired_partitions('app.drops');
RESET ROLE;
SELECT count(*) FILTER (WHERE inhrelid::regclass::text LIKE '%2001%') AS old, count(*) FILTER (WHERE inhrelid::regclass::text LIKE '%wide') AS wide,
       count(*) FILTER (WHERE inhrelid::regclass::text LIKE '%default') AS defaults
  FROM pg_inherits WHERE inhparent = 'app.drops'::regclass;
SELECT count(*) FROM app.drops;
SELECT count(*) FROM pg_class WHERE relname LIKE 'drops\_2001%';

-- No retention.
SELECT * FROM audit_db.drop_expired_partitions('app.keeps');

-- The lower end MINVALUE, a sub-partitioned partition.
SELECT partition, range_start, range_end, action FROM audit_db.drop_expired_partitions('app.edges');
SELECT to_regclass('app.edges_deep_leaf');

-- Detached: a plain table that is as closed as its table, without a default on the table's sequence.
SELECT partition, action FROM audit_db.drop_expired_partitions('app.detaches');
SELECT c.oid::regclass, c.relispartition, c.relowner::regrole, c.relrowsecurity, c.relforcerowsecurity,
       pg_temp.granted(c.relacl, c.relowner) AS granted
  FROM pg_class c WHERE c.oid IN ('app.detaches_2001_01'::regclass, 'app.detaches_2001_02'::regclass) ORDER BY 1;
SELECT attname, pg_temp.granted(attacl, 'regress_owner'::regrole) FROM pg_attribute WHERE attrelid = 'app.detaches_2001_01'::regclass AND attacl IS NOT NULL;
SELECT polrelid::regclass, polname, polcmd, polpermissive, polroles::regrole[], pg_get_expr(polqual, polrelid) AS qual, pg_get_expr(polwithcheck, polrelid) AS "check"
  FROM pg_policy WHERE polrelid = 'app.detaches_2001_01'::regclass ORDER BY polname COLLATE "C";
SELECT attname, attidentity, pg_get_expr(adbin, adrelid) AS value
  FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
 WHERE attrelid = 'app.detaches_2001_01'::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum;
SELECT count(*) FROM app.detaches_2001_01;
SELECT id IS NOT NULL AS has_id, at, "Odd Column" FROM app.detaches_2001_01;
-- The sequence goes with its table, the detached month stays.
DROP TABLE app.detaches;
SELECT count(*) FROM app.detaches_2001_01;

-- Archived; a name that is taken there keeps one back, and the others go.
SET client_min_messages = error;
SELECT partition, action FROM audit_db.drop_expired_partitions('app.archives');
SET client_min_messages = warning;
SELECT c.oid::regclass, c.relispartition, c.relowner::regrole, pg_temp.granted(c.relacl, c.relowner) AS granted
  FROM pg_class c WHERE c.relname LIKE 'archives\_2001\___' AND c.relowner = 'regress_owner'::regrole ORDER BY c.relnamespace::regnamespace::text COLLATE "C", c.relname COLLATE "C";
SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef WHERE adrelid = '"Cold Store".archives_2001_01'::regclass;
DROP TABLE "Cold Store".archives_2001_02;
SELECT partition, action FROM audit_db.drop_expired_partitions('app.archives');
-- The schema is gone.
UPDATE audit_db.managed_tables SET retention_action = 'archive:Gone' WHERE parent = 'app.keeps'::regclass;
UPDATE audit_db.managed_tables SET retention = '1 year' WHERE parent = 'app.keeps'::regclass;
SELECT partition, action FROM audit_db.drop_expired_partitions('app.keeps');
UPDATE audit_db.managed_tables SET retention = NULL WHERE parent = 'app.keeps'::regclass;
-- The owner may no longer create there.
CREATE SCHEMA closed;
UPDATE audit_db.managed_tables SET retention = '1 year', retention_action = 'archive:closed' WHERE parent = 'app.keeps'::regclass;
SELECT partition, action FROM audit_db.drop_expired_partitions('app.keeps');
UPDATE audit_db.managed_tables SET retention = NULL WHERE parent = 'app.keeps'::regclass;
DROP SCHEMA closed;

-- A view, a foreign key: a reason for that partition, and the others go on.
SELECT partition, action FROM audit_db.drop_expired_partitions('app.viewed');
SELECT count(*) FROM app.report;
SELECT partition, action FROM audit_db.drop_expired_partitions('app.target');
SELECT count(*) FROM app.target;

-- An event of the future.
SELECT partition, action FROM audit_db.drop_expired_partitions('app.future');
SELECT count(*) FILTER (WHERE inhrelid::regclass::text LIKE '%2001%') FROM pg_inherits WHERE inhparent = 'app.future'::regclass;

-- All tables of the caller; a failure in one does not matter to the others.
DELETE FROM app.future WHERE at > now();
SET ROLE regress_owner;
SELECT partition, action FROM audit_db.drop_expired_partitions();
RESET ROLE;
SELECT partition, action FROM audit_db.drop_expired_partitions(dry_run => true);
SELECT severity, event, object, sqlstate, message, occurrences
  FROM audit_db.events_log WHERE object LIKE 'app.%' AND event <> 'partition created' ORDER BY id;

-- What the open transaction has made or locked the worker cannot see: 55006.
BEGIN;
CREATE TABLE app.young (at date NOT NULL) PARTITION BY RANGE (at);
SELECT audit_db.manage_table('app.young', premake => 0, retention => '1 year');
SELECT audit_db.create_partition('app.young', '2001-01-01');
SELECT * FROM audit_db.drop_expired_partitions('app.young');
\echo :SQLSTATE
SELECT * FROM audit_db.drop_expired_partitions();
\echo :SQLSTATE
SELECT partition, action FROM audit_db.drop_expired_partitions('app.young', dry_run => true);
ROLLBACK;
BEGIN;
LOCK TABLE app.viewed IN ACCESS EXCLUSIVE MODE;
SELECT * FROM audit_db.drop_expired_partitions('app.viewed');
\echo :SQLSTATE
ROLLBACK;
BEGIN;
ALTER TABLE app.viewed ADD COLUMN extra int;
SELECT * FROM audit_db.drop_expired_partitions('app.viewed');
\echo :SQLSTATE
ROLLBACK;
-- Also a lock that it holds since it read the table, or only a partition of it.
BEGIN;
SELECT count(*) FROM app.viewed;
SELECT * FROM audit_db.drop_expired_partitions('app.viewed');
\echo :SQLSTATE
ROLLBACK;
BEGIN;
SELECT count(*) FROM app.viewed_2001_02;
SELECT * FROM audit_db.drop_expired_partitions('app.viewed');
\echo :SQLSTATE
ROLLBACK;
-- What the worker did stays when the caller rolls back.
DROP VIEW app.report;
BEGIN;
SELECT partition, action FROM audit_db.drop_expired_partitions('app.viewed');
ROLLBACK;
SELECT to_regclass('app.viewed_2001_02');

DROP SCHEMA app, "Cold Store" CASCADE;
DROP OWNED BY regress_owner, regress_reader;
DROP ROLE regress_owner, regress_reader;
DELETE FROM audit_db.managed_tables m WHERE NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = m.parent);
DELETE FROM audit_db.events_log WHERE object LIKE 'app.%' OR object LIKE '"Cold%';
