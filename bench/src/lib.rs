//! Benchmarks of Sluice, each beside what it is measured against, in the same run.
//!
//! The program `sluice-bench` (by `ci/bench`) runs them and says which targets are met; what they
//! mean is in `docs/benchmarks.md`. This library is what the program and the tests of its parts
//! share. Everything runs in the caller's thread and in threads that are joined before a function
//! returns.

pub mod allocations;
pub mod awake;
pub mod block;
pub mod children;
pub mod confine;
pub mod daemon;
pub mod disk;
pub mod gate;
pub mod job;
pub mod live;
pub mod mirror;
mod random;
pub mod random_read;
pub mod reads;
pub mod report;
pub mod timing;
pub mod wake;
