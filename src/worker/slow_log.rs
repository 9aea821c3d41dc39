//! Slow statements and metrics in tables: by the worker of a database, which reads the ring and writes what is its database's.

use crate::error::Result;
use crate::partition::managed::as_extension_owner;
use crate::pg::{clock, identity, spi, xact};
use crate::settings;
use crate::shmem::slow_ring;
use std::time::{Duration, Instant};

/// Records of one look.
const BATCH: u64 = 500;
/// A record that is still not whole when so many newer ones are never will be.
const PATIENCE: u64 = 64;
const HISTORY_DAYS: i32 = 30;
const DAY_MICROS: i64 = 86_400_000_000;

/// Between two looks at what has come.
const PAUSE: Duration = Duration::from_secs(1);

/// What a worker does for the statements of its database.
pub struct Keeper {
    log: Log,
    looked: Option<Instant>,
    metrics_due: Instant,
}

impl Keeper {
    pub fn new() -> Self {
        Self {
            log: Log::default(),
            looked: None,
            metrics_due: Instant::now(),
        }
    }

    /// Stores what is due. Returns when the next look is.
    pub fn tend(&mut self, note: impl Fn(Result<()>)) -> Instant {
        let now = Instant::now();
        let mut next = self.metrics_due;
        if now >= self.metrics_due {
            self.metrics_due = now + settings::metrics_interval();
            next = self.metrics_due;
            note(xact::in_transaction(store_metrics));
        }
        next = next.min(now + settings::metrics_interval());
        let rests = self.looked.map_or(now, |looked| looked + PAUSE);
        if now < rests {
            return if self.log.is_behind() {
                next.min(rests)
            } else {
                next
            };
        }
        if self.log.is_behind() {
            self.looked = Some(now);
            let outcome = xact::in_transaction(|| self.log.store());
            if outcome.is_err() {
                self.log.forget();
            }
            note(outcome);
            // What comes meanwhile wakes nobody.
            next = next.min(now + PAUSE);
        }
        next
    }
}

/// Where a worker is in the ring.
#[derive(Default)]
struct Log {
    next: Option<u64>,
    purged: Option<i64>,
}

impl Log {
    /// Whether something has come since the last look.
    fn is_behind(&self) -> bool {
        self.next != Some(slow_ring::next())
    }

    /// Stores what has come. Within a transaction.
    fn store(&mut self) -> Result<()> {
        let next = match self.next {
            Some(next) => next,
            None => Self::stored_until()? + 1,
        };
        let oldest = slow_ring::oldest();
        if next < oldest && self.next.is_some() {
            slow_ring::note_lost(oldest - next);
        }
        let from = next.max(oldest);
        let newest = slow_ring::next();
        let database = identity::my_database().to_u32();
        let mut until = from;
        let mut any = false;
        while until < newest && until - from < BATCH {
            match slow_ring::read(until) {
                Some(slow) => any |= slow.record.database == database,
                None if newest - until > PATIENCE => slow_ring::note_lost(1),
                None => break,
            }
            until += 1;
        }
        if any {
            as_extension_owner(|| {
                make_days()?;
                spi::execute(
                    &format!(
                        "INSERT INTO audit_db.slow_query_log
                         SELECT * FROM audit_db.slow_query_rows({from}, {until})
                          WHERE database OPERATOR(pg_catalog.=) pg_catalog.current_database()
                         ON CONFLICT DO NOTHING"
                    ),
                    &[],
                )?;
                Ok(())
            })?;
        }
        self.next = Some(until);
        if self
            .purged
            .is_none_or(|purged| clock::wall() - purged > DAY_MICROS / 24)
        {
            self.purged = Some(clock::wall());
            as_extension_owner(purge)?;
        }
        Ok(())
    }

    /// What a transaction that was rolled back had stored is to be stored again.
    fn forget(&mut self) {
        self.next = None;
    }

