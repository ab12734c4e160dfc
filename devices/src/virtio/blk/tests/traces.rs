//! The traces of a request's way through the loop.

use super::bench::{Bench, OK, SECTOR, run};
use crate::traces::{Notes, assert_in_order};
use crate::virtio::RingFeatures;
use crate::virtio::blk::layout::request_type;

/// A read, with `notes` taken of it.
fn read(notes: impl FnOnce(&mut dyn FnMut()) -> Vec<String>) -> Vec<String> {
    let (mut bench, guest) = Bench::new();
    let mut driver = guest.bring_up(RingFeatures::empty(), 0, 1).remove(0);
    bench.quiesce();
    notes(&mut || {
        let status = run(&mut bench, &mut driver, request_type::IN, 7, SECTOR).0;
        bench.quiesce();
        assert_eq!(status, OK);
    })
}

#[test]
fn a_request_leaves_its_traces_in_order() {
    let notes = read(|work| Notes::of(work));
    // A loop may have been kicked, and have submitted, more often than it must.
    let stages = ["kick", "request", "enter", "submit", "complete", "notify"];
    assert_in_order(&notes, &stages);
}

#[test]
fn nothing_is_made_for_a_subscriber_that_wants_none() {
    let notes = read(|work| Notes::unasked(work));
    assert_eq!(notes, Vec::<String>::new());
}
