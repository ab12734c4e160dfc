//! Tests of the server over real sockets, without a machine.

mod block;
mod harness;
mod protocol;
