//! The last slow statements: a ring that all backends write to and that has no lock. A writer takes a number, which is its cell,
//! and room for its texts in a second ring; a reader knows by the cell's number and by a checksum whether what it copied is one
//! whole record. A writer that was overtaken by so many others that they met in one cell leaves a record that nobody reads.

use crate::pg::clock;
use crate::pg::shmem::Area;
use crate::settings;
use pgrx::{pg_guard, pg_shmem_init, pg_sys};
use std::mem::offset_of;
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering, fence};

/// Room for texts for each cell, on average.
const BYTES_PER_CELL: usize = 8_192;
/// Longest text of a statement, and longest list of parameters.
pub const TEXT_BYTES: usize = 8_192;
/// Wait events of a statement that are told apart.
pub const WAITS: usize = 8;
/// Block counters of a statement.
pub const BLOCKS: usize = 10;

/// How a statement ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Status {
    Ok,
    Error,
    Cancelled,
}

impl Status {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Error => "error",
            Self::Cancelled => "cancelled",
        }
    }
}

/// A slow statement, but for its texts.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Record {
    /// Microseconds of the server's epoch.
    pub captured_at: i64,
    pub query_id: u64,
    pub nanoseconds: u64,
    pub planning_nanoseconds: u64,
    pub rows: u64,
    /// Shared hit, read, dirtied, written; local hit, read, dirtied, written; temporary read, written.
    pub blocks: [u64; BLOCKS],
    pub wal_bytes: u64,
    pub database: u32,
    pub role: u32,
    pub pid: i32,
    /// The server's packed form.
    pub sqlstate: i32,
    pub level: u32,
    pub status: u32,
    pub application_name: [u8; 64],
    pub client_address: [u8; 64],
    /// Wait event and number of samples.
    pub waits: [(u32, u32); WAITS],
    texts_at: u64,
    /// Bytes of the text, the parameters and the plan; `ABSENT`: there is none.
    lengths: [u32; 3],
    _reserved: u32,
    checksum: u64,
}

const ABSENT: u32 = u32::MAX;
const WORDS: usize = size_of::<Record>() / 8;
const _: () = assert!(size_of::<Record>() == WORDS * 8);
const _: () = assert!(offset_of!(Record, database).is_multiple_of(8));

impl Record {
    pub const EMPTY: Self = Self {
        captured_at: 0,
        query_id: 0,
        nanoseconds: 0,
        planning_nanoseconds: 0,
        rows: 0,
        blocks: [0; BLOCKS],
        wal_bytes: 0,
        database: 0,
        role: 0,
        pid: 0,
        sqlstate: 0,
        level: 0,
        status: 0,
        application_name: [0; 64],
        client_address: [0; 64],
        waits: [(0, 0); WAITS],
        texts_at: 0,
        lengths: [ABSENT; 3],
        _reserved: 0,
        checksum: 0,
    };

    pub const fn status(&self) -> Status {
        match self.status {
            0 => Status::Ok,
            2 => Status::Cancelled,
            _ => Status::Error,
        }
    }

    fn words(&self) -> [u64; WORDS] {
        // SAFETY: a structure of integers without padding, of that size.
        unsafe { std::mem::transmute_copy(self) }
    }

    fn from_words(words: &[u64; WORDS]) -> Self {
        // SAFETY: as above; every pattern of bits is valid.
        unsafe { std::mem::transmute_copy(words) }
    }
}

/// A record with its number and its texts.
pub struct Slow {
    pub number: u64,
    pub record: Record,
    pub query: Option<String>,
    pub parameters: Option<String>,
    pub plan: Option<String>,
}

#[repr(C)]
struct Cell {
    /// Twice the number of the record plus 1 while it is written, plus 2 when it is there.
    state: AtomicU64,
    /// Number of the last record of this cell that is on disk.
    stored: AtomicU64,
    words: [AtomicU64; WORDS],
}

#[repr(C)]
struct Heading {
    /// Number of the next record.
    next: AtomicU64,
    /// Where the next texts go, in words since the start.
    texts_next: AtomicU64,
    /// Number of the first record of this run of the server.
    base: AtomicU64,
    /// Records before this one were reset.
    first: AtomicU64,
    /// Records that were overwritten before a worker had stored them.
    lost: AtomicU64,
    /// Plans that could not be made.
    failed_plans: AtomicU64,
    started_at: AtomicI64,
    keepers: [Keeper; KEEPERS],
    /// How many shapes have become known; 0: none ever.
    shapes: AtomicU64,
    /// Shapes of statements that were slow, in the place that belongs to them. The last four bits count down with each time that
    /// one was fast.
    known: [AtomicU64; SHAPES],
}

/// A database whose worker stores its records.
#[repr(C)]
struct Keeper {
    database: AtomicU32,
    /// Until when it is counted on, in microseconds of the server's epoch.
    until: AtomicI64,
}

/// Databases for which it is known what was overwritten before it was stored.
const KEEPERS: usize = 64;
/// Numbers of one run of the server are so far from those of the next, for each millisecond between their starts.
const NUMBERS_A_MILLISECOND: u64 = 1 << 20;
const SHAPES: usize = 1_024;
const PATIENCE: u64 = 15;

