//! Commands without data, and what the registers show around them.

use sluice_block::driver::DebugEvent;

use super::bench::*;
use crate::bus::PioDevice;
use crate::ide::Geometry;

fn identify(bench: &mut Bench) -> Vec<u16> {
    assert_eq!(bench.simple(0xec) & (DRQ | ERR), DRQ);
    let words: Vec<u16> = bench
        .read_block(1)
        .chunks_exact(2)
        .map(|word| u16::from_le_bytes([word[0], word[1]]))
        .collect();
    assert_eq!(bench.status(), DRDY | DSC);
    words
}

#[test]
fn a_disk_at_power_on_shows_its_signature() {
    let bench = Bench::new();
    assert_eq!(bench.inb(STATUS), DRDY | DSC);
    let signature = [COUNT, LBA_LOW, LBA_MID, LBA_HIGH, ERROR].map(|port| bench.inb(port));
    assert_eq!(signature, [1, 1, 0, 0, 1]);
    assert!(!bench.is_interrupted());
}

#[test]
fn identify_is_there_when_the_command_write_returns() {
    let bench = Bench::new();
    bench.outb(COMMAND, 0xec);
    assert_eq!(bench.status(), DRDY | DSC | DRQ);
    assert!(bench.is_interrupted());
    let block = bench.read_block(1);
    assert_eq!(&block[120..124], &4096u32.to_le_bytes());
    assert_eq!(&block[20..28], b"MQ0000 1");
    assert_eq!(bench.status(), DRDY | DSC);
}

#[test]
fn an_absent_slave_echoes_but_does_nothing() {
    let bench = Bench::new();
    bench.outb(DEVICE, SLAVE);
    bench.outb(COUNT, 0x55);
    assert_eq!(bench.inb(COUNT), 0x55);
    bench.outb(COMMAND, 0xec);
    assert_eq!(bench.inb(STATUS), 0);
    assert!(!bench.is_interrupted());
}

#[test]
fn an_empty_channel_reads_as_zeroes() {
    let bench = Bench::new();
    for port in 0x171..0x178 {
        bench.outb(port, 0x55);
        assert_eq!(bench.inb(port), 0, "{port:#x}");
    }
    assert_eq!(bench.inb(0x376), 0);
    assert!(!bench.lines[1].is_high());
}

#[test]
fn unknown_commands_are_aborted() {
    let mut bench = Bench::new();
    // NOP, DEVICE RESET, PACKET, IDENTIFY PACKET, SMART, and something vendor specific.
    for command in [0x00, 0x08, 0xa0, 0xa1, 0xb0, 0xfe] {
        assert_eq!(bench.simple(command), DRDY | ERR, "{command:#x}");
        assert_eq!(bench.inb(ERROR), ABRT);
    }
    assert_eq!(bench.drive_stats().aborted, 6);
    // The next good command clears the error.
    assert_eq!(bench.simple(0xe5), DRDY | DSC);
    assert_eq!(bench.inb(ERROR), 0);
    assert_eq!(bench.inb(COUNT), 0xff);
}

#[test]
fn status_ends_the_interrupt_and_alternate_status_does_not() {
    let bench = Bench::new();
    bench.outb(COMMAND, 0xe5);
    assert!(bench.is_interrupted());
    bench.status();
    assert!(bench.is_interrupted());
    bench.inb(STATUS);
    assert!(!bench.is_interrupted());
}

#[test]
fn a_new_command_makes_a_new_edge() {
    let bench = Bench::new();
    bench.outb(COMMAND, 0xe5);
    bench.outb(COMMAND, 0xe5);
    assert!(bench.is_interrupted());
    assert_eq!(bench.lines[0].edges(), 2);
}

#[test]
fn nien_masks_the_line_and_keeps_the_interrupt() {
    let bench = Bench::new();
    bench.outb(CONTROL, NIEN);
    bench.outb(COMMAND, 0xe5);
    assert!(!bench.is_interrupted());
    assert_eq!(bench.bm_read(BM_STATUS) & INTERRUPT, 0);
    bench.outb(CONTROL, 0);
    assert!(bench.is_interrupted());
    bench.outb(CONTROL, NIEN);
    assert!(!bench.is_interrupted());
}

