//! Hooks around every statement: planner, executor and utility commands, with the ends of transactions and the errors that keep
//! statements from theirs. Like those of `hooks` they are trampolines without a guard. A listener is called in places where nothing
//! may be raised and nothing panics; what it does beyond counting is guarded by itself.

use crate::pg::query as nested;
use crate::pg::{session, transaction};
use pgrx::pg_sys;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::NonNull;

/// A statement in the executor, from its start to its end.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Query(NonNull<pg_sys::QueryDesc>);

/// Where the text of a statement stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    text: *const c_char,
    location: c_int,
    length: c_int,
}

impl Source {
    pub const NONE: Self = Self {
        text: std::ptr::null(),
        location: 0,
        length: 0,
    };

    /// The bytes of the statement; none where there is no text. Only before the statement has ended: the server's memory goes
    /// with it.
    pub fn bytes<'a>(self) -> &'a [u8] {
        if self.text.is_null() {
            return &[];
        }
        // SAFETY: the server's own zero-terminated string, alive while the statement is.
        let all = unsafe { CStr::from_ptr(self.text) }.to_bytes();
        let from = usize::try_from(self.location).unwrap_or(0).min(all.len());
        let to = match usize::try_from(self.length) {
            Ok(length) if length > 0 => (from + length).min(all.len()),
            _ => all.len(),
        };
        &all[from..to]
    }
}

/// What a utility command is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Utility {
    /// It has another statement run, which counts itself.
    Transparent,
    Other,
}

/// Who follows statements. Nothing here may raise or panic.
pub trait Listener {
    /// Whether there is anything to follow.
    fn is_on() -> bool;
    /// Before a statement is planned, which can run others. Returns the level for [`Self::planned`].
    fn plans() -> u32;
    fn planned(nanoseconds: u64, fingerprint: u64, level: u32);
    /// Before the executor starts; returns what node instrumentation it should have, and the level for [`Self::started`].
    fn starts(query: Query, source: Source) -> (c_int, u32);
    /// It has started.
    fn started(level: u32);
    /// It begins to run, or to fire the triggers at its end. Returns a token for [`Self::rests`].
    fn runs(query: Query, finishes: bool) -> u32;
    fn rests(token: u32, rows: u64);
    /// Before it ends.
    fn ends(query: Query);
    /// A utility command begins. Returns a token for [`Self::utility_ends`].
    fn utility_begins(kind: Utility, tag: u32, source: Source) -> u32;
    fn utility_ends(token: u32, rows: u64);
    /// Something was reported within a statement, in the server's packed form of SQLSTATE.
    fn reported(sqlstate: c_int);
    /// An error goes to the server's log and the client.
    fn failed(sqlstate: c_int);
    /// This subtransaction begins, or goes on; those that begin later have higher numbers.
    fn subtransaction_begins(id: u32);
    fn subtransaction_aborts(id: u32);
    /// Whether there is anything of the transaction that ends.
    fn has_open() -> bool;
    fn transaction_ends(committed: bool);
}

static mut PREVIOUS_PLANNER: pg_sys::planner_hook_type = None;
static mut PREVIOUS_START: pg_sys::ExecutorStart_hook_type = None;
static mut PREVIOUS_RUN: pg_sys::ExecutorRun_hook_type = None;
static mut PREVIOUS_FINISH: pg_sys::ExecutorFinish_hook_type = None;
static mut PREVIOUS_END: pg_sys::ExecutorEnd_hook_type = None;
static mut PREVIOUS_UTILITY: pg_sys::ProcessUtility_hook_type = None;
static mut PREVIOUS_LOG: pg_sys::emit_log_hook_type = None;
static mut CONTEXT: pg_sys::ErrorContextCallback = pg_sys::ErrorContextCallback {
    previous: std::ptr::null_mut(),
    callback: None,
    arg: std::ptr::null_mut(),
};

