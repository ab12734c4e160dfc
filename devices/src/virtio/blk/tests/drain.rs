//! The ring is the queue while the disk is drained.

use super::bench::{Bench, OK, SECTOR, Slot, UNTOUCHED, add, add_write, run, stamp};
use crate::virtio::blk::layout::{Features, request_type};
use crate::virtio::pci::layout::common;
use crate::virtio::testing::Guest;
use crate::virtio::{RingFeatures, Status};

fn in_both_modes(test: impl Fn(RingFeatures)) {
    for features in [RingFeatures::empty(), RingFeatures::EVENT_IDX] {
        test(features);
    }
}

#[test]
fn nothing_is_popped_in_a_section_and_all_runs_in_order_after_it() {
    in_both_modes(|features| {
        let (mut bench, guest) = Bench::new();
        let mut driver = guest.bring_up(features, 0, 1).remove(0);
        run(&mut bench, &mut driver, request_type::IN, 0, SECTOR);
        let section = bench.drain();
        let first = add_write(&mut driver, Slot(1), 1, &[1; SECTOR]);
        driver.kick();
        bench.quiesce();
        let second = add(&mut driver, Slot(2), request_type::GET_ID, 0, 4);
        driver.kick();
        bench.quiesce();
        assert_eq!(driver.used_index(), 1);
        assert_eq!(bench.sector(1), stamp(1));
        assert_eq!(bench.backend.gate().parked(), 0, "the ring is the queue");

        // Proof that nothing was read either: what the chain says now is what will be done.
        Slot(1).write_header(&guest, request_type::GET_ID, 0);
        drop(section);
        let mut heads = Vec::new();
        bench.until("the held requests", || {
            heads.extend(std::iter::from_fn(|| driver.take_used()).map(|(head, _)| head));
            heads.len() == 2
        });
        assert_eq!(heads, [first, second]);
        assert_eq!((Slot(1).status(&guest), Slot(2).status(&guest)), (OK, OK));
        assert_eq!(
            bench.sector(1),
            stamp(1),
            "the write became a question for the serial number"
        );
        // And the doorbell works again.
        assert_eq!(
            run(&mut bench, &mut driver, request_type::IN, 3, SECTOR).0,
            OK
        );
    });
}

#[test]
fn requests_without_a_kick_after_the_section_are_found() {
    in_both_modes(|features| {
        let (mut bench, guest) = Bench::new();
        let mut driver = guest.bring_up(features, 0, 1).remove(0);
        bench.quiesce();
        let section = bench.drain();
        add(&mut driver, Slot(0), request_type::IN, 0, SECTOR);
        driver.kick();
        bench.quiesce();
        // The driver sees that it need not ring while the device sleeps at the gate.
        add(&mut driver, Slot(1), request_type::IN, 1, SECTOR);
        drop(section);
        bench.until("both requests", || driver.used_index() == 2);
        assert_eq!(Slot(1).read_data(&guest, SECTOR), stamp(1));
    });
}

#[test]
fn a_section_waits_for_what_was_popped() {
    let (mut bench, guest) = Bench::new();
    let mut driver = guest.bring_up(RingFeatures::empty(), 0, 1).remove(0);
    bench.hold(sluice_block::driver::DebugEvent::WriteAio);
    add_write(&mut driver, Slot(0), 4, &[4; SECTOR]);
    driver.kick();
    bench.wait_held();
    assert_eq!(bench.backend.gate().in_flight(), 1);
    bench.release();
    let section = bench.drain();
    assert_eq!(
        driver.used_index(),
        1,
        "the driver has its answer before the section begins"
    );
    assert_eq!(bench.sector(4), [4; SECTOR]);
    drop(section);
}

#[test]
fn sections_one_after_another_lose_nothing() {
    in_both_modes(|features| {
        let (mut bench, guest) = Bench::new();
        let mut driver = guest.bring_up(features, 0, 1).remove(0);
        for round in 0..20_u16 {
            let section = bench.drain();
            add(
                &mut driver,
                Slot(0),
                request_type::IN,
                u64::from(round),
                SECTOR,
            );
            driver.kick();
            bench.quiesce();
            assert_eq!(driver.used_index(), round);
            drop(section);
            // The next section is there before the first turn after this one.
            let section = bench.drain();
            bench.quiesce();
            drop(section);
            bench.until("a round", || driver.used_index() == round + 1);
            assert_eq!(Slot(0).read_data(&guest, SECTOR), stamp(u64::from(round)));
        }
    });
}

