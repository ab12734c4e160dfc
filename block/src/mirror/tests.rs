//! Mirrors over real files, with a writer that behaves as a device does: it enters the gate.

use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use sluice_aio::{Clock, EventLoop, IoBuffer, LoopConfig, current};

use super::*;
use crate::backend::Backend;
use crate::driver::DebugEvent;
use crate::event::{BlockEvent, EventSink};
use crate::graph::Graph;
use crate::job::{JobState, OnError};
use crate::options::BlockdevOptions;

const SIZE: u64 = 8 << 20;

#[derive(Default)]
struct Recorder(Mutex<Vec<BlockEvent>>);

impl EventSink for Recorder {
    fn emit(&self, event: BlockEvent) {
        self.0.lock().push(event);
    }
}

struct Bench {
    graph: Arc<Graph>,
    events: Arc<Recorder>,
    directory: tempfile::TempDir,
}

fn run<T: 'static, F: Future<Output = T> + 'static>(test: impl FnOnce(Bench) -> F) -> T {
    let mut event_loop = EventLoop::new("main", &LoopConfig::default()).unwrap();
    let events = Arc::new(Recorder::default());
    let graph = Graph::new(Arc::clone(&events) as Arc<dyn EventSink>, Clock::real());
    let directory = tempfile::tempdir().unwrap();
    event_loop
        .run_until(test(Bench {
            graph,
            events,
            directory,
        }))
        .unwrap()
}

fn image(path: &Path, fill: impl Fn(u64) -> u8) {
    let bytes: Vec<u8> = (0..SIZE / 4096)
        .flat_map(|chunk| [fill(chunk); 4096])
        .collect();
    std::fs::write(path, bytes).unwrap();
}

fn common(device: &str) -> MirrorCommon {
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
        auto_finalize: None,
        auto_dismiss: Some(false),
    }
}

impl Bench {
    async fn disk(&self, name: &str) -> Arc<Backend> {
        let path = self.directory.path().join(format!("{name}.img"));
        image(&path, |chunk| u8::try_from(chunk % 251).unwrap());
        let options = BlockdevOptions::raw_file(Some(format!("{name}-node")), path);
        let node = self.graph.add_node(&options).await.unwrap();
        let backend = self.graph.add_backend(name, &node).unwrap();
        backend.set_context(&current::context());
        backend
    }

    /// A blkdebug node over an empty image of the same size.
    async fn debug_target(&self, name: &str) {
        let path = self.directory.path().join(format!("{name}.img"));
        std::fs::File::create(&path).unwrap().set_len(SIZE).unwrap();
        let options = serde_json::json!({
            "driver": "blkdebug", "node-name": name,
            "image": {"driver": "raw", "file": {"driver": "file", "filename": path}}
        });
        let options = serde_json::from_value(options).unwrap();
        self.graph.add_node(&options).await.unwrap();
    }

    async fn mirror_to(&self, target: &str, device: &str) -> Result<(), crate::BlockError> {
        let arguments = BlockdevMirror {
            common: common(device),
            target: target.to_owned(),
            filter_node_name: None,
        };
        blockdev_mirror(&self.graph, arguments, &current::context()).await
    }

    async fn wait_for(&self, state: JobState) {
        loop {
            let job = self.graph.jobs().get("job0").unwrap();
            if job.state() == state {
                return;
            }
            assert_ne!(
                job.state(),
                JobState::Concluded,
                "{:?}",
                self.events.0.lock()
            );
            current::sleep(std::time::Duration::from_millis(1)).await;
        }
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.directory.path().join(format!("{name}.img"))).unwrap()
    }

    fn debug(&self, target: &str) -> Arc<crate::Node> {
        self.graph.node(target).unwrap()
    }
}

async fn guest_write(backend: Arc<Backend>, offset: u64, value: u8) {
    let token = backend.enter().await.unwrap();
    backend
        .write(&token, offset, IoBuffer::copied_from(&[value; 4096]))
        .await
        .unwrap();
}

#[test]
fn a_quiet_disk_is_copied_and_the_root_is_swapped() {
    run(|bench| async move {
        let disk = bench.disk("disk").await;
        bench.debug_target("target").await;
        bench.mirror_to("target", "disk").await.unwrap();
        bench.wait_for(JobState::Ready).await;
        assert_eq!(disk.node().unwrap().driver_name(), "mirror_top");
        bench.graph.jobs().get("job0").unwrap().complete().unwrap();
        bench.wait_for(JobState::Concluded).await;
        assert_eq!(disk.node().unwrap().name(), "target");
        assert_eq!(bench.bytes("disk"), bench.bytes("target"));
        assert_eq!(bench.graph.node("disk-node").unwrap().writer(), None);
        assert_eq!(
            bench.graph.node("target").unwrap().writer().as_deref(),
            Some("disk")
        );
        assert!(
            !bench
                .graph
                .nodes()
                .iter()
                .any(|node| node.driver_name() == "mirror_top")
        );
    });
}

