//! What a transaction has written, told before it commits or is prepared: from the locks that it holds then, because whoever changes
//! rows of a table holds one until the end, be it a statement, a trigger, a cascade, COPY, a rewrite or logical replication; and
//! from the utility commands that it ran, for what has no such lock.

use crate::pg::transaction;
use pgrx::pg_sys;
use std::marker::PhantomData;
use std::mem::offset_of;
use std::sync::atomic::{AtomicU8, Ordering};

/// Something may mean something else now: functions, types, grants, names of this database.
pub const CATALOG: u8 = 1;
/// Roles and their memberships.
pub const ROLES: u8 = 2;

/// What the transaction's utility commands have changed.
static CHANGED: AtomicU8 = AtomicU8::new(0);
/// The same of the commands that are running: some commit in the midst.
static CHANGING: AtomicU8 = AtomicU8::new(0);

/// Relations with lower numbers are the server's own; in 14 to 18.
pub const FIRST_OWN_RELATION: u32 = 16_384;
const FAST_SLOTS: usize = 16;
const FAST_BITS: usize = 3;
/// Locks that somebody who changes rows takes. In the mask of held locks the bit of a mode is that of its number.
const WRITING: u32 = 1 << pg_sys::RowExclusiveLock
    | 1 << pg_sys::ShareRowExclusiveLock
    | 1 << pg_sys::ExclusiveLock
    | 1 << pg_sys::AccessExclusiveLock;

/// Who wants to know.
pub trait Listener {
    /// Whether anybody does. Asked at every transaction.
    fn is_on() -> bool;
    /// The transaction of this id is about to commit; [`locked`] tells what it has written, `changed` what its commands have
    /// changed. May raise.
    fn before_commit(id: u64, changed: u8);
    /// The transaction has ended.
    fn ended();
}

/// The part of the events of transactions that this needs. Of several libraries' callbacks the first that was registered is the last
/// to be called: ours, so that what others write before a commit is known.
pub struct Transactions<L>(PhantomData<L>);

impl<L: Listener> transaction::Listener for Transactions<L> {
    const NEWS: u8 = transaction::CHANGED;

    #[inline]
    fn is_concerned() -> bool {
        L::is_on()
    }

    fn event(event: transaction::Event) {
        match event {
            transaction::PRE_COMMIT | transaction::PRE_PREPARE => {
                // SAFETY: reads a variable.
                let id = unsafe { pg_sys::GetTopFullTransactionIdIfAny() }.value;
                if id != 0 && L::is_on() {
                    // What `#[pg_guard]` does, which does not take generic functions.
                    // SAFETY: nothing of the server's is in the middle of anything before a commit.
                    unsafe {
                        pg_sys::panic::pgrx_extern_c_guard(|| {
                            L::before_commit(id, CHANGED.load(Ordering::Relaxed));
                        });
                    }
                }
            }
            transaction::COMMIT | transaction::PREPARE => {
                set_changed(CHANGING.load(Ordering::Relaxed));
                L::ended();
            }
            transaction::ABORT => {
                set_changed(0);
                CHANGING.store(0, Ordering::Relaxed);
                L::ended();
            }
            _ => {}
        }
    }
}

/// The end of the transaction matters, whatever it has written.
pub fn note_recording() {
    transaction::note(transaction::CHANGED);
}

fn set_changed(changes: u8) {
    CHANGED.store(changes, Ordering::Relaxed);
    if changes == 0 {
        transaction::forget(transaction::CHANGED);
    } else {
        transaction::note(transaction::CHANGED);
    }
}

/// A utility command begins that may change these. Returns what to give to [`command_ends`].
pub(super) fn command_begins(changes: u8) -> u8 {
    if changes == 0 {
        return CHANGING.load(Ordering::Relaxed);
    }
    let before = CHANGING.fetch_or(changes, Ordering::Relaxed);
    set_changed(CHANGED.load(Ordering::Relaxed) | changes);
    before
}

