//! Tests of the job engine: its tables, its pure parts, and jobs living in a real event loop.

mod errors;
mod groups;
mod life;
pub(crate) mod log;
pub(crate) mod page;
mod parts;
mod quiesce;
mod registry;
mod support;
mod tables;
mod verbs;
