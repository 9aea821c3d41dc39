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

/// Partitions inherit the parent's identity from 17 on; before, they need its sequence as their default.
pub const PARTITIONS_INHERIT_IDENTITY: bool = cfg!(any(feature = "pg17", feature = "pg18"));

unsafe extern "C-unwind" {
    /// The server's handler for SIGTERM in sessions. Declared here because its address is passed on: pgrx's is a wrapper.
    fn die(signal: std::ffi::c_int);
}

/// Makes SIGTERM end the running statement, as it does in a session.
pub fn install_die_handler() {
    // SAFETY: a background worker sets its own signal handlers before it unblocks signals.
    unsafe {
        #[cfg(not(feature = "pg18"))]
        pg_sys::pqsignal(libc::SIGTERM, Some(die));
        #[cfg(feature = "pg18")]
        pg_sys::pqsignal_be(libc::SIGTERM, Some(die));
    }
}
