//! Descriptors that clients send, and files that are opened by them.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};

use super::harness::{Client, World, run};

/// More than the kernel takes with one message of ours.
const MANY: usize = 40;

/// Sends a message together with descriptors.
fn send_with(client: &Client, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MANY))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
    let parts = [IoSlice::new(bytes)];
    sendmsg(&client.stream, &parts, &mut control, SendFlags::empty()).unwrap();
}

fn execute_with(client: &mut Client, command: &str, arguments: &Value, file: &File) -> Value {
    let message = json!({"execute": command, "arguments": arguments}).to_string();
    send_with(client, message.as_bytes(), &[file.as_fd()]);
    client.reply()
}

/// Whether this process has an open descriptor of a file, besides the test's own.
fn is_open(path: &str, own: usize) -> bool {
    let links = std::fs::read_dir("/proc/self/fd").unwrap();
    let targets = links.filter_map(|link| std::fs::read_link(link.unwrap().path()).ok());
    targets.filter(|target| *target == *Path::new(path)).count() > own
}

/// Waits until a file is closed by all but the test.
fn wait_closed(world: &World, path: &str, own: usize) {
    let mut client = world.client();
    while is_open(path, own) {
        client.ok("query-name", json!({}));
    }
}

fn file(world: &World, name: &str) -> (String, File) {
    let path = world.image(name, 1 << 20, 7);
    let file = File::options().read(true).write(true).open(&path).unwrap();
    (path, file)
}

const NONE_SENT: &str = "No file descriptor supplied via SCM_RIGHTS";

#[test]
fn a_descriptor_gets_a_name() {
    run(|world| {
        let mut client = world.client();
        let (path, file) = file(world, "image");
        assert_eq!(client.generic("getfd", json!({"fdname": "a"})), NONE_SENT);
        let named = execute_with(&mut client, "getfd", &json!({"fdname": "a"}), &file);
        assert_eq!(named, json!({"return": {}}));
        assert!(is_open(&path, 1));
        // It is taken once.
        assert_eq!(client.generic("getfd", json!({"fdname": "b"})), NONE_SENT);
        // Another of that name takes its place.
        let named = execute_with(&mut client, "getfd", &json!({"fdname": "a"}), &file);
        assert_eq!(named, json!({"return": {}}));
        assert!(is_open(&path, 1) && !is_open(&path, 2));
        client.ok("closefd", json!({"fdname": "a"}));
        assert!(!is_open(&path, 1));
        let missing = client.generic("closefd", json!({"fdname": "a"}));
        assert_eq!(missing, "File descriptor named 'a' not found");
        let reply = execute_with(&mut client, "getfd", &json!({"fdname": "1a"}), &file);
        assert_eq!(
            reply["error"]["desc"],
            "Parameter 'fdname' expects a name not starting with a digit"
        );
        assert!(!is_open(&path, 1));
    });
}

#[test]
fn descriptors_may_come_before_their_command() {
    run(|world| {
        let mut client = world.client();
        let (path, file) = file(world, "image");
        // Clients send them with white space; another message in between takes nothing away.
        send_with(&client, b" ", &[file.as_fd()]);
        client.ok("query-name", json!({}));
        client.ok("getfd", json!({"fdname": "a"}));
        client.ok("closefd", json!({"fdname": "a"}));
        // The first is taken, whatever else came with it or before.
        send_with(&client, b" ", &[file.as_fd()]);
        let other = world.image("other", 512, 0);
        let other_file = File::open(&other).unwrap();
        send_with(
            &client,
            b" ",
            &[other_file.as_fd(), file.as_fd(), file.as_fd()],
        );
        client.ok("getfd", json!({"fdname": "a"}));
        assert!(is_open(&other, 1) && !is_open(&path, 1));
    });
}

