//! A split virtqueue as the device sees it: the only code that reads a guest's ring.
//!
//! Everything is read once and checked; what breaks the rules is a [`RingError`], after which the
//! device stops and asks for a reset rather than guess. Owned by the loop that serves the queue.
//!
//! Source: VIRTIO 1.2, section 2.7.

mod walk;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use sluice_aio::GuestRam;
use smallvec::SmallVec;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Address, Bytes, GuestAddress};

use self::walk::Walk;
use super::RingFeatures;

/// Available ring flag: the driver wants no interrupts (section 2.7.6; only without EVENT_IDX).
const AVAIL_NO_INTERRUPT: u16 = 1;

/// What a driver can do wrong with a ring.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// The ring's own fields: an index too far ahead, or memory that went away.
    #[error("the ring is not consistent")]
    Ring(#[from] virtio_queue::Error),
    /// A chain that loops, leaves the descriptor table, or has a broken indirect table.
    #[error("the chain at descriptor {0} does not end properly")]
    Endless(u16),
    /// A chain in a table of its own, of a driver that has not negotiated this (section 2.7.5.3.1).
    #[error("the chain at descriptor {0} is in a table, which the driver has not negotiated")]
    Table(u16),
    /// A chain with more descriptors than the queue may have.
    #[error("the chain at descriptor {head} goes on after {descriptors} descriptors")]
    TooLong {
        /// Its first descriptor.
        head: u16,
        /// How many descriptors of buffers have been read; no further one is.
        descriptors: u16,
    },
    /// A chain whose buffers have 4 GiB and more.
    #[error("the chain at descriptor {0} has 4 GiB or more")]
    TooLarge(u16),
    /// What was available is not any more: the available index has gone back.
    #[error("the available index has gone back")]
    Retreat,
    /// A buffer for the device to read after one for it to write.
    #[error("the chain at descriptor {0} has a readable buffer behind a writable one")]
    Order(u16),
    /// More chains in flight than the queue has entries.
    #[error("descriptors are made available again while they are in use")]
    Overcommitted,
    /// What a chain means to the kind of device.
    #[error("a request is malformed: {0}")]
    Request(&'static str),
    /// A buffer outside of memory.
    #[error("a request's buffer is not in memory")]
    Buffer(#[from] sluice_aio::buffer::BufferError),
}

/// A guest's buffer: address and length in bytes.
pub type Segment = (GuestAddress, usize);
/// Buffers of a chain; what most requests have fits without allocation, and others get the room of those
/// before them ([`Ring::recycle`]).
pub type Segments = SmallVec<[Segment; 4]>;

/// A chain taken from the ring: a value, read once.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// What identifies the chain in the used ring.
    pub head: u16,
    /// Buffers that the device reads.
    pub readable: Segments,
    /// Buffers that the device writes.
    pub writable: Segments,
}

/// A queue in service.
#[derive(Debug)]
pub struct Ring {
    queue: Queue,
    memory: Arc<GuestRam>,
    /// Chains may be in tables of their own.
    tables: bool,
    /// Chains popped and not pushed yet.
    in_flight: u16,
    /// A chain that was read, for the room in its lists.
    spare: Chain,
}

impl Ring {
    /// Takes over a queue that the driver has set up after it has negotiated `features`.
    pub fn new(queue: Queue, memory: Arc<GuestRam>, features: RingFeatures) -> Self {
        Self {
            queue,
            memory,
            tables: features.contains(RingFeatures::INDIRECT_DESC),
            in_flight: 0,
            spare: Chain::default(),
        }
    }

    /// The guest's memory.
    pub fn memory(&self) -> &Arc<GuestRam> {
        &self.memory
    }

    /// Number of entries.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// Whether [`Ring::pop`] would find something, be it a chain or an error. Changes nothing.
    pub fn has_available(&self) -> bool {
        let index = self.queue.avail_idx(&*self.memory, Ordering::Acquire);
        index.map_or(true, |index| index.0 != self.queue.next_avail())
    }

    /// Takes the next chain, if the driver has made one available.
    ///
    /// # Errors
    /// The driver broke the ring; it must not be used again.
    pub fn pop(&mut self) -> Result<Option<Chain>, RingError> {
        // Only its head is taken from the crate's chain, which follows tables unasked.
        let Some(chain) = self.queue.iter(&*self.memory)?.next() else {
            return Ok(None);
        };
        if self.in_flight >= self.queue.size() {
            return Err(RingError::Overcommitted);
        }
        let head = chain.head_index();
        let mut chain = std::mem::take(&mut self.spare);
        chain.head = head;
        chain.readable.clear();
        chain.writable.clear();
        let table = GuestAddress(self.queue.desc_table());
        let (size, limit) = (self.queue.size(), self.queue.max_size());
        let mut walk = Walk::new(&self.memory, table, size, head, limit, self.tables);
        while let Some(descriptor) = walk.next()? {
            let len = usize::try_from(descriptor.len()).map_err(|_| RingError::TooLarge(head))?;
            let segment = (descriptor.addr(), len);
            if descriptor.is_write_only() {
                chain.writable.push(segment);
            } else if chain.writable.is_empty() {
                chain.readable.push(segment);
            } else {
                return Err(RingError::Order(head));
            }
        }
        self.in_flight += 1;
        Ok(Some(chain))
    }

    /// Keeps the room that the lists of a popped chain have taken, for the next one.
    pub fn recycle(&mut self, chain: Chain) {
        self.spare = chain;
    }

    /// Gives a chain back, `written` bytes of whose writable buffers are valid.
    ///
    /// # Errors
    /// As [`Ring::pop`].
    pub fn push(&mut self, head: u16, written: u32) -> Result<(), RingError> {
        self.in_flight = self.in_flight.saturating_sub(1);
        Ok(self.queue.add_used(&*self.memory, head, written)?)
    }

    /// Whether the driver wants an interrupt for what was pushed since the last call.
    ///
    /// # Errors
    /// As [`Ring::pop`].
    pub fn wants_interrupt(&mut self) -> Result<bool, RingError> {
        // Also orders the used index before the reads that follow.
        let wanted = self.queue.needs_notification(&*self.memory)?;
        if self.queue.event_idx_enabled() {
            return Ok(wanted);
        }
        let flags = GuestAddress(self.queue.avail_ring());
        let flags: u16 = self
            .memory
            .load(flags, Ordering::Relaxed)
            .map_err(virtio_queue::Error::GuestMemory)?;
        Ok(u16::from_le(flags) & AVAIL_NO_INTERRUPT == 0)
    }

    /// Asks the driver not to ring while the ring is being looked at anyway.
    ///
    /// # Errors
    /// As [`Ring::pop`].
    pub fn disable_kicks(&mut self) -> Result<(), RingError> {
        Ok(self.queue.disable_notification(&*self.memory)?)
    }

    /// Asks the driver to ring again; true if chains came in before it could know, which nobody
    /// will ring for.
    ///
    /// # Errors
    /// As [`Ring::pop`].
    pub fn enable_kicks(&mut self) -> Result<bool, RingError> {
        Ok(self.queue.enable_notification(&*self.memory)?)
    }
}

/// A queue made of what a driver wrote into the registers.
///
/// # Errors
/// A size or an address that breaks the rules, or rings outside of memory.
pub(super) fn checked_queue(
    max_size: u16,
    size: u16,
    addresses: [u64; 3],
    event_idx: bool,
    memory: &GuestRam,
) -> Result<Queue, RingError> {
    let mut queue = Queue::new(max_size)?;
    let [descriptors, driver, device] = addresses.map(GuestAddress);
    queue.try_set_size(size)?;
    queue.try_set_desc_table_address(descriptors)?;
    queue.try_set_avail_ring_address(driver)?;
    queue.try_set_used_ring_address(device)?;
    queue.set_event_idx(event_idx);
    queue.set_ready(true);
    // The crate's own check leaves out the event fields behind the rings; an available ring at 0 it
    // takes for unset.
    let behind = |start: GuestAddress, entry: u64| {
        start.checked_add(EVENT_FIELD_OFFSET + entry * u64::from(size))
    };
    let ends = [
        behind(driver, AVAIL_ENTRY_LEN),
        behind(device, USED_ENTRY_LEN),
    ];
    let has_events = ends
        .iter()
        .all(|end| end.is_some_and(|at| memory.read_obj::<u16>(at).is_ok()));
    if driver.0 == 0 || !has_events || !queue.is_valid(memory) {
        return Err(RingError::Ring(virtio_queue::Error::QueueNotReady));
    }
    Ok(queue)
}

/// Bytes of a ring in front of its entries.
const EVENT_FIELD_OFFSET: u64 = 4;
/// Bytes of an available ring's entry.
const AVAIL_ENTRY_LEN: u64 = 2;
/// Bytes of a used ring's entry.
const USED_ENTRY_LEN: u64 = 8;

#[cfg(test)]
mod tests;
