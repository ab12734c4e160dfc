//! The requests of a virtio disk as the machine serves them, by the main loop and by an I/O thread: undisturbed, in a
//! drained section, taken back there and while they run, and what becomes of a device whose ring makes no sense.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};
use sluice_tests::qmp::Qmp;
use sluice_tests::qtest::machine::QtestMachine;
use sluice_tests::qtest::pci::ENABLE_ALL;

use super::process::SLUICE;
use super::virtio::{
    AVAILABLE, DESCRIPTORS, DISCARD, FLUSH, GET_ID, IN, IN_TABLE, INDIRECT, INDIRECT_DESC, NEXT,
    OUT, REQUESTS, SECTOR, SIZE, UNKNOWN, Virtio, WRITE, WRITE_ZEROES, common,
};

pub(super) const LIMIT: Duration = Duration::from_secs(60);
/// Of the image.
const SECTORS: u64 = 8192;
/// Sectors of a range, large enough for any file system to give back.
const RANGE: u32 = 256;
pub(super) const SLOT: u8 = 4;
/// What the slots' INTA comes to.
const GSIS: [(u8, u32); 4] = [(4, 19), (5, 16), (6, 17), (7, 18)];
const INTX_DISABLE: u16 = 1 << 10;

pub(super) const RING_RESET: u64 = 1 << 40;
const NEEDS_RESET: u8 = 0x40;
const CONFIGURATION: u8 = 2;

/// Feature bits of a block device.
pub(super) mod feature {
    pub const SIZE_MAX: u64 = 1 << 1;
    pub const SEG_MAX: u64 = 1 << 2;
    pub const GEOMETRY: u64 = 1 << 4;
    pub const RO: u64 = 1 << 5;
    pub const BLK_SIZE: u64 = 1 << 6;
    pub const FLUSH: u64 = 1 << 9;
    pub const TOPOLOGY: u64 = 1 << 10;
    pub const CONFIG_WCE: u64 = 1 << 11;
    pub const MQ: u64 = 1 << 12;
    pub const DISCARD: u64 = 1 << 13;
    pub const WRITE_ZEROES: u64 = 1 << 14;
}
const TAKEN: u64 = feature::FLUSH | feature::DISCARD | feature::WRITE_ZEROES | RING_RESET;

pub(super) const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;
pub(super) const UNANSWERED: u8 = 0xff;

pub(super) const WRITTEN: u8 = 0xa5;

pub(super) fn stamp(sector: u64) -> [u8; SECTOR] {
    [u8::try_from(sector % 113).unwrap() + 1; SECTOR]
}

/// What a request carries.
#[derive(Clone, Copy, Debug)]
enum Data {
    Nothing,
    /// A sector of [`WRITTEN`].
    Sector,
    /// Room for a sector.
    Room,
    /// Room for a name.
    Name,
    /// A range of [`RANGE`] sectors with these flags.
    Range(u32),
}

/// What becomes of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    Nothing,
    Written,
    /// Zeroes that take as much of the host as before.
    Zeroes,
    /// Zeroes that take nothing.
    Hole,
}

#[derive(Clone, Copy, Debug)]
struct Case {
    kind: u32,
    beyond: bool,
    data: Data,
    status: u8,
    effect: Effect,
}

const fn case(kind: u32, data: Data, effect: Effect) -> Case {
    Case {
        kind,
        beyond: false,
        data,
        status: OK,
        effect,
    }
}

const fn refused(kind: u32, data: Data, status: u8) -> Case {
    Case {
        status,
        ..case(kind, data, Effect::Nothing)
    }
}

const fn beyond(kind: u32, data: Data) -> Case {
    Case {
        beyond: true,
        ..refused(kind, data, IO_ERROR)
    }
}

const UNMAP: u32 = 1;
const CASES: &[Case] = &[
    case(IN, Data::Room, Effect::Nothing),
    case(OUT, Data::Sector, Effect::Written),
    case(FLUSH, Data::Nothing, Effect::Nothing),
    case(DISCARD, Data::Range(0), Effect::Hole),
    case(WRITE_ZEROES, Data::Range(0), Effect::Zeroes),
    case(WRITE_ZEROES, Data::Range(UNMAP), Effect::Hole),
    case(GET_ID, Data::Name, Effect::Nothing),
    // UNMAP is not for discards, and no other flag is for anything.
    refused(DISCARD, Data::Range(UNMAP), UNSUPPORTED),
    refused(WRITE_ZEROES, Data::Range(2), UNSUPPORTED),
    // Ranges must be whole, and one at least.
    refused(DISCARD, Data::Nothing, UNSUPPORTED),
    refused(UNKNOWN, Data::Room, UNSUPPORTED),
    beyond(IN, Data::Room),
    beyond(OUT, Data::Sector),
    beyond(DISCARD, Data::Range(0)),
    beyond(WRITE_ZEROES, Data::Range(0)),
];

