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
    extension_oid() != pg_sys::InvalidOid
}

/// The extension in this database; invalid where it is not there. Needs a transaction.
pub fn extension_oid() -> pg_sys::Oid {
    // SAFETY: with missing_ok the look-up returns InvalidOid instead of raising.
    unsafe { pg_sys::get_extension_oid(c"audit_db".as_ptr(), true) }
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

/// Pages of a table or an index. `None`: it is gone, or somebody holds it so that one would have to wait.
pub fn pages_without_waiting(relation: pg_sys::Oid) -> Option<u32> {
    let mode = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
    // SAFETY: the lock is taken before the relation is opened, and both are given back.
    unsafe {
        if !pg_sys::ConditionalLockRelationOid(relation, mode) {
            return None;
        }
        let opened = pg_sys::try_relation_open(relation, pg_sys::NoLock as pg_sys::LOCKMODE);
        let mut pages = None;
        if !opened.is_null() {
            pages = Some(pg_sys::RelationGetNumberOfBlocksInFork(
                opened,
                pg_sys::ForkNumber::MAIN_FORKNUM,
            ));
            pg_sys::relation_close(opened, pg_sys::NoLock as pg_sys::LOCKMODE);
        }
        pg_sys::UnlockRelationOid(relation, mode);
        pages
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

/// A column that can be written to.
#[derive(Clone, Debug)]
pub struct Column {
    pub name: String,
    pub number: i16,
    pub type_oid: pg_sys::Oid,
}

/// A column by its name.
pub fn column(relation: pg_sys::Oid, name: &str) -> Option<Column> {
    let text = CString::new(name).ok()?;
    // SAFETY: a look-up in the server's cache, which leaves out dropped columns; the tuple is released.
    unsafe {
        let tuple = pg_sys::SearchSysCacheAttName(relation, text.as_ptr());
        let column = written(tuple);
        if !tuple.is_null() {
            pg_sys::ReleaseSysCache(tuple);
        }
        column
    }
}

/// A column by its number.
pub fn column_at(relation: pg_sys::Oid, number: i16) -> Option<Column> {
    // SAFETY: as above; a dropped column is found and left out.
    unsafe {
        let tuple = pg_sys::SearchSysCache2(
            pg_sys::SysCacheIdentifier::ATTNUM as i32,
            pg_sys::Datum::from(relation),
            pg_sys::Datum::from(number),
        );
        let column = written(tuple);
        if !tuple.is_null() {
            pg_sys::ReleaseSysCache(tuple);
        }
        column
    }
}

/// # Safety
/// The tuple must be null or of pg_attribute.
unsafe fn written(tuple: pg_sys::HeapTuple) -> Option<Column> {
    if tuple.is_null() {
        return None;
    }
    // SAFETY: by contract; names are zero-terminated.
    unsafe {
        let form = &*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_attribute>();
        (form.attnum > 0 && !form.attisdropped && form.attgenerated == 0).then(|| Column {
            name: CStr::from_ptr(form.attname.data.as_ptr())
                .to_string_lossy()
                .into_owned(),
            number: form.attnum,
            type_oid: form.atttypid,
        })
    }
}

/// The beginning of a row of pg_partitioned_table, in 14 to 18. pgrx has no binding for it.
#[repr(C)]
struct PartitionedTable {
    partrelid: pg_sys::Oid,
    partstrat: c_char,
    partnatts: i16,
    partdefid: pg_sys::Oid,
    partattrs: pg_sys::int2vector,
}

/// Of a table partitioned by one column, the number of that column, and its default partition.
pub fn partitioning(relation: pg_sys::Oid) -> Option<(i16, pg_sys::Oid)> {
    // SAFETY: a look-up in the server's cache; the tuple is released. The array has as many elements as the key has columns.
    unsafe {
        let tuple = pg_sys::SearchSysCache1(
            pg_sys::SysCacheIdentifier::PARTRELID as i32,
            pg_sys::Datum::from(relation),
        );
        if tuple.is_null() {
            return None;
        }
        let form = pg_sys::GETSTRUCT(tuple).cast::<PartitionedTable>();
        let found = ((*form).partnatts == 1).then(|| {
            let key = *(*form).partattrs.values.as_ptr();
            (key, (*form).partdefid)
        });
        pg_sys::ReleaseSysCache(tuple);
        found
    }
}

/// Whether a type, or what it is a domain over, is a kind of text.
pub fn is_text(type_oid: pg_sys::Oid) -> bool {
    let (mut category, mut preferred) = (0, false);
    // SAFETY: look-ups of a column's type, which exists.
    unsafe {
        let base = pg_sys::getBaseType(type_oid);
        pg_sys::get_type_category_preferred(base, &mut category, &mut preferred);
    }
    category as u8 == pg_sys::TYPCATEGORY_STRING
}

/// The name of a type, qualified and quoted, without what modifies it.
pub fn type_name(type_oid: pg_sys::Oid) -> String {
    // SAFETY: a look-up of a column's type, which exists; the result is a string of the server's.
    unsafe {
        let name = pg_sys::format_type_be_qualified(type_oid);
        CStr::from_ptr(name).to_string_lossy().into_owned()
    }
}

/// Of a table's rows with a true value in one column, the relation in another column with the smallest time in a third, among
/// relations that exist. Read without a query: who logs one event and ends should not pay for planning one.
pub fn oldest_marked(
    table: pg_sys::Oid,
    relation: &CStr,
    mark: &CStr,
    time: &CStr,
) -> Option<pg_sys::Oid> {
    // SAFETY: the relation is open and locked while it is read; arrays have the length of its descriptor; columns are looked up.
    unsafe {
        let opened = pg_sys::try_relation_open(table, pg_sys::AccessShareLock as _);
        if opened.is_null() {
            return None;
        }
        let descriptor = (*opened).rd_att;
        let place = |name: &CStr| {
            usize::try_from(pg_sys::get_attnum(table, name.as_ptr()) - 1)
                .ok()
                .filter(|place| *place < (*descriptor).natts as usize)
        };
        let mut oldest: Option<(i64, pg_sys::Oid)> = None;
        if let (Some(relation), Some(mark), Some(time)) =
            (place(relation), place(mark), place(time))
        {
            let scan = pg_sys::systable_beginscan(
                opened,
                pg_sys::InvalidOid,
                false,
                pg_sys::GetActiveSnapshot(),
                0,
                std::ptr::null_mut(),
            );
            let mut values = vec![pg_sys::Datum::null(); (*descriptor).natts as usize];
            let mut nulls = vec![true; values.len()];
            loop {
                let tuple = pg_sys::systable_getnext(scan);
                if tuple.is_null() {
                    break;
                }
                pg_sys::heap_deform_tuple(
                    tuple,
                    descriptor,
                    values.as_mut_ptr(),
                    nulls.as_mut_ptr(),
                );
                if nulls[relation] || nulls[mark] || nulls[time] || values[mark].value() == 0 {
                    continue;
                }
                let found = pg_sys::Oid::from(values[relation].value() as u32);
                let since = values[time].value() as i64;
                if oldest.is_none_or(|(other, _)| since < other) && relation_owner(found).is_some()
                {
                    oldest = Some((since, found));
                }
            }
            pg_sys::systable_endscan(scan);
        }
        pg_sys::relation_close(opened, pg_sys::AccessShareLock as _);
        oldest.map(|(_, found)| found)
    }
}

/// A relation by its name as `regclass` reads it; names without a schema are found in pg_catalog only.
pub fn named_relation(name: &str) -> crate::error::Result<Option<pg_sys::Oid>> {
    Ok(crate::pg::spi::rows(
        "SELECT pg_catalog.to_regclass($1)::pg_catalog.oid",
        &[name.into()],
        |row| row.get::<pg_sys::Oid>(1),
    )?
    .pop()
    .flatten())
}

/// Whether a relation is a table, partitioned or not, or a materialized view.
pub fn is_table(relation: pg_sys::Oid) -> bool {
    // SAFETY: a catalog look-up that returns a zero byte for what does not exist.
    let kind = unsafe { pg_sys::get_rel_relkind(relation) } as u8;
    [
        pg_sys::RELKIND_RELATION,
        pg_sys::RELKIND_PARTITIONED_TABLE,
        pg_sys::RELKIND_MATVIEW,
    ]
    .contains(&kind)
}

/// Whether an index is valid; `None` where it is gone.
pub fn index_is_valid(index: pg_sys::Oid) -> Option<bool> {
    // SAFETY: a look-up in the server's cache; the tuple is released.
    unsafe {
        let tuple = pg_sys::SearchSysCache1(
            pg_sys::SysCacheIdentifier::INDEXRELID as i32,
            pg_sys::Datum::from(index),
        );
        if tuple.is_null() {
            return None;
        }
        let valid = (*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_index>()).indisvalid;
        pg_sys::ReleaseSysCache(tuple);
        Some(valid)
    }
}

/// Whether there is such a role.
pub fn role_exists(role: pg_sys::Oid) -> bool {
    // SAFETY: with missing_ok the look-up returns null instead of raising.
    unsafe { !pg_sys::GetUserNameFromId(role, true).is_null() }
}
