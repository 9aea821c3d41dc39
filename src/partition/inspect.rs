//! What the catalog knows of a table: its key, its partitions, and what new partitions must equal.

use crate::error::{Error, Result};
use crate::pg::catalog::{self, KeyType};
use crate::pg::clock::{LocalTime, NamedZone};
use crate::pg::spi;
use audit_db_core::calendar::from_postgres_micros;
use audit_db_core::partition_plan::{Bound, Range, Zone};
use chrono::{Datelike, NaiveDateTime};
use pgrx::pg_sys::Oid;

/// One partition; `range` is `None` for the default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    pub oid: Oid,
    pub name: String,
    pub range: Option<Range>,
}

/// A table partitioned by range on one column that audit_db understands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    pub oid: Oid,
    pub schema: String,
    pub name: String,
    pub owner: Oid,
    pub key: KeyType,
    /// Name of the key column.
    pub column: String,
    pub tablespace: Option<String>,
    pub row_security: bool,
    pub force_row_security: bool,
    /// As in `pg_class.relreplident`.
    pub replica_identity: String,
    /// An index of the table that is not valid, as while a restore is going on.
    pub invalid_index: Option<String>,
    /// How many indexes it has, valid or not.
    pub index_count: i32,
    /// All partitions but the default, in the order of their ranges.
    pub partitions: Vec<Partition>,
    pub default: Option<Partition>,
}

/// What `pg_class` and its neighbours say of any relation.
struct Raw {
    kind: String,
    persistence: String,
    schema: String,
    name: String,
    owner: Oid,
    strategy: Option<String>,
    key_columns: Option<i16>,
    column: Option<String>,
    key_type: Option<Oid>,
    key_type_name: Option<String>,
    tablespace: Option<String>,
    row_security: bool,
    force_row_security: bool,
    replica_identity: String,
    invalid_index: Option<String>,
    index_count: i32,
}

const FACTS: &str = "
SELECT c.relkind::text, c.relpersistence::text, n.nspname::text, c.relname::text, c.relowner,
       p.partstrat::text, p.partnatts, a.attname::text, a.atttypid,
       pg_catalog.format_type(a.atttypid, a.atttypmod),
       (SELECT t.spcname::text FROM pg_catalog.pg_tablespace t WHERE t.oid = c.reltablespace),
       c.relrowsecurity, c.relforcerowsecurity, c.relreplident::text,
       (SELECT pg_catalog.quote_ident(ic.relname)
          FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class ic ON ic.oid = i.indexrelid
         WHERE i.indrelid = c.oid AND NOT i.indisvalid LIMIT 1),
       (SELECT pg_catalog.count(*)::pg_catalog.int4 FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid)
  FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN pg_catalog.pg_partitioned_table p ON p.partrelid = c.oid
  LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = p.partattrs[0] AND a.attnum > 0
 WHERE c.oid = $1";

fn raw(oid: Oid) -> Result<Raw> {
    spi::rows_of_kept(FACTS, &[oid], |row| {
        Ok(Raw {
            kind: row.get(1)?.unwrap_or_default(),
            persistence: row.get(2)?.unwrap_or_default(),
            schema: row.get(3)?.unwrap_or_default(),
            name: row.get(4)?.unwrap_or_default(),
            owner: row.get(5)?.unwrap_or(Oid::INVALID),
            strategy: row.get(6)?,
            key_columns: row.get(7)?,
            column: row.get(8)?,
            key_type: row.get(9)?,
            key_type_name: row.get(10)?,
            tablespace: row.get(11)?,
            row_security: row.get(12)?.unwrap_or(false),
            force_row_security: row.get(13)?.unwrap_or(false),
            replica_identity: row.get(14)?.unwrap_or_default(),
            invalid_index: row.get(15)?,
            index_count: row.get(16)?.unwrap_or(0),
        })
    })?
    .pop()
    .ok_or(Error::NoSuchRelation(oid.to_u32()))
}

impl Table {
    /// Reads everything, or says why audit_db cannot look after the table.
    pub fn load(oid: Oid) -> Result<Self> {
        let raw = raw(oid)?;
        let table = spi::quote_qualified_identifier(&raw.schema, &raw.name);
        if raw.kind != "p" {
            return Err(Error::NotPartitioned(raw.name));
        }
        if raw.persistence == "t" {
            return Err(Error::Temporary(raw.name));
        }
        let not_range = |detail| Error::NotRangePartitioned {
            table: raw.name.clone(),
            detail,
        };
        if raw.strategy.as_deref() != Some("r") {
            return Err(not_range("It is partitioned by list or hash."));
        }
        if raw.key_columns != Some(1) {
            return Err(not_range("It has more than one key column."));
        }
        let (Some(column), Some(key_type)) = (raw.column, raw.key_type) else {
            return Err(not_range("Its key is an expression."));
        };
        let Some(key) = KeyType::from_oid(key_type) else {
            return Err(Error::UnsupportedKey {
                table,
                column,
                type_name: raw.key_type_name.unwrap_or_default(),
            });
        };
        let children = catalog::children(oid, key).ok_or(Error::NoSuchRelation(oid.to_u32()))?;
        let (mut partitions, mut default) = (Vec::with_capacity(children.len()), None);
        for child in children {
            let Some(name) = catalog::relation_name(child.oid) else {
                continue;
            };
            let partition = Partition {
                oid: child.oid,
                name,
                range: child.range,
            };
            match child.range {
                Some(_) => partitions.push(partition),
                None => default = Some(partition),
            }
        }
        Ok(Self {
            oid,
            schema: raw.schema,
            name: raw.name,
            owner: raw.owner,
            key,
            column,
            tablespace: raw.tablespace,
            row_security: raw.row_security,
            force_row_security: raw.force_row_security,
            replica_identity: raw.replica_identity,
            invalid_index: raw.invalid_index,
            index_count: raw.index_count,
            partitions,
            default,
        })
    }

