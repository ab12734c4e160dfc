//! The PCI function: configuration space, legacy ports, bus master window.
//!
//! Made by the machine builder, which registers [`IdeController::ports`] on the port bus and adds the function to the
//! PCI bus. Sources: Intel 82371SB (PIIX3) datasheet sections 2.3 and 2.6, 82371AB (PIIX4) sections 5.1 and 5.2.

use std::ops::RangeInclusive;
use std::sync::Arc;

use parking_lot::Mutex;
use sluice_aio::{AioContext, GuestRam};

use super::IdeError;
use super::atapi::CdRom;
use super::channel::{Channel, Wiring};
use super::core::{Core, Unit};
use super::disk::{Disk, DriveConfig, DriveIdentity, DriveKind};
use super::regs::{COMMAND_BLOCK_LEN, LEGACY_PORTS, Register, SECTOR_SIZE, bm};
use super::stats::ChannelStats;
use crate::bus::{FLOATING, PioDevice};
use crate::irq::IrqLine;
use crate::pci::layout::Status;
use crate::pci::{BarIndex, BarKind, ConfigBuilder, Identity, PciConfig, PciFunction, class};
use crate::posted::PostedWrites;
use crate::reset::Resetting;

/// Which part of the PIIX family the function claims to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IdeVariant {
    /// 82371SB, device 7010. Linux drives it with multiword DMA.
    #[default]
    Piix3,
    /// 82371AB, device 7111. Linux drives it with Ultra DMA/33.
    Piix4,
}

impl IdeVariant {
    const VENDOR_INTEL: u16 = 0x8086;

    fn identity(self) -> Identity {
        let device = match self {
            Self::Piix3 => 0x7010,
            Self::Piix4 => 0x7111,
        };
        Identity {
            vendor: Self::VENDOR_INTEL,
            device,
            revision: 0,
            class: class::IDE,
        }
    }
}

/// The bus master's window: both channels' registers.
const BUS_MASTER_BAR: BarIndex = BarIndex::BAR4;
const BUS_MASTER_LEN: u64 = 2 * bm::CHANNEL_LEN;

/// Timing registers of the configuration space. They keep what is written and time nothing.
mod timing {
    /// IDETIM of the primary and the secondary channel, 16 bits each.
    pub(super) const IDETIM: usize = 0x40;
    /// IDETIM: the channel answers at its ports. Set after power-on, as no firmware runs that would set it.
    const IDE_DECODE_ENABLE: u16 = 1 << 15;
    /// SIDETIM, UDMACTL, (one reserved byte) and UDMATIM.
    pub(super) const REST: usize = 0x44;
    pub(super) const REST_WRITABLE: [u8; 8] = [0xff, 0, 0, 0, 0x0f, 0, 0x33, 0x33];

    pub(super) fn idetim() -> [u8; 4] {
        let [low, high] = IDE_DECODE_ENABLE.to_le_bytes();
        [low, high, low, high]
    }
}

/// What a controller is made of.
pub struct IdeConfig {
    /// The guest's memory, for bus master transfers.
    pub memory: Arc<GuestRam>,
    /// The loop that serves requests: the main one.
    pub context: AioContext,
    /// Interrupt lines 14 and 15.
    pub irq: [Arc<dyn IrqLine>; 2],
    /// Where writes to registers that only keep them are queued.
    pub posted: Arc<dyn PostedWrites>,
    /// Which part to be.
    pub variant: IdeVariant,
    /// `drives[channel][unit]`.
    pub drives: [[Option<DriveConfig>; 2]; 2],
}

/// See the [module](super).
pub struct IdeController {
    config: Arc<PciConfig>,
    channels: [Arc<Channel>; 2],
    posted: Arc<dyn PostedWrites>,
    /// Where the bus master's window was put last.
    bus_master_base: Mutex<Option<u16>>,
}