// SAFETY: the name is ours alone; what is measured is what is filled.
static AREA: Area = unsafe { Area::new(c"audit_db slow queries", size, 0, fill) };

pub(super) fn request() {
    pg_shmem_init!(AREA = ());
}

fn shape_place(shape: u64) -> &'static AtomicU64 {
    &heading().known[(shape >> 54) as usize % SHAPES]
}

/// Whether any statement was slow.
#[inline]
pub fn knows_any() -> bool {
    heading().shapes.load(Ordering::Relaxed) != 0
}

/// Whether a statement of this shape was slow, and not too often fast since.
#[inline]
pub fn is_known(shape: u64) -> bool {
    let known = shape_place(shape).load(Ordering::Relaxed);
    known & !PATIENCE == shape & !PATIENCE && known & PATIENCE != 0
}

/// A statement of this shape was slow.
pub fn learn(shape: u64) {
    shape_place(shape).store(shape | PATIENCE, Ordering::Relaxed);
    heading().shapes.fetch_add(1, Ordering::Relaxed);
}

/// One that was to be slow was not.
pub fn note_fast(shape: u64) {
    if is_known(shape) {
        shape_place(shape).fetch_sub(1, Ordering::Relaxed);
    }
}

/// How many records there is room for.
pub fn capacity() -> u64 {
    (settings::slow_query_ring_size() / (BYTES_PER_CELL + size_of::<Cell>())).max(16) as u64
}

fn text_words() -> u64 {
    capacity() * (BYTES_PER_CELL / 8) as u64
}

/// Longest plan that is kept, in bytes.
pub fn plan_bytes() -> usize {
    usize::try_from(text_words())
        .unwrap_or(usize::MAX)
        .min(131_072)
}

fn size() -> usize {
    size_of::<Heading>() + capacity() as usize * size_of::<Cell>() + text_words() as usize * 8
}

unsafe fn fill(address: *mut u8) {
    // SAFETY: by contract as large as measured; integers, for which zero is valid.
    unsafe { address.write_bytes(0, size()) };
    let heading = heading_at(address);
    let now = clock::wall();
    // No other run has these numbers, on this server or on the one whose standby it was.
    let base = (now / 1_000).unsigned_abs() * NUMBERS_A_MILLISECOND + 1;
    heading.next.store(base, Ordering::Relaxed);
    heading.base.store(base, Ordering::Relaxed);
    heading.first.store(base, Ordering::Relaxed);
    heading.started_at.store(now, Ordering::Relaxed);
}

fn heading_at(address: *mut u8) -> &'static Heading {
    // SAFETY: the area begins with it and stays mapped; all of it is atomic.
    unsafe { &*address.cast::<Heading>() }
}

fn heading() -> &'static Heading {
    heading_at(AREA.address())
}

fn cell(number: u64) -> &'static Cell {
    let index = (number % capacity()) as usize;
    // SAFETY: within the area; all of it is atomic.
    unsafe {
        &*AREA
            .address()
            .add(size_of::<Heading>())
            .cast::<Cell>()
            .add(index)
    }
}

fn text_word(at: u64) -> &'static AtomicU64 {
    let first = size_of::<Heading>() + capacity() as usize * size_of::<Cell>();
    // SAFETY: within the area; all of it is atomic.
    unsafe {
        &*AREA
            .address()
            .add(first)
            .cast::<AtomicU64>()
            .add((at % text_words()) as usize)
    }
}

/// Mixes a word into a checksum: multiplication and rotation, as FxHash does.
const fn mix(sum: u64, word: u64) -> u64 {
    (sum.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95)
}

fn checksum(record: &Record, texts: &[u64]) -> u64 {
    let mut record = *record;
    record.checksum = 0;
    record
        .words()
        .iter()
        .chain(texts)
        .fold(0x9e37_79b9_7f4a_7c15, |sum, word| mix(sum, *word))
}

/// Writes a record. Never waits, never fails.
pub fn publish(mut record: Record, query: &str, parameters: Option<&str>, plan: Option<&str>) {
    let texts = [Some(query), parameters, plan];
    let mut bytes: Vec<u8> = Vec::new();
    for (length, text) in record.lengths.iter_mut().zip(texts) {
        *length = text.map_or(ABSENT, |text| text.len() as u32);
        bytes.extend_from_slice(text.unwrap_or("").as_bytes());
    }
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    let words: Vec<u64> = bytes
        .chunks_exact(8)
        .map(|chunk| u64::from_le_bytes(chunk.try_into().unwrap_or_default()))
        .collect();
    let heading = heading();
    if words.len() as u64 > text_words() {
        return;
    }
    record.texts_at = heading
        .texts_next
        .fetch_add(words.len() as u64, Ordering::Relaxed);
    record.checksum = checksum(&record, &words);
    for (index, word) in words.iter().enumerate() {
        text_word(record.texts_at + index as u64).store(*word, Ordering::Relaxed);
    }
    let number = heading.next.fetch_add(1, Ordering::Relaxed);
    let cell = cell(number);
    if is_lost(cell) {
        note_lost(1);
    }
    cell.state.store(number * 2 + 1, Ordering::Relaxed);
    fence(Ordering::Release);
    for (target, word) in cell.words.iter().zip(record.words()) {
        target.store(word, Ordering::Relaxed);
    }
    cell.state.store(number * 2 + 2, Ordering::Release);
}

