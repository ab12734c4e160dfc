//! Jobs, bitmaps and transactions of an IDE disk and of a virtio disk in an I/O thread, whose guest keeps writing: when
//! they have ended every image is compared with what the guest knows, sector by sector.

use std::collections::BTreeSet;

use rustix::fs::{SeekFrom, seek};
use serde_json::{Value, json};

use super::two_disks::{Disk, Guest, SECTORS};
use super::writer::{CLUSTER, Writer, clusters, filled_with, on_both};

fn bitmap(disk: Disk, name: &str) -> Value {
    json!({"node": disk.name(), "name": name})
}

fn action(kind: &str, data: &Value) -> Value {
    json!({"type": kind, "data": data})
}

/// A backup that copies one cluster after the other onto the disk's target.
fn backup(disk: Disk, sync: &str) -> Value {
    json!({
        "device": disk.name(), "target": disk.copy(), "job-id": disk.name(), "sync": sync,
        "x-perf": {"max-workers": 1, "max-chunk": 65536}
    })
}

/// What the monitor tells of a bitmap: whether it records, and how many clusters are marked.
fn marked(writer: &mut Writer, disk: Disk, name: &str) -> (bool, u64) {
    let nodes = writer
        .guest
        .execute("query-named-block-nodes", &json!({"flat": true}));
    let nodes = nodes.as_array().unwrap().iter();
    let node = nodes
        .filter(|node| node["node-name"] == disk.name())
        .flat_map(|node| {
            node["dirty-bitmaps"]
                .as_array()
                .cloned()
                .unwrap_or_default()
        })
        .find(|bitmap| bitmap["name"] == name);
    let found = node.unwrap_or_else(|| panic!("no bitmap {name}"));
    let bytes = found["count"].as_u64().unwrap();
    (
        found["recording"].as_bool().unwrap(),
        bytes / (CLUSTER * 512),
    )
}

fn sha256(writer: &mut Writer, disk: Disk, name: &str) -> Value {
    let of = bitmap(disk, name);
    let answer = writer
        .guest
        .execute("x-debug-block-dirty-bitmap-sha256", &of);
    answer["sha256"].clone()
}

fn count(clusters: &BTreeSet<u64>) -> u64 {
    clusters.len() as u64
}

/// Every `sync`, and every `bitmap-mode`: the target is the disk of the start, as far as was asked for, and what is left in
/// the bitmap follows from its mode.
#[test]
fn backups_hold_the_disk_of_their_start() {
    const KINDS: [(&str, Option<&str>); 7] = [
        ("full", None),
        ("top", None),
        ("none", None),
        ("incremental", Some("on-success")),
        ("bitmap", Some("on-success")),
        ("bitmap", Some("always")),
        ("bitmap", Some("never")),
    ];
    for (sync, mode) in KINDS {
        on_both(|writer, disk| {
            writer.guest.add_target(disk, &json!({}));
            writer.write_some(disk);
            writer.take_written(disk);
            let mut arguments = backup(disk, sync);
            // Its first copy is of this cluster.
            let first = if let Some(mode) = mode {
                arguments["bitmap"] = "b".into();
                arguments["bitmap-mode"] = mode.into();
                writer
                    .guest
                    .execute("block-dirty-bitmap-add", &bitmap(disk, "b"));
                writer.write(disk, CLUSTER + 2);
                writer.write_some(disk);
                1
            } else {
                0
            };
            writer.guest.hold(disk, "write_aio");
            writer.ask_during_writes(&[disk], "blockdev-backup", &arguments);
            let start = writer.expected(disk);
            let marks = clusters(&writer.take_written(disk));

            let waits = first * CLUSTER + 5;
            if sync == "none" {
                // Nothing is copied until the guest writes.
                writer.begin(disk, waits);
                writer.guest.wait_held(disk);
            } else {
                writer.guest.wait_held(disk);
                writer.write_some(disk);
                writer.begin(disk, waits);
            }
            writer.assert_waits(disk, "the old data is not saved yet");
            writer.guest.let_go(disk);
            writer.guest.wait(disk);
            writer.write_some(disk);
            if sync == "none" {
                let job = json!({"device": disk.name()});
                writer.guest.execute("block-job-cancel", &job);
                writer.guest.wait_job(disk, "BLOCK_JOB_CANCELLED");
            } else {
                writer.guest.wait_completed(disk);
            }
            let during = clusters(&writer.take_written(disk));
            let copied = match (sync, mode) {
                ("none", _) => during.clone(),
                (_, Some(_)) => marks.clone(),
                _ => (0..SECTORS / CLUSTER).collect(),
            };
            let expected = filled_with(&start, &copied, CLUSTER);
            writer.assert_image(disk, &disk.copy(), &expected);
            if let Some(mode) = mode {
                let left = if mode == "never" {
                    marks.union(&during).copied().collect()
                } else {
                    during
                };
                let found = marked(writer, disk, "b");
                assert_eq!(found, (true, count(&left)), "{sync} {mode}");
            }
            writer.assert_disk(disk, disk.name());
        });
    }
}

