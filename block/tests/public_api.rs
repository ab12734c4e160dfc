//! A disk moves under its guest, by nothing but what the crate offers to others: the way of the
//! QMP commands on one side and of a device in an iothread on the other.
#![expect(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "the whole crate is a test"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Map, Value, json};
use sluice_aio::{Clock, EventLoop, IoBuffer, IoThread, LoopConfig, current};
use sluice_block::job::OnError;
use sluice_block::mirror::{CopyMode, DriveMirror, MirrorCommon, SyncMode, drive_mirror};
use sluice_block::{Backend, BlockEvent, EventSink, Graph};

const SIZE: u64 = 4 << 20;
const BLOCK: usize = 4096;

/// The job's error, and what it has to tell.
type End = (Option<String>, Map<String, Value>);

/// Hands the events to the test.
#[derive(Default)]
struct Events {
    ready: event_listener::Event,
    completed: parking_lot::Mutex<Option<End>>,
}

impl EventSink for Events {
    fn emit(&self, event: BlockEvent) {
        match event {
            BlockEvent::BlockJobReady(_) => {
                self.ready.notify(1);
            }
            BlockEvent::BlockJobCompleted { error, details, .. } => {
                *self.completed.lock() = Some((error, details));
            }
            _ => {}
        }
    }
}

/// Writes one block after the other, each with its own number, until told to stop; returns how many.
async fn guest(disk: Arc<Backend>, stop: Arc<AtomicBool>) -> u64 {
    let mut written = 0u64;
    while !stop.load(Ordering::Relaxed) {
        let token = disk.enter().await.unwrap();
        let buffer = IoBuffer::alloc(BLOCK);
        buffer.copy_from_slice(0, &written.to_le_bytes());
        let offset = written * BLOCK as u64 % SIZE;
        disk.write(&token, offset, buffer).await.unwrap();
        written += 1;
    }
    written
}

#[test]
fn a_disk_moves_under_its_guest() {
    let mut main = EventLoop::new("main", &LoopConfig::default()).unwrap();
    let thread = IoThread::spawn("io0", LoopConfig::default()).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let (old, new) = (directory.path().join("old"), directory.path().join("new"));
    std::fs::File::create(&old).unwrap().set_len(SIZE).unwrap();
    let events = Arc::new(Events::default());
    let graph = Graph::new(Arc::clone(&events) as Arc<dyn EventSink>, Clock::real());

    let (context, filename, target) = (thread.context().clone(), old.clone(), new.clone());
    let (written, frozen) = main
        .run_until(async move {
            let options = json!({
                "driver": "raw", "node-name": "old",
                "file": {"driver": "file", "filename": filename}
            });
            let options = serde_json::from_value(options).unwrap();
            let node = graph.add_node(&options).await.unwrap();
            let disk = graph.add_backend("disk", &node).unwrap();
            disk.set_context(&context);
            let stop = Arc::new(AtomicBool::new(false));
            let writer = {
                let (disk, stop) = (Arc::clone(&disk), Arc::clone(&stop));
                context.call(move || guest(disk, stop))
            };
            let arguments = DriveMirror {
                common: MirrorCommon {
                    job_id: None,
                    device: "disk".to_owned(),
                    sync: SyncMode::Full,
                    speed: None,
                    granularity: None,
                    buf_size: None,
                    on_source_error: OnError::Report,
                    on_target_error: OnError::Report,
                    copy_mode: CopyMode::Background,
                    replaces: None,
                    auto_finalize: None,
                    auto_dismiss: None,
                },
                target,
                format: Some("raw".to_owned()),
                node_name: Some("new".to_owned()),
                mode: sluice_block::options::NewImageMode::AbsolutePaths,
                unmap: true,
            };
            let ready = events.ready.listen();
            drive_mirror(&graph, arguments, &current::context())
                .await
                .unwrap();
            ready.await;
            let job = graph.jobs().get("disk").unwrap();
            job.complete().unwrap();
            job.concluded().await;
            assert_eq!(disk.node().unwrap().name(), "new");
            let frozen = std::fs::read(&filename).unwrap();
            // The guest goes once more over the whole disk.
            let before = disk.stats().of(sluice_block::backend::Account::Write);
            let before = before.operations.load(Ordering::Relaxed);
            let after = before + SIZE / BLOCK as u64;
            let writes = || disk.stats().of(sluice_block::backend::Account::Write);
            while writes().operations.load(Ordering::Relaxed) < after {
                current::yield_now().await;
            }
            stop.store(true, Ordering::Relaxed);
            let written = writer.await.unwrap();
            let (error, details) = events.completed.lock().take().unwrap();
            assert_eq!(error, None);
            assert!(details.contains_key("x-pivot-pause-us"), "{details:?}");
            graph.remove_backend(&disk).await;
            (written, frozen)
        })
        .unwrap();

    assert_eq!(
        std::fs::read(old).unwrap(),
        frozen,
        "written after the pivot"
    );
    let image = std::fs::read(new).unwrap();
    let blocks = SIZE / BLOCK as u64;
    for number in written - blocks..written {
        let at = usize::try_from(number % blocks).unwrap() * BLOCK;
        assert_eq!(image[at..at + 8], number.to_le_bytes(), "block {at:#x}");
    }
}
