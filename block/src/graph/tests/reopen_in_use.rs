//! `blockdev-reopen` of nodes on which somebody relies: their size, and where their bytes are, stay; all else may change.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};
use sluice_aio::{IoBuffer, current};

use super::bench::{Bench, pass, run, settle};
use crate::error::{BlockError, Result};
use crate::graph::parent::Parent;
use crate::node::Node;
use crate::permission::Access;

const SIZE: u64 = 8192;
const JOB: &str = "mirror 'j'";

async fn reopen(bench: &Bench, options: Vec<Value>) -> Result<()> {
    let parse = |options| serde_json::from_value(options).unwrap();
    let options: Vec<_> = options.into_iter().map(parse).collect();
    bench.graph.reopen(&options).await
}

/// The options of node `name`, and more.
fn node(driver: &str, name: &str, more: Value) -> Value {
    let mut options = json!({"driver": driver, "node-name": name});
    let Value::Object(more) = more else {
        panic!("{more}")
    };
    options.as_object_mut().unwrap().extend(more);
    options
}

/// `top` (raw) over `middle` (blkdebug) over `low` (raw) over the file `one`. `two` is another file of its size, `small` a
/// shorter one.
struct Stack {
    directory: tempfile::TempDir,
    top: Arc<Node>,
}

impl Stack {
    async fn new(bench: &Bench) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let stack = |directory: &Path, name: &str, byte: u8, size: u64| {
            let path = directory.join(name);
            let mut bytes = vec![byte; usize::try_from(size).unwrap()];
            bytes[4096..].fill(byte + 10);
            std::fs::write(&path, bytes).unwrap();
            node("file", name, json!({"filename": path}))
        };
        for (name, byte, size) in [("one", 1, SIZE), ("two", 2, SIZE), ("small", 3, 4096)] {
            let options = stack(directory.path(), name, byte, size);
            bench.add(options).await.unwrap();
        }
        let low = json!({"file": "one", "offset": 0, "size": 4096});
        bench.add(node("raw", "low", low)).await.unwrap();
        let middle = node("blkdebug", "middle", json!({"image": "low"}));
        bench.add(middle).await.unwrap();
        let top = node("raw", "top", json!({"file": "middle"}));
        let top = bench.add(top).await.unwrap();
        Self { directory, top }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Reopens that give `top` another size, or show it other bytes, each with the node that gets another size.
    fn changes(&self) -> Vec<(Option<&'static str>, Value)> {
        let low = |more: Value| node("raw", "low", more);
        let file = json!({"driver": "file", "filename": self.path("one")});
        let window = json!({"driver": "raw", "file": file, "offset": 512, "size": 512});
        vec![
            // Itself.
            (
                Some("top"),
                node("raw", "top", json!({"file": "middle", "size": 512})),
            ),
            (
                Some("top"),
                node("raw", "top", json!({"file": "middle", "offset": 512})),
            ),
            (Some("top"), node("raw", "top", json!({"file": "two"}))),
            (None, node("raw", "top", json!({"file": "small"}))),
            // What is below it, named and nested.
            (
                Some("middle"),
                node("blkdebug", "middle", json!({"image": "two"})),
            ),
            (None, node("blkdebug", "middle", json!({"image": "small"}))),
            (
                Some("low"),
                low(json!({"file": "one", "offset": 0, "size": 2048})),
            ),
            (Some("low"), low(json!({"file": "one"}))),
            (
                None,
                low(json!({"file": "one", "offset": 4096, "size": 4096})),
            ),
            (None, low(json!({"file": "two", "offset": 0, "size": 4096}))),
            (
                Some("middle"),
                node("blkdebug", "middle", json!({"image": window})),
            ),
        ]
    }
}

async fn first_byte(node: &Node) -> u8 {
    let buffer = IoBuffer::alloc(512);
    node.read(0, buffer.clone()).await.unwrap();
    buffer.to_vec()[0]
}

