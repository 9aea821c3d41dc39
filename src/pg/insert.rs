//! Rows in memory that are inserted by a statement of ours: `INSERT INTO … SELECT … FROM audit_db_events`, planned once.
//! So triggers, defaults, generated columns, row security and routing work as for any INSERT.

use crate::error::{Error, Result};
use audit_db_core::record::{COLUMNS, Fields, METADATA};
use pgrx::pg_sys;
use std::ffi::{CStr, CString, c_char, c_int, c_long};

/// The name under which statements find the rows.
const NAME: &CStr = c"audit_db_events";
/// The values, and the time.
const WIDTH: usize = COLUMNS.len() + 1;
/// The column of the time.
pub const TIME: &str = "event_time";

unsafe extern "C-unwind" {
    // Not pgrx's: those are guarded, and a guard loses fields of an error that passes.
    fn SPI_connect() -> c_int;
    fn SPI_register_relation(relation: pg_sys::EphemeralNamedRelation) -> c_int;
    fn SPI_execute_plan(
        plan: pg_sys::SPIPlanPtr,
        values: *mut pg_sys::Datum,
        nulls: *const c_char,
        read_only: bool,
        count: c_long,
    ) -> c_int;
    fn SPI_finish() -> c_int;
}

/// The columns that the rows have: made once in a process.
fn descriptor() -> pg_sys::TupleDesc {
    static mut DESCRIPTOR: pg_sys::TupleDesc = std::ptr::null_mut();
    // SAFETY: a process is single threaded; the descriptor lives in the process's own memory.
    unsafe {
        if DESCRIPTOR.is_null() {
            let context = pg_sys::MemoryContextSwitchTo(pg_sys::TopMemoryContext);
            let descriptor = pg_sys::CreateTemplateTupleDesc(WIDTH as c_int);
            for (place, name) in COLUMNS.iter().chain(&[TIME]).enumerate() {
                let kind = match place {
                    METADATA => pg_sys::JSONBOID,
                    place if place < METADATA => pg_sys::TEXTOID,
                    _ => pg_sys::TIMESTAMPTZOID,
                };
                let name = CString::new(*name).unwrap_or_default();
                pg_sys::TupleDescInitEntry(
                    descriptor,
                    (place + 1) as i16,
                    name.as_ptr(),
                    kind,
                    -1,
                    0,
                );
            }
            DESCRIPTOR = descriptor;
            pg_sys::MemoryContextSwitchTo(context);
        }
        DESCRIPTOR
    }
}

/// Rows, in the memory context that is current when they are made: they live as long as it does.
#[derive(Clone, Copy)]
pub struct Rows(pg_sys::EphemeralNamedRelation);

impl Rows {
    pub fn new() -> Self {
        // SAFETY: allocates in the current memory context.
        unsafe {
            let store = pg_sys::tuplestore_begin_heap(false, false, pg_sys::work_mem);
            let relation = pg_sys::palloc0(size_of::<pg_sys::EphemeralNamedRelationData>())
                .cast::<pg_sys::EphemeralNamedRelationData>();
            (*relation).md.name = NAME.as_ptr().cast_mut();
            (*relation).md.reliddesc = pg_sys::InvalidOid;
            (*relation).md.tupdesc = descriptor();
            (*relation).md.enrtype = pg_sys::EphemeralNameRelationType::ENR_NAMED_TUPLESTORE;
            (*relation).md.enrtuples = 100.0;
            (*relation).reldata = store.cast();
            Self(relation)
        }
    }

