//! Resets of an IDE disk at the moments that hurt: while the host has a request of it, and between and within the
//! blocks of the data register; in a drained section and outside.

use super::ide_drives::*;

const DEVICE_RESET: u8 = 0x08;
const WRITE_SECTORS: u8 = 0x30;
const READ_DMA: u8 = 0xc8;
const WRITE_DMA: u8 = 0xca;
const DATA_SET_MANAGEMENT: u8 = 0x06;
const FLUSH_CACHE: u8 = 0xe7;

/// What a command is held at, and the kind of command.
const HELD: &[(u8, Kind, &str)] = &[
    (READ_SECTORS, Kind::Read, "read_aio"),
    (WRITE_SECTORS, Kind::Write, "write_aio"),
    (READ_DMA, Kind::ReadDma, "read_aio"),
    (WRITE_DMA, Kind::WriteDma, "write_aio"),
    (DATA_SET_MANAGEMENT, Kind::Trim, "pdiscard"),
    (FLUSH_CACHE, Kind::Flush, "flush_to_disk"),
];

const READ_ONE: Case = case(READ_SECTORS, Address::Lba28, Kind::Read);
const WRITE_ONE: Case = case(WRITE_SECTORS, Address::Lba28, Kind::Write);

impl Drives {
    /// A command of its own, served from its beginning to its end.
    fn expect_works(&mut self, place: Place, what: &str) {
        const SECTOR_OF_THEIR_OWN: u64 = 5;
        self.give(place, READ_ONE, SECTOR_OF_THEIR_OWN);
        self.expect_end(place, READ_ONE, SECTOR_OF_THEIR_OWN);
        assert!(!self.interrupt(place), "{what}");
    }

    fn resets(&mut self, place: Place) {
        self.control(place, SRST);
        self.control(place, 0);
    }
}

/// What runs is waited for and has done what it should; nobody hears of it.
fn reset_what_is_held(place: Place) {
    let mut drives = Drives::start();
    let ways = [(false, false), (false, true), (true, false), (true, true)];
    let mut sector = 1000;
    for ((code, kind, event), (drained, late)) in
        HELD.iter().flat_map(|held| ways.map(|way| (*held, way)))
    {
        sector += 8;
        let what = format!("{place:?} {kind:?}, drained {drained}, late {late}");
        let features = u8::from(kind == Kind::Trim);
        let command = case(code, Address::Lba28, kind).with(features, 1);
        if kind == Kind::Flush {
            // Without something written there is nothing to flush.
            drives.give(place, WRITE_ONE, sector + 4);
            drives.expect_end(place, WRITE_ONE, sector + 4);
        }
        drives.hold(place, event);
        drives.give(place, command, sector);
        drives.wait_held(place, event);
        let stop = drained.then(|| drives.begin_stop());
        // A disk has no such command, and a busy one takes none.
        drives.put(place, register::COMMAND, DEVICE_RESET);
        drives.expect_busy(place, BSY | DRDY, &what);

        drives.control(place, SRST);
        if !late {
            drives.control(place, 0);
        }
        drives.expect_busy(place, BSY, &what);
        drives.put(place, register::COMMAND, IDENTIFY);
        drives.put(place, register::COUNT, 0x55);
        drives.expect_busy(place, BSY, &what);
        drives.let_go(place, event);
        if late {
            // It lasts until it is ended, whatever else has ended.
            drives.expect_busy(place, BSY, &what);
            drives.control(place, 0);
        }
        drives.expect_signature(place, &what);
        assert_eq!(drives.on_disk(place, sector), kind.leaves(sector), "{what}");
        if let Some(stop) = stop {
            drives.end_stop(stop);
        }
        drives.expect_signature(place, &what);
        drives.expect_works(place, &what);
    }
    drives.end();
}

#[test]
fn a_reset_waits_for_what_the_host_has_of_the_first_master() {
    reset_what_is_held(MASTER);
}

#[test]
fn a_reset_waits_for_what_the_host_has_of_the_first_slave() {
    reset_what_is_held(SLAVE);
}

#[test]
fn a_reset_waits_for_what_the_host_has_of_the_second_master() {
    reset_what_is_held(SECOND);
}

