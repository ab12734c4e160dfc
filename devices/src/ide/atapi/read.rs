//! Which bytes of a disc a command wants, and what a raw sector has around them.
//!
//! A [`DiscRead`] is a value: what a read command names, taken from the packet once.

use super::drive::Reply;
use super::wire::{FRAMES, PREGAP, Packet, RAW_SECTOR, SECONDS, SECTOR, Sense};

/// What is transferred of each sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum SectorForm {
    /// The 2048 bytes of user data.
    UserData,
    /// All 2352 bytes of a mode 1 sector: sync, header, user data, check codes.
    Raw,
}

impl SectorForm {
    /// Bytes of a sector.
    fn len(self) -> usize {
        match self {
            Self::UserData => SECTOR,
            Self::Raw => RAW_SECTOR,
        }
    }
}

/// Sectors to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct DiscRead {
    /// The first, in blocks of 2048 bytes.
    pub(in super::super) first: u32,
    pub(in super::super) sectors: u32,
    pub(in super::super) form: SectorForm,
}

/// Part of a [`DiscRead`]'s bytes, and the sectors they are in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Part {
    pub(in super::super) read: DiscRead,
    /// Bytes of the first sector that are not wanted.
    pub(in super::super) skip: usize,
    /// Bytes that are.
    pub(in super::super) length: usize,
}

impl DiscRead {
    /// Bytes to be transferred.
    pub(in super::super) fn len(&self) -> u64 {
        u64::from(self.sectors) * self.form.len() as u64
    }

    /// Where the user data begins on the medium, in bytes.
    pub(in super::super) fn offset(&self) -> u64 {
        u64::from(self.first) * SECTOR as u64
    }

    /// Where the user data is on the medium, in bytes: offset and length.
    pub(in super::super) fn medium_range(&self) -> (u64, usize) {
        let length = u64::from(self.sectors) * SECTOR as u64;
        (self.offset(), usize::try_from(length).unwrap_or(usize::MAX))
    }

    /// `length` bytes from byte `at`, which exist.
    pub(in super::super) fn part(&self, at: u64, length: usize) -> Part {
        let unit = self.form.len() as u64;
        let first = at / unit;
        let last = (at + length as u64).div_ceil(unit);
        // Both are at most `sectors`.
        let number = |sectors: u64| u32::try_from(sectors).unwrap_or(u32::MAX);
        Part {
            read: Self {
                first: self.first.saturating_add(number(first)),
                sectors: number(last - first),
                form: self.form,
            },
            skip: usize::try_from(at % unit).unwrap_or(0),
            length,
        }
    }

    /// The first `sectors` of them, and the rest.
    pub(in super::super) fn split(self, sectors: u32) -> (Self, Self) {
        let sectors = sectors.min(self.sectors);
        let head = Self { sectors, ..self };
        let rest = Self {
            first: self.first.saturating_add(sectors),
            sectors: self.sectors - sectors,
            form: self.form,
        };
        (head, rest)
    }

    /// What the guest gets of the user data of these sectors.
    pub(in super::super) fn framed(&self, user: Vec<u8>) -> Vec<u8> {
        match self.form {
            SectorForm::UserData => user,
            SectorForm::Raw => (self.first..)
                .zip(user.chunks_exact(SECTOR))
                .flat_map(|(block, user)| raw_sector(block, user))
                .collect(),
        }
    }
}

/// SEEK: nothing moves, the block is checked.
pub(super) fn seek(block: u32, blocks: u32) -> Result<Reply, Sense> {
    if block < blocks {
        Ok(Reply::Done)
    } else {
        Err(Sense::OUT_OF_RANGE)
    }
}

/// A read of `sectors` sectors from the block that bytes 2 to 5 name.
pub(super) fn read(
    packet: &Packet,
    sectors: u32,
    form: SectorForm,
    blocks: u32,
) -> Result<Reply, Sense> {
    let first = packet.u32_at(2);
    if sectors == 0 {
        return Ok(Reply::Done);
    }
    match first.checked_add(sectors) {
        Some(end) if end <= blocks => Ok(Reply::Read(DiscRead {
            first,
            sectors,
            form,
        })),
        _ => Err(Sense::OUT_OF_RANGE),
    }
}

