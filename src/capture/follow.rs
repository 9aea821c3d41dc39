//! Every statement comes through here: nothing is allocated, nobody else's memory is written, nothing is raised. What a backend
//! has open is in a few static arrays: statements from the start of their executor to its end (cursors interleave), and the calls
//! into the executor or a utility command that are going on, innermost last. An error leaves those without a word; the abort of
//! the transaction or subtransaction that they ran in tells.

use super::record;
use crate::pg::clock;
use crate::pg::memory::BackendLocal;
use crate::pg::statement_hooks::{self as hooks, Listener, Query, Source, Usage, Utility};
use crate::pg::{scanner, transaction};
use crate::settings::{self, Plans};
use crate::shmem::slow_ring::{self, Status};
use crate::shmem::statistics::{self, Counted, Key, Mine, SUMS, Sample, Sum};
use audit_db_core::histogram::bucket;
use audit_db_core::statement_text::Values;
use std::ffi::c_int;

/// Statements that can be open at a time.
const FRAMES: usize = 32;
/// Calls that can be going on at a time.
const CALLS: usize = 64;
/// Longest text of a statement that failed: it must be copied while it fails.
const SAVED_BYTES: usize = 4_096;
const NO_TOKEN: u32 = u32::MAX;
/// Token of a utility command that has another statement run: nothing was begun.
const TRANSPARENT: u32 = u32::MAX - 1;
const NO_FRAME: usize = usize::MAX;
/// The transaction itself, among its subtransactions.
const TOP: u32 = 1;

/// An open statement.
#[derive(Clone, Copy)]
struct Frame {
    query: Option<Query>,
    source: Source,
    /// In the executor, or in the utility command.
    nanoseconds: u64,
    planning: u64,
    rows: u64,
    before: Usage,
    /// The same when its last call came back, where somebody else has run since.
    after: Usage,
    rested: bool,
    subtransaction: u32,
    role: u32,
    level: u32,
    /// The server's id of the statement; 0 where it computes none.
    id: u64,
    /// Command tag of a utility command.
    tag: u32,
    /// When its last call began, for the waits that were sampled.
    since: u64,
    sampled: bool,
    instrumented: bool,
    /// Length of the text that was copied when it failed.
    saved: u16,
}

/// A call that is going on.
#[derive(Clone, Copy)]
struct Call {
    frame: usize,
    started: u64,
    subtransaction: u32,
    level: u32,
    /// What was reported last within it, and when.
    sqlstate: c_int,
    reported: u64,
}

/// Looked at as one word by every transaction.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Open {
    /// One bit a frame in use.
    used: u32,
    level: u32,
}

impl Open {
    #[inline(always)]
    fn any(self) -> bool {
        (u64::from(self.used) | u64::from(self.level) << 32) != 0
    }
}

struct State {
    mine: Option<Mine>,
    followed: bool,
    pid: i32,
    database: u32,
    frames: [Frame; FRAMES],
    open: Open,
    /// Where the last one was found.
    last: usize,
    /// The statement that it is in, if it is still open.
    last_query: Option<Query>,
    calls: [Call; CALLS],
    depth: usize,
    subtransaction: u32,
    /// Whether the client's statement is one of those that slow statements are looked for in.
    sampled: bool,
    random: u64,
    /// The frame whose executor is starting.
    starting: usize,
    planned: u64,
    /// Of which statement.
    planned_fingerprint: u64,
    /// What went to the log last.
    failed: c_int,
    /// What was reported last, whether it went to the log or not.
    reported: c_int,
    /// When the client's last statement ended.
    ended: u64,
    /// The same, of a statement that never got so far as to be followed and took this long.
    unfollowed: u64,
    unfollowed_length: u16,
    unfollowed_sqlstate: c_int,
    saved: [[u8; SAVED_BYTES]; FRAMES + 1],
}

const NO_CALL: Call = Call {
    frame: NO_FRAME,
    started: 0,
    subtransaction: 0,
    level: 0,
    sqlstate: 0,
    reported: 0,
};

const NO_STATEMENT: Frame = Frame {
    query: None,
    source: Source::NONE,
    nanoseconds: 0,
    planning: 0,
    rows: 0,
    before: Usage::NONE,
    after: Usage::NONE,
    rested: false,
    subtransaction: 0,
    role: 0,
    level: 0,
    id: 0,
    tag: 0,
    since: 0,
    sampled: false,
    instrumented: false,
    saved: 0,
};

