//! Snapshots, stream and both commits of an IDE disk and of a virtio disk in an I/O thread, whose guest keeps writing.
//! The layers are in memory (`x-overlay`), over the disk's image; what they show ends in an image in each test.

use serde_json::{Value, json};

use super::two_disks::{Disk, Guest, SECTOR, SECTORS};
use super::writer::{Writer, clusters};

/// Above all layers: it holds the guest's writes.
fn root(disk: Disk) -> &'static str {
    match disk {
        Disk::Ide => "ide-root",
        Disk::Virtio => "virtio-root",
    }
}

/// Below all layers, above the node of the disk's image, which holds and fails requests.
fn lowest(disk: Disk) -> &'static str {
    match disk {
        Disk::Ide => "ide-lowest",
        Disk::Virtio => "virtio-lowest",
    }
}

fn layer(disk: Disk, number: u32) -> String {
    format!("{}-{number}", disk.name())
}

/// So slow that a guest can write meanwhile.
const SLOW: u64 = 64 << 10;

fn start() -> Writer {
    let more = Disk::BOTH.map(|disk| {
        let (root, lowest, image) = (root(disk), lowest(disk), disk.name());
        [
            format!("raw,node-name={lowest},discard=unmap,file={image}"),
            format!("blkdebug,node-name={root},discard=unmap,image={lowest}"),
        ]
    });
    let more = more.iter().flatten();
    let more: Vec<_> = more.map(|node| ("-blockdev", node.as_str())).collect();
    Writer::on(Guest::start_with(&more, root), root)
}

/// Plays with each of the disks of one machine.
fn on_both(play: impl Fn(&mut Writer, Disk)) {
    let mut writer = start();
    for disk in Disk::BOTH {
        play(&mut writer, disk);
    }
    writer.guest.end();
}

/// Adds an empty layer.
fn add_layer(writer: &mut Writer, disk: Disk, number: u32) -> String {
    let name = layer(disk, number);
    let size = SECTORS * u64::try_from(SECTOR).unwrap();
    let node = json!({"driver": "x-overlay", "node-name": name, "size": size, "discard": "unmap"});
    writer.guest.execute("blockdev-add", &node);
    name
}

/// Puts a layer above another, or above the image, under a write. Returns what is below it from then on.
fn snapshot(writer: &mut Writer, disk: Disk, number: u32) -> Vec<u8> {
    let below = match number {
        1 => lowest(disk).to_owned(),
        _ => layer(disk, number - 1),
    };
    let overlay = add_layer(writer, disk, number);
    let arguments = json!({"node": below, "overlay": overlay});
    writer.ask_during_writes(&[disk], "blockdev-snapshot", &arguments);
    let old = writer.expected(disk);
    writer.write_some(disk);
    old
}

/// A slow job of the disk's name.
fn job(disk: Disk, more: &Value) -> Value {
    let mut all = json!({"job-id": disk.name(), "device": root(disk), "speed": SLOW});
    let members = all.as_object_mut().unwrap();
    members.extend(more.as_object().unwrap().clone());
    all
}

fn hurry(writer: &mut Writer, disk: Disk) {
    let speed = json!({"device": disk.name(), "speed": 0});
    writer.guest.execute("block-job-set-speed", &speed);
}

/// What the disk shows, by a copy of it.
fn assert_shown(writer: &mut Writer, disk: Disk) {
    writer.guest.add_target(disk, &json!({}));
    let copy =
        json!({"device": root(disk), "target": disk.copy(), "job-id": disk.name(), "sync": "full"});
    writer.ask_during_writes(&[disk], "blockdev-backup", &copy);
    let expected = writer.expected(disk);
    writer.guest.wait_completed(disk);
    writer.assert_image(disk, &disk.copy(), &expected);
    let target = json!({"node-name": disk.copy()});
    writer.guest.execute("blockdev-del", &target);
}

/// Nobody uses these nodes any more.
fn remove(writer: &mut Writer, nodes: &[String]) {
    for node in nodes {
        let node = json!({"node-name": node});
        writer.guest.execute("blockdev-del", &node);
    }
}

/// Commits the disk's own layer into its image, which then holds what the guest wrote.
fn commit_all(writer: &mut Writer, disk: Disk, number: u32) {
    let more = json!({"top-node": layer(disk, number)});
    writer.ask_during_writes(&[disk], "block-commit", &job(disk, &more));
    writer.write_some(disk);
    hurry(writer, disk);
    writer.guest.wait_job(disk, "BLOCK_JOB_READY");
    writer.write_some(disk);
    let ready = json!({"device": disk.name()});
    let (_, done) = writer.during_writes(&[disk], "block-job-complete", &ready);
    done.unwrap();
    writer.guest.wait_completed(disk);
    writer.assert_disk(disk, disk.name());
}

