//! One batch of logged changes, brought over into the copies.
//!
//! The copies are multisets of rows, and rows are told apart by their images alone, so any table will do, without a key and
//! with types that cannot be compared. The order of changes does not matter: what was added and removed again within the
//! batch is left out, the other removals find their rows in the copies, and what is left of the additions is inserted.

use super::{Copy, Exchange, stage};
use crate::error::{Error, Result};
use crate::partition::unfinished::Contents;
use crate::pg::catalog::KeyType;
use crate::pg::spi;
use crate::shmem::exchanges::kind;
use audit_db_core::change_log::locate;
use audit_db_core::partition_plan::{NewPartition, Range};
use pgrx::datum::{AnyNumeric, Timestamp, TimestampWithTimeZone};
use std::collections::{BTreeMap, BTreeSet};

/// Who finds the copy that a row belongs into.
#[derive(Clone, Copy)]
pub(super) enum Routing {
    /// The staging table, whose partitions the copies are.
    Staging,
    Ours,
}

/// One logged change.
struct Change {
    number: i64,
    kind: u8,
    /// The copy that the row belongs into.
    copy: usize,
}

/// Changes that the transaction sees. It must see the same ones with each statement: it has one snapshot, or nobody can write.
pub(super) struct Batch<'a> {
    exchange: &'a Exchange,
    /// The hash of a row, as an expression.
    hash: &'a str,
    changes: Vec<Change>,
    /// A condition on the log that holds for these changes alone.
    condition: String,
}

impl<'a> Batch<'a> {
    /// Reads at most `limit` changes with numbers above `low`.
    pub fn read(exchange: &'a Exchange, hash: &'a str, low: u64, limit: usize) -> Result<Self> {
        let (cast, instant) = match exchange.calendar.key() {
            KeyType::Timestamptz => ("timestamptz", true),
            KeyType::Timestamp | KeyType::Date => ("timestamp", false),
        };
        let months: Vec<(i64, i64)> = exchange
            .months()
            .map(|(_, month)| (month.lower, month.upper))
            .collect();
        let changes = spi::rows(
            &format!(
                "SELECT audit_db_change, audit_db_kind, {}::pg_catalog.{cast} FROM {}
                  WHERE audit_db_change > {low} ORDER BY audit_db_change LIMIT {limit}",
                exchange.column, exchange.log_name
            ),
            &[],
            |row| {
                let position = if instant {
                    row.get::<TimestampWithTimeZone>(3)?.map(i64::from)
                } else {
                    row.get::<Timestamp>(3)?.map(i64::from)
                };
                Ok(Change {
                    number: row.get::<i64>(1)?.unwrap_or_default(),
                    kind: row.get::<i8>(2)?.unwrap_or_default() as u8,
                    copy: position
                        .and_then(|position| locate(&months, position))
                        .unwrap_or(months.len()),
                })
            },
        )?;
        let last = changes.last().map_or(0, |change| change.number);
        Ok(Self {
            exchange,
            hash,
            changes,
            condition: format!("audit_db_change > {low} AND audit_db_change <= {last}"),
        })
    }

    pub fn len(&self) -> usize {
        self.changes.len()
    }

    /// Number of the last change.
    pub fn last(&self) -> u64 {
        self.changes.last().map_or(0, |change| change.number as u64)
    }

    fn broken(&self, reason: &'static str) -> Error {
        Error::ExchangeBroken {
            default: self.exchange.default_qualified(),
            reason,
        }
    }

    fn numbers(&self, kind: u8) -> BTreeSet<i64> {
        self.changes
            .iter()
            .filter(|change| change.kind == kind)
            .map(|change| change.number)
            .collect()
    }

    /// Brings the changes over. Returns how they alter what the default partition holds.
    pub fn apply(&self, routing: Routing) -> Result<Contents> {
        if self.changes.is_empty() {
            return Ok(Contents::default());
        }
        if self
            .changes
            .iter()
            .any(|change| change.kind == kind::BROKEN)
        {
            return Err(self.broken("It was truncated or its columns were changed."));
        }
        let difference = self.difference()?;
        let mut added = self.numbers(kind::INSERTED);
        let mut removed = self.numbers(kind::DELETED);
        if !removed.is_empty() {
            self.cancel(&mut added, &mut removed)?;
            self.remove(&mut removed)?;
            for number in removed {
                self.remove_alone(number, &mut added)?;
            }
        }
        self.add(routing, &added)?;
        let done = spi::execute(
            &format!(
                "DELETE FROM {} WHERE {}",
                self.exchange.log_name, self.condition
            ),
            &[],
        )?;
        if done != self.changes.len() as u64 {
            return Err(self.broken("Changes disappeared from the log."));
        }
        Ok(difference)
    }

