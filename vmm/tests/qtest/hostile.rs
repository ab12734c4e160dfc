//! Guests that mean harm: whatever they write to a disk's registers and tables, the process lives, the monitor answers,
//! the disk can be reset and used, and a disk beside it does what it is told all the while.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use serde_json::json;
use sluice_tests::qtest::machine::QtestMachine;
use sluice_tests::qtest::pci::Function;

use super::ide_drives::*;
use super::process::SLUICE;
use super::virtio::{
    AVAILABLE, DESCRIPTORS, DISCARD, IN, IN_TABLE, INDIRECT, INDIRECT_DESC, NEXT, OUT, REQUESTS,
    USED, Virtio, WRITE, WRITE_ZEROES, common,
};

/// A disk on the second channel, used through the data register.
struct Bystander {
    image: PathBuf,
    turn: u8,
}

impl Bystander {
    fn new(image: PathBuf) -> Self {
        Self { image, turn: 0 }
    }

    /// Writes a sector, and finds it in the disk and in its image.
    fn check(&mut self, machine: &mut QtestMachine, what: &str) {
        const PORTS: u64 = SECOND.command;
        self.turn = self.turn.wrapping_add(1);
        let sector = 200 + self.turn % 16;
        for code in [0x30, READ_SECTORS] {
            let qtest = &mut machine.qtest;
            for (register, value) in [(6, LBA), (2, 1), (3, sector), (4, 0), (5, 0), (7, code)] {
                qtest.out8(PORTS + register, value).unwrap();
            }
            while qtest.in8(SECOND.control).unwrap() & (BSY | DRQ) != DRQ {}
            for _ in 0..SECTOR / 4 {
                let word = u32::from_le_bytes([self.turn; 4]);
                if code == READ_SECTORS {
                    assert_eq!(qtest.in32(PORTS).unwrap(), word, "{what}");
                } else {
                    qtest.out32(PORTS, word).unwrap();
                }
            }
            while qtest.in8(SECOND.control).unwrap() & BSY != 0 {}
            assert_eq!(qtest.in8(PORTS + 7).unwrap(), IDLE, "{what}");
        }
        let mut stored = [0; SECTOR];
        let file = fs::File::open(&self.image).unwrap();
        let at = u64::from(sector) * SECTOR as u64;
        file.read_exact_at(&mut stored, at).unwrap();
        assert_eq!(stored, [self.turn; SECTOR], "{what}");
        machine.qmp.execute("query-status", &json!({})).unwrap();
    }
}

/// The machine's memory ends here.
const MEMORY: u64 = 128 << 20;
/// Nobody is there.
const HOLE: u32 = 0xd000_0000;
/// Registers are there: the I/O APIC's.
const REGISTERS: u32 = 0xfec0_0000;

