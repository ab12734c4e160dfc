//! Mirrors of an IDE disk and of a virtio disk in an I/O thread that pivot together, under a guest that keeps related
//! records on both.

use serde_json::{Value, json};

use super::two_disks::{Disk, Guest, SECTOR};

/// The last record that the guest has on both disks when the group is completed.
const BEFORE: u64 = 5;
/// Where an operator's second breakpoint waits.
const LATER: &str = "later";
/// The same, of the flush before that.
const STRETCH: &str = "stretch";

fn record(number: u64) -> [u8; SECTOR] {
    let mut sector = [0; SECTOR];
    sector[..8].copy_from_slice(&number.to_le_bytes());
    sector
}

/// Where the target of one of the two hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// In the flush of what was caught up; no guest is held.
    CatchingUp,
    /// In the flush inside the drained section; the other disk is in its own.
    InSection,
    /// Before its root is swapped, as that of the other disk is already.
    Swapping,
}

/// What becomes of the group then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// The target goes on.
    GoesOn,
    /// The target fails, and its job with it.
    Fails,
    /// The operator cancels the job whose target hangs.
    Cancelled,
    /// The operator cancels the other job.
    OtherCancelled,
}

impl Disk {
    fn other(self) -> Self {
        match self {
            Self::Ide => Self::Virtio,
            Self::Virtio => Self::Ide,
        }
    }
}

/// A machine whose disks have been mirrored, with the target of one of them hanging at the end.
struct Group {
    guest: Guest,
    slow: Disk,
    fast: Disk,
    stage: Stage,
    tag: &'static str,
}

impl Group {
    fn reach(slow: Disk, stage: Stage) -> Self {
        let mut guest = Guest::start();
        for disk in Disk::BOTH {
            guest.add_target(disk, &json!({}));
            guest.begin_mirror(disk, &json!({})).unwrap();
            guest.wait_job(disk, "BLOCK_JOB_READY");
        }
        let mut group = Self {
            guest,
            slow,
            fast: slow.other(),
            stage,
            tag: "held",
        };
        for number in 1..=BEFORE {
            group.write(number);
        }
        group.hang();
        group
    }

    fn hang(&mut self) {
        let (guest, slow) = (&mut self.guest, self.slow);
        let event = match self.stage {
            Stage::CatchingUp | Stage::InSection => "flush_to_disk",
            Stage::Swapping => "pivot_agreed",
        };
        guest.hold(slow, event);
        let devices = json!({"devices": ["ide", "virtio"]});
        guest.execute("x-block-job-complete-group", &devices);
        guest.wait_held(slow);
        match self.stage {
            Stage::CatchingUp => {}
            Stage::InSection => {
                self.tag = LATER;
                let held = |tag: &str| json!({"node-name": slow.copy(), "tag": tag});
                let flush =
                    |tag: &str| json!({"node-name": slow.copy(), "tag": tag, "event": event});
                // The last flush while its guest runs, and the one inside.
                guest.execute("x-debug-break", &flush(STRETCH));
                guest.let_go(slow);
                guest.execute("x-debug-wait-break", &held(STRETCH));
                guest.execute("x-debug-break", &flush(LATER));
                guest.execute("x-debug-resume", &held(STRETCH));
                guest.execute("x-debug-wait-break", &held(LATER));
                self.wait_drained(self.slow);
                self.wait_drained(self.fast);
            }
            Stage::Swapping => while !guest.roots().contains(&self.fast.copy()) {},
        }
    }

    /// Waits until the disk is in the section of its pivot.
    fn wait_drained(&mut self, disk: Disk) {
        while !self.is_drained(disk) {}
    }

    fn is_drained(&mut self, disk: Disk) -> bool {
        let holder = json!(format!("pivot of job '{}'", disk.name()));
        let drains = self.guest.execute("x-query-block-drains", &json!({}));
        let drains = drains.as_array().unwrap().iter();
        let mut holders = drains.flat_map(|drain| drain["holders"].as_array().unwrap());
        holders.any(|holds| holds["name"] == holder)
    }

    /// The guest keeps a record, first on the disk that is done sooner.
    fn write(&mut self, number: u64) {
        for disk in [self.fast, self.slow] {
            self.guest.write(disk, 0, &record(number));
        }
    }

    /// The guest does not get on with its next record as long as the section lasts.
    fn assert_held(&mut self) {
        for _ in 0..50 {
            self.guest.execute("query-status", &json!({}));
            let (fast, stage) = (self.fast, self.stage);
            assert!(!self.guest.has_ended(fast), "{fast:?} goes on: {stage:?}");
        }
    }

