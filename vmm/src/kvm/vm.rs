//! The virtual machine: memory slots, interrupt controllers, timer.
#![expect(
    unsafe_code,
    reason = "handing guest memory to KVM is unsafe by nature"
)]

use std::sync::Arc;

use kvm_bindings::{
    KVM_API_VERSION, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE,
    KVM_PIT_SPEAKER_DUMMY, kvm_clock_data, kvm_irqchip, kvm_pit_config, kvm_pit_state2,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, Kvm, VmFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::{KvmError, Refused, optional};
use crate::memory::GuestRam;

/// Three pages that KVM uses on Intel's CPUs for real mode; in the firmware's area below 4 GiB.
const TSS_ADDRESS: usize = 0xfffb_d000;
/// The page next to them, for the same purpose.
const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;

/// What a machine cannot do without.
const REQUIRED: [(Cap, &str); 6] = [
    (Cap::UserMemory, "user memory regions"),
    (Cap::Irqchip, "in-kernel interrupt controllers"),
    (Cap::Irqfd, "interrupts by eventfd"),
    (Cap::Ioeventfd, "doorbells by eventfd"),
    (Cap::ImmediateExit, "immediate exits"),
    (Cap::IrqRouting, "interrupt routing"),
];

/// The in-kernel devices as they were when made, for resets.
struct PowerOn {
    controllers: Vec<kvm_irqchip>,
    timer: Option<kvm_pit_state2>,
}

/// A moment of the paravirtual clock, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestClock(u64);

/// A virtual machine of KVM with memory, interrupt controllers and timer, but no vCPUs yet.
pub struct KvmVm {
    kvm: Kvm,
    fd: Arc<VmFd>,
    power_on: PowerOn,
    /// KVM reads and writes this memory as long as the machine exists.
    _ram: Arc<GuestRam>,
}

impl KvmVm {
    /// Opens `/dev/kvm` and makes a machine with `ram`.
    ///
    /// # Errors
    /// [`KvmError`] says what is wrong with `/dev/kvm`, or which call failed.
    pub fn new(ram: Arc<GuestRam>) -> Result<Self, KvmError> {
        let kvm = open()?;
        let fd = kvm.create_vm().refused("create a virtual machine")?;
        for (capability, name) in REQUIRED {
            if !fd.check_extension(capability) {
                return Err(KvmError::Capability(name));
            }
        }
        optional("place its task segment", fd.set_tss_address(TSS_ADDRESS));
        optional(
            "place its identity map",
            fd.set_identity_map_address(IDENTITY_MAP_ADDRESS),
        );
        fd.create_irq_chip()
            .refused("make the interrupt controllers")?;
        let pit = kvm_pit_config {
            flags: KVM_PIT_SPEAKER_DUMMY,
            ..kvm_pit_config::default()
        };
        fd.create_pit2(pit).refused("make the timer")?;
        let power_on = PowerOn::read(&fd);
        add_memory(&fd, &ram)?;
        Ok(Self {
            kvm,
            fd: Arc::new(fd),
            power_on,
            _ram: ram,
        })
    }

    /// The subsystem, for what concerns the host and not the machine.
    #[must_use]
    pub fn kvm(&self) -> &Kvm {
        &self.kvm
    }

    /// The machine's calls.
    #[must_use]
    pub fn fd(&self) -> &Arc<VmFd> {
        &self.fd
    }

    /// Tells the guest's clock; none when the host does not.
    pub fn clock(&self) -> Option<GuestClock> {
        optional("tell the guest's clock", self.fd.get_clock()).map(|data| GuestClock(data.clock))
    }

    /// Makes the guest's clock go on from `clock`. No vCPU may run.
    pub fn set_clock(&self, clock: GuestClock) {
        let data = kvm_clock_data {
            clock: clock.0,
            ..kvm_clock_data::default()
        };
        optional("set the guest's clock", self.fd.set_clock(&data));
    }

    /// Puts interrupt controllers and timer into their power-on state. No vCPU may run.
    pub fn reset(&self) {
        for chip in &self.power_on.controllers {
            optional("reset an interrupt controller", self.fd.set_irqchip(chip));
        }
        if let Some(timer) = &self.power_on.timer {
            optional("reset the timer", self.fd.set_pit2(timer));
        }
    }
}

impl PowerOn {
    fn read(fd: &VmFd) -> Self {
        let chips = [
            KVM_IRQCHIP_PIC_MASTER,
            KVM_IRQCHIP_PIC_SLAVE,
            KVM_IRQCHIP_IOAPIC,
        ];
        let controllers = chips.into_iter().filter_map(|chip_id| {
            let mut chip = kvm_irqchip {
                chip_id,
                ..kvm_irqchip::default()
            };
            optional(
                "tell an interrupt controller's state",
                fd.get_irqchip(&mut chip),
            )?;
            Some(chip)
        });
        Self {
            controllers: controllers.collect(),
            timer: optional("tell the timer's state", fd.get_pit2()),
        }
    }
}

fn open() -> Result<Kvm, KvmError> {
    let kvm = Kvm::new().map_err(|error| match error.errno() {
        libc::ENOENT | libc::ENXIO | libc::ENODEV => KvmError::Missing,
        libc::EACCES | libc::EPERM => KvmError::Forbidden,
        _ => KvmError::Open(error),
    })?;
    let version = kvm.get_api_version();
    if u32::try_from(version) != Ok(KVM_API_VERSION) {
        return Err(KvmError::Version(version));
    }
    Ok(kvm)
}

fn add_memory(fd: &VmFd, ram: &GuestRam) -> Result<(), KvmError> {
    for (slot, region) in (0..).zip(ram.iter()) {
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr().addr() as u64,
        };
        // SAFETY: the region is a mapping of its own, which lives as long as the machine: `KvmVm`
        // holds a reference to all of guest memory beside the machine's file descriptor.
        unsafe { fd.set_user_memory_region(region) }.refused("map guest memory")?;
    }
    Ok(())
}
