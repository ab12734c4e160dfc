//! A CD-ROM drive as a guest sees it, on the bench: primary master, a disc of [`BLOCKS`] blocks that are four stamped
//! sectors each.

mod answers;
mod ata_side;
mod errors;
mod every_code;
mod fuzz;
mod media;
mod reads;
mod resets;
mod sections;

use super::bench::*;
use crate::ide::DriveKind;

/// Blocks of the disc.
const BLOCKS: u32 = 1024;
const BLOCK: usize = 2048;

const PACKET: u8 = 0xa0;
/// Features: by DMA.
const BY_DMA: u8 = 1;
/// Interrupt reasons.
const AWAITS_PACKET: u8 = 1;
const TO_HOST: u8 = 2;
const OVER: u8 = 3;

/// A byte count limit larger than what any of these tests reads at once.
const ROOMY: u16 = 0xfffe;

/// Sense key, code and qualifier.
type Sense = (u8, u8, u8);
const NO_SENSE: Sense = (0, 0, 0);
const OUT_OF_RANGE: Sense = (5, 0x21, 0);
const INVALID_FIELD: Sense = (5, 0x24, 0);
const NO_MEDIUM: Sense = (2, 0x3a, 0);
const TRAY_CLOSED: Sense = (2, 0x3a, 1);
const TRAY_OPEN: Sense = (2, 0x3a, 2);
const MAY_HAVE_CHANGED: Sense = (6, 0x28, 0);
const UNRECOVERED_READ: Sense = (3, 0x11, 0);

const TEST_UNIT_READY: &[u8] = &[0x00];
const EJECT: &[u8] = &[0x1b, 0, 0, 0, 2];
const LOAD: &[u8] = &[0x1b, 0, 0, 0, 3];
const LOCK: &[u8] = &[0x1e, 0, 0, 0, 1];
const UNLOCK: &[u8] = &[0x1e, 0, 0, 0, 0];

fn cd() -> Bench {
    cd_with("")
}

/// With further options of `blkdebug`.
fn cd_with(blkdebug: &str) -> Bench {
    Bench::with(1, blkdebug, |drive| drive.kind = DriveKind::CdRom)
}

/// What a block of the disc holds.
fn block(number: u32) -> Vec<u8> {
    let first = u64::from(number) * 4;
    (first..first + 4).flat_map(stamp).collect()
}

fn blocks(first: u32, count: u32) -> Vec<u8> {
    (first..first + count).flat_map(block).collect()
}

fn read_10(first: u32, count: u16) -> Vec<u8> {
    let mut packet = vec![0x28, 0];
    packet.extend(first.to_be_bytes());
    packet.push(0);
    packet.extend(count.to_be_bytes());
    packet
}

/// READ CD with byte 9 as given.
fn read_cd(first: u32, count: u8, parts: u8) -> Vec<u8> {
    let mut packet = vec![0xbe, 0];
    packet.extend(first.to_be_bytes());
    packet.extend([0, 0, count, parts]);
    packet
}

impl Bench {
    /// Gives PACKET and its twelve bytes.
    fn send_packet(&self, features: u8, limit: u16, packet: &[u8]) {
        let [low, high] = limit.to_le_bytes();
        self.outb(DEVICE, 0);
        self.outb(FEATURES, features);
        self.outb(LBA_MID, low);
        self.outb(LBA_HIGH, high);
        self.outb(COMMAND, PACKET);
        assert_eq!(self.status(), DRDY | DSC | DRQ);
        assert_eq!(self.inb(COUNT) & 7, AWAITS_PACKET);
        assert!(!self.is_interrupted());
        let mut bytes = packet.to_vec();
        bytes.resize(12, 0);
        self.write_block(&bytes);
    }

    fn byte_count(&self) -> usize {
        u16::from_le_bytes([self.inb(LBA_MID), self.inb(LBA_HIGH)]).into()
    }

    /// Reads one block, whose length the drive says.
    fn take_packet_block(&self) -> Vec<u8> {
        let count = self.byte_count();
        let mut block = self.read_words(count.div_ceil(2));
        block.truncate(count);
        block
    }

    fn read_words(&self, words: usize) -> Vec<u8> {
        let mut bytes = vec![0; 2 * words];
        crate::bus::PioDevice::read_string(&*self.ide, DATA, 2, &mut bytes);
        bytes
    }

    /// Does a command through the data register. Returns its data block by block, or the Error register.
    fn by_register(&mut self, limit: u16, packet: &[u8]) -> Result<Vec<Vec<u8>>, u8> {
        self.send_packet(0, limit, packet);
        let mut blocks = Vec::new();
        loop {
            self.wait_ready();
            assert!(self.is_interrupted());
            let status = self.inb(STATUS);
            assert!(!self.is_interrupted());
            if status & DRQ != 0 {
                assert_eq!(self.inb(COUNT) & 7, TO_HOST);
                blocks.push(self.take_packet_block());
                continue;
            }
            assert_eq!(self.inb(COUNT) & 7, OVER);
            if status & ERR != 0 {
                return Err(self.inb(ERROR));
            }
            assert_eq!(status, DRDY | DSC);
            return Ok(blocks);
        }
    }

    /// Does a command that succeeds, and returns its data.
    fn packet(&mut self, packet: &[u8]) -> Vec<u8> {
        self.by_register(ROOMY, packet).unwrap().concat()
    }

    /// Does a command that fails, and returns what REQUEST SENSE says then.
    fn packet_fails(&mut self, packet: &[u8]) -> Sense {
        let error = self.by_register(ROOMY, packet).unwrap_err();
        let sense = self.sense();
        assert_eq!(error >> 4, sense.0, "the Error register has the key");
        sense
    }

    fn sense(&mut self) -> Sense {
        let data = self.packet(&[0x03, 0, 0, 0, 18]);
        assert_eq!((data.len(), data[0], data[7]), (18, 0x70, 10));
        (data[2], data[12], data[13])
    }

    /// Gives a command by DMA and starts the bus master; does not wait.
    fn start_packet_dma(&self, packet: &[u8]) {
        self.bm_write(BM_COMMAND, 0);
        self.bm_write(BM_STATUS, INTERRUPT | BM_ERROR);
        self.send_packet(BY_DMA, 0, packet);
        self.bm_write(BM_COMMAND, BM_START | BM_TO_MEMORY);
    }

    fn device(&self) -> std::sync::Arc<dyn sluice_block::backend::RemovableDevice> {
        self.disks[0].backend.removable_device().unwrap()
    }
}
