//! What stands behind the view `workers`.

use crate::error::or_raise;
use crate::shmem::workers::{self, Slot};
use pgrx::datum::TimestampWithTimeZone;
use pgrx::pg_sys::Oid;
use pgrx::prelude::*;

#[pg_extern(sql = "")]
#[allow(clippy::type_complexity)]
fn worker_slots() -> TableIterator<
    'static,
    (
        name!(database_oid, Oid),
        name!(pid, Option<i32>),
        name!(started, Option<TimestampWithTimeZone>),
        name!(last_cycle, Option<TimestampWithTimeZone>),
        name!(last_cycle_ms, Option<f64>),
        name!(state, String),
        name!(slow_pid, Option<i32>),
        name!(restarts, i32),
        name!(last_error, Option<String>),
    ),
> {
    let slots = or_raise(workers::snapshot());
    TableIterator::new(slots.into_iter().map(row))
}

#[allow(clippy::type_complexity)]
fn row(
    slot: Slot,
) -> (
    Oid,
    Option<i32>,
    Option<TimestampWithTimeZone>,
    Option<TimestampWithTimeZone>,
    Option<f64>,
    String,
    Option<i32>,
    i32,
    Option<String>,
) {
    let running = slot.pid != 0;
    let time = |micros: i64| TimestampWithTimeZone::try_from(micros).ok();
    (
        slot.database,
        running.then_some(slot.pid),
        running.then_some(slot.started).and_then(time),
        slot.last_cycle.and_then(|reading| time(reading.wall)),
        slot.cycle_micros.map(|micros| micros as f64 / 1_000.0),
        slot.state.name().to_owned(),
        (slot.slow_pid != 0).then_some(slot.slow_pid),
        i32::try_from(slot.restarts).unwrap_or(i32::MAX),
        slot.last_error(),
    )
}
