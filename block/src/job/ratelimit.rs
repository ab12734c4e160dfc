//! A limit in bytes per second, paid afterwards.
//!
//! A transfer goes at once if those before it are paid, and takes as long to pay as its bytes take at the limit. So
//! transfers come evenly: a copy that is to leave room for a guest leaves it everywhere, and not half of a second after half
//! of one in which it takes all. A pure value: the time is passed in.

use std::time::Duration;

/// What a limit that was not used up is worth later, as time: it makes good for timers that go off late, and is so little
/// that nobody notices what it lets through at once.
const CREDIT: Duration = Duration::from_millis(10);
/// Who leaves so much of the limit unused, as time, is behind it. Less than what is credited, which is the most that can be seen.
const BEHIND: Duration = Duration::from_millis(5);
/// In a second.
const NANOSECONDS: u128 = 1_000_000_000;

/// A rate limit. `now` is the time since some fixed start and never runs backwards.
#[derive(Debug, Clone)]
pub struct RateLimit {
    /// Bytes per second; 0: no limit.
    speed: u64,
    /// When all that was transferred will be paid.
    paid: Duration,
}

impl RateLimit {
    /// A limit of `speed` bytes per second from `now` on; 0: no limit.
    #[must_use]
    pub fn new(speed: u64, now: Duration) -> Self {
        Self { speed, paid: now }
    }

    /// The limit in bytes per second; 0: none.
    #[must_use]
    pub fn speed(&self) -> u64 {
        self.speed
    }

    /// Changes the limit; debts of the old one are forgiven.
    pub fn set_speed(&mut self, speed: u64, now: Duration) {
        *self = Self::new(speed, now);
    }

    /// Charges `bytes` that were transferred, or are about to be.
    pub fn charge(&mut self, bytes: u64, now: Duration) {
        if self.speed == 0 {
            return;
        }
        let price = (u128::from(bytes) * NANOSECONDS).div_ceil(u128::from(self.speed));
        let price = Duration::from_nanos(u64::try_from(price).unwrap_or(u64::MAX));
        let from = self.paid.max(now.saturating_sub(CREDIT));
        self.paid = from.saturating_add(price);
    }

    /// How long from now until the transfers of late will not have used the limit up, if no other comes; zero: they have not.
    #[must_use]
    pub fn until_behind(&self, now: Duration) -> Duration {
        match self.speed {
            0 => Duration::MAX,
            _ => self.paid.saturating_add(BEHIND).saturating_sub(now),
        }
    }

    /// How long to wait before the next transfer; zero: it may begin now.
    #[must_use]
    pub fn delay(&self, now: Duration) -> Duration {
        match self.speed {
            0 => Duration::ZERO,
            _ => self.paid.saturating_sub(now),
        }
    }
}
