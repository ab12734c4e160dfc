//! The few devices of the old PC that a guest still needs: a serial port, the clock, the registers of
//! ACPI, and the ways to switch the machine off, reset it, or tell that the guest failed.
//!
//! All of them sit on the port bus and answer at once. What concerns the whole machine they ask
//! of it through [`MachineRequests`].

mod debug_exit;
mod fw_cfg;
mod gpe;
mod i8042;
mod pci_hotplug;
mod pm;
mod pvpanic;
mod reset_control;
mod rtc;
mod serial;

pub use debug_exit::DebugExit;
pub use fw_cfg::FwCfg;
pub use gpe::{GeneralEvents, GpeBlock};
pub use i8042::I8042;
pub use pci_hotplug::{Ejector, PciHotplug};
pub use pm::{PmBlock, SLEEP_TYPE_S5};
pub use pvpanic::PvPanic;
pub use reset_control::ResetControl;
pub use rtc::CmosRtc;
pub use serial::{SerialPort, SerialSink};

/// What kind of failure a guest reports over the panic port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestFailure {
    /// It panicked, and expects the machine to act.
    Panicked,
    /// It panicked and goes on by itself with a crash kernel.
    CrashLoaded,
}

/// What a device asks of the machine on the guest's behalf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MachineRequest {
    /// The guest switched the machine off.
    PowerOff,
    /// The guest reset the machine.
    Reset,
    /// The guest says that it failed.
    GuestFailed(GuestFailure),
    /// The guest ended the process through the debug-exit port, with this value.
    DebugExit(u32),
}

/// The machine's ear for its devices. Called on vCPU threads; never waits.
///
/// After a request that stops the machine the calling vCPU does not run guest code again before
/// the request was acted upon.
pub trait MachineRequests: Send + Sync {
    /// Takes note of `request`; it is acted upon on the main thread.
    fn raise(&self, request: MachineRequest);
}

/// For the tests of the devices here.
#[cfg(test)]
pub(crate) mod testing {
    use parking_lot::Mutex;

    use super::{MachineRequest, MachineRequests};
    use crate::irq::IrqLine;

    /// Keeps every request.
    #[derive(Default)]
    pub(crate) struct Recorder(pub(crate) Mutex<Vec<MachineRequest>>);

    impl MachineRequests for Recorder {
        fn raise(&self, request: MachineRequest) {
            self.0.lock().push(request);
        }
    }

    /// Keeps every level change of a line.
    #[derive(Default)]
    pub(crate) struct Line(pub(crate) Mutex<Vec<bool>>);

    impl Line {
        /// The level now; a line that was never driven is low.
        pub(crate) fn level(&self) -> bool {
            self.0.lock().last().copied().unwrap_or(false)
        }
    }

    impl IrqLine for Line {
        fn set(&self, level: bool) {
            self.0.lock().push(level);
        }
    }
}
