//! Time: the server's clock, the machine's boot clock, and the server's time-zone rules.

use crate::error::{Error, Result};
use audit_db_core::calendar::{from_postgres_micros, to_postgres_micros};
use audit_db_core::partition_plan::Zone;
use audit_db_core::retention::ClockReading;
use chrono::NaiveDateTime;
use pgrx::pg_sys;
use std::ffi::CString;
use std::mem::MaybeUninit;

const MICROS: i64 = 1_000_000;
/// Seconds from the Unix epoch to PostgreSQL's.
pub const EPOCH_SECONDS: i64 = 946_684_800;
const DAY_SECONDS: i64 = 86_400;

/// Start of the current transaction, like `now()`.
pub fn transaction_start() -> i64 {
    // SAFETY: reads a variable of the transaction.
    unsafe { pg_sys::GetCurrentTransactionStartTimestamp() }
}

/// The wall clock now, like `clock_timestamp()`.
pub fn wall() -> i64 {
    // SAFETY: reads the clock.
    unsafe { pg_sys::GetCurrentTimestamp() }
}

/// Whether the server has been running for less than a minute.
pub fn just_started() -> bool {
    // SAFETY: reads a variable that the postmaster set.
    wall() - unsafe { pg_sys::PgStartTime } < 60_000_000
}

/// Both clocks now. The boot clock goes on while the machine sleeps and is the same for all processes.
pub fn reading() -> ClockReading {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: fills the structure; the clock exists on every Linux that the server runs on.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut time) };
    ClockReading {
        wall: wall(),
        boot: time.tv_sec * MICROS + time.tv_nsec / 1_000,
    }
}

/// The boot clock now: nobody sets it back.
pub fn boot() -> i64 {
    reading().boot
}

/// The clock that durations are taken with, in nanoseconds; the same for all processes.
#[inline]
pub fn monotonic() -> u64 {
    let mut time = MaybeUninit::<libc::timespec>::uninit();
    // SAFETY: fills the structure; the clock exists everywhere.
    let time = unsafe {
        libc::clock_gettime(libc::CLOCK_MONOTONIC, time.as_mut_ptr());
        time.assume_init()
    };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// How long ago a time of the boot clock is.
pub fn elapsed(since: i64) -> std::time::Duration {
    std::time::Duration::from_micros(u64::try_from(boot() - since).unwrap_or(0))
}

/// A time as the session shows it.
pub fn text(time: i64) -> String {
    // SAFETY: returns a static buffer that is copied at once.
    unsafe {
        std::ffi::CStr::from_ptr(pg_sys::timestamptz_to_str(time))
            .to_string_lossy()
            .into_owned()
    }
}

/// A named zone of the server's time-zone database.
#[derive(Clone, Copy)]
pub struct NamedZone {
    zone: *mut pg_sys::pg_tz,
}

impl NamedZone {
    pub fn named(name: &str) -> Result<Self> {
        let unknown = || Error::UnknownZone(name.to_owned());
        let text = CString::new(name).map_err(|_| unknown())?;
        if name.is_empty() {
            return Err(unknown());
        }
        // SAFETY: returns null for what it does not know; what it returns lives as long as the process.
        let zone = unsafe { pg_sys::pg_tzset(text.as_ptr()) };
        // SAFETY: the zone was just found.
        if zone.is_null() || !unsafe { pg_sys::pg_tz_acceptable(zone) } {
            return Err(unknown());
        }
        Ok(Self { zone })
    }

    /// Seconds east of Greenwich at a Unix time.
    fn offset(self, unix: i64) -> Option<i64> {
        // SAFETY: the zone is valid; the result is a static buffer that is read at once.
        unsafe {
            let fields = pg_sys::pg_localtime(&unix, self.zone);
            fields.as_ref().map(|fields| fields.tm_gmtoff)
        }
    }

    /// The next time after `unix` at which the offset changes.
    fn next_change(self, unix: i64) -> Option<i64> {
        let (mut before, mut after, mut boundary) = (0, 0, 0);
        let (mut before_dst, mut after_dst) = (0, 0);
        // SAFETY: every pointer is to a local variable.
        let found = unsafe {
            pg_sys::pg_next_dst_boundary(
                &unix,
                &mut before,
                &mut before_dst,
                &mut boundary,
                &mut after,
                &mut after_dst,
                self.zone,
            )
        };
        (found == 1).then_some(boundary)
    }
}

impl Zone for NamedZone {
    /// Walks the stretches of constant offset around the time in question: right also where midnight does not exist, where
    /// it happens twice, and where a whole day is skipped.
    fn position(&self, local: NaiveDateTime) -> Option<i64> {
        let micros = to_postgres_micros(local);
        let seconds = micros.div_euclid(MICROS) + EPOCH_SECONDS;
        let mut start = seconds - 2 * DAY_SECONDS;
        // Each turn is a change of offset within four days: there are never more than a few.
        for _ in 0..8 {
            let offset = self.offset(start)?;
            let candidate = start.max(seconds - offset);
            match self.next_change(start) {
                Some(change) if change <= candidate => start = change,
                _ => {
                    // A stretch that begins after the local time had passed begins in a gap: it starts there, to the second.
                    let fraction = if candidate == seconds - offset {
                        micros.rem_euclid(MICROS)
                    } else {
                        0
                    };
                    return (candidate - EPOCH_SECONDS)
                        .checked_mul(MICROS)?
                        .checked_add(fraction);
                }
            }
        }
        None
    }

    fn local(&self, position: i64) -> Option<NaiveDateTime> {
        let unix = position.div_euclid(MICROS) + EPOCH_SECONDS;
        let offset = self.offset(unix)?;
        from_postgres_micros(position.checked_add(offset * MICROS)?)
    }
}

/// Local time is the position: keys of type `timestamp` and `date`.
#[derive(Clone, Copy)]
pub struct LocalTime;

impl Zone for LocalTime {
    fn position(&self, local: NaiveDateTime) -> Option<i64> {
        Some(to_postgres_micros(local))
    }

    fn local(&self, position: i64) -> Option<NaiveDateTime> {
        from_postgres_micros(position)
    }
}
