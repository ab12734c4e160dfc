//! How a virtio disk is set up, what of it cannot be, and the configuration that its driver reads.
//!
//! Machine build, but for [`Configuration::image`], which vCPU threads call.
//!
//! Source: VIRTIO 1.2, section 5.2.4.

use std::sync::Arc;

use sluice_aio::AioContext;
use sluice_block::Backend;

use super::layout::{Features, SECTOR, SERIAL_LEN, config};
use super::request::{MAX_DISCARD_SECTORS, MAX_DISCARD_SEGMENTS, MAX_TRANSFER};
use crate::virtio::VirtioError;

/// Cylinders, heads and sectors, for drivers that like to have them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Number of cylinders, at least 1.
    pub cylinders: u16,
    /// Heads of a cylinder, at least 1.
    pub heads: u8,
    /// Sectors of a track, at least 1.
    pub sectors: u8,
}

impl Geometry {
    /// The customary one for a disk of so many sectors.
    fn customary(sectors: u64) -> Self {
        const HEADS: u8 = 16;
        const SECTORS: u8 = 63;
        const CYLINDERS: std::ops::RangeInclusive<u64> = 2..=16383;
        let cylinders = sectors / (u64::from(HEADS) * u64::from(SECTORS));
        let cylinders = cylinders.clamp(*CYLINDERS.start(), *CYLINDERS.end());
        Self {
            cylinders: u16::try_from(cylinders).unwrap_or(u16::MAX),
            heads: HEADS,
            sectors: SECTORS,
        }
    }
}

/// How a virtio disk is set up.
pub struct VirtioBlkConfig {
    /// The disk.
    pub backend: Arc<Backend>,
    /// The loops that serve the queues: queue N is served by loop N modulo their number. At least
    /// one. Jobs on the disk run in the first.
    pub contexts: Vec<AioContext>,
    /// Number of queues, at least 1.
    pub num_queues: u16,
    /// Entries of each queue: a power of two, 4 to 1024.
    pub queue_size: u16,
    /// A request may have as many buffers as its queue has room for; if not, never more than
    /// [`SEG_MAX`].
    pub seg_max_adjust: bool,
    /// The serial number, at most 20 bytes.
    pub serial: String,
    /// Logical block size in bytes: a power of two, 512 or more.
    pub logical_block_size: u32,
    /// Physical block size in bytes: a power of two, not below the logical one.
    pub physical_block_size: u32,
    /// The least that should be transferred at once, in bytes: a multiple of the logical block; 0: a
    /// physical block.
    pub min_io_size: u32,
    /// What is best transferred at once, in bytes: a multiple of the logical block; 0: not known.
    pub opt_io_size: u32,
    /// What discards should be aligned to, in bytes: a multiple of the logical block; none: a
    /// physical block.
    pub discard_granularity: Option<u32>,
    /// Cylinders, heads and sectors; made up if absent.
    pub geometry: Option<Geometry>,
    /// Keep writes in the host's cache until a flush; if not, every write is durable when it ends,
    /// unless the driver switches the cache on itself.
    pub write_cache: bool,
    /// Let the driver switch the cache off and on.
    pub config_wce: bool,
    /// Offer DISCARD.
    pub discard: bool,
    /// Offer WRITE_ZEROES.
    pub write_zeroes: bool,
    /// Most sectors of a discarded range, from 1 to [`MAX_DISCARD_SECTORS`].
    pub max_discard_sectors: u32,
    /// Most sectors of a zeroed range, from 1 to [`MAX_DISCARD_SECTORS`].
    pub max_write_zeroes_sectors: u32,
}

