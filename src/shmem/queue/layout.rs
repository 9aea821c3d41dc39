//! How the queue lies in shared memory: a heading, a queue a database, a place to wait for every process, and blocks that are
//! either free or belong to one queue.

use crate::pg::futex::Word;
use crate::pg::shmem::{Condition, max_backends};
use crate::settings;
use crate::shmem::workers::MAX_DATABASES;
use pgrx::pg_sys;

/// Bytes of a block, with its heading.
pub const BLOCK: usize = 8_192;
pub const ROOM: usize = BLOCK - size_of::<BlockHead>();
/// No block.
pub const NONE: u32 = u32::MAX;
pub const MESSAGE_BYTES: usize = 400;

#[repr(C)]
pub struct BlockHead {
    /// The block that follows in its chain.
    pub next: u32,
    /// Bytes in use; of a record that spans blocks the whole of the block.
    pub used: u32,
    /// The block goes on with a record that began in the one before.
    pub continues: bool,
    /// Number of the first event that begins here.
    pub first: u64,
}

#[repr(C, align(8))]
pub struct Block {
    pub head: BlockHead,
    pub bytes: [u8; ROOM],
}

/// How a worker waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Sleep {
    Awake,
    /// For the bell: a moment.
    Light,
    /// For its latch: as long as nothing comes.
    Deep,
}

/// The events of one database: those that are queued, and those that the worker is storing.
#[repr(C)]
pub struct Queue {
    pub database: pg_sys::Oid,
    /// The worker that stores the events; 0: none.
    pub worker: i32,
    /// Where it waits.
    pub worker_place: u32,
    /// How it waits for events, if it does.
    pub sleep: Sleep,
    /// Changes when it is called while it waits lightly.
    pub bell: Word,
    /// When the first session found no worker there, for which nothing is queued; 0: none has.
    pub wanted: i64,
    /// A call waits for what was queued since the last batch was taken.
    pub urgent: bool,
    pub head: u32,
    pub tail: u32,
    pub blocks: u32,
    /// The batch that is being stored.
    pub flight: u32,
    pub flight_blocks: u32,
    /// Its events that are stored, from the first on.
    pub flight_stored: u32,
    /// The transaction that stores more of them, before it commits; 0: none. And up to which.
    pub flight_transaction: u32,
    pub flight_end: u32,
    /// Number of the next event, of the last one in a batch, and of the last one that is on disk. They start at one.
    pub next: u64,
    pub taken: u64,
    pub done: u64,
    /// Events that are not on disk, and never will be: their sessions have taken them back.
    pub withdrawn: u64,
    /// When the oldest event was queued that is in no batch, by the boot clock.
    pub oldest: i64,
    /// Somebody waits until this event is on disk.
    pub flush: u64,
    /// Broadcast when a batch is done.
    pub stored: Condition,
    pub counters: Counters,
    pub error: [u8; MESSAGE_BYTES],
    pub error_length: u16,
}

/// What is counted. Times are microseconds.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Counters {
    pub enqueued: u64,
    pub written: u64,
    pub rejected: u64,
    pub withdrawn: u64,
    pub batches: u64,
    pub waited: u64,
    pub longest_wait: u64,
    pub fallbacks: u64,
    pub last_flush: i64,
    pub reset_at: i64,
}

/// States of a call that waits.
pub const WAITING: u32 = 1;
pub const DONE: u32 = 2;

/// A process that waits until its events are on disk.
#[repr(C)]
pub struct Waiter {
    pub state: Word,
    /// The call it is in, counted on for ever.
    pub ticket: u64,
    /// Events of the call that are not on disk.
    pub pending: u32,
    /// Of those that are, how many were rejected.
    pub rejected: u32,
    /// Why the first of them was: SQLSTATE, packed, and message.
    pub sqlstate: u32,
    pub message: [u8; MESSAGE_BYTES],
    pub message_length: u16,
}

