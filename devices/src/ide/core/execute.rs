//! What each command does when it is given.
//!
//! Commands without I/O are complete when the write of the Command register returns.

use super::super::ata::{
    Command, FEATURE_TRIM, Feature, MAX_MULTIPLE, MAX_TRIM_BLOCKS, POWER_ACTIVE, Protocol,
    TransferMode, Width,
};
use super::super::disk::{Disk, Settings};
use super::super::identify::{identify, identify_packet};
use super::super::regs::{Error, SECTOR_SIZE};
use super::super::request::Operation;
use super::super::smart::{self, Smart, Subcommand};
use super::super::stats::DriveStats;
use super::super::taskfile::{Addressing, Geometry};
use super::pio::Next;
use super::{Core, DmaCommand, Phase, Transfer, Unit, Work};

/// A command's verdict when it needs no I/O.
type Immediate = Result<(), Abort>;

/// The command is to be aborted.
pub(super) struct Abort;

impl Core {
    /// A write of the Command register.
    pub(super) fn command(&mut self, code: u8) {
        let command = Command::decode(code);
        if command == Some(Command::DeviceReset) && self.is_packet_device() {
            self.device_reset();
            return;
        }
        if !matches!(self.phase, Phase::Idle) {
            return;
        }
        // Both devices run a diagnostic, whichever is selected (ATA/ATAPI-6, section 8.11).
        let addressed = match command {
            Some(Command::Diagnostic) => !self.is_empty(),
            _ => self.slot().drive.is_some(),
        };
        if !addressed {
            return;
        }
        self.count(|stats| stats.commands += 1);
        let slot = self.slot_mut();
        slot.failed = false;
        slot.error = Error::empty();
        slot.quiet = false;
        let Some(command) = command.filter(|command| self.knows(*command)) else {
            if self.is_packet_device() && command.is_some_and(Command::shows_packet_signature) {
                self.slot_mut().show_signature();
            }
            self.abort();
            return;
        };
        match self.execute(command) {
            // The command is over unless it entered another phase. After a diagnostic device 0 is
            // selected, which may be absent: then nobody interrupts.
            Ok(()) if matches!(self.phase, Phase::Idle) => {
                self.set_interrupt(self.slot().drive.is_some());
            }
            Ok(()) => {}
            Err(Abort) => self.abort(),
        }
    }

    /// Whether the selected device has such a command.
    fn knows(&self, command: Command) -> bool {
        match command {
            Command::Diagnostic => true,
            _ if self.is_packet_device() => command.is_for_packet_devices(),
            _ => command.is_for_disks(),
        }
    }

    fn execute(&mut self, command: Command) -> Immediate {
        match command {
            // A reset is not waited for by anybody but the guest, which has been answered by `command`.
            Command::NoOperation | Command::SetPower | Command::DeviceReset => Ok(()),
            Command::Packet => self.packet_command(),
            Command::Read(protocol, width) => self.read_command(protocol, width),
            Command::Write(protocol, width) => {
                let transfer = self.transfer(width, self.block_of(protocol)?)?;
                self.write_command(protocol, transfer);
                Ok(())
            }
            Command::WriteDurably(protocol) => {
                let mut transfer = self.transfer(Width::Lba48, self.block_of(protocol)?)?;
                transfer.durable = true;
                self.write_command(protocol, transfer);
                Ok(())
            }
            Command::Smart => self.smart(),
            Command::DataSetManagement => self.data_set_management(),
            Command::Verify(width) => self.verify(width),
            Command::Seek => self.seek(),
            Command::ReadNativeMax(width) => self.read_native_max(width),
            Command::Diagnostic => {
                self.diagnostic();
                Ok(())
            }
            Command::InitializeParameters => self.initialize_parameters(),
            Command::CheckPower => {
                self.slot_mut().task.set_count_byte(POWER_ACTIVE);
                Ok(())
            }
            Command::SetMultiple => self.set_multiple(),
            Command::Flush => {
                self.flush();
                Ok(())
            }
            Command::Identify | Command::IdentifyPacket => self.identify(),
            Command::SetFeatures => self.set_features(),
        }
    }

    /// Ends a command with an error and an interrupt.
    pub(super) fn abort(&mut self) {
        self.phase = Phase::Idle;
        let slot = self.slot_mut();
        slot.failed = true;
        slot.error = Error::ABRT;
        if let Some(drive) = &mut slot.drive {
            drive.stats.aborted += 1;
        }
        self.set_interrupt(true);
    }