impl IdeController {
    /// Makes the controller at its power-on state. Any thread.
    ///
    /// # Errors
    /// [`IdeError`] when a drive's property or backend will not do.
    pub fn new(config: &IdeConfig) -> Result<Arc<Self>, IdeError> {
        let space = Arc::new(configuration_space(config.variant)?);
        let channel = |index: usize| {
            let [master, slave] = &config.drives[index];
            let units = [
                unit(master.as_ref(), index, 0)?,
                unit(slave.as_ref(), index, 1)?,
            ];
            let core = Core::new(units);
            let line = Arc::clone(&config.irq[index]);
            let drives = [master.as_ref(), slave.as_ref()];
            let memory = Arc::clone(&config.memory);
            let context = &config.context;
            let space = Arc::clone(&space);
            Ok::<_, IdeError>(Channel::new(
                core,
                Wiring {
                    line,
                    posted: Arc::clone(&config.posted),
                },
                drives,
                context,
                memory,
                space,
            ))
        };
        let channels = [channel(0)?, channel(1)?];
        for ports in LEGACY_PORTS {
            config.posted.attach(ports.latches());
        }
        Ok(Arc::new(Self {
            config: space,
            channels,
            posted: Arc::clone(&config.posted),
            bus_master_base: Mutex::default(),
        }))
    }

    /// The legacy ports, to be put on the port bus.
    pub fn ports() -> impl Iterator<Item = RangeInclusive<u16>> {
        LEGACY_PORTS.into_iter().flat_map(|ports| {
            let last = ports.command + COMMAND_BLOCK_LEN - 1;
            [ports.command..=last, ports.control..=ports.control]
        })
    }

    /// Counters of both channels. Any thread.
    pub(super) fn stats(&self) -> [ChannelStats; 2] {
        [0, 1].map(|index| self.channels[index].access(|core| core.stats()))
    }

    /// Begins to settle both channels; resolves when nothing of theirs is in flight.
    fn settle(&self, begin: fn(&mut Core)) -> Resetting {
        let channels = self.channels.clone();
        for channel in &channels {
            channel.access(begin);
        }
        Box::pin(async move {
            for channel in channels {
                channel.idle().await;
            }
        })
    }

    /// The channel and register of a port.
    fn decode(&self, port: u16) -> Option<(&Arc<Channel>, Place)> {
        LEGACY_PORTS
            .iter()
            .zip(&self.channels)
            .find_map(|(ports, channel)| {
                if port == ports.control {
                    return Some((channel, Place::Control));
                }
                let offset = port.checked_sub(ports.command)?;
                Some((channel, Place::Command(Register::at(offset)?)))
            })
    }
}

/// The ports of both channels' bus masters at `base` that only keep what is written.
fn bus_master_latches(base: u16) -> impl Iterator<Item = RangeInclusive<u16>> {
    let at = move |offset: u64| base.checked_add(u16::try_from(offset).ok()?);
    let offsets = [0, bm::CHANNEL_LEN]
        .into_iter()
        .flat_map(|channel| bm::LATCHES.map(|(offset, length)| (channel + offset, length)));
    offsets.filter_map(move |(offset, length)| Some(at(offset)?..=at(offset + length - 1)?))
}

/// Where an access goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Command(Register),
    Control,
}

fn unit(
    config: Option<&DriveConfig>,
    channel: usize,
    unit: usize,
) -> Result<Option<Unit>, IdeError> {
    let Some(config) = config else {
        return Ok(None);
    };
    let number = 2 * channel + unit + 1;
    if config.kind == DriveKind::CdRom {
        let identity = DriveIdentity::new(config, number)?;
        let cd_rom = CdRom::new(identity, Arc::clone(&config.backend));
        return Ok(Some(Unit::CdRom(cd_rom)));
    }
    let place = || format!("ide.{channel} unit {unit}");
    let bytes = config.backend.len();
    if config.backend.is_read_only() {
        return Err(IdeError::ReadOnly { place: place() });
    }
    if bytes < SECTOR_SIZE as u64 {
        return Err(IdeError::TooSmall {
            place: place(),
            bytes,
        });
    }
    let disk = Disk::new(config, number)?;
    Ok(Some(Unit::Disk(disk)))
}

pub(super) fn configuration_space(variant: IdeVariant) -> Result<PciConfig, IdeError> {
    let idetim = timing::idetim();
    let builder = ConfigBuilder::new(variant.identity())
        .status(Status::FAST_BACK_TO_BACK | Status::DEVSEL_MEDIUM)
        .bar(BUS_MASTER_BAR, BarKind::Io, BUS_MASTER_LEN)?
        .registers(timing::IDETIM, &idetim, &[0xff; 4])
        .registers(
            timing::REST,
            &[0; timing::REST_WRITABLE.len()],
            &timing::REST_WRITABLE,
        );
    Ok(builder.build())
}

