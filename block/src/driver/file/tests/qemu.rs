//! Image locks against the real `qemu-img` and `qemu-io`: who holds an image keeps the others out,
//! in both directions, and `locking=off` keeps nobody out.

use std::future::Future;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::Arc;

use crate::{BlockEvent, BlockdevOptions, EventSink, Graph, Node};
use serde_json::json;
use sluice_aio::{Clock, EventLoop, LoopConfig, current};

const SIZE: u64 = 1 << 20;

/// Nobody listens.
struct Silence;

impl EventSink for Silence {
    fn emit(&self, _event: BlockEvent) {}
}

/// Whether the program is here; says so if not, since then nothing is tested.
fn has(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok();
    if !found {
        println!("SKIPPED: {program} is not installed");
    }
    found
}

/// Runs `test` with a graph and an image.
fn run<F: Future<Output = ()> + 'static>(test: impl FnOnce(Arc<Graph>, PathBuf) -> F) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.raw");
    std::fs::File::create(&path).unwrap().set_len(SIZE).unwrap();
    let mut event_loop = EventLoop::new("main", &LoopConfig::default()).unwrap();
    let graph = Graph::new(Arc::new(Silence), Clock::real());
    event_loop.run_until(test(graph, path)).unwrap();
}

fn options(path: &Path, read_only: bool, locking: &str) -> BlockdevOptions {
    let options = json!({"driver": "file", "node-name": "file", "filename": path,
                         "read-only": read_only, "locking": locking});
    serde_json::from_value(options).unwrap()
}

async fn node(graph: &Graph, path: &Path, read_only: bool) -> Arc<Node> {
    graph
        .add_node(&options(path, read_only, "on"))
        .await
        .unwrap()
}

/// Runs a program on the image to its end in a worker thread.
async fn command(program: &'static str, arguments: &[&str], path: &Path) -> Output {
    let mut command = Command::new(program);
    command.args(arguments).arg(path);
    if arguments[0] == "convert" {
        command.arg(path.with_extension("copy"));
    }
    current::blocking(move || command.output().unwrap())
        .await
        .unwrap()
}

/// Copies the image, for which nobody may be writing to it.
async fn may_read(path: &Path) -> Result<(), String> {
    let output = command("qemu-img", &["convert", "-f", "raw", "-O", "raw"], path).await;
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).into_owned())
}

async fn may_write(path: &Path) -> Result<(), String> {
    let output = command("qemu-io", &["-f", "raw", "-c", "write 0 512"], path).await;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    // Some versions end with success although they could not open the image.
    if output.status.success() && !said.contains("lock") {
        return Ok(());
    }
    Err(said)
}

#[test]
fn qemu_is_kept_out_of_an_image_in_use() {
    if !has("qemu-img") || !has("qemu-io") {
        return;
    }
    run(|graph, path| async move {
        may_write(&path).await.unwrap();
        // A node that nobody uses is open, but not in anybody's way.
        let file = node(&graph, &path, false).await;
        may_write(&path).await.unwrap();
        let disk = graph.add_backend("disk", &file).unwrap();
        let said = may_read(&path).await.unwrap_err();
        assert!(
            said.contains("Failed to get shared \"write\" lock"),
            "{said}"
        );
        let said = may_write(&path).await.unwrap_err();
        assert!(said.contains("Failed to get \"write\" lock"), "{said}");
        graph.remove_backend(&disk).await;
        may_write(&path).await.unwrap();
    });
}

#[test]
fn a_reader_keeps_qemu_from_writing_and_not_from_reading() {
    if !has("qemu-img") || !has("qemu-io") {
        return;
    }
    run(|graph, path| async move {
        let file = node(&graph, &path, true).await;
        let disk = graph.add_backend("disk", &file).unwrap();
        may_read(&path).await.unwrap();
        let said = may_write(&path).await.unwrap_err();
        assert!(said.contains("lock"), "{said}");
        graph.remove_backend(&disk).await;
        may_write(&path).await.unwrap();
    });
}

#[test]
fn locking_off_keeps_nobody_out() {
    if !has("qemu-io") {
        return;
    }
    run(|graph, path| async move {
        let off = options(&path, false, "off");
        let file = graph.add_node(&off).await.unwrap();
        graph.add_backend("disk", &file).unwrap();
        may_write(&path).await.unwrap();
    });
}

/// A `qemu-io` that has an image open.
struct Holder {
    child: Child,
    input: Option<ChildStdin>,
}

impl Holder {
    fn open(path: &Path, read_only: bool) -> Self {
        let mut command = Command::new("qemu-io");
        command.args(["-f", "raw"]);
        if read_only {
            command.arg("-r");
        }
        let mut child = command
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        writeln!(input, "length").unwrap();
        // The answer comes once the image is open.
        let mut line = String::new();
        while !line.contains("MiB") {
            line.clear();
            assert!(
                output.read_line(&mut line).unwrap() > 0,
                "qemu-io has ended"
            );
        }
        Self {
            child,
            input: Some(input),
        }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.input.take());
        self.child.wait().unwrap();
    }
}

#[test]
fn an_image_that_qemu_uses_is_refused() {
    if !has("qemu-io") {
        return;
    }
    run(|graph, path| async move {
        let opened = path.clone();
        let writer = current::blocking(move || Holder::open(&opened, false));
        let writer = writer.await.unwrap();
        let file = node(&graph, &path, false).await;
        let said = graph.add_backend("disk", &file).unwrap_err().to_string();
        assert!(said.contains("Failed to get \"write\" lock"), "{said}");
        current::blocking(move || drop(writer)).await.unwrap();
        let disk = graph.add_backend("disk", &file).unwrap();
        graph.remove_backend(&disk).await;

        // A reader here, too, must not see others write; a reader there is in nobody's way.
        graph.del_node("file").unwrap();
        let file = node(&graph, &path, true).await;
        let opened = path.clone();
        let writer = current::blocking(move || Holder::open(&opened, false));
        let writer = writer.await.unwrap();
        let said = graph.add_backend("disk", &file).unwrap_err().to_string();
        assert!(said.contains("lock"), "{said}");
        current::blocking(move || drop(writer)).await.unwrap();
        let opened = path.clone();
        let reader = current::blocking(move || Holder::open(&opened, true));
        let reader = reader.await.unwrap();
        graph.add_backend("disk", &file).unwrap();
        current::blocking(move || drop(reader)).await.unwrap();
    });
}

#[test]
fn who_shares_by_force_reads_beside_a_writer() {
    if !has("qemu-io") {
        return;
    }
    run(|graph, path| async move {
        let opened = path.clone();
        let writer = current::blocking(move || Holder::open(&opened, false));
        let writer = writer.await.unwrap();
        let file = json!({"driver": "file", "filename": path, "locking": "on"});
        let shared = json!({"driver": "raw", "node-name": "raw", "file": file,
                            "read-only": true, "force-share": true});
        let shared = serde_json::from_value(shared).unwrap();
        let raw = graph.add_node(&shared).await.unwrap();
        graph.add_backend("disk", &raw).unwrap();
        current::blocking(move || drop(writer)).await.unwrap();
        // Nor does it keep one out that comes later.
        may_write(&path).await.unwrap();
    });
}
