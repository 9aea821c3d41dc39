//! What can go wrong with jobs.

use super::{Error, Parts};
use pgrx::PgSqlErrorCode as Code;

#[derive(Debug, Clone)]
pub enum JobError {
    BadName(String),
    BadSchedule {
        schedule: String,
        reason: String,
    },
    NeverDue(String),
    UnknownTask(String),
    BadArguments {
        task: String,
        reason: String,
    },
    NoSuchTable(String),
    NotATable(String),
    NoSuchJob(String),
    OthersJob {
        name: String,
        owner: String,
    },
    ForSuperusers(&'static str),
    Shipped(String),
    /// The owner of a job cannot run it.
    CannotConnect {
        role: String,
        reason: &'static str,
    },
    InTransactionBlock,
    NoClient,
    NoneAllowed,
    /// A run that somebody waited for did not succeed, and left no error.
    NotRun {
        name: String,
        run: i64,
        status: String,
        message: Option<String>,
    },
    Ended(Ending),
    Cancelled,
    TimeOver,
    WindowClosed,
    NoRoom {
        index: String,
        bytes: i64,
        free: i64,
    },
}

/// How a run ended that could not say so itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Its process is gone, while the server went on.
    Process,
    /// So is the server.
    Server,
    /// The process never came to run it.
    Start,
}

impl From<JobError> for Error {
    fn from(error: JobError) -> Self {
        Self::Job(error)
    }
}

impl JobError {
    pub(super) fn parts(&self) -> Parts {
        let some = |text: &str| Some(text.to_owned());
        match self {
            Self::BadName(name) => (
                Code::ERRCODE_INVALID_PARAMETER_VALUE,
                format!("job name \"{name}\" is not valid"),
                None,
                some("A name has 1 to 200 characters."),
            ),
            Self::BadSchedule { schedule, reason } => (
                Code::ERRCODE_INVALID_PARAMETER_VALUE,
                format!("schedule \"{schedule}\" is not valid"),
                Some(reason.clone()),
                some(
                    "Write minute, hour, day of the month, month and day of the week, as in '30 2 * * MON-FRI', or @daily and the like.",
                ),
            ),
            Self::NeverDue(schedule) => (
                Code::ERRCODE_INVALID_PARAMETER_VALUE,
                format!("schedule \"{schedule}\" is never due"),
                some("No day of the calendar fits it."),
                None,
            ),
            Self::UnknownTask(task) => (
                Code::ERRCODE_INVALID_PARAMETER_VALUE,
                format!("task \"{task}\" does not exist"),
                None,
                some("Tasks are maintain_partitions, analyze, reindex, vacuum, optimize and sql."),
            ),
            Self::BadArguments { task, reason } => (
                Code::ERRCODE_INVALID_PARAMETER_VALUE,
                format!("arguments of task \"{task}\" are not valid"),
                Some(reason.clone()),
                None,
            ),
            Self::NoSuchTable(name) => (
                Code::ERRCODE_UNDEFINED_TABLE,
                format!("relation \"{name}\" does not exist"),
                None,
                some("Write schema.table: the search_path of a session does not count."),
            ),
            Self::NotATable(name) => (
                Code::ERRCODE_WRONG_OBJECT_TYPE,
                format!("\"{name}\" is not a table"),
                None,
                None,
            ),
            Self::NoSuchJob(name) => (
                Code::ERRCODE_UNDEFINED_OBJECT,
                format!("job \"{name}\" does not exist"),
                None,
                some("See the view audit_db.jobs."),
            ),
            Self::OthersJob { name, owner } => (
                Code::ERRCODE_INSUFFICIENT_PRIVILEGE,
                format!("permission denied for job \"{name}\""),
                Some(format!("It belongs to role {owner}.")),
                None,
            ),
            Self::ForSuperusers(what) => (
                Code::ERRCODE_INSUFFICIENT_PRIVILEGE,
                format!("must be superuser to {what}"),
                None,
                None,
            ),
            Self::Shipped(name) => (
                Code::ERRCODE_INSUFFICIENT_PRIVILEGE,
                format!("permission denied for job \"{name}\""),
                some("It came with the extension; superusers can change it."),
                some("Schedule a job with another name."),
            ),
            Self::CannotConnect { role, reason } => (
                Code::ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION,
                format!("role {role} cannot run jobs"),
                some(reason),
                some(
                    "A job connects as its owner, so the owner needs LOGIN, and CONNECT on the database.",
                ),
            ),
            Self::InTransactionBlock => (
                Code::ERRCODE_INVALID_TRANSACTION_TERMINATION,
                "run_job cannot run inside a transaction block or a function".into(),
                some("The job would wait for the transaction that waits for the job."),
                some(
                    "Call it on its own, or use audit_db.submit_job, which does not wait for the job.",
                ),
            ),
            Self::NoClient => (
                Code::ERRCODE_FEATURE_NOT_SUPPORTED,
                "a job's command cannot COPY from or to a client".into(),
                some("A job has no client."),
                some("Name a file or a program, or use INSERT."),
            ),
            Self::NoneAllowed => (
                Code::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                "no job runs at present".into(),
                some("Setting audit_db.max_job_workers is 0."),
                some("Raise it, or use audit_db.submit_job, which does not wait."),
            ),
            Self::NotRun {
                name,
                run,
                status,
                message,
            } => (
                match status.as_str() {
                    "cancelled" => Code::ERRCODE_QUERY_CANCELED,
                    _ => Code::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                },
                format!("run {run} of job \"{name}\" has not succeeded: {status}"),
                message.clone(),
                None,
            ),
            Self::Ended(ending) => match ending {
                Ending::Process => (
                    Code::ERRCODE_ADMIN_SHUTDOWN,
                    "the job's process ended before the job did".into(),
                    some("Somebody terminated it, or it left with a fatal error."),
                    some("The server log has more."),
                ),
                Ending::Server => (
                    Code::ERRCODE_CRASH_SHUTDOWN,
                    "the server ended while the job ran".into(),
                    some("What the job had not committed was rolled back."),
                    None,
                ),
                Ending::Start => (
                    Code::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                    "the job's process ended before it could begin".into(),
                    some("Its owner could not connect, or the server could not start a process."),
                    some("The server log has more."),
                ),
            },
            Self::Cancelled => (
                Code::ERRCODE_QUERY_CANCELED,
                "the job was cancelled".into(),
                some("What it had done by then stays."),
                None,
            ),
            Self::TimeOver => (
                Code::ERRCODE_QUERY_CANCELED,
                "the time that the job may take is over".into(),
                some("Its argument \"timeout\" limits it."),
                None,
            ),
            Self::WindowClosed => (
                Code::ERRCODE_QUERY_CANCELED,
                "the maintenance window has closed".into(),
                some("What was not done is left to the next run."),
                some("Widen audit_db.maintenance_window."),
            ),
            Self::NoRoom { index, bytes, free } => (
                Code::ERRCODE_DISK_FULL,
                format!("there is no room to rebuild index {index}"),
                Some(format!(
                    "The new one may take {bytes} bytes before the old one goes; {free} bytes are free."
                )),
                None,
            ),
        }
    }
}
