//! [`NamedBitmap`]: a dirty bitmap that an operator has put on a node, and the rules for using it.
//!
//! While a job works from it (it is *busy*), what the guest writes is recorded in a fresh bitmap
//! beside the one that the job has: when the job ends, either the fresh one is all that is left, or
//! both are put together, and nothing was missed.

use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use thiserror::Error;

use super::{BitmapError, DirtyBitmap};

/// The longest name in bytes (QEMU's).
const MAX_NAME: usize = 1023;

/// Why something can't be done with a named bitmap. The texts are QEMU's.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum NamedBitmapError {
    /// A bitmap must have a name.
    #[error("Bitmap name cannot be empty")]
    NameEmpty,
    /// The name is longer than 1023 bytes.
    #[error("Bitmap name too long: {0}")]
    NameTooLong(String),
    /// The node has one of that name.
    #[error("Bitmap already exists: {0}")]
    Exists(String),
    /// The node has none of that name.
    #[error("Dirty bitmap '{0}' not found")]
    NotFound(String),
    /// A job works from it.
    #[error("Bitmap '{0}' is currently in use by another operation and cannot be used")]
    Busy(String),
    /// It does not say any more what was written; all that can be done is to remove it.
    #[error("Bitmap '{0}' is inconsistent and cannot be used")]
    Inconsistent(String),
    /// The driver has no place for a bitmap in its image.
    #[error("Can't store persistent bitmaps to {0}: Operation not supported")]
    NotStored(String),
    /// One can't be merged into another that is for a disk of another size.
    #[error(
        "Bitmaps are of different sizes (destination size is {target}, source size is {source_size}) \
         and can't be merged"
    )]
    Sizes {
        /// What is merged into, in bytes of disk.
        target: u64,
        /// What is merged.
        source_size: u64,
    },
    /// The node has as many as it may have.
    #[error(
        "Bitmap '{name}' would be one too many for '{node}': a node may have {most}; remove bitmaps that are not needed",
        most = super::nodes::MOST
    )]
    TooMany {
        /// The new one.
        name: String,
        /// The node, or the disk, as the operator has called it.
        node: String,
    },
    /// All bitmaps of a node together would take more memory than is granted.
    #[error(
        "Bitmap '{name}' would take {bytes} bytes, more than those of '{node}' may together; choose a larger \
         granularity, or remove bitmaps that are not needed"
    )]
    TooMuchMemory {
        /// The new one.
        name: String,
        /// The node, or the disk, as the operator has called it.
        node: String,
        /// What it would take.
        bytes: u64,
    },
    /// It can't be made.
    #[error(transparent)]
    Bitmap(#[from] BitmapError),
}

impl NamedBitmapError {
    /// Whether the other bitmaps of the node leave no room for it.
    pub(crate) fn is_no_room(&self) -> bool {
        matches!(self, Self::TooMany { .. } | Self::TooMuchMemory { .. })
    }
}

/// A dirty bitmap that an operator has given a name, on one node. While a job works from it, what is written
/// is recorded apart. Any thread.
#[derive(Debug)]
pub struct NamedBitmap {
    name: String,
    /// Where writes are recorded.
    bits: ArcSwap<DirtyBitmap>,
    usage: Mutex<Usage>,
}

#[derive(Debug, Default)]
struct Usage {
    /// Something works from it, which others may not disturb.
    busy: bool,
    /// What a job was given.
    frozen: Option<Arc<DirtyBitmap>>,
    inconsistent: bool,
}

/// What queries tell (QEMU's `BlockDirtyInfo`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BitmapInfo {
    /// Its name.
    pub name: String,
    /// Dirty bytes.
    pub count: u64,
    /// Bytes that one bit stands for.
    pub granularity: u64,
    /// Writes are recorded.
    pub recording: bool,
    /// A job works from it.
    pub busy: bool,
    /// It can only be removed.
    pub inconsistent: bool,
}

impl NamedBitmap {
    pub(super) fn new(name: &str, bits: DirtyBitmap) -> Self {
        Self {
            name: name.to_owned(),
            bits: ArcSwap::from_pointee(bits),
            usage: Mutex::default(),
        }
    }

