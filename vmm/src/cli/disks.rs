//! `--object`, `--blockdev`, `--drive` and `--device`: from text to a [`StorageConfig`].
//!
//! What the command line itself can know to be contradictory is refused here: names used twice,
//! two devices in one place, a device on a drive or thread that was never declared.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU8;

use serde_json::Value;
use sluice_aio::LoopConfig;
use sluice_block::BlockdevOptions;
use sluice_block::backend::ErrorPolicy;
use sluice_block::job::OnError;

use super::arguments::Arguments;
use super::device::DeviceDrive;
use super::error::CliError;
use super::globals::Globals;
use super::ide::{IdeCdOptions, IdeDiskOptions};
use super::media;
use super::options::{DebugExitOptions, DriveInterface, DriveMedia, DriveOptions, Raw};
use super::places::{Places, ide_place};
use super::plugged::DeviceReader;
use super::throttling;
use super::virtio::{self, VirtioBlkOptions};
use crate::machine::config::{DebugExitConfig, MachineKind};
use crate::machine::models::{DEVICES, device_kind};
use crate::qmp::blockdev;
use crate::qmp::input::Scalars;
use crate::qmp::object::{self, ObjectOptions};
use crate::storage::{
    Attachment, DiskConfig, DiskLimits, DiskRoot, IdePosition, LooseDeviceDefaults,
    LooseDriveConfig, StorageConfig, ThrottleGroupConfig,
};

const OBJECT: &str = "--object";
const BLOCKDEV: &str = "--blockdev";
const DRIVE: &str = "--drive";
const DEVICE: &str = "--device";

const DEVICE_EXAMPLE: &str = "known devices: virtio-blk-pci, ide-hd, ide-cd, isa-debug-exit; for example \
                              --device virtio-blk-pci,drive=NODE";
const OBJECT_EXAMPLE: &str = "for example --object iothread,id=io0, or --object \
                              throttle-group,id=tg0,limits.bps-total=50M";

/// Bytes of serial number that an ATA or virtio disk can report.
const SERIAL_BYTES: usize = 20;

/// What the disk options amount to.
pub(super) struct Devices {
    pub(super) storage: StorageConfig,
    pub(super) debug_exit: Option<DebugExitConfig>,
    pub(super) warnings: Vec<String>,
    pub(super) reader: DeviceReader,
}

/// Reads all disk options of `arguments`, for a machine of this kind with so many processors.
pub(super) fn parse(
    arguments: &Arguments,
    kind: MachineKind,
    cpus: NonZeroU8,
) -> Result<Devices, CliError> {
    let mut builder = Builder {
        globals: Globals::parse(&arguments.global)?,
        kind,
        cpus: Some(cpus),
        ..Builder::default()
    };
    for text in &arguments.object {
        builder.object(text)?;
    }
    for text in &arguments.blockdev {
        builder.blockdev(text)?;
    }
    for text in &arguments.drive {
        builder.drive(text)?;
    }
    if let Some(file) = &arguments.cdrom {
        builder.drive(&media::cd_rom_drive(file))?;
    }
    for text in &arguments.device {
        builder.device(text)?;
    }
    builder.add_loose_drives();
    builder.check_names()?;
    Ok(Devices {
        warnings: builder.globals.warnings(),
        reader: DeviceReader::new(builder.globals, cpus),
        storage: builder.storage,
        debug_exit: builder.debug_exit,
    })
}

/// A drive that a device may name.
struct Drive {
    /// None while it is empty.
    medium: Option<BlockdevOptions>,
    read_only: bool,
    write_cache: bool,
    rerror: OnError,
    werror: OnError,
    limits: Option<DiskLimits>,
    serial: Option<String>,
    /// Whether `--drive` itself makes the device.
    connected: bool,
    /// Whether a device uses it.
    used: bool,
}

