//! The command block as a device remembers it: current and previous bytes, addresses, counts.
//!
//! Pure data. One [`TaskFile`] per device, as both devices of a channel receive every write.

use super::ata::Width;
use super::regs::{Device, Register, Signature};

/// A register of the 48-bit feature set: a queue two bytes deep (ATA/ATAPI-6 section 6.20).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Fifo {
    /// What was written last.
    pub current: u8,
    /// What was written before that.
    pub previous: u8,
}

impl Fifo {
    fn push(&mut self, value: u8) {
        self.previous = self.current;
        self.current = value;
    }

    fn get(self, previous: bool) -> u8 {
        if previous {
            self.previous
        } else {
            self.current
        }
    }
}

/// The translation of cylinder, head and sector numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Number of cylinders.
    pub cylinders: u16,
    /// Heads per cylinder, 1 to 16.
    pub heads: u8,
    /// Sectors per track, 1 to 255.
    pub sectors: u8,
}

impl Geometry {
    const HEADS: u8 = 16;
    const SECTORS: u8 = 63;
    /// More cylinders cannot be reported (section 6.16).
    const MAX_CYLINDERS: u16 = 16383;
    const MIN_CYLINDERS: u16 = 2;

    /// Whether a disk can be addressed by it.
    pub(super) fn makes_sense(self) -> bool {
        self.cylinders > 0 && (1..=Self::HEADS).contains(&self.heads) && self.sectors > 0
    }

    /// The customary translation for a disk of `sectors` sectors.
    pub(super) fn for_capacity(sectors: u64) -> Self {
        let track = u64::from(Self::HEADS) * u64::from(Self::SECTORS);
        let cylinders = u16::try_from(sectors / track).unwrap_or(Self::MAX_CYLINDERS);
        Self {
            cylinders: cylinders.clamp(Self::MIN_CYLINDERS, Self::MAX_CYLINDERS),
            heads: Self::HEADS,
            sectors: Self::SECTORS,
        }
    }

    /// The same capacity under another translation, as INITIALIZE DEVICE PARAMETERS asks for.
    /// `None` if it makes no sense.
    pub(super) fn translated(capacity: u64, heads: u8, sectors: u8) -> Option<Self> {
        let track = u64::from(heads) * u64::from(sectors);
        let cylinders = capacity.checked_div(track)?;
        Some(Self {
            cylinders: u16::try_from(cylinders).unwrap_or(u16::MAX),
            heads,
            sectors,
        })
    }

    /// Sectors reachable under this translation.
    pub(super) fn capacity(self) -> u32 {
        u32::from(self.cylinders) * u32::from(self.heads) * u32::from(self.sectors)
    }
}

/// How a command's address registers are to be read and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Addressing {
    /// Cylinder, head, sector.
    Chs(Geometry),
    /// LBA of the given width.
    Lba(Width),
}

/// The writable part of a device's command block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TaskFile {
    features: Fifo,
    count: Fifo,
    lba_low: Fifo,
    lba_mid: Fifo,
    lba_high: Fifo,
    device: Device,
}

impl TaskFile {
    /// The content after a reset or diagnostic.
    pub fn with_signature(signature: Signature) -> Self {
        let fifo = |current| Fifo {
            current,
            previous: 0,
        };
        let [mid, high] = signature.mid_high();
        Self {
            features: Fifo::default(),
            count: fifo(Signature::FIRST),
            lba_low: fifo(Signature::FIRST),
            lba_mid: fifo(mid),
            lba_high: fifo(high),
            device: Device::ALWAYS_ONE,
        }
    }

    /// Stores a byte written by the guest. Data and Command are not kept here.
    pub fn write(&mut self, register: Register, value: u8) {
        match register {
            Register::ErrorFeatures => self.features.push(value),
            Register::Count => self.count.push(value),
            Register::LbaLow => self.lba_low.push(value),
            Register::LbaMid => self.lba_mid.push(value),
            Register::LbaHigh => self.lba_high.push(value),
            Register::Device => self.device = Device::from_bits_retain(value) | Device::ALWAYS_ONE,
            Register::Data | Register::StatusCommand => {}
        }
    }

