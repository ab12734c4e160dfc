//! Device models of Sluice: legacy PC, PCI, IDE and virtio.
