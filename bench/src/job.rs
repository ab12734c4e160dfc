//! Mirrors of disks in a loop of this thread.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use sluice_aio::current;
use sluice_block::Graph;
use sluice_block::job::{Job, JobState};
use sluice_block::mirror::{BlockdevMirror, blockdev_mirror};

/// How often a job's state is looked at: it tells of its readiness by an event, and a look is as good here.
const LOOK: Duration = Duration::from_millis(1);

/// Begins to mirror the disk or node `source` to the node `target` as the job `job`; `more` are other options.
///
/// # Errors
/// The command's.
pub async fn mirror(
    graph: &Arc<Graph>,
    source: &str,
    target: &str,
    more: Value,
) -> Result<Arc<Job>> {
    let mut common = json!({"device": source, "job-id": "job", "sync": "full"});
    if let (Some(common), Value::Object(more)) = (common.as_object_mut(), more) {
        common.extend(more);
    }
    let mirror = BlockdevMirror {
        common: serde_json::from_value(common)?,
        target: target.to_owned(),
        filter_node_name: None,
        target_is_zero: false,
    };
    blockdev_mirror(graph, mirror, &current::context()).await?;
    graph.jobs().get("job").context("the job has ended")
}

/// Waits until the job is ready.
///
/// # Errors
/// It fails.
pub async fn ready(job: &Job) -> Result<()> {
    while job.state() != JobState::Ready {
        if let Some(error) = job.info().error {
            bail!("the mirror failed: {error}");
        }
        current::sleep(LOOK).await;
    }
    Ok(())
}
