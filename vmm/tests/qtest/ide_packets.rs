//! The packet commands of a CD-ROM drive as the machine serves them, through the data register and by DMA: undisturbed,
//! in a drained section, taken back there, and reset while the host has them.

use super::ide_drives::*;

/// The drive is the slave; sections are held by a disk of the other channel.
const DRIVE: Place = SLAVE;
const HOLDER: Place = SECOND;

const BLOCK: usize = 2048;

const DEVICE_RESET: u8 = 0x08;
const PACKET: u8 = 0xa0;
const BY_DMA: u8 = 1;
/// A byte count limit larger than any answer here.
const ROOMY: [u8; 2] = [0xfe, 0xff];
/// What memory holds where nothing was put.
const UNTOUCHED: u8 = 0xee;
/// Bytes of memory that the bus master is given.
const ROOM: usize = 0x1000;

const REQUEST_SENSE: &[u8] = &[0x03, 0, 0, 0, 18];

/// What a packet asks of the drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asks {
    /// No data.
    Nothing,
    /// Data that the drive knows by itself.
    Reply,
    /// Block 5 of the disc.
    Read,
    /// What it does not have.
    Refused,
}

/// Each operation of the drive, and one that nothing has.
const PACKETS: &[(Asks, &[u8])] = &[
    (Asks::Nothing, &[0x00]),
    (Asks::Reply, REQUEST_SENSE),
    (Asks::Reply, &[0x12, 0, 0, 0, 36]),
    (Asks::Reply, &[0x1a, 0, 0x2a, 0, 64]),
    // START STOP UNIT: start; PREVENT ALLOW MEDIUM REMOVAL, both.
    (Asks::Nothing, &[0x1b, 0, 0, 0, 1]),
    (Asks::Nothing, &[0x1e, 0, 0, 0, 1]),
    (Asks::Nothing, &[0x1e, 0, 0, 0, 0]),
    (Asks::Reply, &[0x25]),
    (Asks::Read, READ_BLOCK_5),
    (Asks::Nothing, &[0x2b, 0, 0, 0, 0, 5]),
    (Asks::Reply, &[0x43, 0, 0, 0, 0, 0, 0, 0, 20]),
    (Asks::Reply, &[0x46, 0, 0, 0, 0, 0, 0, 1, 0]),
    (Asks::Reply, &[0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8]),
    (Asks::Reply, &[0x51, 0, 0, 0, 0, 0, 0, 0, 34]),
    (Asks::Reply, &[0x5a, 0, 0x2a, 0, 0, 0, 0, 0, 64]),
    (Asks::Read, &[0xa8, 0, 0, 0, 0, 5, 0, 0, 0, 1]),
    // READ DVD STRUCTURE, of what is no DVD.
    (Asks::Refused, &[0xad, 0, 0, 0, 0, 0, 0, 0, 8]),
    (Asks::Nothing, &[0xbb, 0, 0xff, 0xff]),
    (Asks::Reply, &[0xbd, 0, 0, 0, 0, 0, 0, 0, 0, 8]),
    // READ CD: the user data.
    (Asks::Read, &[0xbe, 0, 0, 0, 0, 5, 0, 0, 1, 0x10]),
    (Asks::Refused, &[0xff]),
];
const READ_BLOCK_5: &[u8] = &[0x28, 0, 0, 0, 0, 5, 0, 0, 1];

/// What a command came to: its data, or sense key, code and qualifier.
type Answer = Result<Vec<u8>, (u8, u8, u8)>;

fn blocks(first: u64, count: u64) -> Vec<u8> {
    (first * 4..(first + count) * 4).flat_map(stamp).collect()
}

struct Disc {
    drives: Drives,
}

impl Disc {
    fn start() -> Self {
        Self {
            drives: Drives::with("ide-cd"),
        }
    }

    /// Gives a packet, and starts the bus master if the data goes by it.
    fn give(&mut self, packet: &[u8], by_dma: bool, limit: [u8; 2]) {
        let drives = &mut self.drives;
        let registers = drives.bus_master + DRIVE.bus_master;
        if by_dma {
            let length = u32::try_from(ROOM).unwrap() | END_OF_TABLE;
            let table = [BUFFER.to_le_bytes(), length.to_le_bytes()].concat();
            let qtest = &mut drives.machine.qtest;
            qtest.write(BUFFER.into(), &[UNTOUCHED; ROOM]).unwrap();
            qtest.write(TABLE.into(), &table).unwrap();
            qtest.out8(registers, 0).unwrap();
            qtest.out8(registers + BM_STATUS, INTERRUPT).unwrap();
            qtest.out32(registers + BM_TABLE, TABLE).unwrap();
        }
        drives.put(DRIVE, register::DEVICE, DRIVE.select);
        drives.put(DRIVE, register::FEATURES, u8::from(by_dma) * BY_DMA);
        drives.put(DRIVE, register::LBA_MID, limit[0]);
        drives.put(DRIVE, register::LBA_HIGH, limit[1]);
        drives.put(DRIVE, register::COMMAND, PACKET);
        assert_eq!(drives.status(DRIVE), IDLE | DRQ, "{packet:02x?}");
        let mut bytes = packet.to_vec();
        bytes.resize(12, 0);
        for word in bytes.chunks(2) {
            let word = u16::from_le_bytes([word[0], word[1]]);
            let port = DRIVE.command + register::DATA;
            drives.machine.qtest.out16(port, word).unwrap();
        }
        if by_dma {
            let qtest = &mut drives.machine.qtest;
            qtest.out8(registers, START | TO_MEMORY).unwrap();
        }
    }

