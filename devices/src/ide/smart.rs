//! Self-monitoring (SMART): what a disk made of files can say of its health, which is that nothing is wrong.
//!
//! Pure data. Sources: ATA/ATAPI-6 section 8.41 for the commands and the log sectors; SFF-8035i for the layout of
//! attributes and thresholds, which ATA leaves to the vendor and tools rely on.

use super::regs::SECTOR_SIZE;

/// LBA Mid and LBA High of every SMART command: without them it is aborted.
pub(super) const KEY: u16 = 0xc24f;

/// A subcommand, from the Features register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Subcommand {
    /// D0: the attributes and what the drive can do.
    ReadData,
    /// D1: below which value an attribute tells of a failure.
    ReadThresholds,
    /// D2: whether attributes are saved by themselves, as the Count register says.
    AutoSave,
    /// D3: save the attributes; there is nothing to save them from.
    SaveValues,
    /// D4: a self-test, as LBA Low says.
    ExecuteOffline,
    /// D5: a log sector, as LBA Low says.
    ReadLog,
    /// D8.
    Enable,
    /// D9.
    Disable,
    /// DA: whether an attribute is below its threshold.
    ReturnStatus,
}

impl Subcommand {
    /// Decodes a subcommand; `None` is aborted, SMART WRITE LOG (D6) among others.
    pub fn decode(code: u8) -> Option<Self> {
        Some(match code {
            0xd0 => Self::ReadData,
            0xd1 => Self::ReadThresholds,
            0xd2 => Self::AutoSave,
            0xd3 => Self::SaveValues,
            0xd4 => Self::ExecuteOffline,
            0xd5 => Self::ReadLog,
            0xd8 => Self::Enable,
            0xd9 => Self::Disable,
            0xda => Self::ReturnStatus,
            _ => return None,
        })
    }
}

/// The Count register of [`Subcommand::AutoSave`].
mod auto_save {
    pub(super) const OFF: u8 = 0x00;
    pub(super) const ON: u8 = 0xf1;
}

/// LBA Low of [`Subcommand::ExecuteOffline`].
mod test {
    /// Collects off-line data, which are no self-test.
    pub(super) const OFFLINE: u8 = 0x00;
    pub(super) const SHORT: u8 = 0x01;
    pub(super) const EXTENDED: u8 = 0x02;
    pub(super) const ABORT: u8 = 0x7f;
    /// The same in captive mode: BSY until they end, which is at once.
    pub(super) const SHORT_CAPTIVE: u8 = 0x81;
    pub(super) const EXTENDED_CAPTIVE: u8 = 0x82;
}

/// LBA Low of [`Subcommand::ReadLog`].
mod log {
    pub(super) const DIRECTORY: u8 = 0x00;
    pub(super) const SUMMARY_ERRORS: u8 = 0x01;
    pub(super) const SELF_TESTS: u8 = 0x06;
}

/// Offsets in the data of [`Subcommand::ReadData`].
mod data {
    pub(super) const FIRST_ATTRIBUTE: usize = 2;
    pub(super) const ATTRIBUTE_LEN: usize = 12;
    pub(super) const OFFLINE_STATUS: usize = 362;
    pub(super) const OFFLINE_CAPABILITY: usize = 367;
    pub(super) const CAPABILITY: usize = 368;
    pub(super) const ERROR_LOGGING: usize = 370;
    /// Minutes that the short and the extended self-test take.
    pub(super) const POLLING: [usize; 2] = [372, 373];
    pub(super) const CHECKSUM: usize = 511;
}

/// Off-line data collection has never been started, or has ended without an error.
const OFFLINE_NEVER: u8 = 0x00;
const OFFLINE_COMPLETED: u8 = 0x02;
/// EXECUTE OFF-LINE IMMEDIATE and self-tests are there.
const OFFLINE_AND_SELF_TESTS: u8 = (1 << 0) | (1 << 4);
/// Attributes are saved before power goes, and by themselves if so set.
const SAVES: u8 = 0b11;
const ERRORS_ARE_LOGGED: u8 = 1;

