//! The properties of devices that are plugged in while the machine runs: those of `--device`, with what
//! `--global` says, from QMP's `device_add`.

use std::num::NonZeroU8;

use serde_json::{Map, Value};
use sluice_block::job::OnError;
use thiserror::Error;

use super::disks::{check_id, check_serial};
use super::error::CliError;
use super::globals::Globals;
use super::places::pci_address;
use super::virtio::VirtioBlkOptions;
use crate::qmp::input::{self, InputError, Scalars};
use crate::storage::{IoThreadConfig, PluggedDisk};

const MODEL: &str = "virtio-blk-pci";
/// Whose properties they are, for messages that do not show it.
const DEVICE_ADD: &str = "device_add";

/// Why a device's properties are not those of a device. The texts are QEMU's.
#[derive(Debug, Error)]
pub enum PropertyError {
    /// There is no such property.
    #[error("Property '{MODEL}.{0}' not found")]
    Unknown(String),
    /// There is no such place.
    #[error("Property '{MODEL}.addr' doesn't take value '{0}'")]
    Address(String),
    /// A disk needs one.
    #[error("drive property not set")]
    NoDrive,
    /// A value of another type.
    #[error(transparent)]
    Input(InputError),
    /// A value that `--device` does not take either.
    #[error("{}", .0.problem())]
    Refused(#[from] CliError),
}

impl From<InputError> for PropertyError {
    fn from(error: InputError) -> Self {
        match error.unexpected_member() {
            Some(name) => Self::Unknown(name.to_owned()),
            None => Self::Input(error),
        }
    }
}

/// Reads devices for a machine.
#[derive(Clone, Debug)]
pub struct DeviceReader {
    globals: Globals,
    cpus: NonZeroU8,
}

impl DeviceReader {
    pub(super) fn new(globals: Globals, cpus: NonZeroU8) -> Self {
        Self { globals, cpus }
    }

    /// Reads a virtio disk: all of its properties but `driver` and `bus`, with these threads there.
    ///
    /// # Errors
    /// [`PropertyError`].
    pub fn virtio_blk(
        &self,
        mut properties: Map<String, Value>,
        iothreads: &[IoThreadConfig],
    ) -> Result<PluggedDisk, PropertyError> {
        self.globals
            .complete(MODEL, &mut properties, Scalars::Typed);
        let options: VirtioBlkOptions =
            input::from_value(Value::Object(properties), Scalars::Typed)?;
        let address = match &options.addr {
            Some(text) => {
                let place = pci_address(text);
                Some(place.ok_or_else(|| PropertyError::Address(text.clone()))?)
            }
            None => None,
        };
        if let Some(id) = &options.id {
            check_id(DEVICE_ADD, "", "id", id)?;
        }
        let device = options.device("", self.cpus, iothreads, address)?;
        Ok(PluggedDisk {
            drive: options.drive.ok_or(PropertyError::NoDrive)?,
            serial: check_serial(DEVICE_ADD, "", options.serial)?,
            id: options.id,
            write_cache: options.write_cache,
            rerror: options.rerror.unwrap_or(OnError::Auto),
            werror: options.werror.unwrap_or(OnError::Auto),
            share_rw: options.share_rw,
            device,
        })
    }
}