unsafe extern "C-unwind" {
    // Not pgrx's: those are guarded, which costs time and loses fields of an error that passes.
    fn standard_planner(
        parse: *mut pg_sys::Query,
        query: *const c_char,
        options: c_int,
        parameters: pg_sys::ParamListInfo,
    ) -> *mut pg_sys::PlannedStmt;
    fn standard_ExecutorStart(query: *mut pg_sys::QueryDesc, flags: c_int);
    #[cfg(not(feature = "pg18"))]
    fn standard_ExecutorRun(
        query: *mut pg_sys::QueryDesc,
        direction: pg_sys::ScanDirection::Type,
        count: u64,
        once: bool,
    );
    #[cfg(feature = "pg18")]
    fn standard_ExecutorRun(
        query: *mut pg_sys::QueryDesc,
        direction: pg_sys::ScanDirection::Type,
        count: u64,
    );
    fn standard_ExecutorFinish(query: *mut pg_sys::QueryDesc);
    fn standard_ExecutorEnd(query: *mut pg_sys::QueryDesc);
    fn standard_ProcessUtility(
        statement: *mut pg_sys::PlannedStmt,
        query: *const c_char,
        read_only_tree: bool,
        context: pg_sys::ProcessUtilityContext::Type,
        parameters: pg_sys::ParamListInfo,
        environment: *mut pg_sys::QueryEnvironment,
        receiver: *mut pg_sys::DestReceiver,
        completion: *mut pg_sys::QueryCompletion,
    );
    fn CreateCommandTag(statement: *mut pg_sys::Node) -> pg_sys::CommandTag::Type;
    fn GetUserId() -> pg_sys::Oid;
    fn geterrcode() -> c_int;
    fn EnableQueryId();
    fn GetCurrentStatementStartTimestamp() -> pg_sys::TimestampTz;
}

/// Installs the hooks. Only while libraries are preloaded, once.
pub fn install<L: Listener>() {
    // SAFETY: the postmaster is single threaded; the pointers are set once, each chains to the one before.
    unsafe {
        PREVIOUS_PLANNER = pg_sys::planner_hook;
        pg_sys::planner_hook = Some(planner::<L>);
        PREVIOUS_START = pg_sys::ExecutorStart_hook;
        pg_sys::ExecutorStart_hook = Some(executor_start::<L>);
        PREVIOUS_RUN = pg_sys::ExecutorRun_hook;
        pg_sys::ExecutorRun_hook = Some(executor_run::<L>);
        PREVIOUS_FINISH = pg_sys::ExecutorFinish_hook;
        pg_sys::ExecutorFinish_hook = Some(executor_finish::<L>);
        PREVIOUS_END = pg_sys::ExecutorEnd_hook;
        pg_sys::ExecutorEnd_hook = Some(executor_end::<L>);
        PREVIOUS_UTILITY = pg_sys::ProcessUtility_hook;
        pg_sys::ProcessUtility_hook = Some(process_utility::<L>);
        PREVIOUS_LOG = pg_sys::emit_log_hook;
        pg_sys::emit_log_hook = Some(emit_log::<L>);
        pg_sys::RegisterSubXactCallback(Some(subtransaction_event::<L>), std::ptr::null_mut());
        CONTEXT.callback = Some(error_context::<L>);
    }
}

// Where nothing is followed a trampoline is a comparison and a jump: what follows is in functions of its own, which save registers.

unsafe extern "C-unwind" fn planner<L: Listener>(
    parse: *mut pg_sys::Query,
    text: *const c_char,
    options: c_int,
    parameters: pg_sys::ParamListInfo,
) -> *mut pg_sys::PlannedStmt {
    // SAFETY: the arguments are passed on as they came.
    unsafe {
        if L::is_on() {
            return followed_planner::<L>(parse, text, options, parameters);
        }
        plan(parse, text, options, parameters)
    }
}

#[inline(always)]
unsafe fn plan(
    parse: *mut pg_sys::Query,
    text: *const c_char,
    options: c_int,
    parameters: pg_sys::ParamListInfo,
) -> *mut pg_sys::PlannedStmt {
    // SAFETY: as above.
    unsafe {
        match PREVIOUS_PLANNER {
            Some(previous) => previous(parse, text, options, parameters),
            None => standard_planner(parse, text, options, parameters),
        }
    }
}

#[inline(never)]
unsafe extern "C-unwind" fn followed_planner<L: Listener>(
    parse: *mut pg_sys::Query,
    text: *const c_char,
    options: c_int,
    parameters: pg_sys::ParamListInfo,
) -> *mut pg_sys::PlannedStmt {
    // SAFETY: as above; the query is read before it is planned.
    unsafe {
        let source = Source {
            text,
            location: (*parse).stmt_location,
            length: (*parse).stmt_len,
        };
        // Signed from 18 on.
        #[allow(clippy::unnecessary_cast)]
        let fingerprint = fingerprint((*parse).queryId as u64, (*parse).commandType, source);
        let level = L::plans();
        let started = crate::pg::clock::monotonic();
        let planned = plan(parse, text, options, parameters);
        let nanoseconds = crate::pg::clock::monotonic().saturating_sub(started);
        L::planned(nanoseconds, fingerprint, level);
        planned
    }
}

