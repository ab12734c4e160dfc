//! `device_add` and `device_del`.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::mirror::split;
use super::{Done, Monitor};
use crate::machine::hotplug::{HotPlug, PlugError};
use crate::machine::models::{DEVICES, device_kind};
use crate::qmp::error::{ErrorClass, QmpError};
use crate::qmp::input::{self, Scalars};
use crate::qmp::schema::{self, Shape};

/// Arguments that each device has; the others are properties of its kind.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DeviceAddCommon {
    driver: String,
    bus: Option<String>,
    id: Option<String>,
}

impl DeviceAddCommon {
    const NAMES: &[&str] = &["driver", "bus", "id"];
}

/// All arguments of `device_add`, to be split.
#[derive(Deserialize)]
pub(super) struct DeviceAddArguments(Map<String, Value>);

/// What these are read from, by their name. As QEMU's schema it does not tell of the properties, which differ
/// from kind to kind: `device-list-properties` does.
pub(super) fn named_shape(name: &str) -> Option<Shape> {
    (name == "DeviceAddArguments").then(schema::shape_of::<DeviceAddCommon>)
}

/// The buses, by the kind of devices that go on them.
const BUSES: &[(&str, &str)] = &[
    ("PCI", "pci.0"),
    ("IDE", "ide.0"),
    ("IDE", "ide.1"),
    ("ISA", "isa.0"),
];

/// The kind of bus that takes devices while the machine runs.
const HOTPLUG_KIND: &str = "PCI";

/// The bus that a device goes on, if that takes it now.
fn check_bus(driver: &str, bus: Option<&str>) -> Result<(), QmpError> {
    let Some(model) = DEVICES.iter().find(|model| model.name == driver) else {
        let desc = format!("'{driver}' is not a valid device model name");
        return Err(QmpError::generic(desc));
    };
    let mut buses = BUSES.iter();
    let found = match bus {
        Some(name) => buses.find(|(_, known)| *known == name),
        None => buses.find(|(kind, _)| *kind == model.bus),
    };
    match found {
        None => {
            let name = bus.unwrap_or_default();
            Err(QmpError::generic(format!("Bus '{name}' not found")))
        }
        Some((kind, _)) if *kind != model.bus => Err(QmpError::generic(format!(
            "Device '{driver}' can't go on {kind} bus"
        ))),
        Some((kind, name)) if *kind != HOTPLUG_KIND => {
            Err(PlugError::NoHotplug((*name).to_owned()).into())
        }
        Some(_) => Ok(()),
    }
}

pub(super) async fn device_add(
    monitor: Arc<Monitor>,
    arguments: DeviceAddArguments,
) -> Result<Done, QmpError> {
    let (common, properties) = split(arguments.0, DeviceAddCommon::NAMES);
    let common: DeviceAddCommon = input::from_value(common, Scalars::Typed)?;
    let Some(devices) = &monitor.devices else {
        let driver = &common.driver;
        let desc = format!("No '{HOTPLUG_KIND}' bus found for device '{driver}'");
        return Err(QmpError::generic(desc));
    };
    check_bus(device_kind(&common.driver), common.bus.as_deref())?;
    let mut properties = match properties {
        Value::Object(members) => members,
        _ => Map::new(),
    };
    if let Some(id) = common.id {
        properties.insert("id".to_owned(), id.into());
    }
    let threads: Vec<_> = monitor
        .iothreads
        .list()
        .into_iter()
        .map(|(one, _)| one)
        .collect();
    let disk = devices.reader.virtio_blk(properties, &threads);
    let disk = disk.map_err(|error| QmpError::generic(error.to_string()))?;
    devices.plug.plug(disk).await?;
    Ok(Done {})
}

/// Arguments of `device_del`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DeviceDel {
    id: String,
}

pub(super) async fn device_del(
    monitor: Arc<Monitor>,
    arguments: DeviceDel,
) -> Result<Done, QmpError> {
    match &monitor.devices {
        Some(devices) => devices.plug.request_unplug(&arguments.id)?,
        None => return Err(PlugError::NotFound(arguments.id).into()),
    }
    Ok(Done {})
}

/// The devices that come and go, and how those that come are read.
pub struct Devices {
    /// The devices.
    pub plug: Arc<HotPlug>,
    /// Reads what `device_add` says.
    pub reader: crate::cli::DeviceReader,
}

impl From<PlugError> for QmpError {
    fn from(error: PlugError) -> Self {
        let class = match error {
            PlugError::NotFound(_) => ErrorClass::DeviceNotFound,
            _ => ErrorClass::GenericError,
        };
        Self {
            class,
            desc: error.to_string(),
        }
    }
}