    /// The job that has done all that it can rests, and the guest's disk is not held.
    fn assert_waits(&mut self) {
        let fast = self.fast;
        let rests = |jobs: &Value| {
            let mut jobs = jobs.as_array().unwrap().iter();
            jobs.any(|job| {
                job["device"] == fast.name() && job["status"] == "pending" && job["busy"] == false
            })
        };
        while !rests(&self.guest.execute("query-block-jobs", &json!({}))) {}
        for _ in 0..50 {
            assert!(!self.is_drained(fast), "{fast:?} is held");
        }
    }

    fn let_go(&mut self, fails: bool) {
        let mut at = json!({"node-name": self.slow.copy(), "tag": self.tag});
        if fails {
            at["errno"] = json!(libc::EIO);
        }
        self.guest.execute("x-debug-resume", &at);
    }

    fn cancel(&mut self, disk: Disk) {
        let job = json!({"device": disk.name(), "force": true});
        let answer = self.guest.machine.qmp.execute("block-job-cancel", &job);
        if self.stage == Stage::Swapping {
            let text = answer.unwrap_err().to_string();
            assert!(text.contains("cannot accept command verb"), "{text}");
        } else {
            answer.unwrap();
        }
    }

    /// Both disks are on their new images, and what the old ones have was there at one instant.
    fn assert_all_switched(mut self, last: u64) {
        for disk in Disk::BOTH {
            self.guest.wait_completed(disk);
        }
        let [first, second] = [self.fast, self.slow].map(|disk| self.guest.record(disk.name()));
        assert!(first >= second, "record {second} is there, not {first} + 1");
        for disk in Disk::BOTH {
            assert_eq!(self.guest.record(&disk.copy()), last);
        }
        self.write(last + 1);
        for disk in Disk::BOTH {
            self.guest.flush(disk);
            assert_eq!(self.guest.record(&disk.copy()), last + 1);
            assert_eq!(self.guest.record(disk.name()), second);
        }
        self.guest.end();
    }

    /// Both are where they were, and have all that the guest has written.
    fn assert_none_switched(mut self, last: u64) {
        for disk in Disk::BOTH {
            self.wait_gone(disk);
        }
        let roots = self.guest.roots();
        for disk in Disk::BOTH {
            assert!(!roots.contains(&disk.copy()), "{roots:?}");
            assert_eq!(self.guest.record(disk.name()), last);
        }
        self.write(last + 1);
        for disk in Disk::BOTH {
            self.guest.flush(disk);
            assert_eq!(self.guest.record(disk.name()), last + 1);
            assert_ne!(self.guest.record(&disk.copy()), last + 1);
        }
        self.guest.end();
    }

    fn wait_gone(&mut self, disk: Disk) {
        let is_there = |jobs: &Value| {
            let mut jobs = jobs.as_array().unwrap().iter();
            jobs.any(|job| job["id"] == disk.name())
        };
        while is_there(&self.guest.execute("query-jobs", &json!({}))) {}
    }
}

/// A guest writes a record to one disk, and when that has ended to the other.
fn play(slow: Disk, stage: Stage, fate: Fate) {
    let mut group = Group::reach(slow, stage);
    let last = BEFORE + 1;
    let (fast, is_held) = (group.fast, stage != Stage::CatchingUp);
    if is_held {
        group.guest.begin_write(fast, 0, &record(last));
        group.assert_held();
    } else {
        group.assert_waits();
        group.write(last);
    }
    match fate {
        Fate::GoesOn => group.let_go(false),
        Fate::Fails => group.let_go(true),
        Fate::Cancelled => group.cancel(slow),
        Fate::OtherCancelled => group.cancel(fast),
    }
    let is_cancelled = [Fate::Cancelled, Fate::OtherCancelled].contains(&fate);
    let comes_too_late = is_cancelled && stage == Stage::Swapping;
    if comes_too_late {
        group.let_go(false);
    }
    // The guest goes on, although the target of a job that was cancelled hangs yet.
    if is_held {
        group.guest.wait(fast);
        group.guest.write(slow, 0, &record(last));
    }
    if is_cancelled && !comes_too_late {
        group.let_go(false);
    }
    if fate == Fate::GoesOn || comes_too_late {
        group.assert_all_switched(last);
    } else {
        group.assert_none_switched(last);
    }
}

fn play_all(stage: Stage) {
    for slow in Disk::BOTH {
        for fate in [
            Fate::GoesOn,
            Fate::Fails,
            Fate::Cancelled,
            Fate::OtherCancelled,
        ] {
            play(slow, stage, fate);
        }
    }
}

/// As long as one of them catches up no guest is held.
#[test]
fn a_group_that_catches_up_switches_as_a_whole_or_not_at_all() {
    play_all(Stage::CatchingUp);
}

/// The old images never show a record on the second disk that the first has not.
#[test]
fn a_group_in_its_section_switches_as_a_whole_or_not_at_all() {
    play_all(Stage::InSection);
}

#[test]
fn a_group_of_which_one_has_switched_does_so_as_a_whole_or_not_at_all() {
    play_all(Stage::Swapping);
}
