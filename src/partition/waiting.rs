//! Rows that wait in a default partition for months that can be made.

use crate::error::{Error, Result};
use crate::partition::create::require_same_owner;
use crate::partition::inspect::{Calendar, Table};
use crate::partition::managed::Managed;
use crate::pg::catalog::{self, KeyType};
use crate::pg::spi::{self, quote_identifier, quote_literal};
use crate::pg::{clock, identity};
use crate::settings;
use audit_db_core::partition_plan::Zone;
use chrono::{Days, NaiveDateTime, NaiveTime};
use pgrx::datum::{Timestamp, TimestampWithTimeZone};
use pgrx::pg_sys::Oid;
use std::collections::BTreeSet;

/// Rows of one new partition up to which they are simply moved; more are copied beforehand.
pub const MOVED_LIMIT: i64 = 1_000;

/// A default partition up to this size is scanned in some milliseconds, as every ATTACH does while nobody can write to it.
const SCANNED_BYTES_LIMIT: i64 = 16 * 1024 * 1024;

/// Waiting rows are counted in pieces of this length: the bounds of every period of every zone of today lie between two pieces.
const PIECE_MICROS: i64 = 900_000_000;

/// What waits.
#[derive(Debug, Default)]
pub struct Waiting {
    /// Starts of pieces of time, as positions, and how many rows are in each; sorted.
    pieces: Vec<(i64, i64)>,
}

impl Waiting {
    /// Looks at a default partition. Rows of absurd times stay there for good and do not count.
    pub fn look(table: &Table, managed: &Managed, calendar: &Calendar) -> Result<Self> {
        let Some(default) = &table.default else {
            return Ok(Self::default());
        };
        let Some((earliest, latest)) = window(managed, calendar) else {
            return Ok(Self::default());
        };
        if catalog::has_no_pages(default.oid) {
            return Ok(Self::default());
        }
        require_same_owner(table, default)?;
        let column = quote_identifier(&table.column);
        let day = |local: NaiveDateTime| calendar.position(local.date().and_time(NaiveTime::MIN));
        let bound = |operator, position: Option<i64>| {
            position
                .and_then(|position| calendar.literal(position).ok())
                .map_or(String::new(), |text| {
                    format!(" AND {column} {operator} {}", quote_literal(text))
                })
        };
        // From the start of the first period that may be made.
        let lower = earliest.and_then(|local| day(managed.interval.floor(local)?));
        let upper = latest.checked_add_days(Days::new(1)).and_then(day);
        let (cast, instant) = match table.key {
            KeyType::Timestamptz => ("timestamptz", true),
            KeyType::Timestamp | KeyType::Date => ("timestamp", false),
        };
        let pieces = identity::as_role(table.owner, || {
            spi::rows(
                &format!(
                    "SELECT pg_catalog.date_bin('15 minutes', {column}::pg_catalog.{cast}, '2000-01-01 00:00:00+00'::pg_catalog.{cast}),
                            pg_catalog.count(*)
                       FROM {} WHERE pg_catalog.isfinite({column}){}{} GROUP BY 1 ORDER BY 1",
                    table.qualified_partition(default),
                    bound(">=", lower),
                    bound("<", upper),
                ),
                &[],
                |row| {
                    let position = if instant {
                        row.get::<TimestampWithTimeZone>(1)?.map(i64::from)
                    } else {
                        row.get::<Timestamp>(1)?.map(i64::from)
                    };
                    Ok(position.zip(row.get::<i64>(2)?))
                },
            )
        })?;
        Ok(Self {
            pieces: pieces.into_iter().flatten().collect(),
        })
    }

    /// Local times at which rows wait: the first and the last moment of each piece, which may lie in two periods.
    pub fn local_times(&self, calendar: &Calendar) -> Vec<NaiveDateTime> {
        let times: BTreeSet<NaiveDateTime> = self
            .pieces
            .iter()
            .flat_map(|(start, _)| [*start, start + PIECE_MICROS - 1])
            .filter_map(|position| calendar.local(position))
            .collect();
        times.into_iter().collect()
    }

    /// How many rows wait in all.
    pub fn rows(&self) -> i64 {
        self.pieces.iter().map(|(_, rows)| rows).sum()
    }

    /// How many rows wait in a range, counting a piece that it touches as a whole.
    pub fn rows_in(&self, lower: i64, upper: i64) -> i64 {
        self.pieces
            .iter()
            .filter(|(start, _)| *start < upper && start + PIECE_MICROS > lower)
            .map(|(_, rows)| rows)
            .sum()
    }
}

/// An error where more rows wait than a session should have to do with, whichever month they belong to.
pub fn require_few(table: &Table, managed: &Managed, calendar: &Calendar) -> Result<()> {
    let Some(default) = &table.default else {
        return Ok(());
    };
    if is_large(default.oid)? || Waiting::look(table, managed, calendar)?.rows() > MOVED_LIMIT {
        return Err(too_many(table));
    }
    Ok(())
}

