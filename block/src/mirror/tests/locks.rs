//! The images' locks, as another program of the family sees them: who writes, holds them, at every
//! moment of a mirror's life.

use std::path::Path;
use std::process::{Command, Stdio};

use super::bench::{Bench, run_both};
use crate::driver::DebugEvent;
use crate::driver::Driver as _;
use crate::driver::file::{FileDriver, FileOptions};
use crate::job::JobState;
use crate::permission::Access;

/// Whether another writer is refused.
///
/// Asks by the same system calls through an open file of its own, which counts as somebody else,
/// and `qemu-io` too where it is installed.
fn is_locked(path: &Path) -> bool {
    let other = FileDriver::open(FileOptions::new(path)).unwrap();
    let refused = other.prepare_access(Access::of_device(false)).is_err();
    drop(other);
    let qemu_io = Command::new("qemu-io")
        .args(["-f", "raw", "-c", "read 0 512"])
        .arg(path)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    match qemu_io {
        Ok(status) => assert_eq!(status.success(), !refused, "{}", path.display()),
        Err(error) => println!("SKIPPED in part: qemu-io is not asked: {error}"),
    }
    refused
}

fn locked(bench: &Bench) -> (bool, bool) {
    (
        is_locked(&bench.path("disk")),
        is_locked(&bench.path("target")),
    )
}

#[test]
fn the_lock_moves_with_the_disk() {
    run_both(|bench| async move {
        let disk = bench.disk("disk").await;
        let target = bench.target("target").await;
        assert_eq!(locked(&bench), (true, false));
        bench.mirror("disk", "target").await;
        assert_eq!(locked(&bench), (true, true));
        bench.wait_for(JobState::Ready).await;
        let debug = target.as_blkdebug().unwrap();
        debug.set_break(DebugEvent::PivotClean, "before").unwrap();
        debug.set_break(DebugEvent::PivotSwapped, "after").unwrap();
        bench.job().complete().unwrap();
        debug.wait_break("before").await.unwrap();
        assert_eq!(locked(&bench), (true, true));
        debug.resume("before").unwrap();
        debug.wait_break("after").await.unwrap();
        assert_eq!(locked(&bench), (false, true));
        debug.resume("after").unwrap();
        assert_eq!(bench.end().await, None);
        assert_eq!(locked(&bench), (false, true));
        bench.graph.remove_backend(&disk).await;
        assert_eq!(locked(&bench), (false, false));
    });
}

#[test]
fn the_targets_lock_is_given_back_after_a_cancel() {
    run_both(|bench| async move {
        bench.disk("disk").await;
        bench.target("target").await;
        bench.mirror("disk", "target").await;
        bench.wait_for(JobState::Ready).await;
        bench.job().cancel(true).unwrap();
        bench.end().await;
        assert_eq!(locked(&bench), (true, false));
    });
}

#[test]
fn the_lock_survives_another_opening_of_the_image() {
    run_both(|bench| async move {
        bench.disk("disk").await;
        bench.empty_image("target", 512);
        // POSIX locks would be lost when any descriptor of the file is closed.
        drop(std::fs::File::open(bench.path("disk")).unwrap());
        assert_eq!(locked(&bench), (true, false));
    });
}
