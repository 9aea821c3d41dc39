//! Everything that differs between the majors of PostgreSQL.

use pgrx::pg_sys;

pub fn owns_relation(relation: pg_sys::Oid, role: pg_sys::Oid) -> bool {
    // SAFETY: catalog look-ups on OIDs.
    unsafe {
        #[cfg(any(feature = "pg14", feature = "pg15"))]
        return pg_sys::pg_class_ownercheck(relation, role);
        #[cfg(not(any(feature = "pg14", feature = "pg15")))]
        return pg_sys::object_ownercheck(pg_sys::RelationRelationId, relation, role);
    }
}

pub fn owns_database(database: pg_sys::Oid, role: pg_sys::Oid) -> bool {
    // SAFETY: catalog look-ups on OIDs.
    unsafe {
        #[cfg(any(feature = "pg14", feature = "pg15"))]
        return pg_sys::pg_database_ownercheck(database, role);
        #[cfg(not(any(feature = "pg14", feature = "pg15")))]
        return pg_sys::object_ownercheck(pg_sys::DatabaseRelationId, database, role);
    }
}

pub fn may_create_in_schema(schema: pg_sys::Oid, role: pg_sys::Oid) -> bool {
    // SAFETY: catalog look-ups on OIDs.
    unsafe {
        #[cfg(any(feature = "pg14", feature = "pg15"))]
        let result = pg_sys::pg_namespace_aclcheck(schema, role, pg_sys::ACL_CREATE);
        #[cfg(not(any(feature = "pg14", feature = "pg15")))]
        let result = pg_sys::object_aclcheck(
            pg_sys::NamespaceRelationId,
            schema,
            role,
            pg_sys::ACL_CREATE.into(),
        );
        result == pg_sys::AclResult::ACLCHECK_OK
    }
}

/// Whether this session holds exactly this lock.
///
/// # Safety
/// The tag must describe a lockable object.
pub unsafe fn lock_held_by_me(tag: &pg_sys::LOCKTAG, mode: pg_sys::LOCKMODE) -> bool {
    // SAFETY: by contract.
    unsafe {
        #[cfg(not(any(feature = "pg17", feature = "pg18")))]
        return pg_sys::LockHeldByMe(tag, mode);
        #[cfg(any(feature = "pg17", feature = "pg18"))]
        return pg_sys::LockHeldByMe(tag, mode, false);
    }
}

/// # Safety
/// `queue` must be an attached handle and `message` must stay alive across the call.
pub unsafe fn send_to_queue(
    queue: *mut pg_sys::shm_mq_handle,
    message: &[u8],
) -> pg_sys::shm_mq_result::Type {
    // SAFETY: by contract.
    unsafe {
        #[cfg(feature = "pg14")]
        return pg_sys::shm_mq_send(queue, message.len(), message.as_ptr().cast(), false);
        #[cfg(not(feature = "pg14"))]
        return pg_sys::shm_mq_send(queue, message.len(), message.as_ptr().cast(), false, true);
    }
}

/// # Safety
/// Both descriptors must be of open relations.
pub unsafe fn attribute_map(
    to: pg_sys::TupleDesc,
    from: pg_sys::TupleDesc,
) -> *mut pg_sys::AttrMap {
    // SAFETY: by contract.
    unsafe {
        #[cfg(any(feature = "pg14", feature = "pg15"))]
        return pg_sys::build_attrmap_by_name(to, from);
        #[cfg(not(any(feature = "pg14", feature = "pg15")))]
        return pg_sys::build_attrmap_by_name(to, from, false);
    }
}

pub fn owns_extension(extension: pg_sys::Oid, role: pg_sys::Oid) -> bool {
    // SAFETY: catalog look-ups on OIDs.
    unsafe {
        #[cfg(any(feature = "pg14", feature = "pg15"))]
        return pg_sys::pg_extension_ownercheck(extension, role);
        #[cfg(not(any(feature = "pg14", feature = "pg15")))]
        return pg_sys::object_ownercheck(pg_sys::ExtensionRelationId, extension, role);
    }
}

/// # Safety
/// The node must be a string node.
pub unsafe fn string_value(node: *mut pg_sys::Node) -> *const std::ffi::c_char {
    // SAFETY: by contract.
    unsafe {
        #[cfg(feature = "pg14")]
        return (*node.cast::<pg_sys::Value>()).val.str_;
        #[cfg(not(feature = "pg14"))]
        return (*node.cast::<pg_sys::String>()).sval;
    }
}

