//! Targets on a file system that does not answer (NFS and FUSE whose server is gone): whatever a job or a command does
//! with them, the guest's disks on other file systems work and monitors answer; and when it answers again all ends well.

use std::os::unix::fs::FileExt as _;
use std::thread;

use serde_json::{Value, json};
use sluice_tests::frozen::{Call, FrozenFs};
use sluice_tests::qmp::QmpError;

use super::two_disks::{Disk, FILLER, Guest, LIMIT, SECTOR, SECTORS};

/// The file that everything is about, and its node.
const TARGET: &str = "target";

/// What asks for nothing but an answer.
const QUERIES: [&str; 6] = [
    "query-status",
    "query-block",
    "query-named-block-nodes",
    "query-blockstats",
    "query-jobs",
    "query-block-jobs",
];

/// A machine and the file system.
struct Scene {
    guest: Guest,
    files: FrozenFs,
    /// How often the guest has written.
    round: u8,
}

impl Scene {
    /// None, with the reason printed, if there can be no such file system.
    fn start() -> Option<Self> {
        // First, since the machine is to see it.
        let files = FrozenFs::mount()?;
        Some(Self {
            guest: Guest::start(),
            files,
            round: 0,
        })
    }

    /// Makes the target's file, full of something else.
    fn make_file(&self) {
        let size = SECTOR * usize::try_from(SECTORS).unwrap();
        self.files.add(TARGET, &vec![FILLER; size]);
    }

    fn node(&self) -> Value {
        let path = self.files.text(TARGET);
        json!({"driver": "file", "node-name": TARGET, "filename": path})
    }

    fn add_node(&mut self) {
        self.make_file();
        let node = self.node();
        self.guest.execute("blockdev-add", &node);
    }

    /// Begins a job of the disk's that has the target's node.
    fn begin(&mut self, job: &str, disk: Disk) {
        self.try_begin(job, disk).unwrap();
    }

    fn try_begin(&mut self, job: &str, disk: Disk) -> Result<Value, QmpError> {
        let arguments =
            json!({"device": disk.name(), "target": TARGET, "job-id": disk.name(), "sync": "full"});
        self.guest.machine.qmp.execute(job, &arguments)
    }

    /// A mirror that is ready.
    fn mirror(&mut self, disk: Disk) {
        self.add_node();
        self.begin("blockdev-mirror", disk);
        self.guest.wait_job(disk, "BLOCK_JOB_READY");
    }

    fn complete(&mut self, disk: Disk) {
        let job = json!({"device": disk.name()});
        self.guest.execute("block-job-complete", &job);
    }

    fn cancel(&mut self, disk: Disk) {
        let job = json!({"device": disk.name(), "force": true});
        self.guest.execute("block-job-cancel", &job);
    }

    /// Nothing answers any more.
    fn freeze(&self) {
        self.files.freeze(&Call::ALL);
    }

    /// The job of the disk's hangs in its first call of this kind, and everything else in the file system, too.
    fn begin_and_hang(&mut self, job: &str, disk: Disk, call: Call) {
        self.add_node();
        self.files.freeze(&[call]);
        self.begin(job, disk);
        self.wait_held(call);
        self.freeze();
    }

    fn wait_held(&self, call: Call) {
        self.files.wait_held(call, 1, LIMIT).unwrap();
    }

    /// Writes to a disk, which must end, and be in its image.
    fn write(&mut self, disk: Disk) {
        self.round += 1;
        let data = [self.round; SECTOR];
        self.guest.write(disk, self.round.into(), &data);
        let mut stored = [0; SECTOR];
        let image = std::fs::File::open(self.guest.image(disk.name())).unwrap();
        let at = u64::from(self.round) * SECTOR as u64;
        image.read_exact_at(&mut stored, at).unwrap();
        assert!(stored == data, "{disk:?}: not in its image");
    }

    /// These disks work, and monitors answer.
    fn assert_lives(&mut self, disks: &[Disk]) {
        for disk in disks {
            self.write(*disk);
        }
        for query in QUERIES {
            self.guest.execute(query, &json!({}));
        }
        let mut other = self.guest.second_monitor();
        other.execute("query-block", &json!({})).unwrap();
        for disk in disks {
            self.write(*disk);
        }
    }

    /// The job has ended well: the target is the disk's, and holds what the disk held.
    fn assert_pivoted(&mut self, disk: Disk) {
        self.guest.wait_completed(disk);
        let same = self.files.bytes(TARGET).unwrap() == self.guest.bytes(disk.name());
        assert!(same, "{disk:?}: the images differ");
    }

