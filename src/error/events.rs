//! What can go wrong with events.

use super::{Error, Parts, pack_sqlstate};
use pgrx::PgSqlErrorCode as Code;

#[derive(Debug, Clone)]
pub enum EventError {
    NoAuditTable {
        /// What `audit_db.audit_table` says; empty: nothing.
        name: String,
    },
    UnfitTable {
        table: String,
        reason: &'static str,
    },
    NoMetadata {
        table: String,
        column: &'static str,
    },
    NotCommitted(String),
    NoPrivilege(String),
    UnknownDurability(String),
    NotAnArray,
    NotAnObject {
        number: usize,
    },
    NoAction {
        number: usize,
    },
    NoMonth {
        table: String,
        time: String,
    },
    QueueFull {
        events: usize,
        waited_ms: u128,
    },
    TooLarge {
        bytes: usize,
        capacity: u64,
    },
    NoWorker {
        waited_ms: u128,
    },
    TimedOut {
        waited_ms: u128,
        known: bool,
    },
    Deadlock {
        known: bool,
    },
    Rejected {
        sqlstate: String,
        message: String,
        events: u32,
        table: String,
    },
}

impl From<EventError> for Error {
    fn from(error: EventError) -> Self {
        Self::Event(error)
    }
}

/// What is known of an event that nobody waits for any longer.
const fn fate(known: bool) -> &'static str {
    if known {
        "The event is not stored, and will not be."
    } else {
        "The event was being stored: it may be stored already, or will be."
    }
}

impl EventError {
    pub(super) fn parts(&self) -> Parts {
        let some = |text: &str| Some(text.to_owned());
        match self {
            Self::NoAuditTable { name } if name.is_empty() => (
                Code::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                "this database has no audit table".into(),
                some(
                    "Events are logged to the first table that audit_db.create_audit_log made, or to the one that audit_db.audit_table names.",
                ),
                some(
                    "Call audit_db.create_audit_log(), or set audit_db.audit_table to schema.table.",
                ),
            ),
            Self::NoAuditTable { name } => (
                Code::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("audit table \"{name}\" does not exist"),
                some("Setting audit_db.audit_table names it."),
                some("Write schema.table: the search_path of a session does not count."),
            ),
            Self::UnfitTable { table, reason } => (
                Code::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("table {table} cannot take events"),
                some(reason),
                some(
                    "It needs a column for the time of the event and a column \"action\"; values of other standard columns that it lacks go into its column \"metadata\".",
                ),
            ),
            Self::NoMetadata { table, column } => (
                Code::ERRCODE_UNDEFINED_COLUMN,
                format!("table {table} has no column for \"{column}\""),
                some("It has no column \"metadata\" either, where values without a column go."),
                some("Add one of the two."),
            ),
            Self::NotCommitted(table) => (
                Code::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("table {table} was created or altered by the open transaction"),
                some(
                    "The worker that stores durable and async events does not see that before the transaction commits.",
                ),
                some("Commit first, or log with durability => 'transaction'."),
            ),
            Self::NoPrivilege(table) => (
                Code::ERRCODE_INSUFFICIENT_PRIVILEGE,
                format!("permission denied for table {table}"),
                some("Logging an event needs the right to INSERT into the audit table."),
                None,
            ),
            Self::UnknownDurability(text) => (
                Code::ERRCODE_INVALID_PARAMETER_VALUE,
                format!("durability \"{text}\" not recognized"),
                None,
                some("Use 'transaction', 'durable' or 'async'."),
            ),
            Self::NotAnArray => (
                Code::ERRCODE_INVALID_PARAMETER_VALUE,
                "events must be a JSON array".into(),
                None,
                some("Write [{\"action\": \"patient.read\", …}, …]."),
            ),
            Self::NotAnObject { number } => (
                Code::ERRCODE_INVALID_PARAMETER_VALUE,
                format!("event {number} is not a JSON object"),
                some("Events are counted from 1. Nothing was logged."),
                None,
            ),
            Self::NoAction { number } => (
                Code::ERRCODE_NULL_VALUE_NOT_ALLOWED,
                format!("event {number} has no \"action\""),
                some("Events are counted from 1. Nothing was logged."),
                None,
            ),
            Self::NoMonth { table, time } => (
                Code::ERRCODE_DATETIME_FIELD_OVERFLOW,
                format!("table {table} has no partition for an event of {time}"),
                some(
                    "No partition is made for it: the time has expired, or lies further ahead than audit_db.max_future.",
                ),
                some(
                    "Give the table a default partition (audit_db.manage_table(…, default_partition => true)), or call audit_db.create_partition.",
                ),
            ),
            Self::QueueFull { events, waited_ms } => (
                Code::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
                "the queue of events is full".into(),
                Some(format!(
                    "Waited {waited_ms} ms for room for {events} events. Nothing was stored."
                )),
                some(
                    "See audit_db.ingest_stats for what keeps the worker, or raise audit_db.queue_size.",
                ),
            ),
            Self::TooLarge { bytes, capacity } => (
                Code::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
                "the events of the call do not fit into the queue".into(),
                Some(format!(
                    "They need {bytes} bytes; the queue has room for {capacity}. Nothing was stored."
                )),
                some(
                    "Log fewer at a time, raise audit_db.queue_size, or use durability => 'transaction'.",
                ),
            ),
            Self::NoWorker { waited_ms } => (
                Code::ERRCODE_ADMIN_SHUTDOWN,
                "no worker stores events".into(),
                Some(format!(
                    "Waited {waited_ms} ms for one. Nothing was stored."
                )),
                some(
                    "The server is shutting down, or the worker cannot be started: see audit_db.workers and the server log. durability => 'transaction' needs none.",
                ),
            ),
            Self::TimedOut { waited_ms, known } => (
                Code::ERRCODE_LOCK_NOT_AVAILABLE,
                "the event could not be stored in time".into(),
                Some(format!("Waited {waited_ms} ms. {}", fate(*known))),
                some(
                    "See audit_db.ingest_stats for what keeps the worker, or raise audit_db.durable_timeout.",
                ),
            ),
            Self::Deadlock { known } => (
                Code::ERRCODE_T_R_DEADLOCK_DETECTED,
                "deadlock detected".into(),
                Some(format!(
                    "This transaction waits for the worker that stores events, and that waits for a lock of this transaction. {}",
                    fate(*known)
                )),
                some(
                    "Log durable events before the transaction locks the audit table, or use durability => 'async'.",
                ),
            ),
            Self::Rejected {
                sqlstate,
                message,
                events,
                table,
            } => (
                pack_sqlstate(sqlstate),
                message.clone(),
                Some(format!(
                    "The table refused {events} events of the call; they are kept in {table}, or where that cannot be made in audit_db.rejected_events."
                )),
                None,
            ),
        }
    }
}
