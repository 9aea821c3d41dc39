//! Statistics: of partitions that have changed since they were analyzed, and of the partitioned table itself, which autovacuum
//! never looks at.

use crate::error::Result;
use crate::partition::steps::Place;
use crate::pg::{analyze, catalog, identity, spi};
use pgrx::datum::TimestampWithTimeZone;
use pgrx::pg_sys::Oid;
use std::collections::HashMap;

/// One table whose statistics are due.
#[derive(Clone, Debug)]
pub struct Target {
    pub oid: Oid,
    /// Qualified.
    pub name: String,
    pub owner: Oid,
    pub reason: String,
}

/// A table with rows of its own.
struct Leaf {
    target: Target,
    is_default: bool,
    /// Rows changed since it was analyzed.
    changed: f64,
    /// Changes that make it due.
    threshold: f64,
    pages: f64,
    /// Pages that the planner knows of.
    known_pages: f64,
    analyzed: bool,
    last: Option<i64>,
}

struct Parent {
    target: Target,
    analyzed: bool,
    last: Option<i64>,
}

/// More pages than the planner knows of by this factor make a table due: the count of changes does not survive a crash.
const GROWTH: f64 = 1.1;
const PAGES_MATTER: f64 = 10.0;
/// ANALYZE of a partitioned table takes its partitions after the table itself.
const SAME_TIME_MICROS: i64 = 60_000_000;

/// What is due of a table and its partitions.
pub struct Due {
    pub leaves: Vec<Target>,
    pub parents: Vec<Target>,
}

/// What is going to change before the statistics are taken.
#[derive(Default)]
pub struct Ahead<'a> {
    /// Partitions that will be gone.
    pub leaving: &'a [String],
    /// Partitions that will have been made, and filled.
    pub filled: &'a [String],
    /// Rows that the default partition will have lost.
    pub moved: i64,
}

/// Looks at a table and all of its partitions.
pub fn due(root: Oid, ahead: &Ahead<'_>) -> Result<Due> {
    let (leaves, parents) = (leaves(root)?, parents(root)?);
    let mut due = Due {
        leaves: Vec::new(),
        parents: Vec::new(),
    };
    let mut newest: Option<i64> = None;
    let mut rows = !ahead.filled.is_empty();
    for leaf in &leaves {
        if ahead.leaving.contains(&leaf.target.name) {
            continue;
        }
        newest = newest.max(leaf.last);
        rows |= leaf.pages > 0.0;
        if let Some(reason) = leaf.reason(ahead.moved) {
            due.leaves.push(Target {
                reason,
                ..leaf.target.clone()
            });
        }
    }
    let changes = !due.leaves.is_empty() || !ahead.filled.is_empty();
    for parent in parents {
        let reason = if !rows {
            continue;
        } else if !parent.analyzed {
            "it was never analyzed"
        } else if changes || newest > parent.last.map(|last| last + SAME_TIME_MICROS) {
            "its partitions were analyzed, or will be"
        } else {
            continue;
        };
        due.parents.push(Target {
            reason: reason.to_owned(),
            ..parent.target
        });
    }
    Ok(due)
}

impl Leaf {
    fn reason(&self, moved: i64) -> Option<String> {
        let changed = self.changed + if self.is_default { moved as f64 } else { 0.0 };
        if self.pages == 0.0 {
            None
        } else if !self.analyzed {
            Some("it was never analyzed".to_owned())
        } else if changed > self.threshold {
            Some(format!("{changed} rows have changed"))
        } else if self.pages > self.known_pages * GROWTH
            && self.pages - self.known_pages > PAGES_MATTER
        {
            Some(format!(
                "it has grown from {} to {} pages",
                self.known_pages, self.pages
            ))
        } else {
            None
        }
    }
}

/// A table and its partitions, as the catalog has them. `pg_partition_tree` would lock each of them.
pub(super) const TREE: &str = "
 WITH RECURSIVE tree AS (
    SELECT $1 AS oid, 0 AS level
    UNION ALL SELECT h.inhrelid, t.level + 1 FROM tree t JOIN pg_catalog.pg_inherits h ON h.inhparent = t.oid)
 SELECT oid, level FROM tree";

