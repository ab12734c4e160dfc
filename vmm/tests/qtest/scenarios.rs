//! Scenarios of others' mirror tests, each with an IDE disk and with a virtio disk in an I/O thread; the table is
//! docs/mirror-scenarios.md.

use serde_json::{Value, json};

use super::two_disks::{Disk, Guest, SECTOR, SECTORS};

/// Plays a scenario with each of the disks of one machine.
fn play(scenario: impl Fn(&mut Guest, Disk)) {
    let mut guest = Guest::start();
    for disk in Disk::BOTH {
        scenario(&mut guest, disk);
    }
    guest.end();
}

fn job(disk: Disk) -> Value {
    json!({"device": disk.name()})
}

/// Options of a mirror that copies 64 KiB at a time, of which the second is not copied while the test looks.
fn slow() -> Value {
    json!({"speed": 1, "buf-size": 1 << 20})
}

/// The guest's disk is where it was, and works.
fn assert_on_source(guest: &mut Guest, disk: Disk) {
    assert!(guest.roots().iter().any(|root| root == disk.name()));
    guest.write(disk, 1, &[0x77; SECTOR]);
    guest.flush(disk);
    assert_eq!(guest.bytes(disk.name())[SECTOR], 0x77);
    assert_ne!(guest.bytes(&disk.copy())[SECTOR], 0x77);
}

#[test]
fn cancel_running_job() {
    play(|guest, disk| {
        guest.add_target(disk, &json!({}));
        guest.begin_mirror(disk, &slow()).unwrap();
        guest.write(disk, 0, &[0x31; SECTOR]);
        guest.execute("block-job-cancel", &job(disk));
        guest.wait_job(disk, "BLOCK_JOB_CANCELLED");
        assert_on_source(guest, disk);
        // Both can be used again.
        guest.mirror(disk, "background");
        guest.pivot(disk);
    });
}

#[test]
fn complete_running_job() {
    play(|guest, disk| {
        guest.add_target(disk, &json!({}));
        guest.begin_mirror(disk, &slow()).unwrap();
        let complete = guest.machine.qmp.execute("block-job-complete", &job(disk));
        let refused = complete.unwrap_err().to_string();
        assert!(
            refused.contains("cannot accept command verb 'complete'"),
            "{refused}"
        );
        let faster = json!({"device": disk.name(), "speed": 0});
        guest.execute("block-job-set-speed", &faster);
        guest.wait_job(disk, "BLOCK_JOB_READY");
        guest.pivot(disk);
    });
}

#[test]
fn cancel_ready_job() {
    play(|guest, disk| {
        guest.add_target(disk, &json!({}));
        guest.mirror(disk, "background");
        guest.write(disk, 0, &[0x31; SECTOR]);
        guest.execute("block-job-cancel", &job(disk));
        // A copy of one moment, without a pivot.
        guest.wait_completed(disk);
        assert!(guest.bytes(disk.name()) == guest.bytes(&disk.copy()));
        assert_on_source(guest, disk);
    });
}

#[test]
fn cancel_ready_job_with_io() {
    play(|guest, disk| {
        guest.add_target(disk, &json!({}));
        guest.mirror(disk, "write-blocking");
        guest.hold(disk, "write_aio");
        guest.begin_write(disk, 0, &[0x31; SECTOR]);
        guest.wait_held(disk);
        let forced = json!({"device": disk.name(), "force": true});
        guest.execute("block-job-cancel", &forced);
        // The target hangs yet.
        guest.wait(disk);
        guest.let_go(disk);
        guest.wait_job(disk, "BLOCK_JOB_CANCELLED");
        assert_eq!(guest.bytes(disk.name())[0], 0x31);
        assert_on_source(guest, disk);
    });
}

/// A server that is down, or behind a firewall: requests to the target do not come back.
#[test]
fn remote_server_down() {
    play(|guest, disk| {
        guest.add_target(disk, &json!({}));
        guest.hold(disk, "write_aio");
        guest.begin_mirror(disk, &json!({})).unwrap();
        guest.wait_held(disk);
        for sector in 0..8 {
            guest.write(disk, sector, &[0x32; SECTOR]);
        }
        guest.flush(disk);
        guest.let_go(disk);
        guest.wait_job(disk, "BLOCK_JOB_READY");
        guest.pivot(disk);
    });
}

