//! Whose rights hold.

use crate::pg::guc::Scope;
use pgrx::pg_sys;
use std::ffi::c_int;

/// The role whose rights the session has now.
pub fn current_role() -> pg_sys::Oid {
    // SAFETY: reads a variable.
    unsafe { pg_sys::GetUserId() }
}

/// The user who is connected.
pub fn session_user() -> pg_sys::Oid {
    // SAFETY: reads a variable.
    unsafe { pg_sys::GetSessionUserId() }
}

/// The name of a role, for messages.
pub fn role_name(role: pg_sys::Oid) -> String {
    // SAFETY: with missing_ok the look-up returns null instead of raising.
    unsafe {
        let name = pg_sys::GetUserNameFromId(role, true);
        if name.is_null() {
            return role.to_u32().to_string();
        }
        std::ffi::CStr::from_ptr(name)
            .to_string_lossy()
            .into_owned()
    }
}

/// Another role's rights until this value is dropped.
struct Guard {
    role: pg_sys::Oid,
    context: c_int,
}

impl Drop for Guard {
    fn drop(&mut self) {
        // SAFETY: puts back what was there. After an error the abort does the same.
        unsafe { pg_sys::SetUserIdAndSecContext(self.role, self.context) };
    }
}

/// Runs `body` with the rights of `role`, as the server does for index expressions: nothing that outlives the call can be left
/// behind by the owner's functions, and row security that an owner forced on himself does not hide his rows from
/// maintenance.
pub fn as_role<T>(role: pg_sys::Oid, body: impl FnOnce() -> T) -> T {
    let mut guard = Guard {
        role: pg_sys::InvalidOid,
        context: 0,
    };
    let flags = pg_sys::SECURITY_LOCAL_USERID_CHANGE
        | pg_sys::SECURITY_RESTRICTED_OPERATION
        | pg_sys::SECURITY_NOFORCE_RLS;
    // SAFETY: reads, then sets, the identity of the transaction; the guard or the abort puts it back.
    unsafe {
        pg_sys::GetUserIdAndSecContext(&mut guard.role, &mut guard.context);
        pg_sys::SetUserIdAndSecContext(role, guard.context | flags as c_int);
    }
    // What the owner's functions set is undone before other rights come back.
    let scope = Scope::new();
    let result = body();
    drop(scope);
    drop(guard);
    result
}

/// Runs `body` with the rights of a role that asked for it: its row-security policies hold, and what its functions could leave
/// behind for others is refused or undone.
///
/// `session_user` is what that function says meanwhile: defaults and policies of the table may ask it.
pub fn as_writer<T>(role: pg_sys::Oid, session_user: pg_sys::Oid, body: impl FnOnce() -> T) -> T {
    let mut guard = Guard {
        role: pg_sys::InvalidOid,
        context: 0,
    };
    let flags = pg_sys::SECURITY_LOCAL_USERID_CHANGE | pg_sys::SECURITY_RESTRICTED_OPERATION;
    // SAFETY: reads, then sets, the identity of the transaction; the guards put it back, first the session's, also after an error.
    let session = unsafe {
        pg_sys::GetUserIdAndSecContext(&mut guard.role, &mut guard.context);
        let session = Session(pg_sys::GetSessionUserId());
        pg_sys::SetSessionAuthorization(session_user, pg_sys::superuser_arg(session_user));
        pg_sys::SetUserIdAndSecContext(role, guard.context | flags as c_int);
        session
    };
    let scope = Scope::unchanged();
    let result = body();
    drop(scope);
    drop(session);
    drop(guard);
    result
}

/// Puts the session's user back.
struct Session(pg_sys::Oid);

impl Drop for Session {
    fn drop(&mut self) {
        // SAFETY: a worker's own user, a superuser; the caller's guard sets the effective user afterwards.
        unsafe { pg_sys::SetSessionAuthorization(self.0, true) };
    }
}

/// Whether a role may insert into these columns of a table.
pub fn may_insert(
    table: pg_sys::Oid,
    mut columns: impl Iterator<Item = i16>,
    role: pg_sys::Oid,
) -> bool {
    // SAFETY: catalog look-ups on numbers.
    unsafe {
        // Wider from 16 on.
        #[allow(clippy::useless_conversion)]
        let mode = pg_sys::ACL_INSERT.into();
        let granted = pg_sys::AclResult::ACLCHECK_OK;
        pg_sys::pg_class_aclcheck(table, role, mode) == granted
            || columns
                .all(|column| pg_sys::pg_attribute_aclcheck(table, column, role, mode) == granted)
    }
}

/// Whether the current role may do to a database what its owner may.
pub fn owns_database(database: pg_sys::Oid) -> bool {
    // SAFETY: looks up the current role.
    unsafe {
        pg_sys::superuser() || crate::pg::compat::owns_database(database, pg_sys::GetUserId())
    }
}

/// Whether the current role may drop the extension, if it is there.
pub fn owns_extension() -> bool {
    // SAFETY: catalog look-ups; with missing_ok the first returns InvalidOid instead of raising.
    unsafe {
        let extension = pg_sys::get_extension_oid(c"audit_db".as_ptr(), true);
        extension != pg_sys::InvalidOid
            && crate::pg::compat::owns_extension(extension, pg_sys::GetUserId())
    }
}

/// The database this session is connected to.
pub fn my_database() -> pg_sys::Oid {
    // SAFETY: reads a variable.
    unsafe { pg_sys::MyDatabaseId }
}

/// What tells this server from others, also from the one that a dump comes from.
pub fn system_identifier() -> u64 {
    // SAFETY: reads shared state that is fixed since the server started.
    unsafe { pg_sys::GetSystemIdentifier() }
}

/// From now on this process has the rights of a role, in all of its transactions; it stays connected as it was.
pub fn become_role(role: pg_sys::Oid) {
    // SAFETY: between transactions of a worker: the end of each puts back what was there at its start.
    unsafe { pg_sys::SetUserIdAndSecContext(role, 0) };
}

/// How long a statement of this session may take by its own settings.
pub fn statement_timeout() -> Option<std::time::Duration> {
    // SAFETY: reads a variable.
    let milliseconds = unsafe { pg_sys::StatementTimeout };
    u64::try_from(milliseconds)
        .ok()
        .filter(|milliseconds| *milliseconds > 0)
        .map(std::time::Duration::from_millis)
}

/// Whether a role is a superuser.
pub fn is_superuser(role: pg_sys::Oid) -> bool {
    // SAFETY: a catalog look-up that returns false for what does not exist.
    unsafe { pg_sys::superuser_arg(role) }
}

/// Whether a role has the rights of another one without asking for them.
pub fn has_privileges_of(role: pg_sys::Oid, other: pg_sys::Oid) -> bool {
    // SAFETY: catalog look-ups on numbers.
    unsafe { pg_sys::has_privs_of_role(role, other) }
}

/// A role by its name.
pub fn role_named(name: &std::ffi::CStr) -> Option<pg_sys::Oid> {
    // SAFETY: with missing_ok the look-up returns InvalidOid instead of raising.
    let oid = unsafe { pg_sys::get_role_oid(name.as_ptr(), true) };
    (oid != pg_sys::InvalidOid).then_some(oid)
}
