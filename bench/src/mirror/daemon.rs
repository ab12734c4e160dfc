//! The reference: `qemu-storage-daemon`, asked to do the same mirror.

use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use serde_json::json;

use super::{Copied, Way};
use crate::daemon::Daemon;

fn node(name: &str, path: &Path, way: Way) -> String {
    let path = path.display();
    let more = match way {
        Way::Buffered => ",discard=unmap",
        Way::Keeping => "",
        Way::Direct => ",discard=unmap,cache.direct=on,aio=native",
    };
    format!("driver=file,node-name={name},filename={path}{more}")
}

/// As [`super::ours::mirror`], by a daemon that is started for it.
///
/// # Errors
/// It can't be run, or refuses.
pub fn mirror(source: &Path, target: &Path, way: Way) -> Result<Copied> {
    let mut daemon = Daemon::start(|_| {
        let blockdev = "--blockdev".to_owned();
        let (source, target) = (node("source", source, way), node("target", target, way));
        vec![blockdev.clone(), source, blockdev, target]
    })?;
    let began = Instant::now();
    let arguments =
        json!({"device": "source", "target": "target", "job-id": "job", "sync": "full"});
    daemon.say("blockdev-mirror", &arguments)?;
    daemon.wait_for("BLOCK_JOB_READY")?;
    let seconds = began.elapsed().as_secs_f64();
    let computed = daemon.quit()?;
    Ok(Copied { seconds, computed })
}
