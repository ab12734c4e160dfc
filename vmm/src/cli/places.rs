//! Where disks go: the four places on the IDE buses and the slots of the PCI bus.

use std::collections::BTreeSet;

use super::error::CliError;
use super::options::{DriveInterface, DriveOptions};
use crate::storage::{IdePosition, PciAddress};

/// PCI slots that the machine itself occupies: host bridge and PIIX.
const BOARD_SLOTS: u8 = 2;
/// Slots of a PCI bus.
const PCI_SLOTS: u8 = 32;
/// Functions of a PCI slot.
const PCI_FUNCTIONS: u8 = 8;

/// The places that are taken.
#[derive(Default)]
pub(super) struct Places {
    ide: BTreeSet<IdePosition>,
    pci: BTreeSet<PciAddress>,
}

impl Places {
    /// Takes a place on the IDE channels: `place`, or else the first that is free (on `channel`, if
    /// that is given).
    pub(super) fn claim_ide(
        &mut self,
        option: &'static str,
        text: &str,
        place: Option<IdePosition>,
        channel: Option<u8>,
    ) -> Result<IdePosition, CliError> {
        let free = |place: &IdePosition| {
            channel.is_none_or(|channel| channel == place.channel) && !self.ide.contains(place)
        };
        let Some(place) = place.or_else(|| ide_positions().find(free)) else {
            let problem = "no place is left on the IDE buses";
            let remedy = "four IDE disks fit; use virtio-blk-pci for more";
            return Err(CliError::new(option, text, problem, remedy));
        };
        if self.ide.insert(place) {
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

    /// Takes the place that `addr=` names.
    pub(super) fn claim_pci(
        &mut self,
        option: &'static str,
        addr: &str,
        text: &str,
    ) -> Result<PciAddress, CliError> {
        let remedy = "write SLOT or SLOT.FUNCTION in hexadecimal, slot 2 to 1f, function 0 to 7";
        let Some(address) = pci_address(addr) else {
            let problem = format!("Parameter 'addr' does not accept value '{addr}'");
            return Err(CliError::new(option, text, problem, remedy));
        };
        if address.slot < BOARD_SLOTS || !self.pci.insert(address) {
            let problem = format!(
                "PCI: slot {} function {} is in use already",
                address.slot, address.function
            );
            return Err(CliError::new(option, text, problem, remedy));
        }
        Ok(address)
    }
}

/// The place that `addr=` names, if it can be one: `SLOT` or `SLOT.FUNCTION`, in hexadecimal.
pub(super) fn pci_address(text: &str) -> Option<PciAddress> {
    let (slot, function) = text.split_once('.').unwrap_or((text, "0"));
    let hex = |text: &str| u8::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16).ok();
    let (slot, function) = (hex(slot)?, hex(function)?);
    (slot < PCI_SLOTS && function < PCI_FUNCTIONS).then_some(PciAddress { slot, function })
}

fn ide_positions() -> impl Iterator<Item = IdePosition> {
    (0..IdePosition::CHANNELS)
        .flat_map(|channel| (0..IdePosition::UNITS).map(move |unit| IdePosition { channel, unit }))
}

/// Where `index=`, or `bus=` and `unit=`, put an IDE drive.
pub(super) fn ide_place(
    options: &DriveOptions,
    text: &str,
) -> Result<Option<IdePosition>, CliError> {
    let refuse = |problem: &str, remedy: &str| Err(CliError::new("--drive", text, problem, remedy));
    let named = options.index.is_some() || options.bus.is_some() || options.unit.is_some();
    if options.interface != DriveInterface::Ide {
        // QEMU's scripts number drives whose places their devices know.
        return if named && options.interface != DriveInterface::None {
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