#[test]
fn a_snapshot_and_an_active_commit_lose_no_write() {
    on_both(|writer, disk| {
        writer.write_some(disk);
        let old = snapshot(writer, disk, 1);
        writer.assert_image(disk, disk.name(), &old);
        let old = snapshot(writer, disk, 2);
        assert_ne!(old, writer.expected(disk));
        assert_shown(writer, disk);
        commit_all(writer, disk, 2);
        remove(writer, &[layer(disk, 2), layer(disk, 1)]);
        writer.assert_disk(disk, disk.name());
    });
}

#[test]
fn a_commit_below_the_guests_layer_loses_no_write() {
    on_both(|writer, disk| {
        writer.write_some(disk);
        snapshot(writer, disk, 1);
        let middle = snapshot(writer, disk, 2);
        let more = json!({"top-node": layer(disk, 1), "base-node": lowest(disk)});
        writer.ask_during_writes(&[disk], "block-commit", &job(disk, &more));
        writer.write_some(disk);
        hurry(writer, disk);
        writer.guest.wait_completed(disk);
        writer.assert_image(disk, disk.name(), &middle);
        remove(writer, &[layer(disk, 1)]);
        assert_shown(writer, disk);
        commit_all(writer, disk, 2);
    });
}

#[test]
fn a_stream_loses_no_write() {
    on_both(|writer, disk| {
        writer.write_some(disk);
        snapshot(writer, disk, 1);
        snapshot(writer, disk, 2);
        // First what the guest's layer gets of the one below, then all the rest.
        for more in [json!({"base-node": lowest(disk)}), json!({})] {
            writer.ask_during_writes(&[disk], "block-stream", &job(disk, &more));
            writer.write_some(disk);
            writer.trim(disk, 0, 64);
            hurry(writer, disk);
            writer.guest.wait_completed(disk);
            assert_shown(writer, disk);
        }
        remove(writer, &[layer(disk, 1), lowest(disk).to_owned()]);
        assert_shown(writer, disk);
    });
}

