-- Plain CREATE SCHEMA: the extension owns it and takes it along when it is dropped.
CREATE SCHEMA audit_db;
COMMENT ON SCHEMA audit_db IS 'audit_db: audit logs inside the server';
GRANT USAGE ON SCHEMA audit_db TO PUBLIC;