    fn difference(&self) -> Result<Contents> {
        let [added, removed] = [kind::INSERTED, kind::DELETED]
            .map(|kind| format!("FILTER (WHERE audit_db_kind = '{}')", char::from(kind)));
        contents(&format!(
            "SELECT pg_catalog.count(*) {added} - pg_catalog.count(*) {removed},
                    COALESCE(pg_catalog.sum(hash) {added}, 0) - COALESCE(pg_catalog.sum(hash) {removed}, 0)
               FROM (SELECT audit_db_kind, {} AS hash FROM {} WHERE {}) hashed",
            self.hash, self.exchange.log_name, self.condition
        ))
    }

    /// Rows of a table expression with what pairs are found by: key, hash, and a number among those that have both in common.
    fn numbered(&self, what: &str, from: &str) -> String {
        let column = &self.exchange.column;
        format!(
            "SELECT {what}, {columns}, {hash} AS audit_db_hash,
                    pg_catalog.row_number() OVER (PARTITION BY {column}, {hash}) AS audit_db_number FROM {from}",
            columns = self.exchange.columns.join(", "),
            hash = self.hash
        )
    }

    fn logged(&self, kind: u8) -> String {
        self.numbered(
            "audit_db_change",
            &format!(
                "{} WHERE {} AND audit_db_kind = '{}'",
                self.exchange.log_name,
                self.condition,
                char::from(kind)
            ),
        )
    }

    /// When rows of two such expressions are the same. Rows without a key are left to `remove_alone`, as are those that only
    /// have the hash in common.
    fn same(&self) -> String {
        let row = |alias: &str| {
            self.exchange
                .columns
                .iter()
                .map(|column| format!("{alias}.{column}"))
                .collect::<Vec<_>>()
                .join(", ")
        };
        format!(
            "one.{column} = other.{column} AND one.audit_db_hash = other.audit_db_hash
             AND one.audit_db_number = other.audit_db_number
             AND pg_catalog.record_image_eq(ROW({}), ROW({}))",
            row("one"),
            row("other"),
            column = self.exchange.column
        )
    }

    /// Leaves out what was added and removed again.
    fn cancel(&self, added: &mut BTreeSet<i64>, removed: &mut BTreeSet<i64>) -> Result<()> {
        let pairs = spi::rows(
            &format!(
                "SELECT one.audit_db_change, other.audit_db_change FROM ({}) one JOIN ({}) other ON {}",
                self.logged(kind::INSERTED),
                self.logged(kind::DELETED),
                self.same()
            ),
            &[],
            |row| Ok(row.get::<i64>(1)?.zip(row.get::<i64>(2)?)),
        )?;
        for (addition, removal) in pairs.into_iter().flatten() {
            added.remove(&addition);
            removed.remove(&removal);
        }
        Ok(())
    }

    fn copies_of(&self, numbers: &BTreeSet<i64>) -> BTreeMap<usize, Vec<i64>> {
        let mut by_copy: BTreeMap<usize, Vec<i64>> = BTreeMap::new();
        for change in &self.changes {
            if numbers.contains(&change.number) {
                by_copy.entry(change.copy).or_default().push(change.number);
            }
        }
        by_copy
    }

    /// Removes rows from the copies; those that are not found stay in the set.
    fn remove(&self, removed: &mut BTreeSet<i64>) -> Result<()> {
        for (copy, numbers) in self.copies_of(removed) {
            let copy = &self.exchange.copies[copy].qualified;
            let (log, column) = (&self.exchange.log_name, &self.exchange.column);
            let wanted = format!(
                "{log} WHERE {} AND audit_db_change = ANY ('{{{}}}'::pg_catalog.int8[])",
                self.condition,
                list(&numbers)
            );
            let found = spi::rows(
                &format!(
                    "SELECT one.audit_db_change, other.audit_db_place::pg_catalog.text FROM ({}) one JOIN ({}) other ON {}",
                    self.numbered("audit_db_change", &wanted),
                    self.numbered(
                        "ctid AS audit_db_place",
                        &format!(
                            "ONLY {copy} WHERE {column} {}",
                            if self.exchange.key_is_indexed {
                                format!("= ANY (ARRAY(SELECT DISTINCT {column} FROM {wanted}))")
                            } else {
                                format!("IN (SELECT {column} FROM {wanted})")
                            },
                        )
                    ),
                    self.same()
                ),
                &[],
                |row| Ok(row.get::<i64>(1)?.zip(row.get::<String>(2)?)),
            )?;
            let found: Vec<(i64, String)> = found.into_iter().flatten().collect();
            if found.is_empty() {
                continue;
            }
            let places = found
                .iter()
                .map(|(_, place)| format!("\"{place}\""))
                .collect::<Vec<_>>()
                .join(",");
            let deleted = spi::execute(
                &format!(
                    "DELETE FROM ONLY {copy} WHERE ctid = ANY ('{{{places}}}'::pg_catalog.tid[])"
                ),
                &[],
            )?;
            if deleted != found.len() as u64 {
                return Err(self.broken("A copied row could not be removed."));
            }
            for (number, _) in found {
                removed.remove(&number);
            }
        }
        Ok(())
    }

