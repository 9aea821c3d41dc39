//! The table that events go to, and the statement that puts them there. Kept by each process until something of the table
//! changes.

use crate::error::{Error, EventError, Result};
use crate::partition::months;
use crate::pg::catalog::Column;
use crate::pg::guc::Scope;
use crate::pg::insert::{Plan, TIME};
use crate::pg::spi::{self, quote_identifier, quote_qualified_identifier};
use crate::pg::{catalog, clock, identity, inval};
use crate::settings;
use audit_db_core::record::{COLUMNS, METADATA, TIME_COLUMN};
use pgrx::pg_sys::{self, Oid};
use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::ffi::CString;
use std::ops::Range;
use std::rc::Rc;

/// A table that can take events.
pub struct Target {
    pub table: Oid,
    pub name: String,
    /// Which of the standard columns it lacks: their values go into `metadata`.
    pub lacks: [bool; COLUMNS.len()],
    time: Column,
    columns: [Option<Column>; COLUMNS.len()],
    /// Where it is managed and has no default partition, the ranges of its partitions: an event outside them is refused.
    pub months: Option<Vec<Range<i64>>>,
    plan: OnceCell<Plan>,
}

thread_local! {
    static KNOWN: RefCell<HashMap<u32, Rc<Target>>> = RefCell::default();
    /// Plans that are no longer right, and the transaction that found out: one may still be running in it, further up.
    static OLD: RefCell<Vec<(i64, Plan)>> = const { RefCell::new(Vec::new()) };
    /// What the setting was, and the table that it meant.
    static NAMED: RefCell<Option<(CString, Oid)>> = const { RefCell::new(None) };
}

/// The table that this session logs to.
pub fn current() -> Result<Rc<Target>> {
    forget_changed();
    let setting = settings::audit_table();
    let known = NAMED.with_borrow(|named| match named {
        Some((name, table)) if *name == setting => Some(*table),
        _ => None,
    });
    let table = match known {
        Some(table) => table,
        None => {
            let table = find(&setting)?;
            NAMED.set(Some((setting, table)));
            table
        }
    };
    of_table(table)
}

/// A table by its number.
pub fn of_table(table: Oid) -> Result<Rc<Target>> {
    forget_changed();
    let number = table.to_u32();
    if let Some(target) = KNOWN.with_borrow(|known| known.get(&number).cloned()) {
        return Ok(target);
    }
    inval::watch_relations();
    let target = Rc::new(load(table)?);
    KNOWN.with_borrow_mut(|known| known.insert(number, Rc::clone(&target)));
    Ok(target)
}

/// Whether a table is known to need no months made for its events. Costs no look at the catalog.
pub fn is_known_without_months(table: Oid) -> bool {
    forget_changed();
    KNOWN.with_borrow(|known| {
        known
            .get(&table.to_u32())
            .is_some_and(|target| target.months.is_none())
    })
}

/// Forgets what was said of tables that have changed since.
fn forget_changed() {
    let changed = inval::take_changed();
    if changed.is_none() {
        return;
    }
    let now = clock::transaction_start();
    OLD.with_borrow_mut(|old| {
        old.retain(|(found, plan)| {
            let keep = *found == now;
            if !keep {
                plan.free();
            }
            keep
        });
    });
    KNOWN.with_borrow_mut(|known| {
        known.retain(|table, target| {
            let keep = !changed.contains(Oid::from(*table));
            if !keep && let Some(plan) = target.plan.get() {
                OLD.with_borrow_mut(|old| old.push((now, *plan)));
            }
            keep
        });
    });
    NAMED.with_borrow_mut(|named| {
        if named
            .as_ref()
            .is_some_and(|(_, table)| changed.contains(*table))
        {
            *named = None;
        }
    });
}

fn find(setting: &CString) -> Result<Oid> {
    let found = if setting.is_empty() {
        let managed = catalog::schema_oid("audit_db")
            .and_then(|schema| catalog::relation_in_schema(schema, "managed_tables"));
        managed
            .and_then(|managed| {
                catalog::oldest_marked(managed, c"parent", c"audit_table", c"managed_since")
            })
            .into_iter()
            .map(Some)
            .collect()
    } else {
        let _scope = Scope::reading();
        // Without a schema it would be looked for along the session's search_path, which is not its superuser's to choose.
        let name = setting.to_string_lossy();
        spi::rows(
            "SELECT pg_catalog.to_regclass($1)::pg_catalog.oid",
            &[name.as_ref().into()],
            |row| row.get::<Oid>(1),
        )?
    };
    found.into_iter().flatten().next().ok_or_else(|| {
        EventError::NoAuditTable {
            name: setting.to_string_lossy().into_owned(),
        }
        .into()
    })
}

