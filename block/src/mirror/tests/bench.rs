//! A machine without a machine: a graph, disks on real files, guests that enter the gate as a
//! device does, and an operator who waits for events.

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use event_listener::Event;
use parking_lot::Mutex;
use serde_json::{Value, json};
use sluice_aio::{AioContext, Clock, EventLoop, IoBuffer, IoThread, LoopConfig, current};

use crate::backend::Backend;
use crate::driver::blkdebug::InjectError;
use crate::driver::{Blkdebug, DebugEvent};
use crate::error::BlockError;
use crate::event::{BlockEvent, EventSink};
use crate::graph::Graph;
use crate::job::{Job, JobState, OnError};
use crate::mirror::work::IDLE_SLICE;
use crate::mirror::{BlockdevMirror, CopyMode, MirrorCommon, SyncMode, blockdev_mirror};
use crate::node::Node;
use crate::parting::tests::yield_often;

/// Size of a disk unless a test wants another, in bytes.
pub(super) const SIZE: u64 = 4 << 20;
/// Bytes of a guest's request.
pub(super) const BLOCK: u64 = 4096;

/// Keeps all events and wakes who waits for one.
#[derive(Default)]
pub(super) struct Recorder {
    events: Mutex<Vec<BlockEvent>>,
    arrived: Event,
}

impl EventSink for Recorder {
    fn emit(&self, event: BlockEvent) {
        self.events.lock().push(event);
        self.arrived.notify(usize::MAX);
    }
}

/// Which loop serves the disks' devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Serving {
    /// The one that the operator's commands run in.
    Main,
    /// One in a thread of its own.
    IoThread,
}

pub(super) struct Bench {
    pub(super) graph: Arc<Graph>,
    pub(super) recorder: Arc<Recorder>,
    pub(super) directory: tempfile::TempDir,
    /// Where guests' requests and jobs run.
    pub(super) context: AioContext,
    pub(super) clock: Clock,
}

/// Runs `test` as the operator's task of a main loop.
pub(super) fn run<T, F>(test: impl FnOnce(Bench) -> F) -> T
where
    T: 'static,
    F: Future<Output = T> + 'static,
{
    run_with(Serving::Main, Clock::real(), test)
}

/// The same for both kinds of loops that a device can live in.
pub(super) fn run_both<F>(test: impl Fn(Bench) -> F)
where
    F: Future<Output = ()> + 'static,
{
    run_with(Serving::Main, Clock::real(), &test);
    run_with(Serving::IoThread, Clock::real(), &test);
}

/// The same on a clock that the test moves.
pub(super) fn run_both_by_hand<F>(test: impl Fn(Bench) -> F)
where
    F: Future<Output = ()> + 'static,
{
    run_with(Serving::Main, Clock::manual(), &test);
    run_with(Serving::IoThread, Clock::manual(), &test);
}

pub(super) fn run_with<T, F>(serving: Serving, clock: Clock, test: impl FnOnce(Bench) -> F) -> T
where
    T: 'static,
    F: Future<Output = T> + 'static,
{
    let config = LoopConfig {
        clock: clock.clone(),
        ..LoopConfig::default()
    };
    let mut main = EventLoop::new("main", &config).unwrap();
    let iothread = IoThread::spawn("io0", config).unwrap();
    let recorder = Arc::new(Recorder::default());
    let context = match serving {
        Serving::Main => main.context(),
        Serving::IoThread => iothread.context().clone(),
    };
    let bench = Bench {
        graph: Graph::new(Arc::clone(&recorder) as Arc<dyn EventSink>, clock.clone()),
        recorder,
        directory: tempfile::tempdir().unwrap(),
        context,
        clock,
    };
    main.run_until(test(bench)).unwrap()
}

/// Bytes that differ from block to block.
pub(super) fn pattern(size: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(size).unwrap()];
    let blocks = bytes.chunks_mut(usize::try_from(BLOCK).unwrap());
    for (value, block) in (1..=127).cycle().zip(blocks) {
        block.fill(value);
    }
    bytes
}

/// The defaults of a mirror here; it stays after its end, so that tests can look at it.
pub(super) fn common(device: &str) -> MirrorCommon {
    MirrorCommon {
        job_id: Some("job0".to_owned()),
        device: device.to_owned(),
        sync: SyncMode::Full,
        speed: None,
        granularity: None,
        buf_size: None,
        on_source_error: OnError::Report,
        on_target_error: OnError::Report,
        copy_mode: CopyMode::Background,
        replaces: None,
        auto_finalize: None,
        auto_dismiss: Some(false),
    }
}

/// The options by which a running job gets another mode.
pub(super) fn copy_mode(mode: CopyMode) -> serde_json::Map<String, Value> {
    let options = json!({"copy-mode": mode.name()});
    options.as_object().unwrap().clone()
}

/// Whether source and target are the same and stay so.
pub(super) fn is_synced(job: &Job) -> bool {
    job.block_job_info().details["actively-synced"] == true
}

