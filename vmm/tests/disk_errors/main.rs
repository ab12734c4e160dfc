//! Disks that fail under a guest, with the real binary: the machine stops, tells why, and when it
//! goes on every write is done once, by the disk that did not know of it. Disks whose size changes
//! ([`resize`]): what is an error and what is not changes with it. Disks with several queues ([`queues`]): what is in
//! flight in any of them counts.
//!
//! The test stands where the CPU would (qtest) and is the driver of an IDE disk and of a virtio
//! disk. Errors are injected by `blkdebug`, or come from a file system that is full.
#![expect(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "the whole crate is a test"
)]

mod guest;
mod machine;
mod queues;
mod reads;
mod resize;
mod virtio;

use std::fs;

use guest::Ide;
use machine::{Vm, image_with_blkdebug, pattern_at};
use serde_json::{Value, json};
use virtio::Virtio;

/// Waits for the machine to have stopped for the disk `device`; returns the error's event.
fn wait_stopped(vm: &mut Vm, device: &str) -> Value {
    let error = vm.wait_event("BLOCK_IO_ERROR");
    vm.wait_event("STOP");
    assert_eq!(error["device"], device);
    assert_eq!(error["action"], "stop");
    let status = vm.execute("query-status", &json!({}));
    assert_eq!(status, json!({"running": false, "status": "io-error"}));
    error
}

/// Lets the machine go on and checks that the operator sees nothing of the error any more.
fn go_on(vm: &mut Vm) {
    vm.execute("cont", &json!({}));
    vm.wait_event("RESUME");
    let status = vm.execute("query-status", &json!({}));
    assert_eq!(status["status"], "running");
}

fn io_status(vm: &mut Vm) -> Value {
    vm.execute("query-block", &json!({}))[0]["io-status"].clone()
}

/// Writes that were done, and writes that failed.
fn writes(vm: &mut Vm) -> (u64, u64) {
    let stats = &vm.execute("query-blockstats", &json!({}))[0]["stats"];
    let count = |member: &str| stats[member].as_u64().unwrap();
    (count("wr_operations"), count("failed_wr_operations"))
}

#[test]
fn an_ide_write_is_done_once_after_cont() {
    let (directory, image, node) =
        image_with_blkdebug(&json!([{"event": "write_aio", "errno": 5, "once": true}]));
    let mut vm = Vm::start(
        directory,
        &[
            "--blockdev",
            &node,
            "--device",
            "ide-hd,drive=faulty,id=d0,werror=stop",
        ],
    );
    Ide::begin_write(&mut vm.qtest, 7, 0x55);
    let error = wait_stopped(&mut vm, "d0");
    assert_eq!(
        (&error["operation"], &error["nospace"]),
        (&json!("write"), &json!(false))
    );
    assert_eq!(io_status(&mut vm), "failed");
    let line = json!({"command-line": "info block d0"});
    let text = vm.execute("human-monitor-command", &line);
    let text = text.as_str().unwrap();
    assert!(text.contains("I/O status:       failed\r\n"), "{text}");
    assert!(Ide::is_busy(&mut vm.qtest));
    assert_eq!(pattern_at(&image, 7), None);
    go_on(&mut vm);
    Ide::finish(&mut vm.qtest);
    assert_eq!(pattern_at(&image, 7), Some(0x55));
    assert_eq!(writes(&mut vm), (1, 0));
    assert_eq!(io_status(&mut vm), "ok");
    vm.quit();
}

#[test]
fn virtio_writes_are_done_once_and_in_order_after_cont() {
    let rule = json!([{"event": "write_aio", "errno": 28, "once": true, "sector": 3}]);
    let (directory, image, node) = image_with_blkdebug(&rule);
    // No policy is given: lack of room stops the machine.
    let device = "virtio-blk-pci,drive=faulty,id=d0,addr=5";
    let mut vm = Vm::start(directory, &["--blockdev", &node, "--device", device]);
    let mut disk = Virtio::bring_up(&mut vm.qtest, 5);
    disk.begin_write(&mut vm.qtest, 3, 0x33);
    disk.begin_write(&mut vm.qtest, 4, 0x44);
    disk.kick(&mut vm.qtest);
    let error = wait_stopped(&mut vm, "d0");
    assert_eq!(error["nospace"], true);
    assert_eq!(io_status(&mut vm), "nospace");
    // As in QEMU, a part of the device has the disk, and commands know it by any of its names.
    let part = "/machine/peripheral/d0/virtio-backend";
    assert_eq!(error["qom-path"], part);
    let disks = vm.execute("query-block", &json!({}));
    assert_eq!(disks[0]["qdev"], part);
    for name in ["d0", "/machine/peripheral/d0", part] {
        let histograms = json!({"id": name, "boundaries": [1000]});
        vm.execute("block-latency-histogram-set", &histograms);
        let line = json!({"command-line": format!("qemu-io -d {name} length"), "x-output": true});
        let length = vm.execute("human-monitor-command", &line);
        assert!(length.as_str().unwrap().ends_with("iB\r\n"), "{length}");
    }
    // A write over the first one: it must come after it.
    disk.begin_write(&mut vm.qtest, 3, 0x35);
    disk.kick(&mut vm.qtest);
    assert_eq!(pattern_at(&image, 3), None);
    go_on(&mut vm);
    disk.wait_used(&mut vm.qtest, 3);
    assert_eq!(
        (pattern_at(&image, 3), pattern_at(&image, 4)),
        (Some(0x35), Some(0x44))
    );
    assert_eq!(writes(&mut vm), (3, 0));
    vm.quit();
}

