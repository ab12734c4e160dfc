//! What the end of a machine waits for, in the log.
//!
//! A signal, `quit` or the guest ends the machine in order, which takes as long as its disks do: one that hangs keeps it, and
//! with it a job that reads from it. Nobody could tell why the process does not end, or what ends it all the same.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use sluice_aio::current;
use sluice_block::Graph;

use crate::machine::Controller;

/// How long the end may take before that is said; then twice as long, and so on.
const PATIENCE: Duration = Duration::from_secs(5);

/// Says it as long as this is polled. In the main loop.
pub(crate) async fn note(machine: Arc<Controller>, graph: Arc<Graph>) -> Infallible {
    machine.told_to_end().await;
    let began = graph.clock().now();
    let mut patience = PATIENCE;
    loop {
        current::sleep_until(began + patience).await;
        let jobs = graph.jobs().describe_awaited();
        let waits_for: Vec<_> = jobs
            .into_iter()
            .chain(graph.describe_busy_disks())
            .collect();
        let waits_for = match waits_for.is_empty() {
            true => "its disks and monitors".to_owned(),
            false => waits_for.join(", "),
        };
        tracing::warn!(
            waited = ?patience,
            waits_for,
            "the machine's end takes long; a second SIGTERM or SIGINT ends it at once, without waiting for anything ('quit' counts for none)"
        );
        patience *= 2;
    }
}