#[derive(Default)]
struct Builder {
    /// One if absent.
    cpus: Option<NonZeroU8>,
    kind: MachineKind,
    globals: Globals,
    storage: StorageConfig,
    debug_exit: Option<DebugExitConfig>,
    node_names: BTreeSet<String>,
    drives: BTreeMap<String, Drive>,
    device_ids: BTreeSet<String>,
    object_ids: BTreeSet<String>,
    /// Node names that a device uses already.
    used_nodes: BTreeSet<String>,
    backends: BTreeSet<String>,
    places: Places,
}

impl Builder {
    fn object(&mut self, text: &str) -> Result<(), CliError> {
        let raw = Raw::parse(OBJECT, text, Some("qom-type"))?;
        match raw.value.get("qom-type") {
            None => return Err(raw.error("Parameter 'qom-type' is missing", OBJECT_EXAMPLE)),
            Some(Value::String(kind)) if !object::KINDS.contains(&kind.as_str()) => {
                return Err(raw.error(format!("invalid object type: {kind}"), OBJECT_EXAMPLE));
            }
            Some(_) => {}
        }
        let options = object::read(raw.value, raw.scalars)
            .map_err(|error| CliError::input(OBJECT, text, &error))?;
        check_id(OBJECT, text, "id", options.id())?;
        if !self.object_ids.insert(options.id().to_owned()) {
            let problem = format!("duplicate ID '{}' for object", options.id());
            return Err(CliError::new(
                OBJECT,
                text,
                problem,
                "give each object its own id",
            ));
        }
        match options {
            ObjectOptions::IoThread(thread) => {
                let sensible = thread.loop_config(&LoopConfig::default());
                sensible.map_err(|error| {
                    CliError::new(OBJECT, text, error.to_string(), "correct the value")
                })?;
                self.storage.iothreads.push(thread);
            }
            ObjectOptions::ThrottleGroup(group) => {
                let sensible = group.limits.check();
                sensible.map_err(|error| {
                    CliError::new(OBJECT, text, error.to_string(), "correct the limits")
                })?;
                self.storage.throttle_groups.push(ThrottleGroupConfig {
                    id: group.id,
                    limits: group.limits,
                });
            }
        }
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
        let node = blockdev::read(raw.value, raw.scalars)
            .map_err(|error| CliError::input(BLOCKDEV, text, &error))?;
        self.storage.nodes.push(node);
        Ok(())
    }

    fn claim_node_name(
        &mut self,
        option: &'static str,
        text: &str,
        name: &str,
    ) -> Result<(), CliError> {
        check_id(option, text, "node-name", name)?;
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
        let (raw, file) = media::parse(text)?;
        let options: DriveOptions = throttling::drive(raw)?;
        if options.rerror == Some(OnError::Enospc) {
            // The text is QEMU's: no read fails for want of room.
            let remedy = "use report, ignore or stop";
            let problem = "'enospc' invalid read error action";
            return Err(CliError::new(DRIVE, text, problem, remedy));
        }
        let medium = media::medium(&options, file, text)?;
        let wanted = ide_place(&options, text)?;
        let attachment = match options.interface {
            DriveInterface::None => None,
            DriveInterface::Virtio => Some(Attachment::VirtioPci(virtio::plain(self.cpus()))),
            DriveInterface::Ide => {
                let place = self.places.claim_ide(DRIVE, text, wanted, None)?;
                Some(match options.media {
                    DriveMedia::Disk => Attachment::Ide(place),
                    DriveMedia::Cdrom => Attachment::IdeCd(place),
                })
            }
        };
        let id = match &options.id {
            Some(id) => {
                check_id(DRIVE, text, "id", id)?;
                id.clone()
            }
            None => match &attachment {
                Some(attachment) => self.default_id(attachment),
                None => self.numbered("none"),
            },
        };
        if !self.backends.insert(id.clone()) {
            let problem = format!("Duplicate ID '{id}' for drive");
            return Err(CliError::new(
                DRIVE,
                text,
                problem,
                "give each drive its own id",
            ));
        }
        if let Some(node) = &options.node_name {
            self.claim_node_name(DRIVE, text, node)?;
        }
        let serial = check_serial(DRIVE, text, options.serial.clone())?;
        let drive = Drive {
            medium,
            read_only: options.is_read_only(),
            write_cache: options.cache.write_cache(),
            rerror: options.rerror.unwrap_or(OnError::Auto),
            werror: options.werror.unwrap_or(OnError::Auto),
            limits: throttling::limits(&options, text)?,
            serial,
            used: attachment.is_some(),
            connected: attachment.is_some(),
        };
        if let Some(attachment) = attachment {
            let (own, attachment) = self.own_device(&id, attachment, text)?;
            let (rerror, werror) = own.errors_over(drive.rerror, drive.werror);
            let disk = DiskConfig {
                backend: id.clone(),
                id: None,
                root: root_of(drive.medium.as_ref()),
                write_cache: own.write_cache.unwrap_or(drive.write_cache),
                errors: ErrorPolicy::new(rerror, werror),
                share_rw: own.share_rw,
                limits: drive.limits.clone(),
                serial: check_serial(DRIVE, text, drive.serial.clone().or(own.serial))?,
                ide: own.ide,
                attachment,
                #[cfg(feature = "test-hooks")]
                postpone: true,
            };
            self.storage.disks.push(disk);
        }
        self.drives.insert(id, drive);
        Ok(())
    }

