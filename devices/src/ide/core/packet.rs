//! Packet commands on their way: the packet, then its data through the data register or by the bus master
//! (ATA/ATAPI-6, sections 8.23, 9.8 and 9.9).
//!
//! ```text
//!   PACKET --> PacketOut --12 bytes--> CdRom::execute --> Done or Check: over, with an interrupt
//!                                            |
//!                       data register <------+------> bus master
//!                PioIn <-- block -- Busy              DmaWait --start--> Busy --> over
//!                  \--taken--> next block, or over
//! ```
//!
//! By DMA all of a read is one request. Through the data register every block is one, as with a disk: the guest
//! decides when the next one comes, and no request is held open across its accesses.

use super::super::atapi::wire::{PACKET_LEN, Packet, Reason, Sense, feature};
use super::super::atapi::{CdRom, DiscRead, Reply};
use super::super::prd::Table;
use super::super::regs::Error;
use super::super::request::{Operation, Outcome};
use super::pio::Next;
use super::{Core, DmaCommand, Phase, Reset, Unit, Work};

/// Which way a packet's data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// Through the data register, at most so many bytes at a time.
    Register { limit: u16 },
    /// By the bus master.
    Dma,
}

impl Route {
    /// The largest limit: a block has an even number of bytes unless it is the last.
    const LARGEST: u16 = 0xfffe;
    /// The least that blocks can be made of.
    const LEAST: u16 = 2;

    fn has_room(self) -> bool {
        match self {
            Self::Register { limit } => limit >= Self::LEAST,
            Self::Dma => true,
        }
    }
}

/// Where a packet's data comes from.
#[derive(Debug)]
enum Source {
    Reply(Vec<u8>),
    Disc(DiscRead),
}

/// Data that a packet command still has to transfer.
#[derive(Debug)]
pub(super) struct PacketData {
    source: Source,
    route: Route,
    /// Bytes done.
    at: u64,
    /// The medium that was to be read has gone.
    lost: bool,
}

impl PacketData {
    fn rest(&self) -> u64 {
        let length = match &self.source {
            Source::Reply(data) => data.len() as u64,
            Source::Disc(read) => read.len(),
        };
        length.saturating_sub(self.at)
    }

    /// Bytes in the next block: all that is left, or the limit, which is rounded down to words then.
    fn next_block(&self) -> u16 {
        let limit = match self.route {
            Route::Register { limit } => limit.min(Route::LARGEST),
            Route::Dma => Route::LARGEST,
        };
        match u16::try_from(self.rest()) {
            Ok(rest) if rest <= limit => rest,
            _ => limit & !1,
        }
    }
}

impl Core {
    fn cd_rom_mut(&mut self, drive: usize) -> Option<&mut CdRom> {
        match &mut self.slots[drive].drive.as_mut()?.unit {
            Unit::CdRom(cd_rom) => Some(cd_rom),
            Unit::Disk(_) => None,
        }
    }

    /// The CD-ROM drive `drive`, if it is one.
    pub fn cd_rom(&self, drive: usize) -> Option<&CdRom> {
        match &self.slots[drive].drive.as_ref()?.unit {
            Unit::CdRom(cd_rom) => Some(cd_rom),
            Unit::Disk(_) => None,
        }
    }

    /// Whether the selected device has the PACKET feature set.
    pub(super) fn is_packet_device(&self) -> bool {
        self.cd_rom(self.selected).is_some()
    }

    /// DEVICE RESET: of the selected device alone, at any time but within a reset.
    pub(super) fn device_reset(&mut self) {
        if matches!(self.phase, Phase::Reset(_)) {
            return;
        }
        self.count(|stats| stats.commands += 1);
        self.begin_reset(Reset::Device);
        self.try_finish_reset();
    }

    /// PACKET: the twelve bytes are asked for without an interrupt.
    pub(super) fn packet_command(&mut self) -> Result<(), super::execute::Abort> {
        let task = &self.slot().task;
        let features = task.features();
        if features & feature::OVERLAP != 0 {
            return Err(super::execute::Abort);
        }
        let route = if features & feature::DMA != 0 {
            Route::Dma
        } else {
            Route::Register {
                limit: task.byte_count(),
            }
        };
        self.set_reason(Reason::COMMAND);
        self.phase = Phase::PacketOut {
            packet: [0; PACKET_LEN],
            position: 0,
            route,
        };
        Ok(())
    }

    /// The guest has written the packet.
    pub(super) fn packet_given(&mut self, packet: [u8; PACKET_LEN], route: Route) {
        self.phase = Phase::Idle;
        let has_room = route.has_room();
        let Some(cd_rom) = self.cd_rom_mut(self.selected) else {
            return;
        };
        let source = match cd_rom.execute(&Packet(packet), has_room) {
            Reply::Done => return self.finish_packet(),
            Reply::Check(sense) => return self.check_condition(sense),
            Reply::NoRoom => return self.abort(),
            Reply::Data(data) => Source::Reply(data),
            Reply::Read(read) => Source::Disc(read),
        };
        self.packet = Some(PacketData {
            source,
            route,
            at: 0,
            lost: false,
        });
        match route {
            Route::Register { .. } => self.next_packet_block(),
            Route::Dma => self.await_bus_master(DmaCommand::Packet),
        }
    }

