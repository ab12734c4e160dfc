//! Interrupts as devices see them: a line with a level, and a message-signalled vector.
//!
//! The machine implements these on KVM's in-kernel interrupt controllers, or on the qtest
//! server's recorder; devices know neither.

mod wire;

pub(crate) use self::wire::{LineChanges, Wire};

use std::sync::Arc;

use parking_lot::Mutex;
use thiserror::Error;

/// Why no interrupt could be had.
#[derive(Debug, Error)]
pub enum IrqError {
    /// Every vector of the machine is taken.
    #[error("the machine has no message-signalled interrupt vector left (limit {limit})")]
    Exhausted {
        /// How many vectors the machine has.
        limit: usize,
    },
    /// The host refused to make the vector.
    #[error("the host cannot provide a message-signalled interrupt: {0}")]
    Host(#[from] std::io::Error),
}

/// One input of the interrupt controller. Any thread.
pub trait IrqLine: Send + Sync {
    /// Drives the input. Setting the level it already has does nothing.
    fn set(&self, level: bool);
}

/// An input that several devices drive: it is asserted while *any* of them asserts its end. Nobody waits for the input
/// to be driven whose own end changes nothing of it. Any thread.
pub struct SharedLine {
    input: Wire,
    ends: Mutex<Ends>,
}

/// What the ends of a line come to.
#[derive(Default)]
struct Ends {
    /// How many assert.
    asserting: usize,
    changes: LineChanges,
}

/// A device's end of a shared line. Dropping it lets go.
struct End {
    line: Arc<SharedLine>,
    level: Mutex<bool>,
}

impl SharedLine {
    /// A line that nobody drives yet.
    #[must_use]
    pub fn new(input: Arc<dyn IrqLine>) -> Arc<Self> {
        Arc::new(Self {
            input: Wire::new(input),
            ends: Mutex::default(),
        })
    }

    /// A new end.
    pub fn end(self: &Arc<Self>) -> Arc<dyn IrqLine> {
        Arc::new(End {
            line: Arc::clone(self),
            level: Mutex::new(false),
        })
    }
}

impl IrqLine for End {
    fn set(&self, level: bool) {
        let changes = {
            let mut own = self.level.lock();
            if *own == level {
                return;
            }
            *own = level;
            let mut ends = self.line.ends.lock();
            if level {
                ends.asserting += 1;
            } else {
                ends.asserting -= 1;
            }
            if ends.changes.level() != (ends.asserting > 0) {
                ends.changes.flip();
            }
            ends.changes
        };
        self.line.input.follow(changes);
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.set(false);
    }
}

/// One message-signalled interrupt vector (an MSI or MSI-X entry). Any thread.
pub trait MsiVector: Send + Sync {
    /// Sets the message (PCI Local Bus 3.0 §6.8.1: address and data) that the vector sends and
    /// whether it may. Takes effect before it returns. A masked vector sends nothing: the
    /// *pending* bit is kept by the caller, which triggers again after unmasking.
    fn configure(&self, address: u64, data: u32, masked: bool);

    /// Sends the message. One eventfd write under KVM; never waits.
    fn trigger(&self);
}

/// Hands out message-signalled vectors. Any thread.
pub trait MsiController: Send + Sync {
    /// A new vector, masked until configured; it is given back when the last reference is dropped.
    ///
    /// # Errors
    /// [`IrqError`] when the machine or the host has none left.
    fn allocate(&self) -> Result<Arc<dyn MsiVector>, IrqError>;
}
