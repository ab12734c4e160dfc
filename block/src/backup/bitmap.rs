//! [`SyncBitmap`]: the bitmap that a backup works from, and what becomes of it.

use std::sync::Arc;

use parking_lot::Mutex;

use super::arguments::BitmapMode;
use crate::dirty::{DirtyBitmap, NamedBitmap};
use crate::error::Result;

/// How the job ended.
#[derive(Clone, Copy, Debug)]
pub(super) enum End<'a> {
    /// All was copied.
    Success,
    /// Not all was; this is what is left.
    Failure(&'a DirtyBitmap),
    /// It never began.
    NotBegun,
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct SyncBitmap {
    bitmap: Arc<NamedBitmap>,
    mode: BitmapMode,
    /// The job copies what it says.
    is_read: bool,
    /// The marks of the job's start, until its end.
    frozen: Mutex<Option<Arc<DirtyBitmap>>>,
}

impl SyncBitmap {
    pub(super) fn new(bitmap: Arc<NamedBitmap>, mode: BitmapMode, is_read: bool) -> Self {
        Self {
            bitmap,
            mode,
            is_read,
            frozen: Mutex::default(),
        }
    }

    /// The bitmap itself.
    pub(super) fn named(&self) -> Arc<NamedBitmap> {
        Arc::clone(&self.bitmap)
    }

    /// Keeps others from it until [`release`](Self::release), before the job begins.
    pub(super) fn occupy(&self) {
        self.bitmap.occupy();
    }

    pub(super) fn release(&self) {
        self.bitmap.release();
    }

    /// Takes the marks for the job, and has what is written from now on recorded apart. Inside the
    /// section in which the job begins. Returns what is to be copied, if that is what they say.
    ///
    /// # Errors
    /// Somebody else has it, or no memory.
    pub(super) fn begin(&self) -> Result<Option<Arc<DirtyBitmap>>> {
        let frozen = self.bitmap.freeze()?;
        *self.frozen.lock() = Some(Arc::clone(&frozen));
        Ok(self.is_read.then_some(frozen))
    }

    /// Gives the bitmap back. Without effect if that was done before.
    pub(super) fn end(&self, end: End<'_>) {
        let Some(frozen) = self.frozen.lock().take() else {
            return;
        };
        let back = match (end, self.mode) {
            (End::Success, BitmapMode::OnSuccess | BitmapMode::Always) => None,
            (End::Failure(left), BitmapMode::Always) => Some(left),
            (End::Success, BitmapMode::Never)
            | (End::Failure(_), BitmapMode::OnSuccess | BitmapMode::Never)
            | (End::NotBegun, _) => Some(&*frozen),
        };
        self.bitmap.thaw(back);
    }
}
