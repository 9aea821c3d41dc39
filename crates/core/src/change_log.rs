//! How far a log of changes has been applied, and where a change belongs.
//!
//! Writers draw rising numbers for their changes, but their transactions end in any order: a small number may become visible
//! after a large one. A reader that only remembered the largest number it saw would miss it, and one that started from the
//! beginning each time would read ever more.

use std::collections::VecDeque;

/// A point in the log: every change up to `change` was drawn by a transaction that is older than `next_transaction`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    change: u64,
    next_transaction: u64,
}

/// The number below which nothing can appear any more.
#[derive(Clone, Debug, Default)]
pub struct LowWater {
    low: u64,
    marks: VecDeque<Mark>,
}

impl LowWater {
    /// Remembers a point. `next_transaction` must be read after `change`: whoever drew a number up to `change` had its
    /// transaction id by then.
    pub fn mark(&mut self, change: u64, next_transaction: u64) {
        if self.marks.back().is_none_or(|last| last.change < change) {
            self.marks.push_back(Mark {
                change,
                next_transaction,
            });
        }
    }

    /// Everything up to number `last` that a snapshot saw was applied; `oldest_running` is the oldest transaction that was
    /// running for it.
    pub fn applied(&mut self, last: u64, oldest_running: u64) {
        while let Some(mark) = self.marks.front()
            && mark.next_transaction <= oldest_running
        {
            self.low = self.low.max(mark.change.min(last));
            if mark.change > last {
                break;
            }
            self.marks.pop_front();
        }
    }

    /// Changes up to this number are done with.
    pub const fn low(&self) -> u64 {
        self.low
    }
}

/// The index of the range that holds a position, in ranges that are sorted and do not overlap.
pub fn locate(ranges: &[(i64, i64)], position: i64) -> Option<usize> {
    let index = ranges.partition_point(|(_, upper)| *upper <= position);
    ranges
        .get(index)
        .is_some_and(|(lower, _)| *lower <= position)
        .then_some(index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn waits_for_slow_writers() {
        let mut low = LowWater::default();
        // Transaction 7 has drawn number 3 and is still running; 8 has drawn 5 and committed.
        low.mark(5, 9);
        low.applied(6, 7);
        assert_eq!(low.low(), 0);
        low.mark(6, 10);
        low.applied(6, 9);
        assert_eq!(low.low(), 5);
        low.applied(6, 10);
        assert_eq!(low.low(), 6);
    }

    #[test]
    fn finds_the_range() {
        let ranges = [(10, 20), (20, 30), (40, 50)];
        for (position, index) in [
            (9, None),
            (10, Some(0)),
            (19, Some(0)),
            (20, Some(1)),
            (30, None),
            (49, Some(2)),
            (50, None),
            (i64::MAX, None),
            (i64::MIN, None),
        ] {
            assert_eq!(locate(&ranges, position), index, "{position}");
        }
    }

    /// A writer: how many changes it makes before each of its pauses, and whether it then ends.
    #[derive(Clone, Debug)]
    enum Event {
        Begin,
        /// The running transaction of this index (modulo their number) draws a number.
        Draw(usize),
        End(usize),
        /// Everything up to a number is applied: this share, in eighths, of what was drawn.
        Apply(u64),
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            2 => Just(Event::Begin),
            5 => (0usize..8).prop_map(Event::Draw),
            2 => (0usize..8).prop_map(Event::End),
            2 => (1u64..=8).prop_map(Event::Apply),
        ]
    }

    proptest! {
        /// Whatever the order of writers and readers: a reader that starts at the low water mark misses nothing.
        #[test]
        fn nothing_is_missed(events in proptest::collection::vec(event(), 0..200)) {
            let (mut low, mut next_transaction, mut drawn) = (LowWater::default(), 1u64, 0u64);
            let mut running: Vec<(u64, Vec<u64>)> = Vec::new();
            let mut visible: Vec<u64> = Vec::new();
            for event in events.into_iter().chain([Event::Apply(8)]) {
                match event {
                    Event::Begin => {
                        running.push((next_transaction, Vec::new()));
                        next_transaction += 1;
                    }
                    Event::Draw(index) if !running.is_empty() => {
                        drawn += 1;
                        let index = index % running.len();
                        running[index].1.push(drawn);
                    }
                    Event::End(index) if !running.is_empty() => {
                        let index = index % running.len();
                        visible.extend(running.swap_remove(index).1);
                    }
                    Event::Apply(eighths) => {
                        low.mark(drawn, next_transaction);
                        let oldest = running.iter().map(|(id, _)| *id).min().unwrap_or(next_transaction);
                        // All that is visible and not yet applied lies above the mark.
                        prop_assert!(visible.iter().all(|change| *change > low.low()));
                        let last = drawn * eighths / 8;
                        visible.retain(|change| *change > last);
                        low.applied(last, oldest);
                        // So does all that is left, or may still become visible.
                        prop_assert!(visible.iter().all(|change| *change > low.low()));
                        prop_assert!(running.iter().flat_map(|(_, changes)| changes).all(|change| *change > low.low()));
                        // And with nobody at work the mark follows.
                        if running.is_empty() {
                            prop_assert_eq!(low.low(), last.max(low.low()));
                        }
                    }
                    _ => {}
                }
            }
        }

        #[test]
        fn locate_agrees_with_a_search(bounds in proptest::collection::btree_set(-100i64..100, 2..20), position in -120i64..120) {
            let bounds: Vec<i64> = bounds.into_iter().collect();
            // Every other pair, so that there are gaps.
            let ranges: Vec<(i64, i64)> = bounds.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
            let expected = ranges.iter().position(|(lower, upper)| *lower <= position && position < *upper);
            prop_assert_eq!(locate(&ranges, position), expected);
        }
    }
}
