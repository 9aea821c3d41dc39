//! What a query is made of, remembered by each session until something may have changed what its text means.

use super::{Form, Request, key, safe};
use crate::error::{CacheError, Error, Result};
use crate::pg::memory::BackendLocal;
use crate::pg::query::{self, Kept, NotOne, Obstacle};
use crate::pg::{guc, identity, inval, session};
use crate::shmem::cache::Bypass;
use pgrx::pg_sys::Oid;
use std::collections::{BTreeSet, HashMap};
use std::ffi::CString;
use std::rc::Rc;

/// Shapes that a session remembers.
const REMEMBERED: usize = 256;

pub struct Shape {
    /// The text that is run: what a client wrote, or what makes JSON of it.
    pub text: CString,
    pub types: Vec<Oid>,
    pub obstacle: Option<Obstacle>,
    pub clock: Option<String>,
    pub session_user: bool,
    pub settings: BTreeSet<String>,
    pub relations: BTreeSet<u32>,
    pub columns: Vec<(u32, i32)>,
    pub rights: Kept,
}

#[derive(PartialEq, Eq, Hash)]
struct Name {
    text: String,
    params: Option<String>,
    form: u8,
    role: u32,
    path: Vec<u32>,
    settings: Vec<u8>,
}

#[derive(Default)]
struct Memory {
    meanings: u64,
    shapes: HashMap<Name, Rc<Shape>>,
}

// Not dropped when the process ends.
static MEMORY: BackendLocal<Option<Memory>> = BackendLocal::new(None);

fn memory() -> &'static mut Memory {
    MEMORY.get().get_or_insert_default()
}

/// The shape of a query for this session's role and settings. Raises what the server's parser raises.
pub fn shape_of(request: &Request<'_>) -> Result<Rc<Shape>> {
    let mut settings = Vec::new();
    guc::output_settings(&mut |piece| key::add(&mut settings, piece));
    let name = Name {
        text: request.text.to_owned(),
        params: request.params.map(str::to_owned),
        form: request.form as u8,
        role: identity::current_role().to_u32(),
        path: session::search_path(),
        settings,
    };
    let meanings = inval::meanings();
    let remembers = !session::has_temporary_objects();
    if remembers {
        let memory = memory();
        if memory.meanings != meanings || memory.shapes.len() >= REMEMBERED {
            memory.meanings = meanings;
            memory.shapes.clear();
        }
        if let Some(shape) = memory.shapes.get(&name) {
            return Ok(Rc::clone(shape));
        }
    }
    let shape = Rc::new(find_out(request)?);
    // Looking at it may have noticed a change; the shape may then be that of before.
    if remembers && inval::meanings() == meanings {
        memory().shapes.insert(name, Rc::clone(&shape));
    }
    Ok(shape)
}

fn find_out(request: &Request<'_>) -> Result<Shape> {
    let not_one = || Error::from(CacheError::NotOneSelect);
    let text = CString::new(request.text).map_err(|_| not_one())?;
    let (from, to) = query::single_select(&text).map_err(|why| match why {
        NotOne::Several => not_one(),
        NotOne::NoSelect => Error::from(CacheError::NoSelect),
    })?;
    let select = request.text.get(from..to).unwrap_or(request.text);
    let run = match request.form {
        Form::Rows => select.to_owned(),
        // A comment may stand at the end.
        Form::Json => format!(
            "SELECT coalesce(pg_catalog.jsonb_agg(pg_catalog.to_jsonb(q)), '[]'::pg_catalog.jsonb) FROM (\n{select}\n) q"
        ),
    };
    let run = CString::new(run).map_err(|_| not_one())?;
    safe::read_functions()?;
    let (query, types) = query::analyze(&run);
    let mut facts = query.facts(&safe::settings_of);
    if facts.clock.is_none() && names_the_clock(request) {
        facts.clock = Some("a text like 'now'".to_owned());
    }
    Ok(Shape {
        rights: query.keep(),
        text: run,
        types,
        obstacle: facts.obstacle,
        clock: facts.clock,
        session_user: facts.session_user,
        settings: facts.settings,
        relations: facts.relations,
        columns: facts.columns,
    })
}

/// 'now', 'today' and the like become times when the text is read. Nobody knows here which texts are read as times: where one of
/// these words begins a text, the query is taken to look at the clock.
fn names_the_clock(request: &Request<'_>) -> bool {
    let has = |text: &str, quote: char| {
        text.split(quote).skip(1).any(|piece| {
            let piece = piece.trim_start().to_ascii_lowercase();
            ["now", "today", "tomorrow", "yesterday"]
                .iter()
                .any(|word| piece.starts_with(word))
        })
    };
    has(request.text, '\'')
        || has(request.text, '$')
        || request.params.is_some_and(|params| has(params, '"'))
}

impl Obstacle {
    pub const fn bypass(&self) -> Bypass {
        match self {
            Self::Volatile(_) => Bypass::Volatile,
            Self::Opaque(_) => Bypass::Opaque,
            Self::Catalog(_) => Bypass::Catalog,
            Self::Temporary(_) => Bypass::Temporary,
            Self::Foreign(_) => Bypass::Foreign,
            Self::Sequence(_) => Bypass::Sequence,
            Self::RowLocks => Bypass::RowLocks,
            Self::Writes => Bypass::Writes,
            Self::Session(_) => Bypass::Session,
            Self::Sample => Bypass::Sample,
            Self::RecordType => Bypass::RecordType,
        }
    }

    /// For an error's DETAIL.
    pub fn detail(&self) -> String {
        match self {
            Self::Volatile(name) => {
                format!("Function {name} is volatile: it may return something else each time.")
            }
            Self::Opaque(name) => format!(
                "Function {name} is not the server's own: nobody knows on which settings it depends."
            ),
            Self::Catalog(name) => format!("Relation {name} is the server's own."),
            Self::Temporary(name) => format!("Table {name} is temporary."),
            Self::Foreign(name) => {
                format!("Table {name} is foreign: nobody knows when it changes.")
            }
            Self::Sequence(name) => {
                format!("Relation {name} is a sequence, whose changes belong to no transaction.")
            }
            Self::RowLocks => "It locks rows.".to_owned(),
            Self::Writes => "It writes.".to_owned(),
            Self::Session(name) => format!("Function {name} depends on the session."),
            Self::Sample => "It takes a sample of a table.".to_owned(),
            Self::RecordType => "A column is of type record.".to_owned(),
        }
    }

    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Opaque(_) => Some(
                "A superuser can name the function in audit_db.cache_safe_functions, with the settings that it reads."
                    .to_owned(),
            ),
            _ => None,
        }
    }
}
