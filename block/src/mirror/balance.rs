//! [`Balance`]: when an *automatic* mirror lets the guest wait for the target, and when no more.
//!
//! What counts is work, not time: how much was copied, how much is left after it, how much the guest has
//! written. So the same history always leads to the same decisions, however fast the machine is.
//!
//! - A *lap* is over when as much was copied as was dirty at its beginning (or [`LEAST_LAP`]). If then more
//!   than three quarters of that are dirty again, the lap was in vain. After [`LAPS_IN_VAIN`] of those in a row
//!   guest writes go to both sides, and nothing becomes dirty any more.
//! - When nothing is dirty any more and the guest has written [`FIRST_TRIAL`] bytes to both sides, the
//!   background gets another try. Each further one comes after twice as many.

/// The least that is copied in a lap, in bytes: of less, nothing can be said.
pub(super) const LEAST_LAP: u64 = 16 << 20;

/// So little is left that it does not matter, in bytes; the pivot copies that with the guest held.
pub(super) const LITTLE: u64 = 4 << 20;

/// Laps in a row that led nowhere, after which the guest has to wait.
pub(super) const LAPS_IN_VAIN: u32 = 2;

/// What the guest writes to both sides before the background gets its second try, in bytes.
pub(super) const FIRST_TRIAL: u64 = 64 << 20;

/// Whether a lap led nowhere that began with `before` bytes dirty, and after which `left` are.
pub(super) fn is_in_vain(before: u64, left: u64) -> bool {
    left > LITTLE && left > before / 4 * 3
}

/// What was counted up to now, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Copied by the job.
    pub(super) copied: u64,
    /// Dirty, or on its way.
    pub(super) left: u64,
    /// Written by the guest to both sides.
    pub(super) written: u64,
}

/// See the [module](self). Pure values.
#[derive(Debug)]
pub(super) struct Balance {
    /// The lap's beginning.
    lap: Counts,
    in_vain: u32,
    /// What the guest has to write to both sides this time.
    trial: u64,
    /// What it had written when that began; none while it does not have to.
    twofold_since: Option<u64>,
}

impl Balance {
    /// A mirror begins in the background.
    pub(super) fn new() -> Self {
        Self {
            lap: Counts::default(),
            in_vain: 0,
            trial: FIRST_TRIAL,
            twofold_since: None,
        }
    }

    /// Whether guest writes are to go to both sides from now on.
    pub(super) fn decide(&mut self, now: Counts) -> bool {
        match self.twofold_since {
            Some(since) => {
                let enough = now.written.saturating_sub(since) >= self.trial;
                if enough && now.left == 0 {
                    self.twofold_since = None;
                    self.trial = self.trial.saturating_mul(2);
                    self.begin_lap(now);
                    self.in_vain = 0;
                }
            }
            None => self.judge_lap(now),
        }
        self.twofold_since.is_some()
    }

    fn begin_lap(&mut self, now: Counts) {
        self.lap = now;
    }

    fn judge_lap(&mut self, now: Counts) {
        if self.lap.left == 0 {
            // What there is to do in this lap turned up since.
            return self.begin_lap(Counts {
                copied: self.lap.copied,
                ..now
            });
        }
        let copied = now.copied.saturating_sub(self.lap.copied);
        if copied < self.lap.left.max(LEAST_LAP) {
            return;
        }
        let in_vain = is_in_vain(self.lap.left, now.left);
        self.in_vain = if in_vain { self.in_vain + 1 } else { 0 };
        self.begin_lap(now);
        if self.in_vain >= LAPS_IN_VAIN {
            self.twofold_since = Some(now.written);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// A disk on which, for each byte copied, the guest dirties `percent` hundredths of one.
    fn laps(balance: &mut Balance, percent: u64, laps: u32) -> Vec<bool> {
        let mut now = Counts {
            left: 1024 * MIB,
            ..balance.lap
        };
        balance.decide(now);
        let lap = |_| {
            let copied = now.left.max(LEAST_LAP);
            now.copied += copied;
            now.left = now.left * percent / 100;
            balance.decide(now)
        };
        (0..laps).map(lap).collect()
    }

    #[test]
    fn a_guest_that_lets_the_copy_get_ahead_never_waits() {
        for percent in [0, 10, 50, 75] {
            assert!(!laps(&mut Balance::new(), percent, 50).contains(&true));
        }
    }

    #[test]
    fn a_guest_that_undoes_each_lap_has_to_wait() {
        for percent in [80, 100, 150] {
            assert_eq!(laps(&mut Balance::new(), percent, 3), [false, true, true]);
        }
    }

    #[test]
    fn one_lap_in_vain_is_no_reason() {
        let mut balance = Balance::new();
        assert_eq!(laps(&mut balance, 100, 1), [false]);
        assert_eq!(laps(&mut balance, 50, 1), [false]);
        assert_eq!(laps(&mut balance, 100, 1), [false]);
    }

    #[test]
    fn a_little_that_stays_dirty_is_no_reason() {
        let mut balance = Balance::new();
        let mut copied = 0;
        for _ in 0..100 {
            copied += LEAST_LAP;
            let left = LITTLE;
            assert!(!balance.decide(Counts {
                copied,
                left,
                written: 0
            }));
        }
    }

    #[test]
    fn the_background_gets_another_try_after_ever_more_writes() {
        let mut balance = Balance::new();
        laps(&mut balance, 100, 2);
        let now = |written, left| Counts {
            written,
            left,
            ..Counts::default()
        };
        assert!(balance.decide(now(FIRST_TRIAL - 1, 0)));
        assert!(balance.decide(now(FIRST_TRIAL, 1)), "something is dirty");
        assert!(!balance.decide(now(FIRST_TRIAL, 0)));
        laps(&mut balance, 100, 2);
        let began = balance.twofold_since.unwrap();
        assert!(balance.decide(now(began + FIRST_TRIAL, 0)));
        assert!(!balance.decide(now(began + 2 * FIRST_TRIAL, 0)));
    }
}
