//! A trigger that writes what happens to a table's rows into another table.

use pgrx::pg_sys;
use std::ffi::CStr;

/// What to do with a call; set once, when the library is loaded.
static mut HANDLER: Option<fn(Option<Fired>)> = None;

/// Sets what `audit_db.capture_change()` does. The handler gets `None` where the function was not called as a trigger.
pub fn install(handler: fn(Option<Fired>)) {
    // SAFETY: a process is single threaded, and no trigger can fire before the library is loaded.
    unsafe { HANDLER = Some(handler) };
}

/// Tells the server how to call the function.
#[unsafe(no_mangle)]
pub extern "C" fn pg_finfo_audit_db_capture_change() -> &'static pg_sys::Pg_finfo_record {
    static RECORD: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
    &RECORD
}

/// `audit_db.capture_change()`.
#[pgrx::pg_guard]
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn audit_db_capture_change(
    call: pg_sys::FunctionCallInfo,
) -> pg_sys::Datum {
    // SAFETY: the server passes a call; the handler was set when the library was loaded.
    unsafe {
        if let Some(handler) = HANDLER {
            handler(Fired::from_call(call));
        }
    }
    pg_sys::Datum::null()
}

/// What fired a trigger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Insert,
    Update,
    Delete,
    Truncate,
}

/// A trigger call.
#[derive(Clone, Copy)]
pub struct Fired(*mut pg_sys::TriggerData);

/// A row as it is stored, of the table that the trigger is on.
#[derive(Clone, Copy)]
pub struct Row(pg_sys::HeapTuple);

impl Fired {
    /// `None`: the function was not called as an AFTER trigger for a row, or as one for TRUNCATE.
    ///
    /// # Safety
    /// `call` must be what the server passed to a function.
    unsafe fn from_call(call: pg_sys::FunctionCallInfo) -> Option<Self> {
        // SAFETY: by contract; the context is null or a node with a tag.
        unsafe {
            let context = (*call).context;
            if context.is_null() || (*context).type_ != pg_sys::NodeTag::T_TriggerData {
                return None;
            }
            let fired = Self(context.cast());
            let event = (*fired.0).tg_event;
            let for_row = event & pg_sys::TRIGGER_EVENT_ROW != 0;
            let after = event & pg_sys::TRIGGER_EVENT_TIMINGMASK == pg_sys::TRIGGER_EVENT_AFTER;
            (fired.event() == Event::Truncate || for_row && after).then_some(fired)
        }
    }

    pub fn event(self) -> Event {
        // SAFETY: the trigger data live as long as the call.
        let operation = unsafe { (*self.0).tg_event } & pg_sys::TRIGGER_EVENT_OPMASK;
        match operation {
            pg_sys::TRIGGER_EVENT_INSERT => Event::Insert,
            pg_sys::TRIGGER_EVENT_UPDATE => Event::Update,
            pg_sys::TRIGGER_EVENT_DELETE => Event::Delete,
            _ => Event::Truncate,
        }
    }

    /// The table.
    pub fn table(self) -> pg_sys::Oid {
        // SAFETY: the relation is open during the call.
        unsafe { (*(*self.0).tg_relation).rd_id }
    }

    /// The row that was inserted, deleted or updated: of an update the old version.
    pub fn row(self) -> Row {
        // SAFETY: as above; null for statement triggers.
        Row(unsafe { (*self.0).tg_trigtuple })
    }

    /// The new version of an updated row.
    pub fn new_row(self) -> Row {
        // SAFETY: as above.
        Row(unsafe { (*self.0).tg_newtuple })
    }
}

/// A table whose first two columns are a number (`bigint`) and a kind (`"char"`), followed by the columns of another table
/// that are not generated, in their order.
pub struct Log(pg_sys::Relation);

