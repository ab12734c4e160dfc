//! The driver of the primary master, by programmed I/O (ATA-6: READ and WRITE SECTORS).

use std::time::Instant;

use crate::machine::{LIMIT, Qtest, SECTOR};

const DATA: u16 = 0x1f0;
const STATUS: u16 = 0x1f7;
const ALTERNATE_STATUS: u16 = 0x3f6;
const BUSY: u64 = 0x80;
const DATA_REQUEST: u64 = 0x08;
const ERROR: u64 = 0x01;

pub struct Ide;

impl Ide {
    /// Gives the drive a sector to write.
    pub fn begin_write(qtest: &mut Qtest, sector: u8, byte: u8) {
        Self::command(qtest, sector, 0x30);
        assert_ne!(Self::wait(qtest) & DATA_REQUEST, 0);
        let word = u16::from_le_bytes([byte, byte]);
        for _ in 0..SECTOR / 2 {
            qtest.ask(&format!("outw {DATA:#x} {word:#x}"));
        }
    }

    /// Asks the drive for a sector.
    pub fn begin_read(qtest: &mut Qtest, sector: u8) {
        Self::command(qtest, sector, 0x20);
    }

    /// Waits for the sector and takes it, of which all bytes must be the same; none if the read has failed.
    #[track_caller]
    pub fn take_sector(qtest: &mut Qtest) -> Option<u8> {
        if Self::wait(qtest) & DATA_REQUEST == 0 {
            return None;
        }
        let words: Vec<u64> = (0..SECTOR / 2)
            .map(|_| qtest.number(&format!("inw {DATA:#x}")))
            .collect();
        assert!(words.iter().all(|word| *word == words[0]), "{words:x?}");
        let [low, high, ..] = words[0].to_le_bytes();
        assert_eq!(low, high);
        Some(low)
    }

    fn command(qtest: &mut Qtest, sector: u8, command: u8) {
        let registers = [
            (0x1f6, 0xe0),
            (0x1f2, 1),
            (0x1f3, sector),
            (0x1f4, 0),
            (0x1f5, 0),
        ];
        for (port, value) in registers {
            qtest.ask(&format!("outb {port:#x} {value:#x}"));
        }
        qtest.ask(&format!("outb {STATUS:#x} {command:#x}"));
    }

    pub fn is_busy(qtest: &mut Qtest) -> bool {
        qtest.number(&format!("inb {ALTERNATE_STATUS:#x}")) & BUSY != 0
    }

    /// Waits for the end of a command, which must be a good one.
    #[track_caller]
    pub fn finish(qtest: &mut Qtest) {
        assert!(Self::ends_well(qtest));
    }

    /// Waits for the end of a command; whether it was a good one.
    #[track_caller]
    pub fn ends_well(qtest: &mut Qtest) -> bool {
        Self::wait(qtest) & ERROR == 0
    }

    #[track_caller]
    fn wait(qtest: &mut Qtest) -> u64 {
        let began = Instant::now();
        while Self::is_busy(qtest) {
            assert!(began.elapsed() < LIMIT, "busy for ever");
        }
        qtest.number(&format!("inb {STATUS:#x}"))
    }
}
