//! More memory than there is, and more descriptors.

use std::fs;

use serde_json::json;

use crate::harness::{
    LIMIT, SLUICE, Scene, Vm, expect_words, qtest_arguments, refusal, refusal_of, status,
};

#[test]
fn more_than_the_host_can_ever_have_is_refused_at_the_start() {
    let scene = Scene::new();
    // More than any address space.
    let absurd = refusal(&scene, &["-m", "1048576T"]);
    absurd.expect(status::SETUP, &["-m", "1152921504606846976 bytes"]);

    // More than the host has. One told to promise everything (1) does.
    let policy = fs::read_to_string("/proc/sys/vm/overcommit_memory").unwrap();
    if policy.trim() == "1" {
        println!("SKIPPED in part: this host promises any amount (vm.overcommit_memory=1)");
        return;
    }
    let much = refusal(&scene, &["-m", "10T"]);
    much.expect(
        status::SETUP,
        &["-m", "10995116277760 bytes", "Cannot allocate memory"],
    );
}

#[test]
fn more_than_this_process_may_have_is_refused_at_the_start() {
    let scene = Scene::new();
    let limited = r#"ulimit -v 2000000; exec "$0" "$@""#;
    let mut command = ["sh", "-c", limited, SLUICE].map(str::to_owned).to_vec();
    command.extend(qtest_arguments(&scene));
    command.extend(["-m", "3G"].map(str::to_owned));
    let refused = refusal_of(&command);
    refused.expect(
        status::SETUP,
        &["-m", "3221225472 bytes", "Cannot allocate memory"],
    );
}

#[test]
fn amounts_that_are_none_are_refused_as_usage() {
    let scene = Scene::new();
    for amount in [
        "0",
        "1",
        "1023K",
        "-5",
        "lots",
        "3.7.1G",
        "99999999999999999999",
        "",
    ] {
        let refused = refusal(&scene, &["-m", amount]);
        refused.expect(status::USAGE, &[amount]);
    }
}

#[test]
fn a_bitmap_of_no_bounds_is_refused_while_running() {
    let scene = Scene::new();
    let mut vm = Vm::start(&scene);
    for name in ["source", "target"] {
        let huge = json!({"driver": "null-co", "node-name": name, "size": 1_u64 << 62});
        vm.execute("blockdev-add", &huge);
    }
    let mirror = json!({"device": "source", "job-id": "job", "target": "target",
                        "sync": "none", "granularity": 512});
    let words = [
        "Parameter 'granularity' is too small",
        "4611686018427387904 bytes",
        "leave it out",
    ];
    vm.refused_with("blockdev-mirror", &mirror, &words);
    vm.quit();
}

/// Without a descriptor left nothing can be opened; what is open goes on, and new clients are
/// served as soon as there are some again.
#[test]
fn running_out_of_descriptors_harms_nothing_that_is_open() {
    let scene = Scene::new();
    let limited = r#"ulimit -n 64; exec "$0" "$@""#;
    let command = ["sh", "-c", limited, SLUICE].map(str::to_owned);
    let mut vm = Vm::start_with(&scene, &command, &[]);
    let image = scene.file("image.img", 512);
    let node = |number: usize| {
        let name = format!("node{number}");
        json!({"driver": "file", "node-name": name, "filename": image})
    };
    // One that is refused may have left descriptors that are closed a moment later.
    let (mut added, mut refused) = (0, 0);
    while refused < 5 {
        match vm.qmp.execute("blockdev-add", &node(added)) {
            Ok(_) => (added, refused) = (added + 1, 0),
            Err(_) => refused += 1,
        }
    }
    assert!(added < 64);
    let before = vm.picture();
    let mirror = json!({"device": "disk", "sync": "full", "target": image, "mode": "existing"});
    let thread = json!({"qom-type": "iothread", "id": "io0"});
    let cases = [
        ("blockdev-add", node(added), &image),
        ("drive-mirror", mirror, &image),
        ("object-add", thread, &"io0".to_owned()),
    ];
    for (command, arguments, name) in cases {
        let error = vm.qmp.execute(command, &arguments).unwrap_err().to_string();
        expect_words(&error, &[name, "Too many open files"]);
    }
    assert_eq!(before, vm.picture());
    // This one may be turned away.
    drop(vm.connect_raw());
    for number in 0..added {
        let name = format!("node{number}");
        vm.execute("blockdev-del", &json!({"node-name": name}));
    }
    drop(vm.connect());
    vm.check_disks();
    vm.execute("quit", &json!({}));
    let status = vm.process.wait_end(LIMIT).unwrap();
    assert_eq!(status.code(), Some(status::SUCCESS));
}
