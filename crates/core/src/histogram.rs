//! Durations counted in buckets whose width grows with the duration: every octave (a doubling) from 512 ns to 4.9 hours is
//! divided into four parts of equal width. That is the layout of HdrHistogram with two significant bits; counts of several
//! histograms add up.

/// Smallest duration that has a bucket of its own, as a power of two: 512 ns.
const FIRST_OCTAVE: u32 = 9;
const OCTAVES: usize = 35;
/// Parts of an octave.
const PARTS: usize = 4;
/// What is shorter than the first octave, the octaves, and what is longer than the last one.
pub const BUCKETS: usize = 1 + OCTAVES * PARTS + 1;
/// Durations from here on, in nanoseconds, are not told apart.
pub const LONGEST: u64 = 1 << (FIRST_OCTAVE as usize + OCTAVES);
/// A quantile lies within this part of the exact one: the widest bucket reaches from 4/4 to 5/4, and its geometric middle is
/// √(5/4) away from both ends. Durations below 512 ns are not told apart.
pub const RELATIVE_ERROR: f64 = 0.119;

/// The bucket of a duration.
#[inline]
pub const fn bucket(nanoseconds: u64) -> usize {
    if nanoseconds < 1 << FIRST_OCTAVE {
        return 0;
    }
    let exponent = nanoseconds.ilog2();
    let part = (nanoseconds >> (exponent - 2)) as usize & (PARTS - 1);
    let index = 1 + (exponent - FIRST_OCTAVE) as usize * PARTS + part;
    if index < BUCKETS { index } else { BUCKETS - 1 }
}

/// The middle of a bucket in nanoseconds: geometric, so that the error is the same to both sides.
fn middle(bucket: usize) -> f64 {
    if bucket == 0 {
        return f64::from(1u32 << (FIRST_OCTAVE - 1));
    }
    let octave = (bucket - 1) / PARTS;
    let part = (bucket - 1) % PARTS;
    let width = f64::from(1u32 << (FIRST_OCTAVE - 2)) * 2f64.powi(octave as i32);
    let lower = width * (PARTS + part) as f64;
    (lower * (lower + width)).sqrt()
}

/// The duration in nanoseconds that a part of all (0..1) does not exceed, by nearest rank; between the smallest and the largest
/// that were counted. `None`: nothing was counted.
pub fn quantile(counts: &[u64; BUCKETS], part: f64, least: u64, most: u64) -> Option<f64> {
    let total: u64 = counts.iter().sum();
    if total == 0 {
        return None;
    }
    let rank = ((total as f64 * part).ceil() as u64).clamp(1, total);
    let mut seen = 0;
    let index = counts.iter().position(|count| {
        seen += count;
        seen >= rank
    })?;
    let estimate = if index == BUCKETS - 1 {
        most as f64
    } else {
        middle(index)
    };
    Some(estimate.min(most as f64).max(least as f64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn count(durations: &[u64]) -> ([u64; BUCKETS], u64, u64) {
        let mut counts = [0; BUCKETS];
        for duration in durations {
            counts[bucket(*duration)] += 1;
        }
        let least = durations.iter().copied().min().unwrap_or(0);
        let most = durations.iter().copied().max().unwrap_or(0);
        (counts, least, most)
    }

    #[test]
    fn buckets_cover_everything_in_order() {
        assert_eq!(bucket(0), 0);
        assert_eq!(bucket(511), 0);
        assert_eq!(bucket(512), 1);
        assert_eq!(bucket(639), 1);
        assert_eq!(bucket(640), 2);
        assert_eq!(bucket(1 << 43), BUCKETS - 1 - PARTS);
        assert_eq!(bucket((1 << 44) - 1), BUCKETS - 2);
        assert_eq!(bucket(1 << 44), BUCKETS - 1);
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn nothing_has_no_quantile_and_one_is_itself() {
        assert_eq!(quantile(&[0; BUCKETS], 0.5, 0, 0), None);
        let (counts, least, most) = count(&[1_234_567]);
        assert_eq!(quantile(&counts, 0.99, least, most), Some(1_234_567.0));
    }

    proptest! {
        #[test]
        fn later_durations_have_no_earlier_bucket(one: u64, other: u64) {
            let (less, more) = (one.min(other), one.max(other));
            prop_assert!(bucket(less) <= bucket(more));
        }

        #[test]
        fn quantiles_are_within_the_stated_error(
            durations in proptest::collection::vec(512u64..(1 << 44), 1..400),
            part in 0.0f64..1.0,
        ) {
            let (counts, least, most) = count(&durations);
            let mut sorted = durations.clone();
            sorted.sort_unstable();
            let rank = ((sorted.len() as f64 * part).ceil() as usize).clamp(1, sorted.len());
            let exact = sorted[rank - 1] as f64;
            let estimate = quantile(&counts, part, least, most).unwrap();
            prop_assert!((estimate / exact - 1.0).abs() <= RELATIVE_ERROR, "{estimate} {exact}");
        }
    }
}
