//! The guest's disks: I/O threads, nodes, backends, and the controllers they hang on.
//!
//! [`add`] runs once, as a task of the main loop, between making the machine and finishing it.

use std::sync::Arc;

use sluice_aio::AioContext;
use sluice_block::backend::DeviceName;
use sluice_block::driver::throttle::ThrottleError;
use sluice_block::{Backend, BlockError, Graph, Node};
use sluice_devices::bus::BusError;
use sluice_devices::exits::TimedPorts;
use sluice_devices::ide::{DriveConfig, Geometry, IdeConfig, IdeController, IdeError, IdeVariant};
use sluice_devices::irq::IrqLine;
use sluice_devices::pci::{Address, PciError};
use sluice_devices::virtio::VirtioError;
use thiserror::Error;

use super::MachineBuilder;
use super::config::MachineKind;
use super::hotplug::{HotPlug, VIRTIO_BACKEND};
use super::routing::IDE_IRQS;
use crate::cli::PiixModel;
use crate::iothreads::{IoThreadError, IoThreads};
use crate::storage::{
    Attachment, DiskConfig, DiskLimits, DiskRoot, IdePosition, LooseDriveConfig, StorageConfig,
};

/// The IDE controller's place: function 1 of the device of the ISA bridge.
const IDE_ADDRESS: Address = Address::new(1, 1);

