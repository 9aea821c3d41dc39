//! Which entry of a full cache makes room: S3-FIFO (Yang, Zhang, Qiu, Yue, Rashmi: "FIFO queues are all you need for cache
//! eviction", SOSP 2023) with one addition, that among the next few candidates the one goes that is worth least.
//!
//! New entries wait in a small queue; what is asked for again while it is there moves to the main queue, what is not goes, and a
//! ghost list remembers its key: if it comes back soon it starts in the main queue. A scan of entries that are asked for once passes
//! through the small queue and touches nothing else. A hit only raises a counter that ends at 3: no lock, and no write at all to
//! what is popular.
//!
//! Everything lies in arrays and refers to each other by index, so that it can live in shared memory.

use std::sync::atomic::{AtomicU8, Ordering};

/// No entry.
pub const NONE: u32 = u32::MAX;
/// How often an entry can be asked for before nobody counts any more.
const MOST: u8 = 3;
/// Entries at the end of a queue that are compared with each other.
const CANDIDATES: usize = 8;
/// How often the last of a queue can be passed over.
const SPARED: u8 = 30;
/// The small queue's part of all entries: one in so many.
const SMALL_PART: u32 = 10;

const FREE: u8 = 0;
const SMALL: u8 = 1;
const MAIN: u8 = 2;

/// What each entry carries.
#[derive(Debug)]
#[repr(C)]
pub struct Links {
    /// Towards the end of the queue, from which entries leave.
    next: u32,
    previous: u32,
    queue: u8,
    /// How often it was passed over at the end of its queue because others were worth less.
    spared: u8,
    asked: AtomicU8,
}

impl Links {
    /// Those of an entry that is in no queue.
    pub const fn new() -> Self {
        Self {
            next: NONE,
            previous: NONE,
            queue: FREE,
            spared: 0,
            asked: AtomicU8::new(0),
        }
    }

    /// A hit. May be called by many at a time.
    #[inline]
    pub fn ask(&self) {
        let asked = self.asked.load(Ordering::Relaxed);
        if asked < MOST {
            // Two at a time can count as one.
            self.asked.store(asked + 1, Ordering::Relaxed);
        }
    }

    /// How often it was asked for, up to 3, less what it has lost by staying.
    pub fn asked(&self) -> u8 {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Default for Links {
    fn default() -> Self {
        Self::new()
    }
}

/// Where the entries are.
pub trait Entries {
    fn links(&self, index: u32) -> &Links;
    fn links_mut(&mut self, index: u32) -> &mut Links;
    /// What would be lost with it, in whatever unit; infinitely little for one that nobody can use any more.
    fn worth(&self, index: u32) -> f64;
    fn hash(&self, index: u32) -> u64;
}

#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Queue {
    /// Where entries come in.
    first: u32,
    last: u32,
    length: u32,
}

const EMPTY: Queue = Queue {
    first: NONE,
    last: NONE,
    length: 0,
};

/// The queues of one cache, or of one part of it. The ghost list is an array of the caller's.
#[derive(Debug)]
#[repr(C)]
pub struct Queues {
    small: Queue,
    main: Queue,
    /// Where the ghost list is written next.
    ghost: u32,
}

impl Queues {
    pub const NEW: Self = Self {
        small: EMPTY,
        main: EMPTY,
        ghost: 0,
    };

    pub const fn length(&self) -> u32 {
        self.small.length + self.main.length
    }

    fn queue(&mut self, which: u8) -> &mut Queue {
        if which == SMALL {
            &mut self.small
        } else {
            &mut self.main
        }
    }

    /// A new entry, which is in no queue.
    pub fn insert(&mut self, entries: &mut impl Entries, ghosts: &mut [u64], index: u32) {
        let hash = ghost_of(entries.hash(index));
        let known = ghosts.iter_mut().find(|ghost| **ghost == hash);
        let which = if let Some(ghost) = known {
            *ghost = 0;
            MAIN
        } else {
            SMALL
        };
        *entries.links_mut(index) = Links::new();
        self.push(entries, which, index);
    }

    fn push(&mut self, entries: &mut impl Entries, which: u8, index: u32) {
        let queue = self.queue(which);
        let first = queue.first;
        queue.first = index;
        queue.length += 1;
        if first == NONE {
            queue.last = index;
        }
        let links = entries.links_mut(index);
        links.previous = NONE;
        links.next = first;
        links.queue = which;
        if first != NONE {
            entries.links_mut(first).previous = index;
        }
    }

