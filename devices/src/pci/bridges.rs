//! The two bridges every PC of this family has: the i440FX host bridge and the PIIX3 ISA bridge.
//!
//! Guests look at their identity (and at little else) to find out what machine they are on; the
//! devices behind the ISA bridge have their own models. The host bridge's memory registers (PAM,
//! SMRAM) belong to firmware in ROM, which this machine has not: they read as zero.
//!
//! Source: Intel 82441FX (290549) section 3.2, Intel 82371SB (290550) sections 2.2 and 3.1.

use std::sync::Arc;

use super::layout::{Status, class};
use super::{ConfigBuilder, Identity, PciConfig, PciFunction};
use crate::reset::{Resetting, settled};

/// Intel's vendor ID.
pub const VENDOR_INTEL: u16 = 0x8086;
/// 82441FX, host bridge.
const DEVICE_HOST_BRIDGE: u16 = 0x1237;
/// 82371SB (PIIX3), ISA bridge.
const DEVICE_ISA_BRIDGE: u16 = 0x7000;
/// Subsystem under which drivers know virtual machines of this kind ("QEMU virtual machine").
const SUBSYSTEM_VENDOR: u16 = 0x1af4;
const SUBSYSTEM_DEVICE: u16 = 0x1100;

/// Offset of the four PIRQRC registers, the routing of PCI interrupts to ISA interrupts.
const PIRQ_ROUTE: usize = 0x60;
/// A PIRQRC register that routes nowhere, its power-on value. It is read-only here: INTx goes to
/// the interrupt controller's inputs that the ACPI tables name.
const PIRQ_NOT_ROUTED: u8 = 0x80;

/// A bridge: a configuration space and nothing behind it.
pub struct Bridge {
    config: PciConfig,
}

impl Bridge {
    /// The host bridge, for 00.0.
    pub fn host() -> Arc<Self> {
        let config = ConfigBuilder::new(Identity {
            vendor: VENDOR_INTEL,
            device: DEVICE_HOST_BRIDGE,
            revision: 2,
            class: class::HOST_BRIDGE,
        })
        .subsystem(SUBSYSTEM_VENDOR, SUBSYSTEM_DEVICE)
        .build();
        Arc::new(Self { config })
    }

    /// The ISA bridge, for 01.0; the IDE controller is function 1 of the same device.
    pub fn isa() -> Arc<Self> {
        let config = ConfigBuilder::new(Identity {
            vendor: VENDOR_INTEL,
            device: DEVICE_ISA_BRIDGE,
            revision: 0,
            class: class::ISA_BRIDGE,
        })
        .subsystem(SUBSYSTEM_VENDOR, SUBSYSTEM_DEVICE)
        .status(Status::DEVSEL_MEDIUM)
        .multifunction()
        .registers(PIRQ_ROUTE, &[PIRQ_NOT_ROUTED; 4], &[0; 4])
        .build();
        Arc::new(Self { config })
    }
}

impl PciFunction for Bridge {
    fn config(&self) -> &PciConfig {
        &self.config
    }

    fn reset(&self) -> Resetting {
        settled()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_are_those_guests_look_for() {
        assert_eq!(Bridge::host().config().read_u32(0), 0x1237_8086);
        assert_eq!(Bridge::host().config().read_u32(8), 0x0600_0002);
        assert_eq!(Bridge::isa().config().read_u32(0), 0x7000_8086);
        assert_eq!(Bridge::isa().config().read_u8(0x0e), 0x80);
    }
}
