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

/// The mean of the middle half of `values`; 0 of none.
#[must_use]
pub fn middle(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let quarter = sorted.len() / 4;
    let half = &sorted[quarter..sorted.len() - quarter];
    let count: f64 = half.iter().map(|_| 1.0).sum();
    half.iter().sum::<f64>() / count.max(1.0)
}

/// The value that `percent` of `values` do not exceed (nearest rank); 0 of none.
#[must_use]
pub fn percentile(values: &[f64], percent: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.max(1) - 1).copied().unwrap_or(0.0)
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
    let samples = pairs(rounds, &mut ours, &mut theirs)?;
    let (ours, theirs): (Vec<f64>, Vec<f64>) = samples.into_iter().unzip();
    Ok((median(&ours), median(&theirs)))
}

/// As [`in_turns`], but returns the median of what `with` returned beyond the call of `without`
/// next to it: for a difference that is small beside both, whose medians drift with the machine.
///
/// # Errors
/// The first error of either.
pub fn difference<E>(
    rounds: usize,
    mut with: impl FnMut() -> Result<f64, E>,
    mut without: impl FnMut() -> Result<f64, E>,
) -> Result<f64, E> {
    let samples = pairs(rounds, &mut with, &mut without)?;
    let differences: Vec<f64> = samples.iter().map(|pair| pair.0 - pair.1).collect();
    Ok(median(&differences))
}

/// What the two returned in each round but the first.
fn pairs<E>(
    rounds: usize,
    ours: &mut impl FnMut() -> Result<f64, E>,
    theirs: &mut impl FnMut() -> Result<f64, E>,
) -> Result<Vec<(f64, f64)>, E> {
    let _unmeasured = (ours()?, theirs()?);
    (0..rounds).map(|_| Ok((ours()?, theirs()?))).collect()
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
    fn the_middle_half_leaves_out_what_is_far_off() {
        assert!((middle(&[900.0, 1.0, 2.0, 4.0, 3.0, 0.0, 5.0, -900.0]) - 2.5).abs() < 1e-9);
        assert!((middle(&[7.0]) - 7.0).abs() < 1e-9);
        assert!(middle(&[]).abs() < 1e-9);
    }

    #[test]
    fn a_percentile_is_one_of_the_values() {
        let values: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        assert!((percentile(&values, 99) - 198.0).abs() < 1e-9);
        assert!((percentile(&values, 100) - 200.0).abs() < 1e-9);
        assert!((percentile(&[7.0], 99) - 7.0).abs() < 1e-9);
        assert!(percentile(&[], 99).abs() < 1e-9);
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

    #[test]
    fn a_difference_does_not_drift_with_the_machine() {
        let clock = std::cell::Cell::new(0.0);
        // Each call takes 100 more than the one before; the left one 5 on top.
        let sample = |own: f64| {
            clock.set(clock.get() + 100.0);
            Ok::<f64, ()>(clock.get() + own)
        };
        let difference = difference(5, || sample(105.0), || sample(0.0)).unwrap();
        assert!((difference - 5.0).abs() < 1e-9, "{difference}");
    }
}
