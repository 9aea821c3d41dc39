//! Makes partitions: built beside the table, then attached, so that only ATTACH's short locks meet others.

use crate::error::{Error, Result};
use crate::partition::inspect::{Calendar, Partition, Table};
use crate::partition::managed::Managed;
use crate::pg::guc::Scope;
use crate::pg::lock::{Deadline, Mode};
use crate::pg::spi::{self, quote_identifier, quote_qualified_identifier};
use crate::pg::{catalog, clock, compat, identity, xact};
use crate::settings;
use audit_db_core::naming::{MAX_NAME_BYTES, partition_name};
use audit_db_core::partition_plan::{NewPartition, Zone};
use chrono::{Days, NaiveDateTime, NaiveTime};
use pgrx::datum::{Timestamp, TimestampWithTimeZone};
use pgrx::pg_sys::Oid;

/// Rows in a default partition up to which they are simply moved, and up to which ATTACH's scan of it costs nothing.
pub const WAITING_LIMIT: i64 = 1_000;

/// A default partition up to this size is scanned in some milliseconds.
const DEFAULT_BYTES_LIMIT: i64 = 16 * 1024 * 1024;

/// Locks a table against other makers (not against readers or writers) and reads it anew.
pub fn lock_and_load(scope: &Scope, table: Oid) -> Result<Table> {
    Deadline::start(scope, settings::lock_timeout()).lock(table, Mode::ShareUpdateExclusive);
    Table::load(table)
}

/// What all new partitions of a table have in common.
pub struct Maker<'a> {
    table: &'a Table,
    managed: &'a Managed,
    calendar: Calendar,
    schema: Oid,
    /// Storage parameters and tablespace, as clauses of CREATE TABLE.
    clauses: String,
    /// Columns whose values come from the table's own sequence: identity before PostgreSQL 17.
    identity: Vec<(String, String)>,
    /// Somebody gets grants on every new table in this database.
    default_privileges: bool,
    /// Tables that foreign keys of this table point to.
    referenced: Vec<Oid>,
    /// Columns that can be copied from one partition to another.
    columns: String,
}

impl<'a> Maker<'a> {
    pub fn new(table: &'a Table, managed: &'a Managed, calendar: Calendar) -> Result<Self> {
        if let Some(index) = &table.invalid_index {
            return Err(Error::InvalidIndex {
                table: table.qualified(),
                index: index.clone(),
            });
        }
        let schema =
            catalog::schema_oid(&table.schema).ok_or(Error::NoSuchRelation(table.oid.to_u32()))?;
        if !compat::may_create_in_schema(schema, table.owner) {
            return Err(Error::NoCreateOnSchema {
                owner: quote_identifier(identity::role_name(table.owner)),
                schema: quote_identifier(&table.schema),
            });
        }
        let mut clauses = storage_clause(table, managed)?;
        if let Some(tablespace) = &table.tablespace {
            clauses.push_str(&format!(" TABLESPACE {}", quote_identifier(tablespace)));
        }
        let identity = if compat::PARTITIONS_INHERIT_IDENTITY {
            Vec::new()
        } else {
            identity_columns(table.oid)?
        };
        let default_privileges = !spi::rows(
            "SELECT 1 FROM pg_catalog.pg_default_acl WHERE defaclobjtype = 'r' LIMIT 1",
            &[],
            |row| row.get::<i32>(1),
        )?
        .is_empty();
        let referenced = spi::rows(
            "SELECT DISTINCT confrelid FROM pg_catalog.pg_constraint WHERE conrelid = $1 AND contype = 'f' ORDER BY 1",
            &[table.oid.into()],
            |row| row.get::<Oid>(1),
        )?
        .into_iter()
        .flatten()
        .collect();
        let columns = spi::rows(
            "SELECT pg_catalog.string_agg(pg_catalog.quote_ident(attname), ', ' ORDER BY attnum)
               FROM pg_catalog.pg_attribute
              WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped AND attgenerated = ''",
            &[table.oid.into()],
            |row| row.get::<String>(1),
        )?
        .pop()
        .flatten()
        .unwrap_or_default();
        Ok(Self {
            table,
            managed,
            calendar,
            schema,
            clauses,
            identity,
            default_privileges,
            referenced,
            columns,
        })
    }

