//! What the catalog knows of relations, read through the server's caches: always current, whatever the snapshot.

use audit_db_core::partition_plan::{Bound, Range};
use pgrx::pg_sys;
use std::ffi::{CStr, CString, c_char};

/// Type of a partition key that audit_db can look after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyType {
    Timestamptz,
    Timestamp,
    Date,
}

impl KeyType {
    pub fn from_oid(oid: pg_sys::Oid) -> Option<Self> {
        match oid {
            pg_sys::TIMESTAMPTZOID => Some(Self::Timestamptz),
            pg_sys::TIMESTAMPOID => Some(Self::Timestamp),
            pg_sys::DATEOID => Some(Self::Date),
            _ => None,
        }
    }

    /// A bound's value as a position; ±infinity become the ends of the range of positions.
    fn position(self, datum: pg_sys::Datum) -> i64 {
        match self {
            Self::Timestamptz | Self::Timestamp => datum.value() as i64,
            Self::Date => match datum.value() as i32 {
                i32::MIN => i64::MIN,
                i32::MAX => i64::MAX,
                days => i64::from(days)
                    .checked_mul(86_400_000_000)
                    // Dates reach further than timestamps do.
                    .unwrap_or(if days > 0 { i64::MAX } else { i64::MIN }),
            },
        }
    }
}

/// One partition of a table: `range` is `None` for the default.
#[derive(Clone, Copy, Debug)]
pub struct Child {
    pub oid: pg_sys::Oid,
    pub range: Option<Range>,
}

/// The partitions of a table that is partitioned by range on one column of this type, those with a pending detach too.
/// `None` where the table is gone or is not partitioned by range.
pub fn children(table: pg_sys::Oid, key: KeyType) -> Option<Vec<Child>> {
    // SAFETY: the relation is open and locked while its partition descriptor is read; everything is copied out.
    unsafe {
        let relation = pg_sys::try_relation_open(table, pg_sys::AccessShareLock as _);
        if relation.is_null() {
            return None;
        }
        let mut children = None;
        if (*(*relation).rd_rel).relkind as u8 == pg_sys::RELKIND_PARTITIONED_TABLE {
            let partitions = pg_sys::RelationGetPartitionDesc(relation, false);
            children = Some(read_partitions(&*partitions, key));
        }
        pg_sys::relation_close(relation, pg_sys::AccessShareLock as _);
        children
    }
}

/// # Safety
/// The descriptor must belong to an open relation that is partitioned by range on one column of type `key`.
unsafe fn read_partitions(partitions: &pg_sys::PartitionDescData, key: KeyType) -> Vec<Child> {
    let mut children = Vec::with_capacity(partitions.nparts.max(0) as usize);
    if partitions.nparts <= 0 || partitions.boundinfo.is_null() {
        return children;
    }
    // SAFETY: by contract. `datums` and `kind` have `ndatums` rows; `indexes` has one entry more: entry i is the partition
    // that ends at bound i, or -1 for a gap. There is one row per bound and one column per key column.
    unsafe {
        let info = &*partitions.boundinfo;
        let bound = |index: i32| -> Bound {
            let kind = *(*info.kind.add(index as usize));
            match kind {
                pg_sys::PartitionRangeDatumKind::PARTITION_RANGE_DATUM_MINVALUE => Bound::MinValue,
                pg_sys::PartitionRangeDatumKind::PARTITION_RANGE_DATUM_MAXVALUE => Bound::MaxValue,
                _ => Bound::At(key.position(*(*info.datums.add(index as usize)))),
            }
        };
        for index in 0..info.ndatums {
            let partition = *info.indexes.add(index as usize);
            if partition >= 0 && index > 0 {
                children.push(Child {
                    oid: *partitions.oids.add(partition as usize),
                    range: Some(Range {
                        lower: bound(index - 1),
                        upper: bound(index),
                    }),
                });
            }
        }
        if info.default_index >= 0 {
            children.push(Child {
                oid: *partitions.oids.add(info.default_index as usize),
                range: None,
            });
        }
    }
    children
}

/// Name of a relation, unqualified.
pub fn relation_name(relation: pg_sys::Oid) -> Option<String> {
    // SAFETY: returns null or a string in the current memory context.
    unsafe { owned(pg_sys::get_rel_name(relation)) }
}

