//! What CPUID tells the guest: what the host's KVM supports, less what the machine does not
//! offer, with the machine's own topology: one package, every vCPU a core of one thread.
//!
//! Sources: Intel SDM volume 2, CPUID; AMD APM volume 3, appendix E; Linux,
//! Documentation/virt/kvm/x86/cpuid.rst.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, VmFd};

use super::{KvmError, KvmVm, Refused};

/// Leaf 1.
mod leaf1 {
    /// ECX: virtual machine extensions.
    pub(super) const VMX: u32 = 1 << 5;
    /// ECX: local APIC timer with a deadline.
    pub(super) const TSC_DEADLINE: u32 = 1 << 24;
    /// ECX: under a hypervisor.
    pub(super) const HYPERVISOR: u32 = 1 << 31;
    /// EDX: the package has several logical processors.
    pub(super) const HTT: u32 = 1 << 28;
    /// EBX: the bits that are not APIC id and processor count.
    pub(super) const EBX_KEPT: u32 = 0xffff;
}

/// Leaf 6 EAX: the APIC timer does not stop in deep sleep. Nothing else of power management is
/// offered.
const ALWAYS_RUNNING_TIMER: u32 = 1 << 2;
/// Leaf 0x8000_0001 ECX: AMD's virtual machine extensions.
const SVM: u32 = 1 << 2;
/// Leaf 0x8000_0001 ECX: topology in leaf 0x8000_001e.
const TOPOLOGY_EXTENSIONS: u32 = 1 << 22;
/// Leaf 4 and 0x8000_001d EAX: sharing and core counts.
const CACHE_COUNTS: u32 = 0xffff_c000;
/// Where cores per package stand in leaf 4.
const CORES_SHIFT: u32 = 26;

/// Levels of the topology leaves 0xb and 0x1f.
const LEVEL_THREAD: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// CPUID of the vCPUs of a machine, all but their numbers.
pub struct Model {
    supported: CpuId,
    tsc_deadline: bool,
    cpus: u8,
}

impl Model {
    /// The model for a machine of `cpus` vCPUs on this host.
    ///
    /// # Errors
    /// [`KvmError::Call`] when KVM does not say what it supports.
    pub fn new(vm: &KvmVm, cpus: u8) -> Result<Self, KvmError> {
        let supported = vm.kvm().get_supported_cpuid(KVM_MAX_CPUID_ENTRIES);
        let supported = supported.refused("tell what CPUID it supports")?;
        Ok(Self {
            supported,
            tsc_deadline: has_tsc_deadline(vm.fd()),
            cpus,
        })
    }

    /// What vCPU number `cpu` sees.
    #[must_use]
    pub fn of(&self, cpu: u8) -> CpuId {
        let mut entries = self.supported.clone();
        entries.retain(|entry| !matches!(entry.function, 0xb | 0x1f));
        for entry in entries.as_mut_slice() {
            self.patch(entry, cpu);
        }
        let highest = entries.as_slice().iter().find(|entry| entry.function == 0);
        if highest.is_some_and(|entry| entry.eax >= 0xb) {
            for level in self.topology(cpu) {
                // Only a full table refuses, and two entries more than it came with fit.
                let _ = entries.push(level);
            }
        }
        entries
    }

