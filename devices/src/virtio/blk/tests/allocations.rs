//! A request in steady state allocates nothing, from the ring in which it is found to the used one.

use super::bench::*;
use crate::allocations::{assert_none_in_steady_state, during};
use crate::virtio::RingFeatures;
use crate::virtio::blk::layout::{Features, request_type};
use crate::virtio::testing::{Buffer, Driver};

/// What a request costs until it is in the used ring. Its kick is the testing guest's.
fn counted(bench: &mut Bench, driver: &mut Driver<'_>, buffers: &[Buffer]) -> u64 {
    driver.add(buffers);
    driver.kick();
    during(|| {
        while driver.take_used().is_none() {
            bench.turn();
        }
    })
}

#[test]
fn requests_allocate_nothing() {
    for (kind, to_guest) in [
        (request_type::IN, true),
        (request_type::OUT, false),
        (request_type::FLUSH, false),
    ] {
        let (mut bench, guest) = Bench::new();
        let features = Features::all().bits() & guest.offered();
        let mut drivers = guest.bring_up(RingFeatures::empty(), features, 1);
        let driver = &mut drivers[0];
        let slot = Slot(0);
        let len = if kind == request_type::FLUSH { 0 } else { 4096 };
        assert_none_in_steady_state(&format!("request type {kind}"), || {
            slot.write_header(driver.guest, kind, 64);
            let allocated = counted(&mut bench, driver, &slot.buffers(len, to_guest));
            assert_eq!(slot.status(driver.guest), OK);
            allocated
        });
    }
}

#[test]
fn scattered_data_allocates_nothing() {
    let (mut bench, guest) = Bench::new();
    let features = Features::all().bits() & guest.offered();
    let mut drivers = guest.bring_up(RingFeatures::empty(), features, 1);
    let driver = &mut drivers[0];
    let slot = Slot(0);
    // As many as the ring has room for, none of which touches another.
    let mut buffers = vec![(slot.header(), 16, false)];
    buffers.extend((0..6).map(|piece| (slot.data() + piece * 0x800, 1024, true)));
    buffers.push((slot.status_address(), 1, true));
    assert_none_in_steady_state("a read of six pieces", || {
        slot.write_header(driver.guest, request_type::IN, 64);
        let allocated = counted(&mut bench, driver, &buffers);
        assert_eq!(slot.status(driver.guest), OK);
        allocated
    });
}

/// Zeroes are written by the way of a worker thread, which looks for holes; that call is allocated.
#[test]
fn discards_allocate_nothing() {
    let (mut bench, guest) = Bench::new();
    let features = Features::all().bits() & guest.offered();
    let mut drivers = guest.bring_up(RingFeatures::empty(), features, 1);
    let driver = &mut drivers[0];
    let slot = Slot(0);
    let ranges: Vec<u8> = (0..16u64)
        .flat_map(|range| [range * 64, 8].map(u64::to_le_bytes).concat())
        .collect();
    slot.write_data(driver.guest, &ranges);
    let buffers = slot.buffers(ranges.len(), false);
    assert_none_in_steady_state("a discard of 16 ranges", || {
        slot.write_header(driver.guest, request_type::DISCARD, 0);
        let allocated = counted(&mut bench, driver, &buffers);
        assert_eq!(slot.status(driver.guest), OK);
        allocated
    });
}
