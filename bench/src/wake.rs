//! A loop that sleeps is woken from another thread and answers, beside the same with bare system
//! calls: an eventfd and an `epoll_wait` on either side.
//!
//! Who asks and who answers stay on a processor each, ours and theirs on the same two: a round trip
//! within one processor is an order of magnitude shorter than one that wakes another from its idle
//! state, and the kernel's choice would decide the comparison.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::Result;
use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::fd::OwnedFd;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use sluice_aio::{EventLoop, IoThread, LoopConfig, Polling};

use crate::report::{Row, Target};
use crate::timing::{Effort, in_turns, nanoseconds_each};

/// What one thread waits on and another rings.
struct Bell {
    event: OwnedFd,
    epoll: OwnedFd,
}

impl Bell {
    fn new() -> rustix::io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let data = epoll::EventData::new_u64(0);
        epoll::add(&epoll, &event, data, epoll::EventFlags::IN)?;
        Ok(Self { event, epoll })
    }

    fn ring(&self) -> rustix::io::Result<()> {
        rustix::io::write(&self.event, &1u64.to_ne_bytes()).map(drop)
    }

    fn wait(&self) -> rustix::io::Result<()> {
        let mut events = Vec::with_capacity(1);
        while events.is_empty() {
            epoll::wait(
                &self.epoll,
                rustix::buffer::spare_capacity(&mut events),
                None,
            )?;
        }
        rustix::io::read(&self.event, &mut [0u8; 8]).map(drop)
    }
}

/// Binds the calling thread to the first of `usable` processors, or to the second if there is one.
fn stay(usable: &CpuSet, second: bool) -> rustix::io::Result<()> {
    let mut usable = (0..CpuSet::MAX_CPU).filter(|cpu| usable.is_set(*cpu));
    let first = usable.next().unwrap_or_default();
    let mut one = CpuSet::new();
    one.set(if second {
        usable.next().unwrap_or(first)
    } else {
        first
    });
    sched_setaffinity(None, &one)
}

/// A loop in this thread that asks a loop in another.
struct Pair {
    here: EventLoop,
    there: IoThread,
}

impl Pair {
    fn new(polling: Polling, usable: CpuSet) -> Result<Self> {
        let config = LoopConfig {
            polling,
            ..LoopConfig::default()
        };
        let mut here = EventLoop::new("bench", &config)?;
        let there = IoThread::spawn("answer", config)?;
        let answering = there.context().clone();
        here.run_until(async move {
            answering
                .call(move || async move { stay(&usable, true) })
                .await
        })???;
        Ok(Self { here, there })
    }

    /// Nanoseconds of one question and answer, of `count`.
    fn ask(&mut self, count: u32) -> Result<f64> {
        let context = self.there.context().clone();
        let began = std::time::Instant::now();
        self.here.run_until(async move {
            for _ in 0..count {
                context.call(|| async {}).await?;
            }
            Ok::<_, sluice_aio::Cancelled>(())
        })??;
        Ok(began.elapsed().as_secs_f64() * 1e9 / f64::from(count))
    }
}

/// Round trips between two threads.
///
/// # Errors
/// The kernel's.
pub fn measure(effort: Effort) -> Result<Vec<Row>> {
    let (rounds, count) = (effort.of(41, 1), effort.of(300, 5));
    let (here, there) = (Bell::new()?, Bell::new()?);
    let over = AtomicBool::new(false);
    let usable = sched_getaffinity(None)?;
    let mut sleeping = Pair::new(Polling::OFF, usable)?;
    let mut polling = Pair::new(
        Polling {
            max: Duration::from_micros(32),
            ..Polling::OFF
        },
        usable,
    )?;
    let answer = || -> rustix::io::Result<()> {
        stay(&usable, true)?;
        loop {
            there.wait()?;
            if over.load(Ordering::Acquire) {
                return Ok(());
            }
            here.ring()?;
        }
    };
    let round_trip = || -> Result<f64> {
        let mut result = Ok(());
        let each = nanoseconds_each(count, || {
            result = result
                .and_then(|()| there.ring())
                .and_then(|()| here.wait());
        });
        result?;
        Ok(each)
    };
    stay(&usable, false)?;
    let measured = thread::scope(|scope| {
        let answering = scope.spawn(answer);
        let measured = in_turns(rounds, || sleeping.ask(count), round_trip)
            .and_then(|slept| Ok((slept, in_turns(rounds, || polling.ask(count), round_trip)?)));
        over.store(true, Ordering::Release);
        there.ring()?;
        answering
            .join()
            .map_err(|_| anyhow::anyhow!("the answering thread panicked"))??;
        measured
    });
    sched_setaffinity(None, &usable)?;
    let ((slept, bare), (polled, bare_again)) = measured?;
    let row = |what: &str, ours, bare, target| Row {
        benchmark: "wake",
        what: format!("{what} against eventfd + epoll_wait"),
        unit: "ns",
        ours,
        reference: Some(bare),
        target,
    };
    // Where both sides share a processor, who polls keeps the other from it.
    let processors = (0..CpuSet::MAX_CPU).filter(|cpu| usable.is_set(*cpu));
    let polling_pays = if processors.count() > 1 {
        Target::RatioAtMost(1.0)
    } else {
        Target::None
    };
    Ok(vec![
        row("two sleeping loops", slept, bare, Target::RatioAtMost(1.5)),
        row("the same, polling 32 us", polled, bare_again, polling_pays),
    ])
}
