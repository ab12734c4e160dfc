//! Putting virtio disks on the PCI bus, at machine build and later.

use std::sync::Arc;

use sluice_aio::IoThread;
use sluice_block::Backend;
use sluice_block::backend::{DeviceName, ErrorPolicy};
use sluice_block::job::OnError;
use sluice_devices::legacy::PciHotplug;
use sluice_devices::pci::Address;

use super::{HotPlug, Place, PlugError, VIRTIO_BACKEND};
use crate::machine::disks::DiskError;
use crate::machine::virtio::{VirtioDisk, function, home_in};
use crate::storage::{DiskConfig, LooseDeviceDefaults, PciAddress, PluggedDisk, VirtioDiskConfig};

/// The type of these devices.
const MODEL: &str = "virtio-blk-pci";

/// The disk of a device that is to come.
struct Disk {
    backend: Arc<Backend>,
    /// It was made for the device, and goes if that can't be had.
    is_new: bool,
    defaults: LooseDeviceDefaults,
}

impl HotPlug {
    /// Puts a disk on the bus before the machine runs. Its backend has its name and policy.
    pub(in crate::machine) fn add_at_build(
        &self,
        disk: &DiskConfig,
        device: &VirtioDiskConfig,
        backend: Arc<Backend>,
    ) -> Result<(), DiskError> {
        let name = || disk.backend.clone();
        let threads = self.threads(device).map_err(|id| {
            let disk = name();
            DiskError::NoIoThread { disk, id }
        })?;
        let pci = |source| {
            let disk = name();
            DiskError::Pci { disk, source }
        };
        let bus = &self.site.bus;
        let address = match device.address {
            Some(place) => Address::new(place.slot, place.function),
            None => Address::new(bus.free_device(PciHotplug::SLOTS.start).map_err(pci)?, 0),
        };
        let parts = VirtioDisk {
            backend: &backend,
            threads: &threads,
            main: &self.parts.main,
            serial: disk.serial.as_deref(),
            write_cache: disk.write_cache,
            device,
        };
        let function = function(&self.site, address, &parts).map_err(|source| {
            let disk = name();
            DiskError::Virtio { disk, source }
        })?;
        bus.add(address, function).map_err(pci)?;
        let place = Place::Pci {
            address,
            backend,
            threads,
        };
        let mut state = self.state.lock();
        state.add(disk.id.clone(), MODEL, name(), false, place);
        Ok(())
    }

    /// Plugs a disk in and tells the guest.
    ///
    /// # Errors
    /// [`PlugError`]; then all is as it was. In the main loop.
    pub async fn plug(&self, disk: PluggedDisk) -> Result<(), PlugError> {
        if let Some(id) = &disk.id {
            let path = DeviceName::of(id).path();
            let state = self.state.lock();
            let mut present = state.devices.iter();
            if present.any(|device| device.shown.is(id)) || state.leaving.contains(&path) {
                return Err(PlugError::DuplicateId(id.clone()));
            }
        }
        let threads = self.threads(&disk.device).map_err(PlugError::NoIoThread)?;
        let address = self.free_place(disk.device.address)?;
        let found = self.disk(&disk)?;
        let (graph, main) = (&self.parts.graph, &self.parts.main);
        let backend = &found.backend;
        let made = async {
            let home = threads.first().map_or_else(|| main.into(), home_in);
            // Jobs on the disk go there first: what stands against that stands against the device.
            graph.set_device_home(backend, home).await?;
            self.make(&disk, &found, address, threads)
        };
        let made = made.await;
        if made.is_err() {
            match found.is_new {
                true => graph.remove_backend(backend).await,
                false => backend.leave_home(),
            }
            graph.bring_jobs_home(main).await;
        }
        made
    }

    fn threads(&self, device: &VirtioDiskConfig) -> Result<Vec<Arc<IoThread>>, String> {
        let ids = device.iothreads.iter();
        ids.map(|id| self.parts.iothreads.get(id).ok_or_else(|| id.clone()))
            .collect()
    }