static STATE: BackendLocal<State> = BackendLocal::new(State {
    mine: None,
    followed: true,
    pid: 0,
    database: 0,
    frames: [NO_STATEMENT; FRAMES],
    open: Open { used: 0, level: 0 },
    last: 0,
    last_query: None,
    calls: [NO_CALL; CALLS],
    depth: 0,
    subtransaction: TOP,
    sampled: true,
    random: 0,
    starting: NO_FRAME,
    planned: 0,
    planned_fingerprint: 0,
    failed: 0,
    reported: 0,
    ended: 0,
    unfollowed: 0,
    unfollowed_length: 0,
    unfollowed_sqlstate: 0,
    saved: [[0; SAVED_BYTES]; FRAMES + 1],
});

/// The state of this backend. No reference lives across a call that could come back here.
#[inline]
fn state() -> &'static mut State {
    STATE.get()
}

/// What a statement was, for the record of a slow one.
pub struct Ended<'a> {
    /// While its executor is still there.
    pub query: Option<Query>,
    pub text: &'a [u8],
    pub values: Values,
    pub query_id: u64,
    pub nanoseconds: u64,
    pub planning: u64,
    pub rows: u64,
    pub used: Usage,
    pub database: u32,
    pub role: u32,
    pub pid: i32,
    pub level: u32,
    pub status: Status,
    pub sqlstate: c_int,
    pub waits: [(u32, u32); slow_ring::WAITS],
}

/// `query_canceled`, packed.
const CANCELED: c_int = pack(*b"57014");
#[inline]
fn is_slow(nanoseconds: u64) -> bool {
    let threshold = settings::slow_query_threshold();
    threshold >= 0 && nanoseconds >= threshold as u64 * 1_000_000
}

/// Success and warnings: no errors.
const SUCCESS_CLASS: c_int = 0;
const WARNING_CLASS: c_int = 1 << 6;
/// Syntax errors, and names that mean nothing.
const SYNTAX_CLASS: c_int = pack(*b"42000") & 0xfff;

/// Whether a utility command may have failed because it was not understood: not where it came as far as to wait, or to run out of
/// something.
const fn may_be_misread(sqlstate: c_int) -> bool {
    const UNDERSTOOD: [c_int; 5] = [
        SUCCESS_CLASS,
        pack(*b"40000") & 0xfff,
        pack(*b"53000") & 0xfff,
        pack(*b"55000") & 0xfff,
        pack(*b"57000") & 0xfff,
    ];
    let mut index = 0;
    while index < UNDERSTOOD.len() {
        if sqlstate & 0xfff == UNDERSTOOD[index] {
            return false;
        }
        index += 1;
    }
    true
}

const fn pack(code: [u8; 5]) -> c_int {
    let mut packed = 0;
    let mut index = 0;
    while index < 5 {
        packed |= ((code[index] - b'0') as c_int & 0x3f) << (6 * index);
        index += 1;
    }
    packed
}

const fn is_error(sqlstate: c_int) -> bool {
    let class = sqlstate & 0xfff;
    class != SUCCESS_CLASS && class != WARNING_CLASS
}

const fn status_of(sqlstate: c_int) -> Status {
    match sqlstate {
        0 => Status::Ok,
        CANCELED => Status::Cancelled,
        _ => Status::Error,
    }
}

impl Frame {
    #[inline]
    fn used(&self) -> Usage {
        if self.since == 0 {
            return Usage::NONE;
        }
        if self.rested {
            return self.after.since(&self.before);
        }
        Usage::now().since(&self.before)
    }

    /// Somebody else begins to run.
    fn rest(&mut self) {
        if !self.rested && self.since != 0 {
            self.after = Usage::now();
            self.rested = true;
        }
    }

    /// It goes on after a rest: what others have used meanwhile is not its.
    #[cold]
    fn resume(&mut self) {
        if self.rested {
            self.before = Usage::now().since(&self.after.since(&self.before));
            self.rested = false;
        }
    }
}

impl State {
    #[cold]
    #[inline(never)]
    fn get_ready(&mut self) -> Option<Mine> {
        if !self.followed {
            return None;
        }
        self.followed = hooks::is_followed();
        if !self.followed {
            return None;
        }
        // The postmaster's children inherit what it finds.
        (self.pid, self.database) = hooks::who();
        self.mine = Some(Mine::new(self.pid, self.database)?);
        self.random = clock::monotonic() ^ (self.pid as u64) << 32 | 1;
        self.mine
    }

