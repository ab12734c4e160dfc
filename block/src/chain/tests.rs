//! Chains of images in memory: what the disk shows never changes, whatever is moved below it, and what
//! its guest writes meanwhile is not lost.

mod active;
mod hang;
mod homes;
mod phases;

use std::sync::Arc;

use serde_json::{Value, json};
use sluice_aio::{AioContext, Clock, EventLoop, IoBuffer, IoThread, LoopConfig, current};

use super::*;
use crate::backend::Backend;
use crate::driver::blkdebug::InjectError;
use crate::driver::overlay::CLUSTER;
use crate::driver::{Allocation, DebugEvent, RequestFlags};
use crate::event::tests::EventLog;
use crate::event::{BlockEvent, EventSink, IoOperation};
use crate::graph::Graph;
use crate::job::{IoFailure, IoStatus, Job, JobState};
use crate::node::Node;
use crate::parting::tests::yield_often;

/// Clusters of each image.
const COUNT: usize = 64;
const SIZE: usize = COUNT * CLUSTER;

/// A disk over `debug` (which holds and fails requests) over `image3`, over `image2`, …, `image0`.
struct Bench {
    graph: Arc<Graph>,
    disk: Arc<Backend>,
    images: Vec<Arc<Node>>,
    dice: Dice,
    log: Arc<EventLog>,
    /// Where the guest's requests and jobs run.
    context: AioContext,
    clock: Clock,
}

/// A small generator of numbers (xorshift64*).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let roll = (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % sides as u64;
        usize::try_from(roll).unwrap()
    }
}

/// Runs `test` with a disk that the operator's loop serves, and once more with one in an I/O thread.
fn run<F: Future<Output = ()> + 'static>(seed: u64, test: impl Fn(Bench) -> F) {
    for in_thread in [false, true] {
        run_in(in_thread, Clock::real(), seed, &test);
    }
}

fn run_in<F: Future<Output = ()> + 'static>(
    in_thread: bool,
    clock: Clock,
    seed: u64,
    test: impl FnOnce(Bench) -> F,
) {
    let config = LoopConfig {
        clock: clock.clone(),
        ..LoopConfig::default()
    };
    let mut event_loop = EventLoop::new("main", &config).unwrap();
    let iothread = IoThread::spawn("io0", config).unwrap();
    let context = match in_thread {
        true => iothread.context().clone(),
        false => event_loop.context(),
    };
    let bench = async move {
        let log = Arc::new(EventLog::default());
        let graph = Graph::new(Arc::clone(&log) as Arc<dyn EventSink>, clock.clone());
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let mut images: Vec<Arc<Node>> = Vec::new();
        for number in 0..4_u8 {
            let name = format!("image{number}");
            let image = graph.add_overlay(&name, SIZE, images.last()).unwrap();
            for cluster in 0..COUNT {
                let at = (cluster * CLUSTER) as u64;
                match dice.roll(6) {
                    0 | 1 => {
                        let value = number * 50 + 1 + u8::try_from(dice.roll(49)).unwrap();
                        write(&image, at, value).await;
                    }
                    2 => {
                        let flags = RequestFlags::empty();
                        image.write_zeroes(at, CLUSTER as u64, flags).await.unwrap();
                    }
                    _ => {}
                }
            }
            images.push(image);
        }
        for image in &images[..3] {
            graph.set_read_only(image, true).unwrap();
        }
        let debug = json!({"driver": "blkdebug", "node-name": "debug", "image": "image3"});
        let debug = serde_json::from_value(debug).unwrap();
        let debug = graph.add_node(&debug).await.unwrap();
        let disk = graph.add_backend("disk", &debug).unwrap();
        disk.set_context(&context);
        Bench {
            graph,
            disk,
            images,
            dice,
            log,
            context,
            clock,
        }
    };
    let bench = event_loop.run_until(bench).unwrap();
    event_loop.run_until(test(bench)).unwrap();
}

async fn write(node: &Node, offset: u64, value: u8) {
    let buffer = IoBuffer::alloc(CLUSTER);
    buffer.fill(0, CLUSTER, value);
    node.write(offset, buffer, RequestFlags::empty())
        .await
        .unwrap();
}

