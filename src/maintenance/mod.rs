//! Upkeep of tables that autovacuum does not do, or not well: statistics of partitions and of partitioned tables (`analyze`),
//! bloated and invalid indexes (`reindex`), dead rows (`vacuum`). Each finds what is due, and does one thing at a time with the
//! rights of the table's owner. `plan` puts them in the order of `maintain_partitions`.

pub mod analyze;
pub mod plan;
pub mod reindex;
pub mod vacuum;

use crate::error::{Error, Failure, JobError, Result};
use crate::partition::maintain::Report;
use crate::partition::managed;
use crate::pg::clock::NamedZone;
use crate::pg::{catalog, compat};
use crate::settings;
use audit_db_core::schedule::Window;
use pgrx::pg_sys::Oid;
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// One thing that was done, or would be.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Step {
    pub step: String,
    pub object: String,
    /// As in `create`, `analyze`, `queued`, `failed: …`.
    pub action: String,
    pub duration_ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
}

impl Step {
    pub fn new(step: &str, object: &str, action: &str) -> Self {
        Self {
            step: step.to_owned(),
            object: object.to_owned(),
            action: action.to_owned(),
            duration_ms: 0.0,
            detail: None,
            failure: None,
        }
    }

    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// What came of it, and how long that took.
    pub fn done(mut self, begun: Instant, outcome: Result<Option<String>>) -> Self {
        self.duration_ms = milliseconds(begun.elapsed());
        match outcome {
            Ok(Some(detail)) => self.detail = Some(detail),
            Ok(None) => {}
            Err(error) => {
                let failure = error.failure();
                self.action = format!("failed: {}", failure.message);
                self.detail.clone_from(&failure.detail);
                self.failure = Some(failure);
            }
        }
        self
    }
}

impl From<Report> for Step {
    fn from(report: Report) -> Self {
        Self {
            step: report.step.to_owned(),
            object: report.object,
            detail: report
                .failure
                .as_ref()
                .and_then(|failure| failure.detail.clone()),
            action: report.action,
            duration_ms: milliseconds(report.duration),
            failure: report.failure,
        }
    }
}

pub fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}

/// Takes each step when it is done, and says whether to go on.
pub type Emit<'a> = &'a mut dyn FnMut(Step) -> bool;

/// What bounds a piece of work.
#[derive(Clone)]
pub struct Limits {
    /// When it must have ended.
    pub deadline: Option<Instant>,
    /// When indexes may be rebuilt.
    pub window: Option<(Window, NamedZone)>,
    pub min_bloat: f64,
    pub max_size: Option<i64>,
}

impl Limits {
    /// As the settings have it; the window in a time zone.
    pub fn from_settings(zone: NamedZone) -> Self {
        Self {
            deadline: None,
            window: settings::maintenance_window().map(|window| (window, zone)),
            min_bloat: settings::reindex_min_bloat(),
            max_size: settings::reindex_max_size(),
        }
    }

    /// How long the next command may take; none: as long as it takes. An error where nothing is left.
    pub fn left(&self) -> Result<Option<Duration>> {
        match self.deadline {
            None => Ok(None),
            Some(deadline) => match deadline.checked_duration_since(Instant::now()) {
                Some(left) if left > Duration::ZERO => Ok(Some(left)),
                _ => Err(JobError::TimeOver.into()),
            },
        }
    }

    /// The same for a rebuild, at a time of the clock.
    pub fn left_in_window(&self, now: i64) -> Result<Option<Duration>> {
        let left = self.left()?;
        let Some((window, zone)) = &self.window else {
            return Ok(left);
        };
        let open = window
            .left_at(now, zone)
            .ok_or_else(|| Error::from(JobError::WindowClosed))?;
        Ok(Some(left.map_or(open, |left| left.min(open))))
    }
}

/// The tables that a piece of work is about: the named one, or all managed tables that a role owns.
pub fn tables(named: Option<&str>, role: Oid) -> Result<Vec<Oid>> {
    match named {
        Some(name) => Ok(vec![named_table(name, role)?]),
        None => Ok(managed::oids()?
            .into_iter()
            .filter(|table| compat::owns_relation(*table, role))
            .collect()),
    }
}

/// A table by its qualified name, which the role must own.
pub fn named_table(name: &str, role: Oid) -> Result<Oid> {
    let table = catalog::named_relation(name)?
        .ok_or_else(|| Error::from(JobError::NoSuchTable(name.to_owned())))?;
    if !catalog::is_table(table) {
        return Err(JobError::NotATable(name.to_owned()).into());
    }
    if !compat::owns_relation(table, role) {
        return Err(Error::NotOwner(name.to_owned()));
    }
    Ok(table)
}
