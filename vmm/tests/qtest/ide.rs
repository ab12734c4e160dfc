//! IDE drives, register by register, with bus master transfers set up by hand.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use sluice_tests::qmp::Qmp;
use sluice_tests::qtest::machine::QtestMachine;
use sluice_tests::qtest::pci::{Allocator, ENABLE_ALL, ENABLE_DECODING, Function};
use tempfile::TempDir;

use super::process::SLUICE;

const LIMIT: Duration = Duration::from_secs(60);
const SECTOR: usize = 512;
/// Of every image.
const SECTORS: u64 = 8192;

const IRQ: u32 = 14;
/// The primary channel's registers.
mod port {
    pub const DATA: u64 = 0x1f0;
    pub const FEATURES: u64 = 0x1f1;
    pub const ERROR: u64 = 0x1f1;
    pub const COUNT: u64 = 0x1f2;
    pub const LBA_LOW: u64 = 0x1f3;
    pub const LBA_MID: u64 = 0x1f4;
    pub const LBA_HIGH: u64 = 0x1f5;
    pub const DEVICE: u64 = 0x1f6;
    pub const STATUS: u64 = 0x1f7;
    pub const COMMAND: u64 = 0x1f7;
    pub const ALTERNATE_STATUS: u64 = 0x3f6;
}
mod status {
    pub const ERROR: u8 = 0x01;
    pub const DATA_REQUEST: u8 = 0x08;
    pub const READY: u8 = 0x40;
    pub const BUSY: u8 = 0x80;
}
const ABORTED: u8 = 0x04;
const LBA: u8 = 0x40;

const DATA_SET_MANAGEMENT: u8 = 0x06;
const READ_SECTORS: u8 = 0x20;
const PACKET: u8 = 0xa0;
const READ_DMA: u8 = 0xc8;
const WRITE_DMA: u8 = 0xca;
const FLUSH_CACHE: u8 = 0xe7;
const IDENTIFY: u8 = 0xec;

/// The bus master's registers, and bits of its status.
const BM_COMMAND: u64 = 0;
const BM_STATUS: u64 = 2;
const BM_TABLE: u64 = 4;
const START: u8 = 1;
const TO_MEMORY: u8 = 8;
const ACTIVE: u8 = 1;
const INTERRUPT: u8 = 4;
const END_OF_TABLE: u32 = 1 << 31;

/// Guest memory that the tests use.
const TABLE: u32 = 0x10_0000;
const BUFFER: u32 = 0x20_0000;

/// A machine whose primary channel is poked.
struct Ide {
    machine: QtestMachine,
    bus_master: u64,
    directory: TempDir,
}

impl Ide {
    /// `arguments` may name the image by `{}`.
    fn start(arguments: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("disk.img");
        let file = fs::File::create(&image).unwrap();
        file.set_len(SECTORS * SECTOR as u64).unwrap();
        let image = image.to_str().unwrap();
        let arguments = arguments.iter().map(|word| word.replace("{}", image));
        let mut machine = QtestMachine::start(SLUICE, arguments).unwrap();
        let qtest = &mut machine.qtest;
        qtest.intercept_interrupts().unwrap();
        let function = Function::new(1, 1);
        assert_eq!(function.read(qtest, 0).unwrap(), 0x7010_8086);
        let bar = function.map(qtest, &mut Allocator::default(), 4).unwrap();
        function.set_command(qtest, ENABLE_ALL).unwrap();
        let bus_master = bar.unwrap().base();
        Self {
            machine,
            bus_master,
            directory,
        }
    }

    fn with_disk() -> Self {
        Self::start(&[
            "-drive",
            "file={},format=raw,if=ide",
            "-global",
            "ide-hd.ver=v1",
        ])
    }

    fn image(&self) -> PathBuf {
        self.directory.path().join("disk.img")
    }

    fn get(&mut self, port: u64) -> u8 {
        self.machine.qtest.in8(port).unwrap()
    }

    fn put(&mut self, port: u64, value: u8) {
        self.machine.qtest.out8(port, value).unwrap();
    }

    fn interrupt(&mut self) -> bool {
        self.machine.qtest.interrupt(IRQ).unwrap()
    }

    /// Waits until the drive is not busy; acknowledges no interrupt.
    fn ready(&mut self) -> u8 {
        loop {
            let status = self.get(port::ALTERNATE_STATUS);
            if status & status::BUSY == 0 {
                return status;
            }
        }
    }