/// Name of the schema of a relation.
pub fn schema_of(relation: pg_sys::Oid) -> Option<String> {
    // SAFETY: returns null or a string in the current memory context.
    unsafe {
        owned(pg_sys::get_namespace_name(pg_sys::get_rel_namespace(
            relation,
        )))
    }
}

/// `schema.name`, quoted where needed.
pub fn qualified_name(relation: pg_sys::Oid) -> Option<String> {
    Some(crate::pg::spi::quote_qualified_identifier(
        schema_of(relation)?,
        relation_name(relation)?,
    ))
}

pub fn schema_oid(name: &str) -> Option<pg_sys::Oid> {
    let name = CString::new(name).ok()?;
    // SAFETY: with missing_ok the look-up returns InvalidOid instead of raising.
    let oid = unsafe { pg_sys::get_namespace_oid(name.as_ptr(), true) };
    (oid != pg_sys::InvalidOid).then_some(oid)
}

/// A relation of any kind with this name.
pub fn relation_in_schema(schema: pg_sys::Oid, name: &str) -> Option<pg_sys::Oid> {
    let name = CString::new(name).ok()?;
    // SAFETY: returns InvalidOid for what does not exist.
    let oid = unsafe { pg_sys::get_relname_relid(name.as_ptr(), schema) };
    (oid != pg_sys::InvalidOid).then_some(oid)
}

/// Whether the extension is there in this database. Needs a transaction.
pub fn extension_exists() -> bool {
    // SAFETY: with missing_ok the look-up returns InvalidOid instead of raising.
    unsafe { pg_sys::get_extension_oid(c"audit_db".as_ptr(), true) != pg_sys::InvalidOid }
}

/// # Safety
/// Null, or a zero-terminated string.
unsafe fn owned(text: *mut c_char) -> Option<String> {
    if text.is_null() {
        return None;
    }
    // SAFETY: by contract.
    Some(
        unsafe { CStr::from_ptr(text) }
            .to_string_lossy()
            .into_owned(),
    )
}

/// A database of this server that a worker may connect to.
pub fn connectable_databases() -> Vec<pg_sys::Oid> {
    let mut databases = Vec::new();
    // SAFETY: a scan of a shared catalog, inside a transaction; works without a connection to any database.
    unsafe {
        let relation = pg_sys::table_open(pg_sys::DatabaseRelationId, pg_sys::AccessShareLock as _);
        let scan = pg_sys::systable_beginscan(
            relation,
            pg_sys::InvalidOid,
            false,
            std::ptr::null_mut(),
            0,
            std::ptr::null_mut(),
        );
        loop {
            let tuple = pg_sys::systable_getnext(scan);
            if tuple.is_null() {
                break;
            }
            let form = pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_database>();
            // -2 marks a database whose DROP was interrupted.
            if (*form).datallowconn && !(*form).datistemplate && (*form).datconnlimit != -2 {
                databases.push((*form).oid);
            }
        }
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(relation, pg_sys::AccessShareLock as _);
    }
    databases
}

/// Whether there is such a database.
pub fn database_exists(database: pg_sys::Oid) -> bool {
    // SAFETY: a look-up that returns null for what does not exist.
    unsafe { !pg_sys::get_database_name(database).is_null() }
}

/// A database by its name.
pub fn database_oid(name: &CStr) -> Option<pg_sys::Oid> {
    // SAFETY: with missing_ok the look-up returns InvalidOid instead of raising.
    let oid = unsafe { pg_sys::get_database_oid(name.as_ptr(), true) };
    (oid != pg_sys::InvalidOid).then_some(oid)
}

/// Number of indexes of a relation.
pub fn index_count(relation: pg_sys::Oid) -> i64 {
    // SAFETY: the relation is open while its list is read; the list is a copy.
    unsafe {
        let opened = pg_sys::try_relation_open(relation, pg_sys::AccessShareLock as _);
        if opened.is_null() {
            return 0;
        }
        let indexes = pg_sys::RelationGetIndexList(opened);
        let count = if indexes.is_null() {
            0
        } else {
            (*indexes).length
        };
        pg_sys::list_free(indexes);
        pg_sys::relation_close(opened, pg_sys::AccessShareLock as _);
        i64::from(count)
    }
}

