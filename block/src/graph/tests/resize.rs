//! `block_resize`: disks that grow and shrink under their guests, in sections and beside jobs, and
//! what is refused.

use std::cell::{Cell, RefCell};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use serde_json::{Value, json};
use sluice_aio::{IoBuffer, JoinHandle, current};

use super::bench::{Bench, run, settle, write};
use crate::backend::Backend;
use crate::error::{BlockError, Result};
use crate::graph::parent::Parent;
use crate::node::Node;
use crate::permission::{Access, Permissions};

/// A file of `len` ones.
fn image(directory: &Path, len: usize) -> std::path::PathBuf {
    let path = directory.join("image");
    std::fs::write(&path, vec![1; len]).unwrap();
    path
}

/// `block_resize` as a task.
fn resize(bench: &Bench, node: &Arc<Node>, size: u64) -> JoinHandle<Result<()>> {
    let (graph, node) = (Arc::clone(&bench.graph), Arc::clone(node));
    current::spawn_local(async move { graph.resize(&node, size).await })
}

async fn read(node: &Node, offset: u64, len: usize) -> Vec<u8> {
    let buffer = IoBuffer::alloc(len);
    buffer.fill(0, len, 0xee);
    node.read(offset, buffer.clone()).await.unwrap();
    buffer.to_vec()
}

async fn refusal(bench: &Bench, node: &Arc<Node>, size: u64) -> String {
    let before = (node.len(), node.access(), node.parents().len());
    let error = bench.graph.resize(node, size).await.unwrap_err();
    assert_eq!(before, (node.len(), node.access(), node.parents().len()));
    error.to_string()
}

#[test]
fn a_disk_changes_its_size_between_requests() {
    run(async |bench| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        std::fs::write(&path, [1; 4096]).unwrap();
        let file = json!({"driver": "file", "filename": path});
        let options = json!({"driver": "raw", "node-name": "raw", "file": file});
        let node = bench.add(options).await.unwrap();
        let disk = bench.graph.add_backend("disk", &node).unwrap();
        let token = disk.enter().await.unwrap();
        let resizing = resize(&bench, &node, 8192);
        settle().await;
        assert_eq!(node.len(), 4096, "resized under a request");
        drop(token);
        resizing.await.unwrap().unwrap();
        assert_eq!((node.len(), disk.len()), (8192, 8192));
        assert!(!disk.gate().is_closed());
        let new = IoBuffer::alloc(4096);
        node.read(4096, new.clone()).await.unwrap();
        assert_eq!(new.to_vec(), [0; 4096]);
        bench.graph.resize(&node, 512).await.unwrap();
        assert!(write(&disk, 512).await.is_err(), "beyond the new end");
        write(&disk, 0).await.unwrap();
        assert_eq!(
            node.access(),
            Access::of_device(false),
            "the right was given back"
        );
    });
}

#[test]
fn a_size_is_refused_with_a_reason_and_nothing_changes() {
    run(async |bench| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        std::fs::write(&path, [1; 4096]).unwrap();
        let file = json!({"driver": "file", "node-name": "file", "filename": path});
        let node = bench.add(file).await.unwrap();
        let error = bench.graph.resize(&node, 1 << 63).await.unwrap_err();
        assert!(error.to_string().contains("too big"), "{error}");
        // Somebody above relies on the size.
        let keeper = Parent::Claim("a keeper".into());
        let mut change = bench.graph.transaction();
        let access = Access {
            used: Permissions::CONSISTENT_READ,
            shared: Permissions::RESIZE.complement(),
        };
        change.attach(&node, keeper.clone(), "role", access);
        change.commit().unwrap();
        let error = bench.graph.resize(&node, 512).await.unwrap_err();
        assert!(matches!(error, BlockError::Conflict(_)), "{error}");
        bench.graph.let_go(&node, &keeper, "role");
        node.block("mirror").unwrap();
        let error = bench.graph.resize(&node, 512).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "Node 'file' is busy: block device is in use by block job: mirror"
        );
        node.unblock();
        let null = json!({"driver": "null-co", "node-name": "ro", "read-only": true});
        let read_only = bench.add(null).await.unwrap();
        assert!(bench.graph.resize(&read_only, 512).await.is_err());
        assert_eq!(node.len(), 4096);
        assert_eq!(node.access(), Access::NONE);
        assert!(node.parents().is_empty());
    });
}

