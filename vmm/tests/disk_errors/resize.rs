//! `block_resize` between an operator and a guest: what the guest is told, and what it can reach.

use serde_json::json;

use crate::guest::Ide;
use crate::machine::{Qtest, SECTOR, Vm, image_with_blkdebug, pattern_at};
use crate::virtio::Virtio;

/// Sectors of the image at first, and afterwards.
const BEFORE: u64 = 2048;
const AFTER: u64 = 4096;
const LESS: u64 = 16;

fn resize(vm: &mut Vm, sectors: u64) {
    let size = sectors * SECTOR as u64;
    vm.execute(
        "block_resize",
        &json!({"node-name": "faulty", "size": size}),
    );
}

/// Writes a sector and returns the request's status.
fn write(qtest: &mut Qtest, virtio: &mut Virtio, made: u64, sector: u64) -> u8 {
    virtio.begin_write(qtest, sector, 0x5a);
    virtio.kick(qtest);
    virtio.wait_used(qtest, made + 1);
    virtio.status(qtest, made)
}

/// Words 60 and 61, and 100 to 103, of IDENTIFY DEVICE (ATA/ATAPI-6, section 8.15).
fn capacities(qtest: &mut Qtest) -> [u64; 2] {
    qtest.ask("outb 0x1f6 0xe0");
    qtest.ask("outb 0x1f7 0xec");
    Ide::finish(qtest);
    let words: Vec<_> = (0..256).map(|_| qtest.number("inw 0x1f0")).collect();
    let number = |words: &[u64]| words.iter().rev().fold(0, |sum, word| sum << 16 | word);
    [number(&words[60..62]), number(&words[100..104])]
}

/// Whether READ SECTORS succeeds for one.
fn can_read(qtest: &mut Qtest, sector: u64) -> bool {
    let [low, middle, high, ..] = sector.to_le_bytes();
    for (port, value) in [
        (0x1f2, 1),
        (0x1f3, low),
        (0x1f4, middle),
        (0x1f5, high),
        (0x1f6, 0xe0),
    ] {
        qtest.ask(&format!("outb {port:#x} {value:#x}"));
    }
    qtest.ask("outb 0x1f7 0x20");
    let good = Ide::ends_well(qtest);
    if good {
        (0..SECTOR / 2).for_each(|_| assert_eq!(qtest.number("inw 0x1f0"), 0));
    }
    good
}

#[test]
fn a_virtio_driver_is_told_and_uses_what_was_added() {
    let (directory, image, node) = image_with_blkdebug(&json!([]));
    let mut vm = Vm::start(
        directory,
        &[
            "--blockdev",
            &node,
            "--device",
            "virtio-blk-pci,drive=faulty,addr=0x05",
        ],
    );
    let mut virtio = Virtio::bring_up(&mut vm.qtest, 5);
    let generation = virtio.generation(&mut vm.qtest);
    assert_eq!(virtio.capacity(&mut vm.qtest), BEFORE);
    assert_eq!(
        write(&mut vm.qtest, &mut virtio, 0, BEFORE),
        Virtio::IO_ERROR
    );
    // The queue's interrupt for it.
    assert_eq!(virtio.take_interrupt_status(&mut vm.qtest), 1);
    resize(&mut vm, AFTER);
    // The answer comes when the driver has been told.
    assert_eq!(virtio.take_interrupt_status(&mut vm.qtest), 3);
    assert_eq!(virtio.capacity(&mut vm.qtest), AFTER);
    assert_ne!(virtio.generation(&mut vm.qtest), generation);
    assert_eq!(write(&mut vm.qtest, &mut virtio, 1, AFTER - 1), 0);
    assert_eq!(pattern_at(&image, AFTER - 1), Some(0x5a));
    resize(&mut vm, LESS);
    assert_eq!(virtio.capacity(&mut vm.qtest), LESS);
    assert_eq!(write(&mut vm.qtest, &mut virtio, 2, LESS), Virtio::IO_ERROR);
    assert_eq!(write(&mut vm.qtest, &mut virtio, 3, LESS - 1), 0);
    vm.quit();
}

#[test]
fn an_ide_disk_shows_its_size_and_can_be_read_to_its_end() {
    let (directory, _image, node) = image_with_blkdebug(&json!([]));
    let mut vm = Vm::start(
        directory,
        &["--blockdev", &node, "--device", "ide-hd,drive=faulty"],
    );
    assert_eq!(capacities(&mut vm.qtest), [BEFORE; 2]);
    assert!(!can_read(&mut vm.qtest, BEFORE));
    resize(&mut vm, AFTER);
    assert_eq!(capacities(&mut vm.qtest), [AFTER; 2]);
    assert!(can_read(&mut vm.qtest, BEFORE) && can_read(&mut vm.qtest, AFTER - 1));
    assert!(!can_read(&mut vm.qtest, AFTER));
    resize(&mut vm, LESS);
    assert_eq!(capacities(&mut vm.qtest), [LESS; 2]);
    assert!(can_read(&mut vm.qtest, LESS - 1));
    assert!(!can_read(&mut vm.qtest, LESS));
    vm.quit();
}
