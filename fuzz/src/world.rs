//! What is around the devices: an event loop, a graph of disks that can hold a request, memory, interrupts.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use sluice_aio::{Clock, EventLoop, GuestRam, LoopConfig};
use sluice_block::backend::{Account, ErrorPolicy};
use sluice_block::driver::{DebugEvent, InjectError};
use sluice_block::job::OnError;
use sluice_block::{Backend, BlockEvent, BlockdevOptions, EventSink, Graph, Node, Section};
use sluice_devices::irq::{IrqError, IrqLine, MsiController, MsiVector};
use vm_memory::{Bytes as _, GuestAddress};

pub(crate) const SECTOR: usize = 512;
/// Sectors of every disk.
pub(crate) const SECTORS: u64 = 256;

/// The guest's memory: two pieces with a hole between them.
pub(crate) const RAM: [(u64, usize); 2] = [(0, 0x8_0000), (0x10_0000, 0x1_0000)];

/// How long what must end may take, on a machine that has much else to do.
const PATIENCE: Duration = Duration::from_secs(20);
/// Turns of the loop in which it does whatever it can do at once.
const TURNS: usize = 8;
/// The name of the breakpoint at which a disk holds a request.
const HELD: &str = "held";

/// An interrupt line that remembers its level.
#[derive(Debug, Default)]
pub(crate) struct Line(AtomicBool);

