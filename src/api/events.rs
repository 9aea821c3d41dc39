//! `log_event`, `log_events`, `flush_events`, and what stands behind `ingest_stats`.

use crate::error::{Error, EventError, Result, or_raise};
use crate::ingest::session::{self, Event};
use crate::pg::clock;
use crate::pg::event_functions::{Call, Rest};
use crate::pg::guc::Scope;
use crate::pg::spi::{self, Bytes};
use crate::shmem;
use crate::shmem::queue;
use audit_db_core::record::{COLUMNS, Fields, METADATA};
use pgrx::datum::TimestampWithTimeZone;
use pgrx::prelude::*;

/// Places of the arguments of `log_event` after the values.
const EVENT_TIME: usize = COLUMNS.len();
const DURABILITY: usize = EVENT_TIME + 1;

/// `audit_db.log_event(…)`.
pub fn log_event(call: Call) -> Rest {
    let log = || -> Result<Rest> {
        let mut fields: Fields = [None; COLUMNS.len()];
        for (place, field) in fields.iter_mut().enumerate() {
            *field = call.bytes(place);
        }
        for place in 0..2 {
            if fields[place].is_none() {
                return Err(Error::MissingArgument(COLUMNS[place]));
            }
        }
        let event = Event {
            fields,
            event_time: call.time(EVENT_TIME).unwrap_or_else(clock::wall),
        };
        Ok(Rest {
            insert: session::log(&[event], call.text(DURABILITY))?,
            result: 1,
        })
    };
    or_raise(log())
}

/// `audit_db.log_events(…)`.
pub fn log_events(call: Call) -> Rest {
    let log = || -> Result<Rest> {
        let events = call.datum(0).ok_or(Error::MissingArgument("events"))?;
        let events = parse(events)?;
        let events: Vec<Event<'_>> = events
            .iter()
            .map(|(values, event_time)| {
                let mut fields: Fields = [None; COLUMNS.len()];
                for (field, value) in fields.iter_mut().zip(values) {
                    *field = value.as_ref().map(|value| value.0.as_slice());
                }
                Event {
                    fields,
                    event_time: *event_time,
                }
            })
            .collect();
        Ok(Rest {
            insert: session::log(&events, call.text(1))?,
            result: i64::try_from(events.len()).unwrap_or(i64::MAX),
        })
    };
    or_raise(log())
}

type Values = [Option<Bytes>; COLUMNS.len()];

/// The events of a JSON array. Keys that are no columns go into the metadata.
fn parse(events: pg_sys::Datum) -> Result<Vec<(Values, i64)>> {
    let _scope = Scope::reading();
    let kind = spi::rows(
        "SELECT pg_catalog.jsonb_typeof($1)",
        &[spi::jsonb_argument(events)],
        |row| row.get::<String>(1),
    )?
    .pop()
    .flatten();
    if kind.as_deref() != Some("array") {
        return Err(EventError::NotAnArray.into());
    }
    let texts: Vec<String> = COLUMNS[..METADATA]
        .iter()
        .map(|column| match *column {
            "status" => "COALESCE(e->>'status', 'success')".to_owned(),
            column => format!("e->>'{column}'"),
        })
        .collect();
    let known: Vec<String> = COLUMNS
        .iter()
        .chain(&["timestamp"])
        .map(|column| format!("'{column}'"))
        .collect();
    let statement = format!(
        "SELECT pg_catalog.jsonb_typeof(e) = 'object', (e->>'timestamp')::timestamptz,
                CASE WHEN pg_catalog.jsonb_typeof(e) IS DISTINCT FROM 'object' OR u = '{{}}' THEN NULLIF(m, 'null')
                     WHEN m IS NULL OR m = 'null' THEN u
                     WHEN pg_catalog.jsonb_typeof(m) = 'object' THEN u || m
                     ELSE u || pg_catalog.jsonb_build_object('metadata', m) END,
                {}
           FROM pg_catalog.jsonb_array_elements($1) WITH ORDINALITY AS a(e, n)
          CROSS JOIN LATERAL (SELECT e->'metadata',
                CASE WHEN pg_catalog.jsonb_typeof(e) = 'object' THEN e - ARRAY[{}] END) AS x(m, u)
          ORDER BY n",
        texts.join(", "),
        known.join(", ")
    );
    let now = clock::wall();
    let events = spi::rows(&statement, &[spi::jsonb_argument(events)], |row| {
        let mut values: Values = [const { None }; COLUMNS.len()];
        values[METADATA] = row.get::<Bytes>(3)?;
        for (place, value) in values.iter_mut().take(METADATA).enumerate() {
            *value = row.get::<Bytes>(place + 4)?;
        }
        let time = row.get::<TimestampWithTimeZone>(2)?.map_or(now, i64::from);
        Ok((row.get::<bool>(1)?.unwrap_or(false), (values, time)))
    })?;
    for (place, (is_object, (values, _))) in events.iter().enumerate() {
        let number = place + 1;
        if !is_object {
            return Err(EventError::NotAnObject { number }.into());
        }
        if values[0].is_none() {
            return Err(EventError::NoAction { number }.into());
        }
    }
    Ok(events.into_iter().map(|(_, event)| event).collect())
}

#[pg_extern(sql = "")]
fn flush_events() -> i64 {
    or_raise(session::flush())
}

#[pg_extern(sql = "")]
#[allow(clippy::type_complexity)]
fn ingest_statistics() -> TableIterator<
    'static,
    (
        name!(queued_events, i64),
        name!(queue_bytes, i64),
        name!(queue_capacity_bytes, i64),
        name!(enqueued, i64),
        name!(written, i64),
        name!(rejected, i64),
        name!(withdrawn, i64),
        name!(batches, i64),
        name!(mean_batch_events, Option<f64>),
        name!(mean_wait_ms, Option<f64>),
        name!(max_wait_ms, Option<f64>),
        name!(fallbacks, i64),
        name!(last_flush, Option<TimestampWithTimeZone>),
        name!(worker_pid, Option<i32>),
        name!(last_error, Option<String>),
        name!(stats_reset, Option<TimestampWithTimeZone>),
    ),
> {
    if !shmem::is_preloaded() {
        Error::NotPreloaded {
            what: "audit_db.ingest_stats",
        }
        .raise();
    }
    let statistics = queue::statistics();
    let counters = statistics.counters;
    let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let time = |micros: i64| {
        (micros != 0)
            .then(|| TimestampWithTimeZone::try_from(micros).ok())
            .flatten()
    };
    TableIterator::once((
        number(statistics.queued),
        number(statistics.bytes),
        number(statistics.capacity),
        number(counters.enqueued),
        number(counters.written),
        number(counters.rejected),
        number(counters.withdrawn),
        number(counters.batches),
        counters.mean_batch(),
        counters.mean_wait_ms(),
        (counters.batches > 0).then_some(counters.longest_wait as f64 / 1_000.0),
        number(counters.fallbacks),
        time(counters.last_flush),
        (statistics.worker != 0).then_some(statistics.worker),
        statistics.error,
        time(counters.reset_at),
    ))
}
