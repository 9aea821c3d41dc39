//! The settings of managed tables, in `audit_db.managed_tables`. The table belongs to the extension; only these functions
//! write it, after the caller's right to the table was checked.

use crate::error::{Error, Result};
use crate::pg::{catalog, identity, inval, spi};
use audit_db_core::calendar::PartitionInterval;
use audit_db_core::retention::RetentionAction;
use audit_db_core::span::Span;
use pgrx::datum::Interval;
use pgrx::pg_sys::{Oid, TransactionId};

/// How one table is looked after.
#[derive(Clone, Debug)]
pub struct Managed {
    pub interval: PartitionInterval,
    pub premake: u32,
    pub retention: Option<Span>,
    pub action: RetentionAction,
    pub time_zone: String,
    /// Whether the table is to have a default partition.
    pub default_partition: bool,
    /// What new partitions get; without it, what their newest sibling has.
    pub storage_parameters: Option<Vec<String>>,
    /// Indexes that the table had when it was last seen complete.
    pub index_count: i32,
    /// The server, database and table that the row was written for.
    pub home: Option<String>,
    /// The transaction that wrote the row.
    pub written_by: TransactionId,
}

fn relation() -> Result<Oid> {
    catalog::schema_oid("audit_db")
        .and_then(|schema| catalog::relation_in_schema(schema, "managed_tables"))
        .ok_or_else(|| Error::Internal("table audit_db.managed_tables is missing".into()))
}

/// Runs `body` with the rights of the role that owns the extension's tables.
pub fn as_extension_owner<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    identity::as_role(extension_owner()?, body)
}

/// The role that owns the extension's tables.
pub fn extension_owner() -> Result<Oid> {
    spi::rows_of_kept(
        "SELECT relowner FROM pg_catalog.pg_class WHERE oid = $1",
        &[relation()?],
        |row| row.get::<Oid>(1),
    )?
    .pop()
    .flatten()
    .ok_or_else(|| Error::Internal("audit_db.managed_tables has no owner".into()))
}

const SETTINGS: &str = "SELECT partition_interval, premake, retention, retention_action,
       time_zone, storage_parameters, xmin, default_partition, index_count, home FROM audit_db.managed_tables
 WHERE parent = $1::pg_catalog.regclass";

pub fn find(table: Oid) -> Result<Option<Managed>> {
    let found = spi::rows_of_kept(SETTINGS, &[table], |row| {
        Ok((
            row.get::<String>(1)?,
            row.get::<i32>(2)?,
            row.get::<Interval>(3)?,
            row.get::<String>(4)?,
            row.get::<String>(5)?,
            row.get::<Vec<String>>(6)?,
            row.get::<TransactionId>(7)?,
            row.get::<bool>(8)?,
            row.get::<i32>(9)?,
            row.get::<String>(10)?,
        ))
    })?
    .pop();
    let Some((
        interval,
        premake,
        retention,
        action,
        zone,
        storage,
        xmin,
        default,
        index_count,
        home,
    )) = found
    else {
        return Ok(None);
    };
    let unreadable =
        || Error::Internal("audit_db.managed_tables holds a row it cannot read".into());
    Ok(Some(Managed {
        interval: interval
            .and_then(|text| text.parse().ok())
            .ok_or_else(unreadable)?,
        premake: premake
            .and_then(|count| u32::try_from(count).ok())
            .ok_or_else(unreadable)?,
        retention: retention.map(span),
        action: action
            .and_then(|text| RetentionAction::parse(&text))
            .ok_or_else(unreadable)?,
        time_zone: zone.ok_or_else(unreadable)?,
        default_partition: default.unwrap_or(true),
        storage_parameters: storage,
        index_count: index_count.unwrap_or(0),
        home,
        written_by: xmin.unwrap_or(TransactionId::INVALID),
    }))
}

/// The settings of a table, or an error that says how to get some.
pub fn get(table: Oid) -> Result<Managed> {
    find(table)?.ok_or_else(|| {
        Error::NotManaged(
            catalog::qualified_name(table).unwrap_or_else(|| table.to_u32().to_string()),
        )
    })
}

