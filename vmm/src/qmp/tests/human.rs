//! `human-monitor-command`, compared with the program `qemu-io` where that is installed.

use std::process::Command;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::json;

use super::block::add_disk;
use super::harness::{Client, World, run};

pub(super) fn human(client: &mut Client, line: &str) -> String {
    let line = json!({"command-line": line, "x-output": true});
    let reply = client.ok("human-monitor-command", line);
    let text = reply.as_str().unwrap().to_owned();
    assert_eq!(text.matches('\n').count(), text.matches("\r\n").count());
    text.replace("\r\n", "\n")
}

fn qemu_io(client: &mut Client, device: &str, command: &str) -> String {
    human(client, &format!("qemu-io {device} \"{command}\""))
}

/// A time is never the same twice.
fn without_times(text: &str) -> String {
    let line = |line: &str| match line.split_once(" ops; ") {
        Some((before, _)) => format!("{before} ops; …\n"),
        None => format!("{line}\n"),
    };
    text.lines().map(line).collect()
}

fn add_backend(world: &World, node: &str, name: &str) -> Arc<sluice_block::Backend> {
    let node = world.graph.node(node).unwrap();
    world.graph.add_backend(name, &node).unwrap()
}

/// Adds a disk of an image that is opened as the program `qemu-io` opens its own; returns the image's path too.
fn add_as_the_program_does(
    world: &World,
    client: &mut Client,
) -> (String, Arc<sluice_block::Backend>) {
    let path = world.image("d", 1 << 20, 1);
    let file = json!({"driver": "file", "filename": path});
    let raw = json!({"driver": "raw", "node-name": "d", "discard": "unmap", "file": file});
    client.ok("blockdev-add", raw);
    (path, add_backend(world, "d", "disk"))
}

#[test]
fn the_machine_and_its_disks_are_told_of() {
    run(|world| {
        let mut client = world.client();
        assert_eq!(human(&mut client, "info status"), "VM status: running\n");
        client.ok("stop", json!({}));
        assert_eq!(human(&mut client, "info status"), "VM status: paused\n");
        assert_eq!(human(&mut client, "info block"), "");
        let path = add_disk(world, &mut client, "d", 1, 1);
        add_backend(world, "d", "ide0-hd0").set_device("/machine/ide0");
        let expected = format!(
            "ide0-hd0 (d): {path} (raw)\n    Attached to:      /machine/ide0\n    \
             Cache mode:       writeback\n"
        );
        assert_eq!(human(&mut client, "info block"), expected);
        assert_eq!(human(&mut client, "info block ide0-hd0"), expected);
        assert_eq!(human(&mut client, "info block x"), "");
        let nodes = human(&mut client, "info block -n d");
        assert_eq!(
            nodes,
            format!("d: {path} (raw)\n    Cache mode:       writeback\n")
        );
        let null = json!({"driver": "null-co", "node-name": "null", "size": 1_572_864});
        client.ok("blockdev-add", null);
        assert_eq!(
            human(&mut client, "info block -n -v null"),
            "null: null-co:// (null-co)\n    Cache mode:       writeback\n\nImages:\n\
             image: null-co://\nfile format: null-co\nvirtual size: 1.5 MiB (1572864 bytes)\n\
             disk size: 0 B\n"
        );
        let limits = json!({"id": "ide0-hd0", "bps": 0, "bps_rd": 10, "bps_wr": 20, "iops": 30,
            "iops_rd": 0, "iops_wr": 0, "bps_wr_max": 40, "iops_size": 512, "group": "g"});
        client.ok("block_set_io_throttle", limits);
        assert_eq!(
            human(&mut client, "info block"),
            expected
                + "    I/O throttling:   bps=0 bps_rd=10 bps_wr=20 bps_max=0 bps_rd_max=0 \
                   bps_wr_max=40 iops=30 iops_rd=0 iops_wr=0 iops_max=0 iops_rd_max=0 \
                   iops_wr_max=0 iops_size=512 group=g\n"
        );
        assert_eq!(human(&mut client, "foo 1"), "unknown command: 'foo'\n");
        assert_eq!(
            human(&mut client, "info foo"),
            "unknown command: 'info foo'\n"
        );
        assert_eq!(human(&mut client, ""), "");
        assert_eq!(
            qemu_io(&mut client, "nobody", "length"),
            "Error: Cannot find device='' nor node-name='nobody'\n"
        );
        assert_eq!(
            qemu_io(&mut client, "-d /machine/ide0", "length"),
            "1 MiB\n"
        );
        assert_eq!(
            qemu_io(&mut client, "-d ide0-hd0", "length"),
            "Error: Device 'ide0-hd0' not found\n"
        );
    });
}

