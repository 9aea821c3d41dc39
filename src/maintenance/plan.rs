//! The order of `maintain_partitions`: partitions first, then the statistics of what has changed, then those of the partitioned
//! table, then indexes.

use super::analyze::{self, Ahead};
use super::{Emit, Limits, Step, reindex, vacuum};
use crate::error::{Error, JobError, Result};
use crate::partition::managed::as_extension_owner;
use crate::partition::steps::Place;
use crate::partition::{maintain, retire};
use crate::pg::signal;
use crate::pg::xact::{self, STEP_LIMIT};
use pgrx::pg_sys::Oid;
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// Which parts are wanted.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Options {
    pub analyze_tables: bool,
    pub update_statistics: bool,
    pub reindex_if_needed: bool,
}

/// What one table needs now.
pub struct Plan {
    pub partitions: Vec<Step>,
    pub leaves: Vec<analyze::Target>,
    /// Partitions that will have been made, and will have rows.
    pub filled: Vec<String>,
    pub parents: Vec<analyze::Target>,
    pub indexes: Vec<reindex::Target>,
}

/// Looks at a managed table. Inside a transaction of a worker.
pub fn plan(
    table: Oid,
    clock_moved: Option<i64>,
    options: Options,
    limits: &Limits,
) -> Result<Plan> {
    let preview = maintain::preview(table, clock_moved)?;
    let due = analyze::due(
        table,
        &Ahead {
            leaving: &preview.leaving,
            filled: &preview.filled,
            moved: preview.moved,
        },
    )?;
    let indexes = if options.reindex_if_needed {
        reindex::due(table, limits)?
    } else {
        Vec::new()
    };
    let analyzes = options.analyze_tables;
    Ok(Plan {
        partitions: preview.reports.into_iter().map(Step::from).collect(),
        leaves: if analyzes { due.leaves } else { Vec::new() },
        filled: if analyzes { preview.filled } else { Vec::new() },
        parents: if options.update_statistics {
            due.parents
        } else {
            Vec::new()
        },
        indexes,
    })
}

pub const ANALYZE: &str = "analyze";
pub const STATISTICS: &str = "update statistics";
pub const REINDEX: &str = "reindex";
pub const VACUUM: &str = "vacuum";

impl Plan {
    /// As steps, without doing anything; indexes as they are queued.
    pub fn steps(self) -> Vec<Step> {
        let mut steps = self.partitions;
        let analyzed = |step: &str, target: &analyze::Target| {
            Step::new(step, &target.name, ANALYZE).with_detail(&target.reason)
        };
        steps.extend(self.leaves.iter().map(|target| analyzed(ANALYZE, target)));
        steps.extend(
            self.filled
                .iter()
                .map(|name| Step::new(ANALYZE, name, ANALYZE).with_detail(analyze::NEW)),
        );
        steps.extend(
            self.parents
                .iter()
                .map(|target| analyzed(STATISTICS, target)),
        );
        steps.extend(self.indexes.iter().map(queued));
        steps
    }
}

/// What `maintain_partitions` does where there is no worker: all in the caller's transaction, and nothing that would need one of
/// its own.
pub fn in_session(
    table: Oid,
    options: Options,
    dry_run: bool,
    limits: &Limits,
) -> Result<Vec<Step>> {
    let plan = as_extension_owner(|| plan(table, None, options, limits))?;
    let mut steps = Vec::new();
    if dry_run {
        steps = plan.steps();
    } else {
        maintain::in_session(table, &mut |report| steps.push(report.into()))?;
        let filled = analyze::named(&plan.filled)?;
        let mut emit = |step| {
            steps.push(step);
            true
        };
        let place = Place::Session;
        analyze_leaves(place, &plan.leaves, limits, &mut emit)?;
        analyze_leaves(place, &filled, limits, &mut emit)?;
        analyze_parents(place, &plan.parents, limits, &mut emit)?;
        plan.indexes.iter().map(queued).all(&mut emit);
    }
    for step in &mut steps {
        if step.action == retire::QUEUED {
            step.action = "skip: it needs audit_db to be preloaded".to_owned();
        }
    }
    Ok(steps)
}

