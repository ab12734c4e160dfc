//! Images that hang, die, come back, and what comes of it for the guest. Time is the test's.

use std::sync::atomic::{AtomicBool, Ordering};

use super::phases::Kind;
use super::*;
use crate::drain::PATIENCE as MOMENT;
use crate::graph::BitmapAction;
use crate::job::tests::log::Log;
use crate::parting::PATIENCE;
use crate::parting::tests::{
    self as parting, begin_drain, hold, wait, wait_held, wait_held_up, wait_told_ending, way_out,
    yield_often,
};
use crate::transaction::{Action, CompletionMode, transact};

/// What hangs of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    Look,
    Read,
    Write,
    Flush,
}

const HELD: [Held; 4] = [Held::Look, Held::Read, Held::Write, Held::Flush];

impl Held {
    fn event(self) -> DebugEvent {
        match self {
            Self::Look => DebugEvent::BlockStatus,
            Self::Read => DebugEvent::ReadAio,
            Self::Write => DebugEvent::WriteAio,
            Self::Flush => DebugEvent::FlushToDisk,
        }
    }
}

impl Kind {
    /// As others are told.
    fn type_name(self) -> &'static str {
        match self {
            Self::Stream => "stream",
            Self::Commit | Self::ActiveCommit => "commit",
        }
    }

    /// The image that gets the data.
    fn written(self) -> &'static str {
        match self {
            Self::Stream => "top",
            Self::Commit | Self::ActiveCommit => "base",
        }
    }
}

/// How the job ends that nobody cancels.
async fn end_well(job: &Arc<Job>, kind: Kind) -> Option<String> {
    if kind == Kind::ActiveCommit {
        while job.complete().is_err() {
            current::yield_now().await;
        }
    }
    end(job).await
}

/// A chain whose images hold requests: the disk over `top` over `middle` over `base`, which is a file.
struct Chain {
    bench: Bench,
    disk: Arc<Backend>,
    /// Above the topmost image, above that in the middle, below the base.
    injectors: [Arc<Node>; 3],
    _directory: tempfile::TempDir,
}

/// The first cluster that a job of either kind copies. Only the base and the image in the middle hold it.
const FIRST: usize = 2;

