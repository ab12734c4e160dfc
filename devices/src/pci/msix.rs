//! MSI-X: the table and the pending bits of a function, over the machine's vectors.
//!
//! [`Msix::trigger`] is called from any thread and takes no lock: one look at a flag, then the
//! vector. The guest's table accesses come from vCPU threads and take one.
//!
//! # No message is lost when a vector is masked
//! The trigger and the mask race. Masking only sets a flag: the vector stays armed, so a message
//! that is on its way then arrives, as it would from hardware (and the machine's routing is left
//! alone). Unmasking configures the vector, clears the flag, *then* looks at the pending bit. A
//! trigger that finds the flag set leaves the pending bit and looks at the flag again. So whichever
//! comes last sees the other; at worst both send, and drivers bear a spurious message.
//!
//! Source: PCI Local Bus Specification 3.0, sections 6.8.2 and 6.8.3.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::{BarIndex, PciError};
use crate::irq::{MsiController, MsiVector};

/// Most vectors a table can have (section 6.8.2.3: the size field has 11 bits).
pub const MAX_VECTORS: usize = 2048;
/// Bytes of a table entry.
const ENTRY_LEN: usize = 16;
/// Offset of the vector control word in an entry.
const VECTOR_CONTROL: usize = 12;
/// Vector control bit: masked. The other bits are reserved.
const VECTOR_MASKED: u8 = 1;
/// The low address bits that must be zero and are read-only here.
const ADDRESS_LOW_BITS: u8 = 0b11;

/// Length of the capability after its two header bytes.
pub const CAPABILITY_BODY_LEN: usize = 10;
/// Offset of the message control word from the capability's start.
pub const CONTROL_OFFSET: usize = 2;

bitflags::bitflags! {
    /// The writable bits of the message control word (section 6.8.2.3).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct MessageControl: u16 {
        /// All vectors are masked.
        const FUNCTION_MASK = 1 << 14;
        /// MSI-X is in use and INTx is not.
        const ENABLE = 1 << 15;
    }
}

/// A vector and what a trigger needs to know of it.
struct Entry {
    vector: Arc<dyn MsiVector>,
    masked: AtomicBool,
    pending: AtomicBool,
}

/// What the guest wrote.
struct Table {
    bytes: Vec<u8>,
    /// The message each vector is configured with.
    armed: Vec<Option<(u64, u32)>>,
    /// No vector may send: disabled, function masked, or not a bus master.
    silenced: bool,
}

/// The MSI-X state of one function.
pub struct Msix {
    entries: Box<[Entry]>,
    enabled: AtomicBool,
    table: Mutex<Table>,
}

impl Msix {
    /// A table of `count` vectors (at most [`MAX_VECTORS`]), all masked. Without any there can be no
    /// capability.
    pub fn new(controller: &dyn MsiController, count: usize) -> Result<Self, PciError> {
        if count > MAX_VECTORS {
            return Err(PciError::VectorCount(count));
        }
        let entries = (0..count)
            .map(|_| {
                let vector = controller.allocate().map_err(PciError::Vector)?;
                Ok(Entry {
                    vector,
                    masked: AtomicBool::new(true),
                    pending: AtomicBool::new(false),
                })
            })
            .collect::<Result<_, PciError>>()?;
        let table = Table {
            bytes: power_on_table(count),
            armed: vec![None; count],
            silenced: true,
        };
        Ok(Self {
            entries,
            enabled: AtomicBool::new(false),
            table: Mutex::new(table),
        })
    }

    /// How many vectors there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no vectors.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes that the table takes in a BAR.
    pub fn table_len(&self) -> u64 {
        (self.entries.len() * ENTRY_LEN) as u64
    }

    /// Bytes that the pending bits take in a BAR: whole 64-bit words.
    pub fn pending_len(&self) -> u64 {
        (self.entries.len().div_ceil(64) * 8) as u64
    }

    /// The capability's bytes and the mask of its writable bits, with table and pending bits at the
    /// given offsets (multiples of 8, below 4 GiB) of `bar`.
    pub fn capability(
        &self,
        bar: BarIndex,
        table_offset: u32,
        pending_offset: u32,
    ) -> ([u8; CAPABILITY_BODY_LEN], [u8; CAPABILITY_BODY_LEN]) {
        let mut body = [0; CAPABILITY_BODY_LEN];
        let mut writable = [0; CAPABILITY_BODY_LEN];
        // `new` checked that the count fits the size field.
        let last = u16::try_from(self.entries.len().saturating_sub(1)).unwrap_or(u16::MAX);
        body[..2].copy_from_slice(&last.to_le_bytes());
        body[2..6].copy_from_slice(&(table_offset | u32::from(bar.number())).to_le_bytes());
        body[6..10].copy_from_slice(&(pending_offset | u32::from(bar.number())).to_le_bytes());
        writable[..2].copy_from_slice(&MessageControl::all().bits().to_le_bytes());
        (body, writable)
    }

    /// Whether the guest uses MSI-X. Any thread, no lock.
    pub fn is_enabled(&self) -> bool {
        self.enabled.load(Ordering::Acquire)
    }

