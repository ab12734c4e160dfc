//! Entering and leaving a gate that nobody contends for, beside the two atomic operations of it.

use std::future::Future;
use std::hint::black_box;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Waker};

use anyhow::Result;
use sluice_aio::{Clock, Gate};

use crate::report::{Row, Target};
use crate::timing::{Effort, in_turns, nanoseconds_each};

/// Both ways to enter.
///
/// # Errors
/// None.
pub fn measure(effort: Effort) -> Result<Vec<Row>> {
    let (rounds, count) = (effort.of(200, 2), effort.of(5000, 10));
    let gate = Gate::new("bench", Clock::real());
    let word = AtomicUsize::new(0);
    let bare = || -> Result<f64> {
        Ok(nanoseconds_each(count, || {
            black_box(word.fetch_add(1, Ordering::Acquire));
            black_box(word.fetch_sub(1, Ordering::Release));
        }))
    };
    let mut cx = Context::from_waker(Waker::noop());
    let enter = || -> Result<f64> {
        Ok(nanoseconds_each(count, || {
            let entering = pin!(gate.enter());
            drop(black_box(entering.poll(&mut cx)));
        }))
    };
    let (enter, bare_one) = in_turns(rounds, enter, bare)?;
    let try_enter = || -> Result<f64> {
        Ok(nanoseconds_each(count, || {
            drop(black_box(gate.try_enter()));
        }))
    };
    let (try_enter, bare_other) = in_turns(rounds, try_enter, bare)?;
    let row = |what: &str, ours, bare| Row {
        benchmark: "gate",
        what: format!("{what} against two bare atomic operations"),
        unit: "ns",
        ours,
        reference: Some(bare),
        target: Target::RatioAtMost(2.0),
    };
    Ok(vec![
        row("enter + leave", enter, bare_one),
        row("try_enter + leave", try_enter, bare_other),
    ])
}
