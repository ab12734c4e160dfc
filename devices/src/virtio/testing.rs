//! A driver for tests: pokes the registers and rings of a device as a guest would.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use sluice_aio::GuestRam;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::pci::layout::{NOTIFY_STRIDE, STRUCTURES_BAR, Structure, common};
use super::{RingFeatures, Status, VirtioDevice, VirtioPci, VirtioPciParts};
use crate::doorbell::{DoorbellAddress, DoorbellError, Doorbells};
use crate::pci::layout::{Command, offset};
use crate::pci::testing::{RecordedLine, RecordedMsi};
use crate::pci::{BarIndex, PciFunction};

/// Descriptor flags (VIRTIO 1.2, section 2.7.5).
pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

/// Doorbells that are remembered and never ring by themselves.
#[derive(Default)]
pub(crate) struct RecordedDoorbells(pub(crate) Mutex<Vec<DoorbellAddress>>);

impl Doorbells for RecordedDoorbells {
    fn attach(&self, address: DoorbellAddress, _fd: &EventFd) -> Result<(), DoorbellError> {
        self.0.lock().push(address);
        Ok(())
    }

    fn detach(&self, address: DoorbellAddress, _fd: &EventFd) -> Result<(), DoorbellError> {
        self.0.lock().retain(|other| *other != address);
        Ok(())
    }
}

/// The machine around one virtio function.
pub(crate) struct Guest {
    pub(crate) memory: Arc<GuestRam>,
    pub(crate) msi: Arc<RecordedMsi>,
    pub(crate) line: Arc<RecordedLine>,
    pub(crate) doorbells: Arc<RecordedDoorbells>,
    pub(crate) function: Arc<VirtioPci>,
}

/// Bytes of the guest's memory.
pub(crate) const MEMORY_LEN: usize = 4 << 20;
/// Entries of every test ring.
pub(crate) const RING_LEN: u16 = 8;

impl Guest {
    pub(crate) fn new(device: Arc<dyn VirtioDevice>) -> Self {
        Self::with(device, None, RingFeatures::USUAL)
    }

