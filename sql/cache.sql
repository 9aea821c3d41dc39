CREATE TABLE audit_db.cache_types (
    name text PRIMARY KEY CHECK (name <> ''),
    ttl interval NOT NULL CHECK (ttl >= interval '0'),
    refresh_threshold double precision NOT NULL DEFAULT 0.9 CHECK (refresh_threshold >= 0 AND refresh_threshold <= 1),
    priority text NOT NULL DEFAULT 'medium' CHECK (priority IN ('low', 'medium', 'high')),
    consistency text NOT NULL DEFAULT 'ttl' CHECK (consistency IN ('snapshot', 'ttl'))
);
COMMENT ON TABLE audit_db.cache_types IS 'Types of cached results: what holds for calls of cached_query and cached_json that name one';
COMMENT ON COLUMN audit_db.cache_types.name IS 'The name';
COMMENT ON COLUMN audit_db.cache_types.ttl IS 'How old a result may be, with consistency ttl';
COMMENT ON COLUMN audit_db.cache_types.refresh_threshold IS 'The part of the ttl after which one caller at a time may compute the result anew, while the others still get it; likelier the nearer the end and the longer it takes';
COMMENT ON COLUMN audit_db.cache_types.priority IS 'Which results make room for others first: low, medium, high';
COMMENT ON COLUMN audit_db.cache_types.consistency IS 'snapshot: exactly what the query would return; ttl: at most ttl old';
INSERT INTO audit_db.cache_types (name, ttl, refresh_threshold, priority) VALUES
    ('user_events', '300 s', 0.8, 'medium'),
    ('dashboard_metrics', '900 s', 0.9, 'medium'),
    ('compliance_reports', '3600 s', 0.95, 'low'),
    ('system_health', '60 s', 0.5, 'high');
GRANT SELECT ON audit_db.cache_types TO PUBLIC;
SELECT pg_catalog.pg_extension_config_dump('audit_db.cache_types',
    $$WHERE (name, ttl, refresh_threshold, priority, consistency) NOT IN (
        ('user_events', '300 s', 0.8, 'medium', 'ttl'), ('dashboard_metrics', '900 s', 0.9, 'medium', 'ttl'),
        ('compliance_reports', '3600 s', 0.95, 'low', 'ttl'), ('system_health', '60 s', 0.5, 'high', 'ttl'))$$);

CREATE TABLE audit_db.cache_safe_functions (
    function regprocedure PRIMARY KEY,
    settings text[] NOT NULL DEFAULT '{}'
);
COMMENT ON TABLE audit_db.cache_safe_functions IS 'Functions that may occur in cached queries and policies although nobody can see on what they depend: a superuser says that it is on tables and on these settings only';
COMMENT ON COLUMN audit_db.cache_safe_functions.function IS 'The function';
COMMENT ON COLUMN audit_db.cache_safe_functions.settings IS 'Settings that it reads';
GRANT SELECT ON audit_db.cache_safe_functions TO PUBLIC;
SELECT pg_catalog.pg_extension_config_dump('audit_db.cache_safe_functions', '');

CREATE FUNCTION audit_db.cache_tables_changed("table" oid) RETURNS void
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cache_tables_changed_wrapper';
COMMENT ON FUNCTION audit_db.cache_tables_changed IS 'Has all sessions read a table of the cache again once the transaction has committed';
REVOKE EXECUTE ON FUNCTION audit_db.cache_tables_changed FROM PUBLIC;

CREATE FUNCTION audit_db.announce_cache_table() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $function$
BEGIN
    PERFORM audit_db.cache_tables_changed(TG_RELID);
    RETURN NULL;
END
$function$;
COMMENT ON FUNCTION audit_db.announce_cache_table IS 'Has all sessions read a table of the cache again';
REVOKE EXECUTE ON FUNCTION audit_db.announce_cache_table FROM PUBLIC;
CREATE TRIGGER announce AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON audit_db.cache_types
    FOR EACH STATEMENT EXECUTE FUNCTION audit_db.announce_cache_table();
CREATE TRIGGER announce AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON audit_db.cache_safe_functions
    FOR EACH STATEMENT EXECUTE FUNCTION audit_db.announce_cache_table();