    /// The message control word or the bus master bit changed.
    pub fn update(&self, control: MessageControl, bus_master: bool) {
        let mut table = self.table.lock();
        let enabled = control.contains(MessageControl::ENABLE);
        self.enabled.store(enabled, Ordering::Release);
        table.silenced = !enabled || control.contains(MessageControl::FUNCTION_MASK) || !bus_master;
        for index in 0..self.entries.len() {
            self.apply(&mut table, index);
        }
        if !enabled {
            self.disarm(&mut table);
        }
    }

    /// Sends the message of a vector, or remembers that it should have been sent. Any thread, no
    /// lock. A number beyond the table (a guest's "no vector") does nothing.
    pub fn trigger(&self, index: u16) {
        let Some(entry) = self.entries.get(usize::from(index)) else {
            return;
        };
        if !entry.masked.load(Ordering::SeqCst) {
            entry.vector.trigger();
            return;
        }
        entry.pending.store(true, Ordering::SeqCst);
        if !entry.masked.load(Ordering::SeqCst) {
            entry.send_pending();
        }
    }

    /// Brings the vector of an entry in line with what the table says. A masked vector stays armed.
    fn apply(&self, table: &mut Table, index: usize) {
        let entry = &self.entries[index];
        let Some(message) = table.message(index) else {
            entry.masked.store(true, Ordering::SeqCst);
            return;
        };
        if table.armed[index] != Some(message) {
            table.armed[index] = Some(message);
            entry.vector.configure(message.0, message.1, false);
        }
        entry.masked.store(false, Ordering::SeqCst);
        entry.send_pending();
    }

    /// Takes the messages away from all vectors.
    fn disarm(&self, table: &mut Table) {
        for (entry, armed) in self.entries.iter().zip(&mut table.armed) {
            if armed.take().is_some() {
                entry.vector.configure(0, 0, true);
            }
        }
    }

    /// A read of the table, at an offset from its start.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        let table = self.table.lock();
        match byte_range(offset, data.len(), table.bytes.len()) {
            Some(range) => data.copy_from_slice(&table.bytes[range]),
            None => data.fill(0),
        }
    }

    /// A write of the table, at an offset from its start.
    pub fn write_table(&self, offset: u64, data: &[u8]) {
        let mut table = self.table.lock();
        let Some(range) = byte_range(offset, data.len(), table.bytes.len()) else {
            return;
        };
        for (at, &value) in range.clone().zip(data) {
            table.bytes[at] = match at % ENTRY_LEN {
                0 => value & !ADDRESS_LOW_BITS,
                VECTOR_CONTROL => value & VECTOR_MASKED,
                13..ENTRY_LEN => 0,
                _ => value,
            };
        }
        for index in range.start / ENTRY_LEN..range.end.div_ceil(ENTRY_LEN) {
            self.apply(&mut table, index);
        }
    }

    /// A read of the pending bits, at an offset from their start. They are read-only.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            *byte = (0..8).fold(0, |bits, bit| {
                let index = usize::try_from(at * 8 + bit).unwrap_or(usize::MAX);
                let entry = self.entries.get(index);
                let pending = entry.is_some_and(|entry| entry.pending.load(Ordering::SeqCst));
                bits | u8::from(pending) << bit
            });
        }
    }

    /// Back to power-on: disabled, all masked, nothing pending.
    pub fn reset(&self) {
        let mut table = self.table.lock();
        self.enabled.store(false, Ordering::Release);
        table.bytes = power_on_table(self.entries.len());
        table.silenced = true;
        for (index, entry) in self.entries.iter().enumerate() {
            self.apply(&mut table, index);
            entry.pending.store(false, Ordering::SeqCst);
        }
        self.disarm(&mut table);
    }
}

impl Entry {
    fn send_pending(&self) {
        if self.pending.swap(false, Ordering::SeqCst) {
            self.vector.trigger();
        }
    }
}

impl Table {
    /// Address and data of an entry, if it may send.
    fn message(&self, index: usize) -> Option<(u64, u32)> {
        let entry = self.bytes.get(index * ENTRY_LEN..(index + 1) * ENTRY_LEN)?;
        let address = u64::from_le_bytes(entry[..8].try_into().ok()?);
        let data = u32::from_le_bytes(entry[8..12].try_into().ok()?);
        let masked = self.silenced || entry[VECTOR_CONTROL] & VECTOR_MASKED != 0;
        (!masked).then_some((address, data))
    }
}

fn power_on_table(count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count * ENTRY_LEN];
    for entry in bytes.chunks_exact_mut(ENTRY_LEN) {
        entry[VECTOR_CONTROL] = VECTOR_MASKED;
    }
    bytes
}

/// An access as a range of indices, if it lies within `limit` bytes.
fn byte_range(offset: u64, len: usize, limit: usize) -> Option<Range<usize>> {
    let start = usize::try_from(offset).ok()?;
    let end = start.checked_add(len)?;
    (end <= limit).then_some(start..end)
}

#[cfg(test)]
mod tests;
