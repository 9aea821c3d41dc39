//! SQL from the inside. Every statement sees a fresh snapshot, and names are found in pg_catalog only (see `guc::Scope`).

use crate::error::Result;
use pgrx::datum::DatumWithOid;
use pgrx::spi::{Spi, SpiHeapTupleData};

pub use pgrx::spi::{quote_identifier, quote_literal, quote_qualified_identifier};

/// Runs a statement; the number of rows it touched.
pub fn execute(sql: &str, args: &[DatumWithOid<'_>]) -> Result<u64> {
    Spi::connect_mut(|client| {
        client.update(sql, None, args)?;
        // SAFETY: a counter that SPI sets for the statement that just ran.
        Ok(unsafe { pgrx::pg_sys::SPI_processed })
    })
}

/// Runs a query and converts each row.
pub fn rows<T>(
    sql: &str,
    args: &[DatumWithOid<'_>],
    convert: impl Fn(&SpiHeapTupleData<'_>) -> pgrx::spi::Result<T>,
) -> Result<Vec<T>> {
    Spi::connect_mut(|client| {
        // `update`, although it only reads: `select` may reuse a snapshot that is older than a lock we waited for.
        let table = client.update(sql, None, args)?;
        let mut converted = Vec::with_capacity(table.len());
        for row in table {
            converted.push(convert(&row)?);
        }
        Ok(converted)
    })
}