/// How far the guest has come with the second of three blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    /// It is there, and its interrupt with it.
    Before,
    /// Half of it went through the data register.
    Within,
    /// All of it: a read's third block is wanted, a write's second is to be written. In a section that is parked.
    After,
}

/// Moves `dwords` of a block.
fn move_part(drives: &mut Drives, place: Place, writes: bool, dwords: usize) {
    let port = place.command + register::DATA;
    for _ in 0..dwords {
        let qtest = &mut drives.machine.qtest;
        if writes {
            qtest.out32(port, u32::from_le_bytes([WRITTEN; 4])).unwrap();
        } else {
            qtest.in32(port).unwrap();
        }
    }
}

fn reset_between_blocks(place: Place, other: Place) {
    const DWORDS: usize = SECTOR / 4;
    let mut drives = Drives::start();
    let mut sector = 2000;
    for writes in [false, true] {
        for drained in [false, true] {
            for moment in [Moment::Before, Moment::Within, Moment::After] {
                sector += 8;
                let what = format!("{place:?}, writes {writes}, drained {drained}, {moment:?}");
                let code = if writes { WRITE_SECTORS } else { READ_SECTORS };
                drives.address(place, Address::Lba28, sector, 3);
                drives.put(place, register::COMMAND, code);
                if !writes {
                    assert_eq!(drives.acknowledge(place), IDLE | DRQ, "{what}");
                }
                move_part(&mut drives, place, writes, DWORDS);
                // The second block, whose interrupt is pending.
                while !drives.interrupt(place) {}
                assert_eq!(drives.status(place), IDLE | DRQ, "{what}");
                let section = drained.then(|| drives.begin_section(other));
                let moved = match moment {
                    Moment::Before => 0,
                    Moment::Within => DWORDS / 2,
                    Moment::After => DWORDS,
                };
                if moved > 0 {
                    assert_eq!(drives.acknowledge(place), IDLE | DRQ, "{what}");
                    move_part(&mut drives, place, writes, moved);
                }
                if moment == Moment::After && drained {
                    drives.expect_busy(place, BSY | DRDY, &what);
                }
                drives.resets(place);
                // Nothing that runs keeps it in a section.
                drives.expect_signature(place, &what);
                // The rest of the block is nobody's.
                move_part(&mut drives, place, writes, DWORDS - moved);
                drives.expect_signature(place, &what);
                if let Some(section) = section {
                    drives.end_section(other, section);
                }
                drives.expect_signature(place, &what);
                drives.expect_works(place, &what);
                // Outside of a section the block that was given whole may have been at the host, which is waited for.
                let landed = match moment {
                    _ if !writes => 0,
                    Moment::Before | Moment::Within => 1,
                    Moment::After => 2,
                };
                for block in 0..3 {
                    let (at, left) = (sector + block, drives.on_disk(place, sector + block));
                    let open = writes && block == 1 && moment == Moment::After && !drained;
                    if open {
                        assert!(left == stamp(at) || left == [WRITTEN; SECTOR], "{what}");
                    } else if block < landed && !(block == 1 && drained) {
                        assert_eq!(left, [WRITTEN; SECTOR], "{what}, block {block}");
                    } else {
                        assert_eq!(left, stamp(at), "{what}, block {block}");
                    }
                }
            }
        }
    }
    drives.end();
}

#[test]
fn a_reset_ends_the_blocks_of_the_first_master() {
    reset_between_blocks(MASTER, SECOND);
}

#[test]
fn a_reset_ends_the_blocks_of_the_first_slave() {
    reset_between_blocks(SLAVE, SECOND);
}

#[test]
fn a_reset_ends_the_blocks_of_the_second_master() {
    reset_between_blocks(SECOND, MASTER);
}

/// SET FEATURES.
const SWITCH_CACHE: u8 = 0xef;
const CACHE_OFF: u8 = 0x82;
const CACHE_ON: u8 = 0x02;
/// What IDENTIFY DEVICE says in word 85 of a cache that is on.
const CACHE_ENABLED: u8 = 1 << 5;

