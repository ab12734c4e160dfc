//! Copying dirty chunks from source to target, several at once.
//!
//! One *copy* covers a range of whole chunks. It clears the range's marks first and only then looks
//! at the source, so a guest's write at any later moment marks the chunk again. Copies of
//! overlapping ranges never run at the same time: an older copy's bytes must not land after a newer
//! one's. A copy that fails marks its range dirty again and leaves its error for the job to judge.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use sluice_aio::{IoBuffer, Token, current};

use super::ledger::{CopyError, Finished, Ledger};
use crate::dirty::DirtyBitmap;
use crate::driver::{Allocation, BlockStatus, RequestFlags};
use crate::error;
use crate::event::IoOperation;
use crate::io::serialise::ClaimKind;
use crate::job::{AwaitedOperation, JobKicker};
use crate::node::Node;

/// So many times more is copied at once where it takes no memory of ours.
const BY_THE_KERNEL: u64 = 4;
/// The most copies at once that worker threads make alone: about as many as there are processors for them,
/// and some that wait for those.
const MAX_WORKERS: usize = 4;
/// The most bytes of data that one copy holds in memory.
const MAX_DATA: u64 = 1 << 20;
/// The most bytes of data that a brief copy moves.
const BRIEF: u64 = 256 << 10;
/// The least, however small a buffer the operator wants.
const MIN_DATA: u64 = 4 << 10;
/// The most bytes of zeroes one copy covers, and of data that is asked about at once.
const MAX_ZEROES: u64 = 1 << 30;
/// The most copies at once.
const MAX_IN_FLIGHT: usize = 16;

/// What the next step found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A copy was started.
    Started {
        /// Bytes that are foreseen to move; zeroes do not count.
        data: u64,
    },
    /// There is something to copy, but a running copy must end first.
    Busy,
    /// Nothing is dirty.
    Clean,
}

/// How much of what is dirty one copy covers, and how many there are at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    /// As much as is copied at once with the best effect.
    Fast,
    /// So little that a guest's write can wait for its end.
    Brief,
    /// As brief, and one after the other: what keeps within a speed limit that way leaves the guest all processors but one,
    /// and room on that one too.
    Single,
}

/// See the [module](self). Its methods run in the job's home loop.
#[derive(Debug)]
pub(super) struct Copier {
    source: Arc<Node>,
    target: Arc<Node>,
    ledger: Arc<Ledger>,
    unmap: bool,
    /// Bytes that one copy moves at once: its share of the operator's `buf-size`.
    piece: u64,
    /// Worker threads copy from file to file.
    by_the_kernel: bool,
    /// Dirty chunks that the source said to be data, until they are copied. To ask it for each copy anew would be
    /// quadratic: some file systems look through all of the data to its end. Zeroes are never taken from
    /// here: that something is data stays true enough when a guest zeroes it, the reverse would lose a write.
    known: DirtyBitmap,
    /// Memory of copies that have ended, for those to come.
    spare: Mutex<Vec<IoBuffer>>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    ranges: Vec<Range<u64>>,
    /// Where the next search begins, so that a hot chunk does not starve the others.
    cursor: u64,
}

/// A range to be copied.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Copy {
    range: Range<u64>,
    /// All of it counts as data; the source need not be asked.
    is_data: bool,
    /// Bytes of data that the source was seen to hold there. What else is found counts when it is copied.
    foreseen: u64,
}

impl Copier {
    /// `known` is a clean bitmap like the ledger's.
    pub(super) fn new(
        source: Arc<Node>,
        target: Arc<Node>,
        ledger: Arc<Ledger>,
        unmap: bool,
        known: DirtyBitmap,
        buf_size: u64,
    ) -> Self {
        let first = MIN_DATA.min(source.len());
        let by_the_kernel = source.place(0, first).is_some() && target.place(0, first).is_some();
        let share = (buf_size / MAX_IN_FLIGHT as u64).clamp(MIN_DATA, MAX_DATA);
        Self {
            known,
            source,
            target,
            ledger,
            unmap,
            by_the_kernel,
            spare: Mutex::default(),
            piece: share / MIN_DATA * MIN_DATA,
            state: Mutex::new(State {
                ranges: Vec::new(),
                cursor: 0,
            }),
        }
    }

    /// Bytes that are dirty, being copied, or being written to both sides.
    pub(super) fn remaining(&self) -> u64 {
        let in_flight: u64 = self
            .state
            .lock()
            .ranges
            .iter()
            .map(|range| range.end - range.start)
            .sum();
        let twofold = self.ledger.on_their_way.load(Ordering::Relaxed);
        self.ledger
            .dirty
            .count()
            .saturating_add(in_flight)
            .saturating_add(twofold)
    }

