//! Tray, lock and medium: the guest's commands, the operator's, and what each is told of the other's.

use sluice_block::driver::DebugEvent;

use super::*;

/// GET EVENT STATUS NOTIFICATION, polled, for media: event code and status.
fn event(bench: &mut Bench) -> (u8, u8) {
    let data = bench.packet(&[0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8]);
    assert_eq!(data[..4], [0, 6, 4, 0x10]);
    (data[4], data[5])
}

const NO_EVENT: u8 = 0;
const EJECT_REQUEST: u8 = 1;
const NEW_MEDIA: u8 = 2;
const MEDIA_REMOVAL: u8 = 3;
const OPEN: u8 = 1;
const PRESENT: u8 = 2;

#[test]
fn the_guest_opens_and_closes_the_tray() {
    let mut bench = cd();
    assert_eq!(event(&mut bench), (NO_EVENT, PRESENT));
    bench.packet(EJECT);
    assert!(bench.device().is_tray_open());
    assert_eq!(bench.packet_fails(TEST_UNIT_READY), TRAY_OPEN);
    assert_eq!(bench.packet_fails(&read_10(0, 1)), TRAY_OPEN);
    assert_eq!(bench.packet_fails(&[0x25]), TRAY_OPEN);
    let mechanism = bench.packet(&[0xbd, 0, 0, 0, 0, 0, 0, 0, 0, 8]);
    assert_eq!(mechanism[1], 0x10);
    assert_eq!(event(&mut bench), (MEDIA_REMOVAL, OPEN));
    assert_eq!(event(&mut bench), (NO_EVENT, OPEN));
    bench.packet(LOAD);
    assert_eq!(event(&mut bench), (NEW_MEDIA, PRESENT));
    // It was the guest itself: no attention.
    bench.packet(TEST_UNIT_READY);
    // Neither start and stop without the tray nor power conditions move it.
    bench.packet(&[0x1b, 0, 0, 0, 0]);
    bench.packet(&[0x1b, 0, 0, 0, 0x32]);
    assert!(!bench.device().is_tray_open());
}

#[test]
fn a_locked_tray_stays_closed() {
    let mut bench = cd();
    bench.packet(LOCK);
    assert!(bench.device().is_locked());
    assert_eq!(bench.packet_fails(EJECT), (2, 0x53, 2));
    assert!(!bench.device().is_tray_open());
    bench.packet(UNLOCK);
    bench.packet(EJECT);
    assert!(bench.device().is_tray_open());
    // A lock does not keep an open tray from being closed.
    bench.packet(LOCK);
    bench.packet(LOAD);
    assert!(!bench.device().is_tray_open());
}

#[test]
fn the_operator_asks_the_guest_for_a_locked_medium() {
    let mut bench = cd();
    bench.packet(LOCK);
    bench.device().request_eject(false);
    assert!(bench.device().is_locked());
    assert_eq!(event(&mut bench), (EJECT_REQUEST, PRESENT));
    assert_eq!(event(&mut bench), (NO_EVENT, PRESENT));
    bench.device().request_eject(true);
    assert!(!bench.device().is_locked());
}

#[test]
fn an_event_is_told_only_where_there_is_room() {
    let mut bench = cd();
    bench.device().request_eject(false);
    let short = bench.packet(&[0x4a, 1, 0, 0, 0x10, 0, 0, 0, 4]);
    assert_eq!(short, [0, 6, 4, 0x10]);
    assert_eq!(event(&mut bench), (EJECT_REQUEST, PRESENT));
    // Another class, and not polled.
    let none = bench.packet(&[0x4a, 1, 0, 0, 0x02, 0, 0, 0, 8]);
    assert_eq!(none, [0, 2, 0x80, 0x10]);
    let waiting = [0x4a, 0, 0, 0, 0x10, 0, 0, 0, 8];
    assert_eq!(bench.packet_fails(&waiting), INVALID_FIELD);
}

/// A guest that polls sees a change of medium as two things, however fast it was: gone, and perhaps another.
#[test]
fn a_change_is_told_in_two_steps() {
    let mut bench = cd();
    bench.device().move_tray(true);
    bench.device().move_tray(false);
    // These do not mind, and tell nothing.
    assert_eq!(bench.sense(), NO_SENSE);
    assert_eq!(bench.packet(&[0x12, 0, 0, 0, 36]).len(), 36);
    assert_eq!(event(&mut bench), (MEDIA_REMOVAL, PRESENT));
    assert_eq!(event(&mut bench), (NEW_MEDIA, PRESENT));
    assert_eq!(bench.packet_fails(&read_10(0, 1)), NO_MEDIUM);
    // The attention stays until it is asked for.
    assert_eq!(bench.by_register(ROOMY, TEST_UNIT_READY), Err(6 << 4));
    assert_eq!(bench.by_register(ROOMY, &[0xff]), Err(6 << 4));
    assert_eq!(bench.packet(&[0x12, 0, 0, 0, 36]).len(), 36);
    assert_eq!(bench.sense(), MAY_HAVE_CHANGED);
    assert_eq!(bench.packet(&read_10(0, 1)), block(0));
}