/// A guest's write, in the loop of its disk.
async fn guest_write(disk: &Arc<Backend>, offset: usize, len: usize, value: u8) {
    let context = disk.context().unwrap();
    let disk = Arc::clone(disk);
    let write = context.call(move || async move {
        let token = disk.enter().await.unwrap();
        let buffer = IoBuffer::alloc(len);
        buffer.fill(0, len, value);
        disk.write(&token, offset as u64, buffer).await
    });
    write.await.unwrap().unwrap();
}

fn with(mut all: Value, more: &Value) -> Value {
    let more = more.as_object().unwrap().clone();
    all.as_object_mut().unwrap().extend(more);
    all
}

impl Bench {
    fn debug(&self) -> Arc<Node> {
        self.graph.node("debug").unwrap()
    }

    /// What the guest sees.
    async fn shown(&self) -> Vec<u8> {
        shown_by(&self.disk).await
    }

    async fn stream(&self, more: &Value) -> crate::error::Result<Arc<Job>> {
        let all = json!({"device": "disk", "job-id": "job", "auto-dismiss": false});
        let arguments: BlockStream = serde_json::from_value(with(all, more)).unwrap();
        block_stream(&self.graph, &arguments, &current::context()).await?;
        let job = self.graph.jobs().get("job").unwrap();
        assert_ne!(job.state(), JobState::Created, "its command was answered");
        Ok(job)
    }

    async fn commit(&self, more: &Value) -> Result<Arc<Job>, CommitError> {
        let all = json!({"device": "disk", "job-id": "job", "auto-dismiss": false});
        let arguments: BlockCommit = serde_json::from_value(with(all, more)).unwrap();
        block_commit(&self.graph, &arguments, &current::context()).await?;
        let job = self.graph.jobs().get("job").unwrap();
        assert_ne!(job.state(), JobState::Created, "its command was answered");
        Ok(job)
    }

    /// The names of the images below the disk.
    fn chain(&self) -> Vec<String> {
        let below = self.disk.node().unwrap().backing_chain();
        below.iter().map(|node| node.name().to_owned()).collect()
    }

    /// Whether an image itself holds each cluster.
    async fn held(&self, image: usize) -> Vec<bool> {
        let mut held = Vec::new();
        for cluster in 0..COUNT {
            let at = (cluster * CLUSTER) as u64;
            let status = self.images[image].layer_status(at, CLUSTER as u64).await;
            held.push(status.unwrap().allocation != Allocation::Below);
        }
        held
    }

    /// Nobody holds anything any more.
    fn check_idle(&self) {
        for node in self.graph.nodes() {
            assert!(node.check_not_blocked().is_ok(), "{}", node.name());
            let driver = node.driver_name();
            let of_jobs = ["copy-on-read", "commit_top", "mirror_top"];
            assert!(!of_jobs.contains(&driver), "{driver}");
            for edge in node.edges_above() {
                assert!(edge.parent.follows(), "{}: {:?}", node.name(), edge.parent);
            }
        }
        assert!(!self.disk.gate().is_closed());
    }

    /// Nobody holds anything any more, the disk stands on its chain, and the images are as read-only as they were.
    fn check_clean(&self) {
        self.check_idle();
        for (number, image) in self.images.iter().enumerate() {
            assert_eq!(image.is_read_only(), number < 3, "image{number}");
        }
        assert_eq!(self.disk.node().unwrap().name(), "debug");
    }
}

/// What the guest of a disk sees.
async fn shown_by(disk: &Arc<Backend>) -> Vec<u8> {
    let context = disk.context().unwrap();
    let disk = Arc::clone(disk);
    let read = context.call(move || async move {
        let token = disk.enter().await.unwrap();
        let buffer = IoBuffer::alloc(SIZE);
        disk.read(&token, 0, buffer.clone()).await.unwrap();
        buffer.to_vec()
    });
    read.await.unwrap()
}

async fn end(job: &Job) -> Option<String> {
    job.concluded().await;
    let error = job.info().error;
    // One that was cancelled before it began has gone by itself.
    drop(job.dismiss());
    error
}

async fn wait_for(job: &Job, state: JobState) {
    while job.state() != state {
        current::yield_now().await;
    }
}