unsafe extern "C-unwind" fn executor_start<L: Listener>(
    query: *mut pg_sys::QueryDesc,
    flags: c_int,
) {
    // SAFETY: the arguments are passed on as they came.
    unsafe {
        if nested::is_recording() {
            return recorded_start::<L>(query, flags);
        }
        if L::is_on() && flags & pg_sys::EXEC_FLAG_EXPLAIN_ONLY as c_int == 0 {
            followed_start::<L>(query, flags);
        } else {
            start(query, flags);
        }
    }
}

/// The same, and somebody wants to know what it reads.
#[inline(never)]
unsafe extern "C-unwind" fn recorded_start<L: Listener>(
    query: *mut pg_sys::QueryDesc,
    flags: c_int,
) {
    // SAFETY: as above.
    unsafe {
        nested::record((*query).plannedstmt);
        if L::is_on() && flags & pg_sys::EXEC_FLAG_EXPLAIN_ONLY as c_int == 0 {
            followed_start::<L>(query, flags);
        } else {
            start(query, flags);
        }
    }
}

#[inline(always)]
unsafe fn start(query: *mut pg_sys::QueryDesc, flags: c_int) {
    // SAFETY: as above.
    unsafe {
        match PREVIOUS_START {
            Some(previous) => {
                previous(query, flags);
            }
            None => {
                standard_ExecutorStart(query, flags);
            }
        }
    }
}

#[inline(never)]
unsafe extern "C-unwind" fn followed_start<L: Listener>(
    query: *mut pg_sys::QueryDesc,
    flags: c_int,
) {
    // SAFETY: as above; the description is alive.
    unsafe {
        let planned = (*query).plannedstmt;
        let source = Source {
            text: (*query).sourceText,
            location: (*planned).stmt_location,
            length: (*planned).stmt_len,
        };
        let (options, level) = L::starts(Query::of(query), source);
        (*query).instrument_options |= options;
        start(query, flags);
        L::started(level);
    }
}

unsafe extern "C-unwind" fn executor_run<L: Listener>(
    query: *mut pg_sys::QueryDesc,
    direction: pg_sys::ScanDirection::Type,
    count: u64,
    #[cfg(not(feature = "pg18"))] once: bool,
) {
    #[cfg(feature = "pg18")]
    let once = false;
    // SAFETY: the arguments are passed on as they came.
    unsafe {
        if L::is_on() {
            followed_run::<L>(query, direction, count, once);
        } else {
            run(query, direction, count, once);
        }
    }
}

#[inline(always)]
unsafe fn run(
    query: *mut pg_sys::QueryDesc,
    direction: pg_sys::ScanDirection::Type,
    count: u64,
    once: bool,
) {
    // SAFETY: as above. From 18 on there is no last argument.
    unsafe {
        #[cfg(not(feature = "pg18"))]
        match PREVIOUS_RUN {
            Some(previous) => previous(query, direction, count, once),
            None => standard_ExecutorRun(query, direction, count, once),
        }
        #[cfg(feature = "pg18")]
        {
            let _ = once;
            match PREVIOUS_RUN {
                Some(previous) => previous(query, direction, count),
                None => standard_ExecutorRun(query, direction, count),
            }
        }
    }
}

#[inline(never)]
unsafe extern "C-unwind" fn followed_run<L: Listener>(
    query: *mut pg_sys::QueryDesc,
    direction: pg_sys::ScanDirection::Type,
    count: u64,
    once: bool,
) {
    // SAFETY: as above; the executor has started.
    unsafe {
        let token = L::runs(Query::of(query), false);
        run(query, direction, count, once);
        L::rests(token, (*(*query).estate).es_processed);
    }
}

unsafe extern "C-unwind" fn executor_finish<L: Listener>(query: *mut pg_sys::QueryDesc) {
    // SAFETY: the argument is passed on as it came; the description is alive.
    unsafe {
        // Only what writes has triggers to fire.
        if ((*query).operation != pg_sys::CmdType::CMD_SELECT
            || (*(*query).plannedstmt).hasModifyingCTE)
            && L::is_on()
        {
            followed_finish::<L>(query);
        } else {
            finish(query);
        }
    }
}

