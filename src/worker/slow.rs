//! The slow worker of a database: what takes long, or waits for other sessions, so that the database's worker never does. It
//! empties default partitions that hold many rows, detaches and indexes concurrently, finishes what was interrupted, and ends.

use crate::error::{Error, Result};
use crate::partition::{detach, exchange, maintain, managed, repair, retire, unfinished};
use crate::pg::{catalog, clock, guc, identity, signal, worker, xact};
use crate::shmem::{exchanges, workers};
use pgrx::pg_sys;

/// Attempts at an exchange that is broken off because the table changed.
const ATTEMPTS: usize = 3;

/// Entry point; the argument is the database's slot.
#[pgrx::pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn audit_db_slow_worker_main(argument: pg_sys::Datum) {
    let index = argument.value();
    worker::install_signal_handlers();
    worker::at_exit(slow_exit, index);
    let Some(database) = workers::claim_slow(index, signal::my_pid()) else {
        return;
    };
    worker::connect_to_database(database);
    // Commands at top level wait for others as long as it takes; steps set their own timeout.
    guc::fix_for_worker(c"lock_timeout", "0");
    let any = run(index);
    workers::update(index, |slot| slot.slow_finished = true);
    if any {
        workers::wake(database, true);
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn slow_exit(_code: i32, index: pg_sys::Datum) {
    let process = signal::my_pid();
    exchanges::end(process);
    workers::leave_slow(index.value(), process);
}

/// `true`: something was done, and the worker should look again.
fn run(index: usize) -> bool {
    let tables = xact::in_transaction(|| {
        if !catalog::extension_exists() {
            return Ok((Vec::new(), Vec::new()));
        }
        Ok((managed::oids()?, unfinished::parents()?))
    });
    let (managed, mut left) = match tables {
        Ok(tables) => tables,
        Err(error) => {
            error.warn();
            return false;
        }
    };
    let slot = workers::get(index);
    let mut any = false;
    for table in &managed {
        any |= self::table(*table, slot.ripe_for_finish.contains(*table));
    }
    // Tables that are gone or no longer managed.
    left.retain(|parent| !managed.contains(parent));
    for parent in left {
        let name = name_of(parent);
        note("default partition", &name, exchange::clear(parent, &name));
        any |= note_done("retention", &name, detach::finish(parent, &name, false));
    }
    // Last: an index waits for whoever is writing, as long as it takes.
    for table in managed
        .iter()
        .filter(|table| slot.ripe_for_repair.contains(**table))
    {
        let name = name_of(*table);
        xact::report_activity(Some(&format!("indexes of {name}")));
        any |= note_done("index", &name, repair::run(*table, &name));
    }
    any
}

fn name_of(table: pg_sys::Oid) -> String {
    xact::in_transaction(|| Ok(catalog::qualified_name(table)))
        .ok()
        .flatten()
        .unwrap_or_else(|| table.to_u32().to_string())
}

fn table(oid: pg_sys::Oid, finish_others: bool) -> bool {
    let name = name_of(oid);
    xact::report_activity(Some(&format!("partitions of {name}")));
    note("default partition", &name, exchange::clear(oid, &name));
    let mut any = note_done(
        "retention",
        &name,
        detach::finish(oid, &name, finish_others),
    );
    match xact::in_transaction(|| maintain::is_restoring(oid)) {
        Ok(false) => {}
        // The cycle says so.
        Ok(true) => return any,
        Err(error) => {
            error.warn();
            return any;
        }
    }
    any |= note_done("empty default partition", &name, empty_default(oid));
    let clock_moved = workers::clock_jump(identity::my_database(), clock::reading());
    let retired = retire::expired_slowly(oid, clock_moved, &mut |outcome| {
        // Recorded by the step itself.
        if let Some(failure) = outcome.failure {
            Error::Server(failure).warn();
        }
        true
    });
    note("retention", &name, retired);
    any
}

fn empty_default(oid: pg_sys::Oid) -> Result<bool> {
    let mut attempt = 1;
    loop {
        match exchange::run_if_due(oid) {
            Err(error) if error.is_broken_off() && attempt < ATTEMPTS => {
                error.warn();
                attempt += 1;
            }
            // After one that was broken off there may be less to do, or something else.
            outcome => return outcome.map(|done| done || attempt > 1),
        }
    }
}

fn note(event: &str, name: &str, outcome: Result<()>) {
    if let Err(error) = outcome {
        maintain::record(event, name, &error);
    }
}

fn note_done(event: &str, name: &str, outcome: Result<bool>) -> bool {
    outcome.unwrap_or_else(|error| {
        maintain::record(event, name, &error);
        false
    })
}
