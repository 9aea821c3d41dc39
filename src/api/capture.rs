//! The trigger that logs changes to a default partition while it is being exchanged.
#![allow(unsafe_code)]

use crate::error::Error;
use crate::pg::identity;
use crate::pg::row_trigger::{Event, Fired, Log};
use crate::shmem::exchanges::{self, kind};
use pgrx::pg_sys;

/// Tells the server how to call `audit_db_capture_change`.
#[unsafe(no_mangle)]
pub extern "C" fn pg_finfo_audit_db_capture_change() -> &'static pg_sys::Pg_finfo_record {
    static RECORD: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
    &RECORD
}

/// `audit_db.capture_change()`, a trigger function.
///
/// # Safety
/// Called by the server only.
#[pgrx::pg_guard]
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn audit_db_capture_change(
    call: pg_sys::FunctionCallInfo,
) -> pg_sys::Datum {
    // SAFETY: the server passes a call.
    match unsafe { Fired::from_call(call) } {
        Some(fired) => log(fired),
        None => Error::NotATrigger.raise(),
    }
    pg_sys::Datum::null()
}

fn log(fired: Fired) {
    let database = identity::my_database();
    // A trigger that outlived its exchange (a crash, a dump in its middle) does nothing; the worker removes it.
    let number = || exchanges::next_change(database, fired.table());
    let Some((log, first)) = number() else { return };
    let Some(log) = Log::open(log) else { return };
    if !log.has_owner_of(fired) {
        return;
    }
    let first = first as i64;
    let complete = match fired.event() {
        Event::Insert => log.append(first, kind::INSERTED, fired, fired.row()),
        Event::Delete => log.append(first, kind::DELETED, fired, fired.row()),
        Event::Truncate => false,
        Event::Update => {
            log.append(first, kind::DELETED, fired, fired.row())
                && number().is_some_and(|(_, second)| {
                    log.append(second as i64, kind::INSERTED, fired, fired.new_row())
                })
        }
    };
    if !complete && let Some((_, number)) = number() {
        log.append_mark(number as i64, kind::BROKEN);
    }
}