/// Revision of attributes, thresholds and self-test log; of log directory and error log.
const REVISION: [u8; 2] = [1, 0];
const LOG_REVISION: u8 = 1;

/// An attribute: what there can be none of in a disk made of files.
struct Attribute {
    id: u8,
    /// Bit 0: a failure is to be expected below the threshold. Bit 1: updated while the drive is used.
    flags: u8,
    threshold: u8,
}

/// The best value of an attribute, and the worst it has had.
const BEST: u8 = 100;
const ATTRIBUTES: [Attribute; 4] = [
    // Reallocated sectors.
    Attribute {
        id: 5,
        flags: 0b11,
        threshold: 36,
    },
    // Sectors that wait for reallocation.
    Attribute {
        id: 197,
        flags: 0b10,
        threshold: 0,
    },
    // Sectors that could not be read off-line.
    Attribute {
        id: 198,
        flags: 0b10,
        threshold: 0,
    },
    // Errors of the cable.
    Attribute {
        id: 199,
        flags: 0b10,
        threshold: 0,
    },
];

/// Offsets in the self-test log (ATA/ATAPI-6, section 8.41.6.8.4).
mod self_tests {
    pub(super) const FIRST: usize = 2;
    pub(super) const LEN: usize = 24;
    pub(super) const COUNT: usize = 21;
    pub(super) const INDEX: usize = 508;
}

/// What SMART commands change. Kept as a drive keeps it: over resets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Smart {
    enabled: bool,
    collected: bool,
    /// Kinds of the self-tests that were done, in a ring.
    tests: [Option<u8>; self_tests::COUNT],
    /// Self-tests done so far.
    done: usize,
}

impl Smart {
    /// Enabled, without any self-test done.
    pub fn new() -> Self {
        Self {
            enabled: true,
            collected: false,
            tests: [None; self_tests::COUNT],
            done: 0,
        }
    }

    /// Whether it is enabled; disabled it takes no command but to be enabled.
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    pub fn set_enabled(&mut self, enabled: bool) {
        self.enabled = enabled;
    }

    /// Whether ENABLE/DISABLE AUTOSAVE takes this Count register. Nothing is lost without either.
    pub fn takes_auto_save(count: u8) -> bool {
        matches!(count, auto_save::OFF | auto_save::ON)
    }

    /// Does a self-test, which finds nothing. False: there is none of this kind.
    pub fn execute_offline(&mut self, kind: u8) -> bool {
        match kind {
            test::OFFLINE => self.collected = true,
            // None is ever under way.
            test::ABORT => {}
            test::SHORT | test::EXTENDED | test::SHORT_CAPTIVE | test::EXTENDED_CAPTIVE => {
                self.tests[self.done % self_tests::COUNT] = Some(kind);
                self.done += 1;
            }
            _ => return false,
        }
        true
    }

    /// The data of READ DATA.
    pub fn data(&self) -> Vec<u8> {
        let mut sector = vec![0; SECTOR_SIZE];
        sector[..REVISION.len()].copy_from_slice(&REVISION);
        let entries = sector[data::FIRST_ATTRIBUTE..].chunks_exact_mut(data::ATTRIBUTE_LEN);
        for (entry, attribute) in entries.zip(&ATTRIBUTES) {
            entry[..5].copy_from_slice(&[attribute.id, attribute.flags, 0, BEST, BEST]);
        }
        sector[data::OFFLINE_STATUS] = if self.collected {
            OFFLINE_COMPLETED
        } else {
            OFFLINE_NEVER
        };
        sector[data::OFFLINE_CAPABILITY] = OFFLINE_AND_SELF_TESTS;
        sector[data::CAPABILITY] = SAVES;
        sector[data::ERROR_LOGGING] = ERRORS_ARE_LOGGED;
        for minutes in data::POLLING {
            sector[minutes] = 1;
        }
        checked(sector)
    }

