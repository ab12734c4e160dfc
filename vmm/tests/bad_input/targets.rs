//! Targets that nothing can be mirrored to.

use std::fs;

use serde_json::{Value, json};

use crate::harness::{SIZE, Scene, Vm, expect_words, pattern};
use crate::images::{BadImage, bad_images};

fn drive_mirror(target: &str, mode: &str) -> Value {
    json!({"device": "disk", "sync": "full", "target": target, "mode": mode})
}

fn blockdev_mirror(target: &str) -> Value {
    json!({"device": "disk", "job-id": "job", "sync": "full", "target": target})
}

fn file_node(name: &str, path: &str) -> Value {
    json!({"driver": "file", "node-name": name, "filename": path})
}

#[test]
fn bad_images_are_refused_in_both_modes() {
    let scene = Scene::new();
    let (images, _listener) = bad_images(&scene);
    let mut vm = Vm::start(&scene);
    for BadImage { path, words } in &images {
        vm.refused_with("drive-mirror", &drive_mirror(path, "existing"), &[path]);
        vm.refused_with("drive-mirror", &drive_mirror(path, "existing"), words);
        // Too small a file is no obstacle to a mode that makes it anew.
        let made_anew = words.iter().any(|word| word.contains("bytes"));
        if !made_anew && *path != scene.text("missing.img") {
            let creating = drive_mirror(path, "absolute-paths");
            vm.refused_with("drive-mirror", &creating, &[path]);
        }
        // What no mode makes an image of.
        let never = [
            "not a regular file",
            "one of the kernel's own files",
            "directory",
        ];
        if never.contains(&words[0]) {
            for mode in ["existing", "absolute-paths"] {
                vm.refused_with("drive-mirror", &drive_mirror(path, mode), words);
                vm.refused_with("drive-backup", &drive_mirror(path, mode), words);
            }
        }
    }
    vm.quit();
    assert!(!scene.path("missing.img").exists());
}

#[test]
fn another_size_is_refused_and_both_sizes_are_told() {
    let scene = Scene::new();
    let mut vm = Vm::start(&scene);
    for (name, size) in [("less.img", SIZE - 512), ("more.img", SIZE + 512)] {
        let path = scene.file(name, size);
        let source = vm.disk.image.clone();
        let sizes = [SIZE.to_string(), size.to_string()];
        let words = ["different sizes", &source, &path, &sizes[0], &sizes[1]];
        vm.refused_with("drive-mirror", &drive_mirror(&path, "existing"), &words);
        vm.execute("blockdev-add", &file_node("target", &path));
        vm.refused_with("blockdev-mirror", &blockdev_mirror("target"), &words);
        vm.execute("blockdev-del", &json!({"node-name": "target"}));
        assert_eq!(scene.read(name), vec![0; usize::try_from(size).unwrap()]);
    }
    vm.quit();
}

#[test]
fn the_source_is_no_target_by_whatever_name() {
    let scene = Scene::new();
    let mut vm = Vm::start(&scene);
    let source = vm.disk.image.clone();
    std::os::unix::fs::symlink(&source, scene.path("symbolic.img")).unwrap();
    fs::hard_link(&source, scene.path("hard.img")).unwrap();
    for path in [source, scene.text("symbolic.img"), scene.text("hard.img")] {
        let words = ["itself", "same image", &path];
        vm.refused_with("drive-mirror", &drive_mirror(&path, "existing"), &words);
        let words = [path.as_str(), "another block node", "choose another"];
        vm.refused_with(
            "drive-mirror",
            &drive_mirror(&path, "absolute-paths"),
            &words,
        );
        vm.execute("blockdev-add", &file_node("target", &path));
        let words = ["itself", "same image", &path];
        vm.refused_with("blockdev-mirror", &blockdev_mirror("target"), &words);
        vm.execute("blockdev-del", &json!({"node-name": "target"}));
    }
    // The source's own node.
    let disks = vm.execute("query-block", &json!({}));
    let node = disks[0]["inserted"]["node-name"]
        .as_str()
        .unwrap()
        .to_owned();
    let (_, text) = vm.refused("blockdev-mirror", &blockdev_mirror(&node));
    expect_words(&text, &["itself", "same image"]);
    vm.quit();
    // Nothing but what was written through the disk is in the image.
    let written = 512 * (255 - 64);
    assert_eq!(scene.read("disk.img")[..written], pattern(SIZE)[..written]);
}

