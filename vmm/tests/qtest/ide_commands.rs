//! The commands of an IDE disk as the machine serves them: on the first channel's master and slave and on the second
//! channel, undisturbed, in a drained section, reset there and afterwards, and with the interrupt switched off.
//!
//! What a command may answer in every corner is for the tests of the devices; here it is whether drives, channels,
//! interrupts, the bus master and QMP are wired such that each answers at all.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};
use sluice_tests::qmp::Qmp;
use sluice_tests::qtest::machine::QtestMachine;
use sluice_tests::qtest::pci::{Allocator, ENABLE_ALL, Function};
use tempfile::TempDir;

use super::process::SLUICE;

const LIMIT: Duration = Duration::from_secs(60);
const SECTOR: usize = 512;
/// Of every image.
const SECTORS: u64 = 8192;
/// The customary geometry's.
const HEADS: u64 = 16;
const TRACK: u64 = 63;

/// Registers of a command block, by offset.
mod register {
    pub const DATA: u64 = 0;
    pub const ERROR: u64 = 1;
    pub const FEATURES: u64 = 1;
    pub const COUNT: u64 = 2;
    pub const LBA_LOW: u64 = 3;
    pub const LBA_MID: u64 = 4;
    pub const LBA_HIGH: u64 = 5;
    pub const DEVICE: u64 = 6;
    pub const STATUS: u64 = 7;
    pub const COMMAND: u64 = 7;
}
const ERR: u8 = 0x01;
const DRQ: u8 = 0x08;
const DSC: u8 = 0x10;
const DRDY: u8 = 0x40;
const BSY: u8 = 0x80;
const IDLE: u8 = DRDY | DSC;

const ABORTED: u8 = 0x04;
/// The code that a device leaves in the error register when it has passed its diagnostic.
const PASSED: u8 = 0x01;

const NIEN: u8 = 0x02;
const SRST: u8 = 0x04;
const HOB: u8 = 0x80;

const LBA: u8 = 0x40;
/// Bits of the device register that read as one.
const ALWAYS_ONE: u8 = 0xa0;

const READ_SECTORS: u8 = 0x20;
const READ_MULTIPLE: u8 = 0xc4;
const SET_MULTIPLE: u8 = 0xc6;
const IDENTIFY: u8 = 0xec;

const BM_STATUS: u64 = 2;
const BM_TABLE: u64 = 4;
const START: u8 = 1;
const TO_MEMORY: u8 = 8;
const INTERRUPT: u8 = 4;
const END_OF_TABLE: u32 = 1 << 31;
const TABLE: u32 = 0x10_0000;
const BUFFER: u32 = 0x20_0000;

/// Where a drive is.
#[derive(Clone, Copy, Debug)]
struct Place {
    node: &'static str,
    command: u64,
    control: u64,
    /// Of the bus master's registers.
    bus_master: u64,
    irq: u32,
    /// What selects it in the device register.
    select: u8,
}

const MASTER: Place = Place {
    node: "master",
    command: 0x1f0,
    control: 0x3f6,
    bus_master: 0,
    irq: 14,
    select: 0,
};
const SLAVE: Place = Place {
    node: "slave",
    select: 0x10,
    ..MASTER
};
const SECOND: Place = Place {
    node: "second",
    command: 0x170,
    control: 0x376,
    bus_master: 8,
    irq: 15,
    select: 0,
};

/// How a command says which sector it means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Address {
    Lba28,
    Lba48,
    Chs,
    /// The sector behind the last one.
    Beyond,
    /// These bytes in LBA Mid and High, for what they are a key.
    Key([u8; 2]),
    /// Head 15, which makes 16 of them.
    LastHead,
}

/// How a command goes on after it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Abort,
    /// It is over, without data and without the node.
    Done,
    /// A block that does not come from the node.
    Reply,
    Read,
    Write,
    ReadDma,
    WriteDma,
    Trim,
    Flush,
}

impl Kind {
    fn reaches_the_node(self) -> bool {
        !matches!(self, Self::Abort | Self::Done | Self::Reply)
    }

    fn is_dma(self) -> bool {
        matches!(self, Self::ReadDma | Self::WriteDma | Self::Trim)
    }

