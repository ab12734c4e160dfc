//! The size of a disk, as the block layer tells it: from the end of a drained section through the backend to the
//! channel's core.
//!
//! Called on the thread that ends the section, without locks; takes the channel's lock for a moment, as a register
//! access does, and waits for nothing.

use std::sync::{Arc, Weak};

use sluice_block::Backend;
use sluice_block::backend::SizeWatcher;

use super::channel::Channel;
use super::regs::SECTOR_SIZE;

/// One disk of a channel.
pub(super) struct Capacity {
    channel: Weak<Channel>,
    drive: usize,
    backend: Weak<Backend>,
}

impl Capacity {
    pub fn new(channel: Weak<Channel>, drive: usize, backend: &Arc<Backend>) -> Self {
        Self {
            channel,
            drive,
            backend: Arc::downgrade(backend),
        }
    }
}

impl SizeWatcher for Capacity {
    fn size_changed(&self) {
        if let (Some(channel), Some(backend)) = (self.channel.upgrade(), self.backend.upgrade()) {
            // Asked for under the lock: of two changes the last to be told is the last.
            channel.access(|core| core.resize(self.drive, backend.len() / SECTOR_SIZE as u64));
        }
    }
}