impl PioDevice for IdeController {
    fn read(&self, port: u16, data: &mut [u8]) {
        self.read_string(port, data.len(), data);
    }

    fn write(&self, port: u16, data: &[u8]) {
        self.write_string(port, data.len(), data);
    }

    fn read_string(&self, port: u16, width: usize, data: &mut [u8]) {
        match self.decode(port) {
            Some((channel, Place::Command(Register::Data))) => channel.guest_access(|core| {
                for access in data.chunks_mut(width.max(1)) {
                    core.read_data(access);
                }
            }),
            _ => {
                for access in data.chunks_mut(width.max(1)) {
                    self.read_bytes(port, access);
                }
            }
        }
    }

    fn write_string(&self, port: u16, width: usize, data: &[u8]) {
        match self.decode(port) {
            Some((channel, Place::Command(Register::Data))) => channel.guest_access(|core| {
                for access in data.chunks(width.max(1)) {
                    core.write_data(access);
                }
            }),
            _ => {
                for access in data.chunks(width.max(1)) {
                    self.write_bytes(port, access);
                }
            }
        }
    }
}

/// Registers other than Data are bytes: a wider access is one to each port in turn.
impl IdeController {
    fn read_bytes(&self, port: u16, data: &mut [u8]) {
        for (port, byte) in (port..).zip(data) {
            *byte = match self.decode(port) {
                Some((channel, Place::Control)) => {
                    channel.guest_access(|core| core.alternate_status())
                }
                Some((channel, Place::Command(register))) => {
                    channel.guest_access(|core| core.read(register))
                }
                None => FLOATING,
            };
        }
    }

    fn write_bytes(&self, port: u16, data: &[u8]) {
        for (port, byte) in (port..).zip(data) {
            match self.decode(port) {
                Some((channel, Place::Control)) => {
                    channel.guest_access(|core| core.write_control(*byte));
                }
                Some((channel, Place::Command(register))) => {
                    channel.guest_access(|core| core.write(register, *byte));
                }
                None => {}
            }
        }
    }
}

impl PciFunction for IdeController {
    fn config(&self) -> &PciConfig {
        &self.config
    }

    fn bar_read(&self, bar: BarIndex, offset: u64, data: &mut [u8]) {
        data.fill(FLOATING);
        if let Some((channel, offset)) = self.bus_master(bar, offset) {
            channel.guest_access(|core| core.bus_master_read(offset, data));
        }
    }

    fn bar_write(&self, bar: BarIndex, offset: u64, data: &[u8]) {
        if let Some((channel, offset)) = self.bus_master(bar, offset) {
            channel.guest_access(|core| core.bus_master_write(offset, data));
        }
    }

    fn bar_placed(&self, bar: BarIndex, place: Option<u64>) {
        if bar != BUS_MASTER_BAR {
            return;
        }
        let base = place.and_then(|place| u16::try_from(place).ok());
        let before = std::mem::replace(&mut *self.bus_master_base.lock(), base);
        for ports in before.into_iter().flat_map(bus_master_latches) {
            self.posted.detach(ports);
        }
        for ports in base.into_iter().flat_map(bus_master_latches) {
            self.posted.attach(ports);
        }
    }

    fn reset(&self) -> Resetting {
        self.settle(Core::machine_reset)
    }

    /// Cancels what is parked, waits for what runs, and accepts nothing more. The loop that serves
    /// the drives must be running.
    fn retire(&self) -> Resetting {
        let settled = self.settle(Core::retire);
        for (channel, stats) in self.stats().iter().enumerate() {
            tracing::debug!(channel, ?stats, "an IDE channel is retired");
        }
        settled
    }
}

impl IdeController {
    /// The channel whose half of the bus master window `offset` is in, and the offset there.
    fn bus_master(&self, bar: BarIndex, offset: u64) -> Option<(&Arc<Channel>, u64)> {
        if bar != BUS_MASTER_BAR {
            return None;
        }
        let index = usize::try_from(offset / bm::CHANNEL_LEN).ok()?;
        Some((self.channels.get(index)?, offset % bm::CHANNEL_LEN))
    }
}