/// The guest's view: a request sees one size from its entry to its end, and what it may reach.
#[test]
fn no_request_sees_its_disk_change_its_size() {
    const STEPS: [u64; 8] = [8192, 512, 65536, 4096, 1024, 32768, 16384, 4096];
    run(async |bench| {
        let directory = tempfile::tempdir().unwrap();
        let path = image(directory.path(), 4096);
        let file = json!({"driver": "file", "filename": path});
        let options = json!({"driver": "raw", "node-name": "raw", "file": file});
        let node = bench.add(options).await.unwrap();
        let disk = bench.graph.add_backend("disk", &node).unwrap();
        let (stop, sizes) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(0)));
        let broken = Rc::new(RefCell::new(Vec::new()));
        let guest = |number: u64| {
            let disk: Arc<Backend> = Arc::clone(&disk);
            let (stop, sizes, broken) = (Rc::clone(&stop), Rc::clone(&sizes), Rc::clone(&broken));
            current::spawn_local(async move {
                let mut seen = 0;
                let mut offset = number * 512;
                while !stop.get() {
                    let token = disk.enter().await.unwrap();
                    let before = disk.len();
                    current::yield_now().await;
                    let result = disk.write(&token, offset, IoBuffer::alloc(512)).await;
                    let fits = offset + 512 <= before;
                    if disk.len() != before || result.is_ok() != fits {
                        let after = disk.len();
                        broken.borrow_mut().push((offset, before, after, result));
                    }
                    if before != seen {
                        seen = before;
                        sizes.set(sizes.get() + 1);
                    }
                    offset = (offset + 4 * 512) % 65536;
                    drop(token);
                }
            })
        };
        let guests = [0, 1, 2, 3].map(guest);
        for size in STEPS {
            let before = sizes.get();
            bench.graph.resize(&node, size).await.unwrap();
            while sizes.get() < before + guests.len() {
                current::yield_now().await;
            }
            assert_eq!(std::fs::metadata(&path).unwrap().len(), size);
        }
        stop.set(true);
        for guest in guests {
            guest.await.unwrap();
        }
        let broken = broken.take();
        assert!(broken.is_empty(), "{broken:?}");
        assert_eq!(disk.gate().parked(), 0);
    });
}

/// What is cut off is gone: grown again, the disk has zeroes there.
#[test]
fn what_was_cut_off_does_not_come_back() {
    run(async |bench| {
        let directory = tempfile::tempdir().unwrap();
        let path = image(directory.path(), 8192);
        for options in [
            json!({"driver": "file", "node-name": "file", "filename": path}),
            json!({"driver": "file", "node-name": "file", "filename": path, "aio": "threads"}),
            json!({"driver": "file", "node-name": "file", "filename": path,
                   "cache": {"direct": true}}),
        ] {
            std::fs::write(&path, [1; 8192]).unwrap();
            let node = match bench.add(options).await {
                Ok(node) => node,
                Err(error) => {
                    assert!(error.to_string().contains("cache.direct=off"), "{error}");
                    println!("SKIPPED: {error}");
                    continue;
                }
            };
            bench.graph.resize(&node, 4096).await.unwrap();
            bench.graph.resize(&node, 12288).await.unwrap();
            assert_eq!(read(&node, 0, 4096).await, [1; 4096]);
            assert_eq!(read(&node, 4096, 8192).await, [0; 8192]);
            let twos = IoBuffer::alloc(4096);
            twos.fill(0, 4096, 2);
            let flags = crate::driver::RequestFlags::empty();
            node.write(8192, twos, flags).await.unwrap();
            assert_eq!(read(&node, 8192, 4096).await, [2; 4096]);
            bench.graph.del_node("file").unwrap();
            assert_eq!(std::fs::metadata(&path).unwrap().len(), 12288);
        }
    });
}