    /// QEMU's names for disks without one, which are also the ids of the jobs on them.
    fn default_id(&self, attachment: &Attachment) -> String {
        match attachment {
            Attachment::VirtioPci(_) => self.numbered("virtio"),
            Attachment::Ide(place) => format!("ide{}-hd{}", place.channel, place.unit),
            Attachment::IdeCd(place) => format!("ide{}-cd{}", place.channel, place.unit),
        }
    }

    fn numbered(&self, prefix: &str) -> String {
        (0_usize..)
            .map(|n| format!("{prefix}{n}"))
            .find(|id| !self.backends.contains(id) && !self.node_names.contains(id))
            .unwrap_or_default()
    }

    /// What `--global` says about the device that a `--drive` makes.
    fn own_device(
        &mut self,
        id: &str,
        attachment: Attachment,
        text: &str,
    ) -> Result<(DeviceDrive, Attachment), CliError> {
        let driver = match &attachment {
            Attachment::VirtioPci(_) => "virtio-blk-pci",
            Attachment::Ide(..) => "ide-hd",
            Attachment::IdeCd(..) => "ide-cd",
        };
        self.check_bus(driver, DRIVE, text)?;
        let mut raw = Raw {
            option: DRIVE,
            text: text.to_owned(),
            value: serde_json::json!({"drive": id}),
            scalars: Scalars::Text,
        };
        self.globals.apply(driver, &mut raw);
        Ok(match attachment {
            Attachment::VirtioPci(_) => {
                let options: VirtioBlkOptions = raw.typed()?;
                let threads = &self.storage.iothreads;
                let device = options.device(text, self.cpus(), threads, None)?;
                (options.into(), Attachment::VirtioPci(device))
            }
            Attachment::Ide(_) => {
                let options: IdeDiskOptions = raw.typed()?;
                (DeviceDrive::ide_disk(options, text)?, attachment)
            }
            Attachment::IdeCd(_) => (raw.typed::<IdeCdOptions>()?.into(), attachment),
        })
    }

    /// Refuses devices of a machine that has no buses.
    fn check_bus(&self, driver: &str, option: &'static str, text: &str) -> Result<(), CliError> {
        let model = DEVICES.iter().find(|model| model.name == driver);
        match (self.kind, model) {
            (MachineKind::None, Some(model)) => {
                let problem = format!("No '{}' bus found for device '{driver}'", model.bus);
                let remedy = "this machine has no buses; use --machine pc";
                Err(CliError::new(option, text, problem, remedy))
            }
            _ => Ok(()),
        }
    }

