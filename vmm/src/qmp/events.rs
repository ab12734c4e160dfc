//! Turns what happens to the machine and its disks into QMP events, for every session.
//!
//! [`EventBus`] takes events from any thread, stamps them with the time of day (under qtest, with that of the
//! guest's clock, as QEMU does) and puts them into the
//! [`Outbox`] of each session that has negotiated. `BLOCK_IO_ERROR`, which a guest can bring about
//! as often as it likes, is limited as in QEMU: of the events about one device within a second the
//! first and the last are sent. No lock is held while another is taken.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::Serialize;
use sluice_aio::{AioContext, Clock, current};
use sluice_block::{BlockEvent, EventSink};

use super::json::{self, Layout};
use super::outbox::Outbox;
use crate::control::{Cause, PanicAction, VmEvent, VmEventSink};

/// Of the events of a limited kind about one thing, one is sent in this time (QEMU: 1 s).
const LIMIT_PERIOD: Duration = Duration::from_secs(1);

/// Takes events from any thread and sends them to every session that wants events. Made once, by
/// `main`; the graph and the machine hold it as their sink.
#[derive(Debug)]
pub struct EventBus {
    this: Weak<Self>,
    main: AioContext,
    /// The guest's clock, if that is moved by hand: limits and stamps go by it.
    guest_clock: Option<Clock>,
    sessions: Mutex<Vec<Weak<Outbox>>>,
    /// What is limited now, by device: the latest event that was held back.
    limited: Mutex<BTreeMap<String, Option<BlockEvent>>>,
}

impl EventBus {
    /// A bus without sessions. The limits' timers run in `main`.
    pub fn new(main: AioContext) -> Arc<Self> {
        Self::on_clock(main, None)
    }

    /// As [`EventBus::new`], with limits and time stamps by the guest's clock.
    pub fn on_clock(main: AioContext, guest_clock: Option<Clock>) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            this: Weak::clone(this),
            main,
            guest_clock,
            sessions: Mutex::default(),
            limited: Mutex::default(),
        })
    }

    /// Sends events to `session` while it lives.
    pub(super) fn subscribe(&self, session: &Arc<Outbox>) {
        let mut sessions = self.sessions.lock();
        sessions.retain(|session| session.strong_count() > 0);
        sessions.push(Arc::downgrade(session));
    }

    fn send(&self, event: &impl Serialize) {
        let now = match &self.guest_clock {
            Some(clock) => UNIX_EPOCH + clock.now(),
            None => SystemTime::now(),
        };
        let sessions: Vec<_> = {
            let sessions = self.sessions.lock();
            sessions.iter().filter_map(Weak::upgrade).collect()
        };
        let mut texts = BTreeMap::new();
        for session in sessions {
            let Some(layout) = session.layout() else {
                continue;
            };
            let text = match texts.entry(layout) {
                Entry::Occupied(text) => text.into_mut(),
                Entry::Vacant(place) => match event_text(event, now, layout) {
                    Ok(text) => place.insert(Arc::<str>::from(text)),
                    Err(error) => {
                        // No event holds what JSON can't; but losing one must not pass unseen.
                        tracing::error!(%error, "an event can't be written");
                        return;
                    }
                },
            };
            session.event(Arc::clone(text));
        }
    }

    /// Sends `event` unless one about the same `device` was sent just now; then keeps it for the
    /// end of the period.
    fn send_limited(&self, device: &str, event: BlockEvent) {
        let mut limited = self.limited.lock();
        if let Some(held_back) = limited.get_mut(device) {
            *held_back = Some(event);
            return;
        }
        limited.insert(device.to_owned(), None);
        drop(limited);
        self.send(&event);
        self.start_period(device);
    }

    fn start_period(&self, device: &str) {
        let bus = Weak::clone(&self.this);
        let device = device.to_owned();
        let guest_clock = self.guest_clock.clone();
        self.main.spawn(move || async move {
            match guest_clock {
                Some(clock) => clock.sleep(LIMIT_PERIOD).await,
                None => current::sleep(LIMIT_PERIOD).await,
            }
            if let Some(bus) = bus.upgrade() {
                bus.end_period(&device);
            }
        });
    }

    fn end_period(&self, device: &str) {
        let mut limited = self.limited.lock();
        match limited.remove(device).flatten() {
            None => {}
            Some(event) => {
                limited.insert(device.to_owned(), None);
                drop(limited);
                self.send(&event);
                self.start_period(device);
            }
        }
    }
}

