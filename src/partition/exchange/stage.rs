//! Before the swap: the tables, the trigger, the copy, and what makes the copies complete.

use super::{Copy, Exchange, as_owner, as_owner_patiently, shape};
use crate::error::{Error, Result};
use crate::partition::create::{
    self, Indexes, Maker, columns, is_needed, require_same_owner, revoke_from_others,
    storage_parameter,
};
use crate::partition::inspect::{Calendar, Partition, Table};
use crate::partition::unfinished::Step;
use crate::partition::waiting;
use crate::partition::{indexes, maintain, managed, retire, steps, unfinished};
use crate::pg::lock::{Deadline, Mode};
use crate::pg::spi::{self, quote_identifier, quote_literal, quote_qualified_identifier};
use crate::pg::xact::{self, Kind};
use crate::pg::{catalog, extension, identity, signal};
use crate::settings;
use crate::shmem::exchanges;
use audit_db_core::naming::partition_name;
use audit_db_core::partition_plan::{Bound, Range};
use pgrx::pg_sys::Oid;

/// The CHECK that spares ATTACH its scan; it goes with the swap.
pub(super) const RANGE_CHECK: &str = "audit_db_range";
const TRIGGER: &str = "audit_db_capture";
const TRUNCATE_TRIGGER: &str = "audit_db_capture_truncate";
/// Default partitions of more pages than this get a CHECK that spares the scan.
const TINY_BYTES: i64 = 262_144;

/// Makes the tables. `None`: there is no month to make for waiting rows.
pub(super) fn prepare(parent: Oid) -> Result<Option<Exchange>> {
    let name = xact::in_transaction(|| Ok(catalog::qualified_name(parent)))?
        .ok_or(Error::NoSuchRelation(parent.to_u32()))?;
    // What comes after this look waits for the next exchange.
    let Some(waiting) = maintain::waiting_for_exchange(parent)? else {
        return Ok(None);
    };
    steps::in_transactions_with_retries(&name, |scope| {
        let table = create::lock_and_load(scope, parent)?;
        let managed = managed::get(parent)?;
        let Some(default) = table.default.clone() else {
            return Ok(None);
        };
        let calendar = Calendar::new(table.key, &managed.time_zone)?;
        // What an earlier one has left could not be cleared away yet.
        if table.invalid_index.is_some()
            || unfinished::of_table(parent)?
                .iter()
                .any(|entry| entry.step != Step::Detach)
        {
            return Ok(None);
        }
        // All of them, as far as the swap can hold their locks: what is left over has to be copied once more.
        let limit = create::room_in_lock_table(&table);
        let planned = maintain::missing(&table, &managed, &calendar, &waiting, limit)?;
        if planned.is_empty() {
            return Ok(None);
        }
        require_same_owner(&table, &default)?;
        if let Some(reason) = why_not(&table, &default)? {
            return Err(Error::CannotMove {
                default: table.qualified_partition(&default),
                reason,
            });
        }
        let maker = Maker::new(&table, &managed, calendar)?;
        let mut exchange = Exchange {
            parent,
            name: table.qualified(),
            schema: table.schema.clone(),
            owner: table.owner,
            default: default.oid,
            default_name: default.name.clone(),
            calendar,
            column: quote_identifier(&table.column),
            key_is_indexed: key_is_indexed(parent)?,
            columns: columns(default.oid)?,
            shape: shape(parent)?,
            ranges: table.ranges(),
            copies: Vec::with_capacity(planned.len() + 1),
            staging: Oid::INVALID,
            staging_name: String::new(),
            log: Oid::INVALID,
            log_name: String::new(),
        };
        let mut planned = planned;
        planned.sort_unstable_by_key(|month| month.lower);
        identity::as_role(table.owner, || {
            staging(&mut exchange, &table)?;
            let staging_name = exchange.staging_name.clone();
            for month in planned {
                let copy = month_copy(&exchange, &maker, month)?;
                spi::execute(
                    &format!(
                        "ALTER TABLE {staging_name} ATTACH PARTITION {} {}",
                        copy.qualified,
                        maker.range_clause(copy.month.as_ref().ok_or_else(no_month)?)?
                    ),
                    &[],
                )?;
                exchange.copies.push(copy);
            }
            let rest = default_copy(&maker, &table, &default)?;
            spi::execute(
                &format!(
                    "ALTER TABLE {staging_name} ATTACH PARTITION {} DEFAULT",
                    rest.qualified
                ),
                &[],
            )?;
            exchange.copies.push(rest);
            Ok::<(), Error>(())
        })?;
        change_log(&mut exchange, &table, &default)?;
        let tables = exchange.tables();
        // Members of the extension: pg_dump leaves them out, and DROP EXTENSION takes them along.
        for table in &tables {
            extension::add_table(*table);
        }
        unfinished::begin_exchange(parent, default.oid, tables)?;
        Ok(Some(exchange))
    })
}

