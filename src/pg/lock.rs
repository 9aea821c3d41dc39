//! Relation locks with one deadline for all of them, so that a step never holds up others longer than its timeout.

use crate::pg::compat;
use crate::pg::guc::Scope;
use pgrx::pg_sys;
use std::time::{Duration, Instant};

/// PostgreSQL's names.
#[allow(clippy::enum_variant_names)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    ShareUpdateExclusive,
    ShareRowExclusive,
    AccessExclusive,
}

impl Mode {
    const fn number(self) -> pg_sys::LOCKMODE {
        (match self {
            Self::ShareUpdateExclusive => pg_sys::ShareUpdateExclusiveLock,
            Self::ShareRowExclusive => pg_sys::ShareRowExclusiveLock,
            Self::AccessExclusive => pg_sys::AccessExclusiveLock,
        }) as pg_sys::LOCKMODE
    }
}

/// The time that is left for all lock waits of one step.
pub struct Deadline<'a> {
    scope: &'a Scope,
    end: Instant,
}

impl<'a> Deadline<'a> {
    /// Starts the clock, and makes `lock_timeout` hold for the statements of the scope too.
    pub fn start(scope: &'a Scope, timeout: Duration) -> Self {
        let deadline = Self {
            scope,
            end: Instant::now() + timeout,
        };
        deadline.arm();
        deadline
    }

    /// Gives the next wait what is left. At least 1 ms: 0 would mean for ever.
    pub fn arm(&self) {
        let left = self.end.saturating_duration_since(Instant::now());
        let milliseconds = left.as_millis().clamp(1, i32::MAX as u128);
        self.scope
            .set(c"lock_timeout", &format!("{milliseconds}ms"));
    }

    /// Locks a relation until the end of the transaction; raises 55P03 when the time is over.
    pub fn lock(&self, relation: pg_sys::Oid, mode: Mode) {
        self.arm();
        // SAFETY: locking an OID is valid even when the relation is gone; callers look again afterwards.
        unsafe { pg_sys::LockRelationOid(relation, mode.number()) };
        self.arm();
    }
}

/// Whether the open transaction holds any lock on the relation.
pub fn held_by_me(relation: pg_sys::Oid) -> bool {
    // SAFETY: looks at this session's own table of locks.
    unsafe {
        let tag = pg_sys::LOCKTAG {
            locktag_field1: pg_sys::MyDatabaseId.to_u32(),
            locktag_field2: relation.to_u32(),
            locktag_type: pg_sys::LockTagType::LOCKTAG_RELATION as u8,
            locktag_lockmethodid: pg_sys::DEFAULT_LOCKMETHOD as u8,
            ..Default::default()
        };
        (pg_sys::AccessShareLock..=pg_sys::AccessExclusiveLock)
            .any(|mode| compat::lock_held_by_me(&tag, mode as pg_sys::LOCKMODE))
    }
}

unsafe extern "C" {
    /// `max_prepared_transactions`; not in pgrx's bindings.
    static max_prepared_xacts: std::ffi::c_int;
}

/// Locks that the server has room for, its number of backends, and the sessions that may reasonably read a whole audit log at
/// once: a quarter of its connections.
pub fn table_capacity() -> (i64, i64, i64) {
    // SAFETY: reads variables that are fixed since the server started.
    unsafe {
        let backends = i64::from(pg_sys::MaxBackends) + i64::from(max_prepared_xacts);
        (
            i64::from(pg_sys::max_locks_per_xact) * backends,
            backends,
            i64::from(pg_sys::MaxConnections / 4).max(1),
        )
    }
}

/// A lock on a number, of its own kind among advisory locks: seen in pg_locks and by the detector of deadlocks, released by an error.
pub struct NumberLock {
    tag: pg_sys::LOCKTAG,
    mode: pg_sys::LOCKMODE,
}

/// Advisory locks of SQL functions have 1 and 2 there.
const NUMBER_LOCK: u16 = 3;

impl NumberLock {
    /// Takes it, alone or with others who share it; `wait` says whether to wait for it.
    pub fn take(number: u64, alone: bool, wait: bool) -> Option<Self> {
        // SAFETY: a tag on the stack, which the server copies. A wait can be cancelled.
        unsafe {
            let tag = pg_sys::LOCKTAG {
                locktag_field1: pg_sys::MyDatabaseId.to_u32(),
                locktag_field2: (number >> 32) as u32,
                locktag_field3: number as u32,
                locktag_field4: NUMBER_LOCK,
                locktag_type: pg_sys::LockTagType::LOCKTAG_ADVISORY as u8,
                locktag_lockmethodid: pg_sys::USER_LOCKMETHOD as u8,
            };
            let mode = if alone {
                pg_sys::ExclusiveLock
            } else {
                pg_sys::ShareLock
            } as pg_sys::LOCKMODE;
            let result = pg_sys::LockAcquire(&tag, mode, false, !wait);
            (result != pg_sys::LockAcquireResult::LOCKACQUIRE_NOT_AVAIL)
                .then_some(Self { tag, mode })
        }
    }

    pub fn release(self) {
        // SAFETY: taken by this transaction.
        unsafe { pg_sys::LockRelease(&self.tag, self.mode, false) };
    }
}
