//! One channel as a state machine: what the registers show, what commands do.
//!
//! [`Core`] is data and synchronous logic only. It starts no I/O: a command that needs some leaves a request
//! behind, which [`super::channel::Channel`] carries to the drive's loop after it has let go of the lock that
//! every call here is made under. The loop reports back with [`Core::park`], [`Core::begin`] and [`Core::complete`].
//!
//! ```text
//!            command                 data register        last block
//!   Idle ------------> PioIn/PioOut <--------------> Busy ----------> Idle
//!    |  \------------> Busy (flush, first block of a read) ----------> Idle
//!    \---------------> DmaWait --bus master start--> Busy ----------> Idle
//!   any --SRST or machine reset--> Reset --SRST low, nothing running--> Idle
//! ```
//!
//! The Status register is computed from the phase, never stored. The interrupt line has one funnel, [`Core::drive_line`].

mod bus_master;
mod execute;
mod packet;
mod pio;
mod requests;

pub(super) use bus_master::BusMaster;
pub(super) use requests::Parking;

use super::atapi::CdRom;
use super::atapi::wire::PACKET_LEN;
use super::disk::{Disk, Settings};
use super::regs::{Control, Device, Error, Register, Signature, Status};
use super::smart::Smart;
use super::stats::{ChannelStats, DriveStats};
use super::taskfile::{Addressing, TaskFile};
use crate::irq::LineChanges;
use packet::{PacketData, Route};
use pio::Next;
use requests::Requests;

/// What a drive is.
#[derive(Debug)]
pub(super) enum Unit {
    Disk(Disk),
    CdRom(CdRom),
}

impl Unit {
    fn signature(&self) -> Signature {
        match self {
            Self::Disk(_) => Signature::Disk,
            Self::CdRom(_) => Signature::PacketDevice,
        }
    }

    fn power_on_settings(&self) -> Settings {
        match self {
            Self::Disk(disk) => Settings::power_on(disk),
            Self::CdRom(_) => Settings::packet_device(),
        }
    }
}

/// A drive with what the guest has set and what is counted.
#[derive(Debug)]
struct Drive {
    unit: Unit,
    settings: Settings,
    smart: Smart,
    stats: DriveStats,
}

/// One of the two places on the cable, occupied or not: an absent device's registers follow writes too.
#[derive(Debug)]
struct Slot {
    task: TaskFile,
    error: Error,
    /// The last command failed.
    failed: bool,
    /// A packet device that has had no command since its signature was posted: its status is zero (ATA/ATAPI-6,
    /// section 9.10).
    quiet: bool,
    drive: Option<Drive>,
}

impl Slot {
    fn new(unit: Option<Unit>) -> Self {
        let drive = unit.map(|unit| Drive {
            settings: unit.power_on_settings(),
            unit,
            smart: Smart::new(),
            stats: DriveStats::default(),
        });
        let mut slot = Self {
            task: TaskFile::with_signature(Signature::Absent),
            error: Error::empty(),
            failed: false,
            quiet: false,
            drive,
        };
        slot.post_signature();
        slot
    }

    /// What a reset or diagnostic leaves behind.
    fn post_signature(&mut self) {
        self.show_signature();
        self.error = match self.drive {
            Some(_) => Error::DIAGNOSTIC_PASSED,
            None => Error::empty(),
        };
        self.failed = false;
        self.quiet = self.signature() == Signature::PacketDevice;
    }

    /// Puts the signature into the registers.
    fn show_signature(&mut self) {
        self.task = TaskFile::with_signature(self.signature());
    }

    fn signature(&self) -> Signature {
        match &self.drive {
            Some(drive) => drive.unit.signature(),
            None => Signature::Absent,
        }
    }
}

/// The sectors that a command still has to transfer. Filled from the registers once, when the command is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Transfer {
    sector: u64,
    remaining: u32,
    /// Sectors to a block of the data register.
    block: u32,
    /// How to write the address back.
    addressing: Addressing,
    /// What is written is durable before the command ends, whatever the write cache is set to.
    durable: bool,
}

impl Transfer {
    /// Sectors in the next block.
    fn next_block(&self) -> u32 {
        self.remaining.min(self.block)
    }

    fn advance(&mut self, sectors: u32) {
        self.sector += u64::from(sectors);
        self.remaining -= sectors;
    }
}

/// A command for the bus master.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DmaCommand {
    Read(Transfer),
    Write(Transfer),
    /// DATA SET MANAGEMENT with so many bytes of ranges.
    Trim(usize),
    /// The data of a packet command; the channel knows which.
    Packet,
}

/// What the channel waits for the loop to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    /// Reading the next block for the data register.
    Read(Transfer),
    /// Writing the block that came through the data register.
    Write(Transfer),
    Dma(DmaCommand),
    Flush,
    /// Reading the next block of a packet command for the data register.
    PacketBlock,
}

#[derive(Debug)]
enum Phase {
    /// Ready for a command.
    Idle,
    /// The guest reads a block from the data register.
    PioIn {
        block: Vec<u8>,
        position: usize,
        next: Next,
    },
    /// The guest writes a block to the data register.
    PioOut {
        block: Vec<u8>,
        position: usize,
        transfer: Transfer,
    },
    /// The guest writes a packet to the data register.
    PacketOut {
        packet: [u8; PACKET_LEN],
        position: usize,
        route: Route,
    },
    /// The drive waits for the bus master to be started.
    DmaWait(DmaCommand),
    /// A request is in flight: submitted, parked or running.
    Busy(Work),
    /// A reset has begun and not ended.
    Reset(Reset),
}

