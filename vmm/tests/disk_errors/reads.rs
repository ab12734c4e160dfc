//! Reads that fail: what the guest gets, what the operator is told, and that a halted read is done once and
//! answers with what the disk holds then.

use serde_json::{Value, json};

use super::{go_on, io_status, wait_stopped};
use crate::guest::Ide;
use crate::machine::{Vm, image_with_blkdebug, pattern_at};
use crate::virtio::Virtio;

/// Reads that were done, and reads that failed.
fn reads(vm: &mut Vm) -> (u64, u64) {
    let stats = &vm.execute("query-blockstats", &json!({}))[0]["stats"];
    let count = |member: &str| stats[member].as_u64().unwrap();
    (count("rd_operations"), count("failed_rd_operations"))
}

/// A machine whose disk fails the next read with `errno`.
fn machine(errno: i32, device: &str) -> (Vm, std::path::PathBuf) {
    let rule = json!([{"event": "read_aio", "errno": errno, "once": true}]);
    let (directory, image, node) = image_with_blkdebug(&rule);
    let vm = Vm::start(directory, &["--blockdev", &node, "--device", device]);
    (vm, image)
}

fn assert_event(error: &Value, action: &str, nospace: Option<bool>) {
    assert_eq!(error["device"], "d0");
    assert_eq!(error["node-name"], "faulty");
    assert_eq!(error["operation"], "read");
    assert_eq!(error["action"], action);
    assert_eq!(error.get("nospace"), nospace.map(Value::from).as_ref());
    assert_eq!(error["reason"], "Input/output error");
}

#[test]
fn an_ide_read_is_done_once_after_cont() {
    let (mut vm, image) = machine(5, "ide-hd,drive=faulty,id=d0,rerror=stop");
    Ide::begin_write(&mut vm.qtest, 7, 0x55);
    Ide::finish(&mut vm.qtest);
    Ide::begin_read(&mut vm.qtest, 7);
    let error = wait_stopped(&mut vm, "d0");
    assert_event(&error, "stop", Some(false));
    assert_eq!(error["qom-path"], "/machine/peripheral/d0");
    let disks = vm.execute("query-block", &json!({}));
    assert_eq!(disks[0]["qdev"], "d0");
    assert_eq!(io_status(&mut vm), "failed");
    assert!(Ide::is_busy(&mut vm.qtest));
    assert_eq!(reads(&mut vm), (0, 0), "it has not ended");
    go_on(&mut vm);
    assert_eq!(Ide::take_sector(&mut vm.qtest), Some(0x55));
    assert_eq!(reads(&mut vm), (1, 0));
    assert_eq!(io_status(&mut vm), "ok");
    assert_eq!(pattern_at(&image, 7), Some(0x55), "nothing was written");
    vm.quit();
}

#[test]
fn an_ide_read_that_is_reported_fails() {
    for (device, nospace) in [
        (
            "ide-hd,drive=faulty,id=d0,rerror=report,werror=report",
            None,
        ),
        // What happens without a policy, too. Writes may stop this disk, so it has a status.
        ("ide-hd,drive=faulty,id=d0", Some(false)),
    ] {
        let (mut vm, _) = machine(5, device);
        Ide::begin_read(&mut vm.qtest, 7);
        let error = vm.wait_event("BLOCK_IO_ERROR");
        assert_event(&error, "report", nospace);
        assert!(!Ide::ends_well(&mut vm.qtest));
        assert_eq!(vm.execute("query-status", &json!({}))["running"], true);
        assert_eq!(reads(&mut vm), (0, 1));
        // The next one is another's.
        Ide::begin_read(&mut vm.qtest, 7);
        assert!(Ide::take_sector(&mut vm.qtest).is_some());
        assert_eq!(reads(&mut vm), (1, 1));
        vm.quit();
    }
}

#[test]
fn a_read_whose_error_is_ignored_ends_well() {
    let (mut vm, _) = machine(5, "ide-hd,drive=faulty,id=d0,rerror=ignore");
    Ide::begin_read(&mut vm.qtest, 7);
    let error = vm.wait_event("BLOCK_IO_ERROR");
    assert_event(&error, "ignore", Some(false));
    assert!(Ide::take_sector(&mut vm.qtest).is_some());
    assert_eq!(vm.execute("query-status", &json!({}))["running"], true);
    vm.quit();
}

#[test]
fn virtio_reads_are_done_once_and_in_order_after_cont() {
    let (mut vm, image) = machine(5, "virtio-blk-pci,drive=faulty,id=d0,addr=5,rerror=stop");
    let mut disk = Virtio::bring_up(&mut vm.qtest, 5);
    disk.begin_write(&mut vm.qtest, 3, 0x33);
    disk.kick(&mut vm.qtest);
    disk.wait_used(&mut vm.qtest, 1);
    disk.begin_read(&mut vm.qtest, 3);
    disk.kick(&mut vm.qtest);
    let error = wait_stopped(&mut vm, "d0");
    assert_event(&error, "stop", Some(false));
    assert_eq!(io_status(&mut vm), "failed");
    // A write to what is to be read: it must come after it.
    disk.begin_write(&mut vm.qtest, 3, 0x44);
    disk.kick(&mut vm.qtest);
    go_on(&mut vm);
    disk.wait_used(&mut vm.qtest, 3);
    assert_eq!(disk.status(&mut vm.qtest, 1), 0);
    assert_eq!(disk.data(&mut vm.qtest, 1), 0x33);
    assert_eq!(pattern_at(&image, 3), Some(0x44));
    assert_eq!(reads(&mut vm), (1, 0));
    vm.quit();
}

#[test]
fn a_virtio_read_that_is_reported_fails() {
    let (mut vm, _) = machine(5, "virtio-blk-pci,drive=faulty,id=d0,addr=5,rerror=report");
    let mut disk = Virtio::bring_up(&mut vm.qtest, 5);
    disk.begin_read(&mut vm.qtest, 3);
    disk.kick(&mut vm.qtest);
    let error = vm.wait_event("BLOCK_IO_ERROR");
    assert_event(&error, "report", Some(false));
    disk.wait_used(&mut vm.qtest, 1);
    assert_eq!(disk.status(&mut vm.qtest, 0), Virtio::IO_ERROR);
    assert_eq!(reads(&mut vm), (0, 1));
    vm.quit();
}

/// A guest may read what can't be read as often as it likes: the log does not grow with it.
#[test]
fn a_guest_cannot_fill_the_log() {
    const READS: usize = 300;
    let rule = json!([{"event": "read_aio", "errno": 5}]);
    let (directory, _image, node) = image_with_blkdebug(&rule);
    let device = "ide-hd,drive=faulty,id=d0,rerror=report,werror=report";
    let mut vm = Vm::start(directory, &["--blockdev", &node, "--device", device]);
    for _ in 0..READS {
        Ide::begin_read(&mut vm.qtest, 7);
        assert!(!Ide::ends_well(&mut vm.qtest));
    }
    let said = vm.quit_and_tell();
    let lines = said.matches("an IDE request failed").count();
    assert!((10..READS).contains(&lines), "{lines} lines");
    assert!(
        said.contains("more messages like the last one are left out"),
        "{said}"
    );
}
