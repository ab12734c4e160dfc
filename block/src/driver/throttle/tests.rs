//! Members of a group on a clock that moves by hand: who is let through, in which order, and that
//! a drained section waits for no timer.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use sluice_aio::{Clock, EventLoop, IoBuffer, LoopConfig, current};

use super::*;
use crate::event::{BlockEvent, EventSink};
use crate::graph::Graph;

/// Nobody listens.
struct Silence;

impl EventSink for Silence {
    fn emit(&self, _event: BlockEvent) {}
}

/// A loop on a manual clock.
fn run<F: Future<Output = ()> + 'static>(test: impl FnOnce(Clock) -> F) {
    let clock = Clock::manual();
    let config = LoopConfig {
        clock: clock.clone(),
        ..LoopConfig::default()
    };
    let mut event_loop = EventLoop::new("test", &config).unwrap();
    event_loop.run_until(test(clock)).unwrap();
}

fn limits(value: Value) -> ThrottleLimits {
    serde_json::from_value(value).unwrap()
}

fn group(clock: &Clock, value: Value) -> Arc<ThrottleGroup> {
    ThrottleGroup::new("group", limits(value), clock.clone()).unwrap()
}

/// Lets everything that can happen without time passing happen.
async fn settle() {
    for _ in 0..50 {
        current::yield_now().await;
    }
}

async fn pass(clock: &Clock, millis: u64) {
    clock.advance(Duration::from_millis(millis));
    settle().await;
}

/// Which requests were let through, by name.
type Log = Rc<RefCell<Vec<u32>>>;

fn request(log: &Log, member: &Rc<ThrottleMember>, direction: Direction, bytes: u64, name: u32) {
    let (log, member) = (Rc::clone(log), Rc::clone(member));
    current::spawn_local(async move {
        member.admit(direction, bytes).await;
        log.borrow_mut().push(name);
    })
    .detach();
}

#[test]
fn a_rate_lets_through_what_it_says_and_no_more() {
    run(|clock| async move {
        let group = group(&clock, json!({"bps-total": 1000}));
        let member = Rc::new(group.join());
        let log = Log::default();
        for name in 0..20 {
            request(&log, &member, Direction::Write, 100, name);
        }
        settle().await;
        // A tenth of a second in advance, and the one that overfills the bucket.
        assert_eq!(*log.borrow(), [0, 1]);
        for expected in 3..=10 {
            pass(&clock, 99).await;
            assert_eq!(log.borrow().len(), expected - 1, "a moment too early");
            pass(&clock, 1).await;
            assert_eq!(log.borrow().len(), expected);
        }
        // A long pause earns no more than a short one.
        pass(&clock, 1_000_000).await;
        assert_eq!(log.borrow().len(), 12);
    });
}

#[test]
fn reads_and_writes_are_limited_apart_or_together() {
    run(|clock| async move {
        let group = group(&clock, json!({"iops-read": 10, "iops-size": 1000}));
        let member = Rc::new(group.join());
        let log = Log::default();
        for name in 0..5 {
            request(&log, &member, Direction::Write, 1 << 20, name);
            request(&log, &member, Direction::Read, 1000, 10 + name);
        }
        settle().await;
        assert_eq!(*log.borrow(), [0, 10, 1, 11, 2, 3, 4]);
        pass(&clock, 100).await;
        assert_eq!(log.borrow().len(), 8);
        // Three operations' worth: what comes after waits three times as long.
        request(&log, &member, Direction::Read, 3000, 20);
        request(&log, &member, Direction::Read, 1000, 21);
        for _ in 0..3 {
            pass(&clock, 100).await;
        }
        assert_eq!(log.borrow()[8..], [13, 14, 20]);
        pass(&clock, 299).await;
        assert_eq!(log.borrow().len(), 11);
        pass(&clock, 1).await;
        assert_eq!(log.borrow()[11..], [21]);
        // Together: a write pays for a read.
        group.set_limits(limits(json!({"iops-total": 10}))).unwrap();
        log.borrow_mut().clear();
        for name in 0..2 {
            request(&log, &member, Direction::Write, 1, name);
            request(&log, &member, Direction::Read, 1, 10 + name);
        }
        settle().await;
        assert_eq!(*log.borrow(), [0, 10]);
        pass(&clock, 100).await;
        assert_eq!(log.borrow().len(), 3);
    });
}

#[test]
fn members_take_turns() {
    run(|clock| async move {
        let group = group(&clock, json!({"iops-total": 10}));
        let members: Vec<_> = (0..3).map(|_| Rc::new(group.join())).collect();
        let log = Log::default();
        // A busy member, and two that come later with less.
        for name in 0..8 {
            request(&log, &members[0], Direction::Read, 1, name);
        }
        settle().await;
        assert_eq!(*log.borrow(), [0, 1]);
        for name in 0..2 {
            request(&log, &members[1], Direction::Read, 1, 100 + name);
            request(&log, &members[2], Direction::Read, 1, 200 + name);
        }
        for _ in 0..10 {
            pass(&clock, 100).await;
        }
        assert_eq!(
            log.borrow()[2..],
            [2, 100, 200, 3, 101, 201, 4, 5, 6, 7],
            "the head of each line in turn, each line in order"
        );
    });
}

