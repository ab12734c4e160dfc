//! Guest writes that go to source and target at once (`copy-mode=write-blocking`).
//!
//! Such a write claims its place first, and so waits for the copies and other twofold writes that touch it:
//! what is written last to the source is then written last to the target too. With the place in hand the
//! marks of all chunks that it covers wholly are cleared, *before* anything is written: a mark that
//! somebody sets meanwhile stands. Chunks that it covers in part and that are dirty are left to the
//! copier, which comes when the place is free.
//!
//! Both sides are written at the same time, from a copy of the guest's bytes, which the guest can't change on
//! the way. If either fails the whole range is marked: the copier makes both the same again. The guest is
//! told how its *source* fared and nothing else. When the job has given up (a forced cancel, an error) it waits
//! for the target no longer; the write that is on its way there is counted until it ends.

use std::ops::Range;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use futures_util::future::{Either, join, select};
use sluice_aio::{IoBuffer, current};

use super::ledger::{CopyError, Finished, Ledger, Memory};
use crate::driver::{Allocation, BlockFuture, RequestFlags};
use crate::error::Result;
use crate::event::IoOperation;
use crate::io::serialise::{Claim, ClaimKind, Serialiser};
use crate::job::{AwaitedOperation, Waiter};
use crate::node::Node;

/// What a guest wants of a range.
#[derive(Debug)]
pub(super) enum Change {
    /// These bytes.
    Data(IoBuffer, RequestFlags),
    /// Zeroes.
    Zeroes(RequestFlags),
    /// Nothing any more.
    Discard,
}

impl Change {
    /// What it asks of a node.
    fn operation(&self) -> AwaitedOperation {
        match self {
            Self::Data(..) => AwaitedOperation::Write,
            Self::Zeroes(_) | Self::Discard => AwaitedOperation::Zeroes,
        }
    }

    /// Has it done by one side alone.
    pub(super) async fn apply(self, node: &Node, range: Range<u64>) -> Result<()> {
        let len = range.end - range.start;
        match self {
            Self::Data(buffer, flags) => node.write(range.start, buffer, flags).await,
            Self::Zeroes(flags) => node.write_zeroes(range.start, len, flags).await,
            Self::Discard => node.discard(range.start, len).await,
        }
    }
}

/// A guest's write with its place in hand.
struct Twofold<'a> {
    ledger: &'a Arc<Ledger>,
    source: &'a Node,
    /// Kept until both sides are done.
    claim: Arc<Claim<Arc<Serialiser>>>,
    range: Range<u64>,
    /// What the target gets.
    shared: Range<u64>,
    /// Why the target did not take it, if it failed.
    failure: OnceLock<CopyError>,
}

/// What a guest's write has begun at the target. Whoever waits for it drives it, which costs no task and no step of the loop;
/// if nobody does any more, it goes on in a task of its own.
struct Unstoppable(Option<BlockFuture<'static, ()>>);

impl Unstoppable {
    fn new(work: impl Future<Output = Result<()>> + 'static) -> Self {
        Self(Some(BlockFuture::new(work)))
    }
}

impl Future for Unstoppable {
    type Output = Result<()>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        let Some(work) = &mut self.0 else {
            // It is asked no more once it has ended.
            return Poll::Pending;
        };
        let result = ready!(Pin::new(work).poll(context));
        self.0 = None;
        Poll::Ready(result)
    }
}

impl Drop for Unstoppable {
    fn drop(&mut self) {
        if let Some(work) = self.0.take() {
            current::spawn_local(work).detach();
        }
    }
}

/// Counts a write that is on its way while it lives.
struct OnItsWay<'a>(&'a AtomicU64, u64);

impl<'a> OnItsWay<'a> {
    fn new(counter: &'a AtomicU64, bytes: u64) -> Self {
        counter.fetch_add(bytes, Ordering::Relaxed);
        Self(counter, bytes)
    }
}

impl Drop for OnItsWay<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(self.1, Ordering::Relaxed);
    }
}

/// Does a guest's change on both sides, or records it if the job gives up meanwhile.
///
/// # Errors
/// The source's.
pub(super) async fn write_both(
    ledger: &Arc<Ledger>,
    source: &Node,
    range: Range<u64>,
    change: Change,
) -> Result<()> {
    let claim = {
        // A copy that is on its way there may hang.
        let requests = &ledger.parting.requests;
        let claim = pin!(
            ledger
                .claims
                .claim_owned(range.clone(), ClaimKind::Exclusive)
        );
        let given_up = pin!(ledger.parting.given_up());
        let turn = select(claim, given_up);
        match requests.wait_turn(turn).await {
            Either::Left((claim, _)) => Some(claim),
            Either::Right(_) => None,
        }
    };
    let Some(claim) = claim.filter(|_| ledger.writes_both()) else {
        return write_recorded(ledger, source, range, change).await;
    };
    let shared = ledger.shared_part(&range);
    if shared.is_empty() {
        // All of it is dirty and will be copied once the place is free.
        let result = write_recorded(ledger, source, range, change).await;
        drop(claim);
        return result;
    }
    let len = range.end - range.start;
    let _on_its_way = OnItsWay::new(&ledger.on_their_way, len);
    ledger.dirty.clear(range.start, len);
    let write = Twofold {
        ledger,
        source,
        claim: Arc::new(claim),
        range,
        shared,
        failure: OnceLock::new(),
    };
    let done = match change {
        Change::Data(buffer, flags) => write.data(&buffer, flags).await,
        Change::Zeroes(flags) => write.zeroes(flags).await,
        Change::Discard => write.discard().await,
    };
    write.finish(done)
}

