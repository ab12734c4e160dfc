//! Named bitmaps: what is recorded, what the commands do, what they refuse, and what another size of
//! the disk means.

use std::sync::Arc;

use serde_json::{Value, json};
use sluice_aio::{IoBuffer, current};

use super::bench::{Bench, run, settle};
use crate::dirty::{BitmapInfo, NamedBitmap};
use crate::driver::RequestFlags;
use crate::error::Result;
use crate::graph::bitmaps::{BitmapAction, BitmapAdd, BitmapMerge, BitmapSource};
use crate::node::Node;
use crate::options::BitmapRef;

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

fn name_of(node: &str, name: &str) -> BitmapRef {
    BitmapRef {
        node: node.to_owned(),
        name: name.to_owned(),
    }
}

fn action(value: Value) -> BitmapAction {
    BitmapAction::Add(serde_json::from_value::<BitmapAdd>(value).unwrap())
}

impl Bench {
    async fn null(&self, name: &str, size: u64) -> Arc<Node> {
        let options = json!({"driver": "null-co", "node-name": name, "size": size});
        let mut options = options;
        options["discard"] = json!("unmap");
        self.add(options).await.unwrap()
    }

    fn bitmap(&self, node: &str, name: &str, granularity: u64) -> Arc<NamedBitmap> {
        let add = json!({"node": node, "name": name, "granularity": granularity});
        self.graph.change_bitmap(&action(add)).unwrap();
        self.graph.find_bitmap(&name_of(node, name)).unwrap().1
    }

    fn change(&self, action: &BitmapAction) -> Result<()> {
        self.graph.change_bitmap(action)
    }

    fn refusal(&self, action: &BitmapAction) -> String {
        self.change(action).unwrap_err().to_string()
    }
}

async fn write(node: &Node, offset: u64, len: u64) -> Result<()> {
    let buffer = IoBuffer::alloc(usize::try_from(len).unwrap());
    node.write(offset, buffer, RequestFlags::empty()).await
}

fn info(bitmap: &NamedBitmap) -> BitmapInfo {
    bitmap.info()
}

fn runs(bitmap: &NamedBitmap) -> Vec<(u64, u64)> {
    let bits = bitmap.bits();
    let mut runs = Vec::new();
    let mut from = 0;
    while let Some(run) = bits.next_dirty(from, u64::MAX) {
        from = run.end;
        runs.push((run.start, run.end));
    }
    runs
}

#[test]
fn every_change_is_recorded_and_nothing_else() {
    run(async |bench| {
        let node = bench.null("n", MIB).await;
        let bitmap = bench.bitmap("n", "b", 4 * KIB);
        node.read(0, IoBuffer::alloc(4096)).await.unwrap();
        node.flush().await.unwrap();
        assert_eq!(runs(&bitmap), []);
        write(&node, 5 * KIB, 512).await.unwrap();
        let flags = RequestFlags::FUA;
        node.write_zeroes(64 * KIB, 8 * KIB, flags).await.unwrap();
        node.discard(128 * KIB, 4 * KIB).await.unwrap();
        write(&node, MIB - 512, 512).await.unwrap();
        let expected = [
            (4 * KIB, 8 * KIB),
            (64 * KIB, 72 * KIB),
            (128 * KIB, 132 * KIB),
            (MIB - 4 * KIB, MIB),
        ];
        assert_eq!(runs(&bitmap), expected);
        let refused = write(&node, MIB, 512).await;
        assert!(refused.is_err());
        assert_eq!(runs(&bitmap), expected);
    });
}

#[test]
fn discards_that_are_ignored_change_nothing() {
    run(async |bench| {
        let options = json!({"driver": "null-co", "node-name": "n", "size": MIB});
        let node = bench.add(options).await.unwrap();
        let bitmap = bench.bitmap("n", "b", 4 * KIB);
        node.discard(0, MIB).await.unwrap();
        assert_eq!(runs(&bitmap), []);
    });
}

