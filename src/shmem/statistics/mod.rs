//! Statistics of statements. Each backend counts in a shard of its own, which nobody else writes: a handful of entries, found by
//! the statement's id, with plain stores between two steps of a sequence number. What has been counted there moves on to the table
//! of known statements, which all share, when somebody looks at it, when the launcher comes by, or when the backend needs the room:
//! each entry of a shard keeps what was moved already, so that counts only ever grow and nothing waits for its owner.
//!
//! Locks: one for each part of the table, one for every so many shards (whoever moves their counts or makes room in them), one for
//! the base that totals are counted from. None is taken while another is held.

mod known;
mod shard;
mod totals;

pub use known::{Statistics, evicted, snapshot};
pub use shard::{Mine, admit, count, learn_again, running, sample_waits};
pub use totals::totals;

use crate::pg::clock;
use crate::pg::shmem::{self, Area, Held};
use crate::settings;
use audit_db_core::histogram::BUCKETS;
use pgrx::{pg_guard, pg_shmem_init, pg_sys};
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};

/// Sums that are kept of each statement.
pub const SUMS: usize = 12;

/// What one of the sums is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Sum {
    Calls,
    Errors,
    Nanoseconds,
    PlanningNanoseconds,
    Rows,
    SharedHit,
    SharedRead,
    SharedDirtied,
    SharedWritten,
    TempRead,
    TempWritten,
    WalBytes,
}

/// What statistics are kept for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    pub query: u64,
    pub database: u32,
    pub role: u32,
    /// Whether a client sent it, or a function ran it.
    pub top_level: bool,
}

impl Key {
    fn hash(self) -> u64 {
        // Ids are hashes already; the rest is spread by an odd constant (Fibonacci hashing).
        let rest = self.who() << 1 | u64::from(self.top_level);
        (self.query ^ rest.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    /// Database and role.
    #[inline]
    fn who(self) -> u64 {
        u64::from(self.database) << 32 | u64::from(self.role)
    }

    /// Level and age.
    #[inline]
    fn edition(self, generation: u32) -> u64 {
        u64::from(generation) << 1 | u64::from(self.top_level)
    }
}

/// One execution.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// `Calls` is 1; `Errors` is 1 where it failed.
    pub sums: [u64; SUMS],
    /// That of its duration in a histogram.
    pub bucket: usize,
    /// When the client's message came, in microseconds of the server's epoch.
    pub at: u64,
}

/// What came of counting one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    Done,
    /// But the table has forgotten the statement's text.
    Forgotten,
    /// The backend has no entry for the statement.
    Unknown,
}

/// Parts of the table of known statements.
const PARTS: usize = 16;
/// Locks of shards.
const SHARD_LOCKS: usize = 16;
const BASE_LOCK: usize = PARTS + SHARD_LOCKS;
const LOCKS: u16 = BASE_LOCK as u16 + 1;

/// What stands before the shards.
#[repr(C)]
struct Heading {
    /// Counts resets of the statistics of statements: entries of an older one count no more.
    generation: AtomicU32,
    evicted: AtomicU32,
    statements_reset: AtomicI64,
    totals_reset: AtomicI64,
    base: totals::Base,
}

// SAFETY: the name is ours alone; what is measured is what is filled.
static AREA: Area = unsafe { Area::new(c"audit_db statistics", size, LOCKS, fill) };

pub(super) fn request() {
    pg_shmem_init!(AREA = ());
}

const fn aligned(size: usize) -> usize {
    size.next_multiple_of(64)
}

fn shards_at() -> usize {
    aligned(size_of::<Heading>())
}

fn known_at() -> usize {
    shards_at() + shmem::max_backends() * shard::SIZE
}

fn size() -> usize {
    known_at() + known::size(settings::query_stats_max())
}

unsafe fn fill(address: *mut u8) {
    // SAFETY: by contract as large as measured. All of it is integers, for which zero is valid; a generation of zero is that of
    // entries that were never used.
    unsafe {
        address.write_bytes(0, size());
        let heading = &*address.cast::<Heading>();
        heading.generation.store(1, Ordering::Relaxed);
        let now = clock::wall();
        heading.statements_reset.store(now, Ordering::Relaxed);
        heading.totals_reset.store(now, Ordering::Relaxed);
    }
}

fn heading() -> &'static Heading {
    // SAFETY: the area begins with it and stays mapped; what is in it is atomic, but for the base, which has a lock.
    unsafe { &*AREA.address().cast::<Heading>() }
}

fn lock_part(part: usize) -> Held {
    AREA.lock_at(part)
}

fn lock_shards(place: usize) -> Held {
    AREA.lock_at(PARTS + place % SHARD_LOCKS)
}

/// When the statistics of statements, and the totals, were reset last; microseconds of the server's epoch.
pub fn resets() -> (i64, i64) {
    let heading = heading();
    (
        heading.statements_reset.load(Ordering::Relaxed),
        heading.totals_reset.load(Ordering::Relaxed),
    )
}

/// Forgets the statistics of all statements.
pub fn reset_statements() {
    let heading = heading();
    heading.generation.fetch_add(1, Ordering::AcqRel);
    heading.evicted.store(0, Ordering::Relaxed);
    known::clear();
    heading
        .statements_reset
        .store(clock::wall(), Ordering::Relaxed);
}

/// Counts totals from here on.
pub fn reset_totals() {
    totals::rebase();
    heading()
        .totals_reset
        .store(clock::wall(), Ordering::Relaxed);
}

/// Moves what all backends have counted to the table of known statements.
pub fn merge() {
    for place in 0..shmem::max_backends() {
        shard::merge(place);
    }
}