    fn device(&mut self, text: &str) -> Result<(), CliError> {
        let mut raw = Raw::parse(DEVICE, text, Some("driver"))?;
        let named = raw.take_kind("driver", DEVICE_EXAMPLE)?;
        let kind = device_kind(&named);
        self.check_bus(kind, DEVICE, text)?;
        self.globals.apply(kind, &mut raw);
        match kind {
            "virtio-blk-pci" => self.virtio_blk(raw.typed()?, text),
            "ide-hd" => self.ide_disk(raw.typed()?, text),
            "ide-cd" => self.ide_cd(raw.typed()?, text),
            "isa-debug-exit" => self.debug_exit(&raw.typed()?, text),
            _ => Err(raw.error(
                format!("'{kind}' is not a valid device model name"),
                DEVICE_EXAMPLE,
            )),
        }
    }

    fn cpus(&self) -> NonZeroU8 {
        self.cpus.unwrap_or(NonZeroU8::MIN)
    }

    fn virtio_blk(&mut self, options: VirtioBlkOptions, text: &str) -> Result<(), CliError> {
        if let Some(bus) = options.bus.as_ref().filter(|bus| *bus != "pci.0") {
            let problem = format!("Bus '{bus}' not found");
            return Err(CliError::new(
                DEVICE,
                text,
                problem,
                "the only PCI bus is pci.0",
            ));
        }
        if options.drive.is_none() {
            return Err(no_drive(text, "drive property not set"));
        }
        let address = options
            .addr
            .as_ref()
            .map(|addr| self.places.claim_pci(DEVICE, addr, text))
            .transpose()?;
        let threads = &self.storage.iothreads;
        let device = options.device(text, self.cpus(), threads, address)?;
        self.disk(options.into(), Attachment::VirtioPci(device), text)
    }

    fn ide_disk(&mut self, options: IdeDiskOptions, text: &str) -> Result<(), CliError> {
        if options.drive.is_none() {
            return Err(no_drive(text, "No drive specified"));
        }
        let place = self.ide_device_place(options.bus.as_deref(), options.unit, text)?;
        self.disk(
            DeviceDrive::ide_disk(options, text)?,
            Attachment::Ide(place),
            text,
        )
    }

    fn ide_cd(&mut self, options: IdeCdOptions, text: &str) -> Result<(), CliError> {
        let place = self.ide_device_place(options.bus.as_deref(), options.unit, text)?;
        self.disk(options.into(), Attachment::IdeCd(place), text)
    }

