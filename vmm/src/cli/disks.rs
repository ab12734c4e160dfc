//! `--object`, `--blockdev`, `--drive` and `--device`: from text to a [`StorageConfig`].
//!
//! What the command line itself can know to be contradictory is refused here: names used twice,
//! two devices in one place, a device on a drive or thread that was never declared.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::arguments::Arguments;
use super::error::CliError;
use super::options::{
    self, DebugExitOptions, DriveInterface, DriveOptions, IdeDiskOptions, IoThreadOptions, Raw,
    VirtioBlkOptions,
};
use crate::machine::config::DebugExitConfig;
use crate::qmp::input::{self, Scalars};
use crate::storage::{
    Attachment, DiskConfig, IdePosition, IoThreadConfig, PciAddress, StorageConfig,
};

const OBJECT: &str = "--object";
const BLOCKDEV: &str = "--blockdev";
const DRIVE: &str = "--drive";
const DEVICE: &str = "--device";

const DEVICE_EXAMPLE: &str = "known devices: virtio-blk-pci, ide-hd, isa-debug-exit; for example \
                              --device virtio-blk-pci,drive=NODE";
const OBJECT_EXAMPLE: &str = "for example --object iothread,id=io0";

/// PCI slots that the machine itself occupies: host bridge and PIIX.
const BOARD_SLOTS: u8 = 2;
/// Slots of a PCI bus.
const PCI_SLOTS: u8 = 32;
/// Functions of a PCI slot.
const PCI_FUNCTIONS: u8 = 8;
/// Bytes of serial number that an ATA or virtio disk can report.
const SERIAL_BYTES: usize = 20;

/// What the disk options amount to.
pub(super) struct Devices {
    pub(super) storage: StorageConfig,
    pub(super) debug_exit: Option<DebugExitConfig>,
}

/// Reads all disk options of `arguments`.
pub(super) fn parse(arguments: &Arguments) -> Result<Devices, CliError> {
    let mut builder = Builder::default();
    for text in &arguments.object {
        builder.object(text)?;
    }
    for text in &arguments.blockdev {
        builder.blockdev(text)?;
    }
    for text in &arguments.drive {
        builder.drive(text)?;
    }
    for text in &arguments.device {
        builder.device(text)?;
    }
    Ok(Devices {
        storage: builder.storage,
        debug_exit: builder.debug_exit,
    })
}

/// A drive that a device may name.
struct Drive {
    node: String,
    read_only: bool,
    write_cache: bool,
    serial: Option<String>,
    /// Whether `--drive` itself makes the device.
    connected: bool,
}

#[derive(Default)]
struct Builder {
    storage: StorageConfig,
    debug_exit: Option<DebugExitConfig>,
    node_names: BTreeSet<String>,
    drives: BTreeMap<String, Drive>,
    device_ids: BTreeSet<String>,
    /// Node names that a device uses already.
    used_nodes: BTreeSet<String>,
    ide_places: BTreeSet<IdePosition>,
    pci_places: BTreeSet<PciAddress>,
}

impl Builder {
    fn object(&mut self, text: &str) -> Result<(), CliError> {
        let mut raw = Raw::parse(OBJECT, text, Some("qom-type"))?;
        let kind = raw.take_kind("qom-type", OBJECT_EXAMPLE)?;
        if kind != "iothread" {
            return Err(raw.error(format!("invalid object type: {kind}"), OBJECT_EXAMPLE));
        }
        let options: IoThreadOptions = raw.typed()?;
        check_id(OBJECT, text, "id", &options.id)?;
        let known = |thread: &IoThreadConfig| thread.id == options.id;
        if self.storage.iothreads.iter().any(known) {
            let problem = format!("duplicate ID '{}' for object", options.id);
            return Err(CliError::new(
                OBJECT,
                text,
                problem,
                "give each object its own id",
            ));
        }
        self.storage
            .iothreads
            .push(IoThreadConfig { id: options.id });
        Ok(())
    }