    /// The byte of a register, or its previous content. Error, data and status are not kept here.
    pub fn read(&self, register: Register, previous: bool) -> u8 {
        match register {
            Register::ErrorFeatures => self.features.get(previous),
            Register::Count => self.count.get(previous),
            Register::LbaLow => self.lba_low.get(previous),
            Register::LbaMid => self.lba_mid.get(previous),
            Register::LbaHigh => self.lba_high.get(previous),
            Register::Device => self.device.bits(),
            Register::Data | Register::StatusCommand => 0,
        }
    }

    /// The Features register.
    pub fn features(&self) -> u8 {
        self.features.current
    }

    /// The Count register, as a parameter.
    pub fn count_byte(&self) -> u8 {
        self.count.current
    }

    /// Sets the Count register.
    pub fn set_count_byte(&mut self, value: u8) {
        self.count.current = value;
    }

    /// The LBA Low register, as a parameter.
    pub fn lba_low(&self) -> u8 {
        self.lba_low.current
    }

    /// The Byte Count of a packet command, or the key of a SMART command, which LBA mid and LBA high are then.
    pub fn byte_count(&self) -> u16 {
        u16::from_le_bytes([self.lba_mid.current, self.lba_high.current])
    }

    /// Sets the Byte Count.
    pub fn set_byte_count(&mut self, bytes: u16) {
        [self.lba_mid.current, self.lba_high.current] = bytes.to_le_bytes();
    }

    /// The head number field.
    pub fn head(&self) -> u8 {
        (self.device & Device::HEAD).bits()
    }

    /// How addresses of a command of `width` are encoded now.
    pub fn addressing(&self, width: Width, translation: Geometry) -> Addressing {
        if self.device.contains(Device::LBA) {
            Addressing::Lba(width)
        } else {
            Addressing::Chs(translation)
        }
    }

    /// The number of sectors asked for; zero on the wire is the largest count.
    pub fn sector_count(&self, width: Width) -> u32 {
        let (count, all) = match width {
            Width::Lba28 => (u32::from(self.count.current), 1 << 8),
            Width::Lba48 => {
                let bytes = [self.count.current, self.count.previous];
                (u32::from(u16::from_le_bytes(bytes)), 1 << 16)
            }
        };
        if count == 0 { all } else { count }
    }

    /// Writes back the number of sectors that remain.
    pub fn set_sector_count(&mut self, remaining: u32) {
        let [current, previous, ..] = remaining.to_le_bytes();
        self.count = Fifo { current, previous };
    }

    /// The sector number asked for. `None`: there is no sector 0 on a track.
    pub fn address(&self, addressing: Addressing) -> Option<u64> {
        let low = self.lba_low.current;
        let mid = self.lba_mid.current;
        let high = self.lba_high.current;
        match addressing {
            Addressing::Chs(geometry) => {
                let cylinder = u64::from(u16::from_le_bytes([mid, high]));
                let track = cylinder * u64::from(geometry.heads) + u64::from(self.head());
                let sector = u64::from(low).checked_sub(1)?;
                Some(track * u64::from(geometry.sectors) + sector)
            }
            Addressing::Lba(Width::Lba28) => {
                let bytes = [low, mid, high, self.head()];
                Some(u64::from(u32::from_le_bytes(bytes)))
            }
            Addressing::Lba(Width::Lba48) => Some(u64::from_le_bytes([
                low,
                mid,
                high,
                self.lba_low.previous,
                self.lba_mid.previous,
                self.lba_high.previous,
                0,
                0,
            ])),
        }
    }