impl Chain {
    async fn new(bench: Bench) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("base.img");
        std::fs::write(&path, vec![1; SIZE]).unwrap();
        let file = json!({"driver": "file", "filename": path});
        let injector = |name: &str, image: Value| {
            let options = json!({"driver": "blkdebug", "node-name": name, "image": image});
            serde_json::from_value(options).unwrap()
        };
        let graph = &bench.graph;
        let lowest = graph.add_node(&injector("lowest", file)).await.unwrap();
        let base = json!({"driver": "raw", "node-name": "base", "file": "lowest"});
        let base = serde_json::from_value(base).unwrap();
        let base = graph.add_node(&base).await.unwrap();
        let middle = graph.add_overlay("middle", SIZE, Some(&base)).unwrap();
        for cluster in [FIRST, FIRST + 1] {
            write(&middle, (cluster * CLUSTER) as u64, 2).await;
        }
        for image in [&base, &middle] {
            graph.set_read_only(image, true).unwrap();
        }
        let between = injector("between", json!("middle"));
        let between = graph.add_node(&between).await.unwrap();
        let top = graph.add_overlay("top", SIZE, Some(&between)).unwrap();
        for cluster in 0..FIRST {
            write(&top, (cluster * CLUSTER) as u64, 3).await;
        }
        let highest = injector("highest", json!("top"));
        let highest = graph.add_node(&highest).await.unwrap();
        let disk = graph.add_backend("second", &highest).unwrap();
        disk.set_context(&bench.context);
        Self {
            bench,
            disk,
            injectors: [highest, between, lowest],
            _directory: directory,
        }
    }

    /// The image that hangs if a job of that kind is held there.
    fn injector(&self, kind: Kind, held: Held) -> &Arc<Node> {
        let [highest, between, lowest] = &self.injectors;
        match (kind, held) {
            (Kind::Stream, _) => highest,
            (Kind::Commit | Kind::ActiveCommit, Held::Look | Held::Read) => between,
            (Kind::Commit | Kind::ActiveCommit, _) => lowest,
        }
    }

    async fn try_start(&self, id: &str, kind: Kind, more: &Value) -> Result<Arc<Job>, String> {
        let all = json!({"device": "second", "job-id": id, "auto-dismiss": false});
        let all = with(all, more);
        let main = current::context();
        let graph = &self.bench.graph;
        if kind == Kind::Stream {
            let arguments = serde_json::from_value(all).unwrap();
            let begun = block_stream(graph, &arguments, &main).await;
            begun.map_err(|error| error.to_string())?;
        } else {
            let top = match kind {
                Kind::ActiveCommit => "top",
                Kind::Stream | Kind::Commit => "middle",
            };
            let all = with(all, &json!({"top-node": top, "base-node": "base"}));
            let arguments = serde_json::from_value(all).unwrap();
            let begun = block_commit(graph, &arguments, &main).await;
            begun.map_err(|error| error.to_string())?;
        }
        Ok(graph.jobs().get(id).unwrap())
    }

    async fn start(&self, kind: Kind) -> Arc<Job> {
        self.try_start("job", kind, &json!({})).await.unwrap()
    }

    /// A job that hangs, and the image that it hangs at.
    async fn start_hanging(&self, kind: Kind, held: Held) -> (&Arc<Node>, Arc<Job>) {
        let injector = self.injector(kind, held);
        hold(injector, held.event());
        let job = self.start(kind).await;
        wait_held(injector).await;
        (injector, job)
    }

    async fn lose_patience(&self, job: &Job) {
        parting::lose_patience(&self.bench.clock, &self.bench.context, job).await;
    }

    fn names(&self) -> Vec<String> {
        let chain = self.disk.node().unwrap().backing_chain();
        chain.iter().map(|node| node.name().to_owned()).collect()
    }

    /// Waits until nobody holds the images any more; then all is as before the job.
    async fn wait_free(&self) {
        let is_free = |node: &Arc<Node>| node.check_not_blocked().is_ok();
        while !self.bench.graph.nodes().iter().all(is_free) {
            current::yield_now().await;
        }
        self.bench.check_clean();
        assert_eq!(self.disk.node().unwrap().name(), "highest");
        assert_eq!(self.names(), ["between", "base"]);
        for name in ["middle", "base"] {
            assert!(self.bench.graph.node(name).unwrap().is_read_only());
        }
    }

    fn was_cancelled(&self) -> bool {
        let cancelled = |event: BlockEvent| matches!(event, BlockEvent::BlockJobCancelled(_));
        self.bench.log.take().into_iter().any(cancelled)
    }
}

fn run_by_hand<F: Future<Output = ()>>(test: impl Fn(Chain) -> F + Copy + 'static) {
    for in_thread in [false, true] {
        run_in(in_thread, Clock::manual(), 50, move |bench| async move {
            test(Chain::new(bench).await).await;
        });
    }
}

/// Starts a guest's write, and says when it has ended.
fn begin_write(disk: &Arc<Backend>, cluster: usize, value: u8) -> Arc<AtomicBool> {
    let (disk, done) = (Arc::clone(disk), Arc::new(AtomicBool::new(false)));
    let ended = Arc::clone(&done);
    current::spawn_local(async move {
        guest_write(&disk, cluster * CLUSTER, CLUSTER, value).await;
        ended.store(true, Ordering::SeqCst);
    })
    .detach();
    done
}

#[test]
fn the_guest_goes_on_and_the_job_ends_without_its_images() {
    for kind in Kind::ALL {
        for held in HELD {
            run_by_hand(move |chain| async move {
                let graph = &chain.bench.graph;
                let mut expected = shown_by(&chain.disk).await;
                let (injector, job) = chain.start_hanging(kind, held).await;
                job.cancel(true).unwrap();
                // A write to what is being written waits for that, in the guest's own image.
                let overtakes = kind != Kind::Stream || held != Held::Write;
                let same = begin_write(&chain.disk, FIRST, 0xa0);
                expected[FIRST * CLUSTER..][..CLUSTER].fill(0xa0);
                // What was to be copied next.
                let far = COUNT - 1;
                guest_write(&chain.disk, far * CLUSTER, CLUSTER, 0xa1).await;
                expected[far * CLUSTER..][..CLUSTER].fill(0xa1);
                if overtakes {
                    wait(&same).await;
                }
                chain.lose_patience(&job).await;
                assert!(chain.was_cancelled());
                job.dismiss().unwrap();
                assert_eq!(same.load(Ordering::SeqCst), overtakes);
                if overtakes {
                    assert!(shown_by(&chain.disk).await == expected);
                    // The disk has nothing to do with it any more.
                    let root = chain.disk.node().unwrap();
                    drop(graph.drain(&root, "test").await);
                }

                // What hangs keeps the images, and the sections over them.
                let name = kind.type_name();
                let busy = format!(
                    "is busy: block device is in use by block job: {name} 'job', whose last requests have not returned"
                );
                let refused = chain
                    .try_start("again", kind, &json!({}))
                    .await
                    .unwrap_err();
                assert!(refused.contains(&busy), "{refused}");
                let base = graph.node("base").unwrap();
                let drained = begin_drain(graph, &base);
                yield_often().await;
                assert!(!drained.load(Ordering::SeqCst));

                // It comes back.
                injector.as_blkdebug().unwrap().resume("hang").unwrap();
                wait(&drained).await;
                wait(&same).await;
                chain.wait_free().await;
                assert!(shown_by(&chain.disk).await == expected);
                let job = chain.start(kind).await;
                assert_eq!(end_well(&job, kind).await, None);
                assert!(shown_by(&chain.disk).await == expected);
            });
        }
    }
}

