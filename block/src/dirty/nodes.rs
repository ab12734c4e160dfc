//! [`NodeBitmaps`]: the named bitmaps of one node, as its requests see them.
//!
//! Without a bitmap a request looks at one word. The list is changed by commands, one at a time, and
//! read by requests without a lock.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::bitmap::memory_of;
use super::named::{NamedBitmap, NamedBitmapError};
use super::{DirtyBitmap, Granularity};
use crate::node::Node;

/// What all bitmaps of a node may take, in bytes of memory.
const MEMORY: u64 = 256 << 20;
/// What each takes besides its words.
const OVERHEAD: u64 = 4096;
/// How many a node may have. Each costs every write something, and a transaction that adds them holds the disk.
pub(super) const MOST: usize = 4096;

/// What a new bitmap shall be.
#[derive(Debug, Clone)]
pub(crate) struct NewBitmap<'a> {
    /// As the operator has called it.
    pub(crate) node: &'a str,
    pub(crate) name: &'a str,
    pub(crate) granularity: Granularity,
    pub(crate) disabled: bool,
}

/// See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct NodeBitmaps {
    any: AtomicBool,
    list: ArcSwap<Vec<Arc<NamedBitmap>>>,
    changing: Mutex<()>,
}

impl NodeBitmaps {
    /// Notes a change of the node's bytes that has ended.
    pub(crate) fn record(&self, offset: u64, len: u64) {
        if self.any.load(Ordering::Acquire) {
            for bitmap in self.list.load().iter() {
                bitmap.record(offset, len);
            }
        }
    }

    /// All of them, the oldest first.
    pub(crate) fn all(&self) -> Arc<Vec<Arc<NamedBitmap>>> {
        self.list.load_full()
    }

    pub(crate) fn get(&self, name: &str) -> Option<Arc<NamedBitmap>> {
        let list = self.list.load();
        list.iter().find(|bitmap| bitmap.name() == name).cloned()
    }

    /// # Errors
    /// [`NamedBitmapError::NotFound`].
    pub(crate) fn find(&self, name: &str) -> Result<Arc<NamedBitmap>, NamedBitmapError> {
        let found = self.get(name);
        found.ok_or_else(|| NamedBitmapError::NotFound(name.to_owned()))
    }

    /// Adds a clean bitmap. What is written from now on is recorded in it.
    ///
    /// # Errors
    /// The name, no memory, or there are [`MOST`].
    pub(crate) fn add(
        &self,
        size: u64,
        new: &NewBitmap<'_>,
    ) -> Result<Arc<NamedBitmap>, NamedBitmapError> {
        let NewBitmap {
            node,
            name,
            granularity,
            disabled,
        } = *new;
        NamedBitmap::check_name(name)?;
        let _changing = self.changing.lock();
        if self.get(name).is_some() {
            return Err(NamedBitmapError::Exists(name.to_owned()));
        }
        if self.list.load().len() >= MOST {
            let (name, node) = (name.to_owned(), node.to_owned());
            return Err(NamedBitmapError::TooMany { name, node });
        }
        let taken = |bitmap: &Arc<NamedBitmap>| bitmap.bits().memory_at_most() + OVERHEAD;
        let present: u64 = self.list.load().iter().map(taken).sum();
        let bytes = memory_of(size.div_ceil(granularity.bytes()));
        if present.saturating_add(bytes).saturating_add(OVERHEAD) > MEMORY {
            let (name, node) = (name.to_owned(), node.to_owned());
            return Err(NamedBitmapError::TooMuchMemory { name, node, bytes });
        }
        let bits = DirtyBitmap::new(size, granularity)?;
        bits.set_recording(!disabled);
        let bitmap = Arc::new(NamedBitmap::new(name, bits));
        let mut list = Vec::clone(&self.list.load());
        list.push(Arc::clone(&bitmap));
        self.set(list);
        Ok(bitmap)
    }

    pub(crate) fn remove(&self, bitmap: &Arc<NamedBitmap>) {
        let _changing = self.changing.lock();
        let mut list = Vec::clone(&self.list.load());
        list.retain(|other| !Arc::ptr_eq(other, bitmap));
        self.set(list);
    }

    fn set(&self, list: Vec<Arc<NamedBitmap>>) {
        let any = !list.is_empty();
        self.list.store(Arc::new(list));
        self.any.store(any, Ordering::Release);
    }

    /// Gives the bitmaps the node's size, if it is another now. Inside a section of the node.
    pub(crate) fn fit(&self, node: &Node) {
        if self.any.load(Ordering::Acquire) {
            for bitmap in self.list.load().iter() {
                bitmap.fit(node.len());
            }
        }
    }
}
