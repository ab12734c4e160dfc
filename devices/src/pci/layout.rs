//! The layout of a type 0 configuration header: offsets, bits, class codes.
//!
//! Source: PCI Local Bus Specification 3.0, chapter 6 and appendices D and H. Nothing here has
//! behaviour.

/// Length of the configuration space in bytes.
pub const CONFIG_SPACE_LEN: usize = 256;

/// Offsets of the registers of a type 0 header (section 6.1).
pub mod offset {
    /// Vendor ID, 16 bits.
    pub const VENDOR: usize = 0x00;
    /// Device ID, 16 bits.
    pub const DEVICE: usize = 0x02;
    /// Command register, 16 bits.
    pub const COMMAND: usize = 0x04;
    /// Status register, 16 bits.
    pub const STATUS: usize = 0x06;
    /// Revision ID, 8 bits.
    pub const REVISION: usize = 0x08;
    /// Class code: interface, sub-class, base class, 8 bits each.
    pub const CLASS: usize = 0x09;
    /// Cache line size, 8 bits; no effect here, but software writes it.
    pub const CACHE_LINE: usize = 0x0c;
    /// Latency timer, 8 bits; no effect here, but software writes it.
    pub const LATENCY: usize = 0x0d;
    /// Header type, 8 bits.
    pub const HEADER_TYPE: usize = 0x0e;
    /// First of six base address registers, 32 bits each.
    pub const BAR0: usize = 0x10;
    /// Subsystem vendor ID, 16 bits.
    pub const SUBSYSTEM_VENDOR: usize = 0x2c;
    /// Subsystem ID, 16 bits.
    pub const SUBSYSTEM: usize = 0x2e;
    /// Offset of the first capability, 8 bits.
    pub const CAPABILITIES: usize = 0x34;
    /// Interrupt line, 8 bits: a scratch register for firmware and system.
    pub const INTERRUPT_LINE: usize = 0x3c;
    /// Interrupt pin, 8 bits.
    pub const INTERRUPT_PIN: usize = 0x3d;
    /// End of the header, where capabilities and device-specific registers begin.
    pub const DEVICE_SPECIFIC: usize = 0x40;
}

/// Header type bit: the device has more functions than function 0 (section 6.2.1).
pub const HEADER_MULTIFUNCTION: u8 = 0x80;

bitflags::bitflags! {
    /// Command register (section 6.2.2).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Command: u16 {
        /// Answer I/O accesses.
        const IO = 1 << 0;
        /// Answer memory accesses.
        const MEMORY = 1 << 1;
        /// May access memory on its own, which message-signalled interrupts are too.
        const BUS_MASTER = 1 << 2;
        /// Report parity errors; kept, without effect.
        const PARITY = 1 << 6;
        /// Drive SERR#; kept, without effect.
        const SERR = 1 << 8;
        /// Must not assert INTx.
        const INTX_DISABLE = 1 << 10;
    }

    /// Status register (section 6.2.3).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Status: u16 {
        /// An INTx interrupt is pending, whether or not it is disabled.
        const INTERRUPT = 1 << 3;
        /// There is a capability list.
        const CAPABILITIES = 1 << 4;
        /// Can take back-to-back cycles.
        const FAST_BACK_TO_BACK = 1 << 7;
        /// Medium DEVSEL timing, as the parts of the PIIX family report.
        const DEVSEL_MEDIUM = 1 << 9;
        /// The error bits; software clears them by writing ones. Nothing here sets them.
        const ERRORS = 0xf900;
    }
}

/// The class code of a function (appendix D).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClassCode {
    /// Base class.
    pub base: u8,
    /// Sub-class.
    pub sub: u8,
    /// Programming interface.
    pub interface: u8,
}

/// Class codes of the functions this machine has.
pub mod class {
    use super::ClassCode;

    /// Mass storage, IDE; interface: both channels in compatibility mode, bus master capable.
    pub const IDE: ClassCode = ClassCode {
        base: 0x01,
        sub: 0x01,
        interface: 0x80,
    };
    /// Mass storage, SCSI: what a virtio block device shows.
    pub const STORAGE_SCSI: ClassCode = ClassCode {
        base: 0x01,
        sub: 0x00,
        interface: 0x00,
    };
    /// Host bridge.
    pub const HOST_BRIDGE: ClassCode = ClassCode {
        base: 0x06,
        sub: 0x00,
        interface: 0x00,
    };
    /// ISA bridge.
    pub const ISA_BRIDGE: ClassCode = ClassCode {
        base: 0x06,
        sub: 0x01,
        interface: 0x00,
    };
}

/// Capability identifiers (appendix H).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum CapabilityId {
    /// Vendor-specific.
    Vendor = 0x09,
    /// MSI-X.
    MsiX = 0x11,
}

/// The INTx pin of a function (section 6.2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum InterruptPin {
    /// INTA#.
    A = 1,
    /// INTB#.
    B = 2,
    /// INTC#.
    C = 3,
    /// INTD#.
    D = 4,
}
