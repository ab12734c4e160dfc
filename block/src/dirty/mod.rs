//! Dirty bitmaps: which chunks of a disk were written since somebody last looked.
//!
//! Guest writes mark a bitmap from any thread while a job scans and clears it from another; no
//! operation takes a lock. The promise that a mirror rests on is given with [`DirtyBitmap`].

mod bitmap;
mod geometry;
mod leaves;
mod named;
mod nodes;

pub use bitmap::DirtyBitmap;
pub use geometry::{BitmapError, Granularity};
pub use named::{BitmapInfo, NamedBitmap, NamedBitmapError};
pub(crate) use nodes::{NewBitmap, NodeBitmaps};

#[cfg(test)]
mod tests;
