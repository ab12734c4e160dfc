//! What is said of the medium and the mechanism: capacity, disc information, DVD structures, state of the tray.

use super::drive::{CdRom, MediumKind};
use super::wire::{Packet, SECTOR, Sense, length_field};

/// Formats of READ DVD STRUCTURE (MMC-5, section 6.23).
mod structure {
    /// What the lead-in says about size and layers.
    pub(super) const PHYSICAL: u8 = 0x00;
    /// Copy protection: none.
    pub(super) const COPYRIGHT: u8 = 0x01;
    /// Which formats there are.
    pub(super) const LIST: u8 = 0xff;
}

/// READ CAPACITY (SFF-8020i, section 10.8.9): last block, bytes of a block.
pub(super) fn capacity(blocks: u32) -> Vec<u8> {
    let last = blocks.saturating_sub(1);
    let unit = u32::try_from(SECTOR).unwrap_or(u32::MAX);
    [last.to_be_bytes(), unit.to_be_bytes()].concat()
}

/// READ DISC INFORMATION (MMC-5, section 6.22): one finished session with one track.
pub(super) fn disc_information(packet: &Packet) -> Result<Vec<u8>, Sense> {
    const LEN: usize = 34;
    /// Data types other than the standard one belong to recordable discs.
    const DATA_TYPE: u8 = 0b111;
    /// Byte 2: the last session is complete, the disc is finalized.
    const COMPLETE: u8 = 0x0e;
    /// Byte 7: unrestricted use.
    const UNRESTRICTED: u8 = 1 << 5;
    if packet.byte(1) & DATA_TYPE != 0 {
        return Err(Sense::INVALID_FIELD);
    }
    let mut data = vec![0; LEN];
    data[..2].copy_from_slice(&length_field(LEN));
    data[2] = COMPLETE;
    // First track, sessions, first and last track of the last session; each a low byte.
    data[3..=6].fill(1);
    data[7] = UNRESTRICTED;
    data.truncate(packet.u16_at(7).into());
    Ok(data)
}

impl CdRom {
    /// MECHANISM STATUS (MMC-5, section 6.7): no changer, nothing plays.
    pub(super) fn mechanism_status(&self, packet: &Packet) -> Vec<u8> {
        const DOOR_OPEN: u8 = 1 << 4;
        const SLOTS: u8 = 1;
        let door = if self.is_tray_open() { DOOR_OPEN } else { 0 };
        let mut data = vec![0, door, 0, 0, 0, SLOTS, 0, 0];
        data.truncate(packet.u16_at(8).into());
        data
    }

    pub(super) fn dvd_structure(&self, packet: &Packet, blocks: u32) -> Result<Vec<u8>, Sense> {
        /// Byte 1, media type: DVD.
        const MEDIA_TYPE: u8 = 0x0f;
        const LAYER: usize = 6;
        const FORMAT: usize = 7;
        if packet.byte(1) & MEDIA_TYPE != 0 || packet.byte(LAYER) != 0 {
            return Err(Sense::INVALID_FIELD);
        }
        let format = packet.byte(FORMAT);
        if format != structure::LIST && self.medium_kind() != Some(MediumKind::Dvd) {
            return Err(Sense::INCOMPATIBLE_FORMAT);
        }
        let body = match format {
            structure::PHYSICAL => physical(blocks),
            structure::COPYRIGHT => vec![0; 4],
            structure::LIST => structure_list(),
            _ => return Err(Sense::INVALID_FIELD),
        };
        let [high, low] = length_field(STRUCTURE_HEADER + body.len());
        let mut data = vec![high, low, 0, 0];
        data.extend(body);
        data.truncate(packet.u16_at(8).into());
        Ok(data)
    }
}

const STRUCTURE_HEADER: usize = 4;
const PHYSICAL_LEN: usize = 2048;

/// A read-only disc of 12 cm with one layer (MMC-5, table 404).
fn physical(blocks: u32) -> Vec<u8> {
    /// DVD-ROM, version 1.
    const BOOK: u8 = 0x01;
    /// 12 cm; no largest rate given.
    const SIZE_AND_RATE: u8 = 0x0f;
    /// One layer, embossed.
    const LAYERS: u8 = 0x01;
    /// Physical sector number of block 0.
    const FIRST: u32 = 0x3_0000;
    let last = FIRST.saturating_add(blocks.saturating_sub(1));
    let mut body = vec![BOOK, SIZE_AND_RATE, LAYERS, 0];
    for number in [FIRST, last, last] {
        body.extend(number.to_be_bytes());
    }
    body.resize(PHYSICAL_LEN, 0);
    body
}

/// An entry of four bytes for each format: the format, that it can be read, how much there is to be read.
fn structure_list() -> Vec<u8> {
    const READABLE: u8 = 1 << 6;
    let formats = [
        (structure::PHYSICAL, STRUCTURE_HEADER + PHYSICAL_LEN),
        (structure::COPYRIGHT, STRUCTURE_HEADER + 4),
    ];
    formats
        .into_iter()
        .flat_map(|(format, length)| {
            let [high, low] = u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes();
            [format, READABLE, high, low]
        })
        .collect()
}