/// An error has stopped it; for a moment it is `Paused`, too, by the section that it begins in.
async fn stopped(job: &Job) {
    while job.block_job_info().io_status == IoStatus::Ok {
        current::yield_now().await;
    }
    wait_for(job, JobState::Paused).await;
}

#[test]
fn a_stream_pulls_everything_up() {
    run(1, |bench| async move {
        let before = bench.shown().await;
        let job = bench.stream(&json!({})).await.unwrap();
        assert_eq!(end(&job).await, None);
        assert_eq!(job.info().current_progress, SIZE as u64);
        assert!(bench.shown().await == before);
        assert!(bench.chain().is_empty());
        bench.check_clean();
        // Those that nobody needs can go.
        for name in ["image2", "image1", "image0"] {
            bench.graph.del_node(name).unwrap();
        }
        assert!(bench.shown().await == before);
    });
}

#[test]
fn a_stream_stops_at_its_base() {
    for (name, image) in [("base-node", "image1"), ("bottom", "image2")] {
        run(2, move |bench| async move {
            let more = json!({name: image});
            let before = bench.shown().await;
            let (upper, lower) = (bench.held(3).await, bench.held(2).await);
            let job = bench.stream(&more).await.unwrap();
            assert_eq!(end(&job).await, None);
            assert!(bench.shown().await == before);
            assert_eq!(bench.chain(), ["image1", "image0"]);
            let both: Vec<_> = upper
                .iter()
                .zip(&lower)
                .map(|(one, two)| one | two)
                .collect();
            assert_eq!(bench.held(3).await, both, "no more than that");
            bench.check_clean();
        });
    }
}

#[test]
fn an_image_in_the_middle_is_streamed_to() {
    run(3, |bench| async move {
        let before = bench.shown().await;
        let upper = bench.held(3).await;
        let job = bench.stream(&json!({"device": "image2"})).await.unwrap();
        assert_eq!(end(&job).await, None);
        assert!(bench.shown().await == before);
        assert_eq!(bench.chain(), ["image2"]);
        assert_eq!(bench.held(3).await, upper);
        bench.check_clean();
    });
}

#[test]
fn with_nothing_between_it_ends_at_once() {
    run(4, |bench| async move {
        let before = (bench.shown().await, bench.held(3).await);
        let job = bench.stream(&json!({"base-node": "image2"})).await.unwrap();
        assert_eq!(end(&job).await, None);
        assert!((bench.shown().await, bench.held(3).await) == before);
        assert_eq!(bench.chain(), ["image2", "image1", "image0"]);
        bench.check_clean();
    });
}

/// The first cluster of the disk that is below its topmost image, and not zeroes.
async fn first_below(bench: &Bench) -> usize {
    let (held, shown) = (bench.held(3).await, bench.shown().await);
    let mut clusters = 0..COUNT;
    let found = clusters.find(|cluster| !held[*cluster] && shown[cluster * CLUSTER] != 0);
    found.unwrap()
}

#[test]
fn a_write_is_not_undone_by_a_stream() {
    run(5, |bench| async move {
        let cluster = first_below(&bench).await;
        let debug = bench.debug();
        let debug = debug.as_blkdebug().unwrap();
        debug.set_break(DebugEvent::ReadAio, "copy").unwrap();
        let mut expected = bench.images_shown().await;
        let job = bench.stream(&json!({})).await.unwrap();
        debug.wait_break("copy").await.unwrap();
        let disk = Arc::clone(&bench.disk);
        let at = cluster * CLUSTER;
        let writing = current::spawn_local(async move { guest_write(&disk, at, 512, 0xfe).await });
        yield_often().await;
        debug.resume("copy").unwrap();
        writing.await.unwrap();
        assert_eq!(end(&job).await, None);
        expected[at..at + 512].fill(0xfe);
        assert!(bench.shown().await == expected);
        bench.check_clean();
    });
}

