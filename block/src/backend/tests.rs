//! Errors of a guest's requests: what is reported, ignored, and halted until the machine goes on.

mod matrix;
mod random;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use sluice_aio::{Clock, EventLoop, IoBuffer, JoinHandle, LoopConfig, current};

use super::{Account, Backend, ErrorPolicy, Submitter};
use crate::driver::{BlockFuture, BlockStatus, Driver, RequestFlags};
use crate::error::{BlockError, Result};
use crate::event::tests::EventLog;
use crate::event::{BlockEvent, ErrorAction, IoOperation};
use crate::job::{IoStatus, OnError};
use crate::node::{Node, Owner};
use crate::permission::Access;

/// A flush among the offsets of writes.
const FLUSH: u64 = u64::MAX;

/// A disk that fails while it is told to, and notes the writes that it has done.
#[derive(Debug, Default)]
struct Medium {
    errno: Mutex<Option<i32>>,
    /// Offsets of what was written, in order, and the flushes in between.
    written: Mutex<Vec<u64>>,
}

impl Medium {
    async fn attempt(&self) -> Result<()> {
        current::yield_now().await;
        match *self.errno.lock() {
            Some(errno) => Err(std::io::Error::from_raw_os_error(errno).into()),
            None => Ok(()),
        }
    }

    fn fail(&self, errno: i32) {
        *self.errno.lock() = Some(errno);
    }

    fn heal(&self) {
        *self.errno.lock() = None;
    }

    fn offsets(&self) -> Vec<u64> {
        self.written.lock().clone()
    }
}

#[derive(Debug)]
struct Disk(Arc<Medium>);

impl Driver for Disk {
    fn format_name(&self) -> &'static str {
        "medium"
    }

    fn size(&self) -> u64 {
        1 << 20
    }

    fn read(&self, _offset: u64, _buffer: IoBuffer) -> BlockFuture<'_, ()> {
        BlockFuture::new(self.0.attempt())
    }

    fn write(&self, offset: u64, _buffer: IoBuffer, _flags: RequestFlags) -> BlockFuture<'_, ()> {
        BlockFuture::new(async move {
            self.0.attempt().await?;
            self.0.written.lock().push(offset);
            Ok(())
        })
    }

    fn write_zeroes(&self, offset: u64, _len: u64, flags: RequestFlags) -> BlockFuture<'_, ()> {
        self.write(offset, IoBuffer::empty(), flags)
    }

    fn discard(&self, offset: u64, _len: u64) -> BlockFuture<'_, ()> {
        self.write(offset, IoBuffer::empty(), RequestFlags::empty())
    }

    fn flush(&self) -> BlockFuture<'_, ()> {
        BlockFuture::new(async move {
            self.0.attempt().await?;
            self.0.written.lock().push(FLUSH);
            Ok(())
        })
    }

    fn block_status(&self, _offset: u64, _len: u64) -> BlockFuture<'_, BlockStatus> {
        BlockFuture::new(async { Err(BlockError::Refused("nobody asks".to_owned())) })
    }
}

struct Bench {
    medium: Arc<Medium>,
    backend: Arc<Backend>,
    guest: Arc<Submitter>,
    events: Arc<EventLog>,
}

fn run<F: Future<Output = ()> + 'static>(policy: OnError, test: impl FnOnce(Bench) -> F) {
    let medium = Arc::new(Medium::default());
    let driver = Box::new(Disk(Arc::clone(&medium)));
    let mut bench = Bench::over(driver, policy, Clock::real());
    bench.medium = medium;
    let mut event_loop = EventLoop::new("main", &LoopConfig::default()).unwrap();
    event_loop.run_until(test(bench)).unwrap();
}

impl Bench {
    /// A disk that `driver` serves.
    fn over(driver: Box<dyn Driver>, policy: OnError, clock: Clock) -> Self {
        let node = Node::new("node".to_owned(), driver, false, Owner::Monitor);
        let events = Arc::new(EventLog::default());
        let backend = {
            let access = Access::of_device(false);
            Backend::new("disk", Some(node), access, clock, Arc::clone(&events) as _)
        };
        backend.set_policy(ErrorPolicy::new(policy, policy));
        Self {
            medium: Arc::default(),
            guest: Arc::new(Submitter::new(Arc::clone(&backend))),
            backend,
            events,
        }
    }