/// A descriptor table of the bus master: what is wrong with it, where it is, and its entries.
type Table = (&'static str, u32, Vec<(u32, u32)>);

fn tables() -> Vec<Table> {
    let last = u32::try_from(MEMORY).unwrap() - 512;
    let endless = vec![(BUFFER, 2); 8192];
    let mut empty = vec![(BUFFER, 0); 3];
    empty.push((BUFFER, END_OF_TABLE));
    vec![
        ("a table in registers", REGISTERS, vec![]),
        ("a table where nobody is", HOLE, vec![]),
        ("a table that wraps at 4 GiB", 0xffff_fffc, vec![]),
        ("a table across the end of memory", last + 508, vec![]),
        (
            "buffers in registers",
            TABLE,
            vec![(REGISTERS, 512 | END_OF_TABLE)],
        ),
        (
            "buffers where nobody is",
            TABLE,
            vec![(HOLE, 512 | END_OF_TABLE)],
        ),
        (
            "a buffer across the end of memory",
            TABLE,
            vec![(last, 0x8000 | END_OF_TABLE)],
        ),
        (
            "a buffer that wraps at 4 GiB",
            TABLE,
            vec![(0xffff_fffe, 0x1000 | END_OF_TABLE)],
        ),
        (
            "odd buffers",
            TABLE,
            vec![(BUFFER + 1, 0x1ff), (BUFFER + 3, 1 | END_OF_TABLE)],
        ),
        (
            "a good buffer before a bad one",
            TABLE,
            vec![(BUFFER, 512), (HOLE, END_OF_TABLE)],
        ),
        ("a table without an end", TABLE, endless),
        ("more than is wanted", TABLE, empty),
        (
            "the table as a buffer",
            TABLE,
            vec![(TABLE, 0), (TABLE, 0), (TABLE, END_OF_TABLE)],
        ),
    ]
}

/// READ, WRITE and TRIM by tables that make no sense: each ends, and a write or trim of nothing that is memory changes
/// nothing.
#[test]
fn tables_of_a_hostile_guest_harm_nobody() {
    let mut drives = Drives::start();
    let mut bystander = Bystander::new(drives.image(SECOND));
    for (what, at, table) in tables() {
        for (code, count) in [
            (0xc8, 1),
            (0xc8, 0),
            (0x25, 255),
            (0xca, 1),
            (0xca, 0),
            (0x35, 255),
            (0x06, 1),
            (0x06, 8),
        ] {
            let what = format!("{what}, command {code:#x}, {count} sectors");
            let registers = drives.bus_master + MASTER.bus_master;
            let bytes: Vec<u8> = table
                .iter()
                .flat_map(|(base, length)| [base.to_le_bytes(), length.to_le_bytes()].concat())
                .collect();
            let qtest = &mut drives.machine.qtest;
            qtest.write(BUFFER.into(), &[0; 0x1000]).unwrap();
            if !bytes.is_empty() {
                qtest.write(at.into(), &bytes).unwrap();
            }
            qtest.out8(registers, 0).unwrap();
            qtest.out8(registers + BM_STATUS, INTERRUPT | 2).unwrap();
            qtest.out32(registers + BM_TABLE, at).unwrap();
            drives.address(MASTER, Address::Lba48, 4000, count);
            drives.put(MASTER, register::FEATURES, 1);
            drives.put(MASTER, register::COMMAND, code);
            let to_memory = matches!(code, 0xc8 | 0x25);
            let direction = if to_memory { TO_MEMORY } else { 0 };
            let qtest = &mut drives.machine.qtest;
            qtest.out8(registers, START | direction).unwrap();
            bystander.check(&mut drives.machine, &what);
            assert_eq!(drives.ready(MASTER) & DRQ, 0, "{what}");
            drives.get(MASTER, register::STATUS);
            drives.machine.qtest.out8(registers, 0).unwrap();
            // A range of no sectors trims nothing, and a table that names no memory writes nothing.
            if !to_memory && (table.is_empty() || table[0].0 >= HOLE) {
                let left = drives.on_disk(MASTER, 4000);
                assert_eq!(left, stamp(4000), "{what}");
            }
            // The drive goes on as if nothing had been.
            drives.control(MASTER, SRST);
            drives.control(MASTER, 0);
            drives.expect_signature(MASTER, &what);
            let read = case(READ_SECTORS, Address::Lba28, Kind::Read);
            drives.give(MASTER, read, 7);
            drives.expect_end(MASTER, read, 7);
        }
        // What a write has changed.
        let image = fs::File::options()
            .write(true)
            .open(drives.image(MASTER))
            .unwrap();
        for sector in 4000..4300 {
            image
                .write_all_at(&stamp(sector), sector * SECTOR as u64)
                .unwrap();
        }
    }
    for sector in (0..4000).chain(4300..SECTORS) {
        assert_eq!(drives.on_disk(MASTER, sector), stamp(sector));
    }
    drives.end();
}

/// Every command code, register and width at a drive that is busy: it does what it was told before.
#[test]
fn a_busy_drive_takes_no_orders() {
    let mut drives = Drives::start();
    let mut bystander = Bystander::new(drives.image(SECOND));
    for (code, kind, event) in [
        (READ_SECTORS, Kind::Read, "read_aio"),
        (0xca, Kind::WriteDma, "write_aio"),
    ] {
        let command = case(code, Address::Lba28, kind);
        drives.hold(MASTER, event);
        drives.give(MASTER, command, 3000);
        drives.wait_held(MASTER, event);
        for value in 0..=u8::MAX {
            for register in (1..8).chain([register::COMMAND]) {
                drives.put(MASTER, register, value);
            }
            let port = MASTER.command;
            let qtest = &mut drives.machine.qtest;
            qtest.out32(port, u32::from_le_bytes([value; 4])).unwrap();
            qtest.out16(port + 6, u16::from(value)).unwrap();
            qtest.out32(port + 4, u32::from(value)).unwrap();
            qtest.in32(port + 5).unwrap();
            assert_eq!(drives.status(MASTER), BSY | DRDY, "{code:#x} {value:#x}");
        }
        bystander.check(&mut drives.machine, "a busy drive");
        drives.let_go(MASTER, event);
        drives.expect_end(MASTER, command, 3000);
    }
    assert_eq!(drives.on_disk(SLAVE, 3000), stamp(3000));
    drives.end();
}

/// Every configuration register of every function, at every width and alignment.
#[test]
fn configuration_writes_of_a_hostile_guest_harm_nobody() {
    /// The doubleword of the command register, the BARs and the interrupt line.
    const RESTORED: [u8; 8] = [0x04, 0x10, 0x14, 0x18, 0x1c, 0x20, 0x24, 0x3c];
    const ADDRESS: u64 = 0xcf8;
    const DATA: u64 = 0xcfc;
    let mut drives = Drives::start();
    let mut bystander = Bystander::new(drives.image(SECOND));
    for device in 0..32_u8 {
        for index in 0..8 {
            let function = Function::new(device, index);
            let qtest = &mut drives.machine.qtest;
            let id = function.read(qtest, 0).unwrap();
            if id == u32::MAX && (device, index) != (31, 7) {
                continue;
            }
            let kept = RESTORED.map(|at| function.read(qtest, at).unwrap());
            let class = function.read(qtest, 8).unwrap();
            for value in [u32::MAX, 0x5aa5_5aa5, 0] {
                for at in 0..=u8::MAX {
                    let selector = 1 << 31 | u32::from(device) << 11 | u32::from(index) << 8;
                    qtest.out32(ADDRESS, selector | u32::from(at)).unwrap();
                    let lane = DATA + u64::from(at & 3);
                    qtest.out8(lane, value.to_le_bytes()[0]).unwrap();
                    qtest.out16(lane, value.to_le_bytes()[0].into()).unwrap();
                    qtest.out32(lane, value).unwrap();
                    qtest.in16(lane).unwrap();
                    qtest.in32(lane).unwrap();
                    // The address register itself, in parts; what lies at its second byte resets the machine.
                    for part in [0, 2, 3] {
                        qtest.out8(ADDRESS + part, 0xff).unwrap();
                    }
                    qtest.out16(ADDRESS + 2, 0xffff).unwrap();
                }
                assert_eq!(function.read(qtest, 0).unwrap(), id);
                assert_eq!(function.read(qtest, 8).unwrap(), class);
            }
            for (at, value) in RESTORED.into_iter().zip(kept) {
                function.write(qtest, at, value).unwrap();
            }
            let what = format!("function {device}.{index}");
            bystander.check(&mut drives.machine, &what);
        }
    }
    let dma = case(0xc8, Address::Lba28, Kind::ReadDma);
    drives.give(MASTER, dma, 9);
    drives.expect_end(MASTER, dma, 9);
    drives.end();
}

/// Every port of the board at every width, but those that end or reset the machine, are the address of all others, or
/// are the bystander's.
#[test]
fn ports_of_the_board_take_anything() {
    /// Of devices of the ISA bus, and of the board's own.
    const PORTS: [std::ops::Range<u64>; 2] = [0..0xd00, 0xae00..0xb100];
    /// The keyboard controller's reset, the bystander's disk, the panic device, the power, the address and data of
    /// configuration space with the reset register between them.
    const SPARED: [std::ops::Range<u64>; 6] = [
        0x61..0x65,
        0x16d..0x178,
        0x373..0x377,
        0x502..0x507,
        0x5fd..0x608,
        0xcf5..0xd00,
    ];
    let mut drives = Drives::start();
    let mut bystander = Bystander::new(drives.image(SECOND));
    for value in [0_u32, u32::MAX, 0x5aa5_c33c] {
        for port in PORTS.into_iter().flatten() {
            if SPARED.iter().any(|spared| spared.contains(&port)) {
                continue;
            }
            let [a, b, ..] = value.to_le_bytes();
            let qtest = &mut drives.machine.qtest;
            qtest.out8(port, a).unwrap();
            qtest.out16(port, u16::from_le_bytes([a, b])).unwrap();
            qtest.out32(port, value).unwrap();
            qtest.in8(port).unwrap();
            qtest.in16(port).unwrap();
            qtest.in32(port).unwrap();
            if port % 0x100 == 0 {
                bystander.check(&mut drives.machine, &format!("port {port:#x}, {value:#x}"));
            }
        }
        bystander.check(&mut drives.machine, &format!("ports of {value:#x}"));
        drives.control(MASTER, SRST);
        drives.control(MASTER, 0);
        drives.ready(MASTER);
        drives.expect_signature(MASTER, "all ports");
        let read = case(READ_SECTORS, Address::Lba28, Kind::Read);
        drives.give(MASTER, read, 7);
        drives.expect_end(MASTER, read, 7);
    }
    drives.end();
}

/// A virtio disk whose driver means harm, and a disk beside it.
struct Victim {
    virtio: Virtio,
    bystander: Bystander,
}

impl Victim {
    fn start(more: &str, features: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let content: Vec<u8> = (0..SECTORS).flat_map(stamp).collect();
        let images = ["disk", "other"].map(|name| directory.path().join(name));
        let file = |node: &str, image: &PathBuf| {
            fs::write(image, &content).unwrap();
            format!(
                "file,node-name={node},discard=unmap,filename={}",
                image.display()
            )
        };
        let arguments = [
            "-object",
            "iothread,id=io0",
            "-blockdev",
            &file("disk", &images[0]),
            "-blockdev",
            &file("other", &images[1]),
            "-device",
            &format!("virtio-blk-pci,drive=disk,addr=4.0{more}"),
            "-device",
            "ide-hd,drive=other,bus=ide.1",
        ];
        let machine = QtestMachine::start(SLUICE, arguments).unwrap();
        let [_, other] = images;
        Self {
            virtio: Virtio::over(machine, directory, 4, features, false),
            bystander: Bystander::new(other),
        }
    }

    fn status(&mut self) -> u8 {
        let at = self.virtio.common + common::STATUS;
        self.virtio.machine.qtest.read8(at).unwrap()
    }

    /// A header, and a chain of such descriptors from 0 on, which is offered.
    fn offer(&mut self, kind: u32, sector: u64, chain: &[(u64, u32, u16, u16)]) {
        let mut header = kind.to_le_bytes().to_vec();
        header.extend([0; 4]);
        header.extend(sector.to_le_bytes());
        self.virtio.machine.qtest.write(REQUESTS, &header).unwrap();
        self.virtio.machine.qtest.write8(STATUS, 0xff).unwrap();
        self.lay_out(DESCRIPTORS, chain);
        self.virtio.offer(0);
        self.virtio.ring();
    }

    fn lay_out(&mut self, table: u64, chain: &[(u64, u32, u16, u16)]) {
        for (at, (address, length, flags, next)) in (table..).step_by(16).zip(chain) {
            self.virtio.descriptor(at, *address, *length, *flags, *next);
        }
    }

    /// Waits until the device has answered, or has asked for a reset; whichever it is, it works after one.
    fn expect_over(&mut self, what: &str, expected: Over) {
        const NEEDS_RESET: u8 = 0x40;
        self.bystander.check(&mut self.virtio.machine, what);
        let over = loop {
            if self.status() & NEEDS_RESET != 0 {
                break Over::Broken;
            }
            if self.virtio.used() == self.virtio.made {
                break Over::Answered(self.virtio.machine.qtest.read8(STATUS).unwrap());
            }
        };
        assert_eq!(over, expected, "{what}");
        self.virtio.bring_up(false);
        let read = self.virtio.request(IN, 1, &[0; SECTOR]);
        assert_eq!(read, (0, stamp(1).to_vec()), "{what}");
        self.bystander.check(&mut self.virtio.machine, what);
    }

    /// Has the device live with a queue at such places, written in their order, and no features but what it needs.
    fn place_rings(&mut self, places: &[(u64, u64)]) {
        let common = self.virtio.common;
        let qtest = &mut self.virtio.machine.qtest;
        qtest.write8(common + common::STATUS, 0).unwrap();
        while qtest.read8(common + common::STATUS).unwrap() != 0 {}
        qtest.write8(common + common::STATUS, 3).unwrap();
        qtest
            .write32(common + common::DRIVER_FEATURE_SELECT, 1)
            .unwrap();
        qtest.write32(common + common::DRIVER_FEATURE, 1).unwrap();
        qtest.write8(common + common::STATUS, 11).unwrap();
        for (register, address) in places {
            qtest.write64(common + register, *address).unwrap();
        }
        qtest.write16(common + common::QUEUE_SIZE, 8).unwrap();
        qtest.write16(common + common::QUEUE_ENABLE, 1).unwrap();
        qtest.write8(common + common::STATUS, 15).unwrap();
    }

    fn expect_untouched(&self) {
        let image = fs::read(self.virtio.directory.path().join("disk")).unwrap();
        let content: Vec<u8> = (0..SECTORS).flat_map(stamp).collect();
        assert!(image == content, "the disk was changed");
    }
}

/// How it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Over {
    /// The device asks for a reset.
    Broken,
    /// With this status.
    Answered(u8),
}
const FAILED: Over = Over::Answered(1);
const UNSUPPORTED: Over = Over::Answered(2);