impl Case {
    fn sector(self, own: u64) -> u64 {
        if self.beyond { SECTORS } else { own }
    }

    fn data(self, own: u64) -> Vec<u8> {
        match self.data {
            Data::Nothing => Vec::new(),
            Data::Sector => vec![WRITTEN; SECTOR],
            Data::Room => vec![0; SECTOR],
            Data::Name => vec![0; 20],
            Data::Range(flags) => {
                let mut bytes = self.sector(own).to_le_bytes().to_vec();
                bytes.extend(RANGE.to_le_bytes());
                bytes.extend(flags.to_le_bytes());
                bytes
            }
        }
    }
}

/// What waits for the end of a drained section.
pub(super) type Stop = JoinHandle<Qmp>;

pub(super) struct Disk {
    pub(super) virtio: Virtio,
    operator: Option<Qmp>,
    gsi: u32,
}

impl Disk {
    /// A disk that is held by breakpoints, as is an IDE disk beside it.
    fn start(slot: (u8, u32), more: &str, features: u64, vectors: bool) -> Self {
        Self::with_queues(slot, more, features, vectors, 1)
    }

    /// The same, with so many queues.
    pub(super) fn with_queues(
        slot: (u8, u32),
        more: &str,
        features: u64,
        vectors: bool,
        queues: u16,
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("disk.img");
        let content: Vec<u8> = (0..SECTORS).flat_map(stamp).collect();
        fs::write(&image, &content).unwrap();
        // What is allocated is known from here on.
        fs::File::open(&image).unwrap().sync_all().unwrap();
        let disk = format!(
            "blkdebug,node-name=disk,discard=unmap,image.driver=file,image.discard=unmap,image.filename={}",
            image.display()
        );
        let device = format!(
            "virtio-blk-pci,drive=disk,addr={}.0,serial=S1{more}",
            slot.0
        );
        let held = "blkdebug,node-name=held,image.driver=null-co,image.read-zeroes=on";
        let operator = format!("unix:{}", directory.path().join("operator").display());
        let arguments = [
            ("-object", "iothread,id=io0"),
            ("-object", "iothread,id=io1"),
            ("-blockdev", &disk),
            ("-blockdev", held),
            ("-device", &device),
            ("-device", "ide-hd,drive=held,bus=ide.0"),
            ("-qmp", &operator),
        ];
        let arguments = arguments
            .iter()
            .flat_map(|(option, value)| [*option, *value]);
        let mut machine = QtestMachine::start(SLUICE, arguments).unwrap();
        machine.qtest.intercept_interrupts().unwrap();
        let socket = directory.path().join("operator");
        let operator = Qmp::connect(&socket, LIMIT).unwrap();
        Self {
            virtio: Virtio::over_queues(machine, directory, slot.0, features, vectors, queues),
            operator: Some(operator),
            gsi: slot.1,
        }
    }

    fn image(&self) -> PathBuf {
        self.virtio.directory.path().join("disk.img")
    }

    pub(super) fn on_disk(&self, sector: u64, sectors: u32) -> Vec<u8> {
        let mut bytes = vec![0; SECTOR * usize::try_from(sectors).unwrap()];
        let file = fs::File::open(self.image()).unwrap();
        file.read_exact_at(&mut bytes, sector * SECTOR as u64)
            .unwrap();
        bytes
    }

    /// What the image takes of the host, in sectors.
    fn allocated(&self) -> u64 {
        let file = fs::File::open(self.image()).unwrap();
        file.sync_all().unwrap();
        file.metadata().unwrap().blocks()
    }

    fn interrupt(&mut self) -> bool {
        self.virtio.machine.qtest.interrupt(self.gsi).unwrap()
    }

    pub(super) fn execute(&mut self, command: &str, arguments: &Value) -> Value {
        let qmp = &mut self.virtio.machine.qmp;
        qmp.execute(command, arguments).unwrap()
    }

    pub(super) fn hold(&mut self, node: &str, event: &str) {
        let at = json!({"node-name": node, "event": event, "tag": "held"});
        self.execute("x-debug-break", &at);
    }

