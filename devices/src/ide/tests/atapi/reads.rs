//! READ(10), READ(12), READ CD and SEEK: through the data register with every kind of limit, and by DMA.

use super::*;

#[test]
fn all_forms_of_read() {
    let mut bench = cd();
    assert_eq!(bench.packet(&read_10(5, 2)), blocks(5, 2));
    let read_12 = [0xa8, 0, 0, 0, 0, 7, 0, 0, 0, 3];
    assert_eq!(bench.packet(&read_12), blocks(7, 3));
    assert_eq!(bench.packet(&read_cd(9, 2, 0x10)), blocks(9, 2));
    // Nothing of a sector, and no sector.
    assert!(bench.packet(&read_cd(9, 2, 0)).is_empty());
    assert!(bench.packet(&read_10(5, 0)).is_empty());
    assert_eq!(bench.packet_fails(&read_cd(9, 2, 0x20)), INVALID_FIELD);
}

#[test]
fn a_raw_sector_has_its_frame() {
    let mut bench = cd();
    let data = bench.packet(&read_cd(0, 2, 0xf8));
    assert_eq!(data.len(), 2 * 2352);
    for (number, sector) in (0u32..).zip(data.chunks(2352)) {
        assert_eq!(sector[..2], [0, 255]);
        let frame = u8::try_from(number).unwrap();
        assert_eq!(sector[12..16], [0, 2, frame, 1]);
        assert_eq!(sector[16..16 + BLOCK], block(number));
    }
}

