//! How a step meets others: it waits a short time for its locks, gives up, lets the queue go, and tries again.

use crate::error::{Error, Result};
use crate::pg::guc::Scope;
use crate::pg::{signal, xact};
use crate::settings;
use audit_db_core::backoff::Backoff;
use std::time::{Duration, Instant};

/// Between two attempts those who waited behind the step get through.
const BETWEEN_ATTEMPTS: Backoff = Backoff {
    base: Duration::from_millis(50),
    cap: Duration::from_secs(1),
};

/// Where steps run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In transactions of their own: in a worker that others wait for, so what would wait for others is left to the slow one.
    Worker,
    /// In the slow worker.
    Slow,
    /// In subtransactions of the session: where the library is not preloaded.
    Session,
}

impl Place {
    pub fn step<T>(self, table: &str, step: impl FnMut(&Scope) -> Result<T>) -> Result<T> {
        match self {
            Self::Worker | Self::Slow => in_transactions_with_retries(table, step),
            Self::Session => with_retries(table, step),
        }
    }
}

/// Runs `step` in a subtransaction until it gets its locks or `audit_db.lock_retry` has passed.
pub fn with_retries<T>(table: &str, mut step: impl FnMut(&Scope) -> Result<T>) -> Result<T> {
    retry(table, || xact::in_subtransaction(|| step(&Scope::new())))
}

/// The same with a transaction for each attempt, so that between attempts no lock is held at all. For workers.
pub fn in_transactions_with_retries<T>(
    table: &str,
    mut step: impl FnMut(&Scope) -> Result<T>,
) -> Result<T> {
    retry(table, || xact::in_transaction(|| step(&Scope::new())))
}

fn retry<T>(table: &str, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let started = Instant::now();
    let mut failures = 0;
    loop {
        let outcome = attempt();
        if !matches!(&outcome, Err(error) if error.is_lock_timeout()) {
            return outcome;
        }
        let left = settings::lock_retry().saturating_sub(started.elapsed());
        if left.is_zero() {
            return Err(Error::LockNotAvailable {
                table: table.to_owned(),
                waited_ms: started.elapsed().as_millis(),
            });
        }
        let pause = BETWEEN_ATTEMPTS.delay(failures, signal::my_pid() as u64);
        sleep(pause.min(left));
        failures += 1;
    }
}

fn sleep(duration: Duration) {
    let end = Instant::now() + duration;
    while let Some(left) = end
        .checked_duration_since(Instant::now())
        .filter(|left| !left.is_zero())
    {
        signal::wait(left.max(Duration::from_millis(1)));
    }
}