    #[inline]
    fn mine(&mut self) -> Option<Mine> {
        match self.mine {
            // A worker can connect, and learn its database, after its first look.
            Some(mine) if self.database != 0 => Some(mine),
            _ => self.get_ready(),
        }
    }

    /// Decides for a statement of the client; those within follow it.
    #[inline]
    fn draw(&mut self) {
        self.failed = 0;
        self.reported = 0;
        let rate = settings::slow_query_sample_rate();
        self.sampled = if rate >= 1.0 {
            true
        } else {
            // Marsaglia's xorshift.
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            ((self.random >> 11) as f64) < rate * (1u64 << 53) as f64
        };
    }

    #[inline]
    fn open(&mut self, mine: Mine, query: Option<Query>, source: Source, level: u32) -> usize {
        if self.open.used != 0 && query.is_some() {
            self.forget(query);
        }
        let index = (!self.open.used).trailing_zeros() as usize;
        let Some(frame) = self.frames.get_mut(index) else {
            mine.note_untracked();
            return NO_FRAME;
        };
        frame.query = query;
        frame.source = source;
        frame.nanoseconds = 0;
        frame.planning = 0;
        frame.rows = 0;
        frame.subtransaction = self.subtransaction;
        frame.role = hooks::role();
        frame.level = level;
        frame.id = query.map_or(0, Query::id);
        frame.tag = 0;
        frame.since = 0;
        frame.sampled = self.sampled;
        frame.instrumented = false;
        frame.saved = 0;
        frame.rested = false;
        scanner::note_setting();
        self.open.used |= 1 << index;
        self.last = index;
        self.last_query = query;
        index
    }

    /// Statements whose executor nobody has ended, and where another one lies now.
    #[cold]
    fn forget(&mut self, query: Option<Query>) {
        self.last_query = None;
        for index in bits(self.open.used) {
            if self.frames[index].query == query {
                self.open.used &= !(1 << index);
            }
        }
    }

    #[inline(always)]
    fn find(&mut self, query: Query) -> usize {
        if self.last_query == Some(query) {
            return self.last;
        }
        self.search(query)
    }

    #[cold]
    #[inline(never)]
    fn search(&mut self, query: Query) -> usize {
        let mut left = self.open.used;
        while left != 0 {
            let index = left.trailing_zeros() as usize;
            left &= left - 1;
            if let Some(frame) = self.frames.get(index)
                && frame.query == Some(query)
            {
                self.last = index;
                self.last_query = Some(query);
                return index;
            }
        }
        NO_FRAME
    }

    /// A call into the executor or a utility command begins.
    #[inline(always)]
    fn enter(&mut self, mine: Mine, index: usize, goes_on: bool) -> u32 {
        let depth = self.depth;
        if self.open.used & self.open.used.wrapping_sub(1) != 0 {
            self.rest_others(index);
        }
        let (Some(call), Some(frame)) = (self.calls.get_mut(depth), self.frames.get_mut(index))
        else {
            return NO_TOKEN;
        };
        let now = clock::monotonic();
        call.frame = index;
        call.started = now;
        call.subtransaction = self.subtransaction;
        call.level = self.open.level;
        call.sqlstate = 0;
        if frame.since == 0 {
            frame.before = Usage::now();
            frame.since = now;
        } else {
            frame.resume();
            if !goes_on {
                frame.since = now;
            }
        }
        self.depth = depth + 1;
        self.open.level += 1;
        if depth == 0 {
            hooks::watch_errors();
            mine.begin(frame.since, frame.role);
        }
        depth as u32
    }

    /// Cursors do not pay for what others do while they rest.
    #[cold]
    #[inline(never)]
    fn rest_others(&mut self, index: usize) {
        let mut running = 1u32.checked_shl(index as u32).unwrap_or(0);
        for call in self.calls.iter().take(self.depth) {
            running |= 1u32.checked_shl(call.frame as u32).unwrap_or(0);
        }
        for index in bits(self.open.used & !running) {
            self.frames[index].rest();
        }
    }

