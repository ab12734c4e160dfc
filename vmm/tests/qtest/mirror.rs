//! An IDE disk and a virtio disk in an I/O thread, in one machine, mirrored under a guest that works by their
//! registers.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use sluice_tests::qtest::machine::QtestMachine;
use sluice_tests::qtest::pci::{Allocator, Bar, ENABLE_ALL, Function};
use tempfile::TempDir;

use super::process::SLUICE;

const LIMIT: Duration = Duration::from_secs(60);
const SECTOR: usize = 512;
/// Of every image.
const SECTORS: u64 = 8192;

/// The primary channel, its bus master, and where its transfers are in memory.
mod ide {
    pub const FEATURES: u64 = 0x1f1;
    pub const COUNT: u64 = 0x1f2;
    pub const LBA_LOW: u64 = 0x1f3;
    pub const DEVICE: u64 = 0x1f6;
    pub const COMMAND: u64 = 0x1f7;
    pub const CONTROL: u64 = 0x3f6;
    pub const BUSY: u8 = 0x80;
    pub const ERROR: u8 = 0x01;
    pub const LBA: u8 = 0x40;
    pub const SOFT_RESET: u8 = 0x04;
    pub const DATA_SET_MANAGEMENT: u8 = 0x06;
    pub const TRIM: u8 = 1;
    pub const WRITE_DMA: u8 = 0xca;
    pub const FLUSH_CACHE: u8 = 0xe7;
    pub const BM_STATUS: u64 = 2;
    pub const BM_TABLE: u64 = 4;
    pub const START: u8 = 1;
    pub const ACTIVE: u8 = 1;
    pub const INTERRUPT: u8 = 4;
    pub const END_OF_TABLE: u32 = 1 << 31;
    pub const TABLE: u32 = 0x10_0000;
    pub const BUFFER: u32 = 0x20_0000;
}

/// The virtio disk: its place, its registers and its ring of one request at a time.
mod virtio {
    pub const DEVICE: u8 = 4;
    pub const COMMON: u8 = 1;
    pub const NOTIFY: u8 = 2;
    pub const DRIVER_FEATURE_SELECT: u64 = 8;
    pub const DRIVER_FEATURE: u64 = 12;
    pub const STATUS: u64 = 20;
    pub const QUEUE_SELECT: u64 = 22;
    pub const QUEUE_SIZE: u64 = 24;
    pub const QUEUE_ENABLE: u64 = 28;
    pub const QUEUE_NOTIFY_OFF: u64 = 30;
    pub const QUEUE_DESC: u64 = 32;
    pub const QUEUE_DRIVER: u64 = 40;
    pub const QUEUE_DEVICE: u64 = 48;
    /// ACKNOWLEDGE and DRIVER; then FEATURES_OK; then DRIVER_OK.
    pub const STEPS: [u8; 3] = [3, 11, 15];
    /// FLUSH, DISCARD and VERSION_1, a half at a time.
    pub const FEATURES: [u32; 2] = [1 << 9 | 1 << 13, 1];
    pub const OUT: u32 = 1;
    pub const FLUSH: u32 = 4;
    pub const DISCARD: u32 = 11;
    pub const SIZE: u16 = 8;
    pub const NEXT: u16 = 1;
    pub const WRITE: u16 = 2;
    pub const DESCRIPTORS: u64 = 0x30_0000;
    pub const AVAILABLE: u64 = 0x30_4000;
    pub const USED: u64 = 0x30_8000;
    pub const REQUEST: u64 = 0x31_0000;
    pub const DATA: u64 = 0x31_1000;
    pub const ANSWER: u64 = 0x31_2000;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Disk {
    Ide,
    Virtio,
}

impl Disk {
    const BOTH: [Self; 2] = [Self::Ide, Self::Virtio];

    /// The name of its node, of its image and of its mirror.
    fn name(self) -> &'static str {
        match self {
            Self::Ide => "ide",
            Self::Virtio => "virtio",
        }
    }

