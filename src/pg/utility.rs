//! Commands that must not run inside a transaction block (CONCURRENTLY, FINALIZE), run by a worker as a client would.

use crate::error::{Error, Result};
use crate::pg::{compat, xact};
use pgrx::pg_sys;
use std::ffi::{CString, c_long};

/// Runs one command at top level, with the rights of `role`. The worker must be outside any transaction and hold no snapshot.
///
/// `lock_timeout` does not hold: what is interrupted in the middle leaves something behind (an invalid index, a pending detach)
/// that later has to be finished. `limited` commands are cancelled after ten minutes all the same, so that one session that
/// never ends does not keep the worker from everything else; SIGTERM and pg_cancel_backend interrupt any.
pub fn run_at_top_level(role: pg_sys::Oid, sql: &str, limited: bool) -> Result<()> {
    let text = CString::new(sql).map_err(|_| Error::Internal("command with a zero byte".into()))?;
    let mut user = pg_sys::InvalidOid;
    let mut context = 0;
    // SAFETY: the sequence of the server's own exec_simple_query. Parse and plan trees live in a context of their own, because
    // the command commits in the middle. Identity and transaction are put back on every path.
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
        let restricted = pg_sys::SECURITY_LOCAL_USERID_CHANGE
            | pg_sys::SECURITY_RESTRICTED_OPERATION
            | pg_sys::SECURITY_NOFORCE_RLS;
        pg_sys::SetUserIdAndSecContext(role, context | restricted as i32);
        pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_RUNNING, text.as_ptr());
        let outcome = xact::catch(|| {
            if limited {
                xact::arm_step_timeout();
            }
            pg_sys::MemoryContextSwitchTo(memory);
            run(&text);
            pg_sys::MemoryContextSwitchTo(memory);
            pg_sys::CommitTransactionCommand();
            Ok(())
        });
        xact::disarm_step_timeout();
        if outcome.is_err() {
            pg_sys::AbortCurrentTransaction();
        }
        pg_sys::SetUserIdAndSecContext(user, context);
        pg_sys::MemoryContextSwitchTo(pg_sys::TopMemoryContext);
        pg_sys::MemoryContextDelete(memory);
        pg_sys::pgstat_report_stat(true);
        outcome
    }
}

/// # Safety
/// Inside a transaction that the command may end and begin anew; the current memory context outlives it.
unsafe fn run(text: &CString) {
    // SAFETY: by contract; every tree stays in the caller's context.
    unsafe {
        let parsed =
            pgrx::PgList::<pg_sys::RawStmt>::from_pg(pg_sys::pg_parse_query(text.as_ptr()));
        for raw in parsed.iter_ptr() {
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
            compat::run_portal(portal, c_long::MAX, receiver);
            pg_sys::PortalDrop(portal, false);
        }
    }
}