    /// `schema.name`, quoted where needed.
    pub fn qualified(&self) -> String {
        spi::quote_qualified_identifier(&self.schema, &self.name)
    }

    /// `schema.partition`: a partition's own schema may differ from the table's.
    pub fn qualified_partition(&self, partition: &Partition) -> String {
        catalog::qualified_name(partition.oid)
            .unwrap_or_else(|| spi::quote_qualified_identifier(&self.schema, &partition.name))
    }

    pub fn ranges(&self) -> Vec<Range> {
        self.partitions
            .iter()
            .filter_map(|partition| partition.range)
            .collect()
    }

    /// Names that are taken among the partitions.
    pub fn names(&self) -> Vec<String> {
        self.partitions
            .iter()
            .chain(&self.default)
            .map(|partition| partition.name.clone())
            .collect()
    }
}

/// The table's calendar: local time in its zone, and positions in the order of its key.
#[derive(Clone, Copy)]
pub struct Calendar {
    zone: NamedZone,
    key: KeyType,
}

impl Calendar {
    pub fn new(key: KeyType, zone: &str) -> Result<Self> {
        Ok(Self {
            zone: NamedZone::named(zone)?,
            key,
        })
    }

    pub const fn key(&self) -> KeyType {
        self.key
    }

    /// Local time in the zone at an instant.
    pub fn local_at(&self, instant: i64) -> Option<NaiveDateTime> {
        self.zone.local(instant)
    }

    /// The instant of a position.
    pub fn instant(&self, position: i64) -> Option<i64> {
        match self.key {
            _ if position == i64::MAX || position == i64::MIN => Some(position),
            KeyType::Timestamptz => Some(position),
            _ => self.zone.position(LocalTime.local(position)?),
        }
    }

    /// The position that stands for an instant, such as now.
    pub fn position_at(&self, instant: i64) -> Option<i64> {
        match self.key {
            KeyType::Timestamptz => Some(instant),
            _ => LocalTime.position(self.zone.local(instant)?),
        }
    }

    /// How a position is written as a bound of this key, whatever the session's settings.
    pub fn literal(&self, position: i64) -> Result<String> {
        let out_of_range = || Error::OutOfRange(format!("{position} microseconds"));
        let time = from_postgres_micros(position).ok_or_else(out_of_range)?;
        if !(1..=9999).contains(&time.year()) {
            return Err(Error::OutOfRange(time.to_string()));
        }
        match self.key {
            KeyType::Timestamptz => Ok(time.format("%Y-%m-%d %H:%M:%S%.6f+00").to_string()),
            KeyType::Timestamp => Ok(time.format("%Y-%m-%d %H:%M:%S%.6f").to_string()),
            KeyType::Date if position.rem_euclid(86_400_000_000) != 0 => {
                Err(Error::invalid_with_hint(
                    format!("partition bound {time} is not a whole day"),
                    "The table is partitioned by a date column: give days without a time.",
                ))
            }
            KeyType::Date => Ok(time.format("%Y-%m-%d").to_string()),
        }
    }

    /// A range in words, for messages: local time of the table's zone.
    pub fn describe(&self, range: Range) -> String {
        let end = |bound| match bound {
            Bound::MinValue => "MINVALUE".to_owned(),
            Bound::MaxValue => "MAXVALUE".to_owned(),
            Bound::At(i64::MIN) => "-infinity".to_owned(),
            Bound::At(i64::MAX) => "infinity".to_owned(),
            Bound::At(position) => self
                .local(position)
                .map_or_else(|| position.to_string(), |local| local.to_string()),
        };
        format!("{} to {}", end(range.lower), end(range.upper))
    }
}

impl Zone for Calendar {
    fn position(&self, local: NaiveDateTime) -> Option<i64> {
        match self.key {
            KeyType::Timestamptz => self.zone.position(local),
            _ => LocalTime.position(local),
        }
    }

    fn local(&self, position: i64) -> Option<NaiveDateTime> {
        match self.key {
            KeyType::Timestamptz => self.zone.local(position),
            _ => LocalTime.local(position),
        }
    }
}