    fn blockdev(&mut self, text: &str) -> Result<(), CliError> {
        let raw = Raw::parse(BLOCKDEV, text, Some("driver"))?;
        if raw.value.get("node-name").is_none() {
            return Err(raw.error(
                "'node-name' must be specified for the root node",
                "add node-name=NAME, by which --device and QMP refer to it",
            ));
        }
        let mut names = Vec::new();
        collect_node_names(&raw.value, &mut names);
        for name in names {
            self.claim_node_name(BLOCKDEV, text, &name)?;
        }
        self.storage.nodes.push(raw.typed()?);
        Ok(())
    }

    fn claim_node_name(
        &mut self,
        option: &'static str,
        text: &str,
        name: &str,
    ) -> Result<(), CliError> {
        if self.node_names.insert(name.to_owned()) {
            return Ok(());
        }
        let problem = format!("Duplicate nodes with node-name='{name}'");
        Err(CliError::new(
            option,
            text,
            problem,
            "give each node its own node-name",
        ))
    }

    fn drive(&mut self, text: &str) -> Result<(), CliError> {
        let options: DriveOptions = options::parse(DRIVE, text, Some("file"))?;
        let Some(file) = options.file.clone() else {
            let remedy = "name the image: --drive file=disk.img,format=raw,if=virtio";
            return Err(CliError::new(
                DRIVE,
                text,
                "Parameter 'file' is missing",
                remedy,
            ));
        };
        let wanted = ide_place(&options, text)?;
        let attachment = match options.interface {
            DriveInterface::None => None,
            DriveInterface::Virtio => Some(Attachment::VirtioPci {
                iothread: None,
                address: None,
            }),
            DriveInterface::Ide => {
                let place = self.claim_ide(DRIVE, text, wanted, None)?;
                Some(Attachment::Ide(place))
            }
        };
        let id = match &options.id {
            Some(id) => {
                check_id(DRIVE, text, "id", id)?;
                id.clone()
            }
            None => self.default_drive_id(attachment.as_ref()),
        };
        if self.drives.contains_key(&id) {
            let problem = format!("Duplicate ID '{id}' for drive");
            return Err(CliError::new(
                DRIVE,
                text,
                problem,
                "give each drive its own id",
            ));
        }
        let node = options
            .node_name
            .clone()
            .unwrap_or_else(|| format!("{id}-format"));
        self.claim_node_name(DRIVE, text, &node)?;
        let node_options = drive_node(&options, &file, &node);
        let typed = input::from_value(node_options, Scalars::Typed)
            .map_err(|error| CliError::input(DRIVE, text, &error))?;
        self.storage.nodes.push(typed);
        let drive = Drive {
            node,
            read_only: options.readonly,
            write_cache: options.cache.write_cache(),
            serial: options.serial.clone(),
            connected: attachment.is_some(),
        };
        if let Some(attachment) = attachment {
            self.connect_drive(&id, &drive, attachment, text)?;
        }
        self.drives.insert(id, drive);
        Ok(())
    }

    /// QEMU's names for drives without one, which are also the ids of the jobs on them.
    fn default_drive_id(&self, attachment: Option<&Attachment>) -> String {
        let numbered = |prefix: &str| {
            (0_usize..)
                .map(|n| format!("{prefix}{n}"))
                .find(|id| !self.drives.contains_key(id))
                .unwrap_or_default()
        };
        match attachment {
            None => numbered("none"),
            Some(Attachment::VirtioPci { .. }) => numbered("virtio"),
            Some(Attachment::Ide(place)) => format!("ide{}-hd{}", place.channel, place.unit),
        }
    }

    fn connect_drive(
        &mut self,
        id: &str,
        drive: &Drive,
        attachment: Attachment,
        text: &str,
    ) -> Result<(), CliError> {
        self.used_nodes.insert(drive.node.clone());
        let disk = DiskConfig {
            backend: Some(id.to_owned()),
            id: None,
            node: drive.node.clone(),
            read_only: drive.read_only,
            write_cache: drive.write_cache,
            serial: check_serial(DRIVE, text, drive.serial.clone())?,
            attachment,
        };
        self.storage.disks.push(disk);
        Ok(())
    }

