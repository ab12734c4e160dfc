//! The life of a machine: run, stop, reset, end. The one place where these are decided.
//!
//! ```text
//!  prelaunch --resume--> running <--resume/pause--> paused
//!      any --reset--> same state, power-on registers
//!      any --power-off, panic, failure, quit--> shutdown (and the process ends)
//! ```
//!
//! Verbs come from QMP (already in the main context), from signals and the console (same thread),
//! and from the guest through [`super::requests::Requests`]. They run in the main context, one at a
//! time and in order of arrival: each waits for the previous one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::lock::Mutex as FairMutex;
use parking_lot::Mutex;
use sluice_aio::AioContext;
use sluice_devices::legacy::{GuestFailure, MachineRequest, PmBlock};
use sluice_devices::reset::ResetHook;

use super::engine::Engine;
use crate::control::{
    Accelerator, Cause, ControlError, LocalFuture, PanicAction, RunState, VmControl, VmEvent,
    VmEventSink,
};
use crate::exit::{Exit, ExitStatus};
use crate::kvm::VcpuFailure;

/// Work that has to be done when the machine stands still, or before the process ends.
pub type Chore = Box<dyn Fn() -> LocalFuture<'static, ()> + Send + Sync>;

/// What a controller is made of.
pub(super) struct Parts {
    pub(super) name: Option<String>,
    pub(super) no_reboot: bool,
    pub(super) main: AioContext,
    pub(super) engine: Engine,
    pub(super) pm: Arc<PmBlock>,
    pub(super) reset_hooks: Vec<Arc<dyn ResetHook>>,
}

/// The machine's state and its verbs.
pub struct Controller {
    parts: Parts,
    state: Mutex<RunState>,
    sinks: Mutex<Vec<Arc<dyn VmEventSink>>>,
    on_stop: Mutex<Vec<Arc<Chore>>>,
    on_end: Mutex<Vec<Arc<Chore>>>,
    /// Held by the verb that is being done.
    turn: FairMutex<()>,
    exit: Mutex<Option<Exit>>,
    finished: AtomicBool,
}

impl Controller {
    pub(super) fn new(parts: Parts) -> Arc<Self> {
        Arc::new(Self {
            parts,
            state: Mutex::new(RunState::Prelaunch),
            sinks: Mutex::default(),
            on_stop: Mutex::default(),
            on_end: Mutex::default(),
            turn: FairMutex::new(()),
            exit: Mutex::new(None),
            finished: AtomicBool::new(false),
        })
    }

    /// Sends all further events to `sink`. Any thread.
    pub fn subscribe(&self, sink: Arc<dyn VmEventSink>) {
        self.sinks.lock().push(sink);
    }

    /// Has `chore` done whenever the vCPUs were stopped by the operator: wait for the devices'
    /// requests, flush the disks.
    pub fn on_stop(&self, chore: Chore) {
        self.on_stop.lock().push(Arc::new(chore));
    }

    /// Has `chore` done before the process ends, in the order of these calls.
    pub fn on_end(&self, chore: Chore) {
        self.on_end.lock().push(Arc::new(chore));
    }

