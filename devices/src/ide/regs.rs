//! The wire: registers and bits of an IDE channel and of its bus master, without behaviour.
//!
//! Sources: ATA/ATAPI-6 (T13/1410D) sections 5 and 7; *Programming Interface for Bus Master IDE
//! Controller* revision 1.0; Intel 82371FB/SB (PIIX, PIIX3) and 82371AB (PIIX4) datasheets.

use std::ops::RangeInclusive;

use bitflags::bitflags;

/// Bytes in a sector: the unit of all addresses and counts on the wire.
pub(super) const SECTOR_SIZE: usize = 512;

/// I/O ports of a channel in compatibility mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ChannelPorts {
    /// First of the eight ports of the command block.
    pub command: u16,
    /// The one port of the control block that is used.
    pub control: u16,
}

impl ChannelPorts {
    /// The ports whose registers only keep what is written: from Features to Device. The data register has side
    /// effects, Command and Device Control start things and move the interrupt line.
    pub fn latches(self) -> RangeInclusive<u16> {
        self.command + 1..=self.command + 6
    }
}

/// Ports of the primary and the secondary channel (82371SB, section 2.6.2).
pub(super) const LEGACY_PORTS: [ChannelPorts; 2] = [
    ChannelPorts {
        command: 0x1f0,
        control: 0x3f6,
    },
    ChannelPorts {
        command: 0x170,
        control: 0x376,
    },
];

/// Number of ports of a command block.
pub(super) const COMMAND_BLOCK_LEN: u16 = 8;

/// Registers of the command block, by offset. Offsets 1 and 7 are two registers each: what is
/// written is not what is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Register {
    /// 0: 16 (or 32) bits wide.
    Data,
    /// 1: Error when read, Features when written.
    ErrorFeatures,
    /// 2: Sector Count.
    Count,
    /// 3: LBA Low.
    LbaLow,
    /// 4: LBA Mid.
    LbaMid,
    /// 5: LBA High.
    LbaHigh,
    /// 6: Device.
    Device,
    /// 7: Status when read, Command when written.
    StatusCommand,
}

impl Register {
    /// The register at an offset (0 to 7) into the command block.
    pub fn at(offset: u16) -> Option<Self> {
        Some(match offset {
            0 => Self::Data,
            1 => Self::ErrorFeatures,
            2 => Self::Count,
            3 => Self::LbaLow,
            4 => Self::LbaMid,
            5 => Self::LbaHigh,
            6 => Self::Device,
            7 => Self::StatusCommand,
            _ => return None,
        })
    }
}

bitflags! {
    /// Status register (ATA/ATAPI-6 section 7.15).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct Status: u8 {
        /// The last command failed; the Error register says how.
        const ERR = 1 << 0;
        /// The data register wants to be read or written, or the bus master to be started.
        const DRQ = 1 << 3;
        /// Seek complete.
        const DSC = 1 << 4;
        /// Device fault; never set here.
        const DF = 1 << 5;
        /// Ready for a command.
        const DRDY = 1 << 6;
        /// Busy: all other bits and registers mean nothing and must not be written.
        const BSY = 1 << 7;
    }

    /// Error register (section 7.8).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct Error: u8 {
        /// Command aborted: unknown, out of range, or failed.
        const ABRT = 1 << 2;
        /// After a reset or EXECUTE DEVICE DIAGNOSTIC the register holds this code instead of
        /// bits: the device passed.
        const DIAGNOSTIC_PASSED = 0x01;
    }

    /// Device register (section 7.7).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct Device: u8 {
        /// Head number, or bits 27:24 of a 28-bit address.
        const HEAD = 0x0f;
        /// Device 1 is selected.
        const DEV = 1 << 4;
        /// Addresses are LBA rather than cylinder, head, sector.
        const LBA = 1 << 6;
        /// Obsolete bits that read as one.
        const ALWAYS_ONE = (1 << 7) | (1 << 5);
    }

    /// Device Control register (section 7.9).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct Control: u8 {
        /// nIEN: the interrupt line is not driven.
        const NIEN = 1 << 1;
        /// Software reset of both devices of the channel.
        const SRST = 1 << 2;
        /// Reads of the command block show the previous content (48-bit feature set).
        const HOB = 1 << 7;
    }

    /// Bus master command register.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct BmCommand: u8 {
        /// Start (0 to 1) or stop (1 to 0) the transfer.
        const START = 1 << 0;
        /// Direction: to memory. Kept; the command decides, as in QEMU.
        const TO_MEMORY = 1 << 3;
    }

    /// Bus master status register.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct BmStatus: u8 {
        /// A transfer is in progress.
        const ACTIVE = 1 << 0;
        /// A transfer met memory it could not use. Cleared by writing a one.
        const ERROR = 1 << 1;
        /// The drive raised its interrupt. Cleared by writing a one.
        const INTERRUPT = 1 << 2;
        /// Software's note that device 0 can do DMA.
        const DEVICE0_CAPABLE = 1 << 5;
        /// Software's note that device 1 can do DMA.
        const DEVICE1_CAPABLE = 1 << 6;
        /// Bits cleared by writing a one.
        const CLEAR_BY_ONE = (1 << 1) | (1 << 2);
        /// Bits that keep what is written.
        const SCRATCH = (1 << 5) | (1 << 6);
    }
}

/// Layout of a channel's half of the bus master's window.
pub(super) mod bm {
    /// Bytes of one channel's registers.
    pub(crate) const CHANNEL_LEN: u64 = 8;
    /// Command, 8 bits.
    pub(crate) const COMMAND: u64 = 0;
    /// Status, 8 bits.
    pub(crate) const STATUS: u64 = 2;
    /// Address of the descriptor table, 32 bits.
    pub(crate) const TABLE: u64 = 4;
    /// The registers that only keep, or only forget, bits: status and the table's address, as offset and length. The
    /// command register starts and stops transfers.
    pub(crate) const LATCHES: [(u64, u64); 2] = [(STATUS, 1), (TABLE, 4)];
    /// The descriptor table is aligned to a doubleword.
    pub(crate) const TABLE_MASK: u32 = !3;
}

/// Layout of a physical region descriptor, eight bytes in guest memory, little endian.
pub(super) mod prd {
    /// Bytes of one descriptor.
    pub(crate) const LEN: u64 = 8;
    /// Bits of the base address; bit 0 is reserved as zero.
    pub(crate) const BASE_MASK: u32 = !1;
    /// Bits of the byte count; bit 0 is reserved as zero.
    pub(crate) const COUNT_MASK: u32 = 0xfffe;
    /// What a byte count of zero means.
    pub(crate) const COUNT_ZERO: usize = 0x1_0000;
    /// End of table.
    pub(crate) const END_OF_TABLE: u32 = 1 << 31;
    /// A table without an end is followed no further than this many bytes.
    pub(crate) const TABLE_MAX: u64 = 4096;
}

/// What a device leaves in its registers after a reset or diagnostic (section 9.12).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signature {
    /// A device without the PACKET feature set.
    Disk,
    /// A device with the PACKET feature set.
    PacketDevice,
    /// Nobody there.
    Absent,
}

impl Signature {
    /// Sector count and LBA low of every signature.
    pub const FIRST: u8 = 0x01;

    /// LBA mid and LBA high, which tell the kinds apart.
    pub fn mid_high(self) -> [u8; 2] {
        match self {
            Self::Disk => [0x00, 0x00],
            Self::PacketDevice => [0x14, 0xeb],
            Self::Absent => [0xff, 0xff],
        }
    }
}
