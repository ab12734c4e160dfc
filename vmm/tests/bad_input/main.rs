//! Bad input: whatever an operator, a client or the host gets wrong is answered with one clear
//! error that names the thing, and harms nothing else.
//!
//! Everything here runs the real binary. At start-up an error is one line on standard error and a
//! documented exit status. At run time it is an error reply, after which the machine answers as
//! before, its graph is the same, and its disks work: they are written and read through their
//! registers (no test needs KVM). No test measures time; a wait that takes too long says for what.
#![expect(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "the whole crate is a test"
)]

mod command_line;
mod commands;
mod disconnects;
mod hanging;
mod harness;
mod ide;
mod images;
mod kernels;
mod many_jobs;
mod memory;
mod read_only;
mod signals;
mod sockets;
mod space;
mod streams;
mod targets;
mod words;
