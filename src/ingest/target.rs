//! The table that events go to, and the statement that puts them there. Kept by each process until something of the table
//! changes.

use crate::error::{Error, EventError, Result};
use crate::partition::months;
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
    /// Numbers of the columns that events are written to.
    pub attributes: Vec<i16>,
    /// Which of the standard columns it lacks: their values go into `metadata`.
    pub lacks: [bool; COLUMNS.len()],
    /// Where it is managed and has no default partition, the ranges of its partitions: an event outside them is refused.
    pub months: Option<Vec<Range<i64>>>,
    /// Some of its triggers or constraints can be deferred.
    pub deferrable: bool,
    statement: String,
    /// Made when it is needed: planning locks the table, which who only queues an event need not wait for.
    plan: OnceCell<Plan>,
}

struct Column {
    name: String,
    number: i16,
    type_name: String,
    type_oid: Oid,
    is_text: bool,
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
    let target = {
        let _scope = Scope::reading();
        Rc::new(load(table)?)
    };
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
    let _scope = Scope::reading();
    let found = if setting.is_empty() {
        spi::rows(
            "SELECT m.parent::pg_catalog.oid FROM audit_db.managed_tables m
               JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) m.parent
              WHERE m.audit_table ORDER BY m.managed_since LIMIT 1",
            &[],
            |row| row.get::<Oid>(1),
        )?
    } else {
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

fn load(table: Oid) -> Result<Target> {
    let name = catalog::qualified_name(table).ok_or(Error::NoSuchRelation(table.to_u32()))?;
    let columns = columns(table)?;
    let unfit = |reason: &'static str| {
        Error::from(EventError::UnfitTable {
            table: name.clone(),
            reason,
        })
    };
    let (key, default, deferrable) = facts(table)?;
    let time = columns
        .iter()
        .find(|column| column.name == TIME_COLUMN)
        .or_else(|| columns.iter().find(|column| Some(column.number) == key))
        .ok_or_else(|| unfit("It has no column \"timestamp\" and is not partitioned by a time."))?;
    let mut targets = vec![quote_identifier(&time.name)];
    let mut sources = vec![time_expression(table, time)?.ok_or_else(|| {
        unfit("The column of the time is not of type timestamptz, timestamp or date.")
    })?];
    let mut attributes = vec![time.number];
    let mut lacks = [true; COLUMNS.len()];
    for (place, wanted) in COLUMNS.iter().enumerate() {
        let Some(column) = columns
            .iter()
            .find(|column| column.name == *wanted && column.number != time.number)
        else {
            continue;
        };
        lacks[place] = false;
        targets.push(quote_identifier(&column.name));
        attributes.push(column.number);
        let source = format!("e.{}", quote_identifier(wanted));
        let fits = if place == METADATA {
            column.type_oid == pg_sys::JSONBOID
        } else {
            column.is_text
        };
        // Text goes into text of any length by assignment, which refuses what is too long; a cast would cut it.
        sources.push(if fits {
            source
        } else {
            format!("CAST({source} AS {})", column.type_name)
        });
    }
    if lacks[0] {
        return Err(unfit("It has no column \"action\"."));
    }
    let schema = catalog::schema_of(table).unwrap_or_default();
    let relation = catalog::relation_name(table).unwrap_or_default();
    let statement = format!(
        "INSERT INTO {} ({}) SELECT {} FROM audit_db_events e",
        quote_qualified_identifier(schema, relation),
        targets.join(", "),
        sources.join(", ")
    );
    Ok(Target {
        table,
        name,
        attributes,
        lacks,
        months: if key.is_some() && default == pg_sys::InvalidOid {
            months::ranges(table)?
        } else {
            None
        },
        deferrable,
        statement,
        plan: OnceCell::new(),
    })
}

