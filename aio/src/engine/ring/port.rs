//! The seam between the ring's logic and the kernel.
//!
//! [`super::Ring`] decides what to submit, when to ask again and when to give up; a [`Port`] does
//! it. In the program the port is a [`KernelPort`]; the tests put one in its place that answers
//! from a script, because a kernel can't be made to say `EBUSY` at will. Used only by the thread of
//! the loop.

#![expect(
    unsafe_code,
    reason = "submission entries carry raw addresses; engine::table has the argument"
)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use io_uring::types::{CancelBuilder, Fd, FsyncFlags, Timespec};
use io_uring::{EnterFlags, IoUring, Probe, opcode, squeue};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags};

use super::entrance::Entrance;
use super::refusal::{Cause, Refusal};
use crate::engine::operation::{Memory, Request};

/// Submission entries of one ring. More operations than this need more than one call per turn.
const ENTRIES: u32 = 256;

/// What the ring needs of the kernel.
pub(super) trait Port {
    /// Puts a request into the submission queue; false if the queue is full. The kernel does not
    /// see it before [`Port::submit`].
    fn push(&mut self, user_data: u64, request: &Request) -> bool;

    /// Hands the submission queue to the kernel: one `io_uring_enter`. Returns how many entries it
    /// has taken, the oldest first; the rest stay in the queue.
    fn submit(&mut self) -> io::Result<usize>;

    /// As [`Port::submit`], and sleeps until there is a completion, in the same call.
    fn submit_and_wait(&mut self) -> io::Result<usize>;

    /// The oldest completion that has not been taken yet: user data and result.
    fn pop(&mut self) -> Option<(u64, i32)>;

    /// Whether there is a completion to take or to be delivered; learnt without a system call.
    fn has_completed(&mut self) -> bool;

    /// Whether the kernel holds completions that it delivers only when it is entered.
    fn needs_flush(&mut self) -> bool;

    /// Lets the kernel deliver such completions; submits nothing.
    fn flush(&mut self) -> io::Result<()>;

    /// Asks the kernel to cancel all that is in flight; what it can cancel completes so.
    fn cancel_all(&mut self) -> io::Result<()>;

    /// Sleeps until there are completions, at most `limit`; false if that has passed. Submits
    /// nothing.
    fn wait(&mut self, limit: Duration) -> io::Result<bool>;

    /// Makes [`Port::alarm`] readable in `delay` of real time: what the kernel is
    /// short of, it is short of in real time, whatever clock the loop has.
    fn set_alarm(&mut self, delay: Duration) -> io::Result<()>;

    /// Whether the alarm has rung since it was set; takes it back.
    fn take_alarm(&mut self) -> bool;

    /// Readable when the alarm has rung.
    fn alarm(&self) -> Option<BorrowedFd<'_>>;

    /// Says whether somebody is about to sleep for [`Port::completions`], and not in
    /// [`Port::submit_and_wait`]; forgets what was told before. What has completed before the call,
    /// [`Port::has_completed`] knows.
    fn tell(&mut self, sleeps: bool) -> io::Result<()>;

    /// Readable when there are completions, if somebody has asked to be told.
    fn completions(&self) -> Option<BorrowedFd<'_>>;
}

/// A ring of this kernel.
pub(super) struct KernelPort {
    /// Of `ring`, so it goes first.
    entrance: Entrance,
    ring: IoUring,
    alarm: OwnedFd,
    bell: Option<Bell>,
}

/// What a ring rings whose own descriptor does not tell of completions.
struct Bell {
    fd: OwnedFd,
    /// The kernel knows of it, which costs something with every completion.
    connected: bool,
}

