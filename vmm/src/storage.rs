//! What the command line asks for in disks: I/O threads, block nodes, and the devices on them.
//!
//! Data only; the machine builder reads it in this order, because nodes and devices refer to what
//! stands before them.

use serde::Deserialize;
use sluice_block::BlockdevOptions;
use sluice_block::backend::ErrorPolicy;
use sluice_block::driver::throttle::ThrottleLimits;
use sluice_block::job::OnError;

/// Everything between the host's files and the guest's disk controllers.
#[derive(Clone, Debug, Default)]
pub struct StorageConfig {
    /// `--object iothread`: the threads to start.
    pub iothreads: Vec<IoThreadConfig>,
    /// `--object throttle-group`: limits that nodes share.
    pub throttle_groups: Vec<ThrottleGroupConfig>,
    /// `--blockdev`: the nodes to open, in this order.
    pub nodes: Vec<BlockdevOptions>,
    /// `--drive if=none` that no device uses.
    pub loose_drives: Vec<LooseDriveConfig>,
    /// `--device` and the device part of `--drive`.
    pub disks: Vec<DiskConfig>,
}

/// A disk that no guest sees.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LooseDriveConfig {
    /// The backend's name.
    pub id: String,
    /// What it stands on: a node of its own, or nothing yet.
    pub root: DiskRoot,
    /// Nothing is written to its media.
    pub read_only: bool,
    /// The limits of its reads and writes, if it has any.
    pub limits: Option<DiskLimits>,
    /// What a device that is plugged in later takes from it.
    pub device: LooseDeviceDefaults,
}

/// What a `--drive` says about the device on it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LooseDeviceDefaults {
    /// As [`DiskConfig::write_cache`].
    pub write_cache: bool,
    /// What is done about errors of reads.
    pub rerror: OnError,
    /// And of writes.
    pub werror: OnError,
    /// The serial number, if given.
    pub serial: Option<String>,
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
    /// `share-rw`: others may write to its node too.
    pub share_rw: bool,
    /// The limits of its reads and writes, if it has any.
    pub limits: Option<DiskLimits>,
    /// The serial number shown to the guest, if given; at most 20 bytes of ASCII.
    pub serial: Option<String>,
    /// What an IDE drive says of itself besides.
    pub ide: IdeProperties,
    /// The controller it hangs on.
    pub attachment: Attachment,
    /// Whether requests wait while the disk is drained; false only in the negative control, which
    /// shows what happens then (`ide-hd,x-postpone=off`).
    #[cfg(feature = "test-hooks")]
    pub postpone: bool,
}

/// A virtio disk that is plugged in while the machine runs (`device_add`).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PluggedDisk {
    /// The device's name.
    pub id: Option<String>,
    /// The drive or node that it is put on.
    pub drive: String,
    /// As [`DiskConfig::serial`].
    pub serial: Option<String>,
    /// As [`DiskConfig::write_cache`]; the drive's if absent.
    pub write_cache: Option<bool>,
    /// What is done about errors of reads; `auto`: what the drive says.
    pub rerror: OnError,
    /// And of writes.
    pub werror: OnError,
    /// As [`DiskConfig::share_rw`].
    pub share_rw: bool,
    /// The others.
    pub device: VirtioDiskConfig,
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
    VirtioPci(VirtioDiskConfig),
}

/// `--device virtio-blk-pci`, as far as it is the device's.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct VirtioDiskConfig {
    /// `iothread=`, `iothread-vq-mapping=`: queue N is served by thread N modulo their number, or by the
    /// main loop if there is none.
    pub iothreads: Vec<String>,
    /// `addr=`: its place on bus 0; the first free slot if absent.
    pub address: Option<PciAddress>,
    /// `num-queues=`, at least 1.
    pub num_queues: u16,
    /// The others.
    pub properties: VirtioBlkProperties,
}

/// Properties of a virtio disk, with QEMU's names and defaults; the device judges them.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct VirtioBlkProperties {
    /// Entries of each queue.
    pub queue_size: u16,
    /// Whether a request may have as many buffers as the queue's size allows.
    pub seg_max_adjust: bool,
    /// Bytes.
    pub logical_block_size: u32,
    /// Bytes.
    pub physical_block_size: u32,
    /// Bytes; 0: a physical block.
    pub min_io_size: u32,
    /// Bytes; 0: not known.
    pub opt_io_size: u32,
    /// Bytes; a physical block if absent.
    pub discard_granularity: Option<u32>,
    /// `cyls`, `heads`, `secs`.
    pub geometry: Option<(u16, u8, u8)>,
    /// Whether the driver may switch the write cache.
    pub config_wce: bool,
    /// Whether discards are offered.
    pub discard: bool,
    /// Whether writes of zeroes are offered.
    pub write_zeroes: bool,
    /// The most that a discard can have if absent.
    pub max_discard_sectors: Option<u32>,
    /// The most that a write of zeroes can have if absent.
    pub max_write_zeroes_sectors: Option<u32>,
    /// Whether EVENT_IDX is offered.
    pub event_idx: bool,
    /// Whether INDIRECT_DESC is offered.
    pub indirect_desc: bool,
    /// Whether RING_RESET is offered.
    pub queue_reset: bool,
    /// Whether ACCESS_PLATFORM is offered.
    pub iommu_platform: bool,
    /// MSI-X vectors; one for each queue and one more if absent.
    pub vectors: Option<u32>,
}

impl Default for VirtioBlkProperties {
    fn default() -> Self {
        Self {
            queue_size: 256,
            seg_max_adjust: true,
            logical_block_size: 512,
            physical_block_size: 512,
            min_io_size: 0,
            opt_io_size: 0,
            discard_granularity: None,
            geometry: None,
            config_wce: true,
            discard: true,
            write_zeroes: true,
            max_discard_sectors: None,
            max_write_zeroes_sectors: None,
            event_idx: true,
            indirect_desc: true,
            queue_reset: true,
            iommu_platform: false,
            vectors: None,
        }
    }
}

/// What an IDE drive says of itself (`ide-hd`, `ide-cd`). What is not given is the drive's to choose.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct IdeProperties {
    /// `model=`.
    pub model: Option<String>,
    /// `ver=`: the firmware's version.
    pub version: Option<String>,
    /// `wwn=`: the world wide name; none if zero.
    pub wwn: u64,
    /// `rotation_rate=`, in revolutions a minute; 1: it does not rotate, 0: it does not tell.
    pub rotation_rate: u16,
    /// `physical_block_size=`, in bytes.
    pub physical_block_size: Option<u32>,
    /// `cyls=`, `heads=`, `secs=`: the native translation.
    pub geometry: Option<(u16, u8, u8)>,
    /// `discard_granularity=` is not 0: TRIM is offered.
    pub discard: bool,
}

impl Default for IdeProperties {
    fn default() -> Self {
        Self {
            model: None,
            version: None,
            wwn: 0,
            rotation_rate: 0,
            physical_block_size: None,
            geometry: None,
            discard: true,
        }
    }
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