    fn address(&mut self, sector: u64, count: u8) {
        let [low, mid, high, ..] = sector.to_le_bytes();
        self.put(port::DEVICE, LBA);
        self.put(port::COUNT, count);
        self.put(port::LBA_LOW, low);
        self.put(port::LBA_MID, mid);
        self.put(port::LBA_HIGH, high);
    }

    /// Writes a table of these regions, the last one marked as such, and stops what the bus master does.
    fn table(&mut self, regions: &[(u32, u32)]) {
        let mut bytes = Vec::new();
        for (index, (base, length)) in regions.iter().enumerate() {
            let last = index + 1 == regions.len();
            bytes.extend(base.to_le_bytes());
            bytes.extend((length | if last { END_OF_TABLE } else { 0 }).to_le_bytes());
        }
        let qtest = &mut self.machine.qtest;
        qtest.write(TABLE.into(), &bytes).unwrap();
        qtest.out8(self.bus_master + BM_COMMAND, 0).unwrap();
        qtest.out8(self.bus_master + BM_STATUS, INTERRUPT).unwrap();
        qtest.out32(self.bus_master + BM_TABLE, TABLE).unwrap();
    }

    fn start_bus_master(&mut self, direction: u8) {
        let at = self.bus_master + BM_COMMAND;
        self.put(at, START | direction);
    }

    /// Waits for the end of a transfer; returns the bus master's status and the drive's, and acknowledges the
    /// interrupt, which must be there if the former says so.
    fn end_of_transfer(&mut self) -> (u8, u8) {
        let bus_master = loop {
            let bits = self.get(self.bus_master + BM_STATUS) & (ACTIVE | INTERRUPT);
            if bits != ACTIVE {
                break bits;
            }
        };
        assert_eq!(self.interrupt(), bus_master & INTERRUPT != 0);
        let drive = self.get(port::STATUS);
        assert_eq!(drive & (status::BUSY | status::DATA_REQUEST), 0);
        assert_ne!(drive & status::READY, 0);
        assert!(!self.interrupt(), "reading the status acknowledges");
        (bus_master, drive)
    }

    fn dma(&mut self, command: u8, sector: u64, count: u8, regions: &[(u32, u32)]) -> (u8, u8) {
        self.table(regions);
        self.address(sector, count);
        self.put(port::FEATURES, u8::from(command == DATA_SET_MANAGEMENT));
        self.put(port::COMMAND, command);
        self.start_bus_master(if command == READ_DMA { TO_MEMORY } else { 0 });
        self.end_of_transfer()
    }

    fn execute(&mut self, command: &str, arguments: &Value) -> Value {
        self.machine.qmp.execute(command, arguments).unwrap()
    }

    fn wait_event(&mut self, name: &str) -> Value {
        let event = self
            .machine
            .qmp
            .wait_event(name, LIMIT, |event| event.event == name);
        event.unwrap().data
    }

    fn end(self) {
        assert_eq!(self.machine.end().unwrap(), Some(0));
    }
}

const ONE_SECTOR: &[(u32, u32)] = &[(BUFFER, 512)];

fn on_disk(image: &Path, sector: u64) -> [u8; SECTOR] {
    let mut bytes = [0; SECTOR];
    let file = fs::File::open(image).unwrap();
    file.read_exact_at(&mut bytes, sector * SECTOR as u64)
        .unwrap();
    bytes
}

#[test]
fn a_disk_tells_who_it_is_word_by_word() {
    let mut ide = Ide::with_disk();
    ide.put(port::DEVICE, 0);
    ide.put(port::COMMAND, IDENTIFY);
    assert_ne!(ide.ready() & status::DATA_REQUEST, 0);
    assert!(ide.interrupt());
    ide.get(port::STATUS);
    assert!(!ide.interrupt());
    let words: Vec<u16> = (0..256)
        .map(|_| ide.machine.qtest.in16(port::DATA).unwrap())
        .collect();
    assert_eq!(ide.ready() & status::DATA_REQUEST, 0);
    let text = |range: std::ops::Range<usize>| {
        let bytes: Vec<u8> = words[range]
            .iter()
            .flat_map(|word| word.to_be_bytes())
            .collect();
        String::from_utf8(bytes).unwrap().trim_end().to_owned()
    };
    assert_eq!(text(23..27), "v1");
    assert_eq!(u32::from(words[60]) | u32::from(words[61]) << 16, 8192);
    ide.end();
}

