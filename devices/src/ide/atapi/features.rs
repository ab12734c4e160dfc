//! GET CONFIGURATION: what drive and medium can do together (MMC-5, sections 5 and 6.6).

use super::drive::{CdRom, MediumKind};
use super::wire::{Packet, Sense};

/// Profiles (MMC-5, table 88).
mod profile {
    pub(super) const NONE: u16 = 0x0000;
    pub(super) const CD_ROM: u16 = 0x0008;
    pub(super) const DVD_ROM: u16 = 0x0010;
}

/// Byte 2 of a feature descriptor.
mod flag {
    pub(super) const CURRENT: u8 = 1 << 0;
    pub(super) const PERSISTENT: u8 = 1 << 1;
}

/// A feature descriptor.
struct Feature {
    code: u16,
    version: u8,
    /// Whether it is there whatever the medium is.
    persistent: bool,
    current: bool,
    data: Vec<u8>,
}

impl Feature {
    fn bytes(&self) -> Vec<u8> {
        const VERSION_SHIFT: u8 = 2;
        let mut flags = self.version << VERSION_SHIFT;
        if self.persistent {
            flags |= flag::PERSISTENT;
        }
        if self.current {
            flags |= flag::CURRENT;
        }
        let [high, low] = self.code.to_be_bytes();
        let length = u8::try_from(self.data.len()).unwrap_or(u8::MAX);
        let mut bytes = vec![high, low, flags, length];
        bytes.extend(&self.data);
        bytes
    }
}

/// All features, by ascending code.
fn features(medium: Option<MediumKind>) -> Vec<Feature> {
    /// Core: ATAPI.
    const INTERFACE_ATAPI: [u8; 4] = [0, 0, 0, 2];
    /// Core: the event command knows about more than the mandatory.
    const DEVICE_BUSY_EVENTS: u8 = 1 << 0;
    /// Removable medium: a tray, which can be ejected and locked.
    const TRAY_EJECT_LOCK: u8 = (1 << 5) | (1 << 3) | (1 << 0);
    const BLOCK_2048: [u8; 8] = [0, 0, 8, 0, 0, 1, 0, 0];
    let is = |kind| medium == Some(kind);
    let profiles = [
        (profile::DVD_ROM, is(MediumKind::Dvd)),
        (profile::CD_ROM, is(MediumKind::Cd)),
    ];
    let list = profiles.into_iter().flat_map(|(profile, current)| {
        let [high, low] = profile.to_be_bytes();
        [high, low, u8::from(current), 0]
    });
    let mut core = INTERFACE_ATAPI.to_vec();
    core.extend([DEVICE_BUSY_EVENTS, 0, 0, 0]);
    let always = |code, version, data| Feature {
        code,
        version,
        persistent: true,
        current: true,
        data,
    };
    let with_medium = |code, version, current, data| Feature {
        code,
        version,
        persistent: false,
        current,
        data,
    };
    vec![
        always(0x0000, 0, list.collect()),
        always(0x0001, 1, core),
        always(0x0003, 0, vec![TRAY_EJECT_LOCK, 0, 0, 0]),
        with_medium(0x0010, 0, medium.is_some(), BLOCK_2048.to_vec()),
        with_medium(0x001e, 0, is(MediumKind::Cd), vec![]),
        with_medium(0x001f, 0, is(MediumKind::Dvd), vec![]),
    ]
}

impl CdRom {
    pub(super) fn get_configuration(&self, packet: &Packet) -> Result<Vec<u8>, Sense> {
        const ALL: u8 = 0;
        const CURRENT: u8 = 1;
        const ONE: u8 = 2;
        const HEADER: usize = 8;
        const LENGTH_FIELD: usize = 4;
        let medium = self.medium_kind();
        let wanted = packet.byte(1) & 0b11;
        let start = packet.u16_at(2);
        let chosen = |feature: &Feature| match wanted {
            ALL => feature.code >= start,
            CURRENT => feature.code >= start && feature.current,
            _ => feature.code == start,
        };
        if wanted > ONE {
            return Err(Sense::INVALID_FIELD);
        }
        let all = features(medium);
        let descriptors = all.iter().filter(|feature| chosen(feature));
        let body: Vec<u8> = descriptors.flat_map(Feature::bytes).collect();
        let current = match medium {
            None => profile::NONE,
            Some(MediumKind::Cd) => profile::CD_ROM,
            Some(MediumKind::Dvd) => profile::DVD_ROM,
        };
        let rest = u32::try_from(HEADER - LENGTH_FIELD + body.len()).unwrap_or(u32::MAX);
        let mut data = rest.to_be_bytes().to_vec();
        data.extend([0, 0]);
        data.extend(current.to_be_bytes());
        data.extend(body);
        data.truncate(packet.u16_at(7).into());
        Ok(data)
    }
}
