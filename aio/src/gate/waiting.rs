//! The futures by which one waits at a gate. Each may be polled and dropped on any thread.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use super::mechanism::{Step, Waits};
use super::{Cancelled, Gate, Token};

/// Future of [`Gate::enter`] and [`Gate::enter_again`]. Dropping it leaves the queue, or gives the token back.
#[derive(Debug)]
pub struct Enter(Place);

/// Where a request stands.
#[derive(Debug)]
enum Place {
    /// It found the gate open: all that is left is to hand over its token.
    Inside(Token),
    /// It found the gate closed; queued under the ticket once it has been polled.
    Outside(Gate, Option<u64>),
    /// It goes before all others, once it is polled.
    Back(Gate),
    /// It has its result.
    Over,
}

impl Enter {
    #[inline]
    pub(super) fn new(gate: &Gate) -> Self {
        // No handle of the gate is needed on the uncontended path: the token keeps it.
        Self(match gate.try_enter() {
            Some(token) => Place::Inside(token),
            None => Place::Outside(gate.clone(), None),
        })
    }

    pub(super) fn again(gate: &Gate) -> Self {
        Self(Place::Back(gate.clone()))
    }

    /// One look of a request that found the gate closed.
    #[cold]
    fn look(
        &mut self,
        gate: Gate,
        ticket: Option<u64>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Token, Cancelled>> {
        let step = match ticket {
            None => gate.0.join_queue(cx),
            Some(ticket) => gate.0.look_again(ticket, cx),
        };
        self.follow(gate, step)
    }

    fn follow(&mut self, gate: Gate, step: Step) -> Poll<Result<Token, Cancelled>> {
        match step {
            Step::Waits(ticket) => {
                self.0 = Place::Outside(gate, Some(ticket));
                Poll::Pending
            }
            Step::Entered => Poll::Ready(Ok(gate.token())),
            Step::Cancelled => Poll::Ready(Err(Cancelled)),
        }
    }
}

impl Future for Enter {
    type Output = Result<Token, Cancelled>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match std::mem::replace(&mut self.0, Place::Over) {
            Place::Inside(token) => Poll::Ready(Ok(token)),
            Place::Outside(gate, ticket) => self.look(gate, ticket, cx),
            Place::Back(gate) => {
                let step = gate.0.rejoin(cx);
                self.follow(gate, step)
            }
            // Polled again after completion.
            Place::Over => Poll::Ready(Err(Cancelled)),
        }
    }
}

impl Drop for Enter {
    #[inline]
    fn drop(&mut self) {
        if let Place::Outside(gate, Some(ticket)) = &self.0 {
            gate.0.abandon(*ticket);
        }
    }
}

/// Future of [`Gate::opened`].
#[derive(Debug)]
pub struct Opened {
    gate: Gate,
    waits: Option<Waits>,
}

impl Opened {
    pub(super) fn new(gate: Gate) -> Self {
        Self { gate, waits: None }
    }
}

impl Future for Opened {
    type Output = Result<(), Cancelled>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { gate, waits } = &mut *self;
        match gate.0.look_opened(waits, cx) {
            Step::Waits(_) => Poll::Pending,
            Step::Entered => Poll::Ready(Ok(())),
            Step::Cancelled => Poll::Ready(Err(Cancelled)),
        }
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        if let Some(waits) = self.waits {
            self.gate.0.forget_opened(waits.key);
        }
    }
}

/// Future of [`Gate::wait_idle`].
#[derive(Debug)]
pub struct WaitIdle {
    gate: Gate,
    key: Option<u64>,
}

impl WaitIdle {
    pub(super) fn new(gate: Gate) -> Self {
        Self { gate, key: None }
    }
}

impl Future for WaitIdle {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.key = self.gate.0.look_idle(self.key, cx);
        if self.key.is_some() {
            Poll::Pending
        } else {
            Poll::Ready(())
        }
    }
}

impl Drop for WaitIdle {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.gate.0.forget_idle_waiter(key);
        }
    }
}