#[test]
fn sectors_go_both_ways_by_dma() {
    let mut ide = Ide::with_disk();
    for (sector, byte) in [(0, 0x55), (1, 0xaa), (SECTORS - 1, 0x11)] {
        ide.machine
            .qtest
            .write(BUFFER.into(), &[byte; SECTOR])
            .unwrap();
        assert_eq!(ide.dma(WRITE_DMA, sector, 1, ONE_SECTOR).0, INTERRUPT);
        assert_eq!(on_disk(&ide.image(), sector), [byte; SECTOR]);
    }
    // In pieces that know nothing of sectors.
    let pieces = [(BUFFER, 510), (BUFFER + 0x1000, 4), (BUFFER + 0x2000, 510)];
    let (bus_master, drive) = ide.dma(READ_DMA, 0, 2, &pieces);
    assert_eq!((bus_master, drive & status::ERROR), (INTERRUPT, 0));
    let middle = ide
        .machine
        .qtest
        .read(u64::from(BUFFER) + 0x1000, 4)
        .unwrap();
    assert_eq!(middle, [0x55, 0x55, 0xaa, 0xaa]);
    // Beyond the end.
    let (_, drive) = ide.dma(READ_DMA, SECTORS, 1, ONE_SECTOR);
    assert_ne!(drive & status::ERROR, 0);
    ide.end();
}

/// What the descriptors name against what the command transfers, and the same for a transfer that is stopped as soon
/// as it was started, which finishes all the same.
#[test]
fn tables_may_be_too_short_or_too_long() {
    let mut ide = Ide::with_disk();
    for sectors in [1_u8, 2, 128] {
        for length in [0_u32, 2, 256, 510, 512, 514, 1024, 0x8000, 0xfffe] {
            let named = if length == 0 { 0x1_0000 } else { length };
            let wanted = u32::from(sectors) * 512;
            let (expected, stopped) = match named.cmp(&wanted) {
                std::cmp::Ordering::Less => (0, 0),
                std::cmp::Ordering::Equal => (INTERRUPT, INTERRUPT),
                std::cmp::Ordering::Greater => (ACTIVE | INTERRUPT, INTERRUPT),
            };
            let region = [(BUFFER, length)];
            let (bus_master, drive) = ide.dma(READ_DMA, 0, sectors, &region);
            assert_eq!(bus_master, expected, "{sectors} sectors, {length} bytes");
            assert_eq!(drive & status::ERROR, 0);

            ide.table(&region);
            ide.address(0, sectors);
            ide.put(port::COMMAND, READ_DMA);
            ide.start_bus_master(TO_MEMORY);
            ide.put(ide.bus_master + BM_COMMAND, 0);
            let (bus_master, drive) = ide.end_of_transfer();
            assert_eq!(
                bus_master, stopped,
                "{sectors} sectors, {length} bytes, stopped"
            );
            assert_eq!(drive & status::ERROR, 0);
        }
    }
    ide.end();
}

/// A function that may not master the bus: whatever becomes of the command, nothing of it comes to memory, and the
/// drive serves the next one.
#[test]
fn a_function_that_is_no_bus_master_harms_nobody() {
    let mut ide = Ide::with_disk();
    let function = Function::new(1, 1);
    function
        .set_command(&mut ide.machine.qtest, ENABLE_DECODING)
        .unwrap();
    ide.machine
        .qtest
        .write(BUFFER.into(), &[0x77; SECTOR])
        .unwrap();
    ide.table(&[(0, 0); 512]);
    ide.address(0, 0);
    ide.put(port::COMMAND, READ_DMA);
    ide.start_bus_master(TO_MEMORY);
    ide.end_of_transfer();
    function
        .set_command(&mut ide.machine.qtest, ENABLE_ALL)
        .unwrap();
    let kept = ide.machine.qtest.read(BUFFER.into(), SECTOR).unwrap();
    assert_eq!(kept, [0x77; SECTOR]);
    assert_eq!(ide.dma(READ_DMA, 0, 1, ONE_SECTOR).0, INTERRUPT);
    ide.end();
}

