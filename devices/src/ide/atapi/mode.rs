//! MODE SENSE: the drive's parameters, page by page (MMC-5, section 7; SPC-3, section 7.4).
//!
//! No page can be changed or saved.

use super::drive::CdRom;
use super::wire::{Packet, Sense};

/// Page codes, in ascending order.
mod page {
    /// Read/write error recovery.
    pub(super) const ERROR_RECOVERY: u8 = 0x01;
    /// CD audio control.
    pub(super) const AUDIO: u8 = 0x0e;
    /// Capabilities and mechanical status.
    pub(super) const CAPABILITIES: u8 = 0x2a;
    /// All of them.
    pub(super) const ALL: u8 = 0x3f;
    pub(super) const MASK: u8 = 0x3f;
}

/// Page control: bits 7:6 of byte 2 of the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Control {
    Current,
    Changeable,
    Default,
    Saved,
}

impl Control {
    fn decode(byte: u8) -> Self {
        match byte >> 6 {
            0 => Self::Current,
            1 => Self::Changeable,
            2 => Self::Default,
            _ => Self::Saved,
        }
    }
}

/// Medium type in the header (SFF-8020i, table 66).
mod medium {
    pub(super) const DATA_CD: u8 = 0x01;
    pub(super) const NO_DISC: u8 = 0x70;
    pub(super) const DOOR_OPEN: u8 = 0x71;
}

/// Capabilities and mechanical status: bits of the bytes of the page.
mod capability {
    /// Byte 2: reads CD-R, CD-RW, method 2 and DVD-ROM.
    pub(super) const READS: u8 = 0x0f;
    /// Byte 4: audio play (Linux wants to see it to mount by itself), mode 2 forms 1 and 2, multisession.
    pub(super) const PLAYS: u8 = 0x71;
    /// Byte 5: reads raw sectors by READ CD.
    pub(super) const READ_CD: u8 = 1 << 0;
    /// Byte 6: can lock, is locked, can eject, has a tray.
    pub(super) const CAN_LOCK: u8 = 1 << 0;
    pub(super) const LOCKED: u8 = 1 << 1;
    pub(super) const CAN_EJECT: u8 = 1 << 3;
    pub(super) const TRAY: u8 = 1 << 5;
    /// Bytes 8 and 14: kilobytes a second, four times an audio CD's.
    pub(super) const SPEED: u16 = 704;
    /// Byte 10: volume levels.
    pub(super) const LEVELS: u16 = 2;
    /// Byte 12: kilobytes of buffer.
    pub(super) const BUFFER: u16 = 512;
}

impl CdRom {
    /// MODE SENSE with a header of four bytes (06h form).
    pub(super) fn mode_sense_6(&self, packet: &Packet) -> Result<Vec<u8>, Sense> {
        let pages = self.pages(packet.byte(2))?;
        const HEADER: usize = 4;
        let rest = HEADER + pages.len() - 1;
        let length = u8::try_from(rest).unwrap_or(u8::MAX);
        let mut data = vec![length, self.medium_type(), 0, 0];
        data.extend(pages);
        data.truncate(packet.byte(4).into());
        Ok(data)
    }

    /// MODE SENSE with a header of eight bytes.
    pub(super) fn mode_sense_10(&self, packet: &Packet) -> Result<Vec<u8>, Sense> {
        const HEADER: usize = 8;
        let pages = self.pages(packet.byte(2))?;
        let mut data = vec![0; HEADER];
        data[..2].copy_from_slice(&super::wire::length_field(HEADER + pages.len()));
        data[2] = self.medium_type();
        data.extend(pages);
        data.truncate(packet.u16_at(7).into());
        Ok(data)
    }

    fn medium_type(&self) -> u8 {
        if self.is_tray_open() {
            medium::DOOR_OPEN
        } else if self.blocks().is_none() {
            medium::NO_DISC
        } else {
            medium::DATA_CD
        }
    }

    fn pages(&self, selector: u8) -> Result<Vec<u8>, Sense> {
        let control = Control::decode(selector);
        let wanted = selector & page::MASK;
        if control == Control::Saved {
            return Err(Sense::NO_SAVING);
        }
        let mut data = Vec::new();
        for code in [page::ERROR_RECOVERY, page::AUDIO, page::CAPABILITIES] {
            if wanted == code || wanted == page::ALL {
                data.extend(self.page(code, control));
            }
        }
        if data.is_empty() {
            return Err(Sense::INVALID_FIELD);
        }
        Ok(data)
    }

    /// One page, its code and length in front.
    fn page(&self, code: u8, control: Control) -> Vec<u8> {
        let mut body = match code {
            page::ERROR_RECOVERY => error_recovery(),
            page::AUDIO => audio(),
            _ => self.capabilities(control),
        };
        if control == Control::Changeable {
            body.fill(0);
        }
        let length = u8::try_from(body.len()).unwrap_or(u8::MAX);
        let mut page = vec![code, length];
        page.extend(body);
        page
    }

    fn capabilities(&self, control: Control) -> Vec<u8> {
        use capability::{
            BUFFER, CAN_EJECT, CAN_LOCK, LEVELS, LOCKED, PLAYS, READ_CD, READS, SPEED, TRAY,
        };
        let locked = control == Control::Current && self.is_locked();
        let mechanism = CAN_LOCK | CAN_EJECT | TRAY | if locked { LOCKED } else { 0 };
        let mut body = vec![READS, 0, PLAYS, READ_CD, mechanism, 0];
        for number in [SPEED, LEVELS, BUFFER, SPEED] {
            body.extend(number.to_be_bytes());
        }
        body.resize(18, 0);
        body
    }
}

fn error_recovery() -> Vec<u8> {
    const RETRIES: u8 = 5;
    vec![0, RETRIES, 0, 0, 0, 0]
}

/// Two channels at full volume; nothing is ever played.
fn audio() -> Vec<u8> {
    const IMMEDIATE: u8 = 1 << 2;
    const FULL: u8 = 0xff;
    let mut body = vec![IMMEDIATE, 0, 0, 0, 0, 0];
    for channel in [1, 2] {
        body.extend([channel, FULL]);
    }
    body.resize(14, 0);
    body
}