impl Line {
    pub(crate) fn is_high(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

impl IrqLine for Line {
    fn set(&self, level: bool) {
        self.0.store(level, Ordering::SeqCst);
    }
}

/// Vectors that nobody hears.
#[derive(Debug)]
pub(crate) struct Vectors;

impl MsiController for Vectors {
    fn allocate(&self) -> Result<Arc<dyn MsiVector>, IrqError> {
        Ok(Arc::new(Self))
    }
}

impl MsiVector for Vectors {
    fn configure(&self, _address: u64, _data: u32, _masked: bool) {}

    fn trigger(&self) {}
}

struct NoEvents;

impl EventSink for NoEvents {
    fn emit(&self, _event: BlockEvent) {}
}

/// One disk: its file, its node, its backend.
pub(crate) struct Disk {
    file: File,
    node: Arc<Node>,
    pub(crate) backend: Arc<Backend>,
    sections: Vec<Section>,
    holds: bool,
    /// A request was made to fail.
    fails: bool,
    /// The fewest sectors that it has had: all beyond them is new.
    kept: u64,
}

impl Disk {
    /// Whether every sector is as it was made.
    pub(crate) fn is_untouched(&self) -> bool {
        let len = self.file.metadata().unwrap().len();
        let mut bytes = vec![0; usize::try_from(len).unwrap()];
        self.file.read_exact_at(&mut bytes, 0).unwrap();
        let kept = usize::try_from(self.kept).unwrap() * SECTOR;
        bytes[..kept] == IMAGE[..kept] && bytes[kept..].iter().all(|byte| *byte == 0)
    }

    pub(crate) fn is_drained(&self) -> bool {
        !self.sections.is_empty()
    }

    /// What must hold at any time.
    fn check(&self) {
        if self.is_drained() {
            let in_flight = self.backend.gate().in_flight();
            assert_eq!(in_flight, 0, "a request runs inside a section");
        }
        if self.fails {
            return;
        }
        for kind in [
            Account::Read,
            Account::Write,
            Account::Flush,
            Account::Unmap,
        ] {
            let failed = &self.backend.stats().of(kind).failed;
            assert_eq!(
                failed.load(Ordering::Relaxed),
                0,
                "the host refused {kind:?}"
            );
        }
    }
}

/// The event at a node of a kind of requests.
fn event(kind: u8) -> DebugEvent {
    let events = [
        DebugEvent::ReadAio,
        DebugEvent::WriteAio,
        DebugEvent::FlushToDisk,
        DebugEvent::Pdiscard,
    ];
    events[usize::from(kind) % events.len()]
}

/// What a sector holds at first.
fn stamp(lba: u64) -> Vec<u8> {
    lba.to_le_bytes().repeat(SECTOR / size_of::<u64>())
}

/// A whole disk of stamps.
static IMAGE: LazyLock<Vec<u8>> = LazyLock::new(|| (0..SECTORS).flat_map(stamp).collect());

/// Where files are made: in memory, if the machine has a file system there.
fn scratch() -> PathBuf {
    let shared_memory = Path::new("/dev/shm");
    if shared_memory.is_dir() {
        shared_memory.to_owned()
    } else {
        std::env::temp_dir()
    }
}

/// See the [module](self).
pub(crate) struct World {
    /// First, so that the loop ends before what its tasks use.
    event_loop: EventLoop,
    graph: Arc<Graph>,
    pub(crate) disks: Vec<Disk>,
    pub(crate) memory: Arc<GuestRam>,
    _directory: tempfile::TempDir,
}

impl World {
    /// So many disks of [`SECTORS`] stamped sectors.
    pub(crate) fn new(disks: usize) -> Self {
        let mut event_loop = EventLoop::new("main", &LoopConfig::default()).unwrap();
        let graph = Graph::new(Arc::new(NoEvents), Clock::real());
        let directory = tempfile::tempdir_in(scratch()).unwrap();
        let disks = (0..disks)
            .map(|index| {
                let path = directory.path().join(format!("disk{index}"));
                let mut options = File::options();
                let file = options
                    .read(true)
                    .write(true)
                    .create_new(true)
                    .open(&path)
                    .unwrap();
                file.write_all_at(&IMAGE, 0).unwrap();
                let options: BlockdevOptions = serde_json::from_value(serde_json::json!({
                    "driver": "blkdebug", "node-name": format!("disk{index}"), "discard": "unmap",
                    "image": { "driver": "raw", "file": { "driver": "file", "filename": path } },
                }))
                .unwrap();
                let adding = Arc::clone(&graph);
                let adding = async move { adding.add_node(&options).await };
                let node = event_loop.run_until(adding).unwrap().unwrap();
                let backend = graph.add_backend(&format!("drive{index}"), &node).unwrap();
                Disk {
                    file,
                    node,
                    backend,
                    sections: Vec::new(),
                    holds: false,
                    fails: false,
                    kept: SECTORS,
                }
            })
            .collect();
        let pieces = RAM.map(|(base, len)| (GuestAddress(base), len));
        let memory = Arc::new(GuestRam::from_ranges(&pieces).unwrap());
        Self {
            event_loop,
            graph,
            disks,
            memory,
            _directory: directory,
        }
    }

    pub(crate) fn context(&self) -> sluice_aio::AioContext {
        self.event_loop.context()
    }

    /// Puts bytes into memory, where there is some.
    pub(crate) fn poke(&self, address: u64, bytes: &[u8]) {
        // Whether all of it fits is the guest's business.
        let _ = self.memory.write_slice(bytes, GuestAddress(address));
    }

    /// Bytes of memory.
    pub(crate) fn peek<const N: usize>(&self, address: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.memory
            .read_slice(&mut bytes, GuestAddress(address))
            .unwrap();
        bytes
    }

    /// Lets the loop do whatever it could do now.
    pub(crate) fn turns(&mut self) {
        for _ in 0..TURNS {
            self.event_loop.turn(Some(Duration::ZERO)).unwrap();
        }
    }

    /// Runs a future to its end in the loop. It must not need what a disk holds.
    pub(crate) fn run<T: 'static>(&mut self, future: impl Future<Output = T> + 'static) -> T {
        self.event_loop.run_until(future).unwrap()
    }

    /// Runs the loop until `condition` holds, which it must.
    pub(crate) fn wait(&mut self, what: &str, condition: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.turns();
            if condition(self) {
                return;
            }
            assert!(Instant::now() < deadline, "{what}: still not");
            self.event_loop
                .turn(Some(Duration::from_millis(1)))
                .unwrap();
        }
    }

    /// Drains a disk.
    pub(crate) fn drain(&mut self, disk: usize) {
        // A section begins when what runs has ended.
        self.release();
        let graph = Arc::clone(&self.graph);
        let node = Arc::clone(&self.disks[disk].node);
        let section = self.run(async move { graph.drain(&node, "fuzz").await });
        self.disks[disk].sections.push(section);
    }

