//! Every error that audit_db raises: its SQLSTATE, message, DETAIL and HINT. The only place that raises.

mod cache;
mod events;
mod jobs;

pub use cache::CacheError;
pub use events::EventError;
pub use jobs::{Ending, JobError};

use pgrx::pg_sys::panic::{CaughtError, ErrorReport};
use pgrx::{PgLogLevel, PgSqlErrorCode};

/// SQLSTATE, message, DETAIL, HINT.
type Parts = (PgSqlErrorCode, String, Option<String>, Option<String>);

/// What went wrong, in terms of the caller's objects.
#[derive(Debug, Clone)]
pub enum Error {
    /// An error that the server raised (or that came from another process) and that is passed on.
    Server(Failure),
    /// About events; see there.
    Event(EventError),
    /// About jobs; see there.
    Job(JobError),
    Cache(CacheError),
    NotPreloaded {
        what: &'static str,
    },
    MissingArgument(&'static str),
    InvalidArgument {
        message: String,
        detail: Option<String>,
        hint: Option<String>,
    },
    NoSuchRelation(u32),
    NotOwner(String),
    NoCreateOnSchema {
        owner: String,
        schema: String,
    },
    NotPartitioned(String),
    NotRangePartitioned {
        table: String,
        detail: &'static str,
    },
    UnsupportedKey {
        table: String,
        column: String,
        type_name: String,
    },
    Temporary(String),
    NotManaged(String),
    UnknownZone(String),
    NoSuchSchema(String),
    NoCompression,
    NoSchemaSelected,
    TableExists(String),
    OutOfRange(String),
    ReversedBounds {
        lower: String,
        upper: String,
    },
    NoTime {
        lower: String,
        upper: String,
        zone: String,
    },
    Overlap {
        wanted: String,
        partition: String,
        range: String,
    },
    NameInUse {
        name: String,
        hint: &'static str,
    },
    OtherOwner {
        partition: String,
        owner: String,
    },
    /// Ends a subtransaction that only tried something; never raised.
    RolledBack,
    NameTooLong(String),
    WaitingRows {
        default: String,
        limit: i64,
    },
    CannotMove {
        default: String,
        reason: &'static str,
    },
    NotATrigger,
    SweptAway,
    TooManyExchanges,
    OldSnapshots {
        default: String,
        waited_s: u64,
    },
    ExchangeBroken {
        default: String,
        reason: &'static str,
    },
    ContentsDiffer {
        default: String,
        rows: i64,
        copied: i64,
        kept: bool,
    },
    Restoring {
        table: String,
        there: i32,
        expected: i32,
    },
    StillNeeded(String),
    CannotRetire {
        partition: String,
        reason: &'static str,
    },
    CannotRepair {
        index: String,
        partition: String,
        reason: &'static str,
    },
    InvalidIndex {
        table: String,
        index: String,
    },
    LockNotAvailable {
        table: String,
        waited_ms: u128,
    },
    ClockMoved {
        days: i64,
    },
    BehindNewestEvent {
        table: String,
    },
    OpenTransaction(String),
    ReadOnly {
        what: &'static str,
        standby: bool,
    },
    NoWorkerSlot,
    TooManyDatabases {
        limit: usize,
        database: u32,
    },
    WorkerEnded,
    TransactionControl,
    NotDrained {
        events: u64,
        waited_ms: u128,
    },
    Internal(String),
}

/// An error as it can be stored, sent and raised again.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct Failure {
    pub sqlstate: String,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::InvalidArgument {
            message: message.into(),
            detail: None,
            hint: None,
        }
    }

    pub fn invalid_with_hint(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::InvalidArgument {
            message: message.into(),
            detail: None,
            hint: Some(hint.into()),
        }
    }

    /// What a try block caught, reduced to what can be kept.
    pub fn from_caught(caught: CaughtError) -> Self {
        let report = match caught {
            CaughtError::PostgresError(report) | CaughtError::ErrorReport(report) => report,
            CaughtError::RustPanic { ereport, .. } => ereport,
        };
        Self::Server(Failure {
            sqlstate: unpack_sqlstate(report.sql_error_code()),
            message: report.message().to_owned(),
            detail: report.detail().map(str::to_owned),
            hint: report.hint().map(str::to_owned),
        })
    }

    /// Whether the error only says that a lock was not to be had in time.
    pub fn is_lock_timeout(&self) -> bool {
        match self {
            Self::Server(failure) => failure.sqlstate == "55P03",
            Self::LockNotAvailable { .. } => true,
            _ => false,
        }
    }

    /// Whether the error says that a table changed while it was copied, and nothing came of it. A constraint may fail when only
    /// a part of somebody's transaction has been brought over.
    pub fn is_broken_off(&self) -> bool {
        match self {
            Self::ExchangeBroken { .. } | Self::ContentsDiffer { kept: false, .. } => true,
            Self::Server(failure) => failure.sqlstate.starts_with("23"),
            _ => false,
        }
    }

    /// Whether somebody asked the session to stop, or the server is going down or out of resources.
    pub fn is_cancel(&self) -> bool {
        matches!(self, Self::Server(failure) if failure.sqlstate.starts_with("57") || failure.sqlstate.starts_with("53"))
    }

    /// Whether the same may succeed a little later: a lock, a conflict, resources, a shutdown.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Server(failure) => {
                matches!(
                    failure.sqlstate.get(..2),
                    Some("08" | "40" | "53" | "57" | "58")
                ) || matches!(failure.sqlstate.as_str(), "55P03" | "55006" | "25006")
            }
            Self::LockNotAvailable { .. } => true,
            _ => false,
        }
    }

    /// Whether a statement ran out of time, or was cancelled.
    pub fn is_cancel_of_statement(&self) -> bool {
        matches!(self, Self::Server(failure) if failure.sqlstate == "57014")
    }

    /// The error as it is stored and sent.
    pub fn failure(&self) -> Failure {
        let (code, message, detail, hint) = self.parts();
        match self {
            Self::Server(failure) => failure.clone(),
            _ => Failure {
                sqlstate: unpack_sqlstate(code),
                message,
                detail,
                hint,
            },
        }
    }

    /// Raises the error in the current session. Does not return.
    pub fn raise(self) -> ! {
        self.report(PgLogLevel::ERROR);
        unreachable!("an ERROR was reported and did not leave the function")
    }

    /// Reports the error at a level below ERROR and returns.
    pub fn warn(&self) {
        self.report(PgLogLevel::WARNING);
    }

    fn report(&self, level: PgLogLevel) {
        let (code, message, detail, hint) = self.parts();
        let mut report = ErrorReport::new(code, message, "audit_db");
        if let Some(detail) = detail {
            report = report.set_detail(detail);
        }
        if let Some(hint) = hint {
            report = report.set_hint(hint);
        }
        report.report(level);
    }

    fn parts(&self) -> Parts {
        use PgSqlErrorCode as Code;
        match self {
            Self::Server(failure) => (
                pack_sqlstate(&failure.sqlstate),
                failure.message.clone(),
                failure.detail.clone(),
                failure.hint.clone(),
            ),
            Self::Event(error) => error.parts(),
            Self::Job(error) => error.parts(),
            Self::Cache(error) => error.parts(),
            Self::NotPreloaded { what } => (
                Code::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("{what} needs audit_db to be preloaded"),
                Some("The library was loaded by this session only; it has no shared memory and no workers.".into()),
                Some("Add \"shared_preload_libraries = 'audit_db'\" to postgresql.conf and restart the server.".into()),
            ),
            Self::MissingArgument(name) => (
                Code::ERRCODE_NULL_VALUE_NOT_ALLOWED,
                format!("argument \"{name}\" must not be null"),
                None,
                None,
            ),
            Self::InvalidArgument {
                message,
                detail,
                hint,
            } => (
                Code::ERRCODE_INVALID_PARAMETER_VALUE,
                message.clone(),
                detail.clone(),
                hint.clone(),
            ),
            Self::NoSuchRelation(oid) => (
                Code::ERRCODE_UNDEFINED_TABLE,
                format!("relation with OID {oid} does not exist"),
                None,
                None,
            ),
            Self::NotOwner(table) => (
                Code::ERRCODE_INSUFFICIENT_PRIVILEGE,
                format!("must be owner of table {table}"),
                None,
                None,
            ),
            Self::NoCreateOnSchema { owner, schema } => (
                Code::ERRCODE_INSUFFICIENT_PRIVILEGE,
                format!("permission denied for schema {schema}"),
                Some(format!("Role {owner} may not create tables in schema {schema}.")),
                Some(format!("Run GRANT CREATE ON SCHEMA {schema} TO {owner}.")),
            ),
            Self::NotPartitioned(table) => (
                Code::ERRCODE_WRONG_OBJECT_TYPE,
                format!("\"{table}\" is not a partitioned table"),
                None,
                Some("Create it with PARTITION BY RANGE on one timestamptz, timestamp or date column, or use audit_db.create_audit_log.".into()),
            ),
            Self::NotRangePartitioned { table, detail } => (
                Code::ERRCODE_WRONG_OBJECT_TYPE,
                format!("table \"{table}\" is not partitioned by range on one column"),
                Some((*detail).into()),
                Some("audit_db manages tables partitioned by RANGE on one timestamptz, timestamp or date column.".into()),
            ),
            Self::UnsupportedKey {
                table,
                column,
                type_name,
            } => (
                Code::ERRCODE_WRONG_OBJECT_TYPE,
                format!("partition key \"{column}\" of table \"{table}\" has type {type_name}"),
                None,
                Some("audit_db manages tables partitioned by RANGE on one timestamptz, timestamp or date column.".into()),
            ),
            Self::Temporary(table) => (
                Code::ERRCODE_WRONG_OBJECT_TYPE,
                format!("table \"{table}\" is temporary"),
                Some("The worker cannot reach the temporary tables of a session.".into()),
                None,
            ),
            Self::NotManaged(table) => (
                Code::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("table {table} is not managed by audit_db"),
                None,
                Some(format!("Call audit_db.manage_table('{table}') first.")),
            ),
            Self::UnknownZone(zone) => (
                Code::ERRCODE_INVALID_PARAMETER_VALUE,
                format!("time zone \"{zone}\" not recognized"),
                None,
                Some("Names are listed in the view pg_timezone_names.".into()),
            ),
            Self::NoSuchSchema(schema) => (
                Code::ERRCODE_INVALID_SCHEMA_NAME,
                format!("schema {schema} does not exist"),
                None,
                Some(format!("Run CREATE SCHEMA {schema} first.")),
            ),
            Self::NoSchemaSelected => (
                Code::ERRCODE_INVALID_SCHEMA_NAME,
                "no schema has been selected to create in".into(),
                None,
                Some("Write schema.table, or set search_path.".into()),
            ),
            Self::NoCompression => (
                Code::ERRCODE_FEATURE_NOT_SUPPORTED,
                "this version of audit_db does not compress partitions".into(),
                None,
                Some("Leave compress_after null.".into()),
            ),
            Self::TableExists(table) => (
                Code::ERRCODE_DUPLICATE_TABLE,
                format!("relation {table} already exists"),
                None,
                Some("Use audit_db.manage_table to manage a partitioned table that exists, or choose another name.".into()),
            ),
            Self::OutOfRange(value) => (
                Code::ERRCODE_DATETIME_FIELD_OVERFLOW,
                format!("partition bound out of range: {value}"),
                Some("Bounds must be finite and lie between the years 1 and 9999.".into()),
                None,
            ),
            Self::ReversedBounds { lower, upper } => (
                Code::ERRCODE_INVALID_PARAMETER_VALUE,
                "end_date must be later than start_date".into(),
                Some(format!("The range would be from {lower} to {upper}.")),
                None,
            ),
            Self::NoTime { lower, upper, zone } => (
                Code::ERRCODE_INVALID_PARAMETER_VALUE,
                format!("there is no time between {lower} and {upper} in time zone \"{zone}\""),
                Some("The clocks of that zone were put forward over all of it.".into()),
                None,
            ),
            Self::Overlap {
                wanted,
                partition,
                range,
            } => (
                Code::ERRCODE_INVALID_OBJECT_DEFINITION,
                format!("partition would overlap partition {partition}"),
                Some(format!("Wanted {wanted}; {partition} holds {range}.")),
                Some("audit_db.partition_info shows the ranges that are taken.".into()),
            ),
            Self::NameInUse { name, hint } => (
                Code::ERRCODE_DUPLICATE_TABLE,
                format!("relation {name} already exists"),
                None,
                Some((*hint).into()),
            ),
            Self::OtherOwner { partition, owner } => (
                Code::ERRCODE_INSUFFICIENT_PRIVILEGE,
                format!("partition {partition} does not belong to its table's owner"),
                Some(format!(
                    "Partitions are looked after with the rights of the table's owner, {owner}."
                )),
                Some(format!("Run ALTER TABLE {partition} OWNER TO {owner}.")),
            ),
            Self::RolledBack => (
                Code::ERRCODE_INTERNAL_ERROR,
                "a trial was rolled back".into(),
                None,
                None,
            ),
            Self::NameTooLong(name) => (
                Code::ERRCODE_NAME_TOO_LONG,
                format!("name \"{name}\" is too long or empty"),
                Some("Names have 1 to 63 bytes.".into()),
                None,
            ),
            Self::WaitingRows { default, limit } => (
                Code::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("too many rows wait in default partition {default}"),
                Some(format!(
                    "More than {limit} rows of months that can be made wait in it, or it is larger than 16 MB: moving the rows, or scanning them, would hold up everybody."
                )),
                Some("Call audit_db.maintain_partitions: its worker makes the months of waiting rows without that; audit_db.events_log says when it could not.".into()),
            ),
            Self::CannotMove { default, reason } => (
                Code::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("rows of default partition {default} cannot be moved"),
                Some((*reason).into()),
                Some("Rows of this range must leave the default partition before the partition can be attached.".into()),
            ),
            Self::NotATrigger => (
                Code::ERRCODE_FEATURE_NOT_SUPPORTED,
                "audit_db.capture_change can only be called by the triggers of an exchange".into(),
                None,
                None,
            ),
            Self::SweptAway => (
                Code::ERRCODE_OBJECT_IN_USE,
                "cannot drop what holds tables of an exchange that is going on".into(),
                Some("A default partition in it is being emptied; the tables made for that belong to extension audit_db, which would be dropped too.".into()),
                Some("audit_db.unfinished shows when it has ended. DROP TABLE of the audit table ends it at once.".into()),
            ),
            Self::TooManyExchanges => (
                Code::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
                "too many default partitions of this server are being emptied".into(),
                None,
                Some("This one follows when another is done.".into()),
            ),
            Self::OldSnapshots { default, waited_s } => (
                Code::ERRCODE_OBJECT_IN_USE,
                format!("default partition {default} could not be emptied: older snapshots are in use"),
                Some(format!(
                    "Waited {waited_s} seconds for sessions whose snapshot is older than the copies of its rows; they would not have seen these rows."
                )),
                Some("Look for old transactions in pg_stat_activity (backend_xmin). The worker tries again in its next cycle.".into()),
            ),
            Self::ExchangeBroken { default, reason } => (
                Code::ERRCODE_OBJECT_IN_USE,
                format!("emptying default partition {default} was broken off"),
                Some((*reason).into()),
                Some("Nothing was changed. The worker tries again in its next cycle.".into()),
            ),
            Self::ContentsDiffer {
                default,
                rows,
                copied,
                kept,
            } => (
                Code::ERRCODE_DATA_CORRUPTED,
                format!("rows of {default} differ from those that were copied"),
                Some(format!("It holds {rows} rows, the copies {copied}, or the hashes of the rows differ.")),
                Some(if *kept {
                    "The table was kept. Compare it with the partitions of its table, bring over what is missing, then drop it.".into()
                } else {
                    "The copies were dropped and nothing was changed.".into()
                }),
            ),
            Self::Restoring {
                table,
                there,
                expected,
            } => (
                Code::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("table {table} is being restored"),
                Some(format!("It has {there} valid indexes; where it comes from it had {expected}.")),
                Some("The worker begins when they are there. Call audit_db.manage_table to have it begin now.".into()),
            ),
            Self::StillNeeded(partition) => (
                Code::ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST,
                format!("cannot drop partition {partition} because other objects depend on it"),
                Some("Views, functions, policies, foreign keys or columns of other tables depend on it.".into()),
                Some("Drop them first; the partition stays attached until then.".into()),
            ),
            Self::CannotRetire { partition, reason } => (
                Code::ERRCODE_FEATURE_NOT_SUPPORTED,
                format!("partition {partition} cannot be kept as a table of its own"),
                Some((*reason).into()),
                Some("The partition stays attached. Choose another retention_action with audit_db.manage_table, or change what stands in the way.".into()),
            ),
            Self::CannotRepair {
                index,
                partition,
                reason,
            } => (
                Code::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("partition {partition} lacks index {index}"),
                Some((*reason).into()),
                Some(format!("Make it by hand, then run ALTER INDEX {index} ATTACH PARTITION.")),
            ),
            Self::InvalidIndex { table, index } => (
                Code::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("index {index} of table {table} is not valid"),
                Some("A partition that is attached now would leave it invalid for good.".into()),
                Some("Wait until the restore has finished, or attach the missing indexes of the partitions.".into()),
            ),
            Self::LockNotAvailable { table, waited_ms } => (
                Code::ERRCODE_LOCK_NOT_AVAILABLE,
                format!("could not lock table {table} in time"),
                Some(format!(
                    "Tried for {waited_ms} ms, each time for audit_db.lock_timeout, so that other sessions were not held up."
                )),
                Some("Find the sessions that hold it with pg_blocking_pids, or raise audit_db.lock_retry.".into()),
            ),
            Self::ClockMoved { days } => (
                Code::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                "retention is suspended because the clock was moved".into(),
                Some(format!(
                    "Since the last maintenance cycle the time of day moved by {days} days more than the machine ran, or the server was down that long."
                )),
                Some("Check the clock. Retention goes on a day after this was noticed.".into()),
            ),
            Self::BehindNewestEvent { table } => (
                Code::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("retention of table {table} is suspended because the clock lies behind its newest event"),
                Some("A partition holds an event of the future, so either the clock or the event is wrong.".into()),
                Some("Check the clock and the newest events; retention goes on when the time of the newest event has passed.".into()),
            ),
            Self::OpenTransaction(table) => (
                Code::ERRCODE_OBJECT_IN_USE,
                format!("table {table} is in use by the open transaction"),
                Some("The transaction created, altered, read or locked it, and the worker would wait for that lock in vain.".into()),
                Some("Commit first, then call the function again.".into()),
            ),
            Self::ReadOnly { what, standby } => (
                Code::ERRCODE_READ_ONLY_SQL_TRANSACTION,
                format!("cannot execute {what} in a read-only transaction"),
                None,
                standby.then(|| "This server is a standby: it takes changes after its promotion.".into()),
            ),
            Self::NoWorkerSlot => (
                Code::ERRCODE_INSUFFICIENT_RESOURCES,
                "no background worker could be started".into(),
                Some("All max_worker_processes slots are taken.".into()),
                Some("Raise max_worker_processes and restart the server.".into()),
            ),
            Self::TooManyDatabases { limit, database } => (
                Code::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
                format!("audit_db looks after at most {limit} databases at a time"),
                Some(format!("The database with OID {database} has no worker yet.")),
                None,
            ),
            Self::NotDrained { events, waited_ms } => (
                Code::ERRCODE_OPERATOR_INTERVENTION,
                format!("{events} queued events could not be stored before the ingest worker ended"),
                Some(format!("It went on for {waited_ms} ms after it was told to end.")),
                Some("Where the server is not shutting down the next worker stores them. Raise audit_db.shutdown_drain_timeout.".into()),
            ),
            Self::TransactionControl => (
                Code::ERRCODE_FEATURE_NOT_SUPPORTED,
                "a job's command cannot control transactions".into(),
                Some("It runs as one transaction, or commits where it says so itself, as VACUUM and CALL do.".into()),
                Some("Leave BEGIN, COMMIT and the like out; use a procedure that commits.".into()),
            ),
            Self::WorkerEnded => (
                Code::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                "the maintenance worker ended before its work was done".into(),
                Some("Steps that it reported are done; each was a transaction of its own.".into()),
                Some("See the server log for the reason, then call the function again.".into()),
            ),
            Self::Internal(message) => (
                Code::ERRCODE_INTERNAL_ERROR,
                message.clone(),
                None,
                None,
            ),
        }
    }
}

