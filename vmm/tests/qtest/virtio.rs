//! A virtio disk by its registers, with a ring laid out by hand (virtio 1.2, sections 2.7, 4.1 and 5.2).

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use serde_json::json;
use sluice_tests::qtest::machine::QtestMachine;
use sluice_tests::qtest::pci::{Allocator, Bar, ENABLE_ALL, Function};
use tempfile::TempDir;

use super::process::SLUICE;

pub(super) const SECTOR: usize = 512;
const SECTORS: u64 = 8192;
const DEVICE: u8 = 4;

/// Guest memory that the tests use.
pub(super) const DESCRIPTORS: u64 = 0x10_0000;
pub(super) const AVAILABLE: u64 = 0x10_4000;
pub(super) const USED: u64 = 0x10_8000;
pub(super) const INDIRECT: u64 = 0x11_0000;
pub(super) const REQUESTS: u64 = 0x12_0000;
const MESSAGES: u64 = 0x13_0000;
/// What lies between the memory of one queue and that of the next.
const QUEUE: u64 = 0x20_0000;
/// Apart from each other in [`REQUESTS`].
const REQUEST: u64 = 0x1000;
/// Entries of the ring: few, so that it wraps around.
pub(super) const SIZE: u16 = 8;

/// Structures of the device, by `cfg_type`.
const COMMON: u8 = 1;
const NOTIFY: u8 = 2;
const ISR: u8 = 3;
const CONFIG: u8 = 4;

/// Registers of the common structure.
pub(super) mod common {
    pub const FEATURE_SELECT: u64 = 0;
    pub const FEATURE: u64 = 4;
    pub const DRIVER_FEATURE_SELECT: u64 = 8;
    pub const DRIVER_FEATURE: u64 = 12;
    pub const CONFIG_VECTOR: u64 = 16;
    pub const STATUS: u64 = 20;
    pub const GENERATION: u64 = 21;
    pub const QUEUE_SELECT: u64 = 22;
    pub const QUEUE_SIZE: u64 = 24;
    pub const QUEUE_VECTOR: u64 = 26;
    pub const QUEUE_ENABLE: u64 = 28;
    pub const QUEUE_NOTIFY_OFF: u64 = 30;
    pub const QUEUE_DESC: u64 = 32;
    pub const QUEUE_DRIVER: u64 = 40;
    pub const QUEUE_DEVICE: u64 = 48;
    pub const QUEUE_RESET: u64 = 58;
}
const ACKNOWLEDGE: u8 = 1;
const DRIVER: u8 = 2;
const FEATURES_OK: u8 = 8;
const DRIVER_OK: u8 = 4;

pub(super) const INDIRECT_DESC: u64 = 1 << 28;
pub(super) const EVENT_IDX: u64 = 1 << 29;
pub(super) const VERSION_1: u64 = 1 << 32;

pub(super) const NEXT: u16 = 1;
pub(super) const WRITE: u16 = 2;
pub(super) const IN_TABLE: u16 = 4;

pub(super) const IN: u32 = 0;
pub(super) const OUT: u32 = 1;
pub(super) const FLUSH: u32 = 4;
pub(super) const GET_ID: u32 = 8;
pub(super) const DISCARD: u32 = 11;
pub(super) const WRITE_ZEROES: u32 = 13;
pub(super) const UNKNOWN: u32 = 0x77;

/// What the driver knows of a queue.
#[derive(Clone, Copy, Default)]
struct Progress {
    made: u16,
    doorbell: u64,
}

pub(super) struct Virtio {
    pub(super) machine: QtestMachine,
    pub(super) common: u64,
    isr: u64,
    pub(super) config: u64,
    notify: u64,
    multiplier: u64,
    pub(super) doorbell: u64,
    pub(super) function: Function,
    allocator: Allocator,
    features: u64,
    /// Requests put into the selected queue's ring.
    pub(super) made: u16,
    /// The selected queue.
    pub(super) queue: u16,
    /// Of the others.
    queues: Vec<Progress>,
    pub(super) directory: TempDir,
}

