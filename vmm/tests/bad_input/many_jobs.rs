//! A thousand jobs: one after the other, all at once, and all of them on one disk.

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use serde_json::{Value, json};

use crate::harness::{LIMIT, SIZE, Scene, Vm};

const THOUSAND: usize = 1000;
/// Mirrors after which everything has been made that is made once.
const WARM: usize = 100;
/// Bytes that the others may add in all: no more than one allocation of a page for each second one.
const GROWTH: u64 = 2 << 20;

/// What the process has open, once it waits: it holds another descriptor of each client that it listens to, and after an
/// answer it may not listen yet.
fn descriptors(vm: &Vm) -> Vec<PathBuf> {
    let process = format!("/proc/{}", vm.process.pid());
    let waits = || {
        let stat = fs::read_to_string(format!("{process}/stat")).unwrap();
        // Behind the name, in which there may be anything.
        stat.rsplit(") ").next().unwrap().starts_with('S')
    };
    let deadline = Instant::now() + LIMIT;
    while !waits() {
        assert!(Instant::now() < deadline, "the main loop never waits");
    }
    let entries = fs::read_dir(format!("{process}/fd")).unwrap();
    let targets = entries.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
    targets.collect()
}

/// What the process has: descriptors, and bytes of memory of its own.
fn holdings(vm: &Vm) -> (usize, u64) {
    let status = fs::read_to_string(format!("/proc/{}/status", vm.process.pid())).unwrap();
    let own = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kib: u64 = own.unwrap().trim_end_matches("kB").trim().parse().unwrap();
    (descriptors(vm).len(), kib << 10)
}

fn names(vm: &mut Vm, query: &str, member: &str) -> Vec<String> {
    let answer = vm.execute(query, &json!({}));
    let records = answer.as_array().unwrap().iter();
    records
        .map(|record| record[member].as_str().unwrap().to_owned())
        .collect()
}

/// Pivots, copies, and cancels of copies that were running or are complete, in turn.
#[test]
fn a_thousand_mirrors_one_after_another_leave_nothing() {
    let scene = Scene::new();
    let mut vm = Vm::start(&scene);
    scene.file("target.img", SIZE);
    let mut images = ["disk.img", "target.img"];
    let nodes = names(&mut vm, "query-named-block-nodes", "node-name").len();
    let mut warm = None;
    for number in 0..THOUSAND {
        if number == WARM {
            warm = Some(holdings(&vm));
        }
        let id = format!("job{number}");
        let mut arguments = json!({
            "device": "disk", "job-id": id, "target": scene.text(images[1]), "mode": "existing",
            "format": "raw", "sync": "full"
        });
        if number % 4 == 3 {
            arguments["speed"] = json!(64 << 10);
        }
        vm.execute("drive-mirror", &arguments);
        let job = json!({"device": id});
        let ends = match number % 4 {
            0 => {
                vm.wait_job("BLOCK_JOB_READY", &id);
                vm.execute("block-job-complete", &job);
                images.reverse();
                "BLOCK_JOB_COMPLETED"
            }
            1 => {
                vm.wait_job("BLOCK_JOB_READY", &id);
                vm.execute("block-job-cancel", &job);
                "BLOCK_JOB_COMPLETED"
            }
            2 => {
                vm.wait_job("BLOCK_JOB_READY", &id);
                vm.execute("block-job-cancel", &json!({"device": id, "force": true}));
                "BLOCK_JOB_CANCELLED"
            }
            _ => {
                vm.execute("block-job-cancel", &job);
                "BLOCK_JOB_CANCELLED"
            }
        };
        let ended = vm.wait_job(ends, &id);
        assert!(ended.get("error").is_none(), "{ended}");
    }
    let (warm, now) = (warm.unwrap(), holdings(&vm));
    println!("after {WARM}: {warm:?}, after {THOUSAND}: {now:?}");
    assert!(now.0 <= warm.0, "descriptors: {warm:?}, then {now:?}");
    assert!(now.1 <= warm.1 + GROWTH, "memory: {warm:?}, then {now:?}");
    assert_eq!(
        names(&mut vm, "query-named-block-nodes", "node-name").len(),
        nodes
    );
    assert!(names(&mut vm, "query-jobs", "id").is_empty());
    let file = vm.execute("query-block", &json!({}))[0]["inserted"]["file"].clone();
    assert_eq!(file, scene.text(images[0]));
    vm.disk.image = scene.text(images[0]);
    vm.check_disks();
    vm.quit();
}

