//! The gate's rules as far as a virtqueue's service has to keep them: a popped request is a value
//! (5), compound operations are one request (7), and what is waited for is visible (12). The ring
//! as the queue (8) is in `drain`. `docs/gate.md` says which mutant breaks which of these tests.

use sluice_block::driver::DebugEvent;

use super::bench::{Bench, OK, SECTOR, Slot, add, add_write, stamp};
use crate::virtio::RingFeatures;
use crate::virtio::blk::layout::{Features, request_type};

/// Once it is popped, the chain's header may say what it likes.
#[test]
fn a_popped_request_does_not_look_at_its_header_again() {
    let (mut bench, guest) = Bench::new();
    let mut driver = guest.bring_up(RingFeatures::empty(), 0, 1).remove(0);
    bench.hold(DebugEvent::WriteAio);
    add_write(&mut driver, Slot(0), 4, &[4; SECTOR]);
    driver.kick();
    bench.wait_held();
    Slot(0).write_header(&guest, request_type::OUT, 9);
    bench.release();
    bench.until("the write", || driver.used_index() == 1);
    assert_eq!(Slot(0).status(&guest), OK);
    assert_eq!(bench.sector(4), [4; SECTOR]);
    assert_eq!(bench.sector(9), stamp(9));
}

/// A section that begins in the middle of a discard waits for all its segments.
#[test]
fn a_discard_enters_once() {
    let (mut bench, guest) = Bench::new();
    let offered = Features::DISCARD.bits();
    let mut driver = guest.bring_up(RingFeatures::empty(), offered, 1).remove(0);
    let segment = |sector: u64| [&sector.to_le_bytes()[..], &8u32.to_le_bytes(), &[0; 4]].concat();
    let segments: Vec<u8> = (0..16).flat_map(|range| segment(range * 64)).collect();
    Slot(0).write_data(&guest, &segments);
    bench.hold(DebugEvent::Pdiscard);
    let discard = request_type::DISCARD;
    add(&mut driver, Slot(0), discard, 0, segments.len());
    driver.kick();
    bench.wait_held();
    let gate = bench.backend.gate().clone();
    let section = gate.close("test");
    bench.release();
    bench.until("the discard", || {
        driver.used_index() == 1 || gate.parked() > 0
    });
    assert_eq!(gate.parked(), 0, "a range waits for its own request's end");
    assert_eq!(Slot(0).status(&guest), OK);
    assert_eq!(bench.sector(15 * 64), [0; SECTOR]);
    drop(section);
}

#[test]
fn a_drain_can_say_which_queue_it_waits_for() {
    let (mut bench, guest) = Bench::new();
    let mut driver = guest.bring_up(RingFeatures::empty(), 0, 1).remove(0);
    bench.quiesce();
    assert!(bench.backend.gate().describe_in_flight().is_empty());
    bench.hold(DebugEvent::WriteAio);
    add_write(&mut driver, Slot(0), 4, &[4; SECTOR]);
    driver.kick();
    bench.wait_held();
    assert_eq!(
        bench.backend.gate().describe_in_flight(),
        ["virtio-blk queue 0: 1 in flight"]
    );
    bench.release();
    bench.quiesce();
    assert!(bench.backend.gate().describe_in_flight().is_empty());
}
