//! Stored results: bytes under a key. A fixed number of entries in parts, each with a lock, a hash table and the queues that say who
//! makes room; the bytes lie in chunks of one size, of which all parts share a list of free ones. A reader copies what it finds, so
//! that nothing is kept for it.

use super::{AREA, heading, store_at};
use crate::pg::clock;
use crate::settings;
use audit_db_core::eviction::{Entries, Links, NONE, Queues};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

pub(super) const PARTS: usize = 128;
const CHUNK: usize = 1_024;
const CHUNK_BYTES: usize = CHUNK - 8;
/// Entries that may have to go for a new one, beyond those that its chunks need.
const PATIENCE: usize = 64;

/// Free chunks: a list whose head is in the lower half; the upper half counts changes, so that a head that came back is another one.
#[repr(C)]
pub(super) struct Chunks {
    free: AtomicU64,
    used: AtomicU64,
}

#[repr(C)]
struct Chunk {
    next: AtomicU32,
    _unused: u32,
    bytes: [u8; CHUNK_BYTES],
}

const _: () = assert!(size_of::<Chunk>() == CHUNK);

#[repr(C)]
struct Part {
    queues: Queues,
    /// The first free entry; they hang together by `next`.
    free: u32,
    generation: u32,
    _unused: u32,
}

#[repr(C)]
struct Entry {
    hash: u64,
    /// In the hash table, or among the free ones.
    next: u32,
    chunk: u32,
    bytes: u32,
    generation: u32,
    links: Links,
    kind: u32,
    database: u32,
    /// Nanoseconds of the monotonic clock, and how many the result may be used for.
    filled_at: u64,
    lifetime: u64,
    /// Nanoseconds that it took.
    cost: u64,
    oldest: u64,
    weight: f64,
    hits: AtomicU64,
}

struct Layout {
    entries: usize,
    buckets: usize,
    part_bytes: usize,
    chunks: usize,
}

fn layout(entries: usize, bytes: usize) -> Layout {
    let entries = entries.div_ceil(PARTS).max(8);
    let buckets = entries.next_power_of_two();
    let part_bytes = (size_of::<Part>()
        + entries * (size_of::<Entry>() + size_of::<u64>())
        + buckets * size_of::<u32>())
    .next_multiple_of(128);
    Layout {
        entries,
        buckets,
        part_bytes,
        chunks: (bytes / CHUNK).min(NONE as usize - 1),
    }
}

fn now_layout() -> Layout {
    layout(settings::cache_max_entries(), settings::cache_size())
}

pub(super) fn size(entries: usize, bytes: usize) -> usize {
    let layout = layout(entries, bytes);
    PARTS * layout.part_bytes + layout.chunks * CHUNK
}

/// # Safety
/// The memory must be as large as [`size`] says, zero, and nobody else's yet.
pub(super) unsafe fn fill(address: *mut u8, chunks: &Chunks) {
    let layout = now_layout();
    for part in 0..PARTS {
        // SAFETY: by contract.
        let mut part = unsafe { view(address, &layout, part) };
        part.clear();
    }
    for index in 0..layout.chunks {
        let next = if index + 1 < layout.chunks {
            index as u32 + 1
        } else {
            NONE
        };
        // SAFETY: by contract.
        unsafe { chunk(address, &layout, index as u32) }
            .next
            .store(next, Ordering::Relaxed);
    }
    let head = if layout.chunks > 0 { 0 } else { NONE };
    chunks.free.store(u64::from(head), Ordering::Relaxed);
}

/// # Safety
/// The store must begin at `address`.
unsafe fn chunk(address: *mut u8, layout: &Layout, index: u32) -> &'static Chunk {
    // SAFETY: by contract; within the area, because only numbers of chunks that there are go round.
    unsafe {
        &*address
            .add(PARTS * layout.part_bytes)
            .cast::<Chunk>()
            .add(index as usize % layout.chunks.max(1))
    }
}

fn base() -> *mut u8 {
    // SAFETY: within the area.
    unsafe { AREA.address().add(store_at()) }
}