    /// Ends a command well, with an interrupt.
    pub(super) fn finish(&mut self) {
        self.phase = Phase::Idle;
        self.set_interrupt(true);
    }

    pub(super) fn disk(&self) -> Option<&Disk> {
        match &self.slot().drive.as_ref()?.unit {
            Unit::Disk(disk) => Some(disk),
            Unit::CdRom(_) => None,
        }
    }

    pub(super) fn settings(&self) -> Option<&Settings> {
        self.slot().drive.as_ref().map(|drive| &drive.settings)
    }

    fn settings_mut(&mut self) -> Result<&mut Settings, Abort> {
        let drive = self.slot_mut().drive.as_mut().ok_or(Abort)?;
        Ok(&mut drive.settings)
    }

    pub(super) fn count(&mut self, count: impl FnOnce(&mut DriveStats)) {
        if let Some(drive) = &mut self.slot_mut().drive {
            count(&mut drive.stats);
        }
    }

    /// Reads the address registers, once.
    fn transfer(&self, width: Width, block: u32) -> Result<Transfer, Abort> {
        let task = &self.slot().task;
        let settings = self.settings().ok_or(Abort)?;
        let addressing = task.addressing(width, settings.translation);
        Ok(Transfer {
            sector: task.address(addressing).ok_or(Abort)?,
            remaining: task.sector_count(width),
            block,
            addressing,
            durable: false,
        })
    }

    fn block_of(&self, protocol: Protocol) -> Result<u32, Abort> {
        match protocol {
            Protocol::Sectors | Protocol::Dma => Ok(1),
            Protocol::Multiple => match self.settings().ok_or(Abort)?.multiple {
                0 => Err(Abort),
                block => Ok(block.into()),
            },
        }
    }

    fn read_command(&mut self, protocol: Protocol, width: Width) -> Immediate {
        let transfer = self.transfer(width, self.block_of(protocol)?)?;
        if protocol == Protocol::Dma {
            self.await_bus_master(DmaCommand::Read(transfer));
        } else {
            self.read_block(transfer);
        }
        Ok(())
    }

    fn write_command(&mut self, protocol: Protocol, transfer: Transfer) {
        if protocol == Protocol::Dma {
            self.await_bus_master(DmaCommand::Write(transfer));
        } else {
            // The first block is asked for without an interrupt (ATA/ATAPI-6, section 9.6).
            self.expect_block(transfer);
        }
    }

    fn data_set_management(&mut self) -> Immediate {
        let task = &self.slot().task;
        // The upper byte counts for nothing, as in QEMU: more blocks than fit the lower one are too many in any
        // case, and a driver that writes the register once leaves its former value there.
        let blocks = task.sector_count(Width::Lba28);
        let offered = self.disk().is_some_and(|disk| disk.discard);
        if !offered || task.features() != FEATURE_TRIM || blocks > u32::from(MAX_TRIM_BLOCKS) {
            return Err(Abort);
        }
        let blocks = usize::try_from(blocks).map_err(|_| Abort)?;
        self.await_bus_master(DmaCommand::Trim(blocks * SECTOR_SIZE));
        Ok(())
    }

    /// Nothing to verify in a file without reading it; the range is checked.
    fn verify(&mut self, width: Width) -> Immediate {
        let transfer = self.transfer(width, 1)?;
        let disk = self.disk().ok_or(Abort)?;
        if disk.contains(transfer.sector, transfer.remaining) {
            Ok(())
        } else {
            Err(Abort)
        }
    }

    fn seek(&mut self) -> Immediate {
        let transfer = self.transfer(Width::Lba28, 1)?;
        let disk = self.disk().ok_or(Abort)?;
        if disk.contains(transfer.sector, 1) {
            Ok(())
        } else {
            Err(Abort)
        }
    }

    /// Under the native translation, whatever INITIALIZE DEVICE PARAMETERS said.
    fn read_native_max(&mut self, width: Width) -> Immediate {
        const LBA28_LAST: u64 = 0x0fff_ffff;
        let disk = self.disk().ok_or(Abort)?;
        let geometry = disk.geometry();
        let last = disk.sectors.checked_sub(1).ok_or(Abort)?;
        let task = &mut self.slot_mut().task;
        match task.addressing(width, geometry) {
            addressing @ Addressing::Lba(Width::Lba28) => {
                task.set_address(addressing, last.min(LBA28_LAST));
            }
            addressing @ Addressing::Lba(Width::Lba48) => task.set_address(addressing, last),
            addressing @ Addressing::Chs(_) => {
                let reach = u64::from(geometry.capacity()).saturating_sub(1);
                task.set_address(addressing, last.min(reach));
            }
        }
        Ok(())
    }

