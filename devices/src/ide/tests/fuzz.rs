//! Arbitrary accesses by a guest that has lost its mind, with sections and resets in between: nothing panics, and what must
//! always hold does.

use proptest::prelude::*;
use sluice_block::Section;

use super::bench::*;
use crate::bus::PioDevice;
use crate::pci::{BarIndex, PciFunction};

#[derive(Clone, Debug)]
enum Step {
    In(u16, usize),
    Out(u16, Vec<u8>),
    BusMasterIn(u64, usize),
    BusMasterOut(u64, Vec<u8>),
    Table(Vec<(u32, u32)>),
    /// A whole DMA command with sensible parameters.
    Dma(u8, u32, u8),
    /// Moves the data of a block that is due.
    Block,
    PciCommand(u8),
    Turns,
    Drain,
    Undrain,
    MachineReset,
}

fn port() -> impl Strategy<Value = u16> {
    prop_oneof![
        6 => 0x1f0u16..=0x1f7,
        2 => Just(0x3f6u16),
        1 => 0x170u16..=0x177,
        1 => Just(0x376u16),
    ]
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => prop::collection::vec(any::<u8>(), 1),
        1 => prop::collection::vec(any::<u8>(), 2),
        1 => prop::collection::vec(any::<u8>(), 4),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let known = prop::sample::select(vec![
        0x06u8, 0x20, 0x24, 0x25, 0x29, 0x30, 0x34, 0x35, 0x39, 0x40, 0x90, 0x91, 0xc4, 0xc5, 0xc6,
        0xc8, 0xca, 0xe7, 0xec, 0xef, 0xf8,
    ]);
    let entry = (0u32..0x11_0000, 0u32..0x1000, any::<bool>());
    let entry = entry.prop_map(|(base, count, last)| (base, count | if last { EOT } else { 0 }));
    prop_oneof![
        4 => (port(), prop::sample::select(vec![1usize, 2, 4])).prop_map(|(port, length)| Step::In(port, length)),
        4 => (port(), bytes()).prop_map(|(port, data)| Step::Out(port, data)),
        6 => known.clone().prop_map(|command| Step::Out(COMMAND, vec![command])),
        2 => (0u64..16, prop::sample::select(vec![1usize, 2, 4])).prop_map(|(at, length)| Step::BusMasterIn(at, length.min(16 - usize::try_from(at).unwrap()))),
        3 => (0u64..13, bytes()).prop_map(|(at, data)| Step::BusMasterOut(at, data)),
        2 => prop::collection::vec(entry, 1..6).prop_map(Step::Table),
        4 => (prop::sample::select(vec![0xc8u8, 0xca]), 0u32..4100, 1u8..8).prop_map(|(command, lba, count)| Step::Dma(command, lba, count)),
        4 => Just(Step::Block),
        1 => prop::sample::select(vec![1u8, 5]).prop_map(Step::PciCommand),
        3 => Just(Step::Turns),
        1 => Just(Step::Drain),
        2 => Just(Step::Undrain),
        1 => Just(Step::MachineReset),
    ]
}

fn apply(bench: &mut Bench, sections: &mut Vec<Section>, step: Step) {
    match step {
        Step::In(port, length) => bench.ide.read(port, &mut vec![0; length]),
        Step::Out(port, data) => bench.ide.write(port, &data),
        Step::BusMasterIn(at, length) => {
            bench.ide.bar_read(BarIndex::BAR4, at, &mut vec![0; length]);
        }
        Step::BusMasterOut(at, data) => bench.ide.bar_write(BarIndex::BAR4, at, &data),
        Step::Table(entries) => bench.set_table(&entries),
        Step::Dma(command, lba, count) => {
            bench.set_table(&[(BUFFER, 0x400), (BUFFER + 0x2000, 0x1000 | EOT)]);
            bench.address28(lba, count);
            bench.start_dma(command);
        }
        Step::Block => {
            bench.write_block(&[0x5a; SECTOR]);
            bench.read_block(1);
        }
        Step::PciCommand(value) => bench.set_pci_command(value),
        Step::Turns => bench.idle_turns(),
        Step::Drain => {
            let section = bench.drain();
            sections.push(section);
        }
        Step::Undrain => {
            sections.pop();
        }
        Step::MachineReset => {
            // A machine reset may be asked for while the disk is drained: it must not wait for the section.
            let resetting = bench.ide.reset();
            bench.run(resetting);
        }
    }
}

fn check(bench: &Bench, drained: bool) {
    let status = bench.status();
    assert!(
        status & (BSY | DRQ) != BSY | DRQ,
        "busy and wanting data: {status:#x}"
    );
    let stats = bench.stats();
    if stats.parked_now {
        assert!(status & BSY != 0, "parked without BSY");
    }
    let gate = bench.disks[0].backend.gate();
    if drained {
        assert_eq!(gate.in_flight(), 0, "a request runs inside a section");
    }
    assert!(bench.inb(0x376) == 0 && !bench.lines[1].is_high());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn no_accesses_break_the_controller(steps in prop::collection::vec(step(), 1..120)) {
        let mut bench = Bench::new();
        let mut sections = Vec::new();
        for step in steps {
            apply(&mut bench, &mut sections, step);
            check(&bench, !sections.is_empty());
        }
        sections.clear();
        // Whatever was going on, a reset ends it and the disk answers.
        bench.outb(CONTROL, SRST);
        bench.outb(CONTROL, 0);
        bench.wait_ready();
        prop_assert_eq!(bench.status(), DRDY | DSC);
        bench.outb(COMMAND, 0xec);
        prop_assert_eq!(bench.read_block(1).len(), SECTOR);
        prop_assert_eq!(bench.status(), DRDY | DSC);
        let retiring = bench.ide.retire();
        bench.run(retiring);
        prop_assert_eq!(bench.disks[0].backend.gate().in_flight(), 0);
        prop_assert_eq!(bench.disks[0].backend.gate().parked(), 0);
    }
}
