//! Background workers: registration, start-up, end.

use crate::pg::{compat, guc};
use pgrx::pg_sys;
use std::ffi::{CStr, c_char};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

/// A worker that this process has started.
pub struct Handle(*mut pg_sys::BackgroundWorkerHandle);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Starting,
    Running,
    Stopped,
}

impl Handle {
    pub fn status(&self) -> Status {
        let mut pid = 0;
        // SAFETY: the handle came from the server and was not freed.
        match unsafe { pg_sys::GetBackgroundWorkerPid(self.0, &mut pid) } {
            pg_sys::BgwHandleStatus::BGWH_STARTED => Status::Running,
            pg_sys::BgwHandleStatus::BGWH_NOT_YET_STARTED => Status::Starting,
            _ => Status::Stopped,
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: allocated by RegisterDynamicBackgroundWorker in TopMemoryContext; freed once.
        unsafe { pg_sys::pfree(self.0.cast()) };
    }
}

fn describe(name: &str, kind: &str, function: &str) -> pg_sys::BackgroundWorker {
    let mut worker = pg_sys::BackgroundWorker::default();
    copy(&mut worker.bgw_name, name);
    copy(&mut worker.bgw_type, kind);
    copy(&mut worker.bgw_library_name, "audit_db");
    copy(&mut worker.bgw_function_name, function);
    worker.bgw_flags =
        (pg_sys::BGWORKER_SHMEM_ACCESS | pg_sys::BGWORKER_BACKEND_DATABASE_CONNECTION) as i32;
    // On a standby nothing starts before promotion.
    worker.bgw_start_time = pg_sys::BgWorkerStartTime::BgWorkerStart_RecoveryFinished;
    worker.bgw_restart_time = pg_sys::BGW_NEVER_RESTART;
    worker
}

fn copy(target: &mut [c_char], text: &str) {
    let room = target.len() - 1;
    for (slot, byte) in target.iter_mut().zip(text.bytes().take(room)) {
        *slot = byte as c_char;
    }
}

/// Registers the launcher with the postmaster. Only while libraries are preloaded.
pub fn register_launcher(function: &str) {
    let mut worker = describe("audit_db launcher", "audit_db launcher", function);
    worker.bgw_restart_time = 1;
    // SAFETY: called from _PG_init in the postmaster; the server copies the description.
    unsafe { pg_sys::RegisterBackgroundWorker(&mut worker) };
}

/// The workers that have a slot in shared memory, which is their argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Database,
    Slow,
    Ingest,
    Job,
}

impl Role {
    /// Its name in pg_stat_activity, and its entry point.
    const fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Database => ("audit_db worker", "audit_db_worker_main"),
            Self::Slow => ("audit_db slow worker", "audit_db_slow_worker_main"),
            Self::Ingest => ("audit_db ingest worker", "audit_db_ingest_worker_main"),
            Self::Job => ("audit_db job", "audit_db_job_main"),
        }
    }

    /// Starts such a worker. `None`: the server has no slot free.
    pub fn start(self, slot: usize) -> Option<Handle> {
        let (name, function) = self.names();
        let mut worker = describe(name, name, function);
        worker.bgw_main_arg = pg_sys::Datum::from(slot);
        start(&mut worker).map(Handle)
    }
}

/// Starts a worker for one piece of work of a session.
pub fn start_task(
    function: &str,
    name: &str,
    segment: u32,
    database: pg_sys::Oid,
) -> Option<*mut pg_sys::BackgroundWorkerHandle> {
    let mut worker = describe(name, "audit_db task", function);
    worker.bgw_main_arg = pg_sys::Datum::from(segment);
    copy(&mut worker.bgw_extra, &database.to_u32().to_string());
    register(&mut worker)
}

fn start(worker: &mut pg_sys::BackgroundWorker) -> Option<*mut pg_sys::BackgroundWorkerHandle> {
    // SAFETY: the launcher's handles outlive its transactions.
    unsafe {
        let context = pg_sys::MemoryContextSwitchTo(pg_sys::TopMemoryContext);
        let handle = register(worker);
        pg_sys::MemoryContextSwitchTo(context);
        handle
    }
}

fn register(worker: &mut pg_sys::BackgroundWorker) -> Option<*mut pg_sys::BackgroundWorkerHandle> {
    let mut handle = std::ptr::null_mut();
    // SAFETY: the server copies the description; the handle is allocated in the current memory context.
    unsafe {
        worker.bgw_notify_pid = pg_sys::MyProcPid;
        pg_sys::RegisterDynamicBackgroundWorker(worker, &mut handle).then_some(handle)
    }
}

/// The database that a task worker was started for.
pub fn task_database() -> Option<pg_sys::Oid> {
    // SAFETY: set by the server before the worker's entry point runs; the text is zero-terminated.
    unsafe {
        let text = CStr::from_ptr((&raw const (*pg_sys::MyBgworkerEntry).bgw_extra).cast());
        text.to_str()
            .ok()?
            .parse::<u32>()
            .ok()
            .map(pg_sys::Oid::from)
    }
}

/// Signal handlers of a worker: SIGTERM ends even a running statement, SIGHUP is noticed at the next wait.
pub fn install_signal_handlers() {
    install(compat::die_handler());
}

