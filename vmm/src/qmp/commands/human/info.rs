//! `info status` and `info block`.

use sluice_aio::current;
use sluice_block::job::IoStatus;

use crate::control::RunState;
use crate::qmp::commands::Monitor;
use crate::qmp::commands::records::{DiskRecord, NodeRecord};

pub(super) fn status(monitor: &Monitor) -> String {
    match monitor.vm.status() {
        RunState::Running => "VM status: running\n".to_owned(),
        RunState::Paused => "VM status: paused\n".to_owned(),
        other => format!("VM status: paused ({})\n", other.name()),
    }
}

/// `info block [-n] [-v] [device]`: all disks, or with `-n` all nodes; or the one of that name.
pub(super) async fn block(monitor: &Monitor, options: &[&str]) -> String {
    let mut nodes = false;
    let mut wanted = None;
    for option in options {
        match *option {
            "-n" => nodes = true,
            // There is nothing more to tell.
            "-v" => {}
            name if name.starts_with('-') => {
                return format!("info block: unsupported option '{name}'\n");
            }
            name => wanted = Some(name.to_owned()),
        }
    }
    let (backends, all) = (monitor.graph.backends(), monitor.graph.nodes());
    // The media are asked, which may block.
    let texts = current::blocking(move || {
        let is_wanted = |name: &str| wanted.as_deref().is_none_or(|wanted| wanted == name);
        if nodes {
            let nodes = all.iter().filter(|node| is_wanted(node.name()));
            return nodes.map(|node| of_node(&NodeRecord::of(node))).collect();
        }
        let disks = backends
            .iter()
            .filter(|backend| is_wanted(backend.name()) && !backend.name().starts_with('#'));
        disks
            .map(|backend| of_disk(&DiskRecord::of(backend)))
            .collect::<Vec<_>>()
    })
    .await;
    texts.map_or_else(
        |error| format!("Error: {error}\n"),
        |texts| texts.join("\n"),
    )
}

fn of_node(node: &NodeRecord) -> String {
    format!("{}{}", node.node_name, medium(node, ""))
}

fn of_disk(disk: &DiskRecord) -> String {
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
            format!("{heading}{}", medium(node, &drive))
        }
        None => format!("{}: [not inserted]\n{drive}", disk.device),
    }
}

/// With what there is to tell of the drive in its place.
fn medium(node: &NodeRecord, drive: &str) -> String {
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
        "off" => String::new(),
        mode => format!("    Detect zeroes:    {mode}\n"),
    };
    let backing = match &node.backing_file {
        Some(below) => {
            let depth = node.backing_file_depth;
            format!("    Backing file:     {below} (chain depth: {depth})\n")
        }
        None => String::new(),
    };
    format!(
        ": {} ({}{read_only})\n{drive}    Cache mode:       {mode}{direct}{no_flush}\n{backing}{detect}",
        node.file, node.drv
    )
}
