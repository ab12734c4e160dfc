//! The tray of a CD-ROM drive, as the operator reaches it: from QMP through the backend to the channel's core.
//!
//! Called on the monitor's loop, without locks; each call takes the channel's lock for a moment, as a register
//! access does, and waits for nothing.

use std::sync::Weak;

use sluice_block::backend::RemovableDevice;

use super::channel::Channel;

/// One drive of a channel.
pub(super) struct Tray {
    channel: Weak<Channel>,
    drive: usize,
}

impl Tray {
    pub fn new(channel: Weak<Channel>, drive: usize) -> Self {
        Self { channel, drive }
    }
}

impl RemovableDevice for Tray {
    fn is_tray_open(&self) -> bool {
        let Some(channel) = self.channel.upgrade() else {
            return false;
        };
        channel.access(|core| core.cd_rom(self.drive).is_some_and(|cd| cd.is_tray_open()))
    }

    fn is_locked(&self) -> bool {
        let Some(channel) = self.channel.upgrade() else {
            return false;
        };
        channel.access(|core| core.cd_rom(self.drive).is_some_and(|cd| cd.is_locked()))
    }

    fn request_eject(&self, force: bool) {
        if let Some(channel) = self.channel.upgrade() {
            channel.access(|core| core.request_eject(self.drive, force));
        }
    }

    fn move_tray(&self, open: bool) {
        if let Some(channel) = self.channel.upgrade() {
            channel.access(|core| core.move_tray(self.drive, open));
        }
    }

    fn medium_changed(&self, present: bool) {
        if let Some(channel) = self.channel.upgrade() {
            channel.access(|core| core.medium_changed(self.drive, present));
        }
    }
}