    /// With so many MSI-X vectors, and these features offered besides the device's.
    pub(crate) fn with(
        device: Arc<dyn VirtioDevice>,
        vectors: Option<usize>,
        features: RingFeatures,
    ) -> Self {
        let memory = Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), MEMORY_LEN)]).unwrap());
        let msi = RecordedMsi::new();
        let line = RecordedLine::new();
        let doorbells = Arc::new(RecordedDoorbells::default());
        let parts = VirtioPciParts {
            memory: Arc::clone(&memory),
            msi: &*msi,
            vectors,
            features,
            doorbells: Arc::clone(&doorbells) as _,
            intx: Some((Arc::clone(&line) as _, 11)),
        };
        let function = VirtioPci::new(device, parts).unwrap();
        let command = Command::MEMORY | Command::BUS_MASTER;
        function.write_config(offset::COMMAND, &command.bits().to_le_bytes());
        Self {
            memory,
            msi,
            line,
            doorbells,
            function,
        }
    }

    pub(crate) fn read<const N: usize>(&self, structure: Structure, at: u64) -> [u8; N] {
        let mut data = [0; N];
        let offset = u64::from(structure.offset()) + at;
        self.function.bar_read(STRUCTURES_BAR, offset, &mut data);
        data
    }

    pub(crate) fn write(&self, structure: Structure, at: u64, data: &[u8]) {
        let offset = u64::from(structure.offset()) + at;
        self.function.bar_write(STRUCTURES_BAR, offset, data);
    }

    pub(crate) fn common(&self, register: usize, data: &[u8]) {
        self.write(Structure::Common, register as u64, data);
    }

    pub(crate) fn read_u16(&self, register: usize) -> u16 {
        u16::from_le_bytes(self.read(Structure::Common, register as u64))
    }

    pub(crate) fn status(&self) -> Status {
        let [status] = self.read(Structure::Common, common::DEVICE_STATUS as u64);
        Status::from_bits_retain(status)
    }

    pub(crate) fn set_status(&self, status: Status) {
        self.common(common::DEVICE_STATUS, &[status.bits()]);
    }

    pub(crate) fn offered(&self) -> u64 {
        let mut features = 0;
        for select in [0_u32, 1] {
            self.common(common::DEVICE_FEATURE_SELECT, &select.to_le_bytes());
            let word =
                u32::from_le_bytes(self.read(Structure::Common, common::DEVICE_FEATURE as u64));
            features |= u64::from(word) << (32 * select);
        }
        features
    }

    /// Up to FEATURES_OK.
    pub(crate) fn negotiate(&self, features: u64) {
        self.set_status(Status::ACKNOWLEDGE | Status::DRIVER);
        for select in [0_u32, 1] {
            self.common(common::DRIVER_FEATURE_SELECT, &select.to_le_bytes());
            let word = u32::try_from(features >> (32 * select) & 0xffff_ffff).unwrap();
            self.common(common::DRIVER_FEATURE, &word.to_le_bytes());
        }
        self.set_status(Status::FEATURES_OK);
    }

    /// Sets up the first `queues` queues, with MSI-X vector = queue + 1; the device does not live
    /// yet.
    pub(crate) fn set_up(&self, features: RingFeatures, more: u64, queues: u16) -> Vec<Driver<'_>> {
        self.use_msix();
        self.negotiate((features | RingFeatures::VERSION_1).bits() | more);
        (0..queues).map(|queue| Driver::new(self, queue)).collect()
    }

    /// The same, and lets the device live.
    pub(crate) fn bring_up(
        &self,
        features: RingFeatures,
        more: u64,
        queues: u16,
    ) -> Vec<Driver<'_>> {
        let drivers = self.set_up(features, more, queues);
        self.set_status(Status::DRIVER_OK);
        drivers
    }

    /// Enables MSI-X with vector N sending data N.
    pub(crate) fn use_msix(&self) {
        for vector in 0..4_u64 {
            let mut entry = [0; 16];
            entry[..4].copy_from_slice(&0xfee0_0000_u32.to_le_bytes());
            entry[8] = u8::try_from(vector).unwrap();
            self.function.bar_write(BarIndex::BAR1, vector * 16, &entry);
        }
        let capability = usize::from(self.function.config().read_u8(offset::CAPABILITIES));
        self.function.write_config(capability + 2, &[0, 0x80]);
    }

    /// Messages of a queue so far.
    pub(crate) fn interrupts(&self, queue: u16) -> usize {
        let vector = u32::from(queue) + 1;
        self.msi
            .sent()
            .iter()
            .filter(|(_, data)| *data == vector)
            .count()
    }
}

/// A buffer for a descriptor: address, length, whether the device writes it.
pub(crate) type Buffer = (u64, u32, bool);

/// The driver's side of one ring.
pub(crate) struct Driver<'a> {
    pub(crate) guest: &'a Guest,
    pub(crate) queue: u16,
    next_descriptor: u16,
    avail: u16,
    seen: u16,
}

impl<'a> Driver<'a> {
    pub(crate) fn new(guest: &'a Guest, queue: u16) -> Self {
        let driver = Self {
            guest,
            queue,
            next_descriptor: 0,
            avail: 0,
            seen: 0,
        };
        driver.set_up();
        driver
    }

    /// Programs the queue's registers and enables it, on a cleared ring.
    pub(crate) fn set_up(&self) {
        let areas = self.areas();
        self.guest
            .memory
            .write_slice(&[0; 0x3000], GuestAddress(areas[0]))
            .unwrap();
        self.place(areas);
    }

    /// Programs the queue's registers with these addresses and enables it.
    pub(crate) fn place(&self, [descriptors, avail, used]: [u64; 3]) {
        self.guest
            .common(common::QUEUE_SELECT, &self.queue.to_le_bytes());
        self.guest
            .common(common::QUEUE_SIZE, &RING_LEN.to_le_bytes());
        self.guest
            .common(common::QUEUE_MSIX_VECTOR, &(self.queue + 1).to_le_bytes());
        self.guest
            .common(common::QUEUE_DESC, &descriptors.to_le_bytes());
        self.guest
            .common(common::QUEUE_DRIVER, &avail.to_le_bytes());
        self.guest.common(common::QUEUE_DEVICE, &used.to_le_bytes());
        self.guest.common(common::QUEUE_ENABLE, &[1, 0]);
    }

