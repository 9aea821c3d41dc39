//! Which relations have changed. The server calls back in the middle of anything: all that happens here is that a number is kept.

use pgrx::pg_sys;
use std::ffi::c_int;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

/// So many changed relations are kept apart; with more all of them count as changed.
const KEPT: usize = 16;

static WATCHING: AtomicBool = AtomicBool::new(false);
static COUNT: AtomicUsize = AtomicUsize::new(0);
static RELATIONS: [AtomicU32; KEPT] = [const { AtomicU32::new(0) }; KEPT];

/// From now on changes are noticed.
pub fn watch_relations() {
    if !WATCHING.swap(true, Ordering::Relaxed) {
        // SAFETY: the callback has the signature the server asks for; registered once in a process.
        unsafe {
            pg_sys::CacheRegisterRelcacheCallback(Some(changed), pg_sys::Datum::null());
            // A schema that is renamed changes no relation, but what they are called.
            pg_sys::CacheRegisterSyscacheCallback(
                pg_sys::SysCacheIdentifier::NAMESPACEOID as c_int,
                Some(schema_changed),
                pg_sys::Datum::null(),
            );
        }
    }
}

/// Counts whatever may have changed what a statement means, or who may run it.
static MEANINGS: AtomicU64 = AtomicU64::new(1);
static WATCHING_MEANINGS: AtomicBool = AtomicBool::new(false);

/// A number that is another one when something may have changed what statements mean, or who may run them, since it was asked for.
pub fn meanings() -> u64 {
    if !WATCHING_MEANINGS.swap(true, Ordering::Relaxed) {
        use pg_sys::SysCacheIdentifier as Cache;
        // SAFETY: the callbacks have the signatures the server asks for; registered once in a process.
        unsafe {
            pg_sys::CacheRegisterRelcacheCallback(Some(relation_meaning), pg_sys::Datum::null());
            for cache in [
                Cache::PROCOID,
                Cache::TYPEOID,
                Cache::OPEROID,
                Cache::NAMESPACEOID,
                Cache::AUTHOID,
                Cache::AUTHMEMROLEMEM,
                Cache::CASTSOURCETARGET,
                Cache::COLLOID,
            ] {
                pg_sys::CacheRegisterSyscacheCallback(
                    cache as c_int,
                    Some(meaning),
                    pg_sys::Datum::null(),
                );
            }
        }
    }
    MEANINGS.load(Ordering::Relaxed)
}

/// Cannot raise or panic.
unsafe extern "C-unwind" fn meaning(_argument: pg_sys::Datum, _cache: c_int, _hash: u32) {
    MEANINGS.fetch_add(1, Ordering::Relaxed);
}

/// Cannot raise or panic.
unsafe extern "C-unwind" fn relation_meaning(_argument: pg_sys::Datum, _relation: pg_sys::Oid) {
    MEANINGS.fetch_add(1, Ordering::Relaxed);
}

/// Cannot raise or panic.
unsafe extern "C-unwind" fn schema_changed(_argument: pg_sys::Datum, _cache: c_int, _hash: u32) {
    COUNT.store(KEPT + 1, Ordering::Relaxed);
}

/// Cannot raise or panic.
unsafe extern "C-unwind" fn changed(_argument: pg_sys::Datum, relation: pg_sys::Oid) {
    let place = if relation == pg_sys::InvalidOid {
        // All of them.
        KEPT + 1
    } else {
        COUNT.load(Ordering::Relaxed)
    };
    if let Some(kept) = RELATIONS.get(place) {
        kept.store(relation.to_u32(), Ordering::Relaxed);
        COUNT.store(place + 1, Ordering::Relaxed);
    } else {
        COUNT.store(KEPT + 1, Ordering::Relaxed);
    }
}

/// Relations that have changed.
#[derive(Clone, Copy)]
pub struct Changed {
    count: usize,
    relations: [u32; KEPT],
}

impl Changed {
    pub const fn is_none(&self) -> bool {
        self.count == 0
    }

    pub fn contains(&self, relation: pg_sys::Oid) -> bool {
        self.count > KEPT || self.relations[..self.count].contains(&relation.to_u32())
    }
}

/// Those that have changed since the last time.
pub fn take_changed() -> Changed {
    let count = COUNT.load(Ordering::Relaxed);
    let mut relations = [0; KEPT];
    if count > 0 {
        for (target, kept) in relations.iter_mut().zip(&RELATIONS) {
            *target = kept.load(Ordering::Relaxed);
        }
        COUNT.store(0, Ordering::Relaxed);
    }
    Changed { count, relations }
}

/// Makes every process look at a relation anew, once the transaction has committed.
pub fn announce(relation: pg_sys::Oid) {
    // SAFETY: a message to other processes; a relation that is gone is announced by its end.
    unsafe { pg_sys::CacheInvalidateRelcacheByRelid(relation) };
}
