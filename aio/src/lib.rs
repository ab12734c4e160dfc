//! Event loops, the external gate and I/O engines of Sluice.
//!
//! This crate knows nothing of disks. It provides the loop in which all block-layer code runs and
//! the one mechanism with which that code keeps guests out of a drained section.
//!
//! * [`EventLoop`] is one thread's loop; [`AioContext`] is the handle by which any thread gives it
//!   work; [`IoThread`] is a thread that runs one.
//! * [`current`] is what a task can ask of its loop: time, file descriptors, I/O, other tasks.
//! * [`gate::Gate`] admits external requests, or parks them in order while a section is open.
//! * [`IoBuffer`] is memory that an operation owns until the kernel has finished with it.
//!
//! # How a kick becomes a completion
//! A guest's store signals an event fd; the loop's epoll reports it and calls the device's external
//! handler; the handler enters its disk's gate and starts a task per request; tasks prepare I/O,
//! which the loop hands to the kernel once per turn; the ring's completions wake the tasks, and the
//! device tells the guest once per turn.
//!
//! # Example
//! Work for a loop in another thread, and its result:
//! ```
//! use sluice_aio::{EventLoop, IoThread, LoopConfig};
//!
//! let thread = IoThread::spawn("io0", LoopConfig::default())?;
//! let context = thread.context().clone();
//! let mut main = EventLoop::new("main", &LoopConfig::default())?;
//! let answer = main.run_until(async move { context.call(|| async { 6 * 7 }).await })?;
//! assert_eq!(answer, Ok(42));
//! # Ok::<(), sluice_aio::LoopError>(())
//! ```

#[cfg(not(loom))]
pub mod bottom_half;
#[cfg(not(loom))]
pub mod buffer;
pub mod clock;
#[cfg(not(loom))]
pub mod context;
#[cfg(not(loom))]
mod counters;
#[cfg(not(loom))]
pub mod current;
#[cfg(not(loom))]
mod engine;
#[cfg(not(loom))]
pub mod event_loop;
#[cfg(not(loom))]
pub mod fd;
pub mod gate;
#[cfg(not(loom))]
pub mod iothread;
#[cfg(not(loom))]
pub mod polling;
#[cfg(not(loom))]
pub mod pooled;
mod stats;
mod sync;
#[cfg(not(loom))]
pub mod task;
#[cfg(not(loom))]
pub mod timer;
#[cfg_attr(
    all(loom, not(test)),
    expect(dead_code, reason = "under loom only the models use it")
)]
mod wake;

#[cfg(not(loom))]
pub use bottom_half::{BottomHalf, BottomHalfHandle};
#[cfg(not(loom))]
pub use buffer::{GuestRam, IoBuffer};
pub use clock::Clock;
#[cfg(not(loom))]
pub use context::AioContext;
#[cfg(not(loom))]
pub use counters::LoopStats;
#[cfg(not(loom))]
pub use engine::EngineKind;
#[cfg(not(loom))]
pub use event_loop::{EventLoop, LoopConfig, LoopError};
#[cfg(not(loom))]
pub use fd::{Cause, FdHandler, Source};
pub use gate::{Cancelled, Gate, Token};
#[cfg(not(loom))]
pub use iothread::IoThread;
#[cfg(not(loom))]
pub use pooled::PooledFuture;
#[cfg(not(loom))]
pub use polling::Polling;
pub use stats::Histogram;
#[cfg(not(loom))]
pub use task::JoinHandle;
