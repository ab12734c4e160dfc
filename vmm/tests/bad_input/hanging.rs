//! The end of a machine while the target of a job hangs: it comes all the same, and says what was left behind.

use std::os::unix::net::UnixStream;
use std::thread;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::{LIMIT, SIZE, Scene, Vm, expect_words, status};

/// How the machine is told to end.
#[derive(Clone, Copy, Debug)]
enum Told {
    Quit,
    By(Signal, &'static str),
}

const QUIT: Told = Told::Quit;
const TERM: Told = Told::By(Signal::TERM, "SIGTERM");
/// What a terminal sends for Ctrl-C.
const INT: Told = Told::By(Signal::INT, "SIGINT");

const KEPT: &str = "'job', whose last requests have not returned";

/// What `qemu-io` writes into a sector unless it is told otherwise.
const WRITTEN: [u8; 512] = [0xcd; 512];

/// A machine whose disk is about to be copied to `slow`, where the next `event` is held for ever.
fn with_slow_target(scene: &Scene, event: &str) -> Vm {
    let mut vm = Vm::start(scene);
    vm.check_disks();
    let file = json!({"driver": "file", "filename": scene.file("target.img", SIZE)});
    let target = json!({"driver": "blkdebug", "node-name": "slow", "image": file});
    vm.execute("blockdev-add", &target);
    let hold = json!({"node-name": "slow", "tag": "hold", "event": event});
    vm.execute("x-debug-break", &hold);
    vm
}

fn wait_held(vm: &mut Vm) {
    wait_held_by(vm, "hold");
}

fn wait_held_by(vm: &mut Vm, tag: &str) {
    let held = json!({"node-name": "slow", "tag": tag});
    vm.execute("x-debug-wait-break", &held);
}

/// A client that writes to the disk, whose write `slow` holds for ever.
#[must_use]
fn held_writer(vm: &mut Vm) -> UnixStream {
    let write = json!({"node-name": "slow", "tag": "write", "event": "write_aio"});
    vm.execute("x-debug-break", &write);
    // This is not answered before the end.
    let writes = json!({"command-line": "qemu-io disk \"write 0 512\""});
    let writer = vm.ask("human-monitor-command", &writes);
    wait_held_by(vm, "write");
    writer
}

fn job(more: &Value) -> Value {
    let mut arguments =
        json!({"device": "disk", "job-id": "job", "sync": "full", "target": "slow"});
    let members = arguments.as_object_mut().unwrap();
    members.extend(more.as_object().unwrap().clone());
    arguments
}

/// The machine ends although nobody lets go of the target: status 0, a line that names what was left, the disk as its
/// guest had it, and free.
fn ends_without_it(mut vm: Vm, scene: &Scene, told: Told, kind: &str) {
    let before = scene.read("disk.img");
    match told {
        Told::Quit => drop(vm.execute("quit", &json!({}))),
        Told::By(signal, _) => vm.process.signal(signal).unwrap(),
    }
    let ended = vm.process.wait_end(LIMIT).unwrap();
    let said = vm.process.messages();
    assert_eq!(ended.code(), Some(status::SUCCESS), "{said}");
    let line = said.lines().last().unwrap();
    let left = format!("left behind: node 'slow' of {kind} {KEPT}");
    expect_words(line, &["sluice: ", &left]);
    if let Told::By(_, name) = told {
        expect_words(line, &[&format!("ended by {name}")]);
    }
    assert!(scene.read("disk.img") == before, "the disk has changed");
    let mut again = Vm::start(scene);
    again.check_disks();
    again.quit();
}

fn while_a_copy_hangs(kind: &str, mode: &Value, told: Told) {
    let scene = Scene::new();
    let mut vm = with_slow_target(&scene, "write_aio");
    vm.execute(&format!("blockdev-{kind}"), &job(mode));
    wait_held(&mut vm);
    let other = vm.other.clone();
    vm.check_disk(&other);
    ends_without_it(vm, &scene, told, kind);
}

fn while_the_pivots_flush_hangs(told: Told) {
    let scene = Scene::new();
    let mut vm = with_slow_target(&scene, "pivot_swapped");
    vm.execute("blockdev-mirror", &job(&json!({})));
    vm.wait_job("BLOCK_JOB_READY", "job");
    let flush = json!({"node-name": "slow", "tag": "flush", "event": "flush_to_disk"});
    vm.execute("x-debug-break", &flush);
    vm.execute("block-job-complete", &json!({"device": "job"}));
    wait_held_by(&mut vm, "flush");
    ends_without_it(vm, &scene, told, "mirror");
}

/// The job was cancelled long ago; the machine is stopped and goes on meanwhile, and ends at once.
fn after_the_job_has_gone(told: Told) {
    let scene = Scene::new();
    let mut vm = with_slow_target(&scene, "write_aio");
    vm.execute("blockdev-mirror", &job(&json!({})));
    wait_held(&mut vm);
    let cancel = json!({"device": "job", "force": true});
    vm.execute("block-job-cancel", &cancel);
    vm.wait_job("BLOCK_JOB_CANCELLED", "job");
    let words = ["'slow'", "mirror", KEPT];
    vm.refused_with("blockdev-del", &json!({"node-name": "slow"}), &words);
    vm.execute("stop", &json!({}));
    vm.execute("cont", &json!({}));
    vm.execute("system_reset", &json!({}));
    vm.check_disks();
    ends_without_it(vm, &scene, told, "mirror");
}

/// The machine has been told to stop, which waits for a write of the disk's that waits for the target.
fn while_a_stop_waits(told: Told) {
    let scene = Scene::new();
    let mut vm = with_slow_target(&scene, "pivot_swapped");
    let both = json!({"copy-mode": "write-blocking"});
    vm.execute("blockdev-mirror", &job(&both));
    vm.wait_job("BLOCK_JOB_READY", "job");
    let _writer = held_writer(&mut vm);
    // This is not answered before the end either.
    let _stopper = vm.ask("stop", &json!({}));
    while vm.execute("query-status", &json!({}))["running"] != false {
        thread::yield_now();
    }
    // The source gets the write at the same time, and does not hang.
    while scene.read("disk.img")[..WRITTEN.len()] != WRITTEN {
        thread::yield_now();
    }
    ends_without_it(vm, &scene, told, "mirror");
}

/// Each waits for ten seconds, all of them at once.
#[test]
fn the_end_does_not_wait_for_a_target_that_hangs() {
    let both = json!({"copy-mode": "write-blocking"});
    thread::scope(|scope| {
        scope.spawn(|| while_a_copy_hangs("mirror", &json!({}), QUIT));
        scope.spawn(|| while_a_copy_hangs("mirror", &both, TERM));
        scope.spawn(|| while_a_copy_hangs("backup", &json!({}), INT));
        scope.spawn(|| while_the_pivots_flush_hangs(TERM));
        scope.spawn(|| after_the_job_has_gone(INT));
        scope.spawn(|| while_a_stop_waits(QUIT));
        scope.spawn(|| while_a_stop_waits(TERM));
    });
}

/// A machine whose disk hangs in a read of a mirror's: it can't end in order.
fn with_slow_source(scene: &Scene) -> Vm {
    let mut vm = Vm::start(scene);
    let target =
        json!({"driver": "file", "node-name": "slow", "filename": scene.file("target.img", SIZE)});
    vm.execute("blockdev-add", &target);
    let source = json!({"driver": "file", "filename": scene.file("source.img", SIZE)});
    let source = json!({"driver": "blkdebug", "node-name": "source", "image": source});
    vm.execute("blockdev-add", &source);
    let hold = json!({"node-name": "source", "tag": "hold", "event": "block_status"});
    vm.execute("x-debug-break", &hold);
    vm.execute("blockdev-mirror", &job(&json!({"device": "source"})));
    let held = json!({"node-name": "source", "tag": "hold"});
    vm.execute("x-debug-wait-break", &held);
    vm
}

/// Waits until the machine has said something with these words, and returns that line.
fn wait_said(vm: &Vm, words: &str) -> String {
    loop {
        let said = vm.process.messages();
        if let Some(line) = said.lines().find(|line| line.contains(words)) {
            return line.to_owned();
        }
        thread::yield_now();
    }
}

/// A job that waits for its *source* keeps the machine, whose disk that is: the log says so, with what ends it all the same.
fn says_what_it_waits_for(told: &[Signal], quit: bool) {
    let scene = Scene::new();
    let mut vm = with_slow_source(&scene);
    // A cancel is not heard either, which the log says of the job alone.
    vm.execute("job-cancel", &json!({"id": "job"}));
    let line = wait_said(&vm, "mirror 'job' is to end");
    expect_words(
        &line,
        &["waits for the block status of node 'source', begun "],
    );
    for query in ["query-jobs", "query-block-jobs"] {
        let jobs = vm.execute(query, &json!({}));
        let waits = &jobs[0]["x-waits-for"];
        assert_eq!(waits["node-name"], "source", "{jobs}");
        assert_eq!(waits["operation"], "look", "{jobs}");
    }
    if quit {
        vm.execute("quit", &json!({}));
    }
    let (last, first) = told.split_last().unwrap();
    first
        .iter()
        .for_each(|signal| vm.process.signal(*signal).unwrap());
    let line = wait_said(&vm, "the machine's end takes long");
    expect_words(
        &line,
        &[
            "mirror 'job' for the block status of node 'source', begun ",
            "a second SIGTERM or SIGINT ends it at once",
            "('quit' counts for none)",
        ],
    );
    vm.process.signal(*last).unwrap();
    let ended = vm.process.wait_end(LIMIT).unwrap();
    assert_eq!(
        ended.code(),
        Some(status::SETUP),
        "{}",
        vm.process.messages()
    );
}

/// A disk that hangs by itself is named, too: here one that has become its mirror.
#[test]
fn the_end_says_for_which_disk_it_waits() {
    let scene = Scene::new();
    // There are no copies on read.
    let mut vm = with_slow_target(&scene, "cor_write");
    vm.execute("blockdev-mirror", &job(&json!({})));
    vm.wait_job("BLOCK_JOB_READY", "job");
    vm.execute("block-job-complete", &json!({"device": "job"}));
    vm.wait_job("BLOCK_JOB_COMPLETED", "job");
    let _writer = held_writer(&mut vm);
    vm.execute("quit", &json!({}));
    let line = wait_said(&vm, "the machine's end takes long");
    let words = ["disk 'disk (by hand)' (1 requests in flight)"];
    expect_words(&line, &words);
    for signal in [Signal::TERM, Signal::INT] {
        vm.process.signal(signal).unwrap();
    }
    let ended = vm.process.wait_end(LIMIT).unwrap();
    assert_eq!(ended.code(), Some(status::SETUP));
}

#[test]
fn the_end_says_for_which_job_it_waits() {
    thread::scope(|scope| {
        scope.spawn(|| says_what_it_waits_for(&[Signal::TERM, Signal::INT], false));
        scope.spawn(|| says_what_it_waits_for(&[Signal::INT, Signal::TERM], true));
    });
}