impl VirtioBlkConfig {
    /// The usual disk: one queue of 256 entries, blocks of 512 bytes, all features.
    pub fn new(backend: Arc<Backend>, context: AioContext) -> Self {
        Self {
            backend,
            contexts: vec![context],
            num_queues: 1,
            queue_size: 256,
            seg_max_adjust: true,
            serial: String::new(),
            logical_block_size: 512,
            physical_block_size: 512,
            min_io_size: 0,
            opt_io_size: 0,
            discard_granularity: None,
            geometry: None,
            write_cache: true,
            config_wce: true,
            discard: true,
            write_zeroes: true,
            max_discard_sectors: MAX_DISCARD_SECTORS,
            max_write_zeroes_sectors: MAX_DISCARD_SECTORS,
        }
    }

    /// Refuses what a virtio disk cannot have. Returns the serial number as drivers read it.
    pub(super) fn check(&self) -> Result<[u8; SERIAL_LEN], VirtioError> {
        if self.num_queues == 0 || self.contexts.is_empty() {
            let count = usize::from(self.num_queues).min(self.contexts.len());
            return Err(VirtioError::QueueCount(count));
        }
        let size = self.queue_size;
        if !size.is_power_of_two() || !(MIN_QUEUE_SIZE..=MAX_QUEUE_SIZE).contains(&size) {
            return Err(VirtioError::QueueSize(size));
        }
        let logical = self.logical_block_size;
        if !logical.is_power_of_two() || u64::from(logical) < SECTOR || logical > MAX_BLOCK_SIZE {
            return Err(VirtioError::BlockSize(logical));
        }
        let physical = self.physical_block_size;
        if !physical.is_power_of_two() || physical < logical || physical > MAX_BLOCK_SIZE {
            return Err(VirtioError::BlockSize(physical));
        }
        let in_blocks = [
            ("min_io_size", self.min_io_size),
            ("opt_io_size", self.opt_io_size),
            ("discard_granularity", self.discard_granularity.unwrap_or(0)),
        ];
        if let Some((name, _)) = in_blocks
            .into_iter()
            .find(|(_, size)| !size.is_multiple_of(logical))
        {
            return Err(VirtioError::NotInBlocks(name));
        }
        if u16::try_from(self.min_io_size / logical).is_err() {
            return Err(VirtioError::MinIoSize(self.min_io_size));
        }
        if let Some(geometry) = self.geometry
            && (geometry.cylinders == 0 || geometry.heads == 0 || geometry.sectors == 0)
        {
            return Err(VirtioError::Geometry(geometry));
        }
        let limits = [
            ("max-discard-sectors", self.max_discard_sectors),
            ("max-write-zeroes-sectors", self.max_write_zeroes_sectors),
        ];
        for (name, value) in limits {
            if !(1..=MAX_DISCARD_SECTORS).contains(&value) {
                return Err(VirtioError::SectorLimit { name, value });
            }
        }
        let mut serial = [0; SERIAL_LEN];
        let bytes = self.serial.as_bytes();
        match serial.get_mut(..bytes.len()) {
            Some(start) => start.copy_from_slice(bytes),
            None => return Err(VirtioError::Serial(self.serial.clone())),
        }
        Ok(serial)
    }

    /// What the device offers.
    pub(super) fn features(&self) -> Features {
        let writable = !self.backend.is_read_only();
        let mut features = Features::all();
        features.set(Features::RO, !writable);
        features.set(Features::MQ, self.num_queues > 1);
        features.set(Features::FLUSH, self.write_cache || self.config_wce);
        features.set(Features::CONFIG_WCE, self.config_wce);
        features.set(Features::DISCARD, self.discard && writable);
        features.set(Features::WRITE_ZEROES, self.write_zeroes && writable);
        features
    }
}

/// Largest queue: a request's buffers then fit one vectored system call.
const MAX_QUEUE_SIZE: u16 = 1024;
/// Smallest queue: a header, data and a status, and `seg_max` not zero.
const MIN_QUEUE_SIZE: u16 = 4;
/// Largest logical block: what the topology fields can express is larger, drivers are not prepared
/// for it.
const MAX_BLOCK_SIZE: u32 = 2 << 20;
/// Descriptors of a request besides its data: header and status.
const REQUEST_OVERHEAD: u16 = 2;
/// Most buffers of a request's data unless the queue's size says: those of a queue of 128.
pub const SEG_MAX: u16 = 128 - REQUEST_OVERHEAD;