    fn device(&mut self, text: &str) -> Result<(), CliError> {
        let mut raw = Raw::parse(DEVICE, text, Some("driver"))?;
        let kind = raw.take_kind("driver", DEVICE_EXAMPLE)?;
        match kind.as_str() {
            "virtio-blk-pci" => self.virtio_blk(raw.typed()?, text),
            "ide-hd" => self.ide_disk(raw.typed()?, text),
            "isa-debug-exit" => self.debug_exit(&raw.typed()?, text),
            _ => Err(raw.error(
                format!("'{kind}' is not a valid device model name"),
                DEVICE_EXAMPLE,
            )),
        }
    }

    fn virtio_blk(&mut self, options: VirtioBlkOptions, text: &str) -> Result<(), CliError> {
        if let Some(bus) = options.bus.filter(|bus| bus != "pci.0") {
            let problem = format!("Bus '{bus}' not found");
            return Err(CliError::new(
                DEVICE,
                text,
                problem,
                "the only PCI bus is pci.0",
            ));
        }
        if let Some(id) = &options.iothread
            && !self.storage.iothreads.iter().any(|known| known.id == *id)
        {
            let problem = format!("Cannot find iothread '{id}'");
            let remedy = format!("declare it: --object iothread,id={id}");
            return Err(CliError::new(DEVICE, text, problem, remedy));
        }
        let address = options
            .addr
            .map(|addr| self.claim_pci(&addr, text))
            .transpose()?;
        let attachment = Attachment::VirtioPci {
            iothread: options.iothread,
            address,
        };
        let drive = DeviceDrive {
            drive: options.drive,
            id: options.id,
            serial: options.serial,
            write_cache: options.write_cache,
        };
        self.disk(drive, attachment, text)
    }

    fn ide_disk(&mut self, options: IdeDiskOptions, text: &str) -> Result<(), CliError> {
        let channel = match options.bus.as_deref() {
            None => None,
            Some("ide.0") => Some(0),
            Some("ide.1") => Some(1),
            Some(bus) => {
                let problem = format!("Bus '{bus}' not found");
                return Err(CliError::new(
                    DEVICE,
                    text,
                    problem,
                    "the IDE buses are ide.0 and ide.1",
                ));
            }
        };
        let place = match options.unit {
            None => None,
            Some(unit) if unit < IdePosition::UNITS => Some(IdePosition {
                channel: channel.unwrap_or(0),
                unit,
            }),
            Some(unit) => {
                let problem = format!("Can't create IDE unit {unit}, bus supports only 2 units");
                return Err(CliError::new(DEVICE, text, problem, "unit is 0 or 1"));
            }
        };
        let drive = DeviceDrive {
            drive: options.drive,
            id: options.id,
            serial: options.serial,
            write_cache: options.write_cache,
        };
        let place = self.claim_ide(DEVICE, text, place, channel)?;
        self.disk(drive, Attachment::Ide(place), text)
    }

    fn debug_exit(&mut self, options: &DebugExitOptions, text: &str) -> Result<(), CliError> {
        if self.debug_exit.is_some() {
            let problem = "there is an isa-debug-exit already";
            return Err(CliError::new(DEVICE, text, problem, "give it once"));
        }
        let default = DebugExitConfig::default();
        self.debug_exit = Some(DebugExitConfig {
            iobase: options.iobase.unwrap_or(default.iobase),
            iosize: options.iosize.unwrap_or(default.iosize),
        });
        Ok(())
    }