    /// Ends the youngest section of a disk.
    pub(crate) fn undrain(&mut self, disk: usize) {
        drop(self.disks[disk].sections.pop());
    }

    /// Makes a disk so many sectors long, or one, which is the least.
    pub(crate) fn resize(&mut self, disk: usize, sectors: u64) {
        let sectors = sectors.max(1);
        self.release();
        let graph = Arc::clone(&self.graph);
        let node = Arc::clone(&self.disks[disk].node);
        let resizing = async move { graph.resize(&node, sectors * SECTOR as u64).await };
        self.run(resizing).unwrap();
        let kept = &mut self.disks[disk].kept;
        *kept = sectors.min(*kept);
    }

    /// Holds the next request of one kind at a disk's node.
    pub(crate) fn hold(&mut self, disk: usize, kind: u8) {
        let disk = &mut self.disks[disk];
        let event = event(kind);
        if !disk.holds && !disk.is_drained() {
            disk.node
                .as_blkdebug()
                .unwrap()
                .set_break(event, HELD)
                .unwrap();
            disk.holds = true;
        }
    }

    /// Makes the next request of one kind fail at a disk's node.
    pub(crate) fn fail(&mut self, disk: usize, kind: u8) {
        let disk = &mut self.disks[disk];
        let rule = InjectError {
            once: true,
            ..InjectError::new(event(kind), Errno::IO.raw_os_error())
        };
        disk.node.as_blkdebug().unwrap().inject(rule);
        disk.fails = true;
    }

    /// Has the machine stopped by a disk's errors, which keep their requests until [`World::resume`]; or not.
    pub(crate) fn stop_on_errors(&self, disk: usize, stop: bool) {
        let policy = if stop { OnError::Stop } else { OnError::Report };
        let policy = ErrorPolicy::new(policy, policy);
        self.disks[disk].backend.set_policy(policy);
    }

    /// The machine goes on.
    pub(crate) fn resume(&self) {
        for disk in &self.disks {
            disk.backend.resume();
        }
    }

    /// Lets held requests go.
    pub(crate) fn release(&mut self) {
        for disk in &mut self.disks {
            if std::mem::take(&mut disk.holds) {
                let blkdebug = disk.node.as_blkdebug().unwrap();
                // It fails if nothing has come by.
                let _ = blkdebug.resume(HELD);
                let _ = blkdebug.remove_break(HELD);
            }
        }
    }

    /// The operator takes the medium of a disk's drive out.
    pub(crate) fn eject(&mut self, disk: usize, force: bool) {
        self.release();
        let graph = Arc::clone(&self.graph);
        let backend = Arc::clone(&self.disks[disk].backend);
        // A locked tray stays closed.
        let _ = self.run(async move { graph.eject(&backend, force).await });
    }

    /// The operator puts the medium of a disk's drive back.
    pub(crate) fn insert(&mut self, disk: usize) {
        self.release();
        let graph = Arc::clone(&self.graph);
        let backend = Arc::clone(&self.disks[disk].backend);
        let node = Arc::clone(&self.disks[disk].node);
        // The tray may be closed, or have one.
        let _ = self.run(async move { graph.insert_medium(&backend, &node).await });
    }

    /// What must hold after every step.
    pub(crate) fn check(&self) {
        for disk in &self.disks {
            disk.check();
        }
    }

    /// Lets everything go and end: nothing is held, drained or in flight afterwards.
    pub(crate) fn settle(&mut self) {
        self.release();
        for disk in &mut self.disks {
            disk.sections.clear();
            disk.node.as_blkdebug().unwrap().clear_errors();
        }
        self.wait("the end of every request", |world| {
            // What fails only now stops the machine once more.
            world.resume();
            world.disks.iter().all(|disk| {
                let gate = disk.backend.gate();
                gate.in_flight() == 0 && gate.parked() == 0 && disk.backend.halted() == 0
            })
        });
        self.check();
    }
}