fn no_month() -> Error {
    Error::Internal("a month's table without its month".into())
}

fn key_is_indexed(table: Oid) -> Result<bool> {
    let found = spi::rows(
        "SELECT 1 FROM pg_catalog.pg_index i
           JOIN pg_catalog.pg_partitioned_table p ON p.partrelid = i.indrelid AND p.partattrs[0] = i.indkey[0]
           JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
           JOIN pg_catalog.pg_am a ON a.oid = c.relam AND a.amname = 'btree'
          WHERE i.indrelid = $1 AND i.indpred IS NULL AND i.indisvalid LIMIT 1",
        &[table.into()],
        |row| row.get::<i32>(1),
    )?;
    Ok(!found.is_empty())
}

/// A partitioned table that routes the copied rows.
fn staging(exchange: &mut Exchange, table: &Table) -> Result<()> {
    let name = partition_name(&table.name, "staging");
    let qualified = quote_qualified_identifier(&table.schema, &name);
    spi::execute(
        &format!(
            "CREATE TABLE {qualified} (LIKE {} INCLUDING GENERATED) PARTITION BY RANGE ({})",
            exchange.name, exchange.column
        ),
        &[],
    )?;
    exchange.staging = made(&table.schema, &name)?;
    revoke_from_others(exchange.staging, &qualified)?;
    exchange.staging_name = qualified;
    Ok(())
}

fn made(schema: &str, name: &str) -> Result<Oid> {
    catalog::schema_oid(schema)
        .and_then(|schema| catalog::relation_in_schema(schema, name))
        .ok_or_else(|| Error::Internal(format!("table {name} is gone right after it was made")))
}

fn month_copy(
    exchange: &Exchange,
    maker: &Maker<'_>,
    month: audit_db_core::partition_plan::NewPartition,
) -> Result<Copy> {
    let oid = maker.build(&month.name, Indexes::Later)?;
    let qualified = quote_qualified_identifier(&exchange.schema, &month.name);
    let range = condition(exchange, Range::new(month.lower, month.upper))?;
    spi::execute(
        &format!(
            "ALTER TABLE {qualified} ADD CONSTRAINT {RANGE_CHECK} CHECK ({} IS NOT NULL AND {range})",
            exchange.column
        ),
        &[],
    )?;
    Ok(Copy {
        defaults: take_sequence_defaults(exchange.parent, oid, &qualified)?,
        oid,
        name: month.name.clone(),
        qualified,
        month: Some(month),
    })
}

fn default_copy(maker: &Maker<'_>, table: &Table, default: &Partition) -> Result<Copy> {
    let name = partition_name(&table.name, "new_default");
    let oid = maker.build(&name, Indexes::Later)?;
    let qualified = quote_qualified_identifier(&table.schema, &name);
    let parameters = spi::rows(
        "SELECT reloptions FROM pg_catalog.pg_class WHERE oid = $1",
        &[default.oid.into()],
        |row| row.get::<Vec<String>>(1),
    )?
    .pop()
    .flatten()
    .unwrap_or_default();
    for parameter in &parameters {
        let parameter = storage_parameter(parameter)?;
        spi::execute(&format!("ALTER TABLE {qualified} SET ({parameter})"), &[])?;
    }
    Ok(Copy {
        defaults: take_sequence_defaults(table.oid, oid, &qualified)?,
        oid,
        name,
        qualified,
        month: None,
    })
}

/// Takes away the defaults that use sequences of the table, and returns them.
fn take_sequence_defaults(
    parent: Oid,
    copy: Oid,
    qualified: &str,
) -> Result<Vec<(String, String)>> {
    let columns = retire::own_sequence_defaults(parent, copy)?;
    let defaults = spi::rows(
        "SELECT pg_catalog.quote_ident(a.attname), pg_catalog.pg_get_expr(d.adbin, d.adrelid)
           FROM pg_catalog.pg_attribute a
           JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
          WHERE a.attrelid = $1 AND a.attname::pg_catalog.text = ANY ($2)",
        &[copy.into(), columns.into()],
        |row| Ok(row.get::<String>(1)?.zip(row.get::<String>(2)?)),
    )?;
    let defaults: Vec<_> = defaults.into_iter().flatten().collect();
    for (column, _) in &defaults {
        spi::execute(
            &format!("ALTER TABLE {qualified} ALTER COLUMN {column} DROP DEFAULT"),
            &[],
        )?;
    }
    Ok(defaults)
}

