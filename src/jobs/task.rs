//! What a job does, and the arguments of that.

use crate::error::{Error, JobError, Result};
use crate::pg::spi;
use crate::pg::utility;
use audit_db_core::schedule::Window;
use serde::Deserialize;
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    MaintainPartitions,
    Analyze,
    Reindex,
    Vacuum,
    Optimize,
    Sql,
}

impl Kind {
    const ALL: [Self; 6] = [
        Self::MaintainPartitions,
        Self::Analyze,
        Self::Reindex,
        Self::Vacuum,
        Self::Optimize,
        Self::Sql,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::MaintainPartitions => "maintain_partitions",
            Self::Analyze => "analyze",
            Self::Reindex => "reindex",
            Self::Vacuum => "vacuum",
            Self::Optimize => "optimize",
            Self::Sql => "sql",
        }
    }

    pub fn named(name: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == name)
            .ok_or_else(|| JobError::UnknownTask(name.to_owned()).into())
    }

    /// Names of its arguments.
    const fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::MaintainPartitions => &[
                "table",
                "timeout",
                "analyze_tables",
                "update_statistics",
                "reindex_if_needed",
                "min_bloat",
                "max_size",
                "window",
            ],
            Self::Analyze => &["table", "timeout"],
            Self::Reindex => &["table", "timeout", "min_bloat", "max_size", "window"],
            Self::Vacuum => &["table", "timeout", "freeze"],
            Self::Optimize => &["timeout"],
            Self::Sql => &["command", "timeout"],
        }
    }
}

/// A task with its arguments.
#[derive(Clone, Debug)]
pub struct Task {
    pub kind: Kind,
    pub arguments: Arguments,
    pub timeout: Option<Duration>,
    pub window: Option<Window>,
}

/// Arguments of all tasks.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Arguments {
    /// Qualified, as `regclass` reads it; none: all managed tables of the job's owner.
    pub table: Option<String>,
    /// Of a `sql` task.
    pub command: Option<String>,
    timeout: Option<String>,
    window: Option<String>,
    pub min_bloat: Option<f64>,
    /// Bytes.
    pub max_size: Option<i64>,
    #[serde(default)]
    pub freeze: bool,
    #[serde(default = "yes")]
    pub analyze_tables: bool,
    #[serde(default = "yes")]
    pub update_statistics: bool,
    #[serde(default = "yes")]
    pub reindex_if_needed: bool,
}

const fn yes() -> bool {
    true
}

impl Task {
    /// Reads the arguments, a JSON object, and checks all that can be checked without looking at tables.
    pub fn new(task: &str, arguments: &str) -> Result<Self> {
        let kind = Kind::named(task)?;
        let bad = |reason: String| {
            Error::from(JobError::BadArguments {
                task: task.to_owned(),
                reason,
            })
        };
        let value: serde_json::Value =
            serde_json::from_str(arguments).map_err(|error| bad(error.to_string()))?;
        let Some(object) = value.as_object() else {
            return Err(bad("They must be a JSON object.".into()));
        };
        if let Some(unknown) = object
            .keys()
            .find(|key| !kind.arguments().contains(&key.as_str()))
        {
            return Err(bad(format!(
                "There is no argument \"{unknown}\"; there are {}.",
                kind.arguments().join(", ")
            )));
        }
        let arguments: Arguments =
            serde_json::from_value(value).map_err(|error| bad(error.to_string()))?;
        match &arguments.command {
            Some(command) => utility::check_syntax(command)?,
            None if kind == Kind::Sql => return Err(bad("\"command\" is missing.".into())),
            None => {}
        }
        if arguments
            .min_bloat
            .is_some_and(|bloat| !(0.05..=1.0).contains(&bloat))
        {
            return Err(bad("\"min_bloat\" must lie between 0.05 and 1.".into()));
        }
        if arguments.max_size.is_some_and(|size| size <= 0) {
            return Err(bad("\"max_size\" must be a number of bytes above 0.".into()));
        }
        let window = match &arguments.window {
            None => None,
            Some(text) => Some(
                text.parse()
                    .map_err(|()| bad("\"window\" must look like 01:00-05:00.".into()))?,
            ),
        };
        let timeout = match &arguments.timeout {
            None => None,
            Some(text) => Some(
                interval(text)?
                    .ok_or_else(|| bad("\"timeout\" must be longer than nothing.".into()))?,
            ),
        };
        Ok(Self {
            kind,
            arguments,
            timeout,
            window,
        })
    }
}

/// What the server takes for an interval.
fn interval(text: &str) -> Result<Option<Duration>> {
    Ok(spi::rows(
        "SELECT EXTRACT(epoch FROM $1::pg_catalog.interval)::pg_catalog.float8",
        &[text.into()],
        |row| row.get::<f64>(1),
    )?
    .pop()
    .flatten()
    .filter(|seconds| *seconds > 0.0 && *seconds < 1e9)
    .map(Duration::from_secs_f64))
}
