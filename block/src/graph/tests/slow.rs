//! A drain that takes long says what it waits for.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sluice_aio::{Clock, EventLoop, LoopConfig, current};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use super::bench::{Bench, Silence, settle, write};
use crate::graph::Graph;

/// Keeps the warnings.
#[derive(Clone, Default)]
struct Warnings(Arc<Mutex<Vec<String>>>);

struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        write!(self.0, "{}={value:?} ", field.name()).unwrap();
    }
}

impl Subscriber for Warnings {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::WARN
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut text = Text(String::new());
        event.record(&mut text);
        self.0.lock().push(text.0);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[test]
fn a_drain_that_waits_for_more_than_a_second_says_for_what() {
    let clock = Clock::manual();
    let config = LoopConfig {
        clock: clock.clone(),
        ..LoopConfig::default()
    };
    let mut event_loop = EventLoop::new("main", &config).unwrap();
    let graph = Graph::new(Arc::new(Silence), clock.clone());
    let bench = Bench { graph };
    let warnings = Warnings::default();
    let said = Arc::clone(&warnings.0);
    let guard = tracing::subscriber::set_default(warnings);
    let test = async move {
        let (disk, node, watch) = bench.disk("disk");
        watch.hold();
        let running = current::spawn_local({
            let disk = Arc::clone(&disk);
            async move { write(&disk, 1).await }
        });
        settle().await;
        let graph = Arc::clone(&bench.graph);
        let draining = current::spawn_local(async move { graph.drain(&node, "patience").await });
        settle().await;
        for (millis, expected) in [(999, 0), (1, 1), (999, 1), (1, 2), (1999, 2), (1, 3)] {
            clock.advance(Duration::from_millis(millis));
            settle().await;
            assert_eq!(said.lock().len(), expected, "{said:?}");
        }
        let first = said.lock()[0].clone();
        for part in [
            "a drain takes long",
            "holder=\"patience\"",
            "waited=1s",
            "disk 'disk' (1 requests in flight)",
        ] {
            assert!(first.contains(part), "{first}");
        }
        watch.release();
        drop(draining.await.unwrap());
        running.await.unwrap().unwrap();
        let past = disk.node().unwrap().past_sections();
        assert_eq!((past.count, past.longest), (1, Duration::from_secs(4)));
        assert_eq!(past.times.buckets().collect::<Vec<_>>(), [(1 << 22, 1)]);
    };
    event_loop.run_until(test).unwrap();
    drop(guard);
}
