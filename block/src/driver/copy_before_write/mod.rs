//! `copy-before-write`: a filter that saves old data to a target before it is overwritten.
//!
//! What the disk held when the node was made is afterwards the target's clusters that were copied,
//! and the disk's own of all others: a point in time that costs only what the guest changes. A
//! cluster is copied once, by the first request that changes it; others that change it wait until
//! the copy has ended, and go on together then.
//!
//! With `cbw-timeout` a copy that takes too long counts as failed for those who wait for it. It goes
//! on by itself all the same, and sections of the node wait for its end.

use std::io;
use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::{Either, select};
use sluice_aio::{IoBuffer, current};

use super::{Background, BlockFuture, Driver, Edge, RequestFlags, Role};
use crate::dirty::{DirtyBitmap, Granularity};
use crate::error::{BlockError, Result};
use crate::event::IoOperation;
use crate::job::Waiter;
use crate::node::Node;
use crate::options::{CopyBeforeWriteNode, OnCbwError};
use crate::parting::GivenUp;
use crate::permission::{Access, Permissions};

pub(crate) use copier::{Copier, CopyError};

mod copier;
#[cfg(test)]
mod tests;

/// Bytes of a cluster, unless a larger one is asked for.
const CLUSTER: u64 = 64 << 10;

/// What is copied together, if `least` bytes (`min-cluster-size`) are asked for.
///
/// # Errors
/// There are no such clusters: they are the chunks of a bitmap.
pub(crate) fn granularity(least: Option<u64>) -> Result<Granularity> {
    let refused = |reason: String| {
        let text = format!("Cannot create block-copy-state: min-cluster-size {reason}");
        BlockError::Refused(text)
    };
    let most = Granularity::MAX_NAMED;
    match least {
        Some(size) if !size.is_power_of_two() => {
            Err(refused("needs to be a power of 2".to_owned()))
        }
        Some(size) if size > most => Err(refused(format!(
            "too large: {size} > {most}; choose 2 GiB or less"
        ))),
        size => {
            let bytes = size.unwrap_or(CLUSTER).max(CLUSTER);
            Granularity::of_named(bytes)
                .map_err(|error| refused(format!("makes no sense: {error}")))
        }
    }
}

/// What is done with the target.
pub(crate) const TARGET_ACCESS: Access = Access {
    used: Permissions::WRITE,
    shared: Permissions::RESIZE.complement(),
};

/// How long a request waits for the copy of what it changes.
#[derive(Clone, Copy, Debug)]
enum Patience {
    Endless,
    Within(Duration),
    /// Until the job gives up.
    OfJob,
}

/// See the [module](self). Any thread.
#[derive(Debug)]
pub struct CopyBeforeWrite {
    copier: Arc<Copier>,
    on_error: OnCbwError,
    patience: Patience,
    /// Copies that may be longer on their way than the requests that began them.
    background: Arc<Background>,
    /// Whether the log has been told of an error that a guest saw.
    has_warned: AtomicBool,
}

impl CopyBeforeWrite {
    /// A filter over `file` that saves old data to `target`, which may be larger: all of it, or what
    /// `marks` says now.
    ///
    /// # Errors
    /// The target is too small, or an option makes no sense.
    pub fn new(
        file: Arc<Node>,
        target: Arc<Node>,
        options: &CopyBeforeWriteNode,
        marks: Option<&DirtyBitmap>,
    ) -> Result<Self> {
        let granularity = granularity(options.min_cluster_size)?;
        let size = file.len();
        if target.len() < size {
            return Err(BlockError::Refused(format!(
                "target '{}' is smaller than '{}', whose old data it is to hold",
                target.name(),
                file.name()
            )));
        }
        let refused = |error: crate::dirty::BitmapError| BlockError::Refused(error.to_string());
        let to_copy = DirtyBitmap::new(size, granularity).map_err(refused)?;
        match marks {
            None => to_copy.set_all(),
            Some(marks) if marks.size() == size => to_copy.merge(marks),
            Some(marks) => {
                return Err(BlockError::Refused(format!(
                    "the bitmap is for a disk of {} bytes, '{}' has {size}",
                    marks.size(),
                    file.name()
                )));
            }
        }
        let seconds = options.cbw_timeout.filter(|seconds| *seconds > 0);
        Ok(Self {
            copier: Arc::new(Copier::new(file, target, to_copy)),
            on_error: options.on_cbw_error,
            patience: seconds.map_or(Patience::Endless, |seconds| {
                Patience::Within(Duration::from_secs(seconds.into()))
            }),
            background: Arc::default(),
            has_warned: AtomicBool::new(false),
        })
    }

    /// The filter of a job, which works its way through the same copier.
    pub(crate) fn of_job(copier: Arc<Copier>, on_error: OnCbwError) -> Self {
        Self {
            copier,
            on_error,
            patience: Patience::OfJob,
            background: Arc::default(),
            has_warned: AtomicBool::new(false),
        }
    }

