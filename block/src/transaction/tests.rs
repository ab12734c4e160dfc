//! Transactions: all or nothing, undone in reverse order, and at one instant on all disks.

use std::sync::Arc;

use serde_json::json;
use sluice_aio::{Clock, EventLoop, IoBuffer, LoopConfig, current};

use super::*;
use crate::backend::Backend;
use crate::event::{BlockEvent, EventSink};
use crate::graph::{BitmapAdd, BitmapMerge};
use crate::options::BitmapRef;

const MIB: usize = 1 << 20;

struct Silence;

impl EventSink for Silence {
    fn emit(&self, _event: BlockEvent) {}
}

fn run<F: Future<Output = ()> + 'static>(test: impl FnOnce(Arc<Graph>) -> F) {
    let mut event_loop = EventLoop::new("main", &LoopConfig::default()).unwrap();
    let graph = Graph::new(Arc::new(Silence), Clock::real());
    event_loop.run_until(test(graph)).unwrap();
}

async fn disk(graph: &Arc<Graph>, name: &str) -> (Arc<Backend>, Arc<Node>) {
    let node = format!("{name}-node");
    let options = json!({"driver": "null-co", "node-name": node, "size": MIB});
    let options = serde_json::from_value(options).unwrap();
    let node = graph.add_node(&options).await.unwrap();
    (graph.add_backend(name, &node).unwrap(), node)
}

fn bitmap(node: &str, name: &str) -> BitmapRef {
    BitmapRef {
        node: node.to_owned(),
        name: name.to_owned(),
    }
}

fn add(node: &str, name: &str) -> Action {
    let add = json!({"node": node, "name": name});
    let add: BitmapAdd = serde_json::from_value(add).unwrap();
    Action::Bitmap(BitmapAction::Add(add))
}

fn merge(node: &str, target: &str, source: &str) -> Action {
    Action::Bitmap(BitmapAction::Merge(BitmapMerge {
        node: node.to_owned(),
        target: target.to_owned(),
        bitmaps: vec![BitmapSource::Local(source.to_owned())],
    }))
}

async fn transact(graph: &Arc<Graph>, actions: &[Action]) -> Result<()> {
    super::transact(
        graph,
        actions,
        CompletionMode::Individual,
        &current::context(),
    )
    .await
}

async fn write(disk: &Backend, offset: u64) {
    let token = disk.enter().await.unwrap();
    let buffer = IoBuffer::alloc(512);
    disk.write(&token, offset, buffer).await.unwrap();
}

/// Everything that an operator can see of a node's bitmaps.
fn seen(node: &Node) -> Vec<(String, u64, bool, bool)> {
    let bitmaps = node.dirty_bitmaps().into_iter();
    bitmaps
        .map(|info| (info.name, info.count, info.recording, info.busy))
        .collect()
}

#[test]
fn later_actions_see_what_earlier_ones_did() {
    run(async |graph| {
        let (disk, node) = disk(&graph, "d").await;
        transact(&graph, &[add("d", "old")]).await.unwrap();
        write(&disk, 0).await;
        let actions = [
            add("d", "new"),
            merge("d", "new", "old"),
            Action::Bitmap(BitmapAction::Clear(bitmap("d", "old"))),
            Action::Bitmap(BitmapAction::Disable(bitmap("d", "new"))),
        ];
        transact(&graph, &actions).await.unwrap();
        let expected = [
            ("old".to_owned(), 0, true, false),
            ("new".to_owned(), 65536, false, false),
        ];
        assert_eq!(seen(&node), expected);
    });
}