    /// Adds the disk of a `--device`, whose `drive=` names a drive or a node.
    fn disk(
        &mut self,
        device: DeviceDrive,
        attachment: Attachment,
        text: &str,
    ) -> Result<(), CliError> {
        if let Some(id) = &device.id {
            check_id(DEVICE, text, "id", id)?;
            if !self.device_ids.insert(id.clone()) {
                let problem = format!("Duplicate device ID '{id}'");
                return Err(CliError::new(
                    DEVICE,
                    text,
                    problem,
                    "give each device its own id",
                ));
            }
        }
        let name = device.drive;
        let drive = self.drives.get(&name);
        if drive.is_some_and(|drive| drive.connected) {
            let problem = format!(
                "Drive '{name}' is already in use because it has been automatically connected to \
                 another device"
            );
            return Err(CliError::new(
                DEVICE,
                text,
                problem,
                "write if=none in its --drive",
            ));
        }
        if drive.is_none() && !self.node_names.contains(&name) {
            let problem = format!("there is no drive or node '{name}'");
            let remedy = "declare it with --blockdev ...,node-name=NAME or --drive if=none,id=NAME";
            return Err(CliError::new(DEVICE, text, problem, remedy));
        }
        let node = drive.map_or_else(|| name.clone(), |drive| drive.node.clone());
        if !self.used_nodes.insert(node.clone()) {
            let problem = format!("Drive '{name}' is already in use by another device");
            return Err(CliError::new(
                DEVICE,
                text,
                problem,
                "one disk image per device",
            ));
        }
        let serial = device
            .serial
            .or_else(|| drive.and_then(|drive| drive.serial.clone()));
        let disk = DiskConfig {
            id: device.id,
            node,
            read_only: drive.is_some_and(|drive| drive.read_only),
            write_cache: device
                .write_cache
                .unwrap_or_else(|| drive.is_none_or(|drive| drive.write_cache)),
            serial: check_serial(DEVICE, text, serial)?,
            attachment,
            backend: drive.is_some().then_some(name),
        };
        self.storage.disks.push(disk);
        Ok(())
    }

    /// Takes a place on the IDE channels: `place`, or else the first that is free (on `channel`, if
    /// that is given).
    fn claim_ide(
        &mut self,
        option: &'static str,
        text: &str,
        place: Option<IdePosition>,
        channel: Option<u8>,
    ) -> Result<IdePosition, CliError> {
        let free = |place: &IdePosition| {
            channel.is_none_or(|channel| channel == place.channel)
                && !self.ide_places.contains(place)
        };
        let Some(place) = place.or_else(|| ide_positions().find(free)) else {
            let problem = "no place is left on the IDE buses";
            let remedy = "four IDE disks fit; use virtio-blk-pci for more";
            return Err(CliError::new(option, text, problem, remedy));
        };
        if self.ide_places.insert(place) {
            return Ok(place);
        }
        let problem = format!(
            "IDE bus {}, unit {} is in use already",
            place.channel, place.unit
        );
        let remedy = "buses 0 and 1 have units 0 and 1 each; disks without a place take the first \
                      that is free";
        Err(CliError::new(option, text, problem, remedy))
    }

    fn claim_pci(&mut self, addr: &str, text: &str) -> Result<PciAddress, CliError> {
        let remedy = "write SLOT or SLOT.FUNCTION in hexadecimal, slot 2 to 1f, function 0 to 7";
        let (slot, function) = addr.split_once('.').unwrap_or((addr, "0"));
        let hex = |text: &str| u8::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16).ok();
        let address = match (hex(slot), hex(function)) {
            (Some(slot), Some(function)) if slot < PCI_SLOTS && function < PCI_FUNCTIONS => {
                PciAddress { slot, function }
            }
            _ => {
                let problem = format!("Parameter 'addr' does not accept value '{addr}'");
                return Err(CliError::new(DEVICE, text, problem, remedy));
            }
        };
        if address.slot < BOARD_SLOTS || !self.pci_places.insert(address) {
            let problem = format!(
                "PCI: slot {} function {} is in use already",
                address.slot, address.function
            );
            return Err(CliError::new(DEVICE, text, problem, remedy));
        }
        Ok(address)
    }
}

