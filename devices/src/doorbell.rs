//! Doorbells: guest stores that only wake somebody.
//!
//! Under KVM the store is bound to an eventfd in the kernel (ioeventfd), so that the vCPU never
//! leaves the kernel for it. Where there is no KVM (qtest) nothing is bound, and the device's own
//! write handler, which sees the store then, signals the eventfd itself. Devices must therefore
//! serve both: attach the eventfd, *and* signal it from the write handler.

use thiserror::Error;
use vmm_sys_util::eventfd::EventFd;

/// Where the guest has to store to ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DoorbellAddress {
    /// A guest-physical address.
    Mmio(u64),
    /// An I/O port.
    Pio(u16),
}

/// Why a doorbell could not be bound or unbound.
#[derive(Debug, Error)]
pub enum DoorbellError {
    /// The kernel refused.
    #[error("the host cannot bind a doorbell at {address:?}: {source}")]
    Host {
        /// The doorbell in question.
        address: DoorbellAddress,
        /// The kernel's answer.
        source: std::io::Error,
    },
}

/// Binds eventfds to guest stores. Any thread; neither call waits for I/O.
pub trait Doorbells: Send + Sync {
    /// From now on a store of any width and value to `address` signals `fd`.
    ///
    /// # Errors
    /// [`DoorbellError::Host`] when the address is bound already or the host has no room.
    fn attach(&self, address: DoorbellAddress, fd: &EventFd) -> Result<(), DoorbellError>;

    /// Undoes an [`Doorbells::attach`] with the same arguments. A store that is on its way may
    /// signal `fd` once more.
    ///
    /// # Errors
    /// [`DoorbellError::Host`] when no such doorbell is bound.
    fn detach(&self, address: DoorbellAddress, fd: &EventFd) -> Result<(), DoorbellError>;
}
