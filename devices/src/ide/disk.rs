//! What a drive is, and how the guest has set it.
//!
//! [`DriveConfig`] comes from the machine builder; [`Disk`], or for a CD-ROM [`DriveIdentity`], is the checked part
//! of it, which no command changes; [`Settings`] is what commands change. Pure data but for the backend in the configuration.

use std::sync::Arc;

use sluice_block::Backend;

use super::IdeError;
use super::ata::{MAX_MULTIPLE, TransferMode};
use super::regs::SECTOR_SIZE;
use super::taskfile::Geometry;

/// Room for the texts in IDENTIFY DEVICE, in characters.
const SERIAL_MAX: usize = 20;
const MODEL_MAX: usize = 40;
const FIRMWARE_MAX: usize = 8;

/// The least that a medium writes at once, in bytes: a sector.
const LEAST_BLOCK: u32 = 512;

const DEFAULT_MODEL: &str = "SLUICE HARDDISK";
const DEFAULT_CD_MODEL: &str = "SLUICE DVD-ROM";
const DEFAULT_FIRMWARE: &str = env!("CARGO_PKG_VERSION");

/// What kind of drive there is on an IDE channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DriveKind {
    /// An ATA disk (`ide-hd`).
    #[default]
    Disk,
    /// An ATAPI CD/DVD-ROM drive with a tray (`ide-cd`), which may be empty. What is not said of it in
    /// [`DriveConfig`] does not apply.
    CdRom,
}

/// One drive of an IDE channel, as the machine builder describes it.
#[derive(Clone)]
pub struct DriveConfig {
    /// Disk or CD-ROM.
    pub kind: DriveKind,
    /// Where its sectors are. A disk's length may change at the end of drained sections; a CD-ROM's changes
    /// with the medium.
    pub backend: Arc<Backend>,
    /// Serial number, at most 20 printable ASCII characters; by default made from the place
    /// (`QM00001` for the primary master).
    pub serial: Option<String>,
    /// Model, at most 40 printable ASCII characters.
    pub model: Option<String>,
    /// Firmware version, at most 8 printable ASCII characters.
    pub firmware: Option<String>,
    /// Whether the write cache is on after power-on. When it is off every write is followed by a flush.
    pub write_cache: bool,
    /// Rotation rate in revolutions a minute, 1 for a disk that does not rotate.
    pub rotation_rate: Option<u16>,
    /// The name that no other drive in the world has (NAA, as 64 bits); none if zero.
    pub wwn: u64,
    /// Bytes that the medium writes at once: a power of two from 512 to 16 MiB. Addresses count 512 bytes
    /// whatever it is.
    pub physical_block_size: u32,
    /// The native translation, in place of the customary one for the capacity.
    pub geometry: Option<Geometry>,
    /// Whether TRIM is offered.
    pub discard: bool,
    /// Whether requests wait while the disk is drained. Switched off only by the negative control,
    /// which shows what is lost then.
    #[cfg(feature = "test-hooks")]
    pub postpone: bool,
}

impl DriveConfig {
    /// A disk on `backend` with every property at its default.
    pub fn new(backend: Arc<Backend>) -> Self {
        Self {
            kind: DriveKind::Disk,
            backend,
            serial: None,
            model: None,
            firmware: None,
            write_cache: true,
            rotation_rate: None,
            wwn: 0,
            physical_block_size: LEAST_BLOCK,
            geometry: None,
            discard: true,
            #[cfg(feature = "test-hooks")]
            postpone: true,
        }
    }

    /// A CD-ROM drive whose medium is `backend`'s, with every property at its default.
    pub fn cd_rom(backend: Arc<Backend>) -> Self {
        Self {
            kind: DriveKind::CdRom,
            ..Self::new(backend)
        }
    }
}

/// By what a drive is told from others.
#[derive(Clone, Debug)]
pub(super) struct DriveIdentity {
    pub serial: String,
    pub model: String,
    pub firmware: String,
    /// The name that no other drive in the world has, if not zero.
    pub wwn: u64,
}

impl DriveIdentity {
    /// Checks a configuration; `place` (1 to 4) numbers the default serial.
    pub fn new(config: &DriveConfig, place: usize) -> Result<Self, IdeError> {
        let serial = config.serial.clone();
        let model = config.model.clone();
        let firmware = config.firmware.clone();
        let default_model = match config.kind {
            DriveKind::Disk => DEFAULT_MODEL,
            DriveKind::CdRom => DEFAULT_CD_MODEL,
        };
        Ok(Self {
            serial: text("serial", serial, SERIAL_MAX, || format!("QM{place:05}"))?,
            model: text("model", model, MODEL_MAX, || default_model.to_owned())?,
            firmware: text("ver", firmware, FIRMWARE_MAX, || {
                DEFAULT_FIRMWARE.to_owned()
            })?,
            wwn: config.wwn,
        })
    }
}