#[test]
fn ranges_are_trimmed_and_checked() {
    let mut ide = Ide::with_disk();
    let range = |sector: u64, count: u64| (count << 48 | sector).to_le_bytes();
    let mut payload = [range(0, 2), range(6, 8)].concat();
    payload.resize(SECTOR, 0);
    ide.machine.qtest.write(BUFFER.into(), &payload).unwrap();
    let (bus_master, drive) = ide.dma(DATA_SET_MANAGEMENT, 0, 1, ONE_SECTOR);
    assert_eq!((bus_master, drive & status::ERROR), (INTERRUPT, 0));
    let mut payload = [range(10, 1), range(SECTORS - 1, 2)].concat();
    payload.resize(SECTOR, 0);
    ide.machine.qtest.write(BUFFER.into(), &payload).unwrap();
    let (bus_master, drive) = ide.dma(DATA_SET_MANAGEMENT, 0, 1, ONE_SECTOR);
    assert_eq!(
        (bus_master, drive & status::ERROR),
        (INTERRUPT, status::ERROR)
    );
    assert_eq!(ide.get(port::ERROR) & ABORTED, ABORTED);
    ide.end();
}

/// A flush is the drive's as long as the host has it.
#[test]
fn a_flush_is_busy_until_the_host_has_flushed() {
    let mut ide = Ide::start(&[
        "-blockdev",
        "blkdebug,node-name=d,image.driver=file,image.filename={}",
        "-device",
        "ide-hd,drive=d",
    ]);
    let breakpoint = json!({"node-name": "d", "event": "flush_to_disk", "tag": "A"});
    ide.execute("x-debug-break", &breakpoint);
    // Without something written there is nothing to flush.
    assert_eq!(ide.dma(WRITE_DMA, 0, 1, ONE_SECTOR).0, INTERRUPT);
    ide.put(port::DEVICE, 0);
    ide.put(port::COMMAND, FLUSH_CACHE);
    let tag = json!({"node-name": "d", "tag": "A"});
    ide.execute("x-debug-wait-break", &tag);
    assert_eq!(ide.get(port::STATUS), status::BUSY | status::READY);
    assert!(!ide.interrupt());
    ide.execute("x-debug-resume", &tag);
    let drive = ide.ready();
    assert_eq!(drive & (status::READY | status::ERROR), status::READY);
    ide.end();
}

#[test]
fn a_flush_without_a_medium_or_a_drive_does_not_hang() {
    let mut ide = Ide::start(&["-device", "ide-cd,bus=ide.0"]);
    ide.put(port::DEVICE, 0);
    ide.put(port::COMMAND, FLUSH_CACHE);
    assert_eq!(ide.ready() & status::BUSY, 0);
    ide.end();
    let mut ide = Ide::start(&[]);
    ide.put(port::COMMAND, FLUSH_CACHE);
    assert_eq!(ide.ready() & status::BUSY, 0);
    ide.end();
}

/// The machine stops when the flush fails; `cont` does it again.
#[test]
fn a_flush_that_failed_is_done_again_on_cont() {
    let mut ide = Ide::start(&[
        "-drive",
        "file.driver=blkdebug,file.image.driver=file,file.image.filename={},format=raw,if=ide,\
         rerror=stop,werror=stop,file.inject-error.0.event=flush_to_disk,\
         file.inject-error.0.once=on,file.inject-error.0.errno=5",
    ]);
    assert_eq!(ide.dma(WRITE_DMA, 0, 1, ONE_SECTOR).0, INTERRUPT);
    ide.put(port::DEVICE, 0);
    ide.put(port::COMMAND, FLUSH_CACHE);
    ide.wait_event("STOP");
    assert_ne!(ide.get(port::ALTERNATE_STATUS) & status::BUSY, 0);
    ide.execute("cont", &json!({}));
    assert_eq!(ide.ready() & (status::READY | status::ERROR), status::READY);
    ide.end();
}

