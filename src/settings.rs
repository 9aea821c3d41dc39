//! Every setting: its declaration, its check and a typed accessor. Nothing else reads one.

use crate::pg::guc::{Check, Told, read};
use audit_db_core::schedule::Window;
use audit_db_core::span::Span;
use pgrx::guc::{GucContext, GucEnum, GucFlags, GucRegistry, GucSetting, PostgresGucEnum};
use std::ffi::CString;
use std::time::Duration;

static LOCK_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(200);
static LOCK_RETRY: GucSetting<i32> = GucSetting::<i32>::new(10_000);
static MAINTENANCE_INTERVAL: GucSetting<i32> = GucSetting::<i32>::new(3_600_000);
static MAX_PARTITIONS_DROPPED: GucSetting<i32> = GucSetting::<i32>::new(3);
static MAX_FUTURE: GucSetting<Option<CString>> =
    GucSetting::<Option<CString>>::new(Some(c"13 months"));

static QUEUE_SIZE: GucSetting<i32> = GucSetting::<i32>::new(16_384);
static QUEUE_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(5_000);
static BATCH_MAX_EVENTS: GucSetting<i32> = GucSetting::<i32>::new(100);
static BATCH_MAX_DELAY: GucSetting<i32> = GucSetting::<i32>::new(5_000);
static DURABLE_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(30_000);
static SHUTDOWN_DRAIN_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(10_000);
static DURABILITY: GucSetting<Durability> = GucSetting::<Durability>::new(Durability::Transaction);
static AUDIT_TABLE: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
static STAMP_SESSION: GucSetting<bool> = GucSetting::<bool>::new(false);

static MAX_JOB_WORKERS: GucSetting<i32> = GucSetting::<i32>::new(2);
static JOB_HISTORY: GucSetting<i32> = GucSetting::<i32>::new(90 * 24 * 60);
static MAINTENANCE_WINDOW: GucSetting<Option<CString>> =
    GucSetting::<Option<CString>>::new(Some(c""));
static REINDEX_MIN_BLOAT: GucSetting<f64> = GucSetting::<f64>::new(0.4);
static REINDEX_MAX_SIZE: GucSetting<i32> = GucSetting::<i32>::new(50 * 1_024);
static AUTO_OPTIMIZATION: GucSetting<bool> = GucSetting::<bool>::new(false);
static JOB_CLOCK_OFFSET: GucSetting<i32> = GucSetting::<i32>::new(0);

static SLOW_QUERY_THRESHOLD: GucSetting<i32> = GucSetting::<i32>::new(500);
static SLOW_QUERY_SAMPLE_RATE: GucSetting<f64> = GucSetting::<f64>::new(1.0);
static SLOW_QUERY_PLAN: GucSetting<Plans> = GucSetting::<Plans>::new(Plans::On);
static SLOW_QUERY_PARAMETERS: GucSetting<Parameters> =
    GucSetting::<Parameters>::new(Parameters::None);
static CACHE_MODE: GucSetting<CacheMode> = GucSetting::<CacheMode>::new(CacheMode::Explicit);
static CACHE_SIZE: GucSetting<i32> = GucSetting::<i32>::new(64 << 10);
static CACHE_MAX_ENTRIES: GucSetting<i32> = GucSetting::<i32>::new(10_000);
static CACHE_DEFAULT_TTL: GucSetting<i32> = GucSetting::<i32>::new(15 * 60 * 1_000);
static CACHE_MAX_RESULT_SIZE: GucSetting<f64> = GucSetting::<f64>::new(0.05);
static SLOW_QUERY_RETENTION: GucSetting<i32> = GucSetting::<i32>::new(30 * 24 * 60);
static SLOW_QUERY_RING_SIZE: GucSetting<i32> = GucSetting::<i32>::new(8_192);
static QUERY_STATS: GucSetting<bool> = GucSetting::<bool>::new(false);
static QUERY_STATS_MAX: GucSetting<i32> = GucSetting::<i32>::new(5_000);
static METRICS_INTERVAL: GucSetting<i32> = GucSetting::<i32>::new(60_000);

/// Which plans of slow statements are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PostgresGucEnum)]
pub enum Plans {
    #[name = c"off"]
    Off,
    /// What the planner expected.
    #[name = c"on"]
    On,
    /// And what really happened, of statements that were slow before.
    #[name = c"analyze"]
    Analyze,
}

/// Who is answered from the result cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PostgresGucEnum)]
pub enum CacheMode {
    /// Nobody: the functions run their queries.
    #[name = c"off"]
    Off,
    /// Who calls the functions.
    #[name = c"explicit"]
    Explicit,
}

