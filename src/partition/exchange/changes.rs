//! Changes that the trigger logged, brought over into the copies.
//!
//! The copies are multisets of rows: to bring over what happened it is enough to remove and to add whole rows, and the order
//! does not matter, as long as a row that was added and removed again is not looked for in vain.

use super::{Exchange, as_owner_patiently, hash_expression};
use crate::error::{Error, Result};
use crate::partition::unfinished::Contents;
use crate::pg::catalog::KeyType;
use crate::pg::identity;
use crate::pg::spi;
use crate::pg::xact::{self, Kind};
use crate::shmem::exchanges::{self, kind};
use audit_db_core::change_log::{LowWater, locate};
use pgrx::datum::{Timestamp, TimestampWithTimeZone};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Changes brought over in one transaction.
const IN_A_ROUND: usize = 10_000;
/// Fewer than this are left to the next round.
const FEW: usize = 100;
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

    /// Brings over what was committed until now, but for a few changes that came meanwhile.
    pub fn catch_up(&mut self) -> Result<()> {
        let started = Instant::now();
        while self.round(|_, _| Ok(()))? >= FEW {
            if started.elapsed() > CATCHING_UP {
                return Err(Error::ExchangeBroken {
                    default: self.exchange.default_qualified(),
                    reason: "It changes faster than the changes can be brought over.",
                });
            }
        }
        Ok(())
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
            let round = self.apply(IN_A_ROUND)?;
            then(self, round.changes)?;
            Ok((oldest, round))
        })?;
        if round.changes < IN_A_ROUND {
            self.low.applied(oldest);
        }
        self.add(round);
        Ok(round.changes)
    }

    fn add(&mut self, round: Round) {
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
        let source = format!("ONLY {}", self.exchange.default_qualified());
        let copies = self
            .exchange
            .copies
            .iter()
            .map(|copy| format!("SELECT {} AS hash FROM ONLY {}", self.hash, copy.qualified))
            .collect::<Vec<_>>()
            .join(" UNION ALL ");
        as_owner_patiently(self.exchange, |_scope| {
            let there = contents(&format!("SELECT {} AS hash FROM {source}", self.hash))?;
            let here = contents(&copies)?;
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
        let round = self.apply(limit + 1)?;
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

    /// Brings over at most `limit` changes that the transaction sees.
    fn apply(&self, limit: usize) -> Result<Round> {
        let broken = |reason| Error::ExchangeBroken {
            default: self.exchange.default_qualified(),
            reason,
        };
        as_owner_patiently(self.exchange, |_scope| {
            let changes = self.read(limit)?;
            if changes.is_empty() {
                return Ok(Round::default());
            }
            if changes.iter().any(|change| change.kind == kind::BROKEN) {
                return Err(broken("It was truncated or its columns were changed."));
            }
            let log = &self.exchange.log_name;
            let numbers: Vec<i64> = changes.iter().map(|change| change.number).collect();
            let difference = self.difference(&numbers)?;
            let mut added: BTreeSet<i64> = changes
                .iter()
                .filter(|change| change.kind == kind::INSERTED)
                .map(|change| change.number)
                .collect();
            for change in changes.iter().filter(|change| change.kind == kind::DELETED) {
                if self.remove_from_copy(change)? {
                    continue;
                }
                // Added since the last round, and removed again.
                let number = self.added_before(change, &added)?.ok_or_else(|| {
                    broken("A row that was deleted from it is not among those that were copied.")
                })?;
                added.remove(&number);
            }
            let mut by_copy: BTreeMap<usize, Vec<i64>> = BTreeMap::new();
            for change in changes
                .iter()
                .filter(|change| added.contains(&change.number))
            {
                by_copy
                    .entry(self.copy_of(change))
                    .or_default()
                    .push(change.number);
            }
            let columns = self.exchange.columns.join(", ");
            for (copy, numbers) in by_copy {
                let wanted = numbers.len() as u64;
                let made = spi::execute(
                    &format!(
                        "INSERT INTO {} ({columns}) OVERRIDING SYSTEM VALUE
                         SELECT {columns} FROM {log} WHERE audit_db_change = ANY ($1)",
                        self.exchange.copies[copy].qualified
                    ),
                    &[numbers.into()],
                )?;
                if made != wanted {
                    return Err(broken("Changes disappeared from the log."));
                }
            }
            let done = changes.len();
            let removed = spi::execute(
                &format!("DELETE FROM {log} WHERE audit_db_change = ANY ($1)"),
                &[numbers.into()],
            )?;
            if removed != done as u64 {
                return Err(broken("Changes disappeared from the log."));
            }
            Ok(Round {
                changes: done,
                difference,
            })
        })
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
    fn difference(&self, numbers: &[i64]) -> Result<Contents> {
        let signed = |kind: u8| {
            contents(&format!(
                "SELECT {} AS hash FROM {} WHERE audit_db_change = ANY ('{{{}}}'::pg_catalog.int8[])
                    AND audit_db_kind = '{}'",
                self.hash,
                self.exchange.log_name,
                numbers
                    .iter()
                    .map(i64::to_string)
                    .collect::<Vec<_>>()
                    .join(","),
                char::from(kind)
            ))
        };
        let (added, removed) = (signed(kind::INSERTED)?, signed(kind::DELETED)?);
        Ok(Contents {
            rows: added.rows - removed.rows,
            hash: added.hash - removed.hash,
        })
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

/// The number of rows of a query with the one column `hash`, and the sum of it.
pub(super) fn contents(query: &str) -> Result<Contents> {
    let row = spi::rows(
        &format!(
            "SELECT pg_catalog.count(*), COALESCE(pg_catalog.sum(hash), 0)::pg_catalog.text FROM ({query}) hashed"
        ),
        &[],
        |row| Ok((row.get::<i64>(1)?, row.get::<String>(2)?)),
    )?
    .pop();
    row.and_then(|(rows, hash)| {
        Some(Contents {
            rows: rows?,
            hash: hash?.parse().ok()?,
        })
    })
    .ok_or_else(|| Error::Internal("a sum of hashes cannot be read".into()))
}