    pub(super) fn wait_held(&mut self, node: &str) {
        let at = json!({"node-name": node, "tag": "held"});
        self.execute("x-debug-wait-break", &at);
    }

    pub(super) fn let_go(&mut self, node: &str) {
        let at = json!({"node-name": node, "tag": "held"});
        self.execute("x-debug-resume", &at);
    }

    /// Holds a read of the IDE disk, for which a stop waits: all is drained until [`Self::end_section`].
    pub(super) fn begin_section(&mut self) -> Stop {
        self.hold("held", "read_aio");
        let qtest = &mut self.virtio.machine.qtest;
        // READ SECTORS, of the first.
        for (port, value) in [(0x1f6, 0x40), (0x1f2, 1), (0x1f3, 0), (0x1f4, 0)] {
            qtest.out8(port, value).unwrap();
        }
        qtest.out8(0x1f5, 0).unwrap();
        qtest.out8(0x1f7, 0x20).unwrap();
        self.wait_held("held");
        self.begin_stop()
    }

    /// Stops the machine while a request is held: all is drained until that ends.
    pub(super) fn begin_stop(&mut self) -> Stop {
        let mut operator = self.operator.take().unwrap();
        let stop = std::thread::spawn(move || {
            operator.execute("stop", &json!({})).unwrap();
            operator
        });
        // Once this is told the section has begun; `STOP` comes when it ends.
        while self.execute("query-status", &json!({}))["status"] != "paused" {}
        stop
    }

    pub(super) fn end_section(&mut self, stop: Stop) {
        self.let_go("held");
        self.end_stop(stop);
        // The data, so that the drive takes the next command.
        let qtest = &mut self.virtio.machine.qtest;
        while qtest.in8(0x3f6).unwrap() & 0x80 != 0 {}
        for _ in 0..SECTOR / 4 {
            assert_eq!(qtest.in32(0x1f0).unwrap(), 0);
        }
    }

    pub(super) fn end_stop(&mut self, stop: Stop) {
        self.operator = Some(stop.join().unwrap());
        self.execute("cont", &json!({}));
    }

    pub(super) fn used(&mut self) -> u16 {
        self.virtio.used()
    }

    /// Waits for the interrupt, and takes it.
    fn take_interrupt(&mut self) -> u8 {
        while !self.interrupt() {
            self.virtio.machine.qtest.take_changes();
            self.virtio.machine.qtest.wait_change().unwrap();
        }
        let causes = self.virtio.take_isr();
        assert!(!self.interrupt(), "reading the causes acknowledges");
        causes
    }

    fn give(&mut self, case: Case, own: u64) -> u64 {
        let (sector, data) = (case.sector(own), case.data(own));
        self.virtio.submit(case.kind, sector, &data, true)
    }

    /// Waits for the end of a request, and looks at all that it should have done; `before` was allocated.
    fn expect_end(&mut self, case: Case, own: u64, buffer: u64, before: u64) {
        self.virtio.wait_used();
        assert_eq!(self.take_interrupt(), 1, "{case:?}");
        let (status, data) = self.virtio.answer(buffer, case.data(own).len());
        assert_eq!(status, case.status, "{case:?}");
        match (case.kind, status) {
            (IN, OK) => assert_eq!(data, stamp(own), "{case:?}"),
            (GET_ID, OK) => assert_eq!(&data[..3], b"S1\0"),
            _ => {}
        }
        let untouched: Vec<u8> = (own..).take(RANGE as usize).flat_map(stamp).collect();
        let left = self.on_disk(own, RANGE);
        let after = self.allocated();
        match case.effect {
            Effect::Nothing => assert!(left == untouched, "{case:?}"),
            Effect::Written => {
                assert_eq!(left[..SECTOR], [WRITTEN; SECTOR], "{case:?}");
                assert!(left[SECTOR..] == untouched[SECTOR..], "{case:?}");
            }
            Effect::Zeroes | Effect::Hole => {
                assert!(left.iter().all(|byte| *byte == 0), "{case:?}");
            }
        }
        if case.effect == Effect::Hole {
            assert_eq!(after, before - u64::from(RANGE), "{case:?}");
        } else {
            assert!(after >= before, "{case:?}: {before} to {after}");
        }
    }