    /// What the sector that the command was about holds when it is done.
    fn leaves(self, sector: u64) -> [u8; SECTOR] {
        match self {
            Self::Write | Self::WriteDma => [WRITTEN; SECTOR],
            Self::Trim => [0; SECTOR],
            _ => stamp(sector),
        }
    }
}

const WRITTEN: u8 = 0xa5;

/// What a sector holds at first.
fn stamp(sector: u64) -> [u8; SECTOR] {
    [u8::try_from(sector % 113).unwrap() + 1; SECTOR]
}

#[derive(Clone, Copy, Debug)]
struct Case {
    code: u8,
    features: u8,
    count: u8,
    address: Address,
    kind: Kind,
    /// Registers that tell something afterwards.
    tells: &'static [(u64, u8)],
}

const fn case(code: u8, address: Address, kind: Kind) -> Case {
    Case {
        code,
        features: 0,
        count: 1,
        address,
        kind,
        tells: &[],
    }
}

impl Case {
    const fn with(self, features: u8, count: u8) -> Self {
        Self {
            features,
            count,
            ..self
        }
    }

    const fn tells(self, tells: &'static [(u64, u8)]) -> Self {
        Self { tells, ..self }
    }
}

const SMART_KEY: Address = Address::Key([0x4f, 0xc2]);
/// The address of the last sector, 8191.
const LAST: &[(u64, u8)] = &[
    (register::LBA_LOW, 0xff),
    (register::LBA_MID, 0x1f),
    (register::LBA_HIGH, 0),
];
const ACTIVE_OR_IDLE: &[(u64, u8)] = &[(register::COUNT, 0xff)];
const HEALTHY: &[(u64, u8)] = &[(register::LBA_MID, 0x4f), (register::LBA_HIGH, 0xc2)];
const DIAGNOSED: &[(u64, u8)] = &[(register::ERROR, PASSED)];

/// One of each command, and the ways of each to say where.
const CASES: &[Case] = &{
    use Address::{Beyond, Chs, LastHead, Lba28, Lba48};
    use Kind::{Abort, Done, Flush, Read, ReadDma, Reply, Trim, Write, WriteDma};
    [
        // NOP, and a DEVICE RESET that is for packet devices.
        case(0x00, Lba28, Abort),
        case(0x08, Lba28, Abort),
        // DATA SET MANAGEMENT.
        case(0x06, Lba28, Trim).with(1, 1),
        // RECALIBRATE.
        case(0x10, Lba28, Done),
        // Reads and writes through the data port.
        case(0x20, Lba28, Read),
        case(0x20, Chs, Read),
        case(0x20, Beyond, Abort),
        case(0x24, Lba48, Read),
        case(0x29, Lba48, Read),
        case(0xc4, Lba28, Read),
        case(0xc4, Chs, Read),
        case(0x30, Lba28, Write),
        case(0x30, Chs, Write),
        case(0x34, Lba48, Write),
        case(0x39, Lba48, Write),
        case(0x3c, Lba28, Write),
        case(0xc5, Lba28, Write),
        case(0xce, Lba48, Write),
        // By the bus master.
        case(0xc8, Lba28, ReadDma),
        case(0xc8, Chs, ReadDma),
        case(0x25, Lba48, ReadDma),
        case(0xca, Lba28, WriteDma),
        case(0xca, Chs, WriteDma),
        case(0x35, Lba48, WriteDma),
        case(0x3d, Lba48, WriteDma),
        // READ VERIFY, SEEK, READ NATIVE MAX ADDRESS.
        case(0x40, Lba28, Done),
        case(0x40, Beyond, Abort),
        case(0x42, Lba48, Done),
        case(0x70, Lba28, Done),
        case(0xf8, Lba28, Done).tells(LAST),
        case(0x27, Lba48, Done).tells(LAST),
        // EXECUTE DEVICE DIAGNOSTIC, INITIALIZE DEVICE PARAMETERS.
        case(0x90, Lba28, Done).tells(DIAGNOSED),
        case(0x91, LastHead, Done).with(0, 63),
        // Power.
        case(0x94, Lba28, Done),
        case(0x98, Lba28, Done).tells(ACTIVE_OR_IDLE),
        case(0xe0, Lba28, Done),
        case(0xe1, Lba28, Done),
        case(0xe2, Lba28, Done),
        case(0xe3, Lba28, Done),
        case(0xe5, Lba28, Done).tells(ACTIVE_OR_IDLE),
        case(0xe6, Lba28, Done),
        // PACKET and IDENTIFY PACKET DEVICE: for others.
        case(0xa0, Lba28, Abort),
        case(0xa1, Lba28, Abort),
        // SMART: data, status, and without its key.
        case(0xb0, SMART_KEY, Reply).with(0xd0, 1),
        case(0xb0, SMART_KEY, Done).with(0xda, 1).tells(HEALTHY),
        case(0xb0, Address::Key([0; 2]), Abort).with(0xd0, 1),
        // SET MULTIPLE MODE: 3 is no power of two.
        case(0xc6, Lba28, Abort).with(0, 3),
        case(0xc6, Lba28, Done).with(0, 16),
        case(0xe7, Lba28, Flush),
        case(0xea, Lba48, Flush),
        case(0xec, Lba28, Reply),
        // SET FEATURES: the cache on, Ultra DMA 5, Ultra DMA 7, and what nobody knows.
        case(0xef, Lba28, Done).with(0x02, 0),
        case(0xef, Lba28, Done).with(0x03, 0x45),
        case(0xef, Lba28, Abort).with(0x03, 0x47),
        case(0xef, Lba28, Abort).with(0xff, 0),
        // SECURITY FREEZE LOCK, and a code that nothing has.
        case(0xf5, Lba28, Done),
        case(0xff, Lba28, Abort),
    ]
};