/// Gives them back.
pub(super) fn give_sequence_defaults(exchange: &Exchange) -> Result<()> {
    for copy in &exchange.copies {
        for (column, default) in &copy.defaults {
            spi::execute(
                &format!(
                    "ALTER TABLE {} ALTER COLUMN {column} SET DEFAULT {default}",
                    copy.qualified
                ),
                &[],
            )?;
        }
    }
    Ok(())
}

/// What a range means, as the server writes it in a partition's constraint.
pub(super) fn condition(exchange: &Exchange, range: Range) -> Result<String> {
    let column = &exchange.column;
    let mut parts = Vec::with_capacity(2);
    for (operator, bound) in [(">=", range.lower), ("<", range.upper)] {
        if let Bound::At(position) = bound {
            let literal = match position {
                i64::MIN => "-infinity".to_owned(),
                i64::MAX => "infinity".to_owned(),
                _ => exchange.calendar.literal(position)?,
            };
            parts.push(format!("{column} {operator} {}", quote_literal(literal)));
        }
    }
    if parts.is_empty() {
        return Ok("true".to_owned());
    }
    Ok(format!("({})", parts.join(" AND ")))
}

/// The table that the trigger writes to, without a look at anybody's rights: it belongs to the extension's owner, so that nobody
/// else can give it indexes or triggers. Not logged in WAL: after a crash the exchange begins anew anyway.
fn change_log(exchange: &mut Exchange, table: &Table, default: &Partition) -> Result<()> {
    let name = format!("changes_{}", default.oid.to_u32());
    let qualified = format!("audit_db.{name}");
    managed::as_extension_owner(|| {
        spi::execute(
            &format!(
                "CREATE UNLOGGED TABLE {qualified} USING heap WITH (autovacuum_enabled = false) AS
                 SELECT 0::pg_catalog.int8 AS audit_db_change, ''::pg_catalog.\"char\" AS audit_db_kind, {} FROM {} WITH NO DATA",
                exchange.columns.join(", "),
                table.qualified_partition(default)
            ),
            &[],
        )?;
        spi::execute(
            &format!("CREATE INDEX ON {qualified} (audit_db_change)"),
            &[],
        )?;
        let log = made("audit_db", &name)?;
        revoke_from_others(log, &qualified)?;
        spi::execute(
            &format!(
                "GRANT SELECT, DELETE ON {qualified} TO {}",
                quote_identifier(identity::role_name(table.owner))
            ),
            &[],
        )?;
        exchange.log = log;
        Ok(())
    })?;
    exchange.log_name = qualified;
    Ok(())
}

