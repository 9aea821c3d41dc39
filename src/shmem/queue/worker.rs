//! The side of the worker: taking a batch, reading it, and saying what became of it.

use super::layout::{BLOCK, DONE, MESSAGE_BYTES, NONE, Queue, ROOM, Sleep};
use super::{lock, store_text, unlocked};
use crate::pg::shmem::{Condition, my_place};
use crate::pg::signal::WaitEvent;
use crate::pg::{clock, signal};
use audit_db_core::record::{self, Fields, Header};
use pgrx::pg_sys;
use std::time::Duration;

/// Most bytes of a batch.
const BATCH_BYTES: usize = 4 << 20;

/// A worker takes the queue of its database. `None`: another one has it, or there is no room for one.
pub fn claim(database: pg_sys::Oid) -> Option<usize> {
    let mut locked = lock();
    let index = locked.find_or_take(database)?;
    let queue = locked.queue(index);
    if queue.worker != 0 {
        return None;
    }
    queue.worker = signal::my_pid();
    queue.worker_place = my_place() as u32;
    queue.sleep = Sleep::Awake;
    queue.wanted = 0;
    // What the worker before was asked for is still wanted.
    queue.urgent = true;
    let room = &raw mut locked.heading().room;
    drop(locked);
    Condition::broadcast(room);
    Some(index)
}

/// A worker has ended. Runs in its exit path.
pub fn leave(database: pg_sys::Oid) {
    let mut locked = lock();
    let Some(index) = locked.find(database) else {
        return;
    };
    let queue = locked.queue(index);
    if queue.worker == signal::my_pid() {
        queue.worker = 0;
        queue.sleep = Sleep::Awake;
    }
}

/// Whether a database has events that nobody stores, or a session that would queue one.
pub fn needs_worker(database: pg_sys::Oid) -> bool {
    if !super::super::is_preloaded() {
        return false;
    }
    let mut locked = lock();
    locked.find(database).is_some_and(|index| {
        let queue = locked.queue(index);
        queue.worker == 0 && (queue.wanted != 0 || queue.done + 1 < queue.next)
    })
}

/// How many events of a database have been stored, rejected or withdrawn.
pub fn done(database: pg_sys::Oid) -> u64 {
    let mut locked = lock();
    locked
        .find(database)
        .map_or(0, |index| locked.queue(index).done)
}

/// The worker of a database's queue; 0: none.
pub fn worker_in(database: pg_sys::Oid) -> i32 {
    if !super::super::is_preloaded() {
        return 0;
    }
    let mut locked = lock();
    locked
        .find(database)
        .map_or(0, |index| locked.queue(index).worker)
}

/// What there is to do.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// Events that are in no batch.
    pub events: u64,
    /// Somebody waits for one of them.
    pub urgent: bool,
    /// When the oldest of them was queued.
    pub oldest: i64,
    /// A batch has been taken and is not stored.
    pub in_flight: bool,
    bell: u32,
}

fn look_at(queue: &Queue) -> Look {
    Look {
        events: queue.next - 1 - queue.taken,
        urgent: queue.urgent || queue.flush > queue.taken,
        oldest: queue.oldest,
        in_flight: queue.flight != NONE,
        bell: queue.bell.get(),
    }
}

/// Looks, and where `due` says that there is nothing to do yet, lets whoever queues something call this process: at its bell
/// ([`wait_lightly`]) or, with `deep`, at its latch.
pub fn look(index: usize, deep: bool, due: impl FnOnce(&Look) -> bool) -> (Look, bool) {
    let mut locked = lock();
    let queue = locked.queue(index);
    let look = look_at(queue);
    let is_due = due(&look);
    queue.sleep = match (is_due, deep) {
        (true, _) => Sleep::Awake,
        (false, true) => Sleep::Deep,
        (false, false) => Sleep::Light,
    };
    (look, is_due)
}

/// Whether something is queued, as far as can be seen without the lock.
pub fn has_events(index: usize) -> bool {
    // SAFETY: the queue is in shared memory; a number that is just being changed is seen a little later.
    unsafe {
        let queue = &raw const (*unlocked().heading).queues[index];
        (&raw const (*queue).head).read_volatile() != NONE
    }
}