#[test]
fn block_jobs_are_shown_and_told_what_to_do() {
    run(|world| {
        let mut client = world.client();
        add_disk(world, &mut client, "src", 4, 1);
        add_backend(world, "src", "disk");
        let none = "No active jobs\n";
        assert_eq!(human(&mut client, "info block-jobs"), none);
        let target = world.path("copy");
        let mirror = format!("drive_mirror -f disk {target} raw");
        assert_eq!(human(&mut client, &mirror), "");
        client.wait_event("BLOCK_JOB_READY");
        let shown = |speed: u64| {
            format!(
                "Type mirror, device disk: Completed 4194304 of 4194304 bytes, speed limit {speed} bytes/s\n"
            )
        };
        assert_eq!(human(&mut client, "info block-jobs"), shown(0));
        for (value, speed) in [
            ("10", 10 << 20),
            ("10k", 10 << 10),
            ("0.5G", 1 << 29),
            ("0", 0),
        ] {
            let command = format!("block_job_set_speed disk {value}");
            assert_eq!(human(&mut client, &command), "");
            assert_eq!(human(&mut client, "info block-jobs"), shown(speed));
        }
        let busy = human(
            &mut client,
            &format!("drive_backup -f disk {}", world.path("b")),
        );
        assert!(busy.starts_with("Error: Node 'disk' is busy"), "{busy}");
        assert_eq!(human(&mut client, "block_job_pause disk"), "");
        assert_eq!(
            human(&mut client, "block_job_pause disk"),
            "Error: Job is already paused\n"
        );
        assert_eq!(
            human(&mut client, "block_job_cancel disk"),
            "Error: The block job for device 'disk' is currently paused\n"
        );
        assert_eq!(human(&mut client, "block_job_resume disk"), "");
        assert_eq!(human(&mut client, "block_job_complete disk"), "");
        client.wait_event("BLOCK_JOB_COMPLETED");
        while client.event()["data"]["status"] != "null" {}
        assert_eq!(human(&mut client, "info block-jobs"), none);
        let block = human(&mut client, "info block disk");
        assert!(block.contains(&target), "{block}");

        // Onto a file that is there already; and given up.
        let other = world.image("other", 4 << 20, 0);
        let back = format!("drive_mirror -n -f disk {other} raw");
        assert_eq!(human(&mut client, &back), "");
        client.wait_event("BLOCK_JOB_READY");
        assert_eq!(human(&mut client, "block_job_cancel -f disk"), "");
        client.wait_event("BLOCK_JOB_CANCELLED");
        while client.event()["data"]["status"] != "null" {}
        let backup = world.path("backup");
        let command = format!("drive_backup -f disk {backup} raw");
        assert_eq!(human(&mut client, &command), "");
        client.wait_event("BLOCK_JOB_COMPLETED");
        while client.event()["data"]["status"] != "null" {}
        assert_eq!(std::fs::read(backup).unwrap(), vec![1; 4 << 20]);
        for command in ["drive_mirror", "drive_backup"] {
            let said = human(&mut client, &format!("{command} -f disk nbd:x raw"));
            assert!(
                said.starts_with("Error: Unknown protocol 'nbd'; "),
                "{said}"
            );
        }
        let compressed = format!("drive_backup -f -c disk {} raw", world.path("c"));
        let compressed = human(&mut client, &compressed);
        assert!(
            compressed.starts_with("Error: Parameter 'compress' is unexpected"),
            "{compressed}"
        );
    });
}

