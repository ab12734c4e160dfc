//! What Sluice's fuzz targets do with their input: it is read as the steps of a guest, and of an operator, that have lost
//! their mind, against real devices on a real event loop, block graph and files.
//!
//! After every step, and when all of them are done, what must always hold is asserted: nothing panics or goes on
//! for ever; nothing runs inside a drained section; what the guest never named is untouched; no request reaches the host
//! that it would refuse; when the sections have ended every command does, and the device answers as a new one after a
//! reset. All of it is by way of what a machine uses of the devices: ports, windows and configuration space.
//!
//! The library knows no fuzzer. `fuzz/targets` hands it libFuzzer's inputs; the tests of this crate hand it the kept
//! corpus, what was found once, and arbitrary bytes. The same input takes the same steps.

#![expect(
    clippy::unwrap_used,
    reason = "a panic is how a fuzz target reports, and this crate is nothing but fuzz targets"
)]

mod atapi;
mod drives;
mod ide;
mod input;
mod pci;
mod ports;
mod posted;
#[cfg(test)]
mod tests;
mod virtio;
mod world;

pub use atapi::run as atapi_packets;
pub use drives::run as ide_drives;
pub use ide::run as ide_ports;
pub use pci::run as pci_config;
pub use virtio::run as virtio_blk;
