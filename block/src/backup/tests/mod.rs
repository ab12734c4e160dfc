//! Backups over real files: the target is the disk of the job's start, whatever the guest and the
//! operator do.

mod bench;
mod bitmaps;
mod copying;
mod errors;
mod hang;
mod homes;
mod many;
mod random;
mod refusals;
mod transactions;
