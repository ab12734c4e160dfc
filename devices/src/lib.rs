//! Device models of Sluice: legacy PC, PCI, IDE and virtio.
//!
//! Devices know nothing of KVM: interrupts ([`irq`]), doorbells ([`doorbell`]) and address spaces
//! ([`bus`]) are traits and tables that the machine fills in.

#[cfg(test)]
mod allocations;
pub mod bus;
pub mod clock;
pub mod doorbell;
pub mod exits;
pub mod ide;
pub mod irq;
pub mod legacy;
pub mod pci;
pub mod posted;
pub mod reset;
#[cfg(test)]
mod traces;
pub mod virtio;
