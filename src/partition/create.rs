//! Makes partitions: built beside the table, then attached, so that only ATTACH's short locks meet others.

use crate::error::{Error, Result};
use crate::partition::indexes;
use crate::partition::inspect::{Calendar, Partition, Table};
use crate::partition::managed::Managed;
use crate::partition::waiting::{self, MOVED_LIMIT};
use crate::pg::guc::Scope;
use crate::pg::lock::{self, Deadline, Mode};
use crate::pg::spi::{self, quote_identifier, quote_qualified_identifier};
use crate::pg::{catalog, clock, compat, identity, xact};
use crate::settings;
use audit_db_core::naming::{MAX_NAME_BYTES, partition_name};
use audit_db_core::partition_plan::NewPartition;
use pgrx::pg_sys::Oid;
use std::time::Duration;

/// Events are not dated further ahead than this, unless a clock is wrong.
const AHEAD_MICROS: i64 = 86_400_000_000;

/// When the indexes of a new table are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Indexes {
    Now,
    /// Once the rows are in.
    Later,
}

/// Locks a table against other makers (not against readers or writers) and reads it anew.
pub fn lock_and_load(scope: &Scope, table: Oid) -> Result<Table> {
    Deadline::start(scope, settings::lock_timeout()).lock(table, Mode::ShareUpdateExclusive);
    Table::load(table)
}

/// What all new partitions of a table have in common.
pub struct Maker<'a> {
    table: &'a Table,
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
    /// CHECK constraints that rows of the table may violate: quoted name and definition.
    unvalidated: Vec<(String, String)>,
    /// Columns that can be copied from one partition to another.
    columns: String,
}

impl<'a> Maker<'a> {
    pub fn new(table: &'a Table, managed: &Managed, calendar: Calendar) -> Result<Self> {
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
        let unvalidated = indexes::unvalidated_checks(table.oid)?;
        let columns = columns(table.oid)?.join(", ");
        Ok(Self {
            table,
            calendar,
            schema,
            clauses,
            identity,
            default_privileges,
            referenced,
            unvalidated,
            columns,
        })
    }

    /// Makes partitions and brings over the rows that wait for them in the default. The table must be locked.
    pub fn make(&self, scope: &Scope, wanted: &[NewPartition]) -> Result<Vec<Oid>> {
        let wanted = wanted
            .iter()
            .map(|new| {
                Ok((
                    new,
                    self.calendar.literal(new.lower)?,
                    self.calendar.literal(new.upper)?,
                ))
            })
            .collect::<Result<Vec<_>>>()?;
        identity::as_role(self.table.owner, || {
            let mut rows_move = false;
            if self.default_has_pages() {
                self.check_default()?;
                for (_, lower, upper) in &wanted {
                    rows_move |= self.waiting_rows(lower, upper)? > 0;
                }
            }
            let mut partitions = Vec::with_capacity(wanted.len());
            for (new, ..) in &wanted {
                pgrx::check_for_interrupts!();
                partitions.push(self.build(&new.name, Indexes::Now)?);
            }
            let alone = rows_move || wanted.iter().any(|(new, ..)| self.is_current(new));
            self.lock_others(
                scope,
                if alone {
                    Some(Mode::AccessExclusive)
                } else if wanted.iter().any(|(new, ..)| self.may_be_written(new)) {
                    Some(Mode::ShareRowExclusive)
                } else {
                    None
                },
                settings::lock_timeout(),
            );
            for ((new, lower, upper), partition) in wanted.iter().zip(&partitions) {
                let name = quote_qualified_identifier(&self.table.schema, &new.name);
                // Looked at again under the lock: a row that came meanwhile belongs into the new partition too.
                if self.default_has_pages() && self.waiting_rows(lower, upper)? > 0 {
                    if !alone {
                        return Err(Error::LockNotAvailable {
                            table: self.table.qualified(),
                            waited_ms: 0,
                        });
                    }
                    self.move_rows(&name, lower, upper)?;
                }
                self.attach(*partition, &name, &self.range_clause(new)?)?;
            }
            Ok(partitions)
        })
    }

