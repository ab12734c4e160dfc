//! What only some kinds of jobs have to tell, in the answer to `query-block-jobs` and at their end.

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::mirror::CopyMode;

/// Members that a job adds to its record or to its last event; those that it leaves out are none. All but
/// `actively-synced` are Sluice's own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct JobDetails {
    /// Bytes of data that were copied.
    #[serde(rename = "x-bytes-copied", skip_serializing_if = "Option::is_none")]
    pub bytes_copied: Option<u64>,
    /// Bytes that were made zeroes.
    #[serde(rename = "x-bytes-zeroed", skip_serializing_if = "Option::is_none")]
    pub bytes_zeroed: Option<u64>,
    /// Bytes that needed no copy.
    #[serde(rename = "x-bytes-skipped", skip_serializing_if = "Option::is_none")]
    pub bytes_skipped: Option<u64>,
    /// Bytes that failed and were tried again, because the job went on after the error.
    #[serde(rename = "x-bytes-retried", skip_serializing_if = "Option::is_none")]
    pub bytes_retried: Option<u64>,
    /// Bytes that guests wrote to both sides.
    #[serde(
        rename = "x-bytes-written-to-both",
        skip_serializing_if = "Option::is_none"
    )]
    pub bytes_written_to_both: Option<u64>,
    /// How long the disk was held at the pivot, in microseconds.
    #[serde(rename = "x-pivot-pause-us", skip_serializing_if = "Option::is_none")]
    pub pivot_pause_us: Option<u64>,
    /// Requests that waited meanwhile.
    #[serde(
        rename = "x-postponed-requests",
        skip_serializing_if = "Option::is_none"
    )]
    pub postponed_requests: Option<u64>,
    /// The longest such wait, in microseconds.
    #[serde(rename = "x-longest-wait-us", skip_serializing_if = "Option::is_none")]
    pub longest_wait_us: Option<u64>,
    /// How far the first copy is.
    #[serde(rename = "x-phase", skip_serializing_if = "Option::is_none")]
    pub phase: Option<FirstCopyPhase>,
    /// Bytes of the target to be made zeroes.
    #[serde(rename = "x-zeroing-len", skip_serializing_if = "Option::is_none")]
    pub zeroing_len: Option<u64>,
    /// Bytes of these that are zeroes.
    #[serde(rename = "x-zeroing-offset", skip_serializing_if = "Option::is_none")]
    pub zeroing_offset: Option<u64>,
    /// Bytes of memory that the job's bitmaps take.
    #[serde(rename = "x-bitmaps-memory", skip_serializing_if = "Option::is_none")]
    pub bitmaps_memory: Option<u64>,
    /// Whether source and target are alike, and each write reaches both.
    #[serde(rename = "actively-synced", skip_serializing_if = "Option::is_none")]
    pub actively_synced: Option<bool>,
    /// How guest writes are to reach the target.
    #[serde(rename = "x-copy-mode", skip_serializing_if = "Option::is_none")]
    pub copy_mode: Option<CopyMode>,
    /// Whether they go to both sides now.
    #[serde(rename = "x-writes-to-both", skip_serializing_if = "Option::is_none")]
    pub writes_to_both: Option<bool>,
}

impl JobDetails {
    /// The same as members of an object.
    #[must_use]
    pub fn members(self) -> Map<String, Value> {
        match serde_json::to_value(self) {
            Ok(Value::Object(members)) => members,
            // A struct of numbers and words is always an object.
            _ => Map::new(),
        }
    }
}

/// What a mirror's first copy is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FirstCopyPhase {
    /// The source is asked what it holds.
    Looking,
    /// The target is made zeroes where the source is.
    Zeroing,
    /// Data is copied.
    Copying,
    /// The first copy is complete.
    Ready,
}