/// Sections over the images wait for what hangs, whether they were there before the job ended or come later; and the guest for none of them.
#[test]
fn sections_that_wait_for_what_was_left_hold_nobody() {
    for kind in Kind::ALL {
        for held in HELD {
            run_by_hand(move |chain| async move {
                let graph = &chain.bench.graph;
                let mut expected = shown_by(&chain.disk).await;
                let (injector, job) = chain.start_hanging(kind, held).await;
                let base = graph.node("base").unwrap();
                let early = begin_drain(graph, &base);
                yield_often().await;
                let parked = begin_write(&chain.disk, COUNT - 1, 0xa1);
                expected[(COUNT - 1) * CLUSTER..].fill(0xa1);
                yield_often().await;
                assert!(!parked.load(Ordering::SeqCst), "the section is there");
                job.cancel(true).unwrap();
                chain.lose_patience(&job).await;
                assert!(chain.was_cancelled());
                job.dismiss().unwrap();
                wait(&parked).await;
                let late = begin_drain(graph, &base);
                yield_often().await;
                guest_write(&chain.disk, (COUNT - 2) * CLUSTER, CLUSTER, 0xa2).await;
                expected[(COUNT - 2) * CLUSTER..][..CLUSTER].fill(0xa2);
                for drained in [&early, &late] {
                    assert!(!drained.load(Ordering::SeqCst));
                }
                injector.as_blkdebug().unwrap().resume("hang").unwrap();
                for drained in [&early, &late] {
                    wait(drained).await;
                }
                chain.wait_free().await;
                assert!(shown_by(&chain.disk).await == expected);
            });
        }
    }
}

/// A transaction waits for what was left of one disk's job, and holds no other disk meanwhile.
#[test]
fn a_transaction_that_waits_for_what_was_left_holds_no_other_disk() {
    run_by_hand(|chain| async move {
        let (injector, job) = chain.start_hanging(Kind::Commit, Held::Write).await;
        job.cancel(true).unwrap();
        chain.lose_patience(&job).await;
        let graph = Arc::clone(&chain.bench.graph);
        let ended = Arc::new(AtomicBool::new(false));
        let has_ended = Arc::clone(&ended);
        current::spawn_local(async move {
            // First the disk that has nothing to do with it.
            let actions = ["disk", "base"].map(|node| {
                let add = json!({"node": node, "name": "b"});
                Action::Bitmap(BitmapAction::Add(serde_json::from_value(add).unwrap()))
            });
            let main = current::context();
            let done = transact(&graph, &actions, CompletionMode::Individual, &main).await;
            has_ended.store(done.is_ok(), Ordering::SeqCst);
        })
        .detach();
        yield_often().await;
        let other = begin_write(&chain.bench.disk, 0, 0xa3);
        wait(&other).await;
        assert!(!ended.load(Ordering::SeqCst));
        injector.as_blkdebug().unwrap().resume("hang").unwrap();
        wait(&ended).await;
        chain.wait_free().await;
    });
}

