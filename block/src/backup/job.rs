//! The backup's work: lap after lap over what is still to be copied, many copies at once.
//!
//! A lap starts every copy that is left, in order, and ends when all of them have; what failed is
//! still marked, and the next lap tries it again if the operator's policy says so.

use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::{BoxFuture, LocalBoxFuture, select};
use parking_lot::Mutex;
use rustix::io::Errno;
use sluice_aio::current;

use super::arguments::{BackupSync, Shape};
use super::bitmap::End;
use super::start::Ends;
use crate::driver::copy_before_write::{Copier, CopyError, TARGET_ACCESS};
use crate::driver::{Allocation, Background, Role};
use crate::event::IoOperation;
use crate::graph::Graph;
use crate::job::{
    Awaited, AwaitedOperation, IoSide, JobContext, JobDriver, JobError, JobKind, OnError, Waiter,
    here,
};
use crate::parting::Target;

/// The most bytes of zeroes that one copy covers.
const MAX_ZEROES: u64 = 1 << 30;

/// Everything the job needs; made by [`super::start`].
pub(super) struct BackupJob {
    pub(super) graph: Arc<Graph>,
    pub(super) ends: Ends,
    pub(super) copier: Arc<Copier>,
    pub(super) shape: Shape,
    pub(super) sync: BackupSync,
    pub(super) on_source_error: OnError,
    pub(super) on_target_error: OnError,
    pub(super) state: Arc<State>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    running: Arc<Background>,
    errors: Mutex<Vec<(IoOperation, Errno)>>,
    /// The target has been left to its requests, which have not returned.
    target_left: AtomicBool,
}

impl BackupJob {
    /// Leaves out what the top image does not hold.
    async fn leave_out_what_is_below(&self, job: &JobContext) -> Result<(), JobError> {
        let size = self.copier.to_copy().size();
        let mut at = 0;
        while at < size {
            job.pause_point().await;
            job.check_cancelled()?;
            let end = size.min(at + MAX_ZEROES);
            match here(self.copier.leave_out_below(at..end)).await {
                Ok(len) => at += len,
                Err(error) => {
                    job.check_cancelled()?;
                    let error = (IoOperation::Read, errno(error.errno()));
                    self.judge(job, vec![error]).await?;
                }
            }
            self.account(job);
            here(current::yield_now()).await;
        }
        Ok(())
    }

    /// Copies until nothing is left to be copied.
    async fn copy_all(&self, job: &JobContext) -> Result<(), JobError> {
        while !self.copier.to_copy().is_clean() {
            self.lap(job).await?;
            self.look(job).await?;
        }
        Ok(())
    }

    async fn lap(&self, job: &JobContext) -> Result<(), JobError> {
        let mut cursor = 0;
        while let Some(run) = self.copier.to_copy().next_dirty(cursor, MAX_ZEROES) {
            self.look(job).await?;
            let delay = job.rate_delay();
            if !delay.is_zero() {
                job.sleep(delay).await;
                continue;
            }
            if self.state.running.running() >= self.shape.workers {
                job.sleep_until_kicked().await;
                continue;
            }
            let (range, data) = here(self.sized(run)).await;
            cursor = range.end;
            job.charge(data);
            self.begin(job, range);
        }
        while self.state.running.running() > 0 {
            self.look(job).await?;
            if self.state.running.running() > 0 {
                job.sleep_until_kicked().await;
            }
        }
        Ok(())
    }

    /// Rests if that is wanted, and says whether and why the job has to end.
    async fn look(&self, job: &JobContext) -> Result<(), JobError> {
        job.pause_point().await;
        job.check_cancelled()?;
        if let Some((operation, errno)) = self.copier.broken() {
            let side = IoSide {
                argument: "on-cbw-error=break-guest-write and werror",
                ..self.side(operation)
            };
            return Err(job.io_failure(side, operation, errno));
        }
        self.account(job);
        let errors = std::mem::take(&mut *self.state.errors.lock());
        if errors.is_empty() {
            return Ok(());
        }
        // Copies run side by side, and what ails one ails all: they are judged together.
        let idle = pin!(self.state.running.wait_idle());
        select(idle, pin!(job.cancelled())).await;
        job.check_cancelled()?;
        let mut errors = errors;
        errors.append(&mut self.state.errors.lock());
        self.judge(job, errors).await
    }

    async fn judge(
        &self,
        job: &JobContext,
        errors: Vec<(IoOperation, Errno)>,
    ) -> Result<(), JobError> {
        let side = |operation| self.side(operation);
        job.judge_errors(&errors, side).await
    }

