//! Interrupts on KVM's in-kernel controllers: input lines, and messages by eventfd.
//!
//! Every eventfd interrupt has a GSI of its own above the I/O APIC's inputs, and the routing table
//! says which message that GSI sends. A masked vector has no route, so that triggering it sends
//! nothing.

use std::sync::{Arc, Weak};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KvmIrqRouting, kvm_irq_routing_entry,
    kvm_irq_routing_entry__bindgen_ty_1, kvm_irq_routing_irqchip, kvm_irq_routing_msi,
    kvm_irq_routing_msi__bindgen_ty_1,
};
use kvm_ioctls::{Cap, VmFd};
use parking_lot::Mutex;
use sluice_devices::irq::{IrqError, IrqLine, MsiController, MsiVector};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{KvmError, Refused};
use crate::machine::routing::{
    FIRST_MSI_GSI, IOAPIC_INPUTS, ISA_INTERRUPTS, PIC_INPUTS, TIMER_GSI, TIMER_IRQ,
};

/// A message: address and data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Message {
    address: u64,
    data: u32,
}

/// A GSI for messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Vector {
    Free,
    Masked,
    Sends(Message),
}

/// The machine's interrupt routing. Any thread.
pub struct InterruptRouter {
    fd: Arc<VmFd>,
    vectors: Mutex<Vec<Vector>>,
    limit: usize,
    /// For the vectors, which outlive nothing but give themselves back.
    own: Weak<Self>,
}

impl InterruptRouter {
    /// Routes the input lines of `fd`; messages are routed as they are configured.
    ///
    /// # Errors
    /// [`KvmError::Call`] when KVM refuses the table.
    pub fn new(fd: Arc<VmFd>) -> Result<Arc<Self>, KvmError> {
        let routes = usize::try_from(fd.check_extension_int(Cap::IrqRouting)).unwrap_or(0);
        let limit = routes.saturating_sub(lines().len());
        let router = Arc::new_cyclic(|own| Self {
            fd,
            vectors: Mutex::new(Vec::new()),
            limit,
            own: Weak::clone(own),
        });
        router.apply(&[]).refused("route interrupts")?;
        Ok(router)
    }

    /// The line of a GSI. Each is to be driven by one owner; wires shared by several
    /// are put together before they come here.
    #[must_use]
    pub fn line(&self, gsi: u32) -> Arc<dyn IrqLine> {
        Arc::new(Line {
            fd: Arc::clone(&self.fd),
            gsi,
            level: Mutex::new(false),
        })
    }

    fn apply(&self, vectors: &[Vector]) -> Result<(), kvm_ioctls::Error> {
        let mut entries = lines();
        for (gsi, vector) in (FIRST_MSI_GSI..).zip(vectors) {
            if let Vector::Sends(message) = vector {
                entries.push(message_route(gsi, *message));
            }
        }
        let table = KvmIrqRouting::from_entries(&entries)
            .map_err(|_| kvm_ioctls::Error::new(libc::E2BIG))?;
        self.fd.set_gsi_routing(&table)
    }

    fn change(&self, index: usize, to: Vector) {
        let mut vectors = self.vectors.lock();
        if vectors[index] == to {
            return;
        }
        vectors[index] = to;
        if let Err(error) = self.apply(&vectors) {
            tracing::error!(%error, "KVM refused to route a message-signalled interrupt");
        }
    }
}

impl MsiController for InterruptRouter {
    fn allocate(&self) -> Result<Arc<dyn MsiVector>, IrqError> {
        let exhausted = IrqError::Exhausted { limit: self.limit };
        let Some(router) = self.own.upgrade() else {
            return Err(exhausted);
        };
        let event = EventFd::new(EFD_NONBLOCK)?;
        let index = {
            let mut vectors = self.vectors.lock();
            let free = vectors.iter().position(|vector| *vector == Vector::Free);
            let index = free.unwrap_or(vectors.len());
            if index >= self.limit {
                return Err(exhausted);
            }
            if index == vectors.len() {
                vectors.push(Vector::Masked);
            } else {
                vectors[index] = Vector::Masked;
            }
            index
        };
        let vector = Arc::new(EventVector {
            router,
            index,
            event,
        });
        let bound = self.fd.register_irqfd(&vector.event, vector.gsi());
        bound.map_err(|error| IrqError::Host(error.into()))?;
        Ok(vector)
    }
}