    /// The data of READ THRESHOLDS.
    pub fn thresholds() -> Vec<u8> {
        let mut sector = vec![0; SECTOR_SIZE];
        sector[..REVISION.len()].copy_from_slice(&REVISION);
        let entries = sector[data::FIRST_ATTRIBUTE..].chunks_exact_mut(data::ATTRIBUTE_LEN);
        for (entry, attribute) in entries.zip(&ATTRIBUTES) {
            entry[..2].copy_from_slice(&[attribute.id, attribute.threshold]);
        }
        checked(sector)
    }

    /// A log of one sector; none at other addresses.
    pub fn log(&self, address: u8) -> Option<Vec<u8>> {
        let mut sector = vec![0; SECTOR_SIZE];
        match address {
            log::DIRECTORY => {
                sector[0] = LOG_REVISION;
                for log in [log::SUMMARY_ERRORS, log::SELF_TESTS] {
                    sector[2 * usize::from(log)] = 1;
                }
                // It alone has no checksum.
                return Some(sector);
            }
            log::SUMMARY_ERRORS => sector[0] = LOG_REVISION,
            log::SELF_TESTS => self.self_tests(&mut sector),
            _ => return None,
        }
        Some(checked(sector))
    }

    fn self_tests(&self, sector: &mut [u8]) {
        sector[..REVISION.len()].copy_from_slice(&REVISION);
        let entries = sector[self_tests::FIRST..].chunks_exact_mut(self_tests::LEN);
        for (entry, kind) in entries.zip(self.tests) {
            // All else is zero: completed without an error, at an age of no hours.
            entry[0] = kind.unwrap_or(0);
        }
        if let Some(last) = self.done.checked_sub(1) {
            sector[self_tests::INDEX] = (last % self_tests::COUNT + 1).to_le_bytes()[0];
        }
    }
}

/// A structure whose bytes add up to zero.
fn checked(mut sector: Vec<u8>) -> Vec<u8> {
    let sum = sector
        .iter()
        .fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    sector[data::CHECKSUM] = sum.wrapping_neg();
    sector
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(sector: &[u8]) -> u8 {
        sector.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn structures_add_up_to_zero() {
        let mut smart = Smart::new();
        assert!(smart.execute_offline(test::SHORT));
        let [errors, tests] =
            [log::SUMMARY_ERRORS, log::SELF_TESTS].map(|at| smart.log(at).unwrap());
        for sector in [smart.data(), Smart::thresholds(), errors, tests] {
            assert_eq!((sector.len(), sum(&sector)), (SECTOR_SIZE, 0));
        }
    }

    #[test]
    fn thresholds_belong_to_the_attributes_and_none_is_reached() {
        let (values, thresholds) = (Smart::new().data(), Smart::thresholds());
        for at in (2..362).step_by(12) {
            assert_eq!(values[at], thresholds[at]);
            assert!(values[at] == 0 || values[at + 3] > thresholds[at + 1]);
        }
    }

    #[test]
    fn the_log_of_self_tests_is_a_ring() {
        let mut smart = Smart::new();
        let index = |smart: &Smart| smart.log(log::SELF_TESTS).unwrap()[508];
        assert_eq!(index(&smart), 0);
        for done in 1..=21 {
            assert!(smart.execute_offline(test::SHORT));
            assert_eq!(index(&smart), done);
        }
        assert!(smart.execute_offline(test::EXTENDED));
        assert_eq!(index(&smart), 1);
        let log = smart.log(log::SELF_TESTS).unwrap();
        assert_eq!((log[2], log[26]), (test::EXTENDED, test::SHORT));
        // Neither is a self-test, and others there are none.
        assert!(smart.execute_offline(test::OFFLINE) && smart.execute_offline(test::ABORT));
        assert!(!smart.execute_offline(0x04));
        assert_eq!(index(&smart), 1);
    }
}