    /// # Errors
    /// No bitmap can have the name.
    pub(super) fn check_name(name: &str) -> Result<(), NamedBitmapError> {
        match name.len() {
            0 => Err(NamedBitmapError::NameEmpty),
            length if length > MAX_NAME => Err(NamedBitmapError::NameTooLong(name.to_owned())),
            _ => Ok(()),
        }
    }

    /// Its name, unique on its node.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where writes are recorded now.
    #[must_use]
    pub fn bits(&self) -> Arc<DirtyBitmap> {
        self.bits.load_full()
    }

    pub(super) fn record(&self, offset: u64, len: u64) {
        self.bits.load().record(offset, len);
    }

    /// # Errors
    /// Something works from it.
    pub fn check_idle(&self) -> Result<(), NamedBitmapError> {
        if self.usage.lock().busy {
            return Err(NamedBitmapError::Busy(self.name.clone()));
        }
        Ok(())
    }

    /// # Errors
    /// Something works from it, or it says nothing.
    pub fn check_usable(&self) -> Result<(), NamedBitmapError> {
        self.check_idle()?;
        if self.usage.lock().inconsistent {
            return Err(NamedBitmapError::Inconsistent(self.name.clone()));
        }
        Ok(())
    }

    /// Puts other marks in the place of these. Inside a section of the node: a mark on its way would
    /// be lost.
    pub(crate) fn replace(&self, bits: Arc<DirtyBitmap>) {
        self.bits.store(bits);
    }

    /// Keeps others from it until [`release`](Self::release).
    pub(crate) fn occupy(&self) {
        self.usage.lock().busy = true;
    }

    pub(crate) fn release(&self) {
        self.usage.lock().busy = false;
    }

    /// Takes the marks for a job; from now on a fresh bitmap records. Inside a section of the node.
    ///
    /// # Errors
    /// [`check_usable`](Self::check_usable)'s, or no memory.
    pub(crate) fn freeze(&self) -> Result<Arc<DirtyBitmap>, NamedBitmapError> {
        self.check_usable()?;
        let fresh = Arc::new(self.bits.load().emptied()?);
        let mut usage = self.usage.lock();
        let frozen = self.bits.swap(fresh);
        usage.busy = true;
        usage.frozen = Some(Arc::clone(&frozen));
        Ok(frozen)
    }

    /// Ends what [`freeze`](Self::freeze) has begun: what was recorded since stays, and with it the marks
    /// of `back`. From any thread, sections or not.
    pub(crate) fn thaw(&self, back: Option<&DirtyBitmap>) {
        let mut usage = self.usage.lock();
        if let Some(back) = back {
            self.bits.load().merge(back);
        }
        usage.frozen = None;
        usage.busy = false;
    }

    /// The disk is `size` bytes long from now on. Inside a section of the node.
    pub(super) fn fit(&self, size: u64) {
        let bits = self.bits.load();
        if bits.size() == size {
            return;
        }
        let mut usage = self.usage.lock();
        if usage.inconsistent {
            return;
        }
        match bits.resized(size) {
            Ok(resized) => self.bits.store(Arc::new(resized)),
            Err(error) => {
                tracing::warn!(bitmap = self.name, %error, "a bitmap does not fit its disk any more");
                usage.inconsistent = true;
            }
        }
    }

    /// What queries tell. While a job works from it, the marks are those that the job was given.
    #[must_use]
    pub fn info(&self) -> BitmapInfo {
        let usage = self.usage.lock();
        let bits = self.bits.load();
        let shown = usage.frozen.as_ref().unwrap_or(&bits);
        BitmapInfo {
            name: self.name.clone(),
            count: shown.count(),
            granularity: bits.granularity(),
            recording: bits.is_recording(),
            busy: usage.busy,
            inconsistent: usage.inconsistent,
        }
    }

    /// A hash of the marks that [`info`](Self::info) counts.
    #[must_use]
    pub fn sha256(&self) -> String {
        let frozen = self.usage.lock().frozen.clone();
        frozen.unwrap_or_else(|| self.bits()).sha256()
    }
}
