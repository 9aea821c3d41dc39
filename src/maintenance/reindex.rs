//! Indexes that have grown beyond what they hold, and those that an interrupted REINDEX or CREATE INDEX CONCURRENTLY has left.
//!
//! Bloat is what an index has beyond the size that a rebuild would give it, worked out from the planner's statistics without
//! reading the index (`audit_db_core::btree_size`). Where the index was rebuilt here before, it is not expected to become
//! denser than it was then: an estimate that is off costs one rebuild, not one a week. Only B-trees are estimated.

use super::Limits;
use super::analyze::{self, Ahead, TREE};
use crate::error::{Error, JobError, Result};
use crate::partition::managed::as_extension_owner;
use crate::partition::steps;
use crate::pg::lock::{Deadline, Mode};
use crate::pg::utility::run_at_top_level;
use crate::pg::{catalog, disk, identity, spi, xact};
use crate::settings;
use audit_db_core::btree_size::{self, Shape};
use pgrx::pg_sys::Oid;
use std::collections::HashSet;
use std::time::Duration;

/// What is done with an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// What a REINDEX CONCURRENTLY has left, old or new.
    Drop,
    Rebuild,
}

impl Action {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Drop => "drop",
            Self::Rebuild => "reindex",
        }
    }
}

/// One index that something is to be done with.
#[derive(Clone, Debug)]
pub struct Target {
    pub oid: Oid,
    /// Qualified.
    pub name: String,
    table: Oid,
    heap: Oid,
    table_name: String,
    /// Whose rights it takes. Nobody else than superusers can name what is in pg_toast.
    owner: Oid,
    tablespace: Oid,
    size: i64,
    pub action: Action,
    pub reason: String,
    gain: i64,
}

/// Less than this is not worth a rebuild.
const MIN_GAIN: i64 = 1_048_576;

/// What the catalog and the statistics say of an index.
struct Index {
    oid: Oid,
    name: String,
    table: Oid,
    table_name: String,
    owner: Oid,
    tablespace: Oid,
    /// Bytes; none: somebody holds it.
    size: Option<i64>,
    page: f64,
    tuples: f64,
    valid: bool,
    leftover: bool,
    btree: bool,
    fill_factor: f64,
    deduplicated: bool,
    /// Of each column: fixed length or -1, alignment, average width, and distinct values as `stadistinct` has them.
    lengths: Vec<i32>,
    alignments: Vec<i32>,
    widths: Vec<i32>,
    distinct: Vec<f64>,
    /// Bytes an entry when it was rebuilt here.
    rebuilt: Option<f64>,
    /// The table that people see: of a TOAST table the one it belongs to.
    heap: Oid,
}

/// What is due of a table and its partitions, in order. Bloat is judged only where the statistics are fresh.
pub fn due(root: Oid, limits: &Limits) -> Result<Vec<Target>> {
    let stale: HashSet<Oid> = analyze::due(root, &Ahead::default())?
        .leaves
        .into_iter()
        .map(|table| table.oid)
        .collect();
    let mut due: Vec<Target> = indexes(root)?
        .iter()
        .filter_map(|index| index.target(limits, stale.contains(&index.table)))
        .collect();
    order(&mut due);
    Ok(due)
}

/// First what has to go, then what gains most.
pub fn order(targets: &mut [Target]) {
    targets.sort_by_key(|target| {
        (
            target.action == Action::Rebuild,
            std::cmp::Reverse(target.gain),
        )
    });
}

