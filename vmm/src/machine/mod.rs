//! The machine: what it is made of, where everything lies, and how it is driven.

mod builder;
pub mod config;
mod controller;
pub mod disks;
mod engine;
pub mod hotplug;
pub mod models;
mod requests;
pub mod routing;
mod site;
mod virtio;

pub use builder::{BuildError, Machine, MachineBuilder};
pub use controller::{Chore, Controller, Notice};
pub use site::PciSite;