/// It comes back with an error, which nobody hears, while the job still waits.
#[test]
fn images_that_die_are_free_again() {
    for kind in Kind::ALL {
        for held in HELD {
            run_by_hand(move |chain| async move {
                let expected = shown_by(&chain.disk).await;
                let (injector, job) = chain.start_hanging(kind, held).await;
                job.cancel(true).unwrap();
                let injector = injector.as_blkdebug().unwrap();
                injector.fail("hang", libc::EIO).unwrap();
                job.concluded().await;
                let events = chain.bench.log.take();
                let failed = |event: &BlockEvent| matches!(event, BlockEvent::BlockJobError { .. });
                assert!(!events.iter().any(failed));
                chain.wait_free().await;
                assert!(shown_by(&chain.disk).await == expected);
            });
        }
    }
}

/// What a copy has read when its job gives up is not written any more: the guest may have changed it.
#[test]
fn what_was_read_is_not_written_any_more() {
    for kind in Kind::ALL {
        run_by_hand(move |chain| async move {
            let (injector, job) = chain.start_hanging(kind, Held::Read).await;
            let written = chain.bench.graph.node(kind.written());
            let before = written.unwrap();
            let before = held_by(&before, FIRST).await;
            job.cancel(true).unwrap();
            injector.as_blkdebug().unwrap().resume("hang").unwrap();
            job.concluded().await;
            chain.wait_free().await;
            let written = chain.bench.graph.node(kind.written());
            assert_eq!(held_by(&written.unwrap(), FIRST).await, before);
        });
    }
}

/// Whether an image itself holds a cluster, and the first byte that it shows there.
async fn held_by(image: &Node, cluster: usize) -> (Allocation, u8) {
    let at = (cluster * CLUSTER) as u64;
    let status = image.layer_status(at, CLUSTER as u64).await.unwrap();
    let buffer = IoBuffer::alloc(CLUSTER);
    image.read(at, buffer.clone()).await.unwrap();
    (status.allocation, buffer.to_vec()[0])
}

#[test]
fn all_jobs_end_when_the_program_does() {
    for kind in Kind::ALL {
        for held in HELD {
            run_by_hand(move |chain| async move {
                let (injector, job) = chain.start_hanging(kind, held).await;
                let graph = Arc::clone(&chain.bench.graph);
                let down = Arc::new(AtomicBool::new(false));
                let is_down = Arc::clone(&down);
                current::spawn_local(async move {
                    graph.jobs().shut_down().await;
                    is_down.store(true, Ordering::SeqCst);
                })
                .detach();
                while !down.load(Ordering::SeqCst) {
                    assert!(chain.bench.clock.advance(PATIENCE / 4));
                    chain.bench.context.notify();
                    yield_often().await;
                }
                assert!(chain.bench.graph.jobs().get(job.id()).is_none());
                injector.as_blkdebug().unwrap().resume("hang").unwrap();
                chain.wait_free().await;
            });
        }
    }
}

/// Errors of the flush at the end are the operator's, as all others are.
#[test]
fn a_flush_that_fails_is_judged() {
    for kind in Kind::ALL {
        for (policy, state) in [("report", JobState::Concluded), ("stop", JobState::Paused)] {
            run_by_hand(move |chain| async move {
                let expected = shown_by(&chain.disk).await;
                let injector = chain.injector(kind, Held::Flush);
                let debug = injector.as_blkdebug().unwrap();
                debug.inject(InjectError::new(DebugEvent::FlushToDisk, libc::EIO));
                let more = json!({"on-error": policy});
                let job = chain.try_start("job", kind, &more).await.unwrap();
                match state {
                    JobState::Paused => stopped(&job).await,
                    _ => wait_for(&job, state).await,
                }
                let mut events = chain.bench.log.take().into_iter();
                let operation = events.find_map(|event| match event {
                    BlockEvent::BlockJobError { operation, .. } => Some(operation),
                    _ => None,
                });
                assert_eq!(operation, Some(IoOperation::Write));
                debug.clear_errors();
                if state == JobState::Paused {
                    job.resume().unwrap();
                    assert_eq!(end_well(&job, kind).await, None);
                    assert!(chain.names().len() < 2, "the chain is shorter");
                } else {
                    assert_eq!(end(&job).await.as_deref(), Some("Input/output error"));
                    chain.wait_free().await;
                }
                assert!(shown_by(&chain.disk).await == expected);
            });
        }
    }
}

