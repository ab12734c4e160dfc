//! What the command line asks for in disks: I/O threads, block nodes, and the devices on them.
//!
//! Data only; the machine builder reads it in this order, because nodes and devices refer to what
//! stands before them.

use serde::Deserialize;
use sluice_block::BlockdevOptions;
use sluice_block::backend::ErrorPolicy;
use sluice_block::driver::throttle::ThrottleLimits;

/// Everything between the host's files and the guest's disk controllers.
#[derive(Clone, Debug, Default)]
pub struct StorageConfig {
    /// `--object iothread`: the threads to start.
    pub iothreads: Vec<IoThreadConfig>,
    /// `--object throttle-group`: limits that nodes share.
    pub throttle_groups: Vec<ThrottleGroupConfig>,
    /// `--blockdev`: the nodes to open, in this order.
    pub nodes: Vec<BlockdevOptions>,
    /// `--drive` without a file that no device uses: places for media.
    pub empty_drives: Vec<EmptyDriveConfig>,
    /// `--device` and the device part of `--drive`.
    pub disks: Vec<DiskConfig>,
}

/// `--drive if=none,id=…` without a file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct EmptyDriveConfig {
    /// The backend's name.
    pub id: String,
    /// Nothing is written to its media.
    pub read_only: bool,
}

/// `--object iothread,id=…`: the properties of an I/O thread, with QEMU's names, and QEMU's defaults but for polling. The
/// values are checked where the thread is made ([`IoThreadConfig::loop_config`]).
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct IoThreadConfig {
    /// By which devices and QMP refer to it.
    pub id: String,
    /// For how many nanoseconds at most it looks for work before it sleeps; 0 turns polling off.
    #[serde(default)]
    pub poll_max_ns: i64,
    /// The factor by which that time grows; 0 means 2.
    #[serde(default)]
    pub poll_grow: i64,
    /// The divisor by which it shrinks; 0 means to nothing.
    #[serde(default)]
    pub poll_shrink: i64,
    /// So many operations are handed to the ring at once; 0 leaves it to the loop.
    #[serde(default)]
    pub aio_max_batch: i64,
    /// Worker threads that are always kept.
    #[serde(default)]
    pub thread_pool_min: i64,
    /// The most worker threads.
    #[serde(default = "IoThreadConfig::default_thread_pool_max")]
    pub thread_pool_max: i64,
}

impl IoThreadConfig {
    const fn default_thread_pool_max() -> i64 {
        64
    }

    /// A thread with all defaults.
    #[cfg(test)]
    pub(crate) fn new(id: &str) -> Self {
        Self {
            id: id.to_owned(),
            poll_max_ns: 0,
            poll_grow: 0,
            poll_shrink: 0,
            aio_max_batch: 0,
            thread_pool_min: 0,
            thread_pool_max: Self::default_thread_pool_max(),
        }
    }
}

/// `--object throttle-group,id=…,limits.…`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ThrottleGroupConfig {
    /// By which nodes refer to it.
    pub id: String,
    /// What it allows.
    pub limits: ThrottleLimits,
}

/// `--drive throttling.…`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DiskLimits {
    /// The group that the disk joins; one named like its backend if absent.
    pub group: Option<String>,
    /// The limits that the group gets; they limit something.
    pub limits: ThrottleLimits,
}

/// One disk of the guest.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DiskConfig {
    /// The backend's name, unique: the drive's id, the device's id, or made up from its place. QMP
    /// knows the disk by it (`device`).
    pub backend: String,
    /// `--device id=`: the device's own name (`qdev`).
    pub id: Option<String>,
    /// What the backend stands on.
    pub root: DiskRoot,
    /// The guest sees a volatile write cache and must flush it; otherwise every write is flushed
    /// before it completes.
    pub write_cache: bool,
    /// What is done about its I/O errors.
    pub errors: ErrorPolicy,
    /// The limits of its reads and writes, if it has any.
    pub limits: Option<DiskLimits>,
    /// The serial number shown to the guest, if given; at most 20 bytes of ASCII.
    pub serial: Option<String>,
    /// The controller it hangs on.
    pub attachment: Attachment,
    /// Whether requests wait while the disk is drained; false only in the negative control, which
    /// shows what happens then (`ide-hd,x-postpone=off`).
    #[cfg(feature = "test-hooks")]
    pub postpone: bool,
}

/// The node that a disk's backend stands on.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum DiskRoot {
    /// A node of [`StorageConfig::nodes`], or a child described with one, by name.
    Named(String),
    /// A node of the disk's own (`--drive`), which goes when the disk goes.
    Own(BlockdevOptions),
    /// None: a CD-ROM drive without a medium.
    Empty,
}

/// Where a disk is attached.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Attachment {
    /// An ATA disk on one of the two IDE channels.
    Ide(IdePosition),
    /// A CD-ROM drive on one of the two IDE channels.
    IdeCd(IdePosition),
    /// A virtio-blk function of its own on the PCI bus.
    VirtioPci {
        /// `iothread=`: who serves its queues; the main loop if absent.
        iothread: Option<String>,
        /// `addr=`: its place on bus 0; the first free slot if absent.
        address: Option<PciAddress>,
    },
}

/// A place on the IDE channels.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct IdePosition {
    /// 0: ports 0x1f0, IRQ 14; 1: ports 0x170, IRQ 15.
    pub channel: u8,
    /// 0: master; 1: slave.
    pub unit: u8,
}

impl IdePosition {
    /// Channels of the controller.
    pub const CHANNELS: u8 = 2;
    /// Drives of a channel.
    pub const UNITS: u8 = 2;
}

/// A place on PCI bus 0.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct PciAddress {
    /// 0 to 31.
    pub slot: u8,
    /// 0 to 7.
    pub function: u8,
}
