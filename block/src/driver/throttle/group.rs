//! [`ThrottleGroup`]: limits that several disks share, and who may go next.
//!
//! Each member (a throttle node, a disk) has a line of waiting requests for reads and one for
//! writes. Of all the lines of one direction the heads take turns, round and round the members, so
//! that a busy member does not starve a quiet one. The request whose turn it is sleeps in its own
//! loop until the buckets let it go; it then hands the turn on. No thread, no loop and no timer of
//! the group's own is needed, and a member may be served by any loop.
//!
//! A member in a drained section has no limits: what waits there goes at once (but is counted).

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::ops::Bound;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use sluice_aio::Clock;
use sluice_aio::clock::ClockSleep;

use super::bucket::{Bucket, operations, units};
use super::limits::{LimitsError, RATES, ThrottleLimits, place};

/// Which limits a request is subject to, besides the total.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Reads.
    Read,
    /// Writes, those of zeroes and discards included.
    Write,
}

impl Direction {
    const ALL: [Self; 2] = [Self::Read, Self::Write];

    /// The rates that bound it: two of bytes, two of operations.
    const fn rates(self) -> ([usize; 2], [usize; 2]) {
        match self {
            Self::Read => (
                [place::BPS_TOTAL, place::BPS_READ],
                [place::IOPS_TOTAL, place::IOPS_READ],
            ),
            Self::Write => (
                [place::BPS_TOTAL, place::BPS_WRITE],
                [place::IOPS_TOTAL, place::IOPS_WRITE],
            ),
        }
    }
}

/// A request that waits.
#[derive(Debug)]
struct Waiting {
    ticket: u64,
    bytes: u64,
    waker: Option<Waker>,
}

#[derive(Debug, Default)]
struct MemberState {
    /// How often limits were lifted and not set again.
    unlimited: usize,
    /// By direction, oldest first.
    lines: [VecDeque<Waiting>; 2],
}

#[derive(Debug)]
struct State {
    limits: ThrottleLimits,
    buckets: [Bucket; RATES],
    /// Until when the buckets have leaked.
    leaked: Duration,
    /// By number, which is the order of the round.
    members: BTreeMap<u64, MemberState>,
    next_member: u64,
    next_ticket: u64,
    /// By direction: the member whose head has the turn.
    turns: [Option<u64>; 2],
}

/// Limits that members share. Any thread may hold it; one lock, held for no longer than arithmetic.
#[derive(Debug)]
pub struct ThrottleGroup {
    name: String,
    clock: Clock,
    state: Mutex<State>,
}

impl ThrottleGroup {
    /// A group without members.
    ///
    /// # Errors
    /// The limits contradict each other.
    pub fn new(name: &str, limits: ThrottleLimits, clock: Clock) -> Result<Arc<Self>, LimitsError> {
        limits.check()?;
        Ok(Self::with_checked(name, limits, clock))
    }

    /// A group without members and without limits.
    pub(super) fn unlimited(name: &str, clock: Clock) -> Arc<Self> {
        Self::with_checked(name, ThrottleLimits::default(), clock)
    }

    fn with_checked(name: &str, limits: ThrottleLimits, clock: Clock) -> Arc<Self> {
        let leaked = clock.now();
        Arc::new(Self {
            name: name.to_owned(),
            clock,
            state: Mutex::new(State {
                buckets: limits.rates().map(Bucket::new),
                limits,
                leaked,
                members: BTreeMap::new(),
                next_member: 0,
                next_ticket: 0,
                turns: [None; 2],
            }),
        })
    }

    /// The group's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The limits now.
    #[must_use]
    pub fn limits(&self) -> ThrottleLimits {
        self.state.lock().limits
    }

    /// Changes the limits; the past is forgotten, and who waits is judged by the new ones.
    ///
    /// # Errors
    /// The limits contradict each other; then the old ones stay.
    pub fn set_limits(&self, limits: ThrottleLimits) -> Result<(), LimitsError> {
        limits.check()?;
        let mut state = self.state.lock();
        state.limits = limits;
        state.buckets = limits.rates().map(Bucket::new);
        state.leaked = self.clock.now();
        for direction in Direction::ALL {
            state.wake_turn(direction);
        }
        Ok(())
    }

