//! One vCPU: its registers at power-on, and what is done about its exits. Lives on its own thread.
#![expect(
    unsafe_code,
    reason = "the kernel tells an access's width in a shared structure"
)]

use std::sync::Arc;

use kvm_bindings::{
    CpuId, KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_EMULATION,
    KVM_INTERNAL_ERROR_SIMUL_EX, KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, KVM_MP_STATE_RUNNABLE,
    KVM_MP_STATE_UNINITIALIZED, kvm_debugregs, kvm_fpu, kvm_lapic_state, kvm_mp_state, kvm_regs,
    kvm_run, kvm_sregs, kvm_vcpu_events, kvm_xcrs,
};
use kvm_ioctls::VcpuExit;
use sluice_devices::bus::{MmioBus, PioBus};
use sluice_devices::posted::PostedWrites as _;
use thiserror::Error;

use super::kick::Kickable;
use super::posted::KvmPostedWrites;
use super::{KvmError, Refused, msr, optional};
use crate::boot::{Entry, registers};

/// Offsets of the local APIC's registers for its two pins, and what firmware puts there (Intel SDM
/// volume 3, §11.5.1): pin 0 takes the PIC's interrupts, pin 1 is the NMI.
const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
const DELIVER_EXTINT: u32 = 0x700;
const DELIVER_NMI: u32 = 0x400;

/// Power-on state of the floating point unit (Intel SDM volume 3, table 10-1).
const FPU_CONTROL: u16 = 0x37f;
const MXCSR: u32 = 0x1f80;

/// How a vCPU came to a stop from which it cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum VcpuFailure {
    /// Shutdown state: a fault while delivering a double fault.
    #[error("vCPU {vcpu} shut down (triple fault) at instruction {rip:#x}")]
    TripleFault {
        /// The vCPU's number.
        vcpu: u8,
        /// Its instruction pointer.
        rip: u64,
    },
    /// KVM gave up.
    #[error("KVM cannot run vCPU {vcpu} any further, at instruction {rip:#x}: {what}")]
    Kvm {
        /// The vCPU's number.
        vcpu: u8,
        /// Its instruction pointer.
        rip: u64,
        /// What KVM said.
        what: String,
    },
    /// A defect of this program, on this vCPU's thread.
    #[error("the thread of vCPU {vcpu} ended by a defect of sluice")]
    Defect {
        /// The vCPU's number.
        vcpu: u8,
    },
}

/// The address spaces a vCPU's exits go to.
#[derive(Clone)]
pub struct Buses {
    /// I/O ports.
    pub pio: Arc<PioBus>,
    /// Memory-mapped registers.
    pub mmio: Arc<MmioBus>,
}

/// State as KVM made it.
struct PowerOn {
    regs: kvm_regs,
    sregs: kvm_sregs,
    lapic: Option<kvm_lapic_state>,
    events: Option<kvm_vcpu_events>,
    debug: Option<kvm_debugregs>,
    xcrs: Option<kvm_xcrs>,
}

/// A vCPU before and while it runs.
pub(super) struct Vcpu {
    number: u8,
    fd: kvm_ioctls::VcpuFd,
    power_on: PowerOn,
    buses: Buses,
    posted: Arc<KvmPostedWrites>,
}

impl Vcpu {
    /// Takes over a new vCPU of KVM's.
    pub(super) fn new(
        number: u8,
        fd: kvm_ioctls::VcpuFd,
        cpuid: &CpuId,
        buses: Buses,
        posted: Arc<KvmPostedWrites>,
    ) -> Result<Self, KvmError> {
        fd.set_cpuid2(cpuid).refused("set CPUID")?;
        let power_on = PowerOn {
            regs: fd.get_regs().refused("tell a vCPU's registers")?,
            sregs: fd.get_sregs().refused("tell a vCPU's system registers")?,
            lapic: optional("tell a local APIC's state", fd.get_lapic()),
            events: optional("tell a vCPU's pending events", fd.get_vcpu_events()),
            debug: optional("tell a vCPU's debug registers", fd.get_debug_regs()),
            xcrs: fd.get_xcrs().ok(),
        };
        Ok(Self {
            number,
            fd,
            power_on,
            buses,
            posted,
        })
    }

    /// The vCPU's number, which is its APIC id.
    pub(super) fn number(&self) -> u8 {
        self.number
    }

    /// The structure KVM reports exits in, for [`Kickable`].
    pub(super) fn run_structure(&mut self) -> *mut kvm_run {
        std::ptr::from_mut(self.fd.get_kvm_run())
    }

