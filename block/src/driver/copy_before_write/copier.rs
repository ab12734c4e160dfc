//! [`Copier`]: saves old data, cluster by cluster, for whoever is first: a guest's write that would
//! overwrite it, or the job that works its way through the disk.
//!
//! A mark per cluster says what is still to be copied. It is cleared when the copy *has ended*: who
//! finds it cleared may write without looking further. Who copies claims the clusters alone, by the
//! [`Serialiser`], and looks again once it has them, so each is copied once.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use rustix::io::Errno;
use sluice_aio::IoBuffer;

use crate::dirty::DirtyBitmap;
use crate::driver::{Allocation, Edge, RequestFlags, Role};
use crate::error::{BlockError, Result};
use crate::event::IoOperation;
use crate::io::serialise::{ClaimKind, Serialiser};
use crate::job::JobKicker;
use crate::node::Node;

/// The most bytes of data in memory for one copy: what a guest changes at once must not decide how
/// much memory the copy takes.
const MAX_DATA: u64 = 1 << 20;
/// The most bytes that become clean together; more than data has, because zeroes are not read.
const MAX_RUN: u64 = 1 << 30;

/// Why a copy failed, and which of its ends.
#[derive(Debug)]
pub(crate) struct CopyError {
    pub(crate) operation: IoOperation,
    pub(crate) error: BlockError,
}

/// See the [module](self); it stays until the last copy has ended. Any thread.
#[derive(Debug)]
pub(crate) struct Copier {
    pub(super) file: Edge,
    pub(super) target: Edge,
    /// What is still to be copied.
    to_copy: DirtyBitmap,
    /// Clusters that are being copied.
    copying: Serialiser,
    /// The errno of a copy that failed while the guest's write went on: the old data is not whole any
    /// more, and nothing more is saved. 0 as long as it is.
    broken: AtomicI32,
    /// Bytes that were copied or zeroed.
    done: AtomicU64,
    /// The job that is told of every copy's end, if there is one.
    kicker: std::sync::OnceLock<JobKicker>,
}

impl Copier {
    /// Of `file` to `target`, which is at least as large, what is marked.
    pub(crate) fn new(file: Arc<Node>, target: Arc<Node>, to_copy: DirtyBitmap) -> Self {
        Self {
            file: Edge::new(Role::File, file),
            target: Edge::new(Role::Target, target),
            to_copy,
            copying: Serialiser::default(),
            broken: AtomicI32::new(0),
            done: AtomicU64::new(0),
            kicker: std::sync::OnceLock::new(),
        }
    }

    /// What is still to be copied.
    pub(crate) fn to_copy(&self) -> &DirtyBitmap {
        &self.to_copy
    }

    /// Bytes that were saved so far.
    pub(crate) fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Has the job told when old data was saved, or can't be any more.
    pub(crate) fn tell(&self, kicker: JobKicker) {
        // The first stays: there is one job.
        drop(self.kicker.set(kicker));
    }

    fn kick(&self) {
        if let Some(kicker) = self.kicker.get() {
            kicker.kick();
        }
    }

    /// Why the old data is not whole any more, if it is not.
    pub(crate) fn broken(&self) -> Option<Errno> {
        match self.broken.load(Ordering::Acquire) {
            0 => None,
            errno => Some(Errno::from_raw_os_error(errno)),
        }
    }

    /// The clusters around a range, as far as there were any at the beginning.
    pub(super) fn clusters(&self, offset: u64, len: u64) -> Range<u64> {
        let cluster = self.to_copy.granularity();
        let end = offset.saturating_add(len).min(self.to_copy.size());
        let start = offset.min(end) / cluster * cluster;
        start..end.next_multiple_of(cluster).min(self.to_copy.size())
    }

    /// The first run of clusters in `range` that are still to be copied.
    fn next_run(&self, range: &Range<u64>) -> Option<Range<u64>> {
        let run = self.to_copy.next_dirty(range.start, MAX_RUN)?;
        (run.start < range.end).then(|| run.start..run.end.min(range.end))
    }

    /// Whether nothing of these clusters is to be copied any more.
    pub(super) fn is_saved(&self, clusters: &Range<u64>) -> bool {
        clusters.is_empty() || self.broken().is_some() || self.next_run(clusters).is_none()
    }

    /// Copies what is left of these clusters, once nobody else is about to.
    ///
    /// # Errors
    /// The copy failed; what was not copied is still to be.
    pub(crate) async fn save(&self, clusters: &Range<u64>) -> std::result::Result<(), CopyError> {
        let claim = self.copying.claim(clusters.clone(), ClaimKind::Exclusive);
        let _claim = claim.await;
        while let Some(run) = self.next_run(clusters) {
            if self.broken().is_some() {
                return Ok(());
            }
            self.copy(&run).await?;
            let len = run.end - run.start;
            self.to_copy.clear(run.start, len);
            self.done.fetch_add(len, Ordering::Relaxed);
            self.kick();
        }
        Ok(())
    }

    /// Looks at the first part of a range of clusters, and leaves it out if the file's own layer does not
    /// hold it. Returns how long that part is. Nobody copies there meanwhile, so no write that a copy
    /// has let go can land while it is looked at.
    ///
    /// # Errors
    /// The file's.
    pub(crate) async fn leave_out_below(&self, range: Range<u64>) -> Result<u64> {
        let len = range.end - range.start;
        let claim = self.copying.claim(range.clone(), ClaimKind::Exclusive);
        let _claim = claim.await;
        let status = self.file.node().layer_status(range.start, len).await?;
        if status.allocation == Allocation::Below {
            self.to_copy.clear(range.start, status.len);
        }
        Ok(status.len)
    }

    /// From now on the old data is not whole.
    pub(super) fn give_up(&self, error: &BlockError) {
        self.broken.store(error.errno(), Ordering::Release);
        let target = self.target.node();
        let target = target.name();
        tracing::warn!(target, %error, "old data is lost: the copy before a write failed");
        self.kick();
    }

    async fn copy(&self, run: &Range<u64>) -> std::result::Result<(), CopyError> {
        let (file, target) = (self.file.node(), self.target.node());
        let mut at = run.start;
        while at < run.end {
            let status = file.block_status(at, run.end - at).await;
            let status = status.map_err(|error| failed(IoOperation::Read, error))?;
            at += match status.allocation {
                Allocation::Zero => {
                    let flags = RequestFlags::MAY_UNMAP;
                    let zeroed = target.write_zeroes(at, status.len, flags).await;
                    zeroed.map_err(|error| failed(IoOperation::Write, error))?;
                    status.len
                }
                // All that is below is looked through: there is data somewhere.
                Allocation::Data | Allocation::Below => {
                    let len = status.len.min(MAX_DATA);
                    let data = move_data(&file, &target, at, len).await;
                    data.map_err(|(operation, error)| failed(operation, error))?;
                    len
                }
            };
        }
        Ok(())
    }
}

fn failed(operation: IoOperation, error: BlockError) -> CopyError {
    CopyError { operation, error }
}

async fn move_data(
    file: &Node,
    target: &Node,
    at: u64,
    len: u64,
) -> std::result::Result<(), (IoOperation, BlockError)> {
    // Bounded, so this is no more than memory has.
    let buffer = IoBuffer::alloc(usize::try_from(len).unwrap_or(usize::MAX));
    let read: Result<()> = file.read(at, buffer.clone()).await;
    read.map_err(|error| (IoOperation::Read, error))?;
    let written = target.write(at, buffer, RequestFlags::empty()).await;
    written.map_err(|error| (IoOperation::Write, error))
}
