//! What is scheduled: rows of `audit_db.job_definitions`, and the jobs that come with the extension, which are in no table until
//! somebody changes them.

use crate::error::{JobError, Result};
use crate::jobs::task::Kind;
use crate::partition::managed::{as_extension_owner, extension_owner};
use crate::pg::{identity, spi};
use pgrx::pg_sys::Oid;

#[derive(Clone, Debug)]
pub struct Definition {
    pub name: String,
    pub owner: Oid,
    pub schedule: String,
    pub task: String,
    /// A JSON object.
    pub args: String,
    pub time_zone: String,
    pub enabled: bool,
    pub disabled_reason: Option<String>,
    /// Came with the extension, changed or not.
    pub shipped: bool,
    /// Is in no table.
    pub unchanged: bool,
}

/// Name, schedule and task of the jobs that come with the extension.
const SHIPPED: [(&str, &str, &str); 2] = [
    ("maintenance", "0 2 * * 0", "maintain_partitions"),
    ("optimize", "0 3 * * *", "optimize"),
];

pub fn is_shipped(name: &str) -> bool {
    SHIPPED.iter().any(|(shipped, _, _)| *shipped == name)
}

/// All jobs of the database, in the order of their names. Reads with the rights of the extension's owner.
pub fn all() -> Result<Vec<Definition>> {
    as_extension_owner(|| {
        let mut all = stored()?;
        let owner = extension_owner()?;
        for (name, schedule, task) in SHIPPED {
            if all.iter().all(|job| job.name != name) {
                all.push(Definition {
                    name: name.to_owned(),
                    owner,
                    schedule: schedule.to_owned(),
                    task: task.to_owned(),
                    args: "{}".to_owned(),
                    time_zone: "UTC".to_owned(),
                    enabled: true,
                    disabled_reason: None,
                    shipped: true,
                    unchanged: true,
                });
            }
        }
        all.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(all)
    })
}

fn stored() -> Result<Vec<Definition>> {
    spi::rows_of_kept(
        "SELECT name, owner::pg_catalog.oid, schedule, task, args::pg_catalog.text, time_zone, enabled, disabled_reason
           FROM audit_db.job_definitions",
        &[],
        |row| {
            let name = row.get::<String>(1)?.unwrap_or_default();
            Ok(Definition {
                shipped: is_shipped(&name),
                unchanged: false,
                name,
                owner: row.get(2)?.unwrap_or(Oid::INVALID),
                schedule: row.get(3)?.unwrap_or_default(),
                task: row.get(4)?.unwrap_or_default(),
                args: row.get(5)?.unwrap_or_default(),
                time_zone: row.get(6)?.unwrap_or_default(),
                enabled: row.get(7)?.unwrap_or(false),
                disabled_reason: row.get(8)?,
            })
        },
    )
}

pub fn find(name: &str) -> Result<Option<Definition>> {
    Ok(all()?.into_iter().find(|job| job.name == name))
}

/// Writes a job: a new one, or in the place of the one with its name. Its times are counted from now on. Returns its number.
pub fn save(job: &Definition) -> Result<i64> {
    as_extension_owner(|| {
        let saved = spi::written(
            "INSERT INTO audit_db.job_definitions AS d (name, owner, schedule, task, args, time_zone, enabled, disabled_reason)
             VALUES ($1, $2::pg_catalog.oid::pg_catalog.regrole, $3, $4, $5::pg_catalog.jsonb, $6, $7, $8)
             ON CONFLICT (name) DO UPDATE
                SET (owner, schedule, task, args, time_zone, enabled, disabled_reason, created_at)
                  = ROW (excluded.owner, excluded.schedule, excluded.task, excluded.args, excluded.time_zone, excluded.enabled,
                         excluded.disabled_reason, excluded.created_at)
              WHERE d.owner = excluded.owner
             RETURNING id",
            &[
                job.name.as_str().into(),
                job.owner.into(),
                job.schedule.as_str().into(),
                job.task.as_str().into(),
                job.args.as_str().into(),
                job.time_zone.as_str().into(),
                job.enabled.into(),
                job.disabled_reason.as_deref().into(),
            ],
            |row| row.get::<i64>(1),
        )?
        .pop()
        .flatten();
        let Some(id) = saved else {
            // Somebody else has taken the name since it was looked for.
            let owner = find(&job.name)?.map_or(job.owner, |other| other.owner);
            return Err(JobError::OthersJob {
                name: job.name.clone(),
                owner: identity::role_name(owner),
            }
            .into());
        };
        forget_slot(&job.name)?;
        Ok(id)
    })
}

pub fn delete(name: &str, owner: Oid) -> Result<()> {
    as_extension_owner(|| {
        spi::execute(
            "DELETE FROM audit_db.job_definitions WHERE name = $1 AND owner::pg_catalog.oid = $2",
            &[name.into(), owner.into()],
        )?;
        forget_slot(name)
    })
}

fn forget_slot(name: &str) -> Result<()> {
    spi::execute(
        "DELETE FROM audit_db.job_slots WHERE name = $1",
        &[name.into()],
    )?;
    Ok(())
}

/// A job that cannot run any longer stops trying, and says why.
pub fn disable(job: &Definition, reason: &str) -> Result<()> {
    if job.unchanged {
        save(&Definition {
            enabled: false,
            disabled_reason: Some(reason.to_owned()),
            ..job.clone()
        })?;
        return Ok(());
    }
    // Somebody may have changed or removed it meanwhile.
    as_extension_owner(|| {
        spi::execute(
            "UPDATE audit_db.job_definitions SET enabled = false, disabled_reason = $2
              WHERE name = $1 AND owner::pg_catalog.oid = $3 AND schedule = $4 AND time_zone = $5 AND enabled",
            &[
                job.name.as_str().into(),
                reason.into(),
                job.owner.into(),
                job.schedule.as_str().into(),
                job.time_zone.as_str().into(),
            ],
        )?;
        Ok(())
    })
}

/// Why a role cannot run jobs in this database, if so.
pub fn why_not_connect(role: Oid) -> Result<Option<&'static str>> {
    let found = spi::rows_of_kept(
        "SELECT rolcanlogin, rolsuper OR pg_catalog.has_database_privilege(oid, pg_catalog.current_database()::pg_catalog.text, 'CONNECT')
           FROM pg_catalog.pg_roles WHERE oid = $1",
        &[role],
        |row| Ok((row.get::<bool>(1)?, row.get::<bool>(2)?)),
    )?
    .pop();
    Ok(match found {
        None => Some("The role does not exist any more."),
        Some((Some(true), Some(true))) => None,
        Some((Some(true), _)) => Some("It may not connect to the database."),
        Some(_) => Some("It may not log in."),
    })
}

/// A run that no job stands for: the indexes of one table are looked after for a role.
pub fn reindex_of(table: &str, role: Oid) -> Definition {
    Definition {
        name: format!("maintain_partitions {table}"),
        owner: role,
        schedule: String::new(),
        task: Kind::Reindex.name().to_owned(),
        args: serde_json::json!({ "table": table }).to_string(),
        time_zone: "UTC".to_owned(),
        enabled: true,
        disabled_reason: None,
        shipped: false,
        unchanged: true,
    }
}
