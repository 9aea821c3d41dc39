//! Sessions that write and read while something is measured.

use crate::milliseconds;
use audit_db_e2e::Cluster;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Sessions think between two statements: what is looked at is how long they wait, not who wins the processor.
const THINKING: Duration = Duration::from_millis(1);

/// How many sessions, and what each of them repeats.
pub struct Load<'a> {
    pub cluster: &'a Cluster,
    pub database: &'a str,
    pub writers: usize,
    pub write: &'a str,
    pub readers: usize,
    pub read: &'a str,
}

/// The longest statement of all sessions, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Longest {
    pub write: f64,
    pub read: f64,
}

impl Load<'_> {
    /// Runs `work` while the sessions are at theirs.
    pub fn during<T>(&self, work: impl FnOnce() -> T) -> (T, Longest) {
        let working = AtomicBool::new(true);
        std::thread::scope(|scope| {
            let working = &working;
            let _stop = Stop(working);
            let start = |sql: &str| {
                let mut session = self.cluster.connect(self.database);
                // Once before the time counts: caches are warm in a session that works all day.
                let statement = session.prepare(sql).expect("prepare");
                session.query(&statement, &[]).expect("first statement");
                scope.spawn(move || {
                    let mut longest = Duration::ZERO;
                    while working.load(Ordering::Relaxed) {
                        let started = Instant::now();
                        session.query(&statement, &[]).expect("statement");
                        longest = longest.max(started.elapsed());
                        std::thread::sleep(THINKING);
                    }
                    milliseconds(longest)
                })
            };
            let writers: Vec<_> = (0..self.writers).map(|_| start(self.write)).collect();
            let readers: Vec<_> = (0..self.readers).map(|_| start(self.read)).collect();
            let done = work();
            working.store(false, Ordering::Relaxed);
            let longest = |sessions: Vec<std::thread::ScopedJoinHandle<f64>>| {
                sessions
                    .into_iter()
                    .map(|session| session.join().expect("session"))
                    .fold(0.0, f64::max)
            };
            let (write, read) = (longest(writers), longest(readers));
            (done, Longest { write, read })
        })
    }
}

/// Ends the sessions also where `work` panics: the scope waits for them.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}