impl Index {
    fn target(&self, limits: &Limits, stale: bool) -> Option<Target> {
        let size = self.size?;
        let target = |action, gain, reason| {
            Some(Target {
                oid: self.oid,
                name: self.name.clone(),
                table: self.table,
                heap: self.heap,
                table_name: self.table_name.clone(),
                owner: self.owner,
                tablespace: self.tablespace,
                size,
                action,
                reason,
                gain,
            })
        };
        if self.leftover {
            return target(
                Action::Drop,
                size,
                "an interrupted REINDEX CONCURRENTLY has left it".to_owned(),
            );
        }
        if limits.max_size.is_some_and(|limit| size > limit) {
            return None;
        }
        if !self.valid {
            return target(Action::Rebuild, i64::MAX, "it is not valid".to_owned());
        }
        if stale {
            return None;
        }
        let pages = size as f64 / self.page;
        let expected = self.expected_pages()?;
        let bloat = btree_size::bloat(pages, expected);
        let gain = ((pages - expected) * self.page) as i64;
        if bloat < limits.min_bloat || gain < MIN_GAIN {
            return None;
        }
        target(
            Action::Rebuild,
            gain,
            format!(
                "{:.0} % of its {size} bytes are bloat by the statistics",
                bloat * 100.0
            ),
        )
    }

    /// `None`: nothing is known.
    fn expected_pages(&self) -> Option<f64> {
        if !self.btree || self.tuples < 0.0 {
            return None;
        }
        let estimate = btree_size::pages(&self.shape()?);
        let rebuilt = self
            .rebuilt
            .map_or(0.0, |bytes| bytes * self.tuples / self.page);
        Some(estimate.max(rebuilt))
    }

    fn shape(&self) -> Option<Shape> {
        let (mut width, mut varying, mut distinct) = (0.0_f64, false, 1.0_f64);
        for column in 0..self.lengths.len() {
            let (length, alignment) = (self.lengths[column], f64::from(self.alignments[column]));
            if length > 0 {
                if varying {
                    // On average half a step is lost.
                    width += (alignment - 1.0) / 2.0;
                } else {
                    width = (width / alignment).ceil() * alignment;
                }
                varying &= alignment < 8.0;
                width += f64::from(length);
            } else {
                let average = f64::from(self.widths[column]);
                if average <= 0.0 {
                    return None;
                }
                width += average;
                varying = true;
            }
            distinct *= match self.distinct[column] {
                // Unknown: as different as they can be.
                0.0 => self.tuples,
                many if many > 0.0 => many,
                fraction => -fraction * self.tuples,
            }
            .max(1.0);
        }
        Some(Shape {
            tuples: self.tuples,
            key_width: width,
            varying,
            distinct: distinct.min(self.tuples.max(1.0)),
            fill_factor: self.fill_factor,
            deduplicated: self.deduplicated,
            page: self.page,
        })
    }
}

