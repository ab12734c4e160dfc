//! What is said on the standard error stream, and that a guest cannot fill the host's disk with it.
//!
//! Some warnings come from what a guest does: a read that fails, a ring that breaks the rules. A guest can do so as often
//! as it likes. [`Ration`] lets ten warnings or errors of a kind pass in ten seconds, says that more are left out,
//! and how many there were when the next one passes. A kind is a place of the source. What is asked for by `SLUICE_LOG`
//! beyond warnings is not rationed.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tracing::callsite::Identifier;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// Messages of a kind that pass in an interval.
const BURST: u64 = 10;
/// Begins with the first message.
const INTERVAL: Duration = Duration::from_secs(10);

/// What became of one kind of message in the interval that began last.
struct Kind {
    began: Duration,
    seen: u64,
}

/// What is to become of a message.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// It is said, after the news that so many like it were not.
    Say { left_out: u64 },
    /// It is left out, as the first of its interval: let that be said.
    LeaveOutFirst,
    /// It is left out.
    LeaveOut,
}

/// The filter. Any thread.
pub struct Ration<C> {
    /// Time since a moment in the past.
    clock: C,
    /// As many as there are places in the source that warn.
    kinds: Mutex<HashMap<Identifier, Kind>>,
}

impl Ration<fn() -> Duration> {
    /// A filter by the host's clock.
    #[must_use]
    pub fn new() -> Ration<impl Fn() -> Duration + Send + Sync> {
        let start = Instant::now();
        Ration::with(move || start.elapsed())
    }
}

impl<C: Fn() -> Duration> Ration<C> {
    fn with(clock: C) -> Self {
        Self {
            clock,
            kinds: Mutex::default(),
        }
    }

    fn judge(&self, kind: Identifier) -> Verdict {
        let now = (self.clock)();
        let mut kinds = self.kinds.lock();
        let kind = kinds.entry(kind).or_insert(Kind {
            began: now,
            seen: 0,
        });
        let mut left_out = 0;
        if now.saturating_sub(kind.began) >= INTERVAL {
            left_out = kind.seen.saturating_sub(BURST);
            *kind = Kind {
                began: now,
                seen: 0,
            };
        }
        kind.seen += 1;
        match kind.seen {
            ..=BURST => Verdict::Say { left_out },
            seen if seen == BURST + 1 => Verdict::LeaveOutFirst,
            _ => Verdict::LeaveOut,
        }
    }
}

impl<S: Subscriber, C: Fn() -> Duration + 'static> Layer<S> for Ration<C> {
    fn event_enabled(&self, event: &Event<'_>, _context: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        if *metadata.level() > Level::WARN {
            return true;
        }
        // What is said about messages is itself one of two kinds, and at most one for each ten others.
        if metadata.target() == module_path!() {
            return true;
        }
        match self.judge(metadata.callsite()) {
            Verdict::Say { left_out: 0 } => true,
            Verdict::Say { left_out } => {
                tracing::warn!(left_out, "messages like the next one were left out");
                true
            }
            Verdict::LeaveOutFirst => {
                let seconds = INTERVAL.as_secs();
                tracing::warn!(
                    "more messages like the last one are left out for up to {seconds} s"
                );
                false
            }
            Verdict::LeaveOut => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use tracing_subscriber::fmt::MakeWriter;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    /// What was said.
    #[derive(Clone, Default)]
    struct Said(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Said {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Said {
        type Writer = Self;

        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }

    impl Said {
        fn lines_with(&self, words: &str) -> usize {
            let said = String::from_utf8(self.0.lock().clone()).unwrap();
            said.lines().filter(|line| line.contains(words)).count()
        }
    }

    /// Runs `body` under a rationed log whose clock shows the seconds of the second argument.
    fn rationed(body: impl FnOnce(&Said, &AtomicU64)) {
        let said = Said::default();
        let seconds = Arc::new(AtomicU64::new(0));
        let clock = Arc::clone(&seconds);
        let ration = Ration::with(move || Duration::from_secs(clock.load(Ordering::Relaxed)));
        let fmt = tracing_subscriber::fmt()
            .with_max_level(Level::DEBUG)
            .with_writer(said.clone());
        tracing::subscriber::with_default(fmt.finish().with(ration), || body(&said, &seconds));
    }

    fn complain() {
        tracing::warn!("a request failed");
    }

    #[test]
    fn a_kind_of_warning_is_said_ten_times_in_ten_seconds() {
        rationed(|said, seconds| {
            (0..1000).for_each(|_| complain());
            assert_eq!(said.lines_with("a request failed"), 10);
            seconds.store(9, Ordering::Relaxed);
            complain();
            assert_eq!(said.lines_with("a request failed"), 10);
            seconds.store(10, Ordering::Relaxed);
            complain();
            assert_eq!(said.lines_with("a request failed"), 11);
        });
    }

    #[test]
    fn kinds_do_not_take_each_others_share() {
        rationed(|said, _| {
            (0..100).for_each(|_| complain());
            tracing::error!("something else");
            assert_eq!(said.lines_with("something else"), 1);
        });
    }

    #[test]
    fn what_is_asked_for_is_not_rationed() {
        rationed(|said, _| {
            (0..100).for_each(|_| tracing::debug!("a detail"));
            assert_eq!(said.lines_with("a detail"), 100);
        });
    }

    #[test]
    fn it_is_known_how_many_were_left_out() {
        let seconds = AtomicU64::new(0);
        let ration = Ration::with(|| Duration::from_secs(seconds.load(Ordering::Relaxed)));
        let kind =
            tracing::callsite!(name: "kind", kind: tracing::metadata::Kind::EVENT, fields: x);
        let kind = Identifier(kind);
        for _ in 0..BURST {
            assert_eq!(ration.judge(kind.clone()), Verdict::Say { left_out: 0 });
        }
        assert_eq!(ration.judge(kind.clone()), Verdict::LeaveOutFirst);
        assert_eq!(ration.judge(kind.clone()), Verdict::LeaveOut);
        seconds.store(11, Ordering::Relaxed);
        assert_eq!(ration.judge(kind.clone()), Verdict::Say { left_out: 2 });
        assert_eq!(ration.judge(kind), Verdict::Say { left_out: 0 });
    }
}
