//! The result cache: answers a query with rows that it returned before, where they are what it would return now, or as old as its
//! caller said they may be. What a result belongs to is in `key`, what a query is made of in `shape`, where results lie in
//! `shmem::cache`, when one is exact in `audit_db_core::validity`.

mod key;
mod safe;
mod shape;

pub use key::listed;
pub use safe::{Consistency, Kind};

use crate::error::{CacheError, Error, Result};
use crate::pg::lock::NumberLock;
use crate::pg::query::{self, Execution, Query};
use crate::pg::snapshot::Active;
use crate::pg::{clock, identity, transaction, writes, xact};
use crate::settings::{self, CacheMode};
use crate::shmem::{self, cache};
use audit_db_core::validity::{Snapshot as _, View};
use cache::{Bypass, Counter, Put};
use key::Key;
use pgrx::pg_sys::Oid;
use shape::Shape;
use std::collections::BTreeSet;
use std::ffi::CString;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What the rows come as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Form {
    Rows,
    Json,
}

/// A call of one of the functions.
pub struct Request<'a> {
    pub form: Form,
    pub text: &'a str,
    /// A JSON array.
    pub params: Option<&'a str>,
    pub label: Option<&'a str>,
    pub kind: Rc<Kind>,
    pub ttl: Option<Duration>,
    pub refresh: bool,
    pub consistency: Option<Consistency>,
}

/// A result as it is stored: columns, number of rows, and the rows one behind the other, each at a multiple of eight bytes.
pub struct Stored {
    payload: Vec<u8>,
    columns: Vec<(u32, i32)>,
    data: usize,
}

impl Stored {
    pub fn columns(&self) -> &[(u32, i32)] {
        &self.columns
    }

    pub fn data(&self) -> &[u8] {
        &self.payload[self.data..]
    }
}

/// What a call comes to.
pub enum Answer {
    Hit(Stored),
    /// It has to run; afterwards [`finish`] is to be called with it.
    Run(Running),
}

/// A query that is to run.
pub struct Running {
    pub execution: Execution,
    pub columns: Vec<(u32, i32)>,
    relations: BTreeSet<u32>,
    store: Option<Store>,
    // The plan and its values refer to it.
    _text: CString,
}

/// How its rows are to be stored.
struct Store {
    key: Key,
    form: Form,
    kind: usize,
    weight: f64,
    lifetime: Duration,
    clock: bool,
    started: u64,
    lock: Option<NumberLock>,
}

/// A type of results by its name, for [`Request`].
pub fn kind(name: Option<&str>) -> Result<Rc<Kind>> {
    safe::kind(name)?
        .ok_or_else(|| CacheError::UnknownType(name.unwrap_or_default().to_owned()).into())
}

/// Finds rows, or prepares the query that makes them. Raises what a query raises that is parsed and planned.
pub fn answer(request: &Request<'_>) -> Result<Answer> {
    let shape = shape::shape_of(request)?;
    let values = parameters(&shape.types, request.params)?;
    if let Some(why) = bypass(request, &shape)? {
        if let Some(why) = why {
            cache::count_bypass(why);
        }
        return Ok(run(&shape, &values, None));
    }
    let consistency = request.consistency.unwrap_or(request.kind.consistency);
    let key = Key::of(request, &shape);
    let kind = cache::type_index(kind_name(&request.kind));
    let lifetime = request.ttl.unwrap_or(request.kind.ttl);
    let look = Look {
        key: &key,
        consistency,
        lifetime,
        threshold: request.kind.refresh_threshold,
        clock: shape.clock.is_some(),
        kind,
    };
    let mut lock = None;
    if request.refresh {
        lock = NumberLock::take(key.hash, true, false);
    } else {
        // Whoever computes holds the lock alone; those who want the same wait for it beside each other, and look again.
        for _ in 0..3 {
            match look.find() {
                Verdict::Hit(stored) => return Ok(hit(&shape, &look, stored)),
                Verdict::OwnWrites => {
                    cache::count_bypass(Bypass::OwnWrites);
                    return Ok(run(&shape, &values, None));
                }
                Verdict::Refresh(stored) => {
                    lock = NumberLock::take(key.hash, true, false);
                    if lock.is_none() {
                        return Ok(hit(&shape, &look, stored));
                    }
                    cache::count(kind, Counter::Refreshes, 1);
                    break;
                }
                Verdict::Miss => {}
            }
            lock = NumberLock::take(key.hash, true, false);
            if lock.is_some() {
                // Somebody may have been faster.
                if let Verdict::Hit(stored) = look.find() {
                    if let Some(lock) = lock {
                        lock.release();
                    }
                    return Ok(hit(&shape, &look, stored));
                }
                break;
            }
            cache::count(kind, Counter::Waits, 1);
            if let Some(shared) = NumberLock::take(key.hash, false, true) {
                shared.release();
            }
        }
    }
    cache::count(kind, Counter::Misses, 1);
    let store = Store {
        form: request.form,
        kind,
        weight: request.kind.weight,
        lifetime,
        clock: shape.clock.is_some(),
        started: clock::monotonic(),
        lock,
        key,
    };
    if !xact::is_standby() {
        cache::wake(xact::next_id);
    }
    query::start_recording();
    writes::note_recording();
    Ok(run(&shape, &values, Some(store)))
}

