//! The io_uring engine of one loop.
//!
//! Operations that are started wait in a list; [`Engine::submit`], once per turn, puts them into
//! the submission queue and enters the kernel once for all of them (once for every queue full of
//! them). An operation leaves the list only when the kernel says that it has taken it, so what was
//! put into the queue and not taken can still be served by somebody else.
//!
//! # Sleeping
//! A loop that waits for operations sleeps in the very call that submits them: half the system calls
//! of a loop that submits and then waits. That the loop's other events wake it as well is an
//! entry in the ring that polls the loop's epoll instance; when it completes, there are some, and
//! the next sleep renews it. With nothing in flight the loop sleeps in epoll, which is cheaper then.
//! The ring of a loop that is alone in its thread defers work to these calls, which is cheaper; if
//! such a loop must sleep elsewhere all the same, the ring rings a bell ([`Port::tell`]).
//!
//! # When the kernel refuses
//! * The submission queue is full: enter, go on; nobody notices.
//! * The completion queue overflows: the kernel keeps the rest and is asked for it; nothing is
//!   lost (`IORING_FEAT_NODROP` is required).
//! * `EINTR`: at once again.
//! * `EAGAIN`, `EBUSY`: the kernel lacks memory, or has completions to deliver first. Nothing is
//!   submitted until a completion arrives or an alarm rings: after 1 ms, then 2, 4, … up to 100. The
//!   loop sleeps meanwhile. After [`MAX_STALLS`] such answers without any progress between them
//!   (four to five seconds), or at once after any other error, the ring *retires*: it takes nothing
//!   any more, what it has not submitted goes to the worker threads, and what is in flight is
//!   awaited as ever. No request fails for it; the log has one line.
//! * One operation completes with `EAGAIN`: that one waits for the alarm, the others do not. After
//!   [`MAX_TRIES`](super::operation::MAX_TRIES) times it fails with `EAGAIN`.
//!
//! # The end
//! What was not submitted never is. The kernel is asked to cancel what is in flight: reads of pipes
//! and work that only waits for a kernel thread end so (Linux 6.0 and later); a transfer that a disk
//! already works on can't be cancelled and is awaited. If nothing at all ends for the time given to
//! [`Engine::finish`], the ring gives up, and the table leaks what the kernel may still touch. The
//! poll of the loop's events goes with the ring, whose descriptor is closed next.

mod entrance;
mod port;
mod refusal;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

use super::operation::{Next, OperationKind, Request};
use super::table::{Key, Table};
use super::{Engine, cancelled};
use port::{KernelPort, Port};
pub(super) use refusal::Refusal;

/// Refusals in a row after which the ring retires.
const MAX_STALLS: u32 = 50;

/// The longest pause after a refusal.
const MAX_DELAY: Duration = Duration::from_millis(100);

/// `EINTR`s in a row after which it counts as a refusal.
const MAX_INTERRUPTIONS: u32 = 16;

/// The pause after so many refusals (from 1) in a row.
fn delay(refusals: u32) -> Duration {
    const FIRST: Duration = Duration::from_millis(1);
    let doublings = refusals.saturating_sub(1).min(u32::BITS - 1);
    FIRST.saturating_mul(1 << doublings).min(MAX_DELAY)
}

/// See the [module](self). Used only by the thread of its loop.
struct Ring<P> {
    port: P,
    /// What the kernel has not taken yet, oldest first; the first [`Ring::pushed`] of them are in
    /// the submission queue already.
    waiting: VecDeque<Key>,
    pushed: usize,
    /// What waits for the alarm.
    later: Vec<Key>,
    /// Operations that the kernel has. The poll of the loop's events is none: it owns no memory, and
    /// nobody awaits it.
    in_flight: usize,
    /// The loop's events are polled ([`Key::NONE`] waits or is in flight): their descriptor.
    watched: Option<RawFd>,
    /// The poll has completed: there may be events.
    events: bool,
    /// Refusals since the last progress.
    stalls: u32,
    /// Nothing is submitted before the next progress or alarm.
    stalled: bool,
    alarm_set: bool,
    retired: bool,
}

