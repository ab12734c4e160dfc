//! The answers to IDENTIFY DEVICE and IDENTIFY PACKET DEVICE.
//!
//! Pure functions of what the drive is and how it is set. Source: ATA/ATAPI-6 sections 8.15 and 8.16, with
//! word 69, 105, 169 and 217 from ACS-2 section 7.16.

use super::ata::{MAX_MULTIPLE, MAX_TRIM_BLOCKS, TransferMode};
use super::disk::{Disk, DriveIdentity, Settings};
use super::regs::SECTOR_SIZE;
use super::smart::Smart;

const WORDS: usize = SECTOR_SIZE / 2;

/// The most sectors a 28-bit address can tell of.
const LBA28_MAX: u64 = 0x0fff_ffff;

/// Word numbers.
mod word {
    pub(super) const CONFIGURATION: usize = 0;
    pub(super) const CYLINDERS: usize = 1;
    pub(super) const HEADS: usize = 3;
    pub(super) const SECTORS: usize = 6;
    pub(super) const SERIAL: std::ops::Range<usize> = 10..20;
    pub(super) const FIRMWARE: std::ops::Range<usize> = 23..27;
    pub(super) const MODEL: std::ops::Range<usize> = 27..47;
    pub(super) const MULTIPLE_MAX: usize = 47;
    pub(super) const TRUSTED: usize = 48;
    pub(super) const CAPABILITIES: usize = 49;
    pub(super) const VALID: usize = 53;
    pub(super) const CURRENT_CYLINDERS: usize = 54;
    pub(super) const CURRENT_HEADS: usize = 55;
    pub(super) const CURRENT_SECTORS: usize = 56;
    pub(super) const CURRENT_CAPACITY: usize = 57;
    pub(super) const MULTIPLE: usize = 59;
    pub(super) const LBA28_CAPACITY: usize = 60;
    pub(super) const SINGLEWORD: usize = 62;
    pub(super) const MULTIWORD: usize = 63;
    pub(super) const PIO: usize = 64;
    pub(super) const CYCLE_TIMES: std::ops::Range<usize> = 65..69;
    pub(super) const ADDITIONAL: usize = 69;
    pub(super) const MAJOR: usize = 80;
    pub(super) const MINOR: usize = 81;
    pub(super) const SUPPORTED: usize = 82;
    pub(super) const ENABLED: usize = 85;
    pub(super) const ULTRA: usize = 88;
    pub(super) const RESET_RESULT: usize = 93;
    pub(super) const LBA48_CAPACITY: usize = 100;
    pub(super) const TRIM_BLOCKS: usize = 105;
    pub(super) const SECTOR: usize = 106;
    pub(super) const WORLD_WIDE_NAME: std::ops::Range<usize> = 108..112;
    pub(super) const DATA_SET: usize = 169;
    pub(super) const ROTATION: usize = 217;
}