pub(super) fn command_ends(before: u8) {
    CHANGING.store(before, Ordering::Relaxed);
}

/// What a utility command may change of what statements mean. What is not known to be harmless counts.
///
/// # Safety
/// The statement must be alive.
pub(super) unsafe fn changes_of(statement: *mut pg_sys::Node) -> u8 {
    use pg_sys::NodeTag as Tag;
    // SAFETY: by contract; the tag says which structure it is.
    unsafe {
        match (*statement).type_ {
            Tag::T_TransactionStmt
            | Tag::T_VariableSetStmt
            | Tag::T_VariableShowStmt
            | Tag::T_DiscardStmt
            | Tag::T_CopyStmt
            | Tag::T_TruncateStmt
            | Tag::T_VacuumStmt
            | Tag::T_ExplainStmt
            | Tag::T_PrepareStmt
            | Tag::T_ExecuteStmt
            | Tag::T_DeallocateStmt
            | Tag::T_DeclareCursorStmt
            | Tag::T_ClosePortalStmt
            | Tag::T_FetchStmt
            | Tag::T_NotifyStmt
            | Tag::T_ListenStmt
            | Tag::T_UnlistenStmt
            | Tag::T_LockStmt
            | Tag::T_CheckPointStmt
            | Tag::T_LoadStmt
            | Tag::T_ConstraintsSetStmt
            | Tag::T_DoStmt
            | Tag::T_CallStmt
            | Tag::T_IndexStmt
            | Tag::T_ReindexStmt
            | Tag::T_ClusterStmt
            | Tag::T_RefreshMatViewStmt
            | Tag::T_CommentStmt
            | Tag::T_SecLabelStmt
            | Tag::T_CreateStatsStmt
            | Tag::T_AlterStatsStmt
            | Tag::T_CreateTrigStmt
            | Tag::T_CreateSeqStmt
            | Tag::T_AlterSeqStmt
            | Tag::T_CreatedbStmt
            | Tag::T_DropdbStmt
            | Tag::T_AlterDatabaseSetStmt
            | Tag::T_AlterRoleSetStmt
            | Tag::T_AlterSystemStmt
            | Tag::T_CreatePublicationStmt
            | Tag::T_AlterPublicationStmt
            | Tag::T_CreateSubscriptionStmt
            | Tag::T_AlterSubscriptionStmt
            | Tag::T_DropSubscriptionStmt
            | Tag::T_CreateTableSpaceStmt
            | Tag::T_DropTableSpaceStmt => 0,
            // Temporary tables are nobody else's.
            Tag::T_CreateStmt => {
                catalog_unless_temporary((*statement.cast::<pg_sys::CreateStmt>()).relation)
            }
            Tag::T_CreateTableAsStmt => {
                let into = (*statement.cast::<pg_sys::CreateTableAsStmt>()).into;
                catalog_unless_temporary((*into).rel)
            }
            Tag::T_DropStmt if drops_temporary_tables(statement.cast()) => 0,
            Tag::T_CreateRoleStmt
            | Tag::T_AlterRoleStmt
            | Tag::T_DropRoleStmt
            | Tag::T_GrantRoleStmt => ROLES,
            _ => CATALOG,
        }
    }
}

/// Whether all that a command drops are temporary tables, or nothing. Raises what the command would raise.
#[pgrx::pg_guard]
unsafe extern "C-unwind" fn drops_temporary_tables(drop: *mut pg_sys::DropStmt) -> bool {
    // SAFETY: by contract of the caller a live statement; of tables its objects are lists of names.
    unsafe {
        if (*drop).removeType != pg_sys::ObjectType::OBJECT_TABLE {
            return false;
        }
        let objects = pgrx::PgList::<pg_sys::List>::from_pg((*drop).objects);
        objects.iter_ptr().all(|names| {
            let name = pg_sys::makeRangeVarFromNameList(names);
            let relation = pg_sys::RangeVarGetRelidExtended(
                name,
                pg_sys::NoLock as pg_sys::LOCKMODE,
                pg_sys::RVROption::RVR_MISSING_OK,
                None,
                std::ptr::null_mut(),
            );
            relation == pg_sys::InvalidOid
                || pg_sys::get_rel_persistence(relation) as u8 == pg_sys::RELPERSISTENCE_TEMP
        })
    }
}