impl Bench {
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(format!("{name}.img"))
    }

    pub(super) fn bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    /// Bytes that the file system holds for an image.
    pub(super) fn allocated(&self, name: &str) -> u64 {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(self.path(name)).unwrap().blocks() * 512
    }

    /// Makes an empty image of `size` bytes.
    pub(super) fn empty_image(&self, name: &str, size: u64) {
        let file = std::fs::File::create(self.path(name)).unwrap();
        file.set_len(size).unwrap();
    }

    pub(super) async fn node(&self, options: Value) -> Arc<Node> {
        let options = serde_json::from_value(options).unwrap();
        self.graph.add_node(&options).await.unwrap()
    }

    /// The node `NAME-node` over the image `NAME`.
    pub(super) async fn image_node(&self, name: &str) -> Arc<Node> {
        let file = json!({"driver": "file", "filename": self.path(name)});
        self.node(json!({"driver": "raw", "node-name": format!("{name}-node"), "file": file}))
            .await
    }

    pub(super) fn attach(&self, name: &str, node: &Arc<Node>) -> Arc<Backend> {
        let backend = self.graph.add_backend(name, node).unwrap();
        backend.set_context(&self.context);
        backend
    }

    /// A disk named `name` with these contents.
    pub(super) async fn disk_with(&self, name: &str, contents: &[u8]) -> Arc<Backend> {
        std::fs::write(self.path(name), contents).unwrap();
        let node = self.image_node(name).await;
        self.attach(name, &node)
    }

    pub(super) async fn disk(&self, name: &str) -> Arc<Backend> {
        self.disk_with(name, &pattern(SIZE)).await
    }

    /// A node `name` that holds and fails requests on the way to the image of the same name.
    pub(super) async fn debug_node(&self, name: &str) -> Arc<Node> {
        let file = json!({"driver": "file", "filename": self.path(name)});
        self.node(json!({
            "driver": "blkdebug", "node-name": name,
            "image": {"driver": "raw", "file": file}
        }))
        .await
    }

    /// A node `name` over the image of that name, and nothing in between: workers copy to it.
    pub(super) async fn plain_node(&self, name: &str, more: Value) -> Arc<Node> {
        let file = json!({"driver": "file", "filename": self.path(name), "discard": "unmap"});
        let mut options = json!({"driver": "raw", "node-name": name, "file": file});
        let options_map = options.as_object_mut().unwrap();
        options_map.extend(more.as_object().unwrap().clone());
        self.node(options).await
    }

    /// The same over an empty image as large as a disk.
    pub(super) async fn target(&self, name: &str) -> Arc<Node> {
        self.empty_image(name, SIZE);
        self.debug_node(name).await
    }

    /// A disk whose requests can be held and made to fail.
    pub(super) async fn debug_disk(&self, name: &str) -> (Arc<Backend>, Arc<Node>) {
        std::fs::write(self.path(name), pattern(SIZE)).unwrap();
        let node = self
            .node(json!({
                "driver": "blkdebug", "node-name": format!("{name}-node"),
                "image": {"driver": "raw",
                    "file": {"driver": "file", "filename": self.path(name)}}
            }))
            .await;
        (self.attach(name, &node), node)
    }

    pub(super) async fn start(&self, target: &str, common: MirrorCommon) -> Result<(), BlockError> {
        let arguments = BlockdevMirror {
            common,
            target: target.to_owned(),
            filter_node_name: None,
            target_is_zero: false,
        };
        blockdev_mirror(&self.graph, arguments, &current::context()).await
    }

    /// Mirrors `device` to `target` as `job0`.
    pub(super) async fn mirror(&self, device: &str, target: &str) -> Arc<Job> {
        self.mirror_with(target, common(device)).await
    }

    pub(super) async fn mirror_with(&self, target: &str, common: MirrorCommon) -> Arc<Job> {
        self.start(target, common).await.unwrap();
        self.job()
    }

    /// Mirrors `disk` to `target` until it is ready, and has guests' writes go to both from then on.
    pub(super) async fn mirror_to_both(&self) -> Arc<Job> {
        let job = self.mirror("disk", "target").await;
        self.wait_for(JobState::Ready).await;
        job.change(&copy_mode(CopyMode::WriteBlocking)).unwrap();
        job
    }

    pub(super) fn job(&self) -> Arc<Job> {
        self.graph.jobs().get("job0").unwrap()
    }

    /// Waits until `found` returns something; it is asked again after every event.
    pub(super) async fn wait_until<T>(
        &self,
        mut found: impl FnMut(&[BlockEvent]) -> Option<T>,
    ) -> T {
        loop {
            let listener = self.recorder.arrived.listen();
            // Not under the lock: events arrive under those of their jobs.
            let events = self.events();
            if let Some(found) = found(&events) {
                return found;
            }
            listener.await;
        }
    }

    /// Waits until the job is in `state`; it must not end before.
    pub(super) async fn wait_for(&self, state: JobState) {
        let job = self.job();
        self.wait_until(|events| {
            let now = job.state();
            let over = now == JobState::Concluded && state != now;
            assert!(!over, "the job has ended before it was {state}: {events:?}");
            (now == state).then_some(())
        })
        .await;
    }

    /// Waits for the job's end; the error it ended with, if any.
    pub(super) async fn end(&self) -> Option<String> {
        let job = self.job();
        job.concluded().await;
        job.info().error
    }

    pub(super) async fn complete(&self) -> Option<String> {
        self.wait_for(JobState::Ready).await;
        self.job().complete().unwrap();
        self.end().await
    }

    pub(super) fn events(&self) -> Vec<BlockEvent> {
        self.recorder.events.lock().clone()
    }

    /// How often the job has told of an I/O error.
    pub(super) fn error_events(&self) -> usize {
        let is_error = |event: &&BlockEvent| matches!(event, BlockEvent::BlockJobError { .. });
        self.recorder.events.lock().iter().filter(is_error).count()
    }

    pub(super) fn has_node_of(&self, driver: &str) -> bool {
        let nodes = self.graph.nodes();
        nodes.iter().any(|node| node.driver_name() == driver)
    }

    /// Does something as the disk's device does: in its loop.
    pub(super) async fn in_guest<T, F>(&self, make: impl FnOnce() -> F + Send + 'static) -> T
    where
        T: Send + 'static,
        F: Future<Output = T> + 'static,
    {
        self.context.call(make).await.unwrap()
    }

    /// A guest's write of one block.
    pub(super) async fn write(&self, disk: &Arc<Backend>, offset: u64, value: u8) {
        let disk = Arc::clone(disk);
        self.in_guest(move || async move { write_block(&disk, offset, value).await })
            .await
            .unwrap();
    }

    /// A guest's write that is begun now and may be parked.
    pub(super) fn begin_write(
        &self,
        disk: &Arc<Backend>,
        offset: u64,
        value: u8,
    ) -> impl Future<Output = Result<(), BlockError>> + use<> {
        let disk = Arc::clone(disk);
        let write = self
            .context
            .call(move || async move { write_block(&disk, offset, value).await });
        async move { write.await.unwrap() }
    }

    /// Waits until a request stands before the disk's closed gate.
    pub(super) async fn wait_parked(&self, disk: &Backend) {
        while disk.gate().parked() == 0 {
            current::yield_now().await;
        }
    }

    /// A write that will be parked, and is when this returns.
    pub(super) async fn park_write(
        &self,
        disk: &Arc<Backend>,
        offset: u64,
        value: u8,
    ) -> impl Future<Output = Result<(), BlockError>> + use<> {
        let write = self.begin_write(disk, offset, value);
        self.wait_parked(disk).await;
        write
    }

    /// Has jobs pivot by `complete`, to the last flush of the target before the section, which is held as `stretch`.
    pub(super) async fn to_the_last_stretch(&self, target: &Blkdebug, complete: &dyn Fn()) {
        let flush = DebugEvent::FlushToDisk;
        target.set_break(flush, "approach").unwrap();
        complete();
        target.wait_break("approach").await.unwrap();
        target.set_break(flush, "stretch").unwrap();
        target.resume("approach").unwrap();
        target.wait_break("stretch").await.unwrap();
    }

    /// The same, on to the section, which waits for a guest's write of 0xf1 to the first block: it has reached the
    /// target, and the source, held as `slow`, will fail it without having changed. So its place is to be copied
    /// inside the section.
    pub(super) async fn until_the_section(
        &self,
        disk: &Arc<Backend>,
        [source, target]: [&Blkdebug; 2],
        complete: &dyn Fn(),
    ) -> impl Future<Output = Result<(), BlockError>> + use<> {
        self.to_the_last_stretch(target, complete).await;
        let event = DebugEvent::WriteAio;
        source.set_break(event, "slow").unwrap();
        source.inject(InjectError {
            once: true,
            ..InjectError::new(event, libc::EIO)
        });
        let write = self.begin_write(disk, 0, 0xf1);
        source.wait_break("slow").await.unwrap();
        target.resume("stretch").unwrap();
        while !disk.gate().is_closed() {
            current::yield_now().await;
        }
        write
    }

    /// Lets the manual clock run.
    pub(super) fn advance(&self, by: Duration) {
        assert!(self.clock.advance(by));
        self.context.notify();
    }
}

/// Time in which a job that is idle looks whether its guest has written.
pub(super) async fn tick(bench: &Bench) {
    bench.advance(IDLE_SLICE);
    yield_often().await;
}

pub(super) async fn write_block(disk: &Backend, offset: u64, value: u8) -> Result<(), BlockError> {
    let token = disk.enter().await?;
    let buffer = IoBuffer::alloc(usize::try_from(BLOCK).unwrap());
    buffer.fill(0, buffer.len(), value);
    disk.write(&token, offset, buffer).await
}

/// The first byte of the block at `offset`, if the whole block has that value.
pub(super) fn block_value(image: &[u8], offset: u64) -> Option<u8> {
    let from = usize::try_from(offset).unwrap();
    let block = &image[from..from + usize::try_from(BLOCK).unwrap()];
    block
        .iter()
        .all(|byte| *byte == block[0])
        .then_some(block[0])
}

/// What holds and fails the requests of a node of [`Bench::debug_node`].
pub(super) fn debug(node: &Node) -> &Blkdebug {
    node.as_blkdebug().unwrap()
}
