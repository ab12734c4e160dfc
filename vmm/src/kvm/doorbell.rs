//! Doorbells by ioeventfd: the guest's store ends in the kernel.

use std::sync::Arc;

use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use sluice_devices::doorbell::{DoorbellAddress, DoorbellError, Doorbells};
use vmm_sys_util::eventfd::EventFd;

/// Binds eventfds in KVM. Any thread.
pub struct KvmDoorbells {
    fd: Arc<VmFd>,
}

impl KvmDoorbells {
    /// Doorbells of the machine `fd`.
    #[must_use]
    pub fn new(fd: Arc<VmFd>) -> Self {
        Self { fd }
    }
}

fn kvm_address(address: DoorbellAddress) -> IoEventAddress {
    match address {
        DoorbellAddress::Mmio(address) => IoEventAddress::Mmio(address),
        DoorbellAddress::Pio(port) => IoEventAddress::Pio(port.into()),
    }
}

impl Doorbells for KvmDoorbells {
    fn attach(&self, address: DoorbellAddress, fd: &EventFd) -> Result<(), DoorbellError> {
        self.fd
            .register_ioevent(fd, &kvm_address(address), NoDatamatch)
            .map_err(|error| DoorbellError::Host {
                address,
                source: error.into(),
            })
    }

    fn detach(&self, address: DoorbellAddress, fd: &EventFd) -> Result<(), DoorbellError> {
        self.fd
            .unregister_ioevent(fd, &kvm_address(address), NoDatamatch)
            .map_err(|error| DoorbellError::Host {
                address,
                source: error.into(),
            })
    }
}
