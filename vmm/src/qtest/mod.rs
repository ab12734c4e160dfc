//! The machine without vCPUs, driven by QEMU's qtest protocol.

mod interrupts;

pub use interrupts::QtestInterrupts;