/// Why a disk cannot be had.
#[derive(Debug, Error)]
pub enum DiskError {
    /// An I/O thread.
    #[error("iothread '{id}': {source}")]
    IoThread {
        /// Its name.
        id: String,
        /// Why.
        source: IoThreadError,
    },
    /// A throttle group.
    #[error("throttle-group '{id}': {source}")]
    ThrottleGroup {
        /// Its name.
        id: String,
        /// Why.
        source: ThrottleError,
    },
    /// A device names a thread that was not declared.
    #[error(
        "disk '{disk}': there is no iothread '{id}' (declare it with --object iothread,id={id})"
    )]
    NoIoThread {
        /// The disk.
        disk: String,
        /// The thread.
        id: String,
    },
    /// A node of `--blockdev`.
    #[error("--blockdev {node}: {source}")]
    Node {
        /// Its name.
        node: String,
        /// Why.
        source: BlockError,
    },
    /// What a disk stands on.
    #[error("disk '{disk}': {source}")]
    Root {
        /// The disk.
        disk: String,
        /// Why.
        source: BlockError,
    },
    /// A virtio disk.
    #[error("disk '{disk}': {source}")]
    Virtio {
        /// The disk.
        disk: String,
        /// Why.
        source: VirtioError,
    },
    /// A place on the PCI bus.
    #[error("disk '{disk}': {source}")]
    Pci {
        /// The disk.
        disk: String,
        /// Why.
        source: PciError,
    },
    /// The IDE controller or one of its disks.
    #[error(transparent)]
    Ide(#[from] IdeError),
    /// The IDE controller's ports or place.
    #[error("the IDE controller: {0}")]
    IdePorts(#[from] BusError),
    /// The IDE controller's place on the PCI bus.
    #[error("the IDE controller: {0}")]
    IdePlace(#[from] PciError),
}

/// What disks are made of.
pub struct DiskParts<'a> {
    /// Where nodes and backends go.
    pub graph: &'a Graph,
    /// Where I/O threads go.
    pub iothreads: &'a IoThreads,
    /// The main loop: it serves IDE, and virtio disks without an I/O thread.
    pub main: &'a AioContext,
    /// Which part carries the IDE channels.
    pub piix: PiixModel,
    /// Whether there are buses at all.
    pub kind: MachineKind,
    /// Where devices go.
    pub devices: &'a HotPlug,
}

/// Starts the threads, opens the nodes and puts the disks on `builder`'s machine. A machine with buses
/// always has the IDE controller, with or without disks.
///
/// # Errors
/// [`DiskError`], naming the disk or node.
pub async fn add(
    builder: &MachineBuilder,
    storage: &StorageConfig,
    parts: DiskParts<'_>,
) -> Result<(), DiskError> {
    for thread in &storage.iothreads {
        let failed = |source| DiskError::IoThread {
            id: thread.id.clone(),
            source,
        };
        parts.iothreads.add(thread).map_err(failed)?;
    }
    for group in &storage.throttle_groups {
        let added = parts.graph.throttle_groups().add(&group.id, group.limits);
        added.map_err(|source| DiskError::ThrottleGroup {
            id: group.id.clone(),
            source,
        })?;
    }
    for options in &storage.nodes {
        let added = parts.graph.add_node(options).await;
        added.map_err(|source| DiskError::Node {
            node: options.node_name().unwrap_or("(unnamed)").to_owned(),
            source,
        })?;
    }
    for drive in &storage.loose_drives {
        let backend = loose_backend(parts.graph, drive).await?;
        limit(parts.graph, &backend, drive.limits.as_ref()).await?;
        parts.devices.keep_drive(drive);
    }
    if parts.kind == MachineKind::None {
        // The command line has no devices for it.
        return Ok(());
    }
    let mut drives: [[Option<DriveConfig>; 2]; 2] = Default::default();
    for disk in &storage.disks {
        let backend = backend(parts.graph, disk).await?;
        match &disk.attachment {
            Attachment::Ide(IdePosition { channel, unit })
            | Attachment::IdeCd(IdePosition { channel, unit }) => {
                backend.set_context(parts.main);
                parts.devices.note_ide(disk, *channel);
                drives[usize::from(*channel)][usize::from(*unit)] = Some(ide_drive(disk, backend));
            }
            Attachment::VirtioPci(device) => {
                parts.devices.add_at_build(disk, device, backend)?;
            }
        }
    }
    add_ide(builder, drives, &parts)
}

/// An IDE disk or CD-ROM drive on `backend`.
fn ide_drive(disk: &DiskConfig, backend: Arc<Backend>) -> DriveConfig {
    let usual = match &disk.attachment {
        Attachment::IdeCd(_) => DriveConfig::cd_rom(backend),
        _ => DriveConfig::new(backend),
    };
    let properties = &disk.ide;
    let geometry = |(cylinders, heads, sectors)| Geometry {
        cylinders,
        heads,
        sectors,
    };
    let physical_block_size = properties.physical_block_size;
    DriveConfig {
        serial: disk.serial.clone(),
        model: properties.model.clone(),
        firmware: properties.version.clone(),
        wwn: properties.wwn,
        write_cache: disk.write_cache,
        rotation_rate: (properties.rotation_rate != 0).then_some(properties.rotation_rate),
        physical_block_size: physical_block_size.unwrap_or(usual.physical_block_size),
        geometry: properties.geometry.map(geometry),
        discard: properties.discard,
        #[cfg(feature = "test-hooks")]
        postpone: disk.postpone,
        ..usual
    }
}

/// The node a disk stands on, with a backend over it.
async fn backend(graph: &Graph, disk: &DiskConfig) -> Result<Arc<Backend>, DiskError> {
    let failed = |source| DiskError::Root {
        disk: disk.backend.clone(),
        source,
    };
    let root: Option<Arc<Node>> = match &disk.root {
        DiskRoot::Named(name) => Some(graph.node(name).map_err(failed)?),
        DiskRoot::Own(options) => {
            let own = graph.add_implicit_node(options).await;
            Some(own.map_err(failed)?)
        }
        DiskRoot::Empty => None,
    };
    let backend = match (&disk.attachment, &root) {
        (Attachment::Ide(_) | Attachment::VirtioPci(_), Some(root)) => {
            let added = if disk.share_rw {
                graph.add_sharing_backend(&disk.backend, root)
            } else {
                graph.add_backend(&disk.backend, root)
            };
            added.map_err(failed)?
        }
        // Whatever the first medium allows, a CD-ROM drive never writes, and takes media that forbid it.
        _ => {
            let added = graph.add_empty_backend(&disk.backend, true);
            let backend = added.map_err(failed)?;
            if let Some(root) = &root {
                let inserted = graph.insert_medium(&backend, root).await;
                inserted.map_err(failed)?;
            }
            backend
        }
    };
    if let Some(id) = &disk.id {
        backend.set_device(match &disk.attachment {
            Attachment::VirtioPci(_) => DeviceName::with_part(id, VIRTIO_BACKEND),
            Attachment::Ide(_) | Attachment::IdeCd(_) => DeviceName::of(id),
        });
    }
    backend.set_policy(disk.errors);
    limit(graph, &backend, disk.limits.as_ref()).await?;
    Ok(backend)
}

/// The backend of a drive that no device uses.
async fn loose_backend(graph: &Graph, drive: &LooseDriveConfig) -> Result<Arc<Backend>, DiskError> {
    let failed = |source| DiskError::Root {
        disk: drive.id.clone(),
        source,
    };
    match &drive.root {
        DiskRoot::Own(options) => {
            let own = graph.add_implicit_node(options).await.map_err(failed)?;
            graph.add_backend(&drive.id, &own).map_err(failed)
        }
        DiskRoot::Named(name) => {
            let node = graph.node(name).map_err(failed)?;
            graph.add_backend(&drive.id, &node).map_err(failed)
        }
        DiskRoot::Empty => {
            let added = graph.add_empty_backend(&drive.id, drive.read_only);
            added.map_err(failed)
        }
    }
}

/// Gives a disk its limits.
async fn limit(
    graph: &Graph,
    backend: &Arc<Backend>,
    limits: Option<&DiskLimits>,
) -> Result<(), DiskError> {
    let Some(DiskLimits { group, limits }) = limits else {
        return Ok(());
    };
    let set = graph.set_io_throttle(backend, group.as_deref(), *limits);
    set.await.map_err(|error| DiskError::ThrottleGroup {
        id: group.clone().unwrap_or_else(|| backend.name().to_owned()),
        source: error.into(),
    })
}

fn add_ide(
    builder: &MachineBuilder,
    drives: [[Option<DriveConfig>; 2]; 2],
    parts: &DiskParts<'_>,
) -> Result<(), DiskError> {
    let irq: [Arc<dyn IrqLine>; 2] = IDE_IRQS.map(|irq| builder.isa_line(irq));
    let config = IdeConfig {
        memory: Arc::clone(&builder.site().ram),
        context: parts.main.clone(),
        irq,
        posted: builder.posted(),
        variant: match parts.piix {
            PiixModel::Piix3 => IdeVariant::Piix3,
            PiixModel::Piix4 => IdeVariant::Piix4,
        },
        drives,
    };
    let controller = IdeController::new(&config)?;
    let bus = &builder.site().bus;
    let times = bus.add(IDE_ADDRESS, Arc::clone(&controller) as _)?;
    let timed = TimedPorts::new(controller, times);
    for ports in IdeController::ports() {
        builder.buses().pio.insert(ports, Arc::clone(&timed) as _)?;
    }
    Ok(())
}
