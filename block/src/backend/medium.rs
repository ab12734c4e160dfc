//! Removable media: what a device whose medium can be changed tells, and is told.
//!
//! A backend's medium is its root node. [`Graph::insert_medium`](crate::Graph::insert_medium) and
//! [`Graph::remove_medium`](crate::Graph::remove_medium) change it inside drained sections; while
//! there is none, requests fail with `ENOMEDIUM`. The tray and its lock are the device's own: the
//! graph asks for them and asks to have them moved, and the device says whenever the tray has moved,
//! whoever moved it.

use std::sync::{Arc, Weak};

use crate::backend::Backend;
use crate::error::{BlockError, Result};
use crate::event::BlockEvent;

/// A device with a tray, such as a CD-ROM drive.
///
/// All of it is called for the monitor, from its loop's thread or a worker, with no lock of the block
/// layer held: the device may take locks of its own and ask the backend anything. It must not wait
/// for requests: with a section open they do not come.
pub trait RemovableDevice: Send + Sync {
    /// Whether the tray is open.
    fn is_tray_open(&self) -> bool;

    /// Whether the guest has locked the tray.
    fn is_locked(&self) -> bool;

    /// Asks the guest to give the medium up. With `force` the lock is undone as well: the tray will
    /// be opened in any case.
    fn request_eject(&self, force: bool);

    /// Opens or closes the tray; nothing if it is so already. Whoever calls has looked at the lock.
    /// The device reports it by [`Backend::tray_moved`].
    fn move_tray(&self, open: bool);

    /// The medium was put in or taken out. Called inside the section of the change: nothing is in
    /// flight, and what is parked was meant for the medium before. [`Backend::node`] and
    /// [`Backend::len`] tell of the medium as it is now.
    fn medium_changed(&self, present: bool);
}

/// Where a tray is after it was to be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tray {
    /// There is none: nothing keeps the medium in.
    None,
    /// Open.
    Open,
    /// Closed: the guest has locked it, and was asked to let go.
    Locked,
}

/// Whether a backend's medium can be changed, and who is to be told.
#[derive(Default)]
pub(super) struct Removable {
    /// So it is without a device, too: then there is no tray.
    removable: bool,
    /// Not kept: a device keeps its backend.
    device: Option<Weak<dyn RemovableDevice>>,
}

impl Removable {
    /// For a backend that is made without a medium.
    pub(super) fn without_device() -> Self {
        Self {
            removable: true,
            device: None,
        }
    }
}

impl Backend {
    /// Says that the device has a removable medium, and how to reach it. To be called before the
    /// machine runs.
    pub fn set_removable(&self, device: Weak<dyn RemovableDevice>) {
        *self.removable.lock() = Removable {
            removable: true,
            device: Some(device),
        };
    }

    /// Whether the medium can be changed: the device can do that, or it was made without one.
    #[must_use]
    pub fn is_removable(&self) -> bool {
        self.removable.lock().removable
    }

    /// The device with the tray, if there is one.
    #[must_use]
    pub fn removable_device(&self) -> Option<Arc<dyn RemovableDevice>> {
        let removable = self.removable.lock();
        removable.device.as_ref().and_then(Weak::upgrade)
    }

    /// # Errors
    /// The medium can't be changed.
    pub(crate) fn check_removable(&self) -> Result<()> {
        if self.is_removable() {
            return Ok(());
        }
        let name = &self.name;
        Err(BlockError::Refused(format!(
            "Device '{name}' is not removable"
        )))
    }

    /// Opens the tray. If the guest has locked it the guest is asked, and with `force` it is opened
    /// nevertheless. No lock may be held.
    ///
    /// # Errors
    /// The medium can't be changed.
    pub fn open_tray(&self, force: bool) -> Result<Tray> {
        self.check_removable()?;
        let Some(device) = self.removable_device() else {
            return Ok(Tray::None);
        };
        if device.is_tray_open() {
            return Ok(Tray::Open);
        }
        if device.is_locked() {
            device.request_eject(force);
            if !force {
                return Ok(Tray::Locked);
            }
        }
        device.move_tray(true);
        Ok(Tray::Open)
    }

    /// Closes the tray, if there is one. No lock may be held.
    ///
    /// # Errors
    /// The medium can't be changed.
    pub fn close_tray(&self) -> Result<()> {
        self.check_removable()?;
        if let Some(device) = self.removable_device()
            && device.is_tray_open()
        {
            device.move_tray(false);
        }
        Ok(())
    }

    /// The device's tray has moved, by the guest's wish or the operator's. Any thread; the device
    /// holds no lock that [`EventSink::emit`](crate::EventSink::emit) could want.
    pub fn tray_moved(&self, open: bool) {
        self.events.emit(BlockEvent::DeviceTrayMoved {
            device: self.name.clone(),
            id: self
                .device()
                .map_or_else(String::new, |device| device.shown()),
            tray_open: open,
        });
    }
}