/// A part, with what belongs to it.
struct View<'a> {
    part: &'a mut Part,
    entries: &'a mut [Entry],
    ghosts: &'a mut [u64],
    buckets: &'a mut [u32],
    now: u64,
}

/// # Safety
/// The store must begin at `address`, and the part's lock be held as long as the result is used.
unsafe fn view<'a>(address: *mut u8, layout: &Layout, part: usize) -> View<'a> {
    // SAFETY: by contract; the pieces lie one behind the other and are aligned to eight bytes.
    unsafe {
        let at = address.add(part * layout.part_bytes);
        let entries = at.add(size_of::<Part>());
        let ghosts = entries.add(layout.entries * size_of::<Entry>());
        let buckets = ghosts.add(layout.entries * size_of::<u64>());
        View {
            part: &mut *at.cast(),
            entries: std::slice::from_raw_parts_mut(entries.cast(), layout.entries),
            ghosts: std::slice::from_raw_parts_mut(ghosts.cast(), layout.entries),
            buckets: std::slice::from_raw_parts_mut(buckets.cast(), layout.buckets),
            now: 0,
        }
    }
}

const _: () = assert!(size_of::<Part>().is_multiple_of(8) && size_of::<Entry>().is_multiple_of(8));

/// The entries, as those see them who say which one goes.
struct Queued<'a> {
    entries: &'a mut [Entry],
    now: u64,
}

impl Entries for Queued<'_> {
    fn links(&self, index: u32) -> &Links {
        &self.entries[index as usize].links
    }

    fn links_mut(&mut self, index: u32) -> &mut Links {
        &mut self.entries[index as usize].links
    }

    fn worth(&self, index: u32) -> f64 {
        let entry = &self.entries[index as usize];
        if self.now.saturating_sub(entry.filled_at) > entry.lifetime {
            return f64::NEG_INFINITY;
        }
        let asked = 1.0 + f64::from(entry.links.asked());
        entry.weight * entry.cost as f64 * asked / f64::from(entry.bytes.max(CHUNK as u32))
    }

    fn hash(&self, index: u32) -> u64 {
        self.entries[index as usize].hash
    }
}

impl View<'_> {
    fn clear(&mut self) {
        self.part.queues = Queues::NEW;
        self.part.free = NONE;
        self.buckets.fill(NONE);
        self.ghosts.fill(0);
        for index in (0..self.entries.len()).rev() {
            let entry = &mut self.entries[index];
            entry.next = self.part.free;
            entry.chunk = NONE;
            entry.links = Links::new();
            entry.generation = 0;
            self.part.free = index as u32;
        }
    }

    fn bucket(&self, hash: u64) -> usize {
        hash as usize & (self.buckets.len() - 1)
    }

    fn find(&self, hash: u64) -> Option<u32> {
        let mut index = self.buckets[self.bucket(hash)];
        while index != NONE {
            let entry = &self.entries[index as usize];
            if entry.hash == hash {
                return Some(index);
            }
            index = entry.next;
        }
        None
    }

    /// Takes an entry out of everything and returns its chunks.
    fn take(&mut self, index: u32) -> u32 {
        let mut queued = Queued {
            entries: self.entries,
            now: self.now,
        };
        self.part.queues.remove(&mut queued, index);
        self.unhook(index)
    }

    /// The same of one that is in no queue any more.
    fn unhook(&mut self, index: u32) -> u32 {
        let bucket = self.bucket(self.entries[index as usize].hash);
        let next = self.entries[index as usize].next;
        if self.buckets[bucket] == index {
            self.buckets[bucket] = next;
        } else {
            let mut before = self.buckets[bucket];
            while before != NONE && self.entries[before as usize].next != index {
                before = self.entries[before as usize].next;
            }
            if before != NONE {
                self.entries[before as usize].next = next;
            }
        }
        let entry = &mut self.entries[index as usize];
        entry.next = self.part.free;
        entry.generation = 0;
        self.part.free = index;
        std::mem::replace(&mut entry.chunk, NONE)
    }

    /// Has the entry go that is to go next. Returns its type and its chunks.
    fn evict(&mut self) -> Option<(u32, u32)> {
        let mut queued = Queued {
            entries: self.entries,
            now: self.now,
        };
        let victim = self.part.queues.evict(&mut queued, self.ghosts)?;
        let kind = self.entries[victim as usize].kind;
        Some((kind, self.unhook(victim)))
    }
}