    /// Makes one partition and brings over the rows that wait for it in the default. The table must be locked.
    pub fn make(&self, scope: &Scope, new: &NewPartition) -> Result<Oid> {
        let lower = self.calendar.literal(new.lower)?;
        let upper = self.calendar.literal(new.upper)?;
        identity::as_role(self.table.owner, || {
            self.check_waiting_rows()?;
            let alone = self.rows_wait(&lower, &upper)? || self.is_current(new);
            let partition = self.build(&new.name)?;
            let name = quote_qualified_identifier(&self.table.schema, &new.name);
            self.lock_others(scope, alone);
            // Looked at again under the lock: a row that came meanwhile belongs into the new partition too.
            if self.rows_wait(&lower, &upper)? {
                if !alone {
                    return Err(Error::LockNotAvailable {
                        table: self.table.qualified(),
                        waited_ms: 0,
                    });
                }
                self.move_rows(&name, &lower, &upper)?;
            }
            spi::execute(
                &format!(
                    "ALTER TABLE {} ATTACH PARTITION {name} FOR VALUES FROM ({}) TO ({})",
                    self.table.qualified(),
                    spi::quote_literal(&lower),
                    spi::quote_literal(&upper),
                ),
                &[],
            )?;
            self.copy_replica_identity(partition, &name)?;
            Ok(partition)
        })
    }

    /// Makes the default partition. The table must be locked.
    pub fn make_default(&self, scope: &Scope) -> Result<Oid> {
        let name = partition_name(&self.table.name, "default");
        identity::as_role(self.table.owner, || {
            let partition = self.build(&name)?;
            let name = quote_qualified_identifier(&self.table.schema, &name);
            self.lock_others(scope, false);
            spi::execute(
                &format!(
                    "ALTER TABLE {} ATTACH PARTITION {name} DEFAULT",
                    self.table.qualified()
                ),
                &[],
            )?;
            self.copy_replica_identity(partition, &name)?;
            Ok(partition)
        })
    }

