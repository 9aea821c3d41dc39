//! Events that their table refused: kept beside it, so that nothing is lost and the others go on.

use crate::error::{Error, Failure, Result};
use crate::partition::managed;
use crate::pg::json::{self, Object};
use crate::pg::spi::{self, quote_qualified_identifier};
use crate::pg::{catalog, clock, compat, identity, xact};
use audit_db_core::naming::partition_name;
use audit_db_core::record::{COLUMNS, Fields, Header, METADATA, TIME_COLUMN};
use pgrx::pg_sys::Oid;
use std::ffi::CString;

const SUFFIX: &str = "rejected";
/// Characters of an event that go to the server's log where no table takes it.
const LOGGED: usize = 100_000;
/// Where events go whose table is gone, or whose owner may make no table beside it.
const LAST_RESORT: &str = "audit_db.rejected_events";

/// The name of the table beside an audit table, quoted.
pub fn name_beside(table: Oid) -> String {
    let (schema, name) = names(table).unwrap_or_default();
    quote_qualified_identifier(schema, name)
}

fn names(table: Oid) -> Option<(String, String)> {
    Some((
        catalog::schema_of(table)?,
        partition_name(&catalog::relation_name(table)?, SUFFIX),
    ))
}

/// Keeps an event, in the open transaction.
pub fn keep(header: &Header, fields: &Fields, failure: &Failure) -> Result<()> {
    let table = Oid::from(header.table);
    let beside = xact::in_subtransaction(|| {
        let Some(place) = place_beside(table)? else {
            return Ok(false);
        };
        let owner = catalog::relation_owner(table).unwrap_or(Oid::INVALID);
        let event = describe(header, fields);
        identity::as_role(owner, || insert(&place, table, header, &event, failure))?;
        Ok(true)
    });
    match beside {
        Ok(true) => return Ok(()),
        Err(error) if error.is_transient() => return Err(error),
        Ok(false) | Err(_) => {}
    }
    let last = xact::in_subtransaction(|| {
        let event = describe(header, fields);
        managed::as_extension_owner(|| insert(LAST_RESORT, table, header, &event, failure))
    });
    match last {
        Err(error) if error.is_transient() => Err(error),
        Err(_) => {
            // The extension is gone too, or no table can hold it. What fits into the server's log is all that can be kept.
            let event = xact::in_subtransaction(|| Ok(describe(header, fields)));
            let text = event.map_or_else(
                |_| format!("An event of {} values.", fields.iter().flatten().count()),
                |event| event.to_string_lossy().into_owned(),
            );
            Error::Server(Failure {
                detail: Some(text.chars().take(LOGGED).collect()),
                ..failure.clone()
            })
            .warn();
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

fn insert(
    place: &str,
    table: Oid,
    header: &Header,
    event: &CString,
    failure: &Failure,
) -> Result<()> {
    spi::execute(
        &format!(
            "INSERT INTO {place} (audit_table, role, event, sqlstate, message, detail)
             VALUES ($1, $2, $3::pg_catalog.jsonb, $4, $5, $6)"
        ),
        &[
            catalog::qualified_name(table)
                .unwrap_or_else(|| header.table.to_string())
                .into(),
            identity::role_name(header.role.into()).into(),
            json::argument(event),
            failure.sqlstate.as_str().into(),
            failure.message.as_str().into(),
            failure.detail.as_deref().into(),
        ],
    )?;
    Ok(())
}

/// The table beside an audit table, made now if it is not there. `None`: there is none, and there can be none.
fn place_beside(table: Oid) -> Result<Option<String>> {
    let Some((schema, name)) = names(table) else {
        return Ok(None);
    };
    let (Some(owner), Some(schema_oid)) =
        (catalog::relation_owner(table), catalog::schema_oid(&schema))
    else {
        return Ok(None);
    };
    let place = quote_qualified_identifier(&schema, &name);
    if let Some(there) = catalog::relation_in_schema(schema_oid, &name) {
        // Somebody else's table might do anything with the event.
        let ours = catalog::is_plain_table(there) && catalog::relation_owner(there) == Some(owner);
        return Ok(ours.then_some(place));
    }
    if !compat::may_create_in_schema(schema_oid, owner) {
        return Ok(None);
    }
    identity::as_role(owner, || {
        for statement in [
            format!(
                "CREATE TABLE {place} (
                     id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
                     rejected_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
                     audit_table text NOT NULL, role text NOT NULL, event jsonb NOT NULL,
                     sqlstate text NOT NULL, message text NOT NULL, detail text)"
            ),
            format!(
                "COMMENT ON TABLE {place} IS 'Events that could not be stored, with the reason'"
            ),
        ] {
            spi::execute(&statement, &[])?;
        }
        crate::partition::create::revoke_from_others(
            catalog::relation_in_schema(schema_oid, &name).unwrap_or(Oid::INVALID),
            &place,
        )
    })?;
    Ok(Some(place))
}

/// An event as JSON, as `log_events` takes it.
fn describe(header: &Header, fields: &Fields) -> CString {
    let mut object = Object::new();
    object.put(TIME_COLUMN, clock::text(header.event_time).as_bytes());
    for (place, name) in COLUMNS.iter().enumerate() {
        match fields[place] {
            None => {}
            Some(bytes) if place == METADATA => object.put_json(name, &json::text(bytes)),
            Some(bytes) => object.put(name, bytes),
        }
    }
    object.finish()
}
