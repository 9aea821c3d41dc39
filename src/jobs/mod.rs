//! Jobs: what is scheduled (`definition`), what it does (`task`), when it is due (`schedule`), and every run of it (`runs`).

pub mod definition;
pub mod runs;
pub mod schedule;
pub mod task;
