//! Disks with limits, on a clock that moves by hand: the rate is kept, it is shared, and nobody who
//! waits for the disk to be idle waits for the clock.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Value, json};
use sluice_aio::{Clock, EventLoop, IoBuffer, IoThread, JoinHandle, LoopConfig, current};

use crate::backend::{Account, Backend, Submitter};
use crate::driver::throttle::{ThrottleError, ThrottleLimits};
use crate::error::{BlockError, Result};
use crate::event::tests::EventLog;
use crate::graph::Graph;
use crate::node::Node;

/// Bytes of a request.
const LEN: usize = 512;

struct Bench {
    clock: Clock,
    graph: Arc<Graph>,
}

fn run<F: Future<Output = ()> + 'static>(test: impl FnOnce(Bench) -> F) {
    let clock = Clock::manual();
    let config = LoopConfig {
        clock: clock.clone(),
        ..LoopConfig::default()
    };
    let mut event_loop = EventLoop::new("test", &config).unwrap();
    let graph = Graph::new(Arc::new(EventLog::default()), clock.clone());
    event_loop.run_until(test(Bench { clock, graph })).unwrap();
}

fn limits(value: Value) -> ThrottleLimits {
    serde_json::from_value(value).unwrap()
}

/// Lets everything happen that can without time passing.
async fn settle() {
    for _ in 0..50 {
        current::yield_now().await;
    }
}

/// Names of requests in the order of their ends, with how they ended.
type Log = Rc<RefCell<Vec<(u32, bool)>>>;

fn names(log: &Log) -> Vec<u32> {
    log.borrow().iter().map(|(name, _)| *name).collect()
}

impl Bench {
    async fn node(&self, name: &str) -> Arc<Node> {
        let options = json!({"driver": "null-co", "node-name": format!("{name}-node"),
                             "discard": "unmap"});
        let options = serde_json::from_value(options).unwrap();
        self.graph.add_node(&options).await.unwrap()
    }

    async fn disk(&self, name: &str) -> Arc<Backend> {
        let node = self.node(name).await;
        self.graph.add_backend(name, &node).unwrap()
    }

    /// A disk that shares the limits of `group`.
    async fn limited(&self, name: &str, group: Option<&str>, value: Value) -> Arc<Backend> {
        let disk = self.disk(name).await;
        self.limit(&disk, group, value).await;
        disk
    }

    async fn limit(&self, disk: &Arc<Backend>, group: Option<&str>, value: Value) {
        let set = self.graph.set_io_throttle(disk, group, limits(value));
        set.await.unwrap();
    }

    async fn pass(&self, millis: u64) {
        self.clock.advance(Duration::from_millis(millis));
        settle().await;
    }
}

/// A guest's write; it is noted in `log` when it has ended.
fn write(log: &Log, guest: &Arc<Submitter>, name: u32) -> JoinHandle<Result<()>> {
    let (log, guest) = (Rc::clone(log), Arc::clone(guest));
    current::spawn_local(async move {
        let token = guest.backend().enter().await?;
        let result = guest.request(token).write(0, IoBuffer::alloc(LEN)).await;
        log.borrow_mut().push((name, result.is_ok()));
        result
    })
}

/// Writes with these names, in this order.
fn writes(log: &Log, disk: &Arc<Backend>, names: std::ops::Range<u32>) -> Arc<Submitter> {
    let guest = Arc::new(Submitter::new(Arc::clone(disk)));
    for name in names {
        write(log, &guest, name).detach();
    }
    guest
}

