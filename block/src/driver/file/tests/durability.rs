//! A flush that has failed once: the kernel would not say so again.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use std::rc::Rc;

use serde_json::{Value, json};
use sluice_aio::{Aside, Clock};

use super::*;
use crate::driver::DebugEvent;
use crate::driver::throttle::ThrottleGroups;
use crate::graph::Graph;
use crate::node::Node;
use crate::{Backend, BlockEvent, EventSink};

struct Silent;

impl EventSink for Silent {
    fn emit(&self, _: BlockEvent) {}
}

/// A descriptor that can't be synced (fsync(2), "EINVAL").
fn unsyncable() -> Arc<Aside<File>> {
    let (end, _) = UnixStream::pair().unwrap();
    Arc::new(File::from(OwnedFd::from(end)).into())
}

/// Lets the flushes of the driver fail until what is given back is stored again.
fn break_flushes(driver: &FileDriver) -> Arc<Opened> {
    let healthy = driver.opened();
    let mut broken = Opened::clone(&healthy);
    broken.file = unsyncable();
    driver.opened.store(Arc::new(broken));
    healthy
}

async fn flush_errno(driver: &FileDriver) -> Option<i32> {
    driver.flush().await.err().map(|error| error.errno())
}

/// Reopens without the page cache or with it; another opening only if that changes.
async fn reopen(driver: &FileDriver, change: impl FnOnce(&mut Reopening<'_>)) {
    try_reopen(driver, change).await.unwrap();
}

async fn try_reopen(driver: &FileDriver, change: impl FnOnce(&mut Reopening<'_>)) -> Result<()> {
    let options = json!({"driver": "file", "filename": driver.path()});
    let options = serde_json::from_value(options).unwrap();
    let groups = ThrottleGroups::new(Clock::manual());
    let mut wanted = Reopening {
        options: &options,
        read_only: false,
        auto_read_only: false,
        direct: false,
        no_flush: false,
        unmap: false,
        groups: &groups,
        child_size: 0,
    };
    change(&mut wanted);
    let reopened = driver.prepare_reopen(wanted).await?;
    if reopened.exchanges {
        // As the graph does.
        driver.flush().await?;
    }
    driver.commit_reopen(reopened);
    Ok(())
}

#[test]
fn after_a_failed_flush_none_succeeds_while_the_node_keeps_the_file() {
    for engine in [EngineKind::IoUring, EngineKind::Threads] {
        let directory = tempfile::tempdir().unwrap();
        let mut options = FileOptions::new(filled(directory.path(), "image", 1));
        options.engine = engine;
        options.read_only = true;
        let driver = open(options);
        run(async move {
            assert_eq!(flush_errno(&driver).await, None);
            let healthy = break_flushes(&driver);
            assert_eq!(flush_errno(&driver).await, Some(libc::EINVAL));
            driver.opened.store(healthy);
            for _ in 0..3 {
                assert_eq!(flush_errno(&driver).await, Some(libc::EINVAL));
            }
            // Other options for the same opening bring nothing back that was lost.
            reopen(&driver, |wanted| wanted.read_only = true).await;
            assert_eq!(flush_errno(&driver).await, Some(libc::EINVAL));
            // Who gives up durability asks for no flush.
            reopen(&driver, |wanted| {
                (wanted.read_only, wanted.no_flush) = (true, true);
            })
            .await;
            assert_eq!(flush_errno(&driver).await, None);
            reopen(&driver, |wanted| wanted.read_only = true).await;
            assert_eq!(flush_errno(&driver).await, Some(libc::EINVAL));
            // Nor is it forgotten by opening the file for writing.
            assert!(try_reopen(&driver, |_| {}).await.is_err());
            assert!(!driver.is_writable());
            // Nor by giving up durability in the same step.
            let unsafely = |wanted: &mut Reopening<'_>| wanted.no_flush = true;
            assert!(try_reopen(&driver, unsafely).await.is_err());
        });
    }
}

#[test]
fn the_first_errno_of_several_failures_stays() {
    let directory = tempfile::tempdir().unwrap();
    let driver = open(FileOptions::new(filled(directory.path(), "image", 1)));
    run(async move {
        driver.opened().lost.store(libc::EIO, Ordering::SeqCst);
        break_flushes(&driver);
        assert_eq!(flush_errno(&driver).await, Some(libc::EIO));
    });
}

/// Nothing waits in the page cache there: a flush that succeeds has made all of it durable.
#[test]
fn past_the_page_cache_a_flush_may_be_tried_again() {
    let directory = tempfile::tempdir().unwrap();
    let driver = open(FileOptions::new(filled(directory.path(), "image", 1)));
    run(async move {
        let mut direct = Opened::clone(&driver.opened());
        direct.direct = true;
        driver.opened.store(Arc::new(direct));
        let healthy = break_flushes(&driver);
        assert_eq!(flush_errno(&driver).await, Some(libc::EINVAL));
        driver.opened.store(healthy);
        assert_eq!(flush_errno(&driver).await, None);
    });
}

/// A file in a graph, below a node that can hold its requests.
struct Below {
    graph: Arc<Graph>,
    disk: Arc<Backend>,
    debug: Arc<Node>,
    file: Arc<Node>,
    options: Value,
}

async fn below(engine: &str, path: &Path) -> Below {
    let graph = Graph::new(Arc::new(Silent), Clock::real());
    let options = json!({"driver": "file", "node-name": "file", "filename": path, "aio": engine});
    let debug = json!({"driver": "blkdebug", "node-name": "debug", "image": options});
    let debug = serde_json::from_value(debug).unwrap();
    let debug = graph.add_node(&debug).await.unwrap();
    Below {
        disk: graph.add_backend("disk", &debug).unwrap(),
        file: graph.node("file").unwrap(),
        graph,
        debug,
        options,
    }
}

impl Below {
    fn driver(&self) -> &FileDriver {
        self.file.driver().as_file().unwrap()
    }

    /// Reopens the file past the page cache.
    async fn reopen_direct(&self) -> Result<()> {
        let mut options = self.options.clone();
        options["cache"] = json!({"direct": true});
        let options = serde_json::from_value(options).unwrap();
        self.graph.reopen(&[options]).await
    }
}

/// Another way round the page cache is another opening, which the kernel would tell nothing of what the
/// first has lost.
#[test]
fn an_opening_is_flushed_before_another_takes_its_place() {
    for engine in ["io_uring", "threads"] {
        let directory = tempfile::tempdir().unwrap();
        let path = filled(directory.path(), "image", 1);
        run(async move {
            let below = below(engine, &path).await;
            let healthy = break_flushes(below.driver());
            for _ in 0..2 {
                let text = below.reopen_direct().await.unwrap_err().to_string();
                assert_eq!(text, "Error flushing drive: Invalid argument");
                assert!(!below.driver().opened().direct);
                assert!(below.file.drained_by().is_empty());
                // Nor when the next flush would find nothing to complain of.
                below.driver().opened.store(Arc::clone(&healthy));
            }
            assert_eq!(flush_errno(below.driver()).await, Some(libc::EINVAL));
        });
    }
}

/// What is written until the section begins is covered.
#[test]
fn an_opening_is_flushed_inside_the_section() {
    let directory = tempfile::tempdir().unwrap();
    let path = filled(directory.path(), "image", 1);
    run(async move {
        let below = Rc::new(below("io_uring", &path).await);
        let debug = below.debug.as_blkdebug().unwrap();
        debug.set_break(DebugEvent::WriteAio, "held").unwrap();
        let disk = Arc::clone(&below.disk);
        let write = current::spawn_local(async move {
            let token = disk.enter().await.unwrap();
            disk.write(&token, 0, IoBuffer::alloc(512)).await
        });
        debug.wait_break("held").await.unwrap();
        let reopening = Rc::clone(&below);
        let reopened = current::spawn_local(async move { reopening.reopen_direct().await });
        while !below.disk.gate().is_closed() {
            current::yield_now().await;
        }
        // What was on its way when all was made ready is lost.
        let healthy = break_flushes(below.driver());
        debug.resume("held").unwrap();
        assert!(write.await.unwrap().is_err());
        let refused = reopened.await.unwrap().unwrap_err().to_string();
        assert_eq!(refused, "Error flushing drive: Invalid argument");
        assert!(!below.driver().opened().direct);
        below.driver().opened.store(healthy);
    });
}