    /// Saves the old data of a range that is about to change.
    ///
    /// # Errors
    /// The copy failed or took too long, and the request shall fail with it.
    async fn save(&self, offset: u64, len: u64) -> Result<()> {
        let copier = &self.copier;
        let clusters = copier.clusters(offset, len);
        if copier.is_saved(&clusters) {
            return Ok(());
        }
        let saved = match self.patience {
            Patience::Endless => copier.save(&clusters, Waiter::Guest).await,
            Patience::Within(timeout) => self.save_within(clusters, timeout).await,
            Patience::OfJob => self.save_for_job(clusters).await,
        };
        let Err(failed) = saved else { return Ok(()) };
        if copier.parting().is_over() {
            // Nobody wants the old data any more.
            return Ok(());
        }
        match self.on_error {
            OnCbwError::BreakGuestWrite => {
                self.warn_once(&failed);
                Err(failed.error)
            }
            OnCbwError::BreakSnapshot => {
                copier.give_up(&failed);
                Ok(())
            }
        }
    }

    /// Says which node is to blame for the errors that a guest sees of its disk; once, for a guest can repeat them.
    fn warn_once(&self, failed: &CopyError) {
        if self.has_warned.swap(true, Ordering::Relaxed) {
            return;
        }
        let at_fault = match failed.operation {
            IoOperation::Read => &self.copier.file,
            IoOperation::Write => &self.copier.target,
        };
        tracing::warn!(
            disk = self.copier.file.node().name(),
            node = at_fault.node().name(),
            error = %failed.error,
            "writes fail because old data can't be saved; with on-cbw-error=break-snapshot the backup would"
        );
    }

    /// # Errors
    /// The copy's; `ECANCELED` if the job has given up, then what has begun of the copy goes on.
    async fn save_for_job(&self, clusters: Range<u64>) -> std::result::Result<(), CopyError> {
        let copier = Arc::clone(&self.copier);
        // Of its own: what is on its way to the target can't be called back.
        let saving =
            current::spawn_local(async move { copier.save(&clusters, Waiter::Guest).await });
        match select(saving, pin!(self.copier.parting().given_up())).await {
            Either::Left((saved, _)) => saved.map_err(lost)?,
            Either::Right(_) => Err(GivenUp.into()),
        }
    }

    /// # Errors
    /// `ETIMEDOUT`; the copy goes on.
    async fn save_within(
        &self,
        clusters: Range<u64>,
        timeout: Duration,
    ) -> std::result::Result<(), CopyError> {
        let (copier, running) = (Arc::clone(&self.copier), self.background.begin());
        let saving = current::spawn_local(async move {
            let saved = copier.save(&clusters, Waiter::Guest).await;
            drop(running);
            saved
        });
        match select(saving, pin!(current::sleep(timeout))).await {
            Either::Left((saved, _)) => saved.map_err(lost)?,
            // Its handle goes, the task does not.
            Either::Right(_) => Err(lost(io::Error::from_raw_os_error(libc::ETIMEDOUT))),
        }
    }
}

/// A copy of which nobody knows how it went; the target has not got it.
fn lost(error: impl Into<BlockError>) -> CopyError {
    copier::failed(IoOperation::Write, error.into())
}

impl Driver for CopyBeforeWrite {
    fn format_name(&self) -> &'static str {
        "copy-before-write"
    }

    fn filtered(&self) -> Option<&Edge> {
        Some(&self.copier.file)
    }

    fn children(&self) -> Vec<&Edge> {
        vec![&self.copier.file, &self.copier.target]
    }

    fn write(&self, offset: u64, buffer: IoBuffer, flags: RequestFlags) -> BlockFuture<'_, ()> {
        BlockFuture::new(async move {
            self.save(offset, buffer.len() as u64).await?;
            self.copier.file.node().write(offset, buffer, flags).await
        })
    }

    fn write_zeroes(&self, offset: u64, len: u64, flags: RequestFlags) -> BlockFuture<'_, ()> {
        BlockFuture::new(async move {
            self.save(offset, len).await?;
            self.copier
                .file
                .node()
                .write_zeroes(offset, len, flags)
                .await
        })
    }

    fn discard(&self, offset: u64, len: u64) -> BlockFuture<'_, ()> {
        BlockFuture::new(async move {
            self.save(offset, len).await?;
            self.copier.file.node().discard(offset, len).await
        })
    }

    fn truncate(&self, size: u64) -> BlockFuture<'_, ()> {
        BlockFuture::new(async move {
            self.save(size, u64::MAX).await?;
            self.copier.file.node().resize(size).await
        })
    }

    fn background(&self) -> Option<&Arc<Background>> {
        Some(&self.background)
    }

    fn child_access(&self, role: Role, above: Access) -> Access {
        if role == Role::Target {
            return TARGET_ACCESS;
        }
        let mut access = above;
        if above.used.contains(Permissions::WRITE) {
            access.used |= Permissions::CONSISTENT_READ;
        }
        // Of those above one may be a job, which uses nothing itself.
        if above != Access::NONE {
            // What is written past this node is not saved.
            access.shared -= Permissions::WRITE | Permissions::RESIZE;
        }
        access
    }
}