    /// Takes the place of an IDE `--device`.
    fn ide_device_place(
        &mut self,
        bus: Option<&str>,
        unit: Option<u8>,
        text: &str,
    ) -> Result<IdePosition, CliError> {
        let channel = match bus {
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
        let place = match unit {
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
        self.places.claim_ide(DEVICE, text, place, channel)
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
        let (mut rerror, mut werror) = (device.rerror, device.werror);
        let mut limits = None;
        // No name is no drive's.
        let name = device.drive.unwrap_or_default();
        let is_new = !self.drives.contains_key(&name);
        let (root, default_cache, serial) = match self.drives.get_mut(&name) {
            Some(drive) => {
                drive.check_free(&name, text)?;
                drive.used = true;
                limits.clone_from(&drive.limits);
                if rerror == OnError::Auto {
                    rerror = drive.rerror;
                }
                if werror == OnError::Auto {
                    werror = drive.werror;
                }
                if drive.medium.is_none() && !matches!(attachment, Attachment::IdeCd(_)) {
                    let problem = "Device needs media, but drive is empty";
                    let remedy = format!("name the image in --drive if=none,id={name}");
                    return Err(CliError::new(DEVICE, text, problem, remedy));
                }
                (
                    root_of(drive.medium.as_ref()),
                    drive.write_cache,
                    device.serial.or(drive.serial.clone()),
                )
            }
            None if name.is_empty() => (DiskRoot::Empty, true, device.serial),
            None => {
                self.claim_node(&name, text)?;
                (DiskRoot::Named(name.clone()), true, device.serial)
            }
        };
        let backend = if is_new {
            let id = device.id.clone();
            id.unwrap_or_else(|| self.default_id(&attachment))
        } else {
            name
        };
        // A drive's id was taken when the drive was declared.
        if is_new && !self.backends.insert(backend.clone()) {
            let problem = format!("'{backend}' is the name of another disk");
            return Err(CliError::new(
                DEVICE,
                text,
                problem,
                "give each device its own id",
            ));
        }
        let disk = DiskConfig {
            backend,
            id: device.id,
            root,
            write_cache: device.write_cache.unwrap_or(default_cache),
            errors: ErrorPolicy::new(rerror, werror),
            share_rw: device.share_rw,
            limits,
            serial: check_serial(DEVICE, text, serial)?,
            ide: device.ide,
            attachment,
            #[cfg(feature = "test-hooks")]
            postpone: device.postpone,
        };
        self.storage.disks.push(disk);
        Ok(())
    }

    /// Takes the node `name` for a device.
    fn claim_node(&mut self, name: &str, text: &str) -> Result<(), CliError> {
        if !self.node_names.contains(name) {
            let problem = format!("there is no drive or node '{name}'");
            let remedy = "declare it with --blockdev ...,node-name=NAME or --drive if=none,id=NAME";
            return Err(CliError::new(DEVICE, text, problem, remedy));
        }
        if !self.used_nodes.insert(name.to_owned()) {
            let problem = format!("Drive '{name}' is already in use by another device");
            return Err(CliError::new(
                DEVICE,
                text,
                problem,
                "one disk image per device",
            ));
        }
        Ok(())
    }

    /// Refuses a disk with the name of a node that is not its own: commands that take either name
    /// would reach the wrong disk.
    fn check_names(&self) -> Result<(), CliError> {
        let disks = self.storage.disks.iter().filter_map(|disk| {
            let own = matches!(&disk.root, DiskRoot::Named(node) if *node == disk.backend);
            (!own).then_some(&disk.backend)
        });
        let loose = self.storage.loose_drives.iter().map(|drive| &drive.id);
        match disks
            .chain(loose)
            .find(|name| self.node_names.contains(*name))
        {
            None => Ok(()),
            Some(name) => {
                let problem = format!("node-name={name} is conflicting with a device id");
                Err(CliError::bare(
                    BLOCKDEV,
                    problem,
                    "give disk and node different names",
                ))
            }
        }
    }

    /// Makes disks without a device of the drives that no device uses: QMP can work on them, and put media
    /// into those that are empty.
    fn add_loose_drives(&mut self) {
        for (id, drive) in &mut self.drives {
            if !drive.used {
                drive.used = true;
                self.storage.loose_drives.push(LooseDriveConfig {
                    id: id.clone(),
                    root: root_of(drive.medium.as_ref()),
                    read_only: drive.read_only,
                    limits: drive.limits.clone(),
                    device: LooseDeviceDefaults {
                        write_cache: drive.write_cache,
                        rerror: drive.rerror,
                        werror: drive.werror,
                        serial: drive.serial.clone(),
                    },
                });
            }
        }
    }
}

impl Drive {
    fn check_free(&self, name: &str, text: &str) -> Result<(), CliError> {
        let (problem, remedy) = if self.connected {
            let problem = format!(
                "Drive '{name}' is already in use because it has been automatically connected to \
                 another device"
            );
            (problem, "write if=none in its --drive")
        } else if self.used {
            let problem = format!("Drive '{name}' is already in use by another device");
            (problem, "one disk image per device")
        } else {
            return Ok(());
        };
        Err(CliError::new(DEVICE, text, problem, remedy))
    }
}

/// A device that needs a drive, without one.
fn no_drive(text: &str, problem: &str) -> CliError {
    let remedy = "add drive=NAME, of a --blockdev or a --drive if=none";
    CliError::new(DEVICE, text, problem, remedy)
}

/// What a drive's device stands on.
fn root_of(medium: Option<&BlockdevOptions>) -> DiskRoot {
    match medium {
        Some(medium) => DiskRoot::Own(medium.clone()),
        None => DiskRoot::Empty,
    }
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
pub(super) fn check_id(
    option: &'static str,
    text: &str,
    parameter: &str,
    id: &str,
) -> Result<(), CliError> {
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

pub(super) fn check_serial(
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