impl Virtio {
    /// Starts a machine and takes its disk as far as DRIVER_OK, with these features of the ring. `vectors` are those
    /// of the configuration and of the queue.
    fn start(features: u64, vectors: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("disk.img");
        let file = fs::File::create(&image).unwrap();
        file.set_len(SECTORS * SECTOR as u64).unwrap();
        let drive = format!(
            "if=none,id=drive0,file={},format=raw,auto-read-only=off",
            image.display()
        );
        let device = format!("virtio-blk-pci,id=drv0,drive=drive0,addr={DEVICE}.0,serial=S1");
        let arguments = [
            "-drive",
            &drive,
            "-drive",
            "if=none,id=drive1,file=null-co://,file.read-zeroes=on,format=raw",
            "-device",
            &device,
        ];
        let machine = QtestMachine::start(SLUICE, arguments).unwrap();
        Self::over(machine, directory, DEVICE, features, vectors)
    }

    /// Takes the disk in this slot of a machine as far as DRIVER_OK.
    pub(super) fn over(
        machine: QtestMachine,
        directory: TempDir,
        slot: u8,
        features: u64,
        vectors: bool,
    ) -> Self {
        Self::over_queues(machine, directory, slot, features, vectors, 1)
    }

    /// The same with so many queues, of which the first is selected.
    pub(super) fn over_queues(
        mut machine: QtestMachine,
        directory: TempDir,
        slot: u8,
        features: u64,
        vectors: bool,
        queues: u16,
    ) -> Self {
        let qtest = &mut machine.qtest;
        let function = Function::new(slot, 0);
        let mut allocator = Allocator::default();
        let mut bars = [None; 6];
        let mut place = |kind: u8| {
            for at in function.capabilities(qtest, 0x09).unwrap() {
                let head = function.read(qtest, at).unwrap().to_le_bytes();
                let bar = function.read(qtest, at + 4).unwrap().to_le_bytes()[0];
                if head[3] != kind {
                    continue;
                }
                let index = usize::from(bar);
                if bars[index].is_none() {
                    bars[index] = function.map(qtest, &mut allocator, bar).unwrap();
                }
                let Some(Bar::Memory(base)) = bars[index] else {
                    panic!("no memory: {bars:?}");
                };
                let offset = function.read(qtest, at + 8).unwrap();
                let multiplier = function.read(qtest, at + 16).unwrap();
                return (base + u64::from(offset), u64::from(multiplier));
            }
            panic!("no structure {kind}");
        };
        let ((common, _), (notify, multiplier)) = (place(COMMON), place(NOTIFY));
        let ((isr, _), (config, _)) = (place(ISR), place(CONFIG));
        function.set_command(qtest, ENABLE_ALL).unwrap();
        let mut virtio = Self {
            machine,
            common,
            isr,
            config,
            notify,
            multiplier,
            doorbell: notify,
            function,
            allocator,
            features: features | VERSION_1,
            made: 0,
            queue: 0,
            queues: vec![Progress::default(); queues.into()],
            directory,
        };
        virtio.bring_up(vectors);
        virtio
    }

    /// The queues by their numbers.
    pub(super) fn queues(&self) -> std::ops::Range<u16> {
        0..u16::try_from(self.queues.len()).unwrap()
    }

    /// What follows is about this queue.
    pub(super) fn select(&mut self, queue: u16) {
        self.queues[usize::from(self.queue)] = Progress {
            made: self.made,
            doorbell: self.doorbell,
        };
        self.queue = queue;
        Progress {
            made: self.made,
            doorbell: self.doorbell,
        } = self.queues[usize::from(queue)];
    }

    /// Where the selected queue has what the first one has there.
    pub(super) fn own(&self, place: u64) -> u64 {
        place + QUEUE * u64::from(self.queue)
    }

