//! The side of the sessions: queueing events, waiting for them, taking them back.

use super::layout::{BLOCK, Counters, NONE, Queue, ROOM, WAITING};
use super::{Call, Locked, lock, unlocked};
use crate::pg::shmem::{Condition, my_place};
use crate::pg::signal::WaitEvent;
use crate::pg::{clock, identity};
use audit_db_core::record;
use pgrx::pg_sys;
use std::time::Duration;

/// A database may use this many times what is left free.
const SHARE: u64 = 4;

/// Events that were queued together.
#[derive(Clone, Copy, Debug)]
pub struct Queued {
    /// Number of the first, and of the last.
    pub first: u64,
    pub last: u64,
}

#[derive(Clone, Copy, Debug)]
pub enum Refused {
    /// No room now.
    Full,
    /// They would not even fit into an empty queue.
    TooLarge { capacity: u64 },
    /// There is no worker, since somebody first looked for one at this time. What is queued then could be lost in an orderly stop.
    NoWorker { since: i64 },
    /// The server has too many databases with audit logs.
    NoQueue,
}

/// The ticket that the next waiting call of this session will have, and where it waits.
pub fn next_ticket() -> (u64, u32) {
    let place = my_place();
    // SAFETY: the place is this process's own; only this process changes the number.
    let ticket = unsafe { (*unlocked().waiter(place)).ticket } + 1;
    (ticket, place as u32)
}

/// Whether the queue can ever hold records of this size together.
fn most_blocks(total: u32) -> u64 {
    u64::from(total) * SHARE / (SHARE + 1)
}

/// Queues all the records, or none. `ticket`: the call that will wait for them.
pub fn push(records: &mut [Vec<u8>], ticket: Option<u64>) -> Result<Queued, Refused> {
    let now = clock::boot();
    let mut locked = lock();
    let index = locked
        .find_or_take(identity::my_database())
        .ok_or(Refused::NoQueue)?;
    let queue = locked.queue(index);
    if queue.worker == 0 {
        if queue.wanted == 0 {
            queue.wanted = now;
        }
        return Err(Refused::NoWorker {
            since: queue.wanted,
        });
    }
    let (total, free) = {
        let heading = locked.heading();
        (heading.blocks, heading.free_count)
    };
    let used = locked.queue(index).blocks + locked.queue(index).flight_blocks;
    let tail = locked.queue(index).tail;
    let tail_room = if tail == NONE {
        0
    } else {
        // SAFETY: the tail is a block of this queue; the lock is held.
        ROOM - unsafe { (*locked.memory.block(tail)).head.used } as usize
    };
    let needed = blocks_needed(records, tail_room);
    if needed > most_blocks(total) {
        return Err(Refused::TooLarge {
            capacity: most_blocks(total) * BLOCK as u64,
        });
    }
    let left = u64::from(free).saturating_sub(needed);
    if needed > u64::from(free) || (needed > 0 && u64::from(used) + needed > SHARE * left) {
        // Whatever may wait for more company: there is no room for it.
        locked.queue(index).urgent = true;
        let call = locked.call_worker(index);
        drop(locked);
        call.make();
        return Err(Refused::Full);
    }
    let first = locked.queue(index).next;
    for bytes in records.iter_mut() {
        let queue = locked.queue(index);
        record::set_sequence(bytes, queue.next);
        append(&mut locked, index, bytes);
        locked.queue(index).next += 1;
    }
    let queue = locked.queue(index);
    let count = records.len() as u64;
    queue.counters.enqueued += count;
    let was_empty = first == queue.taken + 1;
    if was_empty {
        queue.oldest = now;
    }
    // Before the queue is full, too.
    let crowded = u64::from(used) + needed > most_blocks(total) / 2;
    queue.urgent |= ticket.is_some() || crowded;
    let queued = Queued {
        first,
        last: queue.next - 1,
    };
    let waiting = queue.next - 1 - queue.taken;
    let enough = crate::settings::batch_max_events();
    let crossed = waiting >= enough && waiting - count < enough;
    let call = if queue.urgent || was_empty || crossed {
        locked.call_worker(index)
    } else {
        Call::None
    };
    if let Some(ticket) = ticket {
        // SAFETY: the place is this process's own; the lock is held.
        let waiter = unsafe { &mut *locked.memory.waiter(my_place()) };
        waiter.ticket = ticket;
        waiter.pending = records.len() as u32;
        waiter.rejected = 0;
        waiter.sqlstate = 0;
        waiter.message_length = 0;
        waiter.state.set(WAITING);
    }
    drop(locked);
    call.make();
    Ok(queued)
}

