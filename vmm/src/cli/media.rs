//! The medium of a `--drive`: the image that it names, or none.

use serde_json::json;
use sluice_block::BlockdevOptions;
use sluice_block::driver::file::FileKind;

use super::error::CliError;
use super::options::{DriveInterface, DriveMedia, DriveOptions};
use crate::qmp::blockdev;
use crate::qmp::input::Scalars;

const DRIVE: &str = "--drive";

/// The node that `--drive` describes, in the words of `blockdev-add`; none for a drive that is empty
/// until QMP puts a medium in.
///
/// # Errors
/// No image for a device that can't be without one, or what the image's options say.
pub(super) fn medium(
    options: &DriveOptions,
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
    if let Some(file) = &options.file {
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

fn node(options: &DriveOptions, file: &str, text: &str) -> Result<BlockdevOptions, CliError> {
    let cache = json!({"direct": options.cache.direct(), "no-flush": options.cache.no_flush()});
    let read_only = options.is_read_only();
    let mut protocol = json!({
        "driver": FileKind::of(file.as_ref()).driver_name(),
        "filename": file,
        "read-only": read_only,
        "discard": options.discard.name(),
        "cache": cache,
    });
    if let Some(aio) = options.aio {
        protocol["aio"] = json!(aio.name());
    }
    let mut format = json!({
        "driver": "raw",
        "read-only": read_only,
        "discard": options.discard.name(),
        "detect-zeroes": options.detect_zeroes.name(),
        "cache": cache,
        "file": protocol,
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
    blockdev::read(format, Scalars::Typed).map_err(|error| CliError::input(DRIVE, text, &error))
}

/// `--cdrom FILE` in the words of `--drive`; a comma in the name is written twice there.
pub(super) fn cd_rom_drive(file: &str) -> String {
    format!(
        "if=ide,index=2,media=cdrom,file={}",
        file.replace(',', ",,")
    )
}
