//! Mirrors and pivots, as the demo does them over the control socket.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::{
    PATIENCE,
    disks::DiskKind,
    session::{A_MOMENT, A_WHILE, Session},
};
use crate::check::{
    history::{DiskHistory, History},
    image::{Comparison, Digest, Image},
};

/// Right after the root has been swapped, the section still held.
const SWAPPED: &str = "pivot_swapped";

/// Between the last flush of the target with a clean bitmap and the swap of the root.
const CLEAN: &str = "pivot_clean";

/// The tag of the only breakpoint there is at a time.
const TAG: &str = "pivot";

/// What the guest can do while the section is held before the swap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// Nothing: its requests are postponed.
    Closed,
    /// Write, because postponing is switched off.
    Open,
}

/// How source and target were seen at a pivot.
#[derive(Clone, Debug)]
pub enum Evidence {
    /// Nobody looked; this is the source's hash soon afterwards.
    Undisturbed {
        /// Hash of the source.
        source: Digest,
    },
    /// Compared while the section was held after the swap.
    Compared(Comparison),
    /// Held before the swap.
    Window {
        /// Hash of the source soon after the pivot.
        source: Digest,
        /// What acknowledgements there should be.
        window: Window,
    },
}

/// What the guest's log said while a section was held.
#[derive(Clone, Debug)]
pub struct Held {
    /// How long the runner held it.
    pub duration: Duration,
    /// The disk's log when the hold began, and was known to have begun.
    pub begin: DiskHistory,
    /// The disk's log at the end of the hold.
    pub end: DiskHistory,
    /// Writes acknowledged meanwhile by the other disk.
    pub other_acknowledged: u64,
}

/// One mirror and its pivot, done.
#[derive(Clone, Debug)]
pub struct Pivot {
    /// Which disk.
    pub disk: DiskKind,
    /// The command that started it.
    pub command: &'static str,
    /// How many pivots the disk had had before.
    pub generation: usize,
    /// From the command to BLOCK_JOB_READY.
    pub ready_after: Duration,
    /// How long the disk was held for the pivot, as measured by the job.
    pub pause: Option<Duration>,
    /// How many requests were postponed meanwhile, as counted by the job.
    pub postponed: Option<u64>,
    /// The longest that one of them waited.
    pub longest_wait: Option<Duration>,
    /// The log of all disks as read before the pivot was asked for (or in the hold, if held after
    /// the swap): what it shows as acknowledged must be on the source.
    pub before: History,
    /// How the pivot was observed.
    pub evidence: Evidence,
    /// The hold, if there was one.
    pub held: Option<Held>,
}

/// A mirror that is under way.
struct Mirror {
    disk: DiskKind,
    command: &'static str,
    job: String,
    generation: usize,
    started: Instant,
    ready_after: Duration,
    /// The node to set breakpoints on, if the target has one.
    debug_node: Option<String>,
}

impl Session {
    /// Mirrors both disks at once and pivots each as fast as it goes.
    pub fn undisturbed_pivots(&mut self) -> Result<Vec<Pivot>> {
        let mut mirrors = [
            self.drive_mirror(DiskKind::Ide)?,
            self.mirror(DiskKind::Virtio, false)?,
        ];
        for mirror in &mut mirrors {
            self.wait_ready(mirror)?;
        }
        self.let_the_guest_write()?;
        let mut pivots = Vec::new();
        for mirror in mirrors {
            self.read_log()?;
            let before = self.history.clone();
            self.command("block-job-complete", &json!({"device": mirror.job}))?;
            let end = self.wait_completed(&mirror)?;
            let source = self.source(&mirror)?.digest()?;
            pivots.push(mirror.done(&end, before, Evidence::Undisturbed { source }, None));
        }
        Ok(pivots)
    }

    /// Mirrors and pivots one disk after the other, comparing the images while the section is held
    /// after the swap.
    pub fn compared_pivots(&mut self) -> Result<Vec<Pivot>> {
        DiskKind::ALL
            .map(|disk| self.compared_pivot(disk))
            .into_iter()
            .collect()
    }

