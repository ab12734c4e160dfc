//! The kinds of devices that a user can ask for, and QEMU's tree of types that they have a place in.
//!
//! The command line, `--global`, `--device help` and the queries about types all read these tables.

use super::config::MachineKind;

/// A kind of device.
#[derive(Clone, Copy, Debug)]
pub struct DeviceModel {
    /// Its name for `--device`, which is its type's as well.
    pub name: &'static str,
    /// The type it is a special case of.
    pub parent: &'static str,
    /// The kind of bus it goes on.
    pub bus: &'static str,
    /// What it is for.
    pub category: &'static str,
    /// What it is, for people.
    pub description: &'static str,
}

/// All of them, by category.
pub const DEVICES: &[DeviceModel] = &[
    DeviceModel {
        name: "ide-cd",
        parent: "ide-device",
        bus: "IDE",
        category: "Storage",
        description: "virtual IDE CD-ROM",
    },
    DeviceModel {
        name: "ide-hd",
        parent: "ide-device",
        bus: "IDE",
        category: "Storage",
        description: "virtual IDE disk",
    },
    DeviceModel {
        name: "virtio-blk-pci",
        parent: "virtio-pci",
        bus: "PCI",
        category: "Storage",
        description: "virtio disk",
    },
    DeviceModel {
        name: "isa-debug-exit",
        parent: "isa-device",
        bus: "ISA",
        category: "Misc",
        description: "port whose write ends the process",
    },
];

/// Other names of kinds of devices, which QEMU gives to those of the machine's usual bus.
const ALIASES: &[(&str, &str)] = &[("virtio-blk", "virtio-blk-pci")];

/// The kind of device that is meant by `name`, which may be another name for it.
#[must_use]
pub fn device_kind(name: &str) -> &str {
    let alias = ALIASES.iter().find(|(alias, _)| *alias == name);
    alias.map_or(name, |(_, kind)| kind)
}

/// A type that is not a user's to make: the name, its parent, and whether nothing is of just this type.
pub const TYPES: &[(&str, Option<&str>, bool)] = &[
    ("object", None, true),
    ("device", Some("object"), true),
    ("pci-device", Some("device"), true),
    ("isa-device", Some("device"), true),
    ("ide-device", Some("device"), true),
    ("virtio-pci", Some("pci-device"), true),
    ("i440FX", Some("pci-device"), false),
    ("PIIX3", Some("pci-device"), false),
    ("piix3-ide", Some("pci-device"), false),
    ("piix4-ide", Some("pci-device"), false),
    ("i440FX-pcihost", Some("device"), false),
    ("ioapic", Some("device"), false),
    ("mc146818rtc", Some("isa-device"), false),
    ("isa-serial", Some("isa-device"), false),
    ("i8042", Some("isa-device"), false),
    ("pvpanic", Some("isa-device"), false),
    ("fw_cfg_io", Some("device"), false),
    ("machine", Some("object"), true),
    ("iothread", Some("object"), false),
    ("throttle-group", Some("object"), false),
];

/// The type of a machine.
#[must_use]
pub fn machine_type(kind: MachineKind) -> String {
    format!("{}-machine", kind.name())
}