#[test]
fn a_reported_error_is_the_guests() {
    let (directory, image, node) =
        image_with_blkdebug(&json!([{"event": "write_aio", "errno": 28, "once": true}]));
    let device = "virtio-blk-pci,drive=faulty,id=d0,addr=5,werror=report";
    let mut vm = Vm::start(directory, &["--blockdev", &node, "--device", device]);
    let mut disk = Virtio::bring_up(&mut vm.qtest, 5);
    disk.begin_write(&mut vm.qtest, 3, 0x33);
    disk.kick(&mut vm.qtest);
    disk.wait_used(&mut vm.qtest, 1);
    assert_eq!(disk.status(&mut vm.qtest, 0), Virtio::IO_ERROR);
    let error = vm.wait_event("BLOCK_IO_ERROR");
    assert_eq!(error["action"], "report");
    assert_eq!(error.get("nospace"), None);
    assert_eq!(vm.execute("query-status", &json!({}))["running"], true);
    assert_eq!(pattern_at(&image, 3), None);
    vm.quit();
}

#[test]
fn a_disk_goes_on_when_its_iothread_can_not_be_deleted() {
    let (directory, image, node) = image_with_blkdebug(&json!([]));
    let device = "virtio-blk-pci,drive=faulty,id=d0,addr=5,iothread=io0";
    let thread = ["--object", "iothread,id=io0"];
    let disk = ["--blockdev", &node, "--device", device];
    let mut vm = Vm::start(directory, &[thread.as_slice(), &disk].concat());
    let mut disk = Virtio::bring_up(&mut vm.qtest, 5);
    let refusal = vm.refusal("object-del", &json!({"id": "io0"}));
    assert_eq!(refusal, "object 'io0' is in use, can not be deleted");
    disk.begin_write(&mut vm.qtest, 3, 0x33);
    disk.kick(&mut vm.qtest);
    disk.wait_used(&mut vm.qtest, 1);
    assert_eq!(pattern_at(&image, 3), Some(0x33));
    let loops = vm.execute("x-query-iothread-stats", &json!({}));
    let served = loops.as_array().unwrap().iter();
    let served: Vec<_> = served
        .filter(|entry| entry["fd-dispatches"].as_u64() > Some(0) && entry["id"] != "main")
        .map(|entry| &entry["id"])
        .collect();
    assert_eq!(served, ["io0"], "the doorbell is served there");
    vm.quit();
}

#[test]
fn a_full_file_system_stops_the_machine_until_there_is_room() {
    let Some(mut vm) = Vm::start_on_full_disk(&["--device", "ide-hd,drive=faulty,id=d0"]) else {
        return;
    };
    let image = vm.inside("small/disk.img");
    Ide::begin_write(&mut vm.qtest, 9, 0x77);
    let error = wait_stopped(&mut vm, "d0");
    assert_eq!(error["nospace"], true);
    // Nothing has changed: it stops again, perhaps before anybody can ask whether it runs.
    vm.execute("cont", &json!({}));
    vm.wait_event("RESUME");
    // Of the errors within a second of the guest's clock, which does not move by itself, the last is told at its end.
    vm.qtest.ask("clock_step 1000000000");
    wait_stopped(&mut vm, "d0");
    fs::remove_file(vm.inside("small/ballast")).unwrap();
    go_on(&mut vm);
    Ide::finish(&mut vm.qtest);
    assert_eq!(pattern_at(&image, 9), Some(0x77));
    assert_eq!(writes(&mut vm), (1, 0));
    vm.quit();
}

#[test]
fn a_machine_that_is_reset_while_it_is_stopped_forgets_the_request() {
    let (directory, image, node) =
        image_with_blkdebug(&json!([{"event": "write_aio", "once": true}]));
    let mut vm = Vm::start(
        directory,
        &[
            "--blockdev",
            &node,
            "--device",
            "ide-hd,drive=faulty,id=d0,werror=stop",
        ],
    );
    Ide::begin_write(&mut vm.qtest, 7, 0x55);
    wait_stopped(&mut vm, "d0");
    vm.execute("system_reset", &json!({}));
    go_on(&mut vm);
    Ide::begin_write(&mut vm.qtest, 8, 0x66);
    Ide::finish(&mut vm.qtest);
    assert_eq!(
        (pattern_at(&image, 7), pattern_at(&image, 8)),
        (None, Some(0x66))
    );
    vm.quit();
}

#[test]
fn latencies_are_counted_by_the_operators_boundaries() {
    let (directory, _, node) = image_with_blkdebug(&json!([]));
    let device = "ide-hd,drive=faulty,id=d0,write-cache=off";
    let mut vm = Vm::start(directory, &["--blockdev", &node, "--device", device]);
    let set = json!({"id": "d0", "boundaries": [1, 1_000_000_000_000_u64]});
    vm.execute("block-latency-histogram-set", &set);
    Ide::begin_write(&mut vm.qtest, 1, 1);
    Ide::finish(&mut vm.qtest);
    let stats = vm.execute("query-blockstats", &json!({}))[0]["stats"].clone();
    let histogram = json!({"boundaries": [1, 1_000_000_000_000_u64], "bins": [0, 1, 0]});
    assert_eq!(stats["wr_latency_histogram"], histogram);
    let cache = vm.execute("query-block", &json!({}))[0]["inserted"]["cache"].clone();
    assert_eq!(cache["writeback"], false);
    vm.execute("block-latency-histogram-set", &json!({"id": "d0"}));
    let stats = vm.execute("query-blockstats", &json!({}))[0]["stats"].clone();
    assert_eq!(stats.get("wr_latency_histogram"), None);
    let bad = json!({"id": "d0", "boundaries-write": [5, 5]});
    let text = vm.refusal("block-latency-histogram-set", &bad);
    assert_eq!(text, "Device 'd0' set write boundaries fail");
    vm.quit();
}