/// While one drive's request is held, everything is drained: what the other drive is given meanwhile begins when the
/// section is over, and not before.
/// Nobody answers for a device 0 that is missing: its registers hold what is written, its status is zero, no
/// command begins. Device 1 is there all the same (ATA/ATAPI-6, sections 8.11 and 9.16).
#[test]
fn a_slave_without_a_master_works_and_does_not_stand_in_for_it() {
    const DEVICE_1: u8 = 0x10;
    const DIAGNOSTIC: u8 = 0x90;
    const PASSED: u8 = 0x01;
    const SRST: u8 = 0x04;
    let mut ide = Ide::start(&["-drive", "file={},format=raw,if=ide,index=1"]);
    let content = fs::File::options().write(true).open(ide.image()).unwrap();
    content
        .write_all_at(&[0xa5; SECTOR], 7 * SECTOR as u64)
        .unwrap();

    let nobody = |ide: &mut Ide, when: &str| {
        assert_eq!(ide.get(port::ALTERNATE_STATUS), 0, "{when}");
        assert_eq!(ide.get(port::STATUS), 0, "{when}");
        assert!(!ide.interrupt(), "{when}");
    };
    let signature = |ide: &mut Ide, when: &str| {
        ide.put(port::DEVICE, DEVICE_1);
        assert_ne!(ide.ready() & status::READY, 0, "{when}");
        let registers = [
            port::ERROR,
            port::COUNT,
            port::LBA_LOW,
            port::LBA_MID,
            port::LBA_HIGH,
        ];
        assert_eq!(
            registers.map(|port| ide.get(port)),
            [PASSED, 1, 1, 0, 0],
            "{when}"
        );
        assert!(!ide.interrupt(), "{when}");
    };

    nobody(&mut ide, "at power-on");
    signature(&mut ide, "at power-on");
    for command in [IDENTIFY, READ_SECTORS, FLUSH_CACHE, PACKET] {
        ide.put(port::DEVICE, LBA);
        ide.put(port::COUNT, 0x55);
        ide.put(port::COMMAND, command);
        nobody(&mut ide, &format!("after command {command:#x}"));
        assert_eq!(ide.get(port::COUNT), 0x55);
    }
    // Nor does the bus master find anybody.
    ide.table(ONE_SECTOR);
    ide.address(7, 1);
    ide.put(port::COMMAND, READ_DMA);
    ide.start_bus_master(TO_MEMORY);
    nobody(&mut ide, "after a start of the bus master");
    let bus_master = ide.bus_master;
    assert_eq!(
        ide.get(bus_master + BM_STATUS) & (ACTIVE | INTERRUPT),
        ACTIVE
    );
    ide.put(bus_master + BM_COMMAND, 0);
    assert_eq!(ide.get(bus_master + BM_STATUS) & ACTIVE, 0);

    // A diagnostic is run by both, whichever is selected, and selects device 0, for which nobody interrupts.
    for selected in [0, DEVICE_1] {
        ide.put(port::DEVICE, selected);
        ide.put(port::COMMAND, DIAGNOSTIC);
        assert_eq!(ide.get(port::DEVICE) & DEVICE_1, 0);
        nobody(&mut ide, "after a diagnostic");
        signature(&mut ide, "after a diagnostic");
    }
    ide.put(port::ALTERNATE_STATUS, SRST);
    ide.put(port::ALTERNATE_STATUS, 0);
    nobody(&mut ide, "after a software reset");
    signature(&mut ide, "after a software reset");

    ide.table(ONE_SECTOR);
    ide.address(7, 1);
    ide.put(port::DEVICE, LBA | DEVICE_1);
    ide.put(port::COMMAND, READ_DMA);
    ide.start_bus_master(TO_MEMORY);
    assert_eq!(ide.end_of_transfer().0, INTERRUPT);
    let read = ide.machine.qtest.read(BUFFER.into(), SECTOR).unwrap();
    assert_eq!(read, [0xa5; SECTOR]);
    ide.end();
}