    /// Writes a sector number back; bits that the encoding has no room for are cut off.
    pub fn set_address(&mut self, addressing: Addressing, sector: u64) {
        match addressing {
            Addressing::Chs(geometry) => {
                let per_track = u64::from(geometry.sectors.max(1));
                let heads = u64::from(geometry.heads.max(1));
                let track = sector / per_track;
                let [mid, high, ..] = (track / heads).to_le_bytes();
                let [number, ..] = (sector % per_track + 1).to_le_bytes();
                let [head, ..] = (track % heads).to_le_bytes();
                self.lba_low.current = number;
                self.lba_mid.current = mid;
                self.lba_high.current = high;
                self.set_head(head);
            }
            Addressing::Lba(Width::Lba28) => {
                let [low, mid, high, head, ..] = sector.to_le_bytes();
                self.lba_low.current = low;
                self.lba_mid.current = mid;
                self.lba_high.current = high;
                self.set_head(head);
            }
            Addressing::Lba(Width::Lba48) => {
                let [a, b, c, d, e, f, ..] = sector.to_le_bytes();
                let fifo = |current, previous| Fifo { current, previous };
                self.lba_low = fifo(a, d);
                self.lba_mid = fifo(b, e);
                self.lba_high = fifo(c, f);
            }
        }
    }

    fn set_head(&mut self, head: u8) {
        let head = Device::from_bits_retain(head) & Device::HEAD;
        self.device = (self.device - Device::HEAD) | head;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn disk() -> TaskFile {
        TaskFile::with_signature(Signature::Disk)
    }

    #[test]
    fn lba48_takes_the_previous_bytes() {
        let mut task = disk();
        for (register, previous, current) in [
            (Register::Count, 0x01, 0x02),
            (Register::LbaLow, 0x44, 0x11),
            (Register::LbaMid, 0x55, 0x22),
            (Register::LbaHigh, 0x66, 0x33),
        ] {
            task.write(register, previous);
            task.write(register, current);
        }
        let address = task.address(Addressing::Lba(Width::Lba48));
        assert_eq!(address, Some(0x6655_4433_2211));
        assert_eq!(task.sector_count(Width::Lba48), 0x0102);
        assert_eq!(task.sector_count(Width::Lba28), 0x02);
        assert_eq!(task.read(Register::LbaLow, true), 0x44);
    }

    #[test]
    fn a_count_of_zero_is_the_largest() {
        let mut task = disk();
        task.set_sector_count(0);
        assert_eq!(task.sector_count(Width::Lba28), 256);
        assert_eq!(task.sector_count(Width::Lba48), 65536);
    }

    #[test]
    fn sector_zero_of_a_track_is_no_address() {
        let mut task = disk();
        task.write(Register::LbaLow, 0);
        let chs = Addressing::Chs(Geometry::for_capacity(1 << 20));
        assert_eq!(task.address(chs), None);
    }

    #[test]
    fn a_translation_without_sectors_is_refused() {
        assert_eq!(Geometry::translated(1000, 16, 0), None);
        let geometry = Geometry::translated(1000, 2, 5).unwrap();
        assert_eq!(geometry.cylinders, 100);
        assert_eq!(geometry.capacity(), 1000);
    }

    proptest! {
        #[test]
        fn addresses_survive_a_write_back(sector in 0u64..1 << 26, heads in 1u8..=16, sectors in 1u8..=255) {
            let geometry = Geometry { cylinders: 0, heads, sectors };
            let chs_reach = 65536 * u64::from(heads) * u64::from(sectors);
            for addressing in [
                Addressing::Chs(geometry),
                Addressing::Lba(Width::Lba28),
                Addressing::Lba(Width::Lba48),
            ] {
                let mut task = disk();
                task.set_address(addressing, sector);
                let expected = match addressing {
                    Addressing::Chs(_) if sector >= chs_reach => sector % chs_reach,
                    _ => sector,
                };
                prop_assert_eq!(task.address(addressing), Some(expected));
            }
        }
    }
}
