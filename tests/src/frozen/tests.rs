use std::fs;
use std::os::unix::fs::FileExt as _;
use std::process::{Command, Stdio};

use rustix::fs::FlockOperation;

use super::*;

const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn a_file_is_one_until_its_calls_freeze() {
    let Some(system) = FrozenFs::mount() else {
        return;
    };
    let path = system.path("file");
    fs::write(&path, "what was written").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"what was written");
    assert_eq!(system.bytes("file").unwrap(), b"what was written");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    file.set_len(4).unwrap();
    file.sync_all().unwrap();
    assert_eq!(file.metadata().unwrap().len(), 4);
    system.freeze(&[Call::Write]);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| file.write_all_at(b"T", 3));
        system.wait_held(Call::Write, 1, LIMIT).unwrap();
        assert_eq!(system.bytes("file").unwrap(), b"what");
        assert!(!writer.is_finished());
        // Other calls go on.
        assert_eq!(file.metadata().unwrap().len(), 4);
        system.thaw();
        writer.join().unwrap().unwrap();
    });
    assert_eq!(system.bytes("file").unwrap(), b"whaT");
    drop(file);
    fs::remove_file(&path).unwrap();
    assert_eq!(system.bytes("file"), None);
}

#[test]
fn who_hangs_in_it_can_be_killed() {
    let Some(system) = FrozenFs::mount() else {
        return;
    };
    system.add("file", &[1; 4096]);
    system.freeze(&Call::ALL);
    let mut cat = Command::new("cat")
        .arg(system.path("file"))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    system.wait_held(Call::Find, 1, LIMIT).unwrap();
    cat.kill().unwrap();
    assert_eq!(cat.wait().unwrap().code(), None);
    assert_eq!(system.held(Call::Find), 0);
}

#[test]
fn its_end_fails_what_hangs() {
    let Some(system) = FrozenFs::mount() else {
        return;
    };
    system.add("file", &[1; 4096]);
    let file = File::open(system.path("file")).unwrap();
    system.freeze(&[Call::Look]);
    let look = std::thread::spawn(move || file.metadata().map(drop));
    system.wait_held(Call::Look, 1, LIMIT).unwrap();
    drop(system);
    look.join().unwrap().unwrap_err();
}

#[test]
fn its_locks_are_asked_of_it() {
    let Some(system) = FrozenFs::mount() else {
        return;
    };
    system.add("file", &[1; 4096]);
    let file = File::open(system.path("file")).unwrap();
    let lock = move || rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockShared);
    system.freeze(&[Call::Lock]);
    let locked = std::thread::spawn(lock);
    system.wait_held(Call::Lock, 1, LIMIT).unwrap();
    system.thaw();
    locked.join().unwrap().unwrap();
}
