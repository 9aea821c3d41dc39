//! Slow statements and metrics in tables: by the worker of a database, which reads the ring and writes what is its database's.

use crate::error::Result;
use crate::partition::managed::as_extension_owner;
use crate::pg::{clock, identity, spi, xact};
use crate::settings;
use crate::shmem::{slow_ring, workers};
use std::time::{Duration, Instant};

/// Records that are stored in one transaction.
const BATCH: u64 = 500;
/// Transactions of one look.
const BATCHES: usize = 20;
/// A record that is still being written when so many newer ones are there never will be.
const PATIENCE: u64 = 64;
const HISTORY_DAYS: i32 = 30;
const DAY_MICROS: i64 = 86_400_000_000;
/// Days for which there are partitions before they begin.
const DAYS_AHEAD: i32 = 3;
/// Between two looks at what has come, and the longest while nothing can be stored.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Between two looks for what has expired.
const UPKEEP: Duration = Duration::from_secs(3_600);

/// What a worker does for the statements of its database.
pub struct Keeper {
    log: Log,
    looked: Option<Instant>,
    pause: Duration,
    sampled: Option<Instant>,
    upkept: Option<Instant>,
}

impl Keeper {
    pub fn new() -> Self {
        Self {
            log: Log::default(),
            looked: None,
            pause: PAUSE,
            sampled: None,
            upkept: None,
        }
    }

    /// Stores what is due. Returns when the next look is.
    pub fn tend(&mut self, note: impl Fn(Result<()>)) -> Instant {
        let interval = settings::metrics_interval();
        let counted_on = i64::try_from((interval * 2 + LONGEST_PAUSE).as_micros()).unwrap_or(0);
        slow_ring::keep(
            identity::my_database().to_u32(),
            clock::wall().saturating_add(counted_on),
        );
        let now = Instant::now();
        let due = |last: Option<Instant>, every: Duration| last.map_or(now, |last| last + every);
        if due(self.upkept, UPKEEP) <= now {
            self.upkept = Some(now);
            upkeep(&note);
        }
        if due(self.sampled, interval) <= now {
            self.sampled = Some(now);
            note(xact::in_transaction(store_metrics));
        }
        let next = due(self.sampled, interval).min(due(self.upkept, UPKEEP));
        if self.log.is_behind() && due(self.looked, self.pause) <= now {
            self.looked = Some(now);
            let outcome = self.log.catch_up();
            self.pause = if outcome.is_ok() {
                PAUSE
            } else {
                (self.pause * 2).min(LONGEST_PAUSE)
            };
            note(outcome);
        }
        // What comes soon after something has come wakes nobody.
        match self.looked {
            Some(looked) if looked + self.pause > now => next.min(looked + self.pause),
            _ if self.log.is_behind() => now + PAUSE,
            _ => next,
        }
    }
}

/// Where a worker is in the ring.
#[derive(Default)]
struct Log {
    next: Option<u64>,
    /// A batch could not be stored: one record is, or is not, at a time.
    careful: bool,
}

impl Log {
    /// Whether something has come since the last look.
    fn is_behind(&self) -> bool {
        self.next.is_none_or(|next| next < slow_ring::next())
    }

    /// Stores what has come. Outside a transaction.
    fn catch_up(&mut self) -> Result<()> {
        for _ in 0..BATCHES {
            let from = match self.next {
                Some(next) => next,
                None => xact::in_transaction(stored_until)? + 1,
            }
            .max(slow_ring::oldest());
            self.next = Some(from);
            let (until, mine) = look(from, if self.careful { 1 } else { BATCH });
            if until == from {
                break;
            }
            if let (Some(first), Some(last)) = (mine.first(), mine.last()) {
                match xact::in_transaction(|| store(*first, *last + 1)) {
                    Ok(()) => {}
                    // It is not the records: they are stored later.
                    Err(error) if error.is_transient() => return Err(error),
                    Err(error) if !self.careful => {
                        self.careful = true;
                        return Err(error);
                    }
                    Err(error) => {
                        slow_ring::note_lost(mine.len() as u64);
                        self.next = Some(until);
                        mine.into_iter().for_each(slow_ring::note_stored);
                        return Err(error);
                    }
                }
                mine.into_iter().for_each(slow_ring::note_stored);
            }
            self.next = Some(until);
            if until == slow_ring::next() {
                self.careful = false;
                break;
            }
        }
        Ok(())
    }
}

/// How far records can be read from a number on, and which of them are this database's.
fn look(from: u64, most: u64) -> (u64, Vec<u64>) {
    let newest = slow_ring::next();
    let patience = PATIENCE.min(slow_ring::capacity() / 2);
    let database = identity::my_database().to_u32();
    let too_old =
        clock::wall() - i64::try_from(settings::slow_query_retention().as_micros()).unwrap_or(0);
    let mut mine = Vec::new();
    let mut until = from;
    while until < newest && (mine.len() as u64) < most {
        match slow_ring::read(until) {
            Some(slow) if slow.record.database == database && slow.record.captured_at > too_old => {
                mine.push(until);
            }
            Some(_) => {}
            None if slow_ring::is_pending(until) && newest - until <= patience => break,
            None => {}
        }
        until += 1;
    }
    (until, mine)
}

