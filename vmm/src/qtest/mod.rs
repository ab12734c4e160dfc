//! The machine without vCPUs, driven by QEMU's qtest protocol over a character device.
//!
//! A test stands where the guest's CPU would: it reads and writes ports and memory, hears of
//! interrupts, and moves the devices' clock. [`serve`] is a task of the main loop; every command is
//! carried out there and answered before the next one is.
//!
//! The protocol is QEMU's (docs/devel/testing/qtest.rst), as far as libqtest uses it: a command a
//! line, words separated by blanks, an answer a line that begins with `OK`, `FAIL` or `ERR`, and
//! unasked lines that begin with `IRQ`. The clock is that of the devices (RTC, power management
//! timer): it stands still until it is moved. Event loops and block jobs go by real time.

mod base64;
mod command;
mod interrupts;
mod log;
mod server;
mod target;
#[cfg(test)]
mod tests;

pub use interrupts::QtestInterrupts;
pub use log::QtestLog;
pub use server::serve;
pub use target::Target;
