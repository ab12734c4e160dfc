//! The commands of an IDE disk as the machine serves them: on the first channel's master and slave and on the second
//! channel, undisturbed, in a drained section, reset there and afterwards, and with the interrupt switched off.
//!
//! What a command may answer in every corner is for the tests of the devices; here it is whether drives, channels,
//! interrupts, the bus master and QMP are wired such that each answers at all.

use sluice_tests::qtest::machine::QtestMachine;

use super::ide_drives::*;
use super::process::SLUICE;

const SMART_KEY: Address = Address::Key([0x4f, 0xc2]);
/// The address of the last sector, 8191.
const LAST: &[(u64, u8)] = &[
    (register::LBA_LOW, 0xff),
    (register::LBA_MID, 0x1f),
    (register::LBA_HIGH, 0),
];
const ACTIVE_OR_IDLE: &[(u64, u8)] = &[(register::COUNT, 0xff)];
const HEALTHY: &[(u64, u8)] = &[(register::LBA_MID, 0x4f), (register::LBA_HIGH, 0xc2)];
const DIAGNOSED: &[(u64, u8)] = &[(register::ERROR, PASSED)];

/// One of each command, and the ways of each to say where.
const CASES: &[Case] = &{
    use Address::{Beyond, Chs, LastHead, Lba28, Lba48};
    use Kind::{Abort, Done, Flush, Read, ReadDma, Reply, Trim, Write, WriteDma};
    [
        // NOP, and a DEVICE RESET that is for packet devices.
        case(0x00, Lba28, Abort),
        case(0x08, Lba28, Abort),
        // DATA SET MANAGEMENT.
        case(0x06, Lba28, Trim).with(1, 1),
        // RECALIBRATE.
        case(0x10, Lba28, Done),
        // Reads and writes through the data port.
        case(0x20, Lba28, Read),
        case(0x20, Chs, Read),
        case(0x20, Beyond, Abort),
        case(0x24, Lba48, Read),
        case(0x29, Lba48, Read),
        case(0xc4, Lba28, Read),
        case(0xc4, Chs, Read),
        case(0x30, Lba28, Write),
        case(0x30, Chs, Write),
        case(0x34, Lba48, Write),
        case(0x39, Lba48, Write),
        case(0x3c, Lba28, Write),
        case(0xc5, Lba28, Write),
        case(0xce, Lba48, Write),
        // By the bus master.
        case(0xc8, Lba28, ReadDma),
        case(0xc8, Chs, ReadDma),
        case(0x25, Lba48, ReadDma),
        case(0xca, Lba28, WriteDma),
        case(0xca, Chs, WriteDma),
        case(0x35, Lba48, WriteDma),
        case(0x3d, Lba48, WriteDma),
        // READ VERIFY, SEEK, READ NATIVE MAX ADDRESS.
        case(0x40, Lba28, Done),
        case(0x40, Beyond, Abort),
        case(0x42, Lba48, Done),
        case(0x70, Lba28, Done),
        case(0xf8, Lba28, Done).tells(LAST),
        case(0x27, Lba48, Done).tells(LAST),
        // EXECUTE DEVICE DIAGNOSTIC, INITIALIZE DEVICE PARAMETERS.
        case(0x90, Lba28, Done).tells(DIAGNOSED),
        case(0x91, LastHead, Done).with(0, 63),
        // Power.
        case(0x94, Lba28, Done),
        case(0x98, Lba28, Done).tells(ACTIVE_OR_IDLE),
        case(0xe0, Lba28, Done),
        case(0xe1, Lba28, Done),
        case(0xe2, Lba28, Done),
        case(0xe3, Lba28, Done),
        case(0xe5, Lba28, Done).tells(ACTIVE_OR_IDLE),
        case(0xe6, Lba28, Done),
        // PACKET and IDENTIFY PACKET DEVICE: for others.
        case(0xa0, Lba28, Abort),
        case(0xa1, Lba28, Abort),
        // SMART: data, status, and without its key.
        case(0xb0, SMART_KEY, Reply).with(0xd0, 1),
        case(0xb0, SMART_KEY, Done).with(0xda, 1).tells(HEALTHY),
        case(0xb0, Address::Key([0; 2]), Abort).with(0xd0, 1),
        // SET MULTIPLE MODE: 3 is no power of two.
        case(0xc6, Lba28, Abort).with(0, 3),
        case(0xc6, Lba28, Done).with(0, 16),
        case(0xe7, Lba28, Flush),
        case(0xea, Lba48, Flush),
        case(0xec, Lba28, Reply),
        // SET FEATURES: the cache on, Ultra DMA 5, Ultra DMA 7, and what nobody knows.
        case(0xef, Lba28, Done).with(0x02, 0),
        case(0xef, Lba28, Done).with(0x03, 0x45),
        case(0xef, Lba28, Abort).with(0x03, 0x47),
        case(0xef, Lba28, Abort).with(0xff, 0),
        // SECURITY FREEZE LOCK, and a code that nothing has.
        case(0xf5, Lba28, Done),
        case(0xff, Lba28, Abort),
    ]
};

