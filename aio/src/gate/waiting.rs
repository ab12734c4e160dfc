//! The futures by which one waits at a gate. Each may be polled and dropped on any thread.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use super::mechanism::Step;
use super::{Cancelled, Gate, Token};

/// Future of [`Gate::enter`]. Dropping it leaves the queue.
#[derive(Debug)]
pub struct Enter {
    /// `None` when done.
    gate: Option<Gate>,
    ticket: Option<u64>,
}

impl Enter {
    pub(super) fn new(gate: Gate) -> Self {
        Self {
            gate: Some(gate),
            ticket: None,
        }
    }
}

impl Future for Enter {
    type Output = Result<Token, Cancelled>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(gate) = &self.gate else {
            // Polled again after completion.
            return Poll::Ready(Err(Cancelled));
        };
        let step = match self.ticket {
            None if gate.0.try_enter() => Step::Entered,
            None => gate.0.join_queue(cx),
            Some(ticket) => gate.0.look_again(ticket, cx),
        };
        match step {
            Step::Waits(ticket) => {
                self.ticket = Some(ticket);
                Poll::Pending
            }
            Step::Entered => {
                let token = gate.token();
                self.gate = None;
                Poll::Ready(Ok(token))
            }
            Step::Cancelled => {
                self.gate = None;
                Poll::Ready(Err(Cancelled))
            }
        }
    }
}

impl Drop for Enter {
    fn drop(&mut self) {
        if let (Some(gate), Some(ticket)) = (&self.gate, self.ticket) {
            gate.0.abandon(ticket);
        }
    }
}

/// Future of [`Gate::opened`].
#[derive(Debug)]
pub struct Opened {
    gate: Gate,
    key: Option<u64>,
}

impl Opened {
    pub(super) fn new(gate: Gate) -> Self {
        Self { gate, key: None }
    }
}

impl Future for Opened {
    type Output = Result<(), Cancelled>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let key = self.key.take();
        match self.gate.0.look_opened(key, cx) {
            Step::Waits(key) => {
                self.key = Some(key);
                Poll::Pending
            }
            Step::Entered => Poll::Ready(Ok(())),
            Step::Cancelled => Poll::Ready(Err(Cancelled)),
        }
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.gate.0.forget_opened(key);
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