/// The guest's own opening and closing is no news to it; what the operator did in between is.
#[test]
fn an_exchange_on_the_guests_open_tray_is_told() {
    let mut bench = cd();
    bench.packet(EJECT);
    assert_eq!(event(&mut bench), (MEDIA_REMOVAL, OPEN));
    bench.eject();
    bench.insert();
    assert_eq!(event(&mut bench), (NO_EVENT, OPEN));
    bench.packet(LOAD);
    assert_eq!(event(&mut bench), (NEW_MEDIA, PRESENT));
    assert_eq!(bench.packet_fails(TEST_UNIT_READY), NO_MEDIUM);
    assert_eq!(bench.packet_fails(TEST_UNIT_READY), MAY_HAVE_CHANGED);
    bench.packet(TEST_UNIT_READY);
}

/// A read that was parked was meant for the medium of then.
#[test]
fn a_parked_read_does_not_go_to_another_medium() {
    let mut bench = cd();
    for by_dma in [true, false] {
        let section = bench.drain();
        bench.set_table(&[(BUFFER, 0x800 | EOT)]);
        if by_dma {
            bench.start_packet_dma(&read_10(5, 1));
        } else {
            bench.send_packet(0, ROOMY, &read_10(5, 1));
        }
        bench.wait_parked();
        bench.device().medium_changed(true);
        assert!(bench.is_interrupted());
        assert_eq!(bench.inb(STATUS), DRDY | ERR);
        assert_eq!(bench.inb(COUNT) & 7, OVER);
        bench.idle_turns();
        assert_eq!(bench.disks[0].backend.gate().parked(), 0);
        drop(section);
        bench.quiesce();
        assert_eq!(bench.memory_at(BUFFER, BLOCK), [0; BLOCK]);
        assert_eq!(bench.bm_read(BM_STATUS) & ACTIVE, 0);
        assert_eq!(bench.sense(), NO_MEDIUM);
        // What was said need not be said again.
        assert_eq!(bench.packet_fails(TEST_UNIT_READY), MAY_HAVE_CHANGED);
        bench.packet(TEST_UNIT_READY);
        bench.bm_write(BM_COMMAND, 0);
    }
}

#[test]
fn a_read_does_not_go_on_with_another_medium() {
    let mut bench = cd();
    bench.send_packet(0, 2048, &read_10(5, 2));
    bench.wait_ready();
    bench.device().medium_changed(true);
    // What has been read is the guest's.
    assert_eq!(bench.take_packet_block(), block(5));
    assert_eq!(bench.inb(STATUS), DRDY | ERR);
    assert_eq!(bench.sense(), NO_MEDIUM);
    assert_eq!(bench.packet_fails(TEST_UNIT_READY), MAY_HAVE_CHANGED);
    // The same while the bus master is awaited.
    bench.set_table(&[(BUFFER, 0x800 | EOT)]);
    bench.send_packet(BY_DMA, 0, &read_10(5, 1));
    bench.device().medium_changed(true);
    bench.bm_write(BM_COMMAND, BM_START | BM_TO_MEMORY);
    assert_eq!(bench.inb(STATUS), DRDY | ERR);
    assert_eq!(bench.sense(), NO_MEDIUM);
    bench.quiesce();
    assert_eq!(bench.memory_at(BUFFER, BLOCK), [0; BLOCK]);
}

#[test]
fn what_runs_when_the_tray_is_forced_open_is_let_finish() {
    let mut bench = cd();
    bench.hold(DebugEvent::ReadAio);
    bench.send_packet(0, 2048, &read_10(5, 2));
    bench.wait_held();
    bench.device().move_tray(true);
    assert_eq!(bench.status(), BSY | DRDY);
    bench.release();
    bench.wait_ready();
    assert_eq!(bench.take_packet_block(), block(5));
    assert_eq!(bench.inb(STATUS), DRDY | ERR);
    assert_eq!(bench.sense(), NO_MEDIUM);
    assert_eq!(bench.packet_fails(TEST_UNIT_READY), TRAY_OPEN);
}

/// The operator's part of all that is done to a drive that was made empty.
#[test]
fn a_medium_is_put_into_an_empty_drive_and_taken_out() {
    let mut bench = cd();
    bench.eject();
    bench.device().move_tray(false);
    assert_eq!(bench.packet_fails(TEST_UNIT_READY), TRAY_CLOSED);
    assert_eq!(bench.packet_fails(&read_10(0, 1)), TRAY_CLOSED);
    assert_eq!(event(&mut bench), (MEDIA_REMOVAL, 0));
    let mode = bench.packet(&[0x5a, 0, 0x01, 0, 0, 0, 0, 0, 200]);
    assert_eq!(mode[2], 0x70);
    assert_eq!(bench.packet(&[0x46, 0, 0, 0, 0, 0, 0, 0, 8])[6..], [0, 0]);
    // Whatever it was asked for, an empty drive opens.
    bench.packet(LOCK);
    assert_eq!(bench.packet_fails(EJECT), (5, 0x53, 2));
    bench.packet(UNLOCK);
    bench.device().move_tray(true);
    bench.insert();
    bench.device().move_tray(false);
    assert_eq!(event(&mut bench), (NEW_MEDIA, PRESENT));
    assert_eq!(bench.packet_fails(TEST_UNIT_READY), NO_MEDIUM);
    assert_eq!(bench.packet_fails(TEST_UNIT_READY), MAY_HAVE_CHANGED);
    assert_eq!(bench.packet(&read_10(7, 1)), block(7));
}