CREATE FUNCTION audit_db.cached_query(query text, params jsonb DEFAULT NULL, cache_type text DEFAULT NULL, cache_key text DEFAULT NULL,
                                      ttl interval DEFAULT NULL, refresh boolean DEFAULT false, consistency text DEFAULT NULL)
RETURNS SETOF record
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'audit_db_cached_query';
COMMENT ON FUNCTION audit_db.cached_query IS
'The rows of a query, from the cache where they are there. params: JSON array whose elements become $1, $2 and so on, with the types that the query gives them; cache_type: a row of cache_types; cache_key: a label, part of the key; ttl: how old the rows may be, with consistency ttl; refresh: compute anew; consistency: snapshot (exactly what the query would return) or ttl. The caller lists the columns. Errors: those of the query, 0A000 it cannot be cached, 42601 not one statement, 42704 no such type, 42804 other columns, 22023 params, ttl or consistency, 22004 null query';

CREATE FUNCTION audit_db.cached_json(query text, params jsonb DEFAULT NULL, cache_type text DEFAULT NULL, cache_key text DEFAULT NULL,
                                     ttl interval DEFAULT NULL, refresh boolean DEFAULT false, consistency text DEFAULT NULL)
RETURNS jsonb
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'audit_db_cached_json';
COMMENT ON FUNCTION audit_db.cached_json IS
'The same as a JSON array of objects, one a row. Errors: those of cached_query but for the columns';

CREATE FUNCTION audit_db.cache_counters()
RETURNS TABLE (cache_type text, counters bigint[], saved_ms double precision)
LANGUAGE c VOLATILE PARALLEL RESTRICTED ROWS 10 AS 'MODULE_PATHNAME', 'cache_counters_wrapper';
COMMENT ON FUNCTION audit_db.cache_counters IS 'What the cache has done by type, from shared memory: the base of the views cache_stats and cache_stats_by_type. Errors: 55000 the library is not preloaded';
REVOKE EXECUTE ON FUNCTION audit_db.cache_counters FROM PUBLIC;
GRANT EXECUTE ON FUNCTION audit_db.cache_counters TO pg_monitor;

CREATE FUNCTION audit_db.cache_totals()
RETURNS TABLE (entries bigint, used_bytes bigint, size_bytes bigint, bypasses text, stats_reset timestamptz)
LANGUAGE c VOLATILE PARALLEL RESTRICTED ROWS 1 AS 'MODULE_PATHNAME', 'cache_totals_wrapper';
COMMENT ON FUNCTION audit_db.cache_totals IS 'What is in the cache, from shared memory: a base of the view cache_stats. Errors: 55000 the library is not preloaded';
REVOKE EXECUTE ON FUNCTION audit_db.cache_totals FROM PUBLIC;
GRANT EXECUTE ON FUNCTION audit_db.cache_totals TO pg_monitor;

CREATE VIEW audit_db.cache_stats_by_type AS
SELECT c.cache_type, c.counters[1] AS hits, c.counters[2] AS misses,
       c.counters[1]::double precision OPERATOR(pg_catalog./) NULLIF(c.counters[1] OPERATOR(pg_catalog.+) c.counters[2], 0)::double precision AS hit_rate,
       c.counters[3] AS stale_refreshes, c.counters[4] AS stored, c.counters[5] AS evictions, c.counters[6] AS invalidations,
       c.counters[7] AS waits, c.counters[9] AS too_big, c.counters[10] AS no_room, c.saved_ms
  FROM audit_db.cache_counters() c;