/// Why a default partition cannot be exchanged, if so: something would be lost with it, or somebody would see it.
pub(super) fn why_not(table: &Table, default: &Partition) -> Result<Option<&'static str>> {
    let found = spi::rows(
        "SELECT c.relkind <> 'r' OR c.relpersistence <> 'p',
                EXISTS (SELECT FROM pg_catalog.pg_constraint WHERE confrelid IN ($1, $2) AND contype = 'f'),
                EXISTS (SELECT FROM pg_catalog.pg_rewrite WHERE ev_class = $2),
                EXISTS (SELECT FROM pg_catalog.pg_trigger WHERE tgrelid = $2 AND NOT tgisinternal AND tgparentid = 0
                                                            AND tgfoid <> 'audit_db.capture_change'::pg_catalog.regproc),
                EXISTS (SELECT FROM pg_catalog.pg_policy WHERE polrelid = $2),
                EXISTS (SELECT FROM pg_catalog.pg_constraint
                         WHERE conrelid = $2 AND contype IN ('c', 'f', 'p', 'u', 'x') AND coninhcount = 0 AND conparentid = 0)
                OR EXISTS (SELECT FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
                            WHERE i.indrelid = $2 AND i.indisunique AND NOT x.relispartition),
                EXISTS (SELECT FROM pg_catalog.pg_publication_rel WHERE prrelid = $2),
                EXISTS (SELECT FROM pg_catalog.pg_subscription_rel WHERE srrelid = $2),
                EXISTS (SELECT FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_class s ON s.oid = d.objid AND s.relkind = 'S'
                         WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refclassid = d.classid
                           AND d.refobjid = $2 AND d.deptype IN ('a', 'i')),
                pg_catalog.to_regclass(pg_catalog.format('%s.%I', c.relnamespace::pg_catalog.regnamespace::pg_catalog.text, $3::pg_catalog.text)) IS NOT NULL
           FROM pg_catalog.pg_class c WHERE c.oid = $2",
        &[
            table.oid.into(),
            default.oid.into(),
            partition_name(&default.name, "exchanged").into(),
        ],
        |row| (1..=10).map(|index| row.get::<bool>(index)).collect::<pgrx::spi::Result<Vec<_>>>(),
    )?
    .pop()
    .unwrap_or_default();
    let reasons = [
        "It is not a plain table.",
        "Foreign keys refer to the table: the server would compare all of their rows while nobody can read or write.",
        "It bears rules of its own.",
        "It bears triggers of its own, which the table does not have.",
        "It bears policies of its own.",
        "It bears constraints or unique indexes of its own, which the table does not have.",
        "It is published by its own name.",
        "A subscription writes into it.",
        "It owns a sequence, which would be dropped with it. Give that to the table: ALTER SEQUENCE ... OWNED BY.",
        "A table has the name that it would get until it is compared and dropped: its own, followed by _exchanged.",
    ];
    if let Some(reason) = found
        .into_iter()
        .zip(reasons)
        .find_map(|(found, reason)| found.unwrap_or(false).then_some(reason))
    {
        return Ok(Some(reason));
    }
    if is_needed(default.oid)? {
        return Ok(Some(
            "Views, functions or columns of other tables depend on it.",
        ));
    }
    Ok(waiting::copies_are_published(table.oid)?.then_some(
        "New tables in its schema are published for logical replication, and a replication slot of this database would send the copied rows to the subscribers a second time.",
    ))
}

/// Tells everybody where changes are logged, once the trigger is there.
pub(super) fn announce(exchange: &Exchange) -> Result<()> {
    if !exchanges::begin(
        identity::my_database(),
        exchange.default,
        exchange.log,
        signal::my_pid(),
    ) {
        return Err(Error::TooManyExchanges);
    }
    Ok(())
}

/// From here on every change to the default partition is logged.
pub(super) fn capture(exchange: &Exchange) -> Result<()> {
    steps::in_transactions_with_retries(&exchange.name, |scope| {
        // Half of it: who waits behind it has to learn of the trigger afterwards.
        Deadline::start(scope, settings::lock_timeout() / 2)
            .lock(exchange.default, Mode::ShareRowExclusive);
        let default = exchange.default_qualified();
        drop_triggers(exchange.default, &default)?;
        // Also where somebody replicates into the table, or has switched triggers off.
        for (trigger, when) in [
            (
                TRIGGER,
                "AFTER INSERT OR UPDATE OR DELETE ON {} FOR EACH ROW",
            ),
            (TRUNCATE_TRIGGER, "BEFORE TRUNCATE ON {} FOR EACH STATEMENT"),
        ] {
            let when = when.replace("{}", &default);
            spi::execute(
                &format!(
                    "CREATE TRIGGER {trigger} {when} EXECUTE FUNCTION audit_db.capture_change()"
                ),
                &[],
            )?;
            spi::execute(
                &format!("ALTER TABLE {default} ENABLE ALWAYS TRIGGER {trigger}"),
                &[],
            )?;
        }
        extension::take_triggers_along(&trigger_oids(exchange.default)?);
        Ok(())
    })
}

/// Our triggers on a table.
fn trigger_oids(table: Oid) -> Result<Vec<Oid>> {
    Ok(spi::rows(
        "SELECT oid FROM pg_catalog.pg_trigger
          WHERE tgrelid = $1 AND tgfoid = 'audit_db.capture_change'::pg_catalog.regproc",
        &[table.into()],
        |row| row.get::<Oid>(1),
    )?
    .into_iter()
    .flatten()
    .collect())
}

pub(super) fn has_triggers(table: Oid) -> Result<bool> {
    Ok(!trigger_oids(table)?.is_empty())
}

/// Whether every change is still logged.
pub(super) fn is_captured(default: Oid) -> Result<bool> {
    Ok(spi::rows(
        "SELECT 1 FROM pg_catalog.pg_trigger
          WHERE tgrelid = $1 AND tgfoid = 'audit_db.capture_change'::pg_catalog.regproc AND tgenabled = 'A'",
        &[default.into()],
        |row| row.get::<i32>(1),
    )?
    .len()
        == 2)
}

