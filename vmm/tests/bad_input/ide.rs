//! The disks as a guest's driver sees them: registers, by way of qtest.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::harness::{LIMIT, SECTOR};

/// A qtest session: the test stands where the CPU would.
pub struct Qtest {
    stream: UnixStream,
    answers: BufReader<UnixStream>,
}

impl Qtest {
    pub fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let answers = BufReader::new(stream.try_clone().unwrap());
        Self { stream, answers }
    }

    fn ask(&mut self, command: &str) -> String {
        self.stream.write_all(command.as_bytes()).unwrap();
        self.answer()
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        let answer = line.trim_end().strip_prefix("OK");
        answer.unwrap_or_else(|| panic!("{line}")).trim().to_owned()
    }

    fn out8(&mut self, port: u16, value: u8) {
        self.ask(&format!("outb {port:#x} {value:#x}\n"));
    }

    fn in8(&mut self, port: u16) -> u8 {
        number(&self.ask(&format!("inb {port:#x}\n"))).to_le_bytes()[0]
    }
}

fn number(text: &str) -> u16 {
    u16::from_str_radix(text.trim_start_matches("0x"), 16).unwrap()
}

/// The master of an IDE channel, used by programmed I/O (ATA-6: READ and WRITE SECTORS).
#[derive(Clone)]
pub struct IdeDisk {
    base: u16,
    pub image: String,
}

impl IdeDisk {
    const BUSY: u8 = 0x80;
    const DATA_REQUEST: u8 = 0x08;
    const ERROR: u8 = 0x01;
    const READ_SECTORS: u8 = 0x20;
    const WRITE_SECTORS: u8 = 0x30;
    const LBA_MASTER: u8 = 0xe0;

    pub fn on_channel(channel: u8, image: String) -> Self {
        let base = if channel == 0 { 0x1f0 } else { 0x170 };
        Self { base, image }
    }

    fn command(&self, qtest: &mut Qtest, command: u8, sector: u8) {
        let registers = [(6, Self::LBA_MASTER), (2, 1), (3, sector), (4, 0), (5, 0)];
        for (register, value) in registers {
            qtest.out8(self.base + register, value);
        }
        qtest.out8(self.base + 7, command);
    }

    /// Waits for the drive; returns its status without complaint if there was none.
    #[track_caller]
    fn wait(&self, qtest: &mut Qtest) -> u8 {
        let began = std::time::Instant::now();
        loop {
            let status = qtest.in8(self.base + 7);
            if status & Self::BUSY == 0 {
                assert_eq!(status & Self::ERROR, 0, "{}: I/O error", self.image);
                return status;
            }
            assert!(began.elapsed() < LIMIT, "{}: busy for ever", self.image);
        }
    }

    #[track_caller]
    pub fn write(&self, qtest: &mut Qtest, sector: u8, data: &[u8; SECTOR]) {
        self.command(qtest, Self::WRITE_SECTORS, sector);
        assert_ne!(self.wait(qtest) & Self::DATA_REQUEST, 0);
        let words = data
            .chunks(2)
            .map(|word| u16::from_le_bytes([word[0], word[1]]));
        let script: String = words
            .map(|word| format!("outw {:#x} {word:#x}\n", self.base))
            .collect();
        qtest.stream.write_all(script.as_bytes()).unwrap();
        (0..SECTOR / 2).for_each(|_| drop(qtest.answer()));
        self.wait(qtest);
    }

    #[track_caller]
    pub fn read(&self, qtest: &mut Qtest, sector: u8) -> [u8; SECTOR] {
        self.command(qtest, Self::READ_SECTORS, sector);
        assert_ne!(self.wait(qtest) & Self::DATA_REQUEST, 0);
        let script = format!("inw {:#x}\n", self.base).repeat(SECTOR / 2);
        qtest.stream.write_all(script.as_bytes()).unwrap();
        let mut data = [0; SECTOR];
        for word in data.chunks_mut(2) {
            word.copy_from_slice(&number(&qtest.answer()).to_le_bytes());
        }
        data
    }
}
