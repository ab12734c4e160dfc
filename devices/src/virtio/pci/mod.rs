//! The PCI transport of virtio: registers, negotiation, the life of a device.
//!
//! Accesses come from vCPU threads and change [`registers::Registers`] under a lock that nobody holds for longer than
//! a few stores. What takes time, settling requests that are in flight, happens in the queues' loops; the driver that
//! asked for a reset reads a status that is not zero until it is over (VIRTIO 1.2, sections 2.1.2 and 4.1.4.3.2).
//! The data path (doorbells and interrupts) does not take the lock.

mod interrupts;
pub(super) mod layout;
mod registers;
#[cfg(test)]
mod tests;

use std::future::poll_fn;
use std::sync::{Arc, Weak};
use std::task::Poll;

use parking_lot::Mutex;
use sluice_aio::GuestRam;

use self::interrupts::Vectors;
use self::layout::{
    CAPABILITY_BODY_LEN, CAPABILITY_EXTRA_LEN, MAX_QUEUES, MSIX_BAR, NOTIFY_STRIDE, STRUCTURES_BAR,
    STRUCTURES_LEN, Structure, capability,
};
use self::registers::{Effect, Registers};
use super::ring::checked_queue;
use super::{
    ActiveQueue, Interrupts, Kick, RingFeatures, Settling, Status, VirtioDevice, VirtioError,
};
use crate::doorbell::{DoorbellAddress, Doorbells};
use crate::irq::IrqLine;
use crate::irq::MsiController;
use crate::pci::layout::{CapabilityId, InterruptPin, class};
use crate::pci::msix::{self, MessageControl};
use crate::pci::{
    BarIndex, BarKind, ConfigBuilder, ConfigChange, Identity, Msix, PciConfig, PciFunction,
};
use crate::reset::Resetting;

/// What a virtio function is put together from.
pub struct VirtioPciParts<'a> {
    /// The guest's memory.
    pub memory: Arc<GuestRam>,
    /// Where MSI-X vectors come from.
    pub msi: &'a dyn MsiController,
    /// Number of MSI-X vectors; `None`: one for each queue and one for configuration changes.
    pub vectors: Option<usize>,
    /// Binds the queues' doorbells.
    pub doorbells: Arc<dyn Doorbells>,
    /// The end of the INTx wire for pin A, and the number for the interrupt line register.
    pub intx: Option<(Arc<dyn IrqLine>, u8)>,
}

/// The smallest BAR for MSI-X: a page, so that it can be mapped alone.
const MSIX_BAR_LEAST: u64 = 0x1000;

/// A virtio device as a PCI function.
pub struct VirtioPci {
    /// Itself, for the devices' way back.
    this: Weak<Self>,
    pci: PciConfig,
    msix: Msix,
    /// Offset of the MSI-X capability.
    msix_capability: usize,
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
        let offered = device.features() | RingFeatures::all().bits();
        let registers = Mutex::new(Registers::new(offered, device.queue_sizes()));
        Ok(Arc::new_cyclic(|this| Self {
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
        }))
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

    fn write_common(&self, offset: u64, data: &[u8]) {
        let Ok(offset) = usize::try_from(offset) else {
            return;
        };
        let mut registers = self.registers.lock();
        // Dropped after the lock: the last one may finish a reset, which takes it.
        let _settling: Option<Settling> = match registers.write(offset, data) {
            Effect::Nothing => None,
            Effect::Status(0) => self.begin_reset(&mut registers),
            Effect::Status(value) => {
                self.raise_status(&mut registers, Status::from_bits_truncate(value));
                None
            }
            Effect::ConfigVector(vector) => {
                self.vectors.set_config(vector, &self.msix);
                None
            }
            Effect::QueueVector(queue, vector) => {
                self.vectors.set_queue(queue, vector, &self.msix);
                None
            }
            Effect::Enabled(index) => {
                if registers.status.contains(Status::DRIVER_OK) {
                    self.start(&mut registers, index);
                }
                None
            }
            Effect::ResetQueue(index) => self.begin_queue_reset(&mut registers, index),
        };
        drop(registers);
    }

    /// The driver sets status bits; it cannot clear any but by a reset.
    fn raise_status(&self, registers: &mut Registers, requested: Status) {
        let mut new = requested - registers.status - Status::NEEDS_RESET;
        if new.contains(Status::FEATURES_OK) && !registers.features_are_acceptable() {
            new.remove(Status::FEATURES_OK);
        }
        if !(registers.status | new).contains(Status::FEATURES_OK) {
            new.remove(Status::DRIVER_OK);
        }
        registers.status |= new;
        if new.contains(Status::DRIVER_OK) {
            for index in 0..registers.queues.len() {
                if registers.queues[index].enabled {
                    self.start(registers, index);
                }
            }
        }
    }

