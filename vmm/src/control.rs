//! What a control interface may ask of a virtual machine, and what the machine tells it.
//!
//! The QMP server speaks to the machine only through [`VmControl`] and hears from it only through
//! [`VmEventSink`], so that it can be tested without KVM, and so that the machine knows nothing of
//! QMP. All methods of [`VmControl`] are called in the main `AioContext`; their futures are awaited
//! there and must not block it. [`VmEventSink::emit`] may be called from any thread.

use std::future::Future;
use std::pin::Pin;

use schemars::JsonSchema;
use serde::Serialize;
use thiserror::Error;

use crate::machine::config::MachineKind;

/// A boxed future that need not be `Send`: it is awaited where it was made, in the main context.
pub type LocalFuture<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// What the virtual machine as a whole is doing.
///
/// The names of the states are those of QMP's `query-status`.
#[derive(Clone, Copy, Debug, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunState {
    /// Built, but started with `-S`: no vCPU has run yet.
    Prelaunch,
    /// The vCPUs run.
    Running,
    /// Stopped by the operator.
    Paused,
    /// Stopped because a device met an I/O error whose policy is `stop`.
    IoError,
    /// The guest reported that it panicked.
    GuestPanicked,
    /// The guest powered off, or the process is about to end.
    Shutdown,
    /// KVM or the machine failed; the vCPUs cannot go on.
    InternalError,
}

impl RunState {
    /// The state's name in QMP's `query-status`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Prelaunch => "prelaunch",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::IoError => "io-error",
            Self::GuestPanicked => "guest-panicked",
            Self::Shutdown => "shutdown",
            Self::InternalError => "internal-error",
        }
    }
}

/// What runs the guest's instructions.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Accelerator {
    /// The kernel's virtual machine, `/dev/kvm`.
    Kvm,
    /// Nothing: the machine's devices are driven by the qtest protocol.
    Qtest,
}

/// Why a machine stops or resets: the `reason` of QMP's `SHUTDOWN` and `RESET`.
#[derive(Clone, Copy, Debug, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// QMP `quit`.
    HostQmpQuit,
    /// QMP `system_reset`.
    HostQmpSystemReset,
    /// A signal such as SIGTERM.
    HostSignal,
    /// The machine or KVM failed.
    HostError,
    /// The guest powered the machine off.
    GuestShutdown,
    /// The guest reset the machine.
    GuestReset,
    /// The guest panicked.
    GuestPanic,
}

impl Cause {
    /// The cause's name in QMP events.
    pub const fn name(self) -> &'static str {
        match self {
            Self::HostQmpQuit => "host-qmp-quit",
            Self::HostQmpSystemReset => "host-qmp-system-reset",
            Self::HostSignal => "host-signal",
            Self::HostError => "host-error",
            Self::GuestShutdown => "guest-shutdown",
            Self::GuestReset => "guest-reset",
            Self::GuestPanic => "guest-panic",
        }
    }

    /// Whether the guest itself is the origin.
    pub const fn is_guest(self) -> bool {
        matches!(
            self,
            Self::GuestShutdown | Self::GuestReset | Self::GuestPanic
        )
    }
}

/// Why the machine refused a verb.
#[derive(Debug, Error)]
pub enum ControlError {
    /// The verb makes no sense in the machine's present state.
    #[error("{verb}: not possible while the machine is in state '{}'", state.name())]
    WrongState {
        /// What was asked.
        verb: &'static str,
        /// The state that stands against it.
        state: RunState,
    },
    /// The machine tried and failed.
    #[error("{verb}: {reason}")]
    Failed {
        /// What was asked.
        verb: &'static str,
        /// One line for the operator.
        reason: String,
    },
}

/// The verbs of a running virtual machine.
///
/// Implemented by the machine; a fake serves the tests of the QMP server.
pub trait VmControl: Send + Sync {
    /// The name given by `--name`, if any.
    fn name(&self) -> Option<String>;

    /// The UUID given by `--uuid`, if any.
    fn uuid(&self) -> Option<String>;

    /// Which machine it is.
    fn machine_kind(&self) -> MachineKind;

    /// The threads of its CPUs, as the host numbers them. Where no CPU runs, the process's first thread stands
    /// for each.
    fn cpu_threads(&self) -> Vec<u32>;

    /// What runs the guest.
    fn accelerator(&self) -> Accelerator;

    /// What the machine is doing now.
    fn status(&self) -> RunState;

    /// Stops the vCPUs, waits until every device request has ended and flushes all disks; emits
    /// [`VmEvent::Stop`]. On a machine that is stopped already: nothing, successfully.
    fn pause(&self) -> LocalFuture<'_, Result<(), ControlError>>;

    /// Lets the vCPUs run (again); emits [`VmEvent::Resume`]. On a running machine: nothing,
    /// successfully.
    fn resume(&self) -> LocalFuture<'_, Result<(), ControlError>>;

    /// Presses the ACPI power button; emits [`VmEvent::Powerdown`]. What the guest makes of it is
    /// the guest's affair.
    fn powerdown(&self) -> Result<(), ControlError>;

    /// Resets the machine: devices settle first, then registers are cleared. Emits
    /// [`VmEvent::Reset`] with `cause`.
    fn reset(&self, cause: Cause) -> LocalFuture<'_, Result<(), ControlError>>;

    /// Asks the process to end in an orderly way, with exit status 0. Emits
    /// [`VmEvent::Shutdown`] with `cause`, and returns before the process ends.
    fn quit(&self, cause: Cause);
}

/// What happened to the machine, for whoever watches it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum VmEvent {
    /// The vCPUs were stopped.
    Stop,
    /// The vCPUs run again.
    Resume,
    /// The power button was pressed.
    Powerdown,
    /// The machine was reset.
    Reset(Cause),
    /// The machine ends.
    Shutdown(Cause),
    /// The guest reported a panic; the machine does `action` now.
    GuestPanicked(PanicAction),
    /// A device, or a part of one, has gone.
    DeviceDeleted {
        /// Its id, if it had one.
        device: Option<String>,
        /// Its place in QEMU's object tree.
        path: String,
    },
}

/// What the machine does after the guest panicked.
#[derive(Clone, Copy, Debug, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PanicAction {
    /// Stop the vCPUs and wait for the operator.
    Pause,
    /// End the process.
    Poweroff,
    /// Go on.
    Run,
}

impl PanicAction {
    /// The action's name in the QMP event.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Poweroff => "poweroff",
            Self::Run => "run",
        }
    }
}

/// Where the machine reports [`VmEvent`]s.
pub trait VmEventSink: Send + Sync {
    /// Reports `event`. Never blocks; callable from any thread.
    fn emit(&self, event: VmEvent);
}