    /// Deletes the target's node, once nothing of it is under way.
    fn delete(&mut self) {
        let node = json!({"node-name": TARGET});
        loop {
            match self.guest.machine.qmp.execute("blockdev-del", &node) {
                Ok(_) => return,
                // What was left behind returns by itself.
                Err(QmpError::Refused { desc, .. }) if desc.contains("have not returned") => {}
                Err(error) => panic!("{error}"),
            }
            thread::yield_now();
        }
    }

    /// The machine is to end although nothing of the file system answers.
    fn begin_quit(&mut self) {
        self.freeze();
        self.guest.execute("quit", &json!({}));
    }

    /// The same after it has thawed.
    fn quit(self) {
        self.files.thaw();
        self.guest.end();
    }

    /// All answers again: the mirror ends well, and the machine.
    fn thaw_and_pivot(mut self, disk: Disk) {
        self.files.thaw();
        self.complete(disk);
        self.assert_pivoted(disk);
        self.quit();
    }
}

/// Where a job that copies may hang: it looks for holes of the target, and writes to it.
const COPYING: [Call; 2] = [Call::Seek, Call::Write];

/// Plays a story for each disk and each of these calls: all at once, each with a machine and a file system of its own.
fn for_both(calls: &[Call], story: impl Fn(Scene, Disk, Call) + Sync) {
    let story = &story;
    thread::scope(|scope| {
        for (disk, call) in Disk::BOTH
            .iter()
            .flat_map(|disk| calls.iter().map(|call| (*disk, *call)))
        {
            // A file system belongs to its thread.
            scope.spawn(move || {
                if let Some(scene) = Scene::start() {
                    story(scene, disk, call);
                }
            });
        }
    });
}

/// Opens the target by a command, and hangs in each of these calls.
fn while_a_target_is_opened(calls: &[Call], is_there: bool) {
    for_both(calls, |mut scene, disk, call| {
        if is_there {
            scene.make_file();
        }
        scene.files.freeze(&[call]);
        let path = scene.files.text(TARGET);
        let mirror = json!({
            "device": disk.name(), "job-id": disk.name(), "target": path, "format": "raw", "node-name": TARGET,
            "sync": "full"
        });
        let mut monitor = scene.guest.second_monitor();
        let answer = thread::spawn(move || monitor.execute("drive-mirror", &mirror));
        scene.wait_held(call);
        scene.assert_lives(&Disk::BOTH);
        assert!(!answer.is_finished(), "{call:?}");
        scene.files.thaw();
        answer.join().unwrap().unwrap();
        scene.guest.wait_job(disk, "BLOCK_JOB_READY");
        scene.complete(disk);
        scene.assert_pivoted(disk);
        scene.quit();
    });
}

#[test]
fn while_a_target_that_is_there_is_opened() {
    let calls = [Call::Find, Call::Look, Call::LookAtSystem, Call::Open];
    while_a_target_is_opened(&calls, true);
}

#[test]
fn while_a_target_is_made() {
    while_a_target_is_opened(
        &[Call::Create, Call::Lock, Call::AskLock, Call::Resize],
        false,
    );
}

#[test]
fn while_a_mirror_copies() {
    for_both(&COPYING, |mut scene, disk, call| {
        scene.begin_and_hang("blockdev-mirror", disk, call);
        scene.assert_lives(&Disk::BOTH);
        scene.files.thaw();
        scene.guest.wait_job(disk, "BLOCK_JOB_READY");
        scene.complete(disk);
        scene.assert_pivoted(disk);
        scene.quit();
    });
}

#[test]
fn while_a_ready_mirror_rests() {
    for_both(&[Call::Write], |mut scene, disk, call| {
        scene.mirror(disk);
        scene.freeze();
        scene.assert_lives(&Disk::BOTH);
        scene.wait_held(call);
        scene.thaw_and_pivot(disk);
    });
}

#[test]
fn while_a_mirror_pivots() {
    for_both(&[Call::Write, Call::Sync], |mut scene, disk, call| {
        scene.mirror(disk);
        scene.files.freeze(&[call]);
        scene.write(disk);
        scene.complete(disk);
        scene.wait_held(call);
        scene.assert_lives(&Disk::BOTH);
        scene.files.thaw();
        scene.assert_pivoted(disk);
        scene.quit();
    });
}

#[test]
fn while_a_mirror_is_cancelled() {
    for_both(&COPYING, |mut scene, disk, call| {
        scene.begin_and_hang("blockdev-mirror", disk, call);
        scene.cancel(disk);
        scene.guest.wait_job(disk, "BLOCK_JOB_CANCELLED");
        scene.assert_lives(&Disk::BOTH);
        scene.files.thaw();
        scene.delete();
        scene.assert_lives(&Disk::BOTH);
        scene.quit();
    });
}

