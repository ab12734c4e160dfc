//! Looks at the media of nodes, for queries: how many bytes they take.
//!
//! A file system is asked for that, and it may hang. So a node has one look at a time, which goes on in a task of its
//! own: who asks meanwhile shares it, and who no longer waits leaves nothing behind but that look. A query
//! waits for [`PATIENCE`], for all its nodes together, and then does without the answer. A node that has been given up is
//! not waited for again until its look has ended.

use std::sync::Arc;
use std::time::Duration;

use event_listener::Event;
use futures_util::future::{self, Either};
use parking_lot::Mutex;
use sluice_aio::current;

use crate::driver::Edge;
use crate::node::Node;

/// How long a query waits for file systems, on its loop's clock.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// A node's looks.
#[derive(Debug, Default)]
pub(crate) struct Looks {
    state: Mutex<State>,
    ended: Event,
}

#[derive(Debug, Default)]
struct State {
    /// How many have begun.
    begun: u64,
    /// How many have ended: all that have begun, or all but one.
    ended: u64,
    /// What the last one that ended has found.
    found: Option<u64>,
    /// Somebody has given up the one that goes on.
    late: bool,
    /// The log has said so of this node.
    told: bool,
}

impl Looks {
    fn is_late(&self) -> bool {
        self.state.lock().late
    }

    fn goes_on(&self) -> bool {
        let state = self.state.lock();
        state.begun > state.ended
    }

    /// Waits for the end of the look of that number.
    async fn wait(&self, number: u64) -> Option<u64> {
        loop {
            let ended = self.ended.listen();
            {
                let state = self.state.lock();
                if state.ended >= number {
                    return state.found;
                }
            }
            ended.await;
        }
    }

    fn end(&self, found: Option<u64>) {
        let mut state = self.state.lock();
        state.ended = state.begun;
        state.found = found;
        state.late = false;
        drop(state);
        self.ended.notify(usize::MAX);
    }
}

/// Looks at the media of `nodes` and of their backing images, at all at once, and waits for what they say, though not for
/// ever: [`Node::actual_size`] tells it then. To be awaited in the main loop.
pub async fn look_at(nodes: impl IntoIterator<Item = Arc<Node>>) {
    let mut all: Vec<Arc<Node>> = Vec::new();
    for node in nodes {
        all.extend(node.backing_chain());
        all.push(node);
    }
    all.sort_unstable_by_key(Arc::as_ptr);
    all.dedup_by(|one, other| Arc::ptr_eq(one, other));
    let numbers: Vec<_> = all.iter().map(|node| node.begin_look()).collect();
    let waits = all.iter().zip(numbers).map(|(node, number)| async move {
        if !node.below().any(|node| node.looks.is_late()) {
            let look = std::pin::pin!(node.looks.wait(number));
            let patience = std::pin::pin!(current::sleep(PATIENCE));
            if let Either::Left(_) = future::select(look, patience).await {
                return;
            }
        }
        node.give_up_look(number);
    });
    future::join_all(waits).await;
}

impl Node {
    /// Bytes that the medium takes, as the last [`look_at`] has found; none if that is not known, or if the file
    /// system does not answer now.
    #[must_use]
    pub fn actual_size(&self) -> Option<u64> {
        let state = self.looks.state.lock();
        state.found.filter(|_| !state.late)
    }

    /// Looks at the medium, or shares the look that goes on. Waits for its end, however long that takes.
    pub(crate) async fn look(self: &Arc<Self>) -> Option<u64> {
        let number = self.begin_look();
        self.looks.wait(number).await
    }

    /// Begins a look, unless one goes on. Returns its number.
    fn begin_look(self: &Arc<Self>) -> u64 {
        let mut state = self.looks.state.lock();
        if state.begun > state.ended {
            return state.begun;
        }
        state.begun += 1;
        let number = state.begun;
        drop(state);
        let node = Arc::clone(self);
        let look = async move {
            let found = node.driver().actual_size().await;
            node.looks.end(found.unwrap_or(None));
        };
        current::spawn_local(look).detach();
        number
    }

    /// This node and those that hold its bytes, from above.
    fn below(self: &Arc<Self>) -> impl Iterator<Item = Arc<Self>> {
        let below = |node: &Arc<Self>| node.driver().filtered().map(Edge::node);
        std::iter::successors(Some(Arc::clone(self)), below)
    }

    /// Does without what the look of that number finds, unless it has ended; says so once of the node that hangs.
    fn give_up_look(self: &Arc<Self>, number: u64) {
        let mut state = self.looks.state.lock();
        if state.ended >= number {
            return;
        }
        state.late = true;
        drop(state);
        let hanging = self.below().take_while(|node| node.looks.goes_on()).last();
        if let Some(node) = hanging
            && !std::mem::replace(&mut node.looks.state.lock().told, true)
        {
            tracing::warn!(
                node = node.name(),
                file = node.info().filename,
                "the file system does not say how much of it an image takes; queries leave it out, and do not wait \
                 for it again before it answers"
            );
        }
    }
}

#[cfg(test)]
mod tests;
