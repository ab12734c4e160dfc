//! The wire: command codes, SET FEATURES codes and transfer modes, without behaviour.
//!
//! Sources: ATA/ATAPI-6 (T13/1410D) section 8; single word DMA from ATA-2; the commands that force unit access from
//! ATA/ATAPI-7; DATA SET MANAGEMENT from ACS-2 section 7.10.

/// The largest number of sectors in a block of READ/WRITE MULTIPLE.
pub(super) const MAX_MULTIPLE: u8 = 16;

/// DATA SET MANAGEMENT: bit of the Features register that asks for TRIM.
pub(super) const FEATURE_TRIM: u8 = 1 << 0;

/// The largest number of 512-byte blocks in the payload of one DATA SET MANAGEMENT.
pub(super) const MAX_TRIM_BLOCKS: u16 = 8;

/// Answer of CHECK POWER MODE: active or idle.
pub(super) const POWER_ACTIVE: u8 = 0xff;

/// Width of addresses and counts of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Width {
    /// 28-bit addresses, 8-bit counts.
    Lba28,
    /// 48-bit addresses, 16-bit counts.
    Lba48,
}

/// How the data of a command travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    /// Through the data register, an interrupt per sector.
    Sectors,
    /// Through the data register, an interrupt per block of SET MULTIPLE MODE's size.
    Multiple,
    /// By the bus master.
    Dma,
}

/// A command that a disk knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// DATA SET MANAGEMENT (06).
    DataSetManagement,
    /// DEVICE RESET (08).
    DeviceReset,
    /// RECALIBRATE (10) and SECURITY FREEZE LOCK (F5), which do nothing to a disk made of files.
    NoOperation,
    /// Power management (94 to 97, 99, E0 to E3, E6), which saves none here.
    SetPower,
    /// PACKET (A0).
    Packet,
    /// IDENTIFY PACKET DEVICE (A1).
    IdentifyPacket,
    /// READ SECTORS, READ MULTIPLE, READ DMA.
    Read(Protocol, Width),
    /// WRITE SECTORS, WRITE VERIFY, WRITE MULTIPLE, WRITE DMA.
    Write(Protocol, Width),
    /// WRITE DMA FUA EXT (3D), WRITE MULTIPLE FUA EXT (CE): durable when they end, cache or not.
    WriteDurably(Protocol),
    /// READ VERIFY SECTORS (40, 41, 42).
    Verify(Width),
    /// READ NATIVE MAX ADDRESS (27, F8).
    ReadNativeMax(Width),
    /// SEEK (70).
    Seek,
    /// EXECUTE DEVICE DIAGNOSTIC (90).
    Diagnostic,
    /// INITIALIZE DEVICE PARAMETERS (91).
    InitializeParameters,
    /// SMART (B0).
    Smart,
    /// CHECK POWER MODE (98, E5).
    CheckPower,
    /// SET MULTIPLE MODE (C6).
    SetMultiple,
    /// FLUSH CACHE (E7, EA).
    Flush,
    /// IDENTIFY DEVICE (EC).
    Identify,
    /// SET FEATURES (EF).
    SetFeatures,
}

impl Command {
    /// Decodes a command code. `None`: unknown, to be aborted. That includes NOP (00), whose defined result
    /// is an abort.
    pub fn decode(code: u8) -> Option<Self> {
        use Protocol::{Dma, Multiple, Sectors};
        use Width::{Lba28, Lba48};
        Some(match code {
            0x06 => Self::DataSetManagement,
            0x08 => Self::DeviceReset,
            0x10 | 0xf5 => Self::NoOperation,
            0x20 | 0x21 => Self::Read(Sectors, Lba28),
            0x24 => Self::Read(Sectors, Lba48),
            0x25 => Self::Read(Dma, Lba48),
            0x27 => Self::ReadNativeMax(Lba48),
            0x29 => Self::Read(Multiple, Lba48),
            0x30 | 0x31 | 0x3c => Self::Write(Sectors, Lba28),
            0x34 => Self::Write(Sectors, Lba48),
            0x35 => Self::Write(Dma, Lba48),
            0x39 => Self::Write(Multiple, Lba48),
            0x3d => Self::WriteDurably(Dma),
            0x40 | 0x41 => Self::Verify(Lba28),
            0x42 => Self::Verify(Lba48),
            0x70 => Self::Seek,
            0x90 => Self::Diagnostic,
            0x91 => Self::InitializeParameters,
            0x98 | 0xe5 => Self::CheckPower,
            0x94..=0x97 | 0x99 | 0xe0..=0xe3 | 0xe6 => Self::SetPower,
            0xa0 => Self::Packet,
            0xa1 => Self::IdentifyPacket,
            0xb0 => Self::Smart,
            0xc4 => Self::Read(Multiple, Lba28),
            0xc5 => Self::Write(Multiple, Lba28),
            0xc6 => Self::SetMultiple,
            0xc8 | 0xc9 => Self::Read(Dma, Lba28),
            0xca | 0xcb => Self::Write(Dma, Lba28),
            0xce => Self::WriteDurably(Multiple),
            0xe7 | 0xea => Self::Flush,
            0xec => Self::Identify,
            0xef => Self::SetFeatures,
            0xf8 => Self::ReadNativeMax(Lba28),
            _ => return None,
        })
    }