/// General configuration of a packet device: CD-ROM, removable, DRQ within 50 us of PACKET, packets of 12 bytes.
const CD_ROM_DEVICE: u16 = (0b10 << 14) | (5 << 8) | (1 << 7) | (0b10 << 5);
/// General configuration: a fixed ATA device.
const FIXED_DEVICE: u16 = 0x0040;
/// Word 47: bits 15:8 are always 80h.
const MULTIPLE_MARK: u16 = 0x8000;
/// Word 48: doubleword accesses to the data register work.
const DOUBLEWORD_IO: u16 = 0x0001;
/// Word 49: IORDY, LBA, DMA.
const LBA_AND_DMA: u16 = 0x0b00;
/// Word 53: words 54-58, 64-70 and 88 are valid.
const ALL_VALID: u16 = 0x0007;
/// Word 59: the setting of SET MULTIPLE MODE is valid.
const MULTIPLE_VALID: u16 = 0x0100;
/// Modes 0 to 2 of single word and of multiword DMA, 3 and 4 of PIO.
const SINGLEWORD_MODES: u16 = 0x0007;
const MULTIWORD_MODES: u16 = 0x0007;
const PIO_MODES: u16 = 0x0003;
/// Nanoseconds of a cycle.
const CYCLE_TIME: u16 = 120;
/// Word 69: sectors read as zeroes or the same data after TRIM.
const DETERMINISTIC_TRIM: u16 = 1 << 14;
/// ATA/ATAPI-4 to -7.
const MAJOR_VERSIONS: u16 = 0x00f0;
/// ATA/ATAPI-5 T13/1321D revision 1, the revision QEMU reports.
const MINOR_VERSION: u16 = 0x0016;
/// Words 82 and 85: SMART.
const SMART: u16 = 1 << 0;
/// Words 84 and 87: SMART error log and self-tests.
const SMART_LOG_AND_TESTS: u16 = (1 << 0) | (1 << 1);
/// Words 84 and 87: the writes that are durable when they end.
const WRITE_FUA: u16 = 1 << 6;
/// Words 84 and 87: words 108 to 111 are valid.
const HAS_WORLD_WIDE_NAME: u16 = 1 << 8;
/// Word 106: a physical block has more than one sector.
const SECTORS_PER_BLOCK: u16 = 1 << 13;
/// Word 82: write cache.
const WRITE_CACHE: u16 = 1 << 5;
/// Words 82 and 85 of a packet device: PACKET, DEVICE RESET.
const PACKET_AND_RESET: u16 = (1 << 4) | (1 << 9);
/// Word 82: NOP.
const NOP: u16 = 1 << 14;
/// Words 83, 84, 87, 93, 106: bit 14 says that the word is valid.
const WORD_VALID: u16 = 1 << 14;
/// Word 83: 48-bit addresses, FLUSH CACHE, FLUSH CACHE EXT.
const ADDRESS_48_AND_FLUSH: u16 = (1 << 10) | (1 << 12) | (1 << 13);
/// Modes 0 to 5 of Ultra DMA.
const ULTRA_MODES: u16 = 0x003f;
/// Word 93: device 0 passed, an 80-conductor cable is there.
const HARDWARE_RESET: u16 = WORD_VALID | (1 << 13) | 1;
/// Word 169: TRIM.
const TRIM: u16 = 1 << 0;

/// The words under construction.
struct Words([u16; WORDS]);

impl Words {
    fn set(&mut self, word: usize, value: u16) {
        self.0[word] = value;
    }

    /// A number of several words, least significant first.
    fn number(&mut self, word: usize, value: u64, words: usize) {
        for (at, pair) in (word..word + words).zip(value.to_le_bytes().chunks_exact(2)) {
            self.0[at] = u16::from_le_bytes([pair[0], pair[1]]);
        }
    }

    /// Text, two characters a word, the first in the upper half; padded with spaces.
    fn text(&mut self, words: std::ops::Range<usize>, text: &str) {
        let mut bytes = text.bytes().chain(std::iter::repeat(b' '));
        for word in words {
            let pair = [bytes.next(), bytes.next()].map(|byte| byte.unwrap_or(b' '));
            self.0[word] = u16::from_be_bytes(pair);
        }
    }

    fn bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|word| word.to_le_bytes()).collect()
    }
}

/// The 512 bytes that IDENTIFY DEVICE returns.
pub(super) fn identify(disk: &Disk, settings: &Settings, smart: &Smart) -> Vec<u8> {
    let mut words = Words([0; WORDS]);
    words.set(word::CONFIGURATION, FIXED_DEVICE);
    texts(&mut words, &disk.identity);
    capacity(&mut words, disk, settings);
    transfers(&mut words, settings);
    features(&mut words, disk, settings, smart);
    words.bytes()
}

/// The 512 bytes that IDENTIFY PACKET DEVICE returns for a CD-ROM drive.
pub(super) fn identify_packet(identity: &DriveIdentity, settings: &Settings) -> Vec<u8> {
    let mut words = Words([0; WORDS]);
    words.set(word::CONFIGURATION, CD_ROM_DEVICE);
    texts(&mut words, identity);
    words.set(word::TRUSTED, DOUBLEWORD_IO);
    words.set(word::CAPABILITIES, LBA_AND_DMA);
    modes(&mut words, settings);
    words.set(word::MAJOR, MAJOR_VERSIONS);
    words.set(word::MINOR, MINOR_VERSION);
    words.set(word::SUPPORTED, PACKET_AND_RESET);
    words.set(word::ENABLED, PACKET_AND_RESET);
    words.set(word::SUPPORTED + 1, WORD_VALID);
    let more = WORD_VALID | world_wide_name(&mut words, identity);
    words.set(word::SUPPORTED + 2, more);
    words.set(word::ENABLED + 2, more);
    words.bytes()
}