    /// The last record of this server's run that is in the table.
    fn stored_until() -> Result<u64> {
        let last = spi::rows(
            &format!(
                "SELECT max(sequence) FROM audit_db.slow_query_log
                  WHERE captured_at >= timestamptz 'epoch' + {}::bigint * interval '1 microsecond'",
                slow_ring::started_at() + clock::EPOCH_SECONDS * 1_000_000
            ),
            &[],
            |row| row.get::<i64>(1),
        )?;
        Ok(last
            .into_iter()
            .flatten()
            .next()
            .and_then(|last| u64::try_from(last).ok())
            .unwrap_or(0))
    }
}

/// Partitions for the days of yesterday to tomorrow: a record can be a little older than its storing.
fn make_days() -> Result<()> {
    for name in missing_days()? {
        // Members of the extension: pg_dump leaves them out, and DROP EXTENSION takes them.
        spi::execute(
            &format!(
                "CREATE TABLE audit_db.{name} PARTITION OF audit_db.slow_query_log
                 FOR VALUES FROM ('{from} 00:00:00+00') TO ('{to} 00:00:00+00')",
                name = name.0,
                from = name.1,
                to = name.2
            ),
            &[],
        )?;
        spi::execute(
            &format!("ALTER EXTENSION audit_db ADD TABLE audit_db.{}", name.0),
            &[],
        )?;
    }
    Ok(())
}

fn missing_days() -> Result<Vec<(String, String, String)>> {
    let rows = spi::rows(
        "SELECT 'slow_query_log_' || to_char(day, 'YYYY_MM_DD'), to_char(day, 'YYYY-MM-DD'), to_char(day + interval '1 day', 'YYYY-MM-DD')
           FROM generate_series(date_trunc('day', now() AT TIME ZONE 'UTC') - interval '1 day',
                                date_trunc('day', now() AT TIME ZONE 'UTC') + interval '1 day', interval '1 day') AS day
          WHERE to_regclass('audit_db.slow_query_log_' || to_char(day, 'YYYY_MM_DD')) IS NULL",
        &[],
        |row| Ok((row.get::<String>(1)?, row.get::<String>(2)?, row.get::<String>(3)?)),
    )?;
    Ok(rows
        .into_iter()
        .filter_map(|(name, from, to)| Some((name?, from?, to?)))
        .collect())
}

/// Drops the days that are over.
fn purge() -> Result<()> {
    let minutes = settings::slow_query_retention().as_secs() / 60;
    let expired = spi::rows(
        &format!(
            "SELECT c.relname::text FROM pg_catalog.pg_inherits i JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid
              WHERE i.inhparent = 'audit_db.slow_query_log'::regclass AND c.relname ~ '^slow_query_log_\\d{{4}}_\\d\\d_\\d\\d$'
                AND to_date(right(c.relname, 10), 'YYYY_MM_DD') + 1 < (now() AT TIME ZONE 'UTC') - {minutes}::bigint * interval '1 minute'"
        ),
        &[],
        |row| row.get::<String>(1),
    )?;
    for name in expired.into_iter().flatten() {
        spi::execute(
            &format!("ALTER EXTENSION audit_db DROP TABLE audit_db.{name}"),
            &[],
        )?;
        spi::execute(&format!("DROP TABLE audit_db.{name}"), &[])?;
    }
    spi::execute(
        &format!(
            "DELETE FROM audit_db.metrics_history WHERE sampled_at < now() - {HISTORY_DAYS} * interval '1 day'"
        ),
        &[],
    )?;
    Ok(())
}

/// Stores a row of the metrics. Within a transaction.
fn store_metrics() -> Result<()> {
    as_extension_owner(|| {
        spi::execute(
            "INSERT INTO audit_db.metrics_history SELECT pg_catalog.clock_timestamp(), m.* FROM audit_db.performance_metrics m",
            &[],
        )?;
        Ok(())
    })
}
