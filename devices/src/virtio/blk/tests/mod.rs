//! Tests of the disk through registers and rings, as a guest drives it.

mod allocations;
mod bench;
mod drain;
mod errors;
mod hostile;
mod queues;
mod requests;
mod reset;
mod resize;
mod rules;
mod threads;
mod traces;
mod unplug;
