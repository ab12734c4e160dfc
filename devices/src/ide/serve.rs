//! Carrying out an operation: from the request value to the backend and guest memory.
//!
//! Runs in the loop that serves the drive, holding the gate's token from beginning to end. Data of
//! a bus master transfer moves straight between the backend and guest memory.
//!
//! At level `TRACE` a span `request` (drive, operation) goes with each request, with the events `enter` and
//! `complete` in it, as with a virtio disk's. Without a subscriber for them they cost a comparison each.

use std::sync::Arc;

use sluice_aio::{GuestRam, IoBuffer};
use sluice_block::BlockError;
use sluice_block::backend::{Account, Request};

use super::atapi::{DiscRead, SectorForm};
use super::prd::{Gathered, Ranges, Table, gather};
use super::regs::SECTOR_SIZE;
use super::request::{Operation, Outcome};
use crate::pci::PciConfig;

/// What an operation needs.
pub(super) struct Server<'a> {
    pub request: Request<'a>,
    pub memory: &'a Arc<GuestRam>,
    /// The PCI function's, for its bus master bit, which is looked at when the transfer begins.
    pub config: &'a PciConfig,
    pub scratch: &'a mut Scratch,
    /// What is written is durable before the operation ends, whatever the write cache is set to.
    pub durable: bool,
}

/// What a channel's requests use one after the other, so that none allocates.
pub(super) struct Scratch {
    /// Memory for blocks of the data register.
    block: IoBuffer,
    /// What a descriptor table describes.
    ranges: Ranges,
    /// A list of ranges to discard.
    payload: Vec<u8>,
}

impl Default for Scratch {
    fn default() -> Self {
        Self {
            block: IoBuffer::empty(),
            ranges: Ranges::new(),
            payload: Vec::new(),
        }
    }
}

impl Scratch {
    /// Memory for `length` bytes: the same as before, unless it is too small or something still uses it.
    fn block(&mut self, length: usize) -> IoBuffer {
        if self.block.len() < length || !self.block.is_unshared() {
            self.block = IoBuffer::alloc(length);
        }
        self.block.slice(0, length)
    }
}

/// Guest memory of a transfer.
struct Dma {
    buffer: IoBuffer,
    surplus: bool,
}

impl Dma {
    fn done(&self) -> Outcome {
        if self.surplus {
            Outcome::DoneWithSurplus
        } else {
            Outcome::Done
        }
    }
}

