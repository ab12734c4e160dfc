//! A graph with disks on real files, targets that hold and fail requests, and guests.

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Value, json};
use sluice_aio::{AioContext, Clock, EventLoop, IoBuffer, IoThread, LoopConfig, current};

use crate::backend::Backend;
use crate::backup::{BackupCommon, BlockdevBackup, blockdev_backup};
use crate::driver::blkdebug::InjectError;
use crate::driver::{Blkdebug, DebugEvent};
use crate::error::Result;
use crate::event::tests::EventLog;
use crate::event::{BlockEvent, EventSink};
use crate::graph::{BitmapAction, BitmapAdd, Graph};
use crate::job::{Job, JobState};
use crate::node::Node;
use crate::options::BitmapRef;
use crate::parting::tests::yield_often;

/// Bytes of a disk.
pub(super) const SIZE: usize = 2 << 20;
/// Bytes of a cluster.
pub(super) const CLUSTER: usize = 64 << 10;
/// What a target is full of before anything is copied.
pub(super) const UNTOUCHED: u8 = 0xee;

pub(super) struct Bench {
    pub(super) graph: Arc<Graph>,
    pub(super) log: Arc<EventLog>,
    pub(super) directory: tempfile::TempDir,
    /// Where guests' requests and jobs run.
    pub(super) context: AioContext,
    pub(super) clock: Clock,
}

/// Runs `test` as the operator's task of a main loop, which serves the guests too.
pub(super) fn run<F: Future<Output = ()> + 'static>(test: impl FnOnce(Bench) -> F) {
    run_with(false, Clock::real(), test);
}

/// The same, and once more with the guests in a thread of their own.
pub(super) fn run_both<F: Future<Output = ()> + 'static>(test: impl Fn(Bench) -> F) {
    run_with(false, Clock::real(), &test);
    run_with(true, Clock::real(), &test);
}

pub(super) fn run_with<F: Future<Output = ()> + 'static>(
    in_thread: bool,
    clock: Clock,
    test: impl FnOnce(Bench) -> F,
) {
    let config = LoopConfig {
        clock: clock.clone(),
        ..LoopConfig::default()
    };
    let mut main = EventLoop::new("main", &config).unwrap();
    let iothread = IoThread::spawn("io0", config).unwrap();
    let context = match in_thread {
        false => main.context(),
        true => iothread.context().clone(),
    };
    let log = Arc::new(EventLog::default());
    let bench = Bench {
        graph: Graph::new(Arc::clone(&log) as Arc<dyn EventSink>, clock.clone()),
        log,
        directory: tempfile::tempdir().unwrap(),
        context,
        clock,
    };
    main.run_until(test(bench)).unwrap();
}

/// Bytes that differ from block to block.
pub(super) fn pattern() -> Vec<u8> {
    let byte = |at: usize| u8::try_from(at / 4096 % 127 + 1).unwrap();
    (0..SIZE).map(byte).collect()
}

/// Arguments of a backup that stays after its end, with `more` of them.
pub(super) fn arguments(device: &str, sync: &str, more: &Value) -> BackupCommon {
    let mut all = json!({
        "device": device, "sync": sync, "job-id": "job0", "auto-dismiss": false
    });
    let more = more.as_object().unwrap().clone();
    all.as_object_mut().unwrap().extend(more);
    serde_json::from_value(all).unwrap()
}

impl Bench {
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(super) fn bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    /// The node `name` over the image of the same name, which holds and fails requests.
    async fn node(&self, name: &str, contents: &[u8]) -> Arc<Node> {
        std::fs::write(self.path(name), contents).unwrap();
        self.open(name).await
    }

    /// The same over an image that exists.
    pub(super) async fn open(&self, name: &str) -> Arc<Node> {
        let options = json!({
            "driver": "blkdebug", "node-name": name, "discard": "unmap",
            "image": {"driver": "raw", "file": {"driver": "file", "filename": self.path(name)}}
        });
        let options = serde_json::from_value(options).unwrap();
        self.graph.add_node(&options).await.unwrap()
    }

    /// A guest's disk `NAME-disk` over the node `name`.
    pub(super) async fn disk(&self, name: &str) -> Arc<Backend> {
        let node = self.node(name, &pattern()).await;
        self.attach(name, &node)
    }

    pub(super) fn attach(&self, name: &str, node: &Arc<Node>) -> Arc<Backend> {
        let backend = self.graph.add_backend(&format!("{name}-disk"), node);
        let backend = backend.unwrap();
        backend.set_context(&self.context);
        backend
    }

    pub(super) async fn target(&self, name: &str) -> Arc<Node> {
        self.node(name, &vec![UNTOUCHED; SIZE]).await
    }

    pub(super) async fn backup(&self, sync: &str, more: &Value) -> Arc<Job> {
        let common = arguments("disk-disk", sync, more);
        self.start(common, "target").await.unwrap();
        self.job("job0")
    }

