//! What every sector that the writer writes looks like.
//!
//! A stamped sector proves by itself which disk, which sector and which write operation it came
//! from, and that all of its 512 bytes belong together. The writer makes stamps, the writer's own
//! read-back and the checker on the host read them.
//!
//! | bytes | content, little endian |
//! |---|---|
//! | 0..8 | magic `SLUICEWR` |
//! | 8..12 | disk number |
//! | 12..16 | [`StampFlags`] |
//! | 16..24 | sector number on that disk |
//! | 24..32 | sequence number of the write operation |
//! | 32..508 | filler derived from disk, sector and sequence number |
//! | 508..512 | CRC-32C of bytes 0..508 |

use crate::{SECTOR_SIZE, prng::Prng};

const MAGIC: [u8; 8] = *b"SLUICEWR";
const FILLER: usize = 32;
const CHECKSUM: usize = SECTOR_SIZE - 4;

bitflags::bitflags! {
    /// How a sector was written. Unknown bits are kept, so that a newer writer's sectors
    /// still read.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct StampFlags: u32 {
        /// Written through the guest's page cache and made durable by a flush; otherwise written
        /// with `O_DIRECT`.
        const BUFFERED = 1;
    }
}

/// The identity of one written sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Number of the disk in the writer's list, from 0.
    pub disk: u32,
    /// How it was written.
    pub flags: StampFlags,
    /// Sector number on the disk.
    pub sector: u64,
    /// Sequence number of the write operation; grows with time for each sector, never 0.
    pub seq: u64,
}

/// Why 512 bytes are not a valid stamped sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StampError {
    /// The magic is missing: the writer never wrote this sector, or it was overwritten.
    #[error("not a stamped sector")]
    NoMagic,
    /// The magic is there but the checksum is wrong: torn or damaged.
    #[error("checksum is {found:#010x}, content gives {computed:#010x}")]
    Checksum {
        /// The stored checksum.
        found: u32,
        /// What the content adds up to.
        computed: u32,
    },
    /// The checksum is right but the filler is not the one of this stamp.
    #[error("filler does not belong to disk {} sector {} seq {}", .0.disk, .0.sector, .0.seq)]
    Filler(Stamp),
}

impl Stamp {
    /// Writes the whole sector for this stamp into `out`.
    pub fn encode(&self, out: &mut [u8; SECTOR_SIZE]) {
        out[..8].copy_from_slice(&MAGIC);
        out[8..12].copy_from_slice(&self.disk.to_le_bytes());
        out[12..16].copy_from_slice(&self.flags.bits().to_le_bytes());
        out[16..24].copy_from_slice(&self.sector.to_le_bytes());
        out[24..32].copy_from_slice(&self.seq.to_le_bytes());
        let mut filler = self.filler();
        for chunk in out[FILLER..CHECKSUM].chunks_mut(8) {
            chunk.copy_from_slice(&filler.next_u64().to_le_bytes()[..chunk.len()]);
        }
        let checksum = crc32c::crc32c(&out[..CHECKSUM]);
        out[CHECKSUM..].copy_from_slice(&checksum.to_le_bytes());
    }

    /// Reads and fully verifies a sector: magic, checksum and filler.
    ///
    /// Whether it is the *right* sector (disk, sector and sequence number) is for the caller to
    /// judge.
    ///
    /// # Errors
    /// The first test that failed.
    pub fn decode(bytes: &[u8; SECTOR_SIZE]) -> Result<Self, StampError> {
        if bytes[..8] != MAGIC {
            return Err(StampError::NoMagic);
        }
        let found = u32_at(bytes, CHECKSUM);
        let computed = crc32c::crc32c(&bytes[..CHECKSUM]);
        if found != computed {
            return Err(StampError::Checksum { found, computed });
        }
        let stamp = Self {
            disk: u32_at(bytes, 8),
            flags: StampFlags::from_bits_retain(u32_at(bytes, 12)),
            sector: u64_at(bytes, 16),
            seq: u64_at(bytes, 24),
        };
        let mut filler = stamp.filler();
        let genuine = bytes[FILLER..CHECKSUM]
            .chunks(8)
            .all(|chunk| *chunk == filler.next_u64().to_le_bytes()[..chunk.len()]);
        if genuine {
            Ok(stamp)
        } else {
            Err(StampError::Filler(stamp))
        }
    }

    fn filler(&self) -> Prng {
        Prng::from_parts(&[u64::from(self.disk), self.sector, self.seq])
    }
}

/// The little-endian word at `at`; the caller gives an offset inside the array.
pub(crate) fn u32_at(bytes: &[u8; SECTOR_SIZE], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

/// As [`u32_at`], for 64 bits.
pub(crate) fn u64_at(bytes: &[u8; SECTOR_SIZE], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: Stamp = Stamp {
        disk: 1,
        flags: StampFlags::BUFFERED,
        sector: 0x1234_5678_9abc,
        seq: 77,
    };

    fn sector() -> [u8; SECTOR_SIZE] {
        let mut bytes = [0; SECTOR_SIZE];
        STAMP.encode(&mut bytes);
        bytes
    }

    #[test]
    fn reads_back_what_was_written() {
        assert_eq!(Stamp::decode(&sector()), Ok(STAMP));
    }

    #[test]
    fn every_single_flipped_bit_is_noticed() {
        for byte in 0..SECTOR_SIZE {
            for bit in 0..8 {
                let mut bytes = sector();
                bytes[byte] ^= 1 << bit;
                assert!(Stamp::decode(&bytes).is_err(), "byte {byte} bit {bit}");
            }
        }
    }

    #[test]
    fn foreign_filler_with_a_right_checksum_is_noticed() {
        let mut bytes = sector();
        bytes[100] ^= 1;
        let checksum = crc32c::crc32c(&bytes[..CHECKSUM]);
        bytes[CHECKSUM..].copy_from_slice(&checksum.to_le_bytes());
        assert_eq!(Stamp::decode(&bytes), Err(StampError::Filler(STAMP)));
    }

    #[test]
    fn zeroes_are_not_a_stamp() {
        assert_eq!(Stamp::decode(&[0; SECTOR_SIZE]), Err(StampError::NoMagic));
    }
}
