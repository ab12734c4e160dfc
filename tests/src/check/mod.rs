//! Judges disk images against the guest writer's log.
//!
//! The writer stamps every sector and logs every submission and acknowledgement
//! ([`sluice_writer`]). [`history::History`] digests the log into what each sector must hold;
//! [`image`] compares and hashes images; [`judge`] finds what contradicts the log.
//! [`console`] reads the guest's own statements off the serial console.
//!
//! Nothing here knows of mirrors: the demo asks the right question at the right time.

pub mod console;
pub mod history;
pub mod image;
pub mod judge;

#[cfg(test)]
mod synthetic;
