//! VACUUM of partitions that have dead rows, or new ones that are not yet marked as visible to all.

use super::analyze::{TREE, Target};
use crate::error::Result;
use crate::pg::utility::run_at_top_level;
use crate::pg::{guc, spi};
use crate::settings;
use pgrx::pg_sys::Oid;
use std::time::Duration;

/// What is due of a table and its partitions, by the server's own thresholds.
pub fn due(root: Oid) -> Result<Vec<Target>> {
    spi::rows(
        &format!(
            "SELECT c.oid, pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.relname), c.relowner,
                    pg_catalog.format('%s dead rows, %s new ones', s.n_dead_tup, s.n_ins_since_vacuum)
               FROM ({TREE}) l
               JOIN pg_catalog.pg_class c ON c.oid = l.oid AND c.relkind IN ('r', 'm')
               JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
               JOIN pg_catalog.pg_stat_all_tables s ON s.relid = c.oid
              WHERE s.n_dead_tup > pg_catalog.current_setting('autovacuum_vacuum_threshold')::pg_catalog.float8
                      + pg_catalog.current_setting('autovacuum_vacuum_scale_factor')::pg_catalog.float8 * GREATEST(c.reltuples, 0)
                 OR pg_catalog.current_setting('autovacuum_vacuum_insert_threshold')::pg_catalog.int4 >= 0 AND s.n_ins_since_vacuum > pg_catalog.current_setting('autovacuum_vacuum_insert_threshold')::pg_catalog.float8
                      + pg_catalog.current_setting('autovacuum_vacuum_insert_scale_factor')::pg_catalog.float8 * GREATEST(c.reltuples, 0)
              ORDER BY 2"
        ),
        &[root.into()],
        |row| {
            Ok(Target {
                oid: row.get(1)?.unwrap_or(Oid::INVALID),
                name: row.get(2)?.unwrap_or_default(),
                owner: row.get(3)?.unwrap_or(Oid::INVALID),
                reason: row.get(4)?.unwrap_or_default(),
            })
        },
    )
}

/// Vacuums one table. Unlike a rebuild it leaves nothing behind, so it need not wait for a lock for ever.
pub fn run(target: &Target, freeze: bool, limit: Option<Duration>) -> Result<()> {
    let options = if freeze { "(FREEZE) " } else { "" };
    let patience = settings::lock_retry().as_millis().max(1);
    guc::fix_for_worker(c"lock_timeout", &format!("{patience}ms"));
    let done = run_at_top_level(
        target.owner,
        &format!("VACUUM {options}{}", target.name),
        limit,
    );
    guc::fix_for_worker(c"lock_timeout", "0");
    done
}
