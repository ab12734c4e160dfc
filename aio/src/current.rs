//! What a task can ask of the loop it runs in.
//!
//! These functions find the loop through a thread-local that is set while the loop takes a turn.
//! Called anywhere else they panic: that is a mistake in the program, never something that a guest
//! or a client can bring about. Other threads use [`AioContext`] instead.

use std::cell::RefCell;
use std::fs::File;
use std::future::Future;
use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::aside::Aside;
use crate::bottom_half::BottomHalf;
use crate::buffer::IoBuffer;
use crate::clock::step;
use crate::context::{AioContext, Shared};
use crate::engine::{Completion, EngineKind, OperationKind, Route};
use crate::event_loop::{self, Local};
use crate::fd::{self, Cause, FdHandler, Readiness, Source};
use crate::gate::Cancelled;
use crate::task::{self, JoinHandle};
use crate::timer::Sleep;

thread_local! {
    static CURRENT: RefCell<Vec<Rc<Local>>> = const { RefCell::new(Vec::new()) };
}

/// Marks a loop as the current one while it lives.
pub(crate) struct Scope;

impl Scope {
    pub(crate) fn enter(local: &Rc<Local>) -> Self {
        CURRENT.with_borrow_mut(|stack| stack.push(Rc::clone(local)));
        step::begin();
        Self
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        CURRENT.with_borrow_mut(|stack| stack.pop());
        step::leave();
    }
}

pub(crate) fn with_if_any<T>(call: impl FnOnce(&Rc<Local>) -> T) -> Option<T> {
    let local = CURRENT
        .try_with(|stack| stack.borrow().last().cloned())
        .ok()
        .flatten();
    local.map(|local| call(&local))
}

pub(crate) fn with<T>(call: impl FnOnce(&Rc<Local>) -> T) -> T {
    match with_if_any(call) {
        Some(value) => value,
        None => panic!("called outside of an event loop: use AioContext from other threads"),
    }
}

pub(crate) fn is(shared: &Arc<Shared>) -> bool {
    with_if_any(|local| Arc::ptr_eq(&local.shared, shared)).unwrap_or(false)
}

/// The handle of the loop the caller runs in.
#[must_use]
pub fn context() -> AioContext {
    with(|local| AioContext(Arc::clone(&local.shared)))
}

/// Starts a task in this loop; it runs first in the loop's next step.
///
/// Dropping the handle lets the task go on alone.
pub fn spawn_local<T: 'static>(future: impl Future<Output = T> + 'static) -> JoinHandle<T> {
    with(|local| task::spawn(local, future))
}

/// Waits on the loop's clock.
pub fn sleep(duration: Duration) -> Sleep {
    with(|local| {
        let now = local.shared.clock().now();
        Sleep::until(Rc::downgrade(local), now.saturating_add(duration))
    })
}

/// Waits until the loop's clock shows `deadline` (time since the clock's start).
pub fn sleep_until(deadline: Duration) -> Sleep {
    with(|local| Sleep::until(Rc::downgrade(local), deadline))
}

/// Lets the other ready tasks of the loop run once.
pub fn yield_now() -> impl Future<Output = ()> {
    event_loop::yield_now()
}

/// Waits until `fd` can be read without blocking (or is at its end or broken).
///
/// # Errors
/// The kernel's, if it can't watch the descriptor (a regular file, no descriptors left).
pub fn readable(fd: &impl AsFd) -> Readiness {
    Readiness::new(fd, epoll::Events::EPOLLIN | epoll::Events::EPOLLRDHUP)
}

/// Waits until `fd` can be written without blocking (or is broken).
///
/// # Errors
/// As [`readable`].
pub fn writable(fd: &impl AsFd) -> Readiness {
    Readiness::new(fd, epoll::Events::EPOLLOUT)
}

/// Waits until the other end of the socket `fd` has closed both directions (or it is broken), whatever there is to
/// be read before that.
///
/// # Errors
/// As [`readable`].
pub fn hung_up(fd: &impl AsFd) -> Readiness {
    // What the kernel tells of without being asked to.
    Readiness::new(fd, epoll::Events::empty())
}

/// Calls `handler` in every turn in which `fd` is readable; the handler consumes the readiness.
///
/// For sources that only their descriptor tells of, as sockets and timers; the disks' doorbells have a
/// look as well ([`add_fd_with_look`]).
///
/// External handlers are not called while the loop's gate is closed. The loop watches a duplicate:
/// the handler stays with the file until it is dropped, whatever becomes of `fd`.
///
/// # Errors
/// The kernel's, if it can't watch the descriptor.
pub fn add_fd(
    fd: &impl AsFd,
    source: Source,
    mut handler: impl FnMut() + 'static,
) -> io::Result<FdHandler> {
    let handler = Box::new(move |_| handler());
    with(|local| fd::add_fd(local, fd, source, None, handler))
}

/// As [`add_fd`], for a source that can also be looked at without a system call.
///
/// While the loop polls it calls `look` again and again; it must be cheap, change nothing and only
/// say whether there is work. If so, the handler is called with [`Cause::Looked`], and need not
/// read the descriptor. A loop that is never idle does not look: what the look would see must ring the
/// descriptor, too.
///
/// # Errors
/// As [`add_fd`].
pub fn add_fd_with_look(
    fd: &impl AsFd,
    source: Source,
    look: impl FnMut() -> bool + 'static,
    handler: impl FnMut(Cause) + 'static,
) -> io::Result<FdHandler> {
    let (look, handler) = (Box::new(look), Box::new(handler));
    with(|local| fd::add_fd(local, fd, source, Some(look), handler))
}