fn columns(table: Oid) -> Result<Vec<Column>> {
    Ok(spi::rows(
        "SELECT a.attname::pg_catalog.text, a.attnum, pg_catalog.format('%I.%I', n.nspname, t.typname), t.oid,
                b.typcategory = 'S'
           FROM pg_catalog.pg_attribute a
           JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
           JOIN pg_catalog.pg_type b ON b.oid = CASE t.typtype WHEN 'd' THEN t.typbasetype ELSE t.oid END
           JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
          WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
          ORDER BY a.attnum",
        &[table.into()],
        |row| {
            Ok((
                row.get::<String>(1)?,
                row.get::<i16>(2)?,
                row.get::<String>(3)?,
                row.get::<Oid>(4)?,
                row.get::<bool>(5)?,
            ))
        },
    )?
    .into_iter()
    .filter_map(|(name, number, type_name, type_oid, is_text)| {
        Some(Column {
            name: name?,
            number: number?,
            type_name: type_name?,
            type_oid: type_oid?,
            is_text: is_text.unwrap_or(false),
        })
    })
    .collect())
}

/// The column that the table is partitioned by, its default partition, and whether something in it can be deferred.
fn facts(table: Oid) -> Result<(Option<i16>, Oid, bool)> {
    Ok(spi::rows(
        "SELECT CASE WHEN p.partnatts = 1 THEN p.partattrs[0] END, p.partdefid,
                EXISTS (WITH RECURSIVE tree(oid) AS (
                            SELECT c.oid UNION ALL SELECT i.inhrelid FROM pg_catalog.pg_inherits i JOIN tree ON i.inhparent = tree.oid)
                        SELECT FROM pg_catalog.pg_trigger t JOIN tree ON t.tgrelid = tree.oid WHERE t.tgdeferrable)
           FROM pg_catalog.pg_class c
           LEFT JOIN pg_catalog.pg_partitioned_table p ON p.partrelid = c.oid
          WHERE c.oid = $1",
        &[table.into()],
        |row| {
            Ok((
                row.get::<i16>(1)?,
                row.get::<Oid>(2)?.unwrap_or(pg_sys::InvalidOid),
                row.get::<bool>(3)?.unwrap_or(false),
            ))
        },
    )?
    .pop()
    .unwrap_or((None, pg_sys::InvalidOid, false)))
}

/// The time of an event as the column holds it: one without a zone holds local time of the table's zone.
fn time_expression(table: Oid, column: &Column) -> Result<Option<String>> {
    let local = || -> Result<String> {
        let zone = spi::rows(
            "SELECT time_zone FROM audit_db.managed_tables WHERE parent = $1::pg_catalog.regclass",
            &[table.into()],
            |row| row.get::<String>(1),
        )?
        .pop()
        .flatten()
        .unwrap_or_else(|| "UTC".to_owned());
        Ok(format!(
            "pg_catalog.timezone({}, e.{TIME})",
            spi::quote_literal(zone)
        ))
    };
    Ok(match column.type_oid {
        pg_sys::TIMESTAMPTZOID => Some(format!("e.{TIME}")),
        pg_sys::TIMESTAMPOID => Some(local()?),
        pg_sys::DATEOID => Some(format!("{}::pg_catalog.date", local()?)),
        _ => None,
    })
}

impl Target {
    pub fn plan(&self) -> Result<Plan> {
        if let Some(plan) = self.plan.get() {
            return Ok(*plan);
        }
        let _scope = Scope::reading();
        let plan = Plan::new(&self.statement)?;
        Ok(*self.plan.get_or_init(|| plan))
    }

    /// The first of these times that lies in no partition.
    pub fn first_outside(&self, times: &[i64]) -> Option<i64> {
        let months = self.months.as_ref()?;
        times
            .iter()
            .copied()
            .find(|time| !months.iter().any(|month| month.contains(time)))
    }

    /// Whether a role may insert what events bring.
    pub fn may_insert(&self, role: Oid) -> bool {
        identity::may_insert(self.table, &self.attributes, role)
    }
}
