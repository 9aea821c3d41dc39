//! Waiting for something to become true, with a bound; nothing else in the tests sleeps.

use std::time::{Duration, Instant};

/// Bound for what normally takes well under a second, on a machine that is busy with other things.
pub const SOON: Duration = Duration::from_secs(30);

const STEP: Duration = Duration::from_millis(10);

/// Polls `condition` until it holds; panics with `what` when it does not within `bound`.
#[track_caller]
pub fn wait_until(what: &str, bound: Duration, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(
            started.elapsed() < bound,
            "waited {bound:?} in vain until {what}"
        );
        std::thread::sleep(STEP);
    }
}