#[test]
fn the_end_of_the_disc() {
    let mut bench = cd();
    assert_eq!(bench.packet(&read_10(BLOCKS - 1, 1)), block(BLOCKS - 1));
    assert_eq!(bench.packet_fails(&read_10(BLOCKS - 1, 2)), OUT_OF_RANGE);
    assert_eq!(bench.packet_fails(&read_10(u32::MAX, 1)), OUT_OF_RANGE);
    let wraps = [0xa8, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
    assert_eq!(bench.packet_fails(&wraps), OUT_OF_RANGE);
    let seek = |block: u32| [&[0x2b, 0][..], &block.to_be_bytes()].concat();
    assert!(bench.packet(&seek(BLOCKS - 1)).is_empty());
    assert_eq!(bench.packet_fails(&seek(BLOCKS)), OUT_OF_RANGE);
}

/// Lengths of the blocks that a read of three blocks of the disc comes in.
fn lengths(bench: &mut Bench, limit: u16) -> Vec<usize> {
    let parts = bench.by_register(limit, &read_10(5, 3)).unwrap();
    assert_eq!(parts.concat(), blocks(5, 3), "limit {limit:#x}");
    parts.iter().map(Vec::len).collect()
}

#[test]
fn the_byte_count_limit() {
    let mut bench = cd();
    // All that is left is transferred at once if it fits, whatever the limit is.
    assert_eq!(lengths(&mut bench, 6144), [6144]);
    assert_eq!(lengths(&mut bench, 6145), [6144]);
    assert_eq!(lengths(&mut bench, 0xffff), [6144]);
    assert_eq!(lengths(&mut bench, 2048), [2048; 3]);
    // An odd limit counts one less, and blocks need not end with sectors.
    assert_eq!(lengths(&mut bench, 2049), [2048; 3]);
    assert_eq!(lengths(&mut bench, 2501), [2500, 2500, 1144]);
    assert_eq!(lengths(&mut bench, 3), [2; 3072]);
    // More than the largest limit.
    let many = bench.by_register(0xffff, &read_10(0, 33)).unwrap();
    let sizes: Vec<_> = many.iter().map(Vec::len).collect();
    assert_eq!(sizes, [0xfffe, 33 * BLOCK - 0xfffe]);
    assert_eq!(many.concat(), blocks(0, 33));
}

#[test]
fn raw_sectors_in_odd_pieces() {
    let mut bench = cd();
    let whole = bench.packet(&read_cd(3, 3, 0xf8));
    let pieces = bench.by_register(1001, &read_cd(3, 3, 0xf8)).unwrap();
    assert_eq!(pieces.len(), (3 * 2352usize).div_ceil(1000));
    assert_eq!(pieces.concat(), whole);
}

#[test]
fn an_answer_of_odd_length_is_read_in_words() {
    let mut bench = cd();
    let data = bench.by_register(2, &[0x12, 0, 0, 0, 5]).unwrap();
    let lengths: Vec<_> = data.iter().map(Vec::len).collect();
    assert_eq!(lengths, [2, 2, 1]);
    assert_eq!(data.concat(), [0x05, 0x80, 0, 0x21, 31]);
}

/// READ CD may be asked for no part of its sectors, and of none: then there is nothing that would need room.
#[test]
fn a_limit_of_zero_is_enough_for_a_read_of_nothing() {
    const NO_PARTS: u8 = 0;
    const USER_DATA: u8 = 0x10;
    let mut bench = cd();
    for nothing in [read_cd(3, 1, NO_PARTS), read_cd(3, 0, USER_DATA)] {
        assert_eq!(bench.by_register(0, &nothing), Ok(vec![]));
    }
    let read = read_cd(3, 1, USER_DATA);
    assert_eq!(bench.by_register(2048, &read), Ok(vec![block(3)]));
    bench.send_packet(0, 0, &read);
    bench.wait_ready();
    assert_eq!((bench.inb(STATUS), bench.inb(ERROR)), (DRDY | ERR, ABRT));
}

/// A limit of zero leaves no room for data: PACKET itself fails, and nothing has happened.
#[test]
fn without_room_a_command_with_data_is_aborted() {
    let mut bench = cd();
    bench.packet(EJECT);
    bench.by_register(ROOMY, TEST_UNIT_READY).unwrap_err();
    for limit in [0, 1] {
        bench.send_packet(0, limit, &[0x03, 0, 0, 0, 18]);
        assert_eq!(bench.inb(STATUS), DRDY | ERR);
        assert_eq!(bench.inb(ERROR), ABRT);
    }
    assert_eq!(bench.sense(), TRAY_OPEN);
    // One without data needs none.
    assert_eq!(bench.by_register(0, LOAD), Ok(vec![]));
}

#[test]
fn by_dma() {
    let mut bench = cd();
    bench.set_table(&[(BUFFER, 0x1000), (BUFFER + 0x4000, 0x1000 | EOT)]);
    bench.start_packet_dma(&read_10(20, 4));
    bench.wait_ready();
    assert!(bench.is_interrupted());
    assert_eq!(bench.inb(STATUS), DRDY | DSC);
    assert_eq!(bench.inb(COUNT) & 7, OVER);
    assert_eq!(bench.bm_read(BM_STATUS), INTERRUPT);
    assert_eq!(bench.memory_at(BUFFER, 0x1000), blocks(20, 2));
    assert_eq!(bench.memory_at(BUFFER + 0x4000, 0x1000), blocks(22, 2));
}

/// More raw sectors than are read in one piece.
#[test]
fn raw_sectors_by_dma() {
    let mut bench = cd();
    let expected = [
        bench.packet(&read_cd(0, 20, 0xf8)),
        bench.packet(&read_cd(20, 20, 0xf8)),
    ];
    bench.set_table(&[(BUFFER, 0), (BUFFER + 0x1_0000, 0x8000 | EOT)]);
    bench.start_packet_dma(&read_cd(0, 40, 0xf8));
    bench.wait_ready();
    assert_eq!(bench.inb(STATUS), DRDY | DSC);
    assert_eq!(bench.bm_read(BM_STATUS), INTERRUPT | ACTIVE);
    assert_eq!(bench.memory_at(BUFFER, 40 * 2352), expected.concat());
}

#[test]
fn answers_by_dma() {
    let mut bench = cd();
    bench.set_table(&[(BUFFER, 36 | EOT)]);
    bench.start_packet_dma(&[0x12, 0, 0, 0, 36]);
    bench.wait_ready();
    assert_eq!(bench.inb(STATUS), DRDY | DSC);
    assert_eq!(bench.bm_read(BM_STATUS), INTERRUPT);
    assert_eq!(&bench.memory_at(BUFFER + 8, 6), b"SLUICE");
    // A command without data does not wait for the bus master.
    bench.send_packet(BY_DMA, 0, TEST_UNIT_READY);
    assert!(bench.is_interrupted());
    assert_eq!(bench.inb(STATUS), DRDY | DSC);
}

#[test]
fn tables_that_are_too_short_or_no_memory() {
    let mut bench = cd();
    bench.set_table(&[(BUFFER, 0x400 | EOT)]);
    bench.start_packet_dma(&read_10(20, 1));
    bench.wait_ready();
    assert_eq!(bench.inb(STATUS), DRDY | DSC);
    assert_eq!(bench.bm_read(BM_STATUS), 0);
    assert!(!bench.is_interrupted());
    assert_eq!(bench.memory_at(BUFFER, 0x400), [0; 0x400]);
    bench.set_table(&[(0x7000_0000, 0x800 | EOT)]);
    bench.start_packet_dma(&read_10(20, 1));
    bench.wait_ready();
    assert_eq!(bench.bm_read(BM_STATUS), INTERRUPT | BM_ERROR);
    assert_eq!(bench.inb(STATUS), DRDY | ERR);
    assert_eq!(bench.inb(ERROR), 0xb << 4);
    assert_eq!(bench.sense(), (0xb, 0, 0));
}

#[test]
fn a_host_that_cannot_read_is_a_medium_error() {
    let mut bench = cd_with(r#""inject-error": [{ "event": "read_aio", "sector": 84 }],"#);
    assert_eq!(bench.packet_fails(&read_10(21, 1)), UNRECOVERED_READ);
    bench.set_table(&[(BUFFER, 0x1000 | EOT)]);
    bench.start_packet_dma(&read_10(20, 2));
    bench.wait_ready();
    assert_eq!(bench.inb(STATUS), DRDY | ERR);
    assert_eq!(bench.sense(), UNRECOVERED_READ);
    assert_eq!(bench.packet(&read_10(20, 1)), block(20));
}

/// A read goes nowhere and ends, as a disk's does.
#[test]
fn without_the_pci_bit_a_packet_leaves_memory_alone() {
    let mut bench = cd();
    for (command, expected) in [(0x1, vec![0xcd; BLOCK]), (0x5, block(50))] {
        bench.fill_memory(BUFFER, &[0xcd; BLOCK]);
        bench.set_pci_command(command);
        bench.set_table(&[(BUFFER, 0x800 | EOT)]);
        bench.start_packet_dma(&read_10(50, 1));
        bench.wait(|bench| bench.status() & BSY == 0);
        bench.quiesce();
        assert_eq!(bench.memory_at(BUFFER, BLOCK), expected);
        bench.inb(STATUS);
    }
}
