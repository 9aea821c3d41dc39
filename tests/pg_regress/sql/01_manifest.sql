-- The published contract: every object of the extension, who may use it, and its COMMENT.
\set SHOW_CONTEXT never
SET IntervalStyle = 'postgres';
LOAD 'audit_db';
\pset format unaligned
\pset tuples_only on

-- The days of the log come and go.
CREATE TEMP VIEW members AS
SELECT * FROM pg_depend
 WHERE NOT (classid = 'pg_class'::regclass AND objid IN (SELECT oid FROM pg_class WHERE relname ~ '^slow_query_log_\d'));

-- Privileges of others than the owner.
CREATE FUNCTION pg_temp.granted(acl aclitem[], owner oid) RETURNS text LANGUAGE sql AS $$
    SELECT string_agg(format('%s to %s', privilege_type, grantee), ', ' ORDER BY grantee COLLATE "C", privilege_type)
      FROM (SELECT privilege_type, CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END AS grantee
              FROM aclexplode(acl) a WHERE a.grantee <> owner) granted
$$;

\echo 'kinds of objects'
SELECT (pg_identify_object(classid, objid, 0)).type, count(*)
  FROM members d JOIN pg_extension e ON e.oid = d.refobjid
 WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e' AND e.extname = 'audit_db'
 GROUP BY 1 ORDER BY 1;

\echo 'objects outside the schema'
SELECT o.type, o.identity
  FROM members d JOIN pg_extension e ON e.oid = d.refobjid, pg_identify_object(d.classid, d.objid, 0) o
 WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e' AND e.extname = 'audit_db'
   AND o.schema IS DISTINCT FROM 'audit_db' AND o.identity <> 'audit_db'
   AND o.identity NOT LIKE 'audit_db.%';

\echo 'functions'
SELECT p.oid::regprocedure,
       '  arguments: ' || pg_get_function_arguments(p.oid),
       E'\n  returns: ' || pg_get_function_result(p.oid),
       E'\n  ' || concat_ws(', ', l.lanname,
           CASE p.provolatile WHEN 'v' THEN 'volatile' WHEN 's' THEN 'stable' ELSE 'immutable' END,
           CASE p.proparallel WHEN 'u' THEN 'parallel unsafe' WHEN 'r' THEN 'parallel restricted' ELSE 'parallel safe' END,
           CASE WHEN p.prosecdef THEN 'security definer' ELSE 'security invoker' END,
           CASE WHEN p.proisstrict THEN 'strict' END,
           CASE WHEN p.proleakproof THEN 'leakproof' END,
           array_to_string(p.proconfig, ', ')),
       E'\n  ' || coalesce(pg_temp.granted(coalesce(p.proacl, acldefault('f', p.proowner)), p.proowner), 'owner only')
  FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang
  JOIN members d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
  JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'audit_db'
 ORDER BY p.proname COLLATE "C", p.pronargs;

\echo 'tables, views, sequences'
SELECT c.oid::regclass, CASE c.relkind WHEN 'r' THEN 'table' WHEN 'v' THEN 'view' WHEN 'S' THEN 'sequence' ELSE c.relkind::text END,
       coalesce(array_to_string(c.reloptions, ','), '-'),
       coalesce(pg_temp.granted(c.relacl, c.relowner), 'owner only')
  FROM pg_class c
  JOIN members d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
  JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'audit_db'
 ORDER BY c.relname COLLATE "C";

\echo 'columns'
SELECT c.oid::regclass, a.attname, format_type(a.atttypid, a.atttypmod), CASE WHEN a.attnotnull THEN 'not null' END
  FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
 WHERE c.relnamespace = 'audit_db'::regnamespace AND c.relname !~ '^slow_query_log_\d' AND c.relkind IN ('r', 'v') AND a.attnum > 0 AND NOT a.attisdropped
 ORDER BY c.relname COLLATE "C", a.attnum;

\echo 'schema'
SELECT pg_temp.granted(nspacl, nspowner) FROM pg_namespace WHERE nspname = 'audit_db';

\echo 'tables that pg_dump carries'
SELECT c.oid::regclass, x.condition
  FROM pg_extension e, unnest(e.extconfig, e.extcondition) AS x(oid, condition) JOIN pg_class c ON c.oid = x.oid
 WHERE e.extname = 'audit_db' ORDER BY c.relname COLLATE "C";

\echo 'settings'
SELECT name, boot_val, coalesce(unit, '-'), vartype, context, min_val, max_val, E'\n  ' || short_desc, E'\n  ' || extra_desc
  FROM pg_settings WHERE name LIKE 'audit\_db.%' AND context <> 'postmaster' ORDER BY name COLLATE "C";

\echo 'comments of functions'
SELECT p.oid::regproc, obj_description(p.oid, 'pg_proc')
  FROM pg_proc p WHERE p.pronamespace = 'audit_db'::regnamespace ORDER BY p.proname COLLATE "C", p.pronargs;

\echo 'objects without a comment: none'
SELECT o.type, o.identity
  FROM members d JOIN pg_extension e ON e.oid = d.refobjid, pg_identify_object(d.classid, d.objid, 0) o
 WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e' AND e.extname = 'audit_db'
   AND o.type IN ('function', 'procedure', 'aggregate', 'view', 'table', 'type', 'schema')
   AND NOT (o.type = 'type' AND EXISTS (SELECT FROM pg_type t WHERE t.oid = d.objid AND (t.typrelid <> 0 OR t.typelem <> 0)))
   AND coalesce(obj_description(d.objid, (SELECT relname FROM pg_class WHERE oid = d.classid)), '') = '';

\echo 'columns without a comment: none'
SELECT c.oid::regclass, a.attname
  FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
  JOIN members d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
  JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'audit_db'
 WHERE c.relkind IN ('r', 'v', 'p', 'm') AND a.attnum > 0 AND NOT a.attisdropped
   AND coalesce(col_description(c.oid, a.attnum), '') = ''
 ORDER BY 1, a.attnum;

\echo 'settings without a description: none'
SELECT name FROM pg_settings
 WHERE name LIKE 'audit\_db.%' AND (coalesce(short_desc, '') = '' OR coalesce(extra_desc, '') = '');

\echo 'functions that everybody may execute: none but those that check the right to what they touch'
SELECT p.oid::regprocedure
  FROM pg_proc p JOIN members d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
  JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'audit_db'
 WHERE has_function_privilege('public', p.oid, 'EXECUTE') ORDER BY p.oid::regprocedure::text COLLATE "C";

\pset tuples_only off
\pset format aligned
-- Settings are checked when they are set.
SET audit_db.lock_timeout = '0';
\echo :SQLSTATE
SET audit_db.lock_timeout = '2min';
\echo :SQLSTATE
SET audit_db.lock_retry = '-1';
\echo :SQLSTATE
SET audit_db.lock_retry = '0';
SHOW audit_db.lock_retry;
RESET audit_db.lock_retry;
SET audit_db.lock_timeout = '1s';
SHOW audit_db.lock_timeout;
RESET audit_db.lock_timeout;
-- Those of the worker belong in the configuration file.
SET audit_db.max_partitions_dropped = 100;
\echo :SQLSTATE
SET audit_db.maintenance_interval = '1min';
\echo :SQLSTATE
SET audit_db.max_future = '1 year';
\echo :SQLSTATE
ALTER SYSTEM SET audit_db.max_future = 'some day';
\echo :SQLSTATE
