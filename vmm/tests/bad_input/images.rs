//! Images that can't be disks.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;

use serde_json::json;

use crate::harness::{Scene, Vm, expect_words, refusal, refusal_of, status};

/// A path and what its error has to say besides.
pub struct BadImage {
    pub path: String,
    pub words: &'static [&'static str],
}

/// One of each kind. The listener is that of the socket.
pub fn bad_images(scene: &Scene) -> (Vec<BadImage>, UnixListener) {
    let listener = UnixListener::bind(scene.path("socket.img")).unwrap();
    fs::create_dir(scene.path("directory.img")).unwrap();
    let pipe = scene.text("pipe.img");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.unwrap().success());
    scene.file("plain", 512);
    let images = [
        (
            scene.text("missing.img"),
            &["No such file", "create it"][..],
        ),
        (scene.text("nowhere/missing.img"), &["No such file"]),
        (scene.text("plain/missing.img"), &["Not a directory"]),
        (
            scene.file("small.img", 100),
            &["100 bytes", "one sector", "truncate"],
        ),
        (
            scene.file("odd.img", 1000),
            &["1000 bytes", "multiple of 512", "truncate"],
        ),
        (scene.text("directory.img"), &["directory"]),
        (pipe, &["not a regular file"]),
        (scene.text("socket.img"), &["not a regular file"]),
        ("/dev/null".to_owned(), &["not a regular file"]),
        (
            "/proc/self/mem".to_owned(),
            &["one of the kernel's own files", "(proc)"],
        ),
    ];
    let images = images.map(|(path, words)| BadImage { path, words });
    (images.into(), listener)
}

#[test]
fn a_start_names_the_image_and_the_disk() {
    let scene = Scene::new();
    let (images, _listener) = bad_images(&scene);
    for BadImage { path, words } in &images {
        let drive = format!("file={path},format=raw,if=ide,id=system");
        let refused = refusal(&scene, &["--drive", &drive]);
        refused.expect(status::SETUP, &["'system'", path]);
        expect_words(&refused.line, words);

        let node = format!("driver=file,node-name=system,filename={path}");
        let refused = refusal(&scene, &["--blockdev", &node]);
        refused.expect(status::SETUP, &["--blockdev system", path]);
        expect_words(&refused.line, words);
    }
    assert!(!scene.path("missing.img").exists());
    assert_eq!(fs::metadata(scene.path("odd.img")).unwrap().len(), 1000);
}

/// An image may be empty; an IDE disk needs a sector.
#[test]
fn an_empty_image_is_no_ide_disk() {
    let scene = Scene::new();
    let drive = format!("file={},format=raw,if=ide", scene.file("empty.img", 0));
    let refused = refusal(&scene, &["--drive", &drive]);
    refused.expect(
        status::SETUP,
        &["ide.0 unit 0", "0 bytes", "make its image larger"],
    );
}

#[test]
fn a_running_machine_refuses_them_and_goes_on() {
    let scene = Scene::new();
    let (images, _listener) = bad_images(&scene);
    let mut vm = Vm::start(&scene);
    for BadImage { path, words } in &images {
        let file = json!({"driver": "file", "node-name": "new", "filename": path});
        vm.refused_with("blockdev-add", &file, &[path]);
        vm.refused_with("blockdev-add", &file, words);
        let raw = json!({"driver": "raw", "node-name": "new",
                         "file": {"driver": "file", "filename": path}});
        vm.refused_with("blockdev-add", &raw, words);
    }
    // The name is free after all that.
    let good = scene.file("good.img", 512);
    let file = json!({"driver": "file", "node-name": "new", "filename": good});
    vm.execute("blockdev-add", &file);
    vm.quit();
    assert!(!scene.path("missing.img").exists());
    assert_eq!(fs::metadata(scene.path("odd.img")).unwrap().len(), 1000);
}