fn kind_name(kind: &Kind) -> &str {
    if kind.name.is_empty() {
        "(none)"
    } else {
        &kind.name
    }
}

/// Whether the query just runs, and why where that is worth counting. Raises where it could never be stored.
fn bypass(request: &Request<'_>, shape: &Shape) -> Result<Option<Option<Bypass>>> {
    if let Some(obstacle) = &shape.obstacle {
        if shmem::is_preloaded() {
            cache::count_bypass(obstacle.bypass());
        }
        return Err(CacheError::NotCacheable {
            detail: obstacle.detail(),
            hint: obstacle.hint(),
        }
        .into());
    }
    let consistency = request.consistency.unwrap_or(request.kind.consistency);
    if let Some(function) = &shape.clock
        && consistency == Consistency::Snapshot
    {
        if shmem::is_preloaded() {
            cache::count_bypass(Bypass::Clock);
        }
        return Err(CacheError::NotCacheable {
            detail: format!("It depends on {function}, which moves on while no table changes."),
            hint: Some(
                "With consistency => 'ttl' a result may be as old as the ttl says.".to_owned(),
            ),
        }
        .into());
    }
    if !shmem::is_preloaded() || settings::cache_mode() == CacheMode::Off || query::is_recording() {
        return Ok(Some(None));
    }
    if transaction::is_serializable() {
        return Ok(Some(Some(Bypass::Serializable)));
    }
    if xact::is_standby() {
        if consistency == Consistency::Snapshot || transaction::is_repeatable() {
            return Ok(Some(Some(Bypass::Standby)));
        }
        return Ok(None);
    }
    if Active::get().is_none() {
        return Ok(Some(Some(Bypass::Snapshot)));
    }
    if writes::wrote_any(shape.relations.iter().map(|relation| Oid::from(*relation))) {
        return Ok(Some(Some(Bypass::OwnWrites)));
    }
    Ok(None)
}

fn hit(shape: &Shape, look: &Look<'_>, found: Hit) -> Answer {
    // As if it ran: a right that was taken away ends the hits, and who watches the checks sees this one.
    shape.rights.check_rights();
    cache::count(look.kind, Counter::Hits, 1);
    cache::count(look.kind, Counter::Saved, found.cost);
    Answer::Hit(found.stored)
}

fn run(shape: &Shape, values: &[Option<CString>], store: Option<Store>) -> Answer {
    let text = shape.text.clone();
    let (query, types): (Query, _) = query::analyze(&text);
    let values = query::values(&types, values);
    Answer::Run(Running {
        // Statements within workers of a parallel query would not be seen.
        execution: query.prepare(&text, &values, store.is_none()),
        columns: shape.columns.clone(),
        relations: shape.relations.clone(),
        store,
        _text: text,
    })
}

/// What a call looks for.
struct Look<'a> {
    key: &'a Key,
    consistency: Consistency,
    lifetime: Duration,
    threshold: f64,
    clock: bool,
    kind: usize,
}

struct Hit {
    stored: Stored,
    cost: u64,
}

