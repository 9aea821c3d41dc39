//! What is kept of a slow statement: made when it has ended, never by running it again.

use super::follow::Ended;
use crate::pg::explain::{self, Parameter};
use crate::pg::statement_hooks::{self as hooks, Query};
use crate::pg::{clock, memory, scanner, shmem};
use crate::settings::{self, Parameters, Plans};
use crate::shmem::slow_ring::{self, Record, TEXT_BYTES};
use crate::shmem::workers;
use audit_db_core::plan_text;
use audit_db_core::statement_text::{Values, shorten};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicU64, Ordering};

/// A backend wakes its database's worker no more often than this; the worker looks again by itself after it has found something.
const WAKE_NANOSECONDS: u64 = 500_000_000;

/// The text of a statement without its constants.
pub fn normalize(text: &[u8], values: Values) -> String {
    let text = scanner::normalize(text, values);
    shorten(text.trim_end_matches([';', ' ']), TEXT_BYTES)
}

/// Puts a slow statement into the ring. Raises nothing.
pub fn record(ended: &Ended<'_>) {
    let parameters = settings::slow_query_parameters();
    // Utility commands hold passwords.
    let verbatim = parameters == Parameters::Full && ended.values == Values::Constants;
    let query = if verbatim {
        shorten(&String::from_utf8_lossy(ended.text), TEXT_BYTES)
    } else {
        normalize(ended.text, ended.values)
    };
    let (plan, list) = match ended.query {
        Some(query) => (plan_of(query, verbatim), parameters_of(query, parameters)),
        None => (None, None),
    };
    let mut record = Record::EMPTY;
    record.captured_at = clock::wall();
    record.query_id = ended.query_id;
    record.nanoseconds = ended.nanoseconds;
    record.planning_nanoseconds = ended.planning;
    record.rows = ended.rows;
    record.blocks = ended.used.blocks;
    record.wal_bytes = ended.used.wal_bytes;
    record.database = ended.database;
    record.role = ended.role;
    record.pid = ended.pid;
    record.sqlstate = ended.sqlstate;
    record.level = ended.level;
    record.status = ended.status as u32;
    record.waits = ended.waits;
    if let Some((program, address)) = memory::contained(hooks::client) {
        copy(&mut record.application_name, &program);
        copy(&mut record.client_address, &address);
    }
    slow_ring::publish(record, &query, list.as_deref(), plan.as_deref());
    wake_worker(ended.database);
}

fn copy(target: &mut [u8], text: &str) {
    let room = target.len() - 1;
    for (slot, byte) in target.iter_mut().zip(text.bytes().take(room)) {
        *slot = byte;
    }
}

fn plan_of(query: Query, verbatim: bool) -> Option<String> {
    let plans = settings::slow_query_plan();
    if plans == Plans::Off {
        return None;
    }
    if plans == Plans::Analyze {
        slow_ring::learn(query.shape());
    }
    let made = memory::contained(|| explain::plan(query));
    let plan = made.and_then(|text| finish_plan(&text, query.is_instrumented(), verbatim));
    if plan.is_none() {
        slow_ring::note_failed_plan();
    }
    plan
}

/// What EXPLAIN has written is the inside of an object between the brackets of an array. It gets the right brackets, and a word
/// whether its figures are those of this run.
fn finish_plan(text: &str, actual: bool, verbatim: bool) -> Option<String> {
    let inside = text.trim().strip_prefix('[')?.strip_suffix(']')?;
    let Value::Object(mut plan) = serde_json::from_str(&format!("{{{inside}}}")).ok()? else {
        return None;
    };
    plan.insert("actual".to_owned(), Value::Bool(actual));
    let mut plan = Value::Object(plan);
    if !verbatim {
        plan_text::redact(&mut plan, &mut |expression| {
            Some(scanner::normalize(expression.as_bytes(), Values::Constants))
        });
    }
    let text = plan.to_string();
    if text.len() <= slow_ring::plan_bytes() {
        return Some(text);
    }
    Some(json!({ "actual": actual, "omitted": "too long", "bytes": text.len() }).to_string())
}

fn parameters_of(query: Query, parameters: Parameters) -> Option<String> {
    let list = match parameters {
        Parameters::None => return None,
        Parameters::Types => memory::contained(|| explain::parameters(query, false))?,
        Parameters::Full => memory::contained(|| explain::parameters(query, true))?,
    };
    if list.is_empty() {
        return None;
    }
    let list: Vec<Value> = list
        .into_iter()
        .map(|Parameter { type_name, value }| match (parameters, value) {
            (Parameters::Full, value) => {
                let value = value.map(|value| shorten(&value, 1_024));
                json!({ "type": type_name, "value": value })
            }
            _ => json!({ "type": type_name }),
        })
        .collect();
    let text = Value::Array(list).to_string();
    (text.len() <= TEXT_BYTES).then_some(text)
}

/// What a statement has waited for: names of wait events with the number of samples. `None`: it was never sampled.
pub fn wait_samples(waits: &[(u32, u32)]) -> Option<Value> {
    let samples: serde_json::Map<String, Value> = waits
        .iter()
        .filter(|(_, count)| *count > 0)
        .map(|(event, count)| {
            let name = match shmem::wait_event_names(*event) {
                Some((kind, name)) => format!("{kind}:{name}"),
                None => "running".to_owned(),
            };
            (name, Value::from(*count))
        })
        .collect();
    (!samples.is_empty()).then_some(Value::Object(samples))
}

fn wake_worker(database: u32) {
    static WOKEN: AtomicU64 = AtomicU64::new(0);
    let now = clock::monotonic();
    if now.saturating_sub(WOKEN.load(Ordering::Relaxed)) > WAKE_NANOSECONDS {
        WOKEN.store(now, Ordering::Relaxed);
        workers::wake(database.into(), false);
    }
}