#[inline(always)]
unsafe fn finish(query: *mut pg_sys::QueryDesc) {
    // SAFETY: as above.
    unsafe {
        match PREVIOUS_FINISH {
            Some(previous) => previous(query),
            None => standard_ExecutorFinish(query),
        }
    }
}

#[inline(never)]
unsafe extern "C-unwind" fn followed_finish<L: Listener>(query: *mut pg_sys::QueryDesc) {
    // SAFETY: as above.
    unsafe {
        let token = L::runs(Query::of(query), true);
        finish(query);
        L::rests(token, 0);
    }
}

unsafe extern "C-unwind" fn executor_end<L: Listener>(query: *mut pg_sys::QueryDesc) {
    // SAFETY: the argument is passed on as it came.
    unsafe {
        // Also of what began before following was switched off.
        if L::is_on() || L::has_open() {
            L::ends(Query::of(query));
        }
        match PREVIOUS_END {
            Some(previous) => previous(query),
            None => standard_ExecutorEnd(query),
        }
    }
}

/// # Safety
/// The node must be a statement.
unsafe fn utility_kind(statement: *mut pg_sys::Node) -> Utility {
    // SAFETY: the tag says which structure it is.
    unsafe {
        match (*statement).type_ {
            pg_sys::NodeTag::T_ExecuteStmt
            | pg_sys::NodeTag::T_PrepareStmt
            | pg_sys::NodeTag::T_DeallocateStmt
            | pg_sys::NodeTag::T_DeclareCursorStmt
            | pg_sys::NodeTag::T_FetchStmt
            | pg_sys::NodeTag::T_ClosePortalStmt => Utility::Transparent,
            _ => Utility::Other,
        }
    }
}

#[allow(clippy::too_many_arguments)]
unsafe extern "C-unwind" fn process_utility<L: Listener>(
    statement: *mut pg_sys::PlannedStmt,
    text: *const c_char,
    read_only_tree: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    parameters: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
    receiver: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
) {
    // SAFETY: the arguments are passed on as they came; the statement is read only before it runs.
    unsafe {
        // A part of another command (a constraint of CREATE TABLE) is no statement.
        let follow =
            L::is_on() && context != pg_sys::ProcessUtilityContext::PROCESS_UTILITY_SUBCOMMAND;
        let token = if follow {
            let kind = utility_kind((*statement).utilityStmt);
            let source = Source {
                text,
                location: (*statement).stmt_location,
                length: (*statement).stmt_len,
            };
            L::utility_begins(kind, CreateCommandTag((*statement).utilityStmt), source)
        } else {
            0
        };
        match PREVIOUS_UTILITY {
            Some(previous) => previous(
                statement,
                text,
                read_only_tree,
                context,
                parameters,
                environment,
                receiver,
                completion,
            ),
            None => standard_ProcessUtility(
                statement,
                text,
                read_only_tree,
                context,
                parameters,
                environment,
                receiver,
                completion,
            ),
        }
        if follow {
            let counts = !completion.is_null()
                && matches!(
                    (*completion).commandTag,
                    pg_sys::CommandTag::CMDTAG_COPY
                        | pg_sys::CommandTag::CMDTAG_SELECT
                        | pg_sys::CommandTag::CMDTAG_REFRESH_MATERIALIZED_VIEW
                );
            let rows = if counts { (*completion).nprocessed } else { 0 };
            L::utility_ends(token, rows);
        }
    }
}

unsafe extern "C-unwind" fn emit_log<L: Listener>(error: *mut pg_sys::ErrorData) {
    // SAFETY: the server passes the report that it is about to log.
    unsafe {
        if (*error).elevel >= pgrx::PgLogLevel::ERROR as c_int && L::is_on() {
            L::failed((*error).sqlerrcode);
        }
        if let Some(previous) = PREVIOUS_LOG {
            previous(error);
        }
    }
}

/// Called for everything that is reported within a statement, before it is clear whether somebody catches it.
unsafe extern "C-unwind" fn error_context<L: Listener>(_argument: *mut c_void) {
    // SAFETY: called by the server while it fills a report.
    L::reported(unsafe { geterrcode() });
}

/// Called with the events of transactions for which [`Listener::has_open`] says so.
pub fn transaction_event<L: Listener>(event: pg_sys::XactEvent::Type) {
    match event {
        transaction::COMMIT | transaction::PREPARE => L::transaction_ends(true),
        transaction::ABORT => L::transaction_ends(false),
        _ => {}
    }
}