    /// It has come back. Returns its frame.
    #[inline(always)]
    fn leave(&mut self, mine: Mine, token: u32) -> usize {
        let Some(call) = self.calls.get(token as usize) else {
            return NO_FRAME;
        };
        if token as usize >= self.depth {
            return NO_FRAME;
        }
        let (index, started) = (call.frame, call.started);
        self.open.level = call.level;
        // Also those within that an error ended without a word.
        self.depth = token as usize;
        if let Some(frame) = self.frames.get_mut(index) {
            let now = clock::monotonic();
            frame.nanoseconds += now.saturating_sub(started);
            self.ended = now;
        }
        if token == 0 {
            hooks::unwatch_errors();
            mine.end();
        }
        index
    }

    /// Copies the text of a statement while it is certainly there: it is in the executor or a utility command.
    #[cold]
    #[inline(never)]
    fn save(&mut self, index: usize) {
        let (Some(frame), Some(saved)) = (self.frames.get_mut(index), self.saved.get_mut(index))
        else {
            return;
        };
        let text = frame.source.bytes();
        let length = text.len().min(SAVED_BYTES);
        saved[..length].copy_from_slice(&text[..length]);
        frame.saved = length as u16;
    }
}

/// A statement has ended. Where it was slow, output functions of types may run, which is code of users: no reference to the state
/// lives across that.
#[inline]
fn close(mine: Mine, index: usize, query: Option<Query>, sqlstate: c_int) {
    let state = state();
    let Some(frame) = state.frames.get(index) else {
        return;
    };
    let total = frame.nanoseconds + frame.planning;
    let place = bucket(total);
    let instrumented = frame.instrumented;
    let slow = frame.sampled && is_slow(total);
    if frame.level == 0 {
        mine.total(total, place, sqlstate != 0);
    }
    state.open.used &= !(1 << index);
    state.last_query = None;
    if settings::query_stats() {
        let sample = sample(frame, place, sqlstate);
        if let Some(key) = key(state.database, frame) {
            let counted = statistics::count(mine, &key, &sample);
            if counted != Counted::Done {
                introduce(mine, index, query, sqlstate, counted);
            }
        }
    }
    if slow {
        note_slow(mine, index, query, sqlstate);
    } else if instrumented && let Some(query) = query {
        slow_ring::note_fast(query.shape());
    }
}

/// What a statement is counted as. `None`: it cannot be told from others.
#[inline(always)]
fn key(database: u32, frame: &Frame) -> Option<Key> {
    let query = if frame.query.is_none() {
        utility_id(frame.tag)
    } else {
        frame.id
    };
    (query != 0).then_some(Key {
        query,
        database,
        role: frame.role,
        top_level: frame.level == 0,
    })
}

/// `place` is that of its duration with planning, in a histogram.
#[inline(always)]
fn sample(frame: &Frame, place: usize, sqlstate: c_int) -> Sample {
    // The call comes before what would have to be kept across it.
    let at = hooks::message_time();
    let used = frame.used();
    let mut sums = [0; SUMS];
    sums[Sum::Calls as usize] = 1;
    sums[Sum::Errors as usize] = (sqlstate != 0).into();
    sums[Sum::Nanoseconds as usize] = frame.nanoseconds;
    sums[Sum::PlanningNanoseconds as usize] = frame.planning;
    sums[Sum::Rows as usize] = frame.rows;
    sums[Sum::SharedHit as usize] = used.blocks[0];
    sums[Sum::SharedRead as usize] = used.blocks[1];
    sums[Sum::SharedDirtied as usize] = used.blocks[2];
    sums[Sum::SharedWritten as usize] = used.blocks[3];
    sums[Sum::TempRead as usize] = used.blocks[8];
    sums[Sum::TempWritten as usize] = used.blocks[9];
    sums[Sum::WalBytes as usize] = used.wal_bytes;
    Sample {
        sums,
        bucket: if frame.planning == 0 {
            place
        } else {
            bucket(frame.nanoseconds)
        },
        at,
    }
}

/// The first of its kind in this backend, or since the table has forgotten it.
#[cold]
#[inline(never)]
fn introduce(mine: Mine, index: usize, query: Option<Query>, sqlstate: c_int, counted: Counted) {
    let database = state().database;
    let Some(frame) = state().frames.get(index).copied() else {
        return;
    };
    let frame = &frame;
    let Some(key) = key(database, frame) else {
        return;
    };
    let name = || {
        if frame.query.is_none() {
            hooks::tag_name(frame.tag).to_owned()
        } else {
            record::normalize(text(frame, index, query.is_some()), Values::Constants)
        }
    };
    if counted == Counted::Unknown {
        let place = bucket(frame.nanoseconds + frame.planning);
        statistics::admit(mine, &key, &sample(frame, place, sqlstate), name);
    } else {
        statistics::learn_again(mine, &key, &name());
    }
}