    fn compared_pivot(&mut self, disk: DiskKind) -> Result<Pivot> {
        let mut mirror = self.mirror(disk, true)?;
        self.wait_ready(&mut mirror)?;
        self.wait_acknowledged(disk, A_WHILE)?;
        let held_at = self.hold(&mirror, SWAPPED)?;
        let begin = self.disk(disk).clone();
        let others = self.disk(disk.other()).acknowledged_writes();
        let source = self.source(&mirror)?;
        let target = Image::open(&self.images.of(disk, mirror.generation + 1))?;
        let comparison = source.compare(&target)?;
        self.say("compared");
        self.wait_acknowledged(disk.other(), A_MOMENT)?;
        let before = self.history.clone();
        let held = Held {
            duration: held_at.elapsed(),
            begin,
            end: self.disk(disk).clone(),
            other_acknowledged: self.disk(disk.other()).acknowledged_writes() - others,
        };
        self.resume(&mirror)?;
        let end = self.wait_completed(&mirror)?;
        Ok(mirror.done(&end, before, Evidence::Compared(comparison), Some(held)))
    }

    /// Mirrors the IDE disk and holds the section before the swap, until the guest has written to
    /// it (window open) or to the other disk (window closed).
    pub fn window_pivot(&mut self, window: Window) -> Result<Pivot> {
        let disk = DiskKind::Ide;
        let mut mirror = self.mirror(disk, true)?;
        self.wait_ready(&mut mirror)?;
        self.wait_acknowledged(disk, A_WHILE)?;
        self.read_log()?;
        let before = self.history.clone();
        let held_at = self.hold(&mirror, CLEAN)?;
        let begin = self.disk(disk).clone();
        let others = self.disk(disk.other()).acknowledged_writes();
        let watched = if window == Window::Open {
            disk
        } else {
            disk.other()
        };
        self.wait_acknowledged(
            watched,
            if window == Window::Open {
                A_WHILE
            } else {
                A_MOMENT
            },
        )?;
        let held = Held {
            duration: held_at.elapsed(),
            begin,
            end: self.disk(disk).clone(),
            other_acknowledged: self.disk(disk.other()).acknowledged_writes() - others,
        };
        self.resume(&mirror)?;
        let end = self.wait_completed(&mirror)?;
        let source = self.source(&mirror)?.digest()?;
        Ok(mirror.done(
            &end,
            before,
            Evidence::Window { source, window },
            Some(held),
        ))
    }

    /// Asks for the pivot with a breakpoint at `event` and returns when it is held there and every
    /// acknowledgement from before has had time to show in the log.
    fn hold(&mut self, mirror: &Mirror, event: &str) -> Result<Instant> {
        let node = mirror
            .debug_node
            .as_deref()
            .context("the target has no breakpoints")?;
        let breakpoint = json!({"node-name": node, "event": event, "tag": TAG});
        self.command("x-debug-break", &breakpoint)?;
        self.command("block-job-complete", &json!({"device": mirror.job}))?;
        self.command(
            "x-debug-wait-break",
            &json!({"node-name": node, "tag": TAG}),
        )?;
        let held_at = Instant::now();
        self.say(&format!("held at {event}"));
        // The log is a little behind, but in order: what this disk acknowledged before the hold is
        // in it before what the other disk acknowledges from now on.
        self.wait_acknowledged(mirror.disk.other(), A_MOMENT)?;
        Ok(held_at)
    }

    fn resume(&mut self, mirror: &Mirror) -> Result<()> {
        let node = mirror
            .debug_node
            .as_deref()
            .context("the target has no breakpoints")?;
        self.command("x-debug-resume", &json!({"node-name": node, "tag": TAG}))?;
        Ok(())
    }

    /// Starts drive-mirror, which makes and opens the target by itself.
    fn drive_mirror(&mut self, disk: DiskKind) -> Result<Mirror> {
        let mirror = self.begin(disk, "drive-mirror");
        let arguments = json!({
            "job-id": mirror.job,
            "device": self.device(disk),
            "target": self.images.of(disk, mirror.generation + 1),
            "format": "raw",
            "sync": "full",
            "mode": "absolute-paths",
            "node-name": node_name(disk, mirror.generation + 1),
            "auto-dismiss": false,
        });
        self.command(mirror.command, &arguments)?;
        Ok(mirror)
    }

