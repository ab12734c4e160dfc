//! A channel among its threads: vCPUs access registers, the main loop serves requests.
//!
//! ```text
//! vCPU: lock, access, take what was launched, unlock --mailbox-> loop: serve()
//!                                                                 gate open? or park and wait
//!                                                                 lock, begin, unlock
//!                                                                 the whole operation, one token
//! vCPU <---------------- interrupt line ------------------------- lock, complete, unlock, drive the line
//! ```
//!
//! The lock guards registers only. It is never held across I/O, an await or a wake.
//!
//! One task serves a channel's requests, one after the other: it is started with the channel and ends with
//! it. If its loop ends first, the guest is told that its commands fail.

use std::future::{Future as _, poll_fn};
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::task::Poll;

use futures_util::FutureExt as _;
use futures_util::future::Aborted;
use parking_lot::Mutex;
use sluice_aio::gate::{Cancelled, Describe};
use sluice_aio::{AioContext, Gate, GuestRam, Token};
use sluice_block::Backend;
use sluice_block::backend::{SizeWatcher as _, Submitter};
use tracing::Instrument as _;

use super::capacity::Capacity;
use super::core::{Core, Parking};
use super::disk::{DriveConfig, DriveKind};
use super::mailbox::Mailbox;
use super::removable::Tray;
use super::request::{Generation, Outcome, Request};
use super::serve::{Scratch, Server};
use crate::irq::{IrqLine, Wire};
use crate::pci::PciConfig;
use crate::posted::PostedWrites;

/// What serves one drive's requests.
struct Target {
    backend: Arc<Backend>,
    submitter: Arc<Submitter>,
    /// Kept for the backend, which does not.
    _tray: Option<Arc<Tray>>,
    /// The same.
    capacity: Option<Arc<Capacity>>,
    #[cfg(feature = "test-hooks")]
    postpone: bool,
}

impl Target {
    fn new(config: &DriveConfig, channel: &Weak<Channel>, drive: usize) -> Self {
        config.backend.set_write_cache(config.write_cache);
        let tray = (config.kind == DriveKind::CdRom).then(|| {
            let tray = Arc::new(Tray::new(Weak::clone(channel), drive));
            let weak: Weak<Tray> = Arc::downgrade(&tray);
            config.backend.set_removable(weak);
            tray
        });
        let capacity = (config.kind == DriveKind::Disk).then(|| {
            let capacity = Capacity::new(Weak::clone(channel), drive, &config.backend);
            let capacity = Arc::new(capacity);
            let weak: Weak<Capacity> = Arc::downgrade(&capacity);
            config.backend.watch_size(weak);
            capacity
        });
        Self {
            _tray: tray,
            capacity,
            backend: Arc::clone(&config.backend),
            submitter: Arc::new(Submitter::new(Arc::clone(&config.backend))),
            #[cfg(feature = "test-hooks")]
            postpone: config.postpone,
        }
    }

    /// A token if the gate is open now.
    fn try_enter(&self) -> Option<Token> {
        #[cfg(feature = "test-hooks")]
        if !self.postpone {
            return Some(self.backend.enter_ignoring_sections());
        }
        self.backend.try_enter()
    }
}

/// What a channel is connected to, but for its drives.
pub(super) struct Wiring {
    /// Its interrupt.
    pub line: Arc<dyn IrqLine>,
    /// Where writes to its registers may be queued.
    pub posted: Arc<dyn PostedWrites>,
}

/// One channel.
pub(super) struct Channel {
    core: Mutex<Core>,
    wire: Wire,
    posted: Arc<dyn PostedWrites>,
    targets: [Option<Target>; 2],
    mailbox: Arc<Mailbox>,
    memory: Arc<GuestRam>,
    /// The PCI function's, for its bus master bit.
    config: Arc<PciConfig>,
}

impl Channel {
    /// A channel whose requests are served in `context`.
    pub fn new(
        core: Core,
        wiring: Wiring,
        drives: [Option<&DriveConfig>; 2],
        context: &AioContext,
        memory: Arc<GuestRam>,
        config: Arc<PciConfig>,
    ) -> Arc<Self> {
        let channel = Arc::new_cyclic(|channel| {
            let target = |drive: usize| {
                let config = drives[drive]?;
                Some(Target::new(config, channel, drive))
            };
            Self {
                core: Mutex::new(core),
                wire: Wire::new(wiring.line),
                posted: wiring.posted,
                targets: [0, 1].map(target),
                mailbox: Arc::default(),
                memory,
                config,
            }
        });
        for target in channel.targets.iter().flatten() {
            let describer = Arc::downgrade(&channel);
            target.backend.gate().add_describer(describer);
            if let Some(capacity) = &target.capacity {
                // What changed since the core was made had nobody to tell.
                capacity.size_changed();
            }
        }
        let service = Service {
            channel: Arc::downgrade(&channel),
            mailbox: Arc::clone(&channel.mailbox),
            scratch: Scratch::default(),
        };
        context.spawn(move || service.run());
        channel
    }

    /// Runs `access` for anybody but the guest: what the guest has stored before is in the registers by then.
    pub fn access<T>(self: &Arc<Self>, access: impl FnOnce(&mut Core) -> T) -> T {
        self.posted.flush();
        self.guest_access(access)
    }

