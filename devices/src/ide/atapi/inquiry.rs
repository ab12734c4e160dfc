//! INQUIRY: what the drive is (SPC-3, sections 6.4 and 7.6).

use super::drive::CdRom;
use super::wire::{Packet, Sense};

/// Byte 0: a CD/DVD device is there.
const CD_DVD_DEVICE: u8 = 0x05;
/// Byte 1: the medium is removable.
const REMOVABLE: u8 = 1 << 7;
/// Byte 3: ATAPI version 2, response data format 1 (SFF-8020i, section 10.8.1).
const ATAPI_FORMAT: u8 = 0x21;
const STANDARD_LEN: usize = 36;
const VENDOR: &str = "SLUICE";
const PRODUCT: &str = "SLUICE DVD-ROM";

/// Byte 1 of the packet: a page of vital product data is wanted.
const ENABLE_VITAL: u8 = 1 << 0;

/// Pages of vital product data.
mod page {
    pub(super) const SUPPORTED: u8 = 0x00;
    pub(super) const SERIAL: u8 = 0x80;
    pub(super) const IDENTIFICATION: u8 = 0x83;
}

/// Writes `text` over `field`, padded with spaces.
fn put_text(field: &mut [u8], text: &str) {
    let padded = text.bytes().chain(std::iter::repeat(b' '));
    for (byte, value) in field.iter_mut().zip(padded) {
        *byte = value;
    }
}

impl CdRom {
    pub(super) fn inquiry(&self, packet: &Packet) -> Result<Vec<u8>, Sense> {
        let page = packet.byte(2);
        let mut data = if packet.byte(1) & ENABLE_VITAL == 0 {
            if page != 0 {
                return Err(Sense::INVALID_FIELD);
            }
            self.standard()
        } else {
            self.vital(page).ok_or(Sense::INVALID_FIELD)?
        };
        data.truncate(packet.u16_at(3).into());
        Ok(data)
    }

    fn standard(&self) -> Vec<u8> {
        const HEADER: usize = 5;
        let mut data = vec![0; STANDARD_LEN];
        data[0] = CD_DVD_DEVICE;
        data[1] = REMOVABLE;
        data[3] = ATAPI_FORMAT;
        data[4] = u8::try_from(STANDARD_LEN - HEADER).unwrap_or(u8::MAX);
        put_text(&mut data[8..16], VENDOR);
        put_text(&mut data[16..32], PRODUCT);
        put_text(&mut data[32..36], &self.identity().firmware);
        data
    }

    fn vital(&self, page: u8) -> Option<Vec<u8>> {
        /// Identification descriptor: ASCII, by the vendor's rules, about the device.
        const ASCII: u8 = 0x02;
        const VENDOR_SPECIFIC: u8 = 0x00;
        let serial = self.identity().serial.as_bytes();
        let length = u8::try_from(serial.len()).ok()?;
        let body = match page {
            page::SUPPORTED => vec![page::SUPPORTED, page::SERIAL, page::IDENTIFICATION],
            page::SERIAL => serial.to_vec(),
            page::IDENTIFICATION => {
                let mut descriptor = vec![ASCII, VENDOR_SPECIFIC, 0, length];
                descriptor.extend(serial);
                descriptor
            }
            _ => return None,
        };
        let mut data = vec![CD_DVD_DEVICE, page, 0, u8::try_from(body.len()).ok()?];
        data.extend(body);
        Some(data)
    }
}
