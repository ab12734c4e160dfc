//! Drained sections over graphs of all shapes, and the rules of names, parents and permissions.

mod bench;
mod bitmaps;
mod changes;
mod claims;
mod crash;
mod drain;
mod homes;
mod jobs;
mod large;
mod many;
mod media;
mod names;
mod operations;
mod permissions;
mod random;
mod reads;
mod reopen;
mod reopen_in_use;
mod reopen_options;
mod resize;
mod scenarios;
mod sizes;
mod slow;
mod snapshot;