#[test]
fn a_disk_keeps_to_its_rate() {
    run(|bench| async move {
        let disk = bench.limited("disk", None, json!({"iops-total": 10})).await;
        assert_eq!(disk.throttle_group().unwrap().name(), "disk");
        let log = Log::default();
        writes(&log, &disk, 0..6);
        settle().await;
        // One in advance, and the one that overfills the bucket.
        assert_eq!(names(&log), [0, 1]);
        for ended in 3..=6 {
            bench.pass(99).await;
            assert_eq!(log.borrow().len(), ended - 1, "a moment too early");
            bench.pass(1).await;
            assert_eq!(log.borrow().len(), ended);
        }
        assert_eq!(names(&log), [0, 1, 2, 3, 4, 5]);
        // The guest has waited so long, as far as it knows.
        let waited = disk.stats().of(Account::Write);
        let waited = waited.total_time_ns.load(Ordering::Relaxed);
        assert_eq!(waited, 100_000_000 * (1 + 2 + 3 + 4));
    });
}

#[test]
fn requests_made_without_a_policy_keep_to_it_too() {
    run(|bench| async move {
        let disk = bench.limited("disk", None, json!({"bps-read": LEN})).await;
        let reads: Vec<_> = (0..3)
            .map(|_| {
                let disk = Arc::clone(&disk);
                current::spawn_local(async move {
                    let token = disk.enter().await?;
                    disk.read(&token, 0, IoBuffer::alloc(LEN)).await
                })
            })
            .collect();
        settle().await;
        assert_eq!(disk.gate().in_flight(), 2);
        // A tenth of a second was given in advance.
        bench.pass(900).await;
        assert_eq!(disk.gate().in_flight(), 1);
        bench.pass(1000).await;
        assert_eq!(disk.gate().in_flight(), 0);
        for read in reads {
            read.await.unwrap().unwrap();
        }
    });
}

#[test]
fn flushes_and_discards_move_nothing_and_do_not_wait() {
    run(|bench| async move {
        let disk = bench.limited("disk", None, json!({"iops-total": 1})).await;
        let log = Log::default();
        let guest = writes(&log, &disk, 0..3);
        settle().await;
        assert_eq!(disk.gate().in_flight(), 2, "it is throttled");
        let mut request = guest.request(disk.enter().await.unwrap());
        request.flush().await.unwrap();
        request.discard(0, 1 << 20).await.unwrap();
        drop(request);
        assert_eq!(log.borrow().len(), 1);
        // Zeroes are written.
        let zeroes = Arc::clone(&guest);
        let zeroes = current::spawn_local(async move {
            let token = zeroes.backend().enter().await?;
            zeroes.request(token).write_zeroes(0, 512, true).await
        });
        settle().await;
        assert_eq!(disk.gate().in_flight(), 3);
        for _ in 0..3 {
            bench.pass(1000).await;
        }
        zeroes.await.unwrap().unwrap();
    });
}

#[test]
fn a_section_does_not_wait_for_a_disks_limits() {
    run(|bench| async move {
        let disk = bench.limited("disk", None, json!({"iops-total": 1})).await;
        let node = disk.node().unwrap();
        let log = Log::default();
        for round in 0..2 {
            writes(&log, &disk, 10 * round..10 * round + 10);
            settle().await;
            assert!(disk.gate().in_flight() >= 8, "held up by the limits");
            // The clock stands still.
            let section = if round == 0 {
                bench.graph.drain(&node, "test").await
            } else {
                bench.graph.drain_all("test").await
            };
            assert_eq!(disk.gate().in_flight(), 0);
            // Who comes now is parked, and finds the limits as they were.
            let last = 100 + round;
            writes(&log, &disk, last..last + 1);
            settle().await;
            drop(section);
            settle().await;
            assert_eq!(disk.gate().in_flight(), 1);
            bench.pass(60_000).await;
            assert_eq!(names(&log).last(), Some(&last));
        }
        assert!(log.borrow().iter().all(|(_, well)| *well));
    });
}