#[test]
fn a_client_that_vanishes_takes_its_descriptors_with_it() {
    run(|world| {
        let (path, file) = file(world, "image");
        let mut client = world.client();
        execute_with(&mut client, "getfd", &json!({"fdname": "a"}), &file);
        send_with(&client, b" ", &[file.as_fd()]);
        let mut other = world.client();
        let missing = other.generic("closefd", json!({"fdname": "a"}));
        assert_eq!(
            missing, "File descriptor named 'a' not found",
            "that is the other's"
        );
        drop(client);
        wait_closed(world, &path, 1);
        // A set is everybody's.
        let mut client = world.client();
        let added = execute_with(&mut client, "add-fd", &json!({}), &file);
        drop(client);
        let sets = other.ok("query-fdsets", json!({}));
        assert_eq!(sets[0]["fds"][0]["fd"], added["return"]["fd"]);
        other.ok("remove-fd", json!({"fdset-id": 0}));
        assert!(!is_open(&path, 1));
    });
}

#[test]
fn nobody_sends_as_many_as_he_likes() {
    run(|world| {
        let (path, file) = file(world, "image");
        let mut client = world.client();
        for _ in 0..20 {
            send_with(&client, b" ", &[file.as_fd(); MANY]);
            client.ok("query-name", json!({}));
        }
        let open = |most: usize| !is_open(&path, 1 + most);
        assert!(open(MANY / 2), "only those of the last message are kept");
        client.ok("getfd", json!({"fdname": "last"}));
        assert!(open(1));
        for number in 0..63 {
            let name = json!({"fdname": format!("n{number}")});
            execute_with(&mut client, "getfd", &name, &file);
        }
        let reply = execute_with(&mut client, "getfd", &json!({"fdname": "more"}), &file);
        assert_eq!(
            reply["error"]["desc"],
            "There are 64 named file descriptors already; close some with 'closefd'"
        );
        drop(client);
        let mut client = world.client();
        wait_closed(world, &path, 1);
        for _ in 0..512 {
            execute_with(&mut client, "add-fd", &json!({"fdset-id": 3}), &file);
        }
        let reply = execute_with(&mut client, "add-fd", &json!({}), &file);
        assert_eq!(
            reply["error"]["desc"],
            "There are 512 file descriptors in sets already; remove some with 'remove-fd'"
        );
        client.ok("remove-fd", json!({"fdset-id": 3}));
        assert!(open(0));
    });
}

#[test]
fn sets_are_numbered() {
    run(|world| {
        let (_, file) = file(world, "image");
        let mut client = world.client();
        assert_eq!(client.generic("add-fd", json!({})), NONE_SENT);
        let add = |client: &mut Client, arguments: Value| {
            execute_with(client, "add-fd", &arguments, &file)["return"].clone()
        };
        assert_eq!(add(&mut client, json!({}))["fdset-id"], 0);
        assert_eq!(add(&mut client, json!({"fdset-id": 2}))["fdset-id"], 2);
        assert_eq!(add(&mut client, json!({}))["fdset-id"], 1);
        let second = add(&mut client, json!({"fdset-id": 2, "opaque": "rw:/x"}));
        let sets = client.ok("query-fdsets", json!({}));
        let ids: Vec<_> = (0..3).map(|at| sets[at]["fdset-id"].clone()).collect();
        assert_eq!(ids, [2, 1, 0]);
        assert_eq!(sets[0]["fds"].as_array().unwrap().len(), 2);
        assert_eq!(
            sets[0]["fds"][1],
            json!({"fd": second["fd"], "opaque": "rw:/x"})
        );
        let negative = execute_with(&mut client, "add-fd", &json!({"fdset-id": -1}), &file);
        assert_eq!(
            negative["error"]["desc"],
            "Parameter 'fdset-id' expects a non-negative value"
        );
        for (arguments, name) in [
            (json!({"fdset-id": 7}), "fdset-id:7"),
            (json!({"fdset-id": 7, "fd": 1}), "fdset-id:7, fd:1"),
            (json!({"fdset-id": 2, "fd": 1}), "fdset-id:2, fd:1"),
        ] {
            assert_eq!(
                client.generic("remove-fd", arguments),
                format!("File descriptor named '{name}' not found")
            );
        }
        client.ok("remove-fd", json!({"fdset-id": 2, "fd": second["fd"]}));
        client.ok("remove-fd", json!({"fdset-id": 2}));
        // The set went with its last descriptor.
        let gone = client.generic("remove-fd", json!({"fdset-id": 2}));
        assert!(gone.ends_with("not found"), "{gone}");
    });
}

