//! Virtio disks: from their properties to a function on the PCI bus.
//!
//! Machine build only.

use std::sync::Arc;

use sluice_aio::AioContext;
use sluice_block::Backend;
use sluice_devices::pci::Address;
use sluice_devices::pci::layout::InterruptPin;
use sluice_devices::virtio::blk::MAX_DISCARD_SECTORS;
use sluice_devices::virtio::{
    Geometry, RingFeatures, VirtioBlk, VirtioBlkConfig, VirtioPci, VirtioPciParts,
};

use super::MachineBuilder;
use super::builder::FIRST_FREE_DEVICE;
use super::disks::{DiskError, DiskParts};
use super::routing::pci_gsi;
use crate::storage::{DiskConfig, VirtioBlkProperties, VirtioDiskConfig};

/// The loops of a virtio disk's queues; their threads are kept for as long as the machine is.
pub(super) fn contexts(
    builder: &mut MachineBuilder,
    disk: &DiskConfig,
    device: &VirtioDiskConfig,
    parts: &DiskParts<'_>,
) -> Result<Vec<AioContext>, DiskError> {
    if device.iothreads.is_empty() {
        return Ok(vec![parts.main.clone()]);
    }
    let threads = device.iothreads.iter().map(|id| {
        let thread = parts.iothreads.get(id);
        let thread = thread.ok_or_else(|| DiskError::NoIoThread {
            disk: disk.backend.clone(),
            id: id.clone(),
        })?;
        let context = thread.context().clone();
        builder.keep(thread);
        Ok(context)
    });
    threads.collect()
}

/// Puts a virtio disk on the PCI bus.
pub(super) fn add(
    builder: &MachineBuilder,
    disk: &DiskConfig,
    device: &VirtioDiskConfig,
    backend: Arc<Backend>,
    contexts: Vec<AioContext>,
) -> Result<(), DiskError> {
    let virtio = |source| DiskError::Virtio {
        disk: disk.backend.clone(),
        source,
    };
    let pci = |source| DiskError::Pci {
        disk: disk.backend.clone(),
        source,
    };
    let VirtioBlkProperties {
        queue_size,
        seg_max_adjust,
        logical_block_size,
        physical_block_size,
        min_io_size,
        opt_io_size,
        discard_granularity,
        geometry,
        config_wce,
        discard,
        write_zeroes,
        max_discard_sectors,
        max_write_zeroes_sectors,
        event_idx,
        indirect_desc,
        queue_reset,
        iommu_platform,
        vectors,
    } = device.properties;
    let settings = VirtioBlkConfig {
        backend,
        contexts,
        num_queues: device.num_queues,
        queue_size,
        seg_max_adjust,
        serial: disk.serial.clone().unwrap_or_default(),
        logical_block_size,
        physical_block_size,
        min_io_size,
        opt_io_size,
        discard_granularity,
        geometry: geometry.map(|(cylinders, heads, sectors)| Geometry {
            cylinders,
            heads,
            sectors,
        }),
        write_cache: disk.write_cache,
        config_wce,
        discard,
        write_zeroes,
        max_discard_sectors: max_discard_sectors.unwrap_or(MAX_DISCARD_SECTORS),
        max_write_zeroes_sectors: max_write_zeroes_sectors.unwrap_or(MAX_DISCARD_SECTORS),
    };
    let mut features = RingFeatures::empty();
    features.set(RingFeatures::EVENT_IDX, event_idx);
    features.set(RingFeatures::INDIRECT_DESC, indirect_desc);
    features.set(RingFeatures::RING_RESET, queue_reset);
    features.set(RingFeatures::ACCESS_PLATFORM, iommu_platform);
    let blk = VirtioBlk::new(settings).map_err(virtio)?;
    let address = match device.address {
        Some(place) => Address::new(place.slot, place.function),
        None => Address::new(
            builder.pci().free_device(FIRST_FREE_DEVICE).map_err(pci)?,
            0,
        ),
    };
    let pin = InterruptPin::A;
    let line = builder.pci_line(address.device(), pin);
    let msi = builder.msi();
    let parts = VirtioPciParts {
        memory: Arc::clone(builder.ram()),
        msi: msi.as_ref(),
        vectors: vectors.map(|vectors| usize::try_from(vectors).unwrap_or(usize::MAX)),
        features,
        doorbells: builder.doorbells(),
        intx: Some((line, pci_gsi(address.device(), pin))),
    };
    let function = VirtioPci::new(blk, parts).map_err(virtio)?;
    builder.pci().add(address, function).map_err(pci)?;
    Ok(())
}