fn null(name: &str) -> Value {
    json!({"driver": "null-co", "node-name": name, "size": 64 << 10})
}

/// Each has a disk of its own: all are served, and a name that is taken is refused by it.
#[test]
fn a_thousand_jobs_at_once_are_served() {
    let scene = Scene::new();
    let mut vm = Vm::start(&scene);
    let mirror = |number: usize, id: String| {
        json!({
            "device": format!("source{number}"), "target": format!("target{number}"),
            "job-id": id, "sync": "full", "speed": 1, "copy-mode": "automatic"
        })
    };
    for number in 0..THOUSAND {
        vm.execute("blockdev-add", &null(&format!("source{number}")));
        vm.execute("blockdev-add", &null(&format!("target{number}")));
        vm.execute("blockdev-mirror", &mirror(number, format!("job{number}")));
    }
    assert_eq!(names(&mut vm, "query-block-jobs", "device").len(), THOUSAND);
    for name in ["source", "target"] {
        vm.execute("blockdev-add", &null(&format!("{name}{THOUSAND}")));
    }
    let taken = mirror(THOUSAND, "job7".to_owned());
    vm.refused_with("blockdev-mirror", &taken, &["job7", "in use"]);
    vm.check_disks();
    // Every second one is cancelled; the others are there when the machine ends.
    for number in (0..THOUSAND).step_by(2) {
        let job = json!({"device": format!("job{number}"), "force": true});
        vm.execute("block-job-cancel", &job);
    }
    for number in (0..THOUSAND).step_by(2) {
        vm.wait_job("BLOCK_JOB_CANCELLED", &format!("job{number}"));
    }
    assert_eq!(names(&mut vm, "query-jobs", "id").len(), THOUSAND / 2);
    vm.check_disks();
    vm.quit();
}

/// Those who have nothing to do keep no memory for copies that may never come.
#[test]
fn mirrors_that_are_ready_and_idle_keep_no_buffers() {
    const MIRRORS: usize = 20;
    const COPIED: u64 = 8 << 20;
    let scene = Scene::new();
    let mut vm = Vm::start(&scene);
    let null = |name: String| json!({"driver": "null-co", "node-name": name, "size": COPIED});
    let before = holdings(&vm).1;
    for number in 0..MIRRORS {
        let (source, target, id) = (
            format!("source{number}"),
            format!("target{number}"),
            format!("job{number}"),
        );
        vm.execute("blockdev-add", &null(source.clone()));
        vm.execute("blockdev-add", &null(target.clone()));
        let mirror = json!({"device": source, "target": target, "job-id": id, "sync": "full"});
        vm.execute("blockdev-mirror", &mirror);
        vm.wait_job("BLOCK_JOB_READY", &id);
    }
    let jobs = vm.execute("query-block-jobs", &json!({}));
    for job in jobs.as_array().unwrap() {
        assert_eq!(job["x-bytes-copied"], COPIED, "{job}");
    }
    // Half of what one buffer for each would be.
    let most = before + ((MIRRORS as u64) << 19);
    let deadline = Instant::now() + LIMIT;
    while holdings(&vm).1 > most {
        let now = holdings(&vm).1;
        assert!(Instant::now() < deadline, "{before}, then {now}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    vm.quit();
}

/// One has the disk; every other is refused, and told by whom and what to do.
#[test]
fn a_thousand_jobs_on_one_disk_are_refused_but_for_the_first() {
    let scene = Scene::new();
    let mut vm = Vm::start(&scene);
    let mut mirror = json!({
        "device": "disk", "job-id": "first", "target": scene.file("target.img", SIZE), "mode": "existing",
        "format": "raw", "sync": "full", "speed": 64 << 10
    });
    vm.execute("drive-mirror", &mirror);
    let other = scene.file("other-target.img", SIZE);
    let mut refuse = |vm: &mut Vm, number: usize| {
        mirror["job-id"] = json!(format!("job{number}"));
        mirror["target"] = json!(other);
        let refused = vm.qmp.execute("drive-mirror", &mirror).unwrap_err();
        let text = refused.to_string();
        assert!(text.contains("mirror 'first'"), "{text}");
    };
    (0..WARM).for_each(|number| refuse(&mut vm, number));
    let before = (vm.picture(), descriptors(&vm));
    (WARM..THOUSAND).for_each(|number| refuse(&mut vm, number));
    let now = descriptors(&vm);
    assert!(now.len() <= before.1.len(), "{:?}, then {now:?}", before.1);
    assert_eq!(before.0, vm.picture());
    vm.check_disks();
    vm.quit();
}
