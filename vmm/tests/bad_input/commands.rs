//! Commands that can't be carried out: each names what is wrong and leaves the machine as it is.

use serde_json::{Value, json};

use crate::harness::{Scene, Vm, expect_words};

#[test]
fn names_that_are_taken_or_unknown() {
    let scene = Scene::new();
    let mut vm = Vm::start_with(
        &scene,
        &[crate::harness::SLUICE.to_owned()],
        &["--object", "iothread,id=io0"],
    );
    vm.execute(
        "blockdev-add",
        &json!({"driver": "null-co", "node-name": "taken"}),
    );
    let null = |name: &str| json!({"driver": "null-co", "node-name": name});
    let iothread = |id: &str| json!({"qom-type": "iothread", "id": id});
    let cases = [
        ("blockdev-add", null("taken"), &["'taken'", "Duplicate"][..]),
        ("blockdev-add", null("disk"), &["disk", "conflict"]),
        ("blockdev-add", null("no good"), &["no good"]),
        ("blockdev-add", null(""), &["node-name"]),
        (
            "blockdev-add",
            json!({"driver": "null-co"}),
            &["'node-name'"],
        ),
        (
            "blockdev-add",
            json!({"node-name": "new"}),
            &["'driver'", "missing"],
        ),
        (
            "blockdev-add",
            json!({"driver": "tape", "node-name": "new"}),
            &["'driver'", "'tape'"],
        ),
        (
            "blockdev-add",
            json!({"driver": "file", "node-name": "new"}),
            &["'filename'", "missing"],
        ),
        (
            "blockdev-add",
            json!({"driver": "null-co", "node-name": "new", "size": "big"}),
            &["'size'"],
        ),
        (
            "blockdev-add",
            json!({"driver": "raw", "node-name": "new", "file": "nowhere"}),
            &["'nowhere'"],
        ),
        (
            "blockdev-add",
            json!({"driver": "raw", "node-name": "new", "file": "taken", "size": 1}),
            &["size", "512"],
        ),
        (
            "blockdev-del",
            json!({"node-name": "nowhere"}),
            &["'nowhere'"],
        ),
        ("object-add", iothread("io0"), &["io0"]),
        (
            "object-add",
            json!({"qom-type": "iothread", "id": "io1", "thread-pool-min": i32::MAX,
                   "thread-pool-max": i32::MAX}),
            &["thread-pool-min", "bad"],
        ),
        ("object-add", iothread("no good"), &["'id'", "identifier"]),
        (
            "object-add",
            json!({"qom-type": "teapot", "id": "x"}),
            &["'qom-type'", "'teapot'"],
        ),
        ("object-del", json!({"id": "io9"}), &["io9"]),
        ("qmp_capabilities", json!({}), &["already complete"]),
        ("fly", json!({}), &["fly", "not been found"]),
        ("query-status", json!({"how": 1}), &["'how'", "unexpected"]),
    ];
    for (command, arguments, words) in cases {
        let (class, text) = vm.refused(command, &arguments);
        expect_words(&text, words);
        let not_found = ["fly", "qmp_capabilities"].contains(&command);
        let expected = if not_found {
            "CommandNotFound"
        } else {
            "GenericError"
        };
        assert_eq!(class, expected, "{text}");
    }
    vm.quit();
}

#[test]
fn nodes_in_use_stay() {
    let scene = Scene::new();
    let mut vm = Vm::start(&scene);
    let nodes = vm.execute("query-named-block-nodes", &json!({}));
    for node in nodes.as_array().unwrap() {
        let (_, text) = vm.refused("blockdev-del", &json!({"node-name": node["node-name"]}));
        expect_words(&text, &[node["node-name"].as_str().unwrap()]);
    }
    vm.quit();
}

#[test]
fn verbs_for_jobs_that_are_not_there() {
    let scene = Scene::new();
    let mut vm = Vm::start(&scene);
    for verb in ["cancel", "complete", "pause", "resume", "set-speed"] {
        let mut arguments = json!({"device": "nobody"});
        if verb == "set-speed" {
            arguments["speed"] = json!(0);
        }
        let (class, text) = vm.refused(&format!("block-job-{verb}"), &arguments);
        assert_eq!(class, "DeviceNotActive", "{text}");
        expect_words(&text, &["'nobody'"]);
    }
    for verb in [
        "cancel", "complete", "pause", "resume", "finalize", "dismiss",
    ] {
        let (_, text) = vm.refused(&format!("job-{verb}"), &json!({"id": "nobody"}));
        expect_words(&text, &["not found"]);
    }
    vm.quit();
}

#[test]
fn verbs_that_come_too_early() {
    let scene = Scene::new();
    let mut vm = Vm::start(&scene);
    let mirror = json!({"device": "disk", "sync": "full", "target": scene.text("target.img"),
                        "speed": 1});
    vm.execute("drive-mirror", &mirror);
    let (_, text) = vm.refused("block-job-complete", &json!({"device": "disk"}));
    expect_words(&text, &["'disk'", "cannot"]);
    let (_, text) = vm.refused("block-job-finalize", &json!({"id": "disk"}));
    expect_words(&text, &["'disk'"]);
    let (_, text) = vm.refused("block-job-resume", &json!({"device": "disk"}));
    expect_words(&text, &["not paused"]);
    let speed = json!({"device": "disk", "speed": -1});
    let (_, text) = vm.refused("block-job-set-speed", &speed);
    expect_words(&text, &["speed"]);
    vm.execute("block-job-cancel", &json!({"device": "disk"}));
    vm.wait_job("BLOCK_JOB_CANCELLED", "disk");
    assert_eq!(
        vm.execute("query-block-jobs", &json!({})),
        Value::Array(vec![])
    );
    vm.quit();
}
