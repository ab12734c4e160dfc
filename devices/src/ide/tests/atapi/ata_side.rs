//! What the ATA commands make of a packet device.

use super::*;

/// Signature and error after a reset.
const SIGNATURE: [u8; 5] = [1, 1, 0x14, 0xeb, 1];

pub(super) fn signature(bench: &Bench) -> [u8; 5] {
    [COUNT, LBA_LOW, LBA_MID, LBA_HIGH, ERROR].map(|port| bench.inb(port))
}

#[test]
fn the_signature_is_there_at_power_on_and_the_status_is_zero() {
    let bench = cd();
    assert_eq!(signature(&bench), SIGNATURE);
    assert_eq!(bench.status(), 0);
}

#[test]
fn resets_and_the_diagnostic_post_the_signature() {
    let mut bench = cd();
    let device_reset = |bench: &mut Bench| bench.outb(COMMAND, 0x08);
    let srst = |bench: &mut Bench| {
        bench.outb(CONTROL, SRST);
        assert_eq!(bench.status(), BSY);
        bench.outb(CONTROL, 0);
    };
    let diagnostic = |bench: &mut Bench| {
        bench.outb(COMMAND, 0x90);
        assert!(bench.is_interrupted());
    };
    for reset in [device_reset as fn(&mut Bench), srst, diagnostic] {
        bench.packet(TEST_UNIT_READY);
        assert_eq!(bench.status(), DRDY | DSC);
        bench.address28(0x12_3456, 7);
        reset(&mut bench);
        assert_eq!(signature(&bench), SIGNATURE);
        assert_eq!(bench.inb(STATUS), 0);
    }
}

#[test]
fn commands_of_disks_are_aborted_and_two_of_them_show_the_signature() {
    let mut bench = cd();
    for command in [0xec, 0x20, 0x21] {
        bench.address28(0x12_3456, 7);
        assert_eq!(bench.simple(command), DRDY | ERR, "{command:#x}");
        let [count, low, mid, high, error] = signature(&bench);
        assert_eq!([count, low, mid, high], SIGNATURE[..4], "{command:#x}");
        assert_eq!(error, ABRT);
    }
    for command in [
        0x00, 0x06, 0x10, 0x24, 0x30, 0x40, 0x91, 0xc6, 0xca, 0xc8, 0xf5,
    ] {
        bench.address28(0x12_3456, 7);
        assert_eq!(bench.simple(command), DRDY | ERR, "{command:#x}");
        assert_eq!(bench.inb(ERROR), ABRT);
        assert_eq!(bench.inb(LBA_MID), 0x34, "{command:#x}");
    }
}

#[test]
fn a_disk_does_not_know_the_commands_of_packet_devices() {
    let mut bench = Bench::new();
    for command in [0x08, 0xa0, 0xa1] {
        assert_eq!(bench.simple(command), DRDY | ERR, "{command:#x}");
        assert_eq!(bench.inb(ERROR), ABRT);
    }
    assert!(bench.disks[0].backend.removable_device().is_none());
}

#[test]
fn power_management_flush_and_transfer_mode_are_accepted() {
    let mut bench = cd();
    for command in [0xe0, 0xe1, 0xe5, 0xe6, 0xe7] {
        assert_eq!(bench.simple(command), DRDY | DSC, "{command:#x}");
    }
    bench.outb(FEATURES, 0x03);
    bench.outb(COUNT, 0x42);
    assert_eq!(bench.simple(0xef), DRDY | DSC);
    bench.outb(FEATURES, 0x82);
    assert_eq!(bench.simple(0xef), DRDY | ERR);
    bench.simple(0xa1);
    let identity = bench.read_block(1);
    assert_eq!(identity[2 * 88 + 1], 1 << 2);
}

#[test]
fn identify_packet_device_describes_a_removable_cd_rom() {
    let mut bench = cd();
    assert_eq!(bench.simple(0xa1) & (DRQ | ERR), DRQ);
    let identity = bench.read_block(1);
    assert_eq!(bench.status(), DRDY | DSC);
    let word = |at: usize| u16::from_le_bytes([identity[2 * at], identity[2 * at + 1]]);
    // ATAPI, CD-ROM, removable, DRQ without an interrupt, 12 bytes.
    assert_eq!(word(0), 0x85c0);
    assert_eq!(&identity[20..28], b"MQ0000 1");
    assert_eq!(&identity[54..68], b"LSIUECD DVR-MO");
    assert_eq!(word(49) & 0x0300, 0x0300);
    assert_eq!(word(82), 0x0210);
    assert_eq!(word(63), 0x0007);
    assert_eq!(word(88), 0x203f);
}

#[test]
fn an_overlapped_packet_is_aborted() {
    let mut bench = cd();
    bench.outb(FEATURES, 2);
    assert_eq!(bench.simple(PACKET), DRDY | ERR);
    assert_eq!(bench.inb(ERROR), ABRT);
}