    /// Puts the vCPU where the kernel expects it: the first one at `entry`, the others waiting
    /// for the first to start them.
    pub(super) fn reset(&mut self, entry: Entry, kick: &Kickable) -> Result<(), KvmError> {
        self.complete_exit(kick);
        let first = self.number == 0;
        let mut sregs = self.power_on.sregs;
        let mut regs = self.power_on.regs;
        if first {
            registers::special(entry, &mut sregs);
            regs = registers::general(entry);
        }
        self.fd
            .set_sregs(&sregs)
            .refused("set a vCPU's system registers")?;
        self.fd.set_regs(&regs).refused("set a vCPU's registers")?;
        let fpu = kvm_fpu {
            fcw: FPU_CONTROL,
            mxcsr: MXCSR,
            ..kvm_fpu::default()
        };
        optional("set a vCPU's floating point unit", self.fd.set_fpu(&fpu));
        msr::reset(&self.fd);
        if let Some(mut lapic) = self.power_on.lapic {
            set_lapic_register(&mut lapic, LVT_LINT0, DELIVER_EXTINT);
            set_lapic_register(&mut lapic, LVT_LINT1, DELIVER_NMI);
            optional("set a local APIC's state", self.fd.set_lapic(&lapic));
        }
        if let Some(events) = &self.power_on.events {
            optional(
                "clear a vCPU's pending events",
                self.fd.set_vcpu_events(events),
            );
        }
        if let Some(debug) = &self.power_on.debug {
            optional(
                "set a vCPU's debug registers",
                self.fd.set_debug_regs(debug),
            );
        }
        if let Some(xcrs) = &self.power_on.xcrs {
            optional(
                "set a vCPU's extended control registers",
                self.fd.set_xcrs(xcrs),
            );
        }
        let mp_state = if first {
            KVM_MP_STATE_RUNNABLE
        } else {
            KVM_MP_STATE_UNINITIALIZED
        };
        self.fd
            .set_mp_state(kvm_mp_state { mp_state })
            .refused("set a vCPU's run state")
    }

    /// Tells the guest that it was stopped for a while, so that its watchdogs do not take the time
    /// for a lock-up. A guest without the paravirtual clock cannot be told.
    pub(super) fn tell_of_stop(&self) {
        let _ = self.fd.kvmclock_ctrl();
    }

    /// KVM completes an exit (moves what was read into a register, steps on) when it enters the
    /// guest next; registers set before that would be overwritten. Lets it do so and nothing else.
    fn complete_exit(&mut self, kick: &Kickable) {
        kick.set();
        let _ = self.fd.run();
        kick.clear();
    }

    /// Enters the guest and serves one exit. Returns when there is time to look at what else is
    /// wanted of this vCPU.
    pub(super) fn run_once(&mut self) -> Result<(), VcpuFailure> {
        let run = self.run_structure();
        let exit = self.fd.run();
        // Before the exit is served: the guest has stored these before it came here.
        self.posted.flush();
        match exit {
            Ok(VcpuExit::IoIn(port, data)) => {
                self.buses.pio.read_string(port, io_width(run), data);
            }
            Ok(VcpuExit::IoOut(port, data)) => {
                self.buses.pio.write_string(port, io_width(run), data);
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                self.buses.mmio.read(address, data);
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                self.buses.mmio.write(address, data);
            }
            Ok(VcpuExit::Intr | VcpuExit::Hlt | VcpuExit::IrqWindowOpen | VcpuExit::SetTpr) => {}
            Ok(VcpuExit::Shutdown) => {
                return Err(VcpuFailure::TripleFault {
                    vcpu: self.number,
                    rip: self.rip(),
                });
            }
            Ok(VcpuExit::InternalError) => {
                return Err(self.failure(internal_error(run).to_owned()));
            }
            Ok(exit) => {
                let what = describe(&exit);
                return Err(self.failure(what));
            }
            Err(error) => match error.errno() {
                libc::EINTR | libc::EAGAIN => {}
                _ => return Err(self.failure(error.to_string())),
            },
        }
        Ok(())
    }

    fn rip(&self) -> u64 {
        self.fd.get_regs().map_or(0, |regs| regs.rip)
    }

    fn failure(&self, what: String) -> VcpuFailure {
        VcpuFailure::Kvm {
            vcpu: self.number,
            rip: self.rip(),
            what,
        }
    }
}

/// Bytes of one access of the I/O exit that KVM just reported; the data may be several accesses.
fn io_width(run: *mut kvm_run) -> usize {
    // SAFETY: `run` is the mapping of the vCPU whose exit is being served, so it is valid, and the
    // kernel writes it in `KVM_RUN` only. An I/O exit has filled in the `io` part of the union. The
    // data lies in another page, so that this reads nothing the data's slice covers.
    let width = unsafe { (&raw const (*run).__bindgen_anon_1.io.size).read() };
    usize::from(width)
}

/// What KVM says of the internal error that it just reported.
fn internal_error(run: *mut kvm_run) -> &'static str {
    // SAFETY: as in `io_width`; an exit of this kind has filled in the `internal` part.
    let kind = unsafe { (&raw const (*run).__bindgen_anon_1.internal.suberror).read() };
    match kind {
        KVM_INTERNAL_ERROR_EMULATION => "it met an instruction that it cannot emulate",
        KVM_INTERNAL_ERROR_SIMUL_EX => "exceptions met that it cannot deliver together",
        KVM_INTERNAL_ERROR_DELIVERY_EV => "an exit interrupted the delivery of an event",
        KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => "the hardware exited for an unknown reason",
        _ => "an internal error of an unknown kind",
    }
}

fn describe(exit: &VcpuExit<'_>) -> String {
    match exit {
        VcpuExit::FailEntry(reason, cpu) => {
            format!("the hardware refused to enter the guest on CPU {cpu}, reason {reason:#x}")
        }
        other => format!("unexpected exit {other:?}"),
    }
}

fn set_lapic_register(lapic: &mut kvm_lapic_state, offset: usize, value: u32) {
    let bytes = value.to_le_bytes();
    for (to, from) in lapic.regs[offset..offset + bytes.len()]
        .iter_mut()
        .zip(bytes)
    {
        *to = i8::from_le_bytes([from]);
    }
}
