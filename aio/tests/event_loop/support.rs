//! What several of these tests need.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use sluice_aio::{Aside, Clock, EngineKind, EventLoop, GuestRam, LoopConfig, Polling};
use vm_memory::GuestAddress;

/// Both engines; every I/O test runs with each.
pub(crate) const ENGINES: [EngineKind; 2] = [EngineKind::IoUring, EngineKind::Threads];

/// A page of memory, in bytes.
pub(crate) const PAGE: usize = 4096;

/// A window that is open for ever once work came twice within it.
pub(crate) const ENDLESS: Polling = Polling {
    max: Duration::from_secs(3600),
    grow: 1 << 40,
    shrink: 0,
};

/// Whether the kernel lets us have a ring; tests of what only a ring can do say when it does not.
pub(crate) fn has_ring() -> bool {
    let ring = io_uring::IoUring::new(2);
    if let Err(error) = &ring {
        println!("SKIPPED: this host refuses io_uring: {error}");
    }
    ring.is_ok()
}

pub(crate) fn event_loop() -> EventLoop {
    EventLoop::new("test", &LoopConfig::default()).unwrap()
}

/// A loop as an iothread's.
pub(crate) fn alone_loop(polling: Polling) -> EventLoop {
    let config = LoopConfig {
        alone: true,
        polling,
        ..LoopConfig::default()
    };
    EventLoop::new("test", &config).unwrap()
}

/// Every engine with a loop of each kind that uses it in a way of its own: a ring may be entered
/// otherwise where one thread alone does so.
pub(crate) fn ways() -> [(EngineKind, EventLoop); 3] {
    [
        (EngineKind::IoUring, event_loop()),
        (EngineKind::IoUring, alone_loop(Polling::OFF)),
        (EngineKind::Threads, event_loop()),
    ]
}

/// A loop whose time only moves by hand.
pub(crate) fn manual_loop() -> (EventLoop, Clock) {
    let clock = Clock::manual();
    let config = LoopConfig {
        clock: clock.clone(),
        ..LoopConfig::default()
    };
    (EventLoop::new("test", &config).unwrap(), clock)
}

/// Guest memory of so many pages.
pub(crate) fn ram(pages: usize) -> Arc<GuestRam> {
    Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), pages * PAGE)]).unwrap())
}

/// Runs `inside` in the loop at once.
pub(crate) fn within<T: 'static>(
    event_loop: &mut EventLoop,
    inside: impl FnOnce() -> T + 'static,
) -> T {
    event_loop.run_until(async move { inside() }).unwrap()
}

/// Turns until nothing changes any more, without sleeping: enough for everything that needs
/// neither the kernel nor another thread.
pub(crate) fn settle(event_loop: &mut EventLoop) {
    for _ in 0..4 {
        event_loop.turn(Some(Duration::ZERO)).unwrap();
    }
}

/// Turns, sleeping for events, until `done`.
pub(crate) fn turn_until(event_loop: &mut EventLoop, mut done: impl FnMut() -> bool) {
    while !done() {
        event_loop.turn(None).unwrap();
    }
}

pub(crate) fn event_fd() -> Arc<OwnedFd> {
    Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap())
}

pub(crate) fn signal(fd: &OwnedFd) {
    rustix::io::write(fd, &1u64.to_ne_bytes()).unwrap();
}

/// Reads an event fd; 0 if it was not signalled.
pub(crate) fn consume(fd: &OwnedFd) -> u64 {
    let mut count = [0; 8];
    match rustix::io::read(fd, &mut count) {
        Ok(_) => u64::from_ne_bytes(count),
        Err(_) => 0,
    }
}

/// A pipe as (reading end, writing end).
pub(crate) fn pipe() -> (Arc<Aside<File>>, File) {
    let (reader, writer) = std::io::pipe().unwrap();
    let (reader, writer) = (OwnedFd::from(reader), OwnedFd::from(writer));
    (Arc::new(File::from(reader).into()), File::from(writer))
}

/// Waits until a thread of this process sleeps in the kernel.
pub(crate) fn until_asleep(thread: u32) {
    loop {
        let stat = fs::read_to_string(format!("/proc/self/task/{thread}/stat")).unwrap();
        // The state follows the name, which is in parentheses and may contain anything.
        if stat.rsplit_once(") ").unwrap().1.starts_with('S') {
            return;
        }
        std::thread::yield_now();
    }
}

pub(crate) fn thread_id() -> u32 {
    u32::try_from(rustix::thread::gettid().as_raw_nonzero().get()).unwrap()
}

/// Shows whether something that owns it was dropped.
pub(crate) fn canary() -> (Rc<()>, std::rc::Weak<()>) {
    let canary = Rc::new(());
    let weak = Rc::downgrade(&canary);
    (canary, weak)
}
