//! Tests of the server over real sockets, without a machine.

mod backup;
mod beginnings;
mod bitmaps;
mod block;
mod descriptors;
mod drivers;
mod failures;
mod graph;
mod harness;
mod human;
mod media;
mod monitors;
mod oob;
mod protocol;
mod schema;
mod throttle;
mod turns;
