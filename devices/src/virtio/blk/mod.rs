//! virtio-blk: a disk over virtqueues.
//!
//! [`VirtioBlk`] is made by the machine builder and put behind a [`super::VirtioPci`], which calls
//! it on vCPU threads. Each queue is served in an AioContext of its own choice by a `worker`;
//! requests are values (`request`) that run against the disk's backend.
//!
//! Source: VIRTIO 1.2, section 5.2.

pub mod layout;
mod request;
mod settings;
#[cfg(test)]
mod tests;
mod worker;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::Mutex;
use sluice_aio::gate::Describe;
use sluice_aio::{AioContext, Gate};
use sluice_block::backend::SizeWatcher;

use self::layout::{Features, config};
use self::request::Disk;
pub use self::request::MAX_DISCARD_SECTORS;
use self::settings::Configuration;
pub use self::settings::{Geometry, SEG_MAX, VirtioBlkConfig};
use self::worker::{Stop, serve};
use super::{ActiveQueue, DeviceId, Interrupts, Settling, VirtioDevice, VirtioError};

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
    configuration: Configuration,
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
        let serial = settings.check()?;
        let features = settings.features();
        let configuration = Configuration::new(&settings);
        let VirtioBlkConfig {
            backend,
            contexts,
            num_queues,
            queue_size,
            write_cache,
            ..
        } = settings;
        if let Some(home) = contexts.first() {
            backend.set_context(home);
        }
        let disk = Disk {
            backend,
            serial,
            block_size: settings.logical_block_size,
            max_discard_sectors: settings.max_discard_sectors,
            max_write_zeroes_sectors: settings.max_write_zeroes_sectors,
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
            configuration,
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
        let capacity = self.capacity.load(Ordering::Acquire);
        let writeback = self.shared.writeback.load(Ordering::Acquire);
        let image = self.configuration.image(capacity, writeback);
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
        // The settings' check made sure that there is a context.
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
