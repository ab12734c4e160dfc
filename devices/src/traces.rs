//! What tests see of the traces of a request: a subscriber that notes what our crates trace.

use std::fmt::Debug;
use std::sync::{Arc, Mutex};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// The names of spans and events at level `TRACE`, in order.
#[derive(Clone)]
pub(crate) struct Notes {
    noted: Arc<Mutex<Vec<String>>>,
    listens: bool,
}

impl Notes {
    /// What is traced while `work` is done.
    pub(crate) fn of(work: impl FnOnce()) -> Vec<String> {
        Self::take(true, work)
    }

    /// What is created for a subscriber that says it wants nothing.
    pub(crate) fn unasked(work: impl FnOnce()) -> Vec<String> {
        Self::take(false, work)
    }

    fn take(listens: bool, work: impl FnOnce()) -> Vec<String> {
        let noted = Arc::default();
        let notes = Self {
            noted: Arc::clone(&noted),
            listens,
        };
        tracing::subscriber::with_default(notes, work);
        std::mem::take(&mut *noted.lock().unwrap())
    }

    fn add(&self, what: &str) {
        self.noted.lock().unwrap().push(what.to_owned());
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
        let ours = metadata.target().starts_with("sluice_");
        self.listens && ours && *metadata.level() == Level::TRACE
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

/// Says which of `stages` is missing, or out of order. Other notes may stand between.
#[track_caller]
pub(crate) fn assert_in_order(notes: &[String], stages: &[&str]) {
    let mut way = notes.iter();
    for stage in stages {
        assert!(way.any(|note| note == stage), "no {stage} in {notes:?}");
    }
}