    /// Where the device goes.
    fn free_place(&self, wanted: Option<PciAddress>) -> Result<Address, PlugError> {
        let free = |from| self.site.bus.free_device(from);
        let Some(wanted) = wanted else {
            return Ok(Address::new(free(PciHotplug::SLOTS.start)?, 0));
        };
        if wanted.function != 0 {
            return Err(PlugError::Function(wanted));
        }
        let is_free = free(wanted.slot).is_ok_and(|slot| slot == wanted.slot);
        if is_free && PciHotplug::SLOTS.contains(&wanted.slot) {
            Ok(Address::new(wanted.slot, wanted.function))
        } else {
            Err(PlugError::SlotTaken(wanted))
        }
    }

    /// The drive that the device names, or a new one on the node that it names.
    fn disk(&self, disk: &PluggedDisk) -> Result<Disk, PlugError> {
        let graph = &self.parts.graph;
        let name = &disk.drive;
        if let Some(backend) = graph.backend(name) {
            let defaults = self.state.lock().drives.get(name).cloned();
            let defaults = defaults.ok_or_else(|| PlugError::DriveInUse(name.clone()))?;
            if disk.share_rw {
                return Err(PlugError::SharedDrive(name.clone()));
            }
            if backend.node().is_none() {
                return Err(PlugError::EmptyDrive);
            }
            return Ok(Disk {
                backend,
                is_new: false,
                defaults,
            });
        }
        let Ok(root) = graph.node(name) else {
            return Err(PlugError::NoDrive(name.clone()));
        };
        let own = disk.id.clone().unwrap_or_else(|| self.made_up_name());
        let backend = if disk.share_rw {
            graph.add_sharing_backend(&own, &root)?
        } else {
            graph.add_backend(&own, &root)?
        };
        Ok(Disk {
            backend,
            is_new: true,
            defaults: LooseDeviceDefaults {
                write_cache: true,
                rerror: OnError::Auto,
                werror: OnError::Auto,
                serial: None,
            },
        })
    }

    /// QEMU's name for a disk without one.
    fn made_up_name(&self) -> String {
        let graph = &self.parts.graph;
        let free = |name: &String| graph.backend(name).is_none() && graph.node(name).is_err();
        let mut names = (0_usize..).map(|number| format!("virtio{number}"));
        names.find(free).unwrap_or_default()
    }

    fn make(
        &self,
        disk: &PluggedDisk,
        found: &Disk,
        address: Address,
        threads: Vec<Arc<IoThread>>,
    ) -> Result<(), PlugError> {
        let Disk {
            backend, defaults, ..
        } = found;
        let parts = VirtioDisk {
            backend,
            threads: &threads,
            main: &self.parts.main,
            serial: disk.serial.as_deref().or(defaults.serial.as_deref()),
            write_cache: disk.write_cache.unwrap_or(defaults.write_cache),
            device: &disk.device,
        };
        let function = function(&self.site, address, &parts)?;
        let over = |own, drive| if own == OnError::Auto { drive } else { own };
        let rerror = over(disk.rerror, defaults.rerror);
        let werror = over(disk.werror, defaults.werror);
        backend.set_policy(ErrorPolicy::new(rerror, werror));
        if let Some(id) = &disk.id {
            backend.set_device(DeviceName::with_part(id, VIRTIO_BACKEND));
        }
        {
            // Whoever ejects it finds all of it.
            let mut state = self.state.lock();
            self.site.bus.add(address, function)?;
            let drive = backend.name().to_owned();
            state.drives.remove(&drive);
            let place = Place::Pci {
                address,
                backend: Arc::clone(backend),
                threads,
            };
            state.add(disk.id.clone(), MODEL, drive, true, place);
        }
        self.registers.plugged(address.device());
        Ok(())
    }
}