fn install(terminate: compat::SignalHandler) {
    // SAFETY: a worker sets its handlers while signals are still blocked: what has come meanwhile meets the right ones.
    unsafe {
        #[cfg(not(feature = "pg18"))]
        pg_sys::pqsignal(libc::SIGTERM, Some(terminate));
        #[cfg(feature = "pg18")]
        pg_sys::pqsignal_be(libc::SIGTERM, Some(terminate));
        #[cfg(not(feature = "pg18"))]
        pg_sys::pqsignal(libc::SIGHUP, Some(config_reload));
        #[cfg(feature = "pg18")]
        pg_sys::pqsignal_be(libc::SIGHUP, Some(config_reload));
        pg_sys::BackgroundWorkerUnblockSignals();
    }
}

static ENDING: AtomicBool = AtomicBool::new(false);
static ENDING_SINCE: AtomicI64 = AtomicI64::new(0);
static COMMITTING: AtomicBool = AtomicBool::new(false);

/// The same for a worker that has something to finish first: SIGTERM is noticed at the next wait, and one that comes
/// seconds later ends it.
pub fn install_draining_handlers() {
    install(end_in_order);
}

/// Async-signal-safe.
fn boot_seconds() -> i64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: fills the structure.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut time) };
    time.tv_sec
}

/// Async-signal-safe: sets flags and this process's latch.
unsafe extern "C-unwind" fn end_in_order(signal: std::ffi::c_int) {
    // SAFETY: as in `config_reload`; `die` is made for signal handlers.
    unsafe {
        let errno = *libc::__errno_location();
        // The postmaster sends each signal twice: to the process, and to its group.
        let now = boot_seconds();
        if ENDING.swap(true, Ordering::Relaxed) {
            if now > ENDING_SINCE.load(Ordering::Relaxed) + 1 {
                compat::die(signal);
            }
        } else {
            ENDING_SINCE.store(now, Ordering::Relaxed);
            if COMMITTING.load(Ordering::Relaxed) {
                // What is on disk here need not wait for a standby that may never answer.
                pg_sys::QueryCancelPending = 1;
                pg_sys::InterruptPending = 1;
            }
            set_latch(pg_sys::MyLatch);
        }
        *libc::__errno_location() = errno;
    }
}

static STORING: AtomicBool = AtomicBool::new(false);

/// This process is the one that stores events.
pub fn begin_storing() {
    STORING.store(true, Ordering::Relaxed);
}

/// Whether it is.
pub fn is_storing() -> bool {
    STORING.load(Ordering::Relaxed)
}

/// Whether the worker was told to end.
pub fn is_ending() -> bool {
    ENDING.load(Ordering::Relaxed)
}

/// Runs a commit: a worker that is told to end meanwhile does not wait for standbys.
pub fn committing(commit: impl FnOnce()) {
    struct Done;
    impl Drop for Done {
        fn drop(&mut self) {
            COMMITTING.store(false, Ordering::Relaxed);
        }
    }
    let _done = Done;
    // First this, then the look: a signal in between finds one or the other.
    COMMITTING.store(true, Ordering::Relaxed);
    if is_ending() {
        guc::flush_locally();
    }
    commit();
}

static RELOAD: AtomicBool = AtomicBool::new(false);

/// Async-signal-safe: sets a flag and this process's latch.
unsafe extern "C-unwind" fn config_reload(_signal: std::ffi::c_int) {
    // SAFETY: an atomic store and SetLatch, which is made for signal handlers; errno is put back.
    unsafe {
        let errno = *libc::__errno_location();
        RELOAD.store(true, Ordering::Relaxed);
        set_latch(pg_sys::MyLatch);
        *libc::__errno_location() = errno;
    }
}

unsafe extern "C-unwind" {
    /// Declared here without pgrx's wrapper, which is not made for signal handlers.
    #[link_name = "SetLatch"]
    fn set_latch(latch: *mut pg_sys::Latch);
}

/// Whether the configuration should be read again; asks once.
pub fn reload_requested() -> bool {
    RELOAD.swap(false, Ordering::Relaxed)
}

/// Connects to a database as a role, with its rights and settings. A role that may not connect ends the process.
pub fn connect_as(database: pg_sys::Oid, role: pg_sys::Oid) {
    // SAFETY: called once, from a worker's entry point, with signals unblocked.
    unsafe { pg_sys::BackgroundWorkerInitializeConnectionByOid(database, role, 0) };
}

/// Connects to a database with all rights.
pub fn connect_to_database(database: pg_sys::Oid) {
    connect_as(database, pg_sys::InvalidOid);
    fix_settings();
}

/// Settings that hold for a worker's own code.
pub fn fix_settings() {
    // Whoever may set defaults for the database must not be able to bend what runs with all rights.
    for (name, value) in [
        (c"search_path", "pg_catalog, pg_temp"),
        (c"default_transaction_isolation", "read committed"),
        (c"default_transaction_read_only", "off"),
        (c"default_transaction_deferrable", "off"),
        (c"row_security", "on"),
        (c"session_replication_role", "origin"),
        // What copies or indexes a table takes as long as it takes.
        #[cfg(any(feature = "pg17", feature = "pg18"))]
        (c"transaction_timeout", "0"),
    ] {
        guc::fix_for_worker(name, value);
    }
}

/// Connects to the shared catalogs only.
pub fn connect_to_no_database() {
    // SAFETY: called once, from a worker's entry point, with signals unblocked.
    unsafe {
        pg_sys::BackgroundWorkerInitializeConnection(std::ptr::null(), std::ptr::null(), 0);
    }
}

/// Runs `callback` when the process has left everything but shared memory. Register it before connecting: then it runs after
/// the process has left its database.
pub fn at_exit(callback: unsafe extern "C-unwind" fn(i32, pg_sys::Datum), argument: usize) {
    // SAFETY: the callback takes what the server passes.
    unsafe { pg_sys::on_shmem_exit(Some(callback), pg_sys::Datum::from(argument)) };
}