const fn part_of(hash: u64) -> usize {
    (hash >> 57) as usize % PARTS
}

/// Runs `body` with a part, alone.
fn with_part<T>(part: usize, body: impl FnOnce(&mut View<'_>) -> T) -> T {
    let layout = now_layout();
    let now = clock::monotonic();
    let _held = AREA.lock_at(part);
    // SAFETY: the part's lock is held.
    let mut view = unsafe { view(base(), &layout, part) };
    view.now = now;
    body(&mut view)
}

fn take_chunk(layout: &Layout) -> Option<u32> {
    let chunks = &heading().chunks;
    let mut head = chunks.free.load(Ordering::Acquire);
    loop {
        let index = head as u32;
        if index == NONE {
            return None;
        }
        // SAFETY: the store begins there.
        let next = unsafe { chunk(base(), layout, index) }
            .next
            .load(Ordering::Relaxed);
        let changed = (head >> 32).wrapping_add(1) << 32 | u64::from(next);
        match chunks
            .free
            .compare_exchange_weak(head, changed, Ordering::AcqRel, Ordering::Acquire)
        {
            Ok(_) => {
                chunks.used.fetch_add(1, Ordering::Relaxed);
                return Some(index);
            }
            Err(other) => head = other,
        }
    }
}

/// Gives back a chain of chunks, which nobody can reach any more.
fn give_back(layout: &Layout, first: u32) {
    if first == NONE {
        return;
    }
    let (mut last, mut count) = (first, 1);
    // SAFETY: the store begins there.
    let of = |index| unsafe { chunk(base(), layout, index) };
    loop {
        let next = of(last).next.load(Ordering::Relaxed);
        if next == NONE {
            break;
        }
        last = next;
        count += 1;
    }
    let chunks = &heading().chunks;
    let mut head = chunks.free.load(Ordering::Acquire);
    loop {
        of(last).next.store(head as u32, Ordering::Relaxed);
        let changed = (head >> 32).wrapping_add(1) << 32 | u64::from(first);
        match chunks
            .free
            .compare_exchange_weak(head, changed, Ordering::AcqRel, Ordering::Acquire)
        {
            Ok(_) => break,
            Err(other) => head = other,
        }
    }
    chunks.used.fetch_sub(count, Ordering::Relaxed);
}

/// Bytes in use, a multiple of the size of a chunk.
pub fn used_bytes() -> usize {
    heading().chunks.used.load(Ordering::Relaxed) as usize * CHUNK
}

/// How many results there are.
pub fn entries() -> u64 {
    let layout = now_layout();
    (0..PARTS)
        .map(|part| {
            let _held = AREA.lock_shared_at(part);
            // SAFETY: the part's lock is held.
            u64::from(unsafe { view(base(), &layout, part) }.part.queues.length())
        })
        .sum()
}

/// Longest result that is stored, with its key.
pub fn longest_payload() -> usize {
    let chunks = now_layout().chunks as f64 * settings::cache_max_result_size();
    chunks as usize * CHUNK_BYTES
}

/// A result that was found.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    place: (u64, u32),
    pub filled_at: u64,
    pub cost: u64,
}

/// Copies what is stored under a hash to `target`.
pub fn find(hash: u64, target: &mut Vec<u8>) -> Option<Found> {
    let layout = now_layout();
    let part = part_of(hash);
    target.clear();
    // Memory is got before the lock is.
    for _ in 0..3 {
        let missing = {
            let _held = AREA.lock_shared_at(part);
            // SAFETY: the part's lock is held; beside others only what is atomic is written.
            let view = unsafe { view(base(), &layout, part) };
            let entry = &view.entries[view.find(hash)? as usize];
            let bytes = entry.bytes as usize;
            if bytes <= target.capacity() {
                copy_out(&layout, entry.chunk, bytes, target);
                entry.links.ask();
                entry.hits.fetch_add(1, Ordering::Relaxed);
                return Some(Found {
                    place: (hash, entry.generation),
                    filled_at: entry.filled_at,
                    cost: entry.cost,
                });
            }
            bytes
        };
        target.try_reserve_exact(missing).ok()?;
    }
    None
}

