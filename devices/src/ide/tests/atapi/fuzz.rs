//! Arbitrary packets and half-done transfers, with sections, resets and an operator in between: nothing panics, and what
//! must always hold does.

use proptest::prelude::*;
use sluice_block::Section;

use super::*;
use crate::pci::PciFunction;

#[derive(Clone, Debug)]
enum Step {
    Packet(u8, u16, Vec<u8>),
    TakeWords(usize),
    StartBusMaster,
    StopBusMaster,
    Command(u8),
    SoftwareReset,
    MachineReset,
    Drain,
    Undrain,
    Turns,
    MoveTray(bool),
    MediumChanged,
    AskForEject(bool),
}

fn packet() -> impl Strategy<Value = Vec<u8>> {
    let known = prop::sample::select(vec![
        0x00u8, 0x03, 0x12, 0x1a, 0x1b, 0x1e, 0x25, 0x28, 0x2b, 0x43, 0x46, 0x4a, 0x51, 0x5a, 0xa8,
        0xad, 0xbb, 0xbd, 0xbe,
    ]);
    let arbitrary = prop::collection::vec(any::<u8>(), 12);
    prop_oneof![
        // Most fields small, so that much of it makes sense.
        4 => (known, prop::collection::vec(prop_oneof![Just(0u8), 0u8..40, any::<u8>()], 11))
            .prop_map(|(code, rest)| [&[code][..], &rest].concat()),
        2 => (0u32..1100, 0u16..40).prop_map(|(first, count)| read_10(first, count)),
        2 => (0u32..1100, 0u8..40, prop::sample::select(vec![0u8, 0x10, 0xf8]))
            .prop_map(|(first, count, parts)| read_cd(first, count, parts)),
        1 => arbitrary,
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let limit = prop_oneof![Just(0u16), 1u16..9, 2000u16..5000, Just(u16::MAX)];
    let command = prop::sample::select(vec![0x08u8, 0x08, 0x20, 0x90, 0xa1, 0xe7, 0xef]);
    prop_oneof![
        8 => (0u8..4, limit, packet()).prop_map(|(features, limit, packet)| Step::Packet(features, limit, packet)),
        8 => prop_oneof![Just(0x8000usize), 0usize..3000].prop_map(Step::TakeWords),
        4 => Just(Step::StartBusMaster),
        2 => Just(Step::StopBusMaster),
        2 => command.prop_map(Step::Command),
        1 => Just(Step::SoftwareReset),
        1 => Just(Step::MachineReset),
        1 => Just(Step::Drain),
        2 => Just(Step::Undrain),
        6 => Just(Step::Turns),
        1 => any::<bool>().prop_map(Step::MoveTray),
        1 => Just(Step::MediumChanged),
        1 => any::<bool>().prop_map(Step::AskForEject),
    ]
}

fn apply(bench: &mut Bench, sections: &mut Vec<Section>, step: Step) {
    match step {
        Step::Packet(features, limit, packet) => {
            let [low, high] = limit.to_le_bytes();
            bench.outb(FEATURES, features);
            bench.outb(LBA_MID, low);
            bench.outb(LBA_HIGH, high);
            bench.outb(COMMAND, PACKET);
            bench.write_block(&packet);
        }
        Step::TakeWords(words) => drop(bench.read_words(words)),
        Step::StartBusMaster => {
            bench.set_table(&[(BUFFER, 0x4000), (BUFFER + 0x8000, 0x4000 | EOT)]);
            bench.bm_write(BM_COMMAND, BM_START | BM_TO_MEMORY);
        }
        Step::StopBusMaster => bench.bm_write(BM_COMMAND, 0),
        Step::Command(command) => bench.outb(COMMAND, command),
        Step::SoftwareReset => {
            bench.outb(CONTROL, SRST);
            bench.outb(CONTROL, 0);
        }
        Step::MachineReset => {
            let resetting = bench.ide.reset();
            bench.run(resetting);
        }
        Step::Drain => {
            let section = bench.drain();
            sections.push(section);
        }
        Step::Undrain => drop(sections.pop()),
        Step::Turns => bench.idle_turns(),
        Step::MoveTray(open) => bench.device().move_tray(open),
        Step::MediumChanged => bench.device().medium_changed(true),
        Step::AskForEject(force) => bench.device().request_eject(force),
    }
}

fn check(bench: &Bench, drained: bool) {
    let status = bench.status();
    assert!(
        status & (BSY | DRQ) != BSY | DRQ,
        "busy and wanting data: {status:#x}"
    );
    if bench.stats().parked_now {
        assert!(status & BSY != 0, "parked without BSY");
    }
    if drained {
        let in_flight = bench.disks[0].backend.gate().in_flight();
        assert_eq!(in_flight, 0, "a request runs inside a section");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn no_packets_break_the_drive(steps in prop::collection::vec(step(), 1..120)) {
        let mut bench = cd();
        let mut sections = Vec::new();
        for step in steps {
            apply(&mut bench, &mut sections, step);
            check(&bench, !sections.is_empty());
        }
        sections.clear();
        // Whatever was going on, a reset of the machine ends it and the drive answers.
        let resetting = bench.ide.reset();
        bench.run(resetting);
        prop_assert_eq!(bench.packet(&read_10(7, 1)), block(7));
        prop_assert!(bench.disks[0].is_untouched());
        let retiring = bench.ide.retire();
        bench.run(retiring);
        prop_assert_eq!(bench.disks[0].backend.gate().in_flight(), 0);
        prop_assert_eq!(bench.disks[0].backend.gate().parked(), 0);
    }
}
