//! Changes that the trigger logged, brought over into the copies.
//!
//! The copies are multisets of rows: to bring over what happened it is enough to remove and to add whole rows, and the order
//! does not matter, as long as a row that was added and removed again is not looked for in vain.

use super::{Exchange, as_owner_patiently, hash_expression, stage};
use crate::error::{Error, Result};
use crate::partition::unfinished::Contents;
use crate::pg::catalog::KeyType;
use crate::pg::identity;
use crate::pg::spi;
use crate::pg::xact::{self, Kind};
use crate::shmem::exchanges::{self, kind};
use audit_db_core::change_log::{LowWater, locate};
use audit_db_core::partition_plan::{NewPartition, Range};
use pgrx::datum::{AnyNumeric, Timestamp, TimestampWithTimeZone};
use std::collections::{BTreeMap, BTreeSet};
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

/// Who finds the copy that a row belongs into.
#[derive(Clone, Copy)]
enum Routing {
    /// The staging table, whose partitions the copies are.
    Staging,
    Ours,
}

/// One logged change.
struct Change {
    number: i64,
    kind: u8,
    /// Position of the row's key; `None` for null.
    position: Option<i64>,
}

/// What one round did.
#[derive(Clone, Copy, Default)]
pub(super) struct Round {
    pub changes: usize,
    /// Number of the last change.
    last: u64,
    difference: Contents,
}