#[test]
fn what_a_job_has_is_not_put_elsewhere() {
    run(async |bench| {
        let stack = Stack::new(&bench).await;
        stack.top.block(JOB).unwrap();
        for (_, change) in stack.changes() {
            let text = change.to_string();
            let error = reopen(&bench, vec![change]).await.expect_err(&text);
            assert!(error.way_out().is_some(), "{text}");
            let error = error.to_string();
            let busy = "Node 'top' is busy: block device is in use by block job: mirror 'j'";
            assert_eq!(error, busy, "{text}");
            assert_eq!((stack.top.len(), first_byte(&stack.top).await), (4096, 1));
        }
        stack.top.unblock();
        for (_, change) in stack.changes() {
            let text = change.to_string();
            reopen(&bench, vec![change]).await.expect(&text);
            let shown = (stack.top.len(), first_byte(&stack.top).await);
            let low = json!({"file": "one", "size": 4096});
            let all_back = vec![
                node("raw", "low", low),
                node("blkdebug", "middle", json!({"image": "low"})),
                node("raw", "top", json!({"file": "middle"})),
            ];
            assert_ne!(shown, (4096, 1), "{text}");
            reopen(&bench, all_back).await.expect(&text);
        }
    });
}

#[test]
fn what_a_job_has_is_served_in_another_way() {
    run(async |bench| {
        let stack = Stack::new(&bench).await;
        stack.top.block(JOB).unwrap();
        let file = |more: Value| {
            let mut options = node("file", "one", more);
            options["filename"] = json!(stack.path("one"));
            options
        };
        let low = json!({"file": "one", "size": 4096, "discard": "unmap"});
        for change in [
            node(
                "raw",
                "top",
                json!({"file": "middle", "detect-zeroes": "on"}),
            ),
            // What it is anyway.
            node("raw", "top", json!({"file": "middle", "size": 4096})),
            node(
                "blkdebug",
                "middle",
                json!({"image": "low", "cache": {"no-flush": true}}),
            ),
            node("raw", "low", low),
            file(json!({"cache": {"direct": false, "no-flush": true}})),
            file(json!({"aio": "threads", "discard": "unmap", "detect-zeroes": "unmap"})),
            file(json!({"read-only": true})),
            file(json!({})),
        ] {
            let text = change.to_string();
            reopen(&bench, vec![change]).await.expect(&text);
        }
        // It gives nothing to the node that the job has.
        let above = node("raw", "above", json!({"file": "two"}));
        bench.add(above).await.unwrap();
        let other = node("raw", "above", json!({"file": "two", "offset": 512}));
        reopen(&bench, vec![other]).await.unwrap();
    });
}

/// What is copied there is not what the filter shows, and what stands above a node does not change it.
#[test]
fn a_job_binds_what_its_node_shows_and_nothing_else() {
    run(async |bench| {
        let _stack = Stack::new(&bench).await;
        let target = json!({"file": "two", "offset": 0, "size": 4096});
        bench.add(node("raw", "copies", target)).await.unwrap();
        let filter = json!({"file": "top", "target": "copies"});
        let filter = node("copy-before-write", "filter", filter);
        let filter = bench.add(filter).await.unwrap();
        filter.block(JOB).unwrap();
        let moved = |offset: u64| json!({"file": "two", "offset": offset, "size": 4096});
        reopen(&bench, vec![node("raw", "copies", moved(4096))])
            .await
            .unwrap();
        let moved = json!({"file": "one", "offset": 4096, "size": 4096});
        let error = reopen(&bench, vec![node("raw", "low", moved.clone())]).await;
        let error = error.unwrap_err();
        assert!(matches!(&error, BlockError::Busy { node, .. } if node == "filter"));
        filter.unblock();
        bench.graph.node("one").unwrap().block(JOB).unwrap();
        reopen(&bench, vec![node("raw", "low", moved)])
            .await
            .unwrap();
    });
}

/// Nor does anybody have to know of the filter that a job has put above its node.
#[test]
fn a_jobs_filter_is_not_in_the_way() {
    run(async |bench| {
        let stack = Stack::new(&bench).await;
        let low = bench.graph.node("low").unwrap();
        low.block(JOB).unwrap();
        let (driver, _) = pass(&low, None);
        let filter = bench
            .graph
            .insert_filter("mirror 'j'", None, &low, driver)
            .unwrap();
        let middle = |image: Value| {
            node(
                "blkdebug",
                "middle",
                json!({"image": image, "detect-zeroes": "on"}),
            )
        };
        let low_as = |size: u64| json!({"driver": "raw", "file": "one", "size": size});
        for image in [json!("low"), json!(filter.name()), low_as(4096)] {
            reopen(&bench, vec![middle(image)]).await.unwrap();
            let below = stack.top.children()[0].1.children()[0].1.clone();
            assert!(Arc::ptr_eq(&below, &filter));
        }
        let error = reopen(&bench, vec![middle(low_as(512))]).await;
        assert!(matches!(error, Err(BlockError::Busy { node, .. }) if node == "low"));
    });
}

