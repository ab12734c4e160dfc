//! [`Bounds`]: a driver's [`Limits`] in the form in which the data path uses them.

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

    /// Whether the driver takes a read of `len` bytes from `offset` as it is.
    pub(super) fn takes(&self, offset: u64, len: u64) -> bool {
        (offset | len) & (self.alignment - 1) == 0 && len <= self.max_transfer
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
