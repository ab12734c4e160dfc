//! Every command code there is: undisturbed, inside a section, on a node that fails, beyond the end, and with a reset at every moment
//! it has.

use sluice_block::driver::DebugEvent;

use super::bench::*;

const DATA_SET_MANAGEMENT: u8 = 0x06;
const INITIALIZE_PARAMETERS: u8 = 0x91;
const DIAGNOSTIC: u8 = 0x90;
const SMART: u8 = 0xb0;
const SET_FEATURES: u8 = 0xef;
const IDENTIFY: u8 = 0xec;
/// The bytes that writes write.
const WRITTEN: u8 = 0xa5;
/// Bytes of a range list: one range of one sector.
const ONE_SECTOR: u64 = 1 << 48;

/// How a command goes on after it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// It is aborted.
    Abort,
    /// It is over, without data.
    Done,
    /// It has data that are there at once.
    Reply,
    Read,
    Write,
    ReadDma,
    WriteDma,
    Trim,
    Flush,
}

/// What ATA/ATAPI-6 and -7 and ACS-2 have for a disk without removable medium, power management or security; everything else is aborted.
fn kind(code: u8) -> Kind {
    match code {
        DATA_SET_MANAGEMENT => Kind::Trim,
        0x20 | 0x21 | 0x24 | 0x29 | 0xc4 => Kind::Read,
        0x30 | 0x31 | 0x34 | 0x39 | 0x3c | 0xc5 | 0xce => Kind::Write,
        0x25 | 0xc8 | 0xc9 => Kind::ReadDma,
        0x35 | 0x3d | 0xca | 0xcb => Kind::WriteDma,
        0xe7 | 0xea => Kind::Flush,
        SMART | IDENTIFY => Kind::Reply,
        // RECALIBRATE, READ NATIVE MAX, READ VERIFY, SEEK, diagnostic and translation.
        0x10 | 0x27 | 0x40..=0x42 | 0x70 | DIAGNOSTIC | INITIALIZE_PARAMETERS => Kind::Done,
        // Power modes, SET MULTIPLE MODE, SET FEATURES, SECURITY FREEZE LOCK.
        0x94..=0x99 | 0xc6 | 0xe0..=0xe3 | 0xe5 | 0xe6 | SET_FEATURES | 0xf5 | 0xf8 => Kind::Done,
        _ => Kind::Abort,
    }
}

impl Kind {
    /// The event at the node, of commands that reach it.
    fn event(self) -> Option<DebugEvent> {
        match self {
            Self::Abort | Self::Done | Self::Reply => None,
            Self::Read | Self::ReadDma => Some(DebugEvent::ReadAio),
            Self::Write | Self::WriteDma => Some(DebugEvent::WriteAio),
            Self::Trim => Some(DebugEvent::Pdiscard),
            Self::Flush => Some(DebugEvent::FlushToDisk),
        }
    }

    /// What the sector that the command was about holds afterwards.
    fn leaves(self, lba: u64) -> Vec<u8> {
        match self {
            Self::Write | Self::WriteDma => vec![WRITTEN; SECTOR],
            Self::Trim => vec![0; SECTOR],
            _ => stamp(lba),
        }
    }

    fn is_dma(self) -> bool {
        matches!(self, Self::ReadDma | Self::WriteDma | Self::Trim)
    }
}

fn all() -> impl Iterator<Item = (u8, Kind)> {
    (0..=u8::MAX).map(|code| (code, kind(code)))
}

/// The commands that reach the node.
fn with_io() -> impl Iterator<Item = (u8, Kind, DebugEvent)> {
    all().filter_map(|(code, kind)| Some((code, kind, kind.event()?)))
}

