//! Transactions, subtransactions, and errors that are caught.

use crate::error::{Error, Result};
use crate::pg::guc::Scope;
use crate::pg::worker;
use pgrx::PgTryBuilder;
use pgrx::pg_sys;
use std::ffi::c_int;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

/// Runs `body` and turns whatever the server raises in it into a value. The (sub)transaction around it must be aborted then.
pub fn catch<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    PgTryBuilder::new(AssertUnwindSafe(body))
        .catch_others(|caught| Err(Error::from_caught(caught)))
        .catch_rust_panic(|caught| Err(Error::from_caught(caught)))
        .execute()
}

/// Runs `body` in a subtransaction: what it did stays when it succeeds and is undone, with its locks, when it fails.
pub fn in_subtransaction<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    // SAFETY: the sequence that the server's own procedural languages use; memory context and resource owner are put back.
    unsafe {
        let context = pg_sys::CurrentMemoryContext;
        let owner = pg_sys::CurrentResourceOwner;
        pg_sys::BeginInternalSubTransaction(std::ptr::null());
        pg_sys::MemoryContextSwitchTo(context);
        let outcome = catch(body);
        if outcome.is_ok() {
            pg_sys::ReleaseCurrentSubTransaction();
        } else {
            pg_sys::RollbackAndReleaseCurrentSubTransaction();
        }
        pg_sys::MemoryContextSwitchTo(context);
        pg_sys::CurrentResourceOwner = owner;
        outcome
    }
}

/// What a worker's transaction is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A step of maintenance: cancelled after ten minutes.
    Step,
    /// Work that takes as long as there is data.
    Long,
    /// The same, and every statement sees the same state of the database.
    Snapshot,
}

/// Runs `body` in a transaction of its own. For background workers, outside any transaction.
pub fn in_transaction<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    in_transaction_of(Kind::Step, body)
}

/// The same for other kinds of work than steps.
pub fn in_transaction_of<T>(kind: Kind, body: impl FnOnce() -> Result<T>) -> Result<T> {
    // SAFETY: a worker between transactions; the error path aborts whatever state the transaction is in.
    unsafe {
        pg_sys::SetCurrentStatementStartTimestamp();
        pg_sys::StartTransactionCommand();
        // Whatever the role that a job belongs to has set as its default.
        pg_sys::XactReadOnly = false;
        pg_sys::XactIsoLevel = if kind == Kind::Snapshot {
            pg_sys::XACT_REPEATABLE_READ
        } else {
            pg_sys::XACT_READ_COMMITTED
        } as c_int;
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
    }
    let outcome = catch(|| {
        if kind == Kind::Step {
            arm_step_timeout();
        }
        let scope = Scope::new();
        let value = body()?;
        drop(scope);
        disarm_step_timeout();
        // SAFETY: the snapshot that was pushed above; a deferred check may raise at commit, which is caught here too.
        unsafe {
            pg_sys::PopActiveSnapshot();
            pg_sys::CommitTransactionCommand();
        }
        Ok(value)
    });
    if outcome.is_err() {
        disarm_step_timeout();
        // SAFETY: valid in every state, also when the commit itself failed.
        unsafe { pg_sys::AbortCurrentTransaction() };
    }
    // SAFETY: a worker's statistics go out when it is idle, not at commit.
    unsafe { pg_sys::pgstat_report_stat(true) };
    outcome
}

/// Runs `body` in a transaction of its own that may take `limit`, and lets `before_commit` know its number. Without the settings
/// of other transactions: what a worker sets for its whole life holds.
pub fn in_batch(
    limit: Duration,
    body: impl FnOnce() -> Result<()>,
    before_commit: impl FnOnce(Option<pg_sys::TransactionId>),
) -> Result<()> {
    // SAFETY: a worker between transactions; the error path aborts whatever state the transaction is in.
    unsafe {
        pg_sys::SetCurrentStatementStartTimestamp();
        pg_sys::StartTransactionCommand();
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
    }
    let outcome = catch(|| {
        hurry(limit);
        body()?;
        disarm_step_timeout();
        // SAFETY: the snapshot that was pushed above.
        unsafe {
            let transaction = pg_sys::GetTopTransactionIdIfAny();
            before_commit((transaction != pg_sys::InvalidTransactionId).then_some(transaction));
            pg_sys::PopActiveSnapshot();
            worker::committing(|| pg_sys::CommitTransactionCommand());
        }
        Ok(())
    });
    if outcome.is_err() {
        disarm_step_timeout();
        // SAFETY: valid in every state, also when the commit itself failed.
        unsafe { pg_sys::AbortCurrentTransaction() };
    }
    // SAFETY: reports at most once a second.
    unsafe { pg_sys::pgstat_report_stat(false) };
    outcome
}

