//! The functions that SQL calls. They convert, check rights and arguments, and call a room. Their SQL declarations are written
//! by hand in `sql/`.

mod audit_log;
mod cache;
mod capture;
mod events;
mod expire;
mod jobs;
mod maintain;
mod manage;
mod partitions;
mod statements;
mod workers;

pub use cache::HANDLERS as CACHED_FUNCTIONS;
pub use capture::capture_change;
pub use events::{log_event, log_events};

use crate::error::{Error, Result, or_raise};
use crate::pg::guc::Scope;
use crate::pg::{catalog, compat, identity, xact};
use pgrx::pg_sys::Oid;

/// Runs a function that changes something: nothing in it finds the caller's objects by a bare name.
fn changing<T>(what: &'static str, body: impl FnOnce() -> Result<T>) -> T {
    let result = {
        // Looking waits like any query; each step has its own lock timeout.
        let _scope = Scope::reading();
        require_writable(what).and_then(|()| body())
    };
    or_raise(result)
}

fn require_writable(what: &'static str) -> Result<()> {
    if xact::is_read_only() {
        return Err(Error::ReadOnly {
            what,
            standby: xact::is_standby(),
        });
    }
    Ok(())
}

/// An argument that must not be null.
fn required<T>(value: Option<T>, name: &'static str) -> Result<T> {
    value.ok_or(Error::MissingArgument(name))
}

/// The caller must own the table, as for ALTER TABLE.
fn require_ownership(table: Oid) -> Result<()> {
    let name = catalog::qualified_name(table).ok_or(Error::NoSuchRelation(table.to_u32()))?;
    if compat::owns_relation(table, identity::current_role()) {
        Ok(())
    } else {
        Err(Error::NotOwner(name))
    }
}
