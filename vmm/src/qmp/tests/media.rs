//! Trays and media through QMP, with a drive that is nothing but its tray.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use serde_json::{Value, json};
use sluice_block::Backend;
use sluice_block::backend::RemovableDevice;

use super::block::add_disk;
use super::harness::{Client, World, run};
use super::human::human;

/// The drive `cd0`, which a guest may have locked.
struct Drive {
    backend: Weak<Backend>,
    open: AtomicBool,
    locked: AtomicBool,
    asked: AtomicBool,
}

impl Drive {
    fn new(world: &World) -> Arc<Self> {
        let backend = world.graph.add_empty_backend("cd0", true).unwrap();
        let drive = Arc::new(Self {
            backend: Arc::downgrade(&backend),
            open: AtomicBool::default(),
            locked: AtomicBool::default(),
            asked: AtomicBool::default(),
        });
        let device: Weak<Self> = Arc::downgrade(&drive);
        backend.set_removable(device);
        backend.set_device("ide0");
        drive
    }

    fn lock(&self, locked: bool) {
        self.locked.store(locked, Ordering::SeqCst);
    }
}

impl RemovableDevice for Drive {
    fn is_tray_open(&self) -> bool {
        self.open.load(Ordering::SeqCst)
    }

    fn is_locked(&self) -> bool {
        self.locked.load(Ordering::SeqCst)
    }

    fn request_eject(&self, force: bool) {
        self.asked.store(true, Ordering::SeqCst);
        if force {
            self.lock(false);
        }
    }

    fn move_tray(&self, open: bool) {
        self.open.store(open, Ordering::SeqCst);
        self.backend.upgrade().unwrap().tray_moved(open);
    }

    fn medium_changed(&self, _present: bool) {}
}

/// What `query-block` tells of the only disk.
fn disk(client: &mut Client) -> Value {
    let disks = client.ok("query-block", json!({}));
    assert_eq!(disks.as_array().unwrap().len(), 1);
    disks[0].clone()
}

#[track_caller]
fn assert_tray_moved(client: &mut Client, open: bool) {
    let event = client.event();
    assert_eq!(event["event"], "DEVICE_TRAY_MOVED");
    let expected = json!({"device": "cd0", "id": "ide0", "tray-open": open});
    assert_eq!(event["data"], expected);
}

#[test]
fn a_medium_is_put_in_and_taken_out_step_by_step() {
    run(|world| {
        let mut client = world.client();
        let _drive = Drive::new(world);
        let path = add_disk(world, &mut client, "iso", 1, 1);
        let expected = json!({
            "device": "cd0", "qdev": "ide0", "type": "unknown", "removable": true,
            "locked": false, "tray_open": false, "io-status": "ok",
        });
        assert_eq!(disk(&mut client), expected);
        let removable = "    Attached to:      ide0\n    Removable device: not locked, tray ";
        let text = format!("cd0: [not inserted]\n{removable}closed\n");
        assert_eq!(human(&mut client, "info block"), text);

        let id = json!({"id": "ide0"});
        let insert = json!({"id": "ide0", "node-name": "iso"});
        let closed = "Tray of device 'cd0' is not open";
        assert_eq!(
            client.generic("blockdev-insert-medium", insert.clone()),
            closed
        );
        assert_eq!(client.generic("blockdev-remove-medium", id.clone()), closed);
        client.ok("blockdev-open-tray", id.clone());
        assert_tray_moved(&mut client, true);
        client.ok("blockdev-open-tray", id.clone());
        client.ok("blockdev-remove-medium", id.clone());
        client.ok("blockdev-insert-medium", insert.clone());
        let present = "There already is a medium in device 'cd0'";
        assert_eq!(
            client.generic("blockdev-insert-medium", insert.clone()),
            present
        );
        client.ok("blockdev-close-tray", id.clone());
        assert_tray_moved(&mut client, false);
        client.ok("blockdev-close-tray", id.clone());
        let present = disk(&mut client);
        assert_eq!(present["inserted"]["node-name"], "iso");
        assert_eq!(present["tray_open"], false);
        let text = format!(
            "cd0 (iso): {path} (raw)\n{removable}closed\n    Cache mode:       writeback\n"
        );
        assert_eq!(human(&mut client, "info block cd0"), text);
        let in_use = client.generic("blockdev-del", json!({"node-name": "iso"}));
        assert_eq!(in_use, "Node iso is in use");

        client.ok("eject", id);
        assert_tray_moved(&mut client, true);
        assert!(disk(&mut client).get("inserted").is_none());
        client.ok("blockdev-del", json!({"node-name": "iso"}));
        let error = client.generic("blockdev-insert-medium", insert);
        assert_eq!(error, "Node 'iso' not found");
    });
}

