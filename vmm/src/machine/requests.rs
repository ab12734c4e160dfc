//! From devices and vCPUs to the controller: what concerns the whole machine.

use std::sync::{Arc, OnceLock, Weak};

use sluice_aio::AioContext;
use sluice_devices::legacy::{GuestFailure, MachineRequest, MachineRequests};

use super::controller::Controller;
use crate::kvm::{VcpuFailure, Vcpus};

/// Carries requests from any thread into the main context. Made before the devices, and
/// connected to the controller when that exists; no vCPU runs before.
pub struct Requests {
    main: AioContext,
    vcpus: OnceLock<Vcpus>,
    controller: OnceLock<Weak<Controller>>,
}

impl Requests {
    /// A carrier into the `main` context.
    #[must_use]
    pub fn new(main: AioContext) -> Arc<Self> {
        Arc::new(Self {
            main,
            vcpus: OnceLock::new(),
            controller: OnceLock::new(),
        })
    }

    /// Makes requests stop these vCPUs.
    pub(super) fn connect_vcpus(&self, vcpus: Vcpus) {
        // Only the machine builder connects, once.
        let _ = self.vcpus.set(vcpus);
    }

    /// Sends requests to `controller`.
    pub(super) fn connect(&self, controller: &Arc<Controller>) {
        let _ = self.controller.set(Arc::downgrade(controller));
    }

    /// Carries the failure of a vCPU. On its thread.
    pub(super) fn vcpu_failed(&self, failure: VcpuFailure) {
        let Some(controller) = self.controller.get().and_then(Weak::upgrade) else {
            return;
        };
        self.main
            .spawn(move || async move { controller.vcpu_failed(&failure) });
    }
}

impl MachineRequests for Requests {
    fn raise(&self, request: MachineRequest) {
        let goes_on = request == MachineRequest::GuestFailed(GuestFailure::CrashLoaded);
        if let Some(vcpus) = self.vcpus.get().filter(|_| !goes_on) {
            vcpus.request_park();
        }
        let Some(controller) = self.controller.get().and_then(Weak::upgrade) else {
            return;
        };
        self.main
            .spawn(move || async move { controller.guest_asked(request).await });
    }
}