/// All managed tables that exist, in the order in which they were taken over.
pub fn oids() -> Result<Vec<Oid>> {
    Ok(all()?
        .into_iter()
        .filter_map(|(oid, exists)| exists.then_some(oid))
        .collect())
}

/// The same for the worker, which forgets tables that were dropped.
pub fn oids_without_dropped() -> Result<Vec<Oid>> {
    let (there, dropped): (Vec<_>, Vec<_>) = all()?.into_iter().partition(|(_, exists)| *exists);
    for (table, _) in dropped {
        forget(table)?;
    }
    Ok(there.into_iter().map(|(oid, _)| oid).collect())
}

fn all() -> Result<Vec<(Oid, bool)>> {
    Ok(spi::rows_of_kept(
        "SELECT m.parent::pg_catalog.oid, c.oid IS NOT NULL
           FROM audit_db.managed_tables m
           LEFT JOIN pg_catalog.pg_class c ON c.oid = m.parent AND c.relkind = 'p'
          ORDER BY m.managed_since, m.parent",
        &[],
        |row| Ok((row.get::<Oid>(1)?, row.get::<bool>(2)?.unwrap_or(false))),
    )?
    .into_iter()
    .filter_map(|(oid, exists)| Some((oid?, exists)))
    .collect())
}

/// Where a row of the settings belongs: what is restored from a dump comes to another server, database or table.
pub fn home_of(table: Oid) -> String {
    format!(
        "{}/{}/{}",
        identity::system_identifier(),
        identity::my_database().to_u32(),
        table.to_u32()
    )
}

/// Remembers that a table is complete here, with so many indexes.
pub fn note_complete(table: Oid, index_count: i32) -> Result<()> {
    let home = home_of(table);
    as_extension_owner(|| {
        spi::execute(
            "UPDATE audit_db.managed_tables SET index_count = $2, home = $3
              WHERE parent = $1::pg_catalog.regclass",
            &[table.into(), index_count.into(), home.as_str().into()],
        )?;
        Ok(())
    })
}

/// What `manage_table` was told, checked.
pub struct Wanted {
    pub interval: PartitionInterval,
    pub premake: i32,
    pub retention: Option<Interval>,
    pub action: String,
    pub time_zone: String,
    pub default_partition: bool,
    pub storage_parameters: Option<Vec<String>>,
    /// It is one of our own making, which events may go to.
    pub audit_table: bool,
}

/// Writes the settings of a table.
pub fn save(table: Oid, index_count: i32, wanted: &Wanted) -> Result<()> {
    let home = home_of(table);
    as_extension_owner(|| {
        spi::execute(
            "INSERT INTO audit_db.managed_tables AS m (parent, partition_interval, premake, retention, retention_action,
                    time_zone, default_partition, storage_parameters, index_count, home, audit_table)
             VALUES ($1::pg_catalog.regclass, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
             ON CONFLICT (parent) DO UPDATE SET (partition_interval, premake, retention, retention_action, time_zone,
                    default_partition, storage_parameters, index_count, home)
                  = ROW (excluded.partition_interval, excluded.premake, excluded.retention, excluded.retention_action,
                         excluded.time_zone, excluded.default_partition, excluded.storage_parameters,
                         excluded.index_count, excluded.home)",
            &[
                table.into(),
                wanted.interval.name().into(),
                wanted.premake.into(),
                wanted.retention.into(),
                wanted.action.as_str().into(),
                wanted.time_zone.as_str().into(),
                wanted.default_partition.into(),
                wanted.storage_parameters.clone().into(),
                index_count.into(),
                home.as_str().into(),
                wanted.audit_table.into(),
            ],
        )?;
        Ok(())
    })?;
    // Who logs events keeps the time zone in mind.
    inval::announce(table);
    Ok(())
}

/// Removes the settings of a table; whether there were any.
pub fn forget(table: Oid) -> Result<bool> {
    as_extension_owner(|| {
        Ok(spi::execute(
            "DELETE FROM audit_db.managed_tables WHERE parent = $1::pg_catalog.regclass",
            &[table.into()],
        )? > 0)
    })
}

pub fn span(interval: Interval) -> Span {
    Span {
        months: interval.months(),
        days: interval.days(),
        micros: interval.micros(),
    }
}
