//! virtio-blk: a disk over virtqueues.
//!
//! [`VirtioBlk`] is made by the machine builder and put behind a [`super::VirtioPci`], which calls
//! it on vCPU threads. Each queue is served in an AioContext of its own choice by a `worker`;
//! requests are values (`request`) that run against the disk's backend.
//!
//! Source: VIRTIO 1.2, section 5.2.

pub mod layout;
mod request;
#[cfg(test)]
mod tests;
mod worker;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::Mutex;
use sluice_aio::gate::Describe;
use sluice_aio::{AioContext, Gate};
use sluice_block::backend::{Backend, SizeWatcher};

use self::layout::{Features, SECTOR, SERIAL_LEN, config};
use self::request::{Disk, MAX_DISCARD_SECTORS, MAX_DISCARD_SEGMENTS, MAX_TRANSFER};
use self::worker::{Stop, serve};
use super::{ActiveQueue, DeviceId, Interrupts, Settling, VirtioDevice, VirtioError};

/// How a virtio disk is set up.
pub struct VirtioBlkConfig {
    /// The disk.
    pub backend: Arc<Backend>,
    /// The loops that serve the queues: queue N is served by loop N modulo their number. At least
    /// one.
    pub contexts: Vec<AioContext>,
    /// Number of queues, at least 1.
    pub num_queues: u16,
    /// Entries of each queue: a power of two, 4 to 1024.
    pub queue_size: u16,
    /// The serial number, at most 20 bytes.
    pub serial: String,
    /// Logical block size in bytes: a power of two, 512 or more.
    pub logical_block_size: u32,
    /// Physical block size in bytes: a power of two, not below the logical one.
    pub physical_block_size: u32,
    /// Keep writes in the host's cache until a flush; if not, every write is durable when it ends,
    /// unless the driver switches the cache on itself.
    pub write_cache: bool,
    /// Offer DISCARD.
    pub discard: bool,
    /// Offer WRITE_ZEROES.
    pub write_zeroes: bool,
}

impl VirtioBlkConfig {
    /// The usual disk: one queue of 256 entries, blocks of 512 bytes, all features.
    pub fn new(backend: Arc<Backend>, context: AioContext) -> Self {
        Self {
            backend,
            contexts: vec![context],
            num_queues: 1,
            queue_size: 256,
            serial: String::new(),
            logical_block_size: 512,
            physical_block_size: 512,
            write_cache: true,
            discard: true,
            write_zeroes: true,
        }
    }
}

/// Largest queue: a request's buffers then fit one vectored system call.
const MAX_QUEUE_SIZE: u16 = 1024;
/// Smallest queue: a header, data and a status, and `seg_max` not zero.
const MIN_QUEUE_SIZE: u16 = 4;
/// Largest logical block: what the topology fields can express is larger, drivers are not prepared
/// for it.
const MAX_BLOCK_SIZE: u32 = 2 << 20;

/// What workers share with the device.
struct Shared {
    disk: Disk,
    /// The `writeback` field: the driver's wish, if it may have one.
    writeback: AtomicBool,
    /// What the operator wants; the field's value after a reset.
    write_cache: bool,
    /// Requests in flight of each queue; each has one writer, the queue's worker.
    in_flight: Box<[AtomicUsize]>,
}

impl Describe for Shared {
    fn in_flight(&self, _: &Gate) -> Vec<String> {
        let counts = self
            .in_flight
            .iter()
            .map(|count| count.load(Ordering::Relaxed));
        let busy = counts.enumerate().filter(|(_, count)| *count > 0);
        busy.map(|(queue, count)| format!("virtio-blk queue {queue}: {count} in flight"))
            .collect()
    }
}

impl Shared {
    /// Tells the backend whether writes of a driver with these features may stay in a cache, or
    /// whether it relies on their being durable (section 5.2.6.2).
    fn apply_write_cache(&self, features: Features) {
        let on = if features.contains(Features::CONFIG_WCE) {
            self.writeback.load(Ordering::Acquire)
        } else {
            self.write_cache && features.contains(Features::FLUSH)
        };
        self.disk.backend.set_write_cache(on);
    }
}

