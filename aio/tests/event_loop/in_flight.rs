//! What becomes of memory that the kernel works on when a future, a task or a whole loop is dropped.

use std::fs::File;
use std::future::Future;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::{Arc, Weak, mpsc};
use std::task::{Context, Poll, Waker};
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::{Errno, ReadWriteFlags};
use rustix::ioctl::{self, Updater, opcode};
use rustix::mm::{UserfaultfdFlags, userfaultfd};
use sluice_aio::{EngineKind, EventLoop, GuestRam, IoBuffer, JoinHandle, Polling, Route, current};
use vm_memory::{GuestAddress, GuestMemoryBackend};

use crate::support::{
    PAGE, alone_loop, event_loop, has_ring, pipe, ram, settle, thread_id, turn_until, until_asleep,
    ways, within,
};

/// The memory of a guest whose every owner but the kernel is gone.
fn read_in_flight(event_loop: &mut EventLoop) -> (Weak<GuestRam>, File) {
    let (reader, writer) = pipe();
    let ram = ram(1);
    let watch = Arc::downgrade(&ram);
    let buffer = IoBuffer::from_guest(&ram, &[(GuestAddress(0), 1)]).unwrap();
    drop(ram);
    let task = within(event_loop, move || {
        current::spawn_local(async move {
            current::read_at(EngineKind::IoUring, &reader, 0, buffer).await
        })
    });
    settle(event_loop);
    task.cancel();
    settle(event_loop);
    (watch, writer)
}

#[test]
fn a_dropped_operation_keeps_its_memory_until_the_kernel_is_done() {
    if !has_ring() {
        return;
    }
    let mut event_loop = event_loop();
    let (memory, mut writer) = read_in_flight(&mut event_loop);
    assert!(memory.upgrade().is_some(), "freed under the kernel's feet");
    writer.write_all(&[7]).unwrap();
    turn_until(&mut event_loop, || memory.strong_count() == 0);
}

#[test]
fn the_end_of_a_loop_cancels_what_would_never_end() {
    if !has_ring() {
        return;
    }
    for mut event_loop in [event_loop(), alone_loop(Polling::OFF)] {
        // Nobody ever writes: the pipe's other end is open to the last.
        let (memory, writer) = read_in_flight(&mut event_loop);
        assert!(memory.upgrade().is_some(), "freed under the kernel's feet");
        drop(event_loop);
        assert!(memory.upgrade().is_none(), "leaked");
        drop(writer);
    }
}

#[test]
fn an_operation_that_outlives_its_loop_ends_with_an_error() {
    if !has_ring() {
        return;
    }
    let mut event_loop = event_loop();
    let (reader, _writer) = pipe();
    let byte = IoBuffer::alloc(1);
    let read = async move { current::read_at(EngineKind::IoUring, &reader, 0, byte).await };
    let mut read: Pin<Box<dyn Future<Output = io::Result<usize>>>> = Box::pin(read);
    let started = event_loop.run_until(std::future::poll_fn(move |cx| {
        let started = read.as_mut().poll(cx).is_pending();
        let taken = std::mem::replace(&mut read, Box::pin(std::future::pending()));
        Poll::Ready((started, taken))
    }));
    let (started, mut read) = started.unwrap();
    assert!(started);
    settle(&mut event_loop);
    drop(event_loop);
    let mut cx = Context::from_waker(Waker::noop());
    let Poll::Ready(Err(error)) = read.as_mut().poll(&mut cx) else {
        panic!("waits for a loop that is gone");
    };
    assert_eq!(error.raw_os_error(), Some(libc::ECANCELED));
}

/// Whose memory is not there before [`Withheld::give`]: the kernel has to wait in the middle of its
/// copy, with either engine, and for as long as a test likes (userfaultfd(2)).
struct Withheld {
    faults: OwnedFd,
    memory: Range,
}

/// `struct uffdio_range` of linux/userfaultfd.h: where it begins, and its length in bytes.
#[repr(C)]
#[derive(Clone, Copy)]
struct Range {
    start: u64,
    len: u64,
}

/// `struct uffdio_api`.
#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_register` and `struct uffdio_zeropage`: what is wanted, and what was done.
#[repr(C)]
struct Order {
    range: Range,
    mode: u64,
    done: i64,
}

/// `UFFDIO`, the type of the calls.
const UFFDIO: u8 = 0xaa;
/// `UFFD_API`, the only version.
const UFFD_API: u64 = 0xaa;
/// `UFFDIO_REGISTER_MODE_MISSING`
const MISSING: u64 = 1;
/// The length of a `struct uffd_msg`.
const MESSAGE: usize = 32;

impl Withheld {
    /// None if the system does not let us.
    #[expect(unsafe_code, reason = "the calls of userfaultfd(2)")]
    fn of(ram: &GuestRam) -> Option<Self> {
        // SAFETY: it has no preconditions but those of the calls below.
        let made = unsafe { userfaultfd(UserfaultfdFlags::CLOEXEC) };
        let faults = made
            .inspect_err(|error| println!("SKIPPED: no memory can be withheld here: {error}"))
            .ok()?;
        let mut api = Api {
            api: UFFD_API,
            features: 0,
            ioctls: 0,
        };
        // SAFETY: the call and its argument are those of linux/userfaultfd.h.
        unsafe {
            let call = Updater::<{ opcode::read_write::<Api>(UFFDIO, 0x3f) }, _>::new(&mut api);
            ioctl::ioctl(&faults, call).unwrap();
        }
        let start = ram.get_host_address(GuestAddress(0)).unwrap();
        let memory = Range {
            start: start.addr() as u64,
            len: PAGE as u64,
        };
        let withheld = Self { faults, memory };
        // SAFETY: as above; the page is nobody's but the test's, and not touched by it before it is given.
        unsafe { withheld.order::<{ opcode::read_write::<Order>(UFFDIO, 0) }>(MISSING) }.unwrap();
        Some(withheld)
    }