/// What is kept of the parameters and constants of slow statements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PostgresGucEnum)]
pub enum Parameters {
    #[name = c"none"]
    None,
    /// The types of parameters.
    #[name = c"types"]
    Types,
    /// All values.
    #[name = c"full"]
    Full,
}

/// When an event is on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PostgresGucEnum)]
pub enum Durability {
    /// When the caller's transaction commits.
    #[name = c"transaction"]
    Transaction,
    /// When the call returns, whatever becomes of the caller's transaction.
    #[name = c"durable"]
    Durable,
    /// Soon, whatever becomes of the caller's transaction.
    #[name = c"async"]
    Async,
}

impl std::str::FromStr for Durability {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "transaction" => Ok(Self::Transaction),
            "durable" => Ok(Self::Durable),
            "async" => Ok(Self::Async),
            _ => Err(()),
        }
    }
}

/// What `audit_db.max_future` is where it was never set.
const DEFAULT_MAX_FUTURE: Span = Span::months(13);

/// Declares the settings of the server's start. Only while libraries are preloaded: later it would end the session.
pub fn define_for_start() {
    define_cache_for_start();
    GucRegistry::define_int_guc(
        c"audit_db.queue_size",
        c"Shared memory for events that wait to be stored.",
        c"All databases share it. Where it is full, callers wait for audit_db.queue_timeout.",
        &QUEUE_SIZE,
        256,
        1 << 20,
        GucContext::Postmaster,
        GucFlags::UNIT_KB,
    );
    GucRegistry::define_int_guc(
        c"audit_db.slow_query_ring_size",
        c"Shared memory for the last slow statements.",
        c"All databases share it; each statement takes some 9 kB of it with its texts.",
        &SLOW_QUERY_RING_SIZE,
        256,
        1 << 20,
        GucContext::Postmaster,
        GucFlags::UNIT_KB,
    );
    GucRegistry::define_int_guc(
        c"audit_db.query_stats_max",
        c"Number of statements that statistics are kept of.",
        c"The least used make room for others.",
        &QUERY_STATS_MAX,
        100,
        1_000_000,
        GucContext::Postmaster,
        GucFlags::default(),
    );
}

fn define_cache_for_start() {
    GucRegistry::define_int_guc(
        c"audit_db.cache_size",
        c"Memory for stored results.",
        c"Fixed while the server runs.",
        &CACHE_SIZE,
        1 << 10,
        i32::MAX,
        GucContext::Postmaster,
        GucFlags::UNIT_KB,
    );
    GucRegistry::define_int_guc(
        c"audit_db.cache_max_entries",
        c"Number of results that can be stored.",
        c"Those that are worth least make room for others.",
        &CACHE_MAX_ENTRIES,
        1_024,
        10_000_000,
        GucContext::Postmaster,
        GucFlags::default(),
    );
}

