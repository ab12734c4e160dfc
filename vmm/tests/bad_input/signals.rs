//! Signals while a job runs.

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::harness::{LIMIT, SIZE, Scene, Vm, expect_words, pattern, status};

fn send(vm: &Vm, signal: Signal) {
    let pid = Pid::from_raw(vm.process.pid().cast_signed()).unwrap();
    kill_process(pid, signal).unwrap();
}

/// The machine ends by `signal`: status 0, one line, no sockets, no lock, the source as it was.
fn ends_in_order(mut vm: Vm, scene: &Scene, signal: Signal, name: &str) {
    send(&vm, signal);
    let status = vm.process.wait_end(LIMIT).unwrap();
    let said = vm.process.messages();
    assert_eq!(status.code(), Some(status::SUCCESS), "{said}");
    assert_eq!(said, format!("sluice: ended by {name}\n"));
    for socket in ["qmp", "qtest"] {
        assert!(!scene.path(socket).exists(), "{socket} is left");
    }
    let shutdown = vm
        .qmp
        .events()
        .into_iter()
        .find(|event| event.event == "SHUTDOWN");
    let shutdown = shutdown.unwrap();
    assert_eq!(shutdown.data["reason"], "host-signal");
    assert!(
        scene.read("disk.img") == pattern(SIZE),
        "the source has changed"
    );
    // Nobody holds a lock: the images can be used at once.
    let mut again = Vm::start(scene);
    again.check_disks();
    again.quit();
}

fn mirror(scene: &Scene, speed: u64) -> Value {
    json!({"device": "disk", "sync": "full", "target": scene.text("target.img"),
           "speed": speed})
}

const ENDING: [(Signal, &str); 4] = [
    (Signal::TERM, "SIGTERM"),
    (Signal::INT, "SIGINT"),
    (Signal::HUP, "SIGHUP"),
    (Signal::QUIT, "SIGQUIT"),
];

#[test]
fn while_a_job_copies() {
    for (signal, name) in ENDING {
        let scene = Scene::new();
        let mut vm = Vm::start(&scene);
        vm.execute("drive-mirror", &mirror(&scene, 64 << 10));
        ends_in_order(vm, &scene, signal, name);
    }
}

#[test]
fn while_a_job_is_paused() {
    let scene = Scene::new();
    let mut vm = Vm::start(&scene);
    vm.execute("drive-mirror", &mirror(&scene, 64 << 10));
    vm.execute("block-job-pause", &json!({"device": "disk"}));
    ends_in_order(vm, &scene, Signal::TERM, "SIGTERM");
}

#[test]
fn while_a_job_is_ready() {
    let scene = Scene::new();
    let mut vm = Vm::start(&scene);
    vm.execute("drive-mirror", &mirror(&scene, 0));
    vm.wait_job("BLOCK_JOB_READY", "disk");
    ends_in_order(vm, &scene, Signal::INT, "SIGINT");
}

#[test]
fn while_a_job_waits_to_be_finalised() {
    let scene = Scene::new();
    let mut vm = Vm::start(&scene);
    let mut arguments = mirror(&scene, 0);
    arguments["auto-finalize"] = json!(false);
    vm.execute("drive-mirror", &arguments);
    vm.wait_job("BLOCK_JOB_READY", "disk");
    vm.execute("block-job-complete", &json!({"device": "disk"}));
    let pending = vm.qmp.wait_event("the job to be pending", LIMIT, |event| {
        event.event == "JOB_STATUS_CHANGE" && event.text("status") == "pending"
    });
    pending.unwrap();
    ends_in_order(vm, &scene, Signal::TERM, "SIGTERM");
}

/// The order in which it ends is kept waiting by a request that does not come back; who does not
/// want to wait asks twice, and is told.
#[test]
fn a_second_signal_does_not_wait() {
    let scene = Scene::new();
    let mut vm = Vm::start(&scene);
    let target = json!({"driver": "blkdebug", "node-name": "slow", "image":
        {"driver": "file", "filename": scene.file("target.img", SIZE)}});
    vm.execute("blockdev-add", &target);
    let hold = json!({"node-name": "slow", "tag": "hold", "event": "write_aio"});
    vm.execute("x-debug-break", &hold);
    let mirror = json!({"device": "disk", "job-id": "job", "sync": "full", "target": "slow"});
    vm.execute("blockdev-mirror", &mirror);
    vm.execute(
        "x-debug-wait-break",
        &json!({"node-name": "slow", "tag": "hold"}),
    );
    send(&vm, Signal::TERM);
    let shutdown = vm
        .qmp
        .wait_event("SHUTDOWN", LIMIT, |event| event.event == "SHUTDOWN");
    shutdown.unwrap();
    send(&vm, Signal::INT);
    let status = vm.process.wait_end(LIMIT).unwrap();
    let said = vm.process.messages();
    assert_eq!(status.code(), Some(status::SETUP), "{said}");
    expect_words(&said, &["SIGINT", "before everything was finished"]);
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(
        scene.read("disk.img") == pattern(SIZE),
        "the source has changed"
    );
}