    /// Begins a write of the guest.
    fn write(&self, offset: u64) -> JoinHandle<Result<()>> {
        write_from(&self.guest, offset)
    }

    /// Waits until so many requests are halted.
    async fn halted(&self, count: usize) {
        while self.backend.halted() != count {
            current::yield_now().await;
        }
    }

    fn actions(&self) -> Vec<(IoOperation, ErrorAction, Option<bool>)> {
        let events = self.events.take();
        let actions = events.into_iter().filter_map(|event| match event {
            BlockEvent::BlockIoError {
                operation,
                action,
                nospace,
                ..
            } => Some((operation, action, nospace)),
            _ => None,
        });
        actions.collect()
    }

    fn counters(&self) -> (u64, u64) {
        let counters = self.backend.stats().of(Account::Write);
        (
            counters.operations.load(Ordering::Relaxed),
            counters.failed.load(Ordering::Relaxed),
        )
    }
}

fn write_from(guest: &Arc<Submitter>, offset: u64) -> JoinHandle<Result<()>> {
    let guest = Arc::clone(guest);
    current::spawn_local(async move {
        let token = guest.backend().enter().await?;
        let mut request = guest.request(token);
        request.write(offset, IoBuffer::alloc(512)).await
    })
}

#[test]
fn a_reported_error_is_the_guests_affair() {
    run(OnError::Report, |bench| async move {
        bench.medium.fail(libc::ENOSPC);
        let error = bench.write(0).await.unwrap().unwrap_err();
        assert_eq!(error.errno(), libc::ENOSPC);
        assert_eq!(
            bench.actions(),
            [(IoOperation::Write, ErrorAction::Report, None)]
        );
        assert_eq!(bench.backend.io_status(), None);
        assert_eq!(bench.counters(), (0, 1));
    });
}

#[test]
fn an_ignored_error_is_a_success() {
    run(OnError::Ignore, |bench| async move {
        bench.medium.fail(libc::EIO);
        bench.write(0).await.unwrap().unwrap();
        let token = bench.backend.enter().await.unwrap();
        let mut request = bench.guest.request(token);
        request.read(0, IoBuffer::alloc(512)).await.unwrap();
        let actions = [
            (IoOperation::Write, ErrorAction::Ignore, None),
            (IoOperation::Read, ErrorAction::Ignore, None),
        ];
        assert_eq!(bench.actions(), actions);
        assert_eq!(bench.counters(), (1, 0));
    });
}

#[test]
fn a_halted_request_lets_the_disk_rest_and_is_done_once_when_the_machine_goes_on() {
    run(OnError::Stop, |bench| async move {
        bench.medium.fail(libc::EIO);
        let request = bench.write(512);
        bench.halted(1).await;
        assert_eq!(bench.backend.gate().in_flight(), 0);
        assert!(bench.backend.try_enter().is_none(), "overtaken");
        assert_eq!(bench.backend.io_status(), Some(IoStatus::Failed));
        let stop = (IoOperation::Write, ErrorAction::Stop, Some(false));
        assert_eq!(bench.actions(), [stop]);
        // A section can begin and end meanwhile.
        let section = bench.backend.gate().close("somebody");
        bench.backend.gate().wait_idle().await;
        bench.medium.heal();
        bench.backend.resume();
        current::yield_now().await;
        assert!(bench.medium.offsets().is_empty(), "inside a section");
        drop(section);
        request.await.unwrap().unwrap();
        assert_eq!(bench.medium.offsets(), [512]);
        assert_eq!(bench.backend.io_status(), Some(IoStatus::Ok));
        assert_eq!(bench.counters(), (1, 0));
        assert!(bench.backend.try_enter().is_some());
    });
}

