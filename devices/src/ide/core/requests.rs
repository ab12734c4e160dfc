//! Requests on their way to the loop and back, and resets, which must not overtake them.
//!
//! At most one request of a channel is alive: BSY keeps the guest from giving another command. A reset or a stop of the
//! bus master begins a new [`Generation`]: a request that has not begun is dead at once, one that runs is
//! waited for, and what it reports is dropped (CVE-2023-5088 came from doing this in another order).

use std::task::{Context, Poll, Waker};

use sluice_block::backend::Account;

use super::super::regs::Control;
use super::super::request::{Generation, Operation, Outcome, Request, Summary};
use super::{BusMaster, Core, Phase, Reset, Unit, Work};
use crate::irq::LineChanges;

/// How far a request has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// On its way to the loop.
    Submitted,
    /// Waiting at the gate of a drained drive.
    Parked,
    /// Holding the gate's token.
    Running,
}

#[derive(Debug)]
struct InFlight {
    generation: Generation,
    drive: usize,
    summary: Summary,
    stage: Stage,
}

/// What an access has set off, to be carried on when the core's lock is released.
#[derive(Default)]
pub(in super::super) struct Aftermath {
    /// What the interrupt line has gone through, to be carried out before anything else.
    pub line: LineChanges,
    /// The request that was submitted, to be carried to the drive's loop.
    pub launch: Option<Request>,
    /// A request died before it ran: it may wait at the gate, and is to look.
    pub dead: bool,
    /// Those who waited for no request to be in flight.
    idle: Vec<Waker>,
    /// A request is in flight that is not wanted any more.
    pub settle: bool,
    /// What the drives were asked for and do not have.
    pub invalid: [Option<Account>; 2],
    /// The drives' write caches that were switched.
    pub write_caches: [Option<bool>; 2],
    /// The drives' trays that moved, and whether they are open now.
    pub trays: [Option<bool>; 2],
}

impl Aftermath {
    /// Wakes those who waited. Must not be called under the core's lock: what is woken may be dropped on
    /// the spot if its loop has ended, and then reports back to the core.
    pub fn wake(&mut self) {
        for waker in self.idle.drain(..) {
            waker.wake();
        }
    }
}

/// What a request that found the gate closed has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Parking {
    /// Wait for a token.
    Wait,
    /// Nothing: it is dead.
    Dead,
}

/// The request in flight, and who waits for there to be none.
#[derive(Default)]
pub(super) struct Requests {
    generation: Generation,
    in_flight: Option<InFlight>,
    launch: Option<Request>,
    dead: bool,
    idle_wakers: Vec<Waker>,
    settle: bool,
    invalid: [Option<Account>; 2],
    write_caches: [Option<bool>; 2],
}

impl Requests {
    pub(super) fn is_parked(&self) -> bool {
        self.in_flight
            .as_ref()
            .is_some_and(|request| request.stage == Stage::Parked)
    }

    pub(super) fn is_running(&self) -> bool {
        self.in_flight
            .as_ref()
            .is_some_and(|request| request.stage == Stage::Running)
    }

    fn is_current(&self, generation: Generation) -> bool {
        generation == self.generation
    }

    /// Begins a new generation. What has not begun to run is dead; what runs remains in flight.
    pub(super) fn invalidate(&mut self) {
        self.generation = self.generation.next();
        self.launch = None;
        self.dead |= self
            .in_flight
            .take_if(|request| request.stage != Stage::Running)
            .is_some();
        // What runs may be halted by an error, and would be for as long as the machine stands still.
        self.settle = self.in_flight.is_some();
    }

    fn advance(&mut self, stage: Stage) {
        if let Some(request) = &mut self.in_flight {
            request.stage = stage;
        }
    }
}

impl Core {
    /// Submits an operation on the selected drive.
    pub(super) fn launch(&mut self, operation: Operation) {
        self.submit(operation, false);
    }

    /// The same of a write, which may have to be durable before it ends.
    pub(super) fn submit(&mut self, operation: Operation, durable: bool) {
        let generation = self.requests.generation;
        self.requests.in_flight = Some(InFlight {
            generation,
            drive: self.selected,
            summary: operation.summary(),
            stage: Stage::Submitted,
        });
        self.requests.launch = Some(Request {
            generation,
            drive: self.selected,
            operation,
            durable,
        });
    }

    /// What the last access has set off.
    pub fn take_aftermath(&mut self) -> Aftermath {
        let trays = self.take_moved_trays();
        let requests = &mut self.requests;
        let idle = if requests.in_flight.is_none() {
            std::mem::take(&mut requests.idle_wakers)
        } else {
            Vec::new()
        };
        Aftermath {
            line: self.line,
            launch: requests.launch.take(),
            dead: std::mem::take(&mut requests.dead),
            idle,
            settle: std::mem::take(&mut requests.settle),
            invalid: std::mem::take(&mut requests.invalid),
            write_caches: std::mem::take(&mut requests.write_caches),
            trays,
        }
    }

    /// Has the selected drive's backend count a request for sectors that the disk does not have.
    pub(super) fn note_invalid(&mut self, kind: Account) {
        self.requests.invalid[self.selected] = Some(kind);
    }

