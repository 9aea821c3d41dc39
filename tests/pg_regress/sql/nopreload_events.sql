-- Without the preloaded library events go into the caller's transaction, or nowhere.
SET client_min_messages = error;
CREATE SCHEMA events;
SELECT audit_db.create_audit_log('events.log', premake => 0);
SELECT audit_db.log_event('a', durability => 'durable');
SELECT audit_db.log_event('a', durability => 'async');
SELECT audit_db.flush_events();
SELECT * FROM audit_db.ingest_stats;
SHOW audit_db.queue_size;
SELECT audit_db.log_event('a');
SELECT action FROM events.log;
DROP SCHEMA events CASCADE;