    /// Both devices run it; device 0 is selected afterwards.
    fn diagnostic(&mut self) {
        for slot in &mut self.slots {
            slot.post_signature();
        }
        self.selected = 0;
    }

    fn initialize_parameters(&mut self) -> Immediate {
        let task = &self.slot().task;
        let (heads, sectors) = (task.head() + 1, task.count_byte());
        let capacity = self.disk().ok_or(Abort)?.sectors;
        let translation = Geometry::translated(capacity, heads, sectors).ok_or(Abort)?;
        self.settings_mut()?.translation = translation;
        Ok(())
    }

    fn set_multiple(&mut self) -> Immediate {
        let block = self.slot().task.count_byte();
        if block > MAX_MULTIPLE || (block != 0 && !block.is_power_of_two()) {
            return Err(Abort);
        }
        self.settings_mut()?.multiple = block;
        Ok(())
    }

    fn flush(&mut self) {
        if self.is_packet_device() {
            // Nothing was written.
            return;
        }
        self.count(|stats| stats.flushes += 1);
        self.phase = Phase::Busy(Work::Flush);
        self.launch(Operation::Flush);
    }

    fn identify(&mut self) -> Immediate {
        let drive = self.slot().drive.as_ref().ok_or(Abort)?;
        let block = match &drive.unit {
            Unit::Disk(disk) => identify(disk, &drive.settings, &drive.smart),
            Unit::CdRom(cd_rom) => identify_packet(cd_rom.identity(), &drive.settings),
        };
        self.offer_block(block, Next::Nothing);
        Ok(())
    }

    /// SMART (ATA/ATAPI-6, section 8.41). Its logs are of one sector each.
    fn smart(&mut self) -> Immediate {
        const SECTORS: u8 = 1;
        let task = &self.slot().task;
        let (feature, count, low) = (task.features(), task.count_byte(), task.lba_low());
        let subcommand = Subcommand::decode(feature).ok_or(Abort)?;
        if task.byte_count() != smart::KEY {
            return Err(Abort);
        }
        let smart = &mut self.slot_mut().drive.as_mut().ok_or(Abort)?.smart;
        if !smart.is_enabled() && subcommand != Subcommand::Enable {
            return Err(Abort);
        }
        let data = match subcommand {
            Subcommand::Enable | Subcommand::Disable => {
                smart.set_enabled(subcommand == Subcommand::Enable);
                return Ok(());
            }
            Subcommand::AutoSave if Smart::takes_auto_save(count) => return Ok(()),
            Subcommand::ExecuteOffline if smart.execute_offline(low) => return Ok(()),
            Subcommand::AutoSave | Subcommand::ExecuteOffline => return Err(Abort),
            // The key, left in its registers, says that no threshold is exceeded.
            Subcommand::SaveValues | Subcommand::ReturnStatus => return Ok(()),
            Subcommand::ReadData => smart.data(),
            Subcommand::ReadThresholds => Smart::thresholds(),
            Subcommand::ReadLog if count == SECTORS => smart.log(low).ok_or(Abort)?,
            Subcommand::ReadLog => return Err(Abort),
        };
        self.offer_block(data, Next::Nothing);
        Ok(())
    }

    fn set_write_cache(&mut self, on: bool) -> Immediate {
        if self.is_packet_device() {
            return Err(Abort);
        }
        self.settings_mut()?.write_cache = on;
        self.note_write_cache(self.selected, on);
        Ok(())
    }

    fn set_features(&mut self) -> Immediate {
        let task = &self.slot().task;
        let (feature, count) = (task.features(), task.count_byte());
        match Feature::decode(feature).ok_or(Abort)? {
            Feature::EnableWriteCache => self.set_write_cache(true)?,
            Feature::DisableWriteCache => {
                self.set_write_cache(false)?;
                self.flush();
            }
            Feature::TransferMode => {
                let mode = TransferMode::decode(count).ok_or(Abort)?;
                self.settings_mut()?.mode = mode;
            }
            Feature::Ignored => {}
        }
        Ok(())
    }
}
