use vm_memory::Bytes;

use super::*;
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
