//! `info status` and `info block`.

use std::sync::Arc;

use sluice_block::io::DetectZeroes;
use sluice_block::job::IoStatus;
use sluice_block::look::look_at;

use super::numbers::rounded_size;
use crate::control::RunState;
use crate::qmp::commands::Monitor;
use crate::qmp::commands::block::is_tool;
use crate::qmp::commands::records::{DiskRecord, ImageRecord, NodeRecord, visible_root};
use crate::qmp::commands::throttle::LimitsRecord;

pub(super) fn status(monitor: &Monitor) -> String {
    match monitor.vm.status() {
        RunState::Running => "VM status: running\n".to_owned(),
        RunState::Paused => "VM status: paused\n".to_owned(),
        other => format!("VM status: paused ({})\n", other.name()),
    }
}

/// `info block [-n] [-v] [device]`: all disks, or with `-n` all nodes; or the one of that name. With `-v`
/// the images too.
pub(super) async fn block(monitor: &Monitor, options: &[&str]) -> String {
    let mut nodes = false;
    let mut verbose = false;
    let mut wanted = None;
    for option in options {
        match *option {
            "-n" => nodes = true,
            "-v" => verbose = true,
            name if name.starts_with('-') => {
                return format!("info block: unsupported option '{name}'\n");
            }
            name => wanted = Some(name),
        }
    }
    let is_wanted = |name: &str| wanted.is_none_or(|wanted| wanted == name);
    if nodes {
        let mut nodes = monitor.graph.nodes();
        nodes.retain(|node| is_wanted(node.name()));
        look_at(nodes.iter().map(Arc::clone)).await;
        let texts = nodes
            .iter()
            .map(|node| of_node(&NodeRecord::of(node), verbose));
        return texts.collect::<Vec<_>>().join("\n");
    }
    let mut disks = monitor.graph.backends();
    disks.retain(|disk| is_wanted(disk.name()) && !is_tool(disk));
    look_at(disks.iter().filter_map(|disk| visible_root(disk))).await;
    let texts = disks
        .iter()
        .map(|disk| of_disk(&DiskRecord::of(disk), verbose));
    texts.collect::<Vec<_>>().join("\n")
}

fn of_node(node: &NodeRecord, verbose: bool) -> String {
    format!("{}{}", node.node_name, medium(node, "", verbose))
}

fn of_disk(disk: &DiskRecord, verbose: bool) -> String {
    let mut drive = String::new();
    if let Some(path) = &disk.qdev {
        drive += &format!("    Attached to:      {path}\n");
    }
    let status = match disk.io_status {
        Some(IoStatus::Failed) => "    I/O status:       failed\n",
        Some(IoStatus::Nospace) => "    I/O status:       nospace\n",
        Some(IoStatus::Ok) | None => "",
    };
    drive += status;
    if disk.removable {
        let locked = if disk.locked { "" } else { "not " };
        let tray = match disk.tray_open {
            Some(true) => "open",
            Some(false) | None => "closed",
        };
        drive += &format!("    Removable device: {locked}locked, tray {tray}\n");
    }
    match &disk.inserted {
        Some(node) => {
            let heading = format!("{} ({})", disk.device, node.node_name);
            format!("{heading}{}", medium(node, &drive, verbose))
        }
        None => format!("{}: [not inserted]\n{drive}", disk.device),
    }
}

/// With what there is to tell of the drive in its place.
fn medium(node: &NodeRecord, drive: &str, verbose: bool) -> String {
    let read_only = if node.ro { ", read-only" } else { "" };
    let cache = &node.cache;
    let mode = if cache.writeback {
        "writeback"
    } else {
        "writethrough"
    };
    let direct = if cache.direct { ", direct" } else { "" };
    let no_flush = if cache.no_flush {
        ", ignore flushes"
    } else {
        ""
    };
    let detect = match node.detect_zeroes {
        DetectZeroes::Off => String::new(),
        mode => format!("    Detect zeroes:    {}\n", mode.name()),
    };
    let backing = match &node.backing_file {
        Some(below) => {
            let depth = node.backing_file_depth;
            format!("    Backing file:     {below} (chain depth: {depth})\n")
        }
        None => String::new(),
    };
    let limits = limits(&node.limits);
    let images = match verbose {
        true => format!("\nImages:\n{}", images(&node.image)),
        false => String::new(),
    };
    format!(
        ": {} ({}{read_only})\n{drive}    Cache mode:       {mode}{direct}{no_flush}\n\
         {backing}{detect}{limits}{images}",
        node.file, node.drv
    )
}

/// Nothing if there are none.
fn limits(limits: &LimitsRecord) -> String {
    let Some(group) = &limits.group else {
        return String::new();
    };
    let or_none = Option::unwrap_or_default;
    let values = [
        ("bps", limits.bps),
        ("bps_rd", limits.bps_rd),
        ("bps_wr", limits.bps_wr),
        ("bps_max", or_none(limits.bps_max)),
        ("bps_rd_max", or_none(limits.bps_rd_max)),
        ("bps_wr_max", or_none(limits.bps_wr_max)),
        ("iops", limits.iops),
        ("iops_rd", limits.iops_rd),
        ("iops_wr", limits.iops_wr),
        ("iops_max", or_none(limits.iops_max)),
        ("iops_rd_max", or_none(limits.iops_rd_max)),
        ("iops_wr_max", or_none(limits.iops_wr_max)),
        ("iops_size", or_none(limits.iops_size)),
    ];
    let values = values.map(|(name, value)| format!("{name}={value}"));
    format!("    I/O throttling:   {} group={group}\n", values.join(" "))
}

/// The image and those below it, as `qemu-img info` shows them.
fn images(top: &ImageRecord) -> String {
    let chain = std::iter::successors(Some(top), |image| image.backing_image.as_deref());
    chain.map(image).collect()
}

fn image(image: &ImageRecord) -> String {
    let taken = image
        .actual_size
        .map_or_else(|| "unavailable".to_owned(), rounded_size);
    let backing = match &image.backing_filename {
        Some(below) => format!("backing file: {below}\n"),
        None => String::new(),
    };
    format!(
        "image: {}\nfile format: {}\nvirtual size: {} ({} bytes)\ndisk size: {taken}\n{backing}",
        image.filename,
        image.format,
        rounded_size(image.virtual_size),
        image.virtual_size
    )
}