/// Stores records of this database. Within a transaction.
fn store(from: u64, until: u64) -> Result<()> {
    as_extension_owner(|| {
        make_days(&format!(
            "SELECT DISTINCT date_trunc('day', captured_at AT TIME ZONE 'UTC')
               FROM audit_db.slow_query_rows({from}, {until}) WHERE database = current_database()"
        ))?;
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
    })
}

/// The last record of this server's run that is in the table, or the one before the first.
fn stored_until() -> Result<u64> {
    let (base, next) = (slow_ring::base(), slow_ring::next());
    let last = spi::rows(
        &format!(
            "SELECT max(sequence) FROM audit_db.slow_query_log
              WHERE captured_at >= timestamptz 'epoch' + {}::bigint * interval '1 microsecond' AND sequence >= {base} AND sequence < {next}",
            slow_ring::started_at() - DAY_MICROS + clock::EPOCH_SECONDS * 1_000_000
        ),
        &[],
        |row| row.get::<i64>(1),
    )?;
    Ok(last
        .into_iter()
        .flatten()
        .next()
        .and_then(|last| u64::try_from(last).ok())
        .unwrap_or(base - 1))
}

/// Makes the coming days, and drops what has expired; one does not depend on the other.
fn upkeep(note: &impl Fn(Result<()>)) {
    note(xact::in_transaction(|| {
        as_extension_owner(|| {
            make_days(&format!(
                "SELECT date_trunc('day', now() AT TIME ZONE 'UTC') + day * interval '1 day'
                   FROM generate_series(0, {DAYS_AHEAD}) AS day"
            ))
        })
    }));
    // As for audit tables: a clock that was moved drops nothing.
    if workers::clock_jump(identity::my_database(), clock::reading()).is_some() {
        return;
    }
    match xact::in_transaction(expired_days) {
        Ok(days) => {
            for day in days.iter().take(settings::max_partitions_dropped()) {
                note(xact::in_transaction(|| {
                    as_extension_owner(|| drop_day(day))
                }));
            }
        }
        Err(error) => note(Err(error)),
    }
    note(xact::in_transaction(|| {
        as_extension_owner(|| {
            spi::execute(
                &format!(
                    "DELETE FROM audit_db.metrics_history WHERE sampled_at < now() - {HISTORY_DAYS} * interval '1 day'"
                ),
                &[],
            )?;
            Ok(())
        })
    }));
}

/// Partitions for those of these days that have none.
fn make_days(days: &str) -> Result<()> {
    let missing = spi::rows(
        &format!(
            "SELECT 'slow_query_log_' || to_char(day, 'YYYY_MM_DD'), to_char(day, 'YYYY-MM-DD'), to_char(day + interval '1 day', 'YYYY-MM-DD')
               FROM ({days}) AS d (day) WHERE to_regclass('audit_db.slow_query_log_' || to_char(day, 'YYYY_MM_DD')) IS NULL"
        ),
        &[],
        |row| Ok((row.get::<String>(1)?, row.get::<String>(2)?, row.get::<String>(3)?)),
    )?;
    for day in missing {
        let (Some(name), Some(from), Some(to)) = day else {
            continue;
        };
        // Attached, so that who reads the log is not in the way. Members of the extension: pg_dump leaves them out, and
        // DROP EXTENSION takes them.
        for statement in [
            format!("CREATE TABLE audit_db.{name} (LIKE audit_db.slow_query_log INCLUDING ALL)"),
            format!(
                "ALTER TABLE audit_db.slow_query_log ATTACH PARTITION audit_db.{name}
                 FOR VALUES FROM ('{from} 00:00:00+00') TO ('{to} 00:00:00+00')"
            ),
            format!("ALTER EXTENSION audit_db ADD TABLE audit_db.{name}"),
        ] {
            spi::execute(&statement, &[])?;
        }
    }
    Ok(())
}

/// The days that are over, the oldest first.
fn expired_days() -> Result<Vec<String>> {
    let minutes = settings::slow_query_retention().as_secs() / 60;
    let days = spi::rows(
        &format!(
            "SELECT c.relname::text FROM pg_catalog.pg_inherits i JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid
              WHERE i.inhparent = 'audit_db.slow_query_log'::regclass AND c.relname ~ '^slow_query_log_\\d{{4}}_\\d\\d_\\d\\d$'
                AND to_date(right(c.relname, 10), 'YYYY_MM_DD') + 1 < (now() AT TIME ZONE 'UTC') - {minutes}::bigint * interval '1 minute'
              ORDER BY 1"
        ),
        &[],
        |row| row.get::<String>(1),
    )?;
    Ok(days.into_iter().flatten().collect())
}

fn drop_day(name: &str) -> Result<()> {
    spi::execute(
        &format!("ALTER EXTENSION audit_db DROP TABLE audit_db.{name}"),
        &[],
    )?;
    spi::execute(&format!("DROP TABLE audit_db.{name}"), &[])?;
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
