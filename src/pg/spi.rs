//! SQL from the inside. Every statement sees a fresh snapshot, and names are found in pg_catalog only (see `guc::Scope`).

use crate::error::Result;
use pgrx::datum::{DatumWithOid, FromDatum, IntoDatum};
use pgrx::pg_sys;
use pgrx::spi::{OwnedPreparedStatement, Spi, SpiClient, SpiHeapTupleData, SpiTupleTable};
use std::cell::RefCell;
use std::collections::HashMap;

pub use pgrx::spi::{quote_identifier, quote_literal, quote_qualified_identifier};

/// Runs a statement; the number of rows it touched.
pub fn execute(sql: &str, args: &[DatumWithOid<'_>]) -> Result<u64> {
    Spi::connect_mut(|client| {
        client.update(sql, None, args)?;
        // SAFETY: a counter that SPI sets for the statement that just ran.
        Ok(unsafe { pg_sys::SPI_processed })
    })
}

/// Runs a statement that writes and returns rows (RETURNING), and converts each row.
pub fn written<T>(
    sql: &str,
    args: &[DatumWithOid<'_>],
    convert: impl Fn(&SpiHeapTupleData<'_>) -> pgrx::spi::Result<T>,
) -> Result<Vec<T>> {
    Spi::connect_mut(|client| {
        let table = client.update(sql, None, args)?;
        let mut converted = Vec::with_capacity(table.len());
        for row in table {
            converted.push(convert(&row)?);
        }
        Ok(converted)
    })
}

/// Runs a query and converts each row.
pub fn rows<T>(
    sql: &str,
    args: &[DatumWithOid<'_>],
    convert: impl Fn(&SpiHeapTupleData<'_>) -> pgrx::spi::Result<T>,
) -> Result<Vec<T>> {
    query(convert, |client| Ok(client.select(sql, None, args)?))
}

/// The same for queries that each cycle of a worker repeats: planned once in a process. All arguments are OIDs.
pub fn rows_of_kept<T>(
    sql: &'static str,
    args: &[pg_sys::Oid],
    convert: impl Fn(&SpiHeapTupleData<'_>) -> pgrx::spi::Result<T>,
) -> Result<Vec<T>> {
    query(convert, |client| {
        let kept = KEPT.with_borrow(|kept| kept.get(sql).copied());
        let statement = match kept {
            Some(statement) => statement,
            None => {
                let types = vec![pg_sys::PgOid::from(pg_sys::OIDOID); args.len()];
                // Never freed: a destructor at the end of the process would find no server to free it in.
                let statement: &'static OwnedPreparedStatement =
                    Box::leak(Box::new(client.prepare(sql, &types)?.keep()));
                KEPT.with_borrow_mut(|kept| kept.insert(sql, statement));
                statement
            }
        };
        let args: Vec<DatumWithOid<'_>> = args.iter().map(|oid| (*oid).into()).collect();
        Ok(client.select(statement, None, &args)?)
    })
}

thread_local! {
    /// Plans that are kept, by their text.
    static KEPT: RefCell<HashMap<&'static str, &'static OwnedPreparedStatement>> = RefCell::default();
}

fn query<T>(
    convert: impl Fn(&SpiHeapTupleData<'_>) -> pgrx::spi::Result<T>,
    select: impl for<'conn> FnOnce(&SpiClient<'conn>) -> Result<SpiTupleTable<'conn>>,
) -> Result<Vec<T>> {
    // A snapshot of its own: the statement's may be older than a lock we waited for. pgrx's `update` would take one too, but it
    // also takes a transaction id, which a standby has none of and a look costs for nothing.
    // SAFETY: pushed and popped in pairs; an error's abort pops what is left.
    unsafe {
        pg_sys::CommandCounterIncrement();
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
    }
    let rows = Spi::connect(|client| -> Result<Vec<T>> {
        let table = select(client)?;
        let mut converted = Vec::with_capacity(table.len());
        for row in table {
            converted.push(convert(&row)?);
        }
        Ok(converted)
    });
    // SAFETY: see above.
    unsafe { pg_sys::PopActiveSnapshot() };
    rows
}

/// The bytes of a text or jsonb value, without their length: in the server's encoding, whatever that is.
pub struct Bytes(pub Vec<u8>);

impl FromDatum for Bytes {
    unsafe fn from_polymorphic_datum(
        datum: pg_sys::Datum,
        is_null: bool,
        _type_oid: pg_sys::Oid,
    ) -> Option<Self> {
        if is_null {
            return None;
        }
        // SAFETY: only values of types with a length are asked for, see `is_compatible_with`.
        let bytes = unsafe {
            let value = pg_sys::pg_detoast_datum_packed(datum.cast_mut_ptr());
            std::slice::from_raw_parts(
                pgrx::varlena::vardata_any(value).cast::<u8>(),
                pgrx::varlena::varsize_any_exhdr(value),
            )
        };
        Some(Self(bytes.to_vec()))
    }
}

impl IntoDatum for Bytes {
    /// Never asked for: values only come out of the server this way.
    fn into_datum(self) -> Option<pg_sys::Datum> {
        None
    }

    fn type_oid() -> pg_sys::Oid {
        pg_sys::TEXTOID
    }

    fn is_compatible_with(other: pg_sys::Oid) -> bool {
        matches!(other, pg_sys::TEXTOID | pg_sys::JSONBOID)
    }
}

/// A jsonb value of a call as an argument of a statement.
pub fn jsonb_argument<'a>(value: pg_sys::Datum) -> DatumWithOid<'a> {
    // SAFETY: the functions that use it are declared with an argument of that type.
    unsafe { DatumWithOid::new(value, pg_sys::JSONBOID) }
}