#[test]
fn a_section_lets_go_what_waits_in_other_loops() {
    let event_log = Arc::new(EventLog::default());
    let graph = Graph::new(event_log, Clock::real());
    let threads = ["io0", "io1"].map(|name| IoThread::spawn(name, LoopConfig::default()).unwrap());
    let mut event_loop = EventLoop::new("test", &LoopConfig::default()).unwrap();
    let test = async move {
        let bench = Bench {
            clock: Clock::real(),
            graph,
        };
        // A request of a disk costs minutes; the heads of both sleep in their own loops.
        let slow = json!({"bps-total": 1});
        let mut disks = Vec::new();
        // Both first: new limits forget what has passed.
        for name in ["one", "two"] {
            disks.push(bench.limited(name, Some("shared"), slow.clone()).await);
        }
        for (disk, thread) in disks.iter().zip(&threads) {
            let guest = Arc::new(Submitter::new(Arc::clone(disk)));
            for _ in 0..8 {
                let guest = Arc::clone(&guest);
                thread.context().spawn(move || async move {
                    let token = guest.backend().enter().await.unwrap();
                    let mut request = guest.request(token);
                    request.write(0, IoBuffer::alloc(LEN)).await.unwrap();
                });
            }
        }
        let ended = |disk: &Backend| {
            let counters = disk.stats().of(Account::Write);
            counters.operations.load(Ordering::Relaxed)
        };
        // One of them all may go at once.
        let in_flight = || {
            disks
                .iter()
                .map(|disk| disk.gate().in_flight())
                .sum::<usize>()
        };
        while (ended(&disks[0]) + ended(&disks[1]), in_flight()) != (1, 15) {
            current::yield_now().await;
        }
        for disk in &disks {
            let section = bench.graph.drain(&disk.node().unwrap(), "test").await;
            assert_eq!((disk.gate().in_flight(), ended(disk)), (0, 8));
            drop(section);
        }
    };
    event_loop.run_until(test).unwrap();
}

#[test]
fn sections_nest_over_a_disk_that_gets_its_limits_inside() {
    run(|bench| async move {
        let disk = bench.disk("disk").await;
        let node = disk.node().unwrap();
        let outer = bench.graph.drain(&node, "outer").await;
        bench.limit(&disk, None, json!({"iops-total": 1})).await;
        let inner = bench.graph.drain(&node, "inner").await;
        let log = Log::default();
        writes(&log, &disk, 0..4);
        settle().await;
        drop(outer);
        settle().await;
        assert_eq!(names(&log), [0; 0]);
        drop(inner);
        settle().await;
        assert_eq!(names(&log), [0], "limited from the first request on");
    });
}

#[test]
fn disks_of_one_group_share_its_limits_fairly() {
    run(|bench| async move {
        let limits = json!({"iops-total": 10});
        let busy = bench.limited("busy", Some("shared"), limits.clone()).await;
        let quiet = bench.limited("quiet", Some("shared"), limits.clone()).await;
        let other = bench.limited("other", None, limits).await;
        let group = busy.throttle_group().unwrap();
        assert!(Arc::ptr_eq(&group, &quiet.throttle_group().unwrap()));
        let log = Log::default();
        writes(&log, &busy, 0..6);
        settle().await;
        writes(&log, &quiet, 100..102);
        writes(&log, &other, 200..202);
        settle().await;
        assert_eq!(
            names(&log),
            [0, 1, 200, 201],
            "the third has its own limits"
        );
        for _ in 0..6 {
            bench.pass(100).await;
        }
        assert_eq!(names(&log)[4..], [2, 100, 3, 101, 4, 5], "in turns");
    });
}

#[test]
fn new_limits_hold_for_the_requests_that_wait() {
    run(|bench| async move {
        let disk = bench.limited("disk", None, json!({"bps-total": 1})).await;
        let log = Log::default();
        writes(&log, &disk, 0..5);
        settle().await;
        assert_eq!(names(&log), [0]);
        let refused = limits(json!({"bps-total": 1, "bps-read": 1}));
        let refused = bench.graph.set_io_throttle(&disk, None, refused).await;
        assert!(refused.is_err());
        bench.pass(10_000).await;
        assert_eq!(names(&log), [0], "nothing has changed");
        bench.limit(&disk, None, json!({"iops-total": 10})).await;
        settle().await;
        assert_eq!(names(&log), [0, 1, 2]);
        bench.pass(100).await;
        assert_eq!(names(&log), [0, 1, 2, 3]);
    });
}

