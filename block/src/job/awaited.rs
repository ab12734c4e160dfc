//! What a job has asked of nodes and has not got yet: what can be said of one that does not go on.
//!
//! A job that waits for its source or its target looks like one that works. So whatever it asks of a node is noted from the
//! beginning to the end of the request ([`Requests`]). Three ask for that: who queries jobs, a job that is to end and does not
//! (see [`Job::note_slow_end`]), and a drained section that waits for a guest whose write waits for the job.

use std::convert::Infallible;
use std::fmt::{self, Write as _};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{Either, select};
use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::Serialize;
use slab::Slab;
use sluice_aio::current;

use super::handle::Job;
use super::inner::Core;
use crate::drain::PATIENCE as MOMENT;
use crate::node::Node;

/// What is asked of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AwaitedOperation {
    /// Where it holds data.
    Look,
    /// Data.
    Read,
    /// To take data.
    Write,
    /// To become zeroes.
    Zeroes,
    /// To take data of another node, in one step.
    Copy,
    /// To be durable.
    Flush,
}

/// A request for which a job, or a guest on its account, has been waiting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct AwaitedRequest {
    /// The node that has not answered.
    pub node_name: String,
    /// What it was asked.
    pub operation: AwaitedOperation,
    /// The node that a copy reads, if that is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from_node_name: Option<String>,
    /// Whether a guest's write waits for it, rather than the job. One that waits for the job does not count.
    pub of_guest: bool,
    /// For how long, in nanoseconds.
    pub waited_ns: u128,
}

impl fmt::Display for AwaitedRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let node = &self.node_name;
        let seconds = self.waited_ns / Duration::from_secs(1).as_nanos();
        if self.of_guest {
            return write!(
                f,
                "a guest's write that has been waiting for node '{node}' for {seconds} s"
            );
        }
        match self.operation {
            AwaitedOperation::Look => write!(f, "the block status of node '{node}'")?,
            AwaitedOperation::Read => write!(f, "a read of node '{node}'")?,
            AwaitedOperation::Write => write!(f, "a write to node '{node}'")?,
            AwaitedOperation::Zeroes => write!(f, "a write of zeroes to node '{node}'")?,
            AwaitedOperation::Copy => match &self.from_node_name {
                Some(from) => write!(f, "a copy from node '{from}' to node '{node}'")?,
                // A stream's.
                None => write!(f, "a copy of data from below node '{node}' into that node")?,
            },
            AwaitedOperation::Flush => write!(f, "a flush of node '{node}'")?,
        }
        write!(f, ", begun {seconds} s ago")
    }
}

/// The requests of one job that have not ended. Any thread.
#[derive(Debug, Default)]
pub(crate) struct Requests(Mutex<Running>);

#[derive(Debug, Default)]
struct Running {
    /// Each guest's write to both sides is noted, which must cost it next to nothing.
    all: Slab<Entry>,
    begun: u64,
}

#[derive(Debug)]
struct Entry {
    /// How many had begun before.
    number: u64,
    /// None of a guest that waits for its turn, and so for whatever the job asks.
    asked: Option<Asked>,
    /// On the clock of the loop in which it began.
    since: Duration,
}

#[derive(Debug)]
struct Asked {
    node: Arc<Node>,
    operation: AwaitedOperation,
    from: Option<Arc<Node>>,
    of_guest: bool,
}

/// Who waits for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waiter {
    /// The job.
    Job,
    /// A guest, whose write the job keeps until then.
    Guest,
}

impl Requests {
    /// Notes that the job asks that of the node, until what is returned is dropped. In a loop's task.
    pub(crate) fn begin(
        self: &Arc<Self>,
        node: &Arc<Node>,
        operation: AwaitedOperation,
    ) -> Awaiting {
        self.begin_for(Waiter::Job, node, operation)
    }

    /// The same of a copy that is one request to both nodes.
    pub(crate) fn begin_copy(self: &Arc<Self>, from: &Arc<Node>, to: &Arc<Node>) -> Awaiting {
        self.add(Some(Asked {
            node: Arc::clone(to),
            operation: AwaitedOperation::Copy,
            from: Some(Arc::clone(from)),
            of_guest: false,
        }))
    }

    /// The same of what `waiter` waits for.
    pub(crate) fn begin_for(
        self: &Arc<Self>,
        waiter: Waiter,
        node: &Arc<Node>,
        operation: AwaitedOperation,
    ) -> Awaiting {
        self.add(Some(Asked {
            node: Arc::clone(node),
            operation,
            from: None,
            of_guest: waiter == Waiter::Guest,
        }))
    }

    /// Waits for a guest's `turn`: until the job, or another guest, is done with its place. That is noted if it has not come
    /// yet; which node keeps it is told by their requests.
    pub(crate) async fn wait_turn<T>(self: &Arc<Self>, turn: impl Future<Output = T>) -> T {
        let mut turn = pin!(turn);
        // Most need not wait.
        if let Some(done) = turn.as_mut().now_or_never() {
            return done;
        }
        let _awaiting = self.add(None);
        turn.await
    }

    fn add(self: &Arc<Self>, asked: Option<Asked>) -> Awaiting {
        let since = current::context().clock().now_in_step();
        let mut running = self.0.lock();
        let entry = Entry {
            number: running.begun,
            asked,
            since,
        };
        running.begun += 1;
        let key = running.all.insert(entry);
        drop(running);
        Awaiting {
            requests: Arc::clone(self),
            key,
        }
    }

