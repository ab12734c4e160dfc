//! The configuration space of a virtio function: its capabilities, and the one through which
//! configuration accesses reach the BARs.
//!
//! Accessed on vCPU threads.

use super::VirtioPci;
use super::layout::{
    self, CAPABILITY_BODY_LEN, CAPABILITY_EXTRA_LEN, MSIX_BAR, NOTIFY_STRIDE, STRUCTURES_BAR,
    STRUCTURES_LEN, Structure, capability,
};
use crate::pci::layout::{CapabilityId, InterruptPin, class};
use crate::pci::msix::{self, MessageControl};
use crate::pci::{BarIndex, BarKind, ConfigBuilder, Identity, Msix, PciConfig};
use crate::virtio::VirtioError;

/// The smallest BAR for MSI-X: a page, so that it can be mapped alone.
const MSIX_BAR_LEAST: u64 = 0x1000;

/// The configuration space of a virtio function; with it the offsets of the MSI-X and the PCI
/// access capabilities.
pub(super) fn configuration(
    device_id: u16,
    msix: &Msix,
) -> Result<(PciConfig, Option<usize>, usize), VirtioError> {
    let mut builder = ConfigBuilder::new(Identity {
        vendor: layout::VENDOR,
        device: layout::DEVICE_BASE + device_id,
        revision: layout::REVISION,
        class: class::STORAGE_SCSI,
    })
    .subsystem(layout::VENDOR, layout::SUBSYSTEM)
    .interrupt_pin(InterruptPin::A)
    .bar(STRUCTURES_BAR, BarKind::Memory64, STRUCTURES_LEN)?;

    let mut msix_capability = None;
    if !msix.is_empty() {
        let pending = msix.table_len();
        let size = (pending + msix.pending_len())
            .next_power_of_two()
            .max(MSIX_BAR_LEAST);
        builder = builder.bar(MSIX_BAR, BarKind::Memory32, size)?;
        // The table has at most 2048 entries of 16 bytes.
        let pending = u32::try_from(pending).unwrap_or(u32::MAX);
        let (body, writable) = msix.capability(MSIX_BAR, 0, pending);
        msix_capability = Some(builder.capability(CapabilityId::MsiX, &body, &writable)?);
    }
    for structure in Structure::IN_BAR {
        let body = virtio_capability(structure);
        let extra: &[u8] = match structure {
            Structure::Notify => &NOTIFY_STRIDE.to_le_bytes(),
            _ => &[],
        };
        builder.capability(CapabilityId::Vendor, &[&body, extra].concat(), &[])?;
    }
    let body = [virtio_capability(Structure::PciAccess).as_slice(), &[0; 4]].concat();
    // Everything from `bar` on can be written, but for the padding.
    let writable = [
        0, 0, 0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
    ];
    let access = builder.capability(CapabilityId::Vendor, &body, &writable)?;
    Ok((builder.build(), msix_capability, access))
}

/// A `virtio_pci_cap` behind ID and link.
fn virtio_capability(structure: Structure) -> [u8; CAPABILITY_BODY_LEN] {
    let extra = match structure {
        Structure::Notify | Structure::PciAccess => CAPABILITY_EXTRA_LEN,
        Structure::Common | Structure::Isr | Structure::Device => 0,
    };
    // 16 or 20.
    let len = u8::try_from(2 + CAPABILITY_BODY_LEN + extra).unwrap_or(u8::MAX);
    let mut body = [0; CAPABILITY_BODY_LEN];
    body[0] = len;
    body[1] = structure as u8;
    if structure != Structure::PciAccess {
        body[capability::BAR - 2] = STRUCTURES_BAR.number();
    }
    body[capability::OFFSET - 2..][..4].copy_from_slice(&structure.offset().to_le_bytes());
    body[capability::LENGTH - 2..][..4].copy_from_slice(&structure.len().to_le_bytes());
    body
}

impl VirtioPci {
    /// MSI-X and INTx follow the registers that configuration writes can change.
    pub(super) fn update_interrupts(&self) {
        if let Some(capability) = self.msix_capability {
            let control = self.pci.read_u16(capability + msix::CONTROL_OFFSET);
            let control = MessageControl::from_bits_truncate(control);
            self.msix.update(control, self.pci.is_bus_master());
        }
        self.vectors.drive_line(&self.msix, &self.pci);
    }

    /// The access that the PCI access capability describes now: BAR, offset and length (section
    /// 4.1.4.9).
    pub(super) fn window(&self) -> Option<(BarIndex, u64, usize)> {
        let field = |at| self.pci.read_u32(self.access_capability + at);
        let bar =
            BarIndex::from_number(self.pci.read_u8(self.access_capability + capability::BAR))?;
        let offset = u64::from(field(capability::OFFSET));
        let len = usize::try_from(field(capability::LENGTH)).ok()?;
        let (_, size) = self.pci.bar(bar)?;
        let fits = matches!(len, 1 | 2 | 4)
            && offset.is_multiple_of(len as u64)
            && offset
                .checked_add(len as u64)
                .is_some_and(|end| end <= size);
        fits.then_some((bar, offset, len))
    }

    /// Whether a configuration access touches `pci_cfg_data`.
    pub(super) fn touches_window(&self, offset: usize, len: usize) -> bool {
        let data = self.access_capability + capability::EXTRA;
        offset < data + CAPABILITY_EXTRA_LEN && offset + len > data
    }
}
