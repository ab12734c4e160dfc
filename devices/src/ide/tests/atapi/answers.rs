//! Commands that describe drive and disc.

use super::*;

#[test]
fn inquiry_names_the_drive() {
    let mut bench = cd();
    let data = bench.packet(&[0x12, 0, 0, 0, 96]);
    assert_eq!(data.len(), 36);
    assert_eq!(data[..5], [0x05, 0x80, 0, 0x21, 31]);
    assert_eq!(&data[8..32], b"SLUICE  SLUICE DVD-ROM  ");
    assert_eq!(bench.packet(&[0x12, 0, 0, 0, 5]).len(), 5);
    // Vital product data.
    assert_eq!(
        bench.packet(&[0x12, 1, 0, 0, 96]),
        [5, 0, 0, 3, 0, 0x80, 0x83]
    );
    let serial = bench.packet(&[0x12, 1, 0x80, 0, 96]);
    assert_eq!(&serial[..4], [5, 0x80, 0, 7]);
    assert_eq!(&serial[4..], b"QM00001");
    let identification = bench.packet(&[0x12, 1, 0x83, 0, 96]);
    assert_eq!(identification[..8], [5, 0x83, 0, 11, 2, 0, 0, 7]);
    assert_eq!(bench.packet_fails(&[0x12, 1, 0x99, 0, 96]), INVALID_FIELD);
    assert_eq!(bench.packet_fails(&[0x12, 0, 0x80, 0, 96]), INVALID_FIELD);
}

#[test]
fn an_unknown_operation_is_an_illegal_request() {
    let mut bench = cd();
    assert_eq!(bench.packet_fails(&[0xff]), (5, 0x20, 0));
    // Asked for, it is gone.
    assert_eq!(bench.sense(), NO_SENSE);
}

#[test]
fn sense_is_of_the_command_before() {
    let mut bench = cd();
    assert_eq!(bench.by_register(ROOMY, &[0xff]), Err(5 << 4));
    bench.packet(TEST_UNIT_READY);
    assert_eq!(bench.sense(), NO_SENSE);
}

#[test]
fn read_capacity() {
    let mut bench = cd();
    assert_eq!(bench.packet(&[0x25]), [0, 0, 0x03, 0xff, 0, 0, 8, 0]);
}

#[test]
fn the_toc_has_one_track_and_a_lead_out() {
    let mut bench = cd();
    let toc = |msf: u8, start: u8| [0x43, msf, 0, 0, 0, 0, start, 0, 200];
    let tracks = bench.packet(&toc(0, 0));
    let expected = [0, 18, 1, 1, 0, 0x14, 1, 0, 0, 0, 0, 0];
    assert_eq!(tracks[..12], expected);
    assert_eq!(tracks[12..], [0, 0x14, 0xaa, 0, 0, 0, 4, 0]);
    // 1024 + 150 frames are 15 seconds and 49 frames.
    let tracks = bench.packet(&toc(2, 0xaa));
    assert_eq!(tracks, [0, 10, 1, 1, 0, 0x14, 0xaa, 0, 0, 0, 15, 49]);
    assert_eq!(bench.packet_fails(&toc(0, 2)), INVALID_FIELD);
}

#[test]
fn the_other_forms_of_the_toc() {
    let mut bench = cd();
    let session = bench.packet(&[0x43, 0, 1, 0, 0, 0, 0, 0, 200]);
    assert_eq!(session, [0, 10, 1, 1, 0, 0x14, 1, 0, 0, 0, 0, 0]);
    // SFF-8020i has the format in byte 9.
    let old = bench.packet(&[0x43, 0, 0, 0, 0, 0, 0, 0, 200, 0x40]);
    assert_eq!(old, session);
    let full = bench.packet(&[0x43, 2, 2, 0, 0, 0, 0, 0, 200]);
    assert_eq!(full.len(), 4 + 4 * 11);
    assert_eq!(full[..4], [0, 46, 1, 1]);
    assert_eq!(full[4..15], [1, 0x14, 0, 0xa0, 0, 0, 0, 0, 1, 0, 0]);
    assert_eq!(full[26..37], [1, 0x14, 0, 0xa2, 0, 0, 0, 0, 0, 15, 49]);
    assert_eq!(full[37..48], [1, 0x14, 0, 1, 0, 0, 0, 0, 0, 2, 0]);
    assert_eq!(
        bench.packet_fails(&[0x43, 0, 3, 0, 0, 0, 0, 0, 200]),
        INVALID_FIELD
    );
}

