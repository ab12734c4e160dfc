//! A guest's request: operations under a token, with the disk's error policy.
//!
//! A device makes a [`Request`] of the token that it has entered with and does the request's
//! operations through it, one after the other. If one fails and the policy says so, the machine is
//! asked to stop, and the request is *halted*: it gives its token back and waits. When the machine
//! goes on it enters again, before anything newer, and does the very operation that failed once
//! more; what was done before is not repeated. The operation is kept as a value: it looks at no
//! register and no ring again.
//!
//! A device that is reset must not wait for a machine that stands still: [`Submitter::settle`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Errno;
use sluice_aio::{IoBuffer, Token};

use super::{Account, Backend, Timer};
use crate::driver::RequestFlags;
use crate::error::{BlockError, Result, errno_text};
use crate::event::{BlockEvent, ErrorAction};
use crate::job::IoStatus;

/// One source of a disk's requests, such as an IDE drive or a virtqueue. What it has halted is
/// cancelled together. Any thread.
#[derive(Debug)]
pub struct Submitter {
    backend: Arc<Backend>,
    id: u64,
    /// How often it was settled: requests from before never halt again.
    settled: AtomicU64,
}

impl Submitter {
    /// A source of requests to `backend`.
    #[must_use]
    pub fn new(backend: Arc<Backend>) -> Self {
        let id = backend.next_submitter.fetch_add(1, Ordering::Relaxed);
        Self {
            backend,
            id,
            settled: AtomicU64::new(0),
        }
    }

    /// The disk.
    #[must_use]
    pub fn backend(&self) -> &Arc<Backend> {
        &self.backend
    }

    /// Begins a request with the token that it has entered with.
    #[must_use]
    pub fn request(&self, token: Token) -> Request<'_> {
        Request {
            submitter: self,
            token: Some(token),
            sequence: self.backend.next_sequence.fetch_add(1, Ordering::Relaxed),
            settled: self.settled.load(Ordering::Acquire),
        }
    }

    /// Cancels what is halted or held up by limits, and has what is under way end with its error if it fails: the
    /// device is reset, and waits for its requests to end.
    pub fn settle(&self) {
        self.settled.fetch_add(1, Ordering::AcqRel);
        self.backend.halted.cancel(self.id);
        self.backend.throttling.wake();
    }
}

/// What is done, and done again.
#[derive(Clone, Debug)]
enum Operation {
    Read(u64, IoBuffer),
    Write(u64, IoBuffer),
    Zero { offset: u64, len: u64, unmap: bool },
    Discard { offset: u64, len: u64 },
    Flush,
}

impl Operation {
    fn account(&self) -> Account {
        match self {
            Self::Read(..) => Account::Read,
            Self::Write(..) | Self::Zero { .. } => Account::Write,
            Self::Discard { .. } => Account::Unmap,
            Self::Flush => Account::Flush,
        }
    }

    /// Bytes that it moves.
    fn bytes(&self) -> u64 {
        match self {
            Self::Read(_, buffer) | Self::Write(_, buffer) => buffer.len() as u64,
            Self::Zero { len, .. } | Self::Discard { len, .. } => *len,
            Self::Flush => 0,
        }
    }
}

/// A guest's request on its way; see [`crate::backend`]. Dropping it ends it.
#[derive(Debug)]
pub struct Request<'a> {
    submitter: &'a Submitter,
    /// There but while it is halted, or after it was cancelled.
    token: Option<Token>,
    sequence: u64,
    settled: u64,
}