#[test]
fn whatever_fails_all_is_as_it_was() {
    run(async |graph| {
        let (disk, node) = disk(&graph, "d").await;
        transact(&graph, &[add("d", "one"), add("d", "two")])
            .await
            .unwrap();
        write(&disk, 0).await;
        let change = |action| graph.change_bitmap(&action).unwrap();
        change(BitmapAction::Disable(bitmap("d", "two")));
        write(&disk, 512 << 10).await;
        let before = seen(&node);
        let actions = [
            Action::Bitmap(BitmapAction::Clear(bitmap("d", "one"))),
            add("d", "three"),
            Action::Bitmap(BitmapAction::Enable(bitmap("d", "two"))),
            Action::Bitmap(BitmapAction::Disable(bitmap("d", "one"))),
            merge("d", "one", "two"),
            Action::Bitmap(BitmapAction::Clear(bitmap("d", "two"))),
            merge("d", "three", "one"),
            Action::Bitmap(BitmapAction::Remove(bitmap("d", "one"))),
        ];
        for fails_after in 0..=actions.len() {
            let mut actions = actions[..fails_after].to_vec();
            actions.push(Action::Abort);
            let error = transact(&graph, &actions).await.unwrap_err();
            assert_eq!(error.to_string(), "Transaction aborted using Abort action");
            assert_eq!(seen(&node), before, "after {fails_after} actions");
            assert!(!disk.gate().is_closed());
        }
        // What is there records as before.
        write(&disk, 256 << 10).await;
        assert_eq!(seen(&node)[0].1, 3 << 16);
        // The same without a failure.
        transact(&graph, &actions).await.unwrap();
        let names: Vec<_> = seen(&node).into_iter().map(|seen| seen.0).collect();
        assert_eq!(names, ["two", "three"]);
    });
}

#[test]
fn a_bitmap_that_leaves_is_not_used_any_more() {
    run(async |graph| {
        let (_, node) = disk(&graph, "d").await;
        transact(&graph, &[add("d", "b")]).await.unwrap();
        let remove = Action::Bitmap(BitmapAction::Remove(bitmap("d", "b")));
        let clear = Action::Bitmap(BitmapAction::Clear(bitmap("d", "b")));
        let error = transact(&graph, &[remove.clone(), clear])
            .await
            .unwrap_err();
        assert!(error.to_string().contains("currently in use"), "{error}");
        let error = transact(&graph, &[remove, add("d", "b")])
            .await
            .unwrap_err();
        assert_eq!(error.to_string(), "Bitmap already exists: b");
        assert_eq!(seen(&node), [("b".to_owned(), 0, true, false)]);
    });
}

/// A guest writes each record to a journal on one disk, and when that has ended to the other: of the
/// records in the second bitmap none may be missing in the first.
#[test]
fn actions_on_several_disks_happen_at_one_instant() {
    run(async |graph| {
        let (journal, journal_node) = disk(&graph, "journal").await;
        let (data, data_node) = disk(&graph, "data").await;
        let guest = current::spawn_local(async move {
            for record in 0..2000_u64 {
                let offset = record % 16 * (64 << 10);
                write(&journal, offset).await;
                write(&data, offset).await;
            }
        });
        for round in 0..100 {
            let name = format!("b{round}");
            transact(&graph, &[add("journal", &name), add("data", &name)])
                .await
                .unwrap();
            for _ in 0..7 {
                current::yield_now().await;
            }
            let freeze = |node: &str| Action::Bitmap(BitmapAction::Disable(bitmap(node, &name)));
            let actions = [freeze("data"), freeze("journal")];
            transact(&graph, &actions).await.unwrap();
            let marks = |node: &Node| {
                let bits = node.io.bitmaps.find(&name).unwrap().bits();
                let dirty = (0..16).filter(|at| bits.is_dirty(at * (64 << 10)));
                dirty.count()
            };
            let (first, second) = (marks(&journal_node), marks(&data_node));
            // Between two requests of the guest at most one record is in the journal alone, and at most
            // one was when the recording began.
            assert!(
                second <= first + 1 && first <= second + 1,
                "{first} {second}"
            );
            for node in ["journal", "data"] {
                graph
                    .change_bitmap(&BitmapAction::Remove(bitmap(node, &name)))
                    .unwrap();
            }
        }
        guest.await.unwrap();
    });
}

#[test]
fn a_snapshot_is_undone() {
    run(async |graph| {
        let (disk, node) = disk(&graph, "d").await;
        let overlay = graph.add_overlay("over", MIB, None).unwrap();
        let snapshot = Action::Snapshot {
            node: "d".to_owned(),
            overlay: "over".to_owned(),
        };
        let before = (node.access(), overlay.access());
        let actions = [add("d", "b"), snapshot.clone(), Action::Abort];
        transact(&graph, &actions).await.unwrap_err();
        assert!(Arc::ptr_eq(&disk.node().unwrap(), &node));
        assert!(overlay.backing().is_none() && overlay.parents().is_empty());
        assert!(!node.is_read_only());
        assert_eq!((node.access(), overlay.access()), before);
        assert_eq!(seen(&node), []);
        write(&disk, 0).await;
        transact(&graph, &[add("d", "b"), snapshot]).await.unwrap();
        assert!(Arc::ptr_eq(&disk.node().unwrap(), &overlay));
        assert!(Arc::ptr_eq(&overlay.backing().unwrap(), &node));
        write(&disk, 0).await;
        assert_eq!(seen(&node), [("b".to_owned(), 0, true, false)]);
    });
}