#[test]
fn previous_bytes_show_while_hob_is_set() {
    let bench = Bench::new();
    bench.address48(0x6655_4433_2211, 0x8877);
    bench.outb(CONTROL, HOB);
    let read = |bench: &Bench| [COUNT, LBA_LOW, LBA_MID, LBA_HIGH].map(|port| bench.inb(port));
    assert_eq!(read(&bench), [0x88, 0x44, 0x55, 0x66]);
    // Any write of the command block ends it.
    bench.outb(DEVICE, LBA);
    assert_eq!(read(&bench), [0x77, 0x11, 0x22, 0x33]);
}

#[test]
fn registers_are_not_written_while_data_is_due() {
    let bench = Bench::new();
    bench.outb(COUNT, 7);
    bench.outb(COMMAND, 0xec);
    bench.outb(COUNT, 9);
    bench.outb(DEVICE, SLAVE);
    bench.outb(COMMAND, 0xe5);
    assert_eq!(bench.inb(COUNT), 7);
    assert_eq!(bench.status() & DRQ, DRQ);
    assert_eq!(bench.inb(DEVICE) & SLAVE, 0);
}

#[test]
fn wide_accesses_reach_one_register_after_the_other() {
    let bench = Bench::new();
    bench.ide.write(COUNT, &[1, 2, 3, 4]);
    let mut bytes = [0; 4];
    bench.ide.read(COUNT, &mut bytes);
    assert_eq!(bytes, [1, 2, 3, 4]);
}

#[test]
fn transfer_modes_show_in_identify() {
    let mut bench = Bench::new();
    for (mode, singleword, multiword, ultra) in [
        (0x42, 0x0007, 0x0007, 0x043f),
        (0x22, 0x0007, 0x0407, 0x003f),
        (0x10, 0x0107, 0x0007, 0x003f),
        (0x12, 0x0407, 0x0007, 0x003f),
        (0x0c, 0x0007, 0x0007, 0x003f),
        // PIO's default mode, with and without IORDY.
        (0x00, 0x0007, 0x0007, 0x003f),
        (0x01, 0x0007, 0x0007, 0x003f),
    ] {
        bench.outb(FEATURES, 0x03);
        bench.outb(COUNT, mode);
        assert_eq!(bench.simple(0xef), DRDY | DSC, "mode {mode:#x}");
        let words = identify(&mut bench);
        let shown = (words[62], words[63], words[88]);
        assert_eq!(shown, (singleword, multiword, ultra), "mode {mode:#x}");
    }
    for mode in [0x46, 0x23, 0x0d, 0x13, 0xff] {
        bench.outb(FEATURES, 0x03);
        bench.outb(COUNT, mode);
        assert_eq!(bench.simple(0xef), DRDY | ERR, "mode {mode:#x}");
    }
}

#[test]
fn unknown_features_are_aborted() {
    let mut bench = Bench::new();
    bench.outb(FEATURES, 0x77);
    assert_eq!(bench.simple(0xef), DRDY | ERR);
    // Read look-ahead, reverting to defaults, power and noise management, retries and the like: taken, and
    // nothing to do.
    let taken = [
        0xaa, 0x55, 0xcc, 0x66, 0x05, 0x85, 0x42, 0xc2, 0x67, 0x69, 0x96, 0x9a,
    ];
    for feature in taken {
        bench.outb(FEATURES, feature);
        assert_eq!(bench.simple(0xef), DRDY | DSC, "{feature:#x}");
    }
}

#[test]
fn set_multiple_takes_powers_of_two_up_to_16() {
    let mut bench = Bench::new();
    for (count, status) in [
        (0, DSC),
        (1, DSC),
        (3, ERR),
        (8, DSC),
        (12, ERR),
        (16, DSC),
        (32, ERR),
        (255, ERR),
    ] {
        bench.outb(COUNT, count);
        assert_eq!(bench.simple(0xc6), DRDY | status, "{count}");
    }
    assert_eq!(identify(&mut bench)[59], 0x110);
    // Without a block size READ MULTIPLE is disabled.
    bench.outb(COUNT, 0);
    bench.simple(0xc6);
    bench.address28(0, 1);
    assert_eq!(bench.simple(0xc4), DRDY | ERR);
}

#[test]
fn native_max_is_the_last_sector() {
    let mut bench = Bench::new();
    bench.outb(DEVICE, LBA);
    assert_eq!(bench.simple(0xf8), DRDY | DSC);
    let low = [LBA_LOW, LBA_MID, LBA_HIGH].map(|port| bench.inb(port));
    assert_eq!(low, [0xff, 0x0f, 0]);
    assert_eq!(bench.simple(0x27), DRDY | DSC);
    bench.outb(CONTROL, HOB);
    assert_eq!(bench.inb(LBA_LOW), 0);
}