/// As with `block_resize`: whoever does not share resizing keeps the size, with a job or without one.
#[test]
fn a_size_that_is_not_shared_stays() {
    run(async |bench| {
        let stack = Stack::new(&bench).await;
        let keeper = Parent::Claim("the keeper".into());
        let mut change = bench.graph.transaction();
        change.attach(&stack.top, keeper.clone(), "kept", Access::OF_JOB_FILTER);
        change.commit().unwrap();
        for (resized, change) in stack.changes() {
            // It is of the same size afterwards.
            let Some(resized) = resized else { continue };
            let text = change.to_string();
            let error = reopen(&bench, vec![change]).await.expect_err(&text);
            let error = error.to_string();
            let conflict = format!(
                "Permission conflict on node '{resized}': permissions 'resize' are both required by \
                 the command blockdev-reopen (uses node '{resized}' as 'resize' child) and unshared by "
            );
            assert!(error.starts_with(&conflict), "{text}: {error}");
            assert_eq!((stack.top.len(), first_byte(&stack.top).await), (4096, 1));
        }
        // Neither the claim of the command nor a lock of it has stayed.
        bench.graph.let_go(&stack.top, &keeper, "kept");
        let smaller = node("raw", "top", json!({"file": "middle", "size": 512}));
        reopen(&bench, vec![smaller]).await.unwrap();
        assert_eq!(stack.top.len(), 512);
        assert_eq!(stack.top.access(), Access::NONE);
    });
}

/// Sizes that several changes have in common are those of all of them together.
#[test]
fn a_window_is_held_against_its_files_new_size() {
    run(async |bench| {
        let stack = Stack::new(&bench).await;
        let one = json!({"driver": "file", "filename": stack.path("one")});
        let low = json!({"driver": "raw", "file": one, "size": 2048});
        let middle = json!({"driver": "blkdebug", "image": low});
        let top = |size: u64| node("raw", "top", json!({"file": middle, "size": size}));
        let error = reopen(&bench, vec![top(4096)]).await.unwrap_err();
        assert!(
            error.to_string().contains("containing file (2048)"),
            "{error}"
        );
        assert_eq!(stack.top.len(), 4096);
        reopen(&bench, vec![top(2048)]).await.unwrap();
        assert_eq!(stack.top.len(), 2048);
        // A circle is one in this question too.
        let circle = vec![
            node("blkdebug", "middle", json!({"image": "top"})),
            node("raw", "top", json!({"file": "middle", "size": 512})),
        ];
        let error = reopen(&bench, circle).await.unwrap_err();
        assert!(
            error.to_string().contains("would create a cycle"),
            "{error}"
        );
    });
}

/// A job takes a node while a reopen of one below waits for its requests.
#[test]
fn a_job_that_came_first_keeps_what_is_below_its_node() {
    run(async |bench| {
        let stack = Stack::new(&bench).await;
        let disk = bench.graph.add_backend("disk", &stack.top).unwrap();
        let token = disk.enter().await.unwrap();
        let changing = {
            let graph = Arc::clone(&bench.graph);
            let moved = json!({"file": "one", "offset": 4096, "size": 4096});
            let options = vec![node("raw", "low", moved)];
            current::spawn_local(async move { reopen(&Bench { graph }, options).await })
        };
        settle().await;
        stack.top.block(JOB).unwrap();
        drop(token);
        let error = changing.await.unwrap().unwrap_err();
        assert!(matches!(error, BlockError::Busy { .. }), "{error}");
        std::fs::write(stack.path("one"), vec![7; 4096]).unwrap();
        assert_eq!(first_byte(&stack.top).await, 7);
    });
}
