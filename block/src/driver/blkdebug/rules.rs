//! The rules of a `blkdebug` node: a small state machine that events drive.
//!
//! An event makes the error rules that are set on it (in the present state) the *active* ones, in
//! place of those that were; they stay active until another event's rules take over. A request
//! fails by the first active rule that fits it. After that the event's `set-state` rules apply.

use std::io;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::event::{DebugEvent, IoType};
use crate::error::{BlockError, Result};

/// Bytes of a sector in rules.
const SECTOR: u64 = 512;

/// The state in which a node begins.
const FIRST_STATE: i64 = 1;

/// An error to inject (`inject-error` in the options).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct InjectError {
    /// The event that makes it active.
    pub event: DebugEvent,
    /// Only in this state; 0 or nothing for any.
    #[serde(default)]
    pub state: i64,
    /// Only requests of this type; all but `block-status` if not given.
    #[serde(default)]
    pub iotype: Option<IoType>,
    /// Which error; EIO if not given.
    #[serde(default = "default_errno")]
    pub errno: i32,
    /// Only requests that cover this 512-byte sector; a negative one means any.
    #[serde(default = "any_sector")]
    pub sector: i64,
    /// Only the first request.
    #[serde(default)]
    pub once: bool,
    /// Fail before the request has yielded once.
    #[serde(default)]
    pub immediately: bool,
}

impl InjectError {
    /// A rule for all requests after `event`.
    #[must_use]
    pub fn new(event: DebugEvent, errno: i32) -> Self {
        Self {
            event,
            state: 0,
            iotype: None,
            errno,
            sector: any_sector(),
            once: false,
            immediately: false,
        }
    }
}

/// A delay to add (`x-delay` in the options); Sluice's own.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Delay {
    /// The event that waits.
    pub event: DebugEvent,
    /// Only in this state; 0 or nothing for any.
    #[serde(default)]
    pub state: i64,
    /// Only requests that cover this 512-byte sector; a negative one means any.
    #[serde(default = "any_sector")]
    pub sector: i64,
    /// Only the first time.
    #[serde(default)]
    pub once: bool,
    /// How long, in nanoseconds of the loop's clock.
    pub ns: u64,
}

/// A change of state (`set-state` in the options).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SetState {
    /// The event that brings it about.
    pub event: DebugEvent,
    /// Only in this state; 0 or nothing for any.
    #[serde(default)]
    pub state: i64,
    /// The state afterwards.
    pub new_state: i64,
}

fn default_errno() -> i32 {
    libc::EIO
}

fn any_sector() -> i64 {
    -1
}

/// A range that a request is about; events that are no requests have an empty one.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Span {
    pub(super) offset: u64,
    pub(super) len: u64,
}

impl Span {
    /// Whether it covers the sector's first byte, or the sector is any.
    fn fits(self, sector: i64) -> bool {
        let Ok(sector) = u64::try_from(sector) else {
            return true;
        };
        let byte = sector.saturating_mul(SECTOR);
        (self.offset..self.offset.saturating_add(self.len)).contains(&byte)
    }
}

/// What becomes of a request by the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Injected {
    pub(super) errno: i32,
    pub(super) immediately: bool,
}

/// All rules of a node, and its state.
#[derive(Debug)]
pub(super) struct Rules {
    state: i64,
    errors: Vec<(u64, InjectError)>,
    delays: Vec<Delay>,
    changes: Vec<SetState>,
    /// Numbers of the active error rules, in the order of their being set.
    active: Vec<u64>,
    next: u64,
}

impl Rules {
    pub(super) fn new(
        errors: Vec<InjectError>,
        changes: Vec<SetState>,
        delays: Vec<Delay>,
    ) -> Result<Self> {
        if let Some(rule) = errors.iter().find(|rule| rule.errno <= 0) {
            let errno = rule.errno;
            return Err(BlockError::Refused(format!(
                "Parameter 'errno' expects a positive number, not {errno}"
            )));
        }
        let mut rules = Self {
            state: FIRST_STATE,
            errors: Vec::new(),
            delays,
            changes,
            active: Vec::new(),
            next: 0,
        };
        errors.into_iter().for_each(|rule| rules.add(rule));
        rules.happens(DebugEvent::None, Span::default());
        Ok(rules)
    }

    pub(super) fn add(&mut self, rule: InjectError) {
        self.errors.push((self.next, rule));
        self.next += 1;
    }

    pub(super) fn clear_errors(&mut self) {
        self.errors.clear();
        self.active.clear();
    }

    /// Lets `event` drive the rules; returns how long it has to wait.
    pub(super) fn happens(&mut self, event: DebugEvent, span: Span) -> Duration {
        let state = self.state;
        let now = |wanted: i64| wanted == 0 || wanted == state;
        let called: Vec<_> = self
            .errors
            .iter()
            .filter(|(_, rule)| rule.event == event && now(rule.state))
            .map(|(number, _)| *number)
            .collect();
        if !called.is_empty() {
            self.active = called;
        }
        let mut delay = 0_u64;
        self.delays.retain(|rule| {
            let hit = rule.event == event && now(rule.state) && span.fits(rule.sector);
            if hit {
                delay = delay.saturating_add(rule.ns);
            }
            !(hit && rule.once)
        });
        let change = self
            .changes
            .iter()
            .rfind(|rule| rule.event == event && now(rule.state));
        if let Some(change) = change {
            self.state = change.new_state;
        }
        Duration::from_nanos(delay)
    }

