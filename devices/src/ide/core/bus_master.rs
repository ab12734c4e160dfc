//! The bus master: its registers, and the commands that wait for it.
//!
//! Which end a transfer takes depends on how much memory the descriptors name (*Programming Interface for Bus
//! Master IDE Controller*, section 3.1, and QEMU where that is silent):
//!
//! | descriptors | transferred | ACTIVE | INTERRUPT | drive |
//! |---|---|---|---|---|
//! | exactly enough | all | 0 | 1 | done, interrupt |
//! | too much | all | 1 | 1 | done, interrupt |
//! | too little | nothing | 0 | 0 | ready, no interrupt |
//! | not memory | nothing | 0 | 1, and ERROR | aborted, interrupt |

use super::super::atapi::wire::Sense;
use sluice_block::backend::Account;

use super::super::prd::Table;
use super::super::regs::{BmCommand, BmStatus, bm};
use super::super::request::{Operation, Outcome};
use super::pio::{bytes, offset};
use super::{Core, DmaCommand, Phase, Work};

/// Registers of one channel's bus master.
#[derive(Debug)]
pub(in super::super) struct BusMaster {
    command: BmCommand,
    status: BmStatus,
    table: u32,
    /// The table of a transfer that has been started and not been used up. One start serves one command.
    started: Option<Table>,
}

impl Default for BusMaster {
    fn default() -> Self {
        Self {
            command: BmCommand::empty(),
            status: BmStatus::empty(),
            table: 0,
            started: None,
        }
    }
}

impl BusMaster {
    pub(super) fn note_interrupt(&mut self) {
        self.status.insert(BmStatus::INTERRUPT);
    }

    /// Whether the guest wants a transfer to go on.
    pub(super) fn wanted(&self) -> bool {
        self.command.contains(BmCommand::START)
    }

    pub(super) fn stop(&mut self) {
        self.status.remove(BmStatus::ACTIVE);
        self.started = None;
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        match (offset, data) {
            (bm::COMMAND, [byte]) => *byte = self.command.bits(),
            (bm::STATUS, [byte]) => *byte = self.status.bits(),
            (bm::TABLE.., data) => {
                let from = (offset - bm::TABLE).to_le_bytes()[0].into();
                for (byte, value) in data
                    .iter_mut()
                    .zip(self.table.to_le_bytes().iter().skip(from))
                {
                    *byte = *value;
                }
            }
            (_, data) => data.fill(0xff),
        }
    }

    fn write_status(&mut self, value: u8) {
        let value = BmStatus::from_bits_truncate(value);
        let kept = self.status - BmStatus::SCRATCH - (value & BmStatus::CLEAR_BY_ONE);
        self.status = kept | (value & BmStatus::SCRATCH);
    }

    fn write_table(&mut self, from: usize, data: &[u8]) {
        let mut bytes = self.table.to_le_bytes();
        for (byte, value) in bytes.iter_mut().skip(from).zip(data) {
            *byte = *value;
        }
        self.table = u32::from_le_bytes(bytes) & bm::TABLE_MASK;
    }
}

impl Core {
    /// Reads the channel's half of the bus master window at `offset` (0 to 7). Command and status are bytes: wider
    /// accesses read all ones.
    pub fn bus_master_read(&self, offset: u64, data: &mut [u8]) {
        self.bus_master.read(offset, data);
    }

