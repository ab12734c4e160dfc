//! A controller on a bench: one disk of [`SECTORS`] stamped sectors as primary master, a second one as primary slave if
//! asked for, and nothing on the secondary channel.
//!
//! The disk is a file under `raw` under `blkdebug`, so that a test can hold a request at the node. Waiting is for events:
//! a turn of the loop sleeps until something happens.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use sluice_aio::{AioContext, Clock, EventLoop, Gate, GuestRam, LoopConfig};
use sluice_block::backend::Account;
use sluice_block::driver::DebugEvent;
use sluice_block::{Backend, BlockEvent, BlockdevOptions, EventSink, Graph, Node, Section};
use vm_memory::{Bytes, GuestAddress};

use super::posted::Posted;
use crate::bus::PioDevice;
use crate::ide::stats::{ChannelStats, DriveStats};
use crate::ide::{DriveConfig, IdeConfig, IdeController, IdeVariant};
use crate::irq::IrqLine;
use crate::pci::layout::offset;
use crate::pci::{BarIndex, PciFunction};

/// Sectors of a disk.
pub(super) const SECTORS: u64 = 4096;
pub(super) const SECTOR: usize = 512;

pub(super) const DATA: u16 = 0x1f0;
pub(super) const ERROR: u16 = 0x1f1;
pub(super) const FEATURES: u16 = 0x1f1;
pub(super) const COUNT: u16 = 0x1f2;
pub(super) const LBA_LOW: u16 = 0x1f3;
pub(super) const LBA_MID: u16 = 0x1f4;
pub(super) const LBA_HIGH: u16 = 0x1f5;
pub(super) const DEVICE: u16 = 0x1f6;
pub(super) const STATUS: u16 = 0x1f7;
pub(super) const COMMAND: u16 = 0x1f7;
pub(super) const CONTROL: u16 = 0x3f6;

pub(super) const LBA: u8 = 0x40;
pub(super) const SLAVE: u8 = 0x10;

pub(super) const ERR: u8 = 0x01;
pub(super) const DRQ: u8 = 0x08;
pub(super) const DSC: u8 = 0x10;
pub(super) const DRDY: u8 = 0x40;
pub(super) const BSY: u8 = 0x80;
pub(super) const ABRT: u8 = 0x04;

pub(super) const NIEN: u8 = 0x02;
pub(super) const SRST: u8 = 0x04;
pub(super) const HOB: u8 = 0x80;

pub(super) const BM_COMMAND: u64 = 0;
pub(super) const BM_STATUS: u64 = 2;
pub(super) const BM_TABLE: u64 = 4;
pub(super) const BM_START: u8 = 0x01;
pub(super) const BM_TO_MEMORY: u8 = 0x08;
pub(super) const ACTIVE: u8 = 0x01;
pub(super) const BM_ERROR: u8 = 0x02;
pub(super) const INTERRUPT: u8 = 0x04;

/// Where the bench puts descriptor tables and data.
pub(super) const TABLE: u32 = 0x1000;
pub(super) const BUFFER: u32 = 0x1_0000;
/// End of table.
pub(super) const EOT: u32 = 0x8000_0000;

/// Longer than any test needs: one that waits in vain fails instead of hanging.
const PATIENCE: Duration = Duration::from_secs(30);

/// Remembers the level and counts edges.
#[derive(Default)]
pub(super) struct Line {
    level: Mutex<bool>,
    edges: AtomicUsize,
    /// A gate to be looked at when the line rises.
    watched: Mutex<Option<Gate>>,
    in_flight: AtomicUsize,
}

impl Line {
    /// Looks at `gate` whenever the line rises.
    pub(super) fn watch(&self, gate: Gate) {
        *self.watched.lock() = Some(gate);
    }

    /// Requests in flight when the line rose last.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::SeqCst)
    }

    pub(super) fn is_high(&self) -> bool {
        *self.level.lock()
    }

    /// Rising edges so far.
    pub(super) fn edges(&self) -> usize {
        self.edges.load(Ordering::SeqCst)
    }
}

impl IrqLine for Line {
    fn set(&self, level: bool) {
        let before = std::mem::replace(&mut *self.level.lock(), level);
        if level && !before {
            self.edges.fetch_add(1, Ordering::SeqCst);
            if let Some(gate) = &*self.watched.lock() {
                self.in_flight.store(gate.in_flight(), Ordering::SeqCst);
            }
        }
    }
}