    fn patch(&self, entry: &mut kvm_cpuid_entry2, cpu: u8) {
        let (id, count) = (u32::from(cpu), u32::from(self.cpus));
        match entry.function {
            1 => {
                entry.ebx = (entry.ebx & leaf1::EBX_KEPT) | (count << 16) | (id << 24);
                entry.ecx &= !(leaf1::VMX | leaf1::TSC_DEADLINE);
                entry.ecx |= leaf1::HYPERVISOR;
                if self.tsc_deadline {
                    entry.ecx |= leaf1::TSC_DEADLINE;
                }
                entry.edx &= !leaf1::HTT;
                if count > 1 {
                    entry.edx |= leaf1::HTT;
                }
            }
            // Every cache belongs to one core.
            4 if entry.eax & 0x1f != 0 => {
                entry.eax = (entry.eax & !CACHE_COUNTS) | ((count - 1).min(63) << CORES_SHIFT);
            }
            6 => {
                entry.eax &= ALWAYS_RUNNING_TIMER;
                (entry.ebx, entry.ecx, entry.edx) = (0, 0, 0);
            }
            // No performance counters: nobody would take care of their state.
            0xa => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
            0x8000_0001 => entry.ecx &= !(SVM | TOPOLOGY_EXTENSIONS),
            0x8000_0008 => entry.ecx = (entry.ecx & !0xf0ff) | (count - 1),
            // Nested virtualisation is not offered.
            0x8000_000a => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
            _ => {}
        }
    }

    /// Leaf 0xb: the thread level, then the core level.
    fn topology(&self, cpu: u8) -> [kvm_cpuid_entry2; 2] {
        let id_bits = u32::from(self.cpus).next_power_of_two().trailing_zeros();
        let level = |index: u32, kind: u32, shift: u32, processors: u32| kvm_cpuid_entry2 {
            function: 0xb,
            index,
            flags: kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            eax: shift,
            ebx: processors,
            ecx: index | (kind << 8),
            edx: u32::from(cpu),
            padding: [0; 3],
        };
        [
            level(0, LEVEL_THREAD, 0, 1),
            level(1, LEVEL_CORE, id_bits, u32::from(self.cpus)),
        ]
    }
}

/// KVM does not list this feature among those it supports: it depends on the in-kernel APIC.
fn has_tsc_deadline(fd: &VmFd) -> bool {
    fd.check_extension(Cap::TscDeadlineTimer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            eax: u32::MAX,
            ebx: u32::MAX,
            ecx: u32::MAX,
            edx: u32::MAX,
            ..kvm_cpuid_entry2::default()
        }
    }

    fn model(cpus: u8) -> Model {
        let highest = kvm_cpuid_entry2 {
            eax: 0xd,
            ..kvm_cpuid_entry2::default()
        };
        let entries = [
            highest,
            entry(1),
            entry(0xb),
            entry(0x8000_0001),
            entry(0x8000_0008),
        ];
        Model {
            supported: CpuId::from_entries(&entries).unwrap(),
            tsc_deadline: true,
            cpus,
        }
    }

    fn leaf(cpuid: &CpuId, function: u32) -> Vec<kvm_cpuid_entry2> {
        let entries = cpuid.as_slice().iter();
        entries
            .filter(|entry| entry.function == function)
            .copied()
            .collect()
    }

    #[test]
    fn every_vcpu_has_its_own_number() {
        let model = model(3);
        for cpu in 0..3 {
            let cpuid = model.of(cpu);
            let first = leaf(&cpuid, 1)[0];
            assert_eq!(first.ebx >> 24, u32::from(cpu));
            assert_eq!((first.ebx >> 16) & 0xff, 3);
            let levels = leaf(&cpuid, 0xb);
            assert_eq!(levels.len(), 2, "the host's own topology is gone");
            assert!(levels.iter().all(|level| level.edx == u32::from(cpu)));
            assert_eq!((levels[1].eax, levels[1].ebx), (2, 3));
        }
    }

    #[test]
    fn nested_virtualisation_is_hidden() {
        let cpuid = model(1).of(0);
        assert_eq!(leaf(&cpuid, 1)[0].ecx & leaf1::VMX, 0);
        assert_eq!(leaf(&cpuid, 0x8000_0001)[0].ecx & SVM, 0);
        assert_ne!(leaf(&cpuid, 1)[0].ecx & leaf1::HYPERVISOR, 0);
    }

    #[test]
    fn amd_core_count_follows() {
        assert_eq!(leaf(&model(4).of(0), 0x8000_0008)[0].ecx & 0xff, 3);
    }
}
