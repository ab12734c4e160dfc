//! Which interrupt goes where. The ACPI tables, the KVM routing and the devices all read this.
//!
//! Global system interrupts (GSI) 0 to 15 are the ISA interrupts, also on the two PICs; 16 and up
//! are further inputs of the I/O APIC. PCI's INTx wires have inputs of their own, so that no ISA
//! device shares with them.

use sluice_devices::pci::layout::InterruptPin;
use sluice_devices::pci::{IntxRouter, WIRES};

/// ISA interrupt of the timer (the in-kernel PIT).
pub const TIMER_IRQ: u8 = 0;
/// The I/O APIC input the timer is wired to.
pub const TIMER_GSI: u32 = 2;
/// The ACPI system control interrupt: level triggered, active high.
pub const SCI: u8 = 9;
/// Interrupts of the two IDE channels in compatibility mode: edge triggered.
pub const IDE_IRQS: [u32; 2] = [14, 15];
/// The I/O APIC inputs of PCI's wires PIRQA to PIRQD: level triggered, active low.
pub const PCI_GSIS: [u32; WIRES] = [16, 17, 18, 19];

/// Inputs of one of the two PICs.
pub const PIC_INPUTS: u32 = 8;
/// ISA interrupts, which both kinds of controller receive.
pub const ISA_INTERRUPTS: u32 = 2 * PIC_INPUTS;
/// Inputs of the I/O APIC.
pub const IOAPIC_INPUTS: u32 = 24;
/// The first GSI that stands for a message and not for an input.
pub const FIRST_MSI_GSI: u32 = IOAPIC_INPUTS;

/// Guest-physical address of the I/O APIC.
pub const IOAPIC_ADDRESS: u32 = 0xfec0_0000;
/// Guest-physical address of every vCPU's local APIC.
pub const LOCAL_APIC_ADDRESS: u32 = 0xfee0_0000;

/// The GSI of a PCI device's pin, for the interrupt line register.
#[must_use]
pub fn pci_gsi(device: u8, pin: InterruptPin) -> u8 {
    // The last of them is 19.
    PCI_GSIS[IntxRouter::wire_of(device, pin)].to_le_bytes()[0]
}