#[test]
fn after_block_error() {
    play(|guest, disk| {
        let rules = json!({"inject-error": [{"event": "write_aio", "errno": 5, "once": true}]});
        guest.add_target(disk, &rules);
        guest.begin_mirror(disk, &json!({})).unwrap();
        guest.write(disk, 0, &[0x33; SECTOR]);
        let ended = guest.wait_job(disk, "BLOCK_JOB_COMPLETED");
        assert_eq!(ended.text("error"), "Input/output error");
        assert_on_source(guest, disk);
        guest.mirror(disk, "background");
        guest.pivot(disk);
    });
}

#[test]
fn no_space() {
    play(|guest, disk| {
        let rules = json!({"inject-error": [{"event": "write_aio", "errno": 28, "once": true}]});
        guest.add_target(disk, &rules);
        let stops = json!({"on-target-error": "enospc"});
        guest.begin_mirror(disk, &stops).unwrap();
        let stopped = guest.wait_job(disk, "BLOCK_JOB_ERROR");
        assert_eq!(stopped.text("action"), "stop");
        guest.write(disk, 0, &[0x34; SECTOR]);
        let jobs = guest.execute("query-block-jobs", &json!({}));
        assert_eq!(jobs[0]["io-status"], "nospace");
        guest.execute("block-job-resume", &job(disk));
        guest.wait_job(disk, "BLOCK_JOB_READY");
        guest.pivot(disk);
    });
}

#[test]
fn readonly_target() {
    play(|guest, disk| {
        let size = SECTORS * SECTOR as u64;
        let node = json!({
            "driver": "null-co", "node-name": disk.copy(), "read-only": true, "size": size
        });
        guest.execute("blockdev-add", &node);
        let refused = guest.begin_mirror(disk, &json!({})).unwrap_err();
        assert!(refused.to_string().contains("read-only"), "{refused}");
        guest.write(disk, 0, &[0x35; SECTOR]);
    });
}

/// Granularities, buffers, and ends by hand.
#[test]
fn simple() {
    play(|guest, disk| {
        guest.add_target(disk, &json!({}));
        let manual = json!({"auto-finalize": false, "auto-dismiss": false});
        let variants = [
            json!({"granularity": 512}),
            json!({"granularity": 65536, "buf-size": 65536}),
            json!({"granularity": 64 << 20, "buf-size": 128 << 20}),
            manual.clone(),
        ];
        for (byte, variant) in (0x41..).zip(&variants) {
            guest.begin_mirror(disk, variant).unwrap();
            guest.wait_job(disk, "BLOCK_JOB_READY");
            guest.write(disk, 0, &[byte; SECTOR]);
            guest.execute("block-job-cancel", &job(disk));
            if *variant == manual {
                let by_id = |event: &sluice_tests::qmp::Event| {
                    event.event == "BLOCK_JOB_PENDING" && event.text("id") == disk.name()
                };
                let pending =
                    guest
                        .machine
                        .qmp
                        .wait_event("pending", super::two_disks::LIMIT, by_id);
                pending.unwrap();
                // It does not hold the guest meanwhile.
                guest.write(disk, 2, &[byte; SECTOR]);
                guest.execute("job-finalize", &json!({"id": disk.name()}));
            }
            guest.wait_completed(disk);
            if *variant == manual {
                guest.wait_status(disk, "concluded");
                guest.execute("job-dismiss", &json!({"id": disk.name()}));
            }
            assert!(guest.bytes(disk.name()) == guest.bytes(&disk.copy()));
        }
    });
}