impl Server<'_> {
    /// Does it. Errors are reported as an [`Outcome`] and logged.
    pub async fn run(&mut self, operation: Operation) -> Outcome {
        tracing::trace!("enter");
        let outcome = match self.attempt(operation).await {
            Ok(outcome) | Err(Failure::Outcome(outcome)) => outcome,
            Err(Failure::Backend(error)) => {
                tracing::warn!(%error, "an IDE request failed");
                Outcome::Failed
            }
        };
        tracing::trace!(well = outcome.is_well(), "complete");
        outcome
    }

    async fn attempt(&mut self, operation: Operation) -> Result<Outcome, Failure> {
        match operation {
            Operation::ReadBlock { offset, mut block } => {
                let buffer = self.scratch.block(block.len());
                // A disk that gives nothing must not show what was there before.
                buffer.fill(0, buffer.len(), 0);
                self.request.read(offset, buffer.clone()).await?;
                buffer.copy_to_slice(0, &mut block);
                Ok(Outcome::Block(block))
            }
            Operation::WriteBlock { offset, block } => {
                let buffer = self.scratch.block(block.len());
                buffer.copy_from_slice(0, &block);
                self.write(offset, buffer).await?;
                Ok(Outcome::Block(block))
            }
            Operation::ReadDma {
                offset,
                length,
                table,
            } => {
                if !self.config.is_bus_master() {
                    // The drive does its part; nothing reaches memory. QEMU ends such a transfer the same way.
                    return Ok(Outcome::DoneWithSurplus);
                }
                let dma = self.map(table, length)?;
                self.request.read(offset, dma.buffer.clone()).await?;
                Ok(dma.done())
            }
            Operation::WriteDma {
                offset,
                length,
                table,
            } => {
                let dma = self.map(table, length)?;
                self.write(offset, dma.buffer.clone()).await?;
                Ok(dma.done())
            }
            Operation::Trim { length, table } => {
                let dma = self.map(table, length)?;
                self.trim(&dma.buffer).await?;
                Ok(dma.done())
            }
            Operation::Flush => {
                self.request.flush().await?;
                Ok(Outcome::Done)
            }
            Operation::ReadDisc(part) => {
                let bytes = self.read_disc(&part.read).await?;
                let wanted = bytes.into_iter().skip(part.skip).take(part.length);
                Ok(Outcome::Block(wanted.collect()))
            }
            Operation::ReadDiscDma { read, table } => {
                if !self.config.is_bus_master() {
                    return Ok(Outcome::DoneWithSurplus);
                }
                // No table describes as much as does not fit.
                let length = usize::try_from(read.len()).map_err(|_| Outcome::TableTooShort)?;
                let dma = self.map(table, length)?;
                self.read_disc_to(read, &dma.buffer).await?;
                Ok(dma.done())
            }
            Operation::ReplyDma { data, table } => {
                if !self.config.is_bus_master() {
                    return Ok(Outcome::DoneWithSurplus);
                }
                let dma = self.map(table, data.len())?;
                dma.buffer.copy_from_slice(0, &data);
                Ok(dma.done())
            }
        }
    }

    async fn write(&mut self, offset: u64, buffer: IoBuffer) -> Result<(), BlockError> {
        self.request.write(offset, buffer).await?;
        // Without a write cache it is durable already.
        if self.durable && self.request.backend().write_cache() {
            self.request.flush().await?;
        }
        Ok(())
    }

    /// Reads the descriptor table, once, and takes hold of the memory it names.
    fn map(&mut self, table: Table, length: usize) -> Result<Dma, Outcome> {
        if !self.config.is_bus_master() {
            return Err(Outcome::NotMemory);
        }
        let ranges = &mut self.scratch.ranges;
        let surplus = match gather(self.memory, table, length, ranges) {
            Gathered::Exact => false,
            Gathered::Surplus => true,
            Gathered::Short => return Err(Outcome::TableTooShort),
            Gathered::Fault => return Err(Outcome::NotMemory),
        };
        let buffer = IoBuffer::from_guest(self.memory, ranges).map_err(|_| Outcome::NotMemory)?;
        Ok(Dma { buffer, surplus })
    }

    /// Reads sectors of a disc, few enough to be buffered, as the guest is to get them.
    async fn read_disc(&mut self, read: &DiscRead) -> Result<Vec<u8>, Failure> {
        let (offset, length) = read.medium_range();
        let buffer = IoBuffer::alloc(length);
        self.request.read(offset, buffer.clone()).await?;
        Ok(read.framed(buffer.to_vec()))
    }

    /// Reads any number of sectors into guest memory: directly, or where something has to be put around each of
    /// them in pieces, all of them under the one token.
    async fn read_disc_to(&mut self, read: DiscRead, memory: &IoBuffer) -> Result<(), Failure> {
        const PIECE: u32 = 32;
        if read.form == SectorForm::UserData {
            self.request.read(read.offset(), memory.clone()).await?;
            return Ok(());
        }
        let mut rest = read;
        let mut at = 0;
        while rest.sectors > 0 {
            let (piece, after) = rest.split(PIECE);
            let bytes = self.read_disc(&piece).await?;
            at += memory.copy_from_slice(at, &bytes);
            rest = after;
        }
        Ok(())
    }

    /// Discards every range of a DATA SET MANAGEMENT payload (ACS-2, section 7.10), in order. A range beyond the
    /// disk's end ends the command; what came before it is done. The end is where it is now that the request
    /// holds its token: the disk may have been resized since the command was given.
    async fn trim(&mut self, payload: &IoBuffer) -> Result<(), Failure> {
        const ENTRY: usize = 8;
        const COUNT_SHIFT: u32 = 48;
        const SECTOR_MASK: u64 = (1 << COUNT_SHIFT) - 1;
        let capacity = self.request.backend().len() / SECTOR_SIZE as u64;
        // The guest's memory is copied once: what is checked is what is discarded.
        let mut entries = std::mem::take(&mut self.scratch.payload);
        entries.resize(payload.len(), 0);
        payload.copy_to_slice(0, &mut entries);
        for entry in entries.chunks_exact(ENTRY) {
            let entry = entry
                .iter()
                .rev()
                .fold(0, |value, byte| value << 8 | u64::from(*byte));
            let (sector, count) = (entry & SECTOR_MASK, entry >> COUNT_SHIFT);
            if count == 0 {
                continue;
            }
            if sector + count > capacity {
                self.request.account_invalid(Account::Unmap);
                return Err(Outcome::Failed.into());
            }
            let unit = SECTOR_SIZE as u64;
            self.request.discard(sector * unit, count * unit).await?;
        }
        self.scratch.payload = entries;
        Ok(())
    }
}

/// Why an operation ended early.
enum Failure {
    Outcome(Outcome),
    Backend(BlockError),
}

impl From<Outcome> for Failure {
    fn from(outcome: Outcome) -> Self {
        Self::Outcome(outcome)
    }
}

impl From<BlockError> for Failure {
    fn from(error: BlockError) -> Self {
        Self::Backend(error)
    }
}
