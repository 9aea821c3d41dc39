//! What the slow worker is in the middle of, in `audit_db.unfinished`: what a crash would leave behind.

use crate::error::Result;
use crate::partition::managed::as_extension_owner;
use crate::pg::spi;
use pgrx::datum::AnyNumeric;
use pgrx::pg_sys::Oid;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Rows of a default partition are being copied.
    Exchange,
    /// A default partition was exchanged; the old one is to be compared and dropped.
    Verification,
    /// A partition is being detached while others use the table.
    Detach,
}

impl Step {
    const ALL: [Self; 3] = [Self::Exchange, Self::Verification, Self::Detach];

    const fn name(self) -> &'static str {
        match self {
            Self::Exchange => "exchange",
            Self::Verification => "verification",
            Self::Detach => "detach",
        }
    }
}

/// One entry.
#[derive(Clone, Debug)]
pub struct Unfinished {
    /// The partition: the default one, or the one that is detached.
    pub object: Oid,
    pub step: Step,
    /// Tables that were made for an exchange and are members of the extension.
    pub tables: Vec<Oid>,
    /// What happens after a detach.
    pub action: Option<String>,
    /// Upper bound of the partition that is detached, as a position.
    pub range_end: Option<i64>,
    /// Rows that an exchanged default partition must have, and the sum of their hashes.
    pub contents: Option<Contents>,
}

/// What a table holds, whatever the order of its rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    pub rows: i64,
    pub hash: i128,
}

impl Contents {
    pub const fn plus(self, other: Self) -> Self {
        Self {
            rows: self.rows + other.rows,
            hash: self.hash + other.hash,
        }
    }
}

/// What is unfinished of a table.
pub fn of_table(parent: Oid) -> Result<Vec<Unfinished>> {
    let rows = spi::rows(
        "SELECT object, step, tables, action, record_count, record_hash::pg_catalog.text, range_end
           FROM audit_db.unfinished WHERE parent = $1 ORDER BY started_at",
        &[parent.into()],
        |row| {
            Ok((
                row.get::<Oid>(1)?,
                row.get::<String>(2)?,
                row.get::<Vec<Oid>>(3)?,
                row.get::<String>(4)?,
                row.get::<i64>(5)?,
                row.get::<String>(6)?,
                row.get::<i64>(7)?,
            ))
        },
    )?;
    Ok(rows
        .into_iter()
        .filter_map(|(object, step, tables, action, count, hash, range_end)| {
            let step = step?;
            Some(Unfinished {
                object: object?,
                step: Step::ALL.into_iter().find(|known| known.name() == step)?,
                tables: tables.unwrap_or_default(),
                action,
                range_end,
                contents: count
                    .zip(hash.and_then(|text| text.parse().ok()))
                    .map(|(rows, hash)| Contents { rows, hash }),
            })
        })
        .collect())
}

/// Tables of which something is unfinished, also those that are no longer managed or gone.
pub fn parents() -> Result<Vec<Oid>> {
    Ok(spi::rows_of_kept(
        "SELECT DISTINCT parent FROM audit_db.unfinished ORDER BY 1",
        &[],
        |row| row.get::<Oid>(1),
    )?
    .into_iter()
    .flatten()
    .collect())
}

pub fn begin_exchange(parent: Oid, default: Oid, tables: Vec<Oid>) -> Result<()> {
    begin(parent, default, Step::Exchange, tables, None, None)
}

pub fn begin_detach(parent: Oid, partition: Oid, action: &str, range_end: i64) -> Result<()> {
    begin(
        parent,
        partition,
        Step::Detach,
        Vec::new(),
        Some(action),
        Some(range_end),
    )
}

fn begin(
    parent: Oid,
    object: Oid,
    step: Step,
    tables: Vec<Oid>,
    action: Option<&str>,
    range_end: Option<i64>,
) -> Result<()> {
    as_extension_owner(|| {
        spi::execute(
            "INSERT INTO audit_db.unfinished (object, parent, step, tables, action, range_end) VALUES ($1, $2, $3, $4, $5, $6)
             ON CONFLICT (object) DO UPDATE SET (parent, step, tables, action, range_end, started_at)
                  = ROW (excluded.parent, excluded.step, excluded.tables, excluded.action, excluded.range_end,
                         excluded.started_at)",
            &[
                object.into(),
                parent.into(),
                step.name().into(),
                tables.into(),
                action.into(),
                range_end.into(),
            ],
        )?;
        Ok(())
    })
}

/// The default partition has been exchanged for another one.
pub fn begin_verification(default: Oid, log: Oid, contents: Contents) -> Result<()> {
    let hash: AnyNumeric = contents.hash.into();
    as_extension_owner(|| {
        spi::execute(
            "UPDATE audit_db.unfinished SET step = $2, tables = $5, record_count = $3, record_hash = $4 WHERE object = $1",
            &[
                default.into(),
                Step::Verification.name().into(),
                contents.rows.into(),
                hash.into(),
                vec![log].into(),
            ],
        )?;
        Ok(())
    })
}

pub fn remove(object: Oid) -> Result<()> {
    as_extension_owner(|| {
        spi::execute(
            "DELETE FROM audit_db.unfinished WHERE object = $1",
            &[object.into()],
        )?;
        Ok(())
    })
}