#[test]
fn who_leaves_a_group_lets_its_waiting_requests_go() {
    run(|bench| async move {
        let slow = json!({"bps-total": 1});
        let disk = bench.limited("disk", Some("a"), slow.clone()).await;
        let other = bench.limited("other", Some("a"), slow.clone()).await;
        let log = Log::default();
        writes(&log, &disk, 0..4);
        writes(&log, &other, 10..12);
        settle().await;
        assert_eq!(names(&log), [0]);
        // To another group; the clock stands still.
        bench.limit(&disk, Some("b"), json!({"bps-total": 2})).await;
        assert_eq!(names(&log), [0, 1, 2, 3]);
        let groups = bench.graph.throttle_groups();
        assert_eq!(groups.get("a").unwrap().limits(), limits(slow));
        assert_eq!(disk.throttle_group().unwrap().name(), "b");
        writes(&log, &disk, 4..7);
        settle().await;
        assert_eq!(names(&log).len(), 5);
        // Without another word it stays there.
        bench.limit(&disk, None, json!({"bps-total": 1})).await;
        assert_eq!(disk.throttle_group().unwrap().name(), "b");
        settle().await;
        assert_eq!(names(&log).len(), 6, "the past is forgotten, one may go");
        // To none.
        bench.limit(&disk, None, json!({})).await;
        assert_eq!(names(&log), [0, 1, 2, 3, 4, 5, 6]);
        assert!(disk.throttle_group().is_none());
        assert!(groups.get("b").is_none(), "gone with its last member");
        bench.limit(&other, None, json!({})).await;
        assert!(groups.get("a").is_none());
        writes(&log, &disk, 20..40);
        settle().await;
        assert_eq!(names(&log).len(), 7 + 2 + 20);
    });
}

#[test]
fn a_reset_cancels_what_its_device_has_waiting_and_nothing_else() {
    run(|bench| async move {
        let disk = bench.limited("disk", None, json!({"iops-total": 10})).await;
        let log = Log::default();
        let device = writes(&log, &disk, 0..6);
        let other = writes(&log, &disk, 10..12);
        settle().await;
        assert_eq!(names(&log), [0, 1]);
        device.settle();
        settle().await;
        let cancelled = [(2, false), (3, false), (4, false), (5, false)];
        assert_eq!(log.borrow()[2..], cancelled);
        assert_eq!(disk.gate().in_flight(), 2, "those of the other");
        // What was cancelled has cost nothing.
        bench.pass(100).await;
        assert_eq!(log.borrow()[6..], [(10, true)]);
        // The device goes on.
        let again = write(&log, &device, 20);
        settle().await;
        bench.pass(100).await;
        bench.pass(100).await;
        again.await.unwrap().unwrap();
        assert_eq!(log.borrow()[7..], [(11, true), (20, true)]);
        drop(other);
    });
}

#[test]
fn a_disk_that_goes_away_cancels_what_waits() {
    run(|bench| async move {
        let disk = bench.limited("disk", None, json!({"iops-total": 1})).await;
        let log = Log::default();
        let guest = writes(&log, &disk, 0..4);
        let reader = Arc::clone(&disk);
        let read = current::spawn_local(async move {
            let token = reader.enter().await?;
            reader.read(&token, 0, IoBuffer::alloc(LEN)).await
        });
        settle().await;
        assert_eq!(names(&log), [0]);
        // The clock stands still.
        bench.graph.remove_backend(&disk).await;
        let ended = [(0, true), (1, false), (2, false), (3, false)];
        assert_eq!(*log.borrow(), ended);
        assert!(matches!(read.await.unwrap(), Err(BlockError::Cancelled(_))));
        assert!(bench.graph.throttle_groups().get("disk").is_none());
        drop(guest);
    });
}