/// Gives a command about one sector, up to where the drive has something to do.
fn give(bench: &Bench, code: u8, kind: Kind, lba: u64) {
    bench.address48(lba, 1);
    bench.outb(FEATURES, 1);
    match code {
        SET_FEATURES => bench.outb(FEATURES, 0xaa),
        SMART => {
            bench.outb(FEATURES, 0xd0);
            bench.outb(LBA_MID, 0x4f);
            bench.outb(LBA_HIGH, 0xc2);
        }
        _ => {}
    }
    if !kind.is_dma() {
        bench.outb(COMMAND, code);
        if kind == Kind::Write {
            assert_eq!(bench.status(), DRDY | DSC | DRQ, "{code:#x}");
            assert!(
                !bench.is_interrupted(),
                "{code:#x}: the first block is asked for so"
            );
            bench.write_block(&[WRITTEN; SECTOR]);
        }
        return;
    }
    let payload = match kind {
        Kind::Trim => {
            let mut payload = (lba | ONE_SECTOR).to_le_bytes().to_vec();
            payload.resize(SECTOR, 0);
            payload
        }
        Kind::WriteDma => vec![WRITTEN; SECTOR],
        _ => vec![0; SECTOR],
    };
    bench.fill_memory(BUFFER, &payload);
    bench.set_table(&[(BUFFER, 0x200 | EOT)]);
    bench.start_dma(code);
}

/// Waits for the command's end, and looks at all that it should have done.
fn expect_end(bench: &mut Bench, code: u8, kind: Kind, lba: u64) {
    bench.wait_ready();
    assert!(bench.is_interrupted(), "{code:#x}");
    let status = bench.inb(STATUS);
    assert!(!bench.is_interrupted(), "{code:#x}");
    match kind {
        Kind::Abort => {
            assert_eq!((status, bench.inb(ERROR)), (DRDY | ERR, ABRT), "{code:#x}");
            return;
        }
        Kind::Read | Kind::Reply => {
            assert_eq!(status, DRDY | DSC | DRQ, "{code:#x}");
            let block = bench.read_block(1);
            assert!(kind == Kind::Reply || block == stamp(lba), "{code:#x}");
            assert_eq!(bench.status(), DRDY | DSC, "{code:#x}");
            assert!(!bench.is_interrupted(), "{code:#x}");
        }
        _ => assert_eq!(status, DRDY | DSC, "{code:#x}"),
    }
    let error = if code == DIAGNOSTIC { 1 } else { 0 };
    assert_eq!(bench.inb(ERROR), error, "{code:#x}");
    if kind.is_dma() {
        assert_eq!(bench.bm_read(BM_STATUS), INTERRUPT, "{code:#x}");
    }
    if kind == Kind::ReadDma {
        assert_eq!(bench.memory_at(BUFFER, SECTOR), stamp(lba), "{code:#x}");
    }
    assert_eq!(bench.disks[0].sector(lba), kind.leaves(lba), "{code:#x}");
}

/// A reset that is over: the signature, no interrupt, and a drive that answers.
fn expect_reset(bench: &mut Bench, code: u8) {
    bench.wait_ready();
    let signature = [ERROR, COUNT, LBA_LOW, LBA_MID, LBA_HIGH, DEVICE].map(|port| bench.inb(port));
    assert_eq!(signature, [1, 1, 1, 0, 0, 0xa0], "{code:#x}");
    assert_eq!(bench.status(), DRDY | DSC, "{code:#x}");
    assert!(!bench.is_interrupted(), "{code:#x}");
    assert_eq!(bench.bm_read(BM_STATUS) & ACTIVE, 0, "{code:#x}");
    bench.outb(COMMAND, IDENTIFY);
    assert_eq!(bench.read_block(1).len(), SECTOR);
    assert_eq!(bench.inb(STATUS), DRDY | DSC, "{code:#x}");
}

fn reset(bench: &Bench) {
    bench.outb(CONTROL, SRST);
    bench.outb(CONTROL, 0);
}

/// Each code has a sector of its own.
fn sector_of(code: u8) -> u64 {
    u64::from(code) * 8 + 8
}

#[test]
fn undisturbed_each_does_what_it_should() {
    let mut bench = Bench::new();
    for (code, kind) in all() {
        give(&bench, code, kind, sector_of(code));
        expect_end(&mut bench, code, kind, sector_of(code));
    }
    bench.quiesce();
    for lba in (0..SECTORS).filter(|lba| lba % 8 != 0 || *lba == 0) {
        assert_eq!(bench.disks[0].sector(lba), stamp(lba), "{lba}");
    }
}

