//! What a worker must know across restarts: when its last cycle was. A machine that comes up with a wrong clock has no other
//! way to notice.

use crate::error::Result;
use crate::partition::managed::as_extension_owner;
use crate::pg::{clock, spi};
use crate::shmem::workers;
use pgrx::datum::TimestampWithTimeZone;

/// A longer gap between two cycles than this is either a server that was down or a clock that was moved.
const TRUSTED_GAP_MICROS: i64 = 86_400_000_000;

/// Suspends retention for a day where the last cycle lies further back, or ahead, than can be trusted.
pub fn remember_clock(index: usize) -> Result<()> {
    if workers::get(index).last_cycle.is_some() {
        return Ok(());
    }
    let saved = spi::rows(
        "SELECT last_cycle FROM audit_db.maintenance_state",
        &[],
        |row| row.get::<TimestampWithTimeZone>(1),
    )?
    .pop()
    .flatten()
    .map(i64::from);
    let now = clock::reading();
    if let Some(saved) = saved {
        let moved = now.wall.saturating_sub(saved);
        if moved.saturating_abs() > TRUSTED_GAP_MICROS {
            workers::update(index, |slot| slot.clock_jump = Some((moved, now.boot)));
        }
    }
    Ok(())
}

/// Remembers this cycle. Not called while retention is suspended: a restart must not make a moved clock a trusted one.
pub fn save_clock() -> Result<()> {
    as_extension_owner(|| {
        spi::execute(
            "INSERT INTO audit_db.maintenance_state AS s (only_row, last_cycle) VALUES (true, pg_catalog.clock_timestamp())
             ON CONFLICT (only_row) DO UPDATE SET last_cycle = excluded.last_cycle
              WHERE s.last_cycle < excluded.last_cycle - interval '1 minute'",
            &[],
        )?;
        Ok(())
    })
}
