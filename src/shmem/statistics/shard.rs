//! What one backend has counted.

use super::{
    AREA, BUCKETS, Counted, Key, SHARD_LOCKS, SUMS, Sample, Sum, heading, known, lock_shards,
    shards_at,
};
use crate::pg::{clock, shmem};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

const USUAL: [usize; 4] = [
    Sum::Calls as usize,
    Sum::Nanoseconds as usize,
    Sum::Rows as usize,
    Sum::SharedHit as usize,
];
const UNUSUAL: [usize; SUMS - USUAL.len()] = [
    Sum::Errors as usize,
    Sum::PlanningNanoseconds as usize,
    Sum::SharedRead as usize,
    Sum::SharedDirtied as usize,
    Sum::SharedWritten as usize,
    Sum::TempRead as usize,
    Sum::TempWritten as usize,
    Sum::WalBytes as usize,
];
/// Entries lie in sets: one that is looked for can only be in one of these places.
const WAYS: usize = 4;
const SETS: usize = 8;
const ENTRIES: usize = SETS * WAYS;
/// Wait events of a running statement that are told apart.
pub const WAITS: usize = 8;

pub(super) const SIZE: usize = super::aligned(size_of::<Shard>());

/// Numbers that only their owner writes, and others read while he does.
#[inline]
fn add(number: &AtomicU64, more: u64) {
    number.store(
        number.load(Ordering::Relaxed).wrapping_add(more),
        Ordering::Relaxed,
    );
}

#[inline]
fn add_32(number: &AtomicU32, more: u32) {
    number.store(
        number.load(Ordering::Relaxed).wrapping_add(more),
        Ordering::Relaxed,
    );
}

#[repr(C)]
pub(super) struct Shard {
    pub statements: AtomicU64,
    pub failed: AtomicU64,
    pub slow: AtomicU64,
    /// Not followed because too many were open at a time.
    pub untracked: AtomicU64,
    pub nanoseconds: AtomicU64,
    pub histogram: [AtomicU64; BUCKETS],
    /// Since when the client's statement runs, by the monotonic clock; 0: none does.
    running_since: AtomicU64,
    pid: AtomicU32,
    database: AtomicU32,
    role: AtomicU32,
    /// Written by the launcher: the statement that was sampled, by its start, and samples as event << 32 | count.
    sampled: AtomicU64,
    waits: [AtomicU64; WAITS],
    entries: [Entry; ENTRIES],
}

#[repr(C)]
struct Entry {
    /// Odd while its owner writes.
    sequence: AtomicU32,
    /// Written by whoever moves counts: the statement is no longer known.
    forgotten: AtomicU32,
    query: AtomicU64,
    /// As [`Key::who`] and [`Key::edition`] say.
    who: AtomicU64,
    edition: AtomicU64,
    sums: [AtomicU64; SUMS],
    least: AtomicU64,
    most: AtomicU64,
    first_seen: AtomicU64,
    last_seen: AtomicU64,
    histogram: [AtomicU32; BUCKETS],
    /// What was moved to the table of known statements already. Under the shard's lock.
    moved: [AtomicU64; SUMS],
    moved_histogram: [AtomicU32; BUCKETS],
}

/// What an entry has counted since it was moved last.
#[derive(Clone, Copy)]
pub(super) struct Delta {
    pub key: Key,
    pub sums: [u64; SUMS],
    pub histogram: [u32; BUCKETS],
    pub least: u64,
    pub most: u64,
    pub first_seen: u64,
    pub last_seen: u64,
}

pub(super) fn at(place: usize) -> &'static Shard {
    assert!(place < shmem::max_backends());
    // SAFETY: within the area, which stays mapped; all of it is atomic.
    unsafe {
        &*AREA
            .address()
            .add(shards_at() + place * SIZE)
            .cast::<Shard>()
    }
}

impl Entry {
    #[inline]
    fn is(&self, key: &Key, generation: u32) -> bool {
        self.query.load(Ordering::Relaxed) == key.query
            && self.who.load(Ordering::Relaxed) == key.who()
            && self.edition.load(Ordering::Relaxed) == key.edition(generation)
    }