unsafe extern "C-unwind" fn subtransaction_event<L: Listener>(
    event: pg_sys::SubXactEvent::Type,
    id: pg_sys::SubTransactionId,
    parent: pg_sys::SubTransactionId,
    _argument: *mut c_void,
) {
    match event {
        pg_sys::SubXactEvent::SUBXACT_EVENT_START_SUB => L::subtransaction_begins(id),
        pg_sys::SubXactEvent::SUBXACT_EVENT_COMMIT_SUB => L::subtransaction_begins(parent),
        pg_sys::SubXactEvent::SUBXACT_EVENT_ABORT_SUB => {
            nested::stop_recording();
            L::subtransaction_aborts(id);
            L::subtransaction_begins(parent);
        }
        _ => {}
    }
}

/// From here to [`unwatch_errors`] reports of this backend are told to the listener.
#[inline]
pub fn watch_errors() {
    // SAFETY: what the server's own code does around its calls; the entry is static, and errors reset the stack themselves.
    unsafe {
        let context = &raw mut CONTEXT;
        (*context).previous = pg_sys::error_context_stack;
        pg_sys::error_context_stack = context;
    }
}

#[inline]
pub fn unwatch_errors() {
    // SAFETY: as above.
    unsafe { pg_sys::error_context_stack = CONTEXT.previous };
}

/// Whether a call that watches errors is still going on: an error that leaves it takes it out of the server's list.
pub fn watches_errors() -> bool {
    // SAFETY: the list is of entries on the stack of calls that go on; the server cuts it when it unwinds them.
    unsafe {
        let mut entry = pg_sys::error_context_stack;
        while !entry.is_null() {
            if std::ptr::eq(entry, &raw const CONTEXT) {
                return true;
            }
            entry = (*entry).previous;
        }
    }
    false
}

/// Whether a statement is being run for a client, or a job: not by the server at a commit.
#[inline]
pub fn has_portal() -> bool {
    // SAFETY: reads a variable.
    unsafe { !pg_sys::ActivePortal.is_null() }
}

/// Whether this is a process that sends WAL.
pub fn is_walsender() -> bool {
    // SAFETY: reads a variable.
    unsafe { pg_sys::am_walsender }
}

/// What tells a statement that is planned from others until it starts: its text may be copied in between.
#[inline]
fn fingerprint(id: u64, command: pg_sys::CmdType::Type, source: Source) -> u64 {
    let place = u64::from(source.location as u32) << 32 | u64::from(source.length as u32);
    id.rotate_left(7) ^ place ^ u64::from(command) << 28
}

/// The same of one that starts.
#[inline]
pub fn fingerprint_of(query: Query, source: Source) -> u64 {
    // SAFETY: the description is alive while the statement is.
    fingerprint(query.id(), unsafe { query.0.as_ref() }.operation, source)
}

/// The current role.
#[inline]
pub fn role() -> u32 {
    // SAFETY: reads a variable.
    unsafe { GetUserId() }.to_u32()
}

/// Blocks and WAL that this backend has used so far.
#[derive(Clone, Copy)]
pub struct Usage {
    pub blocks: [u64; 10],
    pub wal_bytes: u64,
}

impl Usage {
    pub const NONE: Self = Self {
        blocks: [0; 10],
        wal_bytes: 0,
    };

    #[inline]
    pub fn now() -> Self {
        // SAFETY: the first ten fields of the structure are counters of 64 bits, in 14 to 18.
        unsafe {
            Self {
                blocks: (&raw const pg_sys::pgBufferUsage)
                    .cast::<[u64; 10]>()
                    .read(),
                wal_bytes: pg_sys::pgWalUsage.wal_bytes,
            }
        }
    }

    #[inline]
    pub fn since(self, before: &Self) -> Self {
        let mut used = self;
        for (now, before) in used.blocks.iter_mut().zip(&before.blocks) {
            *now = now.wrapping_sub(*before);
        }
        used.wal_bytes = self.wal_bytes.wrapping_sub(before.wal_bytes);
        used
    }
}

/// # Safety
/// The statement must be alive.
#[inline]
unsafe fn query_id(planned: *mut pg_sys::PlannedStmt) -> u64 {
    // SAFETY: by contract.
    let id = unsafe { (*planned).queryId };
    // Signed from 18 on.
    #[allow(clippy::unnecessary_cast)]
    {
        id as u64
    }
}

