//! The limits of a disk: its membership in a throttle group.
//!
//! A guest's read or write waits for its turn after it has got its token, so what waits here is in
//! flight, and whoever waits for the disk to be idle must not wait for a timer: a section that
//! covers the disk lifts its limits ([`Unlimited`]), a device that settles and a disk that goes away
//! cancel what waits. Flushes and discards, which move no data, do not wait (as in QEMU).
//!
//! A disk joins and leaves a group inside a section of its own, when nobody is in a line.

#[cfg(test)]
mod tests;

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;

use super::{Account, Backend};
use crate::driver::BlockFuture;
use crate::driver::throttle::{Direction, ThrottleGroup, ThrottleMember};
use crate::error::Result;

/// Which limits such a request is subject to; none, if to none.
fn direction(kind: Account) -> Option<Direction> {
    match kind {
        Account::Read => Some(Direction::Read),
        Account::Write => Some(Direction::Write),
        Account::Flush | Account::Unmap => None,
    }
}

/// A backend's membership. Any thread; a disk without limits pays for looking whether it has any.
#[derive(Debug, Default)]
pub(super) struct Throttling {
    member: ArcSwapOption<ThrottleMember>,
    /// Whether there is a member: most requests look no further. Changes with it.
    limits: AtomicBool,
    /// How many sections have lifted the limits. Held while the member is exchanged.
    lifted: Mutex<usize>,
    /// The disk goes away: nobody is to wait any more.
    closed: AtomicBool,
}

impl Throttling {
    /// Whether requests may have to wait.
    pub(super) fn limits(&self) -> bool {
        self.limits.load(Ordering::Acquire)
    }

    /// Waits for the turn of a request of `bytes`. It is cancelled if the disk goes away, or if
    /// `given_up` says so when [`wake`](Self::wake) makes it look.
    ///
    /// # Errors
    /// Cancelled.
    pub(super) async fn admit(
        &self,
        kind: Account,
        bytes: u64,
        given_up: impl Fn() -> bool,
    ) -> Result<()> {
        let Some(direction) = direction(kind).filter(|_| self.limits()) else {
            return Ok(());
        };
        let Some(member) = self.member.load_full() else {
            return Ok(());
        };
        // Kept off the request's own future, which is there without limits too.
        BlockFuture::new(async move { self.queue(&member, direction, bytes, given_up).await }).await
    }

    async fn queue(
        &self,
        member: &ThrottleMember,
        direction: Direction,
        bytes: u64,
        given_up: impl Fn() -> bool,
    ) -> Result<()> {
        let is_cancelled = || self.closed.load(Ordering::Acquire) || given_up();
        let mut admission = member.admit(direction, bytes);
        poll_fn(|cx| {
            if is_cancelled() {
                return Poll::Ready(Err(sluice_aio::Cancelled.into()));
            }
            if Pin::new(&mut admission).poll(cx).is_ready() {
                return Poll::Ready(Ok(()));
            }
            // Whoever gave it up before it stood in line has found nobody to wake.
            if is_cancelled() {
                return Poll::Ready(Err(sluice_aio::Cancelled.into()));
            }
            Poll::Pending
        })
        .await
    }

    /// Has all who wait look whether they were given up.
    pub(super) fn wake(&self) {
        if let Some(member) = &*self.member.load() {
            member.wake();
        }
    }

    /// Cancels what waits and what comes.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.wake();
    }

    /// Puts another member, or none, in the place of the present one.
    fn exchange(&self, member: Option<ThrottleMember>) {
        let lifted = self.lifted.lock();
        if *lifted > 0
            && let Some(member) = &member
        {
            member.set_unlimited();
        }
        let limits = member.is_some();
        let old = self.member.swap(member.map(Arc::new));
        self.limits.store(limits, Ordering::Release);
        drop(lifted);
        // The last to let go of it leaves the group.
        drop(old);
    }
}

/// As long as it lives, a disk's requests wait for no limits.
#[derive(Debug)]
pub(crate) struct Unlimited(Arc<Throttling>);

impl Drop for Unlimited {
    fn drop(&mut self) {
        let mut lifted = self.0.lifted.lock();
        *lifted = lifted.saturating_sub(1);
        if *lifted == 0
            && let Some(member) = &*self.0.member.load()
        {
            member.set_limited();
        }
    }
}

impl Backend {
    /// Lifts the limits; what waits for them goes on. For sections.
    pub(crate) fn lift_limits(&self) -> Unlimited {
        let mut lifted = self.throttling.lifted.lock();
        *lifted += 1;
        if *lifted == 1
            && let Some(member) = &*self.throttling.member.load()
        {
            member.set_unlimited();
        }
        Unlimited(Arc::clone(&self.throttling))
    }

    /// The group whose limits the disk shares, if it has limits.
    #[must_use]
    pub fn throttle_group(&self) -> Option<Arc<ThrottleGroup>> {
        let member = self.throttling.member.load();
        member.as_ref().map(|member| Arc::clone(member.group()))
    }

    /// Makes the disk a member of `group`, or of none, for the requests to come. Called inside a
    /// section of the disk, or when it has gone.
    pub(crate) fn set_throttle_group(&self, group: Option<&Arc<ThrottleGroup>>) {
        self.throttling.exchange(group.map(ThrottleGroup::join));
    }
}