    /// The source was found to hold data there, so it need not be asked again. Chunks that are data in part are
    /// not known: they are looked at when they are copied, so that the target is as sparse as it can be.
    pub(super) fn expect_data(&self, range: Range<u64>) {
        let chunk = self.known.granularity();
        let first = range.start.next_multiple_of(chunk);
        let last = match range.end == self.known.size() {
            true => range.end,
            false => range.end / chunk * chunk,
        };
        self.known.set_dirty(first, last.saturating_sub(first));
    }

    /// Bytes of memory that the bitmap of what is known to be data takes.
    pub(super) fn memory_of_known(&self) -> u64 {
        self.known.memory()
    }

    /// As much of what begins at `start` as is known to be data, in bytes.
    fn known_data(&self, start: u64, len: u64) -> u64 {
        let known = self.known.next_dirty(start, len);
        let here = known.filter(|range| range.start <= start);
        here.map_or(0, |range| range.end.min(start + len) - start)
    }

    /// Whether nothing is dirty and no copy runs.
    pub(super) fn is_converged(&self) -> bool {
        self.ledger.copies.in_flight() == 0 && self.ledger.dirty.is_clean()
    }

    /// Starts one copy of what is dirty next, if there is any and it may run now.
    ///
    /// The job is kicked when the copy has ended.
    pub(super) async fn step(self: &Arc<Self>, kicker: &JobKicker, pace: Pace) -> Step {
        let Some(run) = self.next_run() else {
            return if self.ledger.dirty.is_clean() {
                Step::Clean
            } else {
                Step::Busy
            };
        };
        let Some(token) = self
            .ledger
            .copies
            .try_enter()
            .filter(|_| self.has_room(pace))
        else {
            return Step::Busy;
        };
        let copy = self.sized(run, pace).await;
        let data = copy.foreseen;
        let mut state = self.state.lock();
        state.cursor = copy.range.end;
        state.ranges.push(copy.range.clone());
        drop(state);
        let copier = Arc::clone(self);
        let kicker = kicker.clone();
        current::spawn_local(async move {
            copier.run(copy, token).await;
            kicker.kick();
        })
        .detach();
        Step::Started { data }
    }

    fn has_room(&self, pace: Pace) -> bool {
        let most = match (pace, self.by_the_kernel) {
            (Pace::Single, _) => 1,
            (Pace::Fast | Pace::Brief, true) => MAX_WORKERS,
            (Pace::Fast | Pace::Brief, false) => MAX_IN_FLIGHT,
        };
        self.state.lock().ranges.len() < most
    }

    /// The next dirty run that no running copy touches.
    fn next_run(&self) -> Option<Range<u64>> {
        let state = self.state.lock();
        self.free_run(&state.ranges, state.cursor, u64::MAX)
            .or_else(|| self.free_run(&state.ranges, 0, state.cursor))
    }

    /// Searches `[from, until)` for a dirty run outside of `busy`.
    fn free_run(&self, busy: &[Range<u64>], from: u64, until: u64) -> Option<Range<u64>> {
        let mut from = from;
        while from < until {
            let mut run = self.ledger.dirty.next_dirty(from, MAX_ZEROES)?;
            if run.start >= until {
                return None;
            }
            let inside = busy.iter().find(|range| range.contains(&run.start));
            if let Some(range) = inside {
                from = range.end;
                continue;
            }
            let limit = busy
                .iter()
                .map(|range| range.start)
                .filter(|start| *start > run.start);
            run.end = limit.fold(run.end, u64::min);
            return Some(run);
        }
        None
    }

    /// Cuts a run to what one copy does.
    ///
    /// That there are zeroes is only a hint for the size: what is there is looked at again after the marks
    /// were cleared.
    async fn sized(&self, run: Range<u64>, pace: Pace) -> Copy {
        let len = run.end - run.start;
        let granularity = self.ledger.dirty.granularity();
        let mut data = self.known_data(run.start, len);
        let mut seen = len;
        if data == 0 {
            let ask = MAX_ZEROES.min(self.source.len() - run.start);
            match self.status(run.start, ask).await {
                Ok(status) if status.allocation == Allocation::Zero => {
                    // At least a chunk, if only its beginning is zeroes.
                    let whole = (status.len / granularity).max(1) * granularity;
                    return Copy {
                        range: run.start..run.start + whole.min(len),
                        is_data: false,
                        foreseen: 0,
                    };
                }
                Ok(status) => {
                    seen = status.len.min(len);
                    self.expect_data(run.start..run.start + seen);
                }
                // Not known counts as data.
                Err(_) => self.expect_data(run.clone()),
            }
            data = self.known_data(run.start, len);
        }
        let piece = match pace {
            Pace::Fast if self.by_the_kernel => self.piece * BY_THE_KERNEL,
            Pace::Fast => self.piece,
            Pace::Brief | Pace::Single => self.piece.min(BRIEF),
        };
        let is_data = data > 0;
        let most = if is_data { data } else { granularity };
        let until = piece.next_multiple_of(granularity).min(most).min(len);
        Copy {
            range: run.start..run.start + until,
            is_data,
            foreseen: until.min(seen),
        }
    }