/// A virtio block device.
pub struct VirtioBlk {
    shared: Arc<Shared>,
    contexts: Vec<AioContext>,
    queue_sizes: Vec<u16>,
    physical_block_size: u32,
    features: Features,
    /// `capacity`: the size as the driver knows it.
    capacity: AtomicU64,
    /// The way to the driver, once there is one.
    driver: OnceLock<Weak<dyn Interrupts>>,
    /// Running queues, by number.
    stops: Mutex<Vec<Option<Arc<Stop>>>>,
}

impl VirtioBlk {
    /// A disk for the machine builder to put on a bus. Tells the backend which loop serves it.
    ///
    /// # Errors
    /// A number, size or serial that a virtio disk cannot have.
    pub fn new(settings: VirtioBlkConfig) -> Result<Arc<Self>, VirtioError> {
        let VirtioBlkConfig {
            backend,
            contexts,
            num_queues,
            queue_size,
            write_cache,
            ..
        } = settings;
        let Some(home) = contexts.first().filter(|_| num_queues > 0) else {
            return Err(VirtioError::QueueCount(
                usize::from(num_queues).min(contexts.len()),
            ));
        };
        if !queue_size.is_power_of_two() || !(MIN_QUEUE_SIZE..=MAX_QUEUE_SIZE).contains(&queue_size)
        {
            return Err(VirtioError::QueueSize(queue_size));
        }
        let logical = settings.logical_block_size;
        if !logical.is_power_of_two() || u64::from(logical) < SECTOR || logical > MAX_BLOCK_SIZE {
            return Err(VirtioError::BlockSize(logical));
        }
        let physical = settings.physical_block_size;
        if !physical.is_power_of_two() || physical < logical || physical > MAX_BLOCK_SIZE {
            return Err(VirtioError::BlockSize(physical));
        }
        let mut serial = [0; SERIAL_LEN];
        let bytes = settings.serial.as_bytes();
        match serial.get_mut(..bytes.len()) {
            Some(start) => start.copy_from_slice(bytes),
            None => return Err(VirtioError::Serial(settings.serial)),
        }
        backend.set_context(home);
        let mut features = Features::all();
        features.set(Features::RO, backend.is_read_only());
        features.set(Features::MQ, num_queues > 1);
        features.set(
            Features::DISCARD,
            settings.discard && !backend.is_read_only(),
        );
        features.set(
            Features::WRITE_ZEROES,
            settings.write_zeroes && !backend.is_read_only(),
        );
        let disk = Disk {
            backend,
            serial,
            block_size: logical,
        };
        let shared = Arc::new(Shared {
            disk,
            writeback: AtomicBool::new(write_cache),
            write_cache,
            in_flight: (0..num_queues).map(|_| AtomicUsize::new(0)).collect(),
        });
        let describer = Arc::downgrade(&shared);
        shared.disk.backend.gate().add_describer(describer);
        let blk = Arc::new(Self {
            shared,
            contexts,
            queue_sizes: vec![queue_size; usize::from(num_queues)],
            physical_block_size: physical,
            features,
            capacity: AtomicU64::new(0),
            driver: OnceLock::new(),
            stops: Mutex::new(vec![None; usize::from(num_queues)]),
        });
        let watcher: Weak<Self> = Arc::downgrade(&blk);
        blk.shared.disk.backend.watch_size(watcher);
        blk.take_capacity();
        Ok(blk)
    }

    /// Brings the capacity up to date; whether it was another one.
    fn take_capacity(&self) -> bool {
        let capacity = self.shared.disk.capacity();
        self.capacity.swap(capacity, Ordering::AcqRel) != capacity
    }