/// The text of a statement: its own while it is there, else what was copied when it failed.
fn text(frame: &Frame, index: usize, alive: bool) -> &'static [u8] {
    if alive {
        // The result is used before the statement ends.
        return frame.source.bytes();
    }
    state()
        .saved
        .get(index)
        .and_then(|saved| saved.get(..usize::from(frame.saved)))
        .unwrap_or(&[])
}

#[cold]
#[inline(never)]
fn note_slow(mine: Mine, index: usize, query: Option<Query>, sqlstate: c_int) {
    let Some(frame) = state().frames.get(index).copied() else {
        return;
    };
    let frame = &frame;
    let utility = frame.query.is_none();
    // A utility command's text outlives it, but not an error.
    let alive = query.is_some() || (utility && sqlstate == 0);
    let (pid, database) = (state().pid, state().database);
    if frame.level == 0 {
        mine.note_slow();
    }
    unfollowed(|| {
        record::record(&Ended {
            query,
            text: text(frame, index, alive),
            values: if !utility {
                Values::Constants
            } else if may_be_misread(sqlstate) {
                // What is within a command is understood while it runs, or not.
                Values::Names
            } else {
                Values::Settings
            },
            query_id: frame.id,
            nanoseconds: frame.nanoseconds,
            planning: frame.planning,
            rows: frame.rows,
            used: frame.used(),
            database,
            role: frame.role,
            pid,
            level: frame.level,
            status: status_of(sqlstate),
            sqlstate,
            waits: if frame.level == 0 {
                mine.waits(frame.since)
            } else {
                [(0, 0); slow_ring::WAITS]
            },
        });
    });
}

/// Runs what may itself run statements.
fn unfollowed(body: impl FnOnce()) {
    let mine = std::mem::take(&mut state().mine);
    state().followed = false;
    body();
    state().mine = mine;
    state().followed = true;
}

/// The calls from this depth on, and the statements that began in these subtransactions, have come to nothing.
fn fail(mine: Mine, depth: usize, subtransaction: u32) {
    while state().depth > depth {
        let state = state();
        state.depth -= 1;
        let Some(call) = state.calls.get(state.depth).copied() else {
            continue;
        };
        state.open.level = call.level;
        // What went to the log is what the client gets. What was reported before that may have been a notice on the way.
        let sqlstate = [state.failed, call.sqlstate, state.reported, INTERNAL_ERROR]
            .into_iter()
            .find(|sqlstate| *sqlstate != 0)
            .unwrap_or(INTERNAL_ERROR);
        if let Some(frame) = state.frames.get_mut(call.frame) {
            let ended = if call.sqlstate == sqlstate {
                call.reported
            } else {
                clock::monotonic()
            };
            frame.nanoseconds += ended.saturating_sub(call.started);
        }
        if state.depth == 0 {
            mine.end();
        }
        if state.open.used & 1u32.checked_shl(call.frame as u32).unwrap_or(0) != 0 {
            close(mine, call.frame, None, sqlstate);
        }
    }
    for index in bits(state().open.used) {
        let state = state();
        let Some(frame) = state.frames.get(index) else {
            continue;
        };
        if frame.query.is_none() || frame.subtransaction < subtransaction {
            continue;
        }
        // One that could not even start has failed, too; a cursor that rested has just ended.
        let sqlstate = if index != state.starting {
            0
        } else if state.failed == 0 {
            INTERNAL_ERROR
        } else {
            state.failed
        };
        if sqlstate == 0 && frame.nanoseconds == 0 {
            state.open.used &= !(1 << index);
            state.last_query = None;
        } else {
            close(mine, index, None, sqlstate);
        }
    }
    let state = state();
    state.starting = NO_FRAME;
    state.open.level = state
        .depth
        .checked_sub(1)
        .and_then(|last| state.calls.get(last))
        .map_or(0, |call| call.level + 1);
}

/// The numbers of the bits that are set.
fn bits(mut left: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        (left != 0).then(|| {
            let index = left.trailing_zeros() as usize;
            left &= left - 1;
            index
        })
    })
}

const INTERNAL_ERROR: c_int = pack(*b"XX000");

