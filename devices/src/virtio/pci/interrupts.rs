//! The transport's interrupts: MSI-X vectors by queue, or INTx with the interrupt status register.
//!
//! Raised from any thread. With MSI-X that takes no lock; INTx goes through the lock that orders
//! the line.

use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};

use super::layout::{Isr, NO_VECTOR};
use crate::pci::{Msix, PciConfig};

/// Which vector is for what, and what is pending without vectors.
pub(super) struct Vectors {
    config: AtomicU16,
    queues: Box<[AtomicU16]>,
    isr: AtomicU8,
    /// `config_generation` (VIRTIO 1.2, section 4.1.4.3).
    generation: AtomicU8,
}

impl Vectors {
    pub(super) fn new(queues: usize) -> Self {
        Self {
            config: AtomicU16::new(NO_VECTOR),
            queues: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            isr: AtomicU8::new(0),
            generation: AtomicU8::new(0),
        }
    }

    pub(super) fn config(&self) -> u16 {
        self.config.load(Ordering::Acquire)
    }

    pub(super) fn queue(&self, index: usize) -> u16 {
        self.queues
            .get(index)
            .map_or(NO_VECTOR, |vector| vector.load(Ordering::Acquire))
    }

    pub(super) fn generation(&self) -> u8 {
        self.generation.load(Ordering::Acquire)
    }

    /// A vector that does not exist reads back as "no vector": the driver learns that it failed.
    fn accept(vector: u16, msix: &Msix) -> u16 {
        if usize::from(vector) < msix.len() {
            vector
        } else {
            NO_VECTOR
        }
    }

    pub(super) fn set_config(&self, vector: u16, msix: &Msix) {
        self.config
            .store(Self::accept(vector, msix), Ordering::Release);
    }

    pub(super) fn set_queue(&self, index: usize, vector: u16, msix: &Msix) {
        if let Some(slot) = self.queues.get(index) {
            slot.store(Self::accept(vector, msix), Ordering::Release);
        }
    }

    pub(super) fn raise_queue(&self, index: u16, msix: &Msix, pci: &PciConfig) {
        if msix.is_enabled() {
            msix.trigger(self.queue(usize::from(index)));
        } else {
            self.raise(Isr::QUEUE, msix, pci);
        }
    }

    /// The device-specific configuration is another one. Wraps around.
    pub(super) fn next_generation(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// A configuration change notification. The status register shows it with MSI-X too (section
    /// 4.1.4.5.1); the line does not. It shows a queue's interrupt as well, as QEMU's does: there are drivers that
    /// wait for that bit alone, and one that finds nothing in its queues loses nothing.
    pub(super) fn raise_config(&self, msix: &Msix, pci: &PciConfig) {
        self.raise(Isr::CONFIG | Isr::QUEUE, msix, pci);
        if msix.is_enabled() {
            msix.trigger(self.config());
        }
    }

    fn raise(&self, cause: Isr, msix: &Msix, pci: &PciConfig) {
        self.isr.fetch_or(cause.bits(), Ordering::SeqCst);
        self.drive_line(msix, pci);
    }

    /// INTx follows the status register, unless MSI-X is in use.
    pub(super) fn drive_line(&self, msix: &Msix, pci: &PciConfig) {
        pci.update_intx(|| self.isr.load(Ordering::SeqCst) != 0 && !msix.is_enabled());
    }

    /// A read of the status register, which clears it and so releases the line (section 4.1.4.5.1).
    pub(super) fn take_isr(&self, msix: &Msix, pci: &PciConfig) -> u8 {
        let isr = self.isr.swap(0, Ordering::SeqCst);
        self.drive_line(msix, pci);
        isr
    }

    /// Back to power-on; a device reset too clears the vectors (section 4.1.4.3.1).
    pub(super) fn reset(&self, msix: &Msix, pci: &PciConfig) {
        self.config.store(NO_VECTOR, Ordering::Release);
        for vector in &self.queues {
            vector.store(NO_VECTOR, Ordering::Release);
        }
        self.take_isr(msix, pci);
    }
}
