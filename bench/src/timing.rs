//! How things are timed on a machine that also does other work.
//!
//! What is compared runs in turns (A B A B …), in slices short enough that few of them are
//! disturbed, and the median of each side counts.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// How much is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// Enough for figures.
    Full,
    /// Next to nothing: it only shows that the benchmarks work.
    Smoke,
}

impl Effort {
    /// `full` or, when nothing is judged, `smoke`.
    #[must_use]
    pub fn of<T>(self, full: T, smoke: T) -> T {
        match self {
            Self::Full => full,
            Self::Smoke => smoke,
        }
    }
}

/// The middle one of `values`, or the mean of the two in the middle; 0 of none.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (
        sorted.get((sorted.len().max(1) - 1) / 2),
        sorted.get(sorted.len() / 2),
    ) {
        (Some(low), Some(high)) => f64::midpoint(*low, *high),
        _ => 0.0,
    }
}

/// Calls `ours` and `theirs` in turns, `rounds` times each after one unmeasured round; returns the
/// medians of what they returned.
///
/// # Errors
/// The first error of either.
pub fn in_turns<E>(
    rounds: usize,
    mut ours: impl FnMut() -> Result<f64, E>,
    mut theirs: impl FnMut() -> Result<f64, E>,
) -> Result<(f64, f64), E> {
    let mut samples = (Vec::new(), Vec::new());
    for round in 0..=rounds {
        let pair = (ours()?, theirs()?);
        if round > 0 {
            samples.0.push(pair.0);
            samples.1.push(pair.1);
        }
    }
    Ok((median(&samples.0), median(&samples.1)))
}

/// Nanoseconds that one of `count` calls of `work` takes, on average.
pub fn nanoseconds_each(count: u32, mut work: impl FnMut()) -> f64 {
    let began = Instant::now();
    for _ in 0..count {
        work();
    }
    began.elapsed().as_secs_f64() * 1e9 / f64::from(count)
}

/// Time that all threads of this process, those in the kernel included, have computed so far.
#[must_use]
pub fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(time.tv_nsec).unwrap_or(0);
    Duration::from_secs(seconds) + Duration::from_nanos(nanoseconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(&[4.0, 1.0, 3.0, 2.0]) - 2.5).abs() < 1e-9);
        assert!(median(&[]).abs() < 1e-9);
    }

    #[test]
    fn both_sides_run_in_turns_and_the_first_round_does_not_count() {
        let order = std::cell::RefCell::new(String::new());
        let sample = |name, value: &std::cell::Cell<f64>| {
            order.borrow_mut().push(name);
            value.set(value.get() + 1.0);
            Ok::<f64, ()>(value.get())
        };
        let (ours, theirs) = (std::cell::Cell::new(0.0), std::cell::Cell::new(10.0));
        let medians = in_turns(3, || sample('a', &ours), || sample('b', &theirs));
        assert_eq!(order.into_inner(), "abababab");
        assert_eq!(medians, Ok((3.0, 13.0)));
    }
}