/// The words are those that QEMU 10.0.2 answers with.
#[test]
fn wrong_words_about_block_jobs_are_answered_as_by_qemu() {
    run(|world| {
        let mut client = world.client();
        for (line, command, problem) in [
            (
                "block_job_set_speed d -1",
                "block_job_set_speed",
                "invalid size",
            ),
            (
                "block_job_set_speed d",
                "block_job_set_speed",
                "invalid size",
            ),
            (
                "block_job_cancel",
                "block_job_cancel",
                "block_job_cancel: block device name expected",
            ),
            (
                "block_job_cancel -f",
                "block_job_cancel",
                "block_job_cancel: block device name expected",
            ),
            (
                "block_job_cancel -x d",
                "block_job_cancel",
                "block_job_cancel: unsupported option -x",
            ),
            (
                "block_job_cancel d e",
                "block_job_cancel",
                "block_job_cancel: extraneous characters at the end of line",
            ),
            (
                "drive_mirror d",
                "drive_mirror",
                "drive_mirror: string expected",
            ),
        ] {
            let expected = format!("{problem}\nTry \"help {command}\" for more information\n");
            assert_eq!(human(&mut client, line), expected, "{line}");
        }
        for verb in ["cancel", "complete", "pause", "resume"] {
            let line = format!("block_job_{verb} nobody");
            let expected = "Error: Block job 'nobody' not found\n";
            assert_eq!(human(&mut client, &line), expected);
        }
        let help = human(&mut client, "help block_job_cancel");
        assert!(
            help.starts_with("block_job_cancel [-f] device -- "),
            "{help}"
        );
        assert_eq!(help.lines().count(), 1);
        assert!(human(&mut client, "info").contains("info block-jobs -- "));
    });
}

/// Every command is given to the program too, on a copy of the image; what both print and what both
/// leave behind is the same.
#[test]
fn requests_by_hand_do_and_say_what_qemu_io_does() {
    run(|world| {
        let mut client = world.client();
        let (path, _) = add_as_the_program_does(world, &mut client);
        let copy = world.image("copy", 1 << 20, 1);
        let is_there = Command::new("qemu-io").arg("--version").output().is_ok();
        for command in [
            "length",
            "write -P 5 0 64k",
            "read -P 5 0 512",
            "read -P 6 0 512",
            "read -P 0x5 1k 1.5k",
            "read -q 0 512",
            "read -q -P 7 0 512",
            "write -q -P 8 512 512",
            "write 4096 512",
            "write -z 0 4k",
            "write -z -u 8k 4k",
            "write -zq 16k 512",
            "write -f -P 9 0x8000 512",
            "discard 0 64k",
            "discard -q 0 512",
            "flush",
            "aio_flush",
            "read 100 100",
            "read 1M 512",
            "write 1M 512",
            "read 0 4g",
            "read 3x 5",
            "read",
            "discard 0",
            "write -u 0 512",
            "write -z -P 4 0 512",
            "write -P 300 0 512",
            "truncate 2M",
            "length",
            "read -P 0 1M 512",
            "truncate 1536k",
            "length",
            "truncate foo",
            "flush x",
            "length x",
            "nonsense",
            "read 0 0",
        ] {
            let mine = without_times(&qemu_io(&mut client, "disk", command));
            if !is_there {
                continue;
            }
            let theirs = Command::new("qemu-io")
                .args(["-f", "raw", "-c", command, &copy])
                .output()
                .unwrap();
            let said = [theirs.stdout, theirs.stderr].concat();
            let said = without_times(&String::from_utf8(said).unwrap());
            assert_eq!(mine, said, "{command}");
            let (mine, theirs) = (std::fs::read(&path).unwrap(), std::fs::read(&copy).unwrap());
            assert!(mine == theirs, "{command}: the images differ");
        }
        if !is_there {
            println!("SKIPPED in part: there is no qemu-io here");
        }
        let unknown = qemu_io(&mut client, "disk", "read -y 0 1");
        assert!(
            unknown.starts_with("read: invalid option -- 'y'\nread [-q]"),
            "{unknown}"
        );
    });
}

