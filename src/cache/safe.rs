//! Types of results, and functions that a superuser has vouched for: two tables, remembered until they change.

use crate::error::Result;
use crate::pg::memory::BackendLocal;
use crate::pg::{inval, spi};
use crate::settings;
use pgrx::pg_sys::Oid;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

/// How exact a result must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consistency {
    /// What the query would return now.
    Snapshot,
    /// No older than a time.
    Ttl,
}

impl Consistency {
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "snapshot" => Some(Self::Snapshot),
            "ttl" => Some(Self::Ttl),
            _ => None,
        }
    }
}

/// A type of results.
#[derive(Clone, Debug)]
pub struct Kind {
    pub name: String,
    pub ttl: Duration,
    /// The part of the ttl after which one caller at a time computes anew.
    pub refresh_threshold: f64,
    pub weight: f64,
    pub consistency: Consistency,
}

#[derive(Default)]
struct Memory {
    meanings: u64,
    kinds: HashMap<String, Option<Rc<Kind>>>,
    functions: Option<HashMap<u32, Vec<String>>>,
}

// Not dropped when the process ends.
static MEMORY: BackendLocal<Option<Memory>> = BackendLocal::new(None);

/// `body` must not come back here.
fn with_memory<T>(body: impl FnOnce(&mut Memory) -> T) -> T {
    let meanings = inval::meanings();
    let memory = MEMORY.get().get_or_insert_default();
    if memory.meanings != meanings {
        *memory = Memory {
            meanings,
            ..Memory::default()
        };
    }
    body(memory)
}

/// The type of calls that name none.
fn usual() -> Kind {
    Kind {
        name: String::new(),
        ttl: settings::cache_default_ttl(),
        refresh_threshold: 0.9,
        weight: 1.0,
        consistency: Consistency::Ttl,
    }
}

/// A type by its name. `None`: there is none of that name.
pub fn kind(name: Option<&str>) -> Result<Option<Rc<Kind>>> {
    let Some(name) = name else {
        return Ok(Some(Rc::new(usual())));
    };
    if let Some(known) = with_memory(|memory| memory.kinds.get(name).cloned()) {
        return Ok(known);
    }
    let rows = spi::rows(
        "SELECT pg_catalog.date_part('epoch', ttl), refresh_threshold, priority, consistency
           FROM audit_db.cache_types WHERE name OPERATOR(pg_catalog.=) $1",
        &[name.into()],
        |row| {
            Ok((
                row.get::<f64>(1)?,
                row.get::<f64>(2)?,
                row.get::<String>(3)?,
                row.get::<String>(4)?,
            ))
        },
    )?;
    let found = rows
        .into_iter()
        .next()
        .map(|(ttl, threshold, priority, consistency)| {
            Rc::new(Kind {
                name: name.to_owned(),
                ttl: Duration::try_from_secs_f64(ttl.unwrap_or(0.0)).unwrap_or_default(),
                refresh_threshold: threshold.unwrap_or(1.0),
                weight: match priority.as_deref() {
                    Some("high") => 10.0,
                    Some("low") => 0.1,
                    _ => 1.0,
                },
                consistency: consistency
                    .as_deref()
                    .and_then(Consistency::named)
                    .unwrap_or(Consistency::Ttl),
            })
        });
    with_memory(|memory| memory.kinds.insert(name.to_owned(), found.clone()));
    Ok(found)
}

/// Reads which functions a superuser has vouched for, where that is not known; before [`settings_of`].
pub fn read_functions() -> Result<()> {
    if with_memory(|memory| memory.functions.is_none()) {
        let read = spi::rows(
            "SELECT function::pg_catalog.oid, settings FROM audit_db.cache_safe_functions",
            &[],
            |row| Ok((row.get::<Oid>(1)?, row.get::<Vec<String>>(2)?)),
        )?;
        let functions = read
            .into_iter()
            .filter_map(|(function, settings)| {
                let settings = settings.unwrap_or_default();
                Some((
                    function?.to_u32(),
                    settings.iter().map(|name| name.to_lowercase()).collect(),
                ))
            })
            .collect();
        with_memory(|memory| memory.functions = Some(functions));
    }
    Ok(())
}

/// The settings that a function depends on, where a superuser has said that it depends on nothing else.
pub fn settings_of(function: Oid) -> Option<Vec<String>> {
    with_memory(|memory| {
        memory
            .functions
            .as_ref()
            .and_then(|functions| functions.get(&function.to_u32()).cloned())
    })
}