/// What a bitmap marks is what was written while it recorded; a write that a transaction has waited for counts as one from
/// before it.
#[test]
fn bitmaps_mark_what_was_written_while_they_recorded() {
    on_both(|writer, disk| {
        let node = disk.name();
        let named = |name: &str| bitmap(disk, name);
        let mut off = named("off");
        off["disabled"] = true.into();
        for data in [&named("on"), &named("old"), &off] {
            writer.guest.execute("block-dirty-bitmap-add", data);
        }
        writer.write_some(disk);
        writer.trim(disk, 40 * CLUSTER, 256);
        let actions = json!({"actions": [
            action("block-dirty-bitmap-disable", &named("old")),
            action("block-dirty-bitmap-enable", &named("off")),
            action("block-dirty-bitmap-add", &named("new")),
        ]});
        writer.ask_during_writes(&[disk], "transaction", &actions);
        let before = clusters(&writer.take_written(disk));
        writer.write_some(disk);
        writer.write_some(disk);
        let after = clusters(&writer.take_written(disk));
        let both: BTreeSet<_> = before.union(&after).copied().collect();
        for (name, recording, sectors) in [
            ("on", true, &both),
            ("old", false, &before),
            ("off", true, &after),
            ("new", true, &after),
        ] {
            assert_eq!(
                marked(writer, disk, name),
                (recording, count(sectors)),
                "{name}"
            );
        }
        assert_eq!(sha256(writer, disk, "off"), sha256(writer, disk, "new"));
        assert_ne!(sha256(writer, disk, "on"), sha256(writer, disk, "new"));

        // Together the parts are the whole.
        let merge = json!({"node": node, "target": "old", "bitmaps": ["off"]});
        let (_, merged) = writer.during_writes(&[], "block-dirty-bitmap-merge", &merge);
        merged.unwrap();
        assert_eq!(sha256(writer, disk, "old"), sha256(writer, disk, "on"));
        let actions = json!({"actions": [
            action("block-dirty-bitmap-clear", &named("on")),
            action("block-dirty-bitmap-remove", &named("new")),
        ]});
        writer.ask_during_writes(&[disk], "transaction", &actions);
        writer.take_written(disk);
        assert_eq!(marked(writer, disk, "on"), (true, 0));
        writer.write(disk, 3);
        assert_eq!(marked(writer, disk, "on"), (true, 1));
        writer.assert_disk(disk, node);
    });
}