#[test]
fn what_failed_is_recorded_too() {
    run(async |bench| {
        let error = |event: &str| json!({"event": event, "errno": libc::EIO});
        let options = json!({
            "driver": "blkdebug", "node-name": "n", "discard": "unmap",
            "image": {"driver": "null-co", "size": MIB},
            "inject-error": [error("write_aio"), error("pwritev_zero")]
        });
        let node = bench.add(options).await.unwrap();
        let bitmap = bench.bitmap("n", "b", 4 * KIB);
        assert!(write(&node, 0, 512).await.is_err());
        let zeroes = node.write_zeroes(64 * KIB, 512, RequestFlags::empty());
        assert!(zeroes.await.is_err());
        assert_eq!(runs(&bitmap), [(0, 4 * KIB), (64 * KIB, 68 * KIB)]);
    });
}

#[test]
fn a_write_is_recorded_when_it_has_ended() {
    run(async |bench| {
        let (node, watch) = bench.probe("p", false);
        let bitmap = bench.bitmap("p", "b", MIB);
        watch.hold();
        let writing = Arc::clone(&node);
        let task = current::spawn_local(async move { write(&writing, 0, 512).await });
        settle().await;
        // Whoever takes the marks now has not seen the write's bytes yet.
        bench
            .change(&BitmapAction::Clear(name_of("p", "b")))
            .unwrap();
        watch.release();
        task.await.unwrap().unwrap();
        assert_eq!(runs(&bitmap), [(0, MIB)]);
    });
}

#[test]
fn recording_is_switched_and_marks_are_cleared() {
    run(async |bench| {
        let node = bench.null("n", MIB).await;
        let add = json!({"node": "n", "name": "b", "disabled": true});
        bench.change(&action(add)).unwrap();
        let (_, bitmap) = bench.graph.find_bitmap(&name_of("n", "b")).unwrap();
        assert_eq!(bitmap.bits().granularity(), 64 * KIB);
        write(&node, 0, 512).await.unwrap();
        assert_eq!((info(&bitmap).count, info(&bitmap).recording), (0, false));
        bench
            .change(&BitmapAction::Enable(name_of("n", "b")))
            .unwrap();
        write(&node, 0, 512).await.unwrap();
        assert_eq!(info(&bitmap).count, 64 * KIB);
        bench
            .change(&BitmapAction::Disable(name_of("n", "b")))
            .unwrap();
        write(&node, MIB / 2, 512).await.unwrap();
        let told = &node.dirty_bitmaps()[0];
        assert_eq!((told.count, told.recording), (64 * KIB, false));
        bench
            .change(&BitmapAction::Clear(name_of("n", "b")))
            .unwrap();
        assert_eq!(info(&bitmap).count, 0);
        bench
            .change(&BitmapAction::Remove(name_of("n", "b")))
            .unwrap();
        assert!(node.dirty_bitmaps().is_empty());
        write(&node, 0, 512).await.unwrap();
        assert_eq!(info(&bitmap).count, 0);
    });
}

#[test]
fn bitmaps_are_merged_from_their_node_and_from_others() {
    run(async |bench| {
        let (one, two) = (bench.null("n", MIB).await, bench.null("m", MIB).await);
        let target = bench.bitmap("n", "all", 64 * KIB);
        bench.bitmap("n", "fine", 512);
        bench.bitmap("m", "other", 256 * KIB);
        bench
            .change(&BitmapAction::Clear(name_of("n", "all")))
            .unwrap();
        write(&one, 130 * KIB, 512).await.unwrap();
        write(&two, MIB / 2, 512).await.unwrap();
        bench
            .change(&BitmapAction::Clear(name_of("n", "all")))
            .unwrap();
        let merge = BitmapMerge {
            node: "n".to_owned(),
            target: "all".to_owned(),
            bitmaps: vec![
                BitmapSource::Local("fine".to_owned()),
                BitmapSource::External(name_of("m", "other")),
            ],
        };
        bench.change(&BitmapAction::Merge(merge)).unwrap();
        let expected = [(128 * KIB, 192 * KIB), (MIB / 2, MIB / 2 + 256 * KIB)];
        assert_eq!(runs(&target), expected);
    });
}

/// The sums are those of Python's `hashlib` over the words as bytes.
#[test]
fn marks_are_hashed_as_by_qemu() {
    run(async |bench| {
        let node = bench.null("n", MIB).await;
        let bitmap = bench.bitmap("n", "b", 64 * KIB);
        bench.null("empty", 0).await;
        let nothing = bench.bitmap("empty", "b", 64 * KIB);
        let zero_word = "af5570f5a1810b7af78caf4bc70a660f0df51e42baf91d4de5b2328de0e83dfc";
        assert_eq!(bitmap.sha256(), zero_word);
        assert_eq!(nothing.sha256(), zero_word);
        write(&node, 0, 512).await.unwrap();
        write(&node, 2 * 64 * KIB, 512).await.unwrap();
        let bits_0_and_2 = "f13ee6ed54ea2aae9fc49a9faeb5da6e8ddef0e12ed5d30d35a624ae813e0485";
        assert_eq!(bitmap.sha256(), bits_0_and_2);
    });
}

