//! What all backends have done, whatever became of the statistics of single statements.

use super::{AREA, BASE_LOCK, BUCKETS, heading, shard};
use crate::pg::shmem;
use audit_db_core::histogram::{LONGEST, quantile};
use std::cell::UnsafeCell;
use std::sync::atomic::Ordering;

/// Statements of clients since the last reset.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Totals {
    pub statements: u64,
    pub failed: u64,
    pub slow: u64,
    pub untracked: u64,
    pub nanoseconds: u64,
    histogram: [u64; BUCKETS],
}

/// What the totals were at the last reset. Under its lock.
#[repr(transparent)]
pub(super) struct Base(UnsafeCell<Totals>);

// SAFETY: only touched under its lock.
unsafe impl Sync for Base {}

impl Totals {
    const NONE: Self = Self {
        statements: 0,
        failed: 0,
        slow: 0,
        untracked: 0,
        nanoseconds: 0,
        histogram: [0; BUCKETS],
    };

    /// Since the server's start.
    fn all() -> Self {
        let mut all = Self::NONE;
        for place in 0..shmem::max_backends() {
            let shard = shard::at(place);
            // A backend counts the statement first, then its failure.
            all.failed += shard.failed.load(Ordering::Acquire);
            all.statements += shard.statements.load(Ordering::Relaxed);
            all.slow += shard.slow.load(Ordering::Relaxed);
            all.untracked += shard.untracked.load(Ordering::Relaxed);
            all.nanoseconds += shard.nanoseconds.load(Ordering::Relaxed);
            for (sum, count) in all.histogram.iter_mut().zip(&shard.histogram) {
                *sum += count.load(Ordering::Relaxed);
            }
        }
        all
    }

    fn since(mut self, base: &Self) -> Self {
        self.statements = self.statements.saturating_sub(base.statements);
        self.failed = self.failed.saturating_sub(base.failed);
        self.slow = self.slow.saturating_sub(base.slow);
        self.untracked = self.untracked.saturating_sub(base.untracked);
        self.nanoseconds = self.nanoseconds.saturating_sub(base.nanoseconds);
        for (count, base) in self.histogram.iter_mut().zip(&base.histogram) {
            *count = count.saturating_sub(*base);
        }
        self
    }

    /// In nanoseconds; `None`: there was no statement.
    pub fn quantile(&self, part: f64) -> Option<f64> {
        quantile(&self.histogram, part, 0, LONGEST)
    }
}

pub fn totals() -> Totals {
    let base = {
        let _held = AREA.lock_at(BASE_LOCK);
        // SAFETY: its lock is held.
        unsafe { *heading().base.0.get() }
    };
    Totals::all().since(&base)
}

/// Counts from here on.
pub(super) fn rebase() {
    let now = Totals::all();
    let _held = AREA.lock_at(BASE_LOCK);
    // SAFETY: its lock is held.
    unsafe { *heading().base.0.get() = now };
}