const STATUS: u64 = REQUESTS + 0x800;
const DATA: u64 = REQUESTS + 0x1000;
const HEAD: (u64, u32, u16, u16) = (REQUESTS, 16, NEXT, 1);
const TAIL: (u64, u32, u16, u16) = (STATUS, 1, WRITE, 0);

#[test]
fn chains_of_a_hostile_driver_harm_nobody() {
    for more in ["", ",iothread=io0"] {
        let mut victim = Victim::start(more, INDIRECT_DESC | 1 << 13 | 1 << 14);
        let data = |address: u64, length: u32| [HEAD, (address, length, NEXT, 2), TAIL];
        let whole = u32::MAX;
        for (what, kind, chain) in [
            ("an address that wraps", OUT, data(u64::MAX - 15, 512)),
            (
                "an address that ends at 2^64",
                OUT,
                data(u64::MAX - 511, 512),
            ),
            ("a length beyond memory", OUT, data(DATA, whole)),
            (
                "a buffer across the end of memory",
                OUT,
                data(MEMORY - 256, 512),
            ),
            ("a buffer in registers", OUT, data(REGISTERS.into(), 512)),
            (
                "a buffer in its own registers",
                OUT,
                data(victim.virtio.common, 512),
            ),
        ] {
            victim.offer(kind, 0, &chain);
            victim.expect_over(what, Over::Broken);
        }
        let both = [
            HEAD,
            (0, whole & !511, NEXT, 2),
            (0, whole & !511, NEXT, 3),
            TAIL,
        ];
        victim.offer(OUT, 0, &both);
        victim.expect_over("lengths whose sum overflows", Over::Broken);
        // Requests that are none.
        for (what, kind, sector, chain, over) in [
            ("half a sector", OUT, 0, data(DATA, 256), FAILED),
            ("a sector at 2^64", OUT, u64::MAX, data(DATA, 512), FAILED),
            (
                "a byte at 2^64",
                OUT,
                u64::MAX / 512,
                data(DATA, 512),
                FAILED,
            ),
            (
                "a byte at 2^63",
                OUT,
                u64::MAX / 1024,
                data(DATA, 512),
                FAILED,
            ),
            ("half a range", DISCARD, 0, data(DATA, 15), UNSUPPORTED),
            (
                "ranges without number",
                DISCARD,
                0,
                data(DATA, 16 * 33),
                UNSUPPORTED,
            ),
            (
                "zeroes without number",
                WRITE_ZEROES,
                0,
                data(DATA, 16 * 33),
                UNSUPPORTED,
            ),
        ] {
            victim.offer(kind, sector, &chain);
            victim.expect_over(what, over);
        }
        for (sector, sectors) in [(u64::MAX, 1), (u64::MAX / 512, 8), (0, whole), (8191, 2)] {
            for kind in [DISCARD, WRITE_ZEROES] {
                let mut range = sector.to_le_bytes().to_vec();
                range.extend(sectors.to_le_bytes());
                range.extend([0; 4]);
                victim.virtio.machine.qtest.write(DATA, &range).unwrap();
                victim.offer(kind, 0, &data(DATA, 16));
                victim.expect_over(&format!("{kind} of {sectors} at {sector}"), FAILED);
            }
        }
        victim.expect_untouched();
        victim.virtio.end();
    }
}