    /// Adds a target node and starts blockdev-mirror onto it.
    fn mirror(&mut self, disk: DiskKind, with_breakpoints: bool) -> Result<Mirror> {
        let (generation, path) = self.new_target(disk)?;
        let node = node_name(disk, generation);
        let mut mirror = self.begin(disk, "blockdev-mirror");
        let file = json!({"driver": "file", "node-name": format!("{node}-file"), "filename": path});
        if with_breakpoints {
            let image = json!({"driver": "raw", "node-name": format!("{node}-raw"), "file": file});
            let debug = json!({"driver": "blkdebug", "node-name": node, "image": image});
            self.command("blockdev-add", &debug)?;
            mirror.debug_node = Some(node.clone());
        } else {
            let raw = json!({"driver": "raw", "node-name": node, "file": file});
            self.command("blockdev-add", &raw)?;
        }
        let arguments = json!({
            "job-id": mirror.job,
            "device": self.device(disk),
            "target": node,
            "sync": "full",
            "auto-dismiss": false,
        });
        mirror.started = Instant::now();
        self.command(mirror.command, &arguments)?;
        Ok(mirror)
    }

    fn begin(&self, disk: DiskKind, command: &'static str) -> Mirror {
        let generation = self.generations[disk.number()];
        Mirror {
            disk,
            command,
            job: format!("mirror-{}-{generation}", disk.name()),
            generation,
            started: Instant::now(),
            ready_after: Duration::ZERO,
            debug_node: None,
        }
    }

    /// What the commands call the disk: the IDE disk has a named backend that stays, the virtio
    /// disk is known by its root node, which a pivot changes.
    fn device(&self, disk: DiskKind) -> String {
        match disk {
            DiskKind::Ide => "ide".to_owned(),
            DiskKind::Virtio => node_name(disk, self.generations[disk.number()]),
        }
    }

    fn wait_ready(&mut self, mirror: &mut Mirror) -> Result<()> {
        let event = self.job_event("BLOCK_JOB_READY", &mirror.job)?;
        mirror.ready_after = event.received.duration_since(mirror.started);
        self.say(&format!("{} is ready", mirror.job));
        Ok(())
    }

    /// Waits for the job's good end, dismisses it, and returns what the event says of it.
    fn wait_completed(&mut self, mirror: &Mirror) -> Result<Value> {
        let event = self.job_event("BLOCK_JOB_COMPLETED", &mirror.job)?;
        if let Some(error) = event.data.get("error") {
            bail!("{} failed: {error}", mirror.job);
        }
        self.qmp
            .wait_event(&format!("end of {}", mirror.job), PATIENCE, |event| {
                event.event == "JOB_STATUS_CHANGE"
                    && event.text("id") == mirror.job
                    && event.text("status") == "concluded"
            })?;
        self.generations[mirror.disk.number()] += 1;
        self.command("job-dismiss", &json!({"id": mirror.job}))?;
        self.say(&format!("{} has pivoted: {}", mirror.job, event.data));
        Ok(event.data)
    }

    /// Waits for an event of a job; the job's failure ends the wait.
    fn job_event(&self, name: &str, job: &str) -> Result<crate::qmp::Event> {
        let event = self
            .qmp
            .wait_event(&format!("{name} of {job}"), PATIENCE, |event| {
                let is_end = matches!(&*event.event, "BLOCK_JOB_COMPLETED" | "BLOCK_JOB_CANCELLED");
                event.text("device") == job && (event.event == name || is_end)
            })?;
        if event.event != name {
            bail!(
                "{job} ended with {} {} before {name}",
                event.event,
                event.data
            );
        }
        Ok(event)
    }

    /// The image that the mirror copies from.
    fn source(&self, mirror: &Mirror) -> Result<Image> {
        Ok(Image::open(
            &self.images.of(mirror.disk, mirror.generation),
        )?)
    }
}

impl Mirror {
    fn done(self, job: &Value, before: History, evidence: Evidence, held: Option<Held>) -> Pivot {
        let micros = |member: &str| job[member].as_u64().map(Duration::from_micros);
        Pivot {
            disk: self.disk,
            command: self.command,
            generation: self.generation,
            ready_after: self.ready_after,
            pause: micros("x-pivot-pause-us"),
            postponed: job["x-postponed-requests"].as_u64(),
            longest_wait: micros("x-longest-wait-us"),
            before,
            evidence,
            held,
        }
    }
}

/// The node that is the root of `disk` after `generation` pivots.
fn node_name(disk: DiskKind, generation: usize) -> String {
    match generation {
        0 => disk.name().to_owned(),
        _ => format!("{}-{generation}", disk.name()),
    }
}