#[test]
fn what_makes_no_sense_is_refused_and_changes_nothing() {
    run(async |bench| {
        let node = bench.null("n", MIB).await;
        bench.null("small", 64 * KIB).await;
        bench.bitmap("n", "b", 512);
        bench.bitmap("small", "s", 512);
        let add = |more: Value| {
            let mut add = json!({"node": "n", "name": "new"});
            add.as_object_mut()
                .unwrap()
                .extend(more.as_object().unwrap().clone());
            action(add)
        };
        let long = "x".repeat(1024);
        let range = "Granularity must be power of 2 and at least 512";
        for (wrong, text) in [
            (json!({"name": "b"}), "Bitmap already exists: b".to_owned()),
            (
                json!({"name": ""}),
                "Bitmap name cannot be empty".to_owned(),
            ),
            (
                json!({"name": long}),
                format!("Bitmap name too long: {long}"),
            ),
            (json!({"granularity": 256}), range.to_owned()),
            (json!({"granularity": 513}), range.to_owned()),
            (json!({"granularity": 0}), range.to_owned()),
            (
                json!({"node": "x"}),
                "Cannot find device='x' nor node-name='x'".to_owned(),
            ),
            (
                json!({"persistent": true}),
                "Can't store persistent bitmaps to n: Operation not supported".to_owned(),
            ),
        ] {
            assert_eq!(bench.refusal(&add(wrong)), text);
        }
        bench
            .change(&add(json!({"granularity": 2_u64 << 30})))
            .unwrap();
        for make in [
            BitmapAction::Remove,
            BitmapAction::Clear,
            BitmapAction::Enable,
            BitmapAction::Disable,
        ] {
            let missing = bench.refusal(&make(name_of("n", "x")));
            assert_eq!(missing, "Dirty bitmap 'x' not found");
            let missing = bench.refusal(&make(name_of("x", "b")));
            assert_eq!(missing, "Node 'x' not found");
        }
        write(&node, 0, 512).await.unwrap();
        let merge = |bitmaps: &[BitmapRef]| {
            BitmapAction::Merge(BitmapMerge {
                node: "n".to_owned(),
                target: "new".to_owned(),
                bitmaps: bitmaps
                    .iter()
                    .cloned()
                    .map(BitmapSource::External)
                    .collect(),
            })
        };
        let sizes = bench.refusal(&merge(&[name_of("n", "b"), name_of("small", "s")]));
        assert_eq!(
            sizes,
            "Bitmaps are of different sizes (destination size is 1048576, source size is 65536) and \
             can't be merged"
        );
        // The first of them was not merged either.
        let before = bench.graph.find_bitmap(&name_of("n", "new")).unwrap().1;
        assert_eq!(info(&before).count, MIB);
        bench
            .change(&BitmapAction::Clear(name_of("n", "new")))
            .unwrap();
        bench.refusal(&merge(&[name_of("n", "b"), name_of("small", "s")]));
        assert_eq!(info(&before).count, 0);
    });
}

#[test]
fn a_bitmap_in_use_is_left_alone() {
    run(async |bench| {
        let node = bench.null("n", MIB).await;
        let bitmap = bench.bitmap("n", "b", 64 * KIB);
        write(&node, 0, 512).await.unwrap();
        let section = bench.graph.drain(&node, "test").await;
        let frozen = bitmap.freeze().unwrap();
        drop(section);
        write(&node, MIB / 2, 512).await.unwrap();
        let told = info(&bitmap);
        assert_eq!(
            (told.count, told.busy, told.recording),
            (64 * KIB, true, true)
        );
        for make in [
            BitmapAction::Remove,
            BitmapAction::Clear,
            BitmapAction::Enable,
            BitmapAction::Disable,
        ] {
            assert_eq!(
                bench.refusal(&make(name_of("n", "b"))),
                "Bitmap 'b' is currently in use by another operation and cannot be used"
            );
        }
        bitmap.thaw(Some(&frozen));
        let both = [(0, 64 * KIB), (MIB / 2, MIB / 2 + 64 * KIB)];
        assert_eq!(runs(&bitmap), both);
        let section = bench.graph.drain(&node, "test").await;
        bitmap.freeze().unwrap();
        drop(section);
        write(&node, 3 * 64 * KIB, 512).await.unwrap();
        bitmap.thaw(None);
        assert_eq!(runs(&bitmap), [(3 * 64 * KIB, 4 * 64 * KIB)]);
        assert!(!info(&bitmap).busy);
    });
}