#[test]
fn a_locked_tray_opens_by_force_or_with_the_guest() {
    run(|world| {
        let mut client = world.client();
        let drive = Drive::new(world);
        drive.lock(true);
        let text = human(&mut client, "info block");
        assert!(
            text.contains("Removable device: locked, tray closed"),
            "{text}"
        );
        // The guest is asked, and opens the tray if it likes.
        client.ok("blockdev-open-tray", json!({"device": "cd0"}));
        assert!(drive.asked.swap(false, Ordering::SeqCst));
        let locked = disk(&mut client);
        assert_eq!(
            (&locked["locked"], &locked["tray_open"]),
            (&json!(true), &json!(false))
        );
        let error = client.generic("eject", json!({"device": "cd0"}));
        let wait = "Device 'cd0' is locked and force was not specified, wait for tray to open and \
                    try again";
        assert_eq!(error, wait);
        assert!(drive.asked.swap(false, Ordering::SeqCst));
        client.ok("eject", json!({"device": "cd0", "force": true}));
        assert_tray_moved(&mut client, true);
        assert!(drive.asked.load(Ordering::SeqCst));
    });
}

#[test]
fn an_image_is_exchanged_for_another() {
    run(|world| {
        let mut client = world.client();
        let drive = Drive::new(world);
        let (one, two) = (world.image("one", 4096, 1), world.image("two", 8192, 2));
        let change = |file: &str, more: Value| {
            let mut arguments = json!({"id": "ide0", "filename": file});
            let members = arguments.as_object_mut().unwrap();
            members.extend(more.as_object().unwrap().clone());
            arguments
        };
        client.ok("blockdev-change-medium", change(&one, json!({})));
        assert_tray_moved(&mut client, true);
        assert_tray_moved(&mut client, false);
        // As the drive, which only reads.
        let inserted = disk(&mut client)["inserted"].clone();
        assert_eq!(
            (&inserted["file"], &inserted["ro"]),
            (&json!(one), &json!(true))
        );
        let writable = json!({"format": "raw", "read-only-mode": "read-write"});
        client.ok("blockdev-change-medium", change(&two, writable));
        let inserted = disk(&mut client)["inserted"].clone();
        assert_eq!(
            (&inserted["file"], &inserted["ro"]),
            (&json!(two), &json!(false))
        );
        client.ok("blockdev-change-medium", change(&one, json!({})));
        assert_eq!(disk(&mut client)["inserted"]["ro"], false);
        let mode = json!({"read-only-mode": "read-only"});
        client.ok("blockdev-change-medium", change(&one, mode));
        assert_eq!(disk(&mut client)["inserted"]["ro"], true);
        let nodes = client.ok("query-named-block-nodes", json!({}));
        assert_eq!(nodes.as_array().unwrap().len(), 2);

        let error = client.generic("blockdev-change-medium", change("/nowhere", json!({})));
        let text = "Could not open '/nowhere': No such file or directory";
        assert!(error.starts_with(text), "{error}");
        let error = client.generic("blockdev-change-medium", change("nbd:x", json!({})));
        assert!(error.starts_with("Unknown protocol 'nbd'; "), "{error}");
        let named = json!({"driver": "file", "filename": two}).to_string();
        for name in [format!("file:{two}"), format!("json:{named}")] {
            client.ok("blockdev-change-medium", change(&name, json!({})));
            assert_eq!(disk(&mut client)["inserted"]["file"], json!(two));
        }
        client.ok("blockdev-change-medium", change(&one, json!({})));
        let format = json!({"format": "vhdx"});
        let error = client.generic("blockdev-change-medium", change(&two, format));
        assert_eq!(error, "Unknown driver 'vhdx'");
        drive.lock(true);
        let error = client.generic("blockdev-change-medium", change(&two, json!({})));
        assert!(
            error.contains("is locked and force was not specified"),
            "{error}"
        );
        assert_eq!(disk(&mut client)["inserted"]["file"], json!(one));
        client.ok(
            "blockdev-change-medium",
            change(&two, json!({"force": true})),
        );
        assert_eq!(disk(&mut client)["inserted"]["file"], json!(two));
    });
}

