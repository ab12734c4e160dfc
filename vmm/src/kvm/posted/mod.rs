//! Posted writes by KVM's coalesced ports (`KVM_CAP_COALESCED_PIO`): the guest's store ends in the kernel, which puts it
//! into a ring of the machine's.
//!
//! ```text
//! vCPU --out--> KVM: in a zone? --yes--> ring --------------------------------+
//!                    |                    ^ last: where KVM puts the next     |
//!                    no, or ring full     | first: the oldest                 v
//!                    v                                          flush(): port bus, in order
//!               exit to us: flush(), then the access
//! ```
//!
//! The ring belongs to the machine, not to a vCPU, and its order is that in which the stores were made. Each exit of
//! each vCPU flushes before it is served: what a processor has stored before, and what it knows of others to have
//! stored before, is done by then. `first` moves on when a write *has been* carried out: whoever finds the ring empty,
//! without any lock, finds nothing half done. A flush carries out what was there when it began, which is at most a ring
//! full, whatever the guest adds meanwhile.

mod ring;

use std::ops::RangeInclusive;
use std::sync::{Arc, OnceLock};

use kvm_ioctls::{Cap, IoEventAddress, VcpuFd, VmFd};
use parking_lot::Mutex;
use sluice_devices::bus::PioBus;
use sluice_devices::posted::PostedWrites;

use self::ring::Ring;
use super::optional;

/// The machine's posted writes. Any thread.
pub struct KvmPostedWrites {
    fd: Arc<VmFd>,
    ports: Arc<PioBus>,
    /// What may be posted.
    zones: Mutex<Vec<RangeInclusive<u16>>>,
    /// None: this host does not queue, or there is no vCPU yet.
    ring: OnceLock<Ring>,
}

impl KvmPostedWrites {
    /// Nothing is queued yet; what is, later, goes to `ports`.
    #[must_use]
    pub fn new(fd: Arc<VmFd>, ports: Arc<PioBus>) -> Arc<Self> {
        Arc::new(Self {
            fd,
            ports,
            zones: Mutex::default(),
            ring: OnceLock::new(),
        })
    }

    /// Begins to queue, with the first vCPU, through which the ring is to be had. A host that can't goes on without.
    pub(super) fn begin(&self, vcpu: &VcpuFd) {
        if !self.fd.check_extension(Cap::CoalescedPio) {
            tracing::debug!("this host's KVM does not coalesce writes to ports");
            return;
        }
        let ring = Ring::map(vcpu).inspect_err(|error| {
            tracing::warn!(%error, "KVM refused the ring of posted writes; going on without");
        });
        let Ok(ring) = ring else {
            return;
        };
        let zones = self.zones.lock();
        if self.ring.set(ring).is_ok() {
            for zone in zones.iter() {
                let (first, length) = kvm_zone(zone);
                optional(
                    "coalesce writes to ports",
                    self.fd.register_coalesced_mmio(first, length),
                );
            }
        }
    }
}

/// A zone as KVM wants it: its beginning and its length.
fn kvm_zone(ports: &RangeInclusive<u16>) -> (IoEventAddress, u32) {
    let first = IoEventAddress::Pio((*ports.start()).into());
    let length = u32::from(*ports.end()).saturating_sub((*ports.start()).into()) + 1;
    (first, length)
}

impl PostedWrites for KvmPostedWrites {
    fn attach(&self, ports: RangeInclusive<u16>) {
        let mut zones = self.zones.lock();
        if self.ring.get().is_some() {
            let (first, length) = kvm_zone(&ports);
            // No warning: the guest moves ports as often as it likes.
            if let Err(error) = self.fd.register_coalesced_mmio(first, length) {
                tracing::debug!(?ports, %error, "writes are not coalesced");
            }
        }
        zones.push(ports);
    }

    fn detach(&self, ports: RangeInclusive<u16>) {
        let mut zones = self.zones.lock();
        zones.retain(|zone| *zone != ports);
        if self.ring.get().is_some() {
            let (first, length) = kvm_zone(&ports);
            if let Err(error) = self.fd.unregister_coalesced_mmio(first, length) {
                tracing::debug!(?ports, %error, "writes were not coalesced");
            }
        }
    }

    fn flush(&self) {
        let Some(ring) = self.ring.get() else {
            return;
        };
        ring.drain(|address, data| {
            if let Ok(port) = u16::try_from(address) {
                self.ports.write(port, data);
            }
        });
    }
}