enum Verdict {
    Miss,
    Hit(Hit),
    /// It may be used, and it is this caller's turn to compute it anew.
    Refresh(Hit),
    /// The transaction has written what it was computed from.
    OwnWrites,
}

/// Places before those of relations: what names and functions mean, and roles.
const MEANINGS: usize = 2;

impl Look<'_> {
    fn find(&self) -> Verdict {
        let mut payload = Vec::new();
        let Some(found) = cache::find(self.key.hash, &mut payload) else {
            return Verdict::Miss;
        };
        let Some((basis, views, columns, data)) = decode(&payload, &self.key.bytes) else {
            return Verdict::Miss;
        };
        let exact = basis != Basis::Nothing;
        if writes::wrote_any(views.iter().map(|view| Oid::from(view.relation))) {
            return Verdict::OwnWrites;
        }
        let snapshot = Active::get();
        let same = |views: &[SlotView]| {
            exact
                && snapshot.as_ref().is_some_and(|snapshot| {
                    views
                        .iter()
                        .all(|one| cache::view(one.slot, snapshot) == Some(one.view))
                })
        };
        // Also where a result may be old: what names mean and who may do what must be what it was.
        let means_the_same = !exact || same(views.get(..MEANINGS).unwrap_or(&[]));
        let current = means_the_same && same(views.get(MEANINGS..).unwrap_or(&[]));
        // Its snapshot was taken before it was computed.
        let age = clock::monotonic()
            .saturating_sub(found.filled_at)
            .saturating_add(found.cost);
        let lifetime = u64::try_from(self.lifetime.as_nanos()).unwrap_or(u64::MAX);
        let young = age <= lifetime;
        let may_be_old = self.consistency == Consistency::Ttl
            && means_the_same
            && young
            && (current || basis != Basis::OldSnapshot)
            && (current || !transaction::is_repeatable());
        let hit = Hit {
            stored: Stored {
                payload,
                columns,
                data,
            },
            cost: found.cost,
        };
        if current && !self.clock {
            return Verdict::Hit(hit);
        }
        if may_be_old {
            return if self.is_due(age, lifetime, found.cost) {
                Verdict::Refresh(hit)
            } else {
                Verdict::Hit(hit)
            };
        }
        // For others it may still be what they see, or young enough.
        if exact && !means_the_same && cache::remove(&found) {
            cache::count(self.kind, Counter::Invalidations, 1);
        }
        Verdict::Miss
    }

    /// XFetch (Vattani, Chierichetti, Lowenstein: "Optimal probabilistic cache stampede prevention", VLDB 2015), from the threshold
    /// on: the nearer the end and the longer the computation, the likelier this caller computes anew.
    fn is_due(&self, age: u64, lifetime: u64, cost: u64) -> bool {
        if (age as f64) < lifetime as f64 * self.threshold {
            return false;
        }
        let random = random();
        age as f64 - cost as f64 * random.max(f64::MIN_POSITIVE).ln() >= lifetime as f64
    }
}

/// Between 0 and 1 (Marsaglia's xorshift).
fn random() -> f64 {
    static STATE: AtomicU64 = AtomicU64::new(0);
    let mut state = STATE.load(Ordering::Relaxed);
    if state == 0 {
        state = clock::monotonic() | 1;
    }
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    STATE.store(state, Ordering::Relaxed);
    (state >> 11) as f64 / (1u64 << 53) as f64
}

struct SlotView {
    slot: u32,
    relation: u32,
    view: View,
}

fn word(rest: &mut &[u8]) -> Option<u64> {
    let word = u64::from_ne_bytes(rest.get(..8)?.try_into().ok()?);
    *rest = &rest[8..];
    Some(word)
}

/// What a result can be judged by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Basis {
    /// Its age alone: it was computed on a standby.
    Nothing,
    /// Its age, or what it saw.
    Both,
    /// What it saw alone: its snapshot was older than the statement.
    OldSnapshot,
}

