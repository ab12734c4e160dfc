//! A disk that the operator plugs in and takes away while Linux runs.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::{
    lab::{Guest, Lab, PATIENCE, same_content, sha256, value_of},
    script::command_line,
};
use crate::qmp::{Event, Qmp};

const MIB: usize = 1 << 20;

/// The last slot of the bus.
const LAST_SLOT: &str = "1f";

/// So many bytes a second leave a mirror at work while a guest is asked to let go of its disk.
const SLOW: u64 = 64 << 10;

/// Plugs the node `disk` in as `hot`, and waits until the guest has written it.
fn plug(guest: &mut Guest, qmp: &mut Qmp, round: u8, more: &[(&str, &str)]) -> Result<()> {
    let mut device = json!({"driver": "virtio-blk-pci", "id": "hot", "drive": "disk"});
    for (property, value) in more {
        device[property] = (*value).into();
    }
    qmp.execute("device_add", &device)?;
    guest.wait(&format!("written {round}."))
}

/// Asks the guest for the disk, and waits until both have let go of it.
fn unplug(guest: &mut Guest, qmp: &mut Qmp, round: u8) -> Result<()> {
    qmp.execute("device_del", &json!({"id": "hot"}))?;
    let gone = |event: &Event| event.event == "DEVICE_DELETED" && event.text("device") == "hot";
    qmp.wait_event("DEVICE_DELETED", PATIENCE, gone)?;
    guest.wait(&format!("gone {round}."))
}

/// Linux finds each disk by ACPI, writes it and ejects it: on a loop of its own, then again in another slot under
/// a mirror, which goes on without the guest.
pub fn disk_comes_and_goes(lab: &Lab<'_>) -> Result<()> {
    let image = lab.random_image("disk.img", 4 * MIB, 5)?;
    let target = lab.image("target.img", &vec![0; 4 * MIB])?;
    // What is unplugged is closed first: a guest that writes loses what it has not written.
    let round = |number: u8| {
        format!(
            "until [ -b /dev/vda ]; do usleep 50000; done; \
             dd if=/dev/urandom of=/tmp/data bs=64k count=16; echo sum {number}: $(sha256sum </tmp/data); \
             dd if=/tmp/data of=/dev/vda bs=64k conv=fsync && echo written {number}.; \
             until [ ! -b /dev/vda ]; do usleep 50000; done; echo gone {number}."
        )
    };
    // The machine is there until the mirror has ended.
    let script = format!("echo ready.; {}; {}; read line", round(1), round(2));
    let line = command_line(&script, "");
    let arguments = ["--object", "iothread,id=io0", "--smp", "2"];
    let (mut guest, mut qmp) = lab.start_controlled(&line, &arguments)?;
    guest.wait("ready.")?;
    for (name, path) in [("disk", &image), ("target", &target)] {
        let file = json!({"driver": "file", "filename": path});
        let node = json!({"driver": "raw", "node-name": name, "file": file});
        qmp.execute("blockdev-add", &node)?;
    }

    plug(&mut guest, &mut qmp, 1, &[("iothread", "io0")])?;
    unplug(&mut guest, &mut qmp, 1)?;
    ensure_begins_with(lab, &image, value_of(&guest.console(), "sum 1:")?)?;
    qmp.execute("object-del", &json!({"id": "io0"}))?;

    let mirror = json!({
        "device": "disk", "target": "target", "sync": "full", "job-id": "job", "speed": SLOW,
    });
    plug(&mut guest, &mut qmp, 2, &[("addr", LAST_SLOT)])?;
    qmp.execute("blockdev-mirror", &mirror)?;
    unplug(&mut guest, &mut qmp, 2)?;
    ensure_begins_with(lab, &image, value_of(&guest.console(), "sum 2:")?)?;
    let job = json!({"device": "job", "speed": 0});
    qmp.execute("block-job-set-speed", &job)?;
    qmp.wait_job_event("BLOCK_JOB_READY", "job", PATIENCE)?;
    qmp.execute("block-job-complete", &json!({"device": "job"}))?;
    let completed = qmp.wait_job_event("BLOCK_JOB_COMPLETED", "job", PATIENCE)?;
    ensure!(completed.data.get("error").is_none(), "{completed:?}");
    ensure!(same_content(&image, &target)?, "the target is not the disk");
    guest.type_line("")?;
    guest.finish_script().map(|_console| ())
}

/// Whether the image's first MiB has this sum (and whatever else is in the line).
fn ensure_begins_with(lab: &Lab<'_>, image: &Path, sum: &str) -> Result<()> {
    let content = std::fs::read(image)?;
    let start = content.get(..MIB).context("the image is too short")?;
    let part = lab.path("part");
    std::fs::write(&part, start)?;
    let found = sha256(&part)?;
    let wanted = sum.split_whitespace().next().unwrap_or_default();
    ensure!(
        found == wanted,
        "the guest wrote {wanted}, the image has {found}"
    );
    Ok(())
}
