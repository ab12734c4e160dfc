//! What runs the guest's instructions: vCPUs of KVM, or nobody.

use std::sync::Arc;

use parking_lot::Mutex;
use vm_memory::GuestAddress;

use crate::acpi::{self, Platform};
use crate::boot::{BootError, BootImages, Entry};
use crate::control::Accelerator;
use crate::kvm::{GuestClock, KvmVm, VcpuSet};
use crate::memory::{GuestRam, MemoryLayout};

/// What has to be in guest memory before the first instruction.
pub(super) struct Firmware {
    pub(super) ram: Arc<GuestRam>,
    pub(super) layout: MemoryLayout,
    pub(super) platform: Platform,
    /// None: nothing to boot, which only a qtest machine can live with.
    pub(super) images: Option<BootImages>,
}

/// Why the machine has nothing to run.
#[derive(Debug, thiserror::Error)]
pub enum FirmwareError {
    /// The kernel or what belongs to it.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The ACPI tables.
    #[error(transparent)]
    Acpi(#[from] acpi::AcpiError),
}

impl Firmware {
    /// Writes tables, kernel and initrd; tells where the kernel is entered.
    pub(super) fn load(&mut self) -> Result<Option<Entry>, FirmwareError> {
        let rsdp: GuestAddress = acpi::write_tables(&self.ram, self.platform)?;
        let Some(images) = &mut self.images else {
            return Ok(None);
        };
        Ok(Some(images.load(&self.ram, self.layout, rsdp)?))
    }
}

/// The engine of a machine. Main thread.
pub(super) enum Engine {
    /// vCPUs of KVM.
    Kvm(Box<KvmEngine>),
    /// Devices only.
    Qtest,
}

/// A KVM machine with its vCPUs.
pub(super) struct KvmEngine {
    pub(super) vcpus: VcpuSet,
    pub(super) vm: KvmVm,
    pub(super) firmware: Mutex<Firmware>,
    /// Where the guest's clock stood when the operator stopped the machine.
    pub(super) stopped_at: Mutex<Option<GuestClock>>,
}

impl KvmEngine {
    fn reset(&self) -> Result<(), String> {
        let entry = self
            .firmware
            .lock()
            .load()
            .map_err(|error| error.to_string())?;
        self.vm.reset();
        match entry {
            Some(entry) => self.vcpus.reset(entry).map_err(|error| error.to_string()),
            None => Ok(()),
        }
    }
}

impl Engine {
    pub(super) fn accelerator(&self) -> Accelerator {
        match self {
            Self::Kvm(_) => Accelerator::Kvm,
            Self::Qtest => Accelerator::Qtest,
        }
    }

    /// The vCPUs' threads; none where there are none.
    pub(super) fn threads(&self) -> Vec<u32> {
        match self {
            Self::Kvm(engine) => engine.vcpus.handle().threads(),
            Self::Qtest => Vec::new(),
        }
    }

    /// Returns when no vCPU runs.
    pub(super) fn park(&self) {
        if let Self::Kvm(engine) = self {
            engine.vcpus.park();
        }
    }

    /// Parks the vCPUs for as long as the operator likes: the guest's clock stands still too.
    pub(super) fn stop(&self) {
        if let Self::Kvm(engine) = self {
            engine.vcpus.park();
            *engine.stopped_at.lock() = engine.vm.clock();
        }
    }

    pub(super) fn run(&self) {
        if let Self::Kvm(engine) = self {
            if let Some(clock) = engine.stopped_at.lock().take() {
                engine.vm.set_clock(clock);
            }
            engine.vcpus.run();
        }
    }

    /// Puts memory, interrupt controllers and vCPUs into the state at power-on. All are parked.
    pub(super) fn reset(&self) -> Result<(), String> {
        match self {
            Self::Kvm(engine) => engine.reset(),
            Self::Qtest => Ok(()),
        }
    }
}
