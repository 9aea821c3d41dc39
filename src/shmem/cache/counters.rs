//! What the cache has done, by type of result, and why statements went past it.

use super::{AREA, TYPES_LOCK, heading};
use crate::pg::clock;
use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// Types that are counted apart; the last one is for all others.
pub const TYPES: usize = 32;
const NAME_BYTES: usize = 64;
const NAMES: usize = TYPES - 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Counter {
    Hits,
    Misses,
    /// Computed again before its time was over.
    Refreshes,
    Stored,
    /// Made room for others.
    Evictions,
    /// Found to be out of date, or removed.
    Invalidations,
    /// Waited for somebody who computed the same.
    Waits,
    /// Nanoseconds that the hits would have taken.
    Saved,
    TooBig,
    NoRoom,
}

const COUNTERS: usize = 10;

/// Why a statement was not answered from the cache, nor stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Bypass {
    Volatile,
    Opaque,
    Catalog,
    Temporary,
    Foreign,
    Sequence,
    RowLocks,
    Writes,
    Clock,
    Session,
    Sample,
    RecordType,
    Serializable,
    OwnWrites,
    Snapshot,
    Standby,
    TooMany,
}

impl Bypass {
    pub const ALL: [Self; 17] = [
        Self::Volatile,
        Self::Opaque,
        Self::Catalog,
        Self::Temporary,
        Self::Foreign,
        Self::Sequence,
        Self::RowLocks,
        Self::Writes,
        Self::Clock,
        Self::Session,
        Self::Sample,
        Self::RecordType,
        Self::Serializable,
        Self::OwnWrites,
        Self::Snapshot,
        Self::Standby,
        Self::TooMany,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Volatile => "volatile_function",
            Self::Opaque => "opaque_function",
            Self::Catalog => "system_catalog",
            Self::Temporary => "temporary_table",
            Self::Foreign => "foreign_table",
            Self::Sequence => "sequence",
            Self::RowLocks => "row_locks",
            Self::Writes => "writes",
            Self::Clock => "clock_function",
            Self::Session => "session_function",
            Self::Sample => "sample",
            Self::RecordType => "record_type",
            Self::Serializable => "serializable",
            Self::OwnWrites => "own_writes",
            Self::Snapshot => "old_snapshot",
            Self::Standby => "standby",
            Self::TooMany => "too_many_tables",
        }
    }
}

#[repr(C)]
pub(super) struct Counters {
    pub since: AtomicI64,
    bypasses: [AtomicU64; Bypass::ALL.len()],
    types: [[AtomicU64; COUNTERS]; TYPES],
    names: Names,
}

#[repr(transparent)]
struct Names(UnsafeCell<[[u8; NAME_BYTES]; NAMES]>);

// SAFETY: only touched under its lock.
unsafe impl Sync for Names {}

/// Adds to a counter of a type.
pub fn count(kind: usize, counter: Counter, more: u64) {
    heading().counters.types[kind.min(NAMES)][counter as usize].fetch_add(more, Ordering::Relaxed);
}

pub fn count_bypass(why: Bypass) {
    heading().counters.bypasses[why as usize].fetch_add(1, Ordering::Relaxed);
}

/// The place of a type, which gets one where it has none.
pub fn type_index(name: &str) -> usize {
    let mut wanted = [0; NAME_BYTES];
    let length = audit_db_core::statement_text::floor(name, NAME_BYTES - 1);
    wanted[..length].copy_from_slice(&name.as_bytes()[..length]);
    let _held = AREA.lock_at(TYPES_LOCK);
    // SAFETY: its lock is held.
    let names = unsafe { &mut *heading().counters.names.0.get() };
    if let Some(place) = names.iter().position(|name| *name == wanted) {
        return place;
    }
    match names.iter_mut().enumerate().find(|(_, name)| name[0] == 0) {
        Some((place, free)) => {
            *free = wanted;
            place
        }
        None => NAMES,
    }
}

/// The names of all types, by place; the last is that of all others.
pub fn type_names() -> Vec<(usize, String)> {
    let names = {
        let _held = AREA.lock_at(TYPES_LOCK);
        // SAFETY: its lock is held.
        unsafe { *heading().counters.names.0.get() }
    };
    let mut found: Vec<(usize, String)> = names
        .iter()
        .enumerate()
        .filter(|(_, name)| name[0] != 0)
        .map(|(place, name)| {
            let end = name.iter().position(|byte| *byte == 0).unwrap_or(0);
            (place, String::from_utf8_lossy(&name[..end]).into_owned())
        })
        .collect();
    if counters(NAMES).iter().any(|count| *count > 0) {
        found.push((NAMES, "(others)".to_owned()));
    }
    found
}

/// What was counted for a type, in the order of [`Counter`].
pub fn counters(kind: usize) -> [u64; COUNTERS] {
    let counted = &heading().counters.types[kind.min(NAMES)];
    std::array::from_fn(|index| counted[index].load(Ordering::Relaxed))
}

/// How often statements went past, by reason; and since when all of it is counted.
pub fn resets() -> (Vec<(&'static str, u64)>, i64) {
    let counters = &heading().counters;
    let bypasses = Bypass::ALL
        .iter()
        .map(|why| {
            let count = counters.bypasses[*why as usize].load(Ordering::Relaxed);
            (why.name(), count)
        })
        .filter(|(_, count)| *count > 0)
        .collect();
    (bypasses, counters.since.load(Ordering::Relaxed))
}

pub fn reset_counters() {
    let counters = &heading().counters;
    for counter in counters
        .bypasses
        .iter()
        .chain(counters.types.iter().flatten())
    {
        counter.store(0, Ordering::Relaxed);
    }
    counters.since.store(clock::wall(), Ordering::Relaxed);
}