/// The error that says so.
pub fn too_many(table: &Table) -> Error {
    Error::WaitingRows {
        default: table
            .default
            .as_ref()
            .map(|default| table.qualified_partition(default))
            .unwrap_or_default(),
        limit: MOVED_LIMIT,
    }
}

/// Whether a default partition is so large that ATTACH's scan of it would be felt.
pub fn is_large(default: Oid) -> Result<bool> {
    let bytes = if catalog::is_plain_table(default) {
        catalog::size_in_bytes(default)
    } else {
        spi::rows(
            "SELECT pg_catalog.sum(pg_catalog.pg_relation_size(relid))::pg_catalog.int8
               FROM pg_catalog.pg_partition_tree($1)",
            &[default.into()],
            |row| row.get::<i64>(1),
        )?
        .pop()
        .flatten()
        .unwrap_or(0)
    };
    Ok(bytes > SCANNED_BYTES_LIMIT)
}

/// The local times within which the worker makes partitions for waiting rows: nothing that has expired, nothing absurd.
pub fn window(
    managed: &Managed,
    calendar: &Calendar,
) -> Option<(Option<NaiveDateTime>, NaiveDateTime)> {
    let now = calendar.local_at(clock::transaction_start())?;
    let earliest = managed
        .retention
        .and_then(|retention| retention.before(now));
    Some((earliest, settings::max_future().after(now)?))
}

/// Why rows must not be deleted from a default partition, if so: somebody would see the deletion.
pub fn why_not_movable(default: Oid) -> Result<Option<&'static str>> {
    #[cfg(feature = "pg14")]
    const SCHEMA_PUBLISHED: &str = "false";
    #[cfg(not(feature = "pg14"))]
    const SCHEMA_PUBLISHED: &str = "EXISTS (SELECT FROM pg_catalog.pg_publication_namespace pn
                                  JOIN pg_catalog.pg_class c ON c.relnamespace = pn.pnnspid
                                 WHERE c.oid IN (SELECT relid FROM pg_catalog.pg_partition_ancestors($1)))";
    let row = spi::rows(
        &format!(
            "WITH part AS (SELECT relid FROM pg_catalog.pg_partition_tree($1))
             SELECT EXISTS (SELECT FROM pg_catalog.pg_trigger WHERE tgrelid IN (TABLE part) AND NOT tgisinternal),
                    EXISTS (SELECT FROM pg_catalog.pg_constraint WHERE confrelid IN (TABLE part) AND contype = 'f'),
                    EXISTS (SELECT FROM pg_catalog.pg_rewrite WHERE ev_class IN (TABLE part)),
                    EXISTS (SELECT FROM pg_catalog.pg_publication WHERE puballtables)
                    OR EXISTS (SELECT FROM pg_catalog.pg_publication_rel
                                WHERE prrelid IN (SELECT relid FROM pg_catalog.pg_partition_ancestors($1)
                                                  UNION ALL TABLE part))
                    OR {SCHEMA_PUBLISHED}"
        ),
        &[default.into()],
        |row| {
            Ok([
                row.get::<bool>(1)?,
                row.get::<bool>(2)?,
                row.get::<bool>(3)?,
                row.get::<bool>(4)?,
            ])
        },
    )?
    .pop()
    .unwrap_or_default();
    let reasons = [
        "It bears triggers, which would see the rows being deleted.",
        "Foreign keys refer to it.",
        "It bears rules.",
        "It is published for logical replication, which would delete the rows at the subscribers.",
    ];
    Ok(row
        .into_iter()
        .zip(reasons)
        .find_map(|(found, reason)| found.unwrap_or(false).then_some(reason)))
}

/// Whether what is written into new tables beside the table would be sent to subscribers: such tables are published, and
/// somebody receives what this database publishes.
pub fn copies_are_published(table: Oid) -> Result<bool> {
    #[cfg(feature = "pg14")]
    const SCHEMA_PUBLISHED: &str = "false";
    #[cfg(not(feature = "pg14"))]
    const SCHEMA_PUBLISHED: &str = "EXISTS (SELECT FROM pg_catalog.pg_publication_namespace pn
                                  JOIN pg_catalog.pg_class c ON c.relnamespace = pn.pnnspid WHERE c.oid = $1)";
    Ok(spi::rows(
        &format!(
            "SELECT (EXISTS (SELECT FROM pg_catalog.pg_publication WHERE puballtables) OR {SCHEMA_PUBLISHED})
                AND EXISTS (SELECT FROM pg_catalog.pg_replication_slots
                             WHERE slot_type = 'logical' AND database = pg_catalog.current_database())"
        ),
        &[table.into()],
        |row| row.get::<bool>(1),
    )?
    .pop()
    .flatten()
    .unwrap_or(false))
}