fn indexes(root: Oid) -> Result<Vec<Index>> {
    spi::rows(
        &format!(
            "SELECT i.indexrelid, pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(ic.relname),
                    tc.oid, pg_catalog.quote_ident(tn.nspname) || '.' || pg_catalog.quote_ident(tc.relname),
                    CASE tc.relkind WHEN 't' THEN (SELECT m.relowner FROM pg_catalog.pg_class m WHERE m.oid = 'audit_db.managed_tables'::pg_catalog.regclass)
                                    ELSE tc.relowner END,
                    ic.reltablespace,
                    pg_catalog.current_setting('block_size')::pg_catalog.float8, ic.reltuples::pg_catalog.float8,
                    i.indisvalid,
                    NOT i.indisvalid AND ic.relname ~ '_cc(new|old)[0-9]*$',
                    am.amname = 'btree',
                    COALESCE((SELECT o.option_value::pg_catalog.float8 FROM pg_catalog.pg_options_to_table(ic.reloptions) o
                               WHERE o.option_name = 'fillfactor'), 90),
                    i.indnatts = i.indnkeyatts
                      AND COALESCE((SELECT o.option_value::pg_catalog.bool FROM pg_catalog.pg_options_to_table(ic.reloptions) o
                                     WHERE o.option_name = 'deduplicate_items'), true)
                      AND a.can_share,
                    a.lengths, a.alignments, a.widths, a.distincts,
                    (SELECT z.bytes_per_tuple FROM audit_db.index_sizes z WHERE z.index = i.indexrelid),
                    lc.oid
               FROM ({TREE}) l
               JOIN pg_catalog.pg_class lc ON lc.oid = l.oid AND lc.relkind IN ('r', 'm')
               JOIN pg_catalog.pg_class tc ON tc.oid IN (lc.oid, lc.reltoastrelid)
               JOIN pg_catalog.pg_namespace tn ON tn.oid = tc.relnamespace
               JOIN pg_catalog.pg_index i ON i.indrelid = tc.oid AND NOT i.indisexclusion
               JOIN pg_catalog.pg_class ic ON ic.oid = i.indexrelid AND (i.indislive OR NOT i.indisvalid AND ic.relname ~ '_cc(new|old)[0-9]*$')
               JOIN pg_catalog.pg_namespace n ON n.oid = ic.relnamespace
               JOIN pg_catalog.pg_am am ON am.oid = ic.relam
              CROSS JOIN LATERAL (
                    SELECT pg_catalog.array_agg(t.attlen::pg_catalog.int4 ORDER BY t.attnum) AS lengths,
                           pg_catalog.array_agg(CASE t.attalign WHEN 'd' THEN 8 WHEN 'i' THEN 4 WHEN 's' THEN 2 ELSE 1 END
                                                ORDER BY t.attnum) AS alignments,
                           pg_catalog.array_agg(COALESCE(s.stawidth, 0) ORDER BY t.attnum) AS widths,
                           pg_catalog.array_agg(COALESCE(s.stadistinct, 0)::pg_catalog.float8 ORDER BY t.attnum) AS distincts,
                           pg_catalog.bool_and(t.attnum > i.indnkeyatts OR EXISTS (
                                 SELECT FROM pg_catalog.pg_opclass o
                                   JOIN pg_catalog.pg_amproc p ON p.amprocfamily = o.opcfamily AND p.amproclefttype = o.opcintype
                                                              AND p.amprocrighttype = o.opcintype AND p.amprocnum = 4
                                  WHERE o.oid = i.indclass[t.attnum - 1])) AS can_share
                      FROM pg_catalog.pg_attribute t
                      LEFT JOIN pg_catalog.pg_statistic s
                        ON s.starelid = CASE i.indkey[t.attnum - 1] WHEN 0 THEN i.indexrelid ELSE i.indrelid END
                       AND s.staattnum = CASE i.indkey[t.attnum - 1] WHEN 0 THEN t.attnum ELSE i.indkey[t.attnum - 1] END
                       AND NOT s.stainherit
                     WHERE t.attrelid = i.indexrelid AND t.attnum > 0) a
              WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_stat_progress_create_index g
                                 WHERE g.relid IN (lc.oid, lc.reltoastrelid) AND g.datname = pg_catalog.current_database())
              ORDER BY 2"
        ),
        &[root.into()],
        |row| {
            let page = row.get(7)?.unwrap_or(8_192.0);
            let oid = row.get(1)?.unwrap_or(Oid::INVALID);
            Ok(Index {
                size: catalog::pages_without_waiting(oid)
                    .map(|pages| (f64::from(pages) * page) as i64),
                oid,
                name: row.get(2)?.unwrap_or_default(),
                table: row.get(3)?.unwrap_or(Oid::INVALID),
                table_name: row.get(4)?.unwrap_or_default(),
                owner: row.get(5)?.unwrap_or(Oid::INVALID),
                tablespace: row.get(6)?.unwrap_or(Oid::INVALID),
                page,
                tuples: row.get(8)?.unwrap_or(-1.0),
                valid: row.get(9)?.unwrap_or(true),
                leftover: row.get(10)?.unwrap_or(false),
                btree: row.get(11)?.unwrap_or(false),
                fill_factor: row.get(12)?.unwrap_or(90.0),
                deduplicated: row.get(13)?.unwrap_or(false),
                lengths: row.get(14)?.unwrap_or_default(),
                alignments: row.get(15)?.unwrap_or_default(),
                widths: row.get(16)?.unwrap_or_default(),
                distinct: row.get(17)?.unwrap_or_default(),
                rebuilt: row.get(18)?,
                heap: row.get(19)?.unwrap_or(Oid::INVALID),
            })
        },
    )
}

/// A number that nobody else is likely to lock: "adb_ridx".
const ONE_AT_A_TIME: i64 = 0x6164_625f_7269_6478;

