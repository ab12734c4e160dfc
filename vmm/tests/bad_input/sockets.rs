//! Places where no socket can be.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;

use crate::harness::{SLUICE, Scene, Vm, qtest_arguments, refusal, refusal_of, status};

fn refused_at(scene: &Scene, path: &str) -> crate::harness::Refusal {
    refusal(scene, &["--qmp", &format!("unix:{path},server=on")])
}

#[test]
fn the_socket_of_a_living_machine_stays_its_own() {
    let scene = Scene::new();
    let mut vm = Vm::start(&scene);
    let elsewhere = Scene::new();
    let path = scene.text("qmp");
    let words = ["--qmp", &path, "taken", "another path"];
    refused_at(&elsewhere, &path).expect(status::SETUP, &words);

    // The same with the socket of another kind of server, and for --qtest.
    let path = scene.text("qtest");
    refused_at(&elsewhere, &path).expect(status::SETUP, &["--qmp", &path, "taken"]);
    let qtest = format!("unix:{path},server=on");
    let command = [
        SLUICE,
        "--accel",
        "qtest",
        "--qtest-log",
        "none",
        "--serial",
        "none",
        "--qtest",
        &qtest,
    ];
    refusal_of(&command).expect(status::SETUP, &["--qtest", &path, "taken"]);

    vm.check_disks();
    drop(vm.connect());
    vm.quit();
    assert!(!scene.path("qmp").exists() && !scene.path("qtest").exists());
}

#[test]
fn the_socket_of_a_machine_that_was_killed_is_replaced() {
    let scene = Scene::new();
    let killed = Vm::start(&scene);
    drop(killed);
    assert!(
        scene.path("qmp").exists(),
        "the test is about a socket that was left"
    );
    let mut vm = Vm::start(&scene);
    vm.check_disks();
    vm.quit();
    assert!(!scene.path("qmp").exists());
}

#[test]
fn another_file_is_not_replaced() {
    let scene = Scene::new();
    let path = scene.write("precious", "data");
    refused_at(&scene, &path).expect(status::SETUP, &["--qmp", &path, "not a socket"]);
    assert_eq!(scene.read("precious"), b"data");
    fs::create_dir(scene.path("directory")).unwrap();
    let path = scene.text("directory");
    refused_at(&scene, &path).expect(status::SETUP, &["--qmp", &path, "not a socket"]);
}

#[test]
fn a_path_that_no_socket_can_have() {
    let scene = Scene::new();
    let long = scene.text(&"x".repeat(108));
    refused_at(&scene, &long).expect(status::USAGE, &["--qmp", &long, "107 bytes", "shorter"]);
    refused_at(&scene, "").expect(status::USAGE, &["--qmp unix:", "path"]);
    let path = scene.text("nowhere/qmp");
    let words = ["--qmp", &path, "No such file", "directory"];
    refused_at(&scene, &path).expect(status::SETUP, &words);
    let path = scene.write("plain", "") + "/qmp";
    refused_at(&scene, &path).expect(status::SETUP, &["--qmp", &path, "Not a directory"]);
    let tcp = refusal(&scene, &["--qmp", "tcp:localhost:http"]);
    tcp.expect(
        status::USAGE,
        &["tcp:localhost:http", "'http'", "unix:PATH"],
    );
    let pty = refusal(&scene, &["--qmp", "pty"]);
    pty.expect(status::USAGE, &["--qmp pty", "unix:PATH"]);
}

#[test]
fn two_sockets_need_two_paths() {
    let scene = Scene::new();
    let qmp = format!("unix:{}", scene.text("qmp"));
    let twice = refusal(&scene, &["--qmp", &qmp, "--qmp", &qmp]);
    twice.expect(status::USAGE, &["--qmp", &qmp, "another socket option"]);
    let path = scene.text("qtest");
    refused_at(&scene, &path).expect(status::USAGE, &["--qmp", &path, "another socket option"]);
}

#[test]
fn nobody_listens_where_the_machine_should_connect() {
    let scene = Scene::new();
    let path = scene.text("absent");
    let connecting = format!("unix:{path},server=off");
    let words = ["--qmp", "connect", &path, "No such file"];
    refusal(&scene, &["--qmp", &connecting]).expect(status::SETUP, &words);
}

#[test]
fn a_directory_that_must_not_be_written() {
    let scene = Scene::new();
    let Some(mut command) = scene.unprivileged() else {
        return;
    };
    // The test listens, for no socket at all can be made here.
    let _listener = UnixListener::bind(scene.path("qtest")).unwrap();
    fs::set_permissions(scene.path("qtest"), fs::Permissions::from_mode(0o777)).unwrap();
    fs::create_dir(scene.path("closed")).unwrap();
    fs::set_permissions(scene.path("closed"), fs::Permissions::from_mode(0o555)).unwrap();
    let path = scene.text("closed/qmp");
    let mut arguments = qtest_arguments(&scene);
    arguments[3] = format!("unix:{}", scene.text("qtest"));
    command.extend(arguments);
    command.extend(["--qmp".to_owned(), format!("unix:{path}")]);
    let words = ["--qmp", &path, "Permission denied", "may write"];
    refusal_of(&command).expect(status::SETUP, &words);
}

#[test]
fn a_console_that_no_file_can_take() {
    let scene = Scene::new();
    for (path, words) in [
        (scene.text("nowhere/console"), "No such file"),
        (scene.text(""), "directory"),
    ] {
        let mut command = vec![SLUICE.to_owned()];
        command.extend(qtest_arguments(&scene));
        *command.last_mut().unwrap() = format!("file:{path}");
        refusal_of(&command).expect(status::SETUP, &["--serial", &path, words]);
    }
}