    /// Whether anybody is a member.
    #[must_use]
    pub fn is_in_use(&self) -> bool {
        !self.state.lock().members.is_empty()
    }

    /// Makes a new member.
    #[must_use]
    pub fn join(self: &Arc<Self>) -> ThrottleMember {
        let mut state = self.state.lock();
        let number = state.next_member;
        state.next_member += 1;
        state.members.insert(number, MemberState::default());
        drop(state);
        ThrottleMember {
            group: Arc::clone(self),
            number,
        }
    }
}

impl State {
    fn leak(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.leaked);
        self.leaked = self.leaked.max(now);
        for bucket in &mut self.buckets {
            bucket.leak(passed);
        }
    }

    fn wait(&self, direction: Direction) -> Duration {
        let (bytes, ops) = direction.rates();
        let rates = bytes.into_iter().chain(ops);
        rates
            .map(|rate| self.buckets[rate].wait())
            .max()
            .unwrap_or_default()
    }

    fn pour(&mut self, direction: Direction, amount: u64) {
        let (bytes, ops) = direction.rates();
        for rate in bytes {
            self.buckets[rate].pour(units(amount));
        }
        for rate in ops {
            self.buckets[rate].pour(operations(amount, self.limits.iops_size));
        }
    }

    fn member(&mut self, number: u64) -> &mut MemberState {
        self.members.entry(number).or_default()
    }

    fn line(&mut self, number: u64, direction: Direction) -> &mut VecDeque<Waiting> {
        &mut self.member(number).lines[direction as usize]
    }

    /// Wakes the request whose turn it is, to look again.
    fn wake_turn(&mut self, direction: Direction) {
        let Some(number) = self.turns[direction as usize] else {
            return;
        };
        let head = self.line(number, direction).front_mut();
        if let Some(waker) = head.and_then(|head| head.waker.take()) {
            waker.wake();
        }
    }

    /// Gives the turn to the next member after `last` in whose line somebody waits.
    fn pass_turn(&mut self, direction: Direction, last: u64) {
        let waits = |member: &MemberState| !member.lines[direction as usize].is_empty();
        let after = (Bound::Excluded(last), Bound::Unbounded);
        let next = self
            .members
            .range(after)
            .chain(self.members.range(..=last))
            .find(|(_, member)| waits(member))
            .map(|(number, _)| *number);
        self.turns[direction as usize] = next;
        self.wake_turn(direction);
    }

    /// Takes a request out of its line and sees to the turn.
    fn leave(&mut self, number: u64, direction: Direction, ticket: u64) {
        let line = self.line(number, direction);
        let Some(index) = line.iter().position(|waiting| waiting.ticket == ticket) else {
            return;
        };
        line.remove(index);
        if index == 0 && self.turns[direction as usize] == Some(number) {
            self.pass_turn(direction, number);
        }
    }

    /// Lets everything go that waits in this member's lines.
    fn let_go(&mut self, number: u64) {
        for direction in Direction::ALL {
            let line = std::mem::take(self.line(number, direction));
            for waiting in line {
                self.pour(direction, waiting.bytes);
                if let Some(waker) = waiting.waker {
                    waker.wake();
                }
            }
            if self.turns[direction as usize] == Some(number) {
                self.pass_turn(direction, number);
            }
        }
    }
}

/// One of those who share a group's limits. Any thread.
#[derive(Debug)]
pub struct ThrottleMember {
    group: Arc<ThrottleGroup>,
    number: u64,
}

impl ThrottleMember {
    /// The group.
    #[must_use]
    pub fn group(&self) -> &Arc<ThrottleGroup> {
        &self.group
    }

