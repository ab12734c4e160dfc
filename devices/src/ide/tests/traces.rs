//! The traces of a request.

use super::bench::*;
use crate::traces::{Notes, assert_in_order};

fn read(bench: &mut Bench) {
    bench.address28(5, 1);
    assert_eq!(bench.simple(0x20) & (DRQ | ERR), DRQ);
    assert_eq!(bench.read_block(1), stamp(5));
    bench.quiesce();
}

#[test]
fn a_request_leaves_its_traces_in_order() {
    let mut bench = Bench::new();
    let notes = Notes::of(|| read(&mut bench));
    assert_in_order(&notes, &["request", "enter", "submit", "complete"]);
}

#[test]
fn nothing_is_made_for_a_subscriber_that_wants_none() {
    let mut bench = Bench::new();
    let notes = Notes::unasked(|| read(&mut bench));
    assert_eq!(notes, Vec::<String>::new());
}