#[test]
fn tables_of_a_hostile_driver_harm_nobody() {
    for more in ["", ",iothread=io0"] {
        let mut victim = Victim::start(more, INDIRECT_DESC);
        let entry = INDIRECT;
        let good = [HEAD, (DATA, 512, NEXT, 2), TAIL];
        for (what, table, length, entries) in [
            ("a table in registers", u64::from(REGISTERS), 48, vec![]),
            (
                "a table in its own registers",
                victim.virtio.common,
                48,
                vec![],
            ),
            ("a table where nobody is", u64::from(HOLE), 48, vec![]),
            ("a table across the end of memory", MEMORY - 32, 48, vec![]),
            ("a table that wraps", u64::MAX - 15, 48, vec![]),
            ("a table of nothing", entry, 0, good.to_vec()),
            ("a table of half an entry", entry, 40, good.to_vec()),
            (
                "a table of 2^28 entries",
                entry,
                !15,
                vec![(REQUESTS, 16, NEXT, 0)],
            ),
            (
                "a table that loops",
                entry,
                48,
                vec![HEAD, (DATA, 512, NEXT, 0)],
            ),
            (
                "a table in a table",
                entry,
                48,
                vec![HEAD, (entry, 48, IN_TABLE, 0)],
            ),
            (
                "a table and a next one",
                entry,
                48,
                vec![HEAD, (entry, 48, IN_TABLE | NEXT, 2), TAIL],
            ),
            (
                "an entry beyond its table",
                entry,
                48,
                vec![HEAD, (DATA, 512, NEXT, 3)],
            ),
        ] {
            victim.lay_out(entry, &entries);
            victim.offer(OUT, 0, &[(table, length, IN_TABLE, 0)]);
            victim.expect_over(what, Over::Broken);
        }
        // Together they would be a request.
        let inner = entry + 0x100;
        victim.lay_out(entry, &[HEAD, (inner, 32, IN_TABLE, 0)]);
        victim.lay_out(inner, &[(DATA, 512, NEXT, 1), TAIL]);
        victim.offer(OUT, 0, &[(entry, 32, IN_TABLE, 0)]);
        victim.expect_over("the rest of a request in a table's table", Over::Broken);
        victim.lay_out(entry, &good);
        victim.offer(OUT, 0, &[(entry, 48, IN_TABLE | NEXT, 1), TAIL]);
        victim.expect_over("a chain that goes on behind a table", Over::Broken);
        victim.expect_untouched();
        victim.virtio.end();
    }
}