    /// Waits until the limits admit a request of `bytes`; call it in a task of a loop.
    ///
    /// Dropping the future gives the place in the line up.
    #[must_use = "futures do nothing unless polled"]
    pub fn admit(&self, direction: Direction, bytes: u64) -> Admission<'_> {
        Admission {
            member: self,
            direction,
            bytes,
            ticket: None,
            sleep: None,
        }
    }

    /// Lifts the limits for this member until [`set_limited`](Self::set_limited): a section waits
    /// for what is held up here. Nests by counting.
    pub fn set_unlimited(&self) {
        let mut state = self.group.state.lock();
        state.member(self.number).unlimited += 1;
        state.leak(self.group.clock.now());
        state.let_go(self.number);
    }

    /// Wakes all who wait here, to look at what else they wait for.
    pub fn wake(&self) {
        let mut state = self.group.state.lock();
        let lines = &mut state.member(self.number).lines;
        let woken: Vec<_> = lines
            .iter_mut()
            .flatten()
            .filter_map(|waiting| waiting.waker.take())
            .collect();
        drop(state);
        woken.into_iter().for_each(Waker::wake);
    }

    /// Takes one [`set_unlimited`](Self::set_unlimited) back.
    pub fn set_limited(&self) {
        let mut state = self.group.state.lock();
        let member = state.member(self.number);
        member.unlimited = member.unlimited.saturating_sub(1);
    }
}

impl Drop for ThrottleMember {
    fn drop(&mut self) {
        let mut state = self.group.state.lock();
        // Admissions borrow the member, so nobody waits in its lines.
        state.members.remove(&self.number);
    }
}

/// Future of [`ThrottleMember::admit`].
#[derive(Debug)]
pub struct Admission<'a> {
    member: &'a ThrottleMember,
    direction: Direction,
    bytes: u64,
    /// Its place in the line; none before the first poll and after the end.
    ticket: Option<u64>,
    sleep: Option<ClockSleep>,
}

impl Admission<'_> {
    /// Joins the line, unless it may go at once.
    fn arrive(&mut self) -> Poll<()> {
        let (number, direction) = (self.member.number, self.direction);
        let mut state = self.member.group.state.lock();
        state.leak(self.member.group.clock.now());
        let free = state.member(number).unlimited > 0
            || state.turns[direction as usize].is_none() && state.wait(direction).is_zero();
        if free {
            state.pour(direction, self.bytes);
            return Poll::Ready(());
        }
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        state.line(number, direction).push_back(Waiting {
            ticket,
            bytes: self.bytes,
            waker: None,
        });
        if state.turns[direction as usize].is_none() {
            state.turns[direction as usize] = Some(number);
        }
        self.ticket = Some(ticket);
        Poll::Pending
    }

    /// How long it has to sleep, if it is its turn; ready if it may go.
    fn look(&mut self, ticket: u64, cx: &Context<'_>) -> Poll<Option<Duration>> {
        let (number, direction) = (self.member.number, self.direction);
        let mut state = self.member.group.state.lock();
        let line = state.line(number, direction);
        let place = line.iter().position(|waiting| waiting.ticket == ticket);
        let Some(place) = place else {
            // The limits were lifted: it was let go and is counted already.
            return Poll::Ready(None);
        };
        line[place].waker = Some(cx.waker().clone());
        if place > 0 || state.turns[direction as usize] != Some(number) {
            return Poll::Pending;
        }
        state.leak(self.member.group.clock.now());
        let wait = state.wait(direction);
        if !wait.is_zero() {
            return Poll::Ready(Some(wait));
        }
        state.pour(direction, self.bytes);
        state.leave(number, direction, ticket);
        Poll::Ready(None)
    }
}

impl Future for Admission<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.ticket.is_none() && self.arrive().is_ready() {
            return Poll::Ready(());
        }
        while let Some(ticket) = self.ticket {
            match self.look(ticket, cx) {
                Poll::Pending => {
                    self.sleep = None;
                    return Poll::Pending;
                }
                Poll::Ready(None) => self.ticket = None,
                Poll::Ready(Some(wait)) => {
                    let mut sleep = self.member.group.clock.sleep(wait);
                    if Pin::new(&mut sleep).poll(cx).is_pending() {
                        self.sleep = Some(sleep);
                        return Poll::Pending;
                    }
                }
            }
        }
        Poll::Ready(())
    }
}

impl Drop for Admission<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            let mut state = self.member.group.state.lock();
            state.leave(self.member.number, self.direction, ticket);
        }
    }
}