/// What waits for the end of a drained section.
type Stop = JoinHandle<Qmp>;

struct Drives {
    machine: QtestMachine,
    bus_master: u64,
    operator: Option<Qmp>,
    directory: TempDir,
}

impl Drives {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let content: Vec<u8> = (0..SECTORS).flat_map(stamp).collect();
        let mut arguments = Vec::new();
        for (place, more) in [
            (MASTER, "bus=ide.0,unit=0"),
            (SLAVE, "bus=ide.0,unit=1"),
            (SECOND, "bus=ide.1,unit=0"),
        ] {
            let (node, image) = (place.node, directory.path().join(place.node));
            fs::write(&image, &content).unwrap();
            arguments.extend([
                "-blockdev".to_owned(),
                format!(
                    "blkdebug,node-name={node},discard=unmap,image.driver=file,image.discard=unmap,image.filename={}",
                    image.display()
                ),
                "-device".to_owned(),
                format!("ide-hd,drive={node},{more}"),
            ]);
        }
        let socket = directory.path().join("operator");
        arguments.extend(["-qmp".to_owned(), format!("unix:{}", socket.display())]);
        let mut machine = QtestMachine::start(SLUICE, arguments).unwrap();
        let bus_master = controller(&mut machine);
        let operator = Qmp::connect(&socket, LIMIT).unwrap();
        Self {
            machine,
            bus_master,
            operator: Some(operator),
            directory,
        }
    }

    fn image(&self, place: Place) -> PathBuf {
        self.directory.path().join(place.node)
    }

    fn on_disk(&self, place: Place, sector: u64) -> [u8; SECTOR] {
        let mut bytes = [0; SECTOR];
        let file = fs::File::open(self.image(place)).unwrap();
        file.read_exact_at(&mut bytes, sector * SECTOR as u64)
            .unwrap();
        bytes
    }

    fn get(&mut self, place: Place, register: u64) -> u8 {
        self.machine.qtest.in8(place.command + register).unwrap()
    }

    fn put(&mut self, place: Place, register: u64, value: u8) {
        let port = place.command + register;
        self.machine.qtest.out8(port, value).unwrap();
    }

    fn control(&mut self, place: Place, value: u8) {
        self.machine.qtest.out8(place.control, value).unwrap();
    }

    fn interrupt(&mut self, place: Place) -> bool {
        self.machine.qtest.interrupt(place.irq).unwrap()
    }

    /// The status without an acknowledgement.
    fn status(&mut self, place: Place) -> u8 {
        self.machine.qtest.in8(place.control).unwrap()
    }

    fn ready(&mut self, place: Place) -> u8 {
        loop {
            let status = self.status(place);
            if status & BSY == 0 {
                return status;
            }
        }
    }

    /// Waits for the interrupt, acknowledges it by reading the status, and returns that.
    fn acknowledge(&mut self, place: Place) -> u8 {
        while !self.interrupt(place) {
            self.machine.qtest.take_changes();
            self.machine.qtest.wait_change().unwrap();
        }
        let status = self.get(place, register::STATUS);
        assert!(!self.interrupt(place), "reading the status acknowledges");
        status
    }

    fn read_block(&mut self, place: Place) -> Vec<u8> {
        let port = place.command + register::DATA;
        let pairs = (0..SECTOR / 4).map(|_| self.machine.qtest.in32(port).unwrap());
        pairs.flat_map(u32::to_le_bytes).collect()
    }

    fn write_block(&mut self, place: Place, byte: u8) {
        let port = place.command + register::DATA;
        for _ in 0..SECTOR / 4 {
            let pair = u32::from_le_bytes([byte; 4]);
            self.machine.qtest.out32(port, pair).unwrap();
        }
    }

    /// Selects the drive and fills its registers.
    fn address(&mut self, place: Place, address: Address, sector: u64, count: u8) {
        let sector = if address == Address::Beyond {
            SECTORS
        } else {
            sector
        };
        let mut device = place.select | LBA;
        let [mut low, mut mid, mut high, fourth, ..] = sector.to_le_bytes();
        match address {
            Address::Lba28 | Address::Beyond => {}
            Address::Lba48 => {
                self.put(place, register::DEVICE, device);
                self.put(place, register::COUNT, 0);
                self.put(place, register::LBA_LOW, fourth);
                self.put(place, register::LBA_MID, 0);
                self.put(place, register::LBA_HIGH, 0);
            }
            Address::Chs => {
                let (track, within) = (sector / TRACK, sector % TRACK);
                let head = u8::try_from(track % HEADS).unwrap();
                device = place.select | head;
                low = u8::try_from(within + 1).unwrap();
                [mid, high, ..] = (track / HEADS).to_le_bytes();
            }
            Address::Key([first, second]) => (mid, high) = (first, second),
            Address::LastHead => device = place.select | 15,
        }
        self.put(place, register::DEVICE, device);
        self.put(place, register::COUNT, count);
        self.put(place, register::LBA_LOW, low);
        self.put(place, register::LBA_MID, mid);
        self.put(place, register::LBA_HIGH, high);
    }

    /// Gives a command, up to where the drive has something to do.
    fn give(&mut self, place: Place, case: Case, sector: u64) {
        let registers = self.bus_master + place.bus_master;
        if case.kind.is_dma() {
            let data = match case.kind {
                Kind::WriteDma => [WRITTEN; SECTOR],
                Kind::Trim => {
                    let mut ranges = [0; SECTOR];
                    let one = 1 << 48 | sector;
                    ranges[..8].copy_from_slice(&one.to_le_bytes());
                    ranges
                }
                _ => [0; SECTOR],
            };
            let length = u32::try_from(SECTOR).unwrap() | END_OF_TABLE;
            let table = [BUFFER.to_le_bytes(), length.to_le_bytes()].concat();
            let qtest = &mut self.machine.qtest;
            qtest.write(BUFFER.into(), &data).unwrap();
            qtest.write(TABLE.into(), &table).unwrap();
            qtest.out8(registers, 0).unwrap();
            qtest.out8(registers + BM_STATUS, INTERRUPT).unwrap();
            qtest.out32(registers + BM_TABLE, TABLE).unwrap();
        }
        self.address(place, case.address, sector, case.count);
        self.put(place, register::FEATURES, case.features);
        self.put(place, register::COMMAND, case.code);
        if case.kind.is_dma() {
            let direction = if case.kind == Kind::ReadDma {
                TO_MEMORY
            } else {
                0
            };
            self.machine
                .qtest
                .out8(registers, START | direction)
                .unwrap();
        }
        if case.kind == Kind::Write {
            assert_eq!(self.status(place), IDLE | DRQ, "{case:?}");
            assert!(!self.interrupt(place), "{case:?}: the first block");
            self.write_block(place, WRITTEN);
        }
    }

    /// Looks at all that a command should have done whose status was read, which acknowledged its interrupt.
    fn expect(&mut self, place: Place, case: Case, sector: u64, status: u8) {
        match case.kind {
            Kind::Abort => {
                assert_eq!(status, DRDY | ERR, "{case:?}");
                assert_eq!(self.get(place, register::ERROR), ABORTED, "{case:?}");
                return;
            }
            Kind::Read | Kind::Reply => {
                assert_eq!(status, IDLE | DRQ, "{case:?}");
                let block = self.read_block(place);
                let own = case.kind == Kind::Reply;
                assert!(own || block == stamp(sector), "{case:?}: {block:02x?}");
                assert_eq!(self.status(place), IDLE, "{case:?}");
            }
            _ => assert_eq!(status, IDLE, "{case:?}"),
        }
        for (register, value) in case.tells {
            assert_eq!(self.get(place, *register), *value, "{case:?} {register}");
        }
        if case.kind.is_dma() {
            let at = self.bus_master + place.bus_master + BM_STATUS;
            let bits = self.machine.qtest.in8(at).unwrap();
            assert_eq!(bits, INTERRUPT, "{case:?}");
        }
        if case.kind == Kind::ReadDma {
            let read = self.machine.qtest.read(BUFFER.into(), SECTOR).unwrap();
            assert_eq!(read, stamp(sector), "{case:?}");
        }
        let left = self.on_disk(place, sector);
        assert_eq!(left, case.kind.leaves(sector), "{case:?}");
        assert!(!self.interrupt(place), "{case:?}");
    }

    fn expect_end(&mut self, place: Place, case: Case, sector: u64) {
        self.ready(place);
        let status = self.acknowledge(place);
        self.expect(place, case, sector, status);
    }

    /// Resets the channel, and looks at the signature of the drive.
    fn reset(&mut self, place: Place, case: Case) {
        self.control(place, SRST);
        self.control(place, 0);
        self.ready(place);
        self.put(place, register::DEVICE, place.select);
        let signature = [
            register::ERROR,
            register::COUNT,
            register::LBA_LOW,
            register::LBA_MID,
            register::LBA_HIGH,
            register::DEVICE,
        ];
        let signature = signature.map(|register| self.get(place, register));
        let expected = [PASSED, 1, 1, 0, 0, ALWAYS_ONE | place.select];
        assert_eq!(signature, expected, "{case:?}");
        assert_eq!(self.status(place), IDLE, "{case:?}");
        assert!(!self.interrupt(place), "{case:?}");
    }

    fn execute(&mut self, command: &str, arguments: &Value) -> Value {
        self.machine.qmp.execute(command, arguments).unwrap()
    }

    /// Holds a read of the drive on the other channel, for which a stop waits: all is drained until
    /// [`Self::end_section`].
    fn begin_section(&mut self, other: Place) -> Stop {
        let at = json!({"node-name": other.node, "event": "read_aio", "tag": "held"});
        self.execute("x-debug-break", &at);
        self.address(other, Address::Lba28, 0, 1);
        self.put(other, register::COMMAND, READ_SECTORS);
        let tag = json!({"node-name": other.node, "tag": "held"});
        self.execute("x-debug-wait-break", &tag);
        let mut operator = self.operator.take().unwrap();
        let stop = std::thread::spawn(move || {
            operator.execute("stop", &json!({})).unwrap();
            operator
        });
        let stopped = |event: &sluice_tests::qmp::Event| event.event == "STOP";
        self.machine.qmp.wait_event("STOP", LIMIT, stopped).unwrap();
        // It goes through the loop that has begun the section.
        self.execute("query-status", &json!({}));
        stop
    }

    fn end_section(&mut self, other: Place, stop: Stop) {
        let tag = json!({"node-name": other.node, "tag": "held"});
        self.execute("x-debug-resume", &tag);
        self.operator = Some(stop.join().unwrap());
        self.execute("cont", &json!({}));
        assert_eq!(self.acknowledge(other), IDLE | DRQ);
        assert_eq!(self.read_block(other), stamp(0));
    }

    /// A command in a section is postponed: the drive is busy, says nothing and does nothing.
    fn expect_postponed(&mut self, place: Place, case: Case, sector: u64) {
        // Commands of the monitor go through the loop that would serve the request.
        for _ in 0..3 {
            self.execute("query-status", &json!({}));
            assert_eq!(self.status(place), BSY | DRDY, "{case:?}");
            assert!(!self.interrupt(place), "{case:?}");
        }
        assert_eq!(self.on_disk(place, sector), stamp(sector), "{case:?}");
    }

    fn end(self) {
        assert_eq!(self.machine.end().unwrap(), Some(0));
    }
}