/// Commands that would change or take what the job of a disk has, each with a name of its own.
fn forbidden(guest: &Guest, disk: Disk) -> Vec<(&'static str, Value)> {
    let (name, copy) = (disk.name(), disk.copy());
    let (free, file) = (spare(disk), guest.image("new"));
    let second = |target: &str| json!({"device": name, "target": target, "sync": "full", "job-id": "second"});
    let of_file = |target: Value| {
        let mut arguments = second("");
        arguments["target"] = target;
        arguments["format"] = json!("raw");
        arguments
    };
    let from = |device: &str, target: &str| {
        let mut arguments = second(target);
        arguments["device"] = json!(device);
        arguments
    };
    let transaction = |kind: &str, data: Value| json!({"actions": [{"type": kind, "data": data}]});
    let snapshot = json!({"node": name, "overlay": free});
    vec![
        ("block_resize", json!({"node-name": name, "size": 512})),
        ("block_resize", json!({"node-name": copy, "size": 512})),
        ("blockdev-del", json!({"node-name": copy})),
        ("block-stream", json!({"device": name, "job-id": "second"})),
        ("block-commit", json!({"device": name, "job-id": "second"})),
        ("blockdev-snapshot", snapshot.clone()),
        (
            "blockdev-snapshot-sync",
            json!({"node-name": name, "snapshot-file": file, "snapshot-node-name": "new"}),
        ),
        ("blockdev-mirror", second(&free)),
        ("blockdev-mirror", second(&copy)),
        ("blockdev-mirror", from(&copy, &free)),
        ("blockdev-mirror", from(&free, &copy)),
        ("drive-mirror", of_file(json!(file))),
        ("blockdev-backup", second(&free)),
        ("blockdev-backup", second(&copy)),
        ("blockdev-backup", from(&copy, &free)),
        ("blockdev-backup", from(&free, &copy)),
        ("drive-backup", of_file(json!(file))),
        ("transaction", transaction("blockdev-backup", second(&free))),
        ("transaction", transaction("blockdev-snapshot", snapshot)),
    ]
}

/// A node that nobody uses, as large as a disk.
fn spare(disk: Disk) -> String {
    format!("{}-spare", disk.name())
}

/// Whatever would change or take what a job has is refused, and told by whom and how to end that; nothing has happened.
#[test]
fn forbidden_actions() {
    for kind in ["mirror", "backup"] {
        play(|guest, disk| {
            guest.add_target(disk, &json!({}));
            let node = json!({
                "driver": "null-co", "node-name": spare(disk), "size": SECTORS * SECTOR as u64
            });
            guest.execute("blockdev-add", &node);
            if kind == "mirror" {
                guest.mirror(disk, "background");
            } else {
                let backup = json!({
                    "device": disk.name(), "target": disk.copy(), "job-id": disk.name(), "sync": "none"
                });
                guest.execute("blockdev-backup", &backup);
            }
            let owner = format!(
                "is busy: block device is in use by block job: {kind} '{}'",
                disk.name()
            );
            let mut wrong = Vec::new();
            for (command, arguments) in forbidden(guest, disk) {
                let answer = guest.machine.qmp.execute(command, &arguments);
                let text = answer.map_or_else(|error| error.to_string(), |done| done.to_string());
                if !text.contains(&owner) || !text.contains("'job-cancel'") {
                    wrong.push(format!("{command} {arguments}: {text}"));
                }
            }
            assert!(wrong.is_empty(), "{kind}: {wrong:#?}");
            assert!(!guest.image("new").exists(), "a target or overlay was made");
            let jobs = guest.execute("query-jobs", &json!({}));
            assert_eq!(jobs.as_array().map(Vec::len), Some(1));
            guest.write(disk, 0, &[0x36; SECTOR]);
            if kind == "mirror" {
                guest.pivot(disk);
            } else {
                guest.execute("block-job-cancel", &job(disk));
                guest.wait_job(disk, "BLOCK_JOB_CANCELLED");
            }
        });
    }
}

/// What is no granularity is refused, and each that is one will do.
#[test]
fn granularity() {
    play(|guest, disk| {
        guest.add_target(disk, &json!({}));
        for wrong in [1, 256, 1000, 128 << 20] {
            let refused = guest
                .begin_mirror(disk, &json!({"granularity": wrong}))
                .unwrap_err();
            assert!(
                refused.to_string().contains("'granularity'"),
                "{wrong}: {refused}"
            );
        }
        for shift in [9, 12, 16, 20, 26] {
            guest
                .begin_mirror(disk, &json!({"granularity": 1_u64 << shift}))
                .unwrap();
            guest.wait_job(disk, "BLOCK_JOB_READY");
            guest.write(disk, shift, &[0x51; SECTOR]);
            guest.execute("block-job-cancel", &job(disk));
            guest.wait_completed(disk);
            assert!(
                guest.bytes(disk.name()) == guest.bytes(&disk.copy()),
                "{shift}"
            );
        }
    });
}