/// Rings where no memory is, sizes that are none, and registers written at any width in any order.
#[test]
fn registers_of_a_hostile_driver_harm_nobody() {
    for more in ["", ",iothread=io0"] {
        let mut victim = Victim::start(more, 0);
        let common = victim.virtio.common;
        for ring in [
            common::QUEUE_DESC,
            common::QUEUE_DRIVER,
            common::QUEUE_DEVICE,
        ] {
            for place in [
                !0xfff,
                u64::MAX - 15,
                u64::from(REGISTERS),
                u64::from(HOLE),
                common,
                MEMORY - 16,
                MEMORY,
            ] {
                let what = format!("a ring {ring} at {place:#x}");
                let mut places = vec![
                    (common::QUEUE_DESC, DESCRIPTORS),
                    (common::QUEUE_DRIVER, AVAILABLE),
                    (common::QUEUE_DEVICE, USED),
                ];
                places.push((ring, place));
                victim.place_rings(&places);
                victim.virtio.ring();
                victim
                    .virtio
                    .machine
                    .qmp
                    .execute("query-status", &json!({}))
                    .unwrap();
                victim.bystander.check(&mut victim.virtio.machine, &what);
                victim.virtio.bring_up(false);
                let read = victim.virtio.request(IN, 1, &[0; SECTOR]);
                assert_eq!(read, (0, stamp(1).to_vec()), "{what}");
            }
        }
        // The available index is the used ring's flags, which the device writes whenever it looks: it is asked for no
        // doorbells, and there is a request; for doorbells again, and there is none.
        victim.lay_out(DESCRIPTORS, &[HEAD, (DATA, 512, NEXT | WRITE, 2), TAIL]);
        victim
            .virtio
            .machine
            .qtest
            .write(REQUESTS, &[0; 16])
            .unwrap();
        victim
            .virtio
            .machine
            .qtest
            .write(USED - 4, &[0; 64])
            .unwrap();
        victim.place_rings(&[
            (common::QUEUE_DESC, DESCRIPTORS),
            (common::QUEUE_DRIVER, USED - 2),
            (common::QUEUE_DEVICE, USED),
        ]);
        victim.virtio.ring();
        // Nothing that is answered makes up for it.
        victim.virtio.made = u16::MAX;
        victim.expect_over("rings on each other", Over::Broken);
        // Every byte of every structure, at every width; then the doorbells of queues that are not there.
        for value in [0_u64, 1, 0x80, 0xffff, u64::MAX, 0x5a5a_5a5a_5a5a_5a5a] {
            for offset in 0..0x4000_u64 {
                let structures = offset % 0x1000 < 0x48;
                if !structures {
                    continue;
                }
                let at = (common & !0x3fff) + offset;
                let qtest = &mut victim.virtio.machine.qtest;
                let [a, b, c, d, ..] = value.to_le_bytes();
                qtest.write8(at, a).unwrap();
                qtest.write16(at, u16::from_le_bytes([a, b])).unwrap();
                qtest.write32(at, u32::from_le_bytes([a, b, c, d])).unwrap();
                qtest.write64(at, value).unwrap();
                qtest.read16(at).unwrap();
                qtest.read64(at).unwrap();
            }
            let what = format!("registers of {value:#x}");
            victim.bystander.check(&mut victim.virtio.machine, &what);
            victim.virtio.bring_up(false);
            let read = victim.virtio.request(IN, 1, &[0; SECTOR]);
            assert_eq!(read, (0, stamp(1).to_vec()), "{what}");
        }
        victim.expect_untouched();
        victim.virtio.end();
    }
}