/// The guest's requests end on the medium that they were meant for, without their turn, before that goes.
#[test]
fn a_medium_goes_although_limits_hold_requests_to_it() {
    run(|bench| async move {
        let disk = bench.graph.add_empty_backend("stick", false).unwrap();
        let media = [bench.node("one").await, bench.node("two").await];
        bench.graph.insert_medium(&disk, &media[0]).await.unwrap();
        bench.limit(&disk, None, json!({"iops-total": 1})).await;
        let log = Log::default();
        let _guest = writes(&log, &disk, 0..6);
        settle().await;
        assert!(disk.gate().in_flight() >= 4, "held up by the limits");
        // The clock stands still.
        bench.graph.remove_medium(&disk).await.unwrap();
        assert!(disk.node().is_none());
        assert_eq!(*log.borrow(), [0, 1, 2, 3, 4, 5].map(|name| (name, true)));
        // The next one has the limits again.
        bench.graph.insert_medium(&disk, &media[1]).await.unwrap();
        let _guest = writes(&log, &disk, 10..16);
        settle().await;
        assert!(disk.gate().in_flight() >= 4);
        bench.graph.remove_medium(&disk).await.unwrap();
        assert_eq!(names(&log)[6..], [10, 11, 12, 13, 14, 15]);
    });
}

#[test]
fn groups_have_one_name_whoever_has_made_them() {
    run(|bench| async move {
        let groups = bench.graph.throttle_groups();
        let fast = json!({"iops-total": 1000});
        // Made by a disk, used by a node.
        let disk = bench.limited("disk", Some("g"), fast.clone()).await;
        let options = json!({"driver": "throttle", "node-name": "t", "throttle-group": "g",
                             "file": {"driver": "null-co"}});
        let options = serde_json::from_value(options).unwrap();
        bench.graph.add_node(&options).await.unwrap();
        let taken = groups.add("g", ThrottleLimits::default()).unwrap_err();
        assert_eq!(taken, ThrottleError::Exists);
        assert!(groups.object("g").is_none());
        assert_eq!(
            groups.remove("g"),
            Err(ThrottleError::NotFound("g".to_owned()))
        );
        bench.limit(&disk, None, json!({})).await;
        assert_eq!(groups.get("g").unwrap().limits(), limits(fast.clone()));
        bench.graph.del_node("t").unwrap();
        assert!(groups.get("g").is_none());
        // Made as an object, joined by a disk, whose limits become the group's.
        let object = groups.add("g", ThrottleLimits::default()).unwrap();
        bench.limit(&disk, Some("g"), fast.clone()).await;
        assert!(Arc::ptr_eq(&object, &disk.throttle_group().unwrap()));
        assert_eq!(object.limits(), limits(fast));
        assert_eq!(
            groups.remove("g"),
            Err(ThrottleError::InUse("g".to_owned()))
        );
        bench.limit(&disk, None, json!({})).await;
        assert!(groups.object("g").is_some(), "an object stays");
        groups.remove("g").unwrap();
    });
}

#[test]
fn what_did_not_reach_the_medium_is_counted_apart() {
    run(|bench| async move {
        let disk = bench
            .limited("disk", None, json!({"iops-total": 1000}))
            .await;
        assert_eq!(disk.idle_time(), None);
        let guest = Submitter::new(Arc::clone(&disk));
        let mut request = guest.request(disk.enter().await.unwrap());
        let end = disk.len();
        request.read(end, IoBuffer::alloc(LEN)).await.unwrap_err();
        drop(request);
        disk.account_invalid(Account::Write);
        let of = |kind| {
            let counters = disk.stats().of(kind);
            [&counters.operations, &counters.failed, &counters.invalid]
                .map(|counter| counter.load(Ordering::Relaxed))
        };
        assert_eq!(of(Account::Read), [0, 0, 1]);
        assert_eq!(of(Account::Write), [0, 0, 1]);
        bench.pass(7).await;
        assert_eq!(disk.idle_time(), Some(Duration::from_millis(7)));
        let token = disk.enter().await.unwrap();
        disk.read(&token, 0, IoBuffer::alloc(LEN)).await.unwrap();
        assert_eq!(disk.idle_time(), Some(Duration::ZERO));
    });
}