impl Query {
    /// # Safety
    /// The server calls a hook with it.
    #[inline(always)]
    const unsafe fn of(query: *mut pg_sys::QueryDesc) -> Self {
        // SAFETY: by contract it is there.
        Self(unsafe { NonNull::new_unchecked(query) })
    }

    #[inline]
    pub fn id(self) -> u64 {
        // SAFETY: the description is alive while the statement is.
        unsafe { query_id(self.0.as_ref().plannedstmt) }
    }

    /// What tells statements of one shape from others, whatever their constants: kind, tables, plan, and cost by its magnitude.
    pub fn shape(self) -> u64 {
        // SAFETY: as above.
        unsafe {
            let planned = self.0.as_ref().plannedstmt;
            let tree = (*planned).planTree;
            let mut sum = 0u64;
            let mut mix = |word: u64| {
                sum = (sum.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
            };
            mix(query_id(planned));
            mix(u64::from(self.0.as_ref().operation));
            if !tree.is_null() {
                mix((*tree.cast::<pg_sys::Node>()).type_ as u64);
                mix((*tree).total_cost.max(1.0).log2() as u64);
            }
            let tables = (*planned).relationOids;
            if !tables.is_null() {
                for index in 0..(*tables).length.min(32) {
                    let cell = (*tables).elements.add(index as usize);
                    mix(u64::from((*cell).oid_value.to_u32()));
                }
            }
            sum | 1
        }
    }

    pub(super) const fn raw(self) -> *mut pg_sys::QueryDesc {
        self.0.as_ptr()
    }

    /// Whether every node counts what it does.
    pub fn is_instrumented(self) -> bool {
        // SAFETY: as above.
        unsafe { self.0.as_ref().instrument_options & INSTRUMENT_NODES == INSTRUMENT_NODES }
    }
}

/// Time, rows and blocks of every node of a plan.
pub const INSTRUMENT_NODES: c_int = (pg_sys::InstrumentOption::INSTRUMENT_TIMER
    | pg_sys::InstrumentOption::INSTRUMENT_BUFFERS
    | pg_sys::InstrumentOption::INSTRUMENT_ROWS) as c_int;

/// The name of a kind of command, as in command tags.
pub fn tag_name(tag: u32) -> &'static str {
    // SAFETY: returns a constant string for any tag of the server's.
    unsafe {
        let name = pg_sys::GetCommandTagName(tag);
        if name.is_null() {
            return "";
        }
        CStr::from_ptr(name).to_str().unwrap_or("")
    }
}

/// The text that the client sent, where there is one.
pub fn client_text() -> Source {
    // SAFETY: reads a variable; the string lives as long as the client's message.
    let text = unsafe { pg_sys::debug_query_string };
    Source {
        text,
        ..Source::NONE
    }
}

/// When the client's message came, in microseconds of the server's epoch.
#[inline]
pub fn message_time() -> u64 {
    // SAFETY: reads a variable.
    unsafe { GetCurrentStatementStartTimestamp() as u64 }
}

/// Nanoseconds since the client's message came.
pub fn since_message() -> u64 {
    let passed = crate::pg::clock::wall() - message_time() as i64;
    u64::try_from(passed).unwrap_or(0) * 1_000
}

/// Has the server compute the ids of statements in this session, from its next statement on.
pub fn enable_query_ids() {
    // SAFETY: sets a variable of this process.
    unsafe { EnableQueryId() };
}

/// Whether statements of this process are those of a client, or of a job: not of a parallel worker, whose leader counts them, and
/// not of our other workers.
pub fn is_followed() -> bool {
    // SAFETY: reads variables; the entry's text is zero-terminated.
    unsafe {
        if pg_sys::ParallelWorkerNumber >= 0 {
            return false;
        }
        let entry = pg_sys::MyBgworkerEntry;
        if entry.is_null() {
            return true;
        }
        let kind = CStr::from_ptr((&raw const (*entry).bgw_type).cast()).to_bytes();
        !kind.starts_with(b"audit_db") || kind == b"audit_db job"
    }
}

/// Process and database of this session.
pub fn who() -> (i32, u32) {
    // SAFETY: reads variables.
    unsafe { (pg_sys::MyProcPid, pg_sys::MyDatabaseId.to_u32()) }
}

/// The name that the client's program gave itself, and the client's address. Raises nothing, but allocates.
pub fn client() -> (String, String) {
    (session::program(), session::address().unwrap_or_default())
}
