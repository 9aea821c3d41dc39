//! Retention: expired partitions go, one transaction each, with brakes.

use crate::error::{Error, Failure, Result};
use crate::partition::create::{is_needed, require_same_owner, revoke_from_others};
use crate::partition::inspect::{Calendar, Partition, Table};
use crate::partition::managed::{self, Managed};
use crate::partition::steps::Place;
use crate::partition::{detach, events};
use crate::pg::guc::Scope;
use crate::pg::lock::{Deadline, Mode};
use crate::pg::spi::{self, quote_identifier, quote_qualified_identifier};
use crate::pg::{catalog, clock, compat, identity, policy, xact};
use crate::settings;
use audit_db_core::partition_plan::{Bound, Range};
use audit_db_core::retention::{self, RetentionAction};
use pgrx::pg_sys::Oid;
use serde::{Deserialize, Serialize};

const DAY_MICROS: i64 = 86_400_000_000;

/// What happened, or will happen, to one expired partition.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Outcome {
    pub partition: String,
    /// Ends of its range as instants; `None` is MINVALUE or MAXVALUE.
    pub lower: Option<i64>,
    pub upper: Option<i64>,
    pub action: String,
    pub size_bytes: i64,
    pub failure: Option<Failure>,
}

/// An expired partition of a table.
struct Expired {
    oid: Oid,
    range: Range,
    outcome: Outcome,
}

struct Plan {
    name: String,
    /// Without a default partition the server can detach while others use the table.
    concurrently: bool,
    action: RetentionAction,
    expired: Vec<Expired>,
    /// Why nothing may go now.
    suspended: Option<Error>,
}

/// Lists what would be done, without doing it. `concurrently`: how to call what is done while others use the table; empty: as
/// the rest.
pub fn dry_run(table: Oid, clock_moved: Option<i64>, concurrently: &str) -> Result<Vec<Outcome>> {
    let Some(plan) = plan(table, clock_moved)? else {
        return Ok(Vec::new());
    };
    let verb = if plan.concurrently && !concurrently.is_empty() {
        concurrently
    } else {
        plan.action.verb()
    };
    let limit = settings::max_partitions_dropped();
    Ok(plan
        .expired
        .into_iter()
        .enumerate()
        .map(|(index, expired)| {
            let mut outcome = expired.outcome;
            outcome.action = match &plan.suspended {
                Some(error) => format!("skip: {}", error.failure().message),
                None if index >= limit => deferred(limit),
                None => verb.to_owned(),
            };
            outcome
        })
        .collect())
}

/// Applies retention to one table from a worker. `emit` gets each outcome and says whether to go on.
pub fn expired_of_table(
    table: Oid,
    clock_moved: Option<i64>,
    emit: &mut dyn FnMut(Outcome) -> bool,
) -> Result<()> {
    apply(Place::Worker, table, clock_moved, emit)
}

/// The same from the slow worker.
pub fn expired_slowly(
    table: Oid,
    clock_moved: Option<i64>,
    emit: &mut dyn FnMut(Outcome) -> bool,
) -> Result<()> {
    apply(Place::Slow, table, clock_moved, emit)
}

/// The same in the caller's transaction.
pub fn expired_in_session(table: Oid, emit: &mut dyn FnMut(Outcome) -> bool) -> Result<()> {
    apply(Place::Session, table, None, emit)
}

