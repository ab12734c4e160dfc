//! The Sluice virtual machine monitor.

pub mod control;
pub mod qmp;
