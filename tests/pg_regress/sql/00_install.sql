-- The extension for all files that follow.
CREATE EXTENSION audit_db;
SELECT extversion IS NOT NULL AS has_version, extrelocatable FROM pg_extension WHERE extname = 'audit_db';
ALTER EXTENSION audit_db SET SCHEMA public;
\echo :SQLSTATE
SELECT count(*) FROM audit_db.managed_tables;
