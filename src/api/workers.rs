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
        name!(state, String),
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
    String,
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
        slot.state.name().to_owned(),
        i32::try_from(slot.restarts).unwrap_or(i32::MAX),
        slot.last_error(),
    )
}
