//! How long to wait before trying again: exponential with jitter, so that those who failed together do not return together.

use std::time::Duration;

/// Doubling delays from `base` up to `cap`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    pub base: Duration,
    pub cap: Duration,
}

impl Backoff {
    /// Delay before attempt number `attempt` (0 = the first retry): between half and all of `base × 2^attempt`, at most `cap`.
    /// `seed` is any number that differs between callers (a process id, a clock).
    pub fn delay(self, attempt: u32, seed: u64) -> Duration {
        let full = self
            .base
            .saturating_mul(1u32.checked_shl(attempt).unwrap_or(u32::MAX))
            .min(self.cap);
        let half = full / 2;
        // 2^16 steps of jitter are enough to part processes and keep the arithmetic exact.
        let fraction = (mix(seed ^ u64::from(attempt)) >> 48) as u32;
        half + (full - half) * fraction / 65_536
    }
}

/// SplitMix64's finaliser: neighbouring seeds give unrelated numbers.
const fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RESTART: Backoff = Backoff {
        base: Duration::from_secs(1),
        cap: Duration::from_secs(300),
    };

    #[test]
    fn doubles_up_to_the_cap() {
        for (attempt, full) in [
            (0, 1),
            (1, 2),
            (4, 16),
            (8, 256),
            (9, 300),
            (63, 300),
            (u32::MAX, 300),
        ] {
            let delay = RESTART.delay(attempt, 7);
            let full = Duration::from_secs(full);
            assert!(delay >= full / 2 && delay <= full, "{attempt}: {delay:?}");
        }
    }

    #[test]
    fn callers_part() {
        let delays: std::collections::HashSet<_> =
            (0..64).map(|seed| RESTART.delay(3, seed)).collect();
        assert!(delays.len() > 60);
    }

    proptest! {
        #[test]
        fn bounded(attempt: u32, seed: u64, base in 1u64..10_000, cap in 1u64..1_000_000) {
            let backoff = Backoff { base: Duration::from_millis(base), cap: Duration::from_millis(cap) };
            let delay = backoff.delay(attempt, seed);
            prop_assert!(delay <= backoff.cap);
            prop_assert!(delay >= backoff.base.min(backoff.cap) / 2);
        }
    }
}
