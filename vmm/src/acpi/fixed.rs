//! The tables of fixed layout: FADT (fixed hardware) and MADT (interrupt controllers).

use acpi_tables::fadt::{FADT, FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, AmlSink};
use bitflags::bitflags;
use sluice_devices::legacy::{CmosRtc, GpeBlock, PmBlock, ResetControl};
use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{Immutable, IntoBytes};

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID, Platform};
use crate::machine::routing::{IOAPIC_ADDRESS, LOCAL_APIC_ADDRESS, SCI, TIMER_GSI, TIMER_IRQ};

bitflags! {
    /// FADT boot architecture flags (§5.2.9.3).
    struct BootArchitecture: u16 {
        /// There are devices on the ISA bus that a guest may look for.
        const LEGACY_DEVICES = 1 << 0;
        /// There is a keyboard controller. There is none: what is left of it only resets.
        const KEYBOARD_CONTROLLER = 1 << 1;
        /// Do not look for VGA hardware.
        const NO_VGA = 1 << 2;
        /// Do not switch on PCIe power management.
        const NO_ASPM = 1 << 4;
    }
}

bitflags! {
    /// Polarity and trigger of an interrupt (§5.2.12.5); nothing set: as the bus has it.
    #[derive(Clone, Copy)]
    struct InterruptFlags: u16 {
        const ACTIVE_HIGH = 0b01;
        const LEVEL = 0b11 << 2;
    }
}

/// Bytes of the header that all tables share (§5.2.6).
const SDT_HEADER_LENGTH: u32 = 36;
/// The processor number that means all of them (§5.2.12.7).
const EVERY_PROCESSOR: u8 = 0xff;

/// A register block in the port space.
fn ports(first: u16, length: u8, access_size: AccessSize) -> GAS {
    GAS::new(
        AddressSpace::SystemIo,
        length * 8,
        0,
        access_size,
        u64::from(first),
    )
}

/// The fixed hardware: the [`PmBlock`], the reset register and the clock's century.
pub(super) fn fadt(dsdt: u64, facs: u64) -> FADT {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .firmware_ctrl_64(facs)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        // The power button is a fixed one (its flag stays clear), a sleep button there is not.
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::TmrValExt)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless);
    // The 32 bit fields say the same as the extended ones, for guests of either age.
    fadt.dsdt = u32::try_from(dsdt).unwrap_or(0).into();
    fadt.firmware_ctrl = u32::try_from(facs).unwrap_or(0).into();
    fadt.x_firmware_ctrl = 0.into();
    fadt.sci_int = u16::from(SCI).into();
    fadt.pm1a_evt_blk = u32::from(PmBlock::EVENT_PORT).into();
    fadt.pm1_evt_len = PmBlock::EVENT_LENGTH;
    fadt.x_pm1a_evt_blk = ports(
        PmBlock::EVENT_PORT,
        PmBlock::EVENT_LENGTH,
        AccessSize::WordAccess,
    );
    fadt.pm1a_cnt_blk = u32::from(PmBlock::CONTROL_PORT).into();
    fadt.pm1_cnt_len = PmBlock::CONTROL_LENGTH;
    fadt.x_pm1a_cnt_blk = ports(
        PmBlock::CONTROL_PORT,
        PmBlock::CONTROL_LENGTH,
        AccessSize::WordAccess,
    );
    fadt.pm_tmr_blk = u32::from(PmBlock::TIMER_PORT).into();
    fadt.pm_tmr_len = PmBlock::TIMER_LENGTH;
    fadt.x_pm_tmr_blk = ports(
        PmBlock::TIMER_PORT,
        PmBlock::TIMER_LENGTH,
        AccessSize::DwordAccess,
    );
    fadt.gpe0_blk = u32::from(GpeBlock::BASE).into();
    fadt.gpe0_blk_len = GpeBlock::LENGTH;
    fadt.x_gpe0_blk = ports(GpeBlock::BASE, GpeBlock::LENGTH, AccessSize::ByteAccess);
    // Values beyond 100 and 1000 microseconds say: no C2, no C3 (§5.2.9).
    fadt.p_lvl2_lat = 0xfff.into();
    fadt.p_lvl3_lat = 0xfff.into();
    fadt.century = CmosRtc::CENTURY;
    let boot_architecture =
        BootArchitecture::LEGACY_DEVICES | BootArchitecture::NO_VGA | BootArchitecture::NO_ASPM;
    fadt.iapc_boot_arch = boot_architecture.bits().into();
    fadt.reset_reg = ports(ResetControl::PORT, 1, AccessSize::ByteAccess);
    fadt.reset_value = ResetControl::FULL_RESET;
    fadt.finalize()
}

/// "Interrupt source override" (§5.2.12.5), which the crate lacks.
#[repr(C, packed)]
#[derive(Clone, Copy, IntoBytes, Immutable)]
struct SourceOverride {
    kind: u8,
    length: u8,
    bus: u8,
    source: u8,
    gsi: U32,
    flags: U16,
}

impl SourceOverride {
    fn new(source: u8, gsi: u32, flags: InterruptFlags) -> Self {
        Self {
            kind: 2,
            length: 10,
            bus: 0,
            source,
            gsi: gsi.into(),
            flags: flags.bits().into(),
        }
    }
}

impl Aml for SourceOverride {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(self.as_bytes());
    }
}

/// "Local APIC NMI" (§5.2.12.7): LINT1 of every processor is the NMI.
#[repr(C, packed)]
#[derive(Clone, Copy, IntoBytes, Immutable)]
struct LocalApicNmi {
    kind: u8,
    length: u8,
    processor: u8,
    flags: U16,
    lint: u8,
}

impl Aml for LocalApicNmi {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(self.as_bytes());
    }
}

bitflags! {
    /// MADT flags (§5.2.12).
    struct Controllers: u32 {
        /// There is a pair of PICs besides the I/O APIC.
        const PCAT_COMPATIBLE = 1 << 0;
    }
}

/// The interrupt controllers. Put together by hand: the crate's own table cannot say that there are
/// PICs, without which newer kernels set up no ISA interrupts.
pub(super) fn madt(platform: Platform) -> Sdt {
    const REVISION: u8 = 5;
    let mut madt = Sdt::new(
        *b"APIC",
        SDT_HEADER_LENGTH,
        REVISION,
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
    );
    madt.append_slice(&LOCAL_APIC_ADDRESS.to_le_bytes());
    madt.append_slice(&Controllers::PCAT_COMPATIBLE.bits().to_le_bytes());
    let mut add = |structure: &dyn Aml| {
        let mut bytes = Vec::new();
        structure.to_aml_bytes(&mut bytes);
        madt.append_slice(&bytes);
    };
    for cpu in 0..platform.cpus {
        add(&ProcessorLocalApic::new(cpu, cpu, EnabledStatus::Enabled));
    }
    add(&IoApic::new(0, IOAPIC_ADDRESS, 0));
    add(&SourceOverride::new(
        TIMER_IRQ,
        TIMER_GSI,
        InterruptFlags::empty(),
    ));
    let level = InterruptFlags::ACTIVE_HIGH | InterruptFlags::LEVEL;
    add(&SourceOverride::new(SCI, u32::from(SCI), level));
    add(&LocalApicNmi {
        kind: 4,
        length: 6,
        processor: EVERY_PROCESSOR,
        flags: 0.into(),
        lint: 1,
    });
    madt
}