fn leaves(root: Oid) -> Result<Vec<Leaf>> {
    spi::rows(
        &format!(
            "SELECT c.oid, pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.relname), c.relowner,
                    EXISTS (SELECT FROM pg_catalog.pg_partitioned_table d WHERE d.partdefid = c.oid),
                    COALESCE(s.n_mod_since_analyze, 0)::pg_catalog.float8,
                    pg_catalog.current_setting('autovacuum_analyze_threshold')::pg_catalog.float8
                      + pg_catalog.current_setting('autovacuum_analyze_scale_factor')::pg_catalog.float8
                        * GREATEST(c.reltuples, 0),
                    c.relpages::pg_catalog.float8,
                    c.reltuples = 0 OR EXISTS (SELECT FROM pg_catalog.pg_statistic p WHERE p.starelid = c.oid AND NOT p.stainherit),
                    GREATEST(s.last_analyze, s.last_autoanalyze)
               FROM ({TREE}) l
               JOIN pg_catalog.pg_class c ON c.oid = l.oid AND c.relkind IN ('r', 'm')
               JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
               LEFT JOIN pg_catalog.pg_stat_all_tables s ON s.relid = c.oid
              ORDER BY 2"
        ),
        &[root.into()],
        |row| {
            let oid = row.get(1)?.unwrap_or(Oid::INVALID);
            let known_pages = row.get(7)?.unwrap_or(0.0);
            Ok(Leaf {
                // One that somebody holds is as large as the planner knows, but not empty.
                pages: catalog::pages_without_waiting(oid)
                    .map_or(f64::max(known_pages, 1.0), f64::from),
                target: Target {
                    oid,
                    name: row.get(2)?.unwrap_or_default(),
                    owner: row.get(3)?.unwrap_or(Oid::INVALID),
                    reason: String::new(),
                },
                is_default: row.get(4)?.unwrap_or(false),
                changed: row.get(5)?.unwrap_or(0.0),
                threshold: row.get(6)?.unwrap_or(0.0),
                known_pages,
                analyzed: row.get(8)?.unwrap_or(false),
                last: row.get::<TimestampWithTimeZone>(9)?.map(i64::from),
            })
        },
    )
}

fn parents(root: Oid) -> Result<Vec<Parent>> {
    spi::rows(
        &format!(
            "SELECT c.oid, pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.relname), c.relowner,
                    EXISTS (SELECT FROM pg_catalog.pg_statistic p WHERE p.starelid = c.oid AND p.stainherit),
                    GREATEST(s.last_analyze, s.last_autoanalyze)
               FROM ({TREE}) t
               JOIN pg_catalog.pg_class c ON c.oid = t.oid AND c.relkind = 'p'
               JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
               LEFT JOIN pg_catalog.pg_stat_all_tables s ON s.relid = c.oid
              ORDER BY t.level DESC, 2"
        ),
        &[root.into()],
        |row| {
            Ok(Parent {
                target: Target {
                    oid: row.get(1)?.unwrap_or(Oid::INVALID),
                    name: row.get(2)?.unwrap_or_default(),
                    owner: row.get(3)?.unwrap_or(Oid::INVALID),
                    reason: String::new(),
                },
                analyzed: row.get(4)?.unwrap_or(false),
                last: row.get::<TimestampWithTimeZone>(5)?.map(i64::from),
            })
        },
    )
}

/// Partitions by their names, those that are there.
pub fn named(names: &[String]) -> Result<Vec<Target>> {
    let found = spi::rows(
        "SELECT c.oid, a.name, c.relowner FROM pg_catalog.unnest($1::pg_catalog.text[]) a(name)
           JOIN pg_catalog.pg_class c ON c.oid = pg_catalog.to_regclass(a.name)",
        &[names.to_vec().into()],
        |row| {
            Ok(Target {
                oid: row.get(1)?.unwrap_or(Oid::INVALID),
                name: row.get(2)?.unwrap_or_default(),
                owner: row.get(3)?.unwrap_or(Oid::INVALID),
                reason: NEW.to_owned(),
            })
        },
    )?;
    let mut by_name: HashMap<String, Target> = found
        .into_iter()
        .map(|target| (target.name.clone(), target))
        .collect();
    Ok(names
        .iter()
        .filter_map(|name| by_name.remove(name))
        .collect())
}

/// Why a partition that was just made is analyzed.
pub const NEW: &str = "it is new and has rows";

/// Analyzes a table with rows of its own; retried while others hold it.
pub fn leaf(place: Place, target: &Target) -> Result<()> {
    place.step(&target.name, |_scope| {
        identity::as_role(target.owner, || {
            spi::execute(&format!("ANALYZE {}", target.name), &[]).map(|_| ())
        })
    })
}

/// Analyzes a partitioned table, without each of its partitions.
pub fn parent(place: Place, target: &Target) -> Result<()> {
    place.step(&target.name, |_scope| {
        identity::as_role(target.owner, || analyze::partitioned_table(target.oid))
    })
}