/// Sections of others neither keep a resize from its end nor are ended by it.
#[test]
fn a_disk_is_resized_within_sections_of_others() {
    run(async |bench| {
        let directory = tempfile::tempdir().unwrap();
        let path = image(directory.path(), 4096);
        let file = json!({"driver": "file", "node-name": "file", "filename": path});
        let node = bench.add(file).await.unwrap();
        let disk = bench.graph.add_backend("disk", &node).unwrap();
        let outer = bench.graph.drain(&node, "outer").await;
        let all = bench.graph.drain_all("all").await;
        let late = {
            let disk = Arc::clone(&disk);
            current::spawn_local(async move { write(&disk, 4096).await })
        };
        settle().await;
        bench.graph.resize(&node, 8192).await.unwrap();
        assert_eq!(disk.len(), 8192);
        assert_eq!(
            disk.gate().parked(),
            1,
            "the resize has ended the others' sections"
        );
        drop(outer);
        settle().await;
        assert_eq!(disk.gate().parked(), 1);
        drop(all);
        late.await.unwrap().unwrap();
        assert_eq!(read(&node, 4096, 512).await, [0; 512]);
    });
}

/// A guest's request that waits for the machine to go on is no request under way: it meets the new
/// size when it is done again.
#[test]
fn a_halted_request_meets_the_new_size() {
    use crate::backend::{ErrorPolicy, Submitter};
    use crate::job::OnError;
    run(async |bench| {
        let directory = tempfile::tempdir().unwrap();
        let path = image(directory.path(), 4096);
        let file = json!({"driver": "file", "filename": path});
        let rule = json!([{"event": "write_aio", "errno": 5, "once": true}]);
        let options = json!({"driver": "blkdebug", "node-name": "disk", "image": file,
                             "inject-error": rule});
        let node = bench.add(options).await.unwrap();
        let disk = bench.graph.add_backend("disk0", &node).unwrap();
        disk.set_policy(ErrorPolicy::new(OnError::Stop, OnError::Stop));
        let submitter = Submitter::new(Arc::clone(&disk));
        let guest = current::spawn_local(async move {
            let token = submitter.backend().enter().await?;
            let mut request = submitter.request(token);
            request.write(2048, IoBuffer::alloc(512)).await
        });
        while disk.halted() == 0 {
            current::yield_now().await;
        }
        bench.graph.resize(&node, 1024).await.unwrap();
        assert_eq!(disk.halted(), 1);
        disk.resume();
        // No cont could help, so the policy, which is to halt, is not asked.
        let refused = guest.await.unwrap();
        assert!(matches!(refused, Err(BlockError::OutOfRange { .. })));
        assert_eq!(disk.halted(), 0);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 1024);
    });
}

/// A window into a file: with an offset alone it grows with the file, with a size it never does.
#[test]
fn a_window_grows_with_its_file_unless_its_size_was_given() {
    run(async |bench| {
        let directory = tempfile::tempdir().unwrap();
        let path = image(directory.path(), 8192);
        let file = json!({"driver": "file", "node-name": "file", "filename": path});
        bench.add(file).await.unwrap();
        let window = |name: &str, more: Value| {
            let mut options = json!({"driver": "raw", "node-name": name, "file": "file"});
            let members = options.as_object_mut().unwrap();
            members.extend(more.as_object().unwrap().clone());
            options
        };
        let open = bench
            .add(window("open", json!({"offset": 1024})))
            .await
            .unwrap();
        bench.graph.resize(&open, 4096).await.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 5120);
        assert_eq!(open.len(), 4096);
        bench.graph.resize(&open, 15360).await.unwrap();
        assert_eq!(read(&open, 0, 512).await, [1; 512]);
        assert_eq!(read(&open, 4096, 512).await, [0; 512]);
        assert_eq!(
            refusal(&bench, &open, (1 << 63) - 512).await,
            "Disk size too large for the chosen offset"
        );
        let fixed = window("fixed", json!({"offset": 512, "size": 1024}));
        let fixed = bench.add(fixed).await.unwrap();
        for size in [512, 1024, 4096] {
            assert_eq!(
                refusal(&bench, &fixed, size).await,
                "Cannot resize fixed-size raw disks"
            );
        }
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 16384);
    });
}