/// Each case, with a sector of its own for each way to play it.
fn cases(way: u64) -> impl Iterator<Item = (Case, u64)> {
    let sectors = (0..).map(move |index| 1000 * (way + 1) + 8 * index);
    CASES.iter().copied().zip(sectors)
}

fn play(place: Place, other: Place) {
    let mut drives = Drives::start();
    for (case, sector) in cases(0) {
        drives.give(place, case, sector);
        drives.expect_end(place, case, sector);
    }
    for (case, sector) in cases(1) {
        drives.control(place, NIEN);
        drives.give(place, case, sector);
        drives.ready(place);
        assert!(!drives.interrupt(place), "{case:?}");
        // It has been pending all the time.
        drives.control(place, 0);
        drives.expect_end(place, case, sector);
    }
    for (case, sector) in cases(2) {
        let stop = drives.begin_section(other);
        drives.give(place, case, sector);
        if case.kind.reaches_the_node() {
            drives.expect_postponed(place, case, sector);
            drives.end_section(other, stop);
            drives.expect_end(place, case, sector);
        } else {
            // It is for the drive alone.
            drives.expect_end(place, case, sector);
            drives.end_section(other, stop);
        }
        drives.reset(place, case);
    }
    for (case, sector) in cases(3) {
        if !case.kind.reaches_the_node() {
            continue;
        }
        let stop = drives.begin_section(other);
        drives.give(place, case, sector);
        drives.expect_postponed(place, case, sector);
        drives.reset(place, case);
        drives.end_section(other, stop);
        assert_eq!(drives.status(place), IDLE, "{case:?}");
        assert!(!drives.interrupt(place), "{case:?}");
        // Its place is free: the next one is served and it alone.
        let identify = case_of(IDENTIFY);
        drives.give(place, identify, sector);
        drives.expect_end(place, identify, sector);
        assert_eq!(drives.on_disk(place, sector), stamp(sector), "{case:?}");
    }
    // Nothing went to another drive.
    for bystander in [MASTER, SLAVE, SECOND] {
        if bystander.node != place.node {
            for (_, sector) in (0..4).flat_map(cases) {
                assert_eq!(drives.on_disk(bystander, sector), stamp(sector));
            }
        }
    }
    drives.end();
}

fn case_of(code: u8) -> Case {
    *CASES.iter().find(|case| case.code == code).unwrap()
}

#[test]
fn the_first_master_does_every_command_however_it_is_disturbed() {
    play(MASTER, SECOND);
}

#[test]
fn the_first_slave_does_every_command_however_it_is_disturbed() {
    play(SLAVE, SECOND);
}

#[test]
fn the_second_master_does_every_command_however_it_is_disturbed() {
    play(SECOND, MASTER);
}

/// With HOB set, the registers show what was written before.
#[test]
fn registers_are_two_deep() {
    let mut drives = Drives::start();
    for place in [MASTER, SLAVE, SECOND] {
        drives.put(place, register::DEVICE, place.select | LBA);
        for register in register::COUNT..=register::LBA_HIGH {
            let low = u8::try_from(register).unwrap();
            drives.put(place, register, 0x10 | low);
            drives.put(place, register, 0x20 | low);
            assert_eq!(drives.get(place, register), 0x20 | low);
            drives.control(place, HOB);
            assert_eq!(drives.get(place, register), 0x10 | low);
            drives.control(place, 0);
        }
        // A write to any of them takes HOB away.
        drives.control(place, HOB);
        drives.put(place, register::COUNT, 0x33);
        assert_eq!(drives.get(place, register::COUNT), 0x33);
    }
    drives.end();
}

