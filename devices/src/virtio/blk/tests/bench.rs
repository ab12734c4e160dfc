//! A virtio disk on a bench: a stamped file under `raw` under `blkdebug`, and a driver for its
//! rings.
//!
//! Everything runs in the test's own loop, so nothing happens between two turns. Waiting is for
//! events; a test that waits in vain fails instead of hanging.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_aio::{AioContext, Clock, EventLoop, LoopConfig};
use sluice_block::driver::DebugEvent;
use sluice_block::{Backend, BlockEvent, BlockdevOptions, EventSink, Graph, Node, Section};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};

use crate::virtio::blk::layout::{RequestStatus, request_type};
use crate::virtio::testing::{Buffer, Driver, Guest, NEXT, WRITE};
use crate::virtio::{VirtioBlk, VirtioBlkConfig};

/// Sectors of the disk.
pub(super) const SECTORS: u64 = 2048;
pub(super) const SECTOR: usize = 512;
/// What a status byte is before the device writes it.
pub(super) const UNTOUCHED: u8 = 0xee;

/// After this a test that waits in vain fails instead of hanging.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest sleep between two looks.
const SLICE: Duration = Duration::from_millis(10);

struct NoEvents;

impl EventSink for NoEvents {
    fn emit(&self, _event: BlockEvent) {}
}

/// What a sector holds at first.
pub(super) fn stamp(sector: u64) -> Vec<u8> {
    (sector | 0xa5 << 32).to_le_bytes().repeat(SECTOR / 8)
}

pub(super) struct Bench {
    /// First, so that the loop ends before what its tasks use.
    pub(super) event_loop: EventLoop,
    pub(super) graph: Arc<Graph>,
    pub(super) node: Arc<Node>,
    pub(super) backend: Arc<Backend>,
    file: File,
    _directory: tempfile::TempDir,
}

impl Bench {
    pub(super) fn new() -> (Self, Guest) {
        Self::with("", |_| {})
    }

    /// With further options of `blkdebug` (JSON members) and changes to the disk's configuration.
    pub(super) fn with(options: &str, configure: impl Fn(&mut VirtioBlkConfig)) -> (Self, Guest) {
        let event_loop = EventLoop::new("main", &LoopConfig::default()).unwrap();
        let context = event_loop.context();
        Self::served_by(event_loop, context, options, configure)
    }

    /// With a disk of `len` bytes, of which only the first sectors are stamped.
    pub(super) fn grown_to(len: u64) -> (Self, Guest) {
        let event_loop = EventLoop::new("main", &LoopConfig::default()).unwrap();
        let context = event_loop.context();
        Self::assemble(event_loop, context, "", |_| {}, len)
    }

    /// With queues served by another loop.
    pub(super) fn served_by(
        event_loop: EventLoop,
        context: AioContext,
        options: &str,
        configure: impl Fn(&mut VirtioBlkConfig),
    ) -> (Self, Guest) {
        let len = SECTORS * SECTOR as u64;
        Self::assemble(event_loop, context, options, configure, len)
    }

    fn assemble(
        mut event_loop: EventLoop,
        context: AioContext,
        options: &str,
        configure: impl Fn(&mut VirtioBlkConfig),
        len: u64,
    ) -> (Self, Guest) {
        let graph = Graph::new(Arc::new(NoEvents), Clock::real());
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .unwrap();
        let stamps: Vec<u8> = (0..SECTORS).flat_map(stamp).collect();
        file.write_all_at(&stamps, 0).unwrap();
        file.set_len(len).unwrap();
        let options: BlockdevOptions = serde_json::from_str(&format!(
            r#"{{ "driver": "blkdebug", "node-name": "disk", "discard": "unmap", {options}
                  "image": {{ "driver": "raw", "file": {{ "driver": "file", "filename": {path:?} }} }} }}"#
        ))
        .unwrap();
        let adding = Arc::clone(&graph);
        let node = event_loop.run_until(async move { adding.add_node(&options).await });
        let node = node.unwrap().unwrap();
        let backend = graph.add_backend("virtio0", &node).unwrap();
        let mut settings = VirtioBlkConfig::new(Arc::clone(&backend), context);
        settings.queue_size = 8;
        settings.serial = "bench".to_owned();
        configure(&mut settings);
        let blk = VirtioBlk::new(settings).unwrap();
        let guest = Guest::new(blk);
        let bench = Self {
            event_loop,
            graph,
            node,
            backend,
            file,
            _directory: directory,
        };
        (bench, guest)
    }

    /// Takes turns until `done`.
    pub(super) fn until(&mut self, what: &str, mut done: impl FnMut() -> bool) {
        let began = Instant::now();
        while !done() {
            assert!(began.elapsed() < PATIENCE, "waited in vain for {what}");
            // A turn may do its work and then sleep: not for long, then.
            self.event_loop.turn(Some(SLICE)).unwrap();
        }
    }

    /// Takes one turn, which waits for what is sure to come.
    pub(super) fn turn(&mut self) {
        self.event_loop.turn(None).unwrap();
    }

    /// Takes turns until nothing is left to do and no request is in flight.
    pub(super) fn quiesce(&mut self) {
        self.quiesce_beside(0);
    }

    /// The same beside requests that a breakpoint holds.
    pub(super) fn quiesce_beside(&mut self, held: usize) {
        const TURNS: usize = 20;
        let gate = self.backend.gate().clone();
        for _ in 0..TURNS {
            self.event_loop.turn(Some(Duration::ZERO)).unwrap();
        }
        self.until("the end of what is in flight", || gate.in_flight() <= held);
        for _ in 0..TURNS {
            self.event_loop.turn(Some(Duration::ZERO)).unwrap();
        }
    }

    pub(super) fn sector(&self, sector: u64) -> Vec<u8> {
        let mut bytes = vec![0; SECTOR];
        self.file
            .read_exact_at(&mut bytes, sector * SECTOR as u64)
            .unwrap();
        bytes
    }

    pub(super) fn drain(&mut self) -> Section {
        let (graph, node) = (Arc::clone(&self.graph), Arc::clone(&self.node));
        self.event_loop
            .run_until(async move { graph.drain(&node, "test").await })
            .unwrap()
    }

    /// The next such event at the disk will be held.
    pub(super) fn hold(&self, event: DebugEvent) {
        self.node
            .as_blkdebug()
            .unwrap()
            .set_break(event, "held")
            .unwrap();
    }

    pub(super) fn wait_held(&mut self) {
        let node = Arc::clone(&self.node);
        let waiting = async move { node.as_blkdebug().unwrap().wait_break("held").await };
        self.event_loop.run_until(waiting).unwrap().unwrap();
    }

    pub(super) fn release(&self) {
        self.node.as_blkdebug().unwrap().resume("held").unwrap();
    }
}