/// The same words without the program, which may not be there.
#[test]
fn requests_by_hand_say_what_they_did() {
    run(|world| {
        let mut client = world.client();
        let (path, disk) = add_as_the_program_does(world, &mut client);
        let mut say = |command: &str| without_times(&qemu_io(&mut client, "disk", command));
        let wrote = |len: &str, at: u32| {
            let bytes: u32 = len.split(' ').next().unwrap().parse().unwrap();
            let bytes = if len.ends_with("KiB") {
                bytes * 1024
            } else {
                bytes
            };
            format!("wrote {bytes}/{bytes} bytes at offset {at}\n{len}, 1 ops; …\n")
        };
        assert_eq!(say("length"), "1 MiB\n");
        assert_eq!(say("write -P 5 0 64k"), wrote("64 KiB", 0));
        assert_eq!(
            say("read -P 5 512 1k"),
            "read 1024/1024 bytes at offset 512\n1 KiB, 1 ops; …\n"
        );
        assert_eq!(
            say("read -P 6 0 512"),
            "Pattern verification failed at offset 0, 512 bytes\nread 512/512 bytes at offset 0\n\
             512 bytes, 1 ops; …\n"
        );
        assert_eq!(say("write -q -P 8 512 512"), "");
        assert_eq!(say("read -q -P 8 512 512"), "");
        assert_eq!(say("write -z -u 4k 4k"), wrote("4 KiB", 4096));
        assert_eq!(say("read -q -P 0 4k 4k"), "");
        assert_eq!(
            say("discard 8k 4k"),
            "discard 4096/4096 bytes at offset 8192\n4 KiB, 1 ops; …\n"
        );
        assert_eq!(say("flush"), "");
        // What must be durable at its end costs a flush of the disk.
        let flushes = || {
            let counters = disk.stats().of(sluice_block::backend::Account::Flush);
            counters
                .operations
                .load(std::sync::atomic::Ordering::Relaxed)
        };
        let before = flushes();
        assert_eq!(say("write -f -P 9 0 512"), wrote("512 bytes", 0));
        assert_eq!(flushes(), before + 1);
        for (command, said) in [
            ("aio_write -P 3 0 512", wrote("512 bytes", 0)),
            (
                "aio_read -P 3 0 512",
                "read 512/512 bytes at offset 0\n512 bytes, 1 ops; …\n".to_owned(),
            ),
            ("aio_read -q -P 3 0 512", String::new()),
            ("aio_write -z 4k 4k", wrote("4 KiB", 4096)),
            ("aio_write -q -f -P 4 0 512", String::new()),
        ] {
            // It may have ended before it was answered.
            let now = say(command);
            assert_eq!(now + &say("aio_flush"), said, "{command}");
        }
        assert_eq!(std::fs::read(&path).unwrap()[..512], [4; 512]);
        assert_eq!(say("truncate 2M") + &say("length"), "2 MiB\n");
        assert_eq!(
            say("read 100 100"),
            "read 100/100 bytes at offset 100\n100 bytes, 1 ops; …\n"
        );
        assert_eq!(say("read 3M 512"), "read failed: Input/output error\n");
        assert_eq!(say("nonsense"), "command \"nonsense\" not found\n");
    });
}

/// Asynchronous requests say the same words as the program's, wherever these come.
#[test]
fn asynchronous_requests_do_and_say_what_qemu_io_does() {
    run(|world| {
        if Command::new("qemu-io").arg("--version").output().is_err() {
            return println!("SKIPPED: there is no qemu-io here");
        }
        let mut client = world.client();
        let (path, _) = add_as_the_program_does(world, &mut client);
        let copy = world.image("copy", 1 << 20, 1);
        for command in [
            "aio_write -P 5 0 64k",
            "aio_read -P 5 0 512",
            "aio_read -P 6 0 512",
            "aio_read -q 0 512",
            "aio_write -z 4k 4k",
            "aio_write -z -u 8k 4k",
            "aio_write -f -P 9 0x8000 512",
            "aio_write -q -P 9 0x8000 512",
            "aio_read 2M 512",
            "aio_write 2M 512",
            "aio_write -z -P 4 0 512",
            "aio_write -u 0 512",
            "aio_read",
            "aio_write 0",
        ] {
            let mut mine = qemu_io(&mut client, "disk", command);
            mine += &qemu_io(&mut client, "disk", "aio_flush");
            let theirs = Command::new("qemu-io")
                .args(["-f", "raw", "-c", command, "-c", "aio_flush", &copy])
                .output()
                .unwrap();
            let said = String::from_utf8([theirs.stdout, theirs.stderr].concat()).unwrap();
            assert_eq!(without_times(&mine), without_times(&said), "{command}");
            let (mine, theirs) = (std::fs::read(&path).unwrap(), std::fs::read(&copy).unwrap());
            assert!(mine == theirs, "{command}: the images differ");
        }
    });
}