#[test]
fn one_that_may_only_be_read_needs_the_word_for_it() {
    let scene = Scene::new();
    let image = scene.file("read-only.img", 1 << 20);
    fs::set_permissions(&image, fs::Permissions::from_mode(0o444)).unwrap();
    let Some(mut command) = scene.unprivileged() else {
        return;
    };
    // No socket may be needed where nothing can be written: the test listens.
    let _listener = UnixListener::bind(scene.path("qtest")).unwrap();
    fs::set_permissions(scene.path("qtest"), fs::Permissions::from_mode(0o777)).unwrap();
    let qtest = format!("unix:{}", scene.text("qtest"));
    let machine = [
        "--accel",
        "qtest",
        "--qtest",
        &qtest,
        "--qtest-log",
        "none",
        "--serial",
        "none",
    ];
    command.extend(machine.map(str::to_owned));
    let start = |arguments: &[&str]| {
        let mut command = command.clone();
        command.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        refusal_of(&command)
    };
    let drive = format!("file={image},format=raw,if=ide,id=system");
    let words = ["'system'", &image, "Permission denied", "read-only=on"];
    start(&["--drive", &drive]).expect(status::SETUP, &words);

    fs::set_permissions(&image, fs::Permissions::from_mode(0o000)).unwrap();
    let read_only = format!("{drive},readonly=on");
    let words = ["'system'", &image, "Permission denied"];
    start(&["--drive", &read_only]).expect(status::SETUP, &words);

    // The same file is fine where its permissions are asked for no more than they give: what stops
    // this start is the next image.
    fs::set_permissions(&image, fs::Permissions::from_mode(0o444)).unwrap();
    let missing = format!(
        "file={},format=raw,if=ide,id=second",
        scene.text("missing.img")
    );
    let refused = start(&["--drive", &read_only, "--drive", &missing]);
    refused.expect(status::SETUP, &["'second'", "missing.img", "No such file"]);
}

#[test]
fn one_that_may_only_be_read_is_refused_while_running() {
    let scene = Scene::new();
    let Some(command) = scene.unprivileged() else {
        return;
    };
    fs::set_permissions(scene.path(""), fs::Permissions::from_mode(0o777)).unwrap();
    for disk in ["disk.img", "other.img"] {
        scene.file(disk, 0);
        fs::set_permissions(scene.path(disk), fs::Permissions::from_mode(0o666)).unwrap();
    }
    let image = scene.image("read-only.img");
    fs::set_permissions(&image, fs::Permissions::from_mode(0o444)).unwrap();
    let mut vm = Vm::start_with(&scene, &command, &[]);
    let words = [image.as_str(), "Permission denied", "read-only=on"];
    let file = json!({"driver": "file", "node-name": "new", "filename": image});
    vm.refused_with("blockdev-add", &file, &words);
    for mode in ["existing", "absolute-paths"] {
        let mirror = json!({"device": "disk", "sync": "full", "target": image, "mode": mode});
        vm.refused_with("drive-mirror", &mirror, &[&image, "Permission denied"]);
    }
    let file = json!({"driver": "file", "node-name": "new", "filename": image,
                      "read-only": true});
    vm.execute("blockdev-add", &file);
    let mirror = json!({"device": "disk", "job-id": "job", "sync": "full", "target": "new"});
    vm.refused_with("blockdev-mirror", &mirror, &["'new'", "read-only"]);
    vm.quit();
    assert_eq!(
        scene.read("read-only.img"),
        crate::harness::pattern(crate::harness::SIZE)
    );
}

#[test]
fn one_image_serves_one_writer() {
    let scene = Scene::new();
    let vm = Vm::start(&scene);
    let image = vm.disk.image.clone();

    // By another machine.
    let elsewhere = Scene::new();
    let drive = format!("file={image},format=raw,if=ide,id=thief");
    let words = ["'thief'", &image, "lock", "another process"];
    refusal(&elsewhere, &["--drive", &drive]).expect(status::SETUP, &words);
    vm.quit();

    // Twice by one.
    let twice = [
        "--drive",
        &drive,
        "--drive",
        &drive.replace("thief", "second"),
    ];
    refusal(&elsewhere, &twice).expect(status::SETUP, &["'second'", &image, "lock"]);

    // And nobody has kept a lock.
    let vm = Vm::start(&scene);
    vm.quit();
}
