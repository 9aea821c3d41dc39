//! The table of known statements: what all backends have counted, and the statements' texts. It has a fixed number of places in
//! buckets; the least used of a bucket makes room. Each part of it has a lock of its own.

use super::shard::Delta;
use super::{AREA, BUCKETS, Key, PARTS, SUMS, Sum, heading, known_at, lock_part};
use crate::settings;
use audit_db_core::histogram::quantile;
use audit_db_core::statement_text::{floor, shorten};
use std::sync::atomic::Ordering;

/// Places of a bucket.
const WAYS: usize = 16;
/// Longest text that is kept.
pub const TEXT_BYTES: usize = 1_024;
/// How much of its use an entry keeps when another one makes room: who was used much long ago goes in the end.
const AGING: f32 = 0.95;

#[repr(C)]
struct Known {
    /// 0: the place is free.
    generation: u32,
    usage: f32,
    key_query: u64,
    key_database: u32,
    key_role: u32,
    key_top_level: u32,
    text_length: u32,
    sums: [u64; SUMS],
    least: u64,
    most: u64,
    first_seen: u64,
    last_seen: u64,
    histogram: [u32; BUCKETS],
    text: [u8; TEXT_BYTES],
}

/// The statistics of one statement.
#[derive(Clone, Debug)]
pub struct Statistics {
    pub key: Key,
    pub text: Option<String>,
    pub sums: [u64; SUMS],
    pub least: u64,
    pub most: u64,
    /// Microseconds of the server's epoch.
    pub first_seen: i64,
    pub last_seen: i64,
    /// Nanoseconds.
    pub p50: f64,
    pub p95: f64,
    pub p99: f64,
}

impl Statistics {
    pub const fn sum(&self, sum: Sum) -> u64 {
        self.sums[sum as usize]
    }
}

/// Buckets of a part.
fn buckets(statements: usize) -> usize {
    statements.div_ceil(PARTS * WAYS).max(1)
}

pub(super) fn size(statements: usize) -> usize {
    PARTS * buckets(statements) * WAYS * size_of::<Known>()
}

fn place_of(key: &Key) -> (usize, usize) {
    let hash = key.hash();
    let part = (hash >> 60) as usize % PARTS;
    let bucket = ((hash >> 20) as u32 as usize) % buckets(settings::query_stats_max());
    (part, bucket)
}

/// A bucket, with whose part's lock held nobody else looks at it.
///
/// # Safety
/// The lock of the part must be held as long as the result is used.
unsafe fn bucket<'a>(part: usize, bucket: usize) -> &'a mut [Known] {
    let buckets = buckets(settings::query_stats_max());
    let first = (part * buckets + bucket) * WAYS;
    // SAFETY: within the area; by contract nobody else has a reference.
    unsafe {
        std::slice::from_raw_parts_mut(
            AREA.address().add(known_at()).cast::<Known>().add(first),
            WAYS,
        )
    }
}

impl Known {
    fn is(&self, key: &Key, generation: u32) -> bool {
        self.generation == generation && self.key() == *key
    }

    const fn key(&self) -> Key {
        Key {
            query: self.key_query,
            database: self.key_database,
            role: self.key_role,
            top_level: self.key_top_level != 0,
        }
    }

    fn begin(&mut self, key: &Key, generation: u32) {
        self.generation = generation;
        self.usage = 1.0;
        self.key_query = key.query;
        self.key_database = key.database;
        self.key_role = key.role;
        self.key_top_level = u32::from(key.top_level);
        self.text_length = 0;
        self.sums = [0; SUMS];
        self.least = u64::MAX;
        self.most = 0;
        self.first_seen = u64::MAX;
        self.last_seen = 0;
        self.histogram = [0; BUCKETS];
    }

    fn statistics(&self) -> Statistics {
        let counts: [u64; BUCKETS] = std::array::from_fn(|index| self.histogram[index].into());
        let part = |part| quantile(&counts, part, self.least, self.most).unwrap_or(0.0);
        let text = &self.text[..(self.text_length as usize).min(TEXT_BYTES)];
        Statistics {
            key: self.key(),
            text: (!text.is_empty()).then(|| String::from_utf8_lossy(text).into_owned()),
            sums: self.sums,
            least: self.least,
            most: self.most,
            first_seen: self.first_seen as i64,
            last_seen: self.last_seen as i64,
            p50: part(0.5),
            p95: part(0.95),
            p99: part(0.99),
        }
    }
}

