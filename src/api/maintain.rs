//! `maintain_partitions`.

use super::{require_ownership, require_writable, required};
use crate::error::{Error, Result, or_raise};
use crate::jobs::definition;
use crate::maintenance::plan::{self, Options};
use crate::maintenance::{Limits, Step};
use crate::partition::inspect::Table;
use crate::partition::{managed, retire};
use crate::pg::clock::NamedZone;
use crate::pg::guc::Scope;
use crate::pg::{catalog, compat, identity};
use crate::shmem;
use crate::worker::task::{self, Work};
use pgrx::pg_sys::Oid;
use pgrx::prelude::*;
use std::time::Instant;

#[pg_extern(sql = "")]
#[allow(clippy::type_complexity)]
fn maintain_partitions(
    parent: Option<Oid>,
    analyze_tables: Option<bool>,
    update_statistics: Option<bool>,
    reindex_if_needed: Option<bool>,
    compress_old_partitions: Option<bool>,
    dry_run: Option<bool>,
) -> TableIterator<
    'static,
    (
        name!(step, String),
        name!(object, String),
        name!(action, String),
        name!(duration_ms, f64),
        name!(detail, Option<String>),
    ),
> {
    let steps = or_raise({
        let _scope = Scope::reading();
        let wanted = || -> Result<(Options, bool)> {
            if required(compress_old_partitions, "compress_old_partitions")? {
                return Err(Error::NoCompression);
            }
            let options = Options {
                analyze_tables: required(analyze_tables, "analyze_tables")?,
                update_statistics: required(update_statistics, "update_statistics")?,
                reindex_if_needed: required(reindex_if_needed, "reindex_if_needed")?,
            };
            // A null must not mean "really".
            Ok((options, required(dry_run, "dry_run")?))
        };
        wanted().and_then(|(options, dry_run)| maintain(parent, options, dry_run))
    });
    for step in &steps {
        if let Some(failure) = &step.failure {
            Error::Server(failure.clone()).warn();
        }
    }
    TableIterator::new(steps.into_iter().map(|step| {
        (
            step.step,
            step.object,
            step.action,
            step.duration_ms,
            step.detail,
        )
    }))
}

fn maintain(parent: Option<Oid>, options: Options, dry_run: bool) -> Result<Vec<Step>> {
    let mut tables = match parent {
        Some(table) => {
            require_ownership(table)?;
            Table::load(table)?;
            managed::get(table)?;
            vec![table]
        }
        // Without a table: all that the caller could name.
        None => managed::oids()?
            .into_iter()
            .filter(|table| compat::owns_relation(*table, identity::current_role()))
            .collect(),
    };
    require_writable("maintain_partitions")?;
    if !shmem::is_preloaded() {
        return in_session(&tables, parent.is_some(), options, dry_run);
    }
    let mut skipped = Vec::new();
    if !dry_run {
        let mut free = Vec::new();
        for table in tables {
            if !retire::held_by_open_transaction(table)? {
                free.push(table);
                continue;
            }
            let name = catalog::qualified_name(table).unwrap_or_default();
            let error = Error::OpenTransaction(name.clone());
            if parent.is_some() {
                return Err(error);
            }
            let action = format!("skip: {}", error.failure().message);
            skipped.push(Step::new("maintenance", &name, &action));
        }
        tables = free;
    }
    let mut steps = Vec::new();
    if !tables.is_empty() {
        // Owners often cannot log in: then who acts for them has the indexes rebuilt.
        let mut role = identity::current_role();
        if definition::why_not_connect(role)?.is_some() {
            role = identity::session_user();
        }
        let work = Work::Maintain {
            options,
            dry_run,
            role: role.to_u32(),
        };
        steps = task::maintain(work, &tables)?;
    }
    steps.extend(skipped);
    Ok(steps)
}

fn in_session(tables: &[Oid], single: bool, options: Options, dry_run: bool) -> Result<Vec<Step>> {
    let limits = Limits::from_settings(NamedZone::named("UTC")?);
    let mut steps = Vec::new();
    for table in tables {
        match plan::in_session(*table, options, dry_run, &limits) {
            Ok(done) => steps.extend(done),
            Err(error) if single || error.is_cancel() => return Err(error),
            // One sick table does not stop the others.
            Err(error) => {
                let name = catalog::qualified_name(*table).unwrap_or_default();
                let failed = Step::new("maintenance", &name, "").done(Instant::now(), Err(error));
                steps.push(failed);
            }
        }
    }
    Ok(steps)
}
