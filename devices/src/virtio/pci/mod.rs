//! The PCI transport of virtio: registers, negotiation, the life of a device.
//!
//! Accesses come from vCPU threads and change [`registers::Registers`] under a lock that nobody
//! holds for longer than a few stores. What takes time, settling requests that are in flight,
//! happens in the queues' loops; the driver that asked for a reset reads a status that is not zero
//! until it is over (VIRTIO 1.2, sections 2.1.2 and 4.1.4.3.2). The data path (doorbells and
//! interrupts) does not take the lock.

mod configuration;
mod interrupts;
pub(super) mod layout;
mod lifecycle;
mod registers;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use sluice_aio::GuestRam;

use self::configuration::configuration;
use self::interrupts::Vectors;
use self::layout::{
    CAPABILITY_EXTRA_LEN, MAX_QUEUES, MSIX_BAR, NOTIFY_STRIDE, STRUCTURES_BAR, Structure,
    capability,
};
use self::registers::Registers;
use super::{Interrupts, Kick, RingFeatures, Status, VirtioDevice, VirtioError};
use crate::doorbell::{DoorbellAddress, Doorbells};
use crate::irq::{IrqLine, MsiController};
use crate::pci::{BarIndex, ConfigChange, Msix, PciConfig, PciFunction};
use crate::reset::{Resetting, settled};

/// What a virtio function is put together from.
pub struct VirtioPciParts<'a> {
    /// The guest's memory.
    pub memory: Arc<GuestRam>,
    /// Where MSI-X vectors come from.
    pub msi: &'a dyn MsiController,
    /// Number of MSI-X vectors; `None`: one for each queue and one for configuration changes. With
    /// none at all the function has no MSI-X.
    pub vectors: Option<usize>,
    /// What is offered besides the device's own features; VERSION_1 is always.
    pub features: RingFeatures,
    /// Binds the queues' doorbells.
    pub doorbells: Arc<dyn Doorbells>,
    /// The end of the INTx wire for pin A, and the number for the interrupt line register.
    pub intx: Option<(Arc<dyn IrqLine>, u8)>,
}

/// A virtio device as a PCI function.
pub struct VirtioPci {
    /// Itself, for the devices' way back.
    this: Weak<Self>,
    pci: PciConfig,
    msix: Msix,
    /// Offset of the MSI-X capability, if there is one.
    msix_capability: Option<usize>,
    /// Offset of the PCI access capability.
    access_capability: usize,
    vectors: Vectors,
    device: Arc<dyn VirtioDevice>,
    kicks: Box<[Arc<Kick>]>,
    doorbells: Arc<dyn Doorbells>,
    /// Where the doorbells are bound.
    bound: Mutex<Option<u64>>,
    memory: Arc<GuestRam>,
    registers: Mutex<Registers>,
}

impl VirtioPci {
    /// Puts `device` on PCI. Machine build only.
    ///
    /// # Errors
    /// What the machine or the host has too few of, or a number of queues that cannot be.
    pub fn new(
        device: Arc<dyn VirtioDevice>,
        parts: VirtioPciParts<'_>,
    ) -> Result<Arc<Self>, VirtioError> {
        let count = device.queue_sizes().len();
        if !(1..=MAX_QUEUES).contains(&count) {
            return Err(VirtioError::QueueCount(count));
        }
        let msix = Msix::new(parts.msi, parts.vectors.unwrap_or(count + 1))?;
        let kicks = (0..count)
            .map(|_| Kick::new().map(Arc::new))
            .collect::<Result<_, _>>()
            .map_err(VirtioError::EventFd)?;
        let (mut pci, msix_capability, access_capability) =
            configuration(device.device_id() as u16, &msix)?;
        if let Some((line, number)) = parts.intx {
            pci.connect_intx(line, number);
        }
        let features = parts.features | RingFeatures::VERSION_1;
        let offered = device.features() | features.bits();
        let registers = Mutex::new(Registers::new(offered, device.queue_sizes()));
        let function = Arc::new_cyclic(|this| Self {
            this: Weak::clone(this),
            pci,
            msix,
            msix_capability,
            access_capability,
            vectors: Vectors::new(count),
            device,
            kicks,
            doorbells: parts.doorbells,
            bound: Mutex::new(None),
            memory: parts.memory,
            registers,
        });
        let driver: Weak<Self> = Arc::downgrade(&function);
        function.device.connect(driver);
        Ok(function)
    }

    fn read_common(&self, offset: u64, data: &mut [u8]) {
        let image = self.registers.lock().image(
            self.vectors.generation(),
            self.vectors.config(),
            |queue| self.vectors.queue(queue),
        );
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        match image.get(start..start.saturating_add(data.len())) {
            Some(bytes) => data.copy_from_slice(bytes),
            None => data.fill(0),
        }
    }

