//! The indexes of a table as definitions that can be made on its partitions: after the rows are in (which is faster), and beside
//! everybody else's work where a partition lacks one.

use crate::error::{Error, Result};
use crate::pg::guc::Scope;
use crate::pg::spi::{self, quote_identifier};
use pgrx::pg_sys::Oid;

/// One index.
#[derive(Clone, Debug)]
pub struct Definition {
    pub oid: Oid,
    /// Quoted, without its schema.
    pub name: String,
    unique: bool,
    /// From USING on, as the server writes it.
    tail: String,
    tablespace: Option<String>,
    /// Of an index that stands for a constraint: `PRIMARY KEY (…)`, `UNIQUE (…)` or `EXCLUDE …`.
    pub constraint: Option<Constraint>,
}

#[derive(Clone, Debug)]
pub struct Constraint {
    /// As in `pg_constraint.contype`.
    pub kind: String,
    definition: String,
    /// Of the index, as in WITH (…).
    parameters: Option<String>,
}

impl Constraint {
    /// The constraint without, and the words about, when it is checked.
    fn parts(&self) -> (&str, &str) {
        let at = self
            .definition
            .rfind(" DEFERRABLE")
            .unwrap_or(self.definition.len());
        self.definition.split_at(at)
    }

    /// When it is checked, as clauses of a constraint; empty where at once.
    pub fn deferrability(&self) -> &str {
        self.parts().1
    }
}

impl Definition {
    /// Makes the index on a table. Its name is the server's choice, as for a table made with LIKE.
    pub fn create_on(&self, scope: &Scope, target: &str) -> Result<()> {
        scope.set(
            c"default_tablespace",
            self.tablespace.as_deref().unwrap_or(""),
        );
        let sql = match &self.constraint {
            Some(constraint) => {
                let (what, when) = constraint.parts();
                let with = constraint
                    .parameters
                    .as_ref()
                    .filter(|_| constraint.kind != "x")
                    .map_or(String::new(), |parameters| format!(" WITH ({parameters})"));
                format!("ALTER TABLE {target} ADD {what}{with}{when}")
            }
            None => self.command("", target),
        };
        spi::execute(&sql, &[])?;
        Ok(())
    }

    /// The command that makes the index while others write. It stands for no constraint then.
    pub fn concurrent_command(&self, target: &str) -> String {
        self.command("CONCURRENTLY ", target)
    }

    fn command(&self, concurrently: &str, target: &str) -> String {
        let unique = if self.unique { "UNIQUE " } else { "" };
        format!(
            "CREATE {unique}INDEX {concurrently}ON {target} {}",
            self.tail
        )
    }

    /// Whether the other index, of a table with the same columns, is made in the same way.
    pub fn equals(&self, other: &Self) -> bool {
        self.unique == other.unique && self.tail == other.tail
    }

    pub fn tablespace(&self) -> Option<&str> {
        self.tablespace.as_deref()
    }
}

/// All indexes of a table, in the order in which they were made. `qualified` is its name as the server writes it.
pub fn of_table(table: Oid, qualified: &str) -> Result<Vec<Definition>> {
    list(table, qualified, "")
}

/// The valid indexes of a partition that are not attached to an index of its table.
pub fn unattached(partition: Oid, qualified: &str) -> Result<Vec<Definition>> {
    list(
        partition,
        qualified,
        "AND i.indisvalid AND NOT c.relispartition",
    )
}

/// The invalid ones: a CREATE INDEX CONCURRENTLY was interrupted.
pub fn invalid(partition: Oid, qualified: &str) -> Result<Vec<Definition>> {
    list(
        partition,
        qualified,
        "AND NOT i.indisvalid AND NOT c.relispartition",
    )
}

fn list(table: Oid, qualified: &str, condition: &str) -> Result<Vec<Definition>> {
    let rows = spi::rows(
        &format!(
            "SELECT i.indexrelid, pg_catalog.quote_ident(c.relname), i.indisunique,
                    pg_catalog.pg_get_indexdef(i.indexrelid), c.relkind::text, t.spcname::text,
                    con.contype::text, pg_catalog.pg_get_constraintdef(con.oid),
                    pg_catalog.array_to_string(c.reloptions, ', ')
               FROM pg_catalog.pg_index i
               JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
               LEFT JOIN pg_catalog.pg_tablespace t ON t.oid = c.reltablespace
               LEFT JOIN pg_catalog.pg_constraint con ON con.conindid = i.indexrelid AND con.conrelid = i.indrelid
                                                     AND con.contype IN ('p', 'u', 'x')
              WHERE i.indrelid = $1 {condition} ORDER BY i.indexrelid"
        ),
        &[table.into()],
        |row| {
            Ok((
                row.get::<Oid>(1)?.unwrap_or(Oid::INVALID),
                row.get::<String>(2)?.unwrap_or_default(),
                row.get::<bool>(3)?.unwrap_or(false),
                row.get::<String>(4)?.unwrap_or_default(),
                row.get::<String>(5)?.unwrap_or_default(),
                row.get::<String>(6)?,
                row.get::<String>(7)?,
                row.get::<String>(8)?,
                row.get::<String>(9)?,
            ))
        },
    )?;
    rows.into_iter()
        .map(
            |(oid, name, unique, text, kind, tablespace, constraint, definition, parameters)| {
                let start = format!(
                    "CREATE {}INDEX {name} ON {}{qualified} ",
                    if unique { "UNIQUE " } else { "" },
                    if kind == "I" { "ONLY " } else { "" },
                );
                let tail = text.strip_prefix(&start).ok_or_else(|| {
                    Error::Internal(format!("index {name} cannot be read: {text}"))
                })?;
                Ok(Definition {
                    oid,
                    name,
                    unique,
                    tail: tail.to_owned(),
                    tablespace,
                    constraint: constraint
                        .zip(definition)
                        .map(|(kind, definition)| Constraint {
                            kind,
                            definition,
                            parameters,
                        }),
                })
            },
        )
        .collect()
}

/// Foreign keys of a table, each as its quoted name and definition, without those that the server made for partitions of the
/// table they refer to.
pub fn foreign_keys(table: Oid) -> Result<Vec<(String, String)>> {
    constraints(
        table,
        "c.contype = 'f' AND NOT EXISTS (SELECT FROM pg_catalog.pg_constraint p
                                          WHERE p.oid = c.conparentid AND p.conrelid = c.conrelid)",
    )
}

/// CHECK constraints of a table that its rows need not fulfil.
pub fn unvalidated_checks(table: Oid) -> Result<Vec<(String, String)>> {
    constraints(table, "c.contype = 'c' AND NOT c.convalidated")
}

fn constraints(table: Oid, condition: &str) -> Result<Vec<(String, String)>> {
    Ok(spi::rows(
        &format!(
            "SELECT c.conname::text, pg_catalog.pg_get_constraintdef(c.oid)
               FROM pg_catalog.pg_constraint c WHERE c.conrelid = $1 AND {condition} ORDER BY c.oid"
        ),
        &[table.into()],
        |row| Ok((row.get::<String>(1)?, row.get::<String>(2)?)),
    )?
    .into_iter()
    .filter_map(|(name, definition)| Some((quote_identifier(name?), definition?)))
    .collect())
}
