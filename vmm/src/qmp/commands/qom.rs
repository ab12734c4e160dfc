//! The tree of types and objects, as far as there is one: clients look up in it what they can ask for.
//!
//! Types are those of [`crate::machine::models`], in QEMU's names. Of objects the tree has what commands
//! name by path: the machine, its devices that were given an id, and what `object-add` has made.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Monitor;
use super::objects::QomGet;
use crate::control::Accelerator;
use crate::machine::config::MachineKind;
use crate::machine::hotplug::DeviceInfo;
use crate::machine::models::{self, DEVICES, TYPES};
use crate::qmp::error::{ErrorClass, QmpError};
use crate::qmp::schema::{self, Shape};

/// A type of the tree.
struct Type {
    name: String,
    parent: Option<&'static str>,
    is_abstract: bool,
}

/// All types.
fn types() -> impl Iterator<Item = Type> {
    let fixed = TYPES.iter().map(|(name, parent, is_abstract)| Type {
        name: (*name).to_owned(),
        parent: *parent,
        is_abstract: *is_abstract,
    });
    let devices = DEVICES.iter().map(|model| Type {
        name: model.name.to_owned(),
        parent: Some(model.parent),
        is_abstract: false,
    });
    let machines = MachineKind::ALL.into_iter().map(|kind| Type {
        name: models::machine_type(kind),
        parent: Some("machine"),
        is_abstract: false,
    });
    fixed.chain(devices).chain(machines)
}

/// Whether the type `name` is `ancestor` or a special case of it.
fn implements(name: &str, ancestor: &str) -> bool {
    let parent = |name: &str| types().find(|known| known.name == name)?.parent;
    let mut next = parent(name);
    if name == ancestor {
        return true;
    }
    // No type is its own ancestor, and there are not many generations.
    while let Some(name) = next {
        if name == ancestor {
            return true;
        }
        next = parent(name);
    }
    false
}

/// Arguments of `qom-list-types`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct QomListTypes {
    implements: Option<String>,
    #[serde(rename = "abstract")]
    is_abstract: Option<bool>,
}

/// QEMU's `ObjectTypeInfo`.
#[derive(JsonSchema, Serialize)]
pub(super) struct TypeInfo {
    name: String,
    #[serde(rename = "abstract", skip_serializing_if = "Option::is_none")]
    is_abstract: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<&'static str>,
}

/// Abstract types are told of only if they are asked for, as in QEMU.
pub(super) async fn qom_list_types(
    _: Arc<Monitor>,
    arguments: QomListTypes,
) -> Result<Vec<TypeInfo>, QmpError> {
    let ancestor = arguments.implements.as_deref().unwrap_or("object");
    let with_abstract = arguments.is_abstract == Some(true);
    let found = types()
        .filter(|found| (with_abstract || !found.is_abstract) && implements(&found.name, ancestor));
    let info = |found: Type| TypeInfo {
        is_abstract: found.is_abstract.then_some(true),
        parent: found.parent,
        name: found.name,
    };
    Ok(found.map(info).collect())
}

/// QEMU's `ObjectPropertyInfo`.
#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct PropertyInfo {
    name: String,
    #[serde(rename = "type")]
    kind: String,
}

/// Arguments of `qom-list`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct QomList {
    path: String,
}

/// What is directly below a path.
pub(super) async fn qom_list(
    monitor: Arc<Monitor>,
    arguments: QomList,
) -> Result<Vec<PropertyInfo>, QmpError> {
    let child = |name: &str, kind: &str| PropertyInfo {
        name: name.to_owned(),
        kind: format!("child<{kind}>"),
    };
    let property = |name: &str, kind: &str| PropertyInfo {
        name: name.to_owned(),
        kind: kind.to_owned(),
    };
    let machine = models::machine_type(monitor.vm.machine_kind());
    let path = normal(&arguments.path);
    let path = path.as_str();
    let mut found = vec![property("type", "string")];
    match path {
        "" => found.extend([child("machine", &machine), child("objects", "container")]),
        "/machine" => found.extend([
            property("accel", "string"),
            child("peripheral", "container"),
        ]),
        PERIPHERAL => {
            let devices = devices(&monitor).into_iter();
            let named = devices.filter_map(|device| Some((device.id?, device.model)));
            found.extend(named.map(|(id, model)| child(&id, model)));
        }
        "/objects" => {
            let threads = monitor.iothreads.list().into_iter();
            found.extend(threads.map(|(config, _)| child(&config.id, "iothread")));
            let groups = monitor.graph.throttle_groups().object_names();
            found.extend(groups.iter().map(|name| child(name, "throttle-group")));
        }
        _ => {
            let id = path.strip_prefix("/objects/").unwrap_or(path);
            if monitor.iothreads.get(id).is_some() {
                let names = crate::iothreads::PROPERTIES.iter();
                found.extend(names.map(|name| property(name, "int")));
            } else if monitor.graph.throttle_groups().object(id).is_some() {
                found.push(property("limits", "ThrottleLimits"));
            } else if devices(&monitor).iter().any(|device| device.path == path) {
                found.extend([
                    property("drive", "str"),
                    property("hotplugged", "bool"),
                    property("realized", "bool"),
                ]);
            } else {
                return Err(QmpError {
                    class: ErrorClass::DeviceNotFound,
                    desc: format!("Device '{}' not found", arguments.path),
                });
            }
        }
    }
    Ok(found)
}