/// Whether this process is the only one of the database that rebuilds indexes from now on; it stays so until it ends.
pub fn be_the_only_one() -> Result<bool> {
    Ok(spi::rows(
        "SELECT pg_catalog.pg_try_advisory_lock($1)",
        &[ONE_AT_A_TIME.into()],
        |row| row.get::<bool>(1),
    )?
    .pop()
    .flatten()
    .unwrap_or(false))
}

/// Does it. Returns what came of it. From a worker, outside any transaction.
pub fn run(target: &Target, limit: Option<Duration>) -> Result<Option<String>> {
    match target.action {
        Action::Drop => drop_leftover(target).map(|()| None),
        Action::Rebuild => rebuild(target, limit).map(Some),
    }
}

fn rebuild(target: &Target, limit: Option<Duration>) -> Result<String> {
    let free = disk::free(target.tablespace);
    if let Some(free) = free.filter(|free| *free < target.size) {
        return Err(JobError::NoRoom {
            index: target.name.clone(),
            bytes: target.size,
            free,
        }
        .into());
    }
    let rebuilt = run_at_top_level(
        target.owner,
        &format!("REINDEX INDEX CONCURRENTLY {}", target.name),
        limit,
    );
    if let Err(error) = rebuilt {
        // What it has left is of no use to anybody.
        if let Err(left) = clear_leftovers(target) {
            left.warn();
        }
        return Err(error);
    }
    let size = xact::in_transaction(|| measure(target))?;
    Ok(format!("{} bytes before, {size} after", target.size))
}

/// Remembers how dense an index is now.
fn measure(target: &Target) -> Result<i64> {
    let measured = spi::rows(
        "SELECT c.oid, pg_catalog.pg_relation_size(c.oid), c.reltuples::pg_catalog.float8 FROM pg_catalog.pg_class c
          WHERE c.oid = pg_catalog.to_regclass($1)",
        &[target.name.as_str().into()],
        |row| {
            Ok((
                row.get::<Oid>(1)?,
                row.get::<i64>(2)?.unwrap_or(0),
                row.get::<f64>(3)?.unwrap_or(0.0),
            ))
        },
    )?
    .pop();
    let Some((Some(index), size, tuples)) = measured else {
        return Ok(0);
    };
    if tuples > 0.0 {
        as_extension_owner(|| {
            spi::execute(
                "INSERT INTO audit_db.index_sizes AS s (index, bytes_per_tuple) VALUES ($1, $2)
                 ON CONFLICT (index) DO UPDATE SET (bytes_per_tuple, measured_at)
                       = ROW (excluded.bytes_per_tuple, excluded.measured_at)",
                &[index.into(), (size as f64 / tuples).into()],
            )
        })?;
    }
    Ok(size)
}

fn clear_leftovers(target: &Target) -> Result<()> {
    let base = target.name.clone();
    let left = xact::in_transaction(|| {
        Ok(indexes(target.heap)?
            .into_iter()
            .filter(|index| index.leftover)
            .collect::<Vec<_>>())
    })?;
    for index in left {
        let leftover = Target {
            oid: index.oid,
            name: index.name,
            action: Action::Drop,
            ..target.clone()
        };
        // Only its own: others may be somebody's who is at it.
        if unquoted(&leftover.name).starts_with(unquoted(&base)) {
            drop_leftover(&leftover)?;
        }
    }
    Ok(())
}

fn unquoted(name: &str) -> &str {
    name.trim_end_matches('"')
}

/// Looked at again under the lock: somebody may be making it just now.
fn drop_leftover(target: &Target) -> Result<()> {
    steps::in_transactions_with_retries(&target.table_name, |scope| {
        let deadline = Deadline::start(scope, settings::lock_timeout());
        deadline.lock(target.table, Mode::ShareUpdateExclusive);
        if catalog::qualified_name(target.oid).as_deref() != Some(&target.name)
            || catalog::index_is_valid(target.oid) != Some(false)
        {
            return Ok(());
        }
        deadline.arm();
        identity::as_role(target.owner, || {
            spi::execute(&format!("DROP INDEX {}", target.name), &[])
        })?;
        Ok::<(), Error>(())
    })
}