    fn copy(self) -> String {
        format!("{}-copy", self.name())
    }
}

struct Guest {
    machine: QtestMachine,
    bus_master: u64,
    common: u64,
    notify: u64,
    multiplier: u64,
    doorbell: u64,
    /// Requests put into the ring.
    made: u16,
    directory: TempDir,
}

impl Guest {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let node = |disk: Disk| {
            let image = directory.path().join(disk.name());
            // Data, then a hole.
            let file = fs::File::create(&image).unwrap();
            file.write_all_at(&vec![0x11; 1 << 20], 0).unwrap();
            file.set_len(SECTORS * SECTOR as u64).unwrap();
            format!(
                "blkdebug,node-name={},discard=unmap,image.driver=file,image.discard=unmap,image.filename={}",
                disk.name(),
                image.display()
            )
        };
        let (ide, virtio) = (node(Disk::Ide), node(Disk::Virtio));
        let device = format!(
            "virtio-blk-pci,drive=virtio,iothread=io0,addr={}.0",
            virtio::DEVICE
        );
        let arguments = [
            ("-object", "iothread,id=io0"),
            ("-blockdev", &ide),
            ("-blockdev", &virtio),
            ("-device", "ide-hd,drive=ide,bus=ide.0"),
            ("-device", &device),
        ];
        let arguments = arguments
            .iter()
            .flat_map(|(option, value)| [*option, *value]);
        let mut machine = QtestMachine::start(SLUICE, arguments).unwrap();
        let qtest = &mut machine.qtest;
        let mut allocator = Allocator::default();
        let controller = Function::new(1, 1);
        let bus_master = controller.map(qtest, &mut allocator, 4).unwrap().unwrap();
        controller.set_command(qtest, ENABLE_ALL).unwrap();
        let function = Function::new(virtio::DEVICE, 0);
        let mut bars = [None; 6];
        let mut place = |kind: u8| {
            for at in function.capabilities(qtest, 0x09).unwrap() {
                let head = function.read(qtest, at).unwrap().to_le_bytes();
                if head[3] != kind {
                    continue;
                }
                let bar = function.read(qtest, at + 4).unwrap().to_le_bytes()[0];
                let mapped = &mut bars[usize::from(bar)];
                if mapped.is_none() {
                    *mapped = function.map(qtest, &mut allocator, bar).unwrap();
                }
                let offset = function.read(qtest, at + 8).unwrap();
                let multiplier = function.read(qtest, at + 16).unwrap();
                let base = mapped.map(Bar::base).unwrap();
                return (base + u64::from(offset), u64::from(multiplier));
            }
            panic!("no structure {kind}");
        };
        let ((common, _), (notify, multiplier)) = (place(virtio::COMMON), place(virtio::NOTIFY));
        function.set_command(qtest, ENABLE_ALL).unwrap();
        let mut guest = Self {
            machine,
            bus_master: bus_master.base(),
            common,
            notify,
            multiplier,
            doorbell: 0,
            made: 0,
            directory,
        };
        guest.bring_up();
        guest
    }

    /// Takes the virtio disk from its reset to where it serves requests.
    fn bring_up(&mut self) {
        let (common, qtest) = (self.common, &mut self.machine.qtest);
        qtest.write8(common + virtio::STATUS, 0).unwrap();
        // A reset that waits for a request is over when the status says so.
        while qtest.read8(common + virtio::STATUS).unwrap() != 0 {}
        let [begin, features, ready] = virtio::STEPS;
        qtest.write8(common + virtio::STATUS, begin).unwrap();
        for (half, wanted) in (0..).zip(virtio::FEATURES) {
            qtest
                .write32(common + virtio::DRIVER_FEATURE_SELECT, half)
                .unwrap();
            qtest
                .write32(common + virtio::DRIVER_FEATURE, wanted)
                .unwrap();
        }
        qtest.write8(common + virtio::STATUS, features).unwrap();
        assert_eq!(qtest.read8(common + virtio::STATUS).unwrap(), features);
        qtest.write(virtio::AVAILABLE, &[0; 64]).unwrap();
        qtest.write(virtio::USED, &[0; 64]).unwrap();
        self.made = 0;
        qtest.write16(common + virtio::QUEUE_SELECT, 0).unwrap();
        qtest
            .write16(common + virtio::QUEUE_SIZE, virtio::SIZE)
            .unwrap();
        for (register, address) in [
            (virtio::QUEUE_DESC, virtio::DESCRIPTORS),
            (virtio::QUEUE_DRIVER, virtio::AVAILABLE),
            (virtio::QUEUE_DEVICE, virtio::USED),
        ] {
            qtest.write64(common + register, address).unwrap();
        }
        qtest.write16(common + virtio::QUEUE_ENABLE, 1).unwrap();
        let offset = qtest.read16(common + virtio::QUEUE_NOTIFY_OFF).unwrap();
        self.doorbell = self.notify + u64::from(offset) * self.multiplier;
        qtest.write8(common + virtio::STATUS, ready).unwrap();
    }

    fn out(&mut self, port: u64, value: u8) {
        self.machine.qtest.out8(port, value).unwrap();
    }

    /// Begins a command of the IDE disk with a sector of data, if it has some.
    fn begin_ide(&mut self, command: u8, sector: u64, data: Option<&[u8; SECTOR]>) {
        let qtest = &mut self.machine.qtest;
        let mut table = ide::BUFFER.to_le_bytes().to_vec();
        table.extend((SECTOR as u32 | ide::END_OF_TABLE).to_le_bytes());
        qtest.write(ide::TABLE.into(), &table).unwrap();
        qtest
            .write(ide::BUFFER.into(), data.unwrap_or(&[0; SECTOR]))
            .unwrap();
        qtest.out8(self.bus_master, 0).unwrap();
        qtest
            .out8(self.bus_master + ide::BM_STATUS, ide::INTERRUPT)
            .unwrap();
        qtest
            .out32(self.bus_master + ide::BM_TABLE, ide::TABLE)
            .unwrap();
        self.out(ide::DEVICE, ide::LBA);
        self.out(ide::COUNT, 1);
        for (register, byte) in (ide::LBA_LOW..).zip(&sector.to_le_bytes()[..3]) {
            self.out(register, *byte);
        }
        let trims = command == ide::DATA_SET_MANAGEMENT;
        self.out(ide::FEATURES, if trims { ide::TRIM } else { 0 });
        self.out(ide::COMMAND, command);
        if data.is_some() {
            self.out(self.bus_master, ide::START);
        }
    }

    fn descriptor(&mut self, index: u64, address: u64, length: u32, flags: u16) {
        let mut bytes = address.to_le_bytes().to_vec();
        bytes.extend(length.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(u16::try_from(index + 1).unwrap().to_le_bytes());
        let at = virtio::DESCRIPTORS + 16 * index;
        self.machine.qtest.write(at, &bytes).unwrap();
    }

    /// Begins a request of the virtio disk.
    fn begin_virtio(&mut self, kind: u32, sector: u64, data: &[u8]) {
        let mut header = kind.to_le_bytes().to_vec();
        header.extend([0; 4]);
        header.extend(sector.to_le_bytes());
        let qtest = &mut self.machine.qtest;
        qtest.write(virtio::REQUEST, &header).unwrap();
        qtest.write8(virtio::ANSWER, 0xff).unwrap();
        if !data.is_empty() {
            qtest.write(virtio::DATA, data).unwrap();
        }
        self.descriptor(0, virtio::REQUEST, 16, virtio::NEXT);
        let mut next = 1;
        if !data.is_empty() {
            let length = u32::try_from(data.len()).unwrap();
            self.descriptor(next, virtio::DATA, length, virtio::NEXT);
            next += 1;
        }
        self.descriptor(next, virtio::ANSWER, 1, virtio::WRITE);
        let entry = virtio::AVAILABLE + 4 + 2 * u64::from(self.made % virtio::SIZE);
        let qtest = &mut self.machine.qtest;
        qtest.write16(entry, 0).unwrap();
        self.made = self.made.wrapping_add(1);
        qtest.write16(virtio::AVAILABLE + 2, self.made).unwrap();
        qtest.write16(self.doorbell, 0).unwrap();
    }

    fn begin_write(&mut self, disk: Disk, sector: u64, data: &[u8; SECTOR]) {
        match disk {
            Disk::Ide => self.begin_ide(ide::WRITE_DMA, sector, Some(data)),
            Disk::Virtio => self.begin_virtio(virtio::OUT, sector, data),
        }
    }

    /// Whether what was begun has ended; it must have succeeded then.
    fn has_ended(&mut self, disk: Disk) -> bool {
        let qtest = &mut self.machine.qtest;
        match disk {
            Disk::Ide => {
                let drive = qtest.in8(ide::CONTROL).unwrap();
                let transfer = qtest.in8(self.bus_master + ide::BM_STATUS).unwrap();
                if drive & ide::BUSY != 0 || transfer & ide::ACTIVE != 0 {
                    return false;
                }
                assert_eq!(drive & ide::ERROR, 0, "the guest saw an error");
                qtest.in8(ide::COMMAND).unwrap();
                true
            }
            Disk::Virtio => {
                if qtest.read16(virtio::USED + 2).unwrap() != self.made {
                    return false;
                }
                assert_eq!(qtest.read8(virtio::ANSWER).unwrap(), 0, "no error");
                true
            }
        }
    }

    fn wait(&mut self, disk: Disk) {
        while !self.has_ended(disk) {}
    }

    fn write(&mut self, disk: Disk, sector: u64, data: &[u8; SECTOR]) {
        self.begin_write(disk, sector, data);
        self.wait(disk);
    }

    fn trim(&mut self, disk: Disk, sector: u64, count: u16) {
        match disk {
            Disk::Ide => {
                let mut ranges = [0; SECTOR];
                let range = u64::from(count) << 48 | sector;
                ranges[..8].copy_from_slice(&range.to_le_bytes());
                self.begin_ide(ide::DATA_SET_MANAGEMENT, 0, Some(&ranges));
            }
            Disk::Virtio => {
                let mut segment = sector.to_le_bytes().to_vec();
                segment.extend(u32::from(count).to_le_bytes());
                segment.extend([0; 4]);
                self.begin_virtio(virtio::DISCARD, 0, &segment);
            }
        }
        self.wait(disk);
    }

    fn flush(&mut self, disk: Disk) {
        match disk {
            Disk::Ide => self.begin_ide(ide::FLUSH_CACHE, 0, None),
            Disk::Virtio => self.begin_virtio(virtio::FLUSH, 0, &[]),
        }
        self.wait(disk);
    }

    /// Begins a reset of the device; what is on its way is held by the test.
    fn begin_reset(&mut self, disk: Disk) {
        match disk {
            Disk::Ide => self.out(ide::CONTROL, ide::SOFT_RESET),
            Disk::Virtio => {
                let at = self.common + virtio::STATUS;
                self.machine.qtest.write8(at, 0).unwrap();
            }
        }
    }

    fn end_reset(&mut self, disk: Disk) {
        match disk {
            Disk::Ide => {
                self.out(ide::CONTROL, 0);
                while self.machine.qtest.in8(ide::CONTROL).unwrap() & ide::BUSY != 0 {}
            }
            Disk::Virtio => self.bring_up(),
        }
    }

    fn execute(&mut self, command: &str, arguments: &Value) -> Value {
        self.machine.qmp.execute(command, arguments).unwrap()
    }

    /// Adds a target that the test can hold, with these rules of errors.
    fn add_target(&mut self, disk: Disk, more: &Value) {
        let path = self.image(&disk.copy());
        // Full of something else.
        fs::write(
            &path,
            vec![0x5a; SECTOR * usize::try_from(SECTORS).unwrap()],
        )
        .unwrap();
        let file = json!({"driver": "file", "filename": path, "discard": "unmap"});
        let mut node = json!({"driver": "blkdebug", "node-name": disk.copy(), "image": file, "discard": "unmap"});
        let members = node.as_object_mut().unwrap();
        members.extend(more.as_object().unwrap().clone());
        self.execute("blockdev-add", &node);
    }

    /// Mirrors the disk until that is ready.
    fn mirror(&mut self, disk: Disk, mode: &str) {
        let arguments = json!({
            "device": disk.name(), "target": disk.copy(), "job-id": disk.name(), "sync": "full",
            "copy-mode": mode, "on-target-error": "ignore"
        });
        self.execute("blockdev-mirror", &arguments);
        let ready = self
            .machine
            .qmp
            .wait_job_event("BLOCK_JOB_READY", disk.name(), LIMIT);
        ready.unwrap();
    }

    fn wait_completed(&mut self, disk: Disk) {
        let completed = self
            .machine
            .qmp
            .wait_job_event("BLOCK_JOB_COMPLETED", disk.name(), LIMIT);
        let completed = completed.unwrap();
        assert!(completed.data.get("error").is_none(), "{completed:?}");
    }

    /// Holds the next event of a target.
    fn hold(&mut self, disk: Disk, event: &str) {
        let at = json!({"node-name": disk.copy(), "event": event, "tag": "held"});
        self.execute("x-debug-break", &at);
    }

    fn wait_held(&mut self, disk: Disk) {
        let at = json!({"node-name": disk.copy(), "tag": "held"});
        self.execute("x-debug-wait-break", &at);
    }

    fn let_go(&mut self, disk: Disk) {
        let at = json!({"node-name": disk.copy(), "tag": "held"});
        self.execute("x-debug-resume", &at);
    }

    /// The node that a disk of the guest stands on now.
    fn roots(&mut self) -> Vec<String> {
        let disks = self.execute("query-block", &json!({}));
        let disks = disks.as_array().unwrap().iter();
        disks
            .filter_map(|disk| Some(disk["inserted"]["node-name"].as_str()?.to_owned()))
            .collect()
    }

    fn image(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        fs::read(self.image(name)).unwrap()
    }

    /// The record in the first sector of an image.
    fn record(&self, name: &str) -> u64 {
        u64::from_le_bytes(self.bytes(name)[..8].try_into().unwrap())
    }

    fn end(self) {
        assert_eq!(self.machine.end().unwrap(), Some(0));
    }
}