/// The two disks' backups begin at one instant, between two requests of each; if one action of the transaction fails nothing
/// of it has happened.
#[test]
fn a_transaction_is_about_both_disks_at_one_instant() {
    let mut writer = Writer::new(Guest::start());
    let writer = &mut writer;
    let mut actions = Vec::new();
    for disk in Disk::BOTH {
        writer.guest.add_target(disk, &json!({}));
        let old = bitmap(disk, "old");
        writer.guest.execute("block-dirty-bitmap-add", &old);
        writer.write_some(disk);
        actions.push(action("block-dirty-bitmap-clear", &old));
        actions.push(action("block-dirty-bitmap-add", &bitmap(disk, "new")));
        actions.push(action("blockdev-backup", &backup(disk, "full")));
    }
    for name in ["third", "overlay"] {
        let node = json!({"driver": "null-co", "node-name": name});
        writer.guest.execute("blockdev-add", &node);
    }
    let snapshot = json!({"node": "third", "overlay": "overlay"});
    let mut refused = actions.clone();
    refused.push(action("blockdev-snapshot", &snapshot));
    let grouped = |actions: Vec<Value>| json!({"actions": actions, "properties": {"completion-mode": "individual"}});
    let (waited, answer) = writer.during_writes(&Disk::BOTH, "transaction", &grouped(refused));
    let answer = answer.unwrap_err().to_string();
    assert!(waited && answer.contains("backing"), "{answer}");
    let jobs = writer.guest.execute("query-jobs", &json!({}));
    assert_eq!(jobs, json!([]));
    for disk in Disk::BOTH {
        let written = clusters(&writer.take_written(disk));
        assert_eq!(marked(writer, disk, "old"), (true, count(&written)));
        // It is not there.
        let new = bitmap(disk, "new");
        writer.guest.execute("block-dirty-bitmap-add", &new);
        writer.guest.execute("block-dirty-bitmap-remove", &new);
        writer.assert_disk(disk, disk.name());
    }

    let actions = json!({"actions": actions});
    writer.ask_during_writes(&Disk::BOTH, "transaction", &actions);
    let start = Disk::BOTH.map(|disk| (disk, writer.expected(disk)));
    for (disk, _) in &start {
        writer.take_written(*disk);
        writer.write_some(*disk);
    }
    for (disk, start) in start {
        writer.guest.wait_completed(disk);
        writer.assert_image(disk, &disk.copy(), &start);
        let during = clusters(&writer.take_written(disk));
        for name in ["old", "new"] {
            assert_eq!(marked(writer, disk, name), (true, count(&during)), "{name}");
        }
        writer.assert_disk(disk, disk.name());
    }
}

/// What becomes of a group of backups of which one hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    GoesOn,
    Fails,
    Cancelled(Disk),
}

fn play_group(slow: Disk, done: Disk, hangs_at: &str, fate: Fate) {
    let mut writer = Writer::new(Guest::start());
    let actions = Disk::BOTH.map(|disk| {
        writer.guest.add_target(disk, &json!({}));
        action("blockdev-backup", &backup(disk, "full"))
    });
    let properties = json!({"completion-mode": "grouped"});
    writer.guest.hold(slow, hangs_at);
    let arguments = json!({"actions": actions, "properties": properties});
    writer.ask_during_writes(&Disk::BOTH, "transaction", &arguments);
    let start = Disk::BOTH.map(|disk| (disk, writer.expected(disk)));
    writer.guest.wait_held(slow);
    writer.guest.wait_status(done, "waiting");
    for disk in Disk::BOTH {
        writer.write_some(disk);
    }
    let mut held = json!({"node-name": slow.copy(), "tag": "held"});
    match fate {
        Fate::GoesOn => {}
        Fate::Fails => held["errno"] = json!(libc::EIO),
        Fate::Cancelled(disk) => {
            let job = json!({"id": disk.name()});
            writer.guest.execute("job-cancel", &job);
        }
    }
    writer.guest.execute("x-debug-resume", &held);
    for (disk, start) in start {
        match fate {
            Fate::GoesOn => {
                writer.guest.wait_completed(disk);
                writer.assert_image(disk, &disk.copy(), &start);
            }
            Fate::Fails if disk == slow => {
                let failed = writer.guest.wait_job(disk, "BLOCK_JOB_COMPLETED");
                assert_eq!(failed.text("error"), "Input/output error");
            }
            Fate::Fails | Fate::Cancelled(_) => {
                writer.guest.wait_job(disk, "BLOCK_JOB_CANCELLED");
            }
        }
        writer.assert_disk(disk, disk.name());
    }
    writer.guest.end();
}

