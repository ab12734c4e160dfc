//! [`Limits`]: what a driver asks of the requests that reach it.
//!
//! Stated by drivers, kept by the nodes: a request that does not fit is widened or split before it
//! comes to the driver. All numbers are bytes.

/// The largest size of a disk: offsets of the kernel are signed.
pub(crate) const MAX_SIZE: u64 = i64::MAX.unsigned_abs();

/// The limits of one driver. The default asks for nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Offsets and lengths of reads and writes are multiples of this power of two.
    pub request_alignment: u32,
    /// The most bytes of one read or write.
    pub max_transfer: Option<u64>,
    /// Writes of zeroes should begin and end on multiples of this; 0 if it doesn't matter.
    pub write_zeroes_alignment: u32,
    /// The most bytes of one write of zeroes.
    pub max_write_zeroes: Option<u64>,
    /// Discards should begin and end on multiples of this; 0 if it doesn't matter.
    pub discard_alignment: u32,
    /// The most bytes of one discard.
    pub max_discard: Option<u64>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            request_alignment: 1,
            max_transfer: None,
            write_zeroes_alignment: 0,
            max_write_zeroes: None,
            discard_alignment: 0,
            max_discard: None,
        }
    }
}
