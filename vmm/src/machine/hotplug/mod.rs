//! The machine's disks as devices that come and go: who is there, `device_add`, `device_del`.
//!
//! ```text
//!  plug --> present --request_unplug--> present (the guest is asked)
//!              |                           |
//!              |   the guest writes the eject register, or the machine is reset
//!              v                           v
//!           leaving: off the bus at once; what is in flight ends; the disk goes --> DEVICE_DELETED
//! ```
//!
//! Verbs run on the main thread. An ejection comes from a vCPU thread, which takes the function off
//! the bus and leaves the rest to a task of the main loop: it never waits. Requests that are parked
//! never survive their device, those in flight end before it does, and whatever else has the disk's
//! nodes (jobs, exports) goes on.

mod error;
mod plug;

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::{Arc, Weak};
use std::task::{Poll, Waker};

use parking_lot::Mutex;
use sluice_aio::{AioContext, IoThread, current};
use sluice_block::backend::DeviceName;
use sluice_block::{Backend, Graph};
use sluice_devices::exits::ExitTimes;
use sluice_devices::legacy::{Ejector, PciHotplug};
use sluice_devices::pci::{Address, PciFunction};
use sluice_devices::reset::Resetting;

pub use self::error::PlugError;
use super::{MachineBuilder, PciSite};
use crate::control::{VmEvent, VmEventSink};
use crate::iothreads::IoThreads;
use crate::storage::{Attachment, DiskConfig, LooseDeviceDefaults, LooseDriveConfig};

/// What holds the disk of a virtio device in QEMU's object tree.
pub(super) const VIRTIO_BACKEND: &str = "virtio-backend";

/// What devices are made with.
pub struct HotPlugParts {
    /// Where their disks are.
    pub graph: Arc<Graph>,
    /// Who serves them.
    pub iothreads: Arc<IoThreads>,
    /// The main loop.
    pub main: AioContext,
    /// Who is told that a device has gone.
    pub events: Arc<dyn VmEventSink>,
}

/// The devices. Any thread, where nothing else is said.
pub struct HotPlug {
    this: Weak<Self>,
    parts: HotPlugParts,
    site: PciSite,
    registers: Arc<PciHotplug>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    devices: Vec<Device>,
    /// The paths of those that are on their way out.
    leaving: Vec<String>,
    /// Drives that a device may be put on.
    drives: BTreeMap<String, LooseDeviceDefaults>,
    /// Devices without an id so far.
    anonymous: usize,
    /// Who waits for those that leave.
    waiting: Vec<Waker>,
}

/// A device.
struct Device {
    shown: DeviceInfo,
    place: Place,
}

/// Where a device is.
enum Place {
    /// On an IDE bus, for ever.
    Ide(u8),
    /// On the PCI bus.
    Pci {
        address: Address,
        backend: Arc<Backend>,
        /// What keeps the loops of its queues.
        threads: Vec<Arc<IoThread>>,
    },
}

/// What can be asked of a device.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DeviceInfo {
    /// Its name, if it was given one.
    pub id: Option<String>,
    /// Its place in QEMU's object tree.
    pub path: String,
    /// Its type.
    pub model: &'static str,
    /// The backend that it is on.
    pub drive: String,
    /// It came while the machine was there already.
    pub hotplugged: bool,
}

/// A device that answers nowhere any more.
struct Leaving {
    shown: DeviceInfo,
    function: Option<Arc<dyn PciFunction>>,
    backend: Arc<Backend>,
    threads: Vec<Arc<IoThread>>,
}

impl HotPlug {
    /// No devices yet, on `builder`'s machine.
    pub fn new(builder: &MachineBuilder, parts: HotPlugParts) -> Arc<Self> {
        let registers = Arc::clone(builder.hotplug());
        let this = Arc::new_cyclic(|this| Self {
            this: Weak::clone(this),
            parts,
            site: builder.site().clone(),
            registers,
            state: Mutex::default(),
        });
        let ejector: Weak<Self> = Arc::downgrade(&this);
        this.registers.connect(ejector);
        this
    }

    /// A drive that no device is on: one may be put on it later.
    pub(super) fn keep_drive(&self, drive: &LooseDriveConfig) {
        let device = drive.device.clone();
        self.state.lock().drives.insert(drive.id.clone(), device);
    }

    /// A disk or CD-ROM drive on an IDE bus.
    pub(super) fn note_ide(&self, disk: &DiskConfig, bus: u8) {
        let mut state = self.state.lock();
        let model = match disk.attachment {
            Attachment::IdeCd(_) => "ide-cd",
            _ => "ide-hd",
        };
        let drive = disk.backend.clone();
        state.add(disk.id.clone(), model, drive, false, Place::Ide(bus));
    }

