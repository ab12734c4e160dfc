//! The breakpoints of a `blkdebug` node, and who is held at them.
//!
//! A breakpoint is set on an event under a tag, and holds whoever comes first: one request each, so
//! that several tags on one event give each request its own, and they can be let go in any order.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

use super::event::DebugEvent;
use crate::error::{BlockError, Result};

/// Somebody who is held.
#[derive(Debug)]
struct Suspended {
    number: u64,
    tag: String,
    /// What it goes on with, once that is decided: an errno, or 0.
    verdict: Option<i32>,
    waker: Option<Waker>,
}

#[derive(Debug, Default)]
struct State {
    /// Those at which nobody has come yet, oldest first.
    set: Vec<(DebugEvent, String)>,
    suspended: Vec<Suspended>,
    /// Those who wait for somebody to be held or let go.
    watchers: Vec<Waker>,
    next: u64,
}

impl State {
    fn is_set(&self, tag: &str) -> bool {
        self.set.iter().any(|(_, other)| other == tag)
    }

    fn held(&mut self, tag: &str) -> Option<&mut Suspended> {
        self.suspended
            .iter_mut()
            .find(|suspended| suspended.verdict.is_none() && suspended.tag == tag)
    }

    fn wake_watchers(&mut self) {
        self.watchers.drain(..).for_each(Waker::wake);
    }
}

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Breakpoints(Mutex<State>);

impl Breakpoints {
    pub(super) fn set(&self, event: DebugEvent, tag: &str) -> Result<()> {
        let mut state = self.0.lock();
        if state.is_set(tag) || state.held(tag).is_some() {
            return Err(BlockError::Refused(format!(
                "Breakpoint '{tag}' exists already"
            )));
        }
        state.set.push((event, tag.to_owned()));
        Ok(())
    }

    /// Lets go who is held under `tag`; with an errno it fails.
    pub(super) fn resume(&self, tag: &str, errno: i32) -> Result<()> {
        let mut state = self.0.lock();
        let held = state.held(tag).ok_or_else(|| not_found(tag))?;
        held.verdict = Some(errno);
        if let Some(waker) = held.waker.take() {
            waker.wake();
        }
        state.wake_watchers();
        Ok(())
    }

    pub(super) fn remove(&self, tag: &str) -> Result<()> {
        let mut state = self.0.lock();
        let before = state.set.len();
        state.set.retain(|(_, other)| other != tag);
        let was_set = state.set.len() < before;
        state.wake_watchers();
        drop(state);
        match self.resume(tag, 0) {
            Err(_) if was_set => Ok(()),
            resumed => resumed,
        }
    }

    pub(super) fn is_suspended(&self, tag: &str) -> bool {
        self.0.lock().held(tag).is_some()
    }

    pub(super) async fn wait(&self, tag: &str) -> Result<()> {
        std::future::poll_fn(|cx| {
            let mut state = self.0.lock();
            if state.held(tag).is_some() {
                return Poll::Ready(Ok(()));
            }
            if !state.is_set(tag) {
                return Poll::Ready(Err(not_found(tag)));
            }
            state.watchers.push(cx.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Stands at the oldest breakpoint of `event`, if there is one.
    pub(super) fn pass(&self, event: DebugEvent) -> Held<'_> {
        let mut state = self.0.lock();
        let place = state.set.iter().position(|(other, _)| *other == event);
        let number = place.map(|place| {
            let (_, tag) = state.set.remove(place);
            let number = state.next;
            state.next += 1;
            state.suspended.push(Suspended {
                number,
                tag,
                verdict: None,
                waker: None,
            });
            state.wake_watchers();
            number
        });
        Held {
            breakpoints: self,
            number,
        }
    }
}

fn not_found(tag: &str) -> BlockError {
    BlockError::Refused(format!("Breakpoint '{tag}' not found"))
}

/// Waits until it is let go; ends with the error that it was given then.
pub(super) struct Held<'a> {
    breakpoints: &'a Breakpoints,
    number: Option<u64>,
}

impl Held<'_> {
    fn place(&self, state: &State) -> Option<usize> {
        let number = self.number?;
        state
            .suspended
            .iter()
            .position(|suspended| suspended.number == number)
    }
}

impl Future for Held<'_> {
    type Output = Result<()>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let mut state = self.breakpoints.0.lock();
        let Some(place) = self.place(&state) else {
            return Poll::Ready(Ok(()));
        };
        match state.suspended[place].verdict {
            None => {
                state.suspended[place].waker = Some(cx.waker().clone());
                Poll::Pending
            }
            Some(0) => Poll::Ready(Ok(())),
            Some(errno) => Poll::Ready(Err(io::Error::from_raw_os_error(errno).into())),
        }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut state = self.breakpoints.0.lock();
        if let Some(place) = self.place(&state) {
            state.suspended.remove(place);
            state.wake_watchers();
        }
    }
}