/// A command that wants an image of the job is told the way out; no longer to end the job when that is ending.
#[test]
fn a_command_is_told_that_the_job_is_ending() {
    for kind in Kind::ALL {
        for held in HELD {
            run_by_hand(move |chain| async move {
                let (injector, job) = chain.start_hanging(kind, held).await;
                let names = ["base", "between", "top"];
                let images = names.map(|name| chain.bench.graph.node(name).unwrap());
                // The disk's own image has nothing to do with a commit of one below it.
                let images = match kind {
                    Kind::Commit => &images[..2],
                    Kind::Stream | Kind::ActiveCommit => &images[..],
                };
                for image in images {
                    let advice = match kind {
                        Kind::Stream | Kind::Commit => {
                            "wait for the job's end, or end it by 'job-cancel'"
                        }
                        Kind::ActiveCommit => {
                            "wait for the job's end, or end it: by 'job-complete' when it is ready, or by 'job-cancel'"
                        }
                    };
                    assert_eq!(way_out(image), Some(advice));
                }
                job.cancel(true).unwrap();
                for image in images {
                    wait_told_ending(image).await;
                }
                while job.state() != JobState::Aborting {
                    current::yield_now().await;
                }
                for image in images {
                    wait_told_ending(image).await;
                }
                chain.lose_patience(&job).await;
                for image in images {
                    assert_eq!(way_out(image), Some("it is free when they have"));
                }
                injector.as_blkdebug().unwrap().resume("hang").unwrap();
                chain.wait_free().await;
            });
        }
    }
}

/// A section waits for a job that is ending: nobody is told to cancel it.
#[test]
fn a_section_that_waits_for_a_job_that_is_ending_says_so() {
    for kind in Kind::ALL {
        for held in HELD {
            run_by_hand(move |chain| async move {
                let (injector, job) = chain.start_hanging(kind, held).await;
                job.cancel(true).unwrap();
                while job.state() != JobState::Aborting {
                    current::yield_now().await;
                }
                let base = chain.bench.graph.node("base").unwrap();
                let drained = begin_drain(&chain.bench.graph, &base);
                yield_often().await;
                assert!(chain.bench.clock.advance(MOMENT));
                chain.bench.context.notify();
                let name = kind.type_name();
                assert_eq!(
                    wait_held_up(&chain.bench.graph, &base).await,
                    format!("{name} 'job' to rest, which is ending already")
                );
                injector.as_blkdebug().unwrap().resume("hang").unwrap();
                wait(&drained).await;
                job.concluded().await;
                chain.wait_free().await;
            });
        }
    }
}

/// The machine stops: what its guest writes to is made durable, and it does not wait long for images that hang with their job.
#[test]
fn a_machine_stops_although_a_backing_image_hangs() {
    // An image that is only read from has nothing to be flushed.
    for held in [Held::Write, Held::Flush] {
        run_by_hand(move |chain| async move {
            let graph = Arc::clone(&chain.bench.graph);
            let (injector, job) = chain.start_hanging(Kind::Commit, held).await;
            let [highest, ..] = &chain.injectors;
            let mut expected = shown_by(&chain.disk).await;
            guest_write(&chain.disk, 0, CLUSTER, 0xa0).await;
            expected[..CLUSTER].fill(0xa0);
            for node in [highest, injector] {
                let debug = node.as_blkdebug().unwrap();
                debug.set_break(DebugEvent::FlushToDisk, "flush").unwrap();
            }
            let ended = Arc::new(AtomicBool::new(false));
            let (stops, has_ended) = (Arc::clone(&graph), Arc::clone(&ended));
            let stops = current::spawn_local(async move {
                let left = stops.come_to_rest("stop").await;
                has_ended.store(true, Ordering::SeqCst);
                left
            });
            yield_often().await;
            chain.bench.clock.advance(MOMENT);
            // However long the guest's own image takes.
            let own = highest.as_blkdebug().unwrap();
            own.wait_break("flush").await.unwrap();
            chain.bench.clock.advance(PATIENCE);
            yield_often().await;
            assert!(!ended.load(Ordering::SeqCst));
            own.resume("flush").unwrap();
            let image = injector.as_blkdebug().unwrap();
            image.wait_break("flush").await.unwrap();
            yield_often().await;
            assert!(!ended.load(Ordering::SeqCst), "it waits for a while");
            chain.bench.clock.advance(PATIENCE);
            assert!(stops.await.unwrap().is_empty());
            assert_eq!(job.state(), JobState::Running);
            graph.resume();
            image.resume("flush").unwrap();
            image.resume("hang").unwrap();
            assert_eq!(end(&job).await, None);
            assert!(shown_by(&chain.disk).await == expected);
        });
    }
}