/// Writes the world wide name, and returns the bit that says so.
fn world_wide_name(words: &mut Words, identity: &DriveIdentity) -> u16 {
    if identity.wwn == 0 {
        return 0;
    }
    // The only number of several words that begins with the most significant.
    for (word, part) in word::WORLD_WIDE_NAME.zip(identity.wwn.to_be_bytes().chunks_exact(2)) {
        words.set(word, u16::from_be_bytes([part[0], part[1]]));
    }
    HAS_WORLD_WIDE_NAME
}

fn texts(words: &mut Words, identity: &DriveIdentity) {
    words.text(word::SERIAL, &identity.serial);
    words.text(word::FIRMWARE, &identity.firmware);
    words.text(word::MODEL, &identity.model);
}

fn capacity(words: &mut Words, disk: &Disk, settings: &Settings) {
    let native = disk.geometry();
    words.set(word::CYLINDERS, native.cylinders);
    words.set(word::HEADS, native.heads.into());
    words.set(word::SECTORS, native.sectors.into());
    let current = settings.translation;
    words.set(word::CURRENT_CYLINDERS, current.cylinders);
    words.set(word::CURRENT_HEADS, current.heads.into());
    words.set(word::CURRENT_SECTORS, current.sectors.into());
    words.number(word::CURRENT_CAPACITY, current.capacity().into(), 2);
    words.number(word::LBA28_CAPACITY, disk.sectors.min(LBA28_MAX), 2);
    words.number(word::LBA48_CAPACITY, disk.sectors, 4);
    words.set(
        word::SECTOR,
        match disk.physical_exponent {
            0 => WORD_VALID,
            exponent => WORD_VALID | SECTORS_PER_BLOCK | u16::from(exponent),
        },
    );
    if let Some(rate) = disk.rotation_rate {
        words.set(word::ROTATION, rate);
    }
}

fn transfers(words: &mut Words, settings: &Settings) {
    words.set(word::MULTIPLE_MAX, MULTIPLE_MARK | u16::from(MAX_MULTIPLE));
    words.set(word::TRUSTED, DOUBLEWORD_IO);
    words.set(word::CAPABILITIES, LBA_AND_DMA);
    words.set(
        word::MULTIPLE,
        MULTIPLE_VALID | u16::from(settings.multiple),
    );
    modes(words, settings);
}

/// Which transfer modes there are and which is selected.
fn modes(words: &mut Words, settings: &Settings) {
    words.set(word::VALID, ALL_VALID);
    let selected = |mode: u8| 1 << (8 + mode);
    let (singleword, multiword, ultra) = match settings.mode {
        TransferMode::Pio => (0, 0, 0),
        TransferMode::SinglewordDma(mode) => (selected(mode), 0, 0),
        TransferMode::MultiwordDma(mode) => (0, selected(mode), 0),
        TransferMode::UltraDma(mode) => (0, 0, selected(mode)),
    };
    words.set(word::SINGLEWORD, SINGLEWORD_MODES | singleword);
    words.set(word::MULTIWORD, MULTIWORD_MODES | multiword);
    words.set(word::ULTRA, ULTRA_MODES | ultra);
    words.set(word::PIO, PIO_MODES);
    for word in word::CYCLE_TIMES {
        words.set(word, CYCLE_TIME);
    }
    words.set(word::RESET_RESULT, HARDWARE_RESET);
}

