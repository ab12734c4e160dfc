//! IDE drives on the first channel's master and slave and on the second channel, and how a command is given to one
//! and looked after.

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

pub(super) const LIMIT: Duration = Duration::from_secs(60);
pub(super) const SECTOR: usize = 512;
/// Of every image.
pub(super) const SECTORS: u64 = 8192;
/// The customary geometry's.
pub(super) const HEADS: u64 = 16;
pub(super) const TRACK: u64 = 63;

/// Registers of a command block, by offset.
pub(super) mod register {
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
pub(super) const ERR: u8 = 0x01;
pub(super) const DRQ: u8 = 0x08;
pub(super) const DSC: u8 = 0x10;
pub(super) const DRDY: u8 = 0x40;
pub(super) const BSY: u8 = 0x80;
pub(super) const IDLE: u8 = DRDY | DSC;

pub(super) const ABORTED: u8 = 0x04;
/// The code that a device leaves in the error register when it has passed its diagnostic.
pub(super) const PASSED: u8 = 0x01;

pub(super) const NIEN: u8 = 0x02;
pub(super) const SRST: u8 = 0x04;
pub(super) const HOB: u8 = 0x80;

pub(super) const LBA: u8 = 0x40;
/// Bits of the device register that read as one.
pub(super) const ALWAYS_ONE: u8 = 0xa0;

pub(super) const READ_SECTORS: u8 = 0x20;
pub(super) const READ_MULTIPLE: u8 = 0xc4;
pub(super) const SET_MULTIPLE: u8 = 0xc6;
pub(super) const IDENTIFY: u8 = 0xec;

pub(super) const BM_STATUS: u64 = 2;
pub(super) const BM_TABLE: u64 = 4;
pub(super) const START: u8 = 1;
pub(super) const TO_MEMORY: u8 = 8;
pub(super) const INTERRUPT: u8 = 4;
pub(super) const END_OF_TABLE: u32 = 1 << 31;
pub(super) const TABLE: u32 = 0x10_0000;
pub(super) const BUFFER: u32 = 0x20_0000;

/// Where a drive is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) node: &'static str,
    pub(super) command: u64,
    pub(super) control: u64,
    /// Of the bus master's registers.
    pub(super) bus_master: u64,
    pub(super) irq: u32,
    /// What selects it in the device register.
    pub(super) select: u8,
}

pub(super) const MASTER: Place = Place {
    node: "master",
    command: 0x1f0,
    control: 0x3f6,
    bus_master: 0,
    irq: 14,
    select: 0,
};
pub(super) const SLAVE: Place = Place {
    node: "slave",
    select: 0x10,
    ..MASTER
};
pub(super) const SECOND: Place = Place {
    node: "second",
    command: 0x170,
    control: 0x376,
    bus_master: 8,
    irq: 15,
    select: 0,
};

/// How a command says which sector it means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Address {
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
pub(super) enum Kind {
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
    pub(super) fn reaches_the_node(self) -> bool {
        !matches!(self, Self::Abort | Self::Done | Self::Reply)
    }

    pub(super) fn is_dma(self) -> bool {
        matches!(self, Self::ReadDma | Self::WriteDma | Self::Trim)
    }

    /// What the sector that the command was about holds when it is done.
    pub(super) fn leaves(self, sector: u64) -> [u8; SECTOR] {
        match self {
            Self::Write | Self::WriteDma => [WRITTEN; SECTOR],
            Self::Trim => [0; SECTOR],
            _ => stamp(sector),
        }
    }
}

pub(super) const WRITTEN: u8 = 0xa5;