    async fn status(&self, offset: u64, len: u64) -> error::Result<BlockStatus> {
        let requests = &self.ledger.parting.requests;
        let _awaiting = requests.begin(&self.source, AwaitedOperation::Look);
        self.source.block_status(offset, len).await
    }

    async fn run(&self, copy: Copy, token: Token) {
        let Copy {
            range,
            is_data,
            foreseen,
        } = copy;
        let ledger = &self.ledger;
        let len = range.end - range.start;
        let claim = ledger
            .claims
            .claim(range.clone(), ClaimKind::Exclusive)
            .await;
        self.known.clear(range.start, len);
        let marks = ledger.dirty.clear(range.start, len);
        let result = match marks {
            // A guest's write to both sides was here meanwhile.
            0 => Ok(0),
            _ => self.copy(range.clone(), is_data).await,
        };
        if result.is_err() {
            ledger.dirty.set_dirty(range.start, len);
        }
        drop(claim);
        self.state.lock().ranges.retain(|other| *other != range);
        match result {
            Ok(moved) => ledger.add_finished(Finished {
                bytes: len,
                unforeseen: moved.saturating_sub(foreseen),
            }),
            // What fails once the job has given up is nobody's business any more.
            Err(_) if ledger.parting.is_over() => {}
            Err(error) => ledger.report_failed(error, len),
        }
        drop(token);
    }

    /// Copies a range piece by piece, zeroes as zeroes. Returns how many bytes were data.
    async fn copy(&self, range: Range<u64>, is_data: bool) -> Result<u64, CopyError> {
        let mut at = range.start;
        let mut moved = 0;
        while at < range.end {
            let left = range.end - at;
            let status = match is_data {
                true => None,
                false => {
                    let looking = self.ledger.parting.look_at_source()?;
                    let status = self.status(at, left).await.ok();
                    drop(looking);
                    status
                }
            };
            let len = match status {
                Some(status) if status.allocation == Allocation::Zero => {
                    self.zero(at, status.len).await?;
                    status.len
                }
                // Not known counts as data.
                _ => {
                    let len = status.map_or(left, |status| status.len);
                    let len = self.move_data(at, len).await?;
                    moved += len;
                    len
                }
            };
            at += len;
        }
        Ok(moved)
    }

    async fn zero(&self, offset: u64, len: u64) -> Result<(), CopyError> {
        let flags = if self.unmap {
            RequestFlags::MAY_UNMAP
        } else {
            RequestFlags::empty()
        };
        let parting = &self.ledger.parting;
        parting.check_going_on()?;
        let _awaiting = parting
            .requests
            .begin(&self.target, AwaitedOperation::Zeroes);
        self.target
            .write_zeroes(offset, len, flags)
            .await
            .map_err(|error| CopyError::new(IoOperation::Write, &error))?;
        self.ledger.tally.zeroed.fetch_add(len, Ordering::Relaxed);
        Ok(())
    }

    /// Moves data, at most one buffer of it if that is needed, and says how much it was.
    async fn move_data(&self, offset: u64, len: u64) -> Result<u64, CopyError> {
        let parting = &self.ledger.parting;
        parting.check_going_on()?;
        let tally = &self.ledger.tally;
        if self.by_the_kernel {
            let awaiting = parting.requests.begin_copy(&self.source, &self.target);
            let is_copied = self.target.copy_from(&self.source, offset, len).await;
            drop(awaiting);
            // What failed it does not tell; the ordinary way will.
            if is_copied {
                tally.copied.fetch_add(len, Ordering::Relaxed);
                return Ok(len);
            }
        }
        let len = len.min(self.piece);
        // A piece is at most 1 MiB.
        let memory = self.memory(usize::try_from(len).unwrap_or_default());
        let buffer = memory.slice(0, usize::try_from(len).unwrap_or_default());
        let looking = parting.look_at_source()?;
        let reading = parting.requests.begin(&self.source, AwaitedOperation::Read);
        self.source
            .read(offset, buffer.clone())
            .await
            .map_err(|error| CopyError::new(IoOperation::Read, &error))?;
        drop((looking, reading));
        parting.check_going_on()?;
        let _writing = parting
            .requests
            .begin(&self.target, AwaitedOperation::Write);
        self.target
            .write(offset, buffer, RequestFlags::empty())
            .await
            .map_err(|error| CopyError::new(IoOperation::Write, &error))?;
        self.spare.lock().push(memory);
        tally.copied.fetch_add(len, Ordering::Relaxed);
        Ok(len)
    }

    /// Gives back the memory of copies that have ended: none will come soon.
    pub(super) fn forget_memory(&self) {
        self.spare.lock().clear();
    }

    /// At least `len` bytes of memory that nothing uses.
    fn memory(&self, len: usize) -> IoBuffer {
        let spare = self.spare.lock().pop();
        let fit = spare.filter(|memory| memory.len() >= len);
        fit.unwrap_or_else(|| IoBuffer::alloc(len))
    }
}
