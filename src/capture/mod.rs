//! Statements: how long they take, how they end, and, where that was slow, what they were. What every statement passes through is
//! in `follow`, what only slow ones do in `record`.

mod follow;
mod record;

pub use record::{normalize, wait_samples};

use crate::pg::{statement_hooks, transaction};
use crate::settings;
use crate::shmem::{slow_ring, statistics};
use std::time::Duration;

/// Installs the hooks. Only while libraries are preloaded.
pub fn install() {
    statement_hooks::install::<follow::Statements>();
}

/// The part of the events of transactions that statements need.
pub struct Transactions;

impl transaction::Listener for Transactions {
    const NEWS: u8 = transaction::FAILED;

    #[inline]
    fn is_concerned() -> bool {
        <follow::Statements as statement_hooks::Listener>::has_open()
    }

    fn event(event: transaction::Event) {
        statement_hooks::transaction_event::<follow::Statements>(event);
    }
}

/// Whether statements are followed at all.
#[inline]
pub fn is_on() -> bool {
    settings::slow_query_threshold() >= 0 || settings::query_stats()
}

/// How often the launcher looks at what statements do while nothing is slow.
const LOOK: Duration = Duration::from_secs(1);
/// And while something is.
const SAMPLE: Duration = Duration::from_millis(50);
/// A statement that has been running this long has its waits sampled.
const SAMPLED_AFTER: Duration = Duration::from_millis(100);

/// The launcher's part: samples what running statements wait for, and moves what backends have counted to where there is more
/// room. Returns when to come back; `None`: nothing is followed.
pub fn tend(merge: bool) -> Option<Duration> {
    if !is_on() {
        return None;
    }
    if merge {
        statistics::merge();
    }
    let least = match settings::slow_query_threshold() {
        threshold if threshold > 0 => {
            SAMPLED_AFTER.min(Duration::from_millis(threshold as u64 / 4))
        }
        _ => SAMPLED_AFTER,
    };
    let any = statistics::sample_waits(u64::try_from(least.as_nanos()).unwrap_or(u64::MAX));
    Some(if any { SAMPLE } else { LOOK })
}

/// What `reset_stats` can be asked to reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    QueryStats,
    SlowQueries,
    Metrics,
}

impl Part {
    pub const ALL: [Self; 3] = [Self::QueryStats, Self::SlowQueries, Self::Metrics];

    pub const fn name(self) -> &'static str {
        match self {
            Self::QueryStats => "query_stats",
            Self::SlowQueries => "slow_queries",
            Self::Metrics => "performance_metrics",
        }
    }

    pub fn reset(self) {
        match self {
            Self::QueryStats => statistics::reset_statements(),
            Self::SlowQueries => slow_ring::reset(),
            Self::Metrics => statistics::reset_totals(),
        }
    }
}