struct NoEvents;

impl EventSink for NoEvents {
    fn emit(&self, _event: BlockEvent) {}
}

/// One disk: its file, and the node on top of it.
pub(super) struct Disk {
    file: File,
    pub(super) node: Arc<Node>,
    pub(super) backend: Arc<Backend>,
}

impl Disk {
    /// A sector of the file.
    pub(super) fn sector(&self, lba: u64) -> Vec<u8> {
        let mut bytes = vec![0; SECTOR];
        self.file
            .read_exact_at(&mut bytes, lba * SECTOR as u64)
            .unwrap();
        bytes
    }

    /// Reads, writes and TRIMs of what the disk does not have; none of it has failed otherwise.
    pub(super) fn invalid(&self) -> [u64; 3] {
        [Account::Read, Account::Write, Account::Unmap].map(|kind| {
            let counters = self.backend.stats().of(kind);
            assert_eq!(counters.failed.load(Ordering::Relaxed), 0);
            counters.invalid.load(Ordering::Relaxed)
        })
    }

    /// Whether every sector is as it was made.
    pub(super) fn is_untouched(&self) -> bool {
        let expected = image();
        let mut bytes = vec![0; expected.len()];
        self.file.read_exact_at(&mut bytes, 0).unwrap();
        bytes == expected
    }
}

/// What a sector holds at first.
pub(super) fn stamp(lba: u64) -> Vec<u8> {
    lba.to_le_bytes().repeat(SECTOR / 8)
}

/// A whole disk of stamps.
fn image() -> Vec<u8> {
    let sectors: Vec<_> = (0..SECTORS).map(stamp).collect();
    sectors.concat()
}

pub(super) struct Bench {
    /// First, so that the loop ends before what its tasks use.
    event_loop: EventLoop,
    graph: Arc<Graph>,
    pub(super) disks: Vec<Disk>,
    pub(super) ide: Arc<IdeController>,
    pub(super) memory: Arc<GuestRam>,
    /// The lines of both channels.
    pub(super) lines: [Arc<Line>; 2],
    /// What was stored and has not come to the controller.
    pub(super) posted: Arc<Posted>,
    _directory: tempfile::TempDir,
}

impl Bench {
    /// One disk.
    pub(super) fn new() -> Self {
        Self::with(1, "", |_| {})
    }