    fn bind_doorbells(&self, base: u64, bind: bool) {
        for (kick, stride) in self.kicks.iter().zip((0..).step_by(NOTIFY_STRIDE as usize)) {
            let at = base + u64::from(Structure::Notify.offset()) + stride;
            let address = DoorbellAddress::Mmio(at);
            let result = if bind {
                self.doorbells.attach(address, kick.event())
            } else {
                self.doorbells.detach(address, kick.event())
            };
            if let Err(error) = result {
                // Not fatal: the store then arrives at `bar_write`, only slower.
                tracing::warn!(%error, "virtio: a doorbell is not bound to the guest's stores");
            }
        }
    }
}

impl PciFunction for VirtioPci {
    fn config(&self) -> &PciConfig {
        &self.pci
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        if self.touches_window(offset, data.len())
            && let Some((bar, at, len)) = self.window()
        {
            let mut bytes = [0; CAPABILITY_EXTRA_LEN];
            self.bar_read(bar, at, &mut bytes[..len]);
            self.pci
                .set(self.access_capability + capability::EXTRA, &bytes[..len]);
        }
        self.pci.read(offset, data);
    }

    fn write_config(&self, offset: usize, data: &[u8]) -> ConfigChange {
        let change = self.pci.write(offset, data);
        if change.intersects(ConfigChange::BUS_MASTER | ConfigChange::DEVICE_SPECIFIC) {
            self.update_interrupts();
        }
        if change.contains(ConfigChange::BUS_MASTER) && self.pci.is_bus_master() {
            // Queues that were left alone are to be looked at.
            self.kicks.iter().for_each(|kick| kick.ring());
        }
        if self.touches_window(offset, data.len())
            && let Some((bar, at, len)) = self.window()
        {
            let mut bytes = [0; CAPABILITY_EXTRA_LEN];
            self.pci
                .read(self.access_capability + capability::EXTRA, &mut bytes);
            self.bar_write(bar, at, &bytes[..len]);
        }
        change
    }

    fn bar_read(&self, bar: BarIndex, offset: u64, data: &mut [u8]) {
        if bar == MSIX_BAR {
            match offset.checked_sub(self.msix.table_len()) {
                None => self.msix.read_table(offset, data),
                Some(offset) => self.msix.read_pending(offset, data),
            }
            return;
        }
        match Structure::at(offset) {
            Some((Structure::Common, at)) => self.read_common(at, data),
            Some((Structure::Isr, at)) => {
                data.fill(0);
                if let (0, Some(byte)) = (at, data.first_mut()) {
                    *byte = self.vectors.take_isr(&self.msix, &self.pci);
                }
            }
            Some((Structure::Device, at)) => {
                // Not in the middle of a change.
                let _registers = self.registers.lock();
                self.device.read_config(at, data);
            }
            Some((Structure::Notify | Structure::PciAccess, _)) | None => data.fill(0),
        }
    }

    fn bar_write(&self, bar: BarIndex, offset: u64, data: &[u8]) {
        if bar == MSIX_BAR {
            if offset < self.msix.table_len() {
                self.msix.write_table(offset, data);
            }
            return;
        }
        match Structure::at(offset) {
            Some((Structure::Common, at)) => self.write_common(at, data),
            Some((Structure::Device, at)) => {
                let features = self.registers.lock().accepted;
                self.device.write_config(at, data, features);
            }
            Some((Structure::Notify, at)) => {
                // The doorbell's address says which queue; the value need not.
                let queue = usize::try_from(at / u64::from(NOTIFY_STRIDE)).unwrap_or(usize::MAX);
                if let Some(kick) = self.kicks.get(queue) {
                    kick.ring();
                }
            }
            Some((Structure::Isr | Structure::PciAccess, _)) | None => {}
        }
    }

    fn bar_placed(&self, bar: BarIndex, place: Option<u64>) {
        if bar != STRUCTURES_BAR {
            return;
        }
        let mut bound = self.bound.lock();
        if let Some(old) = std::mem::replace(&mut *bound, place) {
            self.bind_doorbells(old, false);
        }
        if let Some(new) = place {
            self.bind_doorbells(new, true);
        }
    }

    fn reset(&self) -> Resetting {
        let Some(this) = self.this.upgrade() else {
            return settled();
        };
        let settling = Arc::clone(&this).settle();
        Box::pin(async move {
            settling.await;
            this.msix.reset();
        })
    }

    fn retire(&self) -> Resetting {
        self.close();
        self.reset()
    }
}

impl Interrupts for VirtioPci {
    fn queue(&self, index: u16) {
        self.vectors.raise_queue(index, &self.msix, &self.pci);
    }

    fn needs_reset(&self, reason: &dyn std::error::Error) {
        self.break_device(&mut self.registers.lock(), reason);
    }

    fn change_config(&self, change: &dyn Fn() -> bool) {
        let registers = self.registers.lock();
        if !change() {
            return;
        }
        self.vectors.next_generation();
        let lives = registers.status.contains(Status::DRIVER_OK);
        if lives && !registers.resetting && !registers.retired {
            self.vectors.raise_config(&self.msix, &self.pci);
        }
    }

    fn may_access_memory(&self) -> bool {
        self.pci.is_bus_master()
    }
}
