//! [`Bounds`]: a driver's [`Limits`] in the form in which the data path uses them.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::driver::Limits;

/// Limits made consistent: every maximum is a positive multiple of its alignment, every alignment
/// at least 1 and a multiple of the requests' one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Of reads and writes; a power of two.
    pub(super) alignment: u64,
    pub(super) max_transfer: u64,
    pub(super) zero_alignment: u64,
    pub(super) max_zeroes: u64,
    pub(super) discard_alignment: u64,
    pub(super) max_discard: u64,
}

impl Bounds {
    pub(super) fn new(limits: Limits) -> Self {
        let alignment = u64::from(limits.request_alignment)
            .max(1)
            .next_power_of_two();
        let aligned = |preferred: u32| u64::from(preferred).max(1).next_multiple_of(alignment);
        let zero_alignment = aligned(limits.write_zeroes_alignment);
        let discard_alignment = aligned(limits.discard_alignment);
        Self {
            alignment,
            max_transfer: most(limits.max_transfer, alignment, alignment),
            zero_alignment,
            max_zeroes: most(limits.max_write_zeroes, zero_alignment, alignment),
            discard_alignment,
            max_discard: most(limits.max_discard, discard_alignment, alignment),
        }
    }
}

/// Bounds that change when the driver's limits do, which no request meets: each is a word of its own.
#[derive(Debug)]
pub(super) struct BoundsCell {
    alignment: AtomicU64,
    max_transfer: AtomicU64,
    zero_alignment: AtomicU64,
    max_zeroes: AtomicU64,
    discard_alignment: AtomicU64,
    max_discard: AtomicU64,
}

impl BoundsCell {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            alignment: AtomicU64::new(bounds.alignment),
            max_transfer: AtomicU64::new(bounds.max_transfer),
            zero_alignment: AtomicU64::new(bounds.zero_alignment),
            max_zeroes: AtomicU64::new(bounds.max_zeroes),
            discard_alignment: AtomicU64::new(bounds.discard_alignment),
            max_discard: AtomicU64::new(bounds.max_discard),
        }
    }

    pub(super) fn alignment(&self) -> u64 {
        self.alignment.load(Ordering::Relaxed)
    }

    /// Whether the driver takes a read of `len` bytes from `offset` as it is.
    pub(super) fn takes(&self, offset: u64, len: u64) -> bool {
        let blocks = (offset | len) & (self.alignment() - 1) == 0;
        blocks && len <= self.max_transfer.load(Ordering::Relaxed)
    }

    pub(super) fn get(&self) -> Bounds {
        let load = |word: &AtomicU64| word.load(Ordering::Relaxed);
        Bounds {
            alignment: load(&self.alignment),
            max_transfer: load(&self.max_transfer),
            zero_alignment: load(&self.zero_alignment),
            max_zeroes: load(&self.max_zeroes),
            discard_alignment: load(&self.discard_alignment),
            max_discard: load(&self.max_discard),
        }
    }

    pub(super) fn set(&self, bounds: Bounds) {
        let store = |word: &AtomicU64, value| word.store(value, Ordering::Relaxed);
        store(&self.alignment, bounds.alignment);
        store(&self.max_transfer, bounds.max_transfer);
        store(&self.zero_alignment, bounds.zero_alignment);
        store(&self.max_zeroes, bounds.max_zeroes);
        store(&self.discard_alignment, bounds.discard_alignment);
        store(&self.max_discard, bounds.max_discard);
    }
}

/// `max` as a multiple of `preferred` if that is possible, else of `alignment`, and never 0.
fn most(max: Option<u64>, preferred: u64, alignment: u64) -> u64 {
    let Some(max) = max else {
        return u64::MAX;
    };
    let unit = if max >= preferred {
        preferred
    } else {
        alignment
    };
    (max / unit * unit).max(alignment)
}
