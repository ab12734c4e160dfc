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
//! * [`Aside`] is a file that holds nobody when it is closed, however its file system hangs.
//!
//! # How a kick becomes a completion
//! 1. The guest rings: a store signals an event fd, or a vCPU thread gives the loop a task. The
//!    loop sleeps in the kernel and wakes; if it polls ([`polling`]) it has seen the request before
//!    the bell got through.
//! 2. The loop calls the device's *external* handler ([`fd`]), which starts one task for the request;
//!    the task lives until the request has ended ([`task`]).
//! 3. The request needs a token of its disk's [`Gate`], and while a drained section is open there is
//!    none. The task waits for it in the gate's queue, as in the example below; or the handler takes
//!    the token before it starts the task, and leaves the request in the guest's ring if it gets none.
//! 4. The task prepares I/O ([`current::read_at`] and others). The memory is the operation's from now
//!    on ([`buffer`]). At the end of the step *all* tasks' operations go to the kernel in one call.
//! 5. Completions appear in the ring's memory; the loop takes all that are there and wakes their
//!    tasks, which run in its next step.
//! 6. A task's last act is to put the answer where the guest looks, schedule the device's
//!    [`BottomHalf`] and drop the token. The bottom half interrupts the guest, once for all requests
//!    that ended in this step; and who waits for the disk to be idle sees one request less.
//!
//! [`event_loop`] says in which order this happens within a turn, and why nobody can starve. Tasks have no
//! priorities: what is ready is served in the order in which it became so.
//!
//! # Who may call what from where
//! | | in a task or handler | any other thread |
//! |---|---|---|
//! | everything in [`current`] | yes | panics: a mistake in the program |
//! | [`AioContext`] | yes | yes; never waits |
//! | [`BottomHalfHandle`] | yes | yes; never waits |
//! | [`Gate`], [`Token`] | yes | yes; waiting is a future |
//! | [`JoinHandle`], [`FdHandler`], [`BottomHalf`] | yes, in their own loop | can't be sent there |
//! | [`AioContext::call`] | awaits | gives a future: await it in a loop of one's own |
//! | blocking system calls | only within [`current::blocking`] | as one likes |
//! | [`EventLoop`] | no: loops are not nested in themselves | only its own thread, between turns |
//! | dropping an [`IoThread`] | in another loop's [`current::blocking`]; in its own it can't wait | yes; waits for the loop's end |
//!
//! # How to write a device
//! ```
//! use std::rc::Rc;
//! use std::sync::Arc;
//!
//! use futures_util::StreamExt as _;
//! use rustix::event::{EventfdFlags, eventfd};
//! use sluice_aio::{Aside, Clock, EngineKind, EventLoop, Gate, IoBuffer, LoopConfig, Source, current};
//!
//! // What a device has: a doorbell that the guest rings, a disk, and the disk's gate.
//! let doorbell = Arc::new(eventfd(0, EventfdFlags::NONBLOCK)?);
//! let disk = Arc::new(Aside::new(tempfile::tempfile()?, "disk0.img"));
//! let gate = Gate::new("disk0", Clock::real());
//!
//! let mut event_loop = EventLoop::new("io0", &LoopConfig::default())?;
//! event_loop.run_until(async move {
//!     let (line, mut interrupts) = futures_channel::mpsc::unbounded();
//!     let interrupt = current::bottom_half(move || drop(line.unbounded_send("done")));
//!     let interrupt = Rc::new(interrupt);
//!     let bell = Arc::clone(&doorbell);
//!     let _handler = current::add_fd(&doorbell, Source::External, move || {
//!         // Forget the rings so far; what is rung from now on calls the handler again.
//!         drop(rustix::io::read(&*bell, &mut [0; 8]));
//!         let (gate, disk, interrupt) = (gate.clone(), disk.clone(), interrupt.clone());
//!         current::spawn_local(async move {
//!             // Waits while the disk is drained; an error means that it is gone.
//!             let Ok(token) = gate.enter().await else { return };
//!             let data = IoBuffer::copied_from(b"a sector, or so");
//!             let written = current::write_at(EngineKind::IoUring, &disk, 0, data).await;
//!             assert!(written.is_ok());
//!             interrupt.schedule();
//!             drop(token);
//!         })
//!         .detach();
//!     })?;
//!     rustix::io::write(&*doorbell, &1_u64.to_ne_bytes())?;
//!     assert_eq!(interrupts.next().await, Some("done"));
//!     Ok::<_, std::io::Error>(())
//! })??;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//! A device whose requests lie in memory, where they can be seen without a system call, registers
//! with [`current::add_fd_with_look`], and gains most from a loop that polls.
//!
//! # How to write an engine
//! An engine is private to this crate: a type that implements the trait `Engine` in
//! `aio/src/engine/mod.rs`, where the whole contract is; `threads.rs` beside it is the shorter example.
//! In short: `start` takes the key of an operation in the loop's table, which owns file and memory, and
//! each key must end exactly once, when nobody touches that memory any more. `submit` hands over what
//! was started, once per step; `reap` tells the table what has ended. Neither blocks, allocates in steady
//! state, or calls foreign code. While operations are under way one of its descriptors, or the loop's
//! bell, must wake the loop that sleeps; and `finish` comes to an end whatever the kernel does. A line in
//! `ENGINES` of `aio/tests/event_loop/support.rs` runs every I/O test with it.

#[cfg(not(loom))]
pub mod aside;
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
mod patience;
#[cfg(not(loom))]
pub mod polling;
#[cfg(not(loom))]
pub mod pooled;
#[cfg_attr(
    all(loom, not(test)),
    expect(dead_code, reason = "under loom only the models use it")
)]
mod queued;
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
pub use aside::Aside;
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
pub use engine::{EngineKind, Route};
#[cfg(not(loom))]
pub use event_loop::{EventLoop, LoopConfig, LoopError};
#[cfg(not(loom))]
pub use fd::{Cause, FdHandler, Source};
pub use gate::{Cancelled, Gate, Token};
#[cfg(not(loom))]
pub use iothread::IoThread;
#[cfg(not(loom))]
pub use patience::EndPatience;
#[cfg(not(loom))]
pub use polling::Polling;
#[cfg(not(loom))]
pub use pooled::PooledFuture;
pub use stats::Histogram;
#[cfg(not(loom))]
pub use task::JoinHandle;
