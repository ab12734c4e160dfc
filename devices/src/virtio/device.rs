//! What lies between a virtio transport and a kind of device.
//!
//! The transport calls a [`VirtioDevice`] from vCPU threads while it holds its register lock:
//! nothing here waits, and nothing may call back into the transport on the same thread. The device
//! answers through [`Interrupts`] and by dropping a [`Settling`], both from any thread.

use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use sluice_aio::GuestRam;
use virtio_queue::Queue;

use super::Kick;

/// Kinds of virtio devices (VIRTIO 1.2, section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum DeviceId {
    /// A block device.
    Block = 2,
}

/// How a device reaches its driver. Any thread.
pub trait Interrupts: Send + Sync {
    /// The used ring of a queue has something to look at. Takes no lock when MSI-X is in use.
    fn queue(&self, index: u16);

    /// The driver did something impossible: sets NEEDS_RESET and tells the driver (VIRTIO 1.2,
    /// section 2.1.2).
    fn needs_reset(&self, reason: &dyn std::error::Error);

    /// Changes what [`VirtioDevice::read_config`] answers. No driver sees half of it: it reads nothing
    /// while `change` runs, and another `config_generation` afterwards. If the device lives, its driver
    /// is told (VIRTIO 1.2, sections 2.5 and 4.1.4.3.1). `change` says whether there was anything to
    /// change; it may not call the transport.
    fn change_config(&self, change: &dyn Fn() -> bool);

    /// Whether the device may access the guest's memory now. A device that may not leaves its rings
    /// alone; its doorbells ring when it may again.
    fn may_access_memory(&self) -> bool;
}

/// A queue that the driver has set up, as handed to the device.
pub struct ActiveQueue {
    /// Its number.
    pub index: u16,
    /// Addresses and size, checked to lie in memory.
    pub queue: Queue,
    /// The guest's memory.
    pub memory: Arc<GuestRam>,
    /// Its doorbell.
    pub kick: Arc<Kick>,
    /// All feature bits that were negotiated.
    pub features: u64,
    /// The way to the driver.
    pub interrupts: Arc<dyn Interrupts>,
}

/// A promise to settle: dropping the last clone says that nothing is in flight any more and that
/// guest memory will not be touched again. Since it is dropped with whatever holds it, a loop that
/// goes away settles too.
#[derive(Clone)]
pub struct Settling {
    _last: Arc<WhenDropped>,
}

struct WhenDropped {
    then: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl Settling {
    /// `then` runs when the last clone is dropped, on that thread.
    pub fn new(then: impl FnOnce() + Send + 'static) -> Self {
        Self {
            _last: Arc::new(WhenDropped {
                then: Mutex::new(Some(Box::new(then))),
            }),
        }
    }
}

impl Drop for WhenDropped {
    fn drop(&mut self) {
        if let Some(then) = self.then.get_mut().take() {
            then();
        }
    }
}

/// A kind of virtio device.
pub trait VirtioDevice: Send + Sync {
    /// Which kind.
    fn device_id(&self) -> DeviceId;

    /// The device-specific feature bits it offers.
    fn features(&self) -> u64;

    /// The largest size of each queue.
    fn queue_sizes(&self) -> &[u16];

    /// The way to the driver, for a device that changes by itself. Called once, before any other.
    fn connect(&self, driver: Weak<dyn Interrupts>) {
        let _ = driver;
    }

    /// Reads the device-specific configuration; beyond its end: zeroes.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes the device-specific configuration; read-only fields do not change.
    fn write_config(&self, offset: u64, data: &[u8], features: u64) {
        let _ = (offset, data, features);
    }

    /// Begins to serve a queue. Never called for a queue that runs.
    fn start_queue(&self, queue: ActiveQueue);

    /// Ends service of a running queue: pops no more, finishes what is in flight without telling
    /// the driver, then drops `settling`.
    fn stop_queue(&self, index: u16, settling: Settling);

    /// Brings device-specific state to what a reset leaves; called when all queues have settled.
    fn reset(&self) {}
}