impl Drives {
    fn switch_cache(&mut self, place: Place, how: u8) {
        let command = case(SWITCH_CACHE, Address::Lba28, Kind::Done).with(how, 0);
        self.give(place, command, 0);
        self.expect_end(place, command, 0);
    }

    fn cache_is_on(&mut self, place: Place) -> bool {
        self.give(place, case(IDENTIFY, Address::Lba28, Kind::Reply), 0);
        assert_eq!(self.acknowledge(place), IDLE | DRQ);
        self.read_block(place)[2 * 85] & CACHE_ENABLED != 0
    }
}

/// Every write there is, and whether it is durable whatever the cache does.
const WRITES: &[(u8, Address, Kind, bool)] = &[
    (0x30, Address::Lba28, Kind::Write, false),
    (0x34, Address::Lba48, Kind::Write, false),
    (0xc5, Address::Lba28, Kind::Write, false),
    (0x39, Address::Lba48, Kind::Write, false),
    (0xca, Address::Lba28, Kind::WriteDma, false),
    (0x35, Address::Lba48, Kind::WriteDma, false),
    (0x3d, Address::Lba48, Kind::WriteDma, true),
    (0xce, Address::Lba48, Kind::Write, true),
];

/// Without a cache a write ends after a flush, in a section given or not; with one it does not.
#[test]
fn a_write_without_a_cache_ends_when_it_is_durable() {
    let mut drives = Drives::start();
    let mut sector = 3000;
    for (place, other) in [(MASTER, SECOND), (SLAVE, SECOND), (SECOND, MASTER)] {
        assert!(drives.cache_is_on(place));
        for (on, drained) in [(false, false), (false, true), (true, false), (true, true)] {
            for (code, address, kind, durable) in WRITES {
                sector += 1;
                let what = format!("{place:?} {code:#x}, cache {on}, drained {drained}");
                let write = case(*code, *address, *kind);
                drives.switch_cache(place, if on { CACHE_ON } else { CACHE_OFF });
                assert_eq!(drives.cache_is_on(place), on, "{what}");
                let section = drained.then(|| drives.begin_section(other));
                if drained {
                    drives.hold(place, "write_aio");
                }
                let flushed = *durable || !on;
                if flushed && !drained {
                    drives.hold(place, "flush_to_disk");
                }
                drives.give(place, write, sector);
                if let Some(section) = section {
                    drives.expect_postponed(place, write, sector);
                    drives.end_section(other, section);
                    drives.wait_held(place, "write_aio");
                    if flushed {
                        // Not before: a machine that stops flushes too.
                        drives.hold(place, "flush_to_disk");
                    }
                    drives.let_go(place, "write_aio");
                }
                if flushed {
                    drives.wait_held(place, "flush_to_disk");
                    drives.expect_busy(place, BSY | DRDY, &what);
                    drives.let_go(place, "flush_to_disk");
                }
                drives.expect_end(place, write, sector);
            }
            // A reset leaves it as it was switched, and power-on brings the cache back.
            drives.resets(place);
            drives.expect_signature(place, "a cache");
            assert_eq!(drives.cache_is_on(place), on);
        }
        // The drive alone switches it on, at once; off goes with a flush, which is for the host.
        let off = case(SWITCH_CACHE, Address::Lba28, Kind::Flush).with(CACHE_OFF, 0);
        let section = drives.begin_section(other);
        drives.switch_cache(place, CACHE_ON);
        drives.give(place, off, 0);
        drives.expect_postponed(place, off, 0);
        drives.end_section(other, section);
        drives.expect_end(place, off, 0);
        assert!(!drives.cache_is_on(place));
        drives.switch_cache(place, CACHE_ON);
        drives.give(place, WRITE_ONE, sector);
        drives.expect_end(place, WRITE_ONE, sector);
        drives.hold(place, "flush_to_disk");
        drives.give(place, off, 0);
        drives.wait_held(place, "flush_to_disk");
        drives.expect_busy(place, BSY | DRDY, "switching the cache off");
        drives.let_go(place, "flush_to_disk");
        drives.expect_end(place, off, 0);
        drives.system_reset();
        drives.expect_signature(place, "a machine");
        assert!(drives.cache_is_on(place));
    }
    drives.end();
}
