//! What the tests of jobs with hanging targets have in common. Time is the test's.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sluice_aio::{AioContext, Clock, current};

use super::PATIENCE;
use crate::driver::DebugEvent;
use crate::graph::Graph;
use crate::job::{AwaitedOperation, Job, JobState};
use crate::node::Node;

/// From now on a node's first request of that kind hangs.
pub(crate) fn hold(node: &Node, event: DebugEvent) {
    node.as_blkdebug()
        .unwrap()
        .set_break(event, "hang")
        .unwrap();
}

/// Waits until it does.
pub(crate) async fn wait_held(node: &Node) {
    node.as_blkdebug()
        .unwrap()
        .wait_break("hang")
        .await
        .unwrap();
}

/// What a command is told that wants a node which a job holds.
pub(crate) fn way_out(node: &Node) -> Option<&'static str> {
    node.check_not_blocked().unwrap_err().way_out()
}

/// Waits until commands that want the node are told that its job can't be made to end sooner.
pub(crate) async fn wait_told_ending(node: &Node) {
    while way_out(node) != Some("the job is ending already: wait until it is gone") {
        current::yield_now().await;
    }
}

/// Waits until a section is shown that holds nobody meanwhile, and says what for.
pub(crate) async fn wait_held_up(graph: &Graph, node: &Node) -> String {
    loop {
        if let [shown] = &graph.held_up_over_node(node)[..] {
            return shown.waits_for.clone();
        }
        current::yield_now().await;
    }
}

pub(crate) async fn yield_often() {
    for _ in 0..1000 {
        current::yield_now().await;
    }
}

/// Lets time pass until the job, which runs in `home`, has ended.
pub(crate) async fn lose_patience(clock: &Clock, home: &AioContext, job: &Job) {
    while job.state() != JobState::Concluded {
        assert!(clock.advance(PATIENCE / 4));
        home.notify();
        yield_often().await;
    }
}

/// What a job has been waiting for, the oldest first: which node, what was asked of it, and whether a guest waits for that.
pub(crate) fn awaited(job: &Job) -> Vec<(String, AwaitedOperation, bool)> {
    let awaited = job.awaited().into_iter();
    let awaited = awaited.map(|one| (one.node_name, one.operation, one.of_guest));
    awaited.collect()
}

/// Waits for the end of a section's beginning.
pub(crate) fn begin_drain(graph: &Arc<Graph>, node: &Arc<Node>) -> Arc<AtomicBool> {
    let (graph, node, done) = (
        Arc::clone(graph),
        Arc::clone(node),
        Arc::new(AtomicBool::new(false)),
    );
    let drained = Arc::clone(&done);
    current::spawn_local(async move {
        drop(graph.drain(&node, "test").await);
        drained.store(true, Ordering::SeqCst);
    })
    .detach();
    done
}

pub(crate) async fn wait(flag: &AtomicBool) {
    while !flag.load(Ordering::SeqCst) {
        current::yield_now().await;
    }
}

pub(crate) async fn wait_released(target: &Node) {
    while target.writer().is_some() || target.check_not_blocked().is_err() {
        current::yield_now().await;
    }
}