COMMENT ON VIEW audit_db.cache_stats_by_type IS 'What the cache has done for each type of results, in all databases';
COMMENT ON COLUMN audit_db.cache_stats_by_type.cache_type IS 'The type; (none): calls that name none';
COMMENT ON COLUMN audit_db.cache_stats_by_type.hits IS 'Calls that were answered from the cache';
COMMENT ON COLUMN audit_db.cache_stats_by_type.misses IS 'Calls that ran their query';
COMMENT ON COLUMN audit_db.cache_stats_by_type.hit_rate IS 'Part of the calls that were hits';
COMMENT ON COLUMN audit_db.cache_stats_by_type.stale_refreshes IS 'Misses because a result was computed anew before its time was over';
COMMENT ON COLUMN audit_db.cache_stats_by_type.stored IS 'Results that were stored';
COMMENT ON COLUMN audit_db.cache_stats_by_type.evictions IS 'Results that made room for others';
COMMENT ON COLUMN audit_db.cache_stats_by_type.invalidations IS 'Results that were removed, because of what they were computed from or by cache_invalidate';
COMMENT ON COLUMN audit_db.cache_stats_by_type.waits IS 'Calls that waited for another one that computed the same';
COMMENT ON COLUMN audit_db.cache_stats_by_type.too_big IS 'Results that were larger than audit_db.cache_max_result_size';
COMMENT ON COLUMN audit_db.cache_stats_by_type.no_room IS 'Results for which not enough others could make room';
COMMENT ON COLUMN audit_db.cache_stats_by_type.saved_ms IS 'Time that the hits took when they were computed, in milliseconds';
GRANT SELECT ON audit_db.cache_stats_by_type TO pg_monitor;

CREATE VIEW audit_db.cache_stats AS
SELECT c.hits, c.misses,
       c.hits::double precision OPERATOR(pg_catalog./) NULLIF(c.hits OPERATOR(pg_catalog.+) c.misses, 0)::double precision AS hit_rate,
       c.stale_refreshes, c.evictions,
       c.evictions::double precision OPERATOR(pg_catalog./) NULLIF(c.stored, 0)::double precision AS eviction_rate, c.invalidations, t.entries,
       t.used_bytes, t.size_bytes, t.used_bytes::double precision OPERATOR(pg_catalog./) NULLIF(t.size_bytes, 0)::double precision AS used_ratio,
       c.waits, t.bypasses::jsonb AS bypasses, c.saved_ms, t.stats_reset
  FROM audit_db.cache_totals() t
 CROSS JOIN LATERAL (
      SELECT coalesce(sum(s.hits), 0)::bigint AS hits, coalesce(sum(s.misses), 0)::bigint AS misses,
             coalesce(sum(s.stale_refreshes), 0)::bigint AS stale_refreshes, coalesce(sum(s.stored), 0)::bigint AS stored,
             coalesce(sum(s.evictions), 0)::bigint AS evictions, coalesce(sum(s.invalidations), 0)::bigint AS invalidations,
             coalesce(sum(s.waits), 0)::bigint AS waits, coalesce(sum(s.saved_ms), 0) AS saved_ms
        FROM audit_db.cache_stats_by_type s) c;
COMMENT ON VIEW audit_db.cache_stats IS 'What the cache has done, and what is in it, in one row';
COMMENT ON COLUMN audit_db.cache_stats.hits IS 'Calls that were answered from the cache';
COMMENT ON COLUMN audit_db.cache_stats.misses IS 'Calls that ran their query';
COMMENT ON COLUMN audit_db.cache_stats.hit_rate IS 'Part of the calls that were hits';
COMMENT ON COLUMN audit_db.cache_stats.stale_refreshes IS 'Misses because a result was computed anew before its time was over';
COMMENT ON COLUMN audit_db.cache_stats.evictions IS 'Results that made room for others';
COMMENT ON COLUMN audit_db.cache_stats.eviction_rate IS 'The same as a part of those that were stored';
COMMENT ON COLUMN audit_db.cache_stats.invalidations IS 'Results that were removed, because of what they were computed from or by cache_invalidate';
COMMENT ON COLUMN audit_db.cache_stats.entries IS 'Results that are stored now';
COMMENT ON COLUMN audit_db.cache_stats.used_bytes IS 'Memory that they take, in bytes';
COMMENT ON COLUMN audit_db.cache_stats.size_bytes IS 'Memory that there is: audit_db.cache_size, in bytes';
COMMENT ON COLUMN audit_db.cache_stats.used_ratio IS 'Part of the memory that is taken';
COMMENT ON COLUMN audit_db.cache_stats.waits IS 'Calls that waited for another one that computed the same';
COMMENT ON COLUMN audit_db.cache_stats.bypasses IS 'Calls that went past the cache, by reason';
COMMENT ON COLUMN audit_db.cache_stats.saved_ms IS 'Time that the hits took when they were computed, in milliseconds';
COMMENT ON COLUMN audit_db.cache_stats.stats_reset IS 'Since when this is counted: the last cache_reset';
GRANT SELECT ON audit_db.cache_stats TO pg_monitor;

