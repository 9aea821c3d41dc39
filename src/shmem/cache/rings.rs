//! Who has written what lately: for every relation, or a few of them that share a place, the last transactions that announced before
//! their commit that they had written it. What follows from that is in `audit_db_core::validity`.

use super::heading;
use audit_db_core::validity::{FullId, Ring, Snapshot, View};
use std::sync::atomic::{AtomicU64, Ordering, fence};

const WRITERS: usize = 6;
pub(super) const SLOTS: usize = 16_384;
/// How often a reader looks again while somebody writes.
const ATTEMPTS: u32 = 1_000;
/// A number that stands for everything of a database that has no rows: what names and functions mean, and who may do what.
const CATALOG: u32 = 1;

/// A cache line.
#[repr(C, align(64))]
pub(super) struct Slot {
    /// Twice the number of announcements; odd while one is written.
    sequence: AtomicU64,
    forgotten: AtomicU64,
    writers: [AtomicU64; WRITERS],
}

const _: () = assert!(size_of::<Slot>() == 64);

/// The place of a relation.
pub fn slot_of(database: u32, relation: u32) -> u32 {
    let key = u64::from(database) << 32 | u64::from(relation);
    // Fibonacci hashing: the highest bits are mixed best.
    (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - SLOTS.ilog2())) as u32
}

/// The place for what has no rows, in a database.
pub fn catalog_slot(database: u32) -> u32 {
    slot_of(database, CATALOG)
}

/// The same for all databases: roles.
pub fn roles_slot() -> u32 {
    slot_of(0, CATALOG)
}

/// Nothing was ever stored: nobody needs to announce anything.
const ASLEEP: u64 = 0;
/// Somebody wants to store something; from when on announcements are complete is not known yet.
const WAKING: u64 = u64::MAX;

/// Whether writers announce what they write. Asked at every transaction.
#[inline]
pub fn is_awake() -> bool {
    heading().awake_since.load(Ordering::SeqCst) != ASLEEP
}

/// Announcements are complete for transactions from this id on. Snapshots that see older ones running cannot be judged: these may
/// have looked whether anybody wants to know before somebody did.
fn complete_from() -> Option<FullId> {
    match heading().awake_since.load(Ordering::SeqCst) {
        ASLEEP | WAKING => None,
        from => Some(from),
    }
}

/// Has writers announce from now on. `next` reads the next transaction id.
pub fn wake(next: impl FnOnce() -> FullId) {
    let awake = &heading().awake_since;
    if awake
        .compare_exchange(ASLEEP, WAKING, Ordering::SeqCst, Ordering::SeqCst)
        .is_ok()
    {
        // Whoever has not seen this gets, or has, a lower id.
        awake.store(next(), Ordering::SeqCst);
    }
}

fn slot(index: u32) -> &'static Slot {
    &super::slots()[index as usize % SLOTS]
}

/// A transaction that has written what is in this place is about to commit. Waits for nobody but others who do the same.
pub fn announce(index: u32, writer: FullId) {
    let slot = slot(index);
    let mut turns = 0u32;
    let sequence = loop {
        let sequence = slot.sequence.load(Ordering::Relaxed);
        if sequence.is_multiple_of(2)
            && slot
                .sequence
                .compare_exchange_weak(sequence, sequence + 1, Ordering::Acquire, Ordering::Relaxed)
                .is_ok()
        {
            break sequence;
        }
        turns += 1;
        if turns.is_multiple_of(1_000) {
            // The other one may wait for this processor.
            std::thread::yield_now();
        } else {
            std::hint::spin_loop();
        }
    };
    fence(Ordering::Release);
    let mut ring = load(slot, sequence);
    ring.announce(writer);
    slot.forgotten.store(ring.forgotten, Ordering::Relaxed);
    for (place, writer) in slot.writers.iter().zip(ring.writers) {
        place.store(writer, Ordering::Relaxed);
    }
    slot.sequence.store(sequence + 2, Ordering::Release);
}

fn load(slot: &Slot, sequence: u64) -> Ring<WRITERS> {
    Ring {
        announced: sequence / 2,
        forgotten: slot.forgotten.load(Ordering::Relaxed),
        writers: std::array::from_fn(|place| slot.writers[place].load(Ordering::Relaxed)),
    }
}

/// What a snapshot sees of a place; to be asked after it was taken. `None`: it cannot be judged.
pub fn view(index: u32, snapshot: &impl Snapshot) -> Option<View> {
    if snapshot.oldest() < complete_from()? {
        return None;
    }
    let slot = slot(index);
    for _ in 0..ATTEMPTS {
        let sequence = slot.sequence.load(Ordering::Acquire);
        if sequence.is_multiple_of(2) {
            let ring = load(slot, sequence);
            fence(Ordering::Acquire);
            if slot.sequence.load(Ordering::Relaxed) == sequence {
                return ring.view(snapshot);
            }
        }
        std::hint::spin_loop();
    }
    None
}