/// The guest writes a cluster whose old bytes the job has read already and is about to write above.
#[test]
fn a_write_is_not_undone_by_what_a_stream_writes() {
    run(5, |bench| async move {
        let cluster = first_below(&bench).await;
        let at = cluster * CLUSTER;
        // So that it is the first that the job writes.
        for before in 0..cluster {
            guest_write(&bench.disk, before * CLUSTER, CLUSTER, 0x11).await;
        }
        let mut expected = bench.images_shown().await;
        let debug = bench.debug();
        let debug = debug.as_blkdebug().unwrap();
        debug.set_break(DebugEvent::WriteAio, "copy").unwrap();
        let job = bench.stream(&json!({})).await.unwrap();
        debug.wait_break("copy").await.unwrap();
        let disk = Arc::clone(&bench.disk);
        // A whole cluster, so that it need not wait to read what it leaves.
        let writing =
            current::spawn_local(async move { guest_write(&disk, at, CLUSTER, 0xfe).await });
        yield_often().await;
        debug.resume("copy").unwrap();
        writing.await.unwrap();
        assert_eq!(end(&job).await, None);
        expected[at..at + CLUSTER].fill(0xfe);
        assert!(bench.shown().await == expected);
        bench.check_clean();
    });
}

impl Bench {
    /// What the guest would see, past the fault injector.
    async fn images_shown(&self) -> Vec<u8> {
        let buffer = IoBuffer::alloc(SIZE);
        self.images[3].read(0, buffer.clone()).await.unwrap();
        buffer.to_vec()
    }
}

#[test]
fn a_commit_pushes_one_image_down() {
    run(6, |bench| async move {
        let before = bench.shown().await;
        let more = json!({"top-node": "image1", "base-node": "image0"});
        let job = bench.commit(&more).await.unwrap();
        assert_eq!(end(&job).await, None);
        assert!(bench.shown().await == before);
        assert_eq!(bench.chain(), ["image2", "image0"]);
        bench.check_clean();
        bench.graph.del_node("image1").unwrap();
        assert!(bench.shown().await == before);
    });
}

#[test]
fn a_commit_pushes_several_images_down() {
    run(7, |bench| async move {
        let before = bench.shown().await;
        let job = bench.commit(&json!({"top-node": "image2"})).await.unwrap();
        let mut expected = before.clone();
        // The guest writes to its own image all the time.
        for cluster in [0, 7, 63] {
            guest_write(&bench.disk, cluster * CLUSTER, 512, 0xfe).await;
            expected[cluster * CLUSTER..cluster * CLUSTER + 512].fill(0xfe);
        }
        assert_eq!(end(&job).await, None);
        assert!(bench.shown().await == expected);
        assert_eq!(bench.chain(), ["image0"]);
        bench.check_clean();
    });
}

#[test]
fn a_base_that_is_too_small_grows() {
    run(8, |bench| async move {
        bench.graph.set_read_only(&bench.images[0], false).unwrap();
        bench.images[0].resize((SIZE / 2) as u64).await.unwrap();
        bench.graph.set_read_only(&bench.images[0], true).unwrap();
        let before = bench.shown().await;
        let job = bench.commit(&json!({"top-node": "image2"})).await.unwrap();
        assert_eq!(end(&job).await, None);
        assert!(bench.shown().await == before);
        assert_eq!(bench.images[0].len(), SIZE as u64);
    });
}

#[test]
fn a_cancelled_job_leaves_the_chain_alone() {
    for commits in [false, true] {
        run(9, move |bench| async move {
            let before = bench.shown().await;
            let chain = bench.chain();
            let slow = json!({"speed": 1, "top-node": "image2"});
            let job = if commits {
                bench.commit(&slow).await.unwrap()
            } else {
                bench.stream(&json!({"speed": 1})).await.unwrap()
            };
            wait_for(&job, JobState::Running).await;
            job.cancel(true).unwrap();
            end(&job).await;
            assert!(bench.shown().await == before);
            assert_eq!(bench.chain(), chain);
            bench.check_clean();
        });
    }
}

#[test]
fn errors_are_the_operators() {
    run(10, |bench| async move {
        let debug = bench.debug();
        let debug = debug.as_blkdebug().unwrap();
        let chain = bench.chain();
        debug.inject(InjectError::new(DebugEvent::ReadAio, libc::EIO));
        let job = bench.stream(&json!({})).await.unwrap();
        assert_eq!(end(&job).await.as_deref(), Some("Input/output error"));
        let expected = IoFailure {
            operation: IoOperation::Read,
            node: "debug".to_owned(),
            errno: libc::EIO,
        };
        assert_eq!(job.info().failure, Some(expected));
        assert_eq!(bench.chain(), chain);
        bench.check_clean();
        let job = bench.stream(&json!({"on-error": "stop"})).await.unwrap();
        stopped(&job).await;
        debug.clear_errors();
        let before = bench.images_shown().await;
        job.resume().unwrap();
        assert_eq!(end(&job).await, None);
        assert!(bench.shown().await == before);
        assert!(bench.chain().is_empty());
    });
}