/// Removes our triggers from a table.
pub(super) fn drop_triggers(table: Oid, qualified: &str) -> Result<()> {
    let names = spi::rows(
        "SELECT pg_catalog.quote_ident(tgname) FROM pg_catalog.pg_trigger
          WHERE tgrelid = $1 AND tgfoid = 'audit_db.capture_change'::pg_catalog.regproc",
        &[table.into()],
        |row| row.get::<String>(1),
    )?;
    for name in names.into_iter().flatten() {
        spi::execute(&format!("DROP TRIGGER {name} ON {qualified}"), &[])?;
    }
    Ok(())
}

/// Copies all rows that one snapshot sees. What that snapshot does not see is, or will be, in the log.
pub(super) fn copy(exchange: &Exchange) -> Result<()> {
    xact::in_transaction_of(Kind::Snapshot, || {
        let columns = exchange.columns.join(", ");
        as_owner_patiently(exchange, |_scope| {
            spi::execute(&format!("DELETE FROM {}", exchange.log_name), &[])?;
            spi::execute(
                &format!(
                    "INSERT INTO {} ({columns}) OVERRIDING SYSTEM VALUE SELECT {columns} FROM ONLY {}",
                    exchange.staging_name,
                    exchange.default_qualified()
                ),
                &[],
            )?;
            Ok(())
        })
    })
}

/// Makes the copies tables of their own. They must be locked.
pub(super) fn release_copies(exchange: &Exchange) -> Result<()> {
    for table in exchange.tables() {
        extension::remove_table(table);
    }
    extension::add_table(exchange.log);
    as_owner(exchange, || {
        for copy in &exchange.copies {
            spi::execute(
                &format!(
                    "ALTER TABLE {} DETACH PARTITION {}",
                    exchange.staging_name, copy.qualified
                ),
                &[],
            )?;
        }
        spi::execute(&format!("DROP TABLE {}", exchange.staging_name), &[])?;
        Ok(())
    })
}

/// Gives the copies what partitions of the table have, but for foreign keys: those would act on the copies too when somebody
/// changes the table they refer to.
pub(super) fn complete(exchange: &Exchange) -> Result<()> {
    let definitions = xact::in_transaction(|| indexes::of_table(exchange.parent, &exchange.name))?;
    for copy in &exchange.copies {
        xact::in_transaction_of(Kind::Long, || {
            as_owner_patiently(exchange, |scope| {
                for definition in &definitions {
                    definition.create_on(scope, &copy.qualified)?;
                }
                Ok(())
            })
        })?;
        // Plans are right from the first query on.
        xact::in_transaction_of(Kind::Long, || {
            as_owner_patiently(exchange, |_scope| {
                spi::execute(&format!("ANALYZE {}", copy.qualified), &[])
            })
        })?;
    }
    prove_rest(exchange)
}

/// What stays in the default partition is proved to belong there, unless there is so little that looking is as fast.
fn prove_rest(exchange: &Exchange) -> Result<()> {
    let Some(rest) = exchange.copies.last() else {
        return Ok(());
    };
    xact::in_transaction_of(Kind::Long, || {
        if catalog::size_in_bytes(rest.oid) < TINY_BYTES {
            return Ok(());
        }
        let months = exchange
            .months()
            .map(|(_, month)| Range::new(month.lower, month.upper));
        let ranges = exchange
            .ranges
            .iter()
            .copied()
            .chain(months)
            .map(|range| condition(exchange, range))
            .collect::<Result<Vec<_>>>()?;
        as_owner_patiently(exchange, |_scope| {
            spi::execute(
                &format!(
                    "ALTER TABLE {} ADD CONSTRAINT {RANGE_CHECK} CHECK (NOT ({} IS NOT NULL AND ({})))",
                    rest.qualified,
                    exchange.column,
                    ranges.join(" OR ")
                ),
                &[],
            )?;
            Ok(())
        })
    })
}

/// Whether a table has the CHECK that spares ATTACH its scan.
pub(super) fn has_range_check(table: Oid) -> Result<bool> {
    let found = spi::rows(
        "SELECT 1 FROM pg_catalog.pg_constraint WHERE conrelid = $1 AND conname = $2",
        &[table.into(), RANGE_CHECK.into()],
        |row| row.get::<i32>(1),
    )?;
    Ok(!found.is_empty())
}