    /// Hands a queue to the device, or declares the device broken if the driver set it up wrongly.
    fn start(&self, registers: &mut Registers, index: usize) {
        let event_idx = registers.has(RingFeatures::EVENT_IDX);
        let features = registers.accepted;
        let (Some(this), Ok(number)) = (self.this.upgrade(), u16::try_from(index)) else {
            return;
        };
        let queue = &mut registers.queues[index];
        let checked = checked_queue(
            queue.max_size,
            queue.size,
            queue.addresses,
            event_idx,
            &self.memory,
        );
        match checked {
            Ok(checked) => {
                queue.running = true;
                self.device.start_queue(ActiveQueue {
                    index: number,
                    queue: checked,
                    memory: Arc::clone(&self.memory),
                    kick: Arc::clone(&self.kicks[index]),
                    features,
                    interrupts: this,
                });
            }
            Err(error) => self.break_device(registers, &error),
        }
    }

    fn break_device(&self, registers: &mut Registers, reason: &dyn std::error::Error) {
        if registers.status.contains(Status::NEEDS_RESET) || registers.resetting {
            return;
        }
        tracing::warn!(reason = %reason, "virtio: the driver broke the device, which needs a reset");
        registers.status |= Status::NEEDS_RESET;
        if registers.status.contains(Status::DRIVER_OK) {
            self.vectors.raise_config(&self.msix, &self.pci);
        }
    }

    /// Begins a device reset. The result is to be dropped once the lock is released.
    #[must_use]
    fn begin_reset(&self, registers: &mut Registers) -> Option<Settling> {
        if registers.resetting {
            return None;
        }
        registers.resetting = true;
        let this = Weak::clone(&self.this);
        let settling = Settling::new(move || {
            if let Some(this) = this.upgrade() {
                this.finish_reset();
            }
        });
        for (index, queue) in (0_u16..).zip(&mut registers.queues) {
            if std::mem::take(&mut queue.running) {
                self.device.stop_queue(index, settling.clone());
            }
        }
        Some(settling)
    }

    /// Nothing of the old life is in flight any more.
    fn finish_reset(&self) {
        let mut registers = self.registers.lock();
        registers.reset();
        self.device.reset();
        self.vectors.reset(&self.msix, &self.pci);
        let waiters = std::mem::take(&mut registers.reset_waiters);
        drop(registers);
        for waiter in waiters {
            waiter.wake();
        }
    }

    /// Begins the reset of one queue (section 4.1.4.3.2.1). The result as in [`Self::begin_reset`].
    #[must_use]
    fn begin_queue_reset(&self, registers: &mut Registers, index: usize) -> Option<Settling> {
        let queue = &mut registers.queues[index];
        if queue.resetting {
            return None;
        }
        queue.resetting = true;
        queue.enabled = false;
        let this = Weak::clone(&self.this);
        let settling = Settling::new(move || {
            if let Some(this) = this.upgrade() {
                let mut registers = this.registers.lock();
                // A device reset meanwhile resets it too.
                if registers.queues[index].resetting && !registers.resetting {
                    registers.queues[index].reset();
                    this.vectors.set_queue(index, layout::NO_VECTOR, &this.msix);
                }
            }
        });
        if std::mem::take(&mut queue.running)
            && let Ok(number) = u16::try_from(index)
        {
            self.device.stop_queue(number, settling.clone());
        }
        Some(settling)
    }

    /// Ends what is in flight and brings the device to its power-on state; resolves when it is there.
    async fn settle(self: Arc<Self>) {
        let settling = {
            let mut registers = self.registers.lock();
            self.begin_reset(&mut registers)
        };
        drop(settling);
        poll_fn(|cx| {
            let mut registers = self.registers.lock();
            if registers.resetting {
                registers.reset_waiters.push(cx.waker().clone());
                Poll::Pending
            } else {
                Poll::Ready(())
            }
        })
        .await;
    }

    /// MSI-X and INTx follow the registers that configuration writes can change.
    fn update_interrupts(&self) {
        let control = self
            .pci
            .read_u16(self.msix_capability + msix::CONTROL_OFFSET);
        let control = MessageControl::from_bits_truncate(control);
        self.msix.update(control, self.pci.is_bus_master());
        self.vectors.drive_line(&self.msix, &self.pci);
    }

