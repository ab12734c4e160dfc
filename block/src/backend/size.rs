//! A disk's size, as far as its device shows it to a guest.
//!
//! The size of a backend is its root's, which changes inside drained sections only: by a resize, or
//! because the root or something below it is exchanged. Whoever shows the size to a guest keeps the
//! one that it was told of, so that the guest sees no half of a change, and is told at the end of the
//! section, before anything that was parked gets in. It is so whatever has changed the size:
//! ends of sections are looked at, not the commands that cause them.

use std::sync::Weak;

use parking_lot::Mutex;

use crate::backend::Backend;

/// A device that shows its disk's size to a guest.
pub trait SizeWatcher: Send + Sync {
    /// [`Backend::len`] is another one than before; the watcher takes the new size from there.
    ///
    /// Called on the thread that ends a drained section, with no lock of the block layer held, while
    /// the gate is still closed. The watcher may take locks of its own. It must not wait for
    /// requests: they do not come before it returns.
    fn size_changed(&self);
}

/// What was told of a backend's size, and to whom.
pub(super) struct ToldSize {
    /// In bytes; at first what the backend was made with.
    told: Mutex<u64>,
    /// Not kept: a device keeps its backend.
    watcher: Mutex<Option<Weak<dyn SizeWatcher>>>,
}

impl ToldSize {
    pub(super) fn new(len: u64) -> Self {
        Self {
            told: Mutex::new(len),
            watcher: Mutex::default(),
        }
    }
}

impl Backend {
    /// Says whom to tell when the size has changed. A device calls it before it looks at the size for
    /// the first time; there is one device.
    pub fn watch_size(&self, watcher: Weak<dyn SizeWatcher>) {
        *self.size.watcher.lock() = Some(watcher);
    }

    /// Tells the device if the size has changed since the last time. Called at the end of a section
    /// that covers the backend, without locks.
    pub(crate) fn tell_size(&self) {
        {
            let mut told = self.size.told.lock();
            let len = self.len();
            if std::mem::replace(&mut *told, len) == len {
                return;
            }
        }
        let watcher = self.size.watcher.lock().as_ref().and_then(Weak::upgrade);
        if let Some(watcher) = watcher {
            watcher.size_changed();
        }
    }
}
