//! The machine: what it is made of, where everything lies, and how it is driven.

pub mod config;
pub mod routing;
