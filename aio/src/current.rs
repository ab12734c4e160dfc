//! What a task can ask of the loop it runs in.
//!
//! These functions find the loop through a thread-local that is set while the loop takes a turn.
//! Called anywhere else they panic: that is a mistake in the program, never something that a guest
//! or a client can bring about. Other threads use [`AioContext`] instead.

use std::cell::RefCell;
use std::fs::File;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::buffer::IoBuffer;
use crate::context::{AioContext, Remote, Shared};
use crate::engine::{EngineKind, Operation};
use crate::event_loop::{self, Local};
use crate::fd::{self, FdHandler, Readiness, Source};
use crate::gate::Cancelled;
use crate::task::JoinHandle;
use crate::timer::Sleep;

thread_local! {
    static CURRENT: RefCell<Vec<Rc<Local>>> = const { RefCell::new(Vec::new()) };
}

/// Marks a loop as the current one while it lives.
pub(crate) struct Scope;

impl Scope {
    pub(crate) fn enter(local: &Rc<Local>) -> Self {
        CURRENT.with_borrow_mut(|stack| stack.push(Rc::clone(local)));
        Self
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        CURRENT.with_borrow_mut(|stack| stack.pop());
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
    with(|local| {
        let home = Arc::downgrade(&local.shared);
        let schedule = move |runnable: async_task::Runnable| {
            let mut runnable = Some(runnable);
            with_if_any(|local| {
                if std::ptr::eq(Arc::as_ptr(&local.shared), home.as_ptr()) {
                    local.ready.borrow_mut().extend(runnable.take());
                }
            });
            if let (Some(runnable), Some(home)) = (runnable, home.upgrade()) {
                home.push(Remote::Task(runnable));
            }
        };
        let slot = local.tasks.borrow().vacant_key();
        let registration = Registration {
            local: Rc::downgrade(local),
            slot,
        };
        let (runnable, task) = async_task::spawn_local(
            async move {
                let _registration = registration;
                future.await
            },
            schedule,
        );
        local.tasks.borrow_mut().insert(runnable.waker());
        if local.shutting_down.get() {
            // Dropped at once: the task is cancelled before it begins.
            drop(runnable);
        } else {
            runnable.schedule();
        }
        JoinHandle::new(task)
    })
}

/// Removes a task from the loop's list when its future is dropped.
struct Registration {
    local: std::rc::Weak<Local>,
    slot: usize,
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Some(local) = self.local.upgrade() {
            let waker = local.tasks.borrow_mut().try_remove(self.slot);
            drop(waker);
        }
    }
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

/// Calls `handler` in every turn in which `fd` is readable; the handler consumes the readiness.
///
/// External handlers are not called while the loop's gate is closed.
///
/// # Errors
/// The kernel's, if it can't watch the descriptor.
pub fn add_fd(
    fd: impl Into<Arc<OwnedFd>>,
    source: Source,
    handler: impl FnMut() + 'static,
) -> io::Result<FdHandler> {
    let fd = fd.into();
    with(|local| fd::add_fd(local, fd, source, handler))
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

/// Reads into `buffer` from byte `offset`; fewer bytes than asked mean the end of the file.
///
/// # Errors
/// The kernel's; [`io::ErrorKind::InvalidInput`] beyond what a file offset can be.
pub async fn read_at(
    engine: EngineKind,
    file: &Arc<File>,
    offset: u64,
    buffer: IoBuffer,
) -> io::Result<usize> {
    check_range(offset, buffer.len())?;
    let mut done = 0;
    while done < buffer.len() {
        let rest = if done == 0 {
            buffer.clone()
        } else {
            buffer.slice(done, buffer.len() - done)
        };
        match submit(engine, Operation::read(file, offset + done as u64, rest)).await? {
            0 => break,
            count => done += count,
        }
    }
    Ok(done)
}

/// Writes all of `buffer` at byte `offset`.
///
/// # Errors
/// The kernel's, or as [`read_at`]; how much was written before is not known.
pub async fn write_at(
    engine: EngineKind,
    file: &Arc<File>,
    offset: u64,
    buffer: IoBuffer,
) -> io::Result<()> {
    check_range(offset, buffer.len())?;
    let mut done = 0;
    while done < buffer.len() {
        let rest = if done == 0 {
            buffer.clone()
        } else {
            buffer.slice(done, buffer.len() - done)
        };
        match submit(engine, Operation::write(file, offset + done as u64, rest)).await? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            count => done += count,
        }
    }
    Ok(())
}

/// Makes the file's data durable (`fdatasync`).
///
/// # Errors
/// The kernel's.
pub async fn fdatasync(engine: EngineKind, file: &Arc<File>) -> io::Result<()> {
    submit(engine, Operation::fdatasync(file)).await.map(drop)
}

/// Allocates, punches or zeroes `len` bytes from `offset`, by `mode` (`FALLOC_FL_*`).
///
/// # Errors
/// The kernel's; `EOPNOTSUPP` where the file system can't.
pub async fn fallocate(
    engine: EngineKind,
    file: &Arc<File>,
    mode: i32,
    offset: u64,
    len: u64,
) -> io::Result<()> {
    submit(engine, Operation::fallocate(file, mode, offset, len))
        .await
        .map(drop)
}

async fn submit(engine: EngineKind, operation: Operation) -> io::Result<usize> {
    let completion = with(|local| local.engines.start(engine, operation));
    completion.await
}