/// Utility commands have no ids of the server's that would not depend on their constants: all of a kind are one.
const fn utility_id(tag: u32) -> u64 {
    (tag as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// The statements of this backend.
pub struct Statements;

impl Listener for Statements {
    #[inline]
    fn is_on() -> bool {
        super::is_on()
    }

    #[inline]
    fn plans() -> u32 {
        let state = state();
        let level = state.open.level;
        state.open.level = level + 1;
        level
    }

    #[inline]
    fn planned(nanoseconds: u64, fingerprint: u64, level: u32) {
        let state = state();
        state.open.level = level;
        state.planned = nanoseconds;
        state.planned_fingerprint = fingerprint;
    }

    #[inline]
    fn starts(query: Query, source: Source) -> (c_int, u32) {
        let state = state();
        let before = state.open.level;
        let Some(mine) = state.mine() else {
            return (0, before);
        };
        // What the server runs by itself at a commit is nobody's statement.
        let level = if before == 0 && !hooks::has_portal() {
            1
        } else {
            before
        };
        if level == 0 {
            state.draw();
        }
        let index = state.open(mine, Some(query), source, level);
        state.starting = index;
        state.open.level = level + 1;
        let planned = std::mem::take(&mut state.planned);
        let fits =
            planned != 0 && state.planned_fingerprint == hooks::fingerprint_of(query, source);
        let instrument = settings::slow_query_threshold() >= 0
            && settings::slow_query_plan() == Plans::Analyze
            && slow_ring::knows_any()
            && slow_ring::is_known(query.shape());
        if let Some(frame) = state.frames.get_mut(index) {
            if fits {
                frame.planning = planned;
            }
            frame.instrumented = instrument;
        }
        let options = if instrument {
            hooks::INSTRUMENT_NODES
        } else {
            0
        };
        (options, before)
    }

    #[inline]
    fn started(level: u32) {
        let state = state();
        state.starting = NO_FRAME;
        state.open.level = level;
    }

    #[inline(always)]
    fn runs(query: Query, finishes: bool) -> u32 {
        let state = state();
        let Some(mine) = state.mine else {
            return NO_TOKEN;
        };
        let index = state.find(query);
        state.enter(mine, index, finishes)
    }

    #[inline(always)]
    fn rests(token: u32, rows: u64) {
        if token >= TRANSPARENT {
            return;
        }
        let state = state();
        let Some(mine) = state.mine else { return };
        let index = state.leave(mine, token);
        if let Some(frame) = state.frames.get_mut(index) {
            frame.rows += rows;
            // It may be a cursor that goes without the executor's word, and its text with it.
            if is_slow(frame.nanoseconds + frame.planning) {
                state.save(index);
            }
        }
    }

    #[inline]
    fn ends(query: Query) {
        let state = state();
        let Some(mine) = state.mine else { return };
        let index = state.find(query);
        if index != NO_FRAME {
            close(mine, index, Some(query), 0);
        }
    }

    #[inline]
    fn utility_begins(kind: Utility, tag: u32, source: Source) -> u32 {
        let state = state();
        let Some(mine) = state.mine() else {
            return NO_TOKEN;
        };
        if kind == Utility::Transparent {
            return TRANSPARENT;
        }
        let level = state.open.level;
        if level == 0 {
            state.draw();
        }
        let index = state.open(mine, None, source, level);
        if let Some(frame) = state.frames.get_mut(index) {
            frame.tag = tag;
        }
        state.enter(mine, index, false)
    }

    #[inline]
    fn utility_ends(token: u32, rows: u64) {
        if token >= TRANSPARENT {
            return;
        }
        let state = state();
        let Some(mine) = state.mine else { return };
        // EXPLAIN plans what does not start.
        state.planned = 0;
        let index = state.leave(mine, token);
        if let Some(frame) = state.frames.get_mut(index) {
            frame.rows = rows;
            close(mine, index, None, 0);
        }
    }

    fn reported(sqlstate: c_int) {
        if !is_error(sqlstate) {
            return;
        }
        let state = state();
        let now = clock::monotonic();
        state.reported = sqlstate;
        let statistics = settings::query_stats();
        for depth in 0..state.depth.min(CALLS) {
            let Some(call) = state.calls.get_mut(depth) else {
                continue;
            };
            call.sqlstate = sqlstate;
            call.reported = now;
            let (index, started) = (call.frame, call.started);
            let taken = state
                .frames
                .get(index)
                .map(|frame| frame.nanoseconds + frame.planning + now.saturating_sub(started));
            if statistics || taken.is_some_and(is_slow) {
                state.save(index);
            }
        }
    }

    fn failed(sqlstate: c_int) {
        let state = state();
        let Some(mine) = state.mine() else { return };
        state.failed = sqlstate;
        transaction::note(transaction::FAILED);
        if state.depth > 0 || state.starting != NO_FRAME {
            // The error has not been cleaned up yet: the statement is still there.
            state.save(state.starting);
            return;
        }
        // It never came as far as the executor: a syntax error, a table that is not there, a cancel while it was planned.
        let source = hooks::client_text();
        if source == Source::NONE || hooks::is_walsender() {
            return;
        }
        // Of several statements in a message those before it have had their time.
        let nanoseconds =
            hooks::since_message().min(clock::monotonic().saturating_sub(state.ended));
        mine.total(nanoseconds, bucket(nanoseconds), true);
        state.draw();
        state.failed = sqlstate;
        if state.sampled && is_slow(nanoseconds) {
            // The client's message is still there.
            let text = source.bytes();
            let length = text.len().min(SAVED_BYTES);
            state.saved[FRAMES][..length].copy_from_slice(&text[..length]);
            state.unfollowed_length = length as u16;
            state.unfollowed_sqlstate = sqlstate;
            state.unfollowed = nanoseconds;
        }
    }

    fn subtransaction_begins(id: u32) {
        state().subtransaction = id;
    }

    fn subtransaction_aborts(id: u32) {
        let state = state();
        let Some(mine) = state.mine else { return };
        let mut depth = state.depth.min(CALLS);
        while depth > 0
            && state
                .calls
                .get(depth - 1)
                .is_some_and(|call| call.subtransaction >= id)
        {
            depth -= 1;
        }
        fail(mine, depth, id);
        note_unfollowed(mine);
        // Whoever caught the error goes on.
        for call in self::state().calls.iter_mut().take(depth) {
            call.sqlstate = 0;
        }
    }

    #[inline]
    fn has_open() -> bool {
        let state = state();
        // A call that is going on has a frame; a subtransaction that ends says so itself; what failed before it ran has failed.
        state.open.any()
    }

    fn transaction_ends(committed: bool) {
        transaction::forget(transaction::FAILED);
        let state = state();
        state.subtransaction = TOP;
        if !committed && state.depth == 0 {
            state.open.level = 0;
        }
        let Some(mine) = state.mine else { return };
        if committed && state.open.used == 0 && state.unfollowed == 0 {
            state.failed = 0;
            return;
        }
        // A procedure goes on after its COMMIT or ROLLBACK, which an error never lets it; what is open besides it ends with its
        // transaction.
        if !committed {
            let left = if hooks::watches_errors() {
                state.depth
            } else {
                0
            };
            fail(mine, left, 0);
        }
        note_unfollowed(mine);
        let state = self::state();
        state.last_query = None;
        // Statements that were open while following was switched off.
        for index in bits(state.open.used) {
            if state
                .frames
                .get(index)
                .is_some_and(|frame| frame.query.is_some())
            {
                state.open.used &= !(1 << index);
            }
        }
        state.failed = 0;
        state.reported = 0;
        state.starting = NO_FRAME;
    }
}

/// One that was slow and failed before it came to the executor.
fn note_unfollowed(mine: Mine) {
    let state = state();
    if state.unfollowed == 0 {
        return;
    }
    let nanoseconds = std::mem::take(&mut state.unfollowed);
    let (pid, database, sqlstate) = (state.pid, state.database, state.unfollowed_sqlstate);
    let length = usize::from(state.unfollowed_length);
    mine.note_slow();
    unfollowed(|| {
        record::record(&Ended {
            query: None,
            text: self::state().saved[FRAMES].get(..length).unwrap_or(&[]),
            values: if sqlstate & 0xfff == SYNTAX_CLASS {
                Values::Names
            } else {
                Values::Settings
            },
            query_id: 0,
            nanoseconds,
            planning: 0,
            rows: 0,
            used: Usage::NONE,
            database,
            role: hooks::role(),
            pid,
            level: 0,
            status: status_of(sqlstate),
            sqlstate,
            waits: [(0, 0); slow_ring::WAITS],
        });
    });
}
