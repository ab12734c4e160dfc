//! The Sluice virtual machine monitor.

pub mod acpi;
pub mod boot;
pub mod chardev;
pub mod cli;
pub mod clock;
pub mod console;
pub mod control;
pub mod exit;
pub mod iothreads;
pub mod kvm;
pub mod log;
pub mod machine;
pub mod main_loop;
pub mod memory;
pub mod process;
pub mod qmp;
pub mod qtest;
mod slow_end;
pub mod storage;