    /// Raises what the server thinks of the storage parameters. Leaves nothing behind.
    pub fn check_storage_parameters(&self) -> Result<()> {
        let outcome = xact::in_subtransaction(|| -> Result<()> {
            identity::as_role(self.table.owner, || {
                let name = partition_name(&self.table.name, "storage_parameters");
                spi::execute(
                    &format!(
                        "CREATE TABLE {} (LIKE {}){}",
                        quote_qualified_identifier(self.table.schema.as_str(), name.as_str()),
                        self.table.qualified(),
                        self.clauses
                    ),
                    &[],
                )
            })?;
            Err(Error::RolledBack)
        });
        match outcome {
            Err(Error::RolledBack) | Ok(()) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// A table like the parent, owned by its owner, closed to everybody else.
    fn build(&self, name: &str) -> Result<Oid> {
        if name.is_empty() || name.len() > MAX_NAME_BYTES {
            return Err(Error::NameTooLong(name.to_owned()));
        }
        let qualified = quote_qualified_identifier(self.table.schema.as_str(), name);
        if catalog::relation_in_schema(self.schema, name).is_some() {
            return Err(Error::NameInUse {
                name: qualified,
                hint: "Rename that relation, or give a new partition another name with audit_db.create_partition.",
            });
        }
        spi::execute(
            &format!(
                "CREATE TABLE {qualified} (LIKE {} INCLUDING ALL EXCLUDING IDENTITY){}",
                self.table.qualified(),
                self.clauses
            ),
            &[],
        )?;
        for (column, sequence) in &self.identity {
            spi::execute(
                &format!(
                    "ALTER TABLE {qualified} ALTER COLUMN {} SET DEFAULT pg_catalog.nextval({}::pg_catalog.regclass)",
                    quote_identifier(column),
                    spi::quote_literal(sequence)
                ),
                &[],
            )?;
        }
        let partition = catalog::relation_in_schema(self.schema, name).ok_or_else(|| {
            Error::Internal(format!("table {qualified} is gone right after it was made"))
        })?;
        if self.default_privileges {
            revoke_from_others(partition, &qualified)?;
        }
        // Queries through the table use the table's policies. These flags are for who reads the partition itself: nobody has a
        // grant, and an owner who forced row security on himself is not let in by a side door.
        if self.table.row_security {
            spi::execute(
                &format!("ALTER TABLE {qualified} ENABLE ROW LEVEL SECURITY"),
                &[],
            )?;
        }
        if self.table.force_row_security {
            spi::execute(
                &format!("ALTER TABLE {qualified} FORCE ROW LEVEL SECURITY"),
                &[],
            )?;
        }
        Ok(partition)
    }

    /// Locks what ATTACH locks beside the table, with one deadline for all, so that writers wait no longer than that.
    ///
    /// When rows move, nobody may be in between: a query that has already read the list of partitions and then waits for the
    /// default would find the rows neither there nor in the partition that it does not know, and an INSERT would be refused by
    /// the default's new constraint. Hence the lock on the table, also for the current period, whose events may arrive just now.
    fn lock_others(&self, scope: &Scope, alone: bool) {
        let deadline = Deadline::start(scope, settings::lock_timeout());
        if alone {
            deadline.lock(self.table.oid, Mode::AccessExclusive);
        }
        for referenced in &self.referenced {
            deadline.lock(*referenced, Mode::ShareRowExclusive);
        }
        if let Some(default) = &self.table.default {
            deadline.lock(default.oid, Mode::AccessExclusive);
        }
        deadline.arm();
    }

    /// An error when the default partition is too full for ATTACH's scan of it.
    fn check_waiting_rows(&self) -> Result<()> {
        match waiting_positions(self.table, self.managed, &self.calendar)? {
            Some(_) => Ok(()),
            None => Err(Error::WaitingRows {
                default: self
                    .table
                    .default
                    .as_ref()
                    .map(|default| self.table.qualified_partition(default))
                    .unwrap_or_default(),
                limit: WAITING_LIMIT,
            }),
        }
    }

    /// Whether events of this moment belong into the partition, and go to a default partition until it is there.
    fn is_current(&self, new: &NewPartition) -> bool {
        self.table.default.is_some()
            && self
                .calendar
                .position_at(clock::wall())
                .is_some_and(|now| (new.lower..new.upper).contains(&now))
    }

    fn in_range(&self, lower: &str, upper: &str) -> String {
        let column = quote_identifier(&self.table.column);
        format!(
            "{column} >= {} AND {column} < {}",
            spi::quote_literal(lower),
            spi::quote_literal(upper)
        )
    }

    /// Whether the default partition holds rows of a range.
    fn rows_wait(&self, lower: &str, upper: &str) -> Result<bool> {
        let Some(default) = &self.table.default else {
            return Ok(false);
        };
        if catalog::has_no_pages(default.oid) {
            return Ok(false);
        }
        let found = spi::rows(
            &format!(
                "SELECT 1 FROM {} WHERE {} LIMIT 1",
                self.table.qualified_partition(default),
                self.in_range(lower, upper)
            ),
            &[],
            |row| row.get::<i32>(1),
        )?;
        Ok(!found.is_empty())
    }

    /// Brings the rows of a range from the default into the new table. Table and default are locked.
    fn move_rows(&self, target: &str, lower: &str, upper: &str) -> Result<()> {
        let Some(default) = &self.table.default else {
            return Ok(());
        };
        let source = self.table.qualified_partition(default);
        let range = self.in_range(lower, upper);
        // Others may have filled it until the lock was ours.
        self.check_waiting_rows()?;
        if let Some(reason) = why_not_movable(default.oid)? {
            return Err(Error::CannotMove {
                default: source,
                reason,
            });
        }
        spi::execute(
            &format!(
                "WITH moved AS (DELETE FROM {source} WHERE {range} RETURNING {columns})
                 INSERT INTO {target} ({columns}) OVERRIDING SYSTEM VALUE SELECT {columns} FROM moved",
                columns = self.columns
            ),
            &[],
        )?;
        Ok(())
    }

    fn copy_replica_identity(&self, partition: Oid, qualified: &str) -> Result<()> {
        let clause = match self.table.replica_identity.as_str() {
            "f" => "FULL".to_owned(),
            "n" => "NOTHING".to_owned(),
            "i" => {
                let index = spi::rows(
                    "SELECT pg_catalog.quote_ident(c.relname)
                       FROM pg_catalog.pg_index parent
                       JOIN pg_catalog.pg_inherits h ON h.inhparent = parent.indexrelid
                       JOIN pg_catalog.pg_index child ON child.indexrelid = h.inhrelid AND child.indrelid = $2
                       JOIN pg_catalog.pg_class c ON c.oid = child.indexrelid
                      WHERE parent.indrelid = $1 AND parent.indisreplident",
                    &[self.table.oid.into(), partition.into()],
                    |row| row.get::<String>(1),
                )?
                .pop()
                .flatten();
                match index {
                    Some(index) => format!("USING INDEX {index}"),
                    None => return Ok(()),
                }
            }
            _ => return Ok(()),
        };
        spi::execute(
            &format!("ALTER TABLE {qualified} REPLICA IDENTITY {clause}"),
            &[],
        )?;
        Ok(())
    }
}

/// Takes away every privilege that somebody other than the owner has on a table.
pub fn revoke_from_others(relation: Oid, qualified: &str) -> Result<()> {
    let grantees = spi::rows(
        "SELECT DISTINCT CASE WHEN a.grantee = 0 THEN 'PUBLIC'
                              ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(a.grantee)) END
           FROM pg_catalog.pg_class c,
                LATERAL (SELECT c.relacl AS acl UNION ALL
                         SELECT attacl FROM pg_catalog.pg_attribute WHERE attrelid = c.oid AND NOT attisdropped) g,
                LATERAL pg_catalog.aclexplode(g.acl) a
          WHERE c.oid = $1 AND a.grantee <> c.relowner",
        &[relation.into()],
        |row| row.get::<String>(1),
    )?;
    for grantee in grantees.into_iter().flatten() {
        spi::execute(
            &format!("REVOKE ALL ON TABLE {qualified} FROM {grantee} CASCADE"),
            &[],
        )?;
    }
    Ok(())
}

/// WITH (…) of the table's settings, else of its newest partition that is a plain table.
fn storage_clause(table: &Table, managed: &Managed) -> Result<String> {
    let parameters = match &managed.storage_parameters {
        Some(parameters) => parameters.clone(),
        None => match table.partitions.last() {
            Some(newest) => spi::rows(
                "SELECT c.reloptions || ARRAY(SELECT 'toast.' || o FROM pg_catalog.pg_class t,
                                                     LATERAL pg_catalog.unnest(t.reloptions) o
                                               WHERE t.oid = c.reltoastrelid)
                   FROM pg_catalog.pg_class c WHERE c.oid = $1 AND c.relkind = 'r'",
                &[newest.oid.into()],
                |row| row.get::<Vec<String>>(1),
            )?
            .pop()
            .flatten()
            .unwrap_or_default(),
            None => Vec::new(),
        },
    };
    let mut clauses = Vec::with_capacity(parameters.len());
    for parameter in &parameters {
        clauses.push(storage_parameter(parameter)?);
    }
    if clauses.is_empty() {
        Ok(String::new())
    } else {
        Ok(format!(" WITH ({})", clauses.join(", ")))
    }
}