#[test]
fn native_max_ignores_the_translation_in_force() {
    let mut bench = Bench::new();
    // 1 head, 1 sector; the native translation has 16 and 63.
    bench.outb(DEVICE, 0);
    bench.outb(COUNT, 1);
    assert_eq!(bench.simple(0x91), DRDY | DSC);
    assert_eq!(bench.simple(0xf8), DRDY | DSC);
    // 4096 sectors are 4 cylinders and 64 sectors; 4 * 16 * 63 of them are reachable.
    assert_eq!(bench.inb(LBA_LOW), 63);
    assert_eq!(bench.inb(LBA_MID), 3);
    assert_eq!(bench.inb(DEVICE) & 0x0f, 15);
}

#[test]
fn no_sectors_per_track_is_refused() {
    let mut bench = Bench::new();
    bench.outb(DEVICE, 0x0f);
    bench.outb(COUNT, 0);
    assert_eq!(bench.simple(0x91), DRDY | ERR);
    bench.outb(LBA_LOW, 1);
    assert_eq!(bench.simple(0x20) & ERR, 0);
}

#[test]
fn verify_and_seek_check_the_range() {
    let mut bench = Bench::new();
    bench.address28(4095, 1);
    for (command, status) in [(0x40, DSC), (0x70, DSC)] {
        assert_eq!(bench.simple(command), DRDY | status);
    }
    bench.address28(4095, 2);
    assert_eq!(bench.simple(0x41), DRDY | ERR);
    bench.address28(4096, 1);
    assert_eq!(bench.simple(0x70), DRDY | ERR);
    bench.address48(0xffff_ffff_ffff, 1);
    assert_eq!(bench.simple(0x42), DRDY | ERR);
    assert_eq!(bench.drive_stats().read_sectors, 0);
}

#[test]
fn diagnostic_selects_device_0() {
    let mut bench = Bench::with(2, "", |_| {});
    bench.outb(DEVICE, SLAVE);
    assert_eq!(bench.inb(DEVICE) & SLAVE, SLAVE);
    bench.outb(COMMAND, 0x90);
    assert_eq!(bench.inb(DEVICE) & SLAVE, 0);
    assert_eq!(bench.inb(ERROR), 1);
    assert!(bench.is_interrupted());
    assert_eq!(bench.simple(0x10), DRDY | DSC);
}

#[test]
fn diagnostic_is_run_by_the_device_that_is_there() {
    let mut bench = Bench::new();
    bench.outb(DEVICE, SLAVE);
    assert_eq!(bench.simple(0xe7), 0, "other commands are for nobody");
    assert!(!bench.is_interrupted());
    bench.outb(COMMAND, 0x90);
    assert_eq!(bench.inb(DEVICE) & SLAVE, 0);
    assert_eq!(bench.inb(ERROR), 1);
    assert!(bench.is_interrupted());
    assert_eq!(bench.inb(STATUS), DRDY | DSC);
}

#[test]
fn both_disks_answer_for_themselves() {
    let mut bench = Bench::with(2, "", |_| {});
    assert_eq!(
        identify(&mut bench)[10..14],
        [0x514d, 0x3030, 0x3030, 0x3120]
    );
    bench.outb(DEVICE, SLAVE);
    assert_eq!(
        identify(&mut bench)[10..14],
        [0x514d, 0x3030, 0x3030, 0x3220]
    );
}

#[test]
fn a_flush_is_busy_until_the_node_has_flushed() {
    let mut bench = Bench::new();
    bench.hold(DebugEvent::FlushToDisk);
    bench.outb(COMMAND, 0xe7);
    bench.wait_held();
    assert_eq!(bench.status(), BSY | DRDY);
    assert!(!bench.is_interrupted());
    bench.release();
    bench.wait_ready();
    assert_eq!(bench.status(), DRDY | DSC);
    assert!(bench.is_interrupted());
}

#[test]
fn a_failing_flush_is_reported() {
    let errors = r#""inject-error": [{ "event": "flush_to_disk", "once": true }],"#;
    let mut bench = Bench::with(1, errors, |_| {});
    assert_eq!(bench.simple(0xea), DRDY | ERR);
    assert_eq!(bench.inb(ERROR), ABRT);
    assert_eq!(bench.simple(0xea), DRDY | DSC);
}

