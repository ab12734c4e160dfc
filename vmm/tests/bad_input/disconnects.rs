//! Clients that go while their job runs.

use std::fs;

use serde_json::{Value, json};

use crate::harness::{LIMIT, Scene, Vm};
use crate::streams::Raw;

/// Bytes a second: slow enough that the job is certainly running when its client goes.
const SLOWLY: u64 = 256 << 10;

fn mirror(target: &str) -> Value {
    json!({"device": "disk", "sync": "full", "target": target, "speed": SLOWLY})
}

#[test]
fn the_job_goes_on_and_another_client_completes_it() {
    let scene = Scene::new();
    let target = scene.text("target.img");
    let mut vm = Vm::start(&scene);
    let mut starter = vm.connect();
    starter.execute("drive-mirror", &mirror(&target)).unwrap();
    drop(starter);

    vm.check_disks();
    let jobs = vm.execute("query-block-jobs", &json!({}));
    assert_eq!(jobs[0]["device"], "disk");
    assert_eq!(jobs[0]["ready"], false);
    vm.execute(
        "block-job-set-speed",
        &json!({"device": "disk", "speed": 0}),
    );
    vm.wait_job("BLOCK_JOB_READY", "disk");
    vm.check_disks();
    let before = fs::read(&vm.disk.image).unwrap();
    vm.execute("block-job-complete", &json!({"device": "disk"}));
    let data = vm.wait_job("BLOCK_JOB_COMPLETED", "disk");
    assert_eq!(data["error"], Value::Null);
    assert_eq!(data["offset"], data["len"]);
    assert!(fs::read(&target).unwrap() == before, "the target differs");
    vm.disk.image = target;
    vm.check_disks();
    vm.quit();
    assert!(
        scene.read("disk.img") == before,
        "written to after the pivot"
    );
}

/// The client goes while the reply to its command is due.
#[test]
fn a_command_is_carried_out_though_nobody_waits_for_its_reply() {
    let scene = Scene::new();
    let target = scene.text("target.img");
    let mut vm = Vm::start(&scene);
    let mut rude = Raw::connect(&vm, true);
    let command = json!({"execute": "drive-mirror", "arguments": mirror(&target)});
    rude.send(command.to_string().as_bytes());
    drop(rude);
    let running = vm.qmp.wait_event("the job's start", LIMIT, |event| {
        event.event == "JOB_STATUS_CHANGE" && event.text("status") == "running"
    });
    running.unwrap();
    vm.check_disks();
    vm.execute(
        "block-job-cancel",
        &json!({"device": "disk", "force": true}),
    );
    vm.wait_job("BLOCK_JOB_CANCELLED", "disk");
    vm.check_disks();
    vm.quit();
}

/// Nobody is connected at all when the job becomes ready.
#[test]
fn the_job_becomes_ready_with_nobody_there() {
    let scene = Scene::new();
    let target = scene.text("target.img");
    let mut vm = Vm::start(&scene);
    let arguments = json!({"device": "disk", "sync": "full", "target": target});
    vm.execute("drive-mirror", &arguments);
    let again = loop {
        // The old connection ends here; the new one asks, for no event tells it.
        vm.qmp = vm.connect();
        let jobs = vm.execute("query-block-jobs", &json!({}));
        if jobs[0]["ready"] == true {
            break jobs;
        }
    };
    assert_eq!(again[0]["device"], "disk");
    vm.execute("block-job-complete", &json!({"device": "disk"}));
    let data = vm.wait_job("BLOCK_JOB_COMPLETED", "disk");
    assert_eq!(data["error"], Value::Null);
    vm.disk.image = target;
    vm.check_disks();
    vm.quit();
}
