//! Every setting: its declaration, its check and a typed accessor. Nothing else reads one.

use audit_db_core::span::Span;
use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting};
use std::ffi::CString;
use std::time::Duration;

static LOCK_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(200);
static LOCK_RETRY: GucSetting<i32> = GucSetting::<i32>::new(10_000);
static MAINTENANCE_INTERVAL: GucSetting<i32> = GucSetting::<i32>::new(3_600_000);
static MAX_PARTITIONS_DROPPED: GucSetting<i32> = GucSetting::<i32>::new(3);
static MAX_FUTURE: GucSetting<Option<CString>> =
    GucSetting::<Option<CString>>::new(Some(c"13 months"));

/// What `audit_db.max_future` is where it was never set.
const DEFAULT_MAX_FUTURE: Span = Span::months(13);

/// Declares the settings. None has postmaster context, so a session that loads the library late can do it too.
pub fn define() {
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
    crate::pg::guc::define_checked_string(
        c"audit_db.max_future",
        c"How far ahead of now partitions are made by the worker.",
        c"Rows of later times stay in the default partition. Days, weeks, months or years, as in '13 months'.",
        &MAX_FUTURE,
        GucContext::Sighup,
        is_future_span,
    );
}

/// Reserves the prefix, so that a misspelt setting is an error.
pub fn reserve_prefix() {
    crate::pg::guc::reserve_prefix(c"audit_db");
}

fn is_future_span(text: &str) -> bool {
    text.parse::<Span>().is_ok_and(Span::is_positive)
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

fn milliseconds(value: i32) -> Duration {
    Duration::from_millis(u64::try_from(value).unwrap_or(0))
}
