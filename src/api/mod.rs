//! The functions that SQL calls. They convert, check rights and arguments, and call a room. Their SQL declarations are written
//! by hand in `sql/`.

mod audit_log;
mod expire;
mod manage;
mod partitions;
mod workers;

use crate::error::{Error, Result};
use crate::pg::{catalog, compat, identity};
use pgrx::pg_sys::Oid;

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
