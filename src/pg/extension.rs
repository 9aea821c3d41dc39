//! What belongs to the extension: pg_dump leaves it out, and DROP EXTENSION takes it along.

use crate::pg::catalog;
use pgrx::pg_sys;

fn extension() -> Option<pg_sys::ObjectAddress> {
    // SAFETY: with missing_ok the look-up returns InvalidOid instead of raising.
    let oid = unsafe { pg_sys::get_extension_oid(c"audit_db".as_ptr(), true) };
    (oid != pg_sys::InvalidOid).then_some(pg_sys::ObjectAddress {
        classId: pg_sys::ExtensionRelationId,
        objectId: oid,
        objectSubId: 0,
    })
}

pub fn is_ours(other: pg_sys::Oid) -> bool {
    extension().is_some_and(|extension| extension.objectId == other)
}

const fn table_address(table: pg_sys::Oid) -> pg_sys::ObjectAddress {
    pg_sys::ObjectAddress {
        classId: pg_sys::RelationRelationId,
        objectId: table,
        objectSubId: 0,
    }
}

/// Makes a table a member.
pub fn add_table(table: pg_sys::Oid) {
    if let Some(extension) = extension() {
        // SAFETY: both addresses live across the call.
        unsafe {
            pg_sys::recordDependencyOn(
                &table_address(table),
                &extension,
                pg_sys::DependencyType::DEPENDENCY_EXTENSION,
            );
            pg_sys::CommandCounterIncrement();
        }
    }
}

/// Ends the membership of a table, if it is a member. Needed before it can be dropped.
pub fn remove_table(table: pg_sys::Oid) {
    // SAFETY: removes entries of this kind only.
    unsafe {
        pg_sys::deleteDependencyRecordsForClass(
            pg_sys::RelationRelationId,
            table,
            pg_sys::ExtensionRelationId,
            pg_sys::DependencyType::DEPENDENCY_EXTENSION as _,
        );
        pg_sys::CommandCounterIncrement();
    }
}

/// Whether a relation exists and is a member.
pub fn has_table(table: pg_sys::Oid) -> bool {
    // SAFETY: a catalog look-up.
    let member = unsafe { pg_sys::getExtensionOfObject(pg_sys::RelationRelationId, table) };
    member != pg_sys::InvalidOid
        && extension().is_some_and(|extension| extension.objectId == member)
        && catalog::relation_name(table).is_some()
}

/// Lets triggers go with the extension, so that it can be dropped without CASCADE while they exist.
pub fn take_triggers_along(triggers: &[pg_sys::Oid]) {
    let Some(extension) = extension() else { return };
    for trigger in triggers {
        let address = pg_sys::ObjectAddress {
            classId: pg_sys::TriggerRelationId,
            objectId: *trigger,
            objectSubId: 0,
        };
        // SAFETY: both addresses live across the call.
        unsafe {
            pg_sys::recordDependencyOn(
                &address,
                &extension,
                pg_sys::DependencyType::DEPENDENCY_AUTO_EXTENSION,
            );
        }
    }
}