    /// A request that a section postpones.
    fn expect_postponed(&mut self, case: Case, own: u64, buffer: u64, before: u64) {
        let used = self.used();
        // Commands of the monitor go through the loop that would serve the request.
        for _ in 0..3 {
            self.execute("query-status", &json!({}));
            assert_eq!(self.used(), used, "{case:?}");
            assert!(!self.interrupt(), "{case:?}");
        }
        assert_eq!(self.virtio.answer(buffer, 0).0, UNANSWERED, "{case:?}");
        self.expect_untouched(own);
        assert_eq!(self.allocated(), before, "{case:?}");
    }

    fn expect_untouched(&self, own: u64) {
        let untouched: Vec<u8> = (own..).take(RANGE as usize).flat_map(stamp).collect();
        assert!(self.on_disk(own, RANGE) == untouched, "{own}");
    }

    fn write_common16(&mut self, register: u64, value: u16) {
        let at = self.virtio.common + register;
        self.virtio.machine.qtest.write16(at, value).unwrap();
    }

    fn common16(&mut self, register: u64) -> u16 {
        let at = self.virtio.common + register;
        self.virtio.machine.qtest.read16(at).unwrap()
    }

    pub(super) fn status(&mut self) -> u8 {
        let at = self.virtio.common + common::STATUS;
        self.virtio.machine.qtest.read8(at).unwrap()
    }

    pub(super) fn end(self) {
        assert_eq!(self.virtio.machine.end().unwrap(), Some(0));
    }
}

/// Each case, with a range of its own for each way to play it.
fn cases(way: u64) -> impl Iterator<Item = (Case, u64)> {
    let count = u64::try_from(CASES.len()).unwrap();
    let ranges = (way * count..).map(|range| range * u64::from(RANGE));
    CASES.iter().copied().zip(ranges)
}

fn play(more: &str) {
    let mut disk = Disk::start((SLOT, 19), more, TAKEN, false);
    for (case, own) in cases(0) {
        let before = disk.allocated();
        let buffer = disk.give(case, own);
        disk.expect_end(case, own, buffer, before);
    }
    for (case, own) in cases(1) {
        let before = disk.allocated();
        let stop = disk.begin_section();
        let buffer = disk.give(case, own);
        disk.expect_postponed(case, own, buffer, before);
        disk.end_section(stop);
        disk.expect_end(case, own, buffer, before);
    }
    disk.end();
}

#[test]
fn the_main_loop_serves_every_request_and_none_in_a_section() {
    play("");
}

#[test]
fn an_io_thread_serves_every_request_and_none_in_a_section() {
    play(",iothread=io0");
}

/// How a driver takes back what it has asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reset {
    Queue,
    Device,
}

impl Disk {
    pub(super) fn begin_reset(&mut self, reset: Reset) {
        match reset {
            Reset::Queue => {
                self.write_common16(common::QUEUE_SELECT, self.virtio.queue);
                self.write_common16(common::QUEUE_RESET, 1);
            }
            Reset::Device => {
                let at = self.virtio.common + common::STATUS;
                self.virtio.machine.qtest.write8(at, 0).unwrap();
            }
        }
    }

    pub(super) fn is_reset(&mut self, reset: Reset) -> bool {
        match reset {
            Reset::Queue => {
                self.write_common16(common::QUEUE_SELECT, self.virtio.queue);
                self.common16(common::QUEUE_RESET) == 0
            }
            Reset::Device => self.status() == 0,
        }
    }

    fn bring_up_again(&mut self, reset: Reset) {
        match reset {
            Reset::Queue => self.virtio.enable_queue(false),
            Reset::Device => self.virtio.bring_up(false),
        }
        let (status, data) = self.virtio.request(IN, 1, &[0; SECTOR]);
        assert_eq!((status, data), (OK, stamp(1).to_vec()), "{reset:?}");
        self.take_interrupt();
    }
}

fn take_back(more: &str) {
    let mut disk = Disk::start((SLOT, 19), more, TAKEN, false);
    for (way, reset) in [(0, Reset::Queue), (1, Reset::Device)] {
        for (case, own) in cases(way).filter(|(case, _)| case.status == OK) {
            let before = disk.allocated();
            let stop = disk.begin_section();
            let buffer = disk.give(case, own);
            disk.expect_postponed(case, own, buffer, before);
            disk.begin_reset(reset);
            // What never ran is not waited for.
            while !disk.is_reset(reset) {}
            disk.end_section(stop);
            assert_eq!(disk.used(), disk.virtio.made - 1, "{case:?}");
            assert!(!disk.interrupt(), "{case:?}");
            assert_eq!(disk.virtio.answer(buffer, 0).0, UNANSWERED, "{case:?}");
            disk.bring_up_again(reset);
            disk.expect_untouched(own);
        }
    }
    // A request that runs is waited for, has done what it should, and is not heard of.
    for (reset, sector) in [(Reset::Queue, 8000), (Reset::Device, 8001)] {
        disk.hold("disk", "write_aio");
        let made = disk.used();
        disk.virtio.submit(OUT, sector, &[WRITTEN; SECTOR], true);
        disk.wait_held("disk");
        disk.begin_reset(reset);
        for _ in 0..3 {
            disk.execute("query-status", &json!({}));
            assert!(!disk.is_reset(reset), "{reset:?}");
        }
        disk.let_go("disk");
        while !disk.is_reset(reset) {}
        assert_eq!(disk.on_disk(sector, 1), [WRITTEN; SECTOR]);
        assert_eq!(disk.used(), made);
        assert!(!disk.interrupt());
        disk.bring_up_again(reset);
    }
    disk.end();
}