/// The filter has the name that was given, and no other node may have it.
#[test]
fn filter_node() {
    play(|guest, disk| {
        guest.add_target(disk, &json!({}));
        let taken = json!({"filter-node-name": disk.copy()});
        let refused = guest.begin_mirror(disk, &taken).unwrap_err().to_string();
        assert!(refused.contains(&disk.copy()), "{refused}");
        let named = json!({"filter-node-name": "filter"});
        guest.begin_mirror(disk, &named).unwrap();
        guest.wait_job(disk, "BLOCK_JOB_READY");
        assert!(guest.roots().iter().any(|root| root == "filter"));
        guest.write(disk, 0, &[0x52; SECTOR]);
        guest.pivot(disk);
        assert!(!guest.roots().iter().any(|root| root == "filter"));
    });
}

/// The disk is no target of its own, by whatever name.
#[test]
fn same_src_tgt() {
    play(|guest, disk| {
        let mirror = json!({
            "device": disk.name(), "target": disk.name(), "sync": "full", "job-id": disk.name()
        });
        let refused = guest
            .machine
            .qmp
            .execute("blockdev-mirror", &mirror)
            .unwrap_err();
        assert!(refused.to_string().contains(disk.name()), "{refused}");
        let file = json!({
            "device": disk.name(), "target": guest.image(disk.name()), "sync": "full", "format": "raw",
            "job-id": disk.name(), "mode": "existing"
        });
        let refused = guest
            .machine
            .qmp
            .execute("drive-mirror", &file)
            .unwrap_err();
        assert!(refused.to_string().contains(disk.name()), "{refused}");
        guest.write(disk, 0, &[0x53; SECTOR]);
        guest.flush(disk);
        assert_eq!(guest.bytes(disk.name())[0], 0x53);
    });
}

/// An operator's tool writes through the disk while its mirror is ready, and can't write to the target.
#[test]
fn qemuio_ready_job() {
    play(|guest, disk| {
        guest.add_target(disk, &json!({}));
        guest.mirror(disk, "background");
        let line = format!("qemu-io -d dev-{} \"write -P 0x71 512 512\"", disk.name());
        let said = guest.execute(
            "human-monitor-command",
            &json!({"command-line": line, "x-output": true}),
        );
        assert!(said.as_str().unwrap().contains("wrote 512/512"), "{said}");
        let line = format!("qemu-io {} \"write -P 0x72 512 512\"", disk.copy());
        let said = guest.execute(
            "human-monitor-command",
            &json!({"command-line": line, "x-output": true}),
        );
        assert!(!said.as_str().unwrap().contains("wrote"), "{said}");
        guest.pivot(disk);
        assert_eq!(guest.bytes(&disk.copy())[SECTOR], 0x71);
    });
}

#[test]
fn vm_stop_cont() {
    play(|guest, disk| {
        guest.add_target(disk, &json!({}));
        guest.execute("stop", &json!({}));
        guest.mirror(disk, "background");
        guest.execute("cont", &json!({}));
        guest.write(disk, 0, &[0x37; SECTOR]);
        guest.pivot(disk);
    });
}

#[test]
fn ready_vm_down() {
    let mut guest = Guest::start();
    for disk in Disk::BOTH {
        guest.add_target(disk, &json!({}));
        guest.mirror(disk, "background");
        guest.write(disk, 0, &[0x38; SECTOR]);
    }
    guest.execute("quit", &json!({}));
    let directory = guest.end_and_keep();
    for disk in Disk::BOTH {
        let image = std::fs::read(directory.path().join(disk.name())).unwrap();
        assert_eq!(image[0], 0x38);
    }
}
