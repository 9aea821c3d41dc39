//! Room on the disks that the server's tablespaces lie on.

use pgrx::pg_sys;
use std::ffi::CStr;

/// Bytes that are free where a tablespace of this database lies (invalid: the database's own). `None`: the system does not say.
pub fn free(tablespace: pg_sys::Oid) -> Option<i64> {
    // SAFETY: the path is relative to the data folder, in which every process of the server works; it is freed.
    unsafe {
        let tablespace = if tablespace == pg_sys::InvalidOid {
            pg_sys::MyDatabaseTableSpace
        } else {
            tablespace
        };
        let path = pg_sys::GetDatabasePath(pg_sys::MyDatabaseId, tablespace);
        let mut found = std::mem::MaybeUninit::<libc::statvfs>::uninit();
        let failed = libc::statvfs(CStr::from_ptr(path).as_ptr(), found.as_mut_ptr()) != 0;
        pg_sys::pfree(path.cast());
        if failed {
            return None;
        }
        let found = found.assume_init();
        #[allow(clippy::unnecessary_cast)]
        i64::try_from((found.f_bavail as u64).saturating_mul(found.f_frsize as u64)).ok()
    }
}
