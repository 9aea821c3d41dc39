//! Events on their way from the sessions that log them to the worker that stores them. A queue a database, in blocks that all
//! databases share: one whose worker is stuck gets at most four times what is left free, so it never takes everything.
//!
//! Whoever writes an event holds the lock for the time of a copy, and never while waiting. The worker takes whole chains of
//! blocks, reads them without the lock, and gives them back when their transaction has committed: a worker that takes over
//! finds what the one before had taken, and the transaction that tells whether it is stored.

mod layout;
mod session;
mod worker;

pub use layout::Counters;
pub use session::*;
pub use worker::*;

use crate::pg::futex::Word;
use crate::pg::shmem::{Area, Held, wake_place};
use crate::pg::{clock, identity};
use crate::shmem::workers::MAX_DATABASES;
use layout::{Heading, Memory, NONE, Queue, Sleep};
use pgrx::{pg_guard, pg_shmem_init, pg_sys};

// SAFETY: the name is ours alone; the layout fills what it measures.
static AREA: Area = unsafe { Area::new(c"audit_db queue", layout::size, 1, layout::fill) };

pub(super) fn request() {
    pg_shmem_init!(AREA = ());
}

/// The memory and its lock.
struct Locked {
    memory: Memory,
    _held: Held,
}

fn lock() -> Locked {
    let held = AREA.lock();
    Locked {
        // SAFETY: the area has the size of the layout.
        memory: unsafe { Memory::at(AREA.address()) },
        _held: held,
    }
}

/// How a worker is called.
#[must_use]
enum Call {
    None,
    Latch(usize),
    Bell(*const Word),
}

impl Call {
    fn make(self) {
        match self {
            Self::None => {}
            Self::Latch(place) => wake_place(place),
            // SAFETY: the bell lies in shared memory.
            Self::Bell(bell) => unsafe { (*bell).wake() },
        }
    }
}

/// The memory without its lock: for what belongs to the caller.
fn unlocked() -> Memory {
    // SAFETY: the area has the size of the layout.
    unsafe { Memory::at(AREA.address()) }
}

impl Locked {
    fn heading(&mut self) -> &mut Heading {
        // SAFETY: the lock is held, and the reference lives no longer than it.
        unsafe { &mut *self.memory.heading }
    }

    fn queue(&mut self, index: usize) -> &mut Queue {
        &mut self.heading().queues[index]
    }

    /// The queue of a database, if it has one.
    fn find(&mut self, database: pg_sys::Oid) -> Option<usize> {
        self.heading()
            .queues
            .iter()
            .position(|queue| queue.database == database)
    }

    /// The queue of a database, taken now if it has none. `None`: all are in use.
    fn find_or_take(&mut self, database: pg_sys::Oid) -> Option<usize> {
        if let Some(index) = self.find(database) {
            return Some(index);
        }
        let index = self.find(pg_sys::InvalidOid)?;
        let queue = self.queue(index);
        queue.database = database;
        queue.counters.reset_at = clock::wall();
        Some(index)
    }

    /// Ends the wait of a queue's worker; the call is made when the lock is free.
    fn call_worker(&mut self, index: usize) -> Call {
        let queue = self.queue(index);
        match std::mem::replace(&mut queue.sleep, Sleep::Awake) {
            Sleep::Awake => Call::None,
            Sleep::Deep => Call::Latch(queue.worker_place as usize),
            Sleep::Light => {
                queue.bell.increment();
                Call::Bell(&raw const queue.bell)
            }
        }
    }

    /// Gives a chain of blocks back.
    fn free_chain(&mut self, first: u32) {
        let mut block = first;
        while block != NONE {
            // SAFETY: chains hold blocks; the lock is held.
            let head = unsafe { &mut (*self.memory.block(block)).head };
            let next = head.next;
            head.next = self.heading().free;
            self.heading().free = block;
            self.heading().free_count += 1;
            block = next;
        }
    }
}

/// The databases that have a queue.
pub fn databases() -> Vec<pg_sys::Oid> {
    let mut databases = Vec::with_capacity(MAX_DATABASES);
    let mut locked = lock();
    databases.extend(
        locked
            .heading()
            .queues
            .iter()
            .map(|queue| queue.database)
            .filter(|database| *database != pg_sys::InvalidOid),
    );
    drop(locked);
    databases
}

/// Forgets the queues of databases that are gone.
pub fn forget(gone: &[pg_sys::Oid]) {
    let mut locked = lock();
    for index in 0..MAX_DATABASES {
        let queue = locked.queue(index);
        if queue.worker != 0 || !gone.contains(&queue.database) {
            continue;
        }
        let (queued, flight) = (queue.head, queue.flight);
        locked.free_chain(queued);
        locked.free_chain(flight);
        // SAFETY: the lock is held.
        unsafe { layout::empty(locked.queue(index)) };
    }
}

/// What `ingest_stats` shows.
#[derive(Clone, Debug)]
pub struct Statistics {
    pub queued: u64,
    pub bytes: u64,
    pub capacity: u64,
    pub counters: Counters,
    pub worker: i32,
    pub error: Option<String>,
}

/// Of this session's database.
pub fn statistics() -> Statistics {
    let mut locked = lock();
    let capacity = u64::from(locked.heading().blocks) * layout::BLOCK as u64;
    let Some(index) = locked.find(identity::my_database()) else {
        // SAFETY: plain numbers.
        let counters = unsafe { std::mem::zeroed() };
        return Statistics {
            queued: 0,
            bytes: 0,
            capacity,
            counters,
            worker: 0,
            error: None,
        };
    };
    let queue = locked.queue(index);
    let length = usize::from(queue.error_length);
    let error = queue.error;
    let statistics = Statistics {
        queued: (queue.next - 1 - queue.done).saturating_sub(queue.withdrawn),
        bytes: u64::from(queue.blocks + queue.flight_blocks) * layout::BLOCK as u64,
        capacity,
        counters: queue.counters,
        worker: queue.worker,
        error: None,
    };
    drop(locked);
    let text = String::from_utf8_lossy(&error[..length]).into_owned();
    Statistics {
        error: (length > 0).then_some(text),
        ..statistics
    }
}

/// As much of a text as fits.
fn store_text(target: &mut [u8], text: &str) -> u16 {
    let mut end = text.len().min(target.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    target[..end].copy_from_slice(&text.as_bytes()[..end]);
    end as u16
}