/// Cheap: a session that logs one event and ends pays for it. Looks into the server's caches only, and locks nothing.
fn load(table: Oid) -> Result<Target> {
    let name = catalog::qualified_name(table).ok_or(Error::NoSuchRelation(table.to_u32()))?;
    let unfit = |reason: &'static str| {
        Error::from(EventError::UnfitTable {
            table: name.clone(),
            reason,
        })
    };
    let partitioning = catalog::partitioning(table);
    let time = catalog::column(table, TIME_COLUMN)
        .or_else(|| partitioning.and_then(|(key, _)| catalog::column_at(table, key)))
        .ok_or_else(|| unfit("It has no column \"timestamp\" and is not partitioned by a time."))?;
    if !matches!(
        time.type_oid,
        pg_sys::TIMESTAMPTZOID | pg_sys::TIMESTAMPOID | pg_sys::DATEOID
    ) {
        return Err(unfit(
            "The column of the time is not of type timestamptz, timestamp or date.",
        ));
    }
    let columns = COLUMNS
        .map(|name| catalog::column(table, name).filter(|column| column.number != time.number));
    if columns[0].is_none() {
        return Err(unfit("It has no column \"action\"."));
    }
    let months = match partitioning {
        Some((_, pg_sys::InvalidOid)) => {
            let _scope = Scope::reading();
            months::ranges(table)?
        }
        _ => None,
    };
    Ok(Target {
        table,
        name,
        lacks: columns.each_ref().map(Option::is_none),
        time,
        columns,
        months,
        plan: OnceCell::new(),
    })
}

/// The zone whose local time a table without zones holds.
fn zone(table: Oid) -> Result<String> {
    Ok(spi::rows(
        "SELECT time_zone FROM audit_db.managed_tables WHERE parent = $1::pg_catalog.regclass",
        &[table.into()],
        |row| row.get::<String>(1),
    )?
    .pop()
    .flatten()
    .unwrap_or_else(|| "UTC".to_owned()))
}

impl Target {
    /// The statement that stores events. Made when it is needed: planning locks the table, which who only queues an event need not
    /// wait for.
    pub fn plan(&self) -> Result<Plan> {
        if let Some(plan) = self.plan.get() {
            return Ok(*plan);
        }
        let _scope = Scope::reading();
        let plan = Plan::new(&self.statement()?)?;
        Ok(*self.plan.get_or_init(|| plan))
    }

    fn statement(&self) -> Result<String> {
        let time = match self.time.type_oid {
            pg_sys::TIMESTAMPTZOID => format!("e.{TIME}"),
            other => {
                let zone = spi::quote_literal(zone(self.table)?);
                let cast = if other == pg_sys::DATEOID {
                    "::pg_catalog.date"
                } else {
                    ""
                };
                format!("pg_catalog.timezone({zone}, e.{TIME}){cast}")
            }
        };
        let (mut targets, mut sources) = (vec![quote_identifier(&self.time.name)], vec![time]);
        for (place, column) in self.columns.iter().enumerate() {
            let Some(column) = column else { continue };
            targets.push(quote_identifier(&column.name));
            let source = format!("e.{}", quote_identifier(COLUMNS[place]));
            let fits = if place == METADATA {
                column.type_oid == pg_sys::JSONBOID
            } else {
                catalog::is_text(column.type_oid)
            };
            // Text goes into text of any length by assignment, which refuses what is too long; a cast would cut it.
            sources.push(if fits {
                source
            } else {
                format!("CAST({source} AS {})", catalog::type_name(column.type_oid))
            });
        }
        let schema = catalog::schema_of(self.table).unwrap_or_default();
        let relation = catalog::relation_name(self.table).unwrap_or_default();
        Ok(format!(
            "INSERT INTO {} ({}) SELECT {} FROM audit_db_events e",
            quote_qualified_identifier(schema, relation),
            targets.join(", "),
            sources.join(", ")
        ))
    }

    /// The first of these times that lies in no partition.
    pub fn first_outside(&self, times: &[i64]) -> Option<i64> {
        let months = self.months.as_ref()?;
        times.iter().copied().find(|time| {
            !months
                .iter()
                .any(|month| month.contains(time) || *time == i64::MAX && month.end == i64::MAX)
        })
    }

    /// Whether a role may insert what events bring.
    pub fn may_insert(&self, role: Oid) -> bool {
        let numbers = self.columns.iter().flatten().map(|column| column.number);
        identity::may_insert(self.table, numbers.chain([self.time.number]), role)
    }
}
