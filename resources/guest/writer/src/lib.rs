//! The disk writer of the demo guest, and the on-disk formats it shares with the checker.
//!
//! Two formats are public promises, used by the writer in the guest and by the checker on the
//! host: the [`stamp`] that every written sector carries, and the [`record`] log that says what
//! was submitted and what was acknowledged. The rest ([`engine`] and what it uses) is the program
//! that runs in the guest; it is a library so that its tests can run it on plain files.
//!
//! Threads: the engine starts a few threads per disk and one for the log; the formats are plain
//! values without any.

pub mod buffer;
pub mod engine;
pub mod journal;
pub mod model;
pub mod plan;
pub mod prng;
pub mod reading;
pub mod record;
pub mod stamp;
pub mod worker;

/// Size of a sector in bytes: the unit of every address and length in both formats.
pub const SECTOR_SIZE: usize = 512;

/// [`SECTOR_SIZE`] as a file offset.
pub const SECTOR_BYTES: u64 = SECTOR_SIZE as u64;