/// Whether a plain table has not a single page: then it holds no row, and nothing needs to be read to know it.
pub fn has_no_pages(relation: pg_sys::Oid) -> bool {
    // SAFETY: the relation is open and locked while its size is asked for.
    unsafe {
        let opened = pg_sys::try_relation_open(relation, pg_sys::AccessShareLock as _);
        if opened.is_null() {
            return true;
        }
        let empty = (*(*opened).rd_rel).relkind as u8 == pg_sys::RELKIND_RELATION
            && pg_sys::RelationGetNumberOfBlocksInFork(opened, pg_sys::ForkNumber::MAIN_FORKNUM)
                == 0;
        pg_sys::relation_close(opened, pg_sys::AccessShareLock as _);
        empty
    }
}

/// The role that owns a relation; `None` where it is gone.
pub fn relation_owner(relation: pg_sys::Oid) -> Option<pg_sys::Oid> {
    // SAFETY: a look-up in the server's cache; the tuple is released.
    unsafe {
        let tuple = pg_sys::SearchSysCache1(
            pg_sys::SysCacheIdentifier::RELOID as i32,
            pg_sys::Datum::from(relation),
        );
        if tuple.is_null() {
            return None;
        }
        let owner = (*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_class>()).relowner;
        pg_sys::ReleaseSysCache(tuple);
        Some(owner)
    }
}

/// Whether the open transaction has written the relation's entry in the catalog: created or altered it.
pub fn is_changed_by_me(relation: pg_sys::Oid) -> bool {
    // SAFETY: a look-up in the server's cache; the tuple is released.
    unsafe {
        // Without a transaction id it has written nothing.
        if pg_sys::GetTopTransactionIdIfAny() == pg_sys::InvalidTransactionId {
            return false;
        }
        let tuple = pg_sys::SearchSysCache1(
            pg_sys::SysCacheIdentifier::RELOID as i32,
            pg_sys::Datum::from(relation),
        );
        if tuple.is_null() {
            return false;
        }
        let writer = (*(*tuple).t_data).t_choice.t_heap.t_xmin;
        let mine = pg_sys::TransactionIdIsCurrentTransactionId(writer);
        pg_sys::ReleaseSysCache(tuple);
        mine
    }
}

/// Whether a relation is a partition of a table, with a pending detach too.
pub fn is_partition(relation: pg_sys::Oid) -> bool {
    // SAFETY: a catalog look-up that returns false for what does not exist.
    unsafe { pg_sys::get_rel_relispartition(relation) }
}

/// Whether a relation is an ordinary table.
pub fn is_plain_table(relation: pg_sys::Oid) -> bool {
    // SAFETY: a catalog look-up that returns a zero byte for what does not exist.
    unsafe { pg_sys::get_rel_relkind(relation) as u8 == pg_sys::RELKIND_RELATION }
}

/// Whether a relation is a foreign table.
pub fn is_foreign_table(relation: pg_sys::Oid) -> bool {
    // SAFETY: as above.
    unsafe { pg_sys::get_rel_relkind(relation) as u8 == pg_sys::RELKIND_FOREIGN_TABLE }
}

/// Size of the rows of a plain table, without indexes and TOAST; 0 where it is gone.
pub fn size_in_bytes(relation: pg_sys::Oid) -> i64 {
    // SAFETY: the relation is open and locked while its size is asked for.
    unsafe {
        let opened = pg_sys::try_relation_open(relation, pg_sys::AccessShareLock as _);
        if opened.is_null() {
            return 0;
        }
        let mut pages = 0;
        if (*(*opened).rd_rel).relkind as u8 == pg_sys::RELKIND_RELATION {
            pages =
                pg_sys::RelationGetNumberOfBlocksInFork(opened, pg_sys::ForkNumber::MAIN_FORKNUM);
        }
        pg_sys::relation_close(opened, pg_sys::AccessShareLock as _);
        i64::from(pages) * i64::from(pg_sys::BLCKSZ)
    }
}

/// Whether values of a type can be hashed to 64 bits.
pub fn is_hashable(type_oid: pg_sys::Oid) -> bool {
    // SAFETY: returns an entry of the server's type cache, which lives as long as the process.
    unsafe {
        let entry = pg_sys::lookup_type_cache(
            type_oid,
            pg_sys::TYPECACHE_HASH_EXTENDED_PROC as std::ffi::c_int,
        );
        (*entry).hash_extended_proc != pg_sys::InvalidOid
    }
}