/// Backups of one group succeed together: that of one disk is done, and waits for that of the other, which hangs in a write or in its
/// last flush. If that fails, or either is cancelled, both end without success.
#[test]
fn backups_of_both_disks_succeed_together_or_not_at_all() {
    for (slow, done) in [(Disk::Virtio, Disk::Ide), (Disk::Ide, Disk::Virtio)] {
        for hangs_at in ["write_aio", "flush_to_disk"] {
            let cancelled = [Fate::Cancelled(slow), Fate::Cancelled(done)];
            for fate in [Fate::GoesOn, Fate::Fails].into_iter().chain(cancelled) {
                play_group(slow, done, hangs_at, fate);
            }
        }
    }
}

/// Has a mirror that is ready end without a pivot, as a copy of one moment.
fn end_mirror(writer: &mut Writer, disk: Disk) {
    let job = json!({"device": disk.name()});
    writer.guest.execute("block-job-cancel", &job);
    writer.guest.wait_completed(disk);
}

/// Only what was written since the job began is copied, sector by sector.
#[test]
fn a_mirror_of_nothing_old_copies_new_writes_alone() {
    on_both(|writer, disk| {
        writer.guest.add_target(disk, &json!({}));
        writer.write_some(disk);
        let arguments = json!({
            "device": disk.name(), "target": disk.copy(), "job-id": disk.name(), "sync": "none",
            "granularity": 512
        });
        writer.ask_during_writes(&[disk], "blockdev-mirror", &arguments);
        writer.guest.wait_job(disk, "BLOCK_JOB_READY");
        writer.take_written(disk);
        writer.guest.hold(disk, "write_aio");
        writer.write_some(disk);
        writer.guest.wait_held(disk);
        writer.write_some(disk);
        writer.guest.let_go(disk);
        end_mirror(writer, disk);
        let written = writer.take_written(disk);
        let expected = filled_with(&writer.expected(disk), &written, 1);
        writer.assert_image(disk, &disk.copy(), &expected);
        writer.assert_disk(disk, disk.name());
    });
}

/// Where there is no backing image `top` is all.
#[test]
fn a_mirror_of_the_top_layer_is_all_of_a_disk_without_another() {
    on_both(|writer, disk| {
        writer.guest.add_target(disk, &json!({}));
        writer.guest.hold(disk, "write_aio");
        let more = json!({"sync": "top"});
        writer.guest.begin_mirror(disk, &more).unwrap();
        writer.guest.wait_held(disk);
        writer.write_some(disk);
        writer.guest.let_go(disk);
        writer.guest.wait_job(disk, "BLOCK_JOB_READY");
        writer.write_some(disk);
        writer.guest.pivot(disk);
        writer.assert_disk(disk, &disk.copy());
    });
}

