//! What a guest runs when something is plugged into the PCI bus, or is to be unplugged.
//!
//! ```text
//! Scope (\_SB.PCI0) {
//!     OperationRegion, Field: UP__, DOWN, EJCT            the registers of PciHotplug
//!     Device (S10_) { _ADR, _SUN, _EJ0 { EJCT = 1 << 2 } }   and so on for each slot
//!     Method (DVNT, 2) { If (Arg0 & 1 << 2) { Notify (S10_, Arg1) } ... }
//!     Method (PCNT) { DVNT (UP__, 1)  DVNT (DOWN, 3) }
//! }
//! Scope (\_GPE) { Method (_E01) { \_SB.PCI0.PCNT () } }
//! ```
//!
//! A slot without `_STA` is looked into by its configuration space, so a guest sees at once whether
//! something is there (ACPI 6.5 §6.3).

use acpi_tables::Aml;
use acpi_tables::aml::{
    And, Arg, Device, EISAName, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule,
    IO, If, Method, MethodCall, Name, Notify, OpRegion, OpRegionSpace, Path, ResourceTemplate,
    Scope, Store, ZERO,
};
use sluice_devices::legacy::{GpeBlock, PciHotplug};

use super::dsdt::Raw;

/// Notifications of a device (ACPI 6.5 §5.6.6): look whether it is there.
const DEVICE_CHECK: u8 = 1;
/// Let go of it.
const EJECT_REQUEST: u8 = 3;

/// Bits of a register that has one for each slot.
const REGISTER_BITS: usize = 32;

/// The name of a slot's device: by its device and function number, as QEMU names them.
fn slot_name(slot: u8) -> Path {
    format!("S{:02X}_", slot << 3).as_str().into()
}

/// What belongs below `\_SB.PCI0`.
pub(super) fn slots(code: &mut Vec<u8>) {
    let (base, length) = (PciHotplug::BASE, PciHotplug::LENGTH);
    let region = OpRegion::new("PHPR".into(), OpRegionSpace::SystemIO, &base, &length);
    region.to_aml_bytes(code);
    let names = [*b"UP__", *b"DOWN", *b"EJCT"];
    let fields = names.map(|name| FieldEntry::Named(name, REGISTER_BITS));
    Field::new(
        "PHPR".into(),
        FieldAccessType::DWord,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
        fields.to_vec(),
    )
    .to_aml_bytes(code);
    let mut notices = Vec::new();
    for slot in PciHotplug::SLOTS {
        let bit = 1_u32 << slot;
        let adr = Name::new("_ADR".into(), &(u32::from(slot) << 16));
        let sun = Name::new("_SUN".into(), &slot);
        let register: Path = "EJCT".into();
        let eject = Store::new(&register, &bit);
        let ej0 = Method::new("_EJ0".into(), 1, true, vec![&eject]);
        Device::new(slot_name(slot), vec![&adr, &sun, &ej0]).to_aml_bytes(code);
        let (name, mask) = (slot_name(slot), Arg(0));
        let is_meant = And::new(&ZERO, &mask, &bit);
        let what = Arg(1);
        let notify = Notify::new(&name, &what);
        If::new(&is_meant, vec![&notify]).to_aml_bytes(&mut notices);
    }
    let notices = Raw(notices);
    Method::new("DVNT".into(), 2, false, vec![&notices]).to_aml_bytes(code);
    let (up, down): (Path, Path) = ("UP__".into(), "DOWN".into());
    let plugged = MethodCall::new("DVNT".into(), vec![&up, &DEVICE_CHECK]);
    let unplug = MethodCall::new("DVNT".into(), vec![&down, &EJECT_REQUEST]);
    Method::new("PCNT".into(), 0, true, vec![&plugged, &unplug]).to_aml_bytes(code);
    ports(code);
}

/// Keeps guests from giving the registers' ports to a device.
fn ports(code: &mut Vec<u8>) {
    let hid = Name::new("_HID".into(), &EISAName::new("PNP0A06"));
    let uid = Name::new("_UID".into(), &"hotplug");
    let slots = IO::new(PciHotplug::BASE, PciHotplug::BASE, 1, PciHotplug::LENGTH);
    let events = IO::new(GpeBlock::BASE, GpeBlock::BASE, 1, GpeBlock::LENGTH);
    let resources = ResourceTemplate::new(vec![&slots, &events]);
    let crs = Name::new("_CRS".into(), &resources);
    Device::new("PHPD".into(), vec![&hid, &uid, &crs]).to_aml_bytes(code);
}

/// The event's method.
pub(super) fn event(code: &mut Vec<u8>) {
    let tell = MethodCall::new("\\_SB_.PCI0.PCNT".into(), vec![]);
    let method = Method::new("_E01".into(), 0, false, vec![&tell]);
    Scope::new("\\_GPE".into(), vec![&method]).to_aml_bytes(code);
}