/// READ SECTORS interrupts for each sector, READ MULTIPLE for each block of the size that was set.
#[test]
fn multiple_mode_interrupts_once_a_block() {
    const COUNT: u8 = 20;
    let mut drives = Drives::start();
    for place in [MASTER, SLAVE, SECOND] {
        let set = case_of(SET_MULTIPLE).with(0, 8);
        let set = Case {
            kind: Kind::Done,
            ..set
        };
        drives.give(place, set, 0);
        drives.expect_end(place, set, 0);
        for (code, block) in [(READ_SECTORS, 1), (READ_MULTIPLE, 8)] {
            drives.address(place, Address::Lba28, 40, COUNT);
            drives.put(place, register::COMMAND, code);
            for at in 0..COUNT {
                if at % block == 0 {
                    drives.ready(place);
                    assert_eq!(drives.acknowledge(place), IDLE | DRQ);
                }
                let sector = 40 + u64::from(at);
                assert_eq!(drives.read_block(place), stamp(sector), "{code:#x}");
                let last_of_block = (at + 1) % block == 0 || at + 1 == COUNT;
                assert!(last_of_block || !drives.interrupt(place), "{code:#x} {at}");
            }
            assert_eq!(drives.ready(place), IDLE);
            assert!(!drives.interrupt(place));
        }
    }
    drives.end();
}

/// What IDENTIFY DEVICE says of a disk with these properties.
fn identify(properties: &str) -> Vec<u16> {
    let mut machine = QtestMachine::start(
        SLUICE,
        [
            "-blockdev",
            "null-co,node-name=disk,size=8M",
            "-device",
            &format!("ide-hd,drive=disk,bus=ide.0{properties}"),
        ],
    )
    .unwrap();
    let qtest = &mut machine.qtest;
    qtest.out8(MASTER.command + register::DEVICE, 0).unwrap();
    qtest
        .out8(MASTER.command + register::COMMAND, IDENTIFY)
        .unwrap();
    while qtest.in8(MASTER.control).unwrap() & BSY != 0 {}
    let words = (0..SECTOR / 2)
        .map(|_| qtest.in16(MASTER.command).unwrap())
        .collect();
    assert_eq!(machine.end().unwrap(), Some(0));
    words
}

/// Each property shows in its words, and nowhere else.
#[test]
fn properties_show_in_identify() {
    /// What a property makes of some words, by number.
    type Shows<'a> = (&'a str, &'a [(usize, u16)]);
    let cases: &[Shows<'_>] = &[
        (
            ",serial=S1,model=M1,ver=V1",
            &[(10, 0x5331), (11, 0x2020), (23, 0x5631), (27, 0x4d31)],
        ),
        // The most significant word first; words 84 and 87 say that there is one.
        (
            ",wwn=0x5001122334455667",
            &[
                (84, 0x4143),
                (87, 0x4143),
                (108, 0x5001),
                (109, 0x1223),
                (110, 0x3445),
                (111, 0x5667),
            ],
        ),
        (",rotation_rate=7200", &[(217, 7200)]),
        (",rotation_rate=1", &[(217, 1)]),
        (",physical_block_size=4096", &[(106, 0x6003)]),
        (
            ",cyls=100,heads=8,secs=20",
            &[
                (1, 100),
                (3, 8),
                (6, 20),
                (54, 100),
                (55, 8),
                (56, 20),
                (57, 16000),
            ],
        ),
        (",discard_granularity=0", &[(69, 0), (105, 0), (169, 0)]),
        (",write-cache=off", &[(85, 0x4001)]),
    ];
    let plain = identify("");
    let usual = [(1, 16), (3, 16), (6, 63), (57, 16128), (58, 0), (60, 16384)]
        .into_iter()
        .chain([(69, 0x4000), (84, 0x4043), (85, 0x4021), (106, 0x4000)])
        .chain([(108, 0), (169, 1), (217, 0)]);
    for (word, value) in usual {
        assert_eq!(plain[word], value, "{word}");
    }
    for (properties, shows) in cases {
        let words = identify(properties);
        for (word, value) in *shows {
            assert_eq!(words[*word], *value, "{properties}: {word}");
        }
        let texts = properties.contains("serial");
        for word in (0..SECTOR / 2).filter(|word| !(texts && (10..47).contains(word))) {
            let told = shows.iter().any(|(shown, _)| *shown == word);
            assert!(
                told || words[word] == plain[word],
                "{properties} changed {word}"
            );
        }
    }
}