fn apply(
    place: Place,
    table: Oid,
    clock_moved: Option<i64>,
    emit: &mut dyn FnMut(Outcome) -> bool,
) -> Result<()> {
    let name = catalog_name(place, table)?;
    let planned = place.step(&name, |_| plan(table, clock_moved))?;
    // Beside a default partition nothing can be detached concurrently: that is the other worker's.
    let Some(plan) = planned.filter(|plan| plan.concurrently || place != Place::Slow) else {
        return Ok(());
    };
    if let Some(error) = &plan.suspended {
        let failure = error.failure();
        place.step(&plan.name, |_| {
            events::failed("retention", &plan.name, &failure)
        })?;
        let mut reason = Some(failure);
        for expired in plan.expired {
            let mut outcome = expired.outcome;
            outcome.action = format!("skipped: {}", error.failure().message);
            // Said once, shown for each.
            outcome.failure = reason.take();
            if !emit(outcome) {
                break;
            }
        }
        return Ok(());
    }
    let limit = settings::max_partitions_dropped();
    let (mut removed, mut failed, mut locked) = (0, 0, 0);
    for expired in plan.expired {
        let mut outcome = expired.outcome.clone();
        // What cannot go must not keep the next ones for ever, but a table on which nothing works is left alone soon.
        if removed >= limit {
            outcome.action = deferred(limit);
        } else if failed >= FAILURES_LIMIT || locked >= LOCKED_LIMIT {
            outcome.action = "deferred: too many others failed in this run".to_owned();
        } else if plan.concurrently && place == Place::Worker {
            outcome.action = QUEUED.to_owned();
            removed += 1;
        } else {
            let done = if plan.concurrently && place == Place::Slow {
                let detached =
                    detach::concurrently(table, &plan.name, |table| still_expired(table, &expired));
                match detached {
                    Ok(detach::Outcome::Retired) => Ok(true),
                    Ok(detach::Outcome::NotOurs) => Ok(false),
                    Ok(detach::Outcome::Kept(error)) => {
                        // It has left the table, and the next one would fare no better.
                        failed = FAILURES_LIMIT;
                        Err(error)
                    }
                    Err(error) => Err(error),
                }
            } else {
                place.step(&plan.name, |scope| {
                    let done = retire(scope, table, &expired)?;
                    if done {
                        events::done(
                            &format!("partition {}", plan.action.done()),
                            &expired.outcome.partition,
                            &format!("retention of {}", plan.name),
                        )?;
                    }
                    Ok(done)
                })
            };
            match done {
                Ok(true) => {
                    outcome.action = plan.action.done().to_owned();
                    removed += 1;
                }
                // Somebody else was faster.
                Ok(false) => continue,
                // A cancelled session stops; a cancelled step of a worker is a failed step.
                Err(error) if matches!(place, Place::Session) && error.is_cancel() => {
                    return Err(error);
                }
                Err(error) => {
                    failed += 1;
                    locked += usize::from(error.is_lock_timeout());
                    let failure = error.failure();
                    outcome.action = format!("failed: {}", failure.message);
                    place.step(&plan.name, |_| {
                        events::failed("retention", &outcome.partition, &failure)
                    })?;
                    outcome.failure = Some(failure);
                }
            }
        }
        if !emit(outcome) {
            break;
        }
    }
    Ok(())
}

fn catalog_name(place: Place, table: Oid) -> Result<String> {
    let name = || Ok(catalog::qualified_name(table).unwrap_or_else(|| table.to_u32().to_string()));
    match place {
        Place::Session => name(),
        Place::Worker | Place::Slow => xact::in_transaction(name),
    }
}

/// What is left to the slow worker.
pub const QUEUED: &str = "queued";

/// Failures of one run after which it leaves the table to the next.
const FAILURES_LIMIT: usize = 10;
/// Lock waits, each as long as `audit_db.lock_retry`, after which it does: what keeps one partition locked is mostly a
/// transaction that has read them all.
const LOCKED_LIMIT: usize = 2;

fn deferred(limit: usize) -> String {
    format!("deferred: at most {limit} a run (audit_db.max_partitions_dropped)")
}