/// A request laid out in the guest's memory: slot N has its own header, data and status.
#[derive(Clone, Copy)]
pub(super) struct Slot(pub(super) u64);

impl Slot {
    const BASE: u64 = 0x10_0000;
    const STRIDE: u64 = 0x1_0000;

    pub(super) fn header(self) -> u64 {
        Self::BASE + self.0 * Self::STRIDE
    }

    pub(super) fn data(self) -> u64 {
        self.header() + 0x1000
    }

    pub(super) fn status_address(self) -> u64 {
        self.header() + 0x100
    }

    pub(super) fn write_header(self, guest: &Guest, kind: u32, sector: u64) {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        guest
            .memory
            .write_slice(&header, GuestAddress(self.header()))
            .unwrap();
        guest
            .memory
            .write_obj(UNTOUCHED, GuestAddress(self.status_address()))
            .unwrap();
    }

    pub(super) fn status(self, guest: &Guest) -> u8 {
        guest
            .memory
            .read_obj(GuestAddress(self.status_address()))
            .unwrap()
    }

    pub(super) fn write_data(self, guest: &Guest, data: &[u8]) {
        guest
            .memory
            .write_slice(data, GuestAddress(self.data()))
            .unwrap();
    }

    pub(super) fn read_data(self, guest: &Guest, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        guest
            .memory
            .read_slice(&mut data, GuestAddress(self.data()))
            .unwrap();
        data
    }

    /// The usual three buffers.
    pub(super) fn buffers(self, len: usize, to_guest: bool) -> Vec<Buffer> {
        let len = u32::try_from(len).unwrap();
        let mut buffers = vec![(self.header(), 16, false)];
        if len > 0 {
            buffers.push((self.data(), len, to_guest));
        }
        buffers.push((self.status_address(), 1, true));
        buffers
    }
}

/// Makes a request of `len` bytes of the slot's data available, without ringing.
pub(super) fn add(driver: &mut Driver<'_>, slot: Slot, kind: u32, sector: u64, len: usize) -> u16 {
    slot.write_header(driver.guest, kind, sector);
    let to_guest = matches!(kind, request_type::IN | request_type::GET_ID);
    driver.add(&slot.buffers(len, to_guest))
}

/// Makes a write available, without ringing.
pub(super) fn add_write(driver: &mut Driver<'_>, slot: Slot, sector: u64, data: &[u8]) -> u16 {
    slot.write_data(driver.guest, data);
    add(driver, slot, request_type::OUT, sector, data.len())
}

/// Makes a request available that takes a single descriptor of the ring, which then has room for as many as
/// it has entries; without ringing.
pub(super) fn add_indirect(
    driver: &mut Driver<'_>,
    slot: Slot,
    kind: u32,
    sector: u64,
    len: usize,
) -> u16 {
    slot.write_header(driver.guest, kind, sector);
    let to_guest = matches!(kind, request_type::IN | request_type::GET_ID);
    let buffers = slot.buffers(len, to_guest);
    let table = slot.header() + 0x800;
    for (at, &(address, len, writable)) in (0_u16..).zip(&buffers) {
        let last = usize::from(at) + 1 == buffers.len();
        let flags = if last { 0 } else { NEXT } | if writable { WRITE } else { 0 };
        let descriptor = Descriptor::new(address, len, flags, at + 1);
        let place = GuestAddress(table + 16 * u64::from(at));
        driver.guest.memory.write_obj(descriptor, place).unwrap();
    }
    let len = u32::try_from(16 * buffers.len()).unwrap();
    driver.add_table(table, len)
}

/// Runs one request to its end; returns its status and the used length.
pub(super) fn run(
    bench: &mut Bench,
    driver: &mut Driver<'_>,
    kind: u32,
    sector: u64,
    len: usize,
) -> (u8, u32) {
    let slot = Slot(0);
    let head = add(driver, slot, kind, sector, len);
    driver.kick();
    let mut used = None;
    bench.until("a request", || {
        used = driver.take_used();
        used.is_some()
    });
    let (answered, written) = used.unwrap();
    assert_eq!(answered, head);
    (slot.status(driver.guest), written)
}

pub(super) const OK: u8 = RequestStatus::Ok as u8;
pub(super) const IO_ERROR: u8 = RequestStatus::IoError as u8;
pub(super) const UNSUPPORTED: u8 = RequestStatus::Unsupported as u8;