    fn is_of(&self, generation: u32) -> bool {
        self.edition.load(Ordering::Relaxed) >> 1 == u64::from(generation)
    }

    /// Readers see all of what changes until the [`Self::end`] or none of it.
    #[inline(always)]
    fn begin(&self) -> u32 {
        let sequence = self.sequence.load(Ordering::Relaxed).wrapping_add(1);
        self.sequence.store(sequence, Ordering::Relaxed);
        fence(Ordering::Release);
        sequence
    }

    #[inline(always)]
    fn end(&self, sequence: u32) {
        self.sequence
            .store(sequence.wrapping_add(1), Ordering::Release);
    }

    #[inline(always)]
    fn add(&self, sample: &Sample) {
        let nanoseconds = sample.sums[Sum::Nanoseconds as usize];
        let sequence = self.begin();
        // What most statements have, and what few have.
        for index in USUAL {
            add(&self.sums[index], sample.sums[index]);
        }
        let mut rest = 0;
        for index in UNUSUAL {
            rest |= sample.sums[index];
        }
        if rest != 0 {
            for index in UNUSUAL {
                add(&self.sums[index], sample.sums[index]);
            }
        }
        add_32(&self.histogram[sample.bucket], 1);
        if nanoseconds < self.least.load(Ordering::Relaxed) {
            self.least.store(nanoseconds, Ordering::Relaxed);
        }
        if nanoseconds > self.most.load(Ordering::Relaxed) {
            self.most.store(nanoseconds, Ordering::Relaxed);
        }
        self.last_seen.store(sample.at, Ordering::Relaxed);
        self.end(sequence);
    }

    /// Begins anew for another statement. Under the shard's lock.
    fn install(&self, key: &Key, generation: u32, now: u64) {
        let sequence = self.begin();
        self.query.store(key.query, Ordering::Relaxed);
        self.who.store(key.who(), Ordering::Relaxed);
        self.edition
            .store(key.edition(generation), Ordering::Relaxed);
        self.forgotten.store(0, Ordering::Relaxed);
        for number in self.sums.iter().chain(&self.moved) {
            number.store(0, Ordering::Relaxed);
        }
        for number in self.histogram.iter().chain(&self.moved_histogram) {
            number.store(0, Ordering::Relaxed);
        }
        self.least.store(u64::MAX, Ordering::Relaxed);
        self.most.store(0, Ordering::Relaxed);
        self.first_seen.store(now, Ordering::Relaxed);
        self.last_seen.store(now, Ordering::Relaxed);
        self.end(sequence);
    }

    fn has_news(&self) -> bool {
        let calls = Sum::Calls as usize;
        self.sums[calls].load(Ordering::Relaxed) != self.moved[calls].load(Ordering::Relaxed)
    }

    /// What is new, or nothing where the owner is just writing. Under the shard's lock.
    fn take(&self, generation: u32) -> Option<Delta> {
        for _ in 0..100 {
            let before = self.sequence.load(Ordering::Acquire);
            if before % 2 == 1 {
                std::hint::spin_loop();
                continue;
            }
            let sums: [u64; SUMS] = std::array::from_fn(|i| self.sums[i].load(Ordering::Relaxed));
            let histogram: [u32; BUCKETS] =
                std::array::from_fn(|i| self.histogram[i].load(Ordering::Relaxed));
            let who = self.who.load(Ordering::Relaxed);
            let edition = self.edition.load(Ordering::Relaxed);
            let mut delta = Delta {
                key: Key {
                    query: self.query.load(Ordering::Relaxed),
                    database: (who >> 32) as u32,
                    role: who as u32,
                    top_level: edition & 1 != 0,
                },
                sums,
                histogram,
                least: self.least.load(Ordering::Relaxed),
                most: self.most.load(Ordering::Relaxed),
                first_seen: self.first_seen.load(Ordering::Relaxed),
                last_seen: self.last_seen.load(Ordering::Relaxed),
            };
            fence(Ordering::Acquire);
            if self.sequence.load(Ordering::Relaxed) != before {
                continue;
            }
            if edition >> 1 != u64::from(generation) {
                return None;
            }
            for (index, sum) in delta.sums.iter_mut().enumerate() {
                let moved = self.moved[index].swap(*sum, Ordering::Relaxed);
                *sum = sum.wrapping_sub(moved);
            }
            for (index, count) in delta.histogram.iter_mut().enumerate() {
                let moved = self.moved_histogram[index].swap(*count, Ordering::Relaxed);
                *count = count.wrapping_sub(moved);
            }
            return Some(delta);
        }
        None
    }
}

