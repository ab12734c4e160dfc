//! The wire: packet operation codes, sense codes and fields, without behaviour.
//!
//! Sources: SFF-8020i revision 2.6; MMC-5 (T10/1675D); SPC-3 (T10/1416D).

use bitflags::bitflags;

/// Bytes of a packet.
pub(in super::super) const PACKET_LEN: usize = 12;

/// Bytes of user data in a sector of a disc.
pub(in super::super) const SECTOR: usize = 2048;

/// Bytes of a sector with everything around the user data.
pub(in super::super) const RAW_SECTOR: usize = 2352;

/// Blocks before block 0: the pregap, which addresses in minutes, seconds and frames count.
pub(super) const PREGAP: u32 = 150;
/// Frames of a second.
pub(super) const FRAMES: u32 = 75;
/// Seconds of a minute.
pub(super) const SECONDS: u32 = 60;

/// Blocks of the longest CD, of 80 minutes. What is longer is a DVD.
pub(super) const CD_MAX_BLOCKS: u32 = 80 * SECONDS * FRAMES;

/// Bits of the PACKET command's Features register (ATA/ATAPI-6, section 8.23).
pub(in super::super) mod feature {
    /// Data is transferred by DMA.
    pub(crate) const DMA: u8 = 1 << 0;
    /// The device may release the bus; not offered.
    pub(crate) const OVERLAP: u8 = 1 << 1;
}

bitflags! {
    /// The Interrupt Reason: low bits of the Count register during a packet command (ATA/ATAPI-6, section 8.23).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(in super::super) struct Reason: u8 {
        /// C/D: a packet is transferred rather than data; or the command is over.
        const COMMAND = 1 << 0;
        /// I/O: the transfer is to the host.
        const TO_HOST = 1 << 1;
        /// The bits of the Count register that are the reason; the rest is a tag, kept as it was written.
        const ALL = 0b111;
    }
}

/// A packet command that the drive knows, by its operation code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opcode {
    TestUnitReady,
    RequestSense,
    Inquiry,
    ModeSense6,
    StartStopUnit,
    PreventAllowRemoval,
    ReadCapacity,
    Read10,
    Seek10,
    ReadToc,
    GetConfiguration,
    GetEventStatus,
    ReadDiscInformation,
    ModeSense10,
    Read12,
    ReadDvdStructure,
    SetCdSpeed,
    MechanismStatus,
    ReadCd,
}

bitflags! {
    /// What holds for a command whatever its parameters are.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct Traits: u8 {
        /// It is done although a unit attention is pending, and does not report a medium change.
        const DESPITE_ATTENTION = 1 << 0;
        /// It needs a medium in a closed tray.
        const NEEDS_MEDIUM = 1 << 1;
        /// It has no data phase.
        const NO_DATA = 1 << 2;
        /// Its parameters say whether it has a data phase; it reads the disc and changes nothing.
        const PERHAPS_DATA = 1 << 3;
    }
}

impl Opcode {
    /// Decodes byte 0 of a packet. `None`: unknown.
    pub(super) fn decode(code: u8) -> Option<Self> {
        Some(match code {
            0x00 => Self::TestUnitReady,
            0x03 => Self::RequestSense,
            0x12 => Self::Inquiry,
            0x1a => Self::ModeSense6,
            0x1b => Self::StartStopUnit,
            0x1e => Self::PreventAllowRemoval,
            0x25 => Self::ReadCapacity,
            0x28 => Self::Read10,
            0x2b => Self::Seek10,
            0x43 => Self::ReadToc,
            0x46 => Self::GetConfiguration,
            0x4a => Self::GetEventStatus,
            0x51 => Self::ReadDiscInformation,
            0x5a => Self::ModeSense10,
            0xa8 => Self::Read12,
            0xad => Self::ReadDvdStructure,
            0xbb => Self::SetCdSpeed,
            0xbd => Self::MechanismStatus,
            0xbe => Self::ReadCd,
            _ => return None,
        })
    }

    /// See [`Traits`].
    pub(super) fn traits(self) -> Traits {
        match self {
            Self::RequestSense | Self::Inquiry | Self::GetConfiguration | Self::GetEventStatus => {
                Traits::DESPITE_ATTENTION
            }
            Self::TestUnitReady | Self::Seek10 => Traits::NEEDS_MEDIUM | Traits::NO_DATA,
            Self::StartStopUnit | Self::PreventAllowRemoval | Self::SetCdSpeed => Traits::NO_DATA,
            Self::ReadCapacity
            | Self::Read10
            | Self::Read12
            | Self::ReadToc
            | Self::ReadDiscInformation
            | Self::ReadDvdStructure => Traits::NEEDS_MEDIUM,
            Self::ReadCd => Traits::NEEDS_MEDIUM | Traits::PERHAPS_DATA,
            Self::ModeSense6 | Self::ModeSense10 | Self::MechanismStatus => Traits::empty(),
        }
    }
}

