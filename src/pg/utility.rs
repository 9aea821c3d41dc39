//! Commands that are run as a client would run them: those that must not be inside a transaction block (CONCURRENTLY, FINALIZE,
//! VACUUM), and those of jobs.

use crate::error::{Error, JobError, Result};
use crate::pg::{compat, xact};
use pgrx::pg_sys;
use std::ffi::{CStr, CString};
use std::time::Duration;

/// Longest time for a command that waits for others, so that one session that never ends does not keep the worker from everything
/// else.
pub const WAIT_LIMIT: Duration = Duration::from_secs(600);

/// What a statement of a command has done.
pub struct Completion {
    /// As in `INSERT`.
    pub tag: String,
    pub rows: u64,
}

/// Runs one command at top level, with the rights of `role`. The worker must be outside any transaction and hold no snapshot.
///
/// `lock_timeout` does not hold: what is interrupted in the middle leaves something behind (an invalid index, a pending detach)
/// that later has to be finished. Where there is a limit the command is cancelled then all the same; SIGTERM and
/// pg_cancel_backend interrupt any.
pub fn run_at_top_level(role: pg_sys::Oid, sql: &str, limit: Option<Duration>) -> Result<()> {
    let restricted = pg_sys::SECURITY_LOCAL_USERID_CHANGE
        | pg_sys::SECURITY_RESTRICTED_OPERATION
        | pg_sys::SECURITY_NOFORCE_RLS;
    run(sql, limit, Some((role, restricted as i32))).map(|_| ())
}

/// Runs what a client could send as one simple query, with the rights and settings of the process's own role. Several
/// statements are one transaction.
pub fn run_as_client(sql: &str, limit: Option<Duration>) -> Result<Vec<Completion>> {
    run(sql, limit, None)
}

fn run(
    sql: &str,
    limit: Option<Duration>,
    identity: Option<(pg_sys::Oid, i32)>,
) -> Result<Vec<Completion>> {
    let text = CString::new(sql).map_err(|_| Error::Internal("command with a zero byte".into()))?;
    let mut user = pg_sys::InvalidOid;
    let mut context = 0;
    // SAFETY: the sequence of the server's own exec_simple_query. Parse and plan trees live in a context of their own, because
    // the command may commit in the middle. Identity and transaction are put back on every path.
    unsafe {
        pg_sys::GetUserIdAndSecContext(&mut user, &mut context);
        pg_sys::SetCurrentStatementStartTimestamp();
        pg_sys::StartTransactionCommand();
        let memory = pg_sys::AllocSetContextCreateInternal(
            pg_sys::TopMemoryContext,
            c"audit_db command".as_ptr(),
            pg_sys::ALLOCSET_DEFAULT_MINSIZE as usize,
            pg_sys::ALLOCSET_DEFAULT_INITSIZE as usize,
            pg_sys::ALLOCSET_DEFAULT_MAXSIZE as usize,
        );
        if let Some((role, flags)) = identity {
            pg_sys::SetUserIdAndSecContext(role, context | flags);
        }
        pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_RUNNING, text.as_ptr());
        let outcome = xact::catch(|| {
            if let Some(limit) = limit {
                xact::hurry(limit);
            }
            pg_sys::MemoryContextSwitchTo(memory);
            let done = statements(&text, memory)?;
            pg_sys::MemoryContextSwitchTo(memory);
            pg_sys::CommitTransactionCommand();
            Ok(done)
        });
        xact::disarm_step_timeout();
        if outcome.is_err() {
            pg_sys::AbortCurrentTransaction();
        }
        if identity.is_some() {
            pg_sys::SetUserIdAndSecContext(user, context);
        }
        pg_sys::MemoryContextSwitchTo(pg_sys::TopMemoryContext);
        pg_sys::MemoryContextDelete(memory);
        pg_sys::pgstat_report_stat(true);
        outcome
    }
}

/// # Safety
/// Inside a transaction that the command may end and begin anew; `memory` outlives it.
unsafe fn statements(text: &CStr, memory: pg_sys::MemoryContext) -> Result<Vec<Completion>> {
    let mut done = Vec::new();
    // SAFETY: by contract; every tree stays in `memory`.
    unsafe {
        let parsed =
            pgrx::PgList::<pg_sys::RawStmt>::from_pg(pg_sys::pg_parse_query(text.as_ptr()));
        let alone = parsed.len() == 1;
        for raw in parsed.iter_ptr() {
            check((*raw).stmt)?;
            let tag = pg_sys::CreateCommandTag((*raw).stmt);
            let snapshot = pg_sys::analyze_requires_snapshot(raw);
            if snapshot {
                pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
            }
            let queries = compat::analyze_and_rewrite(raw, text.as_ptr());
            let plans = pg_sys::pg_plan_queries(queries, text.as_ptr(), 0, std::ptr::null_mut());
            if snapshot {
                pg_sys::PopActiveSnapshot();
            }
            let portal = pg_sys::CreatePortal(c"".as_ptr(), true, true);
            (*portal).visible = false;
            pg_sys::PortalDefineQuery(
                portal,
                std::ptr::null(),
                text.as_ptr(),
                tag,
                plans,
                std::ptr::null_mut(),
            );
            pg_sys::PortalStart(portal, std::ptr::null_mut(), 0, std::ptr::null_mut());
            let receiver = pg_sys::CreateDestReceiver(pg_sys::CommandDest::DestNone);
            let mut completion = pg_sys::QueryCompletion {
                commandTag: tag,
                nprocessed: 0,
            };
            compat::run_portal(portal, alone, receiver, &mut completion);
            pg_sys::PortalDrop(portal, false);
            // A command that committed has left this context.
            pg_sys::MemoryContextSwitchTo(memory);
            pg_sys::CommandCounterIncrement();
            done.push(Completion {
                tag: CStr::from_ptr(pg_sys::GetCommandTagName(completion.commandTag))
                    .to_string_lossy()
                    .into_owned(),
                rows: completion.nprocessed,
            });
        }
    }
    Ok(done)
}

/// What a command of a job may not be.
///
/// # Safety
/// The node must be a live statement of the server's parser.
unsafe fn check(statement: *mut pg_sys::Node) -> Result<()> {
    // SAFETY: the tag says which structure it is.
    unsafe {
        match (*statement).type_ {
            pg_sys::NodeTag::T_TransactionStmt => Err(Error::TransactionControl),
            // Without a client the server would read and write its own standard input and output, which is its log.
            pg_sys::NodeTag::T_CopyStmt
                if (*statement.cast::<pg_sys::CopyStmt>()).filename.is_null() =>
            {
                Err(JobError::NoClient.into())
            }
            _ => Ok(()),
        }
    }
}

/// Raises what the server's parser has to say about a command; nothing else is looked at.
pub fn check_syntax(sql: &str) -> Result<()> {
    let text =
        CString::new(sql).map_err(|_| Error::invalid("a command must not contain zero bytes"))?;
    // SAFETY: parses into the current memory context.
    unsafe {
        let parsed =
            pgrx::PgList::<pg_sys::RawStmt>::from_pg(pg_sys::pg_parse_query(text.as_ptr()));
        for raw in parsed.iter_ptr() {
            check((*raw).stmt)?;
        }
        if parsed.is_empty() {
            return Err(Error::invalid("the command is empty"));
        }
    }
    Ok(())
}
