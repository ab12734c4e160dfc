//! The traces of a request's way through the loop.

use std::fmt::Debug;
use std::sync::{Arc, Mutex};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use super::bench::{Bench, OK, SECTOR, run};
use crate::virtio::RingFeatures;
use crate::virtio::blk::layout::request_type;

/// Notes what is traced by our crates, in order.
#[derive(Clone, Default)]
struct Notes(Arc<Mutex<Vec<String>>>);

impl Notes {
    fn add(&self, what: &str) {
        self.0.lock().unwrap().push(what.to_owned());
    }
}

impl Visit for &Notes {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            self.add(&format!("{value:?}"));
        }
    }
}

impl Subscriber for Notes {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::TRACE && metadata.target().starts_with("sluice_")
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        self.add(span.metadata().name());
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        event.record(&mut &*self);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[test]
fn a_request_leaves_its_traces_in_order() {
    let (mut bench, guest) = Bench::new();
    let mut driver = guest.bring_up(RingFeatures::empty(), 0, 1).remove(0);
    bench.quiesce();
    let notes = Notes::default();
    let status = tracing::subscriber::with_default(notes.clone(), || {
        let status = run(&mut bench, &mut driver, request_type::IN, 7, SECTOR).0;
        bench.quiesce();
        status
    });
    assert_eq!(status, OK);
    let notes = notes.0.lock().unwrap();
    // A loop may have been kicked, and have submitted, more often than it must.
    let mut way = notes.iter();
    for stage in ["kick", "request", "enter", "submit", "complete", "notify"] {
        assert!(way.any(|note| note == stage), "no {stage} in {notes:?}");
    }
}