/// Sense keys (SPC-3, section 4.5.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(in super::super) enum SenseKey {
    NoSense = 0x0,
    NotReady = 0x2,
    MediumError = 0x3,
    IllegalRequest = 0x5,
    UnitAttention = 0x6,
    AbortedCommand = 0xb,
}

/// Why a command ended as it did: sense key, additional sense code and its qualifier (SPC-3, annex D.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Sense {
    pub(in super::super) key: SenseKey,
    pub(in super::super) asc: u8,
    pub(in super::super) ascq: u8,
}

impl Sense {
    const fn new(key: SenseKey, asc: u8, ascq: u8) -> Self {
        Self { key, asc, ascq }
    }

    pub(in super::super) const NONE: Self = Self::new(SenseKey::NoSense, 0x00, 0x00);
    /// No medium, the tray's state aside.
    pub(super) const NO_MEDIUM: Self = Self::new(SenseKey::NotReady, 0x3a, 0x00);
    pub(super) const NO_MEDIUM_TRAY_CLOSED: Self = Self::new(SenseKey::NotReady, 0x3a, 0x01);
    pub(super) const NO_MEDIUM_TRAY_OPEN: Self = Self::new(SenseKey::NotReady, 0x3a, 0x02);
    pub(in super::super) const UNRECOVERED_READ: Self =
        Self::new(SenseKey::MediumError, 0x11, 0x00);
    pub(super) const INVALID_OPCODE: Self = Self::new(SenseKey::IllegalRequest, 0x20, 0x00);
    pub(super) const OUT_OF_RANGE: Self = Self::new(SenseKey::IllegalRequest, 0x21, 0x00);
    pub(super) const INVALID_FIELD: Self = Self::new(SenseKey::IllegalRequest, 0x24, 0x00);
    pub(super) const INCOMPATIBLE_FORMAT: Self = Self::new(SenseKey::IllegalRequest, 0x30, 0x02);
    pub(super) const NO_SAVING: Self = Self::new(SenseKey::IllegalRequest, 0x39, 0x00);
    /// The tray is locked, with a medium in it or without.
    pub(super) const LOCKED: Self = Self::new(SenseKey::NotReady, 0x53, 0x02);
    pub(super) const LOCKED_EMPTY: Self = Self::new(SenseKey::IllegalRequest, 0x53, 0x02);
    pub(super) const MEDIUM_MAY_HAVE_CHANGED: Self = Self::new(SenseKey::UnitAttention, 0x28, 0x00);
    /// The bus master was given no memory to put the data into.
    pub(in super::super) const NO_MEMORY: Self = Self::new(SenseKey::AbortedCommand, 0x00, 0x00);

    /// The Error register after a command that ended so: the key in bits 7:4 (SFF-8020i, section 6.5).
    pub(in super::super) fn error_register(self) -> u8 {
        (self.key as u8) << 4
    }

    /// REQUEST SENSE's answer (SPC-3, section 4.5.3): current errors, fixed format.
    pub(super) fn data(self) -> Vec<u8> {
        const CURRENT_FIXED: u8 = 0x70;
        const LEN: usize = 18;
        const LEN_AFTER_7: u8 = 10;
        let mut data = vec![0; LEN];
        data[0] = CURRENT_FIXED;
        data[2] = self.key as u8;
        data[7] = LEN_AFTER_7;
        data[12] = self.asc;
        data[13] = self.ascq;
        data
    }
}

/// The twelve bytes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Packet(pub(in super::super) [u8; PACKET_LEN]);

impl Packet {
    pub(super) fn byte(&self, at: usize) -> u8 {
        self.0.get(at).copied().unwrap_or(0)
    }

    /// A big-endian number of two bytes.
    pub(super) fn u16_at(&self, at: usize) -> u16 {
        u16::from_be_bytes([self.byte(at), self.byte(at + 1)])
    }

    /// A big-endian number of three bytes.
    pub(super) fn u24_at(&self, at: usize) -> u32 {
        u32::from_be_bytes([0, self.byte(at), self.byte(at + 1), self.byte(at + 2)])
    }

    /// A big-endian number of four bytes.
    pub(super) fn u32_at(&self, at: usize) -> u32 {
        u32::from(self.u16_at(at)) << 16 | u32::from(self.u16_at(at + 2))
    }
}

/// The length field of a list: what follows it, in two bytes.
pub(super) fn length_field(total: usize) -> [u8; 2] {
    const FIELD: usize = 2;
    let rest = total.saturating_sub(FIELD);
    u16::try_from(rest).unwrap_or(u16::MAX).to_be_bytes()
}
