//! When a stored result is what a query would return under another snapshot.
//!
//! For every relation a ring holds the transactions that announced, before they committed, that they had written it. A result that
//! was computed under snapshot S is that of snapshot R exactly if both see the same writers of every relation that it was computed
//! from. Let A be the writers that had announced when the ring was read under S. If nothing was announced between that and the
//! reading under R, a writer outside A had not committed when either snapshot was taken: it announces first, and a snapshot is
//! taken before its ring is read. Writers that the ring has forgotten must be older than everything that either snapshot sees
//! running, so both see their end. The others are compared one by one. A writer that rolls back after it announced costs a needless
//! miss, never a wrong hit.

/// Transaction ids of 64 bits: epoch and id.
pub type FullId = u64;

/// A snapshot as the rule sees it.
pub trait Snapshot {
    /// Every transaction with a lower id has ended.
    fn oldest(&self) -> FullId;
    /// Whether this transaction had not ended when the snapshot was taken; ids from the future had not.
    fn is_running(&self, id: FullId) -> bool;
}

/// The last writers of a relation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ring<const N: usize> {
    /// How many were announced so far.
    pub announced: u64,
    /// The highest id that had to make room; 0: none had.
    pub forgotten: FullId,
    pub writers: [FullId; N],
}

/// What a snapshot sees of a ring; two that see the same see the same rows of the relation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct View {
    announced: u64,
    /// One bit for each place of the ring.
    running: u64,
}

impl View {
    pub const fn words(self) -> [u64; 2] {
        [self.announced, self.running]
    }

    pub const fn from_words(words: [u64; 2]) -> Self {
        Self {
            announced: words[0],
            running: words[1],
        }
    }
}

impl<const N: usize> Ring<N> {
    pub const EMPTY: Self = Self {
        announced: 0,
        forgotten: 0,
        writers: [0; N],
    };

    /// A transaction that has written the relation is about to commit, or to be prepared.
    pub fn announce(&mut self, writer: FullId) {
        let place = (self.announced % N as u64) as usize;
        self.forgotten = self.forgotten.max(self.writers[place]);
        self.writers[place] = writer;
        self.announced += 1;
    }