/// Maps the controller's bus master, and has interrupts told.
fn controller(machine: &mut QtestMachine) -> u64 {
    let qtest = &mut machine.qtest;
    qtest.intercept_interrupts().unwrap();
    let function = Function::new(1, 1);
    let bar = function.map(qtest, &mut Allocator::default(), 4).unwrap();
    function.set_command(qtest, ENABLE_ALL).unwrap();
    bar.unwrap().base()
}

/// Each case, with a sector of its own for each way to play it.
fn cases(way: u64) -> impl Iterator<Item = (Case, u64)> {
    let sectors = (0..).map(move |index| 1000 * (way + 1) + 8 * index);
    CASES.iter().copied().zip(sectors)
}

fn play(place: Place, other: Place) {
    let mut drives = Drives::start();
    for (case, sector) in cases(0) {
        drives.give(place, case, sector);
        drives.expect_end(place, case, sector);
    }
    for (case, sector) in cases(1) {
        drives.control(place, NIEN);
        drives.give(place, case, sector);
        drives.ready(place);
        assert!(!drives.interrupt(place), "{case:?}");
        // It has been pending all the time.
        drives.control(place, 0);
        drives.expect_end(place, case, sector);
    }
    for (case, sector) in cases(2) {
        let stop = drives.begin_section(other);
        drives.give(place, case, sector);
        if case.kind.reaches_the_node() {
            drives.expect_postponed(place, case, sector);
            drives.end_section(other, stop);
            drives.expect_end(place, case, sector);
        } else {
            // It is for the drive alone.
            drives.expect_end(place, case, sector);
            drives.end_section(other, stop);
        }
        drives.reset(place, case);
    }
    for (case, sector) in cases(3) {
        if !case.kind.reaches_the_node() {
            continue;
        }
        let stop = drives.begin_section(other);
        drives.give(place, case, sector);
        drives.expect_postponed(place, case, sector);
        drives.reset(place, case);
        drives.end_section(other, stop);
        assert_eq!(drives.status(place), IDLE, "{case:?}");
        assert!(!drives.interrupt(place), "{case:?}");
        // Its place is free: the next one is served and it alone.
        let identify = case_of(IDENTIFY);
        drives.give(place, identify, sector);
        drives.expect_end(place, identify, sector);
        assert_eq!(drives.on_disk(place, sector), stamp(sector), "{case:?}");
    }
    // Nothing went to another drive.
    for bystander in [MASTER, SLAVE, SECOND] {
        if bystander.node != place.node {
            for (_, sector) in (0..4).flat_map(cases) {
                assert_eq!(drives.on_disk(bystander, sector), stamp(sector));
            }
        }
    }
    drives.end();
}