#[test]
fn switching_the_write_cache_off_flushes() {
    let mut bench = Bench::new();
    assert_eq!(identify(&mut bench)[85] & 0x20, 0x20);
    bench.outb(FEATURES, 0x82);
    assert_eq!(bench.simple(0xef), DRDY | DSC);
    assert_eq!(bench.drive_stats().flushes, 1);
    assert_eq!(identify(&mut bench)[85] & 0x20, 0);
    bench.outb(FEATURES, 0x02);
    assert_eq!(bench.simple(0xef), DRDY | DSC);
    assert_eq!(identify(&mut bench)[85] & 0x20, 0x20);
}

#[test]
fn texts_that_do_not_fit_are_refused() {
    use crate::ide::disk::Disk;
    let bench = Bench::new();
    let mut config = crate::ide::DriveConfig::new(bench.disks[0].backend.clone());
    config.serial = Some("x".repeat(21));
    let error = Disk::new(&config, 1).unwrap_err().to_string();
    assert!(error.contains("'serial'"), "{error}");
    config.serial = None;
    config.model = Some("tab\t".into());
    let error = Disk::new(&config, 1).unwrap_err().to_string();
    assert!(error.contains("'model'"), "{error}");
}

#[test]
fn a_write_that_forces_unit_access_ends_after_a_flush() {
    for (command, by_dma) in [(0x3d, true), (0xce, false)] {
        let mut bench = Bench::new();
        bench.address48(50, 1);
        bench.hold(DebugEvent::FlushToDisk);
        if by_dma {
            bench.fill_memory(BUFFER, &[0xab; SECTOR]);
            bench.set_table(&[(BUFFER, 0x200 | EOT)]);
            bench.start_dma(command);
        } else {
            bench.outb(COMMAND, command);
            bench.write_block(&[0xab; SECTOR]);
        }
        bench.wait_held();
        assert_eq!(bench.status(), BSY | DRDY, "{command:#x}");
        assert_eq!(bench.disks[0].sector(50), vec![0xab; SECTOR]);
        bench.release();
        bench.wait_ready();
        assert_eq!(bench.inb(STATUS), DRDY | DSC, "{command:#x}");
    }
}

#[test]
fn a_flush_that_a_write_needs_and_that_fails_fails_the_write() {
    let errors = r#""inject-error": [{ "event": "flush_to_disk", "once": true }],"#;
    let mut bench = Bench::with(1, errors, |_| {});
    bench.address48(50, 1);
    bench.outb(COMMAND, 0xce);
    bench.write_block(&[0xab; SECTOR]);
    bench.wait_ready();
    assert_eq!((bench.inb(STATUS), bench.inb(ERROR)), (DRDY | ERR, ABRT));
}

/// Gives a SMART command.
fn smart(bench: &mut Bench, feature: u8, count: u8, low: u8) -> u8 {
    bench.outb(FEATURES, feature);
    bench.outb(COUNT, count);
    bench.outb(LBA_LOW, low);
    bench.outb(LBA_MID, 0x4f);
    bench.outb(LBA_HIGH, 0xc2);
    bench.simple(0xb0)
}

#[test]
fn smart_says_that_nothing_is_wrong() {
    let mut bench = Bench::new();
    for (feature, count, low) in [
        (0xd0, 0, 0),
        (0xd1, 0, 0),
        (0xd5, 1, 0),
        (0xd5, 1, 1),
        (0xd5, 1, 6),
    ] {
        assert_eq!(
            smart(&mut bench, feature, count, low),
            DRDY | DSC | DRQ,
            "{feature:#x} {low}"
        );
        assert_eq!(bench.read_block(1)[0], 1);
        assert_eq!(bench.status(), DRDY | DSC);
    }
    // A short self-test, then the log that has it.
    assert_eq!(smart(&mut bench, 0xd4, 0, 1), DRDY | DSC);
    smart(&mut bench, 0xd5, 1, 6);
    let log = bench.read_block(1);
    assert_eq!((log[2], log[3], log[508]), (1, 0, 1));
    assert_eq!(smart(&mut bench, 0xda, 0, 0), DRDY | DSC);
    assert_eq!(
        [LBA_MID, LBA_HIGH].map(|port| bench.inb(port)),
        [0x4f, 0xc2]
    );
    for (feature, count, low) in [(0xd2, 0xf1, 0), (0xd2, 0, 0), (0xd3, 0, 0)] {
        assert_eq!(
            smart(&mut bench, feature, count, low),
            DRDY | DSC,
            "{feature:#x} {count:#x}"
        );
    }
}