    /// Goes on with the next block for the data register, or ends the command.
    pub(super) fn next_packet_block(&mut self) {
        let Some(data) = &self.packet else {
            return;
        };
        if data.rest() == 0 {
            self.finish_packet();
            return;
        }
        if data.lost {
            self.end_lost();
            return;
        }
        let length = usize::from(data.next_block());
        match &data.source {
            Source::Reply(bytes) => {
                let at = usize::try_from(data.at).unwrap_or(usize::MAX);
                let block = bytes.iter().skip(at).take(length).copied().collect();
                self.offer_packet_block(block);
            }
            Source::Disc(read) => {
                let part = read.part(data.at, length);
                self.note_read(&part.read);
                self.phase = Phase::Busy(Work::PacketBlock);
                self.launch(Operation::ReadDisc(part));
            }
        }
    }

    /// Part of a disc has been read.
    pub(super) fn packet_block_read(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Block(block) => self.offer_packet_block(block),
            _ => self.fail_packet(Sense::UNRECOVERED_READ),
        }
    }

    fn offer_packet_block(&mut self, block: Vec<u8>) {
        if let Some(data) = &mut self.packet {
            data.at += block.len() as u64;
        }
        let length = u16::try_from(block.len()).unwrap_or(u16::MAX);
        self.slot_mut().task.set_byte_count(length);
        self.set_reason(Reason::TO_HOST);
        self.offer_block(block, Next::Packet);
    }

    /// What the bus master, started with `table`, is to do; nothing if the command is over by that.
    pub(super) fn packet_dma(&mut self, table: Table) -> Option<Operation> {
        let data = self.packet.as_ref()?;
        if data.lost {
            self.bus_master.stop();
            self.end_lost();
            return None;
        }
        Some(match &data.source {
            Source::Reply(bytes) => Operation::ReplyDma {
                data: bytes.clone(),
                table,
            },
            Source::Disc(read) => {
                let read = *read;
                self.note_read(&read);
                Operation::ReadDiscDma { read, table }
            }
        })
    }

    fn note_read(&mut self, read: &DiscRead) {
        let (_, bytes) = read.medium_range();
        let sectors = bytes / super::super::regs::SECTOR_SIZE;
        self.count(|stats| stats.read_sectors += sectors as u64);
    }

    /// Ends a packet command well, with an interrupt.
    pub(super) fn finish_packet(&mut self) {
        self.packet = None;
        self.set_reason(Reason::COMMAND | Reason::TO_HOST);
        self.finish();
    }

    /// Ends a packet command with an error that it has only now.
    pub(super) fn fail_packet(&mut self, sense: Sense) {
        if let Some(cd_rom) = self.cd_rom_mut(self.selected) {
            cd_rom.fail(sense);
        }
        self.check_condition(sense);
    }

    /// Ends a packet command with an error and an interrupt; what it was is asked for with REQUEST SENSE.
    fn check_condition(&mut self, sense: Sense) {
        self.packet = None;
        self.set_reason(Reason::COMMAND | Reason::TO_HOST);
        self.abort();
        self.slot_mut().error = Error::from_bits_retain(sense.error_register());
    }

    fn set_reason(&mut self, reason: Reason) {
        let task = &mut self.slot_mut().task;
        let tag = Reason::from_bits_retain(task.count_byte()) - Reason::ALL;
        task.set_count_byte((tag | reason).bits());
    }

    /// Ends a read whose medium has gone.
    fn end_lost(&mut self) {
        if let Some(cd_rom) = self.cd_rom_mut(self.selected) {
            let sense = cd_rom.lost_medium();
            self.check_condition(sense);
        }
    }

    /// The medium of `drive` was put in or taken out. A read that was given before does not go on with another
    /// medium; what runs at this moment is let finish.
    pub fn medium_changed(&mut self, drive: usize, present: bool) {
        if let Some(cd_rom) = self.cd_rom_mut(drive) {
            cd_rom.medium_changed(present);
            self.lose_medium(drive);
        }
    }

    /// The operator moves the tray of `drive`.
    pub fn move_tray(&mut self, drive: usize, open: bool) {
        if let Some(cd_rom) = self.cd_rom_mut(drive) {
            cd_rom.move_tray(open);
            if open {
                self.lose_medium(drive);
            }
        }
    }

    /// The operator asks for the medium of `drive`.
    pub fn request_eject(&mut self, drive: usize, force: bool) {
        if let Some(cd_rom) = self.cd_rom_mut(drive) {
            cd_rom.request_eject(force);
        }
    }

    fn lose_medium(&mut self, drive: usize) {
        let Some(data) = &mut self.packet else {
            return;
        };
        // A drive with a command under way is the selected one.
        if drive != self.selected || !matches!(data.source, Source::Disc(_)) {
            return;
        }
        data.lost = true;
        let in_flight = matches!(
            self.phase,
            Phase::Busy(Work::PacketBlock | Work::Dma(DmaCommand::Packet))
        );
        if in_flight && !self.requests.is_running() {
            self.requests.invalidate();
            self.bus_master.stop();
            self.end_lost();
        }
    }

    /// Which trays have moved since the last call.
    pub(super) fn take_moved_trays(&mut self) -> [Option<bool>; 2] {
        [0, 1].map(|drive| self.cd_rom_mut(drive).and_then(CdRom::take_moved))
    }
}