/// Waits until somebody rings the bell since that look, a signal comes, or the time (at most 100 ms) is over.
pub fn wait_lightly(look: &Look, index: usize, timeout: Duration) {
    let _wait = WaitEvent::new();
    // SAFETY: the queue is in shared memory, and its bell is made for use without the lock.
    let bell = unsafe { &(*unlocked().heading).queues[index].bell };
    bell.wait_while(look.bell, timeout);
}

/// Ends the work where nothing is queued: from now on nothing is taken until there is a worker again.
pub fn end_if_empty(index: usize) -> bool {
    let mut locked = lock();
    let queue = locked.queue(index);
    let look = look_at(queue);
    let empty = look.events == 0 && !look.in_flight;
    if empty {
        queue.worker = 0;
        queue.sleep = Sleep::Awake;
    }
    empty
}

/// Takes a batch, unless one is taken already. `false`: nothing is queued.
pub fn take(index: usize) -> bool {
    let mut locked = lock();
    let memory = locked.memory;
    let queue = locked.queue(index);
    if queue.flight != NONE {
        return true;
    }
    if queue.head == NONE {
        return false;
    }
    let (mut last, mut count) = (queue.head, 1);
    // SAFETY: chains hold blocks; the lock is held.
    unsafe {
        let mut next = (*memory.block(last)).head.next;
        // What has begun is taken whole.
        while next != NONE && (count < BATCH_BYTES / BLOCK || (*memory.block(next)).head.continues)
        {
            last = next;
            count += 1;
            next = (*memory.block(last)).head.next;
        }
        (*memory.block(last)).head.next = NONE;
        queue.flight = std::mem::replace(&mut queue.head, next);
        if next == NONE {
            queue.tail = NONE;
            queue.taken = queue.next - 1;
            queue.urgent = false;
        } else {
            queue.taken = (*memory.block(next)).head.first - 1;
            queue.oldest = clock::boot();
        }
    }
    queue.flight_blocks = count as u32;
    queue.blocks -= count as u32;
    queue.flight_transaction = 0;
    queue.flight_stored = 0;
    true
}

/// How many events of the batch are stored, and how many are if a transaction has committed that was about to.
pub fn flight_progress(index: usize) -> (usize, usize, Option<pg_sys::TransactionId>) {
    let mut locked = lock();
    let queue = locked.queue(index);
    let transaction = queue.flight_transaction;
    (
        queue.flight_stored as usize,
        queue.flight_end as usize,
        (transaction != 0).then(|| pg_sys::TransactionId::from(transaction)),
    )
}

/// Remembers which transaction stores the batch up to its event `end`. Before it commits.
pub fn note_transaction(index: usize, transaction: Option<pg_sys::TransactionId>, end: usize) {
    let mut locked = lock();
    let queue = locked.queue(index);
    queue.flight_end = end as u32;
    queue.flight_transaction = transaction.map_or(0, pg_sys::TransactionId::into_inner);
}

/// The first so many events of the batch are stored.
pub fn note_stored(index: usize, stored: usize) {
    let mut locked = lock();
    let queue = locked.queue(index);
    queue.flight_stored = stored as u32;
    queue.flight_transaction = 0;
}

/// An event of the batch.
pub struct Record {
    /// Where its head lies; and the whole of it, unless it spans blocks.
    place: *mut u8,
    length: usize,
    /// A copy of one that spans blocks.
    whole: Option<Vec<u8>>,
    /// Its session has taken it back.
    pub withdrawn: bool,
}

impl Record {
    /// The header and the values.
    pub fn read(&self) -> Option<(Header, Fields<'_>)> {
        match &self.whole {
            Some(whole) => record::read(whole),
            // SAFETY: the batch belongs to this process and keeps its contents until it gives it back.
            None => record::read(unsafe { std::slice::from_raw_parts(self.place, self.length) }),
        }
    }

    /// Writes into the queue why the event is not in its table: who takes the batch over after a crash of this process knows it then.
    pub fn set_rejected(&self, sqlstate: u32) {
        // SAFETY: a record's head lies in one block, and the batch belongs to this process.
        let head = unsafe { std::slice::from_raw_parts_mut(self.place, record::HEAD_BYTES) };
        record::set_rejected(head, sqlstate);
    }

    /// What [`Record::set_rejected`] has written.
    pub fn rejected(&self) -> u32 {
        // SAFETY: as above.
        let head = unsafe { std::slice::from_raw_parts(self.place, record::HEAD_BYTES) };
        record::rejected(head)
    }
}