#[test]
fn an_image_in_use_is_refused_and_keeps_its_contents() {
    let scene = Scene::new();
    let elsewhere = Scene::new();
    let mut neighbour = Vm::start(&elsewhere);
    let mut vm = Vm::start(&scene);
    let own = vm.other.image.clone();
    let foreign = neighbour.disk.image.clone();
    for path in [&own, &foreign] {
        let words = [path.as_str(), "lock", "another process"];
        vm.refused_with("drive-mirror", &drive_mirror(path, "existing"), &words);
    }
    let words = [own.as_str(), "another block node"];
    vm.refused_with(
        "drive-mirror",
        &drive_mirror(&own, "absolute-paths"),
        &words,
    );
    let words = [foreign.as_str(), "lock", "another process"];
    vm.refused_with(
        "drive-mirror",
        &drive_mirror(&foreign, "absolute-paths"),
        &words,
    );
    // Opening is no offence: locks are for writers.
    vm.execute("blockdev-add", &file_node("target", &foreign));
    vm.refused_with("blockdev-mirror", &blockdev_mirror("target"), &words);
    // By the node of another disk.
    let disks = vm.execute("query-block", &json!({}));
    let node = disks[1]["inserted"]["node-name"]
        .as_str()
        .unwrap()
        .to_owned();
    let (_, text) = vm.refused("blockdev-mirror", &blockdev_mirror(&node));
    expect_words(&text, &["in use", &node]);
    neighbour.check_disks();
    neighbour.quit();
    vm.quit();
    let written = 512 * (255 - 64);
    for image in [own, foreign] {
        assert_eq!(
            fs::read(image).unwrap()[..written],
            pattern(SIZE)[..written]
        );
    }
}

#[test]
fn arguments_that_make_no_sense_are_refused_by_name_before_a_file_is_made() {
    let scene = Scene::new();
    let mut vm = Vm::start(&scene);
    let target = scene.text("target.img");
    let precious = scene.write("precious.img", "data");
    let cases = [
        (json!({"device": "nobody"}), &["'nobody'"][..]),
        (json!({"sync": "sideways"}), &["'sync'", "'sideways'"]),
        (json!({"mode": "guess"}), &["'mode'", "'guess'"]),
        (json!({"format": "qcow2"}), &["'qcow2'", "raw"]),
        (json!({"speed": -1}), &["speed"]),
        (json!({"granularity": 3}), &["ranularity"]),
        (json!({"granularity": 1}), &["ranularity"]),
        (json!({"buf-size": -1}), &["'buf-size'"]),
        (json!({"job-id": "no good"}), &["'no good'"]),
        (
            json!({"on-target-error": "panic"}),
            &["'on-target-error'", "'panic'"],
        ),
        (json!({"node-name": "other"}), &["other"]),
        (json!({"node-name": "1"}), &["node-name", "'1'"]),
        (json!({"unknown": 1}), &["'unknown'"]),
        (json!({"sync": null}), &["'sync'"]),
        (json!({"target": 5}), &["'target'", "string"]),
    ];
    for (change, words) in cases {
        let mut arguments = drive_mirror(&target, "absolute-paths");
        for (name, value) in change.as_object().unwrap() {
            arguments[name] = value.clone();
        }
        let (_, text) = vm.refused("drive-mirror", &arguments);
        expect_words(&text, words);
        assert!(!scene.path("target.img").exists(), "made for {change}");
        // One that is there keeps what it holds.
        if change.get("target").is_none() {
            arguments["target"] = json!(precious);
            vm.refused("drive-mirror", &arguments);
            assert_eq!(scene.read("precious.img"), b"data", "emptied for {change}");
        }
    }
    let (_, text) = vm.refused("drive-mirror", &json!({"device": "disk", "sync": "full"}));
    expect_words(&text, &["'target'", "missing"]);
    let (_, text) = vm.refused("blockdev-mirror", &blockdev_mirror("nowhere"));
    expect_words(&text, &["'nowhere'"]);
    vm.quit();
}

#[test]
fn a_disk_is_mirrored_once_at_a_time() {
    let scene = Scene::new();
    let mut vm = Vm::start(&scene);
    let first = drive_mirror(&scene.text("first.img"), "absolute-paths");
    vm.execute("drive-mirror", &first);
    vm.wait_job("BLOCK_JOB_READY", "disk");
    let mut second = drive_mirror(&scene.text("second.img"), "absolute-paths");
    second["job-id"] = json!("second");
    let (_, text) = vm.refused("drive-mirror", &second);
    expect_words(&text, &["'disk'", "busy", "mirror"]);
    // The first target is nobody else's.
    let mut stolen = drive_mirror(&scene.text("first.img"), "absolute-paths");
    stolen["device"] = json!("other");
    let (_, text) = vm.refused("drive-mirror", &stolen);
    expect_words(&text, &["first.img", "another block node"]);
    assert!(!scene.path("second.img").exists());

    vm.execute("block-job-complete", &json!({"device": "disk"}));
    let data = vm.wait_job("BLOCK_JOB_COMPLETED", "disk");
    assert_eq!(data["error"], Value::Null);
    vm.disk.image = scene.text("first.img");
    vm.check_disks();
    vm.quit();
}
