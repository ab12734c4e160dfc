//! An IDE disk and a virtio disk in an I/O thread, in one machine, and a guest that works by their registers while
//! they are mirrored.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use sluice_tests::qmp::{Event, Qmp, QmpError};
use sluice_tests::qtest::machine::QtestMachine;
use sluice_tests::qtest::pci::{Allocator, Bar, ENABLE_ALL, Function};
use tempfile::TempDir;

use super::process::program;

pub(super) const LIMIT: Duration = Duration::from_secs(60);
pub(super) const SECTOR: usize = 512;
/// The socket of a second monitor, for an operator whose command waits.
const MONITOR: &str = "monitor";
/// What an image of a target holds before.
pub(super) const FILLER: u8 = 0x5a;
/// Of every image.
pub(super) const SECTORS: u64 = 8192;

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
pub(super) enum Disk {
    Ide,
    Virtio,
}

impl Disk {
    pub(super) const BOTH: [Self; 2] = [Self::Ide, Self::Virtio];

    /// The name of its node, of its image and of its mirror.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ide => "ide",
            Self::Virtio => "virtio",
        }
    }

    pub(super) fn copy(self) -> String {
        format!("{}-copy", self.name())
    }
}

pub(super) struct Guest {
    pub(super) machine: QtestMachine,
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
    pub(super) fn start() -> Self {
        Self::start_with(&[], Disk::name)
    }

    /// Starts the machine with more arguments, before its devices, and with its devices on these nodes.
    pub(super) fn start_with(more: &[(&str, &str)], root: impl Fn(Disk) -> &'static str) -> Self {
        Self::start_by(&program(), more, root)
    }

