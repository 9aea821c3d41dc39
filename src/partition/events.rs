//! What happened to managed tables, in `audit_db.events_log`: what was made and what went, and what could not be done and why.

use crate::error::{Failure, Result};
use crate::partition::managed::as_extension_owner;
use crate::pg::spi;

/// Entries are kept this long. The log is for people; the record of runs has its own, longer life.
const KEPT_DAYS: i32 = 90;

/// Records something that was done.
pub fn done(event: &str, object: &str, detail: &str) -> Result<()> {
    as_extension_owner(|| {
        spi::execute(
            "INSERT INTO audit_db.events_log (severity, event, object, message) VALUES ('info', $1, $2, $3)",
            &[event.into(), object.into(), detail.into()],
        )?;
        Ok(())
    })
}

/// Records something that could not be done. The same failure again within a day raises the count of the entry there is, so
/// that a fault that lasts does not fill the log.
pub fn failed(event: &str, object: &str, failure: &Failure) -> Result<()> {
    as_extension_owner(|| {
        let again = spi::execute(
            "UPDATE audit_db.events_log SET last_at = pg_catalog.now(), occurrences = occurrences + 1
              WHERE id = (SELECT e.id FROM audit_db.events_log e
                           WHERE e.severity = 'error' AND e.event = $1 AND e.object = $2
                             AND e.last_at > pg_catalog.now() - interval '1 day'
                             AND e.sqlstate = $3 AND e.message = $4
                           ORDER BY e.id DESC LIMIT 1)",
            &[
                event.into(),
                object.into(),
                failure.sqlstate.as_str().into(),
                failure.message.as_str().into(),
            ],
        )?;
        if again == 0 {
            spi::execute(
                "INSERT INTO audit_db.events_log (severity, event, object, sqlstate, message, detail, hint)
                 VALUES ('error', $1, $2, $3, $4, $5, $6)",
                &[
                    event.into(),
                    object.into(),
                    failure.sqlstate.as_str().into(),
                    failure.message.as_str().into(),
                    failure.detail.as_deref().into(),
                    failure.hint.as_deref().into(),
                ],
            )?;
        }
        Ok(())
    })
}

/// Whether something could not be done within the last day.
pub fn has_failed_lately(event: &str, object: &str) -> Result<bool> {
    Ok(!spi::rows(
        "SELECT 1 FROM audit_db.events_log
          WHERE severity = 'error' AND event = $1 AND object = $2
            AND last_at > pg_catalog.now() - interval '1 day' LIMIT 1",
        &[event.into(), object.into()],
        |row| row.get::<i32>(1),
    )?
    .is_empty())
}

/// Removes entries that are too old.
pub fn purge() -> Result<()> {
    as_extension_owner(|| {
        spi::execute(
            "DELETE FROM audit_db.events_log WHERE last_at < pg_catalog.now() - pg_catalog.make_interval(days => $1)",
            &[KEPT_DAYS.into()],
        )?;
        Ok(())
    })
}