#[test]
fn a_request_that_is_given_up_gives_its_turn_up() {
    run(|clock| async move {
        let group = group(&clock, json!({"iops-total": 10}));
        let member = Rc::new(group.join());
        let log = Log::default();
        request(&log, &member, Direction::Read, 1, 0);
        request(&log, &member, Direction::Read, 1, 1);
        settle().await;
        let given_up = Rc::clone(&member);
        let task = current::spawn_local(async move { given_up.admit(Direction::Read, 1).await });
        settle().await;
        request(&log, &member, Direction::Read, 1, 2);
        settle().await;
        task.cancel();
        pass(&clock, 100).await;
        assert_eq!(*log.borrow(), [0, 1, 2]);
    });
}

#[test]
fn new_limits_hold_for_those_who_wait() {
    run(|clock| async move {
        let group = group(&clock, json!({"bps-total": 1}));
        let member = Rc::new(group.join());
        let log = Log::default();
        for name in 0..4 {
            request(&log, &member, Direction::Read, 1_000_000, name);
        }
        settle().await;
        assert_eq!(*log.borrow(), [0]);
        let refused = group.set_limits(limits(json!({"iops-size": 1})));
        assert!(refused.is_err());
        assert_eq!(group.limits(), limits(json!({"bps-total": 1})));
        group.set_limits(ThrottleLimits::default()).unwrap();
        settle().await;
        assert_eq!(*log.borrow(), [0, 1, 2, 3]);
    });
}

#[test]
fn members_without_limits_wait_for_nobody_and_pay_all_the_same() {
    run(|clock| async move {
        let group = group(&clock, json!({"iops-total": 10}));
        let [drained, other] = [Rc::new(group.join()), Rc::new(group.join())];
        let log = Log::default();
        for name in 0..6 {
            request(&log, &drained, Direction::Write, 1, name);
            request(&log, &other, Direction::Write, 1, 10 + name);
        }
        settle().await;
        assert_eq!(*log.borrow(), [0, 10]);
        drained.set_unlimited();
        drained.set_unlimited();
        settle().await;
        assert_eq!(*log.borrow(), [0, 10, 1, 2, 3, 4, 5]);
        drained.set_limited();
        request(&log, &drained, Direction::Write, 1, 6);
        settle().await;
        assert_eq!(log.borrow()[7..], [6], "still lifted once");
        drained.set_limited();
        request(&log, &drained, Direction::Write, 1, 7);
        // What went past the limits has filled the bucket: eight in it, one of them may be.
        pass(&clock, 699).await;
        assert_eq!(log.borrow().len(), 8);
        pass(&clock, 1).await;
        assert_eq!(log.borrow()[8..], [11]);
    });
}

fn graph(clock: &Clock) -> Arc<Graph> {
    Graph::new(Arc::new(Silence), clock.clone())
}

async fn add(graph: &Graph, options: Value) -> Result<Arc<crate::Node>> {
    graph
        .add_node(&serde_json::from_value(options).unwrap())
        .await
}

fn throttle(name: &str, group: &str) -> Value {
    json!({"driver": "throttle", "node-name": name, "throttle-group": group,
           "file": {"driver": "null-co", "node-name": format!("{name}-file")}})
}

#[test]
fn a_node_needs_its_group_and_keeps_it() {
    run(|clock| async move {
        let graph = graph(&clock);
        let refused = add(&graph, throttle("t0", "g0")).await.unwrap_err();
        assert_eq!(refused.to_string(), "Throttle group 'g0' does not exist");
        let groups = graph.throttle_groups();
        groups.add("g0", ThrottleLimits::default()).unwrap();
        let refused = groups.add("g0", ThrottleLimits::default()).unwrap_err();
        assert!(matches!(refused, ThrottleError::Duplicate(_)));
        add(&graph, throttle("t0", "g0")).await.unwrap();
        let refused = groups.remove("g0").unwrap_err().to_string();
        assert_eq!(refused, "object 'g0' is in use, can not be deleted");
        graph.del_node("t0").unwrap();
        groups.remove("g0").unwrap();
        assert_eq!(
            groups.remove("g0").unwrap_err().to_string(),
            "object 'g0' not found"
        );
    });
}

#[test]
fn a_section_does_not_wait_for_the_clock() {
    run(|clock| async move {
        let graph = graph(&clock);
        let limits = limits(json!({"iops-total": 1}));
        graph.throttle_groups().add("g0", limits).unwrap();
        let node = add(&graph, throttle("t0", "g0")).await.unwrap();
        let below = graph.node("t0-file").unwrap();
        let disk = graph.add_backend("disk", &node).unwrap();
        for (round, (name, node)) in [("t0", &node), ("t0-file", &below)].iter().enumerate() {
            let tasks: Vec<_> = (0..10)
                .map(|_| {
                    let disk = Arc::clone(&disk);
                    current::spawn_local(async move {
                        let token = disk.enter().await.unwrap();
                        disk.write(&token, 0, IoBuffer::alloc(512)).await.unwrap();
                    })
                })
                .collect();
            settle().await;
            assert!(disk.gate().in_flight() >= 8, "held up by the limits");
            // The clock stands still.
            let section = if round == 0 {
                graph.drain(node, name).await
            } else {
                graph.drain_all(name).await
            };
            assert_eq!(disk.gate().in_flight(), 0);
            for task in tasks {
                task.await.unwrap();
            }
            drop(section);
        }
        // The limits are back.
        let again = Arc::clone(&disk);
        let task = current::spawn_local(async move {
            let token = again.enter().await.unwrap();
            again.read(&token, 0, IoBuffer::alloc(512)).await.unwrap();
        });
        settle().await;
        assert_eq!(disk.gate().in_flight(), 1);
        pass(&clock, 30_000).await;
        task.await.unwrap();
    });
}