/// `name=value` as an element of WITH (…). Names are checked, values quoted.
pub fn storage_parameter(text: &str) -> Result<String> {
    let plain = |name: &str| {
        !name.is_empty()
            && name.bytes().all(|byte| {
                byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'.')
            })
    };
    match text.split_once('=') {
        Some((name, value)) if plain(name) => Ok(format!("{name} = {}", spi::quote_literal(value))),
        _ => Err(Error::invalid_with_hint(
            format!("storage parameter \"{text}\" is not valid"),
            "Write each as name=value, for example 'fillfactor=90'.",
        )),
    }
}

fn identity_columns(table: Oid) -> Result<Vec<(String, String)>> {
    let columns = spi::rows(
        "SELECT a.attname::text,
                pg_catalog.pg_get_serial_sequence(pg_catalog.format('%I.%I', n.nspname, c.relname), a.attname)
           FROM pg_catalog.pg_attribute a
           JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
           JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
          WHERE a.attrelid = $1 AND a.attidentity <> '' AND NOT a.attisdropped",
        &[table.into()],
        |row| Ok((row.get::<String>(1)?, row.get::<String>(2)?)),
    )?;
    Ok(columns
        .into_iter()
        .filter_map(|(column, sequence)| Some((column?, sequence?)))
        .collect())
}

/// Why rows must not be deleted from a default partition, if so: somebody would see the deletion.
fn why_not_movable(default: Oid) -> Result<Option<&'static str>> {
    #[cfg(feature = "pg14")]
    const SCHEMA_PUBLISHED: &str = "false";
    #[cfg(not(feature = "pg14"))]
    const SCHEMA_PUBLISHED: &str = "EXISTS (SELECT FROM pg_catalog.pg_publication_namespace pn
                                  JOIN pg_catalog.pg_class c ON c.relnamespace = pn.pnnspid
                                 WHERE c.oid IN (SELECT relid FROM pg_catalog.pg_partition_ancestors($1)))";
    let row = spi::rows(
        &format!(
            "WITH part AS (SELECT relid FROM pg_catalog.pg_partition_tree($1))
             SELECT EXISTS (SELECT FROM pg_catalog.pg_trigger WHERE tgrelid IN (TABLE part) AND NOT tgisinternal),
                    EXISTS (SELECT FROM pg_catalog.pg_constraint WHERE confrelid IN (TABLE part) AND contype = 'f'),
                    EXISTS (SELECT FROM pg_catalog.pg_rewrite WHERE ev_class IN (TABLE part)),
                    EXISTS (SELECT FROM pg_catalog.pg_publication WHERE puballtables)
                    OR EXISTS (SELECT FROM pg_catalog.pg_publication_rel
                                WHERE prrelid IN (SELECT relid FROM pg_catalog.pg_partition_ancestors($1)
                                                  UNION ALL TABLE part))
                    OR {SCHEMA_PUBLISHED}"
        ),
        &[default.into()],
        |row| {
            Ok([
                row.get::<bool>(1)?,
                row.get::<bool>(2)?,
                row.get::<bool>(3)?,
                row.get::<bool>(4)?,
            ])
        },
    )?
    .pop()
    .unwrap_or_default();
    let reasons = [
        "It bears triggers, which would see the rows being deleted.",
        "Foreign keys refer to it.",
        "It bears rules.",
        "It is published for logical replication, which would delete the rows at the subscribers.",
    ];
    Ok(row
        .into_iter()
        .zip(reasons)
        .find_map(|(found, reason)| found.unwrap_or(false).then_some(reason)))
}

