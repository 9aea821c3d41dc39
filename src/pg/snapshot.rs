//! Snapshots: of other sessions, who may still not see what has been committed; and of the statement that is running.

use audit_db_core::validity::{FullId, Snapshot};
use pgrx::pg_sys;

/// Sessions of this database whose snapshot is older than a moment. Sessions that come later see what was committed by then.
pub struct OldSnapshots {
    limit: pg_sys::TransactionId,
    sessions: Vec<pg_sys::VirtualTransactionId>,
}

impl OldSnapshots {
    /// Those that exist now.
    pub fn now() -> Self {
        // SAFETY: reads shared state of the server.
        let next = unsafe { pg_sys::ReadNextFullTransactionId().value } as u32;
        // A snapshot that does not see a transaction as committed has an xmin up to that transaction's id.
        let limit = pg_sys::TransactionId::from_inner(next.wrapping_sub(1));
        Self {
            limit,
            sessions: sessions(limit),
        }
    }

    /// Whether any of them is still there. As with CREATE INDEX CONCURRENTLY, a session counts until its transaction ends or
    /// holds no snapshot when we look.
    pub fn any_left(&mut self) -> bool {
        let now = sessions(self.limit);
        self.sessions
            .retain(|old| now.iter().any(|one| same(one, old)));
        !self.sessions.is_empty()
    }
}

fn sessions(limit: pg_sys::TransactionId) -> Vec<pg_sys::VirtualTransactionId> {
    let mut count = 0;
    // Vacuums and index builds see all rows whatever their age.
    let ignored = pg_sys::PROC_IS_AUTOVACUUM | pg_sys::PROC_IN_VACUUM | pg_sys::PROC_IN_SAFE_IC;
    // SAFETY: the server returns an array of `count` elements in the current memory context, which is freed here.
    unsafe {
        let found = pg_sys::GetCurrentVirtualXIDs(limit, true, false, ignored as i32, &mut count);
        let list = std::slice::from_raw_parts(found, count.max(0) as usize).to_vec();
        pg_sys::pfree(found.cast());
        list
    }
}

fn same(one: &pg_sys::VirtualTransactionId, other: &pg_sys::VirtualTransactionId) -> bool {
    #[cfg(not(any(feature = "pg17", feature = "pg18")))]
    let process = one.backendId == other.backendId;
    #[cfg(any(feature = "pg17", feature = "pg18"))]
    let process = one.procNumber == other.procNumber;
    process && one.localTransactionId == other.localTransactionId
}

/// What the running statement sees.
pub struct Active {
    snapshot: pg_sys::Snapshot,
    oldest: FullId,
    end: FullId,
}

impl Active {
    /// `None`: there is none, or not one that a stored result can be compared under.
    pub fn get() -> Option<Self> {
        // SAFETY: the active snapshot stays where it is while the statement runs.
        unsafe {
            if !pg_sys::ActiveSnapshotSet() {
                return None;
            }
            let snapshot = pg_sys::GetActiveSnapshot();
            if (*snapshot).snapshot_type != pg_sys::SnapshotType::SNAPSHOT_MVCC
                || (*snapshot).takenDuringRecovery
            {
                return None;
            }
            let next = pg_sys::ReadNextFullTransactionId().value;
            Some(Self {
                snapshot,
                oldest: full(next, (*snapshot).xmin),
                end: full(next, (*snapshot).xmax),
            })
        }
    }
}

/// The full form of an id that is not from the future and less than half the id space old.
fn full(next: FullId, id: pg_sys::TransactionId) -> FullId {
    next - u64::from((next as u32).wrapping_sub(id.into_inner()))
}

impl Snapshot for Active {
    fn oldest(&self) -> FullId {
        self.oldest
    }

    fn is_running(&self, id: FullId) -> bool {
        id >= self.end
            || (id >= self.oldest
                // SAFETY: the statement's own snapshot.
                && unsafe {
                    pg_sys::XidInMVCCSnapshot(
                        pg_sys::TransactionId::from_inner(id as u32),
                        self.snapshot,
                    )
                })
    }
}