/// The mode is switched all ways, each time while a request to the target is on its way.
#[test]
fn a_mirrors_mode_is_switched_under_writes() {
    on_both(|writer, disk| {
        writer.guest.add_target(disk, &json!({}));
        writer.guest.mirror(disk, "automatic");
        let change = |writer: &mut Writer, mode: &str| {
            let change = json!({"id": disk.name(), "type": "mirror", "copy-mode": mode});
            writer.guest.execute("block-job-change", &change);
            let jobs = writer.guest.execute("query-block-jobs", &json!({}));
            assert_eq!(jobs[0]["x-copy-mode"], mode);
        };
        for mode in ["background", "automatic"] {
            // What was written before has been copied. A copy of the place is on its way when the guest writes there
            // again, to both sides by then.
            while {
                let jobs = writer.guest.execute("query-block-jobs", &json!({}));
                jobs[0]["offset"] != jobs[0]["len"]
            } {}
            writer.guest.hold(disk, "write_aio");
            writer.write(disk, 7);
            writer.guest.wait_held(disk);
            change(writer, "write-blocking");
            writer.begin(disk, 7);
            writer.assert_waits(disk, "the older copy is on its way");
            writer.guest.let_go(disk);
            writer.guest.wait(disk);
            writer.write_some(disk);
            // A write to both sides is on its way.
            writer.guest.hold(disk, "write_aio");
            writer.begin(disk, 9);
            writer.guest.wait_held(disk);
            change(writer, mode);
            writer.assert_waits(disk, "it began as a write to both sides");
            writer.guest.let_go(disk);
            writer.guest.wait(disk);
            writer.write_some(disk);
            writer.trim(disk, 30 * CLUSTER, 200);
        }
        writer.guest.pivot(disk);
        writer.assert_disk(disk, &disk.copy());
    });
}

/// Reopens a disk's source or target, `node`, with each of these options while a write of the guest is on its way.
fn reopen_in_all_ways(writer: &mut Writer, disk: Disk, node: &str) {
    let ways = [
        (json!({"cache": {"direct": true}}), json!({})),
        (json!({}), json!({"aio": "threads"})),
        (json!({"discard": "unmap"}), json!({"aio": "io_uring"})),
        (
            json!({"discard": "unmap", "detect-zeroes": "unmap"}),
            json!({}),
        ),
        (
            json!({"cache": {"no-flush": true}}),
            json!({"cache": {"direct": true}}),
        ),
        (json!({"detect-zeroes": "on"}), json!({})),
        (json!({}), json!({})),
    ];
    for (own, below) in ways {
        let mut file = json!({"driver": "file", "filename": writer.guest.image(node)});
        let members = file.as_object_mut().unwrap();
        members.extend(below.as_object().unwrap().clone());
        let mut options = json!({"driver": "blkdebug", "node-name": node, "image": file});
        let members = options.as_object_mut().unwrap();
        members.extend(own.as_object().unwrap().clone());
        let reopen = json!({"options": [options]});
        let (waited, answer) = writer.during_writes(&[disk], "blockdev-reopen", &reopen);
        answer.unwrap();
        // Nothing that the guest does goes to the target at once.
        assert!(waited || node != disk.name());
        writer.write_some(disk);
    }
}

/// Whatever may change about the nodes of a mirror changes, under the guest's writes and the job's copies: at the end both hold the
/// same.
#[test]
fn a_mirrors_nodes_are_reopened_under_writes() {
    for mode in ["background", "write-blocking"] {
        on_both(|writer, disk| {
            let (source, target) = (disk.name(), disk.copy());
            writer.guest.add_target(disk, &json!({}));
            let more = json!({"copy-mode": mode, "speed": 1 << 20});
            writer.guest.begin_mirror(disk, &more).unwrap();
            reopen_in_all_ways(writer, disk, source);
            reopen_in_all_ways(writer, disk, &target);
            let speed = json!({"device": source, "speed": 0});
            writer.guest.execute("block-job-set-speed", &speed);
            writer.guest.wait_job(disk, "BLOCK_JOB_READY");
            reopen_in_all_ways(writer, disk, &target);
            reopen_in_all_ways(writer, disk, source);
            writer.guest.pivot(disk);
            writer.assert_disk(disk, &target);
        });
    }
}