/// What is done to a partition is done as the table's owner, who must be its owner too.
pub fn require_same_owner(table: &Table, partition: &Partition) -> Result<()> {
    if compat::owns_relation(partition.oid, table.owner) {
        return Ok(());
    }
    Err(Error::OtherOwner {
        partition: table.qualified_partition(partition),
        owner: quote_identifier(identity::role_name(table.owner)),
    })
}

/// The local times within which the worker makes partitions for waiting rows: nothing that has expired, nothing absurd.
pub fn window(
    managed: &Managed,
    calendar: &Calendar,
) -> Option<(Option<NaiveDateTime>, NaiveDateTime)> {
    let now = calendar.local_at(clock::transaction_start())?;
    let earliest = managed
        .retention
        .and_then(|retention| retention.before(now));
    Some((earliest, settings::max_future().after(now)?))
}

/// Positions of the rows that wait in the default partition for a month that may be made. `None`: more than can be moved, or a
/// default so large that ATTACH's scan of it would be felt. Rows of absurd times stay there for good and do not count.
pub fn waiting_positions(
    table: &Table,
    managed: &Managed,
    calendar: &Calendar,
) -> Result<Option<Vec<i64>>> {
    let Some(default) = &table.default else {
        return Ok(Some(Vec::new()));
    };
    let Some((earliest, latest)) = window(managed, calendar) else {
        return Ok(Some(Vec::new()));
    };
    let name = table.qualified_partition(default);
    let column = quote_identifier(&table.column);
    let day = |local: NaiveDateTime| calendar.position(local.date().and_time(NaiveTime::MIN));
    let literal =
        |position: Option<i64>| position.and_then(|position| calendar.literal(position).ok());
    // From the start of the first period that may be made.
    let lower = literal(earliest.and_then(|local| day(managed.interval.floor(local)?)));
    let upper = literal(latest.checked_add_days(Days::new(1)).and_then(day));
    let (cast, instant) = match table.key {
        catalog::KeyType::Timestamptz => ("timestamptz", true),
        catalog::KeyType::Timestamp | catalog::KeyType::Date => ("timestamp", false),
    };
    let bound = |operator, literal: Option<String>| {
        literal.map_or(String::new(), |text| {
            format!(" AND {column} {operator} {}", spi::quote_literal(text))
        })
    };
    require_same_owner(table, default)?;
    if catalog::has_no_pages(default.oid) {
        return Ok(Some(Vec::new()));
    }
    identity::as_role(table.owner, || {
        let size = spi::rows(
            "SELECT pg_catalog.pg_relation_size($1::pg_catalog.regclass)",
            &[default.oid.into()],
            |row| row.get::<i64>(1),
        )?
        .pop()
        .flatten()
        .unwrap_or(0);
        if size > DEFAULT_BYTES_LIMIT {
            return Ok(None);
        }
        let positions = spi::rows(
            &format!(
                "SELECT {column}::pg_catalog.{cast} FROM {name}
                  WHERE pg_catalog.isfinite({column}){}{} LIMIT {}",
                bound(">=", lower),
                bound("<", upper),
                WAITING_LIMIT + 1
            ),
            &[],
            |row| {
                Ok(if instant {
                    row.get::<TimestampWithTimeZone>(1)?.map(i64::from)
                } else {
                    row.get::<Timestamp>(1)?.map(i64::from)
                })
            },
        )?;
        Ok((positions.len() as i64 <= WAITING_LIMIT)
            .then(|| positions.into_iter().flatten().collect()))
    })
}
