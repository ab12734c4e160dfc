//! How fine a mirror's bitmaps are, and so how much memory they take at most.
//!
//! A mirror has two bitmaps of its disk, and a third during its first copy. They take little while the marks are few
//! or close together, but at worst a guest marks a chunk here and a chunk there all over the disk.

use crate::dirty::Granularity;
use crate::error::{BlockError, Result};

/// The granularity of small disks if none is asked for, in bytes (QEMU: 64 KiB where no cluster size is known).
const DEFAULT: u64 = 64 << 10;
/// The most chunks if no granularity is asked for. At worst a bitmap takes 2.3 MiB then, and a mirror, with what it
/// copies at once, less than 32 MiB.
const CHUNKS: u64 = 1 << 24;
/// The most chunks if one is asked for. At worst a bitmap takes 36 MiB then.
const MOST_CHUNKS: u64 = 1 << 28;

/// That of a mirror of a disk of `size` bytes for which none is asked for.
pub(super) fn by_default(size: u64) -> Granularity {
    Granularity::for_chunks(size, CHUNKS, DEFAULT)
}

/// That of a mirror of a disk of `size` bytes, of which `asked` are wanted; 0 stands for the default.
///
/// # Errors
/// It is none, or would take too much memory; the text names the smallest that does not.
pub(super) fn asked_for(asked: Option<u64>, size: u64) -> Result<Granularity> {
    let Some(bytes) = asked.filter(|bytes| *bytes != 0) else {
        return Ok(by_default(size));
    };
    let refused = |text: String| BlockError::Refused(text);
    let granularity = Granularity::new(bytes).map_err(|error| refused(error.to_string()))?;
    let least = Granularity::for_chunks(size, MOST_CHUNKS, Granularity::MIN).bytes();
    if bytes >= least {
        return Ok(granularity);
    }
    let remedy = match least <= Granularity::MAX {
        true => format!("choose at least {least}, or leave it out"),
        false => "leave it out".to_owned(),
    };
    Err(refused(format!(
        "Parameter 'granularity' is too small for a disk of {size} bytes: its bitmaps would take too much memory; \
         {remedy}"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dirty::DirtyBitmap;
    use crate::mirror::checks::DEFAULT_BUF_SIZE;
    use crate::mirror::ledger::Memory;

    /// What a mirror may take, in bytes.
    const ALLOWED: u64 = 32 << 20;
    /// Two, and a third during the first copy.
    const BITMAPS: u64 = 3;

    #[test]
    fn at_worst_a_mirror_of_any_size_stays_under_its_memory() {
        for shift in 0..63 {
            for size in [(1_u64 << shift) - 1, 1 << shift, (1 << shift) + 1] {
                let bitmap = DirtyBitmap::new(size, by_default(size)).unwrap();
                let bitmaps = BITMAPS * bitmap.memory_at_most();
                let all = bitmaps + DEFAULT_BUF_SIZE + Memory::ALL;
                assert!(all < ALLOWED, "{all} for {size}");
            }
        }
    }

    #[test]
    fn it_grows_with_the_disk_from_1_tib_on() {
        const TIB: u64 = 1 << 40;
        let of = |size| by_default(size).bytes();
        assert_eq!(of(0), DEFAULT);
        assert_eq!(of(TIB), DEFAULT);
        assert_eq!(of(TIB + 1), 2 * DEFAULT);
        assert_eq!(of(64 * TIB), 64 * DEFAULT);
        assert_eq!(asked_for(Some(0), TIB).unwrap().bytes(), DEFAULT);
    }

    #[test]
    fn one_that_is_asked_for_is_used_or_refused_with_the_smallest_that_can_be_used() {
        const SIZE: u64 = 64 << 40;
        let used = asked_for(Some(256 << 10), SIZE).unwrap();
        assert_eq!(used.bytes(), 256 << 10);
        let text = |asked, size| asked_for(Some(asked), size).unwrap_err().to_string();
        assert_eq!(
            text(128 << 10, SIZE),
            "Parameter 'granularity' is too small for a disk of 70368744177664 bytes: its bitmaps would take too much \
             memory; choose at least 262144, or leave it out"
        );
        assert!(text(64 << 20, 1 << 60).ends_with("memory; leave it out"));
        assert_eq!(
            text(256, SIZE),
            "Parameter 'granularity' expects a value in range [512B, 64MB]"
        );
    }
}