impl KernelPort {
    /// Sets up a ring and convinces itself that it works; see [`LoopConfig::alone`].
    ///
    /// [`LoopConfig::alone`]: crate::LoopConfig::alone
    ///
    /// # Errors
    /// Why there can be none here.
    pub(super) fn new(alone: bool) -> Result<Self, Refusal> {
        let (ring, deferring) = set_up(alone).map_err(|error| Refusal::of(&error))?;
        let bell = if deferring {
            let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
            let fd = eventfd(0, flags).map_err(|errno| Refusal::of(&errno.into()))?;
            Some(Bell {
                fd,
                connected: false,
            })
        } else {
            None
        };
        let alarm = rustix::time::timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
        )
        .map_err(|errno| Refusal::of(&errno.into()))?;
        // Only a ring that defers belongs to one thread for ever. Nothing fails between this and the
        // port, which alone drops the two in their order.
        let entrance = if deferring {
            Entrance::by_place(ring.as_raw_fd())
        } else {
            Entrance::by_descriptor(ring.as_raw_fd())
        };
        let mut port = Self {
            entrance,
            ring,
            bell,
            alarm,
        };
        port.check()?;
        Ok(port)
    }

    /// Refuses a kernel that lacks what we use. A sandbox may allow the first of the three system
    /// calls only, so the other two are tried.
    fn check(&mut self) -> Result<(), Refusal> {
        let mut probe = Probe::new();
        self.ring
            .submitter()
            .register_probe(&mut probe)
            .map_err(|error| Refusal::of(&error))?;
        let needed = [
            opcode::Read::CODE,
            opcode::Write::CODE,
            opcode::Readv::CODE,
            opcode::Writev::CODE,
            opcode::Fsync::CODE,
            opcode::Fallocate::CODE,
        ];
        let parameters = self.ring.params();
        // The segments of a scattered buffer are the kernel's only until it has taken the entry,
        // and no completion may be lost.
        let complete = needed.iter().all(|code| probe.is_supported(*code))
            && parameters.is_feature_submit_stable()
            && parameters.is_feature_nodrop();
        if !complete {
            return Err(Refusal::because(Cause::OldKernel));
        }
        self.flush().map_err(|error| Refusal::of(&error))
    }

    /// Hands over what is in the submission queue, and sleeps until there are `wanted` completions.
    fn enter(&mut self, wanted: u32) -> io::Result<usize> {
        let queue = self.ring.submission();
        // Both deliver completions only to who asks for them.
        let flags = if wanted > 0 || queue.cq_overflow() || queue.taskrun() {
            EnterFlags::GETEVENTS
        } else {
            EnterFlags::empty()
        };
        let entries = queue.len();
        drop(queue);
        self.entrance.enter(entries, wanted, flags)
    }

    fn completion_fd(&self) -> BorrowedFd<'_> {
        if let Some(bell) = &self.bell {
            return bell.fd.as_fd();
        }
        let raw = self.ring.as_raw_fd();
        // SAFETY: the ring lives as long as `self`, which the result borrows.
        unsafe { BorrowedFd::borrow_raw(raw) }
    }
}

/// Work that a completion leaves to the loop's thread is deferred to the calls in which the loop
/// asks for completions if it is `alone`: that saves a twentieth of the time. But then an epoll
/// instance that watches the ring is not told of completions, and a nested loop would sleep through
/// them. Returns whether it is deferred.
fn set_up(alone: bool) -> io::Result<(IoUring, bool)> {
    let mut builder = IoUring::builder();
    builder
        .setup_submit_all()
        .setup_taskrun_flag()
        .setup_single_issuer();
    let mut deferring = builder.clone();
    deferring.setup_defer_taskrun();
    builder.setup_coop_taskrun();
    // Linux before 6.1 does not know the one, Linux before 6.0 none of these: they only save time.
    let unknown = |error: &io::Error| error.raw_os_error() == Some(libc::EINVAL);
    let attempts = [(alone, deferring, true), (true, builder, false)];
    for (wanted, builder, defers) in attempts {
        if !wanted {
            continue;
        }
        match builder.build(ENTRIES) {
            Err(error) if unknown(&error) => {}
            other => return Ok((other?, defers)),
        }
    }
    Ok((IoUring::new(ENTRIES)?, false))
}

impl Port for KernelPort {
    fn push(&mut self, user_data: u64, request: &Request) -> bool {
        let entry = entry_for(request).user_data(user_data);
        // SAFETY: everything the entry points to is owned by the operation that the request was
        // made of, which stays in its table until the kernel is done with it.
        unsafe { self.ring.submission().push(&entry) }.is_ok()
    }

    fn submit(&mut self) -> io::Result<usize> {
        self.enter(0)
    }

    fn submit_and_wait(&mut self) -> io::Result<usize> {
        self.enter(1)
    }

    fn pop(&mut self) -> Option<(u64, i32)> {
        let entry = self.ring.completion().next()?;
        Some((entry.user_data(), entry.result()))
    }

    fn has_completed(&mut self) -> bool {
        !self.ring.completion().is_empty() || self.needs_flush()
    }

    fn needs_flush(&mut self) -> bool {
        let queue = self.ring.submission();
        queue.cq_overflow() || queue.taskrun()
    }

    fn flush(&mut self) -> io::Result<()> {
        self.entrance.enter(0, 0, EnterFlags::GETEVENTS).map(drop)
    }

    fn cancel_all(&mut self) -> io::Result<()> {
        // Not by an entry: the submission queue may hold what shall never be submitted. A timeout
        // of nothing, for we wait ourselves.
        let everything = CancelBuilder::any().all();
        let submitter = self.ring.submitter();
        submitter.register_sync_cancel(Some(Timespec::new()), everything)
    }

    fn wait(&mut self, limit: Duration) -> io::Result<bool> {
        let limit = rustix::time::Timespec {
            tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(limit.subsec_nanos()),
        };
        self.tell(true)?;
        if self.has_completed() {
            self.flush()?;
            return Ok(true);
        }
        let completions = self.completion_fd();
        let mut fds = [PollFd::new(&completions, PollFlags::IN)];
        let ready = match rustix::event::poll(&mut fds, Some(&limit)) {
            Ok(ready) => ready > 0,
            // Completions interrupt the wait in order to be delivered.
            Err(rustix::io::Errno::INTR) => true,
            Err(errno) => return Err(errno.into()),
        };
        self.flush()?;
        Ok(ready)
    }