    /// Takes an entry out of its queue, wherever it stands.
    pub fn remove(&mut self, entries: &mut impl Entries, index: u32) {
        let links = entries.links_mut(index);
        let (next, previous, which) = (links.next, links.previous, links.queue);
        if which == FREE {
            return;
        }
        links.queue = FREE;
        links.next = NONE;
        links.previous = NONE;
        let queue = self.queue(which);
        queue.length -= 1;
        if previous == NONE {
            queue.first = next;
        }
        if next == NONE {
            queue.last = previous;
        }
        if previous != NONE {
            entries.links_mut(previous).next = next;
        }
        if next != NONE {
            entries.links_mut(next).previous = previous;
        }
    }

    /// Takes out the entry that goes. `None`: there is none.
    pub fn evict(&mut self, entries: &mut impl Entries, ghosts: &mut [u64]) -> Option<u32> {
        // Each turn takes a count from an entry, or moves one out of the small queue, or ends.
        let turns = (self.length() as usize) * (usize::from(MOST) + 3) + 1;
        for _ in 0..turns {
            let from_small = self.small.length > 0
                && (self.small.length >= self.length() / SMALL_PART || self.main.length == 0);
            let (last, which) = if from_small {
                (self.small.last, SMALL)
            } else {
                (self.main.last, MAIN)
            };
            if last == NONE {
                return None;
            }
            let asked = entries.links(last).asked();
            // In the small queue the first question is the one that brought it.
            if asked > u8::from(which == SMALL) {
                self.remove(entries, last);
                let links = entries.links_mut(last);
                links.spared = 0;
                links.asked = AtomicU8::new(if which == SMALL { 0 } else { asked - 1 });
                self.push(entries, MAIN, last);
                continue;
            }
            let mut victim = least(entries, last, u8::from(which == SMALL));
            if victim != last {
                // Whoever others go before is next in the end.
                let links = entries.links_mut(last);
                links.spared += 1;
                if links.spared > SPARED {
                    victim = last;
                }
            }
            self.remove(entries, victim);
            if which == SMALL && !ghosts.is_empty() {
                let place = self.ghost as usize % ghosts.len();
                ghosts[place] = ghost_of(entries.hash(victim));
                self.ghost = (place as u32 + 1) % ghosts.len() as u32;
            }
            return Some(victim);
        }
        None
    }
}

/// 0 is a free place of the ghost list.
const fn ghost_of(hash: u64) -> u64 {
    if hash == 0 { 1 } else { hash }
}

/// The one worth least among the last few that were asked for no more than `asked` times.
fn least(entries: &impl Entries, last: u32, asked: u8) -> u32 {
    let (mut least, mut worth) = (last, entries.worth(last));
    let mut index = entries.links(last).previous;
    for _ in 1..CANDIDATES {
        if index == NONE {
            break;
        }
        let links = entries.links(index);
        let other = entries.worth(index);
        if links.asked() <= asked && other < worth {
            (least, worth) = (index, other);
        }
        index = links.previous;
    }
    least
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    struct Store {
        links: Vec<Links>,
        hashes: Vec<u64>,
        worths: Vec<f64>,
    }

    impl Entries for Store {
        fn links(&self, index: u32) -> &Links {
            &self.links[index as usize]
        }

        fn links_mut(&mut self, index: u32) -> &mut Links {
            &mut self.links[index as usize]
        }

        fn worth(&self, index: u32) -> f64 {
            self.worths[index as usize]
        }

        fn hash(&self, index: u32) -> u64 {
            self.hashes[index as usize]
        }
    }

    /// A cache of so many entries.
    struct Cache {
        store: Store,
        queues: Queues,
        ghosts: Vec<u64>,
        places: HashMap<u64, u32>,
        free: Vec<u32>,
    }

    impl Cache {
        fn new(size: u32) -> Self {
            Self {
                store: Store {
                    links: (0..size).map(|_| Links::new()).collect(),
                    hashes: vec![0; size as usize],
                    worths: vec![1.0; size as usize],
                },
                queues: Queues::NEW,
                ghosts: vec![0; size as usize],
                places: HashMap::new(),
                free: (0..size).collect(),
            }
        }

        /// Whether it was there.
        fn get(&mut self, key: u64, worth: f64) -> bool {
            if let Some(place) = self.places.get(&key) {
                self.store.links(*place).ask();
                return true;
            }
            let place = self.free.pop().unwrap_or_else(|| {
                let victim = self
                    .queues
                    .evict(&mut self.store, &mut self.ghosts)
                    .expect("a full cache has a victim");
                self.places.remove(&self.store.hashes[victim as usize]);
                victim
            });
            self.store.hashes[place as usize] = key;
            self.store.worths[place as usize] = worth;
            self.places.insert(key, place);
            self.queues.insert(&mut self.store, &mut self.ghosts, place);
            false
        }

        fn check(&self) {
            assert_eq!(self.queues.length() as usize, self.places.len());
            for (queue, which) in [(&self.queues.small, SMALL), (&self.queues.main, MAIN)] {
                let (mut index, mut previous, mut length) = (queue.first, NONE, 0);
                while index != NONE {
                    let links = self.store.links(index);
                    assert_eq!((links.previous, links.queue), (previous, which));
                    assert_eq!(self.places[&self.store.hash(index)], index);
                    (previous, index) = (index, links.next);
                    length += 1;
                }
                assert_eq!((queue.last, queue.length), (previous, length));
            }
        }
    }

    struct Lru {
        size: usize,
        clock: u64,
        used: HashMap<u64, u64>,
    }

    impl Lru {
        fn get(&mut self, key: u64) -> bool {
            self.clock += 1;
            let hit = self.used.insert(key, self.clock).is_some();
            if self.used.len() > self.size {
                let oldest = *self.used.iter().min_by_key(|(_, used)| **used).unwrap().0;
                self.used.remove(&oldest);
            }
            hit
        }
    }

    /// Zipf-like: the k-th of so many keys is asked for in proportion to 1/k.
    fn popular(keys: u64, random: &mut u64) -> u64 {
        *random ^= *random << 13;
        *random ^= *random >> 7;
        *random ^= *random << 17;
        let part = (*random >> 11) as f64 / (1u64 << 53) as f64;
        ((keys as f64).powf(part) as u64).min(keys)
    }

    #[test]
    fn a_scan_does_not_push_out_what_is_popular() {
        let mut random = 42;
        let (mut cache, mut lru) = (
            Cache::new(200),
            Lru {
                size: 200,
                clock: 0,
                used: HashMap::new(),
            },
        );
        let (mut asked, mut ours, mut theirs) = (0, 0, 0);
        let mut once = 1_000_000;
        for round in 0..400 {
            for _ in 0..100 {
                let key = popular(800, &mut random);
                asked += 1;
                ours += u32::from(cache.get(key, 1.0));
                theirs += u32::from(lru.get(key));
            }
            // Reports that are asked for once.
            if round % 4 == 0 {
                for _ in 0..300 {
                    once += 1;
                    cache.get(once, 1.0);
                    lru.get(once);
                }
            }
        }
        cache.check();
        let (ours, theirs) = (
            f64::from(ours) / f64::from(asked),
            f64::from(theirs) / f64::from(asked),
        );
        println!("hit rate {ours:.3}, plain LRU {theirs:.3}");
        assert!(ours > theirs + 0.05, "{ours} {theirs}");
    }

    #[test]
    fn what_is_worth_less_goes_first() {
        let mut cache = Cache::new(50);
        for key in 0..1_000 {
            // One in five is worth a hundred times as much.
            cache.get(key, if key % 5 == 0 { 100.0 } else { 1.0 });
        }
        let dear = cache.places.keys().filter(|key| **key % 5 == 0).count();
        assert!(dear > 12, "{dear} of 50, where 10 would be fair");
        // But nothing stays for ever.
        assert!(cache.places.keys().all(|key| *key > 500));
    }

    proptest! {
        #[test]
        fn queues_stay_whole(size in 1u32..20, steps in prop::collection::vec((0u64..60, 0u8..10), 1..400)) {
            let mut cache = Cache::new(size);
            for (key, what) in steps {
                if what == 0 {
                    if let Some(place) = cache.places.remove(&key) {
                        cache.queues.remove(&mut cache.store, place);
                        cache.free.push(place);
                    }
                } else {
                    cache.get(key, f64::from(what));
                }
                cache.check();
                prop_assert!(cache.places.len() <= size as usize);
            }
        }
    }
}