/// Makes a bottom half of this loop out of `callback`; it does not run before it is scheduled.
pub fn bottom_half(callback: impl FnMut() + 'static) -> BottomHalf {
    with(|local| BottomHalf::new(local, callback))
}

/// Runs `call`, which may block, in a worker thread of this loop.
///
/// Dropping the future does not stop the call.
///
/// # Errors
/// [`Cancelled`] if the call panicked or no worker could take it.
pub fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> T + Send + 'static,
) -> impl Future<Output = Result<T, Cancelled>> {
    let receiver = with(|local| local.engines.workers().run(call));
    async move { receiver.await.map_err(|_| Cancelled) }
}

/// Refuses a range that a file can't have; Linux counts offsets in signed 64 bits, and gives the
/// unsigned value of -1 a meaning of its own.
fn check_range(offset: u64, len: usize) -> io::Result<()> {
    match offset.checked_add(len as u64).map(i64::try_from) {
        Some(Ok(_)) => Ok(()),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

/// A transfer on its way: bytes moved, or the kernel's error. Dropping it leaves the operation running.
#[must_use = "nobody learns how the transfer ends"]
pub struct Transfer(State);

enum State {
    /// It has ended before it began; none once that was told.
    Ended(Option<io::Result<usize>>),
    Running(Completion),
}

impl std::fmt::Debug for Transfer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transfer").finish_non_exhaustive()
    }
}

impl Future for Transfer {
    type Output = io::Result<usize>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            State::Running(completion) => Pin::new(completion).poll(cx),
            State::Ended(result) => Poll::Ready(
                result
                    .take()
                    .unwrap_or_else(|| Err(io::Error::other("polled after completion"))),
            ),
        }
    }
}

fn transfer(
    route: Route,
    kind: OperationKind,
    file: &Arc<Aside<File>>,
    offset: u64,
    buffer: IoBuffer,
) -> Transfer {
    Transfer(match check_range(offset, buffer.len()) {
        Err(error) => State::Ended(Some(Err(error))),
        Ok(()) if buffer.is_empty() => State::Ended(Some(Ok(0))),
        Ok(()) => State::Running(start(route, kind, file, offset, buffer)),
    })
}

/// Begins to read into `buffer` from byte `offset`; fewer bytes than asked mean the end of the file.
///
/// `route` is an engine, or what is known besides of the way to a file that is read or written more
/// often ([`Route::to`]).
///
/// # Errors
/// The kernel's; [`io::ErrorKind::InvalidInput`] beyond what a file offset can be.
pub fn read_at(
    route: impl Into<Route>,
    file: &Arc<Aside<File>>,
    offset: u64,
    buffer: IoBuffer,
) -> Transfer {
    transfer(route.into(), OperationKind::Read, file, offset, buffer)
}

/// Begins to write all of `buffer` at byte `offset`: the bytes moved are as many as it has.
///
/// # Errors
/// The kernel's, or as [`read_at`]; how much was written before is not known.
pub fn write_at(
    route: impl Into<Route>,
    file: &Arc<Aside<File>>,
    offset: u64,
    buffer: IoBuffer,
) -> Transfer {
    transfer(route.into(), OperationKind::Write, file, offset, buffer)
}

/// Makes the file's data and metadata durable (`fsync`).
///
/// # Errors
/// The kernel's.
pub async fn fsync(engine: EngineKind, file: &Arc<Aside<File>>) -> io::Result<()> {
    let sync = start(engine, OperationKind::Fsync, file, 0, IoBuffer::empty());
    sync.await.map(drop)
}

/// Makes the file's data durable, with the metadata that is needed to find it (`fdatasync`).
///
/// # Errors
/// The kernel's.
pub async fn fdatasync(engine: EngineKind, file: &Arc<Aside<File>>) -> io::Result<()> {
    let sync = start(engine, OperationKind::Fdatasync, file, 0, IoBuffer::empty());
    sync.await.map(drop)
}

/// Allocates, punches or zeroes `len` bytes from `offset`, by `mode` (`FALLOC_FL_*`).
///
/// # Errors
/// The kernel's; `EOPNOTSUPP` where the file system can't; `EINVAL` for 0 bytes.
pub async fn fallocate(
    engine: EngineKind,
    file: &Arc<Aside<File>>,
    mode: i32,
    offset: u64,
    len: u64,
) -> io::Result<()> {
    let kind = OperationKind::Fallocate { mode, len };
    let call = start(engine, kind, file, offset, IoBuffer::empty());
    call.await.map(drop)
}

/// Tells a block device that `len` bytes from `offset` are not needed any more (`BLKDISCARD`): what
/// they read as from now on is the device's business. For regular files, punch a hole
/// ([`fallocate`]).
///
/// # Errors
/// The kernel's; `EOPNOTSUPP` where the device can't, `EINVAL` unless both numbers are multiples
/// of its block size, `ENOTTY` if it is no block device.
pub async fn discard(
    engine: EngineKind,
    file: &Arc<Aside<File>>,
    offset: u64,
    len: u64,
) -> io::Result<()> {
    let kind = OperationKind::Discard { len };
    let call = start(engine, kind, file, offset, IoBuffer::empty());
    call.await.map(drop)
}

fn start(
    route: impl Into<Route>,
    kind: OperationKind,
    file: &Arc<Aside<File>>,
    offset: u64,
    buffer: IoBuffer,
) -> Completion {
    let (route, file) = (route.into(), Arc::clone(file));
    with(|local| local.engines.start(route, kind, file, offset, buffer))
}