    fn side(&self, operation: IoOperation) -> IoSide<'_> {
        match operation {
            IoOperation::Read => IoSide {
                node: &self.ends.source,
                policy: self.on_source_error,
                argument: "on-source-error",
            },
            IoOperation::Write => IoSide {
                node: &self.ends.target,
                policy: self.on_target_error,
                argument: "on-target-error",
            },
        }
    }

    fn account(&self, job: &JobContext) {
        let progress = job.progress();
        let done = self.copier.done();
        let new = done.saturating_sub(progress.current());
        progress.set_remaining(self.copier.to_copy().count());
        if new > 0 {
            progress.add_done(new);
            job.io_success();
        }
    }

    /// Cuts a run to what one copy does, and says how much of that is data.
    async fn sized(&self, run: Range<u64>) -> (Range<u64>, u64) {
        let len = run.end - run.start;
        let requests = &self.copier.parting().requests;
        let awaiting = requests.begin(&self.ends.source, AwaitedOperation::Look);
        let status = self.ends.source.block_status(run.start, len).await;
        drop(awaiting);
        let zeroes = match status {
            Ok(status) if status.allocation == Allocation::Zero => status.len,
            _ => 0,
        };
        let whole = match zeroes >= len {
            true => len,
            false => zeroes / self.shape.cluster * self.shape.cluster,
        };
        if whole > 0 {
            return (run.start..run.start + whole, 0);
        }
        let data = len.min(self.shape.chunk);
        (run.start..run.start + data, data)
    }

    /// Begins to copy one range; the job is kicked when that has ended.
    fn begin(&self, job: &JobContext, range: Range<u64>) {
        let (copier, state, kicker) = (
            Arc::clone(&self.copier),
            Arc::clone(&self.state),
            job.kicker(),
        );
        let running = self.state.running.begin();
        current::spawn_local(async move {
            if let Err(CopyError { operation, error }) = copier.save(&range, Waiter::Job).await
                && !copier.parting().is_over()
            {
                state.errors.lock().push((operation, errno(error.errno())));
            }
            drop(running);
            kicker.kick();
        })
        .detach();
    }

    /// Makes the target durable.
    async fn flush(&self, job: &JobContext) -> Result<(), JobError> {
        loop {
            self.look(job).await?;
            let flushed = self.copier.parting().flush(job, &self.ends.target);
            let Err(error) = here(flushed).await? else {
                return Ok(());
            };
            let error = (IoOperation::Write, errno(error.errno()));
            self.judge(job, vec![error]).await?;
        }
    }

    async fn work(&self, job: &JobContext) -> Result<(), JobError> {
        self.copier.tell(job.kicker());
        job.progress().set_remaining(self.copier.to_copy().count());
        match self.sync {
            BackupSync::None => loop {
                self.look(job).await?;
                job.sleep_until_kicked().await;
            },
            BackupSync::Top => self.leave_out_what_is_below(job).await?,
            BackupSync::Full | BackupSync::Incremental | BackupSync::Bitmap => {}
        }
        self.copy_all(job).await?;
        self.flush(job).await
    }

    /// Waits for the copies of a backup that has given up, for as long as that makes sense.
    async fn settle_at_end(&self, job: &JobContext) {
        let target = Target {
            graph: Arc::clone(&self.graph),
            node: Arc::clone(&self.ends.target),
            role: Role::Target.name(),
            access: TARGET_ACCESS,
            is_jobs: false,
        };
        let left = || returned(Arc::clone(&self.copier));
        let parting = self.copier.parting();
        if parting.settle_at_end(job, target, left).await {
            self.state.target_left.store(true, Ordering::Relaxed);
        }
    }

    fn end_bitmap(&self, end: End<'_>) {
        if let Some(bitmap) = &self.ends.bitmap {
            bitmap.end(end);
        }
    }
}

/// Completes when no copy and no flush is under way.
async fn returned(copier: Arc<Copier>) {
    copier.parting().target_idle().await;
}

fn errno(raw: i32) -> Errno {
    Errno::from_raw_os_error(raw)
}

impl JobDriver for BackupJob {
    fn kind(&self) -> JobKind {
        JobKind::Backup
    }

    fn graph(&self) -> Option<&Arc<Graph>> {
        Some(&self.graph)
    }

    fn run<'a>(&'a self, job: &'a JobContext) -> BoxFuture<'a, Result<(), JobError>> {
        Box::pin(async move {
            let result = self.work(job).await;
            if result.is_err() {
                self.copier.parting().give_up();
            }
            self.account(job);
            result
        })
    }

    fn settle<'a>(&'a self, job: &'a JobContext) -> LocalBoxFuture<'a, ()> {
        Box::pin(async move {
            let idle = self.state.running.wait_idle();
            let returned = returned(Arc::clone(&self.copier));
            let parting = self.copier.parting();
            let target = &self.ends.target;
            if parting.settle(job, target, idle, returned).await {
                parting.source_idle().await;
            }
        })
    }

    fn commit<'a>(&'a self, _job: &'a JobContext) -> LocalBoxFuture<'a, ()> {
        Box::pin(async { self.end_bitmap(End::Success) })
    }

    fn abort<'a>(&'a self, job: &'a JobContext) -> LocalBoxFuture<'a, ()> {
        Box::pin(async move {
            self.copier.parting().give_up();
            self.settle_at_end(job).await;
            self.account(job);
            self.end_bitmap(End::Failure(self.copier.to_copy()));
        })
    }

    fn awaited(&self, now: Duration) -> Awaited {
        self.copier.parting().awaited(now)
    }

    fn on_cancel(&self, force: bool) {
        if force {
            self.copier.parting().give_up();
        }
    }

    fn clean<'a>(&'a self, job: &'a JobContext) -> LocalBoxFuture<'a, ()> {
        Box::pin(async move {
            let own = job.job();
            let holder = format!("end of job '{}'", own.id());
            let section = self
                .graph
                .drain_by_job(&self.ends.filter, &holder, own)
                .await;
            self.ends.take_filter_out(&self.graph);
            let target_left = self.state.target_left.load(Ordering::Relaxed);
            self.ends.let_go(&self.graph, own, target_left);
            drop(section);
        })
    }
}
