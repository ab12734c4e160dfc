//! The data register: blocks read and written by the CPU (ATA/ATAPI-6, sections 9.5 and 9.6).
//!
//! Every block is a request of its own, as the guest decides when the next one comes: no request is held open
//! across the guest's accesses.

use sluice_block::backend::Account;

use super::super::regs::SECTOR_SIZE;
use super::super::request::{Operation, Outcome};
use super::{Core, Phase, Transfer, Work};

/// Bytes of a unit of the data register.
const WORD: usize = 2;

/// What follows when the guest has read a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// The command is over, without an interrupt.
    Nothing,
    /// More sectors of a disk.
    Sectors(Transfer),
    /// More of a packet command, or its end.
    Packet,
}

impl Core {
    /// Reads the data register: 1, 2 or 4 bytes, or a string of such accesses. A byte takes a word off the block and
    /// drops its upper half. Without DRQ: zeroes.
    pub fn read_data(&mut self, data: &mut [u8]) {
        for unit in data.chunks_mut(WORD) {
            let word = self.next_word();
            unit.copy_from_slice(&word[..unit.len()]);
        }
    }

    fn next_word(&mut self) -> [u8; WORD] {
        let Phase::PioIn {
            block, position, ..
        } = &mut self.phase
        else {
            return [0; WORD];
        };
        let mut word = [0; WORD];
        for byte in &mut word {
            *byte = block.get(*position).copied().unwrap_or(0);
            *position += 1;
        }
        if *position >= block.len() {
            self.block_taken();
        }
        word
    }

    /// Writes the data register: 2 or 4 bytes, or a string of such accesses. Bytes are ignored, and so is everything without DRQ.
    pub fn write_data(&mut self, data: &[u8]) {
        for word in data.chunks_exact(WORD) {
            let (block, position) = match &mut self.phase {
                Phase::PioOut {
                    block, position, ..
                } => (block.as_mut_slice(), position),
                Phase::PacketOut {
                    packet, position, ..
                } => (packet.as_mut_slice(), position),
                _ => return,
            };
            if let Some(place) = block.get_mut(*position..*position + WORD) {
                place.copy_from_slice(word);
            }
            *position += WORD;
            if *position >= block.len() {
                self.block_given();
            }
        }
    }

    /// Lets the guest read `block`; `next` follows it.
    pub(super) fn offer_block(&mut self, block: Vec<u8>, next: Next) {
        self.phase = Phase::PioIn {
            block,
            position: 0,
            next,
        };
        self.set_interrupt(true);
    }

    /// Lets the guest write the next block of `transfer`.
    pub(super) fn expect_block(&mut self, transfer: Transfer) {
        self.phase = Phase::PioOut {
            block: self.take_spare(bytes(transfer.next_block())),
            position: 0,
            transfer,
        };
    }

    /// A block of `length` zeroes, in memory that was used before if there is some.
    fn take_spare(&mut self, length: usize) -> Vec<u8> {
        let mut block = std::mem::take(&mut self.spare);
        block.clear();
        block.resize(length, 0);
        block
    }

    /// Keeps a block's memory for the next one.
    fn keep_spare(&mut self, block: Vec<u8>) {
        if block.capacity() > self.spare.capacity() {
            self.spare = block;
        }
    }

    /// The guest has read the whole block.
    fn block_taken(&mut self) {
        let Phase::PioIn { block, next, .. } = std::mem::replace(&mut self.phase, Phase::Idle)
        else {
            return;
        };
        self.keep_spare(block);
        match next {
            Next::Nothing => {}
            Next::Sectors(transfer) => self.read_block(transfer),
            Next::Packet => self.next_packet_block(),
        }
    }

    /// Reads the next block from the disk.
    pub(super) fn read_block(&mut self, transfer: Transfer) {
        let sectors = transfer.next_block();
        if !self.has(transfer.sector, sectors) {
            self.note_invalid(Account::Read);
            self.abort();
            return;
        }
        self.count(|stats| stats.read_sectors += u64::from(sectors));
        self.phase = Phase::Busy(Work::Read(transfer));
        let block = self.take_spare(bytes(sectors));
        self.launch(Operation::ReadBlock {
            offset: offset(transfer.sector),
            block,
        });
    }

    /// The guest has written the whole block, or packet.
    fn block_given(&mut self) {
        let (block, transfer) = match std::mem::replace(&mut self.phase, Phase::Idle) {
            Phase::PioOut {
                block, transfer, ..
            } => (block, transfer),
            Phase::PacketOut { packet, route, .. } => {
                self.packet_given(packet, route);
                return;
            }
            _ => return,
        };
        let sectors = transfer.next_block();
        if !self.has(transfer.sector, sectors) {
            self.note_invalid(Account::Write);
            self.abort();
            return;
        }
        self.count(|stats| stats.written_sectors += u64::from(sectors));
        self.phase = Phase::Busy(Work::Write(transfer));
        let operation = Operation::WriteBlock {
            offset: offset(transfer.sector),
            block,
        };
        self.submit(operation, transfer.durable);
    }

    /// The disk has read a block.
    pub(super) fn block_read(&mut self, mut transfer: Transfer, outcome: Outcome) {
        let Outcome::Block(block) = outcome else {
            self.abort();
            return;
        };
        transfer.advance(transfer.next_block());
        self.write_back(&transfer);
        let next = if transfer.remaining > 0 {
            Next::Sectors(transfer)
        } else {
            Next::Nothing
        };
        self.offer_block(block, next);
    }

    /// The disk has written a block.
    pub(super) fn block_written(&mut self, mut transfer: Transfer, outcome: Outcome) {
        let Outcome::Block(block) = outcome else {
            self.abort();
            return;
        };
        self.keep_spare(block);
        transfer.advance(transfer.next_block());
        self.write_back(&transfer);
        if transfer.remaining == 0 {
            self.finish();
        } else {
            self.expect_block(transfer);
            self.set_interrupt(true);
        }
    }

    /// Shows how far a transfer has come.
    pub(super) fn write_back(&mut self, transfer: &Transfer) {
        let task = &mut self.slot_mut().task;
        task.set_address(transfer.addressing, transfer.sector);
        task.set_sector_count(transfer.remaining);
    }

    /// Whether the selected disk has these sectors.
    pub(super) fn has(&self, sector: u64, count: u32) -> bool {
        self.disk().is_some_and(|disk| disk.contains(sector, count))
    }
}

/// Byte offset of a sector that the disk has.
pub(super) fn offset(sector: u64) -> u64 {
    sector * SECTOR_SIZE as u64
}

/// Bytes of at most 65536 sectors.
pub(super) fn bytes(sectors: u32) -> usize {
    sectors as usize * SECTOR_SIZE
}