/// Runs `test` in one thread, with a log in which all is said.
fn run_logged<F: Future<Output = ()> + 'static>(test: impl FnOnce(Chain, Log) -> F + 'static) {
    Log::keep(|log| {
        run_in(false, Clock::manual(), 50, move |bench| async move {
            test(Chain::new(bench).await, log).await;
        });
    });
}

/// One that is to complete, and reads an image that hangs, is told that a cancel by force ends it; and it does.
#[test]
fn a_commit_that_is_to_complete_says_what_ends_it() {
    for (held, request) in [(Held::Look, "the block status"), (Held::Read, "a read")] {
        run_logged(move |chain, log| async move {
            let job = chain.start(Kind::ActiveCommit).await;
            wait_for(&job, JobState::Ready).await;
            let mut expected = shown_by(&chain.disk).await;
            // What this chunk begins with is further down.
            let cluster = (64 << 10) / CLUSTER + 1;
            guest_write(&chain.disk, cluster * CLUSTER, CLUSTER, 0xa0).await;
            expected[cluster * CLUSTER..][..CLUSTER].fill(0xa0);
            let injector = chain.injector(Kind::ActiveCommit, held);
            hold(injector, held.event());
            job.complete().unwrap();
            wait_held(injector).await;
            chain.bench.clock.advance(MOMENT);
            yield_often().await;
            let said = format!("commit 'job' is to end and waits for {request} of node 'top'");
            assert_eq!(log.count(&said), 1, "{}", log.last());
            let way_out =
                "('job-cancel', or 'block-job-cancel' with force, ends the job without it)";
            assert!(log.last().contains(way_out), "{}", log.last());
            job.cancel(true).unwrap();
            chain.lose_patience(&job).await;
            assert!(chain.was_cancelled());
            assert_eq!(log.count(way_out), 1, "{}", log.last());
            assert!(shown_by(&chain.disk).await == expected);
            injector.as_blkdebug().unwrap().resume("hang").unwrap();
            chain.wait_free().await;
        });
    }
}

/// A stream's request reads below the image and writes to it.
#[test]
fn a_stream_says_what_it_waits_for() {
    run_logged(|chain, log| async move {
        let (injector, job) = chain.start_hanging(Kind::Stream, Held::Read).await;
        job.cancel(true).unwrap();
        yield_often().await;
        chain.bench.clock.advance(MOMENT);
        yield_often().await;
        let said = "stream 'job' is to end and waits for a copy of data from below node 'top' into that node, begun 1 s ago";
        assert_eq!(log.count(said), 1, "{}", log.last());
        injector.as_blkdebug().unwrap().resume("hang").unwrap();
        job.concluded().await;
        chain.wait_free().await;
    });
}

/// Queries name the image that hangs, or above which it does, once it is not a matter of a moment any more.
#[test]
fn queries_say_what_a_job_waits_for() {
    use crate::job::AwaitedOperation::{Copy, Flush, Look, Read, Write};
    for (kind, held, node, operation) in [
        (Kind::Stream, Held::Look, "highest", Look),
        (Kind::Commit, Held::Look, "between", Look),
        (Kind::ActiveCommit, Held::Look, "top", Look),
        (Kind::Stream, Held::Read, "top", Copy),
        (Kind::Stream, Held::Write, "top", Copy),
        (Kind::Stream, Held::Flush, "highest", Flush),
        (Kind::Commit, Held::Read, "between", Read),
        (Kind::Commit, Held::Write, "base", Write),
        (Kind::Commit, Held::Flush, "base", Flush),
        (Kind::ActiveCommit, Held::Read, "top", Read),
        (Kind::ActiveCommit, Held::Write, "base", Write),
        (Kind::ActiveCommit, Held::Flush, "base", Flush),
    ] {
        run_by_hand(move |chain| async move {
            let (injector, job) = chain.start_hanging(kind, held).await;
            assert_eq!(job.awaited(), []);
            assert!(chain.bench.clock.advance(MOMENT));
            let shown = [(node.to_owned(), operation, false)];
            while parting::awaited(&job) != shown {
                current::yield_now().await;
            }
            injector.as_blkdebug().unwrap().resume("hang").unwrap();
            assert_eq!(end_well(&job, kind).await, None);
        });
    }
}
