//! The DSDT: the devices that a guest cannot find by itself, and the name of soft-off.

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Name, Package,
    PackageBuilder, ResourceTemplate, Scope,
};
use acpi_tables::sdt::Sdt;
use sluice_devices::legacy::{CmosRtc, PvPanic, SLEEP_TYPE_S5, SerialPort};
use sluice_devices::pci::layout::InterruptPin;
use sluice_devices::pci::{Address, IntxRouter};

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID, Platform, hotplug};
use crate::machine::routing::PCI_GSIS;
use crate::memory::PCI_MMIO_WINDOW;

const REVISION: u8 = 2;
const HEADER_LENGTH: u32 = 36;
/// `_STA`: present, enabled, shown, working (§6.3.7).
const PRESENT: u8 = 0xf;
/// The host bridge's own ports: configuration mechanism #1.
const PCI_CONFIG_PORTS: (u16, u8) = (0xcf8, 8);
/// `_ADR` of the ISA bridge: device 1, function 0.
const ISA_BRIDGE: u32 = 0x0001_0000;

/// The whole table.
pub(super) fn dsdt(platform: Platform) -> Sdt {
    let mut code = Vec::new();
    soft_off(&mut code);
    pci_root(platform, &mut code);
    hotplug::event(&mut code);
    let mut dsdt = Sdt::new(
        *b"DSDT",
        HEADER_LENGTH,
        REVISION,
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
    );
    dsdt.append_slice(&code);
    dsdt
}

/// `\_S5`: which sleep type switches off.
fn soft_off(code: &mut Vec<u8>) {
    let package = Package::new(vec![&SLEEP_TYPE_S5, &SLEEP_TYPE_S5, &0_u8, &0_u8]);
    Name::new("_S5_".into(), &package).to_aml_bytes(code);
}

/// `\_SB.PCI0` and what is behind its ISA bridge.
fn pci_root(platform: Platform, code: &mut Vec<u8>) {
    let (config_port, config_ports) = PCI_CONFIG_PORTS;
    let config_end = config_port + u16::from(config_ports);
    let mmio_first = u32::try_from(PCI_MMIO_WINDOW.start).unwrap_or(u32::MAX);
    let mmio_last = u32::try_from(PCI_MMIO_WINDOW.end - 1).unwrap_or(u32::MAX);

    let hid = Name::new("_HID".into(), &EISAName::new("PNP0A03"));
    let adr = Name::new("_ADR".into(), &0_u8);
    let uid = Name::new("_UID".into(), &0_u8);
    let bus = AddressSpace::new_bus_number(0_u16, 0_u16);
    let config = IO::new(config_port, config_port, 1, config_ports);
    let low_ports = AddressSpace::new_io(0_u16, config_port - 1, None);
    let high_ports = AddressSpace::new_io(config_end, u16::MAX, None);
    let uncached = AddressSpaceCacheable::NotCacheable;
    let memory = AddressSpace::new_memory(uncached, true, mmio_first, mmio_last, None);
    let windows = ResourceTemplate::new(vec![&bus, &config, &low_ports, &high_ports, &memory]);
    let crs = Name::new("_CRS".into(), &windows);
    let routes = interrupt_routes();
    let prt = Name::new("_PRT".into(), &routes);

    let isa_adr = Name::new("_ADR".into(), &ISA_BRIDGE);
    let (mut com1, mut rtc, mut panic) = (Vec::new(), Vec::new(), Vec::new());
    serial(&mut com1);
    clock(&mut rtc);
    panic_port(&mut panic);
    let (com1, rtc, panic) = (Raw(com1), Raw(rtc), Raw(panic));
    let mut behind_isa: Vec<&dyn Aml> = vec![&isa_adr, &rtc, &panic];
    if platform.serial {
        behind_isa.push(&com1);
    }
    let isa = Device::new("ISA_".into(), behind_isa);

    let mut slots = Vec::new();
    hotplug::slots(&mut slots);
    let slots = Raw(slots);
    let inside: Vec<&dyn Aml> = vec![&hid, &adr, &uid, &crs, &prt, &isa, &slots];
    let root = Device::new("PCI0".into(), inside);
    Scope::new("_SB_".into(), vec![&root]).to_aml_bytes(code);
}

/// `_PRT` (§6.2.13): the input of every pin of every device, by the rotation the bus really has.
fn interrupt_routes() -> PackageBuilder {
    let mut routes = PackageBuilder::new();
    for device in 0..Address::DEVICES {
        let pins = [
            InterruptPin::A,
            InterruptPin::B,
            InterruptPin::C,
            InterruptPin::D,
        ];
        for pin in pins {
            // All functions of the device.
            let address = (u32::from(device) << 16) | 0xffff;
            // `_PRT` counts INTA as 0.
            let number = pin as u8 - 1;
            let gsi = PCI_GSIS[IntxRouter::wire_of(device, pin)];
            routes.add_element(&Package::new(vec![&address, &number, &0_u8, &gsi]));
        }
    }
    routes
}

fn serial(code: &mut Vec<u8>) {
    let hid = Name::new("_HID".into(), &EISAName::new("PNP0501"));
    let uid = Name::new("_UID".into(), &1_u8);
    let sta = Name::new("_STA".into(), &PRESENT);
    let ports = IO::new(SerialPort::COM1, SerialPort::COM1, 1, 8);
    let interrupt = Interrupt::new(true, true, false, false, SerialPort::COM1_IRQ);
    let resources = ResourceTemplate::new(vec![&ports, &interrupt]);
    let crs = Name::new("_CRS".into(), &resources);
    Device::new("COM1".into(), vec![&hid, &uid, &sta, &crs]).to_aml_bytes(code);
}

/// Without an interrupt: the clock has none.
fn clock(code: &mut Vec<u8>) {
    let hid = Name::new("_HID".into(), &EISAName::new("PNP0B00"));
    let ports = IO::new(CmosRtc::INDEX_PORT, CmosRtc::INDEX_PORT, 1, 2);
    let resources = ResourceTemplate::new(vec![&ports]);
    let crs = Name::new("_CRS".into(), &resources);
    Device::new("RTC_".into(), vec![&hid, &crs]).to_aml_bytes(code);
}

fn panic_port(code: &mut Vec<u8>) {
    let hid = Name::new("_HID".into(), &"QEMU0001");
    let sta = Name::new("_STA".into(), &PRESENT);
    let ports = IO::new(PvPanic::PORT, PvPanic::PORT, 1, 1);
    let resources = ResourceTemplate::new(vec![&ports]);
    let crs = Name::new("_CRS".into(), &resources);
    Device::new("PVPN".into(), vec![&hid, &sta, &crs]).to_aml_bytes(code);
}

/// Code that is assembled already.
pub(super) struct Raw(pub(super) Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(&self.0);
    }
}