    /// The bytes that the drive offers in the data register now.
    fn take_block(&mut self) -> Vec<u8> {
        let drives = &mut self.drives;
        let count = [register::LBA_MID, register::LBA_HIGH].map(|at| drives.get(DRIVE, at));
        let count = usize::from(u16::from_le_bytes(count));
        let port = DRIVE.command + register::DATA;
        let words = (0..count.div_ceil(2)).map(|_| drives.machine.qtest.in16(port).unwrap());
        let mut bytes: Vec<u8> = words.flat_map(u16::to_le_bytes).collect();
        bytes.truncate(count);
        bytes
    }

    /// Waits for the end of a command.
    fn outcome(&mut self, by_dma: bool) -> Answer {
        let mut data = Vec::new();
        loop {
            self.drives.ready(DRIVE);
            let status = self.drives.acknowledge(DRIVE);
            if status & DRQ != 0 {
                data.extend(self.take_block());
                continue;
            }
            if status & ERR != 0 {
                let sense = self.ask(REQUEST_SENSE, false).unwrap();
                return Err((sense[2], sense[12], sense[13]));
            }
            assert_eq!(status, IDLE);
            break;
        }
        if by_dma {
            let qtest = &mut self.drives.machine.qtest;
            qtest.out8(self.drives.bus_master, 0).unwrap();
            data = qtest.read(BUFFER.into(), ROOM).unwrap();
        }
        Ok(data)
    }

    fn ask(&mut self, packet: &[u8], by_dma: bool) -> Answer {
        self.give(packet, by_dma, ROOMY);
        self.outcome(by_dma)
    }

    /// Each answer through the data register.
    fn answers(&mut self) -> Vec<Answer> {
        let packets = PACKETS.iter();
        packets.map(|(_, packet)| self.ask(packet, false)).collect()
    }

    fn reset(&mut self, software: bool) {
        if software {
            self.drives.control(DRIVE, SRST);
            self.drives.control(DRIVE, 0);
        } else {
            self.drives.put(DRIVE, register::COMMAND, DEVICE_RESET);
        }
    }

    /// Waits for the end of a reset, and looks at what it leaves of a packet device.
    fn expect_signature(&mut self, what: &str) {
        let drives = &mut self.drives;
        drives.ready(DRIVE);
        drives.put(DRIVE, register::DEVICE, DRIVE.select);
        let signature = drives.signature(DRIVE);
        assert_eq!(signature[..5], [PASSED, 1, 1, 0x14, 0xeb], "{what}");
        assert_eq!(drives.status(DRIVE), 0, "{what}");
        assert!(!drives.interrupt(DRIVE), "{what}");
        let at = drives.bus_master + BM_STATUS;
        assert_eq!(drives.machine.qtest.in8(at).unwrap() & START, 0, "{what}");
    }

    fn expect_works(&mut self, what: &str) {
        assert_eq!(self.ask(READ_BLOCK_5, false), Ok(blocks(5, 1)), "{what}");
    }
}

/// Whether a command by DMA has brought what it brings through the data register.
fn expect_in_memory(memory: &[u8], answer: &[u8], what: &str) {
    assert_eq!(memory[..answer.len()], *answer, "{what}");
    let rest = &memory[answer.len()..];
    assert!(rest.iter().all(|byte| *byte == UNTOUCHED), "{what}");
}

