//! [`Copier`]: saves old data, cluster by cluster, for whoever is first: a guest's write that would
//! overwrite it, or the job that works its way through the disk.
//!
//! A mark per cluster says what is still to be copied. It is cleared when the copy *has ended*: who
//! finds it cleared may write without looking further. Who copies claims the clusters alone, by the
//! [`Serialiser`], and looks again once it has them, so each is copied once.

use std::io;
use std::ops::Range;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use futures_util::future::{Either, select};
use rustix::io::Errno;
use sluice_aio::IoBuffer;

use crate::dirty::DirtyBitmap;
use crate::driver::{Allocation, Edge, RequestFlags, Role};
use crate::error::{BlockError, Result};
use crate::event::IoOperation;
use crate::io::serialise::{Claim, ClaimKind, Serialiser};
use crate::job::{AwaitedOperation, JobKicker, Waiter};
use crate::node::Node;
use crate::parting::{GivenUp, Parting};

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
    /// Why and where a copy failed while the guest's write went on: the old data is not whole any more, and
    /// nothing more is saved.
    broken: OnceLock<(IoOperation, Errno)>,
    /// Bytes that were copied or zeroed.
    done: AtomicU64,
    /// Whether the job still wants the old data, and the copies that have not ended.
    parting: Parting,
    /// The job that is told of every copy's end, if there is one.
    kicker: OnceLock<JobKicker>,
}

impl Copier {
    /// Of `file` to `target`, which is at least as large, what is marked.
    pub(crate) fn new(file: Arc<Node>, target: Arc<Node>, to_copy: DirtyBitmap) -> Self {
        Self {
            // A guest goes on when the job gives up, while its copy may still read what is below.
            parting: Parting::counted_by(file.left_behind()),
            file: Edge::new(Role::File, file),
            target: Edge::new(Role::Target, target),
            to_copy,
            copying: Serialiser::default(),
            broken: OnceLock::new(),
            done: AtomicU64::new(0),
            kicker: OnceLock::new(),
        }
    }

    /// What is still to be copied.
    pub(crate) fn to_copy(&self) -> &DirtyBitmap {
        &self.to_copy
    }

    /// Whether the job still wants the old data; for ever if there is none.
    pub(crate) fn parting(&self) -> &Parting {
        &self.parting
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

    /// Where and why the old data is not whole any more, if it is not.
    pub(crate) fn broken(&self) -> Option<(IoOperation, Errno)> {
        self.broken.get().copied()
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
        clusters.is_empty()
            || self.broken().is_some()
            || self.parting.is_over()
            || self.next_run(clusters).is_none()
    }

    /// Copies what is left of these clusters, once nobody else is about to; for whom is noted.
    ///
    /// # Errors
    /// The copy failed, or the job has given up; what was not copied is still to be.
    pub(crate) async fn save(
        &self,
        clusters: &Range<u64>,
        waiter: Waiter,
    ) -> std::result::Result<(), CopyError> {
        let _running = self.parting.begin_at_target();
        let claim = self.claim(clusters.clone());
        let _claim = match waiter {
            Waiter::Job => claim.await,
            Waiter::Guest => self.parting.requests.wait_turn(claim).await,
        }?;
        while let Some(run) = self.next_run(clusters) {
            if self.broken().is_some() {
                return Ok(());
            }
            self.copy(&run, waiter).await?;
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
    /// The file's; the job has given up.
    pub(crate) async fn leave_out_below(&self, range: Range<u64>) -> Result<u64> {
        let len = range.end - range.start;
        let _claim = self.claim(range.clone()).await?;
        let _looking = self.parting.look_at_source()?;
        let file = self.file.node();
        let _awaiting = self.parting.requests.begin(&file, AwaitedOperation::Look);
        let status = file.layer_status(range.start, len).await?;
        if status.allocation == Allocation::Below {
            self.to_copy.clear(range.start, status.len);
        }
        Ok(status.len)
    }

    /// Waits until nobody else copies there.
    ///
    /// # Errors
    /// The job has given up: who copies there may hang.
    async fn claim(&self, range: Range<u64>) -> std::result::Result<Claim<&Serialiser>, GivenUp> {
        let claim = pin!(self.copying.claim(range, ClaimKind::Exclusive));
        match select(claim, pin!(self.parting.given_up())).await {
            Either::Left((claim, _)) => Ok(claim),
            Either::Right(_) => Err(GivenUp),
        }
    }

    /// From now on the old data is not whole.
    pub(super) fn give_up(&self, failed: &CopyError) {
        let CopyError { operation, error } = failed;
        let errno = Errno::from_raw_os_error(error.errno());
        // The first one says why.
        self.broken.get_or_init(|| (*operation, errno));
        let target = self.target.node();
        let target = target.name();
        tracing::warn!(target, %error, "old data is lost: the copy before a write failed");
        self.kick();
    }

    async fn copy(&self, run: &Range<u64>, waiter: Waiter) -> std::result::Result<(), CopyError> {
        let (file, target) = (self.file.node(), self.target.node());
        let requests = &self.parting.requests;
        let mut at = run.start;
        while at < run.end {
            let looking = self.parting.look_at_source()?;
            let awaiting = requests.begin_for(waiter, &file, AwaitedOperation::Look);
            let status = file.block_status(at, run.end - at).await;
            drop(awaiting);
            let status = status.map_err(|error| failed(IoOperation::Read, error))?;
            at += match status.allocation {
                Allocation::Zero => {
                    drop(looking);
                    self.parting.check_going_on()?;
                    let _awaiting = requests.begin_for(waiter, &target, AwaitedOperation::Zeroes);
                    let flags = RequestFlags::MAY_UNMAP;
                    let zeroed = target.write_zeroes(at, status.len, flags).await;
                    zeroed.map_err(|error| failed(IoOperation::Write, error))?;
                    status.len
                }
                // All that is below is looked through: there is data somewhere.
                Allocation::Data | Allocation::Below => {
                    let len = status.len.min(MAX_DATA);
                    // Bounded, so this is no more than memory has.
                    let buffer = IoBuffer::alloc(usize::try_from(len).unwrap_or(usize::MAX));
                    let awaiting = requests.begin_for(waiter, &file, AwaitedOperation::Read);
                    let read = file.read(at, buffer.clone()).await;
                    drop(awaiting);
                    read.map_err(|error| failed(IoOperation::Read, error))?;
                    drop(looking);
                    // A guest may have changed meanwhile what was read.
                    self.parting.check_going_on()?;
                    let _awaiting = requests.begin_for(waiter, &target, AwaitedOperation::Write);
                    let written = target.write(at, buffer, RequestFlags::empty()).await;
                    written.map_err(|error| failed(IoOperation::Write, error))?;
                    len
                }
            };
        }
        Ok(())
    }
}

pub(super) fn failed(operation: IoOperation, error: BlockError) -> CopyError {
    CopyError { operation, error }
}

impl From<GivenUp> for BlockError {
    fn from(GivenUp: GivenUp) -> Self {
        io::Error::from_raw_os_error(libc::ECANCELED).into()
    }
}

impl From<GivenUp> for CopyError {
    fn from(given_up: GivenUp) -> Self {
        failed(IoOperation::Read, given_up.into())
    }
}