#[test]
fn a_bitmap_has_its_disks_size() {
    run(async |bench| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        std::fs::write(&path, [1; 128 << 10]).unwrap();
        let file = json!({"driver": "file", "node-name": "file", "filename": path});
        bench.add(file).await.unwrap();
        let raw = json!({"driver": "raw", "node-name": "raw", "file": "file"});
        let raw = bench.add(raw).await.unwrap();
        let file = bench.graph.node("file").unwrap();
        let above = bench.bitmap("raw", "b", 4 * KIB);
        write(&raw, 120 * KIB, 512).await.unwrap();
        // It is the node below that is made longer.
        bench.graph.resize(&file, 256 * KIB).await.unwrap();
        assert_eq!(above.bits().size(), 256 * KIB);
        write(&raw, 248 * KIB, 512).await.unwrap();
        let marks = [(120 * KIB, 124 * KIB), (248 * KIB, 252 * KIB)];
        assert_eq!(runs(&above), marks);
        bench.graph.resize(&raw, 122 * KIB).await.unwrap();
        assert_eq!(runs(&above), [(120 * KIB, 122 * KIB)]);
        assert_eq!(info(&above).count, 2 * KIB);
    });
}

#[test]
fn bitmaps_take_only_so_much_memory() {
    run(async |bench| {
        bench.null("n", 1 << 40).await;
        let add = |name: &str, granularity: u64| {
            action(json!({"node": "n", "name": name, "granularity": granularity}))
        };
        let error = bench.refusal(&add("large", 512));
        assert_eq!(
            error,
            "Bitmap 'large' would take 301989888 bytes, more than those of 'n' may together; choose a larger \
             granularity, or remove bitmaps that are not needed"
        );
        bench.change(&add("half", 1024)).unwrap();
        assert!(bench.refusal(&add("other", 1024)).contains("more than"));
        bench
            .change(&BitmapAction::Remove(name_of("n", "half")))
            .unwrap();
        bench.change(&add("other", 1024)).unwrap();
    });
}

#[test]
fn a_node_has_only_so_many_bitmaps() {
    run(async |bench| {
        bench.null("n", MIB).await;
        for number in 0..4096 {
            bench.bitmap("n", &format!("b{number}"), 64 * KIB);
        }
        let more = action(json!({"node": "n", "name": "more"}));
        assert_eq!(
            bench.refusal(&more),
            "Bitmap 'more' would be one too many for 'n': a node may have 4096; remove bitmaps that are not needed"
        );
        let one = BitmapAction::Remove(name_of("n", "b7"));
        bench.change(&one).unwrap();
        bench.change(&more).unwrap();
    });
}

#[test]
fn what_a_filter_saves_can_be_said_by_a_bitmap() {
    run(async |bench| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("copy");
        std::fs::write(&path, vec![0xee; 1 << 20]).unwrap();
        let disk = bench.null("n", MIB).await;
        bench.bitmap("n", "b", 64 * KIB);
        write(&disk, 64 * KIB, 512).await.unwrap();
        let filter = json!({
            "driver": "copy-before-write", "node-name": "f", "file": "n",
            "target": {"driver": "file", "filename": path},
            "bitmap": {"node": "n", "name": "b"}
        });
        let filter = bench.add(filter).await.unwrap();
        for cluster in 0..3 {
            write(&filter, cluster * 64 * KIB, 512).await.unwrap();
        }
        let copy = std::fs::read(&path).unwrap();
        let saved: Vec<_> = copy
            .chunks(64 << 10)
            .map(|cluster| cluster[0] != 0xee)
            .collect();
        assert_eq!(saved[..3], [false, true, false]);
    });
}