/// What one action has made, another can't make too. It is undone, so that nobody finds what the text names.
#[test]
fn what_another_action_has_made_is_refused_by_that() {
    run(async |graph| {
        let (disk, node) = disk(&graph, "d").await;
        graph.add_overlay("over", MIB, None).unwrap();
        let snapshot = || Action::Snapshot {
            node: "d".to_owned(),
            overlay: "over".to_owned(),
        };
        let common = json!({"device": "d", "sync": "none", "job-id": "job"});
        let backup = || {
            Action::BlockdevBackup(Box::new(BlockdevBackup {
                common: serde_json::from_value(common.clone()).unwrap(),
                target: "over".to_owned(),
            }))
        };
        let onto = |target: &str| {
            let common = json!({"device": "e", "sync": "none", "job-id": "job"});
            Action::BlockdevBackup(Box::new(BlockdevBackup {
                common: serde_json::from_value(common).unwrap(),
                target: target.to_owned(),
            }))
        };
        self::disk(&graph, "e").await;
        let own = "another action of the same transaction has it, which was undone: give each its own, or begin one \
                   when the other has ended";
        let cases = [
            (
                [add("d", "b"), add("d-node", "b")],
                "Bitmap already exists: b",
            ),
            ([snapshot(), snapshot()], "The overlay is already in use"),
            ([snapshot(), onto("d-node")], "node 'd-node' is read-only"),
            (
                [onto("over"), snapshot()],
                "Node 'over' is busy: block device is in use by block job: backup 'job'",
            ),
            (
                [snapshot(), onto("over")],
                "Block device over is in use by the disk 'd'; back up to a node that no disk uses",
            ),
        ];
        let before = graph.picture();
        for (actions, text) in cases {
            let error = transact(&graph, &actions).await.unwrap_err();
            assert_eq!(error.to_string(), text);
            assert_eq!(error.way_out(), Some(own), "{text}");
            assert_eq!((graph.picture(), seen(&node)), (before.clone(), vec![]));
        }
        // A snapshot of a disk that another action backs up: there is no other disk.
        let error = transact(&graph, &[backup(), snapshot()]).await.unwrap_err();
        assert!(
            error
                .to_string()
                .contains("in use by block job: backup 'job'"),
            "{error}"
        );
        assert!(
            error
                .way_out()
                .unwrap()
                .contains("a disk has one job at a time")
        );
        // What was there before is told as ever, and so is what is wrong with the action alone.
        transact(&graph, &[add("d", "b")]).await.unwrap();
        for actions in [
            [add("d", "c"), add("d", "b")],
            [add("e", "b"), add("d", "b")],
            [
                Action::Bitmap(BitmapAction::Remove(bitmap("d", "b"))),
                add("d", "b"),
            ],
        ] {
            let error = transact(&graph, &actions).await.unwrap_err();
            assert_eq!(error.to_string(), "Bitmap already exists: b");
            assert_eq!(error.way_out(), None);
        }
        let used = Action::Snapshot {
            node: "e".to_owned(),
            overlay: "d-node".to_owned(),
        };
        let error = transact(&graph, &[add("e", "c"), used]).await.unwrap_err();
        assert_eq!(
            (error.to_string().as_str(), error.way_out()),
            ("The overlay is already in use", None)
        );
        assert!(Arc::ptr_eq(&disk.node().unwrap(), &node));
    });
}

