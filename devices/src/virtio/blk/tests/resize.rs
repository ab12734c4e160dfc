//! A disk that grows and shrinks under its driver.

use std::sync::Arc;

use super::bench::{Bench, IO_ERROR, OK, SECTOR, SECTORS, Slot, add, run, stamp};
use crate::virtio::blk::layout::{config, request_type};
use crate::virtio::pci::layout::{Structure, common};
use crate::virtio::testing::Guest;
use crate::virtio::{RingFeatures, Status};

/// What the interrupt status says of a change of the configuration: its own bit, and a queue's as in QEMU.
const CONFIG_CHANGED: u8 = 3;
/// The vector that the driver has chosen for changes of the configuration; queues have others.
const VECTOR: u16 = 0;

/// What the operator does.
fn resize(bench: &mut Bench, sectors: u64) {
    let (graph, node) = (Arc::clone(&bench.graph), Arc::clone(&bench.node));
    let resizing = async move { graph.resize(&node, sectors * SECTOR as u64).await };
    bench.event_loop.run_until(resizing).unwrap().unwrap();
}

fn capacity(guest: &Guest) -> u64 {
    u64::from_le_bytes(guest.read(Structure::Device, config::CAPACITY as u64))
}

fn generation(guest: &Guest) -> u8 {
    let [generation] = guest.read(Structure::Common, common::CONFIG_GENERATION as u64);
    generation
}

fn messages(guest: &Guest) -> usize {
    let sent = guest.msi.sent();
    let told = sent.iter().filter(|(_, data)| *data == u32::from(VECTOR));
    told.count()
}

#[test]
fn a_driver_is_told_of_another_capacity() {
    let (mut bench, guest) = Bench::new();
    let mut driver = guest.bring_up(RingFeatures::empty(), 0, 1).remove(0);
    guest.common(common::CONFIG_MSIX_VECTOR, &VECTOR.to_le_bytes());
    let before = generation(&guest);
    let beyond = run(&mut bench, &mut driver, request_type::IN, SECTORS, SECTOR);
    assert_eq!(beyond, (IO_ERROR, 0));
    resize(&mut bench, 2 * SECTORS);
    assert_eq!(capacity(&guest), 2 * SECTORS);
    assert_eq!(generation(&guest), before.wrapping_add(1));
    assert_eq!(messages(&guest), 1);
    assert_eq!(guest.read(Structure::Isr, 0), [CONFIG_CHANGED]);
    let beyond = run(&mut bench, &mut driver, request_type::IN, SECTORS, SECTOR);
    assert_eq!(beyond.0, OK);
    assert_eq!(Slot(0).read_data(&guest, SECTOR), [0; SECTOR]);
    resize(&mut bench, SECTORS / 2);
    assert_eq!(capacity(&guest), SECTORS / 2);
    assert_eq!(generation(&guest), before.wrapping_add(2));
    assert_eq!(messages(&guest), 2);
    let last = SECTORS / 2 - 1;
    let within = run(&mut bench, &mut driver, request_type::IN, last, SECTOR);
    assert_eq!(within.0, OK);
    assert_eq!(Slot(0).read_data(&guest, SECTOR), stamp(last));
    let beyond = run(&mut bench, &mut driver, request_type::IN, last, 2 * SECTOR);
    assert_eq!(beyond, (IO_ERROR, 0));
    resize(&mut bench, SECTORS / 2);
    assert_eq!(messages(&guest), 2, "the size is the same");
}

#[test]
fn without_msix_the_line_tells_of_another_capacity() {
    let (mut bench, guest) = Bench::new();
    guest.negotiate(RingFeatures::VERSION_1.bits());
    resize(&mut bench, SECTORS + 1);
    assert!(!guest.line.level(), "nobody drives it yet");
    assert_eq!(capacity(&guest), SECTORS + 1);
    guest.set_status(Status::DRIVER_OK);
    resize(&mut bench, SECTORS + 2);
    assert!(guest.line.level());
    assert_eq!(guest.read(Structure::Isr, 0), [CONFIG_CHANGED]);
    assert!(!guest.line.level());
}

/// A driver reads the capacity by halves and looks at the generation before and after (section 2.5.1).
#[test]
fn halves_of_two_capacities_have_two_generations() {
    let (mut bench, guest) = Bench::new();
    let half = |at: usize| u32::from_le_bytes(guest.read(Structure::Device, at as u64));
    let (large, before) = (1 << 33, generation(&guest));
    let low = half(config::CAPACITY);
    resize(&mut bench, large);
    let high = half(config::CAPACITY + 4);
    let torn = u64::from(high) << 32 | u64::from(low);
    assert!(
        torn != SECTORS && torn != large,
        "the test reads halves of both"
    );
    assert_ne!(generation(&guest), before);
}

/// The size that the driver sees changes with the end of the section, and so do requests.
#[test]
fn a_request_that_waits_for_the_resize_is_judged_by_the_new_size() {
    for (sectors, status) in [(2 * SECTORS, OK), (SECTORS / 2, IO_ERROR)] {
        let (mut bench, guest) = Bench::new();
        let mut driver = guest.bring_up(RingFeatures::empty(), 0, 1).remove(0);
        guest.common(common::CONFIG_MSIX_VECTOR, &VECTOR.to_le_bytes());
        let section = bench.drain();
        let sector = sectors.max(SECTORS) - 1;
        add(&mut driver, Slot(0), request_type::IN, sector, SECTOR);
        driver.kick();
        bench
            .event_loop
            .turn(Some(std::time::Duration::ZERO))
            .unwrap();
        resize(&mut bench, sectors);
        assert_eq!(driver.take_used(), None, "the section lasts");
        drop(section);
        let mut used = None;
        bench.until("the request", || {
            used = driver.take_used();
            used.is_some()
        });
        assert_eq!(Slot(0).status(&guest), status);
        assert_eq!(messages(&guest), 1);
    }
}

/// What does not fill a block cannot be reached, and a change of it is none for the driver.
#[test]
fn a_part_of_a_block_is_no_capacity() {
    let (mut bench, guest) = Bench::with("", |settings| {
        settings.logical_block_size = 4096;
        settings.physical_block_size = 4096;
    });
    let _queues = guest.bring_up(RingFeatures::empty(), 0, 1);
    guest.common(common::CONFIG_MSIX_VECTOR, &VECTOR.to_le_bytes());
    resize(&mut bench, SECTORS + 7);
    assert_eq!((capacity(&guest), messages(&guest)), (SECTORS, 0));
    resize(&mut bench, SECTORS + 8);
    assert_eq!((capacity(&guest), messages(&guest)), (SECTORS + 8, 1));
}
