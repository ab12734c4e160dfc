//! What the tests of jobs with hanging targets have in common. Time is the test's.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sluice_aio::{AioContext, Clock, current};

use super::PATIENCE;
use crate::driver::DebugEvent;
use crate::graph::Graph;
use crate::job::{Job, JobState};
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

pub(crate) async fn yield_often() {
    for _ in 0..500 {
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