    /// Whether a device without the PACKET feature set knows it.
    pub fn is_for_disks(self) -> bool {
        !matches!(
            self,
            Self::DeviceReset | Self::Packet | Self::IdentifyPacket
        )
    }

    /// Whether a device with the PACKET feature set knows it (section 6.9, table 4).
    pub fn is_for_packet_devices(self) -> bool {
        matches!(
            self,
            Self::DeviceReset
                | Self::Packet
                | Self::IdentifyPacket
                | Self::Diagnostic
                | Self::CheckPower
                | Self::SetPower
                | Self::Flush
                | Self::SetFeatures
        )
    }

    /// Whether a packet device that aborts it shows its signature (sections 8.15 and 8.34).
    pub fn shows_packet_signature(self) -> bool {
        matches!(
            self,
            Self::Identify | Self::Read(Protocol::Sectors, Width::Lba28)
        )
    }
}

/// A subcommand of SET FEATURES, from the Features register (section 8.46).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Feature {
    /// 02: enable the write cache.
    EnableWriteCache,
    /// 82: disable the write cache, after a flush.
    DisableWriteCache,
    /// 03: set the transfer mode in the Count register.
    TransferMode,
    /// Accepted without effect: look-ahead, power-on defaults, advanced power management, acoustic management.
    Ignored,
}

impl Feature {
    /// Decodes a subcommand; `None` is aborted.
    pub fn decode(code: u8) -> Option<Self> {
        Some(match code {
            0x02 => Self::EnableWriteCache,
            0x82 => Self::DisableWriteCache,
            0x03 => Self::TransferMode,
            0x05 | 0x85 | 0x42 | 0xc2 | 0x55 | 0xaa | 0x66 | 0xcc | 0x67 | 0x69 | 0x96 | 0x9a => {
                Self::Ignored
            }
            _ => return None,
        })
    }
}

/// A transfer mode of SET FEATURES 03 (section 8.46.11).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TransferMode {
    /// A PIO mode; no DMA mode is selected any more than before.
    Pio,
    /// Single word DMA mode 0 to 2, which ATA-3 dropped and old drivers set.
    SinglewordDma(u8),
    /// Multiword DMA mode 0 to 2.
    MultiwordDma(u8),
    /// Ultra DMA mode 0 to 5.
    UltraDma(u8),
}

impl TransferMode {
    /// The highest single word DMA mode.
    pub const MAX_SINGLEWORD: u8 = 2;
    /// The highest multiword DMA mode.
    pub const MAX_MULTIWORD: u8 = 2;
    /// The highest Ultra DMA mode.
    pub const MAX_ULTRA: u8 = 5;
    /// The highest PIO mode.
    const MAX_PIO: u8 = 4;
    /// The highest code for "PIO default mode".
    const MAX_PIO_DEFAULT: u8 = 1;

    /// Decodes the Count register: type in bits 7:3, mode in bits 2:0. `None` is aborted.
    pub fn decode(count: u8) -> Option<Self> {
        let mode = count & 0b111;
        match count >> 3 {
            0b00000 if mode <= Self::MAX_PIO_DEFAULT => Some(Self::Pio),
            0b00001 if mode <= Self::MAX_PIO => Some(Self::Pio),
            0b00010 if mode <= Self::MAX_SINGLEWORD => Some(Self::SinglewordDma(mode)),
            0b00100 if mode <= Self::MAX_MULTIWORD => Some(Self::MultiwordDma(mode)),
            0b01000 if mode <= Self::MAX_ULTRA => Some(Self::UltraDma(mode)),
            _ => None,
        }
    }
}