/// `None` where the table is not managed or nothing has expired.
fn plan(table: Oid, clock_moved: Option<i64>) -> Result<Option<Plan>> {
    let Some(managed) = managed::find(table)? else {
        return Ok(None);
    };
    if managed.retention.is_none() {
        return Ok(None);
    }
    let table = Table::load(table)?;
    let calendar = Calendar::new(table.key, &managed.time_zone)?;
    let expired: Vec<Expired> = expired_partitions(&table, &managed, &calendar)
        .into_iter()
        .map(|partition| {
            let range = partition.range.unwrap_or(Range {
                lower: Bound::MinValue,
                upper: Bound::MaxValue,
            });
            let instant = |bound| match bound {
                Bound::At(position) => calendar.instant(position),
                _ => None,
            };
            Ok(Expired {
                oid: partition.oid,
                range,
                outcome: Outcome {
                    partition: table.qualified_partition(partition),
                    lower: instant(range.lower),
                    upper: instant(range.upper),
                    action: String::new(),
                    size_bytes: size(partition.oid)?,
                    failure: None,
                },
            })
        })
        .collect::<Result<_>>()?;
    if expired.is_empty() {
        return Ok(None);
    }
    let suspended = match clock_moved {
        Some(micros) => Some(Error::ClockMoved {
            days: micros / DAY_MICROS,
        }),
        None if holds_future_event(&table, &calendar)? => Some(Error::BehindNewestEvent {
            table: table.qualified(),
        }),
        None => None,
    };
    Ok(Some(Plan {
        name: table.qualified(),
        concurrently: table.default.is_none(),
        action: managed.action,
        expired,
        suspended,
    }))
}

/// Partitions whose whole range is older than the retention, oldest first.
pub fn expired_partitions<'a>(
    table: &'a Table,
    managed: &Managed,
    calendar: &Calendar,
) -> Vec<&'a Partition> {
    let Some(now) = calendar.position_at(clock::transaction_start()) else {
        return Vec::new();
    };
    let ranges = table.ranges();
    retention::expired(&ranges, managed.retention, now, calendar)
        .into_iter()
        .filter_map(|index| table.partitions.get(index))
        .collect()
}

fn size(relation: Oid) -> Result<i64> {
    Ok(spi::rows(
        "SELECT pg_catalog.sum(pg_catalog.pg_total_relation_size(relid))::pg_catalog.int8
           FROM pg_catalog.pg_partition_tree($1::pg_catalog.regclass)",
        &[relation.into()],
        |row| row.get::<i64>(1),
    )?
    .pop()
    .flatten()
    .unwrap_or(0))
}