    pub(super) async fn start(&self, common: BackupCommon, target: &str) -> Result<()> {
        let arguments = BlockdevBackup {
            common,
            target: target.to_owned(),
        };
        blockdev_backup(&self.graph, &arguments, &current::context()).await
    }

    pub(super) fn job(&self, id: &str) -> Arc<Job> {
        self.graph.jobs().get(id).unwrap()
    }

    /// A guest's write.
    pub(super) async fn write(&self, disk: &Arc<Backend>, offset: usize, len: usize, value: u8) {
        self.begin_write(disk, offset, len, value).await.unwrap();
    }

    /// One that is begun now and may have to wait.
    pub(super) fn begin_write(
        &self,
        disk: &Arc<Backend>,
        offset: usize,
        len: usize,
        value: u8,
    ) -> impl Future<Output = Result<()>> + use<> {
        write_in(&self.context, disk, offset, len, value)
    }

    /// The filter has gone, and nobody holds anything any more.
    pub(super) fn check_clean(&self) {
        let nodes = self.graph.nodes();
        let mut drivers = nodes.iter().map(|node| node.driver_name());
        assert!(!drivers.any(|driver| driver == "copy-before-write"));
        for node in nodes {
            assert!(node.check_not_blocked().is_ok(), "{}", node.name());
        }
        for backend in self.graph.backends() {
            assert!(!backend.gate().is_closed());
        }
    }

    pub(super) fn add_bitmap(&self, name: &str) {
        let add = json!({"node": "disk", "name": name});
        let add: BitmapAdd = serde_json::from_value(add).unwrap();
        self.graph.change_bitmap(&BitmapAction::Add(add)).unwrap();
    }

    /// The clusters that a bitmap of the disk has marked.
    pub(super) fn marked(&self, name: &str) -> Vec<usize> {
        let bitmap = BitmapRef {
            node: "disk".to_owned(),
            name: name.to_owned(),
        };
        let bits = self.graph.find_bitmap(&bitmap).unwrap().1.bits();
        let clusters = 0..SIZE / CLUSTER;
        clusters
            .filter(|cluster| bits.is_dirty((cluster * CLUSTER) as u64))
            .collect()
    }

    /// The events of jobs so far, in short. Rests are left out: a section that is still open when the job
    /// begins in another thread is one.
    pub(super) fn events(&self) -> Vec<String> {
        let short = |event: BlockEvent| match event {
            BlockEvent::JobStatusChange { status, .. } => status.to_string(),
            BlockEvent::BlockJobCompleted { error: None, .. } => "COMPLETED".to_owned(),
            BlockEvent::BlockJobCompleted { .. } => "FAILED".to_owned(),
            BlockEvent::BlockJobCancelled(_) => "CANCELLED".to_owned(),
            BlockEvent::BlockJobError { .. } => "ERROR".to_owned(),
            other => format!("{other:?}"),
        };
        let mut events: Vec<String> = Vec::new();
        let mut rests = false;
        for event in self.log.take().into_iter().map(short) {
            let goes_on = std::mem::replace(&mut rests, event == "paused");
            let belongs_to_a_rest = rests || (goes_on && event == "running");
            if !belongs_to_a_rest {
                events.push(event);
            }
        }
        events
    }
}

/// A guest's write in the loop `context`, which may have to wait.
pub(super) fn write_in(
    context: &AioContext,
    disk: &Arc<Backend>,
    offset: usize,
    len: usize,
    value: u8,
) -> impl Future<Output = Result<()>> + use<> {
    let disk = Arc::clone(disk);
    let write = context.call(move || async move {
        let token = disk.enter().await?;
        let buffer = IoBuffer::alloc(len);
        buffer.fill(0, len, value);
        disk.write(&token, offset as u64, buffer).await
    });
    async move { write.await.unwrap() }
}

pub(super) fn debug(node: &Node) -> &Blkdebug {
    node.as_blkdebug().unwrap()
}

pub(super) fn inject(node: &Node, event: DebugEvent, errno: i32) {
    debug(node).inject(InjectError::new(event, errno));
}

/// Waits for the job's end; the error it ended with, if any.
pub(super) async fn end(job: &Job) -> Option<String> {
    job.concluded().await;
    job.info().error
}

pub(super) async fn wait_for(job: &Job, state: JobState) {
    while job.state() != state {
        assert!(job.state() != JobState::Concluded, "it never was {state}");
        current::sleep(std::time::Duration::from_millis(1)).await;
    }
}

/// Lets what can happen without outside help happen.
pub(super) async fn settle() {
    yield_often().await;
    current::sleep(std::time::Duration::from_millis(20)).await;
}

/// What each cluster of an image is full of, if it is one byte.
pub(super) fn untouched(image: &[u8]) -> Vec<usize> {
    let clusters = image.chunks(CLUSTER).enumerate();
    let whole = clusters.filter(|(_, bytes)| bytes.iter().all(|byte| *byte == UNTOUCHED));
    whole.map(|(index, _)| index).collect()
}