/// A disk that was made smaller: whoever was told to retry would stop at every `cont`.
#[test]
fn what_lies_beyond_the_end_is_reported_whatever_the_policy() {
    for policy in [OnError::Stop, OnError::Ignore, OnError::Enospc] {
        run(policy, |bench| async move {
            let request = bench.write(bench.backend.len());
            let mut actions = Vec::new();
            while actions.is_empty() {
                current::yield_now().await;
                actions = bench.actions();
            }
            assert_eq!(actions.len(), 1);
            assert_eq!(actions[0].1, ErrorAction::Report);
            let refused = request.await.unwrap();
            assert!(matches!(refused, Err(BlockError::OutOfRange { .. })));
            assert_ne!(bench.backend.io_status(), Some(IoStatus::Failed));
            bench.write(0).await.unwrap().unwrap();
        });
    }
}

/// A disc that was ejected under a request: the machine would stop at every `cont` until there is another.
#[test]
fn a_missing_medium_is_reported_whatever_the_policy() {
    for policy in [OnError::Stop, OnError::Ignore, OnError::Enospc] {
        run(policy, |bench| async move {
            bench.medium.fail(libc::ENOMEDIUM);
            let request = bench.write(0);
            let mut actions = Vec::new();
            while actions.is_empty() {
                current::yield_now().await;
                actions = bench.actions();
            }
            assert_eq!(actions.len(), 1);
            assert_eq!(actions[0].1, ErrorAction::Report);
            let refused = request.await.unwrap().unwrap_err();
            assert_eq!(refused.errno(), libc::ENOMEDIUM);
            assert_eq!(bench.backend.halted(), 0);
            assert_ne!(bench.backend.io_status(), Some(IoStatus::Failed));
        });
    }
}

#[test]
fn an_error_that_lasts_stops_the_machine_again() {
    run(OnError::Enospc, |bench| async move {
        bench.medium.fail(libc::ENOSPC);
        let request = bench.write(0);
        for _ in 0..3 {
            bench.halted(1).await;
            assert_eq!(bench.backend.io_status(), Some(IoStatus::Nospace));
            bench.backend.resume();
        }
        bench.halted(1).await;
        bench.medium.fail(libc::EIO);
        bench.backend.resume();
        assert_eq!(request.await.unwrap().unwrap_err().errno(), libc::EIO);
        let actions = bench.actions();
        assert_eq!(actions.len(), 5);
        assert_eq!(
            actions[4],
            (IoOperation::Write, ErrorAction::Report, Some(false))
        );
        assert!(
            actions[..4]
                .iter()
                .all(|(_, action, room)| { *action == ErrorAction::Stop && *room == Some(true) })
        );
    });
}

#[test]
fn requests_go_on_in_the_order_in_which_they_were_made() {
    run(OnError::Stop, |bench| async move {
        bench.medium.fail(libc::EIO);
        let mut requests = Vec::new();
        for _ in 0..4 {
            let token = bench.backend.enter().await.unwrap();
            requests.push(bench.guest.request(token));
        }
        let mut requests = requests.into_iter().enumerate().collect::<Vec<_>>();
        // They fail in another order.
        requests.rotate_left(2);
        let writes = requests
            .iter_mut()
            .map(|(index, request)| request.write(*index as u64 * 512, IoBuffer::alloc(512)));
        let all = futures_util::future::join_all(writes);
        let resume = async {
            bench.halted(4).await;
            bench.medium.heal();
            bench.backend.resume();
            // Behind them all.
            bench.write(1 << 16).await.unwrap().unwrap();
        };
        let (results, ()) = futures_util::future::join(all, resume).await;
        assert!(results.iter().all(Result::is_ok));
        assert_eq!(bench.medium.offsets(), [0, 512, 1024, 1536, 1 << 16]);
    });
}

/// Who came while the disk was halted has a place at the gate already, and lets it pass.
#[test]
fn a_halted_request_goes_on_before_what_came_meanwhile() {
    run(OnError::Stop, |bench| async move {
        bench.medium.fail(libc::EIO);
        let halted = [bench.write(0), bench.write(512)];
        bench.halted(2).await;
        let late = [bench.write(1024), bench.write(1536)];
        while bench.backend.gate().parked() != late.len() {
            current::yield_now().await;
        }
        bench.medium.heal();
        bench.backend.resume();
        for request in halted.into_iter().chain(late) {
            request.await.unwrap().unwrap();
        }
        assert_eq!(bench.medium.offsets(), [0, 512, 1024, 1536]);
    });
}

