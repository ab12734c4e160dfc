//! Data through the data register.

use sluice_block::driver::DebugEvent;

use super::bench::*;
use crate::bus::PioDevice;

fn pattern(sectors: usize, seed: u8) -> Vec<u8> {
    (0..sectors * SECTOR)
        .map(|at| at.to_le_bytes()[0] ^ at.to_le_bytes()[1] ^ seed)
        .collect()
}

/// The address and count registers after a 28-bit command.
fn registers28(bench: &Bench) -> (u32, u8) {
    let bytes = [LBA_LOW, LBA_MID, LBA_HIGH, DEVICE].map(|port| bench.inb(port));
    (u32::from_le_bytes(bytes) & 0x0fff_ffff, bench.inb(COUNT))
}

#[test]
fn read_sectors_interrupts_for_each() {
    let mut bench = Bench::new();
    bench.address28(100, 3);
    bench.outb(COMMAND, 0x20);
    for lba in 100..103 {
        bench.wait_ready();
        assert_eq!(bench.status(), DRDY | DSC | DRQ);
        assert!(bench.is_interrupted());
        bench.inb(STATUS);
        assert_eq!(bench.read_block(1), stamp(lba));
    }
    assert_eq!(bench.status(), DRDY | DSC);
    assert!(!bench.is_interrupted());
    assert_eq!(registers28(&bench), (103, 0));
}

#[test]
fn read_sectors_ext_uses_the_long_address() {
    let mut bench = Bench::new();
    bench.address48(4095, 1);
    assert_eq!(bench.simple(0x24), DRDY | DSC | DRQ);
    assert_eq!(bench.read_block(1), stamp(4095));
}

#[test]
fn chs_addresses_work() {
    let mut bench = Bench::new();
    // Cylinder 1, head 2, sector 3 of 16 heads and 63 sectors.
    bench.outb(DEVICE, 2);
    bench.outb(COUNT, 1);
    bench.outb(LBA_LOW, 3);
    bench.outb(LBA_MID, 1);
    bench.outb(LBA_HIGH, 0);
    assert_eq!(bench.simple(0x20), DRDY | DSC | DRQ);
    assert_eq!(bench.read_block(1), stamp((16 + 2) * 63 + 2));
    assert_eq!(bench.inb(LBA_LOW), 4);
    // There is no sector 0.
    bench.outb(LBA_LOW, 0);
    bench.outb(COUNT, 1);
    assert_eq!(bench.simple(0x20), DRDY | ERR);
}

#[test]
fn a_count_of_zero_reads_256_sectors() {
    let mut bench = Bench::new();
    bench.address28(0, 0);
    bench.outb(COMMAND, 0xc4);
    for block in 0..16 {
        bench.wait_ready();
        let expected: Vec<u8> = (16 * block..16 * block + 16).flat_map(stamp).collect();
        assert!(bench.read_block(16) == expected, "block {block}");
    }
    assert_eq!(bench.status(), DRDY | DSC);
    assert_eq!(bench.drive_stats().read_sectors, 256);
}

#[test]
fn write_sectors_asks_for_the_first_without_interrupt() {
    let mut bench = Bench::new();
    bench.address28(10, 2);
    bench.outb(COMMAND, 0x30);
    assert_eq!(bench.status(), DRDY | DSC | DRQ);
    assert!(!bench.is_interrupted());
    bench.write_block(&pattern(1, 1));
    assert_eq!(bench.status() & BSY, BSY);
    bench.wait_ready();
    assert!(bench.is_interrupted());
    assert_eq!(bench.inb(STATUS), DRDY | DSC | DRQ);
    bench.write_block(&pattern(1, 2));
    bench.wait_ready();
    assert!(bench.is_interrupted());
    assert_eq!(bench.inb(STATUS), DRDY | DSC);
    assert_eq!(registers28(&bench), (12, 0));
    assert_eq!(bench.disks[0].sector(9), stamp(9));
    assert_eq!(bench.disks[0].sector(10), pattern(1, 1));
    assert_eq!(bench.disks[0].sector(11), pattern(1, 2));
    assert_eq!(bench.disks[0].sector(12), stamp(12));
}

