//! [`PlugError`], in QEMU's words.

use sluice_block::BlockError;
use sluice_devices::pci::PciError;
use sluice_devices::virtio::VirtioError;
use thiserror::Error;

use crate::storage::PciAddress;

/// Why a device does not come or go.
#[derive(Debug, Error)]
pub enum PlugError {
    /// There is no such device.
    #[error("Device '{0}' not found")]
    NotFound(String),
    /// It is on its way out.
    #[error("Device {0} is already in the process of unplug")]
    Leaving(String),
    /// What is on that bus stays.
    #[error("Bus '{0}' does not support hotplugging")]
    NoHotplug(String),
    /// The name is taken.
    #[error("Duplicate device ID '{0}'")]
    DuplicateId(String),
    /// There is neither a drive nor a node of that name.
    #[error("Property 'virtio-blk-device.drive' can't find value '{0}'")]
    NoDrive(String),
    /// Another device is on that drive.
    #[error("Drive '{0}' is already in use by another device")]
    DriveInUse(String),
    /// The drive has no medium.
    #[error("Device needs media, but drive is empty")]
    EmptyDrive,
    /// The drive's image is the drive's alone.
    #[error("share-rw=on needs a node of blockdev-add, and '{0}' is a drive")]
    SharedDrive(String),
    /// A device is there already, or none can be.
    #[error("PCI: slot {} function {} not available for virtio-blk-pci", .0.slot, .0.function)]
    SlotTaken(PciAddress),
    /// A guest learns of function 0 alone.
    #[error(
        "PCI: single function device can't be populated in function {:x}.{:x}",
        .0.slot, .0.function
    )]
    Function(PciAddress),
    /// No slot is left, or the host has too few resources.
    #[error(transparent)]
    Pci(#[from] PciError),
    /// A property that the device can't have.
    #[error(transparent)]
    Virtio(#[from] VirtioError),
    /// The disk.
    #[error(transparent)]
    Block(#[from] BlockError),
    /// The thread is not there.
    #[error("Cannot find iothread '{0}'")]
    NoIoThread(String),
}
