//! What can be wrong with a mirror that is asked for: all of it is found before the guest's disk is touched.

use std::sync::Arc;

use super::granularity;
use super::options::MirrorCommon;
use super::replaced::Replaced;
use crate::dirty::Granularity;
use crate::driver::FileIdentity;
use crate::error::{BlockError, BusyFor, Result};
use crate::graph::Graph;
use crate::job::{JobKind, JobOptions};
use crate::node::Node;

/// Bytes in flight if nothing is asked for, as QEMU.
pub(super) const DEFAULT_BUF_SIZE: u64 = 16 << 20;
/// An error of the command, in these words.
pub(super) fn refused(text: impl Into<String>) -> BlockError {
    BlockError::Refused(text.into())
}

/// `device` is what the operator called the source: the filter of a job that is under way has
/// a name that nobody gave.
pub(super) fn check_source(source: &Node, device: &str) -> Result<()> {
    let not_blocked = source.check_not_blocked();
    not_blocked.map_err(|error| error.naming(device))?;
    if source.driver_name() == "mirror_top" {
        // It is just being put in.
        return Err(BlockError::Busy {
            node: device.to_owned(),
            job: JobKind::Mirror.name().into(),
            with: BusyFor::BeginningJob,
        });
    }
    Ok(())
}

/// The numbers of a mirror, checked.
pub(super) struct Settings {
    pub(super) granularity: Granularity,
    pub(super) buf_size: u64,
}

/// The numbers that were asked for, or those that are taken otherwise.
pub(super) fn settings(common: &MirrorCommon, source: &Node) -> Result<Settings> {
    let granularity = granularity::asked_for(common.granularity, source.len())?;
    let buf_size = match common.buf_size.unwrap_or(0) {
        0 => DEFAULT_BUF_SIZE,
        size => u64::try_from(size).map_err(|_| refused("Invalid parameter 'buf-size'"))?,
    };
    job_options(common, source)?;
    Ok(Settings {
        granularity,
        buf_size,
    })
}

/// What the job is made with.
pub(super) fn job_options(common: &MirrorCommon, source: &Node) -> Result<JobOptions> {
    JobOptions::asked_for(
        source,
        common.job_id.as_deref(),
        common.speed.unwrap_or(0),
        common.auto_finalize,
        common.auto_dismiss,
    )
}

/// The node whose place the target takes, if it was named.
pub(super) fn replaced(
    graph: &Graph,
    common: &MirrorCommon,
    source: &Arc<Node>,
) -> Result<Option<Replaced>> {
    let Some(name) = &common.replaces else {
        return Ok(None);
    };
    let blocker = JobKind::Mirror.named(job_options(common, source)?.id.as_str());
    Replaced::new(graph, source, name, blocker).map(Some)
}

/// What can't be the target of what.
pub(super) fn check_pair(source: &Arc<Node>, target: &Arc<Node>) -> Result<()> {
    let overlaps = |own: &Arc<Node>, other: &Arc<Node>| {
        let others = other.files();
        own_files(own).iter().any(|file| others.contains(file))
    };
    // A backing image, which is only read, may be the same for both.
    let same_file = overlaps(target, source) || overlaps(source, target);
    if Arc::ptr_eq(source, target) || same_file {
        return Err(refused(format!(
            "Can't mirror node into itself: source '{}' and target '{}' are the same image",
            source.info().filename,
            target.info().filename
        )));
    }
    if target.stands_on(source) || source.stands_on(target) {
        return Err(refused(
            "Cannot mirror to a filter on top of a node in the source's backing chain",
        ));
    }
    target.check_not_blocked()?;
    if target.is_read_only() {
        return Err(BlockError::ReadOnly(target.name().to_owned()));
    }
    target.check_no_disks("mirror")?;
    if !target.parents().is_empty() {
        return Err(BlockError::InUse(target.name().to_owned()));
    }
    source.check_same_size(target)
}

/// The files of a node without those of its backing images.
fn own_files(node: &Node) -> Vec<FileIdentity> {
    let below = node.backing().map(|image| image.files());
    let below = below.unwrap_or_default();
    let own = node.files().into_iter();
    own.filter(|file| !below.contains(file)).collect()
}
