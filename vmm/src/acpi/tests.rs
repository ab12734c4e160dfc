use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::Mutex;
use sluice_devices::irq::IrqLine;
use sluice_devices::pci::IntxRouter;
use sluice_devices::pci::layout::InterruptPin;
use vm_memory::Bytes;

use super::*;
use crate::machine::routing::PCI_GSIS;
use crate::memory::MemoryLayout;

const PLATFORM: Platform = Platform {
    cpus: 3,
    serial: true,
};

fn ram() -> GuestRam {
    MemoryLayout::new(4 << 20).unwrap().map().unwrap()
}

fn read(ram: &GuestRam, address: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    ram.read_slice(&mut bytes, GuestAddress(address)).unwrap();
    bytes
}

fn number(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .rev()
        .fold(0, |sum, byte| (sum << 8) | u64::from(*byte))
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// A table by its address, after its checksum was found right.
fn table(ram: &GuestRam, address: u64) -> Vec<u8> {
    let length = number(&read(ram, address + 4, 4));
    let bytes = read(ram, address, usize::try_from(length).unwrap());
    assert_eq!(sum(&bytes), 0, "{:?}", &bytes[..4]);
    bytes
}

/// Root, then its tables by signature.
fn tables(ram: &GuestRam, platform: Platform) -> Vec<(Vec<u8>, Vec<u8>)> {
    let root = write_tables(ram, platform).unwrap();
    let rsdp = read(ram, root.0, Rsdp::len());
    assert_eq!(&rsdp[..8], b"RSD PTR ");
    assert_eq!(sum(&rsdp[..20]), 0);
    assert_eq!(sum(&rsdp), 0);
    let xsdt = table(ram, number(&rsdp[24..32]));
    assert_eq!(&xsdt[..4], b"XSDT");
    let named = |address| {
        let bytes = table(ram, address);
        (bytes[..4].to_vec(), bytes)
    };
    let mut found: Vec<_> = xsdt[36..]
        .chunks(8)
        .map(|entry| named(number(entry)))
        .collect();
    let fadt = &found[0].1;
    let dsdt = named(number(&fadt[140..148]));
    assert_eq!(number(&fadt[40..44]), number(&fadt[140..148]));
    found.push(dsdt);
    found
}

#[test]
fn tables_are_found_from_the_root_with_right_checksums() {
    let ram = ram();
    let found = tables(&ram, PLATFORM);
    let names: Vec<_> = found.iter().map(|(name, _)| name.as_slice()).collect();
    assert_eq!(names, [b"FACP", b"APIC", b"DSDT"]);
}

#[test]
fn fadt_names_the_fixed_hardware() {
    let found = tables(&ram(), PLATFORM);
    let fadt = &found[0].1;
    assert_eq!(number(&fadt[46..48]), 9, "SCI");
    assert_eq!(
        number(&fadt[48..52]),
        0,
        "no SMI command: always in ACPI mode"
    );
    assert_eq!(number(&fadt[56..60]), 0x600);
    assert_eq!(number(&fadt[64..68]), 0x604);
    assert_eq!(number(&fadt[76..80]), 0x608);
    assert_eq!((number(&fadt[80..84]), fadt[92]), (0xafe0, 4), "GPE0");
    let flags = number(&fadt[112..116]);
    assert_eq!(flags & (1 << 4), 0, "the power button is a fixed one");
    assert_ne!(flags & (1 << 10), 0, "there is a reset register");
    assert_eq!(number(&fadt[120..128]), 0xcf9);
    assert_eq!(fadt[128], 6);
    assert_eq!(number(&fadt[109..111]) & 2, 0, "no keyboard controller");
    let facs = number(&fadt[36..40]);
    assert_eq!(facs % 64, 0);
}

#[test]
fn madt_lists_every_processor_and_the_overrides() {
    let found = tables(&ram(), PLATFORM);
    let madt = &found[1].1;
    assert_eq!(number(&madt[40..44]), 1, "there are PICs");
    let mut processors = Vec::new();
    let mut overrides = Vec::new();
    let mut rest = &madt[44..];
    while let [kind, length, ..] = rest {
        let (structure, after) = rest.split_at(usize::from(*length));
        match kind {
            0 => processors.push(structure[3]),
            2 => overrides.push((structure[3], number(&structure[4..8]), structure[8])),
            _ => {}
        }
        rest = after;
    }
    assert_eq!(processors, [0, 1, 2]);
    assert_eq!(overrides, [(0, 2, 0), (9, 9, 0xd)]);
}

#[test]
fn serial_port_is_named_only_when_there_is_one() {
    let has_serial = |serial| {
        let found = tables(&ram(), Platform { serial, ..PLATFORM });
        found[2].1.windows(4).any(|name| name == b"COM1")
    };
    assert!(has_serial(true));
    assert!(!has_serial(false));
}

#[test]
fn every_slot_but_the_bridges_can_be_ejected() {
    let found = tables(&ram(), PLATFORM);
    let dsdt = &found[2].1;
    let times = |name: &[u8]| dsdt.windows(name.len()).filter(|at| *at == name).count();
    assert_eq!(times(b"_EJ0"), 30);
    // Each is defined once and notified once.
    let named = |slot: u8| times(format!("S{:02X}_", slot << 3).as_bytes());
    assert!((2..32).all(|slot| named(slot) == 2));
    assert_eq!((named(0), named(1)), (0, 0));
    assert_eq!(times(b"_E01"), 1);
}

/// A package's number of elements and what they are, and what comes behind it (ACPI 6.4, section 20.2.5.4).
fn package(code: &[u8]) -> (u8, &[u8], &[u8]) {
    const PACKAGE: u8 = 0x12;
    assert_eq!(code[0], PACKAGE);
    // The lead byte's upper bits say how many more there are; then it has four bits of the length, otherwise six.
    let more = usize::from(code[1] >> 6);
    let low = if more == 0 { 0x3f } else { 0x0f };
    let high = usize::try_from(number(&code[2..2 + more])).unwrap();
    let length = usize::from(code[1] & low) | high << 4;
    let (whole, behind) = code.split_at(1 + length);
    (whole[2 + more], &whole[3 + more..], behind)
}

/// An integer, and what comes behind it (section 20.2.3).
fn integer(code: &[u8]) -> (u64, &[u8]) {
    let length = match code[0] {
        value @ (0 | 1) => return (value.into(), &code[1..]),
        0x0a => 1,
        0x0b => 2,
        0x0c => 4,
        prefix => panic!("{prefix:#x} is no integer"),
    };
    (number(&code[1..=length]), &code[1 + length..])
}

/// What the guest reads in `_PRT` of a pin is the input that the pin's wire comes to.
#[test]
fn the_routes_that_a_guest_reads_are_those_of_the_bus() {
    let found = tables(&ram(), PLATFORM);
    let dsdt = &found[2].1;
    let name = [b"\x08".as_slice(), b"_PRT"].concat();
    let at = dsdt.windows(5).position(|at| at == name).unwrap();
    let (count, mut routes, _) = package(&dsdt[at + 5..]);
    let driven = Arc::new(Mutex::new(None));
    let router = IntxRouter::new(PCI_GSIS.map(|gsi| {
        let driven = Arc::clone(&driven);
        Arc::new(Input { gsi, driven }) as Arc<dyn IrqLine>
    }));
    let mut seen = BTreeSet::new();
    for _ in 0..count {
        let (fields, route, behind) = package(routes);
        routes = behind;
        let (address, route) = integer(route);
        let (pin, route) = integer(route);
        let (source, route) = integer(route);
        let (gsi, route) = integer(route);
        assert_eq!((fields, source, route), (4, 0, &[][..]), "no link device");
        assert_eq!(address & 0xffff, 0xffff, "of all functions");
        let device = u8::try_from(address >> 16).unwrap();
        let pins = [
            InterruptPin::A,
            InterruptPin::B,
            InterruptPin::C,
            InterruptPin::D,
        ];
        let line = router.line(device, pins[usize::try_from(pin).unwrap()]);
        line.set(true);
        assert_eq!(driven.lock().map(u64::from), Some(gsi), "{device} {pin}");
        line.set(false);
        // As boards with a PIIX have it: from slot to slot one further.
        assert_eq!(gsi, 16 + (u64::from(device) + 3 + pin) % 4);
        assert!(seen.insert((device, pin)), "{device} {pin} twice");
    }
    assert!(routes.is_empty());
    assert_eq!(seen.len(), 32 * 4, "each pin of each device");
}

/// An input of the interrupt controller that says when it is driven.
struct Input {
    gsi: u32,
    driven: Arc<Mutex<Option<u32>>>,
}

impl IrqLine for Input {
    fn set(&self, level: bool) {
        *self.driven.lock() = level.then_some(self.gsi);
    }
}

#[test]
fn most_processors_fit() {
    let found = tables(
        &ram(),
        Platform {
            cpus: u8::MAX - 1,
            ..PLATFORM
        },
    );
    assert_eq!(found.len(), 3);
}