impl Request<'_> {
    /// The disk.
    #[must_use]
    pub fn backend(&self) -> &Backend {
        &self.submitter.backend
    }

    /// Counts what the device has refused by itself, in place of an operation.
    pub fn account_invalid(&self, kind: Account) {
        self.submitter.backend.account_invalid(kind);
    }

    /// Reads `buffer.len()` bytes from byte `offset`.
    ///
    /// # Errors
    /// No medium, out of range, or the medium's, if the policy is to report it; cancelled while
    /// halted.
    pub async fn read(&mut self, offset: u64, buffer: IoBuffer) -> Result<()> {
        self.run(Operation::Read(offset, buffer)).await
    }

    /// Writes `buffer` at byte `offset`.
    ///
    /// # Errors
    /// As [`Request::read`], and a read-only disk.
    pub async fn write(&mut self, offset: u64, buffer: IoBuffer) -> Result<()> {
        self.run(Operation::Write(offset, buffer)).await
    }

    /// Makes `len` bytes from `offset` zeroes; with `unmap` they may become a hole.
    ///
    /// # Errors
    /// As [`Request::write`].
    pub async fn write_zeroes(&mut self, offset: u64, len: u64, unmap: bool) -> Result<()> {
        self.run(Operation::Zero { offset, len, unmap }).await
    }

    /// Gives up the contents of `len` bytes from `offset`.
    ///
    /// # Errors
    /// As [`Request::write`].
    pub async fn discard(&mut self, offset: u64, len: u64) -> Result<()> {
        self.run(Operation::Discard { offset, len }).await
    }

    /// Makes everything durable that ended before this call.
    ///
    /// # Errors
    /// As [`Request::write`].
    pub async fn flush(&mut self) -> Result<()> {
        self.run(Operation::Flush).await
    }

    async fn run(&mut self, operation: Operation) -> Result<()> {
        let backend = &*self.submitter.backend;
        let kind = operation.account();
        let bytes = operation.bytes();
        if !backend.policy().may_stop(kind.direction()) {
            return self.attempt(kind, bytes, operation).await.0;
        }
        loop {
            let (result, action) = self.attempt(kind, bytes, operation.clone()).await;
            if action != Some(ErrorAction::Stop) {
                return result;
            }
            self.wait_for_machine().await?;
        }
    }

    /// Does it once. Returns what the guest is to be told, and what was done about an error.
    async fn attempt(
        &mut self,
        kind: Account,
        bytes: u64,
        operation: Operation,
    ) -> (Result<()>, Option<ErrorAction>) {
        let timer = Timer::start(&self.submitter.backend, kind, bytes);
        let Err(error) = self.perform(operation).await else {
            timer.done();
            return (Ok(()), None);
        };
        let action = self.judge(kind, &error);
        match action {
            ErrorAction::Report => {
                timer.failed(&error);
                (Err(error), Some(action))
            }
            ErrorAction::Ignore => {
                timer.done();
                (Ok(()), Some(action))
            }
            // It has not ended.
            ErrorAction::Stop => (Err(error), Some(action)),
        }
    }

    async fn perform(&self, operation: Operation) -> Result<()> {
        let backend = &*self.submitter.backend;
        let Some(token) = &self.token else {
            return Err(BlockError::Cancelled(sluice_aio::Cancelled));
        };
        let (kind, bytes) = (operation.account(), operation.bytes());
        let root = || backend.root_in_turn(token, kind, bytes, || self.was_settled());
        match operation {
            Operation::Read(offset, buffer) => {
                if backend.throttling.limits() {
                    root().await?;
                }
                backend.begin_read(token, offset, buffer)?.await
            }
            Operation::Write(offset, buffer) => {
                let flags = backend.write_flags();
                root().await?.write(offset, buffer, flags).await
            }
            Operation::Zero { offset, len, unmap } => {
                let mut flags = backend.write_flags();
                flags.set(RequestFlags::MAY_UNMAP, unmap);
                root().await?.write_zeroes(offset, len, flags).await
            }
            Operation::Discard { offset, len } => root().await?.discard(offset, len).await,
            Operation::Flush => root().await?.flush().await,
        }
    }

    /// Whether its device was settled since it began.
    fn was_settled(&self) -> bool {
        self.submitter.settled.load(Ordering::Acquire) != self.settled
    }

    /// What is done about an error; tells the operator.
    fn judge(&self, kind: Account, error: &BlockError) -> ErrorAction {
        let backend = &*self.submitter.backend;
        if matches!(error, BlockError::Cancelled(_)) || self.was_settled() {
            return ErrorAction::Report;
        }
        let operation = kind.direction();
        let errno = Errno::from_raw_os_error(error.errno());
        let policy = backend.policy();
        // The disk has become smaller under the guest, or was ejected: no retry helps, so stopping would never end.
        let action = match error {
            BlockError::OutOfRange { .. } => ErrorAction::Report,
            _ if errno == Errno::NOMEDIUM => ErrorAction::Report,
            _ => policy.action(operation, errno),
        };
        if action == ErrorAction::Stop {
            backend.note_status(IoStatus::from_errno(errno));
        }
        backend.events.emit(BlockEvent::BlockIoError {
            qom_path: backend
                .device()
                .map_or_else(String::new, |device| device.path()),
            device: backend.name.clone(),
            node_name: backend.node().map(|node| node.name().to_owned()),
            operation,
            action,
            nospace: policy.has_status().then_some(errno == Errno::NOSPC),
            reason: errno_text(errno),
        });
        action
    }

    async fn wait_for_machine(&mut self) -> Result<()> {
        let backend = &*self.submitter.backend;
        let halting = backend
            .halted
            .halt(&backend.gate, self.sequence, self.submitter.id);
        // The gate is closed by now: nothing overtakes, and the disk comes to rest.
        self.token = None;
        if self.was_settled() {
            return Err(BlockError::Cancelled(sluice_aio::Cancelled));
        }
        self.token = Some(halting.await?);
        Ok(())
    }
}