/// The events of the batch. They stay where they are until [`finish`].
pub fn flight(index: usize) -> Vec<Record> {
    let first = lock().queue(index).flight;
    let memory = unlocked();
    let mut records = Vec::new();
    let mut block = first;
    while block != NONE {
        // SAFETY: the batch's blocks belong to this process, and keep their contents until it gives them back.
        let (head, start) = unsafe {
            let block = memory.block(block);
            (&(*block).head, (&raw mut (*block).bytes).cast::<u8>())
        };
        let mut at = 0;
        let mut next = head.next;
        while at < head.used as usize {
            // SAFETY: as above; `at` lies within the block.
            let (rest, place) = unsafe {
                let place = start.add(at);
                (std::slice::from_raw_parts(place, ROOM - at), place)
            };
            let Some(length) = record::length(rest).filter(|length| *length > 0) else {
                break;
            };
            let whole = (length > rest.len()).then(|| {
                let mut whole = rest.to_vec();
                while whole.len() < length && next != NONE {
                    // SAFETY: as above.
                    let part = unsafe { &*memory.block(next) };
                    whole.extend_from_slice(&part.bytes[..(length - whole.len()).min(ROOM)]);
                    next = part.head.next;
                }
                whole
            });
            let mut record = Record {
                place,
                length,
                whole,
                withdrawn: false,
            };
            record.withdrawn = record.rejected() == record::WITHDRAWN;
            records.push(record);
            at += length;
        }
        block = next;
    }
    records
}

/// What became of an event.
pub struct Done<'a> {
    pub header: Header,
    pub withdrawn: bool,
    /// Why it was rejected.
    pub message: Option<&'a str>,
}

/// The batch is on disk: tells those who wait, counts, and gives the blocks back.
pub fn finish(index: usize, events: &[Done<'_>]) {
    let now = clock::wall();
    let mut wake = Vec::with_capacity(events.iter().filter(|done| done.header.ticket != 0).count());
    let mut locked = lock();
    for done in events {
        let header = &done.header;
        if done.withdrawn {
            let queue = locked.queue(index);
            queue.withdrawn = queue.withdrawn.saturating_sub(1);
            continue;
        }
        let counters = &mut locked.queue(index).counters;
        let waited = u64::try_from(now - header.queued_at).unwrap_or(0);
        counters.waited += waited;
        counters.longest_wait = counters.longest_wait.max(waited);
        if header.rejected == 0 {
            counters.written += 1;
        } else {
            counters.rejected += 1;
        }
        if header.ticket == 0 {
            continue;
        }
        // SAFETY: the place was written by the process that had it; the lock is held.
        let waiter = unsafe { &mut *locked.memory.waiter(header.waiter as usize) };
        if waiter.ticket != header.ticket || waiter.pending == 0 {
            continue;
        }
        waiter.pending -= 1;
        if header.rejected != 0 {
            if waiter.rejected == 0 {
                waiter.sqlstate = header.rejected;
                waiter.message_length = store_text(
                    &mut waiter.message,
                    done.message.unwrap_or("the event was rejected"),
                );
            }
            waiter.rejected += 1;
        }
        if waiter.pending == 0 {
            waiter.state.set(DONE);
            wake.push(&raw const waiter.state);
        }
    }
    let flight = {
        let queue = locked.queue(index);
        queue.counters.batches += u64::from(!events.is_empty());
        queue.counters.last_flush = now;
        queue.done = queue.taken;
        queue.flight_blocks = 0;
        queue.flight_transaction = 0;
        queue.error_length = 0;
        std::mem::replace(&mut queue.flight, NONE)
    };
    locked.free_chain(flight);
    let room = &raw mut locked.heading().room;
    let stored = &raw mut locked.queue(index).stored;
    drop(locked);
    for state in wake {
        // SAFETY: the states lie in shared memory.
        unsafe { (*state).wake() };
    }
    Condition::broadcast(stored);
    Condition::broadcast(room);
}

/// Records why the batch could not be stored yet.
pub fn note_error(index: usize, text: &str) {
    let mut locked = lock();
    let queue = locked.queue(index);
    let mut error = [0; MESSAGE_BYTES];
    queue.error_length = store_text(&mut error, text);
    queue.error = error;
}
