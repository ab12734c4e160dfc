//! READ TOC/PMA/ATIP: one session with one data track (MMC-5, section 6.26).

use super::drive::CdRom;
use super::read::msf;
use super::wire::{Packet, Sense, length_field};

/// ADR 1 (position), control 4 (data track).
const DATA_TRACK: u8 = 0x14;
const TRACK: u8 = 1;
const SESSION: u8 = 1;
/// Track number of the lead-out.
const LEAD_OUT: u8 = 0xaa;
/// Byte 1 of the packet: addresses in minutes, seconds and frames.
const MSF: u8 = 1 << 1;

/// What is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    /// The tracks.
    Toc,
    /// Where the last session begins.
    Session,
    /// The entries as the lead-in has them.
    Full,
}

impl Format {
    /// Decodes byte 2, or where that is zero the place of SFF-8020i in byte 9.
    fn decode(packet: &Packet) -> Option<Self> {
        let code = match packet.byte(2) & 0x0f {
            0 => packet.byte(9) >> 6,
            code => code,
        };
        Some(match code {
            0 => Self::Toc,
            1 => Self::Session,
            2 => Self::Full,
            _ => return None,
        })
    }
}

impl CdRom {
    pub(super) fn read_toc(&self, packet: &Packet, blocks: u32) -> Result<Vec<u8>, Sense> {
        let in_msf = packet.byte(1) & MSF != 0;
        let start = packet.byte(6);
        let body = match Format::decode(packet).ok_or(Sense::INVALID_FIELD)? {
            Format::Toc => tracks(start, blocks, in_msf)?,
            Format::Session => entry(TRACK, 0, in_msf).to_vec(),
            Format::Full if start <= SESSION => full(blocks),
            Format::Full => return Err(Sense::INVALID_FIELD),
        };
        // First and last track, or session: both are 1.
        let [high, low] = length_field(4 + body.len());
        let mut data = vec![high, low, 1, 1];
        data.extend(body);
        data.truncate(packet.u16_at(7).into());
        Ok(data)
    }
}

fn tracks(start: u8, blocks: u32, in_msf: bool) -> Result<Vec<u8>, Sense> {
    let mut list = Vec::new();
    if start > TRACK && start != LEAD_OUT {
        return Err(Sense::INVALID_FIELD);
    }
    if start <= TRACK {
        list.extend(entry(TRACK, 0, in_msf));
    }
    list.extend(entry(LEAD_OUT, blocks, in_msf));
    Ok(list)
}

fn entry(track: u8, block: u32, in_msf: bool) -> [u8; 8] {
    let [a, b, c, d] = if in_msf {
        let [minute, second, frame] = msf(block);
        [0, minute, second, frame]
    } else {
        block.to_be_bytes()
    };
    [0, DATA_TRACK, track, 0, a, b, c, d]
}

/// Entries of eleven bytes: session, ADR/control, track number 0 (lead-in), point, three bytes of running time,
/// a zero, three bytes of the point's.
fn full(blocks: u32) -> Vec<u8> {
    const FIRST_TRACK: u8 = 0xa0;
    const LAST_TRACK: u8 = 0xa1;
    const LEAD_OUT: u8 = 0xa2;
    let points = [
        (FIRST_TRACK, [TRACK, 0, 0]),
        (LAST_TRACK, [TRACK, 0, 0]),
        (LEAD_OUT, msf(blocks)),
        (TRACK, msf(0)),
    ];
    points
        .into_iter()
        .flat_map(|(point, [a, b, c])| [SESSION, DATA_TRACK, 0, point, 0, 0, 0, 0, a, b, c])
        .collect()
}