    /// `count` disks on the primary channel, with further options of `blkdebug` (JSON members) and changes to the drives' configuration.
    pub(super) fn with(count: usize, blkdebug: &str, configure: impl Fn(&mut DriveConfig)) -> Self {
        let mut event_loop = EventLoop::new("main", &LoopConfig::default()).unwrap();
        let graph = Graph::new(Arc::new(NoEvents), Clock::real());
        let directory = tempfile::tempdir().unwrap();
        let disks: Vec<Disk> = (0..count)
            .map(|index| {
                let path = directory.path().join(format!("disk{index}"));
                let file = File::options()
                    .read(true)
                    .write(true)
                    .create_new(true)
                    .open(&path)
                    .unwrap();
                file.write_all_at(&image(), 0).unwrap();
                let options: BlockdevOptions = serde_json::from_str(&format!(
                    r#"{{ "driver": "blkdebug", "node-name": "disk{index}", "discard": "unmap", {blkdebug}
                          "image": {{ "driver": "raw", "file": {{
                            "driver": "file", "filename": {path:?} }} }} }}"#
                ))
                .unwrap();
                let adding = Arc::clone(&graph);
                let node = event_loop
                    .run_until(async move { adding.add_node(&options).await })
                    .unwrap()
                    .unwrap();
                let backend = graph.add_backend(&format!("ide0-{index}"), &node).unwrap();
                Disk {
                    file,
                    node,
                    backend,
                }
            })
            .collect();
        let lines = [Arc::new(Line::default()), Arc::new(Line::default())];
        let posted = Arc::new(Posted::default());
        let memory = GuestRam::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap();
        let memory = Arc::new(memory);
        let drive = |index: usize| {
            let disk = disks.get(index)?;
            let mut drive = DriveConfig::new(Arc::clone(&disk.backend));
            configure(&mut drive);
            Some(drive)
        };
        let ide = IdeController::new(&IdeConfig {
            memory: Arc::clone(&memory),
            context: event_loop.context(),
            irq: [lines[0].clone(), lines[1].clone()],
            posted: posted.clone(),
            variant: IdeVariant::Piix3,
            drives: [[drive(0), drive(1)], [None, None]],
        })
        .unwrap();
        posted.connect(&ide);
        let bench = Self {
            event_loop,
            graph,
            disks,
            ide,
            memory,
            lines,
            posted,
            _directory: directory,
        };
        bench.set_pci_command(0x5);
        bench
    }

    /// The graph, for what the operator does.
    pub(super) fn graph(&self) -> Arc<Graph> {
        Arc::clone(&self.graph)
    }

    /// Ends the loop that serves the disks.
    pub(super) fn end_loop(&mut self) {
        self.event_loop = EventLoop::new("other", &LoopConfig::default()).unwrap();
    }

    /// The loop's handle.
    pub(super) fn context(&self) -> AioContext {
        self.event_loop.context()
    }

    /// Writes the PCI command register: bit 0 I/O, bit 2 bus master.
    pub(super) fn set_pci_command(&self, value: u8) {
        self.ide.write_config(offset::COMMAND, &[value]);
    }

    pub(super) fn inb(&self, port: u16) -> u8 {
        let mut byte = [0];
        self.ide.read(port, &mut byte);
        byte[0]
    }

    pub(super) fn outb(&self, port: u16, value: u8) {
        self.ide.write(port, &[value]);
    }

    /// Alternate status: reading it changes nothing.
    pub(super) fn status(&self) -> u8 {
        self.inb(CONTROL)
    }

    pub(super) fn is_interrupted(&self) -> bool {
        self.lines[0].is_high()
    }

    /// The primary channel's counters.
    pub(super) fn stats(&self) -> ChannelStats {
        self.ide.stats()[0]
    }

    pub(super) fn drive_stats(&self) -> DriveStats {
        self.stats().drives[0].unwrap()
    }

    /// Runs the loop until `condition` holds.
    pub(super) fn wait(&mut self, condition: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition(self) {
            // What is ready may be all that is waited for: no sleep before it is done.
            self.idle_turns();
            if condition(self) {
                break;
            }
            let waited_in_vain = Instant::now() > deadline;
            assert!(!waited_in_vain, "status {:#x}", self.status());
            self.event_loop.turn(Some(PATIENCE)).unwrap();
        }
    }

    /// The same for what is sure to come, without anything besides.
    pub(super) fn turn_until(&mut self, condition: impl Fn(&Self) -> bool) {
        while !condition(self) {
            self.event_loop.turn(None).unwrap();
        }
    }

    /// Runs the loop until the channel is not busy, without anything besides.
    pub(super) fn turn_until_ready(&mut self) {
        self.turn_until(|bench| bench.status() & BSY == 0);
    }

    /// Runs the loop until the channel is not busy.
    pub(super) fn wait_ready(&mut self) {
        self.wait(|bench| bench.status() & BSY == 0);
    }

    /// Runs the loop until a request is parked.
    pub(super) fn wait_parked(&mut self) {
        self.wait(|bench| bench.stats().parked_now);
    }

    /// Lets the loop do whatever it could do now.
    pub(super) fn idle_turns(&mut self) {
        for _ in 0..16 {
            self.event_loop.turn(Some(Duration::ZERO)).unwrap();
        }
    }

    /// Lets the loop do whatever it could do now, and to the end: nothing is in flight afterwards.
    pub(super) fn quiesce(&mut self) {
        self.idle_turns();
        let gate = self.disks[0].backend.gate().clone();
        self.run(async move { gate.wait_idle().await });
    }

    /// Runs a future to its end in the loop.
    pub(super) fn run<T: 'static>(&mut self, future: impl Future<Output = T> + 'static) -> T {
        self.event_loop.run_until(future).unwrap()
    }

    /// Drains the first disk.
    pub(super) fn drain(&mut self) -> Section {
        let graph = Arc::clone(&self.graph);
        let node = Arc::clone(&self.disks[0].node);
        self.run(async move { graph.drain(&node, "test").await })
    }

    /// The operator opens the tray of the first drive and takes the medium out.
    pub(super) fn eject(&mut self) {
        let graph = Arc::clone(&self.graph);
        let backend = Arc::clone(&self.disks[0].backend);
        self.run(async move { graph.eject(&backend, false).await })
            .unwrap();
    }

    /// The operator puts the first node into the first drive, whose tray is open.
    pub(super) fn insert(&mut self) {
        let graph = Arc::clone(&self.graph);
        let backend = Arc::clone(&self.disks[0].backend);
        let node = Arc::clone(&self.disks[0].node);
        self.run(async move { graph.insert_medium(&backend, &node).await })
            .unwrap();
    }

    /// Holds the next request of this kind at the first disk's node.
    pub(super) fn hold(&self, event: DebugEvent) {
        let blkdebug = self.disks[0].node.as_blkdebug().unwrap();
        blkdebug.set_break(event, "held").unwrap();
    }

    /// Runs the loop until the request to be held has arrived.
    pub(super) fn wait_held(&mut self) {
        let node = Arc::clone(&self.disks[0].node);
        self.run(async move { node.as_blkdebug().unwrap().wait_break("held").await })
            .unwrap();
    }

    /// Lets the held request go.
    pub(super) fn release(&self) {
        let blkdebug = self.disks[0].node.as_blkdebug().unwrap();
        blkdebug.resume("held").unwrap();
    }

    /// Sets a 28-bit address and count on device 0.
    pub(super) fn address28(&self, lba: u32, count: u8) {
        let [low, mid, high, head] = lba.to_le_bytes();
        self.outb(DEVICE, LBA | head);
        self.outb(COUNT, count);
        self.outb(LBA_LOW, low);
        self.outb(LBA_MID, mid);
        self.outb(LBA_HIGH, high);
    }

    /// Sets a 48-bit address and count on device 0.
    pub(super) fn address48(&self, lba: u64, count: u16) {
        let [a, b, c, d, e, f, ..] = lba.to_le_bytes();
        let [count_low, count_high] = count.to_le_bytes();
        self.outb(DEVICE, LBA);
        for (port, previous, current) in [
            (COUNT, count_high, count_low),
            (LBA_LOW, d, a),
            (LBA_MID, e, b),
            (LBA_HIGH, f, c),
        ] {
            self.outb(port, previous);
            self.outb(port, current);
        }
    }

    /// Gives a command without an address and reads back the outcome once it is over.
    pub(super) fn simple(&mut self, command: u8) -> u8 {
        self.outb(COMMAND, command);
        self.wait_ready();
        self.inb(STATUS)
    }

    /// Reads a block of `sectors` sectors from the data register.
    pub(super) fn read_block(&self, sectors: usize) -> Vec<u8> {
        let mut block = vec![0; sectors * SECTOR];
        self.ide.read_string(DATA, 2, &mut block);
        block
    }

    /// Writes a block to the data register.
    pub(super) fn write_block(&self, block: &[u8]) {
        self.ide.write_string(DATA, 2, block);
    }

    pub(super) fn bm_read(&self, offset: u64) -> u8 {
        let mut byte = [0];
        self.ide.bar_read(BarIndex::BAR4, offset, &mut byte);
        byte[0]
    }

    pub(super) fn bm_write(&self, offset: u64, value: u8) {
        self.ide.bar_write(BarIndex::BAR4, offset, &[value]);
    }

    /// Writes a descriptor table and tells the bus master of it.
    pub(super) fn set_table(&self, entries: &[(u32, u32)]) {
        for (at, (base, count)) in (GuestAddress(TABLE.into()).0..).step_by(8).zip(entries) {
            let raw = u64::from(*base) | u64::from(*count) << 32;
            self.memory
                .write_slice(&raw.to_le_bytes(), GuestAddress(at))
                .unwrap();
        }
        self.ide
            .bar_write(BarIndex::BAR4, BM_TABLE, &TABLE.to_le_bytes());
    }

    /// Gives a DMA command and starts the bus master; does not wait.
    pub(super) fn start_dma(&self, command: u8) {
        self.bm_write(BM_COMMAND, 0);
        self.bm_write(BM_STATUS, INTERRUPT | BM_ERROR);
        self.outb(COMMAND, command);
        self.bm_write(BM_COMMAND, BM_START | BM_TO_MEMORY);
    }

    pub(super) fn fill_memory(&self, at: u32, bytes: &[u8]) {
        self.memory
            .write_slice(bytes, GuestAddress(at.into()))
            .unwrap();
    }

    pub(super) fn memory_at(&self, at: u32, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory
            .read_slice(&mut bytes, GuestAddress(at.into()))
            .unwrap();
        bytes
    }
}
