//! A chain's descriptors, each read once.
//!
//! Source: VIRTIO 1.2, sections 2.7.5 and 2.7.5.3.

use sluice_aio::GuestRam;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Address, Bytes, GuestAddress};

use super::RingError;

/// Bytes of a descriptor.
const DESCRIPTOR_LEN: u32 = 16;

/// The way through a chain: in the queue's table, and from there perhaps into one of its own.
pub(super) struct Walk<'a> {
    memory: &'a GuestRam,
    head: u16,
    table: GuestAddress,
    /// Descriptors in `table`.
    entries: u32,
    next: Option<u16>,
    /// Bytes of the buffers so far.
    bytes: u32,
    /// Descriptors of buffers that have been read.
    descriptors: u16,
    /// The most that a chain may have.
    limit: u16,
    /// Whether the chain may have a table of its own.
    tables: bool,
    /// `table` is the chain's own.
    inside: bool,
}

impl<'a> Walk<'a> {
    /// The chain that begins at `head` of the queue's table, which has `entries`, and may have up to `limit`
    /// descriptors; `tables`: its driver has negotiated tables of chains' own.
    pub(super) fn new(
        memory: &'a GuestRam,
        table: GuestAddress,
        entries: u16,
        head: u16,
        limit: u16,
        tables: bool,
    ) -> Self {
        Self {
            memory,
            head,
            table,
            entries: entries.into(),
            next: Some(head),
            bytes: 0,
            descriptors: 0,
            limit,
            tables,
            inside: false,
        }
    }

    fn read(&self, index: u16) -> Result<Descriptor, RingError> {
        let offset = u64::from(index) * u64::from(DESCRIPTOR_LEN);
        let address = self.table.checked_add(offset);
        let address = address.filter(|_| u32::from(index) < self.entries);
        address
            .and_then(|address| self.memory.read_obj(address).ok())
            .ok_or(RingError::Endless(self.head))
    }

    /// The next descriptor of a buffer; none at the chain's end. A chain that loops ends as one that is too long.
    ///
    /// # Errors
    /// The chain is broken.
    pub(super) fn next(&mut self) -> Result<Option<Descriptor>, RingError> {
        let Some(index) = self.next else {
            return Ok(None);
        };
        if self.descriptors == self.limit {
            return Err(RingError::TooLong {
                head: self.head,
                descriptors: self.descriptors,
            });
        }
        let mut descriptor = self.read(index)?;
        if descriptor.refers_to_indirect_table() && !self.inside {
            self.enter(descriptor)?;
            descriptor = self.read(0)?;
        }
        if descriptor.refers_to_indirect_table() {
            return Err(RingError::Endless(self.head));
        }
        self.descriptors += 1;
        let bytes = self.bytes.checked_add(descriptor.len());
        self.bytes = bytes.ok_or(RingError::TooLarge(self.head))?;
        self.next = descriptor.has_next().then(|| descriptor.next());
        Ok(Some(descriptor))
    }

    /// Goes on in the table that a descriptor refers to, from which no way leads back.
    fn enter(&mut self, descriptor: Descriptor) -> Result<(), RingError> {
        if !self.tables {
            return Err(RingError::Table(self.head));
        }
        self.entries = descriptor.len() / DESCRIPTOR_LEN;
        if descriptor.has_next() || !descriptor.len().is_multiple_of(DESCRIPTOR_LEN) {
            return Err(RingError::Endless(self.head));
        }
        self.table = descriptor.addr();
        self.inside = true;
        Ok(())
    }
}