    /// FOR VALUES … of a partition.
    pub fn range_clause(&self, new: &NewPartition) -> Result<String> {
        Ok(format!(
            "FOR VALUES FROM ({}) TO ({})",
            spi::quote_literal(self.calendar.literal(new.lower)?),
            spi::quote_literal(self.calendar.literal(new.upper)?),
        ))
    }

    /// Makes a table a partition. What ATTACH locks must be locked.
    pub fn attach(&self, partition: Oid, qualified: &str, clause: &str) -> Result<()> {
        for (name, definition) in &self.unvalidated {
            spi::execute(
                &format!("ALTER TABLE {qualified} ADD CONSTRAINT {name} {definition}"),
                &[],
            )?;
        }
        spi::execute(
            &format!(
                "ALTER TABLE {} ATTACH PARTITION {qualified} {clause}",
                self.table.qualified()
            ),
            &[],
        )?;
        self.copy_replica_identity(partition, qualified)
    }

    /// Makes the default partition. The table must be locked.
    pub fn make_default(&self, scope: &Scope) -> Result<Oid> {
        let name = partition_name(&self.table.name, "default");
        identity::as_role(self.table.owner, || {
            let partition = self.build(&name, Indexes::Now)?;
            let name = quote_qualified_identifier(&self.table.schema, &name);
            self.lock_others(scope, None, settings::lock_timeout());
            self.attach(partition, &name, "DEFAULT")?;
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
    pub fn build(&self, name: &str, indexes: Indexes) -> Result<Oid> {
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
        let excluding = match indexes {
            Indexes::Now => "",
            Indexes::Later => " EXCLUDING INDEXES",
        };
        spi::execute(
            &format!(
                "CREATE TABLE {qualified} (LIKE {} INCLUDING ALL EXCLUDING IDENTITY{excluding}){}",
                self.table.qualified(),
                self.clauses
            ),
            &[],
        )?;
        for (constraint, _) in &self.unvalidated {
            spi::execute(
                &format!("ALTER TABLE {qualified} DROP CONSTRAINT {constraint}"),
                &[],
            )?;
        }
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

    /// Locks what ATTACH locks beside the table, with one deadline for all, so that nobody waits longer than that.
    ///
    /// Somebody else in between would meet trouble. A query that has already read the list of partitions and then waits for the
    /// default would find rows that move neither there nor in the partition that it does not know: hence ACCESS EXCLUSIVE on the
    /// table where rows move, and for the current period, whose events may arrive just now. An INSERT that waits for the default
    /// would be refused by the default's new constraint: hence SHARE ROW EXCLUSIVE for periods that events may be dated in.
    pub fn lock_others(&self, scope: &Scope, on_table: Option<Mode>, timeout: Duration) {
        let deadline = Deadline::start(scope, timeout);
        if let Some(mode) = on_table {
            deadline.lock(self.table.oid, mode);
        }
        for referenced in &self.referenced {
            deadline.lock(*referenced, Mode::ShareRowExclusive);
        }
        if let Some(default) = &self.table.default {
            deadline.lock(default.oid, Mode::AccessExclusive);
        }
        deadline.arm();
    }

    fn default_has_pages(&self) -> bool {
        self.table
            .default
            .as_ref()
            .is_some_and(|default| !catalog::has_no_pages(default.oid))
    }

    /// An error when the default partition is too large for ATTACH's scan of it, or does not belong to the table's owner.
    fn check_default(&self) -> Result<()> {
        let Some(default) = &self.table.default else {
            return Ok(());
        };
        require_same_owner(self.table, default)?;
        if waiting::is_large(default.oid)? {
            return Err(waiting::too_many(self.table));
        }
        Ok(())
    }

    /// Whether events of this moment belong into the partition, and go to a default partition until it is there.
    fn is_current(&self, new: &NewPartition) -> bool {
        self.table.default.is_some()
            && self
                .calendar
                .position_at(clock::wall())
                .is_some_and(|now| (new.lower..new.upper).contains(&now))
    }

    /// Whether an event may be written into the range while the partition is made, and then goes to the default partition.
    fn may_be_written(&self, new: &NewPartition) -> bool {
        self.table.default.is_some()
            && self
                .calendar
                .position_at(clock::wall().saturating_add(AHEAD_MICROS))
                .is_none_or(|latest| new.lower < latest)
    }

    fn in_range(&self, lower: &str, upper: &str) -> String {
        let column = quote_identifier(&self.table.column);
        format!(
            "{column} >= {} AND {column} < {}",
            spi::quote_literal(lower),
            spi::quote_literal(upper)
        )
    }

    /// Rows of a range in the default partition; an error where there are too many to move.
    fn waiting_rows(&self, lower: &str, upper: &str) -> Result<i64> {
        let Some(default) = &self.table.default else {
            return Ok(0);
        };
        let rows = spi::rows(
            &format!(
                "SELECT pg_catalog.count(*) FROM (SELECT FROM {} WHERE {} LIMIT {}) waiting",
                self.table.qualified_partition(default),
                self.in_range(lower, upper),
                MOVED_LIMIT + 1
            ),
            &[],
            |row| row.get::<i64>(1),
        )?
        .pop()
        .flatten()
        .unwrap_or(0);
        if rows > MOVED_LIMIT {
            return Err(waiting::too_many(self.table));
        }
        Ok(rows)
    }

    /// Brings the rows of a range from the default into the new table. Table and default are locked.
    fn move_rows(&self, target: &str, lower: &str, upper: &str) -> Result<()> {
        let Some(default) = &self.table.default else {
            return Ok(());
        };
        let source = self.table.qualified_partition(default);
        let range = self.in_range(lower, upper);
        if let Some(reason) = waiting::why_not_movable(default.oid)? {
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

/// Partitions that one transaction may make: their locks take up a quarter of the lock table at most.
pub fn room_in_lock_table(table: &Table) -> usize {
    let (capacity, ..) = lock::table_capacity();
    // Each with its TOAST table and that table's index.
    let each = 3 + i64::from(table.index_count);
    usize::try_from(capacity / 4 / each).unwrap_or(0).max(1)
}

/// Columns whose values can be copied from one table to another with the same columns: quoted, without generated ones.
pub fn columns(table: Oid) -> Result<Vec<String>> {
    Ok(spi::rows(
        "SELECT pg_catalog.quote_ident(attname) FROM pg_catalog.pg_attribute
          WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attnum",
        &[table.into()],
        |row| row.get::<String>(1),
    )?
    .into_iter()
    .flatten()
    .collect())
}

/// Whether objects that are no part of it (views, functions, policies, foreign keys or columns of other tables) depend on a
/// partition.
pub fn is_needed(partition: Oid) -> Result<bool> {
    Ok(!spi::rows(
        "WITH part AS (SELECT relid FROM pg_catalog.pg_partition_tree($1))
         SELECT 1 FROM pg_catalog.pg_class c
           JOIN pg_catalog.pg_type t ON t.oid = c.reltype
           JOIN pg_catalog.pg_depend d ON d.deptype = 'n'
            AND (d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refobjid = c.oid
                 OR d.refclassid = 'pg_catalog.pg_type'::pg_catalog.regclass AND d.refobjid IN (t.oid, t.typarray))
          WHERE c.oid IN (TABLE part)
            AND (d.classid IN ('pg_catalog.pg_proc'::pg_catalog.regclass, 'pg_catalog.pg_class'::pg_catalog.regclass,
                               'pg_catalog.pg_type'::pg_catalog.regclass)
                 OR d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass
                    AND NOT EXISTS (SELECT FROM pg_catalog.pg_rewrite r WHERE r.oid = d.objid AND r.ev_class IN (TABLE part))
                 OR d.classid = 'pg_catalog.pg_policy'::pg_catalog.regclass
                    AND NOT EXISTS (SELECT FROM pg_catalog.pg_policy p WHERE p.oid = d.objid AND p.polrelid IN (TABLE part)))
         UNION ALL
         SELECT 1 FROM pg_catalog.pg_constraint
          WHERE contype = 'f' AND confrelid IN (TABLE part) AND conrelid NOT IN (TABLE part) AND conparentid = 0
          LIMIT 1",
        &[partition.into()],
        |row| row.get::<i32>(1),
    )?
    .is_empty())
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
