//! Mirrors onto, and of a disk on, a file system that runs full under a guest's writes: a small tmpfs in a mount namespace of the machine's
//! own, which goes with it. The test reaches it through `/proc/PID/root`.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::process::Command;

use serde_json::json;
use sluice_tests::qmp::Event;
use tempfile::TempDir;

use super::process::SLUICE;
use super::two_disks::{Disk, Guest, LIMIT};
use super::writer::{CLUSTER, Writer};

/// Room for the targets of both disks, and some.
const ROOM: &str = "size=12M";
/// Where the first copy runs out of it: a part of the data fits.
const LEFT: u64 = 256 << 10;
/// The first sector of the hole in an image.
const HOLE: u64 = 2048;
const PAGE: usize = 4096;

/// A machine that sees a small file system.
struct Small {
    writer: Writer,
    directory: TempDir,
}

/// A program that becomes the machine, with a small file system at `small` beside it, on which are images for both disks
/// with the usual content. None, with the reason printed,
/// where that can't be had.
fn program_with_small_disk(directory: &TempDir) -> Option<PathBuf> {
    let small = directory.path().join("small");
    fs::create_dir(&small).unwrap();
    let user = if rustix::process::geteuid().is_root() {
        ""
    } else {
        "--map-root-user"
    };
    let inner = directory.path().join("inner");
    let small = small.display();
    let steps = format!(
        "mount -t tmpfs -o {ROOM} none '{small}' || exit 1\n\
         for disk in ide virtio; do\n\
         head -c 1048576 /dev/zero | tr '\\0' '\\021' >'{small}'/$disk || exit 1\n\
         truncate -s 4194304 '{small}'/$disk || exit 1\n\
         done\n\
         exec \"${{SMALL_PROBE:-{SLUICE}}}\" \"$@\"\n"
    );
    fs::write(&inner, steps).unwrap();
    let program = directory.path().join("program");
    // Another process writes it: none that is started meanwhile has it open for writing then.
    let text = format!(
        "#!/bin/sh\nexec unshare --mount {user} sh '{}' \"$@\"\n",
        inner.display()
    );
    let made = Command::new("sh")
        .args(["-c", "printf %s \"$1\" >\"$0\" && chmod +x \"$0\""])
        .args([program.as_os_str(), text.as_ref()])
        .status();
    assert!(made.unwrap().success());
    let probe = Command::new(&program).env("SMALL_PROBE", "true").output();
    match probe {
        Ok(output) if output.status.success() => Some(program),
        other => {
            println!("SKIPPED: no mount namespace can be made here: {other:?}");
            None
        }
    }
}

impl Small {
    fn start() -> Option<Self> {
        Self::start_by(|program, _| Writer::new(Guest::start_by(program, &[], Disk::name)))
    }

    /// The same with a machine that `start` makes of the program and the directory in which `small` is.
    fn start_by(start: impl FnOnce(&str, &TempDir) -> Writer) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let program = program_with_small_disk(&directory)?;
        let writer = start(program.to_str().unwrap(), &directory);
        Some(Self { writer, directory })
    }

    /// Where the machine sees a file of the small file system.
    fn inside(&self, name: &str) -> String {
        let path = self.directory.path().join("small").join(name);
        path.to_str().unwrap().to_owned()
    }

    /// Where the test sees it.
    fn outside(&self, name: &str) -> String {
        let pid = self.writer.guest.machine.pid();
        format!("/proc/{pid}/root{}", self.inside(name))
    }

    /// Takes all room but this many bytes.
    fn fill(&self, left: u64) {
        let mut ballast = File::create(self.outside("ballast")).unwrap();
        let full = loop {
            if let Err(error) = ballast.write_all(&[0x77; PAGE]) {
                break error;
            }
        };
        assert_eq!(full.kind(), ErrorKind::StorageFull);
        let taken = ballast.metadata().unwrap().len();
        ballast.set_len(taken - left).unwrap();
    }

    /// The guest writes where its disk has no room: the machine stops with the write undone.
    fn stops_for_its_disk(&mut self, disk: Disk, sector: u64) {
        self.fill(0);
        self.writer.begin(disk, sector);
        let qmp = &self.writer.guest.machine.qmp;
        let of_disk = |event: &Event| event.event == "BLOCK_IO_ERROR";
        let failed = qmp.wait_event("BLOCK_IO_ERROR", LIMIT, of_disk).unwrap();
        assert_eq!(failed.text("action"), "stop");
        assert_eq!(failed.data["nospace"], true, "{failed:?}");
        let stopped = |event: &Event| event.event == "STOP";
        qmp.wait_event("STOP", LIMIT, stopped).unwrap();
        let status = self.writer.guest.execute("query-status", &json!({}));
        assert_eq!(status["status"], "io-error");
        assert!(!self.writer.guest.has_ended(disk));
        let job = self.writer.told(disk);
        assert_eq!(job["io-status"], "ok", "it has met no error: {job}");
    }

    /// There is room, and the machine goes on: the write is done now.
    fn gets_room(&mut self, disk: Disk) {
        fs::remove_file(self.outside("ballast")).unwrap();
        // Two such errors within a second would be told of as one.
        let qtest = &mut self.writer.guest.machine.qtest;
        qtest.clock_step(1_000_000_000).unwrap();
        self.writer.guest.execute("cont", &json!({}));
        self.writer.guest.wait(disk);
        self.writer.write_some(disk);
        self.writer.guest.flush(disk);
    }

    /// The job stops for want of room, the guest does not notice, and when there is room the job is told to go on.
    fn stops_and_goes_on(&mut self, disk: Disk) {
        let failed = self.writer.guest.wait_job(disk, "BLOCK_JOB_ERROR");
        assert_eq!(failed.text("operation"), "write");
        assert_eq!(failed.text("action"), "stop");
        for _ in 0..2 {
            self.writer.write_some(disk);
            let job = self.writer.told(disk);
            let rests = (&job["paused"], &job["io-status"]);
            assert_eq!(rests, (&json!(true), &json!("nospace")), "{job}");
        }
        self.writer.guest.flush(disk);
        fs::remove_file(self.outside("ballast")).unwrap();
        let job = json!({"device": disk.name()});
        self.writer.guest.execute("block-job-resume", &job);
    }
}

