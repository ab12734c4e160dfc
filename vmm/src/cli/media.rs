//! The medium of a `--drive`: the image that it names, or none.

use serde_json::{Map, Value, json};
use sluice_block::BlockdevOptions;
use sluice_block::driver::file::FileKind;

use super::error::CliError;
use super::keyval;
use super::options::{AioMode, DriveInterface, DriveMedia, DriveOptions, Raw};
use crate::qmp::input::Scalars;
use crate::qmp::{blockdev, image_name};

const DRIVE: &str = "--drive";

/// Where `file=` goes if there is `file.driver=` or its like as well: no key that was typed looks so.
const NAME_KEY: &str = "file_";

/// What a `--drive` says of its image's file.
#[derive(Debug)]
pub(super) struct DriveFile {
    /// `file=`: a path, or a protocol and what it needs.
    name: Option<String>,
    /// `file.…=`: options of the protocol's node.
    options: Map<String, Value>,
    scalars: Scalars,
}

/// Splits a `--drive`'s value, in which `file` may be both a name and a group of options.
pub(super) fn parse(text: &str) -> Result<(Raw, DriveFile), CliError> {
    const FILE: &str = "file";
    let renamed = keyval::rename_key(text, FILE, NAME_KEY);
    let has_options = keyval::has_group(text, FILE);
    let mut raw = if has_options {
        Raw::parse(DRIVE, &renamed, Some(NAME_KEY))?.with_text(text)
    } else {
        Raw::parse(DRIVE, text, Some(FILE))?
    };
    let mut file = DriveFile {
        name: None,
        options: Map::new(),
        scalars: raw.scalars,
    };
    let Some(drive) = raw.value.as_object_mut() else {
        return Ok((raw, file));
    };
    for key in [NAME_KEY, FILE] {
        match drive.remove(key) {
            None => {}
            Some(Value::String(name)) => file.name = Some(name),
            Some(Value::Object(options)) => file.options = options,
            Some(_) => {
                let problem = "Invalid parameter type for 'file', expected: string";
                return Err(raw.error(problem, "name the image"));
            }
        }
    }
    Ok((raw, file))
}

/// The node that `--drive` describes, in the words of `blockdev-add`; none for a drive that is empty
/// until QMP puts a medium in.
///
/// # Errors
/// No image for a device that can't be without one, or what the image's options say.
pub(super) fn medium(
    options: &DriveOptions,
    file: DriveFile,
    text: &str,
) -> Result<Option<BlockdevOptions>, CliError> {
    let is_cd_rom = options.media == DriveMedia::Cdrom;
    if is_cd_rom && options.interface == DriveInterface::Virtio {
        let problem = "media=cdrom goes with if=ide or if=none";
        let remedy = "a virtio disk has no tray; use if=ide";
        return Err(CliError::new(DRIVE, text, problem, remedy));
    }
    if options.copy_on_read && options.is_read_only() {
        let problem = "copy-on-read=on needs a drive that can be written";
        return Err(CliError::new(DRIVE, text, problem, "leave it out"));
    }
    if file.name.is_some() || !file.options.is_empty() {
        return node(options, file, text).map(Some);
    }
    let (problem, remedy) = if options.interface != DriveInterface::None && !is_cd_rom {
        let remedy = "name the image: --drive file=disk.img,format=raw,if=virtio";
        ("Parameter 'file' is missing", remedy)
    } else if options.node_name.is_some() {
        let remedy = "leave it out: there is no node while the drive is empty";
        ("node-name needs a file", remedy)
    } else {
        return Ok(None);
    };
    Err(CliError::new(DRIVE, text, problem, remedy))
}

fn node(options: &DriveOptions, file: DriveFile, text: &str) -> Result<BlockdevOptions, CliError> {
    let refuse = |problem: String| CliError::new(DRIVE, text, problem, "see --help");
    // Of the file's own options all are written alike, so what is added here is too.
    let flag = |value: bool| match (file.scalars, value) {
        (Scalars::Typed, value) => Value::Bool(value),
        (Scalars::Text, true) => "on".into(),
        (Scalars::Text, false) => "off".into(),
    };
    let cache = json!({
        "direct": flag(options.cache.direct()),
        "no-flush": flag(options.cache.no_flush()),
    });
    let read_only = flag(options.is_read_only());
    let mut below = match &file.name {
        Some(name) => image_name::read(name).map_err(refuse)?,
        None => Map::new(),
    };
    below.extend(file.options);
    let mut inherited = |member: &str, value: Value| {
        below.entry(member).or_insert(value);
    };
    inherited("read-only", read_only.clone());
    inherited("discard", options.discard.name().into());
    inherited("cache", cache.clone());
    if let Some(auto) = options.auto_read_only {
        inherited("auto-read-only", flag(auto));
    }
    if let Some(aio) = options.aio {
        set_engine(&mut below, aio);
    }
    let mut format = json!({
        "driver": "raw",
        "read-only": read_only,
        "discard": options.discard.name(),
        "detect-zeroes": options.detect_zeroes.name(),
        "cache": cache,
        "file": below,
    });
    if let Some(node_name) = &options.node_name {
        format["node-name"] = json!(node_name);
    }
    if options.copy_on_read {
        format = json!({
            "driver": "copy-on-read",
            "discard": options.discard.name(),
            "file": format,
        });
    }
    blockdev::read(format, file.scalars).map_err(|error| CliError::input(DRIVE, text, &error))
}

/// Says by what a file is served: that of the node itself, or the one below a fault injector. Nodes that are no files have no
/// engine.
fn set_engine(node: &mut Map<String, Value>, aio: AioMode) {
    if let Some(Value::Object(image)) = node.get_mut("image") {
        return set_engine(image, aio);
    }
    let driver = node.get("driver").and_then(Value::as_str);
    let is_file = |name| FileKind::ALL.map(FileKind::driver_name).contains(&name);
    if driver.is_none_or(is_file) {
        node.entry("aio").or_insert(aio.name().into());
    }
}

/// `--cdrom FILE` in the words of `--drive`; a comma in the name is written twice there.
pub(super) fn cd_rom_drive(file: &str) -> String {
    format!(
        "if=ide,index=2,media=cdrom,file={}",
        file.replace(',', ",,")
    )
}