    /// Writes the channel's half of the bus master window. Wider accesses to command and status are ignored.
    pub fn bus_master_write(&mut self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (bm::COMMAND, [value]) => self.write_bm_command(*value),
            (bm::STATUS, [value]) => self.bus_master.write_status(*value),
            (bm::TABLE.., data) => {
                let from = (offset - bm::TABLE).to_le_bytes()[0].into();
                self.bus_master.write_table(from, data);
            }
            _ => {}
        }
    }

    fn write_bm_command(&mut self, value: u8) {
        let before = self.bus_master.wanted();
        self.bus_master.command = BmCommand::from_bits_truncate(value);
        match (before, self.bus_master.wanted()) {
            (false, true) => self.start_bus_master(),
            (true, false) => self.stop_bus_master(),
            _ => {}
        }
    }

    fn start_bus_master(&mut self) {
        self.bus_master.started = Some(Table(self.bus_master.table));
        self.bus_master.status.insert(BmStatus::ACTIVE);
        if let Phase::DmaWait(command) = self.phase {
            self.start_dma(command);
        }
    }

    /// What runs is let finish, and ends ACTIVE. What is parked has touched nothing: it is taken back, and the drive
    /// waits for the bus master again. What was submitted a moment ago becomes one or the other.
    fn stop_bus_master(&mut self) {
        match self.phase {
            Phase::Busy(Work::Dma(command)) if self.requests.is_parked() => {
                self.take_back(command);
            }
            Phase::Busy(Work::Dma(_)) => {}
            _ => self.bus_master.stop(),
        }
    }

    /// Returns a DMA command whose request has not begun to the state before it was submitted.
    pub(super) fn take_back(&mut self, command: DmaCommand) {
        self.requests.invalidate();
        self.phase = Phase::DmaWait(command);
        self.bus_master.stop();
    }

    /// Holds a command until the bus master runs; it may run already.
    pub(super) fn await_bus_master(&mut self, command: DmaCommand) {
        self.phase = Phase::DmaWait(command);
        if self.bus_master.status.contains(BmStatus::ACTIVE) {
            self.start_dma(command);
        }
    }

    fn start_dma(&mut self, command: DmaCommand) {
        let Some(table) = self.bus_master.started.take() else {
            // Active still, because the descriptors of an earlier command were not used up: none of them are left.
            self.dma_ended(command, &Outcome::TableTooShort);
            return;
        };
        let operation = match command {
            DmaCommand::Read(transfer) | DmaCommand::Write(transfer)
                if !self.has(transfer.sector, transfer.remaining) =>
            {
                self.note_invalid(match command {
                    DmaCommand::Read(_) => Account::Read,
                    _ => Account::Write,
                });
                self.dma_ended(command, &Outcome::Failed);
                return;
            }
            DmaCommand::Read(transfer) => {
                self.count(|stats| stats.read_sectors += u64::from(transfer.remaining));
                Operation::ReadDma {
                    offset: offset(transfer.sector),
                    length: bytes(transfer.remaining),
                    table,
                }
            }
            DmaCommand::Write(transfer) => {
                self.count(|stats| stats.written_sectors += u64::from(transfer.remaining));
                Operation::WriteDma {
                    offset: offset(transfer.sector),
                    length: bytes(transfer.remaining),
                    table,
                }
            }
            DmaCommand::Trim(length) => {
                self.count(|stats| stats.trims += 1);
                Operation::Trim { length, table }
            }
            DmaCommand::Packet => match self.packet_dma(table) {
                Some(operation) => operation,
                None => return,
            },
        };
        let durable = matches!(command, DmaCommand::Write(transfer) if transfer.durable);
        self.phase = Phase::Busy(Work::Dma(command));
        self.submit(operation, durable);
    }

    /// `sense` is what a packet device says.
    fn dma_failed(&mut self, command: DmaCommand, sense: Sense) {
        if command == DmaCommand::Packet {
            self.fail_packet(sense);
        } else {
            self.abort();
        }
    }

    /// A transfer is over. See the table at the top.
    pub(super) fn dma_ended(&mut self, command: DmaCommand, outcome: &Outcome) {
        let stays_active = *outcome == Outcome::DoneWithSurplus && self.bus_master.wanted();
        if !stays_active {
            self.bus_master.stop();
        }
        match outcome {
            Outcome::Done | Outcome::DoneWithSurplus if command == DmaCommand::Packet => {
                self.finish_packet();
            }
            Outcome::Done | Outcome::DoneWithSurplus => {
                if let DmaCommand::Read(mut transfer) | DmaCommand::Write(mut transfer) = command {
                    transfer.advance(transfer.remaining);
                    self.write_back(&transfer);
                }
                self.finish();
            }
            Outcome::TableTooShort => {
                self.packet = None;
                self.phase = Phase::Idle;
            }
            Outcome::NotMemory => {
                self.bus_master.status.insert(BmStatus::ERROR);
                self.dma_failed(command, Sense::NO_MEMORY);
            }
            Outcome::Failed | Outcome::Block(_) => {
                self.dma_failed(command, Sense::UNRECOVERED_READ);
            }
        }
    }
}