#[test]
fn in_a_section_each_waits_if_it_is_for_the_node_and_is_done_afterwards() {
    let mut bench = Bench::new();
    for (code, kind) in all() {
        let section = bench.drain();
        give(&bench, code, kind, sector_of(code));
        if kind.event().is_some() {
            bench.wait_parked();
            assert_eq!(bench.status(), BSY | DRDY, "{code:#x}");
            assert!(!bench.is_interrupted(), "{code:#x}");
            assert_eq!(
                bench.disks[0].sector(sector_of(code)),
                stamp(sector_of(code))
            );
            assert_eq!(section.held_back().requests, 1, "{code:#x}");
            drop(section);
            expect_end(&mut bench, code, kind, sector_of(code));
        } else {
            // Such a command is for the drive alone, and over already.
            expect_end(&mut bench, code, kind, sector_of(code));
            assert_eq!(section.held_back().requests, 0, "{code:#x}");
        }
    }
}

/// One after the other, as BSY has it: a section that ends and another that begins at once let each through whole, in order.
#[test]
fn sections_in_a_row_keep_the_order_of_commands() {
    let mut bench = Bench::new();
    let lba = 100;
    for (code, kind, _) in
        with_io().filter(|(_, kind, _)| matches!(kind, Kind::Write | Kind::WriteDma))
    {
        let section = bench.drain();
        give(&bench, code, kind, lba);
        bench.wait_parked();
        drop(section);
        let section = bench.drain();
        // It has been let through before the second section began, or waits for its end: never half of it.
        let sector = bench.disks[0].sector(lba);
        assert!(
            sector == stamp(lba) || sector == vec![WRITTEN; SECTOR],
            "{code:#x}"
        );
        drop(section);
        expect_end(&mut bench, code, kind, lba);
        // The next must be seen to write.
        bench.address28(100, 1);
        bench.outb(COMMAND, 0x30);
        bench.write_block(&stamp(lba));
        bench.wait_ready();
        assert_eq!(bench.inb(STATUS), DRDY | DSC);
    }
}

#[test]
fn a_reset_ends_whatever_was_just_given() {
    let mut bench = Bench::new();
    for (code, kind) in all() {
        // Nothing of it has reached the loop yet.
        give(&bench, code, kind, sector_of(code));
        reset(&bench);
        expect_reset(&mut bench, code);
        bench.quiesce();
        assert_eq!(
            bench.disks[0].sector(sector_of(code)),
            stamp(sector_of(code)),
            "{code:#x}"
        );
    }
    assert!(bench.disks[0].is_untouched());
}

#[test]
fn a_reset_ends_what_is_parked_and_does_not_wait_for_the_section() {
    let mut bench = Bench::new();
    for (code, kind, _) in with_io() {
        let section = bench.drain();
        give(&bench, code, kind, sector_of(code));
        bench.wait_parked();
        reset(&bench);
        expect_reset(&mut bench, code);
        drop(section);
        bench.quiesce();
        assert_eq!(bench.status(), DRDY | DSC, "{code:#x}");
        assert!(!bench.is_interrupted(), "{code:#x}");
    }
    assert!(bench.disks[0].is_untouched());
}

#[test]
fn a_reset_waits_for_what_runs_and_drops_what_it_reports() {
    let mut bench = Bench::new();
    for (code, kind, event) in with_io() {
        bench.hold(event);
        give(&bench, code, kind, sector_of(code));
        bench.wait_held();
        reset(&bench);
        assert_eq!(bench.status(), BSY, "{code:#x}");
        bench.release();
        expect_reset(&mut bench, code);
        bench.quiesce();
        // What ran has landed where it belongs, and nowhere else.
        let lba = sector_of(code);
        assert_eq!(bench.disks[0].sector(lba), kind.leaves(lba), "{code:#x}");
        assert_eq!(bench.status(), DRDY | DSC, "{code:#x}");
        assert!(!bench.is_interrupted(), "{code:#x}");
    }
    assert_eq!(bench.disks[0].sector(0), stamp(0));
}

#[test]
fn a_reset_ends_what_waits_for_the_guest() {
    let mut bench = Bench::new();
    for (code, kind) in all() {
        match kind {
            // A block to be read, all of it or a part.
            Kind::Read | Kind::Reply => {
                give(&bench, code, kind, sector_of(code));
                bench.wait_ready();
                bench.inb(DATA);
            }
            // A block to be written.
            Kind::Write => {
                bench.address48(sector_of(code), 2);
                bench.outb(COMMAND, code);
                bench.write_block(&[WRITTEN; SECTOR / 2]);
            }
            // The bus master to be started.
            _ if kind.is_dma() => {
                bench.address48(sector_of(code), 1);
                bench.outb(FEATURES, 1);
                bench.outb(COMMAND, code);
            }
            _ => continue,
        }
        assert_eq!(bench.status(), DRDY | DSC | DRQ, "{code:#x}");
        reset(&bench);
        expect_reset(&mut bench, code);
    }
    bench.quiesce();
    assert!(bench.disks[0].is_untouched());
}

