//! Interrupts and doorbells where no vCPU could take them: levels are recorded for the test, and
//! messages are written to guest memory, where libqos looks for them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use sluice_devices::doorbell::{DoorbellAddress, DoorbellError, Doorbells};
use sluice_devices::irq::{IrqError, IrqLine, MsiController, MsiVector};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use crate::memory::GuestRam;

/// Hears of level changes: input and level.
type Listener = Box<dyn Fn(u32, bool) + Send + Sync>;

/// The recorder. Any thread.
pub struct QtestInterrupts {
    levels: Mutex<BTreeMap<u32, bool>>,
    intercepted: AtomicBool,
    listener: Mutex<Option<Listener>>,
    own: Weak<Self>,
}

impl QtestInterrupts {
    /// A recorder that nobody listens to yet.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new_cyclic(|own| Self {
            levels: Mutex::default(),
            intercepted: AtomicBool::new(false),
            listener: Mutex::new(None),
            own: Weak::clone(own),
        })
    }

    /// Switches on or off that the listener is told.
    pub(super) fn intercept(&self, on: bool) {
        self.intercepted.store(on, Ordering::Relaxed);
    }

    pub(super) fn is_intercepted(&self) -> bool {
        self.intercepted.load(Ordering::Relaxed)
    }

    /// Tells `listener` of every level change while they are intercepted.
    pub fn listen(&self, listener: impl Fn(u32, bool) + Send + Sync + 'static) {
        *self.listener.lock() = Some(Box::new(listener));
    }

    /// The line of a GSI.
    #[must_use]
    pub fn line(&self, gsi: u32) -> Arc<dyn IrqLine> {
        Arc::new(Line {
            recorder: Weak::clone(&self.own),
            gsi,
        })
    }

    /// Vectors that write their messages into `ram`.
    #[must_use]
    pub fn msi(&self, ram: &Arc<GuestRam>) -> Arc<dyn MsiController> {
        Arc::new(MemoryMessages {
            ram: Arc::clone(ram),
        })
    }

    /// Drives an input.
    pub(super) fn set(&self, gsi: u32, level: bool) {
        let before = self.levels.lock().insert(gsi, level).unwrap_or(false);
        if before != level
            && self.intercepted.load(Ordering::Relaxed)
            && let Some(listener) = self.listener.lock().as_ref()
        {
            listener(gsi, level);
        }
    }
}

struct Line {
    recorder: Weak<QtestInterrupts>,
    gsi: u32,
}

impl IrqLine for Line {
    fn set(&self, level: bool) {
        if let Some(recorder) = self.recorder.upgrade() {
            recorder.set(self.gsi, level);
        }
    }
}

/// There is no kernel that could take the store: the device's write handler rings itself.
impl Doorbells for QtestInterrupts {
    fn attach(&self, _: DoorbellAddress, _: &EventFd) -> Result<(), DoorbellError> {
        Ok(())
    }

    fn detach(&self, _: DoorbellAddress, _: &EventFd) -> Result<(), DoorbellError> {
        Ok(())
    }
}

struct MemoryMessages {
    ram: Arc<GuestRam>,
}

impl MsiController for MemoryMessages {
    fn allocate(&self) -> Result<Arc<dyn MsiVector>, IrqError> {
        Ok(Arc::new(MemoryVector {
            ram: Arc::clone(&self.ram),
            message: Mutex::new(None),
        }))
    }
}

struct MemoryVector {
    ram: Arc<GuestRam>,
    message: Mutex<Option<(u64, u32)>>,
}

impl MsiVector for MemoryVector {
    fn configure(&self, address: u64, data: u32, masked: bool) {
        *self.message.lock() = (!masked).then_some((address, data));
    }

    fn trigger(&self) {
        let Some((address, data)) = *self.message.lock() else {
            return;
        };
        if let Err(error) = self
            .ram
            .write_slice(&data.to_le_bytes(), GuestAddress(address))
        {
            tracing::debug!(%error, "a message-signalled interrupt went nowhere");
        }
    }
}
