//! What is said in the log, as far as it is said in the test's thread.

use std::fmt::{Debug, Write as _};
use std::sync::Arc;

use parking_lot::Mutex;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// The warnings so far.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    /// Runs `test` with a log of its own.
    pub(crate) fn keep(test: impl FnOnce(Self)) {
        let log = Self::default();
        tracing::subscriber::with_default(log.clone(), || test(log.clone()));
    }

    /// How many warnings have these words.
    pub(crate) fn count(&self, words: &str) -> usize {
        let lines = self.0.lock();
        lines.iter().filter(|line| line.contains(words)).count()
    }

    /// The first warning with these words.
    pub(crate) fn first(&self, words: &str) -> String {
        let lines = self.0.lock();
        let found = lines.iter().find(|line| line.contains(words));
        found.cloned().unwrap_or_default()
    }

    /// The last warning.
    pub(crate) fn last(&self) -> String {
        self.0.lock().last().cloned().unwrap_or_default()
    }
}

/// A line of all that an event tells.
#[derive(Default)]
struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        write!(self.0, "{}={value:?} ", field.name()).unwrap();
    }
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::WARN
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        self.0.lock().push(line.0);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}