/// In the first copy, and again when the mirror is ready.
#[test]
fn a_mirror_onto_a_full_file_system_goes_on_when_there_is_room() {
    for mode in ["background", "write-blocking"] {
        let Some(mut small) = Small::start() else {
            return;
        };
        for disk in Disk::BOTH {
            small.fill(LEFT);
            let arguments = json!({
                "device": disk.name(), "target": small.inside(&disk.copy()), "format": "raw", "sync": "full",
                "job-id": disk.name(), "node-name": disk.copy(), "copy-mode": mode, "on-target-error": "enospc"
            });
            (small.writer).ask_during_writes(&[disk], "drive-mirror", &arguments);
            small.stops_and_goes_on(disk);
            small.writer.guest.wait_job(disk, "BLOCK_JOB_READY");
            small.fill(0);
            small.writer.write_some(disk);
            small.stops_and_goes_on(disk);
            small.writer.write_some(disk);

            let target = small.outside(&disk.copy());
            let job = json!({"device": disk.name()});
            small.writer.guest.execute("block-job-complete", &job);
            small.writer.guest.wait_completed(disk);
            assert!(small.writer.guest.roots().contains(&disk.copy()));
            let source = small.writer.guest.bytes(disk.name());
            assert!(
                source == small.writer.guest.bytes(&target),
                "{mode}: {disk:?} differs"
            );
            small.writer.assert_disk(disk, &target);
        }
        small.writer.guest.end();
    }
}

/// The node of a disk that is on the small file system.
fn root(disk: Disk) -> &'static str {
    match disk {
        Disk::Ide => "ide-small",
        Disk::Virtio => "virtio-small",
    }
}

/// The disk itself runs full: the machine stops with its mirror going on, and when there is room and the machine goes on the
/// write is done.
#[test]
fn a_disk_that_is_full_is_mirrored_and_goes_on_when_there_is_room() {
    const STOPS: [(&str, &str); 2] = [
        ("-global", "ide-hd.werror=stop"),
        ("-global", "virtio-blk-pci.werror=stop"),
    ];
    for mode in ["background", "write-blocking"] {
        let node = |directory: &TempDir, disk| {
            let image = directory.path().join("small").join(Disk::name(disk));
            let node = root(disk);
            format!(
                "file,node-name={node},discard=unmap,filename={}",
                image.display()
            )
        };
        let start = |program: &str, directory: &TempDir| {
            let nodes = Disk::BOTH.map(|disk| node(directory, disk));
            let nodes = nodes.each_ref().map(|node| ("-blockdev", node.as_str()));
            let more: Vec<_> = STOPS.into_iter().chain(nodes).collect();
            Writer::on(Guest::start_by(program, &more, root), root)
        };
        let Some(mut small) = Small::start_by(start) else {
            return;
        };
        for disk in Disk::BOTH {
            small.writer.guest.add_target(disk, &json!({}));
            small.writer.guest.hold(disk, "write_aio");
            let more = json!({"device": root(disk), "copy-mode": mode});
            small.writer.guest.begin_mirror(disk, &more).unwrap();
            small.writer.guest.wait_held(disk);
            small.stops_for_its_disk(disk, HOLE);
            small.writer.guest.let_go(disk);
            // The machine stands still yet.
            small.writer.guest.wait_job(disk, "BLOCK_JOB_READY");
            small.gets_room(disk);
            // Once more when it is ready.
            small.stops_for_its_disk(disk, HOLE + 8 * CLUSTER);
            small.gets_room(disk);

            let job = json!({"device": disk.name()});
            small.writer.guest.execute("block-job-complete", &job);
            small.writer.guest.wait_completed(disk);
            assert!(small.writer.guest.roots().contains(&disk.copy()));
            let source = small.outside(disk.name());
            let source = small.writer.guest.bytes(&source);
            assert!(
                source == small.writer.guest.bytes(&disk.copy()),
                "{mode}: {disk:?} differs"
            );
            small.writer.assert_disk(disk, &disk.copy());
        }
        small.writer.guest.end();
    }
}