/// An index that is left to a job.
pub fn queued(target: &reindex::Target) -> Step {
    Step::new(REINDEX, &target.name, retire::QUEUED).with_detail(format!(
        "{}: {}",
        target.action.name(),
        target.reason
    ))
}

/// Whether somebody has cancelled what took so long, and not its own limit.
fn is_cancelled(error: &Error, begun: Instant, limit: Option<Duration>) -> bool {
    error.is_cancel_of_statement() && limit.is_none_or(|limit| begun.elapsed() < limit)
}

/// Does one thing and tells. An error: somebody has cancelled all of it. `false`: nobody listens any more.
fn one(
    step: Step,
    limit: Option<Duration>,
    emit: Emit<'_>,
    work: impl FnOnce() -> Result<Option<String>>,
) -> Result<bool> {
    if signal::was_cancelled() {
        return Err(JobError::Cancelled.into());
    }
    let begun = Instant::now();
    match work() {
        Err(error) if is_cancelled(&error, begun, limit) => Err(error),
        outcome => Ok(emit(step.done(begun, outcome))),
    }
}

/// A session shows its own statement.
fn show(place: Place, activity: &str) {
    if place != Place::Session {
        xact::report_activity(Some(activity));
    }
}

/// Analyzes tables with rows of their own.
pub fn analyze_leaves(
    place: Place,
    targets: &[analyze::Target],
    limits: &Limits,
    emit: Emit<'_>,
) -> Result<bool> {
    for target in targets {
        limits.left()?;
        show(place, &format!("analyze {}", target.name));
        let step = Step::new(ANALYZE, &target.name, ANALYZE).with_detail(&target.reason);
        if !one(step, Some(STEP_LIMIT), emit, || {
            analyze::leaf(place, target).map(|()| None)
        })? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Analyzes partitioned tables.
pub fn analyze_parents(
    place: Place,
    targets: &[analyze::Target],
    limits: &Limits,
    emit: Emit<'_>,
) -> Result<bool> {
    for target in targets {
        limits.left()?;
        show(place, &format!("statistics of {}", target.name));
        let step = Step::new(STATISTICS, &target.name, ANALYZE).with_detail(&target.reason);
        if !one(step, Some(STEP_LIMIT), emit, || {
            analyze::parent(place, target).map(|()| None)
        })? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Rebuilds indexes, one after the other, while the window is open. `now`: the clock that the window goes by.
pub fn rebuild(
    targets: &[reindex::Target],
    limits: &Limits,
    now: impl Fn() -> i64,
    emit: Emit<'_>,
) -> Result<bool> {
    if targets.is_empty() {
        return Ok(true);
    }
    let alone = xact::in_transaction(reindex::be_the_only_one)?;
    for target in targets {
        limits.left()?;
        let step = Step::new(REINDEX, &target.name, target.action.name());
        let skip = |reason: &str| Step {
            action: format!("skip: {reason}"),
            ..step.clone()
        };
        if !alone {
            if !emit(skip("another job is rebuilding indexes")) {
                return Ok(false);
            }
            continue;
        }
        let limit = match limits.left_in_window(now()) {
            Ok(limit) => limit,
            Err(error) => {
                // On record for each index that has to wait.
                if !emit(skip(&error.failure().message)) {
                    return Ok(false);
                }
                continue;
            }
        };
        let detail = target.reason.clone();
        if !one(step.with_detail(detail), limit, emit, || {
            let done = reindex::run(target, limit)?;
            Ok(done.map(|done| format!("{}; {done}", target.reason)))
        })? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Vacuums tables with rows of their own.
pub fn vacuum_all(
    targets: &[analyze::Target],
    freeze: bool,
    limits: &Limits,
    emit: Emit<'_>,
) -> Result<bool> {
    for target in targets {
        let limit = limits.left()?;
        let step = Step::new(VACUUM, &target.name, VACUUM).with_detail(&target.reason);
        if !one(step, limit, emit, || {
            vacuum::run(target, freeze, limit).map(|()| None)
        })? {
            return Ok(false);
        }
    }
    Ok(true)
}