    /// Whether everything is done and the process may end. Any thread.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.finished.load(Ordering::Acquire)
    }

    /// How the process shall end; a defect if nobody said so.
    #[must_use]
    pub fn exit(&self) -> Exit {
        let unexplained = || Exit::because(ExitStatus::Internal, "the main loop ended unasked");
        self.exit.lock().clone().unwrap_or_else(unexplained)
    }

    /// Ends the machine and then the process, once. Main thread.
    pub fn end(self: &Arc<Self>, exit: Exit, cause: Cause) {
        {
            let mut slot = self.exit.lock();
            if slot.is_some() {
                return;
            }
            *slot = Some(exit);
        }
        let controller = Arc::clone(self);
        self.parts
            .main
            .spawn(move || async move { controller.wind_down(cause).await });
    }

    async fn wind_down(self: Arc<Self>, cause: Cause) {
        let _turn = self.turn.lock().await;
        self.parts.engine.park();
        self.set_state(RunState::Shutdown);
        self.emit(VmEvent::Shutdown(cause));
        let chores = self.on_end.lock().clone();
        for chore in chores {
            chore().await;
        }
        self.finished.store(true, Ordering::Release);
    }

    fn emit(&self, event: VmEvent) {
        tracing::debug!(?event, "machine event");
        for sink in self.sinks.lock().iter() {
            sink.emit(event);
        }
    }

    fn set_state(&self, state: RunState) {
        *self.state.lock() = state;
    }

    fn is_ending(&self) -> bool {
        self.exit.lock().is_some()
    }

    /// A request of the guest; the vCPU that made it is parked. Main context.
    pub(super) async fn guest_asked(self: Arc<Self>, request: MachineRequest) {
        match request {
            MachineRequest::PowerOff => {
                self.end(Exit::quiet(ExitStatus::Success), Cause::GuestShutdown);
            }
            MachineRequest::Reset if self.parts.no_reboot => {
                let why = "the guest reset the machine; ending, as --no-reboot asks";
                self.end(Exit::because(ExitStatus::Success, why), Cause::GuestReset);
            }
            MachineRequest::Reset => {
                // A failure has ended the machine already.
                let _ = self.do_reset(Cause::GuestReset).await;
            }
            MachineRequest::GuestFailed(GuestFailure::Panicked) => {
                self.emit(VmEvent::GuestPanicked(PanicAction::Poweroff));
                self.set_state(RunState::GuestPanicked);
                let why = "the guest's kernel panicked (its console says why)";
                self.end(
                    Exit::because(ExitStatus::GuestPanic, why),
                    Cause::GuestPanic,
                );
            }
            MachineRequest::GuestFailed(GuestFailure::CrashLoaded) => {
                self.emit(VmEvent::GuestPanicked(PanicAction::Run));
            }
            MachineRequest::DebugExit(value) => {
                self.end(
                    Exit::quiet(ExitStatus::DebugExit(value)),
                    Cause::GuestShutdown,
                );
            }
        }
    }

    /// A vCPU cannot go on. Main context.
    pub(super) fn vcpu_failed(self: &Arc<Self>, failure: &VcpuFailure) {
        let (status, cause) = match failure {
            VcpuFailure::TripleFault { .. } => (ExitStatus::TripleFault, Cause::GuestPanic),
            VcpuFailure::Kvm { .. } => (ExitStatus::KvmError, Cause::HostError),
            VcpuFailure::Defect { .. } => (ExitStatus::Internal, Cause::HostError),
        };
        self.end(Exit::because(status, failure), cause);
    }

    async fn do_reset(self: &Arc<Self>, cause: Cause) -> Result<(), ControlError> {
        const VERB: &str = "system_reset";
        let _turn = self.turn.lock().await;
        if self.is_ending() {
            return Err(ControlError::WrongState {
                verb: VERB,
                state: self.status(),
            });
        }
        self.parts.engine.park();
        for hook in &self.parts.reset_hooks {
            Arc::clone(hook).reset().await;
        }
        if let Err(reason) = self.parts.engine.reset() {
            self.end(
                Exit::because(ExitStatus::KvmError, &reason),
                Cause::HostError,
            );
            return Err(ControlError::Failed { verb: VERB, reason });
        }
        self.emit(VmEvent::Reset(cause));
        if self.status() == RunState::Running {
            self.parts.engine.run();
        }
        Ok(())
    }

    async fn do_pause(&self) -> Result<(), ControlError> {
        let _turn = self.turn.lock().await;
        match self.status() {
            RunState::Running => {}
            RunState::Shutdown => {
                return Err(ControlError::WrongState {
                    verb: "stop",
                    state: RunState::Shutdown,
                });
            }
            _ => return Ok(()),
        }
        self.parts.engine.park();
        self.set_state(RunState::Paused);
        self.emit(VmEvent::Stop);
        let chores = self.on_stop.lock().clone();
        for chore in chores {
            chore().await;
        }
        Ok(())
    }

    async fn do_resume(&self) -> Result<(), ControlError> {
        let _turn = self.turn.lock().await;
        let state = self.status();
        if self.is_ending() || matches!(state, RunState::GuestPanicked | RunState::InternalError) {
            return Err(ControlError::WrongState {
                verb: "cont",
                state,
            });
        }
        if state != RunState::Running {
            self.set_state(RunState::Running);
            self.emit(VmEvent::Resume);
            self.parts.engine.run();
        }
        Ok(())
    }
}

/// The verbs, on the shared handle: ending needs one of its own.
impl VmControl for Arc<Controller> {
    fn name(&self) -> Option<String> {
        self.parts.name.clone()
    }

    fn accelerator(&self) -> Accelerator {
        self.parts.engine.accelerator()
    }

    fn status(&self) -> RunState {
        Controller::status(self)
    }

    fn pause(&self) -> LocalFuture<'_, Result<(), ControlError>> {
        Box::pin(self.do_pause())
    }

    fn resume(&self) -> LocalFuture<'_, Result<(), ControlError>> {
        Box::pin(self.do_resume())
    }

    fn powerdown(&self) -> Result<(), ControlError> {
        let state = Controller::status(self);
        if state == RunState::Shutdown {
            return Err(ControlError::WrongState {
                verb: "system_powerdown",
                state,
            });
        }
        self.parts.pm.press_power_button();
        self.emit(VmEvent::Powerdown);
        Ok(())
    }

    fn reset(&self, cause: Cause) -> LocalFuture<'_, Result<(), ControlError>> {
        Box::pin(async move {
            if self.parts.no_reboot {
                let why = "the machine was reset; ending, as --no-reboot asks";
                self.end(Exit::because(ExitStatus::Success, why), cause);
                return Ok(());
            }
            self.do_reset(cause).await
        })
    }

    fn quit(&self, cause: Cause) {
        self.end(Exit::quiet(ExitStatus::Success), cause);
    }
}

impl Controller {
    /// What the machine is doing. Any thread.
    #[must_use]
    pub fn status(&self) -> RunState {
        *self.state.lock()
    }
}