/// A ring of this kernel; `alone` as in [`LoopConfig`](crate::LoopConfig::alone).
///
/// # Errors
/// Why there can be none here.
pub(super) fn open(alone: bool) -> Result<Box<dyn Engine>, Refusal> {
    Ok(Box::new(Ring::with_port(KernelPort::new(alone)?)))
}

impl<P: Port> Ring<P> {
    fn with_port(port: P) -> Self {
        Self {
            port,
            waiting: VecDeque::new(),
            pushed: 0,
            later: Vec::new(),
            in_flight: 0,
            watched: None,
            events: false,
            stalls: 0,
            stalled: false,
            alarm_set: false,
            retired: false,
        }
    }

    /// What to ask the kernel for a key.
    fn request(&self, key: Key, table: &mut Table) -> Option<Request> {
        match self.watched {
            Some(fd) if key == Key::NONE => Some(Request::Poll { fd }),
            _ => table.request(key),
        }
    }

    /// Puts what waits into the submission queue while there is room.
    fn fill(&mut self, table: &mut Table) {
        while let Some(&key) = self.waiting.get(self.pushed) {
            let Some(request) = self.request(key, table) else {
                self.waiting.remove(self.pushed);
                continue;
            };
            if !self.port.push(key.to_user_data(), &request) {
                break;
            }
            self.pushed += 1;
        }
    }

    /// Takes note of what the kernel has taken. None is a refusal, unless nothing was offered.
    fn note_taken(&mut self, taken: usize) -> io::Result<()> {
        if taken == 0 && self.pushed > 0 {
            return Err(io::Error::from_raw_os_error(libc::EAGAIN));
        }
        let taken = taken.min(self.pushed);
        let operations = self.waiting.drain(..taken);
        self.in_flight += operations.filter(|key| *key != Key::NONE).count();
        self.pushed -= taken;
        if taken > 0 {
            self.stalls = 0;
        }
        Ok(())
    }

    fn hand_over(&mut self, table: &mut Table) -> io::Result<()> {
        let mut interruptions = 0;
        loop {
            self.fill(table);
            if self.pushed == 0 {
                return Ok(());
            }
            let answer = self.port.submit().and_then(|taken| self.note_taken(taken));
            let Err(error) = answer else { continue };
            match error.raw_os_error() {
                Some(libc::EINTR) if interruptions < MAX_INTERRUPTIONS => interruptions += 1,
                Some(libc::EINTR | libc::EAGAIN | libc::EBUSY) if self.stalls < MAX_STALLS => {
                    self.stalls += 1;
                    self.stalled = true;
                    return self.set_alarm(delay(self.stalls));
                }
                _ => return Err(error),
            }
        }
    }

    /// Has the alarm rung in `delay`, or when it was to ring before.
    fn set_alarm(&mut self, delay: Duration) -> io::Result<()> {
        if !self.alarm_set {
            self.port.set_alarm(delay)?;
            self.alarm_set = true;
        }
        Ok(())
    }