/// The answers are the same in a section, but what the host or the bus master is needed for begins after it.
#[test]
fn a_disc_drive_does_every_packet_in_a_section_as_outside() {
    let mut disc = Disc::start();
    // Events that are told once.
    disc.answers();
    let answers = disc.answers();
    for ((asks, packet), answer) in PACKETS.iter().zip(&answers) {
        match asks {
            Asks::Nothing => assert_eq!(*answer, Ok(Vec::new()), "{packet:02x?}"),
            Asks::Reply => assert!(answer.as_ref().is_ok_and(|data| !data.is_empty())),
            Asks::Read => assert_eq!(*answer, Ok(blocks(5, 1)), "{packet:02x?}"),
            Asks::Refused => assert_eq!(answer.as_ref().unwrap_err().0, 5, "{packet:02x?}"),
        }
        for drained in [false, true] {
            for by_dma in [false, true] {
                let what = format!("{packet:02x?}, by DMA {by_dma}, drained {drained}");
                let section = drained.then(|| disc.drives.begin_section(HOLDER));
                disc.give(packet, by_dma, ROOMY);
                let waits = match asks {
                    Asks::Read => true,
                    Asks::Reply => by_dma,
                    Asks::Nothing | Asks::Refused => false,
                };
                let found = match section {
                    Some(section) if waits => {
                        disc.drives.expect_busy(DRIVE, BSY | DRDY, &what);
                        if by_dma {
                            let qtest = &mut disc.drives.machine.qtest;
                            let memory = qtest.read(BUFFER.into(), ROOM).unwrap();
                            expect_in_memory(&memory, &[], &what);
                        }
                        disc.drives.end_section(HOLDER, section);
                        disc.outcome(by_dma)
                    }
                    Some(section) => {
                        let found = disc.outcome(by_dma);
                        disc.drives.end_section(HOLDER, section);
                        found
                    }
                    None => disc.outcome(by_dma),
                };
                match (found, answer) {
                    (Ok(memory), Ok(answer)) if by_dma => {
                        expect_in_memory(&memory, answer, &what);
                    }
                    (found, answer) => assert_eq!(found, *answer, "{what}"),
                }
            }
        }
    }
    disc.drives.end();
}

/// What is parked dies with the reset: at once, and nothing comes of it when the section ends.
#[test]
fn packets_in_a_section_are_taken_back() {
    let mut disc = Disc::start();
    for software in [false, true] {
        for (_, packet) in PACKETS {
            for by_dma in [false, true] {
                let what = format!("{packet:02x?}, by DMA {by_dma}, SRST {software}");
                let section = disc.drives.begin_section(HOLDER);
                disc.give(packet, by_dma, ROOMY);
                disc.reset(software);
                disc.expect_signature(&what);
                if by_dma {
                    // What waited for nothing may be there.
                    let qtest = &mut disc.drives.machine.qtest;
                    qtest.write(BUFFER.into(), &[UNTOUCHED; ROOM]).unwrap();
                }
                disc.drives.end_section(HOLDER, section);
                disc.expect_signature(&what);
                if by_dma {
                    let qtest = &mut disc.drives.machine.qtest;
                    let memory = qtest.read(BUFFER.into(), ROOM).unwrap();
                    expect_in_memory(&memory, &[], &what);
                }
                disc.expect_works(&what);
            }
        }
    }
    disc.drives.end();
}

/// What the host has is waited for, in a section and outside.
#[test]
fn a_reset_waits_for_what_the_host_has_of_a_disc() {
    let mut disc = Disc::start();
    for software in [false, true] {
        for drained in [false, true] {
            for (_, packet) in PACKETS.iter().filter(|(asks, _)| *asks == Asks::Read) {
                for by_dma in [false, true] {
                    let what =
                        format!("{packet:02x?}, by DMA {by_dma}, {software}, drained {drained}");
                    disc.drives.hold(DRIVE, "read_aio");
                    disc.give(packet, by_dma, ROOMY);
                    disc.drives.wait_held(DRIVE, "read_aio");
                    let stop = drained.then(|| disc.drives.begin_stop());
                    disc.drives.expect_busy(DRIVE, BSY | DRDY, &what);
                    disc.reset(software);
                    disc.drives.expect_busy(DRIVE, BSY, &what);
                    disc.drives.let_go(DRIVE, "read_aio");
                    disc.expect_signature(&what);
                    if let Some(stop) = stop {
                        disc.drives.end_stop(stop);
                    }
                    disc.expect_signature(&what);
                    disc.expect_works(&what);
                }
            }
        }
    }
    disc.drives.end();
}

/// A read in pieces ends where the guest is, in a section and outside.
#[test]
fn a_reset_ends_the_pieces_of_a_disc() {
    const READ_3: &[u8] = &[0x28, 0, 0, 0, 0, 9, 0, 0, 3];
    let mut disc = Disc::start();
    let piece = u16::try_from(BLOCK).unwrap().to_le_bytes();
    for software in [false, true] {
        for drained in [false, true] {
            // Words of the second piece that are read.
            for words in [0, BLOCK / 4, BLOCK / 2] {
                let what = format!("SRST {software}, drained {drained}, {words}");
                disc.give(READ_3, false, piece);
                disc.drives.ready(DRIVE);
                assert_eq!(disc.drives.acknowledge(DRIVE), IDLE | DRQ, "{what}");
                assert_eq!(disc.take_block(), blocks(9, 1), "{what}");
                while !disc.drives.interrupt(DRIVE) {}
                let section = drained.then(|| disc.drives.begin_section(HOLDER));
                for _ in 0..words {
                    disc.drives.machine.qtest.in16(DRIVE.command).unwrap();
                }
                disc.reset(software);
                if !drained {
                    disc.drives.ready(DRIVE);
                }
                disc.expect_signature(&what);
                if let Some(section) = section {
                    disc.drives.end_section(HOLDER, section);
                }
                disc.expect_signature(&what);
                disc.expect_works(&what);
            }
        }
    }
    disc.drives.end();
}