/// How far a reset reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reset {
    /// DEVICE RESET: the selected device.
    Device,
    /// SRST: the devices.
    Software,
    /// The machine: the devices' settings and the bus master too.
    Machine,
    /// The channel is going away: the reset never ends.
    Retired,
}

/// See the [module](self).
pub(super) struct Core {
    slots: [Slot; 2],
    /// The selected device, 0 or 1.
    selected: usize,
    control: Control,
    /// The selected device's pending interrupt.
    interrupt: bool,
    /// What the line has gone through; [`crate::irq::Wire`] carries it out.
    line: LineChanges,
    phase: Phase,
    /// What the packet command under way transfers.
    packet: Option<PacketData>,
    bus_master: BusMaster,
    requests: Requests,
    resets: u64,
    /// The memory of a block that has been used, for the next.
    spare: Vec<u8>,
}

impl Core {
    /// A channel at power-on.
    pub fn new(units: [Option<Unit>; 2]) -> Self {
        Self {
            slots: units.map(Slot::new),
            selected: 0,
            control: Control::empty(),
            interrupt: false,
            line: LineChanges::default(),
            phase: Phase::Idle,
            packet: None,
            bus_master: BusMaster::default(),
            requests: Requests::default(),
            resets: 0,
            spare: Vec::new(),
        }
    }

    /// The disk `drive` has another size. What IDENTIFY DEVICE has told before is not recalled: an ATA disk has no
    /// way to say so by itself. Commands under way are measured again with their next block.
    pub fn resize(&mut self, drive: usize, sectors: u64) {
        if let Some(Drive {
            unit: Unit::Disk(disk),
            settings,
            ..
        }) = &mut self.slots[drive].drive
        {
            disk.resize(settings, sectors);
        }
    }

    /// Counters; the parked request is told by the phase of the request in flight.
    pub fn stats(&self) -> ChannelStats {
        ChannelStats {
            drives: [0, 1].map(|index| self.slots[index].drive.as_ref().map(|drive| drive.stats)),
            resets: self.resets,
            parked_now: self.requests.is_parked(),
        }
    }

    /// Reads a register of the command block other than Data.
    pub fn read(&mut self, register: Register) -> u8 {
        match register {
            Register::StatusCommand => {
                let status = self.status();
                self.set_interrupt(false);
                status.bits()
            }
            _ if self.is_empty() => 0,
            Register::ErrorFeatures if !self.control.contains(Control::HOB) => {
                self.slot().error.bits()
            }
            Register::Device => {
                let bits = self.slot().task.read(register, false);
                let mut device = Device::from_bits_retain(bits);
                device.set(Device::DEV, self.selected == 1);
                device.bits()
            }
            _ => {
                let previous = self.control.contains(Control::HOB);
                self.slot().task.read(register, previous)
            }
        }
    }

    /// Reads the Alternate Status register, which leaves the interrupt pending.
    pub fn alternate_status(&self) -> u8 {
        self.status().bits()
    }

    /// Writes a register of the command block other than Data.
    pub fn write(&mut self, register: Register, value: u8) {
        if register == Register::StatusCommand {
            self.control.remove(Control::HOB);
            self.set_interrupt(false);
            self.command(value);
            return;
        }
        if !matches!(self.phase, Phase::Idle) {
            return;
        }
        self.control.remove(Control::HOB);
        for slot in &mut self.slots {
            slot.task.write(register, value);
        }
        if register == Register::Device {
            let device = Device::from_bits_retain(value);
            self.selected = usize::from(device.contains(Device::DEV));
        }
    }

    /// Writes the Device Control register.
    pub fn write_control(&mut self, value: u8) {
        let before = self.control;
        self.control = Control::from_bits_truncate(value);
        if self.control.contains(Control::SRST) && !before.contains(Control::SRST) {
            self.begin_reset(Reset::Software);
        }
        self.try_finish_reset();
        self.drive_line();
    }

    /// The Status register of the selected device.
    fn status(&self) -> Status {
        let slot = self.slot();
        if slot.drive.is_none() {
            return Status::empty();
        }
        match &self.phase {
            Phase::Idle if slot.quiet => Status::empty(),
            Phase::Idle if slot.failed => Status::DRDY | Status::ERR,
            Phase::Idle => Status::DRDY | Status::DSC,
            Phase::PioIn { .. }
            | Phase::PioOut { .. }
            | Phase::PacketOut { .. }
            | Phase::DmaWait(_) => Status::DRDY | Status::DSC | Status::DRQ,
            Phase::Busy(_) => Status::BSY | Status::DRDY,
            Phase::Reset(_) => Status::BSY,
        }
    }

    fn slot(&self) -> &Slot {
        &self.slots[self.selected]
    }

    fn slot_mut(&mut self) -> &mut Slot {
        &mut self.slots[self.selected]
    }

    /// Whether no device is on the cable.
    fn is_empty(&self) -> bool {
        self.slots.iter().all(|slot| slot.drive.is_none())
    }

    /// Sets or clears the pending interrupt.
    fn set_interrupt(&mut self, pending: bool) {
        self.interrupt = pending;
        self.drive_line();
    }

    /// The one place where the interrupt line changes: pending and not masked by nIEN. The bus master notes the
    /// line's rising edge.
    fn drive_line(&mut self) {
        let level = self.interrupt && !self.control.contains(Control::NIEN);
        if level == self.line.level() {
            return;
        }
        self.line.flip();
        if level {
            self.bus_master.note_interrupt();
        }
    }
}