    /// The access that the PCI access capability describes now: BAR, offset and length (section 4.1.4.9).
    fn window(&self) -> Option<(BarIndex, u64, usize)> {
        let field = |at| self.pci.read_u32(self.access_capability + at);
        let bar =
            BarIndex::from_number(self.pci.read_u8(self.access_capability + capability::BAR))?;
        let offset = u64::from(field(capability::OFFSET));
        let len = usize::try_from(field(capability::LENGTH)).ok()?;
        let (_, size) = self.pci.bar(bar)?;
        let fits = matches!(len, 1 | 2 | 4)
            && offset.is_multiple_of(len as u64)
            && offset
                .checked_add(len as u64)
                .is_some_and(|end| end <= size);
        fits.then_some((bar, offset, len))
    }

    /// Whether a configuration access touches `pci_cfg_data`.
    fn touches_window(&self, offset: usize, len: usize) -> bool {
        let data = self.access_capability + capability::EXTRA;
        offset < data + CAPABILITY_EXTRA_LEN && offset + len > data
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

/// The configuration space of a virtio function; with it the offsets of the MSI-X and the PCI access capabilities.
fn configuration(device_id: u16, msix: &Msix) -> Result<(PciConfig, usize, usize), VirtioError> {
    let pending = msix.table_len();
    let msix_size = (pending + msix.pending_len())
        .next_power_of_two()
        .max(MSIX_BAR_LEAST);
    let mut builder = ConfigBuilder::new(Identity {
        vendor: layout::VENDOR,
        device: layout::DEVICE_BASE + device_id,
        revision: layout::REVISION,
        class: class::STORAGE_SCSI,
    })
    .subsystem(layout::VENDOR, layout::SUBSYSTEM)
    .interrupt_pin(InterruptPin::A)
    .bar(STRUCTURES_BAR, BarKind::Memory64, STRUCTURES_LEN)?
    .bar(MSIX_BAR, BarKind::Memory32, msix_size)?;

    // The table has at most 2048 entries of 16 bytes.
    let pending = u32::try_from(pending).unwrap_or(u32::MAX);
    let (body, writable) = msix.capability(MSIX_BAR, 0, pending);
    let msix_capability = builder.capability(CapabilityId::MsiX, &body, &writable)?;
    for structure in Structure::IN_BAR {
        let body = virtio_capability(structure);
        let extra: &[u8] = match structure {
            Structure::Notify => &NOTIFY_STRIDE.to_le_bytes(),
            _ => &[],
        };
        builder.capability(CapabilityId::Vendor, &[&body, extra].concat(), &[])?;
    }
    let body = [virtio_capability(Structure::PciAccess).as_slice(), &[0; 4]].concat();
    // Everything from `bar` on can be written, but for the padding.
    let writable = [
        0, 0, 0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
    ];
    let access = builder.capability(CapabilityId::Vendor, &body, &writable)?;
    Ok((builder.build(), msix_capability, access))
}

/// A `virtio_pci_cap` behind ID and link.
fn virtio_capability(structure: Structure) -> [u8; CAPABILITY_BODY_LEN] {
    let extra = match structure {
        Structure::Notify | Structure::PciAccess => CAPABILITY_EXTRA_LEN,
        Structure::Common | Structure::Isr | Structure::Device => 0,
    };
    // 16 or 20.
    let len = u8::try_from(2 + CAPABILITY_BODY_LEN + extra).unwrap_or(u8::MAX);
    let mut body = [0; CAPABILITY_BODY_LEN];
    body[0] = len;
    body[1] = structure as u8;
    if structure != Structure::PciAccess {
        body[capability::BAR - 2] = STRUCTURES_BAR.number();
    }
    body[capability::OFFSET - 2..][..4].copy_from_slice(&structure.offset().to_le_bytes());
    body[capability::LENGTH - 2..][..4].copy_from_slice(&structure.len().to_le_bytes());
    body
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
            Some((Structure::Device, at)) => self.device.read_config(at, data),
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
        let this = self.this.upgrade();
        Box::pin(async move {
            if let Some(this) = this {
                Arc::clone(&this).settle().await;
                this.msix.reset();
            }
        })
    }
}

impl Interrupts for VirtioPci {
    fn queue(&self, index: u16) {
        self.vectors.raise_queue(index, &self.msix, &self.pci);
    }

    fn config_changed(&self) {
        self.vectors.raise_config(&self.msix, &self.pci);
    }

    fn needs_reset(&self, reason: &dyn std::error::Error) {
        self.break_device(&mut self.registers.lock(), reason);
    }

    fn may_access_memory(&self) -> bool {
        self.pci.is_bus_master()
    }
}