#[test]
fn the_chain_stays_as_it_is_meanwhile() {
    run(11, |bench| async move {
        let job = bench.stream(&json!({"speed": 1})).await.unwrap();
        let busy = |error: String| assert!(error.contains("is busy"), "{error}");
        let top = bench.graph.node("image1").unwrap();
        busy(bench.graph.resize(&top, 512).await.unwrap_err().to_string());
        let more = json!({"job-id": "two", "top-node": "image1"});
        busy(bench.commit(&more).await.unwrap_err().to_string());
        let more = json!({"job-id": "two", "device": "image2"});
        busy(bench.stream(&more).await.unwrap_err().to_string());
        job.cancel(true).unwrap();
        end(&job).await;
        bench.check_clean();
    });
}

#[test]
fn what_makes_no_sense_is_refused_with_qemus_words() {
    run(12, |bench| async move {
        let alone = json!({"driver": "null-co", "node-name": "alone"});
        let alone = serde_json::from_value(alone).unwrap();
        bench.graph.add_node(&alone).await.unwrap();
        for (more, text) in [
            (
                json!({"device": "x"}),
                "Cannot find device='x' nor node-name='x'",
            ),
            (
                json!({"device": "alone"}),
                "'alone' has no backing image, so there is nothing to stream",
            ),
            (
                json!({"base": "b", "base-node": "n"}),
                "'base' and 'base-node' cannot be specified at the same time",
            ),
            (
                json!({"base": "b", "bottom": "n"}),
                "'base' and 'bottom' cannot be specified at the same time",
            ),
            (
                json!({"bottom": "b", "base-node": "n"}),
                "'bottom' and 'base-node' cannot be specified at the same time",
            ),
            (json!({"base": "b"}), "Can't find 'b' in the backing chain"),
            (
                json!({"base-node": "alone"}),
                "Node 'alone' is not a backing image of 'disk'",
            ),
            (
                json!({"bottom": "debug"}),
                "Node 'debug' is a filter, use a non-filter node as 'bottom'",
            ),
            (
                json!({"bottom": "alone"}),
                "Node 'alone' is not in a chain starting from 'disk'",
            ),
            (
                json!({"backing-file": "f"}),
                "backing file specified, but streaming the entire chain",
            ),
            (
                json!({"base-node": "image1", "backing-file": "f"}),
                "Parameter 'backing-file' can't be heeded: no image in the chain of 'image3' has a place for the \
                 name of its backing file; leave it out",
            ),
            (
                json!({"speed": -1}),
                "Parameter 'speed' expects a non-negative value",
            ),
            (json!({"job-id": "0"}), "Invalid job ID '0'"),
            (
                json!({"filter-node-name": "debug"}),
                "Duplicate nodes with node-name='debug'",
            ),
        ] {
            let error = bench.stream(&more).await.unwrap_err();
            assert_eq!(error.to_string(), text);
            bench.check_clean();
        }
        for (more, text) in [
            (json!({"device": "x"}), "Device 'x' not found"),
            (
                json!({"device": "alone"}),
                "'alone' has no backing image, so there is nothing to commit to",
            ),
            (
                json!({"top": "b", "top-node": "n"}),
                "'top-node' and 'top' are mutually exclusive",
            ),
            (
                json!({"base": "b", "base-node": "n"}),
                "'base-node' and 'base' are mutually exclusive",
            ),
            (
                json!({"top-node": "alone"}),
                "'alone' is not in this backing file chain",
            ),
            (
                json!({"top-node": "image1", "base-node": "alone"}),
                "'alone' is not in this backing file chain",
            ),
            (
                json!({"top-node": "image1", "base-node": "image1"}),
                "cannot commit an image into itself",
            ),
            (
                json!({"top-node": "image1", "base-node": "image2"}),
                "cannot commit an image into itself",
            ),
            (
                json!({"base-node": "image3"}),
                "cannot commit an image into itself",
            ),
            (
                json!({"backing-file": "f"}),
                "'backing-file' specified, but 'top' is the active layer",
            ),
            (
                json!({"top-node": "debug", "backing-file": "f"}),
                "'backing-file' specified, but 'top' is the active layer",
            ),
            (
                json!({"top-node": "image2", "backing-file": "f"}),
                "Parameter 'backing-file' can't be heeded: no image in the chain of 'image2' has a place for the \
                 name of its backing file; leave it out",
            ),
            (
                json!({"speed": -1}),
                "Parameter 'speed' expects a non-negative value",
            ),
            (
                json!({"filter-node-name": "debug"}),
                "Duplicate nodes with node-name='debug'",
            ),
        ] {
            let error = bench.commit(&more).await.unwrap_err();
            assert_eq!(error.to_string(), text);
            bench.check_clean();
        }
        let unknown = bench.commit(&json!({"device": "x"})).await.unwrap_err();
        assert!(matches!(unknown, CommitError::DeviceNotFound(_)));
    });
}

