//! KVM: the virtual machine, its vCPUs on their threads, and the in-kernel interrupt controllers.
//!
//! Nothing outside this module makes a KVM call. Devices meet it as [`sluice_devices::irq`] and
//! [`sluice_devices::doorbell`] traits only.

pub mod cpuid;
mod doorbell;
mod irq;
mod kick;
mod msr;
mod posted;
mod vcpu;
mod vcpus;
mod vm;

pub use doorbell::KvmDoorbells;
pub use irq::InterruptRouter;
pub use posted::KvmPostedWrites;
pub use vcpu::{Buses, VcpuFailure};
pub use vcpus::{FailureSink, VcpuSet, Vcpus};
pub use vm::{GuestClock, KvmVm};

use thiserror::Error;

/// Why the machine cannot run on KVM.
#[derive(Debug, Error)]
pub enum KvmError {
    /// There is no device file.
    #[error(
        "/dev/kvm does not exist: this host's CPU or kernel offers no virtualisation (load kvm_intel \
         or kvm_amd; in a virtual machine, switch nested virtualisation on), or use --accel qtest"
    )]
    Missing,
    /// The device file may not be opened.
    #[error("/dev/kvm may not be opened: become a member of the group that owns it (often 'kvm')")]
    Forbidden,
    /// Opening failed otherwise.
    #[error("/dev/kvm cannot be opened: {0}")]
    Open(#[source] kvm_ioctls::Error),
    /// The kernel is too old.
    #[error("/dev/kvm speaks version {0} of KVM's interface; {expected} is needed", expected = kvm_bindings::KVM_API_VERSION)]
    Version(i32),
    /// A feature is missing.
    #[error("this host's KVM lacks {0}, which a machine needs")]
    Capability(&'static str),
    /// Too many vCPUs.
    #[error("{asked} vCPUs were asked for with --smp; this host's KVM takes at most {limit}")]
    TooManyVcpus {
        /// vCPUs asked for.
        asked: usize,
        /// vCPUs a machine can have.
        limit: usize,
    },
    /// A call failed while the machine was built or reset.
    #[error("KVM refused to {action}: {source}")]
    Call {
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        source: kvm_ioctls::Error,
    },
    /// A thread could not be started.
    #[error("no thread for vCPU {vcpu}: {source}")]
    Thread {
        /// The vCPU's number.
        vcpu: u8,
        /// What the host said.
        source: std::io::Error,
    },
}

/// Names the call that fails.
trait Refused<T> {
    fn refused(self, action: &'static str) -> Result<T, KvmError>;
}

impl<T> Refused<T> for Result<T, kvm_ioctls::Error> {
    fn refused(self, action: &'static str) -> Result<T, KvmError> {
        self.map_err(|source| KvmError::Call { action, source })
    }
}

/// A call without which a machine can do: a failure is worth a warning.
fn optional<T>(action: &str, result: Result<T, kvm_ioctls::Error>) -> Option<T> {
    result
        .inspect_err(|error| tracing::warn!(%error, "KVM refused to {action}; going on without"))
        .ok()
}
