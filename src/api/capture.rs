//! The trigger that logs changes to a default partition while it is being exchanged.

use crate::error::Error;
use crate::pg::identity;
use crate::pg::row_trigger::{Event, Fired, Log};
use crate::shmem::exchanges::{self, kind};

/// `audit_db.capture_change()`.
pub fn capture_change(fired: Option<Fired>) {
    match fired {
        Some(fired) => log(fired),
        None => Error::NotATrigger.raise(),
    }
}

fn log(fired: Fired) {
    let database = identity::my_database();
    // A trigger that outlived its exchange (a crash, a dump in its middle) does nothing; the worker removes it.
    let number = || exchanges::next_change(database, fired.table());
    let Some((log, first)) = number() else { return };
    let Some(log) = Log::open(log) else { return };
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