#[test]
fn breakpoints_hold_asynchronous_requests() {
    run(|world| {
        let mut client = world.client();
        world.image("image", 1 << 20, 1);
        let file = json!({"driver": "file", "filename": world.path("image")});
        let debug = json!({"driver": "blkdebug", "node-name": "debug", "image": file});
        let raw = json!({"driver": "raw", "node-name": "top", "file": debug});
        client.ok("blockdev-add", raw);
        add_backend(world, "top", "disk");
        let mut say = |command: &str| without_times(&qemu_io(&mut client, "disk", command));
        assert_eq!(say("break write_aio A"), "");
        assert_eq!(say("aio_write -P 7 0 512"), "");
        assert_eq!(say("wait_break A"), "");
        assert_eq!(
            say("read -P 1 0 512"),
            "read 512/512 bytes at offset 0\n512 bytes, 1 ops; …\n"
        );
        assert_eq!(say("resume A"), "");
        assert_eq!(
            say("aio_flush") + &say("aio_flush"),
            "wrote 512/512 bytes at offset 0\n512 bytes, 1 ops; …\n"
        );
        assert_eq!(say("read -qP 7 0 512"), "");
        assert_eq!(
            say("remove_break B"),
            "Could not remove breakpoint B: No such file or directory\n"
        );
        assert_eq!(
            say("resume B"),
            "Could not resume request: No such file or directory\n"
        );
        assert_eq!(
            say("break nothing B"),
            "Could not set breakpoint: No such file or directory\n"
        );
        assert_eq!(say("break read_aio B"), "");
        assert_eq!(say("remove_break B"), "");
        assert_eq!(
            say("break read_aio"),
            "bad argument count 1 to break, expected 2 arguments\n"
        );
        add_disk(world, &mut client, "plain", 1, 1);
        assert_eq!(
            qemu_io(&mut client, "plain", "break read_aio A"),
            "Could not set breakpoint: Operation not supported\n"
        );
    });
}

/// What QEMU says in the same places: seen there.
#[test]
fn requests_by_hand_are_printed_and_the_monitors_own_words_answered() {
    run(|world| {
        let mut client = world.client();
        add_disk(world, &mut client, "d", 1, 1);
        let mut ask = |line: &str| {
            let line = json!({"command-line": line});
            let answer = client.ok("human-monitor-command", line);
            (
                answer.as_str().unwrap().to_owned(),
                without_times(&world.printed()),
            )
        };
        let usage = |problem: &str| {
            format!("qemu-io: {problem}\r\nTry \"help qemu-io\" for more information\r\n")
        };
        let read = "read 512/512 bytes at offset 0\n512 bytes, 1 ops; …\n";
        let wrong = "Pattern verification failed at offset 0, 512 bytes\n";
        for (line, printed) in [
            ("length", "1 MiB\n"),
            ("read 0 512", read),
            ("read -P 9 0 512", &format!("{wrong}{read}")),
            ("read 2M 1", "read failed: Input/output error\n"),
            ("foo", "command \"foo\" not found\n"),
            (
                "length 1",
                "bad argument count 1 to length, expected 0 arguments\n",
            ),
            (
                "resume b",
                "Could not resume request: Operation not supported\n",
            ),
            ("flush", ""),
        ] {
            let line = format!("qemu-io d \"{line}\"");
            assert_eq!(ask(&line), (String::new(), printed.to_owned()), "{line}");
        }
        for (line, answer) in [
            (
                "qemu-io x length",
                "Error: Cannot find device='' nor node-name='x'\r\n",
            ),
            ("qemu-io -d x length", "Error: Device 'x' not found\r\n"),
            ("qemu-io", &usage("block device name expected")),
            ("qemu-io -d", &usage("block device name expected")),
            ("qemu-io d", &usage("string expected")),
            (
                "qemu-io d length x",
                &usage("extraneous characters at the end of line"),
            ),
        ] {
            assert_eq!(ask(line), (answer.to_owned(), String::new()), "{line}");
        }
        let read_only = json!({"driver": "raw", "node-name": "ro", "read-only": true, "file": "d"});
        world.client().ok("blockdev-add", read_only);
        for command in ["write 0 512", "truncate 512"] {
            let (answer, printed) = ask(&format!("qemu-io ro \"{command}\""));
            assert_eq!(printed, "");
            assert!(answer.ends_with("read-only\r\n"), "{answer}");
        }
    });
}

