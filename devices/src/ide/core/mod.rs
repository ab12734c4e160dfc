//! One channel as a state machine: what the registers show, what commands do.
//!
//! [`Core`] is data and synchronous logic only. It starts no I/O: a command that needs some leaves a [`Launch`]
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
mod pio;
mod requests;

use std::sync::Arc;

pub(super) use bus_master::BusMaster;
pub(super) use requests::{Launch, Parking};

use super::disk::{Disk, Settings};
use super::regs::{Control, Device, Error, Register, Signature, Status};
use super::stats::{ChannelStats, DriveStats};
use super::taskfile::{Addressing, TaskFile};
use crate::irq::IrqLine;
use requests::Requests;

/// A disk with what the guest has set and what is counted.
#[derive(Debug)]
struct Drive {
    disk: Disk,
    settings: Settings,
    stats: DriveStats,
}

/// One of the two places on the cable, occupied or not: an absent device's registers follow writes too.
#[derive(Debug)]
struct Slot {
    task: TaskFile,
    error: Error,
    /// The last command failed.
    failed: bool,
    drive: Option<Drive>,
}

impl Slot {
    fn new(disk: Option<Disk>) -> Self {
        let drive = disk.map(|disk| Drive {
            settings: Settings::power_on(&disk),
            disk,
            stats: DriveStats::default(),
        });
        let mut slot = Self {
            task: TaskFile::with_signature(Signature::Absent),
            error: Error::empty(),
            failed: false,
            drive,
        };
        slot.post_signature();
        slot
    }

    /// What a reset or diagnostic leaves behind.
    fn post_signature(&mut self) {
        let (signature, error) = match self.drive {
            Some(_) => (Signature::Disk, Error::DIAGNOSTIC_PASSED),
            None => (Signature::Absent, Error::empty()),
        };
        self.task = TaskFile::with_signature(signature);
        self.error = error;
        self.failed = false;
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
}

#[derive(Debug)]
enum Phase {
    /// Ready for a command.
    Idle,
    /// The guest reads a block from the data register.
    PioIn {
        block: Vec<u8>,
        position: usize,
        next: Option<Transfer>,
    },
    /// The guest writes a block to the data register.
    PioOut {
        block: Vec<u8>,
        position: usize,
        transfer: Transfer,
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
    /// The level last given to the line.
    level: bool,
    line: Arc<dyn IrqLine>,
    phase: Phase,
    bus_master: BusMaster,
    requests: Requests,
    resets: u64,
}

impl Core {
    /// A channel at power-on.
    pub fn new(disks: [Option<Disk>; 2], line: Arc<dyn IrqLine>) -> Self {
        Self {
            slots: disks.map(Slot::new),
            selected: 0,
            control: Control::empty(),
            interrupt: false,
            level: false,
            line,
            phase: Phase::Idle,
            bus_master: BusMaster::default(),
            requests: Requests::default(),
            resets: 0,
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
            Phase::Idle if slot.failed => Status::DRDY | Status::ERR,
            Phase::Idle => Status::DRDY | Status::DSC,
            Phase::PioIn { .. } | Phase::PioOut { .. } | Phase::DmaWait(_) => {
                Status::DRDY | Status::DSC | Status::DRQ
            }
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
        if level == self.level {
            return;
        }
        self.level = level;
        if level {
            self.bus_master.note_interrupt();
        }
        self.line.set(level);
    }
}