/// The configuration structure but for what changes.
pub(super) struct Configuration([u8; config::LEN]);

impl Configuration {
    /// For a disk with these settings, which were checked. Fields of features that are not offered read
    /// as they would be.
    pub(super) fn new(settings: &VirtioBlkConfig) -> Self {
        let mut image = Self([0; config::LEN]);
        let block = settings.logical_block_size;
        let physical = settings.physical_block_size;
        let most = if settings.seg_max_adjust {
            u16::MAX
        } else {
            SEG_MAX
        };
        let seg_max = u32::from(most.min(settings.queue_size - REQUEST_OVERHEAD));
        image.put(config::SIZE_MAX, &size_max(seg_max).to_le_bytes());
        image.put(config::SEG_MAX, &seg_max.to_le_bytes());
        let geometry = settings
            .geometry
            .unwrap_or_else(|| Geometry::customary(settings.backend.len() / SECTOR));
        image.put(config::CYLINDERS, &geometry.cylinders.to_le_bytes());
        image.put(config::HEADS, &[geometry.heads]);
        image.put(config::SECTORS, &[geometry.sectors]);
        image.put(config::BLK_SIZE, &block.to_le_bytes());
        let exponent = (physical / block).trailing_zeros();
        image.put(config::PHYSICAL_BLOCK_EXP, &exponent.to_le_bytes()[..1]);
        let min_io = match settings.min_io_size {
            0 => physical,
            size => size,
        };
        let min_io = u16::try_from(min_io / block).unwrap_or(u16::MAX);
        image.put(config::MIN_IO_SIZE, &min_io.to_le_bytes());
        let opt_io = settings.opt_io_size / block;
        image.put(config::OPT_IO_SIZE, &opt_io.to_le_bytes());
        image.put(config::NUM_QUEUES, &settings.num_queues.to_le_bytes());
        let segments = u32::try_from(MAX_DISCARD_SEGMENTS).unwrap_or(1);
        image.put(
            config::MAX_DISCARD_SECTORS,
            &settings.max_discard_sectors.to_le_bytes(),
        );
        image.put(config::MAX_DISCARD_SEG, &segments.to_le_bytes());
        let granularity = settings.discard_granularity.filter(|size| *size > 0);
        let alignment = granularity.unwrap_or(physical) / SECTOR_BYTES;
        image.put(config::DISCARD_SECTOR_ALIGNMENT, &alignment.to_le_bytes());
        image.put(
            config::MAX_WRITE_ZEROES_SECTORS,
            &settings.max_write_zeroes_sectors.to_le_bytes(),
        );
        image.put(config::MAX_WRITE_ZEROES_SEG, &segments.to_le_bytes());
        image.put(config::WRITE_ZEROES_MAY_UNMAP, &[1]);
        image
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// The structure as it is now, with this capacity in sectors and this `writeback`.
    pub(super) fn image(&self, capacity: u64, writeback: bool) -> [u8; config::LEN] {
        let mut now = Self(self.0);
        now.put(config::CAPACITY, &capacity.to_le_bytes());
        now.put(config::WRITEBACK, &[u8::from(writeback)]);
        now.0
    }
}

/// [`SECTOR`] as the size of a field of 32 bits.
const SECTOR_BYTES: u32 = 512;

/// Largest buffer: so many of them, `seg_max`, fit into [`MAX_TRANSFER`]. A power of two, since drivers
/// divide pages and blocks.
fn size_max(seg_max: u32) -> u32 {
    let most = u32::try_from(MAX_TRANSFER).unwrap_or(u32::MAX) / seg_max;
    1 << most.ilog2()
}