#[test]
fn requests_for_the_main_loop_are_taken_back() {
    take_back("");
}

#[test]
fn requests_for_an_io_thread_are_taken_back() {
    take_back(",iothread=io0");
}

/// What a driver can do wrong with a ring.
#[derive(Clone, Copy, Debug)]
enum Broken {
    /// A chain that comes back to where it was.
    Loop,
    /// A chain goes on in a descriptor that does not exist.
    Next,
    /// A chain begins in one.
    Head,
    /// More chains than there are descriptors.
    Many,
    /// Buffers where there is no memory.
    Address,
    /// No room for a header.
    Header,
    /// No room for a status.
    Status,
    /// A buffer for the device to read behind one to write.
    Order,
    /// A table that is no number of descriptors.
    Table,
}

const BROKEN: [Broken; 9] = [
    Broken::Loop,
    Broken::Next,
    Broken::Head,
    Broken::Many,
    Broken::Address,
    Broken::Header,
    Broken::Status,
    Broken::Order,
    Broken::Table,
];

/// Descriptors by number.
fn lay_out(disk: &mut Disk, chain: &[(u64, u32, u16, u16)]) {
    for (at, (address, length, flags, next)) in (DESCRIPTORS..).step_by(16).zip(chain) {
        disk.virtio.descriptor(at, *address, *length, *flags, *next);
    }
}

impl Broken {
    fn commit(self, disk: &mut Disk) {
        const NOWHERE: u64 = 0xffff_0000_0000;
        let (header, status) = ((REQUESTS, 16), REQUESTS + 0x800);
        // A header that asks for a write.
        let mut bytes = OUT.to_le_bytes().to_vec();
        bytes.extend([0; 12]);
        disk.virtio.machine.qtest.write(REQUESTS, &bytes).unwrap();
        let (head, tail) = ((header.0, header.1, NEXT, 1), (status, 1, WRITE, 0));
        let data = (REQUESTS + 0x100, 512, NEXT, 2);
        let mut first = 0;
        match self {
            Self::Loop => lay_out(disk, &[head, (data.0, 512, NEXT, 0)]),
            Self::Next => lay_out(disk, &[head, (data.0, 512, NEXT, SIZE)]),
            Self::Head => first = SIZE,
            Self::Many => {
                lay_out(disk, &[head, data, tail]);
                let at = AVAILABLE + 2;
                let many = disk.virtio.made.wrapping_add(SIZE + 1);
                disk.virtio.machine.qtest.write16(at, many).unwrap();
                let doorbell = disk.virtio.doorbell;
                disk.virtio.machine.qtest.write16(doorbell, 0).unwrap();
                return;
            }
            Self::Address => lay_out(disk, &[head, (NOWHERE, 512, NEXT, 2), tail]),
            Self::Header => lay_out(disk, &[(header.0, 15, NEXT, 1), tail]),
            Self::Status => lay_out(disk, &[head, (data.0, 512, 0, 0)]),
            Self::Order => lay_out(disk, &[head, (status, 1, WRITE | NEXT, 2), data, tail]),
            Self::Table => lay_out(disk, &[(INDIRECT, 47, IN_TABLE, 0)]),
        }
        disk.virtio.offer(first);
        let doorbell = disk.virtio.doorbell;
        disk.virtio.machine.qtest.write16(doorbell, 0).unwrap();
    }
}