/// Takes a payload apart, if it belongs to this key: what it can be judged by, what it saw, its columns, and where its rows begin.
#[allow(clippy::type_complexity)]
fn decode(payload: &[u8], key: &[u8]) -> Option<(Basis, Vec<SlotView>, Vec<(u32, i32)>, usize)> {
    let mut rest = payload;
    if key::take(&mut rest)? != key {
        return None;
    }
    let basis = match word(&mut rest)? {
        0 => Basis::Nothing,
        1 => Basis::Both,
        _ => Basis::OldSnapshot,
    };
    let count = usize::try_from(word(&mut rest)?).ok()?;
    let mut views = Vec::with_capacity(count.min(1_024));
    for _ in 0..count {
        let place = word(&mut rest)?;
        let words = [word(&mut rest)?, word(&mut rest)?];
        views.push(SlotView {
            slot: (place >> 32) as u32,
            relation: place as u32,
            view: View::from_words(words),
        });
    }
    let count = usize::try_from(word(&mut rest)?).ok()?;
    let mut columns = Vec::with_capacity(count.min(2_048));
    for _ in 0..count {
        let column = word(&mut rest)?;
        columns.push(((column >> 32) as u32, column as u32 as i32));
    }
    Some((basis, views, columns, payload.len() - rest.len()))
}

/// The relations that a listed result was computed from, whether it is compared with snapshots, and how many bytes its rows have.
pub fn described(payload: &[u8]) -> Option<(Vec<u8>, Vec<u32>, bool)> {
    let mut rest = payload;
    let key = key::take(&mut rest)?.to_vec();
    let (basis, views, ..) = decode(payload, &key)?;
    let relations = views
        .iter()
        .skip(MEANINGS)
        .map(|view| view.relation)
        .collect();
    Some((key, relations, basis != Basis::Nothing))
}

/// Most relations of a result that is stored.
const MOST_RELATIONS: usize = 1_000;

/// Stores the rows of a query that has run, where that can be done; they are to be read from the execution.
pub fn finish(running: &mut Running) {
    let Some(store) = running.store.take() else {
        return;
    };
    let recorded = query::recorded();
    query::stop_recording();
    let outcome = put(&store, running, recorded);
    match outcome {
        Ok(Put::Stored) => cache::count(store.kind, Counter::Stored, 1),
        Ok(Put::TooBig) => cache::count(store.kind, Counter::TooBig, 1),
        Ok(Put::NoRoom) => cache::count(store.kind, Counter::NoRoom, 1),
        Ok(Put::Older) => {}
        Err(why) => cache::count_bypass(why),
    }
    if let Some(lock) = store.lock {
        lock.release();
    }
}