/// For bitmaps that other actions add, and for those that they remove, which have their room until the end.
#[test]
fn room_that_other_actions_have_is_refused_by_that() {
    run(async |graph| {
        let (_, node) = disk(&graph, "d").await;
        let no_room = "Bitmap 'more' would be one too many for 'd': a node may have 4096; remove bitmaps that are not needed";
        let way_out = "other actions of the same transaction have some of that room, which were undone, also those that \
                       remove bitmaps: add fewer, or remove bitmaps by a command before";
        let mut actions: Vec<_> = (0..4096)
            .map(|number| add("d-node", &format!("b{number}")))
            .collect();
        actions.push(add("d", "more"));
        let error = transact(&graph, &actions).await.unwrap_err();
        assert_eq!(
            (error.to_string().as_str(), error.way_out()),
            (no_room, Some(way_out))
        );
        assert_eq!(seen(&node), []);
        actions.pop();
        transact(&graph, &actions).await.unwrap();
        let remove = Action::Bitmap(BitmapAction::Remove(bitmap("d", "b0")));
        let error = transact(&graph, &[remove.clone(), add("d", "more")])
            .await
            .unwrap_err();
        assert_eq!(
            (error.to_string().as_str(), error.way_out()),
            (no_room, Some(way_out))
        );
        // Nobody else is to blame for what was there before, nor for another node.
        disk(&graph, "e").await;
        for other in [
            add("e", "b"),
            Action::Bitmap(BitmapAction::Clear(bitmap("d", "b0"))),
        ] {
            let error = transact(&graph, &[other, add("d", "more")])
                .await
                .unwrap_err();
            assert_eq!(
                (error.to_string().as_str(), error.way_out()),
                (no_room, None)
            );
        }
        transact(&graph, &[remove]).await.unwrap();
        transact(&graph, &[add("d", "more")]).await.unwrap();
    });
}

/// Snapshots, bitmaps and backups together: after a failure there is nothing of any of them, and otherwise the
/// backup is of the snapshot's instant.
#[test]
fn snapshots_bitmaps_and_backups_are_one() {
    run(async |graph| {
        let mut disks = Vec::new();
        for name in ["d", "e"] {
            let image = graph
                .add_overlay(&format!("{name}-image"), MIB, None)
                .unwrap();
            disks.push((graph.add_backend(name, &image).unwrap(), image));
            graph
                .add_overlay(&format!("{name}-over"), MIB, None)
                .unwrap();
        }
        graph.add_overlay("copy", MIB, None).unwrap();
        transact(&graph, &[add("d", "old"), add("e", "old")])
            .await
            .unwrap();
        for (disk, _) in &disks {
            write(disk, 0).await;
        }
        let snapshot = |name: &str| Action::Snapshot {
            node: name.to_owned(),
            overlay: format!("{name}-over"),
        };
        let backup = json!({
            "device": "e", "sync": "none", "job-id": "job", "auto-dismiss": false
        });
        let common = serde_json::from_value(backup).unwrap();
        let backup = Action::BlockdevBackup(Box::new(BlockdevBackup {
            common,
            target: "copy".to_owned(),
        }));
        let together = [
            snapshot("d"),
            Action::Bitmap(BitmapAction::Clear(bitmap("d-image", "old"))),
            add("d", "new"),
            snapshot("e"),
            add("e", "new"),
            backup,
        ];
        let before = (graph.picture(), seen(&disks[0].1), seen(&disks[1].1));
        for failing in 0..=together.len() {
            let mut actions = together.to_vec();
            actions.insert(failing, Action::Abort);
            transact(&graph, &actions).await.unwrap_err();
            assert_eq!(
                (graph.picture(), seen(&disks[0].1), seen(&disks[1].1)),
                before
            );
            assert!(graph.jobs().get("job").is_none());
            for (disk, image) in &disks {
                assert!(Arc::ptr_eq(&disk.node().unwrap(), image) && !image.is_read_only());
                assert!(!disk.gate().is_closed());
            }
        }
        transact(&graph, &together).await.unwrap();
        for (disk, image) in &disks {
            write(disk, 0).await;
            assert!(image.is_read_only());
            let over = disk.node().unwrap().backing().unwrap();
            assert!(Arc::ptr_eq(&over, image));
        }
        let job = graph.jobs().get("job").unwrap();
        job.cancel(true).unwrap();
        job.concluded().await;
    });
}

#[test]
fn only_jobs_are_grouped() {
    run(async |graph| {
        let (_, node) = disk(&graph, "d").await;
        let actions = [add("d", "b")];
        let main = current::context();
        let error = super::transact(&graph, &actions, CompletionMode::Grouped, &main);
        assert_eq!(
            error.await.unwrap_err().to_string(),
            "Action 'block-dirty-bitmap-add' does not support transaction property completion-mode = \
             grouped"
        );
        assert_eq!(seen(&node), []);
        super::transact(&graph, &[], CompletionMode::Grouped, &current::context())
            .await
            .unwrap();
    });
}