/// Blocks that the records take beyond what is free in the last block.
fn blocks_needed(records: &[Vec<u8>], tail_room: usize) -> u64 {
    let (mut blocks, mut room) = (0, tail_room);
    for bytes in records {
        if bytes.len() <= room {
            room -= bytes.len();
        } else {
            blocks += bytes.len().div_ceil(ROOM) as u64;
            // What spans blocks leaves no room behind it.
            room = if bytes.len() > ROOM {
                0
            } else {
                ROOM - bytes.len()
            };
        }
    }
    blocks
}

/// Copies a record to the end of the queue. There must be room.
fn append(locked: &mut Locked, index: usize, bytes: &[u8]) {
    let tail = locked.queue(index).tail;
    // SAFETY: blocks are those of this queue, or taken from the free ones; the lock is held; lengths were checked.
    unsafe {
        if tail != NONE {
            let block = &mut *locked.memory.block(tail);
            let used = block.head.used as usize;
            if bytes.len() <= ROOM - used {
                block.bytes[used..used + bytes.len()].copy_from_slice(bytes);
                block.head.used += bytes.len() as u32;
                return;
            }
        }
        let first = locked.queue(index).next;
        let spans = bytes.len() > ROOM;
        for (place, part) in bytes.chunks(ROOM).enumerate() {
            let new = locked.heading().free;
            debug_assert_ne!(new, NONE);
            let block = &mut *locked.memory.block(new);
            locked.heading().free = block.head.next;
            locked.heading().free_count -= 1;
            block.head.next = NONE;
            block.head.continues = place > 0;
            block.head.first = first;
            block.head.used = if spans { ROOM } else { part.len() } as u32;
            block.bytes[..part.len()].copy_from_slice(part);
            let queue = locked.queue(index);
            let last = std::mem::replace(&mut queue.tail, new);
            queue.blocks += 1;
            if last == NONE {
                queue.head = new;
            } else {
                (*locked.memory.block(last)).head.next = new;
            }
        }
    }
}

/// Waits until something may have changed for one who found no room. `false`: the time is over.
pub fn wait_for_room(timeout: Duration, mut ready: impl FnMut() -> bool) -> bool {
    // SAFETY: the heading is in shared memory.
    let room = unsafe { &raw mut (*unlocked().heading).room };
    Condition::wait(room, timeout, &mut ready)
}

/// What became of the events that a call waits for.
#[derive(Clone, Debug)]
pub enum Progress {
    Pending,
    Stored {
        rejected: u32,
        /// Of the first of these.
        sqlstate: u32,
        message: String,
    },
}

/// Waits a moment, and looks. What has to be looked for besides (interrupts) the caller looks for when this is `Pending`.
pub fn wait_a_moment(timeout: Duration) -> Progress {
    // SAFETY: the place is this process's own; its state is made for reading without the lock.
    let state = unsafe { &(*unlocked().waiter(my_place())).state };
    if state.get() == WAITING {
        let _wait = WaitEvent::new();
        while state.get() == WAITING && state.wait_while(WAITING, timeout) {}
    }
    if state.get() == WAITING {
        return Progress::Pending;
    }
    let locked = lock();
    // SAFETY: the place is this process's own; the lock is held.
    let waiter = unsafe { &*locked.memory.waiter(my_place()) };
    let (rejected, sqlstate) = (waiter.rejected, waiter.sqlstate);
    let message = waiter.message;
    let length = usize::from(waiter.message_length);
    drop(locked);
    Progress::Stored {
        rejected,
        sqlstate,
        message: String::from_utf8_lossy(&message[..length]).into_owned(),
    }
}

/// What is known of events that nobody waits for any longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Withdrawn {
    /// None of them will be stored.
    All,
    /// Some are being stored, or are stored already.
    Unknown,
}

