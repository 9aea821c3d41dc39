//! `create_audit_log`: the standard table, managed from the start.

use super::manage;
use crate::error::{Error, Result, or_raise};
use crate::partition::managed::Wanted;
use crate::pg::catalog;
use crate::pg::spi::{self, quote_identifier, quote_literal, quote_qualified_identifier};
use audit_db_core::naming::{MAX_NAME_BYTES, partition_name};
use pgrx::datum::Interval;
use pgrx::pg_sys::Oid;
use pgrx::prelude::*;

#[pg_extern(sql = "")]
fn create_audit_log(
    name: Option<&str>,
    partition_interval: Option<&str>,
    premake: Option<i32>,
    retention: Option<Interval>,
    time_zone: Option<&str>,
) -> Oid {
    // Of the caller's search_path only this is wanted: where a name without a schema goes.
    let schema = or_raise(current_schema());
    super::changing("create_audit_log", || {
        let name = super::required(name, "name")?;
        let wanted = Wanted {
            interval: manage::interval(partition_interval)?,
            premake: manage::premake(premake)?,
            retention: manage::retention(retention)?,
            action: "drop".to_owned(),
            time_zone: manage::zone(time_zone)?,
            default_partition: true,
            storage_parameters: None,
            audit_table: true,
        };
        let table = create(name, schema)?;
        manage::take_over(table, &wanted)?;
        Ok(table)
    })
}

/// Makes the table, empty and without partitions.
fn create(name: &str, current_schema: Option<String>) -> Result<Oid> {
    let parts = spi::rows("SELECT pg_catalog.parse_ident($1)", &[name.into()], |row| {
        row.get::<Vec<String>>(1)
    })?
    .pop()
    .flatten()
    .unwrap_or_default();
    let (schema, table) = match parts.as_slice() {
        [table] => (
            current_schema.ok_or(Error::NoSchemaSelected)?,
            table.clone(),
        ),
        [schema, table] => (schema.clone(), table.clone()),
        _ => {
            return Err(Error::invalid_with_hint(
                format!("\"{name}\" is not the name of a table"),
                "Write table or schema.table.",
            ));
        }
    };
    if table.is_empty() || table.len() > MAX_NAME_BYTES {
        return Err(Error::NameTooLong(table));
    }
    let qualified = quote_qualified_identifier(&schema, &table);
    let schema_oid = catalog::schema_oid(&schema)
        .ok_or_else(|| Error::NoSuchSchema(quote_identifier(&schema)))?;
    if catalog::relation_in_schema(schema_oid, &table).is_some() {
        return Err(Error::TableExists(qualified));
    }
    let sequence = quote_qualified_identifier(&schema, &partition_name(&table, "id_seq"));
    let index = |suffix| quote_identifier(partition_name(&table, suffix));
    for statement in [
        format!("CREATE SEQUENCE {sequence} AS bigint"),
        format!(
            "CREATE TABLE {qualified} (
                 id bigint NOT NULL DEFAULT pg_catalog.nextval({sequence_literal}::pg_catalog.regclass),
                 \"timestamp\" timestamptz NOT NULL,
                 action text NOT NULL,
                 status text NOT NULL,
                 principal_id text,
                 principal_type text,
                 organization_id text,
                 resource_type text,
                 resource_id text,
                 outcome_description text,
                 correlation_id text,
                 data_classification text,
                 metadata jsonb,
                 CONSTRAINT {primary_key} PRIMARY KEY (\"timestamp\", id)
             ) PARTITION BY RANGE (\"timestamp\")",
            sequence_literal = quote_literal(&sequence),
            primary_key = index("pkey"),
        ),
        format!("ALTER SEQUENCE {sequence} OWNED BY {qualified}.id"),
        // Who may insert may insert: the right to the table decides alone.
        format!("GRANT USAGE ON SEQUENCE {sequence} TO PUBLIC"),
        format!("CREATE INDEX {} ON {qualified} (principal_id, \"timestamp\")", index("principal_idx")),
        format!("CREATE INDEX {} ON {qualified} (resource_id, \"timestamp\")", index("resource_idx")),
        format!("CREATE INDEX {} ON {qualified} (action, \"timestamp\")", index("action_idx")),
        format!("COMMENT ON TABLE {qualified} IS 'Audit log, looked after by audit_db'"),
    ] {
        spi::execute(&statement, &[])?;
    }
    catalog::relation_in_schema(schema_oid, &table).ok_or_else(|| {
        Error::Internal(format!("table {qualified} is gone right after it was made"))
    })
}

fn current_schema() -> Result<Option<String>> {
    Ok(spi::rows(
        "SELECT pg_catalog.current_schema()::pg_catalog.text",
        &[],
        |row| row.get::<String>(1),
    )?
    .pop()
    .flatten())
}