    /// Sets the queue up again after it was reset alone.
    pub(crate) fn restart(&mut self) {
        (self.next_descriptor, self.avail, self.seen) = (0, 0, 0);
        self.set_up();
    }

    /// Descriptor table, available ring, used ring.
    pub(crate) fn areas(&self) -> [u64; 3] {
        Self::areas_of(self.queue)
    }

    /// The same of any queue.
    pub(crate) fn areas_of(queue: u16) -> [u64; 3] {
        let base = 0x1_0000 * (u64::from(queue) + 1);
        [base, base + 0x1000, base + 0x2000]
    }

    pub(crate) fn write_descriptor(&self, index: u16, descriptor: Descriptor) {
        let at = self.areas()[0] + 16 * u64::from(index);
        self.guest
            .memory
            .write_obj(descriptor, GuestAddress(at))
            .unwrap();
    }

    /// Makes a chain available without ringing; returns its head.
    pub(crate) fn add(&mut self, buffers: &[Buffer]) -> u16 {
        let head = self.next_descriptor;
        for (position, &(address, len, writable)) in buffers.iter().enumerate() {
            let index = self.next_descriptor;
            self.next_descriptor = (index + 1) % RING_LEN;
            let last = position + 1 == buffers.len();
            let flags = if last { 0 } else { NEXT } | if writable { WRITE } else { 0 };
            let descriptor = Descriptor::new(address, len, flags, self.next_descriptor);
            self.write_descriptor(index, descriptor);
        }
        self.offer(head);
        head
    }

    /// Makes a chain available that lies in a table of its own; returns its head.
    pub(crate) fn add_table(&mut self, table: u64, len: u32) -> u16 {
        let head = self.next_descriptor;
        self.next_descriptor = (head + 1) % RING_LEN;
        self.write_descriptor(head, Descriptor::new(table, len, INDIRECT, 0));
        self.offer(head);
        head
    }

    /// Puts a head into the available ring.
    pub(crate) fn offer(&mut self, head: u16) {
        let avail = self.areas()[1];
        let slot = avail + 4 + 2 * u64::from(self.avail % RING_LEN);
        self.guest
            .memory
            .write_obj(head, GuestAddress(slot))
            .unwrap();
        self.avail = self.avail.wrapping_add(1);
        self.guest
            .memory
            .store(self.avail, GuestAddress(avail + 2), Ordering::Release)
            .unwrap();
    }

    /// Rings the doorbell.
    pub(crate) fn kick(&self) {
        let at = u64::from(self.queue) * u64::from(NOTIFY_STRIDE);
        self.guest
            .write(Structure::Notify, at, &self.queue.to_le_bytes());
    }

    /// Whether the device wants the doorbell to be rung (without EVENT_IDX).
    pub(crate) fn kicks_are_wanted(&self) -> bool {
        let flags = GuestAddress(self.areas()[2]);
        let flags: u16 = self.guest.memory.load(flags, Ordering::Acquire).unwrap();
        flags == 0
    }

    /// The device's used index.
    pub(crate) fn used_index(&self) -> u16 {
        let used = GuestAddress(self.areas()[2] + 2);
        self.guest.memory.load(used, Ordering::Acquire).unwrap()
    }

    /// The next used element: head and length.
    pub(crate) fn take_used(&mut self) -> Option<(u16, u32)> {
        if self.used_index() == self.seen {
            return None;
        }
        let at = self.areas()[2] + 4 + 8 * u64::from(self.seen % RING_LEN);
        self.seen = self.seen.wrapping_add(1);
        let head: u32 = self.guest.memory.read_obj(GuestAddress(at)).unwrap();
        let len: u32 = self.guest.memory.read_obj(GuestAddress(at + 4)).unwrap();
        Some((u16::try_from(head).unwrap(), len))
    }

    /// Sets the index at whose use the driver wants an interrupt (EVENT_IDX).
    pub(crate) fn set_used_event(&self, index: u16) {
        let at = self.areas()[1] + 4 + 2 * u64::from(RING_LEN);
        self.guest
            .memory
            .write_obj(index, GuestAddress(at))
            .unwrap();
    }
}