#[test]
fn what_fails_at_the_node_is_aborted_and_the_next_goes_well() {
    for (code, kind, event) in with_io() {
        let event = match event {
            DebugEvent::ReadAio => "read_aio",
            DebugEvent::WriteAio => "write_aio",
            DebugEvent::Pdiscard => "pdiscard",
            _ => "flush_to_disk",
        };
        let rule = format!(r#""inject-error": [{{ "event": "{event}", "once": true }}],"#);
        let mut bench = Bench::with(1, &rule, |_| {});
        give(&bench, code, kind, 8);
        expect_end(&mut bench, code, Kind::Abort, 8);
        if kind.is_dma() {
            assert_eq!(bench.bm_read(BM_STATUS), INTERRUPT, "{code:#x}");
        }
        give(&bench, code, kind, 8);
        expect_end(&mut bench, code, kind, 8);
    }
}

#[test]
fn beyond_the_end_nothing_is_done() {
    let mut bench = Bench::new();
    for (code, kind) in all() {
        let reaches = matches!(code, 0x40..=0x42 | 0x70);
        if !reaches && (kind.event().is_none() || kind == Kind::Flush) {
            continue;
        }
        give(&bench, code, kind, SECTORS);
        expect_end(&mut bench, code, Kind::Abort, SECTORS);
    }
    assert!(bench.disks[0].is_untouched());
}

#[test]
fn with_nien_nothing_interrupts() {
    let mut bench = Bench::new();
    for (code, kind) in all() {
        bench.outb(CONTROL, NIEN);
        give(&bench, code, kind, sector_of(code));
        bench.wait_ready();
        assert!(!bench.is_interrupted(), "{code:#x}");
        if matches!(kind, Kind::Read | Kind::Reply) {
            bench.read_block(1);
        }
        assert!(!bench.is_interrupted(), "{code:#x}");
        // It has been pending all the time.
        bench.outb(CONTROL, 0);
        assert!(bench.is_interrupted(), "{code:#x}");
        bench.inb(STATUS);
    }
    assert_eq!(bench.lines[0].edges(), 256);
}

#[test]
fn nobody_answers_for_a_device_that_is_missing() {
    let bench = Bench::new();
    for code in (0..=u8::MAX).filter(|code| *code != DIAGNOSTIC) {
        bench.outb(DEVICE, SLAVE);
        bench.outb(COMMAND, code);
        assert_eq!(
            (bench.inb(STATUS), bench.is_interrupted()),
            (0, false),
            "{code:#x}"
        );
        // The other channel has no device at all.
        bench.outb(0x177, code);
        assert_eq!(
            (bench.inb(0x177), bench.lines[1].is_high()),
            (0, false),
            "{code:#x}"
        );
    }
    assert_eq!(bench.drive_stats().commands, 0);
}

/// While a command waits for data or is busy, no other is taken; the one exception is DEVICE RESET, which no disk has.
#[test]
fn a_command_within_a_command_is_ignored() {
    let mut bench = Bench::new();
    for code in 0..=u8::MAX {
        give(&bench, 0x20, Kind::Read, 5);
        bench.wait_ready();
        bench.outb(COMMAND, code);
        assert_eq!(bench.status(), DRDY | DSC | DRQ, "{code:#x}");
        assert_eq!(bench.read_block(1), stamp(5), "{code:#x}");
        bench.inb(STATUS);
        let section = bench.drain();
        give(&bench, 0x20, Kind::Read, 6);
        bench.wait_parked();
        bench.outb(COMMAND, code);
        bench.idle_turns();
        assert_eq!(bench.status(), BSY | DRDY, "{code:#x}");
        drop(section);
        bench.wait_ready();
        assert_eq!(bench.read_block(1), stamp(6), "{code:#x}");
        bench.inb(STATUS);
    }
    assert_eq!(bench.drive_stats().commands, 512);
}
