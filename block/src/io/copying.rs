//! Copies that never come through our memory as requests: from one file of the page cache to another, by
//! a worker thread.
//!
//! Both nodes must be plain all the way down: formats and files that only move bytes by an offset. A
//! filter in between, O_DIRECT, `detect-zeroes`, a device, or anything else that wants to see the bytes makes
//! the caller read and write as usual. So does every error: who reads and writes learns which side failed.

use std::fs::File;
use std::sync::Arc;

use futures_channel::oneshot;
use sluice_aio::{Aside, current};

use crate::driver::file::NewImage;
use crate::driver::file::copying::{Copy, Lanes};
use crate::node::Node;

/// Where bytes of a node are: what a driver answers that does nothing to them.
#[derive(Debug)]
pub struct Place {
    /// A regular file, not opened with O_DIRECT.
    pub file: Arc<Aside<File>>,
    /// Who copies to this file in worker threads.
    pub lanes: Arc<Lanes>,
    /// First byte in the file.
    pub offset: u64,
    /// The file, if something old may be in it that is to go first.
    pub(crate) image: Option<Arc<NewImage>>,
}

impl Place {
    /// Another place of the file, in which nothing old is.
    pub(crate) fn at(&self, offset: u64) -> Self {
        Self {
            file: Arc::clone(&self.file),
            lanes: Arc::clone(&self.lanes),
            offset,
            image: None,
        }
    }

    /// Waits until nothing old is in the file. False if that can't be done.
    pub(crate) async fn ready(&self) -> bool {
        match &self.image {
            Some(image) => image.emptied().await.is_ok(),
            None => true,
        }
    }
}

impl Node {
    /// Where a range of the node is, if it is nothing but a range of a file in the page cache, and
    /// requests to it are nothing but transfers of that.
    pub(crate) fn place(&self, offset: u64, len: u64) -> Option<Place> {
        let end = offset.checked_add(len)?;
        let plain = end <= self.len() && self.io.bounds.takes(offset, len);
        plain.then(|| self.driver().place(offset, len)).flatten()
    }

    /// Copies a range of `source` to the same place of this node, by the kernel if it can. False: nothing or not
    /// all of it was copied, and the caller has to do it.
    ///
    /// As for a write, the caller sees to it that nobody else works on the range.
    pub(crate) async fn copy_from(&self, source: &Self, offset: u64, len: u64) -> bool {
        if self.is_read_only() || self.policy().detects() {
            return false;
        }
        let (Some(from), Some(to)) = (source.place(offset, len), self.place(offset, len)) else {
            return false;
        };
        if !(from.ready().await && to.ready().await) {
            return false;
        }
        let (done, copied) = oneshot::channel();
        let copy = Copy {
            from,
            to,
            len,
            done,
        };
        if let Some(turn) = copy.join() {
            // Whoever has the turn does what others want, too, so its end is none of ours.
            drop(current::blocking(move || turn.take()));
        }
        if !matches!(copied.await, Ok(Ok(()))) {
            return false;
        }
        self.note_written(offset + len);
        true
    }
}
