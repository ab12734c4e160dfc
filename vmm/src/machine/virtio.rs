//! Virtio disks: from their properties to a function of the PCI bus.
//!
//! At machine build and when one is plugged in. Main thread.

use std::sync::Arc;

use sluice_aio::{AioContext, IoThread};
use sluice_block::{Backend, Home};
use sluice_devices::pci::Address;
use sluice_devices::pci::layout::InterruptPin;
use sluice_devices::virtio::blk::MAX_DISCARD_SECTORS;
use sluice_devices::virtio::{
    Geometry, RingFeatures, VirtioBlk, VirtioBlkConfig, VirtioError, VirtioPci, VirtioPciParts,
};

use super::PciSite;
use super::routing::pci_gsi;
use crate::storage::{VirtioBlkProperties, VirtioDiskConfig};

/// A virtio disk that is to be made.
pub(super) struct VirtioDisk<'a> {
    /// Its disk.
    pub(super) backend: &'a Arc<Backend>,
    /// The threads of its queues; none: the main loop serves them.
    pub(super) threads: &'a [Arc<IoThread>],
    /// The main loop.
    pub(super) main: &'a AioContext,
    /// Shown to the guest.
    pub(super) serial: Option<&'a str>,
    /// The guest sees a volatile write cache.
    pub(super) write_cache: bool,
    /// Its properties.
    pub(super) device: &'a VirtioDiskConfig,
}

/// Where jobs on a disk work whose first queue that thread serves.
pub(super) fn home_in(thread: &Arc<IoThread>) -> Home {
    Home::kept(thread.context().clone(), Arc::clone(thread) as _)
}

/// Makes the function that sits at `address`; the caller puts it there. Jobs on the disk keep the thread of
/// its first queue.
pub(super) fn function(
    site: &PciSite,
    address: Address,
    disk: &VirtioDisk<'_>,
) -> Result<Arc<VirtioPci>, VirtioError> {
    let contexts = match disk.threads {
        [] => vec![disk.main.clone()],
        threads => threads
            .iter()
            .map(|thread| thread.context().clone())
            .collect(),
    };
    let device = disk.device;
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
        backend: Arc::clone(disk.backend),
        contexts,
        num_queues: device.num_queues,
        queue_size,
        seg_max_adjust,
        serial: disk.serial.unwrap_or_default().to_owned(),
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
    let blk = VirtioBlk::new(settings)?;
    if let Some(thread) = disk.threads.first() {
        disk.backend.set_home(home_in(thread));
    }
    let pin = InterruptPin::A;
    let line = site.intx.line(address.device(), pin);
    let parts = VirtioPciParts {
        memory: Arc::clone(&site.ram),
        msi: site.msi.as_ref(),
        vectors: vectors.map(|vectors| usize::try_from(vectors).unwrap_or(usize::MAX)),
        features,
        doorbells: Arc::clone(&site.doorbells),
        intx: Some((line, pci_gsi(address.device(), pin))),
    };
    VirtioPci::new(blk, parts)
}