/// Moves what a backend has counted to the table of known statements.
pub(super) fn merge(place: usize) {
    let generation = heading().generation.load(Ordering::Acquire);
    // One at a time: the lock is held for the time of a copy.
    for entry in &at(place).entries {
        if !entry.is_of(generation) || !entry.has_news() {
            continue;
        }
        let delta = {
            let _held = lock_shards(place);
            entry.take(generation)
        };
        if let Some(delta) = delta
            && !known::add(&delta, generation)
        {
            entry.forgotten.store(1, Ordering::Relaxed);
        }
    }
}

/// Counts an execution in this backend's shard. Its caller says what the statement was where that is not known.
#[inline(always)]
pub fn count(mine: Mine, key: &Key, sample: &Sample) -> Counted {
    let generation = heading().generation.load(Ordering::Relaxed);
    for entry in set_of(mine.shard, key) {
        if entry.is(key, generation) {
            entry.add(sample);
            return if entry.forgotten.load(Ordering::Relaxed) == 0 {
                Counted::Done
            } else {
                Counted::Forgotten
            };
        }
    }
    Counted::Unknown
}

#[inline]
fn set_of<'a>(shard: &'a Shard, key: &Key) -> &'a [Entry] {
    let set = (key.hash() >> 61) as usize * WAYS;
    &shard.entries[set..set + WAYS]
}

/// Tells the table of a statement that it has forgotten.
pub fn learn_again(mine: Mine, key: &Key, text: &str) {
    let generation = heading().generation.load(Ordering::Relaxed);
    for entry in set_of(mine.shard, key) {
        if entry.is(key, generation) {
            entry.forgotten.store(0, Ordering::Relaxed);
        }
    }
    known::learn(key, text, generation);
}

/// Makes room for a statement, and counts its execution. `text` is asked for where the table does not know the statement either.
pub fn admit(mine: Mine, key: &Key, sample: &Sample, text: impl FnOnce() -> String) {
    let generation = heading().generation.load(Ordering::Relaxed);
    let place = mine.place;
    if !known::knows(key) {
        known::learn(key, &text(), generation);
    }
    let set = set_of(at(place), key);
    let is_free = |entry: &&Entry| !entry.is_of(generation) || !entry.has_news();
    if !set.iter().any(|entry| is_free(&entry)) {
        // All at once: the next ones find room without a lock of the table.
        merge(place);
    }
    let Some(entry) = set
        .iter()
        .filter(is_free)
        .min_by_key(|entry| entry.last_seen.load(Ordering::Relaxed))
        .or_else(|| set.first())
    else {
        return;
    };
    {
        let _held = lock_shards(place);
        entry.install(key, generation, sample.at);
    }
    entry.add(sample);
}

/// A statement of a client that is running.
#[derive(Clone, Copy, Debug)]
pub struct Running {
    pub pid: i32,
    pub database: u32,
    pub role: u32,
    pub nanoseconds: u64,
    /// Wait event of the server (0: none, it ran) and number of samples.
    pub waits: [(u32, u32); WAITS],
}

impl Shard {
    pub fn begin(&self, now: u64, role: u32) {
        self.role.store(role, Ordering::Relaxed);
        self.running_since.store(now, Ordering::Release);
    }

    pub fn end(&self) {
        self.running_since.store(0, Ordering::Relaxed);
    }

