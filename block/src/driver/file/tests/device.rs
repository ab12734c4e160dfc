//! Block devices of the host: loop devices with blocks of 512 and of 4096 bytes. They need root;
//! without, the tests say so. What O_DIRECT asks of a device is tested for everybody with probes
//! that are injected (`probe::tests`).

use std::future::Future;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use serde_json::{Value, json};
use sluice_aio::{Clock, EventLoop, IoBuffer, LoopConfig, current};

use crate::driver::{Allocation, RequestFlags};
use crate::{BlockEvent, EventSink, Graph, Node};

const SIZE: u64 = 8 << 20;

/// Nobody listens.
struct Silence;

impl EventSink for Silence {
    fn emit(&self, _event: BlockEvent) {}
}

/// A loop device on a file of its own.
struct LoopDevice {
    path: PathBuf,
    image: PathBuf,
    _directory: tempfile::TempDir,
}

impl LoopDevice {
    /// Sets one up; without the right to, says so.
    fn new(block: u32) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("disk.img");
        std::fs::File::create(&image)
            .unwrap()
            .set_len(SIZE)
            .unwrap();
        let output = Command::new("losetup")
            .args(["--find", "--show", "--sector-size", &block.to_string()])
            .arg(&image)
            .output();
        match output {
            Ok(output) if output.status.success() => {
                let path = String::from_utf8(output.stdout).unwrap();
                Some(Self {
                    path: PathBuf::from(path.trim()),
                    image,
                    _directory: directory,
                })
            }
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                println!("SKIPPED: no loop device: {said}");
                None
            }
            Err(error) => {
                println!("SKIPPED: no loop device: losetup: {error}");
                None
            }
        }
    }

    fn allocated(&self) -> u64 {
        std::fs::metadata(&self.image).unwrap().blocks() * 512
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let detached = Command::new("losetup")
            .arg("--detach")
            .arg(&self.path)
            .status();
        assert!(detached.unwrap().success());
    }
}

fn run<F: Future<Output = ()> + 'static>(test: impl FnOnce(Arc<Graph>) -> F) {
    let mut event_loop = EventLoop::new("main", &LoopConfig::default()).unwrap();
    let graph = Graph::new(Arc::new(Silence), Clock::real());
    event_loop.run_until(test(graph)).unwrap();
}

async fn add(graph: &Graph, path: &Path, more: Value) -> crate::error::Result<Arc<Node>> {
    let mut options = json!({"driver": "host_device", "node-name": "device", "filename": path});
    let members = more.as_object().unwrap().clone();
    options.as_object_mut().unwrap().extend(members);
    let options = serde_json::from_value(options).unwrap();
    graph.add_node(&options).await
}

fn filled(len: usize, value: u8) -> IoBuffer {
    let buffer = IoBuffer::alloc(len);
    buffer.fill(0, len, value);
    buffer
}

#[test]
fn each_driver_takes_its_own_kind_of_file() {
    run(|graph| async move {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, [0; 512]).unwrap();
        let said = add(&graph, &path, json!({})).await.unwrap_err().to_string();
        let expected = format!(
            "'host_device' driver requires '{}' to be a block device",
            path.display()
        );
        assert_eq!(said, expected);
        let Some(device) = LoopDevice::new(512) else {
            return;
        };
        let regular = json!({"driver": "file"});
        let said = add(&graph, &device.path, regular).await.unwrap_err();
        let expected = format!(
            "'file' driver requires '{}' to be a regular file",
            device.path.display()
        );
        assert_eq!(said.to_string(), expected);
    });
}

#[test]
fn a_device_is_read_written_zeroed_and_discarded() {
    for (block, direct) in [(512, false), (512, true), (4096, false), (4096, true)] {
        let Some(device) = LoopDevice::new(block) else {
            return;
        };
        run(move |graph| async move {
            let options = json!({"cache": {"direct": direct}, "discard": "unmap"});
            let node = add(&graph, &device.path, options).await.unwrap();
            assert_eq!(node.len(), SIZE);
            assert_eq!(node.driver_name(), "host_device");
            let alignment = node.driver().limits().request_alignment;
            assert_eq!(alignment, if direct { block } else { 1 });
            // A sector within a larger block, from memory that O_DIRECT would refuse.
            node.write(0, filled(1 << 20, 1), RequestFlags::empty())
                .await
                .unwrap();
            let odd = filled(1024, 2).slice(1, 512);
            node.write(512, odd, RequestFlags::FUA).await.unwrap();
            let back = IoBuffer::alloc(3 * 512 + 1).slice(1, 3 * 512);
            node.read(0, back.clone()).await.unwrap();
            let expected = [[1; 512], [2; 512], [1; 512]].concat();
            assert_eq!(back.to_vec(), expected);
            node.flush().await.unwrap();
            let status = node.block_status(0, 1 << 20).await.unwrap();
            assert_eq!(status.allocation, Allocation::Data, "a device can't tell");
            let before = device.allocated();
            node.write_zeroes(8192, 4096, RequestFlags::empty())
                .await
                .unwrap();
            node.discard(64 << 10, 512 << 10).await.unwrap();
            node.flush().await.unwrap();
            assert!(
                device.allocated() < before,
                "the discard has reached the file below"
            );
            let zeroed = filled(4096, 9);
            node.read(8192, zeroed.clone()).await.unwrap();
            assert!(zeroed.is_zero());
            let kept = IoBuffer::alloc(512);
            node.read(12288, kept.clone()).await.unwrap();
            assert_eq!(kept.to_vec(), [1; 512]);
            graph.del_node("device").unwrap();
            drop(node);
            current::blocking(move || drop(device)).await.unwrap();
        });
    }
}

#[test]
fn one_device_by_two_names_is_one_disk() {
    let Some(device) = LoopDevice::new(512) else {
        return;
    };
    run(move |graph| async move {
        let directory = tempfile::tempdir().unwrap();
        let alias = directory.path().join("alias");
        std::os::unix::fs::symlink(&device.path, &alias).unwrap();
        let one = add(&graph, &device.path, json!({})).await.unwrap();
        let other = add(&graph, &alias, json!({"node-name": "alias"}))
            .await
            .unwrap();
        assert_eq!(one.file_identity(), other.file_identity());
        graph.add_backend("disk", &one).unwrap();
        let said = graph.add_backend("other", &other).unwrap_err().to_string();
        assert!(said.contains("lock"), "{said}");
        drop((one, other, graph));
        current::blocking(move || drop(device)).await.unwrap();
    });
}
