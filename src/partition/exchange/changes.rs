//! Brings over what happens to the default partition, in rounds, and compares what was copied with what is there.

use super::apply::{Batch, Routing, contents_of};
use super::{Exchange, as_owner_patiently, hash_expression};
use crate::error::{Error, Result};
use crate::partition::unfinished::Contents;
use crate::pg::identity;
use crate::pg::xact::{self, Kind};
use crate::shmem::exchanges;
use audit_db_core::change_log::LowWater;
use std::time::{Duration, Instant};

/// Changes brought over in one transaction.
const IN_A_ROUND: usize = 10_000;
/// Fewer than this are left to the next round.
const FEW: usize = 200;
/// Rounds follow each other for at most this long; a table that changes faster than we can follow is tried anew later.
const CATCHING_UP: Duration = Duration::from_secs(1_800);

/// What was brought over so far.
pub(super) struct Changes<'a> {
    exchange: &'a Exchange,
    hash: String,
    low: LowWater,
    /// What the default partition held at the comparison, plus what happened since.
    contents: Contents,
}

/// What one round did.
#[derive(Clone, Copy, Default)]
struct Round {
    changes: usize,
    /// Number of the last change.
    last: u64,
    difference: Contents,
}

impl<'a> Changes<'a> {
    pub fn new(exchange: &'a Exchange) -> Result<Self> {
        Ok(Self {
            exchange,
            hash: xact::in_transaction(|| hash_expression(exchange.default))?,
            low: LowWater::default(),
            contents: Contents::default(),
        })
    }

    /// Brings over what was committed until now. While others write there is always something new: rounds follow each other
    /// as long as each finds less than the one before.
    pub fn catch_up(&mut self) -> Result<()> {
        let started = Instant::now();
        let mut before = usize::MAX;
        loop {
            let changes = self.round(|_, _| Ok(()))?;
            if changes < FEW || changes < IN_A_ROUND && changes >= before / 2 {
                return Ok(());
            }
            before = changes;
            if started.elapsed() > CATCHING_UP {
                return Err(Error::ExchangeBroken {
                    default: self.exchange.default_qualified(),
                    reason: "It changes faster than the changes can be brought over.",
                });
            }
        }
    }

    /// One transaction: brings over what its snapshot sees, then calls `then` with the number of changes.
    fn round(&mut self, then: impl FnOnce(&Self, usize) -> Result<()>) -> Result<usize> {
        let newest = exchanges::newest_change(identity::my_database(), self.exchange.default);
        self.low.mark(newest, xact::next_id());
        let (oldest, round) = xact::in_transaction_of(Kind::Snapshot, || {
            let oldest = xact::oldest_running();
            let round = self.apply(IN_A_ROUND, Routing::Staging)?;
            then(self, round.changes)?;
            Ok((oldest, round))
        })?;
        let last = if round.changes < IN_A_ROUND {
            newest
        } else {
            round.last
        };
        self.low.applied(last, oldest);
        self.contents = self.contents.plus(round.difference);
        Ok(round.changes)
    }

    /// Counts and hashes the default partition and the copies at the same moment, and compares.
    pub fn verify(&mut self) -> Result<()> {
        let mut seen = None;
        while seen.is_none() {
            let mut contents = None;
            self.round(|this, changes| {
                if changes < IN_A_ROUND {
                    contents = Some(this.compare()?);
                }
                Ok(())
            })?;
            seen = contents;
        }
        // What the rounds before did is part of what was counted.
        self.contents = seen.unwrap_or_default();
        Ok(())
    }

    fn compare(&self) -> Result<Contents> {
        let default = format!("ONLY {}", self.exchange.default_qualified());
        as_owner_patiently(self.exchange, |_scope| {
            let there = contents_of(&self.hash, &default)?;
            let here = contents_of(&self.hash, &self.exchange.staging_name)?;
            if there == here {
                Ok(there)
            } else {
                Err(Error::ContentsDiffer {
                    default: self.exchange.default_qualified(),
                    rows: there.rows,
                    copied: here.rows,
                    kept: false,
                })
            }
        })
    }

    /// The last changes, with the default partition locked; an error when there are more than `limit`. Returns what it then
    /// holds.
    pub fn finish(&self, limit: usize) -> Result<Contents> {
        let round = self.apply(limit + 1, Routing::Ours)?;
        if round.changes > limit {
            return Err(Error::LockNotAvailable {
                table: self.exchange.name.clone(),
                waited_ms: 0,
            });
        }
        Ok(self.contents.plus(round.difference))
    }

    /// Brings over at most `limit` changes that the transaction sees.
    fn apply(&self, limit: usize, routing: Routing) -> Result<Round> {
        as_owner_patiently(self.exchange, |scope| {
            // The log has no statistics, and what the planner makes of that must be right also when the batch is large: a copy is
            // hardly ever worth reading as a whole, and thousands of rows are not compared with thousands one by one.
            scope.set(c"enable_seqscan", "off");
            scope.set(c"enable_nestloop", "off");
            let batch = Batch::read(self.exchange, &self.hash, self.low.low(), limit)?;
            Ok(Round {
                changes: batch.len(),
                last: batch.last(),
                difference: batch.apply(routing)?,
            })
        })
    }
}
