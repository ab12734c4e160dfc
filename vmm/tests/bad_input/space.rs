//! Targets that run full.
//!
//! A small tmpfs in a mount namespace of the machine's own, which goes with it; the test reaches it
//! through `/proc/PID/root`. Where no namespace can be made, a limit on the size of files has to do.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::harness::{SIZE, SLUICE, Scene, Vm, expect_words, pattern, with_mount};

/// Room on the small file system for a target, less what `ballast` takes.
const ROOM: &str = "size=6M";
const BALLAST: u64 = 4 << 20;

/// A machine that sees a small file system at `small`; none, with the reason printed, where that
/// can't be had.
fn start_with_small_disk(scene: &Scene) -> Option<Vm> {
    let small = scene.text("small");
    fs::create_dir(&small).unwrap();
    let command = with_mount(&format!("mount -t tmpfs -o {ROOM} none '{small}'"))?;
    Some(Vm::start_with(scene, &command, &[]))
}

/// A file of the small file system, as the test can reach it.
fn inside(vm: &Vm, scene: &Scene, name: &str) -> PathBuf {
    let root = format!("/proc/{}/root", vm.process.pid());
    PathBuf::from(format!("{root}{}/{name}", scene.text("small")))
}

fn mirror(scene: &Scene, policy: &str) -> Value {
    json!({"device": "disk", "sync": "full", "target": scene.text("small/target.img"),
           "on-target-error": policy})
}

fn start_full(scene: &Scene) -> Option<Vm> {
    let vm = start_with_small_disk(scene)?;
    let ballast = pattern(BALLAST);
    fs::write(inside(&vm, scene, "ballast"), ballast).unwrap();
    Some(vm)
}

#[test]
fn reported_the_job_fails_and_the_disk_stays_where_it_is() {
    let scene = Scene::new();
    let Some(mut vm) = start_full(&scene) else {
        return;
    };
    let before = vm.picture();
    vm.execute("drive-mirror", &mirror(&scene, "report"));
    let error = vm.wait_job("BLOCK_JOB_ERROR", "disk");
    assert_eq!(error["operation"], "write");
    assert_eq!(error["action"], "report");
    let data = vm.wait_job("BLOCK_JOB_COMPLETED", "disk");
    expect_words(data["error"].as_str().unwrap(), &["No space left"]);
    assert_eq!(before, vm.picture(), "something was left behind");
    vm.check_disks();
    let words = [
        "job 'disk' ends: node",
        "can't be written: No space left on device",
        "on-target-error=stop",
    ];
    vm.quit_having_told(&words);
}

#[test]
fn stopped_for_want_of_space_it_goes_on_when_there_is_some() {
    for policy in ["enospc", "stop"] {
        let scene = Scene::new();
        let Some(mut vm) = start_full(&scene) else {
            return;
        };
        vm.execute("drive-mirror", &mirror(&scene, policy));
        let error = vm.wait_job("BLOCK_JOB_ERROR", "disk");
        assert_eq!(error["action"], "stop");
        let jobs = vm.execute("query-block-jobs", &json!({}));
        assert_eq!(jobs[0]["io-status"], "nospace", "{jobs}");
        vm.check_disks();

        fs::remove_file(inside(&vm, &scene, "ballast")).unwrap();
        vm.execute("block-job-resume", &json!({"device": "disk"}));
        vm.wait_job("BLOCK_JOB_READY", "disk");
        vm.execute("block-job-complete", &json!({"device": "disk"}));
        let data = vm.wait_job("BLOCK_JOB_COMPLETED", "disk");
        assert_eq!(data["error"], Value::Null, "{policy}");
        let target = inside(&vm, &scene, "target.img");
        assert!(
            fs::read(&target).unwrap() == scene.read("disk.img"),
            "{policy}: differs"
        );
        vm.disk.image = target.to_str().unwrap().to_owned();
        vm.check_disks();
        vm.quit();
    }
}

#[test]
fn stopped_for_want_of_space_it_can_be_cancelled() {
    let scene = Scene::new();
    let Some(mut vm) = start_full(&scene) else {
        return;
    };
    let before = vm.picture();
    vm.execute("drive-mirror", &mirror(&scene, "stop"));
    vm.wait_job("BLOCK_JOB_ERROR", "disk");
    vm.execute(
        "block-job-cancel",
        &json!({"device": "disk", "force": true}),
    );
    vm.wait_job("BLOCK_JOB_CANCELLED", "disk");
    assert_eq!(before, vm.picture());
    vm.check_disks();
    vm.quit();
}

/// The limit of a process on the size of its files sends a signal that would end it.
#[test]
fn a_limit_on_the_size_of_files_is_an_error_like_others() {
    let scene = Scene::new();
    let limited = r#"ulimit -f 2048; exec "$0" "$@""#;
    let command = ["sh", "-c", limited, SLUICE].map(str::to_owned);
    let mut vm = Vm::start_with(&scene, &command, &[]);
    // Made anew, it can't even get its size.
    let target = scene.text("new.img");
    let create = json!({"device": "disk", "sync": "full", "target": target});
    vm.refused_with("drive-mirror", &create, &[&target, "File too large"]);
    // Made before, it can't be written beyond the limit.
    let target = scene.file("target.img", SIZE);
    let existing = json!({"device": "disk", "sync": "full", "target": target,
                          "mode": "existing"});
    let before = vm.picture();
    vm.execute("drive-mirror", &existing);
    vm.wait_job("BLOCK_JOB_ERROR", "disk");
    let data = vm.wait_job("BLOCK_JOB_COMPLETED", "disk");
    expect_words(data["error"].as_str().unwrap(), &["File too large"]);
    assert_eq!(before, vm.picture());
    vm.check_disks();
    let words = [
        "job 'disk' ends: node",
        "can't be written: File too large",
        "on-target-error=stop",
    ];
    vm.quit_having_told(&words);
}
