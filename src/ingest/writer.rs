//! Storing a batch: as one INSERT a table and role where all goes well; where it does not, in ever smaller parts, until what is
//! left is the event that cannot be stored.

use crate::error::{Error, Failure, Result, sqlstate_number};
use crate::ingest::{rejected, target};
use crate::partition::months;
use crate::pg::guc::Scope;
use crate::pg::insert::{Buffer, Insert, Rows};
use crate::pg::{catalog, identity, xact};
use crate::shmem::queue::{self, Done, Record};
use audit_db_core::record::{Fields, Header};
use pgrx::pg_sys::Oid;
use std::collections::HashMap;
use std::time::Duration;

/// Parts that a batch is split into when it cannot be stored as a whole.
const PARTS: usize = 8;
/// How often one event may run out of time before it counts as one that cannot be stored.
const PATIENCE: u32 = 3;

/// So many attempts at a batch, some twenty seconds, are made before an event counts as one that cannot be stored for what may pass
/// for others: a month on a server that does not answer, say. Locks never count.
const ATTEMPTS: u32 = 10;

/// What the worker remembers between batches.
pub struct Writer {
    /// Attempts in a row that came to nothing.
    failures: u32,
    /// Why events of the batch at hand are not in their table.
    rejections: Rejections,
    /// Most events of a transaction: fewer after one that took too long.
    most: usize,
    /// How often in a row one event alone took too long.
    slow: u32,
}

struct Event<'a> {
    record: &'a Record,
    header: Header,
    fields: Fields<'a>,
}

/// Events with the same go in with one statement.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Key {
    table: u32,
    role: u32,
    session_user: u32,
}

/// Why events of a batch are not in their table, by their place in it.
type Rejections = HashMap<usize, Failure>;

impl Writer {
    pub fn new() -> Self {
        Self {
            failures: 0,
            rejections: Rejections::new(),
            most: usize::MAX,
            slow: 0,
        }
    }

    /// Stores the batch that was taken, in transactions that may take `limit` each. An error: the rest of it is still to be stored.
    pub fn store(&mut self, index: usize, limit: Duration) -> Result<()> {
        let records = queue::flight(index);
        let mut stored = take_over(index)?;
        if stored == 0 {
            self.rejections.clear();
        }
        while stored < records.len() {
            let end = stored.saturating_add(self.most).min(records.len());
            // Of an attempt that came to nothing.
            for record in records[stored..end]
                .iter()
                .filter(|record| !record.withdrawn)
            {
                record.set_rejected(0);
            }
            let part = &records[stored..end];
            let patience = Patience {
                slow: self.slow < PATIENCE,
                failing: self.failures < ATTEMPTS,
            };
            match store_part(index, part, stored, limit, patience) {
                Ok(refused) => {
                    self.failures = 0;
                    self.rejections.extend(refused);
                    queue::note_stored(index, end);
                    stored = end;
                    self.slow = 0;
                    self.most = self.most.saturating_mul(2);
                }
                Err(error) => {
                    self.failures = self.failures.saturating_add(1);
                    if error.is_cancel_of_statement() {
                        self.slow += u32::from(part.len() == 1);
                        self.most = (part.len() / 2).max(1);
                    }
                    return Err(error);
                }
            }
        }
        finish(index, &records, &self.rejections);
        self.rejections.clear();
        Ok(())
    }
}

/// How much of the batch the worker before has stored: its last transaction may have committed without its saying so.
fn take_over(index: usize) -> Result<usize> {
    let (stored, end, transaction) = queue::flight_progress(index);
    let Some(transaction) = transaction else {
        return Ok(stored);
    };
    let committed = xact::in_transaction(|| Ok(xact::has_committed(transaction)))?;
    let stored = if committed { end } else { stored };
    queue::note_stored(index, stored);
    Ok(stored)
}

fn finish(index: usize, records: &[Record], rejections: &Rejections) {
    let done: Vec<Done<'_>> = records
        .iter()
        .enumerate()
        .filter_map(|(place, record)| {
            Some(Done {
                header: Header {
                    rejected: record.rejected(),
                    ..record.read()?.0
                },
                withdrawn: record.withdrawn,
                message: rejections
                    .get(&place)
                    .map(|failure| failure.message.as_str()),
            })
        })
        .collect();
    queue::finish(index, &done);
}

/// What is still put up with.
#[derive(Clone, Copy)]
struct Patience {
    /// One event that takes too long.
    slow: bool,
    /// Errors that may pass.
    failing: bool,
}

impl Patience {
    /// Whether an error undoes the attempt, so that the batch is tried again. Locks are waited for as long as it takes.
    fn must_wait_for(self, error: &Error) -> bool {
        error.is_transient()
            && (self.failing || error.is_lock_timeout() || error.is_cancel_of_statement())
    }
}