CREATE FUNCTION audit_db.cache_list()
RETURNS TABLE (database_oid oid, role_oid oid, cache_type text, cache_key text, query text, params text, relations oid[],
               exact boolean, bytes bigint, hits bigint, age_ms double precision, fill_ms double precision)
LANGUAGE c VOLATILE PARALLEL RESTRICTED ROWS 1000 AS 'MODULE_PATHNAME', 'cache_list_wrapper';
COMMENT ON FUNCTION audit_db.cache_list IS 'The results in the cache, from shared memory: the base of the view cache_entries. Errors: 55000 the library is not preloaded';
REVOKE EXECUTE ON FUNCTION audit_db.cache_list FROM PUBLIC;
GRANT EXECUTE ON FUNCTION audit_db.cache_list TO pg_monitor;

CREATE VIEW audit_db.cache_entries AS
SELECT d.datname AS database, pg_catalog.pg_get_userbyid(l.role_oid) AS role, l.cache_type, l.cache_key,
       CASE WHEN v.may_see THEN l.query END AS query, CASE WHEN v.may_see THEN l.params::jsonb END AS params, l.relations, l.exact, l.bytes, l.hits,
       l.age_ms, l.fill_ms
  FROM audit_db.cache_list() l
  LEFT JOIN pg_catalog.pg_database d ON d.oid OPERATOR(pg_catalog.=) l.database_oid
 CROSS JOIN LATERAL (SELECT pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE')
                         OR pg_catalog.pg_has_role(l.role_oid, 'USAGE') AS may_see) v;
COMMENT ON VIEW audit_db.cache_entries IS 'The results in the cache, of all databases';
COMMENT ON COLUMN audit_db.cache_entries.database IS 'The database';
COMMENT ON COLUMN audit_db.cache_entries.role IS 'The role whose result it is';
COMMENT ON COLUMN audit_db.cache_entries.cache_type IS 'Its type; (none): the call named none';
COMMENT ON COLUMN audit_db.cache_entries.cache_key IS 'The label that the call gave it';
COMMENT ON COLUMN audit_db.cache_entries.query IS 'The query; null for who is neither a member of that role nor of pg_read_all_stats';
COMMENT ON COLUMN audit_db.cache_entries.params IS 'Its parameters; null for the same';
COMMENT ON COLUMN audit_db.cache_entries.relations IS 'Tables, views and partitions that it was computed from';
COMMENT ON COLUMN audit_db.cache_entries.exact IS 'Whether it is compared with snapshots; false: computed on a standby';
COMMENT ON COLUMN audit_db.cache_entries.bytes IS 'Its size with its key, in bytes';
COMMENT ON COLUMN audit_db.cache_entries.hits IS 'How often it was looked at';
COMMENT ON COLUMN audit_db.cache_entries.age_ms IS 'How old it is, in milliseconds';
COMMENT ON COLUMN audit_db.cache_entries.fill_ms IS 'How long it took to compute, in milliseconds';
GRANT SELECT ON audit_db.cache_entries TO pg_monitor;

CREATE FUNCTION audit_db.cache_invalidate(cache_key text DEFAULT NULL, cache_type text DEFAULT NULL, relation regclass DEFAULT NULL)
RETURNS bigint
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cache_invalidate_wrapper';
COMMENT ON FUNCTION audit_db.cache_invalidate IS
'Removes this database''s results that have this label, this type, and were computed from this relation; of what is null all. Returns how many. Errors: 55000 the library is not preloaded';
REVOKE EXECUTE ON FUNCTION audit_db.cache_invalidate FROM PUBLIC;

CREATE FUNCTION audit_db.cache_reset() RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cache_reset_wrapper';
COMMENT ON FUNCTION audit_db.cache_reset IS 'Removes all results of all databases, and what was counted. Errors: 55000 the library is not preloaded';
REVOKE EXECUTE ON FUNCTION audit_db.cache_reset FROM PUBLIC;
