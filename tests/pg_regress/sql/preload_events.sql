-- Events that do not depend on the caller's transaction.
SET TimeZone = 'UTC';
SELECT name, setting, unit, context FROM pg_settings WHERE name = 'audit_db.queue_size';
CREATE SCHEMA events;
SET client_min_messages = error; -- the warning about the lock table depends on the server's configuration
SELECT audit_db.create_audit_log('events.log', premake => 0);
RESET client_min_messages;
BEGIN;
SELECT audit_db.log_event('durable', durability => 'durable');
SELECT audit_db.log_event('async', durability => 'async');
SELECT audit_db.log_event('transaction');
ROLLBACK;
SELECT audit_db.flush_events() >= 0 AS flushed;
SELECT action FROM events.log ORDER BY action;
-- A table of the open transaction.
BEGIN;
ALTER TABLE events.log ADD CONSTRAINT fine CHECK (resource_id IS DISTINCT FROM 'bad');
SELECT audit_db.log_event('a', durability => 'durable');
ROLLBACK;
ALTER TABLE events.log ADD CONSTRAINT fine CHECK (resource_id IS DISTINCT FROM 'bad');
DO $$ BEGIN PERFORM audit_db.log_event('a', resource_id => 'bad', durability => 'durable');
EXCEPTION WHEN check_violation THEN RAISE NOTICE 'refused'; END $$;
SELECT audit_db.log_event('refused', resource_id => 'bad', durability => 'async');
SELECT audit_db.flush_events() >= 0 AS flushed;
SELECT event->>'action' AS action, role = current_user AS mine, sqlstate FROM events.log_rejected ORDER BY id;
SELECT queued_events, enqueued - written - withdrawn AS not_written, rejected, fallbacks, last_error FROM audit_db.ingest_stats;
SET client_min_messages = warning;
DROP SCHEMA events CASCADE;
