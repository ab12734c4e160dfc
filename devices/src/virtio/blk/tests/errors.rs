//! Errors whose policy is to stop the machine: requests stay, and are done when it goes on.

use sluice_block::backend::ErrorPolicy;
use sluice_block::job::OnError;

use super::bench::{Bench, OK, SECTOR, Slot, UNTOUCHED, add, add_write, run, stamp};
use crate::virtio::RingFeatures;
use crate::virtio::Status;
use crate::virtio::blk::layout::{Features, request_type};
use crate::virtio::testing::Guest;

/// A disk whose errors stop the machine, with these rules of `blkdebug`.
fn stopping(rules: &str) -> (Bench, Guest) {
    let (bench, guest) = Bench::with(&format!(r#""inject-error": [{rules}],"#), |_| {});
    let policy = ErrorPolicy::new(OnError::Stop, OnError::Stop);
    bench.backend.set_policy(policy);
    (bench, guest)
}

fn wait_halted(bench: &mut Bench) {
    let backend = std::sync::Arc::clone(&bench.backend);
    bench.until("a halted request", || backend.halted() > 0);
    bench.quiesce();
}

#[test]
fn a_write_is_done_when_the_machine_goes_on_and_a_newer_one_stays_in_the_ring() {
    let (mut bench, guest) = stopping(r#"{"event": "write_aio", "once": true}"#);
    let mut driver = guest.bring_up(RingFeatures::empty(), 0, 1).remove(0);
    add_write(&mut driver, Slot(1), 1, &[1; SECTOR]);
    driver.kick();
    wait_halted(&mut bench);
    // One that is made while the machine stands still is not even looked at.
    add_write(&mut driver, Slot(2), 1, &[9; SECTOR]);
    driver.kick();
    bench.quiesce();
    assert_eq!(driver.used_index(), 0);
    assert_eq!(
        (bench.backend.gate().in_flight(), guest.interrupts(0)),
        (0, 0)
    );
    assert_eq!(bench.sector(1), stamp(1));

    bench.backend.resume();
    bench.until("both requests", || driver.used_index() == 2);
    for slot in [1, 2] {
        assert_eq!(Slot(slot).status(&guest), OK, "{slot}");
    }
}

#[test]
fn a_read_is_repeated_too() {
    let (mut bench, guest) = stopping(r#"{"event": "read_aio", "once": true}"#);
    let mut driver = guest.bring_up(RingFeatures::empty(), 0, 1).remove(0);
    add(&mut driver, Slot(0), request_type::IN, 7, SECTOR);
    driver.kick();
    wait_halted(&mut bench);
    bench.backend.resume();
    bench.until("the read", || driver.used_index() == 1);
    assert_eq!(Slot(0).status(&guest), OK);
    assert_eq!(Slot(0).read_data(&guest, SECTOR), stamp(7));
}

#[test]
fn a_reset_does_not_wait_for_the_machine_and_drops_the_request() {
    let (mut bench, guest) = stopping(r#"{"event": "write_aio", "once": true}"#);
    let mut driver = guest.bring_up(RingFeatures::empty(), 0, 1).remove(0);
    add_write(&mut driver, Slot(0), 5, &[5; SECTOR]);
    driver.kick();
    wait_halted(&mut bench);
    guest.set_status(Status::empty());
    bench.until("the reset", || guest.status().is_empty());
    bench.backend.resume();
    bench.quiesce();
    assert_eq!(bench.sector(5), stamp(5));
    assert_eq!(
        (driver.used_index(), Slot(0).status(&guest)),
        (0, UNTOUCHED)
    );
    let mut driver = guest.bring_up(RingFeatures::empty(), 0, 1).remove(0);
    assert_eq!(
        run(&mut bench, &mut driver, request_type::IN, 11, SECTOR).0,
        OK
    );
    assert_eq!(Slot(0).read_data(&guest, SECTOR), stamp(11));
}

/// Requests other than reads and writes, with the event at which they fail once.
#[test]
fn whatever_changes_the_disk_is_repeated() {
    let range = [&8_u64.to_le_bytes()[..], &[8, 0, 0, 0], &[0; 4]].concat();
    let cases = [
        ("flush_to_disk", request_type::FLUSH, Vec::new()),
        ("pdiscard", request_type::DISCARD, range.clone()),
        ("pwritev_zero", request_type::WRITE_ZEROES, range),
    ];
    for (event, kind, data) in cases {
        let (mut bench, guest) = stopping(&format!(r#"{{"event": "{event}", "once": true}}"#));
        let features = Features::FLUSH | Features::DISCARD | Features::WRITE_ZEROES;
        let mut driver = guest
            .bring_up(RingFeatures::empty(), features.bits(), 1)
            .remove(0);
        Slot(0).write_data(&guest, &data);
        add(&mut driver, Slot(0), kind, 0, data.len());
        driver.kick();
        wait_halted(&mut bench);
        assert_eq!(
            (driver.used_index(), Slot(0).status(&guest)),
            (0, UNTOUCHED)
        );
        assert_eq!(bench.sector(8), stamp(8));
        bench.backend.resume();
        bench.until(event, || driver.used_index() == 1);
        assert_eq!(Slot(0).status(&guest), OK, "{event}");
        let zeroed = kind != request_type::FLUSH;
        let expected = if zeroed { vec![0; SECTOR] } else { stamp(8) };
        assert_eq!(bench.sector(8), expected, "{event}");
    }
}
