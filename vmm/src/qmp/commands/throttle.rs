//! `block_set_io_throttle`, and what `query-block` tells of a disk's limits (QEMU's
//! `qapi/block-core.json`).

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sluice_block::Backend;
use sluice_block::driver::throttle::{LimitsError, ThrottleLimits};

use super::media::disk;
use super::{Done, Monitor};
use crate::qmp::error::QmpError;

/// Arguments of `block_set_io_throttle`. Bytes or operations per second, and seconds.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SetIoThrottle {
    /// The disk by its backend's name.
    device: Option<String>,
    /// The disk by its device's id.
    id: Option<String>,
    group: Option<String>,
    bps: i64,
    bps_rd: i64,
    bps_wr: i64,
    iops: i64,
    iops_rd: i64,
    iops_wr: i64,
    bps_max: Option<i64>,
    bps_rd_max: Option<i64>,
    bps_wr_max: Option<i64>,
    iops_max: Option<i64>,
    iops_rd_max: Option<i64>,
    iops_wr_max: Option<i64>,
    bps_max_length: Option<i64>,
    bps_rd_max_length: Option<i64>,
    bps_wr_max_length: Option<i64>,
    iops_max_length: Option<i64>,
    iops_rd_max_length: Option<i64>,
    iops_wr_max_length: Option<i64>,
    iops_size: Option<i64>,
}

impl SetIoThrottle {
    fn limits(&self) -> Result<ThrottleLimits, LimitsError> {
        Ok(ThrottleLimits {
            bps_total: amount(self.bps),
            bps_total_max: amount(self.bps_max.unwrap_or(0)),
            bps_total_max_length: seconds(self.bps_max_length)?,
            bps_read: amount(self.bps_rd),
            bps_read_max: amount(self.bps_rd_max.unwrap_or(0)),
            bps_read_max_length: seconds(self.bps_rd_max_length)?,
            bps_write: amount(self.bps_wr),
            bps_write_max: amount(self.bps_wr_max.unwrap_or(0)),
            bps_write_max_length: seconds(self.bps_wr_max_length)?,
            iops_total: amount(self.iops),
            iops_total_max: amount(self.iops_max.unwrap_or(0)),
            iops_total_max_length: seconds(self.iops_max_length)?,
            iops_read: amount(self.iops_rd),
            iops_read_max: amount(self.iops_rd_max.unwrap_or(0)),
            iops_read_max_length: seconds(self.iops_rd_max_length)?,
            iops_write: amount(self.iops_wr),
            iops_write_max: amount(self.iops_wr_max.unwrap_or(0)),
            iops_write_max_length: seconds(self.iops_wr_max_length)?,
            iops_size: amount(self.iops_size.unwrap_or(0)),
        })
    }
}

/// What is negative is refused as too great, as in QEMU.
fn amount(value: i64) -> u64 {
    value.try_into().unwrap_or(u64::MAX)
}

fn seconds(value: Option<i64>) -> Result<u32, LimitsError> {
    let value = value.unwrap_or(1);
    value.try_into().map_err(|_| LimitsError::TooLong)
}

pub(super) async fn block_set_io_throttle(
    monitor: Arc<Monitor>,
    arguments: SetIoThrottle,
) -> Result<Done, QmpError> {
    let (device, id) = (arguments.device.as_deref(), arguments.id.as_deref());
    let disk = disk(&monitor, device, id)?;
    if disk.node().is_none() {
        return Err(QmpError::generic("Device has no medium"));
    }
    let (limits, group) = (arguments.limits()?, arguments.group.as_deref());
    monitor.graph.set_io_throttle(&disk, group, limits).await?;
    Ok(Done {})
}

/// The part of QEMU's `BlockDeviceInfo` that is about limits: bursts only where there are any.
#[derive(Debug, Default, JsonSchema, Serialize)]
pub(super) struct LimitsRecord {
    pub(super) bps: u64,
    pub(super) bps_rd: u64,
    pub(super) bps_wr: u64,
    pub(super) iops: u64,
    pub(super) iops_rd: u64,
    pub(super) iops_wr: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) bps_max: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) bps_rd_max: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) bps_wr_max: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) iops_max: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) iops_rd_max: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) iops_wr_max: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) bps_max_length: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) bps_rd_max_length: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) bps_wr_max_length: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) iops_max_length: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) iops_rd_max_length: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) iops_wr_max_length: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) iops_size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) group: Option<String>,
}

impl LimitsRecord {
    /// A disk's limits; zeroes and no group if it has none.
    pub(super) fn of(disk: &Backend) -> Self {
        let Some(group) = disk.throttle_group() else {
            return Self::default();
        };
        let limits = group.limits();
        let given = |value| (value != 0).then_some(value);
        let length = |burst, length| (burst != 0).then_some(length);
        Self {
            bps: limits.bps_total,
            bps_rd: limits.bps_read,
            bps_wr: limits.bps_write,
            iops: limits.iops_total,
            iops_rd: limits.iops_read,
            iops_wr: limits.iops_write,
            bps_max: given(limits.bps_total_max),
            bps_rd_max: given(limits.bps_read_max),
            bps_wr_max: given(limits.bps_write_max),
            iops_max: given(limits.iops_total_max),
            iops_rd_max: given(limits.iops_read_max),
            iops_wr_max: given(limits.iops_write_max),
            bps_max_length: length(limits.bps_total_max, limits.bps_total_max_length),
            bps_rd_max_length: length(limits.bps_read_max, limits.bps_read_max_length),
            bps_wr_max_length: length(limits.bps_write_max, limits.bps_write_max_length),
            iops_max_length: length(limits.iops_total_max, limits.iops_total_max_length),
            iops_rd_max_length: length(limits.iops_read_max, limits.iops_read_max_length),
            iops_wr_max_length: length(limits.iops_write_max, limits.iops_write_max_length),
            iops_size: given(limits.iops_size),
            group: Some(group.name().to_owned()),
        }
    }
}