fn copy_out(layout: &Layout, first: u32, bytes: usize, target: &mut Vec<u8>) {
    let (mut index, mut left) = (first, bytes);
    while left > 0 && index != NONE {
        // SAFETY: the store begins there; nobody writes to a chunk that can be reached.
        let chunk = unsafe { chunk(base(), layout, index) };
        let part = left.min(CHUNK_BYTES);
        target.extend_from_slice(&chunk.bytes[..part]);
        left -= part;
        index = chunk.next.load(Ordering::Relaxed);
    }
}

/// A result to be stored.
pub struct New<'a> {
    pub hash: u64,
    pub payload: &'a [u8],
    pub kind: usize,
    pub database: u32,
    pub lifetime: u64,
    pub cost: u64,
    /// The oldest transaction that its snapshot saw running.
    pub oldest: u64,
    pub weight: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    Stored,
    /// What is there was computed under a newer snapshot.
    Older,
    TooBig,
    NoRoom,
}

/// Stores a result. `evicted` is told the type of each one that makes room.
pub fn put(new: &New<'_>, mut evicted: impl FnMut(usize)) -> Put {
    let layout = now_layout();
    if new.payload.len() > longest_payload() || new.payload.is_empty() {
        return Put::TooBig;
    }
    let part = part_of(new.hash);
    let Some(first) = fill_chunks(&layout, new.payload, part, &mut evicted) else {
        return Put::NoRoom;
    };
    let (free, evicted_kind, outcome) = with_part(part, |view| {
        let mut free = NONE;
        if let Some(old) = view.find(new.hash) {
            if view.entries[old as usize].oldest > new.oldest {
                return (first, None, Put::Older);
            }
            free = view.take(old);
        }
        let mut kind = None;
        let mut second = NONE;
        if view.part.free == NONE {
            let Some((victim, chunks)) = view.evict() else {
                return (first, None, Put::NoRoom);
            };
            kind = Some(victim as usize);
            second = chunks;
        }
        let index = view.part.free;
        let bucket = view.bucket(new.hash);
        view.part.generation = view.part.generation.wrapping_add(1).max(1);
        let generation = view.part.generation;
        let now = view.now;
        let next = std::mem::replace(&mut view.buckets[bucket], index);
        let entry = &mut view.entries[index as usize];
        view.part.free = std::mem::replace(&mut entry.next, next);
        entry.hash = new.hash;
        entry.chunk = first;
        entry.bytes = new.payload.len() as u32;
        entry.generation = generation;
        entry.kind = new.kind as u32;
        entry.database = new.database;
        entry.filled_at = now;
        entry.lifetime = new.lifetime;
        entry.cost = new.cost;
        entry.oldest = new.oldest;
        entry.weight = new.weight;
        entry.hits.store(0, Ordering::Relaxed);
        let mut queued = Queued {
            entries: view.entries,
            now,
        };
        view.part.queues.insert(&mut queued, view.ghosts, index);
        // Of two chains at most one is long; both are free for others a moment later.
        if second != NONE {
            give_back(&layout, second);
        }
        (free, kind, Put::Stored)
    });
    give_back(&layout, free);
    if let Some(kind) = evicted_kind {
        evicted(kind);
    }
    outcome
}

