//! The harness of the integration tests and of the demo.
//!
//! * [`boot`]: boot times and memory, next to QEMU's.
//! * [`check`]: is what the disks hold what the guest was promised?
//! * [`demo`]: the story of a guest whose disks are moved under it, and its checks.
//! * [`frozen`]: a file system whose calls hang.
//! * [`guest`]: Linux in machines of all kinds, and all the ways in which it ends.
//! * [`qmp`]: a blocking client of the control socket.
//! * [`qtest`]: a client that stands where the guest's CPUs would.
//! * [`process`]: the real binary as a child, with its serial console.
//! * [`sharing`]: files that share blocks.
//!
//! Everything here is blocking and meant for test threads and small tools, not for the monitor.

pub mod boot;
pub mod check;
pub mod demo;
pub mod frozen;
pub mod guest;
pub mod host;
pub mod process;
pub mod qmp;
pub mod qtest;
pub mod sharing;