/// Whether a partition holds an event later than now: then the clock, or the event, is wrong. Rows in the default do not
/// count: what is absurdly far ahead waits there.
fn holds_future_event(table: &Table, calendar: &Calendar) -> Result<bool> {
    let Some(now) = calendar.position_at(clock::transaction_start()) else {
        return Ok(false);
    };
    // An event may carry a clock that runs a little ahead of ours.
    let limit = now.saturating_add(DAY_MICROS);
    let limit = calendar.literal(match table.key {
        catalog::KeyType::Date => limit.div_euclid(DAY_MICROS) * DAY_MICROS,
        _ => limit,
    })?;
    let column = quote_identifier(&table.column);
    for partition in &table.partitions {
        if partition
            .range
            .is_some_and(|range| range.upper <= Bound::At(now))
        {
            continue;
        }
        let found = identity::as_role(table.owner, || {
            spi::rows(
                &format!(
                    "SELECT 1 FROM {} WHERE {column} > {} LIMIT 1",
                    table.qualified_partition(partition),
                    spi::quote_literal(&limit)
                ),
                &[],
                |row| row.get::<i32>(1),
            )
        })?;
        if !found.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Takes one partition off its table and does with it what the settings say. `false`: it is gone or no longer expired.
fn retire(scope: &Scope, oid: Oid, expired: &Expired) -> Result<bool> {
    let deadline = Deadline::start(scope, settings::lock_timeout());
    deadline.lock(oid, Mode::AccessExclusive);
    let table = Table::load(oid)?;
    let Some((partition, action)) = still_expired(&table, expired)? else {
        return Ok(false);
    };
    if let Some(default) = &table.default {
        deadline.lock(default.oid, Mode::AccessExclusive);
    }
    deadline.lock(partition.oid, Mode::AccessExclusive);
    let name = table.qualified_partition(&partition);
    // What depends on it the server names itself, and the detach is undone then.
    if action == RetentionAction::Drop {
        require_same_owner(&table, &partition)?;
    } else {
        require_disposable(&table, &partition, &action)?;
    }
    identity::as_role(table.owner, || {
        spi::execute(
            &format!("ALTER TABLE {} DETACH PARTITION {name}", table.qualified()),
            &[],
        )?;
        deadline.arm();
        dispose(&table, partition.oid, &partition.name, &name, &action)?;
        Ok(true)
    })
}

/// The partition as it is now, and what is to happen to it; `None`: it is gone or no longer expired.
fn still_expired(table: &Table, expired: &Expired) -> Result<Option<(Partition, RetentionAction)>> {
    let Some(managed) = managed::find(table.oid)? else {
        return Ok(None);
    };
    let calendar = Calendar::new(table.key, &managed.time_zone)?;
    Ok(expired_partitions(table, &managed, &calendar)
        .into_iter()
        .find(|partition| partition.oid == expired.oid && partition.range == Some(expired.range))
        .map(|partition| (partition.clone(), managed.action.clone())))
}

/// An error where what is to follow a detach could not be done.
pub fn require_disposable(
    table: &Table,
    partition: &Partition,
    action: &RetentionAction,
) -> Result<()> {
    require_same_owner(table, partition)?;
    if let RetentionAction::Drop = action {
        return if is_needed(partition.oid)? {
            Err(Error::StillNeeded(table.qualified_partition(partition)))
        } else {
            Ok(())
        };
    }
    let refused = |reason| Error::CannotRetire {
        partition: table.qualified_partition(partition),
        reason,
    };
    let secured = table.row_security || table.force_row_security;
    if secured && catalog::is_foreign_table(partition.oid) {
        return Err(refused(
            "It is a foreign table, which cannot have the row security of its table.",
        ));
    }
    for policy in policies(table.oid)? {
        for stored in [&policy.using, &policy.check].into_iter().flatten() {
            if policy::expression_for(stored, table.oid, partition.oid).is_none() {
                return Err(refused(
                    "A policy of the table uses a whole row, and cannot be copied.",
                ));
            }
        }
    }
    if let RetentionAction::Archive(schema) = action {
        let oid = archive_target(schema, &partition.name)?;
        if !compat::may_create_in_schema(oid, table.owner) {
            return Err(Error::NoCreateOnSchema {
                owner: quote_identifier(identity::role_name(table.owner)),
                schema: quote_identifier(schema),
            });
        }
    }
    Ok(())
}

/// What happens to a partition that has just been detached. Runs as the owner.
pub fn dispose(
    table: &Table,
    partition: Oid,
    name: &str,
    qualified: &str,
    action: &RetentionAction,
) -> Result<()> {
    match action {
        RetentionAction::Drop => {
            let foreign = if catalog::is_foreign_table(partition) {
                "FOREIGN "
            } else {
                ""
            };
            spi::execute(&format!("DROP {foreign}TABLE {qualified}"), &[])?;
        }
        RetentionAction::Detach => protect(table, partition, qualified)?,
        RetentionAction::Archive(schema) => {
            protect(table, partition, qualified)?;
            archive(name, qualified, schema)?;
        }
    }
    Ok(())
}

/// The schema that partitions go to, where the name is free.
fn archive_target(schema: &str, name: &str) -> Result<Oid> {
    let oid =
        catalog::schema_oid(schema).ok_or_else(|| Error::NoSuchSchema(quote_identifier(schema)))?;
    if catalog::relation_in_schema(oid, name).is_some() {
        return Err(Error::NameInUse {
            name: quote_qualified_identifier(schema, name),
            hint: "Rename or move that relation; the partition stays attached until then.",
        });
    }
    Ok(oid)
}

fn archive(name: &str, qualified: &str, schema: &str) -> Result<()> {
    archive_target(schema, name)?;
    let quoted = quote_identifier(schema);
    spi::execute(&format!("ALTER TABLE {qualified} SET SCHEMA {quoted}"), &[])?;
    Ok(())
}

/// Makes a detached partition as closed as its table is: the same grants, row security and policies. It keeps no default on the
/// table's sequence.
fn protect(table: &Table, partition: Oid, qualified: &str) -> Result<()> {
    for column in own_sequence_defaults(table.oid, partition)? {
        spi::execute(
            &format!(
                "ALTER TABLE {qualified} ALTER COLUMN {} DROP DEFAULT",
                quote_identifier(column)
            ),
            &[],
        )?;
    }
    revoke_from_others(partition, qualified)?;
    for grant in grants(table.oid)? {
        spi::execute(
            &format!("GRANT {} ON TABLE {qualified} TO {}", grant.0, grant.1),
            &[],
        )?;
    }
    // A foreign table has no row security, and the table has none either then.
    if catalog::is_foreign_table(partition) {
        return Ok(());
    }
    for (wanted, on, off) in [
        (table.row_security, "ENABLE", "DISABLE"),
        (table.force_row_security, "FORCE", "NO FORCE"),
    ] {
        let word = if wanted { on } else { off };
        spi::execute(
            &format!("ALTER TABLE {qualified} {word} ROW LEVEL SECURITY"),
            &[],
        )?;
    }
    copy_policies(table.oid, partition, qualified)
}

pub fn own_sequence_defaults(table: Oid, partition: Oid) -> Result<Vec<String>> {
    Ok(spi::rows(
        "SELECT DISTINCT a.attname::text
           FROM pg_catalog.pg_attrdef d
           JOIN pg_catalog.pg_attribute a ON a.attrelid = d.adrelid AND a.attnum = d.adnum
           JOIN pg_catalog.pg_depend uses ON uses.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass
                                         AND uses.objid = d.oid
                                         AND uses.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
           JOIN pg_catalog.pg_depend owned ON owned.classid = uses.refclassid AND owned.objid = uses.refobjid
                                          AND owned.refclassid = uses.refclassid AND owned.refobjid = $1
                                          AND owned.deptype IN ('a', 'i')
          WHERE d.adrelid = $2",
        &[table.into(), partition.into()],
        |row| row.get::<String>(1),
    )?
    .into_iter()
    .flatten()
    .collect())
}

/// What others may do on the table, columns included: a privilege and to whom it is granted.
fn grants(table: Oid) -> Result<Vec<(String, String)>> {
    Ok(spi::rows(
        "SELECT pg_catalog.concat(a.privilege_type, g.columns),
                pg_catalog.concat(CASE WHEN a.grantee = 0 THEN 'PUBLIC'
                     ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(a.grantee)) END,
                CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' END)
           FROM (SELECT c.relacl AS acl, c.relowner AS owner, '' AS columns
                   FROM pg_catalog.pg_class c WHERE c.oid = $1
                 UNION ALL
                 SELECT att.attacl, c.relowner, ' (' || pg_catalog.quote_ident(att.attname) || ')'
                   FROM pg_catalog.pg_attribute att JOIN pg_catalog.pg_class c ON c.oid = att.attrelid
                  WHERE att.attrelid = $1 AND att.attnum > 0 AND NOT att.attisdropped) g,
                LATERAL pg_catalog.aclexplode(g.acl) a
          WHERE a.grantee <> g.owner",
        &[table.into()],
        |row| Ok((row.get::<String>(1)?, row.get::<String>(2)?)),
    )?
    .into_iter()
    .filter_map(|(privilege, grantee)| Some((privilege?, grantee?)))
    .collect())
}

/// One row of `pg_policy`.
struct Policy {
    name: String,
    command: String,
    permissive: bool,
    roles: String,
    using: Option<String>,
    check: Option<String>,
}

fn policies(table: Oid) -> Result<Vec<Policy>> {
    spi::rows(
        "SELECT pg_catalog.quote_ident(p.polname), p.polcmd::text, p.polpermissive,
                (SELECT pg_catalog.string_agg(CASE WHEN r = 0 THEN 'PUBLIC'
                        ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(r)) END, ', ')
                   FROM pg_catalog.unnest(p.polroles) r),
                p.polqual::text, p.polwithcheck::text
           FROM pg_catalog.pg_policy p WHERE p.polrelid = $1 ORDER BY p.polname",
        &[table.into()],
        |row| {
            Ok(Policy {
                name: row.get(1)?.unwrap_or_default(),
                command: row.get(2)?.unwrap_or_default(),
                permissive: row.get(3)?.unwrap_or(true),
                roles: row.get::<String>(4)?.unwrap_or_else(|| "PUBLIC".into()),
                using: row.get(5)?,
                check: row.get(6)?,
            })
        },
    )
}

fn copy_policies(table: Oid, partition: Oid, qualified: &str) -> Result<()> {
    for policy in policies(partition)? {
        spi::execute(&format!("DROP POLICY {} ON {qualified}", policy.name), &[])?;
    }
    for source in policies(table)? {
        let command = match source.command.as_str() {
            "r" => "SELECT",
            "a" => "INSERT",
            "w" => "UPDATE",
            "d" => "DELETE",
            _ => "ALL",
        };
        let kind = if source.permissive {
            "PERMISSIVE"
        } else {
            "RESTRICTIVE"
        };
        let mut sql = format!(
            "CREATE POLICY {} ON {qualified} AS {kind} FOR {command} TO {}",
            source.name, source.roles
        );
        for (word, stored) in [("USING", &source.using), ("WITH CHECK", &source.check)] {
            let Some(stored) = stored else { continue };
            // Without this policy the detached partition could show more than its table: then it stays attached.
            let text = policy::expression_for(stored, table, partition).ok_or_else(|| {
                Error::CannotRetire {
                    partition: qualified.to_owned(),
                    reason: "A policy of the table uses a whole row, and cannot be copied.",
                }
            })?;
            sql.push_str(&format!(" {word} ({text})"));
        }
        spi::execute(&sql, &[])?;
    }
    Ok(())
}

/// What a table's retention does now, for the NOTICE of `manage_table`.
pub fn expired_now(table: &Table, managed: &Managed) -> Result<Vec<String>> {
    let calendar = Calendar::new(table.key, &managed.time_zone)?;
    Ok(expired_partitions(table, managed, &calendar)
        .into_iter()
        .map(|partition| table.qualified_partition(partition))
        .collect())
}

/// Whether the session itself keeps others from seeing or locking the table or a part of it: the worker would wait in vain.
pub fn held_by_open_transaction(oid: Oid) -> Result<bool> {
    if managed::find(oid)?.is_some_and(|managed| xact::is_current(managed.written_by)) {
        return Ok(true);
    }
    // Read before asking for locks: reading takes one for a moment.
    let table = Table::load(oid)?;
    Ok(std::iter::once(oid)
        .chain(
            table
                .partitions
                .iter()
                .chain(&table.default)
                .map(|partition| partition.oid),
        )
        .any(crate::pg::lock::held_by_me))
}

/// A table that could not even be looked at, as a row among those of others.
pub fn table_failed(table: Oid, error: &Error) -> Outcome {
    let failure = error.failure();
    Outcome {
        partition: catalog::qualified_name(table).unwrap_or_else(|| table.to_u32().to_string()),
        lower: None,
        upper: None,
        action: format!("failed: {}", failure.message),
        size_bytes: 0,
        failure: Some(failure),
    }
}