fn define_cache() {
    GucRegistry::define_enum_guc(
        c"audit_db.cache_mode",
        c"Who is answered from the result cache.",
        c"off: nobody, cached_query and cached_json run their queries; explicit: who calls these functions.",
        &CACHE_MODE,
        GucContext::Userset,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"audit_db.cache_default_ttl",
        c"How old a result may be where neither the call nor its type says so.",
        c"For results that are not compared with the caller's snapshot.",
        &CACHE_DEFAULT_TTL,
        0,
        i32::MAX,
        GucContext::Userset,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_float_guc(
        c"audit_db.cache_max_result_size",
        c"The part of the cache that one result may take.",
        c"A larger one is returned and not stored.",
        &CACHE_MAX_RESULT_SIZE,
        0.0,
        1.0,
        GucContext::Sighup,
        GucFlags::default(),
    );
}

fn define_capture() {
    GucRegistry::define_int_guc(
        c"audit_db.slow_query_threshold",
        c"Statements that take at least this long are captured.",
        c"-1 captures none, 0 all.",
        &SLOW_QUERY_THRESHOLD,
        -1,
        i32::MAX,
        GucContext::Suset,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_float_guc(
        c"audit_db.slow_query_sample_rate",
        c"The part of the clients' statements in which slow ones are captured.",
        c"A fraction. Statements within a statement are captured with it or not at all.",
        &SLOW_QUERY_SAMPLE_RATE,
        0.0,
        1.0,
        GucContext::Suset,
        GucFlags::default(),
    );
    GucRegistry::define_enum_guc(
        c"audit_db.slow_query_plan",
        c"Which plans of slow statements are kept.",
        c"off: none; on: what the planner expected; analyze: with what really happened, of statements that were slow before.",
        &SLOW_QUERY_PLAN,
        GucContext::Suset,
        GucFlags::default(),
    );
    GucRegistry::define_enum_guc(
        c"audit_db.slow_query_parameters",
        c"What is kept of the values in slow statements.",
        c"none: nothing, constants are replaced; types: the types of parameters; full: parameters and constants as they are.",
        &SLOW_QUERY_PARAMETERS,
        GucContext::Suset,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"audit_db.slow_query_retention",
        c"How long slow statements are kept in audit_db.slow_query_log.",
        c"Whole days are dropped.",
        &SLOW_QUERY_RETENTION,
        24 * 60,
        i32::MAX / 60,
        GucContext::Sighup,
        GucFlags::UNIT_MIN,
    );
    crate::pg::guc::define_told_switch::<QueryIds>(
        c"audit_db.query_stats",
        c"Whether statistics are kept of every statement.",
        c"Has the server compute the ids of statements, unless compute_query_id is off.",
        &QUERY_STATS,
        GucContext::Suset,
    );
    GucRegistry::define_int_guc(
        c"audit_db.metrics_interval",
        c"How often audit_db.performance_metrics is stored in audit_db.metrics_history.",
        c"Rows are kept for 30 days.",
        &METRICS_INTERVAL,
        1_000,
        86_400_000,
        GucContext::Sighup,
        GucFlags::UNIT_MS,
    );
}

/// Declares the settings that a session which loads the library late can declare too.
pub fn define() {
    define_events();
    GucRegistry::define_int_guc(
        c"audit_db.lock_timeout",
        c"Longest wait of a maintenance step for its locks.",
        c"Sessions that queue behind the step wait no longer than this. The step then gives up, lets them go and tries again.",
        &LOCK_TIMEOUT,
        1,
        60_000,
        GucContext::Userset,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_int_guc(
        c"audit_db.lock_retry",
        c"How long a maintenance step tries again to get its locks.",
        c"After that the call fails with 55P03, and the worker leaves the step to its next cycle.",
        &LOCK_RETRY,
        0,
        3_600_000,
        GucContext::Userset,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_int_guc(
        c"audit_db.maintenance_interval",
        c"Time between two cycles of a database's worker.",
        c"Each cycle makes partitions ahead, empties default partitions and applies retention.",
        &MAINTENANCE_INTERVAL,
        100,
        86_400_000,
        GucContext::Sighup,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_int_guc(
        c"audit_db.max_partitions_dropped",
        c"Most partitions of one table that retention removes in one run.",
        c"A wrong setting or clock then costs a few partitions, not seven years. 0 suspends retention.",
        &MAX_PARTITIONS_DROPPED,
        0,
        100_000,
        GucContext::Sighup,
        GucFlags::default(),
    );
    crate::pg::guc::define_checked_string::<FutureSpan>(
        c"audit_db.max_future",
        c"How far ahead of now partitions are made by the worker.",
        c"Rows of later times stay in the default partition. Days, weeks, months or years, as in '13 months'.",
        &MAX_FUTURE,
        GucContext::Sighup,
    );
    define_jobs();
    define_capture();
    define_cache();
}

fn define_jobs() {
    GucRegistry::define_int_guc(
        c"audit_db.max_job_workers",
        c"Most jobs of a database that run at the same time.",
        c"Each needs one of max_worker_processes while it runs. 0 starts none; their times are then on record as missed.",
        &MAX_JOB_WORKERS,
        0,
        64,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"audit_db.job_history",
        c"How long the runs of jobs are kept on record.",
        c"Older rows of audit_db.job_runs are deleted.",
        &JOB_HISTORY,
        60,
        i32::MAX / 60,
        GucContext::Sighup,
        GucFlags::UNIT_MIN,
    );
    crate::pg::guc::define_checked_string::<DailyWindow>(
        c"audit_db.maintenance_window",
        c"The part of each day in which indexes are rebuilt, as in 01:00-05:00.",
        c"In the time zone of the job. A rebuild that is not done at the end of the window is cancelled. Empty: at any time.",
        &MAINTENANCE_WINDOW,
        GucContext::Sighup,
    );
    GucRegistry::define_float_guc(
        c"audit_db.reindex_min_bloat",
        c"The part of an index that must be bloat before it is rebuilt.",
        c"A fraction. Random inserts alone leave a fresh index with some 0.27.",
        &REINDEX_MIN_BLOAT,
        0.05,
        1.0,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"audit_db.reindex_max_size",
        c"The largest index that is rebuilt.",
        c"0: of any size. As much room as the index takes must be free on its disk in any case.",
        &REINDEX_MAX_SIZE,
        0,
        i32::MAX,
        GucContext::Sighup,
        GucFlags::UNIT_MB,
    );
    GucRegistry::define_bool_guc(
        c"audit_db.auto_optimization",
        c"Whether the job \"optimize\" acts.",
        c"It analyzes tables that have changed and rebuilds indexes that are bloated, every night.",
        &AUTO_OPTIMIZATION,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"audit_db.job_clock_offset",
        c"Moves the clock that jobs are scheduled by; for tests.",
        c"Nothing else sees this clock.",
        &JOB_CLOCK_OFFSET,
        i32::MIN,
        i32::MAX,
        GucContext::Sighup,
        GucFlags::UNIT_S | GucFlags::NO_SHOW_ALL,
    );
}

fn define_events() {
    GucRegistry::define_int_guc(
        c"audit_db.queue_timeout",
        c"How long a call waits for room in the queue.",
        c"After that an async event is written in the caller's transaction, and a durable one is refused with 53400.",
        &QUEUE_TIMEOUT,
        0,
        3_600_000,
        GucContext::Sighup,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_int_guc(
        c"audit_db.batch_max_events",
        c"Number of queued events at which they are stored at once.",
        c"Fewer wait for audit_db.batch_max_delay, unless somebody waits for them.",
        &BATCH_MAX_EVENTS,
        1,
        1_000_000,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"audit_db.batch_max_delay",
        c"Longest time that an async event waits before it is stored.",
        c"A crash of the server can lose the async events of this time.",
        &BATCH_MAX_DELAY,
        1,
        3_600_000,
        GucContext::Sighup,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_int_guc(
        c"audit_db.durable_timeout",
        c"How long a durable call waits until its event is on disk.",
        c"After that it fails with 55P03 and says whether the event may still be stored.",
        &DURABLE_TIMEOUT,
        1,
        3_600_000,
        GucContext::Sighup,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_int_guc(
        c"audit_db.shutdown_drain_timeout",
        c"How long the ingest worker goes on storing queued events when it is told to end.",
        c"It is also the longest that storing one batch may take.",
        &SHUTDOWN_DRAIN_TIMEOUT,
        100,
        3_600_000,
        GucContext::Sighup,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_enum_guc(
        c"audit_db.durability",
        c"When events are on disk that are logged without saying so.",
        c"transaction: with the caller's transaction; durable: when the call returns; async: within audit_db.batch_max_delay.",
        &DURABILITY,
        GucContext::Userset,
        GucFlags::default(),
    );
    GucRegistry::define_string_guc(
        c"audit_db.audit_table",
        c"The table that events are logged to, as schema.table.",
        c"Empty: the first table of the database that audit_db.create_audit_log made.",
        &AUDIT_TABLE,
        GucContext::Suset,
        GucFlags::default(),
    );
    GucRegistry::define_bool_guc(
        c"audit_db.stamp_session",
        c"Whether every event records who logged it.",
        c"Adds role, address and application name of the session to the event's metadata, under the key \"session\".",
        &STAMP_SESSION,
        GucContext::Suset,
        GucFlags::default(),
    );
}

/// Reserves the prefix, so that a misspelt setting is an error.
pub fn reserve_prefix() {
    crate::pg::guc::reserve_prefix(c"audit_db");
}

/// Statistics need the server's ids of statements. They are not switched off again: others may want them, too.
struct QueryIds;

impl Told for QueryIds {
    fn turned(on: bool) {
        if on {
            crate::pg::statement_hooks::enable_query_ids();
        }
    }
}

struct FutureSpan;

impl Check for FutureSpan {
    fn is_valid(text: &str) -> bool {
        text.parse::<Span>().is_ok_and(Span::is_positive)
    }
}

struct DailyWindow;

impl Check for DailyWindow {
    fn is_valid(text: &str) -> bool {
        text.is_empty() || text.parse::<Window>().is_ok()
    }
}

pub fn lock_timeout() -> Duration {
    milliseconds(LOCK_TIMEOUT.get())
}

pub fn lock_retry() -> Duration {
    milliseconds(LOCK_RETRY.get())
}

pub fn maintenance_interval() -> Duration {
    milliseconds(MAINTENANCE_INTERVAL.get())
}

pub fn max_partitions_dropped() -> usize {
    usize::try_from(MAX_PARTITIONS_DROPPED.get()).unwrap_or(0)
}

pub fn max_future() -> Span {
    MAX_FUTURE
        .get()
        .and_then(|text| text.to_str().ok()?.parse().ok())
        .unwrap_or(DEFAULT_MAX_FUTURE)
}

/// In bytes.
pub fn queue_size() -> usize {
    usize::try_from(QUEUE_SIZE.get()).unwrap_or(0) * 1_024
}

pub fn queue_timeout() -> Duration {
    milliseconds(QUEUE_TIMEOUT.get())
}

pub fn batch_max_events() -> u64 {
    u64::try_from(BATCH_MAX_EVENTS.get()).unwrap_or(1)
}

pub fn batch_max_delay() -> Duration {
    milliseconds(BATCH_MAX_DELAY.get())
}

pub fn durable_timeout() -> Duration {
    milliseconds(DURABLE_TIMEOUT.get())
}

pub fn shutdown_drain_timeout() -> Duration {
    milliseconds(SHUTDOWN_DRAIN_TIMEOUT.get())
}

pub fn durability() -> Durability {
    DURABILITY.get()
}

/// Empty: none was named.
pub fn audit_table() -> CString {
    AUDIT_TABLE.get().unwrap_or_default()
}

pub fn stamp_session() -> bool {
    STAMP_SESSION.get()
}

pub fn max_job_workers() -> usize {
    usize::try_from(MAX_JOB_WORKERS.get()).unwrap_or(0)
}

pub fn job_history() -> Duration {
    Duration::from_secs(u64::try_from(JOB_HISTORY.get()).unwrap_or(0) * 60)
}

/// `None`: at any time.
pub fn maintenance_window() -> Option<Window> {
    MAINTENANCE_WINDOW.get()?.to_str().ok()?.parse().ok()
}

pub fn reindex_min_bloat() -> f64 {
    REINDEX_MIN_BLOAT.get()
}

/// In bytes; `None`: of any size.
pub fn reindex_max_size() -> Option<i64> {
    Some(i64::from(REINDEX_MAX_SIZE.get()) * 1_048_576).filter(|size| *size > 0)
}

pub fn auto_optimization() -> bool {
    AUTO_OPTIMIZATION.get()
}

/// In microseconds.
pub fn job_clock_offset() -> i64 {
    i64::from(JOB_CLOCK_OFFSET.get()) * 1_000_000
}

/// In milliseconds; -1: nothing is slow.
#[inline]
pub fn slow_query_threshold() -> i32 {
    read(&SLOW_QUERY_THRESHOLD)
}

#[inline]
pub fn slow_query_sample_rate() -> f64 {
    read(&SLOW_QUERY_SAMPLE_RATE)
}

#[inline]
pub fn slow_query_plan() -> Plans {
    Plans::from_ordinal(read(&SLOW_QUERY_PLAN))
}

pub fn cache_mode() -> CacheMode {
    CACHE_MODE.get()
}

/// In bytes.
pub fn cache_size() -> usize {
    usize::try_from(CACHE_SIZE.get()).unwrap_or(0) * 1_024
}

pub fn cache_max_entries() -> usize {
    usize::try_from(CACHE_MAX_ENTRIES.get()).unwrap_or(0)
}

pub fn cache_default_ttl() -> Duration {
    milliseconds(CACHE_DEFAULT_TTL.get())
}

/// A part of the cache.
pub fn cache_max_result_size() -> f64 {
    CACHE_MAX_RESULT_SIZE.get()
}

pub fn slow_query_parameters() -> Parameters {
    SLOW_QUERY_PARAMETERS.get()
}

pub fn slow_query_retention() -> Duration {
    Duration::from_secs(u64::try_from(SLOW_QUERY_RETENTION.get()).unwrap_or(0) * 60)
}

/// In bytes.
pub fn slow_query_ring_size() -> usize {
    usize::try_from(SLOW_QUERY_RING_SIZE.get()).unwrap_or(0) * 1_024
}

#[inline]
pub fn query_stats() -> bool {
    read(&QUERY_STATS)
}

pub fn query_stats_max() -> usize {
    usize::try_from(QUERY_STATS_MAX.get()).unwrap_or(0)
}

pub fn metrics_interval() -> Duration {
    milliseconds(METRICS_INTERVAL.get())
}

fn milliseconds(value: i32) -> Duration {
    Duration::from_millis(u64::try_from(value).unwrap_or(0))
}