    pub(super) fn bring_up(&mut self, vectors: bool) {
        if vectors {
            self.enable_vectors();
        }
        let (common, features) = (self.common, self.features);
        let qtest = &mut self.machine.qtest;
        qtest.write8(common + common::STATUS, 0).unwrap();
        // A reset that waits for a request is over when the status says so.
        while qtest.read8(common + common::STATUS).unwrap() != 0 {}
        qtest
            .write8(common + common::STATUS, ACKNOWLEDGE | DRIVER)
            .unwrap();
        for half in 0..2_u32 {
            qtest
                .write32(common + common::FEATURE_SELECT, half)
                .unwrap();
            let offered = qtest.read32(common + common::FEATURE).unwrap();
            let wanted = u32::try_from(features >> (32 * half) & 0xffff_ffff).unwrap();
            assert_eq!(offered & wanted, wanted, "offered");
            qtest
                .write32(common + common::DRIVER_FEATURE_SELECT, half)
                .unwrap();
            qtest
                .write32(common + common::DRIVER_FEATURE, wanted)
                .unwrap();
        }
        let status = ACKNOWLEDGE | DRIVER | FEATURES_OK;
        qtest.write8(common + common::STATUS, status).unwrap();
        assert_eq!(qtest.read8(common + common::STATUS).unwrap(), status);
        if vectors {
            qtest.write16(common + common::CONFIG_VECTOR, 0).unwrap();
            assert_eq!(qtest.read16(common + common::CONFIG_VECTOR).unwrap(), 0);
        }
        for queue in self.queues().rev() {
            self.select(queue);
            self.enable_queue(vectors);
        }
        self.machine
            .qtest
            .write8(common + common::STATUS, status | DRIVER_OK)
            .unwrap();
    }

    /// Sets up the queue with an empty ring, and enables it.
    pub(super) fn enable_queue(&mut self, vectors: bool) {
        self.made = 0;
        let (common, index) = (self.common, self.queue);
        let rings = [AVAILABLE, USED].map(|ring| self.own(ring));
        let places = [
            (common::QUEUE_DESC, self.own(DESCRIPTORS)),
            (common::QUEUE_DRIVER, rings[0]),
            (common::QUEUE_DEVICE, rings[1]),
        ];
        let used_event = self.used_event();
        let qtest = &mut self.machine.qtest;
        // Rings that another driver may have left.
        for ring in rings {
            qtest.write32(ring, 0).unwrap();
        }
        qtest.write16(used_event, 0).unwrap();
        qtest.write16(common + common::QUEUE_SELECT, index).unwrap();
        qtest.write16(common + common::QUEUE_SIZE, SIZE).unwrap();
        for (register, address) in places {
            qtest.write64(common + register, address).unwrap();
        }
        if vectors {
            let vector = index + 1;
            qtest
                .write16(common + common::QUEUE_VECTOR, vector)
                .unwrap();
        }
        qtest.write16(common + common::QUEUE_ENABLE, 1).unwrap();
        let offset = qtest.read16(common + common::QUEUE_NOTIFY_OFF).unwrap();
        self.doorbell = self.notify + u64::from(offset) * self.multiplier;
    }

    /// Where the driver says which completion it wants to hear of.
    pub(super) fn used_event(&self) -> u64 {
        self.own(AVAILABLE) + 4 + 2 * u64::from(SIZE)
    }

    /// Has vector N write N + 1 to memory.
    fn enable_vectors(&mut self) {
        let vectors = u32::from(self.queues().end) + 1;
        let qtest = &mut self.machine.qtest;
        let at = self.function.capabilities(qtest, 0x11).unwrap()[0];
        let place = self.function.read(qtest, at + 4).unwrap();
        let bar = u8::try_from(place & 7).unwrap();
        let mapped = self.function.map(qtest, &mut self.allocator, bar).unwrap();
        let table = mapped.unwrap().base() + u64::from(place & !7);
        for vector in 0..vectors {
            let entry = table + 16 * u64::from(vector);
            qtest
                .write64(entry, MESSAGES + 4 * u64::from(vector))
                .unwrap();
            qtest.write32(entry + 8, vector + 1).unwrap();
            qtest.write32(entry + 12, 0).unwrap();
            assert_eq!(qtest.read32(entry + 12).unwrap(), 0, "unmasked");
        }
        let control = self.function.read(qtest, at).unwrap();
        self.function.write(qtest, at, control | 1 << 31).unwrap();
    }

    fn image(&self) -> PathBuf {
        self.directory.path().join("disk.img")
    }

    /// The message that vector N has written, taken away. Nothing is taken if there was none: one
    /// that comes right then would be lost.
    pub(super) fn take_message(&mut self, vector: u64) -> u32 {
        let at = MESSAGES + 4 * vector;
        let message = self.machine.qtest.read32(at).unwrap();
        if message != 0 {
            self.machine.qtest.write32(at, 0).unwrap();
        }
        message
    }