/// Whether what is in a cell was to be stored and is not.
fn is_lost(cell: &Cell) -> bool {
    let state = cell.state.load(Ordering::Relaxed);
    if state == 0 || state % 2 == 1 {
        return false;
    }
    let number = state / 2 - 1;
    let database = cell.words[offset_of!(Record, database) / 8].load(Ordering::Relaxed) as u32;
    number >= heading().first.load(Ordering::Relaxed)
        && cell.stored.load(Ordering::Relaxed) != number
        && is_kept(database)
}

fn is_kept(database: u32) -> bool {
    let now = clock::wall();
    heading().keepers.iter().any(|keeper| {
        keeper.database.load(Ordering::Relaxed) == database
            && keeper.until.load(Ordering::Relaxed) > now
    })
}

/// The worker of this database stores what comes, and says so again before this time.
pub fn keep(database: u32, until: i64) {
    let keepers = &heading().keepers;
    let mine = |keeper: &&Keeper| keeper.database.load(Ordering::Relaxed) == database;
    let now = clock::wall();
    let free = |keeper: &&Keeper| keeper.until.load(Ordering::Relaxed) < now;
    // Two that take the same place at the same time come again.
    if let Some(keeper) = keepers
        .iter()
        .find(mine)
        .or_else(|| keepers.iter().find(free))
    {
        keeper.database.store(database, Ordering::Relaxed);
        keeper.until.store(until, Ordering::Relaxed);
    }
}

/// A record is on disk.
pub fn note_stored(number: u64) {
    cell(number).stored.store(number, Ordering::Relaxed);
}

/// Whether a record is still being written, or about to be.
pub fn is_pending(number: u64) -> bool {
    cell(number).state.load(Ordering::Acquire) < number * 2 + 2
}

/// The number of the next record.
pub fn next() -> u64 {
    heading().next.load(Ordering::Acquire)
}

/// The oldest number that can still be read.
pub fn oldest() -> u64 {
    next()
        .saturating_sub(capacity())
        .max(heading().first.load(Ordering::Relaxed))
}

/// The number of this run's first record.
pub fn base() -> u64 {
    heading().base.load(Ordering::Relaxed)
}

/// A record, where it is whole.
pub fn read(number: u64) -> Option<Slow> {
    let cell = cell(number);
    if cell.state.load(Ordering::Acquire) != number * 2 + 2 {
        return None;
    }
    let words: [u64; WORDS] = std::array::from_fn(|i| cell.words[i].load(Ordering::Relaxed));
    fence(Ordering::Acquire);
    if cell.state.load(Ordering::Relaxed) != number * 2 + 2 {
        return None;
    }
    let record = Record::from_words(&words);
    let length = |index: usize| match record.lengths[index] {
        ABSENT => 0,
        length => length as usize,
    };
    let bytes = length(0) + length(1) + length(2);
    let count = bytes.div_ceil(8) as u64;
    if count > text_words() {
        return None;
    }
    let texts: Vec<u64> = (0..count)
        .map(|index| text_word(record.texts_at + index).load(Ordering::Relaxed))
        .collect();
    if checksum(&record, &texts) != record.checksum {
        return None;
    }
    let texts: Vec<u8> = texts.iter().flat_map(|word| word.to_le_bytes()).collect();
    let mut from = 0;
    let mut text = |index: usize| {
        let to = from + length(index);
        let part = texts.get(from..to);
        from = to;
        (record.lengths[index] != ABSENT)
            .then(|| part.map(|part| String::from_utf8_lossy(part).into_owned()))
            .flatten()
    };
    Some(Slow {
        number,
        query: text(0),
        parameters: text(1),
        plan: text(2),
        record,
    })
}

/// Forgets all records.
pub fn reset() {
    let heading = heading();
    heading.first.store(next(), Ordering::Relaxed);
    heading.lost.store(0, Ordering::Relaxed);
    heading.failed_plans.store(0, Ordering::Relaxed);
}

pub fn note_lost(records: u64) {
    heading().lost.fetch_add(records, Ordering::Relaxed);
}

pub fn note_failed_plan() {
    heading().failed_plans.fetch_add(1, Ordering::Relaxed);
}

/// Records that were overwritten before they were stored, and plans that could not be made.
pub fn losses() -> (u64, u64) {
    let heading = heading();
    (
        heading.lost.load(Ordering::Relaxed),
        heading.failed_plans.load(Ordering::Relaxed),
    )
}

/// When the ring was made.
pub fn started_at() -> i64 {
    heading().started_at.load(Ordering::Relaxed)
}