/// Constraints and constraint triggers are checked by the statement, all of them: at the commit they would run with other rights.
pub fn check_constraints_at_once() {
    // SAFETY: what SET CONSTRAINTS ALL IMMEDIATE does, at the beginning of a transaction; the node lives across the call.
    unsafe {
        let mut statement = pg_sys::ConstraintsSetStmt {
            type_: pg_sys::NodeTag::T_ConstraintsSetStmt,
            constraints: std::ptr::null_mut(),
            deferred: false,
        };
        pg_sys::AfterTriggerSetState(&mut statement);
    }
}

/// Whether a transaction of the past has committed.
pub fn has_committed(transaction: pg_sys::TransactionId) -> bool {
    // SAFETY: reads the server's commit log.
    unsafe { pg_sys::TransactionIdDidCommit(transaction) }
}

/// No step takes minutes; an owner's function that never returns must not keep the worker from everybody else's tables.
pub const STEP_LIMIT: Duration = Duration::from_secs(600);
/// `STATEMENT_TIMEOUT` of the server's enum; the same number in 14 to 18.
const STATEMENT_TIMEOUT: c_int = 3;

unsafe extern "C-unwind" {
    // Not in pgrx's bindings. Workers do not arm statement_timeout by themselves.
    fn enable_timeout_after(id: c_int, delay_ms: c_int);
    fn disable_timeout(id: c_int, keep_indicator: bool);
}

fn arm_step_timeout() {
    hurry(STEP_LIMIT);
}

/// From here on the step is cancelled after this time: others wait for it.
pub fn hurry(time: Duration) {
    let milliseconds = c_int::try_from(time.as_millis())
        .unwrap_or(c_int::MAX)
        .max(1);
    // SAFETY: the server registers this timeout in every process with a database; it cancels like a user would. Arming again
    // replaces the time.
    unsafe { enable_timeout_after(STATEMENT_TIMEOUT, milliseconds) };
}

pub(super) fn disarm_step_timeout() {
    // SAFETY: disabling a timeout that is not armed is allowed.
    unsafe { disable_timeout(STATEMENT_TIMEOUT, false) };
}

/// The next transaction id, and the oldest one that was running for the current snapshot; both count on across wrap-around.
pub fn next_id() -> u64 {
    // SAFETY: reads shared state of the server.
    unsafe { pg_sys::ReadNextFullTransactionId().value }
}

pub fn oldest_running() -> u64 {
    let next = next_id();
    // SAFETY: reads the transaction's snapshot, which exists: workers push one at the start.
    let xmin = unsafe { (*pg_sys::GetTransactionSnapshot()).xmin };
    // The snapshot is less than half the id space old, or the server would have stopped giving out ids.
    let behind = (next as u32).wrapping_sub(xmin.into_inner());
    next - u64::from(behind)
}

/// Whether the transaction must not write: a standby, or READ ONLY.
pub fn is_read_only() -> bool {
    // SAFETY: reads variables.
    unsafe { pg_sys::XactReadOnly || pg_sys::RecoveryInProgress() }
}

pub fn is_standby() -> bool {
    // SAFETY: reads shared state of the server.
    unsafe { pg_sys::RecoveryInProgress() }
}

/// Whether a row version was written by the open transaction (or a part of it).
pub fn is_current(xmin: pg_sys::TransactionId) -> bool {
    // SAFETY: compares transaction ids.
    unsafe { pg_sys::TransactionIdIsCurrentTransactionId(xmin) }
}

/// Shows what the worker does in pg_stat_activity.
pub fn report_activity(text: Option<&str>) {
    // SAFETY: the server copies the string.
    unsafe {
        match text.and_then(|text| std::ffi::CString::new(text).ok()) {
            Some(text) => {
                pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_RUNNING, text.as_ptr());
            }
            None => {
                pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_IDLE, std::ptr::null())
            }
        }
    }
}