    /// The error that an event itself ends with: those of a mirror's pivot can fail, no others.
    pub(super) fn check_event(&mut self, event: DebugEvent) -> Option<Injected> {
        let (clean, agreed) = (DebugEvent::PivotClean, DebugEvent::PivotAgreed);
        if ![clean, agreed, DebugEvent::PivotSwapped].contains(&event) {
            return None;
        }
        self.take_active(|rule| rule.event == event)
    }

    /// The error that a request of this type ends with, if any.
    pub(super) fn check(&mut self, iotype: IoType, span: Span) -> Option<Injected> {
        let fits = |rule: &InjectError| {
            let type_fits = match rule.iotype {
                Some(wanted) => wanted == iotype,
                None => iotype != IoType::BlockStatus,
            };
            type_fits && span.fits(rule.sector)
        };
        self.take_active(fits)
    }

    /// The first active rule that fits, which is gone afterwards if it is for once only.
    fn take_active(&mut self, fits: impl Fn(&InjectError) -> bool) -> Option<Injected> {
        let place = self
            .errors
            .iter()
            .position(|(number, rule)| self.active.contains(number) && fits(rule))?;
        let (number, rule) = &self.errors[place];
        let injected = Injected {
            errno: rule.errno,
            immediately: rule.immediately,
        };
        if rule.once {
            let number = *number;
            self.active.retain(|active| *active != number);
            self.errors.remove(place);
        }
        Some(injected)
    }
}

impl From<Injected> for BlockError {
    fn from(injected: Injected) -> Self {
        io::Error::from_raw_os_error(injected.errno).into()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn rules(errors: Value, changes: Value) -> Rules {
        let errors = serde_json::from_value(errors).unwrap();
        let changes = serde_json::from_value(changes).unwrap();
        Rules::new(errors, changes, Vec::new()).unwrap()
    }

    fn errno(rules: &mut Rules, iotype: IoType, offset: u64, len: u64) -> i32 {
        let injected = rules.check(iotype, Span { offset, len });
        injected.map_or(0, |injected| injected.errno)
    }

    fn happens(rules: &mut Rules, event: DebugEvent) {
        rules.happens(event, Span::default());
    }

    #[test]
    fn an_event_makes_its_rules_the_active_ones() {
        let errors = json!([{"event": "read_aio", "errno": 5}, {"event": "write_aio", "errno": 28},
                            {"event": "write_aio", "errno": 1, "iotype": "block-status"}]);
        let mut rules = rules(errors, json!([]));
        assert_eq!(
            errno(&mut rules, IoType::Read, 0, 512),
            0,
            "nothing has happened"
        );
        happens(&mut rules, DebugEvent::ReadAio);
        assert_eq!(errno(&mut rules, IoType::Read, 0, 512), 5);
        assert_eq!(errno(&mut rules, IoType::Flush, 0, 0), 5, "of every type");
        assert_eq!(errno(&mut rules, IoType::BlockStatus, 0, 512), 0, "but one");
        happens(&mut rules, DebugEvent::FlushToDisk);
        assert_eq!(
            errno(&mut rules, IoType::Read, 0, 512),
            5,
            "nothing took over"
        );
        happens(&mut rules, DebugEvent::WriteAio);
        assert_eq!(errno(&mut rules, IoType::Read, 0, 512), 28);
        assert_eq!(errno(&mut rules, IoType::BlockStatus, 0, 512), 1);
    }

    #[test]
    fn rules_pick_sectors_types_and_the_first_time() {
        let errors = json!([{"event": "none", "sector": 3, "iotype": "write", "once": true}]);
        let mut rules = rules(errors, json!([]));
        assert_eq!(errno(&mut rules, IoType::Read, 0, 4096), 0);
        assert_eq!(errno(&mut rules, IoType::Write, 0, 1536), 0);
        assert_eq!(errno(&mut rules, IoType::Write, 1537, 512), 0);
        assert_eq!(errno(&mut rules, IoType::Write, 1024, 1024), libc::EIO);
        assert_eq!(errno(&mut rules, IoType::Write, 1024, 1024), 0);
        happens(&mut rules, DebugEvent::None);
        assert_eq!(
            errno(&mut rules, IoType::Write, 1024, 1024),
            0,
            "gone for good"
        );
    }

    #[test]
    fn states_choose_the_rules() {
        let errors = json!([{"event": "write_aio", "state": 2, "errno": 28}]);
        let changes = json!([{"event": "flush_to_disk", "state": 1, "new_state": 2},
                             {"event": "flush_to_disk", "state": 2, "new_state": 3}]);
        let mut rules = rules(errors, changes);
        happens(&mut rules, DebugEvent::WriteAio);
        assert_eq!(errno(&mut rules, IoType::Write, 0, 512), 0);
        happens(&mut rules, DebugEvent::FlushToDisk);
        assert_eq!(rules.state, 2, "one step for one event");
        happens(&mut rules, DebugEvent::WriteAio);
        assert_eq!(errno(&mut rules, IoType::Write, 0, 512), 28);
        happens(&mut rules, DebugEvent::FlushToDisk);
        rules.clear_errors();
        assert_eq!(errno(&mut rules, IoType::Write, 0, 512), 0);
    }

    #[test]
    fn an_errno_is_positive() {
        let errors = vec![InjectError::new(DebugEvent::ReadAio, -5)];
        let refused = Rules::new(errors, Vec::new(), Vec::new()).unwrap_err();
        assert!(refused.to_string().contains("'errno'"), "{refused}");
    }
}