fn put(
    store: &Store,
    running: &Running,
    recorded: Option<Vec<u32>>,
) -> std::result::Result<Put, Bypass> {
    let mut relations = running.relations.clone();
    relations.extend(running.execution.relations());
    relations.extend(recorded.ok_or(Bypass::TooMany)?);
    if relations.len() > MOST_RELATIONS {
        return Err(Bypass::TooMany);
    }
    // Partitions, and tables that functions read, are known only now.
    if let Some(obstacle) = relations
        .iter()
        .find_map(|relation| query::obstacle_of(Oid::from(*relation)))
    {
        return Err(obstacle.bypass());
    }
    if writes::wrote_any(relations.iter().map(|relation| Oid::from(*relation))) {
        return Err(Bypass::OwnWrites);
    }
    let cost = clock::monotonic().saturating_sub(store.started);
    let database = identity::my_database().to_u32();
    let places = [cache::catalog_slot(database), cache::roles_slot()]
        .into_iter()
        .map(|slot| (slot, 0))
        .chain(
            relations
                .iter()
                .map(|relation| (cache::slot_of(database, *relation), *relation)),
        );
    let snapshot = Active::get();
    let standby = xact::is_standby();
    let mut views = Vec::with_capacity(relations.len() + MEANINGS);
    for (slot, relation) in places {
        match snapshot
            .as_ref()
            .and_then(|snapshot| cache::view(slot, snapshot))
        {
            Some(view) => views.push(SlotView {
                slot,
                relation,
                view,
            }),
            None if standby => views.push(SlotView {
                slot,
                relation,
                view: View::from_words([0, 0]),
            }),
            None => return Err(Bypass::Snapshot),
        }
    }
    let mut payload = Vec::new();
    key::add(&mut payload, &store.key.bytes);
    let mut add = |word: u64| payload.extend_from_slice(&word.to_ne_bytes());
    add(match (standby, transaction::is_repeatable()) {
        (true, _) => Basis::Nothing,
        (false, false) => Basis::Both,
        (false, true) => Basis::OldSnapshot,
    } as u64);
    add(views.len() as u64);
    for view in &views {
        add(u64::from(view.slot) << 32 | u64::from(view.relation));
        view.view.words().into_iter().for_each(&mut add);
    }
    add(running.columns.len() as u64);
    for (kind, modifier) in &running.columns {
        add(u64::from(*kind) << 32 | u64::from(*modifier as u32));
    }
    let longest = cache::longest_payload();
    let begins = payload.len();
    let mut fits = true;
    match store.form {
        Form::Rows => running.execution.rows(|row| {
            fits = payload.len() + row.len() + 8 <= longest;
            if fits {
                payload.extend_from_slice(row);
                payload.resize(begins + (payload.len() - begins).next_multiple_of(8), 0);
            }
            fits
        }),
        Form::Json => {
            let value = running.execution.value().unwrap_or_default();
            fits = payload.len() + value.len() <= longest;
            if fits {
                payload.extend_from_slice(&value);
            }
        }
    }
    if !fits {
        return Ok(Put::TooBig);
    }
    let lifetime = if store.clock || standby {
        u64::try_from(store.lifetime.as_nanos()).unwrap_or(u64::MAX)
    } else {
        // It may be exact for as long as nobody writes.
        u64::MAX
    };
    let new = cache::New {
        hash: store.key.hash,
        payload: &payload,
        kind: store.kind,
        database,
        lifetime,
        cost,
        oldest: snapshot.map_or(0, |snapshot| snapshot.oldest()),
        weight: store.weight,
    };
    Ok(cache::put(&new, |kind| {
        cache::count(kind, Counter::Evictions, 1);
    }))
}

/// Values of a JSON array as texts for the input functions of types.
fn parameters(types: &[Oid], params: Option<&str>) -> Result<Vec<Option<CString>>> {
    use serde_json::Value;
    let bad = |reason: String| Error::from(CacheError::Params(reason));
    let list = match params {
        None => Vec::new(),
        Some(params) => match serde_json::from_str(params) {
            Ok(Value::Array(list)) => list,
            Ok(_) => return Err(bad("It is not an array.".to_owned())),
            Err(error) => return Err(bad(format!("It cannot be read: {error}."))),
        },
    };
    if list.len() != types.len() {
        return Err(bad(format!(
            "The query has {} parameters, the array {} elements.",
            types.len(),
            list.len()
        )));
    }
    list.into_iter()
        .map(|value| {
            let text = match value {
                Value::Null => return Ok(None),
                Value::String(text) => text,
                other => other.to_string(),
            };
            CString::new(text)
                .map(Some)
                .map_err(|_| bad("A text holds a zero.".to_owned()))
        })
        .collect()
}

/// The part of the events of transactions that the cache needs.
pub type Transactions = writes::Transactions<Announcer>;

/// Tells what a transaction has written.
pub struct Announcer;

impl writes::Listener for Announcer {
    #[inline]
    fn is_on() -> bool {
        cache::is_awake()
    }

    fn before_commit(id: u64, changed: u8) {
        let database = identity::my_database().to_u32();
        if changed & writes::CATALOG != 0 {
            cache::announce(cache::catalog_slot(database), id);
        }
        if changed & writes::ROLES != 0 {
            cache::announce(cache::roles_slot(), id);
        }
        // Locks of the server's are held while they are looked through: names are looked up afterwards.
        let mut relations: Vec<Oid> = Vec::new();
        writes::locked(|relation| relations.push(relation));
        relations.sort_unstable_by_key(|relation| relation.to_u32());
        relations.dedup();
        for relation in relations {
            if relation.to_u32() >= writes::FIRST_OWN_RELATION && writes::has_rows(relation) {
                cache::announce(cache::slot_of(database, relation.to_u32()), id);
            }
        }
    }

    fn ended() {
        query::stop_recording();
    }
}
