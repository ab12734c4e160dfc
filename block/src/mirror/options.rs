//! What the commands `blockdev-mirror`, `drive-mirror` and `block-job-change` take.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::job::OnError;
use crate::options::NewImageMode;
use crate::unsigned;

/// What is copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SyncMode {
    /// Everything, then every write.
    Full,
    /// What the top image holds; without a backing image that is everything.
    Top,
    /// Only what is written from now on.
    None,
}

/// How guest writes reach the target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum CopyMode {
    /// They are recorded and copied later.
    #[default]
    Background,
    /// They go to both at once, and end when both have them.
    WriteBlocking,
    /// As in the background while that leads to an end, and to both while it does not; Sluice's own.
    Automatic,
}

impl CopyMode {
    /// The name in options and queries.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Background => "background",
            Self::WriteBlocking => "write-blocking",
            Self::Automatic => "automatic",
        }
    }
}

/// What both commands take.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct MirrorCommon {
    /// The job's name; the device's if not given.
    #[serde(default)]
    pub job_id: Option<String>,
    /// The source: a device or a node.
    pub device: String,
    /// What to copy.
    pub sync: SyncMode,
    /// Bytes per second; 0: no limit.
    #[serde(default)]
    pub speed: Option<i64>,
    /// Bytes per bit of the dirty bitmap.
    #[serde(default, deserialize_with = "unsigned::uint32")]
    pub granularity: Option<u64>,
    /// Bytes in flight at most.
    #[serde(default)]
    pub buf_size: Option<i64>,
    /// What to do when the source can't be read.
    #[serde(default)]
    pub on_source_error: OnError,
    /// What to do when the target can't be written.
    #[serde(default)]
    pub on_target_error: OnError,
    /// How guest writes reach the target.
    #[serde(default)]
    pub copy_mode: CopyMode,
    /// The node whose place the target takes at the end; the source's if not given.
    #[serde(default)]
    pub replaces: Option<String>,
    /// Pivot without `job-finalize`.
    #[serde(default)]
    pub auto_finalize: Option<bool>,
    /// Go away without `job-dismiss`.
    #[serde(default)]
    pub auto_dismiss: Option<bool>,
}

/// Arguments of `blockdev-mirror` beyond the common ones.
#[derive(Clone, Debug)]
pub struct BlockdevMirror {
    /// What both commands take.
    pub common: MirrorCommon,
    /// The target node's name.
    pub target: String,
    /// A name for the filter; made up if not given.
    pub filter_node_name: Option<String>,
    /// All of the target reads as zeroes: the source's zeroes need not be written.
    pub target_is_zero: bool,
}

/// Arguments of `drive-mirror` beyond the common ones.
#[derive(Clone, Debug)]
pub struct DriveMirror {
    /// What both commands take.
    pub common: MirrorCommon,
    /// The target's path.
    pub target: PathBuf,
    /// The target's format; only `raw`.
    pub format: Option<String>,
    /// A name for the target node.
    pub node_name: Option<String>,
    /// Whether to create the target.
    pub mode: NewImageMode,
    /// Carry zeroes as holes.
    pub unmap: bool,
}