    /// The configuration structure as it is now. Fields of features that are not offered read as
    /// they would be.
    fn image(&self) -> [u8; config::LEN] {
        let mut image = [0; config::LEN];
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        let disk = &self.shared.disk;
        let block = disk.block_size;
        let capacity = self.capacity.load(Ordering::Acquire);
        let queue_size = self.queue_sizes.first().copied().unwrap_or(MIN_QUEUE_SIZE);
        let exponent = (self.physical_block_size / block).trailing_zeros();
        let min_io = u16::try_from(self.physical_block_size / block).unwrap_or(u16::MAX);
        let segments = u32::try_from(MAX_DISCARD_SEGMENTS)
            .unwrap_or(1)
            .to_le_bytes();
        let queues = u16::try_from(self.queue_sizes.len()).unwrap_or(u16::MAX);
        put(config::CAPACITY, &capacity.to_le_bytes());
        let seg_max = u32::from(queue_size - 2);
        put(config::SIZE_MAX, &size_max(seg_max).to_le_bytes());
        put(config::SEG_MAX, &seg_max.to_le_bytes());
        put(config::BLK_SIZE, &block.to_le_bytes());
        put(config::PHYSICAL_BLOCK_EXP, &exponent.to_le_bytes()[..1]);
        put(config::MIN_IO_SIZE, &min_io.to_le_bytes());
        put(
            config::WRITEBACK,
            &[u8::from(self.shared.writeback.load(Ordering::Acquire))],
        );
        put(config::NUM_QUEUES, &queues.to_le_bytes());
        put(
            config::MAX_DISCARD_SECTORS,
            &MAX_DISCARD_SECTORS.to_le_bytes(),
        );
        put(config::MAX_DISCARD_SEG, &segments);
        put(
            config::DISCARD_SECTOR_ALIGNMENT,
            &(self.physical_block_size / 512).to_le_bytes(),
        );
        put(
            config::MAX_WRITE_ZEROES_SECTORS,
            &MAX_DISCARD_SECTORS.to_le_bytes(),
        );
        put(config::MAX_WRITE_ZEROES_SEG, &segments);
        put(config::WRITE_ZEROES_MAY_UNMAP, &[1]);
        image
    }
}

/// Largest buffer: so many of them, `seg_max`, fit into [`MAX_TRANSFER`]. A power of two, since drivers
/// divide pages and blocks.
fn size_max(seg_max: u32) -> u32 {
    let most = u32::try_from(MAX_TRANSFER).unwrap_or(u32::MAX) / seg_max;
    1 << most.ilog2()
}

impl SizeWatcher for VirtioBlk {
    /// Section 5.2.5: the driver learns the new capacity by a configuration change.
    fn size_changed(&self) {
        match self.driver.get().and_then(Weak::upgrade) {
            Some(driver) => driver.change_config(&|| self.take_capacity()),
            None => {
                self.take_capacity();
            }
        }
    }
}

impl VirtioDevice for VirtioBlk {
    fn device_id(&self) -> DeviceId {
        DeviceId::Block
    }

    fn features(&self) -> u64 {
        self.features.bits()
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn connect(&self, driver: Weak<dyn Interrupts>) {
        // There is one transport.
        let _ = self.driver.set(driver);
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let image = self.image();
        let from = usize::try_from(offset)
            .ok()
            .and_then(|offset| image.get(offset..));
        data.fill(0);
        for (byte, value) in data.iter_mut().zip(from.unwrap_or_default()) {
            *byte = *value;
        }
    }

    fn write_config(&self, offset: u64, data: &[u8], features: u64) {
        let features = Features::from_bits_truncate(features);
        let may = features.contains(Features::CONFIG_WCE);
        if let (true, [value]) = (may && offset == config::WRITEBACK as u64, data) {
            self.shared.writeback.store(*value != 0, Ordering::Release);
            self.shared.apply_write_cache(features);
        }
    }

    fn start_queue(&self, queue: ActiveQueue) {
        let index = usize::from(queue.index);
        let features = Features::from_bits_truncate(queue.features);
        self.shared.apply_write_cache(features);
        let stop = Arc::new(Stop::default());
        if let Some(slot) = self.stops.lock().get_mut(index) {
            *slot = Some(Arc::clone(&stop));
        }
        let shared = Arc::clone(&self.shared);
        // `new` made sure that there is a context.
        let context = &self.contexts[index % self.contexts.len()];
        context.spawn(move || serve(shared, queue, stop));
    }

    fn stop_queue(&self, index: u16, settling: Settling) {
        let stop = self
            .stops
            .lock()
            .get_mut(usize::from(index))
            .and_then(Option::take);
        if let Some(stop) = stop {
            stop.request(settling);
        }
    }

    fn reset(&self) {
        let initial = self.shared.write_cache;
        self.shared.writeback.store(initial, Ordering::Release);
        self.shared.disk.backend.set_write_cache(initial);
    }
}