/// READ CD (MMC-5, section 6.19): the user data alone, or all of the sector.
pub(super) fn read_cd(packet: &Packet, blocks: u32) -> Result<Reply, Sense> {
    /// Byte 9: which parts of the sector; bits 2:1 ask for error flags, which there are none of.
    const PARTS: u8 = 0xf8;
    const USER_DATA: u8 = 0x10;
    let sectors = packet.u24_at(6);
    match packet.byte(9) & PARTS {
        0 => Ok(Reply::Done),
        USER_DATA => read(packet, sectors, SectorForm::UserData, blocks),
        PARTS => read(packet, sectors, SectorForm::Raw, blocks),
        _ => Err(Sense::INVALID_FIELD),
    }
}

/// Minutes, seconds and frames of a block; the minutes of a DVD's blocks stop at 255.
pub(super) fn msf(block: u32) -> [u8; 3] {
    let frame = u64::from(block) + u64::from(PREGAP);
    let second = frame / u64::from(FRAMES);
    let minute = second / u64::from(SECONDS);
    let byte = |value: u64| u8::try_from(value).unwrap_or(u8::MAX);
    [
        byte(minute),
        byte(second % u64::from(SECONDS)),
        byte(frame % u64::from(FRAMES)),
    ]
}

/// A mode 1 sector (ECMA-130, section 14 and annex A): sync, header, user data and the error detection code.
/// The error correction code of the last 276 bytes is left zero, as in QEMU: a file has nothing to correct.
fn raw_sector(block: u32, user: &[u8]) -> Vec<u8> {
    const SYNC: [u8; 12] = [0, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0];
    const MODE_1: u8 = 1;
    let bcd = |value: u8| ((value / 10 % 10) << 4) | (value % 10);
    let mut sector = Vec::with_capacity(RAW_SECTOR);
    sector.extend(SYNC);
    sector.extend(msf(block).map(bcd));
    sector.push(MODE_1);
    sector.extend(user);
    let code = detection_code(&sector);
    sector.extend(code.to_le_bytes());
    sector.resize(RAW_SECTOR, 0);
    sector
}

/// The error detection code: a CRC of (x^16 + x^15 + x^2 + 1)(x^16 + x^2 + x + 1), least significant bit first.
fn detection_code(bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0xd801_8001;
    bytes.iter().fold(0, |code, byte| {
        (0..8).fold(code ^ u32::from(*byte), |code: u32, _| {
            let reduced = code >> 1;
            if code & 1 == 0 {
                reduced
            } else {
                reduced ^ POLYNOMIAL
            }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: DiscRead = DiscRead {
        first: 16,
        sectors: 4,
        form: SectorForm::Raw,
    };

    #[test]
    fn a_part_names_the_sectors_that_its_bytes_are_in() {
        let part = READ.part(2350, 4);
        assert_eq!((part.read.first, part.read.sectors), (16, 2));
        assert_eq!((part.skip, part.length), (2350, 4));
        let part = READ.part(2352, 2352);
        assert_eq!((part.read.first, part.read.sectors), (17, 1));
        assert_eq!(part.skip, 0);
    }

    #[test]
    fn a_raw_sector_says_where_it_is() {
        let sector = raw_sector(16, &[0xa5; SECTOR]);
        assert_eq!(sector.len(), RAW_SECTOR);
        assert_eq!(sector[..2], [0, 255]);
        assert_eq!(sector[10..16], [255, 0, 0x00, 0x02, 0x16, 1]);
        assert_eq!(sector[16..16 + SECTOR], [0xa5; SECTOR]);
    }

    /// A code word's own code is zero: what a reader checks.
    #[test]
    fn the_detection_code_checks() {
        let sector = raw_sector(1234, &[0x3c; SECTOR]);
        assert_eq!(detection_code(&sector[..16 + SECTOR + 4]), 0);
        assert_ne!(detection_code(&sector[..16 + SECTOR]), 0);
    }

    #[test]
    fn minutes_seconds_and_frames() {
        assert_eq!(msf(0), [0, 2, 0]);
        assert_eq!(msf(75 * 60 * 80 - 151), [79, 59, 74]);
        assert_eq!(msf(u32::MAX)[0], 255);
    }
}