    /// Has the drive's backend told of its write cache.
    pub(super) fn note_write_cache(&mut self, drive: usize, on: bool) {
        self.requests.write_caches[drive] = Some(on);
    }

    /// A request found the gate closed.
    pub fn park(&mut self, generation: Generation) -> Parking {
        if !self.requests.is_current(generation) {
            return Parking::Dead;
        }
        if let Phase::Busy(Work::Dma(command)) = self.phase
            && !self.bus_master.wanted()
        {
            self.take_back(command);
            return Parking::Dead;
        }
        self.requests.advance(Stage::Parked);
        self.count(|stats| stats.parked += 1);
        Parking::Wait
    }

    /// Whether a request that waits is to go on waiting.
    pub fn is_wanted(&self, generation: Generation) -> bool {
        self.requests.is_current(generation)
    }

    /// A request has got its token. Returns whether it is still wanted: only then it may touch the disk.
    #[must_use]
    pub fn begin(&mut self, generation: Generation) -> bool {
        let current = self.requests.is_current(generation);
        if current {
            self.requests.advance(Stage::Running);
        }
        current
    }

    /// A request is over. Of an older generation only the fact counts, not the outcome.
    pub fn complete(&mut self, generation: Generation, outcome: Outcome) {
        if self
            .requests
            .in_flight
            .take_if(|request| request.generation == generation)
            .is_none()
        {
            return;
        }
        if !self.requests.is_current(generation) {
            self.count(|stats| stats.dropped += 1);
            self.bus_master.stop();
            self.try_finish_reset();
            return;
        }
        let Phase::Busy(work) = self.phase else {
            return;
        };
        match work {
            Work::Read(transfer) => self.block_read(transfer, outcome),
            Work::Write(transfer) => self.block_written(transfer, outcome),
            Work::Dma(command) => self.dma_ended(command, &outcome),
            Work::PacketBlock => self.packet_block_read(outcome),
            Work::Flush if outcome == Outcome::Done => self.finish(),
            Work::Flush => self.abort(),
        }
    }

    /// The request of a drive that holds the gate's token, if there is one.
    pub fn running(&self, drive: usize) -> Option<Summary> {
        let request = self.requests.in_flight.as_ref()?;
        (request.drive == drive && request.stage == Stage::Running).then_some(request.summary)
    }

    /// Ready when no request of this channel is in flight.
    pub fn poll_idle(&mut self, context: &Context<'_>) -> Poll<()> {
        if self.requests.in_flight.is_none() {
            return Poll::Ready(());
        }
        self.requests.idle_wakers.push(context.waker().clone());
        Poll::Pending
    }

    /// The machine is reset: settle, then registers, settings and bus master go to their power-on state.
    pub fn machine_reset(&mut self) {
        self.control = Control::empty();
        self.bus_master = BusMaster::default();
        self.begin_reset(Reset::Machine);
        self.try_finish_reset();
    }

    /// The channel is going away: settle, and stay busy for ever.
    pub fn retire(&mut self) {
        self.begin_reset(Reset::Retired);
    }

    /// Settles: kills what has not begun to run. The registers stay as they are until what runs has ended.
    pub(super) fn begin_reset(&mut self, reset: Reset) {
        self.requests.invalidate();
        let reach = match (&self.phase, reset) {
            // A reset within a reset: the one that reaches further.
            (Phase::Reset(Reset::Retired), _) => Reset::Retired,
            (Phase::Reset(Reset::Machine), Reset::Software) => Reset::Machine,
            _ => reset,
        };
        self.phase = Phase::Reset(reach);
        self.resets += 1;
        if self.requests.in_flight.is_none() {
            // A transfer that was under way will not be resumed.
            self.bus_master.stop();
        }
        self.set_interrupt(false);
    }

    /// Ends the reset when nothing runs any more and SRST is low: clears the registers and posts the signature.
    pub(super) fn try_finish_reset(&mut self) {
        let Phase::Reset(reset) = self.phase else {
            return;
        };
        let held = self.control.contains(Control::SRST) || reset == Reset::Retired;
        if held || self.requests.in_flight.is_some() {
            return;
        }
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if reset == Reset::Device && index != self.selected {
                continue;
            }
            slot.post_signature();
            let Some(drive) = &mut slot.drive else {
                continue;
            };
            match (&mut drive.unit, reset) {
                (Unit::Disk(_), Reset::Software | Reset::Device) => {
                    drive.settings.after_software_reset();
                }
                (Unit::Disk(_), Reset::Machine | Reset::Retired) => {
                    drive.settings = drive.unit.power_on_settings();
                    self.requests.write_caches[index] = Some(drive.settings.write_cache);
                }
                (Unit::CdRom(cd_rom), Reset::Software | Reset::Device) => cd_rom.reset(),
                (Unit::CdRom(cd_rom), Reset::Machine | Reset::Retired) => {
                    cd_rom.power_on();
                    drive.settings = drive.unit.power_on_settings();
                }
            }
        }
        if reset != Reset::Device {
            self.selected = 0;
        }
        self.packet = None;
        self.control.remove(Control::HOB);
        self.phase = Phase::Idle;
    }
}