/// Where the devices that were given an id are.
const PERIPHERAL: &str = "/machine/peripheral";

fn devices(monitor: &Monitor) -> Vec<DeviceInfo> {
    let devices = monitor.devices.as_ref();
    devices
        .map(|devices| devices.plug.list())
        .unwrap_or_default()
}

/// What a device tells of itself.
pub(super) fn device_property(monitor: &Monitor, arguments: &QomGet) -> Option<Value> {
    let path = normal(&arguments.path);
    let mut present = devices(monitor).into_iter();
    let device = present.find(|device| device.is(&path))?;
    match arguments.property.as_str() {
        "type" => Some(device.model.into()),
        "drive" => Some(device.drive.into()),
        "hotplugged" => Some(device.hotplugged.into()),
        "realized" => Some(true.into()),
        _ => None,
    }
}

/// A path without slashes that say nothing; the root is empty.
pub(super) fn normal(path: &str) -> String {
    let parts = path.split('/').filter(|part| !part.is_empty());
    let path_below: String = parts.flat_map(|part| ["/", part]).collect();
    if path.starts_with('/') {
        path_below
    } else {
        path_below.trim_start_matches('/').to_owned()
    }
}

/// What the fixed part of the tree tells: types, and who runs the machine.
pub(super) fn fixed_property(monitor: &Monitor, arguments: &QomGet) -> Option<Value> {
    let accelerator = match monitor.vm.accelerator() {
        Accelerator::Kvm => "kvm",
        Accelerator::Qtest => "qtest",
    };
    match (
        normal(&arguments.path).as_str(),
        arguments.property.as_str(),
    ) {
        ("" | "/objects" | PERIPHERAL, "type") => Some("container".into()),
        ("/machine", "type") => Some(models::machine_type(monitor.vm.machine_kind()).into()),
        ("/machine", "accel") => Some(accelerator.into()),
        _ => None,
    }
}

/// Arguments of `device-list-properties` and `qom-list-properties`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListProperties {
    typename: String,
}

/// The properties of a kind of device.
pub(super) async fn device_list_properties(
    _: Arc<Monitor>,
    arguments: ListProperties,
) -> Result<Vec<PropertyInfo>, QmpError> {
    let name = arguments.typename;
    let Some(found) = types().find(|found| found.name == name) else {
        return Err(QmpError {
            class: ErrorClass::DeviceNotFound,
            desc: format!("Device '{name}' not found"),
        });
    };
    if !implements(&name, "device") || found.is_abstract {
        let expected = "a non-abstract device type";
        let desc = format!("Parameter 'typename' expects {expected}");
        return Err(QmpError::generic(desc));
    }
    Ok(properties(&name))
}

/// The properties of any type.
pub(super) async fn qom_list_properties(
    _: Arc<Monitor>,
    arguments: ListProperties,
) -> Result<Vec<PropertyInfo>, QmpError> {
    let name = arguments.typename;
    if types().any(|found| found.name == name) {
        return Ok(properties(&name));
    }
    Err(QmpError {
        class: ErrorClass::DeviceNotFound,
        desc: format!("Class '{name}' not found"),
    })
}

/// What the options of that type take; nothing for what a user can't make.
fn properties(name: &str) -> Vec<PropertyInfo> {
    let Some(Shape::Object(members)) = crate::cli::device_shape(name) else {
        return Vec::new();
    };
    let info = |member: schema::Member| PropertyInfo {
        kind: member.shape.property_type(),
        name: member.name,
    };
    members.into_iter().map(info).collect()
}