    pub(super) fn descriptor(&mut self, at: u64, address: u64, length: u32, flags: u16, next: u16) {
        let mut bytes = address.to_le_bytes().to_vec();
        bytes.extend(length.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.machine.qtest.write(at, &bytes).unwrap();
    }

    /// Puts a request into the ring and, unless told otherwise, rings; returns where its data are.
    pub(super) fn submit(&mut self, kind: u32, sector: u64, data: &[u8], ring: bool) -> u64 {
        let slot = self.made % (SIZE / 4);
        let at = self.own(REQUESTS) + u64::from(slot) * REQUEST;
        let mut header = kind.to_le_bytes().to_vec();
        header.extend([0; 4]);
        header.extend(sector.to_le_bytes());
        self.machine.qtest.write(at, &header).unwrap();
        let buffer = at + 0x100;
        let status = at + 0x800;
        self.machine.qtest.write8(status, 0xff).unwrap();
        let to_device = match kind {
            OUT | DISCARD | WRITE_ZEROES => 0,
            _ => WRITE,
        };
        let length = u32::try_from(data.len()).unwrap();
        let head = slot * 4;
        let indirect = self.features & INDIRECT_DESC != 0;
        let (table, first) = if indirect {
            (self.own(INDIRECT) + u64::from(slot) * 0x100, 0)
        } else {
            (self.own(DESCRIPTORS) + 16 * u64::from(head), head)
        };
        self.descriptor(table, at, 16, NEXT, first + 1);
        if data.is_empty() {
            self.descriptor(table + 16, status, 1, WRITE, 0);
        } else {
            self.machine.qtest.write(buffer, data).unwrap();
            self.descriptor(table + 16, buffer, length, NEXT | to_device, first + 2);
            self.descriptor(table + 32, status, 1, WRITE, 0);
        }
        if indirect {
            // Two descriptors where there is no data.
            let length = if data.is_empty() { 32 } else { 48 };
            let at = self.own(DESCRIPTORS) + 16 * u64::from(head);
            self.descriptor(at, table, length, IN_TABLE, 0);
        }
        self.offer(head);
        if ring {
            self.ring();
        }
        buffer
    }

    pub(super) fn ring(&mut self) {
        let (doorbell, queue) = (self.doorbell, self.queue);
        self.machine.qtest.write16(doorbell, queue).unwrap();
    }

    /// Puts the head of a chain into the ring.
    pub(super) fn offer(&mut self, head: u16) {
        let available = self.own(AVAILABLE);
        let entry = available + 4 + 2 * u64::from(self.made % SIZE);
        let qtest = &mut self.machine.qtest;
        qtest.write16(entry, head).unwrap();
        self.made = self.made.wrapping_add(1);
        qtest.write16(available + 2, self.made).unwrap();
    }

    /// What the device has used of the selected queue's.
    pub(super) fn used(&mut self) -> u16 {
        let at = self.own(USED) + 2;
        self.machine.qtest.read16(at).unwrap()
    }

    /// Waits until the device has used all that was made.
    pub(super) fn wait_used(&mut self) {
        while self.used() != self.made {}
    }

    /// Does a request; returns its status and its data.
    pub(super) fn request(&mut self, kind: u32, sector: u64, data: &[u8]) -> (u8, Vec<u8>) {
        let buffer = self.submit(kind, sector, data, true);
        self.wait_used();
        self.answer(buffer, data.len())
    }

    /// The status and the data of the request whose data are there.
    pub(super) fn answer(&mut self, buffer: u64, length: usize) -> (u8, Vec<u8>) {
        let qtest = &mut self.machine.qtest;
        let status = qtest.read8(buffer - 0x100 + 0x800).unwrap();
        let data = match length {
            0 => Vec::new(),
            length => qtest.read(buffer, length).unwrap(),
        };
        (status, data)
    }

    fn capacity(&mut self) -> u64 {
        self.machine.qtest.read64(self.config).unwrap()
    }

    /// Which causes the interrupt line has; it is released.
    pub(super) fn take_isr(&mut self) -> u8 {
        self.machine.qtest.read8(self.isr).unwrap()
    }

    fn resize(&mut self, sectors: u64) {
        let arguments = json!({"device": "drive0", "size": sectors * SECTOR as u64});
        self.machine
            .qmp
            .execute("block_resize", &arguments)
            .unwrap();
    }

    /// Writes and reads, names itself, and refuses what it does not know.
    fn basic(&mut self) {
        assert_eq!(self.capacity(), SECTORS);
        for sector in [0, 1, SECTORS - 1] {
            let byte = sector.to_le_bytes()[0] ^ 0x5a;
            assert_eq!(self.request(OUT, sector, &[byte; SECTOR]).0, 0);
            let mut on_disk = [0; SECTOR];
            let file = fs::File::open(self.image()).unwrap();
            file.read_exact_at(&mut on_disk, sector * SECTOR as u64)
                .unwrap();
            assert_eq!(on_disk, [byte; SECTOR]);
            assert_eq!(
                self.request(IN, sector, &[0; SECTOR]),
                (0, vec![byte; SECTOR])
            );
        }
        let (status, id) = self.request(GET_ID, 0, &[0xff; 20]);
        assert_eq!((status, &id[..3]), (0, &b"S1\0"[..]));
        assert_eq!(self.request(IN, SECTORS, &[0; SECTOR]).0, 1);
        assert_eq!(self.request(UNKNOWN, 0, &[0; SECTOR]).0, 2);
    }

    pub(super) fn end(self) {
        assert_eq!(self.machine.end().unwrap(), Some(0));
    }
}

#[test]
fn requests_are_served_and_the_line_is_raised() {
    let mut virtio = Virtio::start(0, false);
    virtio.machine.qtest.intercept_interrupts().unwrap();
    virtio.take_isr();
    virtio.basic();
    let raised: Vec<_> = virtio.machine.qtest.take_changes();
    assert!(raised.iter().any(|change| change.level), "{raised:?}");
    assert_eq!(virtio.take_isr() & 1, 1);
    assert_eq!(virtio.take_isr(), 0);
    virtio.end();
}

#[test]
fn requests_may_lie_in_tables_of_their_own() {
    let mut virtio = Virtio::start(INDIRECT_DESC, false);
    virtio.basic();
    virtio.end();
}

#[test]
fn a_resize_is_seen_in_the_configuration() {
    let mut virtio = Virtio::start(0, false);
    virtio.basic();
    virtio.take_isr();
    let at = virtio.common + common::GENERATION;
    let before = virtio.machine.qtest.read8(at).unwrap();
    virtio.resize(SECTORS / 2);
    // Both bits, as QEMU sets them.
    assert_eq!(virtio.take_isr(), 3);
    assert_eq!(virtio.capacity(), SECTORS / 2);
    assert_ne!(virtio.machine.qtest.read8(at).unwrap(), before);
    assert_eq!(virtio.request(IN, SECTORS / 2, &[0; SECTOR]).0, 1);
    virtio.end();
}

#[test]
fn messages_tell_of_requests_and_of_the_configuration_apart() {
    let mut virtio = Virtio::start(0, true);
    assert_eq!((virtio.take_message(0), virtio.take_message(1)), (0, 0));
    virtio.basic();
    assert_eq!((virtio.take_message(0), virtio.take_message(1)), (0, 2));
    virtio.resize(SECTORS * 2);
    assert_eq!((virtio.take_message(0), virtio.take_message(1)), (1, 0));
    assert_eq!(virtio.capacity(), SECTORS * 2);
    virtio.end();
}

/// The driver asks for an interrupt after so many, and gets none before.
#[test]
fn interrupts_come_when_the_event_index_asks_for_them() {
    let mut virtio = Virtio::start(EVENT_IDX, true);
    let used_event = virtio.used_event();
    // The next one.
    virtio.machine.qtest.write16(used_event, 0).unwrap();
    assert_eq!(virtio.request(IN, 0, &[0; SECTOR]).0, 0);
    assert_eq!(virtio.take_message(1), 2);
    // The one after next: not this one.
    virtio.machine.qtest.write16(used_event, 2).unwrap();
    assert_eq!(virtio.request(IN, 0, &[0; SECTOR]).0, 0);
    assert_eq!(virtio.take_message(1), 0);
    assert_eq!(virtio.request(IN, 0, &[0; SECTOR]).0, 0);
    assert_eq!(virtio.take_message(1), 2);
    virtio.end();
}