/// What both kinds of disk device say about their drive.
struct DeviceDrive {
    drive: String,
    id: Option<String>,
    serial: Option<String>,
    write_cache: Option<bool>,
}

fn ide_positions() -> impl Iterator<Item = IdePosition> {
    (0..IdePosition::CHANNELS)
        .flat_map(|channel| (0..IdePosition::UNITS).map(move |unit| IdePosition { channel, unit }))
}

/// Where `index=`, or `bus=` and `unit=`, put an IDE drive.
fn ide_place(options: &DriveOptions, text: &str) -> Result<Option<IdePosition>, CliError> {
    let refuse = |problem: &str, remedy: &str| Err(CliError::new(DRIVE, text, problem, remedy));
    let named = options.index.is_some() || options.bus.is_some() || options.unit.is_some();
    if options.interface != DriveInterface::Ide {
        return if named {
            refuse("index, bus and unit belong to if=ide", "leave them out")
        } else {
            Ok(None)
        };
    }
    let place = match (options.index, options.bus, options.unit) {
        (None, None, None) => return Ok(None),
        (Some(index), None, None) => IdePosition {
            channel: index / IdePosition::UNITS,
            unit: index % IdePosition::UNITS,
        },
        (None, bus, unit) => IdePosition {
            channel: bus.unwrap_or(0),
            unit: unit.unwrap_or(0),
        },
        (Some(_), ..) => {
            return refuse(
                "index cannot be used with bus and unit",
                "use one or the other",
            );
        }
    };
    if place.channel >= IdePosition::CHANNELS || place.unit >= IdePosition::UNITS {
        return refuse(
            "there is no such place on the IDE buses",
            "index is 0 to 3, bus and unit are 0 or 1",
        );
    }
    Ok(Some(place))
}

/// The node that `--drive` describes, in the words of `blockdev-add`.
fn drive_node(options: &DriveOptions, file: &str, node: &str) -> Value {
    let cache = json!({"direct": options.cache.direct(), "no-flush": options.cache.no_flush()});
    let mut protocol = json!({
        "driver": "file",
        "filename": file,
        "read-only": options.readonly,
        "discard": options.discard.name(),
        "cache": cache,
    });
    if let Some(aio) = options.aio {
        protocol["aio"] = json!(aio.name());
    }
    let mut format = json!({
        "driver": "raw",
        "node-name": node,
        "read-only": options.readonly,
        "discard": options.discard.name(),
        "cache": cache,
        "file": protocol,
    });
    if let Some(detect_zeroes) = options.detect_zeroes {
        format["detect-zeroes"] = json!(detect_zeroes.name());
    }
    format
}

/// The names that `--blockdev` gives to a node and to the children described with it.
fn collect_node_names(value: &Value, names: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            if let Some(Value::String(name)) = members.get("node-name") {
                names.push(name.clone());
            }
            for member in members.values() {
                collect_node_names(member, names);
            }
        }
        Value::Array(items) => items
            .iter()
            .for_each(|item| collect_node_names(item, names)),
        _ => {}
    }
}

/// Refuses an id that QMP and the graph could not refer to.
fn check_id(option: &'static str, text: &str, parameter: &str, id: &str) -> Result<(), CliError> {
    let well_formed = id.starts_with(|c: char| c.is_ascii_alphabetic())
        && id
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    if well_formed {
        return Ok(());
    }
    let problem = format!("Parameter '{parameter}' expects an identifier");
    let remedy = "identifiers consist of letters, digits, '-', '.', '_', starting with a letter";
    Err(CliError::new(option, text, problem, remedy))
}

fn check_serial(
    option: &'static str,
    text: &str,
    serial: Option<String>,
) -> Result<Option<String>, CliError> {
    match &serial {
        Some(given) if !given.is_ascii() || given.len() > SERIAL_BYTES => {
            let problem = "Parameter 'serial' expects at most 20 ASCII characters";
            Err(CliError::new(option, text, problem, "shorten it"))
        }
        _ => Ok(serial),
    }
}