/// The jobs that shorten the chain of a disk with two layers, and whether it has to be completed by a command.
fn shortenings(disk: Disk) -> [(&'static str, Value, bool); 3] {
    let middle = json!({"top-node": layer(disk, 1), "base-node": lowest(disk)});
    [
        ("block-stream", json!({}), false),
        ("block-commit", middle, false),
        ("block-commit", json!({}), true),
    ]
}

/// Has a disk with two layers, each of which holds something.
fn stack_up(writer: &mut Writer, disk: Disk) {
    writer.write_some(disk);
    snapshot(writer, disk, 1);
    snapshot(writer, disk, 2);
}

/// Begins a job under a write, and brings it to that state under others.
fn reach(writer: &mut Writer, disk: Disk, job_of: &(&str, Value, bool), state: &str) {
    let (command, more, is_active) = job_of;
    let mut arguments = job(disk, more);
    arguments["auto-finalize"] = json!(state != "pending");
    writer.ask_during_writes(&[disk], command, &arguments);
    writer.write_some(disk);
    if matches!(state, "ready" | "standby" | "pending") {
        hurry(writer, disk);
        if *is_active {
            writer.guest.wait_job(disk, "BLOCK_JOB_READY");
        }
    }
    let named = json!({"id": disk.name()});
    match state {
        "running" | "ready" => return,
        "paused" | "standby" => _ = writer.guest.execute("job-pause", &named),
        "pending" if *is_active => _ = writer.guest.execute("job-complete", &named),
        _ => {}
    }
    writer.guest.wait_status(disk, state);
    writer.write_some(disk);
}

/// A cancel leaves the chain as it is, under the guest's writes.
#[test]
fn a_cancelled_job_on_a_chain_loses_no_write() {
    on_both(|writer, disk| {
        stack_up(writer, disk);
        for shortening in shortenings(disk) {
            let states: &[_] = match shortening.2 {
                false => &["running", "paused", "pending"],
                true => &["running", "paused", "ready", "standby", "pending"],
            };
            for state in states {
                reach(writer, disk, &shortening, state);
                let cancel = json!({"device": disk.name(), "force": true});
                let (_, done) = writer.during_writes(&[disk], "block-job-cancel", &cancel);
                done.unwrap();
                writer.guest.wait_job(disk, "BLOCK_JOB_CANCELLED");
                writer.wait_no_job();
                assert!(writer.guest.roots().contains(&root(disk).to_owned()));
                assert_shown(writer, disk);
            }
        }
        // By one without force a ready commit ends well, with a base that can stand for the disk.
        reach(writer, disk, &shortenings(disk)[2], "ready");
        let cancel = json!({"device": disk.name()});
        let (_, done) = writer.during_writes(&[disk], "block-job-cancel", &cancel);
        done.unwrap();
        writer.guest.wait_completed(disk);
        let shown = writer.expected(disk);
        writer.assert_image(disk, disk.name(), &shown);
        writer.wait_no_job();
        assert_shown(writer, disk);
        commit_all(writer, disk, 2);
    });
}

/// Waits for the end of a job without a limit, which is told to complete if it has to be.
fn assert_ends(writer: &mut Writer, disk: Disk, is_active: bool) {
    if is_active {
        writer.guest.wait_job(disk, "BLOCK_JOB_READY");
        let ready = json!({"device": disk.name()});
        writer.guest.execute("block-job-complete", &ready);
    }
    writer.guest.wait_completed(disk);
    writer.wait_no_job();
}

/// The disk, on which the job has ended well, holds what the guest wrote.
fn assert_shortened(writer: &mut Writer, disk: Disk, is_active: bool) {
    match is_active {
        true => writer.assert_disk(disk, disk.name()),
        false => assert_shown(writer, disk),
    }
}

/// The guest sees nothing of an image that fails, and loses nothing: the job ends, or waits for the operator.
#[test]
fn a_job_on_a_chain_that_fails_loses_no_write() {
    for policy in ["report", "stop"] {
        for which in 0..3 {
            on_both(|writer, disk| {
                let (command, more, is_active) = shortenings(disk)[which].clone();
                stack_up(writer, disk);
                let event = match command {
                    "block-stream" => "read_aio",
                    _ => "write_aio",
                };
                writer.guest.hold_at(disk.name(), event);
                let mut arguments = job(disk, &more);
                arguments["speed"] = json!(0);
                arguments["on-error"] = json!(policy);
                writer.guest.execute(command, &arguments);
                writer.guest.wait_held_at(disk.name());
                let fail = json!({"node-name": disk.name(), "tag": "held", "errno": 5});
                writer.guest.execute("x-debug-resume", &fail);
                let failed = writer.guest.wait_job(disk, "BLOCK_JOB_ERROR");
                assert_eq!(failed.text("action"), policy);
                if policy == "report" {
                    let ended = writer.guest.wait_job(disk, "BLOCK_JOB_COMPLETED");
                    assert!(ended.text("error").contains("Input/output error"));
                    writer.wait_no_job();
                    assert!(writer.guest.roots().contains(&root(disk).to_owned()));
                    assert_shown(writer, disk);
                    return commit_all(writer, disk, 2);
                }
                writer.guest.wait_status(disk, "paused");
                writer.write_some(disk);
                let resume = json!({"device": disk.name()});
                let (_, done) = writer.during_writes(&[disk], "block-job-resume", &resume);
                done.unwrap();
                assert_ends(writer, disk, is_active);
                assert_shortened(writer, disk, is_active);
            });
        }
    }
}

/// While the machine stands still the job goes on to its end.
#[test]
fn a_job_on_a_chain_ends_while_the_machine_is_stopped() {
    for which in 0..3 {
        on_both(|writer, disk| {
            stack_up(writer, disk);
            let shortening = &shortenings(disk)[which];
            reach(writer, disk, shortening, "running");
            let (_, stopped) = writer.during_writes(&[disk], "stop", &json!({}));
            stopped.unwrap();
            hurry(writer, disk);
            assert_ends(writer, disk, shortening.2);
            writer.guest.execute("cont", &json!({}));
            assert_shortened(writer, disk, shortening.2);
        });
    }
}

/// Both disks get a layer at one instant; if a later action fails neither has one.
#[test]
fn snapshots_of_both_disks_are_made_together_or_not_at_all() {
    let mut writer = start();
    let writer = &mut writer;
    let mut actions = Vec::new();
    for disk in Disk::BOTH {
        writer.write_some(disk);
        let overlay = add_layer(writer, disk, 1);
        let snapshot = json!({"node": lowest(disk), "overlay": overlay});
        actions.push(json!({"type": "blockdev-snapshot", "data": snapshot}));
        let bitmap = json!({"node": lowest(disk), "name": "b"});
        actions.push(json!({"type": "block-dirty-bitmap-add", "data": bitmap}));
    }
    let mut refused = actions.clone();
    // It has a backing image by then.
    refused.push(actions[0].clone());
    let refused = json!({"actions": refused});
    let (waited, answer) = writer.during_writes(&Disk::BOTH, "transaction", &refused);
    assert!(waited && answer.is_err(), "{answer:?}");
    for disk in Disk::BOTH {
        writer.assert_disk(disk, disk.name());
    }
    let actions = json!({"actions": actions});
    writer.ask_during_writes(&Disk::BOTH, "transaction", &actions);
    let old = Disk::BOTH.map(|disk| writer.expected(disk));
    for (disk, old) in Disk::BOTH.into_iter().zip(old) {
        writer.take_written(disk);
        writer.write_some(disk);
        assert!(!clusters(&writer.take_written(disk)).is_empty());
        writer.assert_image(disk, disk.name(), &old);
        assert_shown(writer, disk);
        commit_all(writer, disk, 1);
    }
}