/// The properties of a disk. Only its capacity changes, and that by no command.
#[derive(Clone, Debug)]
pub(super) struct Disk {
    pub identity: DriveIdentity,
    /// Capacity in sectors; a last fraction of a sector is not reachable.
    pub sectors: u64,
    pub rotation_rate: Option<u16>,
    /// Sectors that the medium writes at once, as a power of two.
    pub physical_exponent: u8,
    /// The native translation, if it is not the customary one.
    pub asked_for: Option<Geometry>,
    pub discard: bool,
    pub write_cache: bool,
}

impl Disk {
    /// Checks a configuration; `place` (1 to 4) numbers the default serial.
    pub fn new(config: &DriveConfig, place: usize) -> Result<Self, IdeError> {
        if let Some(geometry) = config.geometry.filter(|geometry| !geometry.makes_sense()) {
            return Err(IdeError::Geometry(geometry));
        }
        Ok(Self {
            identity: DriveIdentity::new(config, place)?,
            sectors: config.backend.len() / SECTOR_SIZE as u64,
            rotation_rate: config.rotation_rate,
            physical_exponent: physical_exponent(config.physical_block_size)?,
            asked_for: config.geometry,
            discard: config.discard,
            write_cache: config.write_cache,
        })
    }

    /// Another capacity, which the native translation follows. One that the guest has asked for keeps its heads and
    /// sectors.
    pub fn resize(&mut self, settings: &mut Settings, sectors: u64) {
        let was_native = settings.translation == self.geometry();
        self.sectors = sectors;
        let asked_for = settings.translation;
        settings.translation =
            match Geometry::translated(sectors, asked_for.heads, asked_for.sectors) {
                Some(translation) if !was_native => translation,
                _ => self.geometry(),
            };
    }

    /// The native translation.
    pub fn geometry(&self) -> Geometry {
        let customary = || Geometry::for_capacity(self.sectors);
        self.asked_for.unwrap_or_else(customary)
    }

    /// Whether `count` sectors from `sector` exist.
    pub fn contains(&self, sector: u64, count: u32) -> bool {
        sector
            .checked_add(u64::from(count))
            .is_some_and(|end| end <= self.sectors)
    }
}

/// How many times a sector has to be doubled for a physical block.
fn physical_exponent(bytes: u32) -> Result<u8, IdeError> {
    /// What word 106 of IDENTIFY DEVICE has room for.
    const MAX: u8 = 15;
    (0..=MAX)
        .find(|exponent| LEAST_BLOCK << exponent == bytes)
        .ok_or(IdeError::PhysicalBlock(bytes))
}

fn text(
    property: &'static str,
    value: Option<String>,
    limit: usize,
    default: impl FnOnce() -> String,
) -> Result<String, IdeError> {
    let value = value.unwrap_or_else(default);
    let printable = value
        .bytes()
        .all(|byte| byte == b' ' || byte.is_ascii_graphic());
    if value.len() <= limit && printable {
        Ok(value)
    } else {
        Err(IdeError::Text {
            property,
            value,
            limit,
        })
    }
}

/// What commands change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Settings {
    /// Sectors in a block of READ/WRITE MULTIPLE; 0: these commands are disabled.
    pub multiple: u8,
    /// The selected transfer mode; reported, without effect on the transfer.
    pub mode: TransferMode,
    /// Whether a write may end before it is on stable storage.
    pub write_cache: bool,
    /// The current translation of cylinders, heads and sectors.
    pub translation: Geometry,
}

impl Settings {
    /// The settings after power-on or a hardware reset.
    pub fn power_on(disk: &Disk) -> Self {
        Self {
            multiple: MAX_MULTIPLE,
            mode: TransferMode::UltraDma(TransferMode::MAX_ULTRA),
            write_cache: disk.write_cache,
            translation: disk.geometry(),
        }
    }

    /// The settings of a packet device, of which only the transfer mode means anything.
    pub fn packet_device() -> Self {
        Self {
            multiple: MAX_MULTIPLE,
            mode: TransferMode::UltraDma(TransferMode::MAX_ULTRA),
            write_cache: false,
            translation: Geometry::for_capacity(0),
        }
    }

    /// A software reset keeps everything but the block size of READ/WRITE MULTIPLE.
    pub fn after_software_reset(&mut self) {
        self.multiple = MAX_MULTIPLE;
    }
}
