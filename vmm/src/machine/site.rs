//! What a PCI device needs of the machine around it, at machine build and later.

use std::sync::Arc;

use sluice_devices::doorbell::Doorbells;
use sluice_devices::irq::MsiController;
use sluice_devices::pci::{IntxRouter, PciBus};

use crate::memory::GuestRam;

/// The surroundings of PCI devices. Any thread.
#[derive(Clone)]
pub struct PciSite {
    /// Guest memory.
    pub ram: Arc<GuestRam>,
    /// The bus; it moves its functions' BARs and resets its functions by itself.
    pub bus: Arc<PciBus>,
    /// The wires of their pins.
    pub intx: Arc<IntxRouter>,
    /// Where message-signalled vectors come from.
    pub msi: Arc<dyn MsiController>,
    /// Where doorbells are bound.
    pub doorbells: Arc<dyn Doorbells>,
}