#[test]
fn write_multiple_ends_with_a_short_block() {
    let mut bench = Bench::new();
    bench.outb(COUNT, 4);
    bench.simple(0xc6);
    bench.address48(20, 6);
    bench.outb(COMMAND, 0x39);
    bench.write_block(&pattern(4, 3));
    bench.wait_ready();
    bench.write_block(&pattern(2, 4));
    bench.wait_ready();
    assert_eq!(bench.status(), DRDY | DSC);
    let written: Vec<u8> = (20..26)
        .flat_map(|lba| bench.disks[0].sector(lba))
        .collect();
    assert!(written == [pattern(4, 3), pattern(2, 4)].concat());
}

#[test]
fn the_data_register_takes_all_widths() {
    let mut bench = Bench::new();
    bench.address28(5, 1);
    assert_eq!(bench.simple(0x20) & DRQ, DRQ);
    let mut long = [0; 4];
    bench.ide.read(DATA, &mut long);
    let mut word = [0; 2];
    bench.ide.read(DATA, &mut word);
    // A byte takes a word away.
    bench.inb(DATA);
    let mut rest = vec![0; SECTOR - 8];
    bench.ide.read_string(DATA, 4, &mut rest);
    let expected = stamp(5);
    assert_eq!(long, expected[..4]);
    assert_eq!(word, expected[4..6]);
    assert_eq!(rest, expected[8..]);
    assert_eq!(bench.status(), DRDY | DSC);
    // Nothing is due any more.
    bench.ide.read(DATA, &mut long);
    assert_eq!(long, [0; 4]);
}

#[test]
fn data_without_a_command_is_ignored() {
    let bench = Bench::new();
    bench.write_block(&pattern(1, 1));
    assert_eq!(bench.read_block(1), vec![0; SECTOR]);
    // Against the direction, too.
    bench.outb(COMMAND, 0xec);
    bench.write_block(&pattern(1, 1));
    assert_eq!(bench.status() & DRQ, DRQ);
    assert!(bench.disks[0].is_untouched());
}

#[test]
fn beyond_the_end_is_aborted_at_the_sector() {
    let mut bench = Bench::new();
    bench.address28(4095, 2);
    assert_eq!(bench.simple(0x20), DRDY | DSC | DRQ);
    assert_eq!(bench.read_block(1), stamp(4095));
    bench.wait_ready();
    assert_eq!(bench.status(), DRDY | ERR);
    assert_eq!(bench.inb(ERROR), ABRT);
    assert!(bench.is_interrupted());
    assert_eq!(registers28(&bench), (4096, 1));
    bench.address28(4096, 1);
    bench.outb(COMMAND, 0x30);
    bench.write_block(&pattern(1, 1));
    bench.wait_ready();
    assert_eq!(bench.status(), DRDY | ERR);
    bench.address48(0xffff_ffff_ffff, 0xffff);
    assert_eq!(bench.simple(0x24), DRDY | ERR);
    assert_eq!(bench.disks[0].invalid(), [2, 1, 0]);
}

#[test]
fn a_failing_node_aborts_the_command() {
    let errors = r#""inject-error": [{ "event": "read_aio", "sector": 101 },
                                     { "event": "write_aio", "sector": 7 }],"#;
    let mut bench = Bench::with(1, errors, |_| {});
    bench.address28(100, 2);
    bench.simple(0x20);
    bench.read_block(1);
    bench.wait_ready();
    assert_eq!(bench.status(), DRDY | ERR);
    assert_eq!(registers28(&bench), (101, 1));
    bench.address28(7, 1);
    bench.outb(COMMAND, 0x30);
    bench.write_block(&pattern(1, 1));
    bench.wait_ready();
    assert_eq!(bench.status(), DRDY | ERR);
    assert!(bench.disks[0].is_untouched());
}

#[test]
fn without_write_cache_each_write_is_flushed() {
    let mut bench = Bench::with(1, "", |drive| drive.write_cache = false);
    bench.hold(DebugEvent::FlushToDisk);
    bench.address28(7, 1);
    bench.outb(COMMAND, 0x30);
    bench.write_block(&pattern(1, 1));
    bench.wait_held();
    assert_eq!(bench.status(), BSY | DRDY);
    bench.release();
    bench.wait_ready();
    assert_eq!(bench.status(), DRDY | DSC);
}

#[test]
fn the_slave_is_another_disk() {
    let mut bench = Bench::with(2, "", |_| {});
    bench.address28(3, 1);
    bench.outb(DEVICE, LBA | SLAVE);
    bench.outb(COMMAND, 0x30);
    bench.write_block(&pattern(1, 9));
    bench.wait_ready();
    assert!(bench.disks[0].is_untouched());
    assert_eq!(bench.disks[1].sector(3), pattern(1, 9));
}