fn case_of(code: u8) -> Case {
    *CASES.iter().find(|case| case.code == code).unwrap()
}

#[test]
fn the_first_master_does_every_command_however_it_is_disturbed() {
    play(MASTER, SECOND);
}

#[test]
fn the_first_slave_does_every_command_however_it_is_disturbed() {
    play(SLAVE, SECOND);
}

#[test]
fn the_second_master_does_every_command_however_it_is_disturbed() {
    play(SECOND, MASTER);
}

/// With HOB set, the registers show what was written before.
#[test]
fn registers_are_two_deep() {
    let mut drives = Drives::start();
    for place in [MASTER, SLAVE, SECOND] {
        drives.put(place, register::DEVICE, place.select | LBA);
        for register in register::COUNT..=register::LBA_HIGH {
            let low = u8::try_from(register).unwrap();
            drives.put(place, register, 0x10 | low);
            drives.put(place, register, 0x20 | low);
            assert_eq!(drives.get(place, register), 0x20 | low);
            drives.control(place, HOB);
            assert_eq!(drives.get(place, register), 0x10 | low);
            drives.control(place, 0);
        }
        // A write to any of them takes HOB away.
        drives.control(place, HOB);
        drives.put(place, register::COUNT, 0x33);
        assert_eq!(drives.get(place, register::COUNT), 0x33);
    }
    drives.end();
}