    /// Removes a row that has no key, or whose hash other rows have too, from wherever it is.
    fn remove_alone(&self, number: i64, added: &mut BTreeSet<i64>) -> Result<()> {
        let log = &self.exchange.log_name;
        let [one, other] = ["one", "other"].map(|alias| {
            let columns = self.exchange.columns.iter();
            let row: Vec<String> = columns.map(|column| format!("{alias}.{column}")).collect();
            row.join(", ")
        });
        let same = format!("pg_catalog.record_image_eq(ROW({one}), ROW({other}))");
        for change in self.changes.iter().filter(|change| change.number == number) {
            let copy = &self.exchange.copies[change.copy].qualified;
            let deleted = spi::execute(
                &format!(
                    "DELETE FROM ONLY {copy}
                      WHERE ctid = (SELECT one.ctid FROM ONLY {copy} one, {log} other
                                     WHERE other.audit_db_change = {number} AND {same} LIMIT 1)"
                ),
                &[],
            )?;
            if deleted == 1 {
                return Ok(());
            }
        }
        let candidates: Vec<i64> = added.iter().copied().collect();
        let addition = spi::rows(
            &format!(
                "SELECT one.audit_db_change FROM {log} one, {log} other
                  WHERE other.audit_db_change = {number} AND one.audit_db_change = ANY ('{{{}}}'::pg_catalog.int8[])
                    AND {same} LIMIT 1",
                list(&candidates)
            ),
            &[],
            |row| row.get::<i64>(1),
        )?;
        match addition.into_iter().flatten().next() {
            Some(addition) => {
                added.remove(&addition);
                Ok(())
            }
            None => {
                Err(self
                    .broken("A row that was deleted from it is not among those that were copied."))
            }
        }
    }

    /// Inserts what is left of the additions.
    fn add(&self, routing: Routing, added: &BTreeSet<i64>) -> Result<()> {
        let all = self.numbers(kind::INSERTED);
        let undone: Vec<i64> = all.difference(added).copied().collect();
        let mut made = 0;
        match routing {
            Routing::Staging => made = self.insert(&self.exchange.staging_name, "", &undone)?,
            // Once the copies are no longer partitions of anything.
            Routing::Ours => {
                for copy in self.copies_of(added).into_keys() {
                    let copy = &self.exchange.copies[copy];
                    let belongs = format!("AND {}", self.belongs(copy)?);
                    made += self.insert(&copy.qualified, &belongs, &undone)?;
                }
            }
        }
        if made != added.len() as u64 {
            return Err(self.broken("Changes disappeared from the log."));
        }
        Ok(())
    }

    fn belongs(&self, copy: &Copy) -> Result<String> {
        let range = |month: &NewPartition| {
            stage::condition(self.exchange, Range::new(month.lower, month.upper))
        };
        match &copy.month {
            Some(month) => range(month),
            None => {
                let months = self
                    .exchange
                    .months()
                    .map(|(_, month)| range(month))
                    .collect::<Result<Vec<_>>>()?;
                Ok(format!("({}) IS NOT TRUE", months.join(" OR ")))
            }
        }
    }

    fn insert(&self, target: &str, belongs: &str, undone: &[i64]) -> Result<u64> {
        let columns = self.exchange.columns.join(", ");
        spi::execute(
            &format!(
                "INSERT INTO {target} ({columns}) OVERRIDING SYSTEM VALUE
                 SELECT {columns} FROM {} WHERE {} AND audit_db_kind = '{}'
                    AND audit_db_change <> ALL ('{{{}}}'::pg_catalog.int8[]) {belongs}",
                self.exchange.log_name,
                self.condition,
                char::from(kind::INSERTED),
                list(undone)
            ),
            &[],
        )
    }
}

fn list(numbers: &[i64]) -> String {
    let numbers: Vec<String> = numbers.iter().map(i64::to_string).collect();
    numbers.join(",")
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