fn record(number: u64) -> [u8; SECTOR] {
    let mut sector = [0; SECTOR];
    sector[..8].copy_from_slice(&number.to_le_bytes());
    sector
}

/// A guest writes a record to one disk, and when that has ended to the other. The mirrors of both pivot together;
/// that of the virtio disk is held before its section, when the IDE disk is on its new image already. The
/// old images never show a record on the second disk that the first has not.
#[test]
fn related_records_on_an_ide_disk_and_a_virtio_disk_stay_related() {
    let mut guest = Guest::start();
    for disk in Disk::BOTH {
        guest.add_target(disk, &json!({}));
        guest.mirror(disk, "background");
    }
    for number in 1..=5 {
        for disk in Disk::BOTH {
            guest.write(disk, 0, &record(number));
        }
    }
    guest.hold(Disk::Virtio, "flush_to_disk");
    let devices = json!({"devices": ["ide", "virtio"]});
    guest.execute("x-block-job-complete-group", &devices);
    guest.wait_held(Disk::Virtio);
    while !guest.roots().contains(&Disk::Ide.copy()) {}
    assert!(
        guest
            .roots()
            .iter()
            .all(|root| *root != Disk::Virtio.copy())
    );
    guest.begin_write(Disk::Ide, 0, &record(6));
    // A guest goes on to the second disk when the first has its record.
    let goes_on = (0..50).any(|_| {
        guest.execute("query-status", &json!({}));
        guest.has_ended(Disk::Ide)
    });
    if goes_on {
        guest.write(Disk::Virtio, 0, &record(6));
    }
    guest.let_go(Disk::Virtio);
    if !goes_on {
        guest.wait(Disk::Ide);
        guest.write(Disk::Virtio, 0, &record(6));
    }
    for disk in Disk::BOTH {
        guest.wait_completed(disk);
    }
    let (first, second) = (guest.record("ide"), guest.record("virtio"));
    assert!(
        first >= second,
        "record {second} is there, but not {first} + 1"
    );
    for disk in Disk::BOTH {
        assert_eq!(guest.record(&disk.copy()), 6);
        guest.write(disk, 0, &record(7));
        guest.flush(disk);
        assert_eq!(guest.record(&disk.copy()), 7);
        assert_eq!(guest.record(disk.name()), 5);
    }
    guest.end();
}

