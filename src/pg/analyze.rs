//! ANALYZE of a partitioned table alone. Before PostgreSQL 18 the command always reads each partition a second time.

use crate::error::Result;
use pgrx::pg_sys;

/// Takes the statistics of a partitioned table over a sample of its partitions. Inside a transaction, with the rights of the
/// table's owner. Takes SHARE UPDATE EXCLUSIVE on the table.
pub fn partitioned_table(table: pg_sys::Oid) -> Result<()> {
    // SAFETY: what ANALYZE does for each table of its list; the structure lives across the call, the strategy is freed.
    unsafe {
        let mut parameters = pg_sys::VacuumParams {
            options: pg_sys::VACOPT_ANALYZE,
            log_min_duration: -1,
            ..Default::default()
        };
        let strategy = pg_sys::GetAccessStrategy(pg_sys::BufferAccessStrategyType::BAS_VACUUM);
        pg_sys::analyze_rel(
            table,
            std::ptr::null_mut(),
            &mut parameters,
            std::ptr::null_mut(),
            true,
            strategy,
        );
        pg_sys::FreeAccessStrategy(strategy);
        pg_sys::CommandCounterIncrement();
    }
    Ok(())
}
