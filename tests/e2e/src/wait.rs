//! Waiting for something to become true, with a bound; nothing else in the tests sleeps.

use crate::session::Session;
use postgres::Client;
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

/// Waits until the workers of the session's database have nothing to do: no cycle has begun for a while that somebody asked
/// for, and none that takes long is going on. With a long `audit_db.maintenance_interval` none follows then.
#[track_caller]
pub fn wait_until_workers_rest(client: &mut Client) {
    let (mut last, mut polls) = (Vec::new(), 0);
    wait_until("the workers rest", SOON, || {
        let now = client.rows(
            "SELECT state, slow_pid, last_cycle FROM audit_db.workers
              WHERE database = current_database() AND last_cycle IS NOT NULL",
        );
        let resting = now
            .first()
            .is_some_and(|worker| worker[0] == "idle" && worker[1] == "null");
        polls = if resting && now == last { polls + 1 } else { 0 };
        last = now;
        polls == 10
    });
}
