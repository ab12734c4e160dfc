//! Model-specific registers that a reset has to put back, and their values then.
//!
//! Sources: Intel SDM volume 4; Linux, Documentation/virt/kvm/x86/msr.rst.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

/// Registers whose power-on value is zero.
const ZERO: [u32; 14] = [
    // SYSENTER: code segment, stack, entry.
    0x174,
    0x175,
    0x176,
    // SYSCALL: segments, entries, flag mask; and the kernel's GS base.
    0xc000_0081,
    0xc000_0082,
    0xc000_0083,
    0xc000_0084,
    0xc000_0102,
    // Auxiliary time stamp data.
    0xc000_0103,
    // Paravirtual wall clock and system time, asynchronous page faults, stolen time, end of
    // interrupt: KVM would go on writing into the memory of a guest that is no more.
    0x4b56_4d00,
    0x4b56_4d01,
    0x4b56_4d02,
    0x4b56_4d03,
    0x4b56_4d04,
];

/// IA32_MISC_ENABLE: fast string operations.
const MISC_ENABLE: (u32, u64) = (0x1a0, 1);
/// IA32_MTRR_DEF_TYPE: memory type ranges on; memory is write-back by default.
const MTRR_DEFAULT_TYPE: (u32, u64) = (0x2ff, (1 << 11) | 6);

/// Writes the power-on values. A register this host does not know is left alone.
pub(super) fn reset(vcpu: &VcpuFd) {
    let zeroes = ZERO.into_iter().map(|index| (index, 0));
    for (index, data) in zeroes.chain([MISC_ENABLE, MTRR_DEFAULT_TYPE]) {
        let entry = kvm_msr_entry {
            index,
            data,
            ..kvm_msr_entry::default()
        };
        let written = Msrs::from_entries(&[entry])
            .ok()
            .map(|msrs| vcpu.set_msrs(&msrs));
        if !matches!(written, Some(Ok(1))) {
            tracing::debug!("MSR {index:#x} cannot be set on this host");
        }
    }
}