#[test]
fn a_command_in_a_drained_section_begins_after_it() {
    const SECOND_CHANNEL: u64 = 0x80;
    let mut ide = Ide::start(&[
        "-blockdev",
        "blkdebug,node-name=held,image.driver=file,image.filename={}",
        "-blockdev",
        "null-co,node-name=other,read-zeroes=on",
        "-device",
        "ide-hd,drive=held,bus=ide.0",
        "-device",
        "ide-hd,drive=other,bus=ide.1",
        "-qmp",
        "unix:{}.qmp",
    ]);
    let breakpoint = json!({"node-name": "held", "event": "read_aio", "tag": "A"});
    ide.execute("x-debug-break", &breakpoint);
    ide.address(0, 1);
    ide.put(port::COMMAND, READ_SECTORS);
    let tag = json!({"node-name": "held", "tag": "A"});
    ide.execute("x-debug-wait-break", &tag);
    // A stop drains everything, and waits for the request that is held.
    let socket = format!("{}.qmp", ide.image().display());
    let mut operator = Qmp::connect(Path::new(&socket), LIMIT).unwrap();
    let stop = std::thread::spawn(move || operator.execute("stop", &json!({})).unwrap());
    while ide.execute("query-status", &json!({}))["status"] != "paused" {}
    for (register, value) in [
        (port::COUNT, 1),
        (port::LBA_LOW, 0),
        (port::LBA_MID, 0),
        (port::LBA_HIGH, 0),
        (port::DEVICE, LBA),
        (port::COMMAND, READ_SECTORS),
    ] {
        ide.put(register - SECOND_CHANNEL, value);
    }
    let second = port::ALTERNATE_STATUS - SECOND_CHANNEL;
    // Commands of the monitor go through the loop that would serve the request.
    for _ in 0..10 {
        ide.execute("query-status", &json!({}));
        assert_ne!(ide.get(second) & status::BUSY, 0, "postponed");
    }
    assert_ne!(ide.get(port::ALTERNATE_STATUS) & status::BUSY, 0, "held");
    let told = ide.machine.qmp.events();
    assert!(told.iter().all(|event| event.event != "STOP"), "{told:?}");
    ide.execute("x-debug-resume", &tag);
    stop.join().unwrap();
    ide.wait_event("STOP");
    assert_ne!(
        ide.get(second) & status::BUSY,
        0,
        "the machine stands still"
    );
    ide.execute("cont", &json!({}));
    assert_ne!(ide.ready() & status::DATA_REQUEST, 0);
    loop {
        let bits = ide.get(second);
        if bits & status::BUSY == 0 {
            assert_ne!(bits & status::DATA_REQUEST, 0);
            break;
        }
    }
    ide.end();
}

/// A block of a disc, read by a packet command through the data port and by DMA.
#[test]
fn a_disc_is_read_both_ways() {
    const BLOCK: usize = 2048;
    let mut ide = Ide::start(&[
        "-drive",
        "if=none,file={},media=cdrom,format=raw,id=sr0,index=0",
        "-device",
        "ide-cd,drive=sr0,bus=ide.0",
    ]);
    let image = ide.image();
    let file = fs::OpenOptions::new().write(true).open(&image).unwrap();
    let content: Vec<u8> = (0..BLOCK)
        .map(|index| (index % 251).to_le_bytes()[0])
        .collect();
    file.write_all_at(&content, 3 * BLOCK as u64).unwrap();
    let read_10: [u16; 6] = [0x0028, 0x0000, 0x0300, 0x0000, 0x0001, 0x0000];
    for by_dma in [false, true] {
        ide.table(&[(BUFFER, 2048)]);
        ide.put(port::DEVICE, 0);
        ide.put(port::FEATURES, u8::from(by_dma));
        ide.put(port::LBA_MID, 0);
        ide.put(port::LBA_HIGH, 0x08);
        ide.put(port::COMMAND, PACKET);
        assert_ne!(ide.ready() & status::DATA_REQUEST, 0);
        for word in read_10 {
            ide.machine.qtest.out16(port::DATA, word).unwrap();
        }
        let bytes = if by_dma {
            ide.start_bus_master(TO_MEMORY);
            assert_eq!(ide.end_of_transfer().0, INTERRUPT);
            ide.machine.qtest.read(BUFFER.into(), BLOCK).unwrap()
        } else {
            assert_ne!(ide.ready() & status::DATA_REQUEST, 0);
            let length = [ide.get(port::LBA_MID), ide.get(port::LBA_HIGH)];
            assert_eq!(usize::from(u16::from_le_bytes(length)), BLOCK);
            ide.get(port::STATUS);
            let mut bytes = Vec::new();
            for _ in 0..BLOCK / 2 {
                bytes.extend(ide.machine.qtest.in16(port::DATA).unwrap().to_le_bytes());
            }
            assert_eq!(ide.ready() & (status::DATA_REQUEST | status::ERROR), 0);
            ide.get(port::STATUS);
            bytes
        };
        assert_eq!(bytes, content, "by DMA: {by_dma}");
    }
    ide.end();
}
