//! Default partitions that are being exchanged: where changes to them are logged, and the numbers of these changes. In shared
//! memory, because whoever writes to a default partition must know, and because it must be forgotten in a crash.

use crate::shmem::workers::MAX_DATABASES;
use pgrx::lwlock::PgLwLock;
use pgrx::{PGRXSharedMemory, pg_guard, pg_shmem_init, pg_sys};
use std::sync::atomic::{AtomicU64, Ordering};

/// What a row of the log says.
pub mod kind {
    pub const INSERTED: u8 = b'i';
    pub const DELETED: u8 = b'd';
    /// The log can no longer say what happens: the table was truncated, or its columns changed.
    pub const BROKEN: u8 = b'x';
}

/// One exchange; a database has one at a time.
#[derive(Default)]
struct Exchange {
    database: pg_sys::Oid,
    default: pg_sys::Oid,
    log: pg_sys::Oid,
    /// The process that does it; 0: the entry is free.
    process: i32,
    changes: AtomicU64,
}

#[derive(Default)]
struct Exchanges([Exchange; MAX_DATABASES / 4]);

// SAFETY: plain data of fixed size without pointers.
unsafe impl PGRXSharedMemory for Exchanges {}

// SAFETY: the name is ours alone.
static EXCHANGES: PgLwLock<Exchanges> = unsafe { PgLwLock::new(c"audit_db exchanges") };

pub(super) fn request() {
    pg_shmem_init!(EXCHANGES);
}

/// Where a change to a table must be logged now, with its number. `None`: the table is not being exchanged.
pub fn next_change(database: pg_sys::Oid, table: pg_sys::Oid) -> Option<(pg_sys::Oid, u64)> {
    if !super::is_preloaded() {
        return None;
    }
    let exchanges = EXCHANGES.share();
    exchanges
        .0
        .iter()
        .find(|entry| entry.default == table && entry.process != 0 && entry.database == database)
        .map(|entry| {
            let number = entry.changes.fetch_add(1, Ordering::Relaxed) + 1;
            (entry.log, number)
        })
}

/// The newest number that was given to a change.
pub fn newest_change(database: pg_sys::Oid, table: pg_sys::Oid) -> u64 {
    EXCHANGES
        .share()
        .0
        .iter()
        .find(|entry| entry.default == table && entry.process != 0 && entry.database == database)
        .map_or(0, |entry| entry.changes.load(Ordering::Relaxed))
}

/// Announces an exchange. `false`: too many are going on.
pub fn begin(database: pg_sys::Oid, default: pg_sys::Oid, log: pg_sys::Oid, process: i32) -> bool {
    let mut exchanges = EXCHANGES.exclusive();
    match exchanges.0.iter_mut().find(|entry| entry.process == 0) {
        Some(entry) => {
            *entry = Exchange {
                database,
                default,
                log,
                process,
                changes: AtomicU64::new(0),
            };
            true
        }
        None => false,
    }
}

/// Ends the exchanges of a process. Runs in its exit path too.
pub fn end(process: i32) {
    for entry in &mut EXCHANGES.exclusive().0 {
        if entry.process == process {
            *entry = Exchange::default();
        }
    }
}
