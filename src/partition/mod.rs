//! Partitions: from the catalog's facts (`inspect`) and the table's settings (`managed`) to a plan (in the core crate), and
//! from the plan to DDL under a lock timeout (`create`, `retire`).

pub mod create;
pub mod detach;
pub mod events;
pub mod exchange;
pub mod indexes;
pub mod inspect;
pub mod maintain;
pub mod managed;
pub mod months;
pub mod repair;
pub mod retire;
pub mod steps;
pub mod unfinished;
pub mod waiting;