    /// Those that were given an id.
    #[must_use]
    pub fn list(&self) -> Vec<DeviceInfo> {
        let state = self.state.lock();
        let shown = state.devices.iter().map(|device| device.shown.clone());
        shown.filter(|device| device.id.is_some()).collect()
    }

    /// How long the guest's writes to each PCI function have taken.
    #[must_use]
    pub fn exit_times(&self) -> Vec<(Address, Arc<ExitTimes>)> {
        self.site.bus.exit_times()
    }

    /// Asks the guest to let go of a device, by its id or path. It goes when the guest ejects it.
    ///
    /// # Errors
    /// There is no such device, it is on its way out already, or its bus does not let it go.
    pub fn request_unplug(&self, name: &str) -> Result<(), PlugError> {
        let state = self.state.lock();
        let is_it = |device: &&Device| device.shown.is(name);
        let Some(device) = state.devices.iter().find(is_it) else {
            let leaving = |path: &String| path == name || *path == DeviceName::of(name).path();
            return Err(match state.leaving.iter().any(leaving) {
                true => PlugError::Leaving(name.to_owned()),
                false => PlugError::NotFound(name.to_owned()),
            });
        };
        let slot = match device.place {
            Place::Ide(bus) => return Err(PlugError::NoHotplug(format!("ide.{bus}"))),
            Place::Pci { address, .. } => address.device(),
        };
        drop(state);
        self.registers.request_unplug(slot);
        Ok(())
    }

    /// The rest of an ejection: in the main loop.
    async fn end(&self, leaving: Leaving) {
        let Leaving {
            shown,
            function,
            backend,
            threads,
        } = leaving;
        if let Some(function) = function {
            function.retire().await;
        }
        let graph = &self.parts.graph;
        graph.remove_backend(&backend).await;
        // Whoever waits for the device does not wait for what its jobs are at.
        let (jobs, main) = (Arc::clone(graph), self.parts.main.clone());
        current::spawn_local(async move { jobs.bring_jobs_home(&main).await }).detach();
        drop(backend);
        drop(threads);
        // As QEMU has it, the part of the device that holds the disk goes first.
        let deleted = |device, path| VmEvent::DeviceDeleted { device, path };
        let events = &self.parts.events;
        events.emit(deleted(None, format!("{}/{VIRTIO_BACKEND}", shown.path)));
        events.emit(deleted(shown.id, shown.path.clone()));
        let waiting = {
            let mut state = self.state.lock();
            state.leaving.retain(|path| *path != shown.path);
            std::mem::take(&mut state.waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
    }
}

impl Ejector for HotPlug {
    fn eject(&self, slot: u8) {
        let Some(this) = self.this.upgrade() else {
            return;
        };
        let mut state = self.state.lock();
        let here = |device: &Device| match device.place {
            Place::Ide(_) => false,
            Place::Pci { address, .. } => address.device() == slot,
        };
        let (ejected, stays) = std::mem::take(&mut state.devices)
            .into_iter()
            .partition(here);
        state.devices = stays;
        for Device { shown, place } in ejected {
            let Place::Pci {
                address,
                backend,
                threads,
            } = place
            else {
                continue;
            };
            state.leaving.push(shown.path.clone());
            let leaving = Leaving {
                shown,
                function: self.site.bus.remove(address),
                backend,
                threads,
            };
            let this = Arc::clone(&this);
            self.parts
                .main
                .spawn(move || async move { this.end(leaving).await });
        }
    }

    fn ejected(&self) -> Resetting {
        let this = Weak::clone(&self.this);
        Box::pin(poll_fn(move |task| {
            let Some(this) = this.upgrade() else {
                return Poll::Ready(());
            };
            let mut state = this.state.lock();
            if state.leaving.is_empty() {
                return Poll::Ready(());
            }
            state.waiting.push(task.waker().clone());
            Poll::Pending
        }))
    }
}

impl State {
    fn add(
        &mut self,
        id: Option<String>,
        model: &'static str,
        drive: String,
        hotplugged: bool,
        place: Place,
    ) {
        let path = match &id {
            Some(id) => DeviceName::of(id).path(),
            None => {
                let number = self.anonymous;
                self.anonymous += 1;
                format!("/machine/peripheral-anon/device[{number}]")
            }
        };
        let shown = DeviceInfo {
            id,
            path,
            model,
            drive,
            hotplugged,
        };
        self.devices.push(Device { shown, place });
    }
}

impl DeviceInfo {
    /// Whether a command that names `name` means this device.
    #[must_use]
    pub fn is(&self, name: &str) -> bool {
        self.path == name || self.id.as_deref() == Some(name)
    }
}