impl EventSink for EventBus {
    fn emit(&self, event: BlockEvent) {
        let limited_by = match &event {
            BlockEvent::BlockIoError { qom_path, .. } => Some(qom_path.clone()),
            _ => None,
        };
        match limited_by {
            Some(device) => self.send_limited(&device, event),
            None => self.send(&event),
        }
    }
}

impl VmEventSink for EventBus {
    fn emit(&self, event: VmEvent) {
        self.send(&MachineEvent::from(event));
    }
}

/// The member of an event that has its name.
pub(super) const TAG: &str = "event";
/// The member of an event that has all else.
pub(super) const CONTENT: &str = "data";

/// The QMP form of a machine's event, without its time.
#[derive(Debug, JsonSchema, PartialEq, Serialize)]
#[serde(tag = "event", content = "data", rename_all = "SCREAMING_SNAKE_CASE")]
pub(super) enum MachineEvent {
    Stop,
    Resume,
    Powerdown,
    Reset {
        guest: bool,
        reason: Cause,
    },
    Shutdown {
        guest: bool,
        reason: Cause,
    },
    GuestPanicked {
        action: PanicAction,
    },
    DeviceDeleted {
        #[serde(skip_serializing_if = "Option::is_none")]
        device: Option<String>,
        path: String,
    },
}

impl From<VmEvent> for MachineEvent {
    fn from(event: VmEvent) -> Self {
        match event {
            VmEvent::Stop => Self::Stop,
            VmEvent::Resume => Self::Resume,
            VmEvent::Powerdown => Self::Powerdown,
            VmEvent::Reset(reason) => Self::Reset {
                guest: reason.is_guest(),
                reason,
            },
            VmEvent::Shutdown(reason) => Self::Shutdown {
                guest: reason.is_guest(),
                reason,
            },
            VmEvent::GuestPanicked(action) => Self::GuestPanicked { action },
            VmEvent::DeviceDeleted { device, path } => Self::DeviceDeleted { device, path },
        }
    }
}

/// An event as a message, with its time.
fn event_text(
    event: &impl Serialize,
    now: SystemTime,
    layout: Layout,
) -> serde_json::Result<String> {
    /// `timestamp` of an event; -1 each if the clock shows a time before 1970, as in QEMU.
    #[derive(Serialize)]
    struct Timestamp {
        seconds: i64,
        microseconds: i64,
    }
    #[derive(Serialize)]
    struct Stamped<'a, T> {
        timestamp: Timestamp,
        #[serde(flatten)]
        event: &'a T,
    }
    let timestamp = match now.duration_since(UNIX_EPOCH) {
        Ok(since) => Timestamp {
            seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            microseconds: i64::from(since.subsec_micros()),
        },
        Err(_) => Timestamp {
            seconds: -1,
            microseconds: -1,
        },
    };
    json::write(&Stamped { timestamp, event }, layout)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn vm_event(event: VmEvent) -> Value {
        serde_json::to_value(MachineEvent::from(event)).unwrap()
    }

    #[test]
    fn events_have_qemus_form() {
        let at = UNIX_EPOCH + Duration::new(12, 345_678_999);
        let event = MachineEvent::from(VmEvent::Shutdown(Cause::GuestShutdown));
        let line = event_text(&event, at, Layout::Line).unwrap();
        assert_eq!(
            line,
            "{\"timestamp\": {\"seconds\": 12, \"microseconds\": 345678}, \"event\": \"SHUTDOWN\", \
             \"data\": {\"guest\": true, \"reason\": \"guest-shutdown\"}}\r\n"
        );
        let pretty = event_text(&event, at, Layout::Pretty).unwrap();
        let start = "{\r\n    \"timestamp\": {\r\n        \"seconds\": 12,\r\n";
        assert!(pretty.starts_with(start), "{pretty}");
        assert!(pretty.ends_with("\r\n    }\r\n}\r\n"), "{pretty}");
    }

    #[test]
    fn events_without_data_have_no_data() {
        for (event, name) in [
            (VmEvent::Stop, "STOP"),
            (VmEvent::Resume, "RESUME"),
            (VmEvent::Powerdown, "POWERDOWN"),
        ] {
            assert_eq!(vm_event(event), json!({"event": name}));
        }
    }

    #[test]
    fn causes_say_whether_the_guest_is_the_origin() {
        let reset = vm_event(VmEvent::Reset(Cause::HostQmpSystemReset));
        let data = json!({"guest": false, "reason": "host-qmp-system-reset"});
        assert_eq!(reset, json!({"event": "RESET", "data": data}));
        let panicked = vm_event(VmEvent::GuestPanicked(PanicAction::Poweroff));
        assert_eq!(panicked["data"], json!({"action": "poweroff"}));
    }
}
