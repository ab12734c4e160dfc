//! The life of a machine: run, stop, reset, end. The one place where these are decided.
//!
//! ```text
//!  prelaunch --resume--> running <--resume/pause--> paused
//!                         running --I/O error--> io-error --resume--> running
//!      any --reset--> same state, power-on registers
//!      any --power-off, panic, failure, quit--> shutdown (and the process ends)
//! ```
//!
//! Verbs come from QMP (already in the main context), from signals and the console (same thread),
//! and from the guest through [`super::requests::Requests`]. They run in the main context, one at a
//! time and in order of arrival: each waits for the previous one.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::task::{Poll, Waker};

use futures_util::future::{Either, select};
use futures_util::lock::Mutex as FairMutex;
use parking_lot::Mutex;
use sluice_aio::{AioContext, current};
use sluice_devices::legacy::{GuestFailure, MachineRequest, PmBlock};
use sluice_devices::reset::ResetHook;

use super::config::MachineKind;
use super::engine::Engine;
use crate::control::{
    Accelerator, Cause, ControlError, LocalFuture, PanicAction, RunState, VmControl, VmEvent,
    VmEventSink,
};
use crate::exit::{Exit, ExitStatus};
use crate::kvm::VcpuFailure;

/// Work that has to be done when the machine stands still.
pub type Chore = Box<dyn Fn() -> LocalFuture<'static, ()> + Send + Sync>;

/// What has to be told before the machine goes on. Must not wait.
pub type Notice = Arc<dyn Fn() + Send + Sync>;

/// What a controller is made of.
pub(super) struct Parts {
    pub(super) name: Option<String>,
    pub(super) uuid: Option<String>,
    pub(super) kind: MachineKind,
    pub(super) cpus: u8,
    pub(super) no_reboot: bool,
    pub(super) no_shutdown: bool,
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
    on_resume: Mutex<Vec<Notice>>,
    /// Held by the verb that is being done.
    turn: FairMutex<()>,
    ending: Mutex<Ending>,
    this: Weak<Self>,
}

/// Whether and how the machine ends.
#[derive(Default)]
struct Ending {
    exit: Option<Exit>,
    /// The vCPUs stand still for good.
    stopped: bool,
    /// Who waits for either.
    waiting: Vec<Waker>,
}