    /// Runs an access of the guest's under the lock, then carries on what it has set off. Whoever brings it has
    /// flushed what was posted, or is about it.
    pub fn guest_access<T>(self: &Arc<Self>, access: impl FnOnce(&mut Core) -> T) -> T {
        let mut core = self.core.lock();
        let result = access(&mut core);
        let mut aftermath = core.take_aftermath();
        drop(core);
        self.wire.follow(aftermath.line);
        aftermath.wake();
        if aftermath.dead {
            self.mailbox.wake();
        }
        for (target, invalid) in self.targets.iter().zip(aftermath.invalid) {
            if let (Some(target), Some(kind)) = (target, invalid) {
                target.backend.account_invalid(kind);
            }
        }
        for (target, write_cache) in self.targets.iter().zip(aftermath.write_caches) {
            if let (Some(target), Some(on)) = (target, write_cache) {
                target.backend.set_write_cache(on);
            }
        }
        for (target, tray) in self.targets.iter().zip(aftermath.trays) {
            if let (Some(target), Some(open)) = (target, tray) {
                target.backend.tray_moved(open);
            }
        }
        if aftermath.settle {
            for target in self.targets.iter().flatten() {
                target.submitter.settle();
            }
        }
        if let Some(request) = aftermath.launch
            && let Err(unserved) = self.mailbox.send(request)
        {
            self.give_up(&unserved);
        }
        result
    }

    /// Reports that a request will never be served.
    fn give_up(self: &Arc<Self>, request: &Request) {
        self.access(|core| core.complete(request.generation, Outcome::Failed));
    }

    /// Waits until no request is in flight. Any context.
    pub async fn idle(self: Arc<Self>) {
        poll_fn(|context| self.core.lock().poll_idle(context)).await;
    }

    /// One request, from the gate to its completion. Runs in the loop.
    async fn serve(self: &Arc<Self>, request: Request, scratch: &mut Scratch) {
        let Request {
            generation,
            drive,
            operation,
            durable,
        } = request;
        let Some(target) = &self.targets[drive] else {
            return;
        };
        let mut ticket = Ticket {
            channel: self,
            generation,
            outcome: Outcome::Failed,
        };
        let token = match target.try_enter() {
            Some(token) => token,
            None => {
                if self.access(|core| core.park(generation)) == Parking::Dead {
                    return;
                }
                match self.enter(target, generation).await {
                    Ok(Ok(token)) => token,
                    // The disk goes away: the guest is told by the ticket that its command failed.
                    Ok(Err(Cancelled)) => return,
                    Err(Aborted) => return,
                }
            }
        };
        if !self.access(|core| core.begin(generation)) {
            return;
        }
        let mut server = Server {
            request: target.submitter.request(token),
            memory: &self.memory,
            config: &self.config,
            scratch,
            durable,
        };
        let span = tracing::trace_span!("request", drive, operation = %operation.summary());
        ticket.outcome = server.run(operation).instrument(span).await;
        // The ticket reports before the token goes: a drained section begins with registers at rest.
        drop(ticket);
        drop(server);
    }

    /// Waits in the gate's queue for as long as the request is wanted.
    async fn enter(
        &self,
        target: &Target,
        generation: Generation,
    ) -> Result<Result<Token, Cancelled>, Aborted> {
        let mut entering = pin!(target.backend.enter());
        poll_fn(|context| {
            // Before the look: the access that kills the request wakes after it.
            self.mailbox.listen(context);
            if !self.core.lock().is_wanted(generation) {
                return Poll::Ready(Err(Aborted));
            }
            entering.as_mut().poll(context).map(Ok)
        })
        .await
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.mailbox.close();
    }
}

/// The task that serves a channel.
struct Service {
    /// Not kept: the channel ends the task.
    channel: Weak<Channel>,
    mailbox: Arc<Mailbox>,
    scratch: Scratch,
}

impl Service {
    async fn run(mut self) {
        while let Some(request) = poll_fn(|context| self.mailbox.poll_receive(context)).await {
            let Some(channel) = self.channel.upgrade() else {
                return;
            };
            let served = AssertUnwindSafe(channel.serve(request, &mut self.scratch));
            if served.catch_unwind().await.is_err() {
                // Its ticket has told the guest; the next request is none the worse.
                tracing::error!("a request of an IDE channel panicked");
            }
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let unserved = self.mailbox.abandon();
        if let (Some(channel), Some(unserved)) = (self.channel.upgrade(), unserved) {
            channel.give_up(&unserved);
        }
    }
}

impl Describe for Channel {
    fn in_flight(&self, gate: &Gate) -> Vec<String> {
        let core = self.core.lock();
        let targets = (0..).zip(&self.targets);
        let mine = targets.filter_map(|(drive, target)| {
            let is_mine = target.as_ref()?.backend.gate().is_same(gate);
            let running = core.running(drive).filter(|_| is_mine)?;
            Some(format!("IDE drive {drive}: {running}"))
        });
        mine.collect()
    }
}

/// Reports a request's end, also if its task is dropped before.
struct Ticket<'a> {
    channel: &'a Arc<Channel>,
    generation: Generation,
    outcome: Outcome,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let outcome = std::mem::replace(&mut self.outcome, Outcome::Failed);
        self.channel
            .access(|core| core.complete(self.generation, outcome));
    }
}
