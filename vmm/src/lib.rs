//! The Sluice virtual machine monitor.