#[test]
fn a_node_is_opened_by_a_set() {
    run(|world| {
        let (path, file) = file(world, "image");
        let readable = File::open(&path).unwrap();
        // By its name it can't be had any more.
        std::fs::remove_file(&path).unwrap();
        let mut client = world.client();
        let node = |name: &str, more: Value| {
            let mut node = json!({"driver": "file", "node-name": name, "filename": "/dev/fdset/5"});
            node.as_object_mut()
                .unwrap()
                .extend(more.as_object().unwrap().clone());
            node
        };
        let missing = client.generic("blockdev-add", node("n", json!({})));
        assert_eq!(missing, "Failed to find fdset /dev/fdset/5");
        execute_with(&mut client, "add-fd", &json!({"fdset-id": 5}), &readable);
        let refused = client.generic("blockdev-add", node("n", json!({})));
        assert_eq!(
            refused,
            "Failed to find file descriptor with matching flags=0x2"
        );
        client.ok("blockdev-add", node("r", json!({"read-only": true})));
        client.ok(
            "blockdev-add",
            node("auto", json!({"auto-read-only": true})),
        );
        assert!(world.graph.node("auto").unwrap().is_read_only());
        client.ok("blockdev-del", json!({"node-name": "auto"}));
        // With one to write it can be written to: also by a node that is opened again.
        execute_with(&mut client, "add-fd", &json!({"fdset-id": 5}), &file);
        let reopened = json!({"options": [node("r", json!({"read-only": false}))]});
        client.ok("blockdev-reopen", reopened);
        assert!(!world.graph.node("r").unwrap().is_read_only());
        // The node has a descriptor of its own.
        client.ok("remove-fd", json!({"fdset-id": 5}));
        drop((file, readable));
        assert_eq!(world.graph.node("r").unwrap().len(), 1 << 20);
        client.ok("block_resize", json!({"node-name": "r", "size": 2 << 20}));
        client.ok("blockdev-del", json!({"node-name": "r"}));
        for name in [
            "/dev/fdset/",
            "/dev/fdset/x",
            "/dev/fdset/-1",
            "/dev/fdset/99999999999999999999",
        ] {
            let error = client.generic("blockdev-add", node("n", json!({"filename": name})));
            assert_eq!(error, format!("Could not parse fdset {name}"));
        }
    });
}

#[test]
fn what_is_no_file_is_no_disk() {
    run(|world| {
        let mut client = world.client();
        let (read, _write) = rustix::pipe::pipe().unwrap();
        let pipe = File::from(read);
        let directory = File::open(world.directory.path()).unwrap();
        for (set, passed) in [pipe, directory].iter().enumerate() {
            execute_with(&mut client, "add-fd", &json!({"fdset-id": set}), passed);
            let node = json!({
                "driver": "file", "node-name": "n", "read-only": true,
                "filename": format!("/dev/fdset/{set}")
            });
            let error = client.generic("blockdev-add", node);
            assert!(error.contains("a disk image is a file"), "{error}");
        }
    });
}

#[test]
fn a_mirror_goes_to_a_file_that_is_passed() {
    run(|world| {
        let mut client = world.client();
        let image = world.image("source", 1 << 20, 9);
        let (path, file) = file(world, "target");
        client.ok(
            "blockdev-add",
            json!({"driver": "file", "node-name": "s", "filename": image}),
        );
        let node = world.graph.node("s").unwrap();
        world.graph.add_backend("disk", &node).unwrap();
        execute_with(&mut client, "add-fd", &json!({}), &file);
        let mut mirror = json!({
            "device": "disk", "target": "/dev/fdset/0", "sync": "full", "job-id": "j"
        });
        let refused = client.generic("drive-mirror", mirror.clone());
        assert!(refused.contains("use it with mode=existing"), "{refused}");
        mirror["mode"] = "existing".into();
        client.ok("drive-mirror", mirror);
        client.wait_event("BLOCK_JOB_READY");
        client.ok("job-complete", json!({"id": "j"}));
        client.wait_event("BLOCK_JOB_COMPLETED");
        assert_eq!(
            std::fs::read(&path).unwrap(),
            std::fs::read(&image).unwrap()
        );
        let names: BTreeSet<_> = world
            .graph
            .nodes()
            .iter()
            .map(|node| node.info().filename)
            .collect();
        assert!(names.contains("/dev/fdset/0"));
    });
}