#[test]
fn asynchronous_requests_are_printed_when_they_end() {
    run(|world| {
        let mut client = world.client();
        let image = json!({"driver": "null-co", "size": 1 << 20});
        let node = json!({"driver": "blkdebug", "node-name": "d", "image": image});
        client.ok("blockdev-add", node);
        let hold = json!({"node-name": "d", "event": "write_aio", "tag": "held"});
        client.ok("x-debug-break", hold);
        let print = |client: &mut Client, command: &str| {
            let line = json!({"command-line": format!("qemu-io d \"{command}\"")});
            assert_eq!(client.ok("human-monitor-command", line), "");
            without_times(&world.printed())
        };
        assert_eq!(print(&mut client, "aio_write 0 512"), "");
        assert_eq!(qemu_io(&mut client, "d", "aio_read 0 512"), "");
        client.ok("x-debug-resume", json!({"node-name": "d", "tag": "held"}));
        let said = |verb: &str| format!("{verb} 512/512 bytes at offset 0\n512 bytes, 1 ops; …\n");
        assert_eq!(print(&mut client, "aio_flush"), said("wrote"));
        // Whoever wants it in the answer gets no more than what was begun so.
        let answer = qemu_io(&mut client, "d", "aio_flush");
        assert_eq!(without_times(&answer), said("read"));
        assert_eq!(world.printed(), "");
    });
}

/// A node without a device is reached too; beside a device that does not share writing, it is not.
#[test]
fn nodes_are_read_and_written_with_the_permissions_of_the_command() {
    run(|world| {
        let mut client = world.client();
        let path = add_disk(world, &mut client, "d", 1, 1);
        assert_eq!(qemu_io(&mut client, "d", "write -qP 5 0 512"), "");
        assert_eq!(std::fs::read(&path).unwrap()[0], 5);
        assert_eq!(client.ok("query-block", json!({})), json!([]));
        add_backend(world, "d", "disk");
        let refused = qemu_io(&mut client, "d", "write 0 512");
        assert!(
            refused.contains("Permission conflict on node 'd'"),
            "{refused}"
        );
        assert!(world.graph.node("d").unwrap().backends().len() == 1);
    });
}

/// What comes by hand waits like what comes from a guest.
#[test]
fn a_drained_disk_holds_requests_by_hand() {
    run(|world| {
        let mut client = world.client();
        add_disk(world, &mut client, "d", 1, 1);
        let backend = add_backend(world, "d", "disk");
        let node = world.graph.node("d").unwrap();
        let held = Arc::new(Mutex::new(None));
        let (graph, slot) = (Arc::clone(&world.graph), Arc::clone(&held));
        world.main.spawn(move || async move {
            let section = graph.drain(&node, "test").await;
            *slot.lock() = Some(section);
        });
        while held.lock().is_none() {
            std::thread::yield_now();
        }
        assert_eq!(qemu_io(&mut client, "disk", "aio_write -P 9 0 512"), "");
        while backend.gates().iter().all(|gate| gate.parked() == 0) {
            std::thread::yield_now();
        }
        drop(held.lock().take());
        let said = qemu_io(&mut client, "disk", "aio_flush");
        let said = said + &qemu_io(&mut client, "disk", "flush");
        assert_eq!(
            without_times(&said),
            "wrote 512/512 bytes at offset 0\n512 bytes, 1 ops; …\n"
        );
    });
}
