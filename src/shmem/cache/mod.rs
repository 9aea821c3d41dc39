//! The result cache in shared memory: who has written what (`rings`), the stored results (`store`), and what is counted.
//!
//! Locks: one for each part of the store, one for the names of types. None is taken while another is held.

mod counters;
mod rings;
mod store;

pub use counters::{
    Bypass, Counter, count, count_bypass, counters, reset_counters, resets, type_index, type_names,
};
pub use rings::{announce, catalog_slot, is_awake, roles_slot, slot_of, view, wake};
pub use store::{
    New, Put, clear, entries, find, for_each, longest_payload, put, remove, remove_if, used_bytes,
};

use crate::pg::clock;
use crate::pg::shmem::Area;
use crate::settings;
use pgrx::{pg_guard, pg_shmem_init, pg_sys};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

/// What stands before everything else.
#[repr(C)]
struct Heading {
    /// See `rings`.
    awake_since: AtomicU64,
    /// Makes the hashes of keys different in each run of the server.
    secret: AtomicU64,
    chunks: store::Chunks,
    counters: counters::Counters,
}

const TYPES_LOCK: usize = store::PARTS;
const LOCKS: u16 = TYPES_LOCK as u16 + 1;

// SAFETY: the name is ours alone; what is measured is what is filled.
static AREA: Area = unsafe { Area::new(c"audit_db cache", size, LOCKS, fill) };

pub(super) fn request() {
    pg_shmem_init!(AREA = ());
}

const fn aligned(size: usize) -> usize {
    size.next_multiple_of(128)
}

fn slots_at() -> usize {
    aligned(size_of::<Heading>())
}

fn store_at() -> usize {
    slots_at() + aligned(rings::SLOTS * size_of::<rings::Slot>())
}

fn size() -> usize {
    store_at() + store::size(settings::cache_max_entries(), settings::cache_size())
}

unsafe fn fill(address: *mut u8) {
    // SAFETY: by contract as large as measured. All of it is integers, for which zero is valid; the store says what else it needs.
    unsafe {
        address.write_bytes(0, size());
        let heading = &*address.cast::<Heading>();
        heading.secret.store(
            RandomState::new().hash_one(clock::wall()),
            Ordering::Relaxed,
        );
        heading
            .counters
            .since
            .store(clock::wall(), Ordering::Relaxed);
        store::fill(address.add(store_at()), &heading.chunks);
    }
}

fn heading() -> &'static Heading {
    // SAFETY: the area begins with it and stays mapped; what is in it is atomic, or has a lock.
    unsafe { &*AREA.address().cast::<Heading>() }
}

fn slots() -> &'static [rings::Slot; rings::SLOTS] {
    // SAFETY: within the area; all of it is atomic.
    unsafe { &*AREA.address().add(slots_at()).cast() }
}

/// Goes into the hash of every key.
pub fn secret() -> u64 {
    heading().secret.load(Ordering::Relaxed)
}