    /// # Safety
    /// `CALL` takes an [`Order`], and nothing is harmed by it.
    #[expect(unsafe_code, reason = "a call of userfaultfd(2)")]
    unsafe fn order<const CALL: ioctl::Opcode>(&self, mode: u64) -> rustix::io::Result<()> {
        let mut order = Order {
            range: self.memory,
            mode,
            done: 0,
        };
        // SAFETY: the caller's promise.
        unsafe { ioctl::ioctl(&self.faults, Updater::<CALL, _>::new(&mut order)) }
    }

    /// Waits until the kernel needs the memory.
    fn until_needed(&self) {
        let mut fds = [PollFd::new(&self.faults, PollFlags::IN)];
        while poll(&mut fds, None).is_err() {}
        let mut message = [0; MESSAGE];
        assert_eq!(rustix::io::read(&self.faults, &mut message), Ok(MESSAGE));
    }

    /// Lets the kernel go on. Whether there is such memory, only the kernel knows by now.
    #[expect(unsafe_code, reason = "a call of userfaultfd(2)")]
    fn give(&self) -> rustix::io::Result<()> {
        // SAFETY: it fills a page that is withheld with zeroes, or fails if there is none.
        unsafe { self.order::<{ opcode::read_write::<Order>(UFFDIO, 4) }>(0) }
    }
}

/// Whether reads of this file are made by another thread than that which submits them: otherwise the
/// loop itself would wait for the memory.
fn is_read_elsewhere(engine: EngineKind, file: &File) -> bool {
    let mut byte = [0];
    let mut room = [io::IoSliceMut::new(&mut byte)];
    let tried = rustix::io::preadv2(file, &mut room, 0, ReadWriteFlags::NOWAIT);
    engine == EngineKind::Threads || (has_ring() && tried == Err(Errno::OPNOTSUPP))
}

/// A read in the middle of which the kernel is, into memory that nobody else has any more.
struct Copying {
    memory: Weak<GuestRam>,
    withheld: Withheld,
    read: JoinHandle<io::Result<usize>>,
}

impl Copying {
    /// None if it can't be had here.
    fn begin(engine: EngineKind, event_loop: &mut EventLoop) -> Option<Self> {
        let file = File::from(memfd_create("source", MemfdFlags::CLOEXEC).unwrap());
        file.write_all_at(&[7; PAGE], 0).unwrap();
        let ram = ram(1);
        let withheld = Withheld::of(&ram)?;
        if !is_read_elsewhere(engine, &file) {
            println!("SKIPPED: the ring's reads of a file in memory are not made elsewhere");
            return None;
        }
        let memory = Arc::downgrade(&ram);
        let buffer = IoBuffer::from_guest(&ram, &[(GuestAddress(0), PAGE)]).unwrap();
        drop(ram);
        let read = within(event_loop, move || {
            current::spawn_local(async move {
                let route = Route::to(&file, engine);
                current::read_at(route, &Arc::new(file.into()), 0, buffer).await
            })
        });
        settle(event_loop);
        withheld.until_needed();
        Some(Self {
            memory,
            withheld,
            read,
        })
    }
}

#[test]
fn memory_into_which_the_kernel_copies_outlives_the_future() {
    for (engine, mut event_loop) in ways() {
        let Some(copying) = Copying::begin(engine, &mut event_loop) else {
            continue;
        };
        copying.read.cancel();
        settle(&mut event_loop);
        let owners = copying.memory.strong_count();
        assert_eq!(owners, 1, "freed under the kernel's feet");
        copying.withheld.give().unwrap();
        turn_until(&mut event_loop, || copying.memory.strong_count() == 0);
    }
}

#[test]
fn a_loop_that_is_dropped_waits_for_the_kernels_copy() {
    for (engine, mut event_loop) in ways() {
        let Some(copying) = Copying::begin(engine, &mut event_loop) else {
            continue;
        };
        let (last_task, ending) = mpsc::channel::<()>();
        within(&mut event_loop, move || {
            current::spawn_local(async move {
                let _last_task = last_task;
                std::future::pending::<()>().await;
            })
            .detach();
        });
        let Copying {
            memory, withheld, ..
        } = copying;
        let (watch, dropping) = (memory.clone(), thread_id());
        let giver = thread::spawn(move || {
            // The loop drops its tasks, and then waits.
            assert!(ending.recv().is_err());
            until_asleep(dropping);
            let owners = watch.strong_count();
            // A ring's copy may be broken off, which ends the wait; a worker's is made to its end.
            let gone_on = withheld.give();
            (owners, gone_on)
        });
        drop(event_loop);
        assert_eq!(memory.strong_count(), 0, "leaked");
        let (owners, gone_on) = giver.join().unwrap();
        if engine == EngineKind::Threads {
            assert_eq!(owners, 1, "freed under the kernel's feet");
            gone_on.unwrap();
        }
    }
}