/// READ SECTORS interrupts for each sector, READ MULTIPLE for each block of the size that was set.
#[test]
fn multiple_mode_interrupts_once_a_block() {
    const COUNT: u8 = 20;
    let mut drives = Drives::start();
    for place in [MASTER, SLAVE, SECOND] {
        let set = case_of(SET_MULTIPLE).with(0, 8);
        let set = Case {
            kind: Kind::Done,
            ..set
        };
        drives.give(place, set, 0);
        drives.expect_end(place, set, 0);
        for (code, block) in [(READ_SECTORS, 1), (READ_MULTIPLE, 8)] {
            drives.address(place, Address::Lba28, 40, COUNT);
            drives.put(place, register::COMMAND, code);
            for at in 0..COUNT {
                if at % block == 0 {
                    drives.ready(place);
                    assert_eq!(drives.acknowledge(place), IDLE | DRQ);
                }
                let sector = 40 + u64::from(at);
                assert_eq!(drives.read_block(place), stamp(sector), "{code:#x}");
                let last_of_block = (at + 1) % block == 0 || at + 1 == COUNT;
                assert!(last_of_block || !drives.interrupt(place), "{code:#x} {at}");
            }
            assert_eq!(drives.ready(place), IDLE);
            assert!(!drives.interrupt(place));
        }
    }
    drives.end();
}