#[test]
fn what_was_done_before_the_error_is_not_done_again() {
    run(OnError::Stop, |bench| async move {
        let guest = Arc::clone(&bench.guest);
        let medium = Arc::clone(&bench.medium);
        let request = current::spawn_local(async move {
            let token = guest.backend().enter().await?;
            let mut request = guest.request(token);
            request.discard(0, 512).await?;
            medium.fail(libc::EIO);
            request.write_zeroes(512, 512, true).await?;
            request.flush().await
        });
        bench.halted(1).await;
        bench.medium.heal();
        bench.backend.resume();
        request.await.unwrap().unwrap();
        assert_eq!(bench.medium.offsets(), [0, 512, FLUSH]);
    });
}

#[test]
fn a_reset_cancels_what_its_device_has_halted_and_nothing_else() {
    run(OnError::Stop, |bench| async move {
        bench.medium.fail(libc::EIO);
        let other = Arc::new(Submitter::new(Arc::clone(&bench.backend)));
        let (mine, others) = (bench.write(0), write_from(&other, 512));
        bench.halted(2).await;
        bench.guest.settle();
        let cancelled = mine.await.unwrap().unwrap_err();
        assert!(matches!(cancelled, BlockError::Cancelled(_)));
        assert!(bench.backend.try_enter().is_none(), "the other one waits");
        other.settle();
        assert!(others.await.unwrap().is_err());
        assert!(bench.backend.try_enter().is_some(), "nobody waits");
        assert!(bench.medium.offsets().is_empty());
        bench.medium.heal();
        bench.backend.resume();
        bench.write(1024).await.unwrap().unwrap();
        assert_eq!(bench.medium.offsets(), [1024]);
    });
}

#[test]
fn a_reset_cancels_what_waits_at_the_gate_again() {
    run(OnError::Stop, |bench| async move {
        bench.medium.fail(libc::EIO);
        let request = bench.write(0);
        bench.halted(1).await;
        let section = bench.backend.gate().close("somebody");
        bench.medium.heal();
        bench.backend.resume();
        current::yield_now().await;
        bench.guest.settle();
        assert!(matches!(
            request.await.unwrap(),
            Err(BlockError::Cancelled(_))
        ));
        drop(section);
        bench.write(512).await.unwrap().unwrap();
        assert_eq!(bench.medium.offsets(), [512]);
    });
}

#[test]
fn a_request_from_before_a_reset_does_not_halt_after_it() {
    run(OnError::Stop, |bench| async move {
        bench.medium.fail(libc::EIO);
        let request = bench.write(0);
        while bench.backend.gate().in_flight() == 0 {
            current::yield_now().await;
        }
        bench.guest.settle();
        assert_eq!(request.await.unwrap().unwrap_err().errno(), libc::EIO);
        assert_eq!(bench.actions(), [], "of a request that nobody waits for");
    });
}

#[test]
fn a_disk_that_goes_away_cancels_what_is_halted() {
    run(OnError::Stop, |bench| async move {
        bench.medium.fail(libc::EIO);
        let request = bench.write(0);
        bench.halted(1).await;
        bench.backend.destroy();
        assert!(matches!(
            request.await.unwrap(),
            Err(BlockError::Cancelled(_))
        ));
    });
}

#[test]
fn who_gives_up_while_halted_does_not_keep_the_gate_closed() {
    run(OnError::Stop, |bench| async move {
        bench.medium.fail(libc::EIO);
        let request = bench.write(0);
        bench.halted(1).await;
        request.cancel();
        bench.halted(0).await;
        assert!(bench.backend.try_enter().is_some());
        // And once it has its place at the gate.
        let request = bench.write(0);
        bench.halted(1).await;
        bench.backend.resume();
        request.cancel();
        let token = bench.backend.enter().await.unwrap();
        assert!(token.is_of(bench.backend.gate()));
    });
}

#[test]
fn without_a_write_cache_every_write_is_durable() {
    run(OnError::Report, |bench| async move {
        bench.write(0).await.unwrap().unwrap();
        bench.backend.set_write_cache(false);
        bench.write(512).await.unwrap().unwrap();
        bench.backend.set_write_cache(true);
        bench.write(1024).await.unwrap().unwrap();
        assert_eq!(bench.medium.offsets(), [0, 512, FLUSH, 1024]);
    });
}