/// What a sector holds at first.
pub(super) fn stamp(sector: u64) -> [u8; SECTOR] {
    [u8::try_from(sector % 113).unwrap() + 1; SECTOR]
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Case {
    pub(super) code: u8,
    pub(super) features: u8,
    pub(super) count: u8,
    pub(super) address: Address,
    pub(super) kind: Kind,
    /// Registers that tell something afterwards.
    pub(super) tells: &'static [(u64, u8)],
}

pub(super) const fn case(code: u8, address: Address, kind: Kind) -> Case {
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
    pub(super) const fn with(self, features: u8, count: u8) -> Self {
        Self {
            features,
            count,
            ..self
        }
    }

    pub(super) const fn tells(self, tells: &'static [(u64, u8)]) -> Self {
        Self { tells, ..self }
    }
}

/// What waits for the end of a drained section.
pub(super) type Stop = JoinHandle<Qmp>;

pub(super) struct Drives {
    pub(super) machine: QtestMachine,
    pub(super) bus_master: u64,
    pub(super) operator: Option<Qmp>,
    pub(super) directory: TempDir,
}

impl Drives {
    pub(super) fn start() -> Self {
        Self::with("ide-hd")
    }

    /// The slave is such a drive, the others are disks.
    pub(super) fn with(slave: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let content: Vec<u8> = (0..SECTORS).flat_map(stamp).collect();
        let mut arguments = Vec::new();
        for (place, device, more) in [
            (MASTER, "ide-hd", "bus=ide.0,unit=0"),
            (SLAVE, slave, "bus=ide.0,unit=1"),
            (SECOND, "ide-hd", "bus=ide.1,unit=0"),
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
                format!("{device},drive={node},{more}"),
            ]);
        }
        let socket = directory.path().join("operator");
        arguments.extend(["-qmp".to_owned(), format!("unix:{}", socket.display())]);
        let mut machine = QtestMachine::start(SLUICE, arguments).unwrap();
        machine.qtest.intercept_interrupts().unwrap();
        let bus_master = controller(&mut machine);
        let operator = Qmp::connect(&socket, LIMIT).unwrap();
        Self {
            machine,
            bus_master,
            operator: Some(operator),
            directory,
        }
    }

    pub(super) fn image(&self, place: Place) -> PathBuf {
        self.directory.path().join(place.node)
    }

    pub(super) fn on_disk(&self, place: Place, sector: u64) -> [u8; SECTOR] {
        let mut bytes = [0; SECTOR];
        let file = fs::File::open(self.image(place)).unwrap();
        file.read_exact_at(&mut bytes, sector * SECTOR as u64)
            .unwrap();
        bytes
    }

    pub(super) fn get(&mut self, place: Place, register: u64) -> u8 {
        self.machine.qtest.in8(place.command + register).unwrap()
    }

    pub(super) fn put(&mut self, place: Place, register: u64, value: u8) {
        let port = place.command + register;
        self.machine.qtest.out8(port, value).unwrap();
    }

    pub(super) fn control(&mut self, place: Place, value: u8) {
        self.machine.qtest.out8(place.control, value).unwrap();
    }

    pub(super) fn interrupt(&mut self, place: Place) -> bool {
        self.machine.qtest.interrupt(place.irq).unwrap()
    }

    /// The status without an acknowledgement.
    pub(super) fn status(&mut self, place: Place) -> u8 {
        self.machine.qtest.in8(place.control).unwrap()
    }

    pub(super) fn ready(&mut self, place: Place) -> u8 {
        loop {
            let status = self.status(place);
            if status & BSY == 0 {
                return status;
            }
        }
    }

    /// Waits for the interrupt, acknowledges it by reading the status, and returns that.
    pub(super) fn acknowledge(&mut self, place: Place) -> u8 {
        while !self.interrupt(place) {
            self.machine.qtest.take_changes();
            self.machine.qtest.wait_change().unwrap();
        }
        let status = self.get(place, register::STATUS);
        assert!(!self.interrupt(place), "reading the status acknowledges");
        status
    }

    pub(super) fn read_block(&mut self, place: Place) -> Vec<u8> {
        let port = place.command + register::DATA;
        let pairs = (0..SECTOR / 4).map(|_| self.machine.qtest.in32(port).unwrap());
        pairs.flat_map(u32::to_le_bytes).collect()
    }

    pub(super) fn write_block(&mut self, place: Place, byte: u8) {
        let port = place.command + register::DATA;
        for _ in 0..SECTOR / 4 {
            let pair = u32::from_le_bytes([byte; 4]);
            self.machine.qtest.out32(port, pair).unwrap();
        }
    }

    /// Selects the drive and fills its registers.
    pub(super) fn address(&mut self, place: Place, address: Address, sector: u64, count: u8) {
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
    pub(super) fn give(&mut self, place: Place, case: Case, sector: u64) {
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
    pub(super) fn expect(&mut self, place: Place, case: Case, sector: u64, status: u8) {
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

    pub(super) fn expect_end(&mut self, place: Place, case: Case, sector: u64) {
        self.ready(place);
        let status = self.acknowledge(place);
        self.expect(place, case, sector, status);
    }

    /// Resets the channel, and looks at the signature of the drive.
    pub(super) fn reset(&mut self, place: Place, case: Case) {
        self.control(place, SRST);
        self.control(place, 0);
        self.expect_signature(place, &format!("{case:?}"));
    }

    /// Waits for the end of a reset, and looks at what it leaves of a disk.
    pub(super) fn expect_signature(&mut self, place: Place, what: &str) {
        self.ready(place);
        self.put(place, register::DEVICE, place.select);
        let expected = [PASSED, 1, 1, 0, 0, ALWAYS_ONE | place.select];
        assert_eq!(self.signature(place), expected, "{what}");
        assert_eq!(self.status(place), IDLE, "{what}");
        assert!(!self.interrupt(place), "{what}");
        let at = self.bus_master + place.bus_master + BM_STATUS;
        let active = self.machine.qtest.in8(at).unwrap() & START;
        assert_eq!(active, 0, "{what}: the bus master is at rest");
    }

    pub(super) fn signature(&mut self, place: Place) -> [u8; 6] {
        [
            register::ERROR,
            register::COUNT,
            register::LBA_LOW,
            register::LBA_MID,
            register::LBA_HIGH,
            register::DEVICE,
        ]
        .map(|register| self.get(place, register))
    }

    pub(super) fn execute(&mut self, command: &str, arguments: &Value) -> Value {
        self.machine.qmp.execute(command, arguments).unwrap()
    }

    /// Holds the next request of a kind, under the kind's name.
    pub(super) fn hold(&mut self, place: Place, event: &str) {
        let at = json!({"node-name": place.node, "event": event, "tag": event});
        self.execute("x-debug-break", &at);
    }

    pub(super) fn wait_held(&mut self, place: Place, event: &str) {
        let tag = json!({"node-name": place.node, "tag": event});
        self.execute("x-debug-wait-break", &tag);
    }

    pub(super) fn let_go(&mut self, place: Place, event: &str) {
        let tag = json!({"node-name": place.node, "tag": event});
        self.execute("x-debug-resume", &tag);
    }

    /// Holds a read of the drive on the other channel, for which a stop waits: all is drained until
    /// [`Self::end_section`].
    pub(super) fn begin_section(&mut self, other: Place) -> Stop {
        self.hold(other, "read_aio");
        self.address(other, Address::Lba28, 0, 1);
        self.put(other, register::COMMAND, READ_SECTORS);
        self.wait_held(other, "read_aio");
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

    pub(super) fn end_section(&mut self, other: Place, stop: Stop) {
        self.let_go(other, "read_aio");
        self.end_stop(stop);
        assert_eq!(self.acknowledge(other), IDLE | DRQ);
        assert_eq!(self.read_block(other), stamp(0));
    }

    pub(super) fn end_stop(&mut self, stop: Stop) {
        self.operator = Some(stop.join().unwrap());
        self.execute("cont", &json!({}));
    }

    /// A command in a section is postponed: the drive is busy, says nothing and does nothing.
    pub(super) fn expect_postponed(&mut self, place: Place, case: Case, sector: u64) {
        self.expect_busy(place, BSY | DRDY, &format!("{case:?}"));
        assert_eq!(self.on_disk(place, sector), stamp(sector), "{case:?}");
    }

    /// Busy with this status, and nothing is told, however often the loop that could end it comes round.
    pub(super) fn expect_busy(&mut self, place: Place, status: u8, what: &str) {
        // Commands of the monitor go through that loop.
        for _ in 0..3 {
            self.execute("query-status", &json!({}));
            assert_eq!(self.status(place), status, "{what}");
            assert!(!self.interrupt(place), "{what}");
        }
    }

    /// Resets the machine, and maps the controller anew.
    pub(super) fn system_reset(&mut self) {
        let reset = |event: &sluice_tests::qmp::Event| event.event == "RESET";
        self.execute("system_reset", &json!({}));
        self.machine.qmp.wait_event("RESET", LIMIT, reset).unwrap();
        self.bus_master = controller(&mut self.machine);
    }

    pub(super) fn end(self) {
        assert_eq!(self.machine.end().unwrap(), Some(0));
    }
}

/// Maps the controller's bus master; returns its first port.
fn controller(machine: &mut QtestMachine) -> u64 {
    let qtest = &mut machine.qtest;
    let function = Function::new(1, 1);
    let bar = function.map(qtest, &mut Allocator::default(), 4).unwrap();
    function.set_command(qtest, ENABLE_ALL).unwrap();
    bar.unwrap().base()
}