    /// Those that began a moment ago or earlier.
    pub(crate) fn awaited(&self, now: Duration) -> Awaited {
        let running = self.0.lock();
        let waited = |entry: &Entry| now.saturating_sub(entry.since);
        let all = running.all.iter().map(|(_, entry)| entry);
        let mut old: Vec<_> = all.filter(|entry| waited(entry) >= MOMENT).collect();
        old.sort_by_key(|entry| entry.number);
        let turn = old.iter().find(|entry| entry.asked.is_none());
        let requests = old.iter().filter_map(|entry| {
            let asked = entry.asked.as_ref()?;
            Some(AwaitedRequest {
                node_name: asked.node.name().to_owned(),
                operation: asked.operation,
                from_node_name: asked.from.as_ref().map(|node| node.name().to_owned()),
                of_guest: asked.of_guest,
                waited_ns: waited(entry).as_nanos(),
            })
        });
        let own = |(_, entry): (usize, &Entry)| {
            let asked = entry.asked.as_ref();
            asked.is_some_and(|asked| !asked.of_guest)
        };
        Awaited {
            requests: requests.collect(),
            turn: turn.map(|entry| waited(entry)),
            has_own: running.all.iter().any(own),
        }
    }
}

/// What a job has been waiting for, and a guest for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Awaited {
    /// Requests to nodes, the oldest first.
    pub requests: Vec<AwaitedRequest>,
    /// For how long a guest's write has been waiting until the job, or another guest, is done with its place.
    pub turn: Option<Duration>,
    /// Whether any request of the job itself is under way, since whenever.
    pub has_own: bool,
}

/// A request that has not ended while this lives.
#[derive(Debug)]
#[must_use = "dropping it says that the request has ended"]
pub(crate) struct Awaiting {
    requests: Arc<Requests>,
    key: usize,
}

impl Drop for Awaiting {
    fn drop(&mut self) {
        let ended = self.requests.0.lock().all.try_remove(self.key);
        // The node's last reference may be this one, which nobody should drop under the lock.
        drop(ended);
    }
}

/// When it is to be said again, after so long, that somebody waits: after a moment, twice that, and so on.
fn next_note(waited: Duration) -> Duration {
    let mut next = MOMENT;
    while next <= waited {
        next *= 2;
    }
    next
}

impl Job {
    /// The requests that the job, or a guest on its account, has been waiting for since a second ago or longer, the
    /// oldest first. None once it has ended: what it has left behind is nobody's wait. Any thread.
    #[must_use]
    pub fn awaited(&self) -> Vec<AwaitedRequest> {
        let has_ended = self.lock().state.has_ended();
        self.awaited_unless(has_ended).requests
    }

    /// The same of a job that is known to have ended, or not.
    pub(super) fn awaited_unless(&self, has_ended: bool) -> Awaited {
        match has_ended {
            true => Awaited::default(),
            false => self.driver.awaited(self.clock().now()),
        }
    }

    /// What keeps the guest's write that has been waiting for longest on the job's account, for people. The job's own requests may have been said.
    pub(crate) fn describe_kept_write(&self, own_said: bool) -> Option<String> {
        let has_ended = self.lock().state.has_ended();
        let Awaited { requests, turn, .. } = self.awaited_unless(has_ended);
        let name = self.kind().named(self.id());
        let direct = requests.iter().find(|request| request.of_guest);
        let turn =
            turn.filter(|turn| direct.is_none_or(|direct| direct.waited_ns < turn.as_nanos()));
        let Some(turn) = turn else {
            return direct.map(|request| format!("{request} of {name}"));
        };
        let mut kept = format!(
            "a guest's write that has been waiting for {name} for {} s",
            turn.as_secs()
        );
        if let Some(request) = requests
            .iter()
            .find(|request| !own_said || request.of_guest)
        {
            // Writing to a string can't fail.
            let _ = write!(kept, ", which waits for {request}");
        }
        Some(kept)
    }

    /// The job is to end from now on, or was told so once more.
    pub(super) fn note_told_to_end(&self, core: &mut Core) {
        core.told_to_end = Some(self.clock().now());
        self.told_to_end.notify(usize::MAX);
    }

    /// Says in the log what the job waits for while it is to end and does not: after a moment, then after twice that, and
    /// so on. For the task of the job's life, beside its steps, in whatever loop that is.
    pub(super) async fn note_slow_end(&self) -> Infallible {
        loop {
            let told_again = self.told_to_end.listen();
            let told = self.lock().told_to_end;
            let Some(told) = told else {
                told_again.await;
                continue;
            };
            let waited = self.clock().now().saturating_sub(told);
            let late = pin!(current::sleep_until(told + next_note(waited)));
            if let Either::Right(_) = select(told_again, late).await {
                self.say_what_it_waits_for();
            }
        }
    }

    fn say_what_it_waits_for(&self) {
        // Who ends all jobs says it of all of them.
        if self.is_shut_down() {
            return;
        }
        if let Some(request) = self.awaited().first() {
            let job = self.kind().named(self.id());
            let way_out = match self.is_ended_by_force(request.operation) {
                true => {
                    " ('job-cancel', or 'block-job-cancel' with force, ends the job without it)"
                }
                false => "",
            };
            tracing::warn!(
                "{job} is to end and waits for {request}; see to what that node stands on{way_out}"
            );
        }
    }

    /// Whether a cancel by force, which has not come yet, ends the job although that hangs.
    fn is_ended_by_force(&self, operation: AwaitedOperation) -> bool {
        let is_read = matches!(operation, AwaitedOperation::Look | AwaitedOperation::Read);
        (!is_read || self.driver.leaves_reads()) && self.ways_to_end().is_some()
    }
}
