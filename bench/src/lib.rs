//! What the benchmarks share: rounds in which the contenders take turns, medians, ratios, goals, and sessions that work
//! while something is measured.

mod load;
mod report;

pub use load::{Load, Longest};
pub use report::{Contender, Medians, goal, measure, milliseconds};

/// How often each contender has its turn; `AUDIT_DB_BENCH_ROUNDS` changes it.
pub fn rounds(usual: usize) -> usize {
    std::env::var("AUDIT_DB_BENCH_ROUNDS")
        .ok()
        .and_then(|rounds| rounds.parse().ok())
        .unwrap_or(usual)
        .max(1)
}