/// A command is refused then, for it takes its locks before anything else.
#[test]
fn while_a_lock_is_asked_for() {
    for_both(&[Call::Lock, Call::AskLock], |mut scene, disk, call| {
        scene.add_node();
        scene.files.freeze(&[call]);
        let refused = scene.try_begin("blockdev-mirror", disk).unwrap_err();
        assert!(refused.to_string().contains("doesn't answer"), "{refused}");
        scene.wait_held(call);
        scene.assert_lives(&Disk::BOTH);
        scene.files.thaw();
        // Who was late gives back first what it has got.
        while let Err(error) = scene.try_begin("blockdev-mirror", disk) {
            assert!(error.to_string().contains("doesn't answer"), "{error}");
            thread::yield_now();
        }
        scene.guest.wait_job(disk, "BLOCK_JOB_READY");
        scene.complete(disk);
        scene.assert_pivoted(disk);
        scene.quit();
    });
}

/// A guest that writes to the disk that is backed up waits for the target; others do not.
#[test]
fn while_a_backup_copies() {
    for_both(&COPYING, |mut scene, disk, call| {
        let before = scene.guest.bytes(disk.name());
        scene.begin_and_hang("blockdev-backup", disk, call);
        let others = Disk::BOTH.into_iter().filter(|other| *other != disk);
        scene.assert_lives(&others.collect::<Vec<_>>());
        scene.files.thaw();
        scene.guest.wait_completed(disk);
        assert!(scene.files.bytes(TARGET).unwrap() == before);
        scene.quit();
    });
}

#[test]
fn while_a_node_is_deleted() {
    let Some(mut scene) = Scene::start() else {
        return;
    };
    scene.add_node();
    scene.freeze();
    scene.delete();
    scene.wait_held(Call::Close);
    scene.assert_lives(&Disk::BOTH);
    scene.files.thaw();
    // Its name is free, and soon its file.
    scene.guest.execute("blockdev-add", &scene.node());
    scene.begin("blockdev-mirror", Disk::Ide);
    scene.guest.wait_job(Disk::Ide, "BLOCK_JOB_READY");
    scene.quit();
}

#[test]
fn while_monitors_ask() {
    for_both(&[Call::Look], |mut scene, disk, call| {
        scene.mirror(disk);
        scene.files.freeze(&[call]);
        scene.assert_lives(&Disk::BOTH);
        scene.wait_held(call);
        scene.thaw_and_pivot(disk);
    });
}

/// It has nothing to do, so it ends at once; the flush of its target is what hangs then.
#[test]
fn the_end_does_not_wait_for_the_target_of_a_ready_mirror() {
    for_both(&[Call::Sync], |mut scene, disk, call| {
        scene.mirror(disk);
        scene.begin_quit();
        scene.wait_held(call);
        scene.guest.end();
    });
}

#[test]
fn the_end_does_not_wait_for_a_mirror_that_copies() {
    for_both(&COPYING, |mut scene, disk, call| {
        scene.begin_and_hang("blockdev-mirror", disk, call);
        scene.begin_quit();
        scene.guest.end();
    });
}

#[test]
fn the_end_does_not_wait_for_a_mirror_that_pivots() {
    for_both(&[Call::Sync], |mut scene, disk, call| {
        scene.mirror(disk);
        scene.files.freeze(&[call]);
        scene.complete(disk);
        scene.wait_held(call);
        scene.begin_quit();
        scene.guest.end();
    });
}

/// The flush of a node that no disk stands on is waited for, but not for ever.
#[test]
fn while_the_machine_stops() {
    for_both(&[Call::Sync], |mut scene, disk, call| {
        scene.mirror(disk);
        scene.files.freeze(&[call]);
        scene.guest.execute("stop", &json!({}));
        scene.wait_held(call);
        scene.guest.execute("cont", &json!({}));
        scene.assert_lives(&Disk::BOTH);
        scene.thaw_and_pivot(disk);
    });
}

#[test]
fn the_end_does_not_wait_for_a_target_that_is_opened() {
    for_both(&[Call::Find, Call::Open], |mut scene, _, call| {
        scene.make_file();
        scene.files.freeze(&[call]);
        let node = scene.node();
        let mut monitor = scene.guest.second_monitor();
        // This is not answered.
        let asked = thread::spawn(move || drop(monitor.execute("blockdev-add", &node)));
        scene.wait_held(call);
        scene.begin_quit();
        scene.guest.end();
        asked.join().unwrap();
    });
}