/// The founding case: a write that arrives between "bitmap clean" and "root swapped".
#[test]
fn a_write_inside_the_window_waits_and_lands_on_the_target_alone() {
    run(|bench| async move {
        let disk = bench.disk("disk").await;
        bench.debug_target("target").await;
        bench.mirror_to("target", "disk").await.unwrap();
        bench.wait_for(JobState::Ready).await;
        let target = bench.debug("target");
        target
            .as_blkdebug()
            .unwrap()
            .set_break(DebugEvent::PivotClean, "window")
            .unwrap();
        bench.graph.jobs().get("job0").unwrap().complete().unwrap();
        target
            .as_blkdebug()
            .unwrap()
            .wait_break("window")
            .await
            .unwrap();

        let write = current::spawn_local(guest_write(Arc::clone(&disk), 1 << 20, 0xee));
        while disk.gate().parked() == 0 {
            current::yield_now().await;
        }
        let before = bench.bytes("disk");
        assert_eq!(before, bench.bytes("target"));
        target.as_blkdebug().unwrap().resume("window").unwrap();
        write.await.unwrap();
        assert_eq!(
            bench.bytes("disk"),
            before,
            "a write reached the old source"
        );
        assert_eq!(bench.bytes("target")[1 << 20], 0xee);
        bench.wait_for(JobState::Concluded).await;
    });
}

/// The same without the gate: the mirror must be seen to go wrong, or the test above shows nothing.
#[test]
fn a_device_that_ignores_the_section_loses_its_write() {
    run(|bench| async move {
        let disk = bench.disk("disk").await;
        bench.debug_target("target").await;
        bench.mirror_to("target", "disk").await.unwrap();
        bench.wait_for(JobState::Ready).await;
        let target = bench.debug("target");
        target
            .as_blkdebug()
            .unwrap()
            .set_break(DebugEvent::PivotClean, "window")
            .unwrap();
        bench.graph.jobs().get("job0").unwrap().complete().unwrap();
        target
            .as_blkdebug()
            .unwrap()
            .wait_break("window")
            .await
            .unwrap();

        let token = disk.enter_ignoring_sections();
        disk.write(&token, 1 << 20, IoBuffer::copied_from(&[0xee; 4096]))
            .await
            .unwrap();
        drop(token);
        target.as_blkdebug().unwrap().resume("window").unwrap();
        bench.wait_for(JobState::Concluded).await;
        assert_eq!(bench.bytes("disk")[1 << 20], 0xee);
        assert_ne!(
            bench.bytes("target")[1 << 20],
            0xee,
            "the lost write was not lost"
        );
    });
}

#[test]
fn writes_during_the_copy_are_in_the_target() {
    run(|bench| async move {
        let disk = bench.disk("disk").await;
        bench.debug_target("target").await;
        let writer = {
            let disk = Arc::clone(&disk);
            current::spawn_local(async move {
                for round in 0..2000u64 {
                    let offset = (round * 7919 % (SIZE / 4096)) * 4096;
                    guest_write(
                        Arc::clone(&disk),
                        offset,
                        u8::try_from(round % 256).unwrap(),
                    )
                    .await;
                }
            })
        };
        bench.mirror_to("target", "disk").await.unwrap();
        bench.wait_for(JobState::Ready).await;
        bench.graph.jobs().get("job0").unwrap().complete().unwrap();
        bench.wait_for(JobState::Concluded).await;
        let frozen = bench.bytes("disk");
        writer.await.unwrap();
        assert_eq!(
            frozen,
            bench.bytes("disk"),
            "a write reached the old source after the pivot"
        );
        assert_eq!(disk.node().unwrap().name(), "target");
    });
}

#[test]
fn impossible_mirrors_are_refused_and_change_nothing() {
    run(|bench| async move {
        let disk = bench.disk("disk").await;
        let small = serde_json::json!({"driver": "null-co", "node-name": "small", "size": 512});
        bench
            .graph
            .add_node(&serde_json::from_value(small).unwrap())
            .await
            .unwrap();
        let text = |result: Result<(), crate::BlockError>| result.unwrap_err().to_string();
        assert!(text(bench.mirror_to("small", "disk").await).contains("different sizes"));
        assert!(text(bench.mirror_to("disk-node", "disk").await).contains("into itself"));
        assert!(text(bench.mirror_to("nobody", "disk").await).contains("'nobody'"));
        assert!(text(bench.mirror_to("small", "nobody").await).contains("'nobody'"));
        let path = bench.directory.path().join("disk.img");
        let arguments = DriveMirror {
            common: common("disk"),
            target: path,
            format: None,
            node_name: None,
            mode: NewImageMode::AbsolutePaths,
            unmap: true,
        };
        let before = bench.bytes("disk");
        let own = drive_mirror(&bench.graph, arguments, &current::context()).await;
        assert!(text(own).contains("another block node"));
        assert_eq!(before, bench.bytes("disk"));
        assert_eq!(disk.node().unwrap().name(), "disk-node");
        bench.debug_target("target").await;
        bench.mirror_to("target", "disk").await.unwrap();
        assert!(
            text(bench.mirror_to("small", "disk").await).contains("in use by block job: mirror")
        );
    });
}