/// What IDENTIFY DEVICE says of a disk with these properties.
fn identify(properties: &str) -> Vec<u16> {
    let mut machine = QtestMachine::start(
        SLUICE,
        [
            "-blockdev",
            "null-co,node-name=disk,size=8M",
            "-device",
            &format!("ide-hd,drive=disk,bus=ide.0{properties}"),
        ],
    )
    .unwrap();
    let qtest = &mut machine.qtest;
    qtest.out8(MASTER.command + register::DEVICE, 0).unwrap();
    qtest
        .out8(MASTER.command + register::COMMAND, IDENTIFY)
        .unwrap();
    while qtest.in8(MASTER.control).unwrap() & BSY != 0 {}
    let words = (0..SECTOR / 2)
        .map(|_| qtest.in16(MASTER.command).unwrap())
        .collect();
    assert_eq!(machine.end().unwrap(), Some(0));
    words
}

/// Each property shows in its words, and nowhere else.
#[test]
fn properties_show_in_identify() {
    /// What a property makes of some words, by number.
    type Shows<'a> = (&'a str, &'a [(usize, u16)]);
    let cases: &[Shows<'_>] = &[
        (
            ",serial=S1,model=M1,ver=V1",
            &[(10, 0x5331), (11, 0x2020), (23, 0x5631), (27, 0x4d31)],
        ),
        // The most significant word first; words 84 and 87 say that there is one.
        (
            ",wwn=0x5001122334455667",
            &[
                (84, 0x4143),
                (87, 0x4143),
                (108, 0x5001),
                (109, 0x1223),
                (110, 0x3445),
                (111, 0x5667),
            ],
        ),
        (",rotation_rate=7200", &[(217, 7200)]),
        (",rotation_rate=1", &[(217, 1)]),
        (",physical_block_size=4096", &[(106, 0x6003)]),
        (
            ",cyls=100,heads=8,secs=20",
            &[
                (1, 100),
                (3, 8),
                (6, 20),
                (54, 100),
                (55, 8),
                (56, 20),
                (57, 16000),
            ],
        ),
        (",discard_granularity=0", &[(69, 0), (105, 0), (169, 0)]),
        (",write-cache=off", &[(85, 0x4001)]),
    ];
    let plain = identify("");
    let usual = [(1, 16), (3, 16), (6, 63), (57, 16128), (58, 0), (60, 16384)]
        .into_iter()
        .chain([(69, 0x4000), (84, 0x4043), (85, 0x4021), (106, 0x4000)])
        .chain([(108, 0), (169, 1), (217, 0)]);
    for (word, value) in usual {
        assert_eq!(plain[word], value, "{word}");
    }
    for (properties, shows) in cases {
        let words = identify(properties);
        for (word, value) in *shows {
            assert_eq!(words[*word], *value, "{properties}: {word}");
        }
        let texts = properties.contains("serial");
        for word in (0..SECTOR / 2).filter(|word| !(texts && (10..47).contains(word))) {
            let told = shows.iter().any(|(shown, _)| *shown == word);
            assert!(
                told || words[word] == plain[word],
                "{properties} changed {word}"
            );
        }
    }
}
