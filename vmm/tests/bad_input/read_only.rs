//! Images on a file system that can only be read.
//!
//! A tmpfs that was made read-only, in a mount namespace of the machine's own, which goes with it.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::harness::{
    SIZE, SLUICE, Scene, Vm, expect_words, pattern, qtest_arguments, refusal_of, status, with_mount,
};

/// What an error has to say.
const WORDS: &[&str] = &["Read-only file system"];

/// The command of a machine that sees a copy of `disk.img`'s first contents at `fixed/image.img`, and
/// can't write there; none, with the reason printed, where that can't be had.
fn command(scene: &Scene) -> Option<Vec<String>> {
    let fixed = scene.text("fixed");
    fs::create_dir(&fixed).unwrap();
    let original = scene.image("original.img");
    with_mount(&format!(
        "mount -t tmpfs -o size=16M none '{fixed}' && cp '{original}' '{fixed}/image.img' && \
         mount -o remount,ro none '{fixed}'"
    ))
}

/// A file of that file system, as the test can reach it.
fn inside(vm: &Vm, scene: &Scene, name: &str) -> PathBuf {
    let root = format!("/proc/{}/root", vm.process.pid());
    PathBuf::from(format!("{root}{}/{name}", scene.text("fixed")))
}

fn node(scene: &Scene, more: &Value) -> Value {
    let mut node = json!({"driver": "file", "node-name": "fixed",
                          "filename": scene.text("fixed/image.img")});
    let members = more.as_object().unwrap().clone();
    node.as_object_mut().unwrap().extend(members);
    node
}

#[test]
fn a_start_is_refused_unless_the_disk_is_only_read() {
    let scene = Scene::new();
    let Some(mut command) = command(&scene) else {
        return;
    };
    command.extend(qtest_arguments(&scene));
    let image = scene.text("fixed/image.img");
    let start = |drives: &[&str]| {
        let drives = drives.iter().flat_map(|drive| ["--drive", drive]);
        let mut command = command.clone();
        command.extend(drives.map(str::to_owned));
        refusal_of(&command)
    };
    let drive = format!("file={image},format=raw,if=ide,id=system");
    let refused = start(&[&drive]);
    refused.expect(status::SETUP, &["'system'", &image, "read-only=on"]);
    expect_words(&refused.line, WORDS);
    // With the word for it, it is the next image that stops the start.
    let missing = scene.text("missing.img");
    let next = format!("file={missing},format=raw,if=ide,id=next,index=1");
    let refused = start(&[&format!("{drive},readonly=on"), &next]);
    refused.expect(status::SETUP, &["'next'", &missing]);
}

#[test]
fn a_running_machine_reads_there_and_refuses_everything_else() {
    let scene = Scene::new();
    let Some(command) = command(&scene) else {
        return;
    };
    assert_eq!(command.iter().filter(|word| *word == SLUICE).count(), 1);
    let mut vm = Vm::start_with(&scene, &command, &[]);
    let image = scene.text("fixed/image.img");
    vm.refused_with("blockdev-add", &node(&scene, &json!({})), WORDS);
    let words = [&image, "read-only=on"];
    vm.refused_with("blockdev-add", &node(&scene, &json!({})), &words);
    // A target is written: neither an image that is there nor a new one will do.
    for (name, mode) in [("image.img", "existing"), ("new.img", "absolute-paths")] {
        let target = scene.text(&format!("fixed/{name}"));
        let mirror = json!({"device": "disk", "sync": "full", "target": target, "mode": mode});
        vm.refused_with("drive-mirror", &mirror, WORDS);
        vm.refused_with("drive-mirror", &mirror, &[&target]);
    }
    assert!(!inside(&vm, &scene, "new.img").exists());

    // Asked for no more than it gives it is a node like others, which can't become writable.
    for read in [json!({"read-only": true}), json!({"auto-read-only": true})] {
        vm.execute("blockdev-add", &node(&scene, &read));
        let nodes = vm.execute("query-named-block-nodes", &json!({}));
        let nodes = nodes.as_array().unwrap();
        let fixed = nodes.iter().find(|node| node["node-name"] == "fixed");
        assert_eq!(fixed.unwrap()["ro"], true);
        if read["read-only"] == true {
            let writable = json!({"options": [node(&scene, &json!({"read-only": false}))]});
            vm.refused_with("blockdev-reopen", &writable, WORDS);
        }
        let resize = json!({"node-name": "fixed", "size": SIZE * 2});
        vm.refused_with("block_resize", &resize, &["read-only"]);
        let mirror = json!({"device": "disk", "job-id": "job", "sync": "full", "target": "fixed"});
        vm.refused_with("blockdev-mirror", &mirror, &["'fixed'", "read-only"]);
        let read = r#"qemu-io fixed "read -P 0 0 512""#;
        let line = json!({"command-line": read, "x-output": true});
        let said = vm.execute("human-monitor-command", &line);
        expect_words(
            said.as_str().unwrap(),
            &["Pattern verification failed", "512/512"],
        );
        let write = json!({"command-line": r#"qemu-io fixed "write 0 512""#});
        let said = vm.execute("human-monitor-command", &write);
        expect_words(said.as_str().unwrap(), &["read-only"]);
        vm.execute("blockdev-del", &json!({"node-name": "fixed"}));
    }
    assert!(fs::read(inside(&vm, &scene, "image.img")).unwrap() == pattern(SIZE));
    vm.quit();
}