#[test]
fn mode_pages() {
    let mut bench = cd();
    let sense_10 = |page: u8| [0x5a, 0, page, 0, 0, 0, 0, 0, 200];
    let recovery = bench.packet(&sense_10(0x01));
    assert_eq!(recovery, [0, 14, 1, 0, 0, 0, 0, 0, 1, 6, 0, 5, 0, 0, 0, 0]);
    let capabilities = bench.packet(&sense_10(0x2a));
    assert_eq!(capabilities.len(), 8 + 2 + 18);
    assert_eq!(capabilities[8..10], [0x2a, 18]);
    assert_eq!(capabilities[14], 0x29);
    assert_eq!(capabilities[16..18], 704u16.to_be_bytes());
    // The lock shows, among the current values.
    bench.packet(LOCK);
    assert_eq!(bench.packet(&sense_10(0x2a))[14], 0x2b);
    assert_eq!(bench.packet(&sense_10(0xaa))[14], 0x29);
    // Nothing can be changed, nothing is saved.
    assert_eq!(bench.packet(&sense_10(0x6a))[10..], [0; 18]);
    assert_eq!(bench.packet_fails(&sense_10(0xea)), (5, 0x39, 0));
    assert_eq!(bench.packet_fails(&sense_10(0x05)), INVALID_FIELD);
    let audio = bench.packet(&sense_10(0x0e));
    assert_eq!(audio[8..11], [0x0e, 14, 4]);
    let all = bench.packet(&sense_10(0x3f));
    assert_eq!(all.len(), 8 + 8 + 16 + 20);
    // The short form has a header of four bytes.
    let short = bench.packet(&[0x1a, 0, 0x01, 0, 200]);
    assert_eq!(short, [11, 1, 0, 0, 1, 6, 0, 5, 0, 0, 0, 0]);
}

#[test]
fn configuration_lists_profiles_and_features() {
    let mut bench = cd();
    let get = |kind: u8, start: u8| [0x46, kind, 0, start, 0, 0, 0, 0, 200];
    let all = bench.packet(&get(0, 0));
    let length = u32::from_be_bytes([all[0], all[1], all[2], all[3]]);
    assert_eq!(usize::try_from(length).unwrap() + 4, all.len());
    assert_eq!(all[6..8], [0, 8], "the current profile is CD-ROM");
    assert_eq!(all[8..20], [0, 0, 3, 8, 0, 0x10, 0, 0, 0, 8, 1, 0]);
    // DVD read is not current, so it is not in the list of those.
    let current = bench.packet(&get(1, 0x1e));
    assert_eq!(current[8..], [0, 0x1e, 1, 0]);
    let dvd = bench.packet(&get(2, 0x1f));
    assert_eq!(dvd[8..], [0, 0x1f, 0, 0]);
    assert_eq!(bench.packet(&get(2, 0x77)).len(), 8);
    assert_eq!(bench.packet_fails(&get(3, 0)), INVALID_FIELD);
}

#[test]
fn disc_information_mechanism_and_speed() {
    let mut bench = cd();
    let info = bench.packet(&[0x51, 0, 0, 0, 0, 0, 0, 0, 200]);
    assert_eq!(info.len(), 34);
    assert_eq!(info[..9], [0, 32, 0x0e, 1, 1, 1, 1, 0x20, 0]);
    assert_eq!(
        bench.packet_fails(&[0x51, 1, 0, 0, 0, 0, 0, 0, 200]),
        INVALID_FIELD
    );
    let mechanism = bench.packet(&[0xbd, 0, 0, 0, 0, 0, 0, 0, 0, 8]);
    assert_eq!(mechanism, [0, 0, 0, 0, 0, 1, 0, 0]);
    assert!(bench.packet(&[0xbb, 0, 0xff, 0xff]).is_empty());
}

#[test]
fn a_cd_has_no_dvd_structure_but_the_list_of_them() {
    let mut bench = cd();
    let physical = [0xad, 0, 0, 0, 0, 0, 0, 0, 8, 4];
    assert_eq!(bench.packet_fails(&physical), (5, 0x30, 2));
    let list = bench.packet(&[0xad, 0, 0, 0, 0, 0, 0, 0xff, 0, 200]);
    assert_eq!(list[..8], [0, 10, 0, 0, 0, 0x40, 8, 4]);
}
