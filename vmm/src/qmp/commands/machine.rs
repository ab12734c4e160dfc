//! Queries about the machine's type, its CPUs and its character devices.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Monitor, NoArguments};
use crate::chardev::ChardevInfo;
use crate::machine::config::MachineKind;
use crate::qmp::error::QmpError;

/// A machine without one has this, as in QEMU.
const NO_UUID: &str = "00000000-0000-0000-0000-000000000000";

/// Arguments of `query-machines`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct QueryMachines {
    /// There is one version of each machine, so there is nothing to be compatible with.
    compat_props: Option<bool>,
}

/// QEMU's `CompatProperty`, of which there are none.
#[derive(JsonSchema, Serialize)]
struct CompatProperty {}

/// QEMU's `MachineInfo`.
#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct MachineInfo {
    name: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    alias: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    is_default: Option<bool>,
    cpu_max: u32,
    hotpluggable_cpus: bool,
    numa_mem_supported: bool,
    deprecated: bool,
    acpi: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    compat_props: Option<Vec<CompatProperty>>,
}

pub(super) async fn query_machines(
    _: Arc<Monitor>,
    arguments: QueryMachines,
) -> Result<Vec<MachineInfo>, QmpError> {
    let wanted = arguments.compat_props == Some(true);
    let info = |kind: MachineKind| MachineInfo {
        name: kind.name(),
        alias: kind.alias(),
        is_default: (kind == MachineKind::default()).then_some(true),
        cpu_max: kind.most_cpus(),
        hotpluggable_cpus: false,
        numa_mem_supported: false,
        deprecated: false,
        acpi: kind == MachineKind::Pc,
        compat_props: wanted.then(Vec::new),
    };
    Ok(MachineKind::ALL.map(info).into())
}

/// QEMU's `SysEmuTarget`.
#[derive(JsonSchema, Serialize)]
enum Target {
    #[serde(rename = "x86_64")]
    X86_64,
}

/// QEMU's `CpuInfoFast`.
#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct CpuInfo {
    cpu_index: usize,
    qom_path: String,
    thread_id: u32,
    target: Target,
}

pub(super) async fn query_cpus_fast(
    monitor: Arc<Monitor>,
    _: NoArguments,
) -> Result<Vec<CpuInfo>, QmpError> {
    let threads = monitor.vm.cpu_threads().into_iter().enumerate();
    let info = |(cpu_index, thread_id)| CpuInfo {
        cpu_index,
        qom_path: format!("/machine/unattached/device[{cpu_index}]"),
        thread_id,
        target: Target::X86_64,
    };
    Ok(threads.map(info).collect())
}

/// The answer to `query-uuid`.
#[derive(JsonSchema, Serialize)]
pub(super) struct Uuid {
    #[serde(rename = "UUID")]
    uuid: String,
}

pub(super) async fn query_uuid(monitor: Arc<Monitor>, _: NoArguments) -> Result<Uuid, QmpError> {
    let uuid = monitor.vm.uuid();
    Ok(Uuid {
        uuid: uuid.unwrap_or_else(|| NO_UUID.to_owned()),
    })
}

/// QEMU's `ChardevInfo`.
#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct ChardevRecord {
    label: String,
    filename: String,
    frontend_open: bool,
}

impl From<ChardevInfo> for ChardevRecord {
    fn from(info: ChardevInfo) -> Self {
        Self {
            label: info.label,
            filename: info.filename,
            frontend_open: info.frontend_open,
        }
    }
}

pub(super) async fn query_chardev(
    monitor: Arc<Monitor>,
    _: NoArguments,
) -> Result<Vec<ChardevRecord>, QmpError> {
    let all = monitor.chardevs.list().into_iter();
    Ok(all.map(ChardevRecord::from).collect())
}
