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
                let concluded = |event: &sluice_tests::qmp::Event| {
                    event.text("id") == disk.name() && event.text("status") == "concluded"
                };
                let qmp = &guest.machine.qmp;
                qmp.wait_event("concluded", super::two_disks::LIMIT, concluded)
                    .unwrap();
                guest.execute("job-dismiss", &json!({"id": disk.name()}));
            }
            assert!(guest.bytes(disk.name()) == guest.bytes(&disk.copy()));
        }
    });
}

#[test]
fn forbidden_actions() {
    play(|guest, disk| {
        guest.add_target(disk, &json!({}));
        guest.mirror(disk, "background");
        let (name, copy) = (disk.name(), disk.copy());
        for (command, arguments) in [
            ("block_resize", json!({"node-name": name, "size": 512})),
            ("block_resize", json!({"node-name": copy, "size": 512})),
            ("blockdev-del", json!({"node-name": copy})),
            ("block-stream", json!({"device": name, "job-id": "second"})),
            (
                "blockdev-mirror",
                json!({"device": name, "target": copy, "sync": "full", "job-id": "second"}),
            ),
            (
                "blockdev-backup",
                json!({"device": name, "target": copy, "sync": "full", "job-id": "second"}),
            ),
        ] {
            let refused = guest.machine.qmp.execute(command, &arguments);
            let refused = refused.unwrap_err().to_string();
            assert!(refused.contains("busy"), "{command}: {refused}");
        }
        guest.write(disk, 0, &[0x36; SECTOR]);
        guest.pivot(disk);
    });
}

/// An operator's tool writes through the disk while its mirror is ready, and can't write to the target.
#[test]
fn qemuio_ready_job() {
    play(|guest, disk| {
        guest.add_target(disk, &json!({}));
        guest.mirror(disk, "background");
        let line = format!("qemu-io -d dev-{} \"write -P 0x71 512 512\"", disk.name());
        let said = guest.execute("human-monitor-command", &json!({"command-line": line}));
        assert!(said.as_str().unwrap().contains("wrote 512/512"), "{said}");
        let line = format!("qemu-io {} \"write -P 0x72 512 512\"", disk.copy());
        let said = guest.execute("human-monitor-command", &json!({"command-line": line}));
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