/// # Safety
/// The descriptor must be of an open relation with more columns than `index`.
pub unsafe fn attribute(
    descriptor: pg_sys::TupleDesc,
    index: usize,
) -> *const pg_sys::FormData_pg_attribute {
    // SAFETY: by contract.
    unsafe {
        #[cfg(not(feature = "pg18"))]
        return (*descriptor).attrs.as_ptr().add(index);
        #[cfg(feature = "pg18")]
        return pg_sys::TupleDescAttr(descriptor, index as std::ffi::c_int);
    }
}

/// # Safety
/// `statement` must come from the parser and `source` must be the text it was made from.
pub unsafe fn analyze_and_rewrite(
    statement: *mut pg_sys::RawStmt,
    source: *const std::ffi::c_char,
) -> *mut pg_sys::List {
    let none = std::ptr::null_mut();
    // SAFETY: by contract; the statement takes no parameters.
    unsafe {
        #[cfg(feature = "pg14")]
        return pg_sys::pg_analyze_and_rewrite(statement, source, none, 0, std::ptr::null_mut());
        #[cfg(not(feature = "pg14"))]
        return pg_sys::pg_analyze_and_rewrite_fixedparams(
            statement,
            source,
            none,
            0,
            std::ptr::null_mut(),
        );
    }
}

/// # Safety
/// The portal must have been started; the receiver takes whatever it returns.
pub unsafe fn run_portal(
    portal: pg_sys::Portal,
    top_level: bool,
    receiver: *mut pg_sys::DestReceiver,
    completion: &mut pg_sys::QueryCompletion,
) {
    let all = std::ffi::c_long::MAX;
    // SAFETY: by contract.
    unsafe {
        #[cfg(not(feature = "pg18"))]
        pg_sys::PortalRun(portal, all, top_level, true, receiver, receiver, completion);
        #[cfg(feature = "pg18")]
        pg_sys::PortalRun(portal, all, top_level, receiver, receiver, completion);
    }
}

/// Partitions inherit the parent's identity from 17 on; before, they need its sequence as their default.
pub const PARTITIONS_INHERIT_IDENTITY: bool = cfg!(any(feature = "pg17", feature = "pg18"));

unsafe extern "C-unwind" {
    /// The server's handler for SIGTERM in sessions. Declared here because its address is passed on: pgrx's is a wrapper.
    pub(super) fn die(signal: std::ffi::c_int);
}

/// What a signal calls.
pub(super) type SignalHandler = unsafe extern "C-unwind" fn(std::ffi::c_int);

/// Makes SIGTERM end the running statement, as it does in a session.
pub(super) fn die_handler() -> SignalHandler {
    die
}

/// Analyses and rewrites a statement whose parameters have the types that it gives them.
///
/// # Safety
/// The statement and its text must be alive; `types` and `count` must be writable.
pub unsafe fn analyze(
    raw: *mut pg_sys::RawStmt,
    text: *const std::ffi::c_char,
    types: *mut *mut pg_sys::Oid,
    count: *mut std::ffi::c_int,
) -> *mut pg_sys::List {
    // SAFETY: by contract.
    unsafe {
        #[cfg(feature = "pg14")]
        return pg_sys::pg_rewrite_query(pg_sys::parse_analyze_varparams(raw, text, types, count));
        #[cfg(not(feature = "pg14"))]
        return pg_sys::pg_analyze_and_rewrite_varparams(
            raw,
            text,
            types,
            count,
            std::ptr::null_mut(),
        );
    }
}

/// Checks what the executor checks of a query's own tables. Raises 42501.
///
/// # Safety
/// The query must be alive.
pub unsafe fn check_rights(query: *mut pg_sys::Query) {
    // SAFETY: by contract.
    unsafe {
        #[cfg(any(feature = "pg14", feature = "pg15"))]
        pg_sys::ExecCheckRTPerms((*query).rtable, true);
        #[cfg(not(any(feature = "pg14", feature = "pg15")))]
        pg_sys::ExecCheckPermissions((*query).rtable, (*query).rteperminfos, true);
    }
}

/// A column of a row's description.
///
/// # Safety
/// The description must be alive and have so many columns.
pub unsafe fn column(
    descriptor: pg_sys::TupleDesc,
    index: usize,
) -> *const pg_sys::FormData_pg_attribute {
    // SAFETY: by contract.
    unsafe {
        #[cfg(not(feature = "pg18"))]
        return (*descriptor).attrs.as_ptr().add(index);
        #[cfg(feature = "pg18")]
        return pg_sys::TupleDescAttr(descriptor, index as i32);
    }
}
