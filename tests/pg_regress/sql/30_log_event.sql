-- Events in the caller's own transaction: the same with and without the preloaded library.
SET TimeZone = 'UTC';
SET client_min_messages = notice;
CREATE ROLE regress_events_owner;
CREATE ROLE regress_events_writer;
CREATE SCHEMA events AUTHORIZATION regress_events_owner;
GRANT USAGE ON SCHEMA events TO regress_events_writer;
GRANT EXECUTE ON FUNCTION audit_db.create_audit_log TO regress_events_owner;
-- No table yet.
SELECT audit_db.log_event('patient.read');
SET SESSION AUTHORIZATION regress_events_owner;
SET client_min_messages = error; -- the warning about the lock table depends on the server's configuration
SELECT audit_db.create_audit_log('events.log', premake => 0);
RESET client_min_messages;
GRANT INSERT ON events.log TO regress_events_writer;
GRANT USAGE ON SEQUENCE events.log_id_seq TO regress_events_writer;
RESET SESSION AUTHORIZATION;

SET SESSION AUTHORIZATION regress_events_writer;
SELECT audit_db.log_event('patient.read', principal_id => 'practitioner/7', principal_type => 'practitioner',
    organization_id => 'ward 7b', resource_type => 'patient', resource_id => 'patient/4711', outcome_description => 'shown',
    correlation_id => 'request 1', data_classification => 'phi', metadata => '{"reason": "treatment"}',
    event_time => '2026-03-29 12:00+00');
SELECT audit_db.log_events('[
    {"timestamp": "2026-03-29T12:01:00Z", "action": "patient.update", "status": "failure", "principal_id": "practitioner/7"},
    {"timestamp": "2026-03-29T12:02:00Z", "action": "patient.read", "resource_id": 4711, "break_glass": true}]');
-- Who may write need not be able to read.
SELECT count(*) FROM events.log;
RESET SESSION AUTHORIZATION;
SELECT * FROM events.log ORDER BY "timestamp" \gx

-- All or nothing.
SELECT audit_db.log_events('[{"action": "good"}, {"action": "bad", "timestamp": "soon"}]');
SELECT audit_db.log_events('[{"action": "good"}, {"status": "bad"}]');
SELECT audit_db.log_events('[{"action": "good"}, 7]');
SELECT audit_db.log_events('{"action": "good"}');
SELECT audit_db.log_event(NULL);
SELECT audit_db.log_event('a', durability => 'perhaps');
SELECT count(*) FROM events.log;
BEGIN;
SELECT audit_db.log_event('rolled back');
ROLLBACK;
SELECT count(*) FROM events.log;
BEGIN READ ONLY;
SELECT audit_db.log_event('read only');
ROLLBACK;

-- An error of the table is the table's own.
ALTER TABLE events.log ADD CONSTRAINT actions CHECK (action ~ '^[a-z]+\.[a-z]+$');
\set SHOW_CONTEXT never
DO $$ BEGIN
    PERFORM audit_db.log_event('nonsense');
EXCEPTION WHEN check_violation THEN
    DECLARE c text; t text; s text;
    BEGIN
        GET STACKED DIAGNOSTICS c = CONSTRAINT_NAME, t = TABLE_NAME, s = SCHEMA_NAME;
        RAISE NOTICE 'constraint %, table in schema %: %', c, s, t LIKE 'log%';
    END;
END $$;

-- Another table, by a superuser's setting.
CREATE TABLE events.plain ("timestamp" timestamptz, action text, resource_id bigint, metadata jsonb);
SET audit_db.audit_table = 'events.plain';
SELECT audit_db.log_event('a.b', resource_id => '17', principal_id => 'p', event_time => '2026-03-29 12:00+00');
SELECT audit_db.log_event('a.b', resource_id => 'seventeen');
SELECT * FROM events.plain;
SET audit_db.stamp_session = on;
SELECT audit_db.log_event('a.b', metadata => '[1]', event_time => '2026-03-29 13:00+00');
SELECT metadata - 'session', metadata->'session'->>'role' = current_user AS role, metadata->'session' ? 'application_name' AS program
  FROM events.plain WHERE "timestamp" = '2026-03-29 13:00+00';
RESET audit_db.stamp_session;
ALTER TABLE events.plain DROP metadata;
SELECT audit_db.log_event('a.b', principal_id => 'p');
ALTER TABLE events.plain DROP action;
SELECT audit_db.log_event('a.b');
SET audit_db.audit_table = 'plain';
SELECT audit_db.log_event('a.b');
RESET audit_db.audit_table;
SET ROLE regress_events_writer;
SET audit_db.audit_table = 'events.plain';
SET audit_db.stamp_session = off;
RESET ROLE;

SET client_min_messages = warning;
DROP SCHEMA events CASCADE;
REVOKE EXECUTE ON FUNCTION audit_db.create_audit_log FROM regress_events_owner;
DROP ROLE regress_events_owner, regress_events_writer;