#[test]
fn smart_aborts_what_it_has_not() {
    let mut bench = Bench::new();
    for (feature, count, low) in [
        (0xd2, 0x77, 0),
        (0xd4, 0, 0x33),
        (0xd5, 1, 0x09),
        (0xd5, 0, 0),
        (0xd5, 2, 6),
        (0xd6, 1, 0x80),
        (0x00, 0, 0),
    ] {
        assert_eq!(
            smart(&mut bench, feature, count, low),
            DRDY | ERR,
            "{feature:#x} {count} {low}"
        );
    }
    // Without the key.
    bench.outb(FEATURES, 0xd0);
    bench.outb(LBA_MID, 0xc2);
    assert_eq!(bench.simple(0xb0), DRDY | ERR);
}

#[test]
fn smart_can_be_switched_off_and_stays_off_over_a_reset() {
    let mut bench = Bench::new();
    assert_eq!(identify(&mut bench)[85] & 1, 1);
    assert_eq!(smart(&mut bench, 0xd9, 0, 0), DRDY | DSC);
    bench.outb(CONTROL, SRST);
    bench.outb(CONTROL, 0);
    let words = identify(&mut bench);
    assert_eq!((words[82] & 1, words[85] & 1), (1, 0));
    assert_eq!(smart(&mut bench, 0xd0, 0, 0), DRDY | ERR);
    assert_eq!(smart(&mut bench, 0xd8, 0, 0), DRDY | DSC);
    assert_eq!(smart(&mut bench, 0xda, 0, 0), DRDY | DSC);
}

#[test]
fn properties_show_in_identify() {
    let mut bench = Bench::with(1, "", |drive| {
        drive.wwn = 0x5000_c500_1234_5678;
        drive.physical_block_size = 4096;
        drive.rotation_rate = Some(7200);
        drive.discard = false;
        drive.geometry = Some(Geometry {
            cylinders: 64,
            heads: 2,
            sectors: 32,
        });
    });
    let words = identify(&mut bench);
    assert_eq!(words[108..112], [0x5000, 0xc500, 0x1234, 0x5678]);
    assert_eq!((words[84] & 0x100, words[87] & 0x100), (0x100, 0x100));
    assert_eq!((words[106], words[217], words[169]), (0x6003, 7200, 0));
    assert_eq!((words[1], words[3], words[6]), (64, 2, 32));
    assert_eq!((words[54], words[55], words[56]), (64, 2, 32));
    // Without them: no name, and blocks of a sector.
    let words = identify(&mut Bench::new());
    assert_eq!((words[84] & 0x100, words[106]), (0, 0x4000));
    assert_eq!((words[62], words[84]), (0x0007, 0x4043));
}

#[test]
fn a_given_geometry_translates_addresses() {
    let mut bench = Bench::with(1, "", |drive| {
        drive.geometry = Some(Geometry {
            cylinders: 64,
            heads: 2,
            sectors: 32,
        });
    });
    // Cylinder 3, head 1, sector 5: (3 * 2 + 1) * 32 + 4.
    bench.outb(DEVICE, 1);
    for (port, value) in [(COUNT, 1), (LBA_LOW, 5), (LBA_MID, 3), (LBA_HIGH, 0)] {
        bench.outb(port, value);
    }
    assert_eq!(bench.simple(0x20), DRDY | DSC | DRQ);
    assert_eq!(bench.read_block(1), stamp(228));
}

#[test]
fn shapes_that_no_disk_has_are_refused() {
    use crate::ide::disk::Disk;
    let bench = Bench::new();
    let mut config = crate::ide::DriveConfig::new(bench.disks[0].backend.clone());
    for bytes in [0, 1, 256, 513, 3072, 1 << 25, u32::MAX] {
        config.physical_block_size = bytes;
        let error = Disk::new(&config, 1).unwrap_err().to_string();
        assert!(error.contains(&format!("{bytes} bytes")), "{error}");
    }
    config.physical_block_size = 1 << 24;
    assert!(Disk::new(&config, 1).is_ok());
    for (cylinders, heads, sectors) in [(0, 1, 1), (1, 0, 1), (1, 17, 1), (1, 1, 0)] {
        config.geometry = Some(Geometry {
            cylinders,
            heads,
            sectors,
        });
        assert!(Disk::new(&config, 1).is_err());
    }
}