#[test]
fn a_removed_disk_leaves_the_ring_alone() {
    let (mut bench, guest) = Bench::new();
    let mut driver = guest.bring_up(RingFeatures::empty(), 0, 1).remove(0);
    let section = bench.drain();
    add(&mut driver, Slot(0), request_type::IN, 0, SECTOR);
    driver.kick();
    bench.quiesce();
    let (graph, backend) = (bench.graph.clone(), bench.backend.clone());
    bench
        .event_loop
        .run_until(async move { graph.remove_backend(&backend).await })
        .unwrap();
    drop(section);
    driver.kick();
    bench.quiesce();
    assert_eq!(
        (driver.used_index(), Slot(0).status(&guest)),
        (0, UNTOUCHED)
    );
    reset(&mut bench, &guest);
}

fn reset(bench: &mut Bench, guest: &Guest) {
    guest.set_status(Status::empty());
    bench.until("the reset", || guest.status().is_empty());
}

/// Every kind of request is only in the ring as long as the section is there.
#[test]
fn whatever_is_asked_waits() {
    let range = [&8_u64.to_le_bytes()[..], &[8, 0, 0, 0], &[0; 4]].concat();
    let all = Features::FLUSH | Features::DISCARD | Features::WRITE_ZEROES;
    let cases = [
        (request_type::FLUSH, Vec::new(), stamp(8)),
        (request_type::DISCARD, range.clone(), vec![0; SECTOR]),
        (request_type::WRITE_ZEROES, range, vec![0; SECTOR]),
    ];
    for (kind, data, after) in cases {
        let (mut bench, guest) = Bench::new();
        let mut driver = guest
            .bring_up(RingFeatures::empty(), all.bits(), 1)
            .remove(0);
        let section = bench.drain();
        Slot(0).write_data(&guest, &data);
        add(&mut driver, Slot(0), kind, 0, data.len());
        driver.kick();
        bench.quiesce();
        assert_eq!(driver.used_index(), 0, "{kind}");
        assert_eq!(Slot(0).status(&guest), UNTOUCHED, "{kind}");
        assert_eq!(bench.sector(8), stamp(8), "{kind}");
        drop(section);
        bench.until("the request", || driver.used_index() == 1);
        assert_eq!(Slot(0).status(&guest), OK, "{kind}");
        assert_eq!(bench.sector(8), after, "{kind}");
    }
}

/// A driver may start its device while the disk is drained: what it asks is done afterwards.
#[test]
fn a_device_that_is_started_in_a_section_serves_after_it() {
    in_both_modes(|features| {
        let (mut bench, guest) = Bench::new();
        let section = bench.drain();
        let mut driver = guest.bring_up(features, 0, 1).remove(0);
        add(&mut driver, Slot(0), request_type::IN, 5, SECTOR);
        driver.kick();
        bench.quiesce();
        assert_eq!(driver.used_index(), 0);
        drop(section);
        bench.until("the read", || driver.used_index() == 1);
        assert_eq!(Slot(0).read_data(&guest, SECTOR), stamp(5));
    });
}

/// A queue that is reset in a section is not held up by it, and what was in its ring is gone.
#[test]
fn a_queue_reset_in_a_section_does_not_wait() {
    let (mut bench, guest) = Bench::with("", |settings| settings.num_queues = 2);
    let mut drivers = guest.bring_up(RingFeatures::RING_RESET, 0, 2);
    let section = bench.drain();
    add_write(&mut drivers[0], Slot(0), 5, &[5; SECTOR]);
    drivers[0].kick();
    add(&mut drivers[1], Slot(1), request_type::IN, 6, SECTOR);
    drivers[1].kick();
    bench.quiesce();
    guest.common(common::QUEUE_SELECT, &[0, 0]);
    guest.common(common::QUEUE_RESET, &[1, 0]);
    bench.until("the queue's reset", || {
        guest.read_u16(common::QUEUE_RESET) == 0
    });
    drop(section);
    bench.until("the other queue", || drivers[1].used_index() == 1);
    bench.quiesce();
    assert_eq!(drivers[0].used_index(), 0);
    assert_eq!(bench.sector(5), stamp(5));
    drivers[0].restart();
    let (status, _) = run(&mut bench, &mut drivers[0], request_type::IN, 11, SECTOR);
    assert_eq!(status, OK);
}

/// A ring that breaks in a section says so after it, and the disk has nothing of it.
#[test]
fn a_ring_that_is_broken_in_a_section_is_found_after_it() {
    let (mut bench, guest) = Bench::new();
    let mut driver = guest.bring_up(RingFeatures::empty(), 0, 1).remove(0);
    let section = bench.drain();
    add_write(&mut driver, Slot(0), 5, &[5; SECTOR]);
    // A head that no descriptor has.
    driver.offer(u16::MAX);
    driver.kick();
    bench.quiesce();
    assert!(!guest.status().contains(Status::NEEDS_RESET));
    drop(section);
    bench.until("the device to say so", || {
        guest.status().contains(Status::NEEDS_RESET)
    });
}