/// A vector that an eventfd triggers.
struct EventVector {
    router: Arc<InterruptRouter>,
    index: usize,
    event: EventFd,
}

impl EventVector {
    fn gsi(&self) -> u32 {
        FIRST_MSI_GSI + u32::try_from(self.index).unwrap_or(u32::MAX - FIRST_MSI_GSI)
    }
}

impl MsiVector for EventVector {
    fn configure(&self, address: u64, data: u32, masked: bool) {
        let message = Message { address, data };
        let to = if masked {
            Vector::Masked
        } else {
            Vector::Sends(message)
        };
        self.router.change(self.index, to);
    }

    fn trigger(&self) {
        // The only error is a full counter, which means that the interrupt is on its way.
        let _ = self.event.write(1);
    }
}

impl Drop for EventVector {
    fn drop(&mut self) {
        if let Err(error) = self.router.fd.unregister_irqfd(&self.event, self.gsi()) {
            tracing::debug!(%error, "an interrupt's eventfd was not bound");
        }
        self.router.change(self.index, Vector::Free);
    }
}

/// A line driven by a call. Lines change much more rarely than messages are sent.
struct Line {
    fd: Arc<VmFd>,
    gsi: u32,
    level: Mutex<bool>,
}

impl IrqLine for Line {
    fn set(&self, level: bool) {
        let mut now = self.level.lock();
        if *now == level {
            return;
        }
        *now = level;
        if let Err(error) = self.fd.set_irq_line(self.gsi, level) {
            tracing::error!(gsi = self.gsi, %error, "KVM refused to drive an interrupt line");
        }
    }
}

/// The routes of all inputs: ISA interrupts to a PIC and to the I/O APIC, the others to the
/// latter. The timer is wired to another input of the I/O APIC than its number says.
fn lines() -> Vec<kvm_irq_routing_entry> {
    let mut entries = Vec::new();
    for gsi in 0..ISA_INTERRUPTS {
        let (chip, pin) = match gsi.checked_sub(PIC_INPUTS) {
            None => (KVM_IRQCHIP_PIC_MASTER, gsi),
            Some(pin) => (KVM_IRQCHIP_PIC_SLAVE, pin),
        };
        entries.push(line_route(gsi, chip, pin));
    }
    entries.push(line_route(
        u32::from(TIMER_IRQ),
        KVM_IRQCHIP_IOAPIC,
        TIMER_GSI,
    ));
    for gsi in 0..IOAPIC_INPUTS {
        if gsi != u32::from(TIMER_IRQ) && gsi != TIMER_GSI {
            entries.push(line_route(gsi, KVM_IRQCHIP_IOAPIC, gsi));
        }
    }
    entries
}

fn line_route(gsi: u32, irqchip: u32, pin: u32) -> kvm_irq_routing_entry {
    kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        u: kvm_irq_routing_entry__bindgen_ty_1 {
            irqchip: kvm_irq_routing_irqchip { irqchip, pin },
        },
        ..kvm_irq_routing_entry::default()
    }
}

fn message_route(gsi: u32, message: Message) -> kvm_irq_routing_entry {
    let [a, b, c, d, e, f, g, h] = message.address.to_le_bytes();
    let msi = kvm_irq_routing_msi {
        address_lo: u32::from_le_bytes([a, b, c, d]),
        address_hi: u32::from_le_bytes([e, f, g, h]),
        data: message.data,
        __bindgen_anon_1: kvm_irq_routing_msi__bindgen_ty_1 { pad: 0 },
    };
    kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        u: kvm_irq_routing_entry__bindgen_ty_1 { msi },
        ..kvm_irq_routing_entry::default()
    }
}