    fn set_alarm(&mut self, delay: Duration) -> io::Result<()> {
        let zero = rustix::time::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let value = rustix::time::Timespec {
            tv_sec: i64::try_from(delay.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(delay.subsec_nanos()),
        };
        let spec = Itimerspec {
            it_interval: zero,
            it_value: value,
        };
        rustix::time::timerfd_settime(&self.alarm, TimerfdTimerFlags::empty(), &spec)?;
        Ok(())
    }

    fn take_alarm(&mut self) -> bool {
        let mut count = [0; 8];
        rustix::io::read(&self.alarm, &mut count).is_ok()
    }

    fn alarm(&self) -> Option<BorrowedFd<'_>> {
        Some(self.alarm.as_fd())
    }

    fn tell(&mut self, sleeps: bool) -> io::Result<()> {
        let Some(bell) = &mut self.bell else {
            return Ok(());
        };
        if bell.connected {
            let mut count = [0; 8];
            // It may not have been rung.
            let _ = rustix::io::read(&bell.fd, &mut count);
        }
        if bell.connected != sleeps {
            let submitter = self.ring.submitter();
            if sleeps {
                submitter.register_eventfd(bell.fd.as_raw_fd())?;
            } else {
                submitter.unregister_eventfd()?;
            }
            bell.connected = sleeps;
        }
        Ok(())
    }

    fn completions(&self) -> Option<BorrowedFd<'_>> {
        Some(self.completion_fd())
    }
}

/// `POLLIN` of poll(2), in the width that an entry has.
const POLLIN: u32 = 1;

fn entry_for(request: &Request) -> squeue::Entry {
    let entry = match *request {
        Request::Read {
            fd, offset, memory, ..
        } => match memory {
            Memory::One { base, len } => {
                opcode::Read::new(Fd(fd), base, len).offset(offset).build()
            }
            Memory::Many { vectors, count } => opcode::Readv::new(Fd(fd), vectors, count)
                .offset(offset)
                .build(),
        },
        Request::Write {
            fd, offset, memory, ..
        } => match memory {
            Memory::One { base, len } => {
                opcode::Write::new(Fd(fd), base, len).offset(offset).build()
            }
            Memory::Many { vectors, count } => opcode::Writev::new(Fd(fd), vectors, count)
                .offset(offset)
                .build(),
        },
        Request::Fsync { fd } => opcode::Fsync::new(Fd(fd)).build(),
        Request::Fdatasync { fd } => opcode::Fsync::new(Fd(fd))
            .flags(FsyncFlags::DATASYNC)
            .build(),
        Request::Fallocate {
            fd,
            mode,
            offset,
            len,
        } => opcode::Fallocate::new(Fd(fd), len)
            .offset(offset)
            .mode(mode)
            .build(),
        // The engine serves none (`Engine::serves`).
        Request::Discard { .. } => opcode::Nop::new().build(),
        Request::Poll { fd } => opcode::PollAdd::new(Fd(fd), POLLIN).build(),
    };
    entry.flags(flags_for(request))
}

/// Whether the kernel tries a request in the call that submits it, before a thread of its own does.
fn flags_for(request: &Request) -> squeue::Flags {
    match request {
        Request::Read { waits: true, .. } | Request::Write { waits: true, .. } => {
            squeue::Flags::ASYNC
        }
        _ => squeue::Flags::empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_that_ends_gives_its_place_back() {
        /// More than a thread has places (`IO_RINGFD_REG_MAX` is 16).
        const RINGS: usize = 40;
        for number in 0..RINGS {
            let port = match KernelPort::new(true) {
                Ok(port) => port,
                Err(refusal) => return println!("SKIPPED: no ring here: {refusal}"),
            };
            if port.bell.is_none() {
                return println!("SKIPPED: this kernel has no ring of a single thread");
            }
            assert!(port.entrance.has_place(), "no place for ring {number}");
        }
    }

    #[test]
    fn a_transfer_that_waits_is_marked_for_the_kernels_threads() {
        let one = Memory::One {
            base: std::ptr::null_mut(),
            len: 0,
        };
        let many = Memory::Many {
            vectors: std::ptr::null(),
            count: 0,
        };
        for (memory, waits) in [(one, false), (one, true), (many, false), (many, true)] {
            let read = Request::Read {
                fd: 0,
                offset: 0,
                waits,
                memory,
            };
            let write = Request::Write {
                fd: 0,
                offset: 0,
                waits,
                memory,
            };
            for request in [read, write] {
                // Nothing else tells of an entry's flags.
                let entry = format!("{:?}", entry_for(&request));
                let flags = if waits {
                    squeue::Flags::ASYNC.bits()
                } else {
                    0
                };
                assert!(entry.contains(&format!("flags: {flags},")), "{entry}");
            }
        }
    }
}