    /// What a snapshot sees; to be read after it was taken. `None`: the ring has forgotten writers that may still be running for it.
    pub fn view(&self, snapshot: &impl Snapshot) -> Option<View> {
        if self.forgotten >= snapshot.oldest() {
            return None;
        }
        let mut running = 0;
        for (place, writer) in self.writers.iter().enumerate() {
            if *writer != 0 && *writer >= snapshot.oldest() && snapshot.is_running(*writer) {
                running |= 1 << place;
            }
        }
        Some(View {
            announced: self.announced,
            running,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    const RING: usize = 2;
    const WRITERS: usize = 3;

    /// One bit for each id.
    type Ids = u32;

    #[derive(Clone, Copy, PartialEq, Eq, Hash)]
    struct Taken {
        oldest: FullId,
        next: FullId,
        running: Ids,
        /// Writers of the relation that it sees as committed: what its rows are.
        rows: Ids,
    }

    impl Snapshot for Taken {
        fn oldest(&self) -> FullId {
            self.oldest
        }

        fn is_running(&self, id: FullId) -> bool {
            id >= self.next || self.running & 1 << id != 0
        }
    }

    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
    enum Phase {
        Idle,
        Running(FullId),
        Announced(FullId),
        Ended,
    }

    /// Fault that the model can be given, to see that the test would find it.
    #[derive(Clone, Copy, PartialEq, Eq)]
    enum Fault {
        None,
        AnnouncesAfterCommit,
        ForgetsSilently,
        IgnoresRunning,
        ReadsRingBeforeSnapshot,
    }

    #[derive(Clone, Copy, PartialEq, Eq, Hash)]
    struct World {
        next: FullId,
        running: Ids,
        committed: Ids,
        ring: Ring<RING>,
        writers: [Phase; WRITERS],
        /// Filler and reader: snapshot, then what it saw of the ring.
        lookers: [(Option<Taken>, Option<Option<View>>); 2],
    }

    impl World {
        fn snapshot(&self) -> Taken {
            Taken {
                oldest: self.next.min(self.running.trailing_zeros().into()),
                next: self.next,
                running: self.running,
                rows: self.committed,
            }
        }

        fn look(&self, snapshot: &Taken, fault: Fault) -> Option<View> {
            let mut ring = self.ring;
            if fault == Fault::ForgetsSilently {
                ring.forgotten = 0;
            }
            let view = ring.view(snapshot);
            if fault == Fault::IgnoresRunning {
                return view.map(|view| View { running: 0, ..view });
            }
            view
        }

        fn steps(&self, fault: Fault) -> Vec<World> {
            let mut steps = Vec::new();
            for (index, phase) in self.writers.iter().enumerate() {
                let mut world = *self;
                match *phase {
                    Phase::Idle => {
                        let id = self.next;
                        world.next += 1;
                        world.running |= 1 << id;
                        world.writers[index] = Phase::Running(id);
                    }
                    Phase::Running(id) => {
                        if fault == Fault::AnnouncesAfterCommit {
                            world.running &= !(1 << id);
                            world.committed |= 1 << id;
                        } else {
                            world.ring.announce(id);
                        }
                        world.writers[index] = Phase::Announced(id);
                    }
                    Phase::Announced(id) => {
                        if fault == Fault::AnnouncesAfterCommit {
                            world.ring.announce(id);
                        } else {
                            // It can fail between its announcement and its commit.
                            let mut failed = *self;
                            failed.running &= !(1 << id);
                            failed.writers[index] = Phase::Ended;
                            steps.push(failed);
                            world.running &= !(1 << id);
                            world.committed |= 1 << id;
                        }
                        world.writers[index] = Phase::Ended;
                    }
                    Phase::Ended => continue,
                }
                steps.push(world);
            }
            for (index, (snapshot, view)) in self.lookers.iter().enumerate() {
                let mut world = *self;
                match (snapshot, view) {
                    (Some(_), Some(_)) => continue,
                    (None, None) if fault == Fault::ReadsRingBeforeSnapshot => {
                        world.lookers[index].1 = Some(self.look(&self.snapshot(), fault));
                    }
                    (None, _) => world.lookers[index].0 = Some(self.snapshot()),
                    (Some(snapshot), None) => {
                        world.lookers[index].1 = Some(self.look(snapshot, fault));
                    }
                }
                steps.push(world);
            }
            steps
        }
    }

    /// Goes through every order in which writers, the one who fills and the one who reads can take their steps. Returns how many
    /// states there were, how many hits, and how many of those were wrong.
    fn explore(fault: Fault) -> (usize, usize, usize) {
        let mut seen = HashSet::new();
        let mut open = vec![World {
            next: 1,
            running: 0,
            committed: 0,
            ring: Ring::EMPTY,
            writers: [Phase::Idle; WRITERS],
            lookers: [(None, None), (None, None)],
        }];
        let (mut hits, mut wrong) = (0, 0);
        while let Some(world) = open.pop() {
            if !seen.insert(world) {
                continue;
            }
            if let [
                (Some(filled), Some(Some(one))),
                (Some(reader), Some(Some(other))),
            ] = &world.lookers
                && one == other
            {
                hits += 1;
                wrong += usize::from(filled.rows != reader.rows);
                if wrong > 0 && fault != Fault::None {
                    break;
                }
                continue;
            }
            open.extend(world.steps(fault));
        }
        (seen.len(), hits, wrong)
    }

    #[test]
    fn no_order_of_steps_gives_a_wrong_hit() {
        let (states, hits, wrong) = explore(Fault::None);
        assert!(states > 10_000 && hits > 1_000, "{states} {hits}");
        assert_eq!(wrong, 0);
    }

    #[test]
    fn every_part_of_the_rule_is_needed() {
        for fault in [
            Fault::AnnouncesAfterCommit,
            Fault::ForgetsSilently,
            Fault::IgnoresRunning,
            Fault::ReadsRingBeforeSnapshot,
        ] {
            assert!(explore(fault).2 > 0);
        }
    }

    #[test]
    fn what_was_forgotten_is_not_judged() {
        let mut ring = Ring::<2>::EMPTY;
        for id in 10..13 {
            ring.announce(id);
        }
        let quiet = |oldest| Taken {
            oldest,
            next: 20,
            running: 0,
            rows: 0,
        };
        assert_eq!(ring.forgotten, 10);
        assert_eq!(ring.view(&quiet(10)), None);
        assert!(ring.view(&quiet(11)).is_some());
    }
}