impl<'a> Changes<'a> {
    pub fn new(exchange: &'a Exchange) -> Self {
        Self {
            exchange,
            hash: String::new(),
            low: LowWater::default(),
            contents: Contents::default(),
        }
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

    /// One transaction: brings over what its snapshot sees, then calls `then`.
    fn round(&mut self, then: impl FnOnce(&Self, usize) -> Result<()>) -> Result<usize> {
        let newest = exchanges::newest_change(identity::my_database(), self.exchange.default);
        self.low.mark(newest, xact::next_id());
        if self.hash.is_empty() {
            self.hash = xact::in_transaction(|| hash_expression(self.exchange.default))?;
        }
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
        self.account(round);
        Ok(round.changes)
    }

    fn account(&mut self, round: Round) {
        self.contents.rows += round.difference.rows;
        self.contents.hash += round.difference.hash;
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
        Ok(Contents {
            rows: self.contents.rows + round.difference.rows,
            hash: self.contents.hash + round.difference.hash,
        })
    }

    /// Brings over at most `limit` changes that the transaction sees. It must see the same ones with each statement: it has
    /// one snapshot, or nobody can write.
    fn apply(&self, limit: usize, routing: Routing) -> Result<Round> {
        let broken = |reason| Error::ExchangeBroken {
            default: self.exchange.default_qualified(),
            reason,
        };
        as_owner_patiently(self.exchange, |scope| {
            // The log has no statistics, and a copy is never worth reading as a whole for one row.
            scope.set(c"enable_seqscan", "off");
            let changes = self.read(limit)?;
            let Some(last) = changes.last() else {
                return Ok(Round::default());
            };
            if changes.iter().any(|change| change.kind == kind::BROKEN) {
                return Err(broken("It was truncated or its columns were changed."));
            }
            let batch = format!(
                "audit_db_change > {} AND audit_db_change <= {}",
                self.low.low(),
                last.number
            );
            let difference = self.difference(&batch)?;
            let mut added: BTreeSet<i64> = changes
                .iter()
                .filter(|change| change.kind == kind::INSERTED)
                .map(|change| change.number)
                .collect();
            let mut undone = Vec::new();
            for change in changes.iter().filter(|change| change.kind == kind::DELETED) {
                if self.remove_from_copy(change)? {
                    continue;
                }
                // Added since the last round, and removed again.
                let number = self.added_before(change, &added)?.ok_or_else(|| {
                    broken("A row that was deleted from it is not among those that were copied.")
                })?;
                added.remove(&number);
                undone.push(number);
            }
            let complete = match routing {
                Routing::Staging => {
                    self.add(&self.exchange.staging_name, &batch, "", &undone)?
                        == added.len() as u64
                }
                Routing::Ours => self.add_to_copies(&changes, &added, &batch, &undone)?,
            };
            if !complete {
                return Err(broken("Changes disappeared from the log."));
            }
            let removed = spi::execute(
                &format!("DELETE FROM {} WHERE {batch}", self.exchange.log_name),
                &[],
            )?;
            if removed != changes.len() as u64 {
                return Err(broken("Changes disappeared from the log."));
            }
            Ok(Round {
                changes: changes.len(),
                last: last.number as u64,
                difference,
            })
        })
    }

    /// Brings the added rows of a batch into the copies, once these are no longer partitions of anything.
    fn add_to_copies(
        &self,
        changes: &[Change],
        added: &BTreeSet<i64>,
        batch: &str,
        undone: &[i64],
    ) -> Result<bool> {
        let mut by_copy: BTreeMap<usize, u64> = BTreeMap::new();
        for change in changes
            .iter()
            .filter(|change| added.contains(&change.number))
        {
            *by_copy.entry(self.copy_of(change)).or_default() += 1;
        }
        for (copy, wanted) in by_copy {
            let copy = &self.exchange.copies[copy];
            let range = |month: &NewPartition| {
                stage::condition(self.exchange, Range::new(month.lower, month.upper))
            };
            let belongs = match &copy.month {
                Some(month) => range(month)?,
                None => {
                    let months = self
                        .exchange
                        .months()
                        .map(|(_, month)| range(month))
                        .collect::<Result<Vec<_>>>()?;
                    format!("({}) IS NOT TRUE", months.join(" OR "))
                }
            };
            let condition = format!("AND {belongs}");
            if self.add(&copy.qualified, batch, &condition, undone)? != wanted {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn add(&self, target: &str, batch: &str, condition: &str, undone: &[i64]) -> Result<u64> {
        let columns = self.exchange.columns.join(", ");
        spi::execute(
            &format!(
                "INSERT INTO {target} ({columns}) OVERRIDING SYSTEM VALUE
                 SELECT {columns} FROM {} WHERE {batch} AND audit_db_kind = '{}' AND audit_db_change <> ALL ($1) {condition}",
                self.exchange.log_name,
                char::from(kind::INSERTED)
            ),
            &[undone.to_vec().into()],
        )
    }

    fn read(&self, limit: usize) -> Result<Vec<Change>> {
        let exchange = self.exchange;
        let (cast, instant) = match exchange.calendar.key() {
            KeyType::Timestamptz => ("timestamptz", true),
            KeyType::Timestamp | KeyType::Date => ("timestamp", false),
        };
        spi::rows(
            &format!(
                "SELECT audit_db_change, audit_db_kind, {}::pg_catalog.{cast} FROM {}
                  WHERE audit_db_change > $1 ORDER BY audit_db_change LIMIT {limit}",
                exchange.column, exchange.log_name
            ),
            &[(self.low.low() as i64).into()],
            |row| {
                Ok(Change {
                    number: row.get::<i64>(1)?.unwrap_or_default(),
                    kind: row.get::<i8>(2)?.unwrap_or_default() as u8,
                    position: if instant {
                        row.get::<TimestampWithTimeZone>(3)?.map(i64::from)
                    } else {
                        row.get::<Timestamp>(3)?.map(i64::from)
                    },
                })
            },
        )
    }

    /// How these changes alter what the default partition holds.
    fn difference(&self, batch: &str) -> Result<Contents> {
        let [added, removed] = [kind::INSERTED, kind::DELETED]
            .map(|kind| format!("FILTER (WHERE audit_db_kind = '{}')", char::from(kind)));
        contents(&format!(
            "SELECT pg_catalog.count(*) {added} - pg_catalog.count(*) {removed},
                    COALESCE(pg_catalog.sum(hash) {added}, 0) - COALESCE(pg_catalog.sum(hash) {removed}, 0)
               FROM (SELECT audit_db_kind, {} AS hash FROM {} WHERE {batch}) hashed",
            self.hash, self.exchange.log_name
        ))
    }

    fn copy_of(&self, change: &Change) -> usize {
        let months: Vec<(i64, i64)> = self
            .exchange
            .months()
            .map(|(_, month)| (month.lower, month.upper))
            .collect();
        change
            .position
            .and_then(|position| locate(&months, position))
            .unwrap_or(months.len())
    }

    /// Rows of the log and of another table that are the same, image by image: any type can be compared that way.
    fn same_row(&self, one: &str, other: &str, change: &Change) -> String {
        let row = |alias: &str| {
            self.exchange
                .columns
                .iter()
                .map(|column| format!("{alias}.{column}"))
                .collect::<Vec<_>>()
                .join(", ")
        };
        let column = &self.exchange.column;
        // An index on the key, if there is one, is of use.
        let key = if change.position.is_some() {
            format!("{one}.{column} = {other}.{column} AND ")
        } else {
            String::new()
        };
        format!(
            "{key}ROW({}) OPERATOR(pg_catalog.*=) ROW({})",
            row(one),
            row(other)
        )
    }

    fn remove_from_copy(&self, change: &Change) -> Result<bool> {
        let copy = &self.exchange.copies[self.copy_of(change)].qualified;
        let removed = spi::execute(
            &format!(
                "DELETE FROM ONLY {copy}
                  WHERE ctid = (SELECT copied.ctid FROM ONLY {copy} copied, {} logged
                                 WHERE logged.audit_db_change = $1 AND {} LIMIT 1)",
                self.exchange.log_name,
                self.same_row("copied", "logged", change)
            ),
            &[change.number.into()],
        )?;
        Ok(removed == 1)
    }

    /// An addition of the same row among those of this round.
    fn added_before(&self, change: &Change, added: &BTreeSet<i64>) -> Result<Option<i64>> {
        let log = &self.exchange.log_name;
        let found = spi::rows(
            &format!(
                "SELECT added.audit_db_change FROM {log} added, {log} removed
                  WHERE removed.audit_db_change = $1 AND added.audit_db_change = ANY ($2) AND {} LIMIT 1",
                self.same_row("added", "removed", change)
            ),
            &[
                change.number.into(),
                added.iter().copied().collect::<Vec<i64>>().into(),
            ],
            |row| row.get::<i64>(1),
        )?;
        Ok(found.into_iter().flatten().next())
    }
}

/// The number of rows of a table expression, and the sum of their hashes.
pub(super) fn contents_of(hash: &str, from: &str) -> Result<Contents> {
    contents(&format!(
        "SELECT pg_catalog.count(*), COALESCE(pg_catalog.sum({hash}), 0) FROM {from}"
    ))
}

fn contents(query: &str) -> Result<Contents> {
    let row = spi::rows(query, &[], |row| {
        Ok((row.get::<i64>(1)?, row.get::<AnyNumeric>(2)?))
    })?
    .pop();
    row.and_then(|(rows, hash)| {
        Some(Contents {
            rows: rows?,
            hash: hash?.to_string().parse().ok()?,
        })
    })
    .ok_or_else(|| Error::Internal("a sum of hashes cannot be read".into()))
}