impl From<pgrx::spi::SpiError> for Error {
    fn from(error: pgrx::spi::SpiError) -> Self {
        Self::Internal(format!("SPI: {error}"))
    }
}

/// Gives the value to SQL, or raises.
pub fn or_raise<T>(result: Result<T>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => error.raise(),
    }
}

/// An SQLSTATE as a number, and back.
pub fn sqlstate_number(text: &str) -> u32 {
    pack_sqlstate(text) as i32 as u32
}

pub fn sqlstate_of(number: u32) -> String {
    unpack_sqlstate(PgSqlErrorCode::from(number as i32))
}

/// Five characters, six bits each, as `MAKE_SQLSTATE` packs them.
fn unpack_sqlstate(code: PgSqlErrorCode) -> String {
    let packed = code as i32 as u32;
    (0..5)
        .map(|index| char::from(((packed >> (6 * index)) & 0x3f) as u8 + b'0'))
        .collect()
}

fn pack_sqlstate(text: &str) -> PgSqlErrorCode {
    let packed = text
        .bytes()
        .take(5)
        .enumerate()
        .fold(0u32, |packed, (index, byte)| {
            packed | (u32::from(byte.wrapping_sub(b'0') & 0x3f) << (6 * index))
        });
    PgSqlErrorCode::from(packed as i32)
}
