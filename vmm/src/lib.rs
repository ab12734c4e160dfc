//! The Sluice virtual machine monitor.

pub mod acpi;
pub mod boot;
pub mod cli;
pub mod control;
pub mod exit;
pub mod machine;
pub mod memory;
pub mod qmp;
pub mod storage;
