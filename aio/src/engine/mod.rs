//! I/O engines: how a loop hands file operations to the kernel.
//!
//! Two engines serve every loop: `io_uring` (one system call per turn for all operations prepared
//! in it) and `threads` (worker threads with positional system calls). An [`Operation`] owns its
//! buffer and its file until the kernel has finished; the future that waits for it can be dropped
//! at any moment, the operation goes on and its memory stays.

mod ring;
mod workers;

use std::fs::File;
use std::future::Future;
use std::io;
use std::os::fd::BorrowedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_channel::oneshot;

use crate::buffer::IoBuffer;
use crate::event_loop::LoopConfig;
use ring::{Ring, RingCompletion};
pub(crate) use workers::WorkerPool;

/// Which engine serves a file: the `aio=` option of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EngineKind {
    /// The kernel's submission ring; falls back to threads where it is refused.
    IoUring,
    /// Worker threads.
    Threads,
}

/// What to do to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OperationKind {
    Read,
    Write,
    Fdatasync,
    Fallocate { mode: i32, len: u64 },
}

/// One operation with everything it needs, owned.
#[derive(Debug)]
pub(crate) struct Operation {
    pub(crate) kind: OperationKind,
    pub(crate) file: Arc<File>,
    pub(crate) offset: u64,
    pub(crate) buffer: IoBuffer,
}

impl Operation {
    pub(crate) fn read(file: &Arc<File>, offset: u64, buffer: IoBuffer) -> Self {
        Self {
            kind: OperationKind::Read,
            file: Arc::clone(file),
            offset,
            buffer,
        }
    }

    pub(crate) fn write(file: &Arc<File>, offset: u64, buffer: IoBuffer) -> Self {
        Self {
            kind: OperationKind::Write,
            file: Arc::clone(file),
            offset,
            buffer,
        }
    }

    pub(crate) fn fdatasync(file: &Arc<File>) -> Self {
        let buffer = IoBuffer::empty();
        Self {
            kind: OperationKind::Fdatasync,
            file: Arc::clone(file),
            offset: 0,
            buffer,
        }
    }

    pub(crate) fn fallocate(file: &Arc<File>, mode: i32, offset: u64, len: u64) -> Self {
        let kind = OperationKind::Fallocate { mode, len };
        Self {
            kind,
            file: Arc::clone(file),
            offset,
            buffer: IoBuffer::empty(),
        }
    }
}

/// The engines of one loop.
pub(crate) struct Engines {
    ring: Option<Ring>,
    workers: WorkerPool,
}

impl Engines {
    pub(crate) fn new(name: &str, config: &LoopConfig) -> io::Result<Self> {
        let ring = match config.engine {
            EngineKind::Threads => None,
            EngineKind::IoUring => match Ring::new() {
                Ok(ring) => Some(ring),
                Err(error) => {
                    tracing::warn!(
                        loop_name = name,
                        %error,
                        "io_uring is refused here (sysctl kernel.io_uring_disabled, seccomp or \
                         RLIMIT_MEMLOCK); using worker threads"
                    );
                    None
                }
            },
        };
        let workers = WorkerPool::new(name, config.thread_pool_min, config.thread_pool_max)?;
        Ok(Self { ring, workers })
    }

    pub(crate) fn workers(&self) -> &WorkerPool {
        &self.workers
    }

    pub(crate) fn ring_fd(&self) -> Option<BorrowedFd<'_>> {
        self.ring.as_ref().map(Ring::fd)
    }

    pub(crate) fn start(&self, engine: EngineKind, operation: Operation) -> Completion {
        match (&self.ring, engine) {
            (Some(ring), EngineKind::IoUring) => Completion::Ring(ring.start(operation)),
            _ => Completion::Worker(self.workers.run(move || workers::perform(&operation))),
        }
    }

    /// Hands everything prepared to the kernel.
    pub(crate) fn submit(&self) -> io::Result<()> {
        self.ring.as_ref().map_or(Ok(()), Ring::submit)
    }

    /// Whether the kernel has not taken everything yet and must be asked again.
    pub(crate) fn has_unsubmitted(&self) -> bool {
        self.ring.as_ref().is_some_and(Ring::has_unsubmitted)
    }

    /// Wakes those whose operations have ended.
    pub(crate) fn reap(&self) {
        if let Some(ring) = &self.ring {
            ring.reap();
        }
    }

    /// Waits until the kernel is done with every buffer; for the loop's end.
    pub(crate) fn finish(&self) {
        if let Some(ring) = &self.ring {
            ring.finish();
        }
        self.workers.finish();
    }
}

/// Waits for an operation; dropping it leaves the operation running.
pub(crate) enum Completion {
    Ring(RingCompletion),
    Worker(oneshot::Receiver<io::Result<usize>>),
}

impl Future for Completion {
    type Output = io::Result<usize>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.get_mut() {
            Self::Ring(completion) => Pin::new(completion).poll(cx),
            Self::Worker(receiver) => Pin::new(receiver).poll(cx).map(|result| {
                result
                    .unwrap_or_else(|_| Err(io::Error::other("no worker thread could be started")))
            }),
        }
    }
}