    /// Takes all completions that are in the queue; returns how many.
    fn collect(&mut self, table: &mut Table) -> usize {
        let mut count = 0;
        while let Some((user_data, result)) = self.port.pop() {
            count += 1;
            let Some(key) = Key::from_user_data(user_data) else {
                continue;
            };
            if key == Key::NONE {
                self.watched = None;
                self.events = true;
                continue;
            }
            self.in_flight = self.in_flight.saturating_sub(1);
            let answer = usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result));
            match table.advance(key, answer) {
                None => {}
                Some(Next::AtOnce) => self.waiting.push_back(key),
                Some(Next::Later(tries)) => {
                    self.later.push(key);
                    // Without an alarm it would wait for ever.
                    if self.set_alarm(delay(tries)).is_err() {
                        self.waiting.extend(self.later.drain(..));
                    }
                }
            }
        }
        if count > 0 {
            // There is room again for what was refused.
            self.stalls = 0;
            self.stalled = false;
        }
        count
    }

    /// [`Engine::sleep`] but for what must be told if it does not sleep.
    fn submit_and_sleep(&mut self, events: BorrowedFd<'_>, table: &mut Table) -> Option<bool> {
        let idle = self.waiting.is_empty() && !self.is_busy();
        if idle || self.stalled || self.retired || self.alarm_set {
            return None;
        }
        if self.watched.is_none() {
            self.watched = Some(events.as_raw_fd());
            self.waiting.push_back(Key::NONE);
        }
        self.fill(table);
        if self.pushed < self.waiting.len() {
            // More than one call is needed anyway.
            return None;
        }
        // This call needs no telling, which has its price; but it may be told all the same.
        drop(self.port.tell(false));
        let answer = self.port.submit_and_wait();
        // An error, one of sleeping or one of submitting, shows itself to whoever submits next.
        let answer = answer.and_then(|taken| self.note_taken(taken));
        if let Err(error) = answer
            && error.kind() != io::ErrorKind::Interrupted
        {
            return None;
        }
        self.collect(table);
        Some(std::mem::take(&mut self.events))
    }

    /// Retires; returns what the kernel has not taken.
    fn surrender(&mut self) -> Vec<Key> {
        // What is in the submission queue stays there; nobody submits it any more.
        self.retired = true;
        self.pushed = 0;
        let later = self.later.drain(..);
        let all = self.waiting.drain(..).chain(later);
        all.filter(|key| *key != Key::NONE).collect()
    }

    /// Forgets what the kernel has not taken, and never gives it to the kernel.
    fn drop_waiting(&mut self, table: &mut Table) {
        for key in self.surrender() {
            table.finish(key, Err(cancelled()));
        }
    }
}

impl<P: Port> Engine for Ring<P> {
    fn alarm(&self) -> Option<BorrowedFd<'_>> {
        self.port.alarm()
    }

    fn completions(&self) -> Option<BorrowedFd<'_>> {
        self.port.completions()
    }

    fn serves(&self, kind: OperationKind) -> bool {
        // Discarding on a block device is a ring's command only since Linux 6.12.
        !self.retired && !matches!(kind, OperationKind::Discard { .. })
    }

    fn start(&mut self, key: Key, _table: &mut Table) {
        self.waiting.push_back(key);
    }

    fn submit(&mut self, table: &mut Table) -> Vec<Key> {
        if self.alarm_set && self.port.take_alarm() {
            self.alarm_set = false;
            self.stalled = false;
            self.waiting.extend(self.later.drain(..));
        }
        if self.retired {
            return self.surrender();
        }
        if self.stalled {
            return Vec::new();
        }
        let Err(error) = self.hand_over(table) else {
            return Vec::new();
        };
        tracing::error!(%error, "io_uring takes nothing any more; going on with worker threads");
        self.surrender()
    }

    fn is_retired(&self) -> bool {
        self.retired
    }

    fn has_work(&self) -> bool {
        !self.waiting.is_empty() && !self.stalled
    }

    fn is_busy(&self) -> bool {
        self.in_flight > 0
    }

    fn sleep(&mut self, events: BorrowedFd<'_>, table: &mut Table) -> Option<bool> {
        let slept = self.submit_and_sleep(events, table);
        let awaits = self.is_busy() || !self.waiting.is_empty();
        // The loop sleeps elsewhere. If the ring can't tell it there, the alarm does.
        if slept.is_none() && awaits && self.port.tell(true).is_err() {
            drop(self.set_alarm(MAX_DELAY));
        }
        slept
    }

    fn has_completed(&mut self) -> bool {
        self.port.has_completed()
    }

    fn reap(&mut self, table: &mut Table) {
        let mut flushed = false;
        loop {
            let count = self.collect(table);
            if (flushed && count == 0) || !self.port.needs_flush() {
                return;
            }
            if let Err(error) = self.port.flush() {
                tracing::debug!(%error, "overflowed completions stay in the kernel for now");
                return;
            }
            flushed = true;
        }
    }

    fn finish(&mut self, table: &mut Table, patience: Duration) {
        self.drop_waiting(table);
        self.reap(table);
        if self.is_busy()
            && let Err(error) = self.port.cancel_all()
        {
            tracing::debug!(%error, "not everything in flight can be cancelled");
        }
        loop {
            self.reap(table);
            self.drop_waiting(table);
            if !self.is_busy() {
                return;
            }
            match self.port.wait(patience) {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    tracing::error!(%error, "the ring can't be waited for");
                    return;
                }
            }
        }
    }
}