#[test]
fn a_job_keeps_its_medium_in() {
    run(|world| {
        let mut client = world.client();
        let _drive = Drive::new(world);
        add_disk(world, &mut client, "iso", 1, 1);
        add_disk(world, &mut client, "copy", 1, 0);
        client.ok("blockdev-open-tray", json!({"id": "ide0"}));
        client.ok(
            "blockdev-insert-medium",
            json!({"id": "ide0", "node-name": "iso"}),
        );
        let mirror = json!({"job-id": "m", "device": "iso", "target": "copy", "sync": "full"});
        client.ok("blockdev-mirror", mirror);
        let busy = "Node 'iso' is busy: block device is in use by block job: mirror 'm'; \
                    wait for the job's end, or end it: by 'job-complete' when it is ready, or by \
                    'job-cancel'";
        client.ok("blockdev-close-tray", json!({"id": "ide0"}));
        assert_eq!(client.generic("eject", json!({"id": "ide0"})), busy);
        assert_eq!(disk(&mut client)["tray_open"], false);
        let image = world.image("other", 4096, 1);
        let change = json!({"id": "ide0", "filename": image});
        assert_eq!(client.generic("blockdev-change-medium", change), busy);
        let disk = disk(&mut client);
        assert_eq!(disk["inserted"]["node-name"], "iso");
        assert_eq!(disk["tray_open"], false);
        client.ok("block-job-cancel", json!({"device": "m", "force": true}));
        loop {
            let event = client.event();
            if event["data"]["status"] == "null" {
                break;
            }
        }
        client.ok("eject", json!({"id": "ide0"}));
    });
}

#[test]
fn other_disks_and_none_are_refused() {
    run(|world| {
        let mut client = world.client();
        add_disk(world, &mut client, "d", 1, 1);
        let node = world.graph.node("d").unwrap();
        world.graph.add_backend("hd0", &node).unwrap();
        let fixed = json!({"id": "hd0"});
        let named = json!({"id": "hd0", "node-name": "d"});
        let image = world.image("other", 4096, 1);
        let image = json!({"id": "hd0", "filename": image});
        for (command, arguments) in [
            ("eject", fixed.clone()),
            ("blockdev-open-tray", fixed.clone()),
            ("blockdev-close-tray", fixed.clone()),
            ("blockdev-remove-medium", fixed),
            ("blockdev-insert-medium", named),
            ("blockdev-change-medium", image),
        ] {
            let error = client.generic(command, arguments);
            assert_eq!(error, "Device 'hd0' is not removable", "{command}");
        }
        let not_found = |name: &str| {
            let class = "DeviceNotFound".to_owned();
            (class, format!("Device '{name}' not found"))
        };
        for member in ["device", "id"] {
            let error = client.fails("eject", json!({member: "x"}));
            assert_eq!(error, not_found("x"));
        }
        for neither in [json!({}), json!({"device": "hd0", "id": "hd0"})] {
            let error = client.generic("eject", neither);
            assert_eq!(error, "Need exactly one of 'device' and 'id'");
        }
        // A drive that no device has is nothing but a place for a medium.
        world.graph.add_empty_backend("cd1", true).unwrap();
        client.ok("blockdev-open-tray", json!({"id": "cd1"}));
        let error = client.generic("block_resize", json!({"device": "cd1", "size": 512}));
        assert_eq!(error, "Device 'cd1' has no medium");
        let error = human(&mut client, "qemu-io cd1 \"read 0 512\"");
        assert!(error.contains("No medium found"), "{error}");
    });
}