fn features(words: &mut Words, disk: &Disk, settings: &Settings, smart: &Smart) {
    words.set(word::MAJOR, MAJOR_VERSIONS);
    words.set(word::MINOR, MINOR_VERSION);
    let cache = if settings.write_cache { WRITE_CACHE } else { 0 };
    let watched = if smart.is_enabled() { SMART } else { 0 };
    words.set(word::SUPPORTED, NOP | WRITE_CACHE | SMART);
    words.set(word::ENABLED, NOP | cache | watched);
    words.set(word::SUPPORTED + 1, WORD_VALID | ADDRESS_48_AND_FLUSH);
    words.set(word::ENABLED + 1, ADDRESS_48_AND_FLUSH);
    let more =
        WORD_VALID | SMART_LOG_AND_TESTS | WRITE_FUA | world_wide_name(words, &disk.identity);
    words.set(word::SUPPORTED + 2, more);
    words.set(word::ENABLED + 2, more);
    if disk.discard {
        words.set(word::ADDITIONAL, DETERMINISTIC_TRIM);
        words.set(word::TRIM_BLOCKS, MAX_TRIM_BLOCKS);
        words.set(word::DATA_SET, TRIM);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk() -> Disk {
        Disk {
            identity: DriveIdentity {
                serial: "QM00001".into(),
                model: "SLUICE HARDDISK".into(),
                firmware: "1.0".into(),
                wwn: 0,
            },
            sectors: 0x1_2345_6789,
            rotation_rate: Some(1),
            physical_exponent: 0,
            asked_for: None,
            discard: true,
            write_cache: true,
        }
    }

    fn word_of(bytes: &[u8], word: usize) -> u16 {
        u16::from_le_bytes([bytes[2 * word], bytes[2 * word + 1]])
    }

    #[test]
    fn text_is_swapped_and_padded() {
        let disk = disk();
        let bytes = identify(&disk, &Settings::power_on(&disk), &Smart::new());
        assert_eq!(&bytes[20..40], b"MQ0000 1            ");
        assert_eq!(&bytes[46..54], b".1 0    ");
        assert_eq!(&bytes[54..62], b"LSIUECH ");
    }

    #[test]
    fn capacities_of_a_large_disk() {
        let disk = disk();
        let bytes = identify(&disk, &Settings::power_on(&disk), &Smart::new());
        assert_eq!(word_of(&bytes, 60), 0xffff);
        assert_eq!(word_of(&bytes, 61), 0x0fff);
        assert_eq!(&bytes[200..208], &0x1_2345_6789u64.to_le_bytes());
        assert_eq!(word_of(&bytes, 1), 16383);
    }

    #[test]
    fn settings_show() {
        let disk = disk();
        let mut settings = Settings::power_on(&disk);
        settings.mode = TransferMode::UltraDma(2);
        settings.write_cache = false;
        settings.multiple = 8;
        let bytes = identify(&disk, &settings, &Smart::new());
        assert_eq!(word_of(&bytes, 88), 0x043f);
        assert_eq!(word_of(&bytes, 63), 0x0007);
        assert_eq!(word_of(&bytes, 85) & WRITE_CACHE, 0);
        assert_eq!(word_of(&bytes, 82) & WRITE_CACHE, WRITE_CACHE);
        assert_eq!(word_of(&bytes, 59), 0x0108);
        assert_eq!(word_of(&bytes, 169), TRIM);
        assert_eq!(word_of(&bytes, 217), 1);
    }

    #[test]
    fn a_disk_without_discard_offers_no_trim() {
        let mut disk = disk();
        disk.discard = false;
        let bytes = identify(&disk, &Settings::power_on(&disk), &Smart::new());
        assert_eq!(word_of(&bytes, 169), 0);
        assert_eq!(word_of(&bytes, 69), 0);
    }

    /// By number and value, as a driver looks at them; what the drive's size and settings decide has tests of its own.
    #[test]
    fn a_disk_says_what_it_can() {
        let disk = disk();
        let bytes = identify(&disk, &Settings::power_on(&disk), &Smart::new());
        let expected = [
            (0, 0x0040),
            (47, 0x8010),
            (48, 0x0001),
            (49, 0x0b00),
            (53, 0x0007),
            (64, 0x0003),
            (65, 120),
            (66, 120),
            (67, 120),
            (68, 120),
            (69, 0x4000),
            (75, 0),
            (76, 0),
            (80, 0x00f0),
            (81, 0x0016),
            (82, 0x4021),
            (83, 0x7400),
            (84, 0x4043),
            (85, 0x4021),
            (86, 0x3400),
            (87, 0x4043),
            (88, 0x203f),
            (93, 0x6001),
            (105, MAX_TRIM_BLOCKS),
            (106, 0x4000),
        ];
        for (word, value) in expected {
            assert_eq!(word_of(&bytes, word), value, "word {word}");
        }
    }

    #[test]
    fn a_cd_rom_drive_says_what_it_can() {
        let disk = disk();
        let bytes = identify_packet(&disk.identity, &Settings::power_on(&disk));
        let expected = [
            (0, 0x85c0),
            (48, 0x0001),
            (49, 0x0b00),
            (53, 0x0007),
            (62, 0x0007),
            (63, 0x0007),
            (64, 0x0003),
            (65, 120),
            (68, 120),
            (80, 0x00f0),
            (82, 0x0210),
            (85, 0x0210),
            (88, 0x203f),
            (93, 0x6001),
        ];
        for (word, value) in expected {
            assert_eq!(word_of(&bytes, word), value, "word {word}");
        }
    }
}