/// O_DIRECT asks for whole blocks of a disk: a size that has none at its end can't be had.
#[test]
fn a_direct_file_keeps_whole_blocks() {
    run(async |bench| {
        let directory = tempfile::tempdir().unwrap();
        let path = image(directory.path(), 8192);
        let options = json!({"driver": "file", "node-name": "file", "filename": path,
                             "cache": {"direct": true}});
        let Ok(node) = bench.add(options).await else {
            println!("SKIPPED: no O_DIRECT on {}", path.display());
            return;
        };
        for size in [8192 + 4096, 4096] {
            bench.graph.resize(&node, size).await.unwrap();
            let last = read(&node, size - 512, 512).await;
            assert_eq!(last, [u8::from(size == 4096); 512]);
        }
        let said = refusal(&bench, &node, 4096 + 100).await;
        assert!(said.contains("multiple"), "{said}");
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 4096);
    });
}

/// Who can't be resized, or can't be just now, is left as it was, and its file as well.
#[test]
fn a_medium_that_refuses_keeps_its_size() {
    run(async |bench| {
        let directory = tempfile::tempdir().unwrap();
        let path = image(directory.path(), 4096);
        let reader = json!({"driver": "file", "node-name": "reader", "filename": path,
                            "read-only": true});
        let reader = bench.add(reader).await.unwrap();
        let said = refusal(&bench, &reader, 8192).await;
        assert_eq!(said, "node 'reader' is read-only");
        let above = json!({"driver": "raw", "node-name": "above", "file": "reader"});
        let above = bench.add(above).await.unwrap();
        let said = refusal(&bench, &above, 8192).await;
        assert_eq!(said, "node 'above' is read-only");
        let null = json!({"driver": "null-co", "node-name": "null", "size": 4096});
        let null = bench.add(null).await.unwrap();
        assert_eq!(
            refusal(&bench, &null, 8192).await,
            "Image format driver does not support resize"
        );
        // A node that has gone, of which somebody still has hold.
        let file = json!({"driver": "file", "node-name": "file", "filename": path});
        let node = bench.add(file).await.unwrap();
        for size in [0, 100, 513] {
            let said = refusal(&bench, &node, size).await;
            assert_eq!(
                said,
                "The new size must be a multiple of 512 bytes, and not 0"
            );
        }
        bench.graph.del_node("file").unwrap();
        let said = refusal(&bench, &node, 8192).await;
        assert_eq!(said, "Failed to find node with node-name='file'");
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 4096);
    });
}

/// Somebody took the node while the resize waited: it is looked at again inside the section.
#[test]
fn a_job_that_came_first_keeps_the_size() {
    run(async |bench| {
        let directory = tempfile::tempdir().unwrap();
        let path = image(directory.path(), 4096);
        let file = json!({"driver": "file", "node-name": "file", "filename": path});
        let node = bench.add(file).await.unwrap();
        let disk = bench.graph.add_backend("disk", &node).unwrap();
        let token = disk.enter().await.unwrap();
        let resizing = resize(&bench, &node, 512);
        settle().await;
        node.block("mirror").unwrap();
        drop(token);
        let error = resizing.await.unwrap().unwrap_err();
        assert_eq!(
            error.to_string(),
            "Node 'file' is busy: block device is in use by block job: mirror"
        );
        assert_eq!(
            (node.len(), node.access()),
            (4096, Access::of_device(false))
        );
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 4096);
        assert!(!disk.gate().is_closed());
        node.unblock();
        bench.graph.resize(&node, 512).await.unwrap();
    });
}