/// Writes to both sides, trims, flushes, a reset in the middle of a write, a target that fails: the guest sees
/// nothing of it, and the two images are the same at the end.
fn works_in_write_blocking_mode(disk: Disk) {
    const FAILS: u64 = 7000;
    let mut guest = Guest::start();
    // Once the first copy is flushed, a write of that sector fails.
    let rules = json!({
        "set-state": [{"event": "flush_to_disk", "state": 1, "new_state": 2}],
        "inject-error": [{"event": "write_aio", "state": 2, "iotype": "write", "errno": 5, "once": true,
            "sector": FAILS}]
    });
    guest.add_target(disk, &rules);
    guest.write(disk, 100, &[0x21; SECTOR]);
    guest.mirror(disk, "write-blocking");
    for (sector, byte) in [(0, 0x31), (101, 0x32), (5000, 0x33), (SECTORS - 1, 0x34)] {
        guest.write(disk, sector, &[byte; SECTOR]);
    }
    guest.trim(disk, 128, 256);
    guest.flush(disk);
    guest.trim(disk, 5000, 1);

    // A write is on its way to both when the device is reset.
    guest.hold(disk, "write_aio");
    guest.begin_write(disk, 200, &[0x41; SECTOR]);
    guest.wait_held(disk);
    guest.begin_reset(disk);
    guest.let_go(disk);
    guest.end_reset(disk);
    guest.write(disk, 201, &[0x42; SECTOR]);
    guest.flush(disk);

    guest.write(disk, FAILS, &[0x51; SECTOR]);
    let failed = guest
        .machine
        .qmp
        .wait_job_event("BLOCK_JOB_ERROR", disk.name(), LIMIT);
    assert_eq!(failed.unwrap().text("operation"), "write");
    guest.write(disk, FAILS + 1, &[0x52; SECTOR]);

    guest.execute("block-job-complete", &json!({"device": disk.name()}));
    guest.wait_completed(disk);
    assert!(
        guest.bytes(disk.name()) == guest.bytes(&disk.copy()),
        "{disk:?}"
    );
    let copied = guest.bytes(&disk.copy());
    let first = |sector: u64| copied[usize::try_from(sector).unwrap() * SECTOR];
    assert_eq!(first(201), 0x42);
    assert_eq!(first(FAILS), 0x51);
    assert_eq!(first(5000), 0, "trimmed");
    guest.write(disk, 0, &[0x61; SECTOR]);
    guest.flush(disk);
    assert_eq!(guest.bytes(&disk.copy())[0], 0x61);
    assert_eq!(guest.bytes(disk.name())[0], 0x31);
    guest.end();
}

#[test]
fn an_ide_disk_works_in_write_blocking_mode() {
    works_in_write_blocking_mode(Disk::Ide);
}

#[test]
fn a_virtio_disk_works_in_write_blocking_mode() {
    works_in_write_blocking_mode(Disk::Virtio);
}