    /// The same by another program, which becomes the machine's.
    pub(super) fn start_by(
        program: &str,
        more: &[(&str, &str)],
        root: impl Fn(Disk) -> &'static str,
    ) -> Self {
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
        let ide_device = format!("ide-hd,drive={},bus=ide.0,id=dev-ide", root(Disk::Ide));
        let virtio_device = format!(
            "virtio-blk-pci,drive={},iothread=io0,addr={}.0,id=dev-virtio",
            root(Disk::Virtio),
            virtio::DEVICE
        );
        let second = directory.path().join(MONITOR);
        let second = format!("unix:{},server=on,wait=off", second.display());
        let nodes = [
            ("-object", "iothread,id=io0"),
            ("-qmp", &second),
            ("-blockdev", &ide),
            ("-blockdev", &virtio),
        ];
        let devices = [("-device", &*ide_device), ("-device", &virtio_device)];
        let arguments = (nodes.iter().chain(more).chain(&devices))
            .flat_map(|(option, value)| [*option, *value]);
        let mut machine = QtestMachine::start(program, arguments).unwrap();
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
        let length = u32::try_from(SECTOR).unwrap();
        table.extend((length | ide::END_OF_TABLE).to_le_bytes());
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

    pub(super) fn begin_write(&mut self, disk: Disk, sector: u64, data: &[u8; SECTOR]) {
        match disk {
            Disk::Ide => self.begin_ide(ide::WRITE_DMA, sector, Some(data)),
            Disk::Virtio => self.begin_virtio(virtio::OUT, sector, data),
        }
    }

    /// Whether what was begun has ended; it must have succeeded then.
    pub(super) fn has_ended(&mut self, disk: Disk) -> bool {
        let outcome = self.outcome(disk);
        assert_ne!(outcome, Some(false), "{disk:?}: the guest saw an error");
        outcome.is_some()
    }

    /// Whether what was begun has succeeded, once it has ended.
    pub(super) fn outcome(&mut self, disk: Disk) -> Option<bool> {
        let qtest = &mut self.machine.qtest;
        match disk {
            Disk::Ide => {
                let drive = qtest.in8(ide::CONTROL).unwrap();
                let transfer = qtest.in8(self.bus_master + ide::BM_STATUS).unwrap();
                if drive & ide::BUSY != 0 || transfer & ide::ACTIVE != 0 {
                    return None;
                }
                qtest.in8(ide::COMMAND).unwrap();
                Some(drive & ide::ERROR == 0)
            }
            Disk::Virtio => {
                if qtest.read16(virtio::USED + 2).unwrap() != self.made {
                    return None;
                }
                Some(qtest.read8(virtio::ANSWER).unwrap() == 0)
            }
        }
    }

    pub(super) fn wait(&mut self, disk: Disk) {
        while !self.has_ended(disk) {}
    }

    pub(super) fn write(&mut self, disk: Disk, sector: u64, data: &[u8; SECTOR]) {
        self.begin_write(disk, sector, data);
        self.wait(disk);
    }

    pub(super) fn trim(&mut self, disk: Disk, sector: u64, count: u16) {
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

    pub(super) fn flush(&mut self, disk: Disk) {
        match disk {
            Disk::Ide => self.begin_ide(ide::FLUSH_CACHE, 0, None),
            Disk::Virtio => self.begin_virtio(virtio::FLUSH, 0, &[]),
        }
        self.wait(disk);
    }

    /// Begins a reset of the device; what is on its way is held by the test.
    pub(super) fn begin_reset(&mut self, disk: Disk) {
        match disk {
            Disk::Ide => self.out(ide::CONTROL, ide::SOFT_RESET),
            Disk::Virtio => {
                let at = self.common + virtio::STATUS;
                self.machine.qtest.write8(at, 0).unwrap();
            }
        }
    }

    pub(super) fn end_reset(&mut self, disk: Disk) {
        match disk {
            Disk::Ide => {
                self.out(ide::CONTROL, 0);
                while self.machine.qtest.in8(ide::CONTROL).unwrap() & ide::BUSY != 0 {}
            }
            Disk::Virtio => self.bring_up(),
        }
    }

    pub(super) fn execute(&mut self, command: &str, arguments: &Value) -> Value {
        self.machine.qmp.execute(command, arguments).unwrap()
    }

    /// Adds a target that the test can hold, with these rules of errors.
    pub(super) fn add_target(&mut self, disk: Disk, more: &Value) {
        let path = self.image(&disk.copy());
        // Full of something else.
        fs::write(
            &path,
            vec![FILLER; SECTOR * usize::try_from(SECTORS).unwrap()],
        )
        .unwrap();
        let file = json!({"driver": "file", "filename": path, "discard": "unmap"});
        let mut node = json!({"driver": "blkdebug", "node-name": disk.copy(), "image": file, "discard": "unmap"});
        let members = node.as_object_mut().unwrap();
        members.extend(more.as_object().unwrap().clone());
        self.execute("blockdev-add", &node);
    }

    /// Begins a full mirror of the disk onto its target, as a job of the disk's name, with more arguments.
    pub(super) fn begin_mirror(&mut self, disk: Disk, more: &Value) -> Result<Value, QmpError> {
        let mut arguments = json!({
            "device": disk.name(), "target": disk.copy(), "job-id": disk.name(), "sync": "full"
        });
        let members = arguments.as_object_mut().unwrap();
        members.extend(more.as_object().unwrap().clone());
        self.machine.qmp.execute("blockdev-mirror", &arguments)
    }

    /// Mirrors the disk until that is ready.
    pub(super) fn mirror(&mut self, disk: Disk, mode: &str) {
        let more = json!({"copy-mode": mode, "on-target-error": "ignore"});
        self.begin_mirror(disk, &more).unwrap();
        self.wait_job(disk, "BLOCK_JOB_READY");
    }

    /// Waits for an event of the disk's job.
    pub(super) fn wait_job(&mut self, disk: Disk, event: &str) -> Event {
        let qmp = &self.machine.qmp;
        qmp.wait_job_event(event, disk.name(), LIMIT).unwrap()
    }

    /// Waits until the disk's job has come to this status.
    pub(super) fn wait_status(&mut self, disk: Disk, status: &str) {
        let wanted = |event: &Event| {
            event.event == "JOB_STATUS_CHANGE"
                && event.text("id") == disk.name()
                && event.text("status") == status
        };
        let qmp = &self.machine.qmp;
        qmp.wait_event(status, LIMIT, wanted).unwrap();
    }

    pub(super) fn wait_completed(&mut self, disk: Disk) {
        let completed = self.wait_job(disk, "BLOCK_JOB_COMPLETED");
        assert!(completed.data.get("error").is_none(), "{completed:?}");
    }

    /// Has the ready mirror pivot; the images are the same then.
    pub(super) fn pivot(&mut self, disk: Disk) {
        let job = json!({"device": disk.name()});
        self.execute("block-job-complete", &job);
        self.wait_completed(disk);
        assert!(self.roots().contains(&disk.copy()));
        let same = self.bytes(disk.name()) == self.bytes(&disk.copy());
        assert!(same, "{disk:?}: the images differ");
    }

    /// Holds the next event of a target.
    pub(super) fn hold(&mut self, disk: Disk, event: &str) {
        self.hold_at(&disk.copy(), event);
    }

    pub(super) fn wait_held(&mut self, disk: Disk) {
        self.wait_held_at(&disk.copy());
    }

    pub(super) fn let_go(&mut self, disk: Disk) {
        self.let_go_at(&disk.copy());
    }

    /// Holds the next event of a node.
    pub(super) fn hold_at(&mut self, node: &str, event: &str) {
        let at = json!({"node-name": node, "event": event, "tag": "held"});
        self.execute("x-debug-break", &at);
    }

    pub(super) fn wait_held_at(&mut self, node: &str) {
        let at = json!({"node-name": node, "tag": "held"});
        self.execute("x-debug-wait-break", &at);
    }

    pub(super) fn let_go_at(&mut self, node: &str) {
        let at = json!({"node-name": node, "tag": "held"});
        self.execute("x-debug-resume", &at);
    }

    /// A second client of the machine.
    pub(super) fn second_monitor(&self) -> Qmp {
        Qmp::connect(&self.image(MONITOR), LIMIT).unwrap()
    }

    /// The node that a disk of the guest stands on now.
    pub(super) fn roots(&mut self) -> Vec<String> {
        let disks = self.execute("query-block", &json!({}));
        let disks = disks.as_array().unwrap().iter();
        disks
            .filter_map(|disk| Some(disk["inserted"]["node-name"].as_str()?.to_owned()))
            .collect()
    }

    pub(super) fn image(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(super) fn bytes(&self, name: &str) -> Vec<u8> {
        fs::read(self.image(name)).unwrap()
    }

    /// The record in the first sector of an image.
    pub(super) fn record(&self, name: &str) -> u64 {
        u64::from_le_bytes(self.bytes(name)[..8].try_into().unwrap())
    }

    pub(super) fn end(self) {
        self.end_and_keep();
    }

    /// Ends the machine, unless it has ended, and keeps its images.
    pub(super) fn end_and_keep(self) -> TempDir {
        assert_eq!(self.machine.end().unwrap(), Some(0));
        self.directory
    }
}