unsafe fn catalog_unless_temporary(name: *mut pg_sys::RangeVar) -> u8 {
    // SAFETY: by contract of the caller a name in a parse tree.
    let temporary =
        !name.is_null() && unsafe { (*name).relpersistence } as u8 == pg_sys::RELPERSISTENCE_TEMP;
    if temporary { 0 } else { CATALOG }
}

/// Calls `found` with each relation of this database that the transaction holds a writer's lock on; some more than once.
pub fn locked(mut found: impl FnMut(pg_sys::Oid)) {
    // SAFETY: the process's own entry. Others only move locks from the short list into the table, under the lock that is held
    // here: what is not in the list any more is in the table afterwards.
    unsafe {
        let process = pg_sys::MyProc;
        let lock = &raw mut (*process).fpInfoLock;
        pg_sys::LWLockAcquire(lock, pg_sys::LWLockMode::LW_SHARED);
        for group in 0..fast_groups() {
            let (bits, relations) = fast_group(process, group);
            for slot in 0..FAST_SLOTS {
                // Bits of modes begin with that of the first, AccessShareLock.
                let modes = (bits >> (FAST_BITS * slot)) as u32 & 0b111;
                if modes << 1 & WRITING != 0 {
                    found(*relations.add(slot));
                }
            }
        }
        pg_sys::LWLockRelease(lock);
        for part in 0..pg_sys::NUM_LOCK_PARTITIONS as usize {
            if is_empty(process, part) {
                continue;
            }
            let lock = &raw mut (*pg_sys::MainLWLockArray
                .add(pg_sys::LOCK_MANAGER_LWLOCK_OFFSET as usize + part))
            .lock;
            pg_sys::LWLockAcquire(lock, pg_sys::LWLockMode::LW_SHARED);
            each_lock(process, part, |held| {
                let tag = (*(*held).tag.myLock).tag;
                if (*held).holdMask as u32 & WRITING != 0
                    && u32::from(tag.locktag_type) == pg_sys::LockTagType::LOCKTAG_RELATION
                    && tag.locktag_field1 == pg_sys::MyDatabaseId.to_u32()
                {
                    found(pg_sys::Oid::from(tag.locktag_field2));
                }
            });
            pg_sys::LWLockRelease(lock);
        }
    }
}

#[cfg(not(feature = "pg18"))]
const unsafe fn fast_groups() -> usize {
    1
}

#[cfg(feature = "pg18")]
unsafe fn fast_groups() -> usize {
    // SAFETY: set before any process could come here.
    unsafe { pg_sys::FastPathLockGroupsPerBackend as usize }
}

unsafe fn fast_group(process: *mut pg_sys::PGPROC, group: usize) -> (u64, *const pg_sys::Oid) {
    // SAFETY: by contract of the caller a group that there is.
    unsafe {
        #[cfg(not(feature = "pg18"))]
        {
            let _ = group;
            (
                (*process).fpLockBits,
                (&raw const (*process).fpRelId).cast(),
            )
        }
        #[cfg(feature = "pg18")]
        {
            (
                *(*process).fpLockBits.add(group),
                (*process).fpRelId.add(group * FAST_SLOTS).cast_const(),
            )
        }
    }
}

#[cfg(any(feature = "pg14", feature = "pg15"))]
unsafe fn is_empty(process: *mut pg_sys::PGPROC, part: usize) -> bool {
    // SAFETY: an initialised list of the process's own.
    unsafe {
        let head = (&raw mut (*process).myProcLocks)
            .cast::<pg_sys::SHM_QUEUE>()
            .add(part);
        std::ptr::eq((*head).next, head)
    }
}