    /// Adds an event.
    pub fn add(&self, fields: &Fields, event_time: i64, buffer: &mut Buffer) {
        let mut values = [pg_sys::Datum::null(); WIDTH];
        let mut nulls = [true; WIDTH];
        buffer.0.clear();
        let bytes: usize = fields.iter().flatten().map(|value| room(value)).sum();
        // Before pointers into it are taken.
        buffer.0.resize(bytes.div_ceil(8), 0);
        let mut at = 0;
        for (place, value) in fields.iter().enumerate() {
            let Some(value) = value else { continue };
            // SAFETY: the buffer has room for every value with its header, each aligned to 8.
            unsafe {
                let target = buffer.0.as_mut_ptr().cast::<u8>().add(at);
                pgrx::varlena::set_varsize_4b(
                    target.cast(),
                    (size_of::<u32>() + value.len()) as i32,
                );
                target
                    .add(size_of::<u32>())
                    .copy_from_nonoverlapping(value.as_ptr(), value.len());
                values[place] = pg_sys::Datum::from(target);
            }
            nulls[place] = false;
            at += room(value);
        }
        values[COLUMNS.len()] = pg_sys::Datum::from(event_time);
        nulls[COLUMNS.len()] = false;
        // SAFETY: as many values as the descriptor has columns, of their types; the store copies them.
        unsafe {
            pg_sys::tuplestore_putvalues(
                (*self.0).reldata.cast(),
                descriptor(),
                values.as_mut_ptr(),
                nulls.as_mut_ptr(),
            );
        }
    }

    /// Frees the rows before their memory context goes.
    pub fn end(self) {
        // SAFETY: made by `new`, ended once; no scan of it is open.
        unsafe { pg_sys::tuplestore_end((*self.0).reldata.cast()) };
    }
}

/// Bytes of a value with its header, to the next multiple of eight.
const fn room(value: &[u8]) -> usize {
    (size_of::<u32>() + value.len()).next_multiple_of(8)
}

/// Memory for one row, used again for the next.
#[derive(Default)]
pub struct Buffer(Vec<u64>);

/// A planned statement, kept for the life of the process or until [`Plan::free`].
#[derive(Clone, Copy)]
pub struct Plan(pg_sys::SPIPlanPtr);

impl Plan {
    /// Plans an INSERT that reads `audit_db_events`.
    pub fn new(statement: &str) -> Result<Self> {
        let statement = CString::new(statement)
            .map_err(|_| Error::Internal("a statement holds a zero byte".into()))?;
        let rows = Rows::new();
        // SAFETY: within one connection; an error ends it with the transaction, or with the subtransaction around.
        let plan = unsafe {
            pg_sys::SPI_connect();
            pg_sys::SPI_register_relation(rows.0);
            let plan = pg_sys::SPI_prepare(statement.as_ptr(), 0, std::ptr::null_mut());
            if !plan.is_null() {
                pg_sys::SPI_keepplan(plan);
            }
            pg_sys::SPI_finish();
            plan
        };
        rows.end();
        if plan.is_null() {
            return Err(Error::Internal("an INSERT could not be planned".into()));
        }
        Ok(Self(plan))
    }

    pub fn free(self) {
        // SAFETY: kept by `new`, freed once.
        unsafe { pg_sys::SPI_freeplan(self.0) };
    }
}

/// Rows on their way through a statement.
#[derive(Clone, Copy)]
pub struct Insert {
    pub plan: Plan,
    pub rows: Rows,
}

impl Insert {
    /// For workers: what is raised can be caught.
    pub fn run(self) {
        // SAFETY: within one connection; an error ends it with the (sub)transaction.
        unsafe {
            pg_sys::SPI_connect();
            pg_sys::SPI_register_relation(self.rows.0);
            pg_sys::SPI_execute_plan(
                self.plan.0,
                std::ptr::null_mut(),
                std::ptr::null(),
                false,
                0,
            );
            pg_sys::SPI_finish();
        }
    }

    /// For the function that a session called: what is raised goes to the client as it is.
    ///
    /// # Safety
    /// Nothing with a destructor may be alive in the caller's frames up to the server's.
    pub unsafe fn run_unguarded(self) {
        // SAFETY: by contract.
        unsafe {
            SPI_connect();
            SPI_register_relation(self.rows.0);
            SPI_execute_plan(
                self.plan.0,
                std::ptr::null_mut(),
                std::ptr::null(),
                false,
                0,
            );
            SPI_finish();
            pg_sys::tuplestore_end((*self.rows.0).reldata.cast());
        }
    }
}