/// `drive-mirror` makes its target, and what a guest trims becomes a hole there with `unmap` alone.
#[test]
fn a_drive_mirror_makes_its_target_and_unmaps_what_is_trimmed() {
    on_both(|writer, disk| {
        writer
            .guest
            .execute("block-dirty-bitmap-add", &bitmap(disk, "b"));
        for unmap in [false, true] {
            let name = format!("{}-{unmap}", disk.copy());
            let target = writer.guest.image(&name);
            let arguments = json!({
                "device": disk.name(), "target": target, "format": "raw", "sync": "full", "job-id": disk.name(),
                "unmap": unmap, "copy-mode": "write-blocking"
            });
            // Data to be trimmed, on the target too.
            for sector in 0..CLUSTER {
                writer.write(disk, sector);
            }
            writer.ask_during_writes(&[disk], "drive-mirror", &arguments);
            writer.guest.wait_job(disk, "BLOCK_JOB_READY");
            writer.write_some(disk);
            writer.trim(disk, 0, u16::try_from(CLUSTER).unwrap());
            end_mirror(writer, disk);
            let expected = writer.expected(disk);
            writer.assert_image(disk, &name, &expected);
            let file = std::fs::File::open(target).unwrap();
            let data = seek(&file, SeekFrom::Data(0)).unwrap();
            assert_eq!(data != 0, unmap, "data begins at {data}");
        }
        // And the disk can go on there.
        let target = writer.guest.image(&disk.copy());
        let arguments = json!({
            "device": disk.name(), "target": target, "format": "raw", "sync": "full", "job-id": disk.name(),
            "node-name": disk.copy()
        });
        writer.ask_during_writes(&[disk], "drive-mirror", &arguments);
        writer.guest.wait_job(disk, "BLOCK_JOB_READY");
        writer.write_some(disk);
        writer.guest.pivot(disk);
        writer.assert_disk(disk, &disk.copy());
    });
}

/// The target takes the place of the image below a filter that the disk stands on.
#[test]
fn a_mirror_replaces_the_image_below_a_filter() {
    let top = |disk: Disk| match disk {
        Disk::Ide => "ide-top",
        Disk::Virtio => "virtio-top",
    };
    let filters = Disk::BOTH.map(|disk| {
        format!(
            "throttle,node-name={},throttle-group=g,file={}",
            top(disk),
            disk.name()
        )
    });
    let more = [
        ("-object", "throttle-group,id=g"),
        ("-blockdev", &filters[0]),
        ("-blockdev", &filters[1]),
    ];
    let mut writer = Writer::new(Guest::start_with(&more, top));
    for disk in Disk::BOTH {
        writer.guest.add_target(disk, &json!({}));
        let arguments = json!({
            "device": top(disk), "target": disk.copy(), "job-id": disk.name(), "sync": "full",
            "replaces": disk.name()
        });
        writer.ask_during_writes(&[disk], "blockdev-mirror", &arguments);
        writer.guest.wait_job(disk, "BLOCK_JOB_READY");
        writer.write_some(disk);
        let job = json!({"device": disk.name()});
        writer.guest.execute("block-job-complete", &job);
        writer.guest.wait_completed(disk);
        assert!(writer.guest.bytes(disk.name()) == writer.guest.bytes(&disk.copy()));
        assert!(writer.guest.roots().iter().any(|root| root == top(disk)));
        let old = writer.expected(disk);
        writer.assert_disk(disk, &disk.copy());
        writer.assert_image(disk, disk.name(), &old);
    }
    writer.guest.end();
}

/// No format here has a backing image: what is about a chain is refused, and the guest goes on.
#[test]
fn what_needs_a_chain_is_refused_under_writes() {
    on_both(|writer, disk| {
        let device = disk.name();
        for (command, arguments) in [
            ("block-stream", json!({"device": device, "job-id": "chain"})),
            ("block-commit", json!({"device": device, "job-id": "chain"})),
            (
                "blockdev-snapshot-sync",
                json!({"node-name": device, "snapshot-file": "/dev/null", "snapshot-node-name": "chain"}),
            ),
        ] {
            let (_, answer) = writer.during_writes(&[disk], command, &arguments);
            let refused = answer.unwrap_err().to_string();
            assert!(refused.contains("backing"), "{command}: {refused}");
            writer.assert_disk(disk, device);
        }
        let jobs = writer.guest.execute("query-jobs", &json!({}));
        assert_eq!(jobs, json!([]));
    });
}
