//! Logging events from a session: into its own transaction, or into the queue.

use crate::error::{Error, EventError, Result};
use crate::ingest::rejected;
use crate::ingest::target::{self, Target};
use crate::partition::months;
use crate::pg::guc::Scope;
use crate::pg::insert::{Buffer, Insert, Rows};
use crate::pg::{catalog, clock, identity, session, signal, spi, worker, xact};
use crate::settings::{self, Durability};
use crate::shmem::queue::{self, Progress, Queued, Refused, Withdrawn};
use crate::shmem::{self, workers};
use audit_db_core::record::{self, COLUMNS, Fields, Header, METADATA};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// How often a waiting call looks whether it waits for itself; the first time after as long as the server does by default.
const DEADLOCK_CHECK: Duration = Duration::from_secs(1);
/// How often it looks whether it was cancelled, where that did not wake it.
const MOMENT: Duration = Duration::from_millis(100);
/// Events that are queued at a time where nobody waits for them.
const TOGETHER: usize = 100;

/// An event as it was logged.
pub struct Event<'a> {
    pub fields: Fields<'a>,
    pub event_time: i64,
}

/// Logs events. What is returned is left for the caller's transaction.
pub fn log(events: &[Event<'_>], durability: Option<&str>) -> Result<Option<Insert>> {
    let durability = match durability {
        None => settings::durability(),
        Some(text) => text
            .parse()
            .map_err(|()| EventError::UnknownDurability(text.to_owned()))?,
    };
    // What stores events does not wait for itself, and what its triggers log is stored with the batch, or not at all.
    let durability = if worker::is_storing() {
        Durability::Transaction
    } else {
        durability
    };
    if durability != Durability::Transaction {
        require_queue()?;
    }
    let target = target::current()?;
    if events.is_empty() {
        return Ok(None);
    }
    let metadata = events
        .iter()
        .map(|event| metadata(&target, event))
        .collect::<Result<Vec<_>>>()?;
    let changed: Vec<Event<'_>> = events
        .iter()
        .zip(&metadata)
        .map(|(event, metadata)| {
            let mut fields = event.fields;
            for (place, lacks) in target.lacks.iter().enumerate() {
                if *lacks {
                    fields[place] = None;
                }
            }
            if let Some(metadata) = metadata {
                fields[METADATA] = Some(metadata);
            }
            Event {
                fields,
                event_time: event.event_time,
            }
        })
        .collect();
    match durability {
        Durability::Transaction => in_own_transaction(target, &changed).map(Some),
        Durability::Durable => durable(&target, &changed).map(|()| None),
        Durability::Async => {
            let left = queue_without_waiting(&target, &changed)?;
            if left.is_empty() {
                return Ok(None);
            }
            queue::count_fallback(left.len() as u64);
            in_own_transaction(target, left).map(Some)
        }
    }
}

fn require_queue() -> Result<()> {
    if !shmem::is_preloaded() {
        return Err(Error::NotPreloaded {
            what: "logging with durability other than \"transaction\"",
        });
    }
    if xact::is_standby() {
        return Err(Error::ReadOnly {
            what: "audit_db.log_event",
            standby: true,
        });
    }
    Ok(())
}

/// The metadata of an event where they are not what it brought: values that the table has no column for, and who logs it.
fn metadata(target: &Target, event: &Event<'_>) -> Result<Option<Vec<u8>>> {
    let homeless = || {
        (0..COLUMNS.len())
            .filter(|place| target.lacks[*place])
            .filter_map(|place| Some((COLUMNS[place], event.fields[place]?)))
    };
    let stamp = settings::stamp_session();
    let first = homeless().next();
    if first.is_none() && !stamp {
        return Ok(None);
    }
    if target.lacks[METADATA] {
        let column = first.map_or("session", |(column, _)| column);
        return Err(EventError::NoMetadata {
            table: target.name.clone(),
            column,
        }
        .into());
    }
    let homeless: Vec<(&str, &[u8])> = homeless().collect();
    let stamp = stamp.then(session::describe);
    Ok(Some(crate::pg::json::extended(
        event.fields[METADATA],
        &homeless,
        stamp.as_deref(),
    )))
}

/// What inserts the events when the guarded part of the call is over.
fn in_own_transaction(mut target: Rc<Target>, events: &[Event<'_>]) -> Result<Insert> {
    if target.months.is_some() && !xact::is_read_only() {
        target = make_months(target, events)?;
    }
    let rows = Rows::new();
    let mut buffer = Buffer::default();
    for event in events {
        rows.add(&event.fields, event.event_time, &mut buffer);
    }
    Ok(Insert {
        plan: target.plan()?,
        rows,
    })
}

/// Makes the months that the events need, in a table where no default partition takes what fits none.
fn make_months(target: Rc<Target>, events: &[Event<'_>]) -> Result<Rc<Target>> {
    let times: Vec<i64> = events.iter().map(|event| event.event_time).collect();
    // Who may not insert is told so by the INSERT.
    if target.first_outside(&times).is_none() || !target.may_insert(identity::current_role()) {
        return Ok(target);
    }
    let made = {
        let _scope = Scope::reading();
        months::make_for(target.table, &times)?
    };
    let target = if made {
        target::of_table(target.table)?
    } else {
        target
    };
    match target.first_outside(&times) {
        Some(time) => Err(EventError::NoMonth {
            table: target.name.clone(),
            time: clock::text(time),
        }
        .into()),
        None => Ok(target),
    }
}

/// What the worker will not do for a caller who could not do it himself.
fn require_worker_can(target: &Target) -> Result<()> {
    if catalog::is_changed_by_me(target.table) {
        return Err(EventError::NotCommitted(target.name.clone()).into());
    }
    if !target.may_insert(identity::current_role()) {
        return Err(EventError::NoPrivilege(target.name.clone()).into());
    }
    Ok(())
}

fn encode(target: &Target, events: &[Event<'_>], waits: Option<(u64, u32)>) -> Vec<Vec<u8>> {
    let (ticket, waiter) = waits.unwrap_or((0, 0));
    let header = Header {
        sequence: 0,
        ticket,
        waiter,
        role: identity::current_role().to_u32(),
        table: target.table.to_u32(),
        rejected: 0,
        session_user: identity::session_user().to_u32(),
        queued_at: clock::wall(),
        event_time: 0,
    };
    events
        .iter()
        .map(|event| {
            let mut bytes = vec![0; record::size(&event.fields)];
            let header = Header {
                event_time: event.event_time,
                ..header
            };
            record::write(&mut bytes, &header, &event.fields);
            bytes
        })
        .collect()
}

/// Queues events as long as there is room; returns those that have to go another way.
fn queue_without_waiting<'e, 'a>(
    target: &Target,
    events: &'e [Event<'a>],
) -> Result<&'e [Event<'a>]> {
    require_worker_can(target)?;
    let mut left = events;
    let mut together = TOGETHER;
    while !left.is_empty() {
        let part = &left[..together.min(left.len())];
        match push(&mut encode(target, part, None), None) {
            Ok(_) => left = &left[part.len()..],
            // Perhaps fewer fit.
            Err(Refused::TooLarge { .. }) if part.len() > 1 => together = 1,
            Err(_) => break,
        }
    }
    Ok(left)
}

/// Queues records, waiting for room if need be.
fn push(records: &mut [Vec<u8>], ticket: Option<u64>) -> std::result::Result<Queued, Refused> {
    let mut outcome = queue::push(records, ticket);
    let timeout = match outcome {
        Err(Refused::Full) => settings::queue_timeout(),
        // It comes in a moment, or the server is shutting down, and this session ends; or it cannot be started at all.
        Err(Refused::NoWorker { .. }) if ticket.is_some() => settings::durable_timeout(),
        Err(Refused::NoWorker { since }) => {
            settings::queue_timeout().saturating_sub(clock::elapsed(since))
        }
        _ => return outcome,
    };
    call_worker(true);
    queue::wait_for_room(timeout, || {
        outcome = queue::push(records, ticket);
        !matches!(outcome, Err(Refused::Full | Refused::NoWorker { .. }))
    });
    outcome
}

fn call_worker(lonely: bool) {
    if lonely {
        workers::wake(identity::my_database(), false);
    }
}

/// Queues events and waits until they are on disk.
fn durable(target: &Target, events: &[Event<'_>]) -> Result<()> {
    require_worker_can(target)?;
    let started = Instant::now();
    let (ticket, place) = queue::next_ticket();
    let mut records = encode(target, events, Some((ticket, place)));
    let queued = push(&mut records, Some(ticket)).map_err(|refused| match refused {
        Refused::TooLarge { capacity } => EventError::TooLarge {
            bytes: records.iter().map(Vec::len).sum(),
            capacity,
        },
        Refused::NoWorker { .. } => EventError::NoWorker {
            waited_ms: started.elapsed().as_millis(),
        },
        Refused::Full | Refused::NoQueue => EventError::QueueFull {
            events: events.len(),
            waited_ms: started.elapsed().as_millis(),
        },
    })?;
    wait_until_stored(target, queued, started)
}

fn wait_until_stored(target: &Target, queued: Queued, started: Instant) -> Result<()> {
    let mut next_check = started + DEADLOCK_CHECK;
    loop {
        if let Progress::Stored {
            rejected,
            sqlstate,
            message,
        } = queue::wait_a_moment(MOMENT)
        {
            if rejected == 0 {
                return Ok(());
            }
            return Err(EventError::Rejected {
                sqlstate: crate::error::sqlstate_of(sqlstate),
                message,
                events: rejected,
                table: rejected::name_beside(target.table),
            }
            .into());
        }
        let now = Instant::now();
        if now >= started + settings::durable_timeout() {
            return Err(EventError::TimedOut {
                waited_ms: started.elapsed().as_millis(),
                known: withdraw(queued),
            }
            .into());
        }
        // A cancel must not leave the event's fate in the dark, whenever it comes.
        let looked = xact::catch(|| {
            signal::wait(Duration::ZERO);
            if now < next_check {
                return Ok(false);
            }
            next_check = now + DEADLOCK_CHECK;
            call_worker(queue::worker_pid() == 0);
            worker_waits_for_me()
        });
        match looked {
            Ok(false) => {}
            Ok(true) => {
                return Err(EventError::Deadlock {
                    known: withdraw(queued),
                }
                .into());
            }
            Err(error) => {
                if !withdraw(queued) {
                    let timed_out = EventError::TimedOut {
                        waited_ms: started.elapsed().as_millis(),
                        known: false,
                    };
                    Error::from(timed_out).warn();
                }
                return Err(error);
            }
        }
    }
}

/// Whether it is known that the events are not stored.
fn withdraw(queued: Queued) -> bool {
    queue::withdraw(queued) == Withdrawn::All
}

/// Whether the worker waits for a lock of this session, through any chain.
fn worker_waits_for_me() -> Result<bool> {
    let worker = queue::worker_pid();
    if worker == 0 {
        return Ok(false);
    }
    let _scope = Scope::reading();
    Ok(spi::rows(
        "WITH RECURSIVE waits(pid) AS (
             SELECT pg_catalog.unnest(pg_catalog.pg_blocking_pids($1))
             UNION
             SELECT pg_catalog.unnest(pg_catalog.pg_blocking_pids(pid)) FROM waits)
         SELECT EXISTS (SELECT FROM waits WHERE pid = pg_catalog.pg_backend_pid())",
        &[worker.into()],
        |row| row.get::<bool>(1),
    )?
    .pop()
    .flatten()
    .unwrap_or(false))
}

/// Waits until everything that is queued now is on disk; how much that was.
pub fn flush() -> Result<i64> {
    require_queue()?;
    if worker::is_storing() {
        return Err(EventError::Deadlock { known: false }.into());
    }
    let started = Instant::now();
    let Some(everything) = queue::request_flush(identity::my_database()) else {
        return Ok(0);
    };
    call_worker(everything.lonely);
    let deadline = started + settings::durable_timeout();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if queue::wait_for_flush(everything, left.min(DEADLOCK_CHECK)) {
            return Ok(i64::try_from(everything.events).unwrap_or(i64::MAX));
        }
        call_worker(queue::worker_pid() == 0);
        if worker_waits_for_me()? {
            return Err(EventError::Deadlock { known: false }.into());
        }
        if left.is_zero() {
            return Err(EventError::TimedOut {
                waited_ms: started.elapsed().as_millis(),
                known: false,
            }
            .into());
        }
    }
}
