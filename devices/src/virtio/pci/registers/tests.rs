//! Tests of the register file.

use proptest::prelude::*;

use super::*;

fn image(registers: &Registers) -> [u8; common::LEN] {
    registers.image(0, NO_VECTOR, |_| NO_VECTOR)
}

fn read_u32(registers: &Registers, at: usize) -> u32 {
    u32::from_le_bytes(image(registers)[at..at + 4].try_into().unwrap())
}

#[test]
fn features_are_read_and_written_by_words() {
    let mut registers = Registers::new(0x1_0000_0042, &[8]);
    assert_eq!(read_u32(&registers, common::DEVICE_FEATURE), 0x42);
    registers.write(common::DEVICE_FEATURE_SELECT, &[1, 0, 0, 0]);
    assert_eq!(read_u32(&registers, common::DEVICE_FEATURE), 1);
    registers.write(common::DEVICE_FEATURE_SELECT, &[2, 0, 0, 0]);
    assert_eq!(read_u32(&registers, common::DEVICE_FEATURE), 0);
    registers.write(common::DRIVER_FEATURE, &[2, 0, 0, 0]);
    assert!(!registers.features_are_acceptable(), "VERSION_1 is missing");
    registers.write(common::DRIVER_FEATURE_SELECT, &[1, 0, 0, 0]);
    registers.write(common::DRIVER_FEATURE, &[1, 0, 0, 0]);
    assert!(registers.features_are_acceptable());
    registers.status = Status::FEATURES_OK;
    registers.write(common::DRIVER_FEATURE, &[0xff; 4]);
    assert_eq!(registers.accepted, 0x1_0000_0002, "negotiation is over");
    registers.accepted |= 1;
    assert!(
        !registers.features_are_acceptable(),
        "bit 0 was not offered"
    );
}

#[test]
fn a_queues_registers_are_frozen_once_enabled() {
    let mut registers = Registers::new(0, &[8, 16]);
    registers.write(common::QUEUE_SELECT, &[1, 0]);
    registers.write(common::QUEUE_SIZE, &[4, 0]);
    registers.write(common::QUEUE_DESC, &0x1_2345_6000_u64.to_le_bytes());
    registers.write(common::QUEUE_DEVICE + 4, &[9, 0, 0, 0]);
    assert_eq!(
        registers.write(common::QUEUE_ENABLE, &[1, 0]),
        Effect::Enabled(1)
    );
    assert_eq!(
        registers.write(common::QUEUE_ENABLE, &[1, 0]),
        Effect::Nothing
    );
    registers.write(common::QUEUE_SIZE, &[2, 0]);
    registers.write(common::QUEUE_DESC, &[0; 8]);
    let queue = registers.queues[1];
    assert_eq!(
        (queue.size, queue.addresses),
        (4, [0x1_2345_6000, 0, 9 << 32])
    );
    assert_eq!(registers.queues[0], QueueRegisters::new(8));
    assert_eq!(
        registers.write(common::QUEUE_RESET, &[1, 0]),
        Effect::Nothing
    );
}

#[test]
fn a_queue_that_is_not_there_has_size_zero() {
    let mut registers = Registers::new(0, &[8]);
    registers.write(common::QUEUE_SELECT, &[7, 0]);
    assert_eq!(
        registers.write(common::QUEUE_ENABLE, &[1, 0]),
        Effect::Nothing
    );
    registers.write(common::QUEUE_SIZE, &[4, 0]);
    assert_eq!(image(&registers)[common::QUEUE_SIZE..][..2], [0, 0]);
    assert_eq!(registers.queues[0].size, 8);
}

proptest! {
    /// Writes at any offset and width neither panic nor change what is read-only.
    #[test]
    fn read_only_registers_stay(
        writes in prop::collection::vec((0_usize..70, prop::collection::vec(any::<u8>(), 1..9)), 0..50)
    ) {
        let mut registers = Registers::new(0x42, &[8]);
        for (offset, data) in writes {
            registers.write(offset, &data);
            let image = image(&registers);
            prop_assert_eq!(&image[common::NUM_QUEUES..][..2], &[1, 0]);
            prop_assert_eq!(registers.offered, 0x42);
            prop_assert_eq!(registers.status, Status::empty());
        }
    }
}
