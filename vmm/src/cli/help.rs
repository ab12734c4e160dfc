//! The lists that options show when their value is `help`.

use std::fmt::Write;

use super::arguments::Arguments;
use super::options::DriveFormat;
use crate::machine::config::MachineKind;
use crate::machine::models::DEVICES;
use crate::qmp::object;

/// The list that was asked for, if one was.
pub(super) fn asked_for(arguments: &Arguments) -> Option<String> {
    let is_help = |text: &str| matches!(text, "help" | "?");
    let asks = |texts: &[String]| texts.iter().any(|text| is_help(text));
    if arguments.machine.as_deref().is_some_and(is_help) {
        return Some(machines());
    }
    if asks(&arguments.accel) {
        return Some("Accelerators supported:\nkvm\nqtest\n".to_owned());
    }
    if asks(&arguments.device) {
        return Some(devices());
    }
    let format_help = |text: &String| text.split(',').any(|piece| piece == "format=help");
    if arguments.drive.iter().any(format_help) {
        return Some(format!(
            "Supported formats: {}\n",
            DriveFormat::NAMES.join(" ")
        ));
    }
    if asks(&arguments.object) {
        return Some(list("List of user creatable objects:", object::KINDS));
    }
    if asks(&arguments.chardev) {
        return Some(list(
            "Available chardev backend types:",
            &["null", "socket", "stdio"],
        ));
    }
    None
}

fn list(head: &str, names: &[&str]) -> String {
    let mut text = format!("{head}\n");
    for name in names {
        // Writing to a string does not fail.
        let _ = writeln!(text, "  {name}");
    }
    text
}

fn machines() -> String {
    let mut text = "Supported machines are:\n".to_owned();
    let mut line = |name: &str, note: &str, kind: MachineKind| {
        let _ = writeln!(text, "{name:<20} {}{note}", kind.description());
    };
    for kind in MachineKind::ALL {
        let default = if kind == MachineKind::default() {
            " (default)"
        } else {
            ""
        };
        if let Some(alias) = kind.alias() {
            line(alias, &format!(" (alias of {})", kind.name()), kind);
        }
        line(kind.name(), default, kind);
    }
    text
}

fn devices() -> String {
    let mut text = String::new();
    let mut category = "";
    for device in DEVICES {
        if device.category != category {
            let gap = if category.is_empty() { "" } else { "\n" };
            category = device.category;
            let _ = writeln!(text, "{gap}{category} devices:");
        }
        let _ = writeln!(
            text,
            "name \"{}\", bus {}, desc \"{}\"",
            device.name, device.bus, device.description
        );
    }
    text
}
