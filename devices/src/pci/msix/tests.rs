//! Tests of the table, the masks and the pending bits.

use super::*;
use crate::pci::testing::RecordedMsi;

fn write_entry(msix: &Msix, index: u64, address: u64, data: u32, masked: bool) {
    msix.write_table(index * 16, &address.to_le_bytes());
    msix.write_table(index * 16 + 8, &data.to_le_bytes());
    msix.write_table(index * 16 + 12, &u32::from(masked).to_le_bytes());
}

fn pending(msix: &Msix) -> u64 {
    let mut bytes = [0; 8];
    msix.read_pending(0, &mut bytes);
    u64::from_le_bytes(bytes)
}

#[test]
fn an_enabled_unmasked_vector_sends_its_message() {
    let controller = RecordedMsi::new();
    let msix = Msix::new(&*controller, 3).unwrap();
    write_entry(&msix, 1, 0xfee0_0000, 0x41, false);
    msix.update(MessageControl::ENABLE, true);
    msix.trigger(1);
    msix.trigger(3);
    msix.trigger(u16::MAX);
    assert_eq!(controller.sent(), [(0xfee0_0000, 0x41)]);
    assert_eq!(pending(&msix), 0);
}

#[test]
fn masked_messages_are_pending_and_sent_once() {
    let controller = RecordedMsi::new();
    let msix = Msix::new(&*controller, 2).unwrap();
    write_entry(&msix, 0, 0xfee0_0000, 0x30, true);
    write_entry(&msix, 1, 0xfee0_0000, 0x31, false);
    msix.update(MessageControl::ENABLE, true);
    msix.trigger(0);
    msix.trigger(0);
    assert_eq!(pending(&msix), 1);
    msix.write_table(12, &[0]);
    assert_eq!(controller.sent(), [(0xfee0_0000, 0x30)]);
    assert_eq!(pending(&msix), 0);

    msix.update(MessageControl::all(), true);
    msix.trigger(1);
    assert_eq!(pending(&msix), 2);
    msix.update(MessageControl::ENABLE, false);
    assert_eq!(pending(&msix), 2, "without bus mastering no message leaves");
    msix.update(MessageControl::ENABLE, true);
    assert_eq!(controller.sent().len(), 2);
}

#[test]
fn reserved_bits_stay_zero_and_masks_read_back() {
    let msix = Msix::new(&*RecordedMsi::new(), 1).unwrap();
    msix.write_table(0, &[0xff; 16]);
    let mut entry = [0; 16];
    msix.read_table(0, &mut entry);
    assert_eq!(
        entry,
        [
            0xfc, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1, 0, 0, 0
        ]
    );
    msix.write_table(14, &[1; 4]);
    msix.write_table(u64::MAX, &[1]);
}

#[test]
fn reset_forgets_everything() {
    let controller = RecordedMsi::new();
    let msix = Msix::new(&*controller, 1).unwrap();
    msix.update(MessageControl::ENABLE, true);
    msix.trigger(0);
    msix.reset();
    assert!(!msix.is_enabled());
    write_entry(&msix, 0, 0xfee0_0000, 1, false);
    msix.update(MessageControl::ENABLE, true);
    assert_eq!(controller.sent(), []);
}

#[test]
fn masking_leaves_the_machines_routing_alone() {
    let controller = RecordedMsi::new();
    let msix = Msix::new(&*controller, 1).unwrap();
    msix.update(MessageControl::ENABLE, true);
    write_entry(&msix, 0, 0xfee0_0000, 0x30, false);
    let configured = controller.configured();
    msix.write_table(12, &[1]);
    msix.write_table(12, &[0]);
    msix.update(MessageControl::all(), true);
    msix.update(MessageControl::ENABLE, true);
    assert_eq!(controller.configured(), configured);
    write_entry(&msix, 0, 0xfee0_1000, 0x30, false);
    msix.trigger(0);
    assert_eq!(controller.sent(), [(0xfee0_1000, 0x30)]);
    msix.update(MessageControl::empty(), true);
    assert!(
        controller.configured() > configured,
        "a disabled function holds no route"
    );
}