/// Does a guest's change on the source and marks it when it has ended, however it has ended.
///
/// # Errors
/// The source's.
pub(super) async fn write_recorded(
    ledger: &Ledger,
    source: &Node,
    range: Range<u64>,
    change: Change,
) -> Result<()> {
    let (offset, len) = (range.start, range.end - range.start);
    let result = change.apply(source, range).await;
    ledger.dirty.record(offset, len);
    result
}

/// What came of a twofold write.
struct Outcome {
    source: Result<()>,
    /// The target holds it.
    at_target: bool,
}

impl Twofold<'_> {
    async fn data(&self, buffer: &IoBuffer, flags: RequestFlags) -> Outcome {
        let mut at_target = true;
        let mut at = 0;
        while at < buffer.len() {
            let bytes = Memory::PIECE.min(buffer.len() - at);
            let _memory = self.ledger.memory.take(bytes).await;
            let piece = buffer.slice(at, bytes).duplicate();
            let start = self.range.start + at as u64;
            let (from, to) = (
                start.max(self.shared.start),
                (start + bytes as u64).min(self.shared.end),
            );
            at += bytes;
            let mut flags = flags;
            // One flush at the end makes all pieces durable.
            flags.set(
                RequestFlags::FUA,
                flags.contains(RequestFlags::FUA) && at == buffer.len(),
            );
            let source = self.source.write(start, piece.clone(), flags);
            let target = async {
                if from >= to || !at_target {
                    return at_target;
                }
                let part = part_of(&piece, from - start, to - from);
                self.at_target(Change::Data(part, RequestFlags::empty()), from..to)
                    .await
            };
            let (source, target) = join(source, target).await;
            at_target = target;
            if source.is_err() {
                return Outcome { source, at_target };
            }
        }
        Outcome {
            source: Ok(()),
            at_target,
        }
    }

    async fn zeroes(&self, flags: RequestFlags) -> Outcome {
        let len = self.range.end - self.range.start;
        let source = self.source.write_zeroes(self.range.start, len, flags);
        let change = Change::Zeroes(flags & RequestFlags::MAY_UNMAP);
        let target = self.at_target(change, self.shared.clone());
        let (source, at_target) = join(source, target).await;
        Outcome { source, at_target }
    }

    /// What a discarded range reads as is the medium's business, and the two sides need not agree. So the
    /// target gets holes where the source has them now; what the source holds yet may have changed and is
    /// copied.
    async fn discard(&self) -> Outcome {
        let len = self.range.end - self.range.start;
        let source = self.source.discard(self.range.start, len).await;
        let mut at = self.shared.start;
        while source.is_ok() && at < self.shared.end {
            let left = self.shared.end - at;
            let status = self.source.block_status(at, left).await;
            let Some(zeroes) = status
                .ok()
                .filter(|status| status.allocation == Allocation::Zero)
            else {
                break;
            };
            let change = Change::Zeroes(RequestFlags::MAY_UNMAP);
            if !self.at_target(change, at..at + zeroes.len).await {
                break;
            }
            at += zeroes.len;
        }
        Outcome {
            at_target: source.is_ok() && at >= self.shared.end,
            source,
        }
    }

    /// Has the target do its part; the guest may stop to wait for it. Whether it was done.
    async fn at_target(&self, change: Change, range: Range<u64>) -> bool {
        let running = self.ledger.parting.begin_at_target();
        let (target, claim) = (Arc::clone(&self.ledger.target), Arc::clone(&self.claim));
        let requests = &self.ledger.parting.requests;
        let awaiting = requests.begin_for(Waiter::Guest, &target, change.operation());
        let work = Unstoppable::new(async move {
            let result = change.apply(&target, range).await;
            drop((claim, running, awaiting));
            result
        });
        match select(work, pin!(self.ledger.parting.given_up())).await {
            Either::Left((Ok(()), _)) => true,
            Either::Left((Err(error), _)) => {
                // Nothing more is sent there once a part has failed.
                let _ = self.failure.set(CopyError::new(IoOperation::Write, &error));
                false
            }
            Either::Right(_) => false,
        }
    }

    /// # Errors
    /// The source's.
    fn finish(self, outcome: Outcome) -> Result<()> {
        let len = self.range.end - self.range.start;
        if outcome.source.is_ok() && outcome.at_target {
            let bytes = self.shared.end - self.shared.start;
            let unforeseen = 0;
            self.ledger.add_finished(Finished { bytes, unforeseen });
            self.ledger
                .tally
                .twofold
                .fetch_add(bytes, Ordering::Relaxed);
        } else {
            // Even a source that failed may have changed in part.
            self.ledger.dirty.set_dirty(self.range.start, len);
        }
        // The range is dirty by now: a job that goes on at once finds it.
        if let Some(error) = self.failure.into_inner() {
            // What the source did not take is the guest's to try again.
            let bytes = if outcome.source.is_ok() { len } else { 0 };
            self.ledger.suspend(error, bytes);
        }
        outcome.source
    }
}

/// A slice by byte numbers within a piece, which is no longer than memory.
fn part_of(piece: &IoBuffer, from: u64, len: u64) -> IoBuffer {
    let bytes = |value| usize::try_from(value).unwrap_or(0);
    piece.slice(bytes(from), bytes(len))
}

/// [`write_both`] in memory of its own: the requests of a mirror in the background pay nothing for it.
pub(super) fn write_both_boxed<'a>(
    ledger: &'a Arc<Ledger>,
    source: &'a Node,
    range: Range<u64>,
    change: Change,
) -> BlockFuture<'a, ()> {
    BlockFuture::new(write_both(ledger, source, range, change))
}