/// Stores a part of the batch in one transaction. `first`: its place in the batch.
fn store_part(
    index: usize,
    records: &[Record],
    first: usize,
    limit: Duration,
    patience: Patience,
) -> Result<Rejections> {
    let hopeless = !patience.slow && records.len() == 1;
    let mut groups: Vec<(Key, Vec<usize>)> = Vec::new();
    let mut events = Vec::with_capacity(records.len());
    for (place, record) in records.iter().enumerate() {
        let Some((header, fields)) = record.read() else {
            continue;
        };
        if record.withdrawn {
            continue;
        }
        let key = Key {
            table: header.table,
            role: header.role,
            session_user: header.session_user,
        };
        // Mostly there is one.
        match groups.iter_mut().rev().find(|(other, _)| *other == key) {
            Some((_, places)) => places.push(events.len()),
            None => groups.push((key, vec![events.len()])),
        }
        events.push((
            first + place,
            Event {
                record,
                header,
                fields,
            },
        ));
    }
    let end = first + records.len();
    let before_commit = |transaction| queue::note_transaction(index, transaction, end);
    if !hopeless {
        make_months(&groups, &events, patience)?;
    }
    let plainly = if hopeless || !patience.failing {
        Err(Error::RolledBack)
    } else {
        xact::in_batch(
            limit,
            || {
                xact::check_constraints_at_once();
                for (_, places) in &groups {
                    insert(&events, places)?;
                }
                Ok(())
            },
            before_commit,
        )
    };
    match plainly {
        Ok(()) => return Ok(Rejections::new()),
        Err(error) if error.is_transient() => return Err(error),
        Err(_) => {}
    }
    let mut rejections = Rejections::new();
    xact::in_batch(
        limit,
        || {
            xact::check_constraints_at_once();
            for (_, places) in &groups {
                if hopeless {
                    let failure = too_slow(limit);
                    for place in places {
                        reject(&events[*place], &failure, &mut rejections)?;
                    }
                } else {
                    insert_what_can_be(&events, places, patience, &mut rejections)?;
                }
            }
            // Where nothing at all can be stored it is not the events.
            let passing = |failure: &Failure| Error::Server(failure.clone()).is_transient();
            match rejections.values().next() {
                Some(failure)
                    if !hopeless
                        && rejections.len() == events.len()
                        && rejections.values().all(passing) =>
                {
                    Err(Error::Server(failure.clone()))
                }
                _ => Ok(()),
            }
        },
        before_commit,
    )?;
    Ok(rejections)
}

fn too_slow(limit: Duration) -> Failure {
    Failure {
        sqlstate: "57014".into(),
        message: format!(
            "storing the event took longer than {} ms, several times",
            limit.as_millis()
        ),
        detail: None,
        hint: None,
    }
}

/// Makes the months that the events need where no default partition takes what fits none. What cannot be made shows in the INSERT.
fn make_months(
    groups: &[(Key, Vec<usize>)],
    events: &[(usize, Event<'_>)],
    patience: Patience,
) -> Result<()> {
    for (Key { table, .. }, places) in groups {
        let outside = || -> Result<Option<Vec<i64>>> {
            let target = target::of_table(Oid::from(*table))?;
            if target.months.is_none() {
                return Ok(None);
            }
            let times: Vec<i64> = places
                .iter()
                .map(|place| events[*place].1.header.event_time)
                .collect();
            Ok(target.first_outside(&times).map(|_| times))
        };
        // The look costs a transaction of its own only where the table is not known yet, or has no default partition.
        if target::is_known_without_months(Oid::from(*table)) {
            continue;
        }
        let made = xact::in_transaction(outside).and_then(|times| match times {
            Some(times) => xact::in_transaction(|| months::make_for(Oid::from(*table), &times)),
            None => Ok(false),
        });
        match made {
            Err(error) if patience.must_wait_for(&error) => return Err(error),
            Err(error) => error.warn(),
            Ok(_) => {}
        }
    }
    Ok(())
}

/// Inserts events of one table and role.
fn insert(events: &[(usize, Event<'_>)], places: &[usize]) -> Result<()> {
    let Some(first) = places.first() else {
        return Ok(());
    };
    let header = &events[*first].1.header;
    let table = Oid::from(header.table);
    if catalog::relation_owner(table).is_none() {
        return Err(Error::NoSuchRelation(header.table));
    }
    let target = target::of_table(table)?;
    let plan = target.plan()?;
    let rows = Rows::new();
    let mut buffer = Buffer::default();
    for place in places {
        let event = &events[*place].1;
        rows.add(&event.fields, event.header.event_time, &mut buffer);
    }
    let user = Oid::from(header.session_user);
    identity::as_writer(Oid::from(header.role), user, || Insert { plan, rows }.run());
    rows.end();
    Ok(())
}

fn insert_what_can_be(
    events: &[(usize, Event<'_>)],
    places: &[usize],
    patience: Patience,
    rejections: &mut Rejections,
) -> Result<()> {
    let failure = match xact::in_subtransaction(|| insert(events, places)) {
        Ok(()) => return Ok(()),
        Err(error) if patience.must_wait_for(&error) => return Err(error),
        Err(error) => error.failure(),
    };
    if let [place] = places {
        return reject(&events[*place], &failure, rejections);
    }
    for part in places.chunks(places.len().div_ceil(PARTS)) {
        insert_what_can_be(events, part, patience, rejections)?;
    }
    Ok(())
}

fn reject(
    (place, event): &(usize, Event<'_>),
    failure: &Failure,
    rejections: &mut Rejections,
) -> Result<()> {
    let _scope = Scope::reading();
    rejected::keep(&event.header, &event.fields, failure)?;
    event
        .record
        .set_rejected(sqlstate_number(&failure.sqlstate).max(1));
    rejections.insert(*place, failure.clone());
    Ok(())
}
