//! Procedures that commit in the middle.

use pgrx::pg_sys;

/// Whether the call stands inside a transaction block or a function, where it cannot commit.
pub fn is_atomic(call: pg_sys::FunctionCallInfo) -> bool {
    // SAFETY: the server passes a CallContext to procedures that it calls by CALL, and nothing or another node otherwise.
    unsafe {
        let context = (*call).context;
        context.is_null()
            || (*context).type_ != pg_sys::NodeTag::T_CallContext
            || (*context.cast::<pg_sys::CallContext>()).atomic
    }
}

/// Commits the open transaction and begins the next one, which holds no snapshot and no lock.
pub fn commit() {
    // SAFETY: only within a call that is not atomic; nothing that was allocated in the transaction is used afterwards.
    unsafe {
        pg_sys::SPI_connect_ext(pg_sys::SPI_OPT_NONATOMIC as i32);
        pg_sys::SPI_commit();
        pg_sys::SPI_finish();
    }
}
