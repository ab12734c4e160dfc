//! Stand-ins for the machine around a function, for this crate's tests.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::irq::IrqLine;

/// An interrupt line that remembers its level.
#[derive(Debug, Default)]
pub(crate) struct RecordedLine(AtomicBool);

impl RecordedLine {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    pub(crate) fn level(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

impl IrqLine for RecordedLine {
    fn set(&self, level: bool) {
        self.0.store(level, Ordering::SeqCst);
    }
}