    /// What the running statement has waited for, as far as it was sampled.
    fn waits(&self, since: u64) -> [(u32, u32); WAITS] {
        if self.sampled.load(Ordering::Acquire) != since {
            return [(0, 0); WAITS];
        }
        std::array::from_fn(|index| {
            let wait = self.waits[index].load(Ordering::Relaxed);
            ((wait >> 32) as u32, wait as u32)
        })
    }

    fn sample(&self, since: u64, event: u32) {
        if self.sampled.load(Ordering::Relaxed) != since {
            for wait in &self.waits {
                wait.store(0, Ordering::Relaxed);
            }
            self.sampled.store(since, Ordering::Release);
        }
        for wait in &self.waits {
            let seen = wait.load(Ordering::Relaxed);
            if seen as u32 == 0 || (seen >> 32) as u32 == event {
                let count = (seen as u32).saturating_add(1);
                wait.store(u64::from(event) << 32 | u64::from(count), Ordering::Relaxed);
                return;
            }
        }
    }
}

/// Looks what every statement waits for that has been running for `least` nanoseconds. Returns whether there is one.
pub fn sample_waits(least: u64) -> bool {
    let now = clock::monotonic();
    let mut any = false;
    for place in 0..shmem::max_backends() {
        let shard = at(place);
        let since = shard.running_since.load(Ordering::Acquire);
        if since != 0 && now.saturating_sub(since) >= least {
            any = true;
            if let Some(event) = shmem::wait_event(place, shard.pid.load(Ordering::Relaxed) as i32)
            {
                shard.sample(since, event);
            }
        }
    }
    any
}

/// Statements of clients that have been running for `least` nanoseconds.
pub fn running(least: u64) -> Vec<Running> {
    let now = clock::monotonic();
    (0..shmem::max_backends())
        .filter_map(|place| {
            let shard = at(place);
            let since = shard.running_since.load(Ordering::Acquire);
            let pid = shard.pid.load(Ordering::Relaxed) as i32;
            let nanoseconds = now.saturating_sub(since);
            (since != 0 && nanoseconds >= least && shmem::wait_event(place, pid).is_some()).then(
                || Running {
                    pid,
                    database: shard.database.load(Ordering::Relaxed),
                    role: shard.role.load(Ordering::Relaxed),
                    nanoseconds,
                    waits: shard.waits(since),
                },
            )
        })
        .collect()
}

/// The shard of this backend.
#[derive(Clone, Copy)]
pub struct Mine {
    place: usize,
    shard: &'static Shard,
}

impl Mine {
    /// `None`: this process has no place among those that can be connected to a database.
    pub fn new(pid: i32, database: u32) -> Option<Self> {
        let place = shmem::my_place_if_any()?;
        if place >= shmem::max_backends() {
            return None;
        }
        let shard = at(place);
        // What the one before left running, if it was killed.
        shard.end();
        shard.pid.store(pid as u32, Ordering::Relaxed);
        shard.database.store(database, Ordering::Relaxed);
        Some(Self { place, shard })
    }

    #[inline]
    pub fn begin(self, now: u64, role: u32) {
        self.shard.begin(now, role);
    }

    #[inline]
    pub fn end(self) {
        self.shard.end();
    }

    pub fn waits(self, since: u64) -> [(u32, u32); WAITS] {
        self.shard.waits(since)
    }

    /// Adds a statement to the totals.
    #[inline]
    pub fn total(self, nanoseconds: u64, bucket: usize, failed: bool) {
        add(&self.shard.statements, 1);
        add(&self.shard.nanoseconds, nanoseconds);
        add(&self.shard.histogram[bucket], 1);
        if failed {
            add(&self.shard.failed, 1);
        }
    }

    pub fn note_slow(self) {
        add(&self.shard.slow, 1);
    }

    pub fn note_untracked(self) {
        add(&self.shard.untracked, 1);
    }
}

const _: () = assert!(SHARD_LOCKS > 0 && SETS == 8);