/// Writes bytes to chunks that nobody can reach yet. `None`: there is no room.
fn fill_chunks(
    layout: &Layout,
    payload: &[u8],
    part: usize,
    evicted: &mut impl FnMut(usize),
) -> Option<u32> {
    let (mut first, mut last) = (NONE, NONE);
    let mut turn = part;
    let mut attempts = PATIENCE + payload.len().div_ceil(CHUNK_BYTES);
    for piece in payload.chunks(CHUNK_BYTES) {
        let index = loop {
            if let Some(index) = take_chunk(layout) {
                break index;
            }
            if attempts == 0 {
                give_back(layout, first);
                return None;
            }
            attempts -= 1;
            // Its own part first, then one after the other: what is worth least of all is not looked for.
            if let Some((kind, chunks)) = with_part(turn, |view| view.evict()) {
                give_back(layout, chunks);
                evicted(kind as usize);
            }
            turn = (turn + 1) % PARTS;
        };
        // SAFETY: a chunk that this process has taken off the list: nobody else reads or writes it.
        unsafe {
            let chunk = std::ptr::from_ref(chunk(base(), layout, index)).cast_mut();
            (*chunk).next.store(NONE, Ordering::Relaxed);
            std::ptr::copy_nonoverlapping(
                piece.as_ptr(),
                (&raw mut (*chunk).bytes).cast::<u8>(),
                piece.len(),
            );
            if last == NONE {
                first = index;
            } else {
                self::chunk(base(), layout, last)
                    .next
                    .store(index, Ordering::Relaxed);
            }
        }
        last = index;
    }
    Some(first)
}

/// Removes what was found, if it is still the same. Returns whether it was.
pub fn remove(found: &Found) -> bool {
    let (hash, generation) = found.place;
    let free = with_part(part_of(hash), |view| match view.find(hash) {
        Some(index) if view.entries[index as usize].generation == generation => {
            Some(view.take(index))
        }
        _ => None,
    });
    if let Some(chunks) = free {
        give_back(&now_layout(), chunks);
    }
    free.is_some()
}

/// An entry as it is listed.
pub struct Listed {
    pub hash: u64,
    pub kind: usize,
    pub database: u32,
    pub bytes: u32,
    pub filled_at: u64,
    pub cost: u64,
    pub hits: u64,
    pub payload: Vec<u8>,
}

/// Calls `each` with every entry; of each part as it is when it is looked at.
pub fn for_each(mut each: impl FnMut(Listed)) {
    let layout = now_layout();
    for part in 0..PARTS {
        let hashes: Vec<u64> = {
            let mut hashes = Vec::with_capacity(layout.entries);
            let _held = AREA.lock_shared_at(part);
            // SAFETY: the part's lock is held.
            let view = unsafe { view(base(), &layout, part) };
            hashes.extend(
                view.entries
                    .iter()
                    .filter(|entry| entry.generation != 0)
                    .map(|entry| entry.hash),
            );
            hashes
        };
        for hash in hashes {
            if let Some(listed) = list(&layout, part, hash) {
                each(listed);
            }
        }
    }
}

fn list(layout: &Layout, part: usize, hash: u64) -> Option<Listed> {
    let mut payload = Vec::new();
    for _ in 0..3 {
        let missing = {
            let _held = AREA.lock_shared_at(part);
            // SAFETY: the part's lock is held.
            let view = unsafe { view(base(), layout, part) };
            let entry = &view.entries[view.find(hash)? as usize];
            let bytes = entry.bytes as usize;
            if bytes <= payload.capacity() {
                copy_out(layout, entry.chunk, bytes, &mut payload);
                return Some(Listed {
                    hash,
                    kind: entry.kind as usize,
                    database: entry.database,
                    bytes: entry.bytes,
                    filled_at: entry.filled_at,
                    cost: entry.cost,
                    hits: entry.hits.load(Ordering::Relaxed),
                    payload: std::mem::take(&mut payload),
                });
            }
            bytes
        };
        payload.try_reserve_exact(missing).ok()?;
    }
    None
}

/// Removes the entries of which `which` says so; returns the types of those that went.
pub fn remove_if(mut which: impl FnMut(&Listed) -> bool) -> Vec<usize> {
    let mut hashes = Vec::new();
    for_each(|listed| {
        if which(&listed) {
            hashes.push((listed.hash, listed.kind));
        }
    });
    let layout = now_layout();
    let mut removed = Vec::new();
    for (hash, kind) in hashes {
        let chunks = with_part(part_of(hash), |view| {
            view.find(hash).map(|index| view.take(index))
        });
        if let Some(chunks) = chunks {
            give_back(&layout, chunks);
            removed.push(kind);
        }
    }
    removed
}

/// Removes everything. Returns how much that was.
pub fn clear() -> u64 {
    remove_if(|_| true).len() as u64
}