#[test]
fn a_base_that_another_disk_reads_is_not_written_to() {
    run(13, |bench| async move {
        let base = Arc::clone(&bench.images[0]);
        let other = bench.graph.add_overlay("other", SIZE, Some(&base)).unwrap();
        bench.graph.add_backend("second", &other).unwrap();
        let before = bench.graph.picture();
        let error = bench
            .commit(&json!({"top-node": "image2"}))
            .await
            .unwrap_err();
        assert!(error.to_string().contains("conflict"), "{error}");
        assert_eq!(bench.graph.picture(), before);
        bench.check_clean();
    });
}

/// A guest that writes where it likes, while one job after the other shortens its chain.
async fn history(mut bench: Bench) {
    let mut model = bench.shown().await;
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (disk, stopped) = (Arc::clone(&bench.disk), Arc::clone(&stop));
    let mut dice = Dice(bench.dice.0 ^ 0x5eed);
    let guest = current::spawn_local(async move {
        while !stopped.load(std::sync::atomic::Ordering::SeqCst) {
            let len = (dice.roll(20) + 1) * 512;
            let at = dice.roll((SIZE - len) / 512) * 512;
            let value = u8::try_from(dice.roll(255) + 1).unwrap();
            guest_write(&disk, at, len, value).await;
            model[at..at + len].fill(value);
            for _ in 0..dice.roll(4) {
                current::yield_now().await;
            }
        }
        model
    });
    while !bench.chain().is_empty() {
        let chain = bench.chain();
        let place = bench.dice.roll(chain.len());
        let name = chain[place].clone();
        let job = match bench.dice.roll(3) {
            0 => bench.stream(&json!({"bottom": name})).await.unwrap(),
            1 if place + 1 < chain.len() => bench.stream(&json!({"device": name})).await.unwrap(),
            _ if place + 1 < chain.len() => bench.commit(&json!({"top-node": name})).await.unwrap(),
            _ => continue,
        };
        for _ in 0..bench.dice.roll(40) {
            match bench.dice.roll(5) {
                0 => drop(job.pause()),
                1 => {
                    let nodes = bench.graph.nodes();
                    let node = &nodes[bench.dice.roll(nodes.len())];
                    drop(bench.graph.drain(node, "random").await);
                }
                _ => drop(job.resume()),
            }
            current::yield_now().await;
        }
        if bench.dice.roll(4) == 0 {
            drop(job.cancel(true));
        }
        while !matches!(job.state(), JobState::Concluded | JobState::Null) {
            drop(job.resume());
            current::yield_now().await;
        }
        drop(job.dismiss());
        bench.check_clean();
    }
    stop.store(true, std::sync::atomic::Ordering::SeqCst);
    let model = guest.await.unwrap();
    assert!(bench.shown().await == model);
}

#[test]
fn whatever_is_moved_below_it_the_disk_holds_what_was_written() {
    for seed in 0..40 {
        run_in(seed % 2 == 0, Clock::real(), 100 + seed, history);
    }
}