fn break_rings(more: &str, vectors: bool) {
    let features = TAKEN | INDIRECT_DESC;
    let mut disk = Disk::start((SLOT, 19), more, features, vectors);
    for broken in BROKEN {
        broken.commit(&mut disk);
        while disk.status() & NEEDS_RESET == 0 {}
        if vectors {
            let messages = (disk.virtio.take_message(0), disk.virtio.take_message(1));
            assert_eq!(messages, (1, 0), "{broken:?}");
        } else {
            let causes = disk.take_interrupt();
            assert_eq!(causes & CONFIGURATION, CONFIGURATION, "{broken:?}");
        }
        // It serves nobody until it is reset, and then everybody.
        let used = disk.used();
        disk.virtio.submit(OUT, 0, &[WRITTEN; SECTOR], true);
        disk.execute("query-status", &json!({}));
        assert_eq!(disk.used(), used, "{broken:?}");
        disk.virtio.bring_up(vectors);
        assert_eq!(disk.status() & NEEDS_RESET, 0, "{broken:?}");
        let (status, data) = disk.virtio.request(IN, 3, &[0; SECTOR]);
        assert_eq!((status, data), (OK, stamp(3).to_vec()), "{broken:?}");
        if vectors {
            assert_eq!(disk.virtio.take_message(1), 2, "{broken:?}");
        } else {
            disk.take_interrupt();
        }
        disk.expect_untouched(0);
    }
    disk.end();
}

#[test]
fn a_ring_that_makes_no_sense_breaks_the_device_and_nothing_else() {
    break_rings("", false);
}

#[test]
fn a_broken_ring_of_an_io_thread_is_told_of_by_a_message() {
    break_rings(",iothread=io0", true);
}

/// Every slot has an input of its own at the interrupt controller, and the driver can switch it off.
#[test]
fn the_line_of_the_slot_speaks_if_it_may() {
    for slot in GSIS {
        let mut disk = Disk::start(slot, "", 0, false);
        disk.virtio.machine.qtest.take_changes();
        assert_eq!(disk.virtio.request(IN, 0, &[0; SECTOR]).0, OK);
        assert_eq!(disk.take_interrupt(), 1);
        let changes = disk.virtio.machine.qtest.take_changes();
        let foreign = changes.iter().find(|change| change.irq != slot.1);
        assert_eq!(foreign, None, "{slot:?}");

        let function = disk.virtio.function;
        let qtest = &mut disk.virtio.machine.qtest;
        function
            .set_command(qtest, ENABLE_ALL | INTX_DISABLE)
            .unwrap();
        assert_eq!(disk.virtio.request(IN, 0, &[0; SECTOR]).0, OK);
        for _ in 0..3 {
            disk.execute("query-status", &json!({}));
            assert!(!disk.interrupt(), "{slot:?}");
        }
        // It has been pending all the time.
        let qtest = &mut disk.virtio.machine.qtest;
        function.set_command(qtest, ENABLE_ALL).unwrap();
        assert_eq!(disk.take_interrupt(), 1, "{slot:?}");
        disk.end();
    }
}

/// With the cache switched off a write is durable when it ends: it ends after a flush.
#[test]
fn the_driver_switches_the_cache() {
    const WRITEBACK: u64 = 32;
    for agreed in [false, true] {
        let features = if agreed { feature::CONFIG_WCE } else { 0 };
        let mut disk = Disk::start((SLOT, 19), "", features | feature::FLUSH, false);
        let at = disk.virtio.config + WRITEBACK;
        let qtest = &mut disk.virtio.machine.qtest;
        assert_eq!(qtest.read8(at).unwrap(), 1);
        qtest.write8(at, 0).unwrap();
        assert_eq!(qtest.read8(at).unwrap(), u8::from(!agreed));
        disk.hold("disk", "flush_to_disk");
        let buffer = disk.virtio.submit(OUT, 0, &[WRITTEN; SECTOR], true);
        if agreed {
            disk.wait_held("disk");
            assert_eq!(disk.virtio.answer(buffer, 0).0, UNANSWERED);
            disk.let_go("disk");
        }
        disk.virtio.wait_used();
        assert_eq!(disk.virtio.answer(buffer, 0).0, OK);
        // On again, if it was off: nobody flushes.
        disk.virtio.machine.qtest.write8(at, 1).unwrap();
        assert_eq!(disk.virtio.machine.qtest.read8(at).unwrap(), 1);
        assert_eq!(disk.virtio.request(OUT, 0, &[WRITTEN; SECTOR]).0, OK);
        if !agreed {
            disk.virtio.submit(FLUSH, 0, &[], true);
            disk.wait_held("disk");
            disk.let_go("disk");
            disk.virtio.wait_used();
        }
        disk.end();
    }
}