#[cfg(any(feature = "pg14", feature = "pg15"))]
unsafe fn each_lock(
    process: *mut pg_sys::PGPROC,
    part: usize,
    mut found: impl FnMut(*mut pg_sys::PROCLOCK),
) {
    // SAFETY: under the part's lock; entries hang in the list by their `procLink`.
    unsafe {
        let head = (&raw mut (*process).myProcLocks)
            .cast::<pg_sys::SHM_QUEUE>()
            .add(part);
        let mut link = (*head).next;
        while !std::ptr::eq(link, head) {
            found(link.byte_sub(offset_of!(pg_sys::PROCLOCK, procLink)).cast());
            link = (*link).next;
        }
    }
}

#[cfg(not(any(feature = "pg14", feature = "pg15")))]
unsafe fn is_empty(process: *mut pg_sys::PGPROC, part: usize) -> bool {
    // SAFETY: an initialised list of the process's own.
    unsafe {
        let head = (&raw mut (*process).myProcLocks)
            .cast::<pg_sys::dlist_head>()
            .add(part)
            .cast::<pg_sys::dlist_node>();
        (*head).next.is_null() || std::ptr::eq((*head).next, head)
    }
}

#[cfg(not(any(feature = "pg14", feature = "pg15")))]
unsafe fn each_lock(
    process: *mut pg_sys::PGPROC,
    part: usize,
    mut found: impl FnMut(*mut pg_sys::PROCLOCK),
) {
    // SAFETY: under the part's lock; entries hang in the list by their `procLink`.
    unsafe {
        let head = (&raw mut (*process).myProcLocks)
            .cast::<pg_sys::dlist_head>()
            .add(part)
            .cast::<pg_sys::dlist_node>();
        let mut link = (*head).next;
        while !link.is_null() && !std::ptr::eq(link, head) {
            found(link.byte_sub(offset_of!(pg_sys::PROCLOCK, procLink)).cast());
            link = (*link).next;
        }
    }
}

/// Whether a relation holds rows that statements see: not an index, a sequence, or a partitioned table, whose rows are its
/// partitions'. One that is gone counts.
pub fn has_rows(relation: pg_sys::Oid) -> bool {
    // SAFETY: a catalog look-up on a number, before the commit.
    let kind = unsafe { pg_sys::get_rel_relkind(relation) } as u8;
    !matches!(
        kind,
        pg_sys::RELKIND_INDEX
            | pg_sys::RELKIND_PARTITIONED_INDEX
            | pg_sys::RELKIND_SEQUENCE
            | pg_sys::RELKIND_PARTITIONED_TABLE
    )
}

/// Whether the transaction has, or may have, written one of these relations itself.
pub fn wrote_any(relations: impl Iterator<Item = pg_sys::Oid>) -> bool {
    // SAFETY: reads a variable.
    if unsafe { pg_sys::GetTopTransactionIdIfAny() } == pg_sys::InvalidTransactionId {
        return false;
    }
    if CHANGED.load(Ordering::Relaxed) != 0 {
        return true;
    }
    let mut relations = relations;
    relations.any(|relation| {
        // SAFETY: looks at this session's own table of locks.
        unsafe {
            let tag = pg_sys::LOCKTAG {
                locktag_field1: pg_sys::MyDatabaseId.to_u32(),
                locktag_field2: relation.to_u32(),
                locktag_type: pg_sys::LockTagType::LOCKTAG_RELATION as u8,
                locktag_lockmethodid: pg_sys::DEFAULT_LOCKMETHOD as u8,
                ..Default::default()
            };
            [
                pg_sys::RowExclusiveLock,
                pg_sys::ShareRowExclusiveLock,
                pg_sys::ExclusiveLock,
                pg_sys::AccessExclusiveLock,
            ]
            .into_iter()
            .any(|mode| crate::pg::compat::lock_held_by_me(&tag, mode as pg_sys::LOCKMODE))
        }
    })
}