/// The entry of a statement, made now where there is none. Under the part's lock.
fn find_or_make<'a>(bucket: &'a mut [Known], key: &Key, generation: u32) -> &'a mut Known {
    let found = bucket.iter().position(|known| known.is(key, generation));
    let index = found.unwrap_or_else(|| {
        let free = bucket
            .iter()
            .position(|known| known.generation != generation);
        let index = free.unwrap_or_else(|| {
            heading().evicted.fetch_add(1, Ordering::Relaxed);
            let mut least = 0;
            for index in 0..bucket.len() {
                bucket[index].usage *= AGING;
                if bucket[index].usage < bucket[least].usage {
                    least = index;
                }
            }
            least
        });
        bucket[index].begin(key, generation);
        index
    });
    &mut bucket[index]
}

/// Whether a statement is here.
pub fn knows(key: &Key) -> bool {
    let generation = heading().generation.load(Ordering::Relaxed);
    let (part, index) = place_of(key);
    let _held = lock_part(part);
    // SAFETY: the part's lock is held.
    unsafe { bucket(part, index) }
        .iter()
        .any(|known| known.is(key, generation))
}

/// Makes room for a statement, with its text.
pub fn learn(key: &Key, text: &str, generation: u32) {
    // The scanner of a session with other settings may have been able to read nothing.
    let text = if text.is_empty() { "…" } else { text };
    let text = shorten(text, TEXT_BYTES);
    let text = &text[..floor(&text, TEXT_BYTES)];
    let (part, index) = place_of(key);
    let _held = lock_part(part);
    // SAFETY: the part's lock is held.
    let known = find_or_make(unsafe { bucket(part, index) }, key, generation);
    known.text[..text.len()].copy_from_slice(text.as_bytes());
    known.text_length = text.len() as u32;
}

/// Adds what a backend has counted. `false`: the statement has made room for others meanwhile, and its counts with it.
#[must_use]
pub(super) fn add(delta: &Delta, generation: u32) -> bool {
    let (part, index) = place_of(&delta.key);
    let _held = lock_part(part);
    // SAFETY: the part's lock is held.
    let Some(known) = unsafe { bucket(part, index) }
        .iter_mut()
        .find(|known| known.is(&delta.key, generation))
    else {
        return false;
    };
    for (sum, more) in known.sums.iter_mut().zip(&delta.sums) {
        *sum = sum.wrapping_add(*more);
    }
    for (count, more) in known.histogram.iter_mut().zip(&delta.histogram) {
        *count = count.saturating_add(*more);
    }
    known.usage += delta.sums[Sum::Calls as usize] as f32;
    known.least = known.least.min(delta.least);
    known.most = known.most.max(delta.most);
    known.first_seen = known.first_seen.min(delta.first_seen);
    known.last_seen = known.last_seen.max(delta.last_seen);
    true
}

/// All statements that were counted.
pub fn snapshot() -> Vec<Statistics> {
    let generation = heading().generation.load(Ordering::Relaxed);
    let mut all = Vec::new();
    for part in 0..PARTS {
        for index in 0..buckets(settings::query_stats_max()) {
            // Memory is got before the lock is.
            let mut copies: Vec<Known> = Vec::with_capacity(WAYS);
            {
                let _held = lock_part(part);
                // SAFETY: the part's lock is held; the entries are plain data.
                unsafe {
                    let bucket = bucket(part, index);
                    std::ptr::copy_nonoverlapping(bucket.as_ptr(), copies.as_mut_ptr(), WAYS);
                    copies.set_len(WAYS);
                }
            }
            all.extend(
                copies
                    .iter()
                    .filter(|known| {
                        known.generation == generation && known.sums[Sum::Calls as usize] > 0
                    })
                    .map(Known::statistics),
            );
        }
    }
    all
}

/// How many statements have made room for others since the last reset.
pub fn evicted() -> u32 {
    heading().evicted.load(Ordering::Relaxed)
}

/// Frees all places.
pub(super) fn clear() {
    for part in 0..PARTS {
        for index in 0..buckets(settings::query_stats_max()) {
            let _held = lock_part(part);
            // SAFETY: the part's lock is held.
            for known in unsafe { bucket(part, index) } {
                known.generation = 0;
            }
        }
    }
}