impl Controller {
    pub(super) fn new(parts: Parts) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            parts,
            state: Mutex::new(RunState::Prelaunch),
            sinks: Mutex::default(),
            on_stop: Mutex::default(),
            on_resume: Mutex::default(),
            turn: FairMutex::new(()),
            ending: Mutex::default(),
            this: Weak::clone(this),
        })
    }

    /// Sends all further events to `sink`. Any thread.
    pub fn subscribe(&self, sink: Arc<dyn VmEventSink>) {
        self.sinks.lock().push(sink);
    }

    /// Has `notice` told whenever a machine that was stopped goes on, before its vCPUs run.
    pub fn on_resume(&self, notice: Notice) {
        self.on_resume.lock().push(notice);
    }

    /// Stops the machine because a disk met an error that the guest shall not see. Any thread; the
    /// machine is asked, not waited for.
    pub fn stop_for_io_error(&self) {
        if let Some(this) = self.this.upgrade() {
            self.parts.main.spawn(move || async move {
                // A machine that ends need not be stopped.
                let _ = this.do_stop(RunState::IoError).await;
            });
        }
    }

    /// Has `chore` done whenever the vCPUs were stopped for longer: wait for the devices'
    /// requests, flush the disks.
    pub fn on_stop(&self, chore: Chore) {
        self.on_stop.lock().push(Arc::new(chore));
    }

    /// Lets a machine that was just built run. Not an event: nobody has seen it stopped.
    pub async fn launch(&self) {
        let _turn = self.turn.lock().await;
        // Whoever was faster may have ended it, or resumed it.
        if !self.is_ending() && self.status() == RunState::Prelaunch {
            self.set_state(RunState::Running);
            self.parts.engine.run();
        }
    }

    /// Ready when the machine has ended: the vCPUs stand still for good and the event is out. What
    /// is left to do then is up to the caller. Returns how the process shall end.
    pub async fn ended(&self) -> Exit {
        self.until(|ending| ending.exit.clone().filter(|_| ending.stopped))
            .await
    }

    /// Ready when the machine is to end.
    pub(crate) async fn told_to_end(&self) {
        self.until(|ending| ending.exit.as_ref().map(drop)).await;
    }

    /// Ready when `found` finds something in how the machine ends.
    async fn until<T>(&self, found: impl Fn(&Ending) -> Option<T>) -> T {
        poll_fn(|task| {
            let mut ending = self.ending.lock();
            if let Some(found) = found(&ending) {
                return Poll::Ready(found);
            }
            ending.waiting.push(task.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Whether the machine ends or has ended. Any thread.
    #[must_use]
    pub fn is_ending(&self) -> bool {
        self.ending.lock().exit.is_some()
    }

    /// Ends the machine, once: of several reasons the first counts. Any thread.
    pub fn end(&self, exit: Exit, cause: Cause) {
        let told = {
            let mut ending = self.ending.lock();
            if ending.exit.is_some() {
                return;
            }
            ending.exit = Some(exit);
            std::mem::take(&mut ending.waiting)
        };
        told.into_iter().for_each(Waker::wake);
        if let Some(this) = self.this.upgrade() {
            self.parts
                .main
                .spawn(move || async move { this.wind_down(cause).await });
        }
    }

    async fn wind_down(&self, cause: Cause) {
        let _turn = self.turn.lock().await;
        self.parts.engine.park();
        self.set_state(RunState::Shutdown);
        self.emit(&VmEvent::Shutdown(cause));
        let waiting = {
            let mut ending = self.ending.lock();
            ending.stopped = true;
            std::mem::take(&mut ending.waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
    }

    fn emit(&self, event: &VmEvent) {
        tracing::debug!(?event, "machine event");
        for sink in self.sinks.lock().iter() {
            sink.emit(event.clone());
        }
    }

    fn set_state(&self, state: RunState) {
        *self.state.lock() = state;
    }

    /// A request of the guest; the vCPU that made it is parked. Main context.
    pub(super) async fn guest_asked(&self, request: MachineRequest) {
        match request {
            MachineRequest::PowerOff if self.parts.no_shutdown => {
                self.stay_off().await;
            }
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
                self.emit(&VmEvent::GuestPanicked(PanicAction::Poweroff));
                self.set_state(RunState::GuestPanicked);
                let why = "the guest's kernel panicked (its console says why)";
                self.end(
                    Exit::because(ExitStatus::GuestPanic, why),
                    Cause::GuestPanic,
                );
            }
            MachineRequest::GuestFailed(GuestFailure::CrashLoaded) => {
                self.emit(&VmEvent::GuestPanicked(PanicAction::Run));
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
    pub(super) fn vcpu_failed(&self, failure: &VcpuFailure) {
        let (status, cause) = match failure {
            VcpuFailure::TripleFault { .. } => (ExitStatus::TripleFault, Cause::GuestPanic),
            VcpuFailure::Kvm { .. } => (ExitStatus::KvmError, Cause::HostError),
            VcpuFailure::Defect { .. } => (ExitStatus::Internal, Cause::HostError),
        };
        self.end(Exit::because(status, failure), cause);
    }

    async fn do_reset(&self, cause: Cause) -> Result<(), ControlError> {
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
        self.emit(&VmEvent::Reset(cause));
        if self.status() == RunState::Running {
            self.parts.engine.run();
        }
        Ok(())
    }

    /// Stops the vCPUs of a machine that has switched off, for the operator to look at.
    async fn stay_off(&self) {
        let _turn = self.turn.lock().await;
        if self.is_ending() {
            return;
        }
        self.parts.engine.stop();
        self.set_state(RunState::Shutdown);
        self.emit(&VmEvent::Shutdown(Cause::GuestShutdown));
        // One that is to end meanwhile does so.
        let _ = self.come_to_rest().await;
    }

    /// Has done what has to be done when the machine stands still. False if it is to end before that: what a target keeps
    /// from being done that hangs is seen to at the machine's end, by ending its job.
    async fn come_to_rest(&self) -> bool {
        let chores = self.on_stop.lock().clone();
        let rest = current::spawn_local(async move {
            for chore in chores {
                chore().await;
            }
        });
        match select(rest, pin!(self.told_to_end())).await {
            Either::Left(_) => true,
            Either::Right((_, rest)) => {
                rest.detach();
                false
            }
        }
    }

    /// Stops the vCPUs; `state` says why. Whoever hears of it finds the disks at rest.
    async fn do_stop(&self, state: RunState) -> Result<(), ControlError> {
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
        self.parts.engine.stop();
        self.set_state(state);
        if !self.come_to_rest().await {
            return Err(ControlError::WrongState {
                verb: "stop",
                state: RunState::Shutdown,
            });
        }
        self.emit(&VmEvent::Stop);
        Ok(())
    }

    async fn do_resume(&self) -> Result<(), ControlError> {
        let _turn = self.turn.lock().await;
        let state = self.status();
        let stays = matches!(
            state,
            RunState::GuestPanicked | RunState::InternalError | RunState::Shutdown
        );
        if self.is_ending() || stays {
            return Err(ControlError::WrongState {
                verb: "cont",
                state,
            });
        }
        if state != RunState::Running {
            self.set_state(RunState::Running);
            self.emit(&VmEvent::Resume);
            let notices = self.on_resume.lock().clone();
            for notice in notices {
                notice();
            }
            self.parts.engine.run();
        }
        Ok(())
    }
}

impl VmControl for Controller {
    fn name(&self) -> Option<String> {
        self.parts.name.clone()
    }

    fn uuid(&self) -> Option<String> {
        self.parts.uuid.clone()
    }

    fn machine_kind(&self) -> MachineKind {
        self.parts.kind
    }

    fn cpu_threads(&self) -> Vec<u32> {
        let own = self.parts.engine.threads();
        match self.parts.kind {
            MachineKind::Pc if own.is_empty() => {
                vec![std::process::id(); usize::from(self.parts.cpus)]
            }
            MachineKind::Pc => own,
            MachineKind::None => Vec::new(),
        }
    }

    fn accelerator(&self) -> Accelerator {
        self.parts.engine.accelerator()
    }

    fn status(&self) -> RunState {
        *self.state.lock()
    }

    fn pause(&self) -> LocalFuture<'_, Result<(), ControlError>> {
        Box::pin(self.do_stop(RunState::Paused))
    }

    fn resume(&self) -> LocalFuture<'_, Result<(), ControlError>> {
        Box::pin(self.do_resume())
    }

    fn powerdown(&self) -> Result<(), ControlError> {
        let state = self.status();
        if state == RunState::Shutdown {
            return Err(ControlError::WrongState {
                verb: "system_powerdown",
                state,
            });
        }
        self.parts.pm.press_power_button();
        self.emit(&VmEvent::Powerdown);
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