#[repr(C)]
pub struct Heading {
    pub blocks: u32,
    pub free: u32,
    pub free_count: u32,
    pub waiters: u32,
    /// Broadcast when blocks become free, or a queue opens.
    pub room: Condition,
    pub queues: [Queue; MAX_DATABASES],
}

const fn aligned(bytes: usize) -> usize {
    bytes.next_multiple_of(64)
}

const fn waiters_offset() -> usize {
    aligned(size_of::<Heading>())
}

fn blocks_offset() -> usize {
    waiters_offset() + aligned(max_backends() * size_of::<Waiter>())
}

fn block_count() -> usize {
    settings::queue_size() / BLOCK
}

/// Bytes of it all.
pub fn size() -> usize {
    blocks_offset() + block_count() * BLOCK
}

/// The memory, as long as the lock is held (or for what belongs to the caller alone).
#[derive(Clone, Copy)]
pub struct Memory {
    pub heading: *mut Heading,
    waiters: *mut Waiter,
    blocks: *mut Block,
}

impl Memory {
    /// # Safety
    /// `address` must be where memory of [`size`] bytes begins.
    pub unsafe fn at(address: *mut u8) -> Self {
        // SAFETY: by contract; the offsets are multiples of 64.
        unsafe {
            Self {
                heading: address.cast(),
                waiters: address.add(waiters_offset()).cast(),
                blocks: address.add(blocks_offset()).cast(),
            }
        }
    }

    /// # Safety
    /// `index` must be a place below the number of processes.
    pub unsafe fn waiter(self, index: usize) -> *mut Waiter {
        // SAFETY: by contract.
        unsafe { self.waiters.add(index) }
    }

    /// # Safety
    /// `index` must be of a block.
    pub unsafe fn block(self, index: u32) -> *mut Block {
        // SAFETY: by contract.
        unsafe { self.blocks.add(index as usize) }
    }
}

/// Makes fresh memory an empty queue.
///
/// # Safety
/// `address` must be where writable memory of [`size`] bytes begins, aligned to 8.
pub unsafe fn fill(address: *mut u8) {
    let blocks = block_count() as u32;
    // SAFETY: by contract; everything written lies within the size.
    unsafe {
        std::ptr::write_bytes(address, 0, blocks_offset());
        let memory = Memory::at(address);
        let heading = memory.heading;
        (*heading).blocks = blocks;
        (*heading).free_count = blocks;
        (*heading).free = 0;
        (*heading).waiters = max_backends() as u32;
        Condition::init(&raw mut (*heading).room);
        for index in 0..MAX_DATABASES {
            let queue = &raw mut (*heading).queues[index];
            Condition::init(&raw mut (*queue).stored);
            empty(queue);
        }
        for index in 0..blocks {
            let next = if index + 1 == blocks { NONE } else { index + 1 };
            (*memory.block(index)).head.next = next;
        }
    }
}

/// A queue of no database.
///
/// # Safety
/// The queue must be writable, and its condition initialised.
pub unsafe fn empty(queue: *mut Queue) {
    // SAFETY: by contract.
    unsafe {
        (*queue).database = pg_sys::InvalidOid;
        (*queue).worker = 0;
        (*queue).worker_place = 0;
        (*queue).sleep = Sleep::Awake;
        (*queue).wanted = 0;
        (*queue).urgent = false;
        (*queue).head = NONE;
        (*queue).tail = NONE;
        (*queue).blocks = 0;
        (*queue).flight = NONE;
        (*queue).flight_blocks = 0;
        (*queue).flight_stored = 0;
        (*queue).flight_transaction = 0;
        (*queue).flight_end = 0;
        (*queue).next = 1;
        (*queue).taken = 0;
        (*queue).done = 0;
        (*queue).withdrawn = 0;
        (*queue).oldest = 0;
        (*queue).flush = 0;
        (*queue).counters = std::mem::zeroed();
        (*queue).error_length = 0;
    }
}
