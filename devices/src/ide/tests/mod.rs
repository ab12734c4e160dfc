//! The controller as a guest sees it: ports, bus master and interrupt line against a real event loop, block graph and file.

mod allocations;
mod atapi;
mod bench;
mod commands;
mod dma;
mod drain;
mod errors;
mod every_command;
mod fuzz;
mod line;
mod pio;
mod posted;
mod prd_corners;
mod reset;
mod resize;
mod rules;
mod traces;