/// Takes the events of the call back that is waiting, where none of them is in a batch yet.
pub fn withdraw(queued: Queued) -> Withdrawn {
    let mut locked = lock();
    let Some(index) = locked.find(identity::my_database()) else {
        return Withdrawn::Unknown;
    };
    let queue = locked.queue(index);
    if queued.first <= queue.taken {
        return Withdrawn::Unknown;
    }
    let events = queued.last - queued.first + 1;
    queue.counters.withdrawn += events;
    queue.withdrawn += events;
    mark_withdrawn(&mut locked, index, queued);
    Withdrawn::All
}

/// Writes into the records that are in no batch that nobody wants them.
fn mark_withdrawn(locked: &mut Locked, index: usize, queued: Queued) {
    let memory = locked.memory;
    let mut block = locked.queue(index).head;
    // SAFETY: chains hold blocks; the lock is held; records lie within the part of a block that is in use.
    unsafe {
        while block != NONE && (*memory.block(block)).head.first <= queued.last {
            let this = &mut *memory.block(block);
            block = this.head.next;
            let later = block != NONE && (*memory.block(block)).head.first <= queued.first;
            // Goes on with a large record, or holds earlier ones only.
            if this.head.continues || later && !(*memory.block(block)).head.continues {
                continue;
            }
            let mut at = 0;
            while let Some(length) = this.bytes[..this.head.used as usize]
                .get(at..)
                .and_then(record::length)
                .filter(|length| *length > 0)
            {
                let sequence = record::sequence(&this.bytes[at..]);
                if (queued.first..=queued.last).contains(&sequence) {
                    record::set_rejected(&mut this.bytes[at..], record::WITHDRAWN);
                }
                at += length;
            }
        }
    }
}

/// The worker that stores this database's events; 0: none.
pub fn worker_pid() -> i32 {
    let mut locked = lock();
    locked
        .find(identity::my_database())
        .map_or(0, |index| locked.queue(index).worker)
}

/// An event went into its session's own transaction because the queue would not take it.
pub fn count_fallback(events: u64) {
    let mut locked = lock();
    if let Some(index) = locked.find_or_take(identity::my_database()) {
        locked.queue(index).counters.fallbacks += events;
    }
}

/// Everything that is queued now.
#[derive(Clone, Copy, Debug)]
pub struct Everything {
    index: usize,
    /// Number of the last event.
    last: u64,
    /// How many there are.
    pub events: u64,
    pub lonely: bool,
}

/// Asks the worker of a database to store everything that is queued now. `None`: nothing is.
pub fn request_flush(database: pg_sys::Oid) -> Option<Everything> {
    let mut locked = lock();
    let index = locked.find(database)?;
    let queue = locked.queue(index);
    let last = queue.next - 1;
    if queue.done >= last {
        return None;
    }
    queue.flush = queue.flush.max(last);
    let everything = Everything {
        index,
        last,
        events: last - queue.done,
        lonely: queue.worker == 0,
    };
    let call = locked.call_worker(index);
    drop(locked);
    call.make();
    Some(everything)
}

/// Waits until all that is on disk, or the time is over. `true`: it is.
pub fn wait_for_flush(everything: Everything, timeout: Duration) -> bool {
    let is_done = || {
        let mut locked = lock();
        let queue: &Queue = locked.queue(everything.index);
        // Somebody else's by now: the database's own are gone, and this session with them.
        queue.done >= everything.last
    };
    // SAFETY: the queue is in shared memory.
    let stored = unsafe { &raw mut (*unlocked().heading).queues[everything.index].stored };
    Condition::wait(stored, timeout, is_done)
}

impl Counters {
    pub const fn mean_batch(&self) -> Option<f64> {
        match self.batches {
            0 => None,
            batches => Some((self.written + self.rejected) as f64 / batches as f64),
        }
    }

    /// Milliseconds from queueing an event to its being on disk.
    pub const fn mean_wait_ms(&self) -> Option<f64> {
        match self.written + self.rejected {
            0 => None,
            events => Some(self.waited as f64 / events as f64 / 1_000.0),
        }
    }
}