impl Log {
    /// `None`: the table is gone. The lock stays until the end of the transaction.
    pub fn open(oid: pg_sys::Oid) -> Option<Self> {
        // SAFETY: opens and locks, or returns null.
        let relation = unsafe { pg_sys::try_relation_open(oid, pg_sys::RowExclusiveLock as _) };
        (!relation.is_null()).then_some(Self(relation))
    }

    /// Writes what a row trigger was fired for. `false`: the columns of the two tables no longer correspond, nothing was written.
    pub fn append(&self, number: i64, kind: u8, fired: Fired, row: Row) -> bool {
        // SAFETY: the relations are open; arrays have the length of their descriptors; the row belongs to the trigger's table.
        unsafe {
            let source = (*(*fired.0).tg_relation).rd_att;
            let target = (*self.0).rd_att;
            let source_length = (*source).natts as usize;
            let mut from = vec![pg_sys::Datum::null(); source_length];
            let mut from_nulls = vec![true; source_length];
            pg_sys::heap_deform_tuple(row.0, source, from.as_mut_ptr(), from_nulls.as_mut_ptr());
            let mut values = vec![pg_sys::Datum::from(number), pg_sys::Datum::from(kind as i8)];
            let mut nulls = vec![false, false];
            let target_columns = columns(target);
            let mut expected = target_columns.iter().skip(2);
            for (index, column) in columns(source).iter().enumerate() {
                let column = &**column;
                if column.attisdropped || column.attgenerated != 0 {
                    continue;
                }
                match expected.next() {
                    Some(other) if corresponds(column, &**other) => {
                        values.push(from[index]);
                        nulls.push(from_nulls[index]);
                    }
                    _ => return false,
                }
            }
            if expected.next().is_some() {
                return false;
            }
            self.insert(&mut values, &mut nulls);
            true
        }
    }

    /// Writes a row without content.
    pub fn append_mark(&self, number: i64, kind: u8) {
        // SAFETY: the relation is open.
        let length = unsafe { (*(*self.0).rd_att).natts as usize };
        let mut values = vec![pg_sys::Datum::null(); length];
        let mut nulls = vec![true; length];
        values[0] = pg_sys::Datum::from(number);
        values[1] = pg_sys::Datum::from(kind as i8);
        nulls[..2].fill(false);
        // SAFETY: as many values as columns.
        unsafe { self.insert(&mut values, &mut nulls) };
    }

    /// # Safety
    /// As many values as the table has columns, of their types.
    unsafe fn insert(&self, values: &mut [pg_sys::Datum], nulls: &mut [bool]) {
        // SAFETY: by contract. The function that the server uses for its catalogs writes to any table whose indexes are plain
        // columns; nobody but the extension's owner can give a log other indexes.
        unsafe {
            let tuple =
                pg_sys::heap_form_tuple((*self.0).rd_att, values.as_mut_ptr(), nulls.as_mut_ptr());
            pg_sys::CatalogTupleInsert(self.0, tuple);
            pg_sys::heap_freetuple(tuple);
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        // After an error the resource owner closes it.
        if !std::thread::panicking() {
            // SAFETY: opened by `open`, closed once.
            unsafe { pg_sys::relation_close(self.0, pg_sys::NoLock as _) };
        }
    }
}

/// # Safety
/// The descriptor must be of an open relation.
unsafe fn columns(descriptor: pg_sys::TupleDesc) -> Vec<*const pg_sys::FormData_pg_attribute> {
    // SAFETY: by contract.
    unsafe {
        (0..(*descriptor).natts as usize)
            .map(|index| crate::pg::compat::attribute(descriptor, index))
            .collect()
    }
}

fn corresponds(one: &pg_sys::FormData_pg_attribute, other: &pg_sys::FormData_pg_attribute) -> bool {
    // SAFETY: names are zero-terminated.
    one.atttypid == other.atttypid
        && unsafe {
            CStr::from_ptr(one.attname.data.as_ptr()) == CStr::from_ptr(other.attname.data.as_ptr())
        }
}
