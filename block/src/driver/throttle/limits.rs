//! [`ThrottleLimits`]: what a throttle group allows, as QEMU's type of that name spells it.

use serde::{Deserialize, Serialize};

/// The greatest rate or burst that can be asked for.
const GREATEST: u64 = 1_000_000_000_000_000;

/// Why limits make no sense. The texts are QEMU's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitsError {
    /// Reads and writes are limited together and apart.
    #[error("bps/iops/max total values and read/write values cannot be used at the same time")]
    TotalAndParts,
    /// The size of an operation without a limit on operations.
    #[error("iops size requires an iops value to be set")]
    SizeWithoutIops,
    /// Too much.
    #[error("bps/iops/max values must be within [0, {GREATEST}]")]
    TooGreat,
    /// A burst of no length.
    #[error("the burst length cannot be 0")]
    NoLength,
    /// A length of a burst that there is not.
    #[error("burst length set without burst rate")]
    LengthWithoutRate,
    /// Rate times length overflows.
    #[error("burst length too high for this burst rate")]
    TooLong,
    /// A burst without a rate to fall back to.
    #[error("bps_max/iops_max require corresponding bps/iops values")]
    BurstWithoutRate,
    /// A burst that is slower than what is always allowed.
    #[error("bps_max/iops_max cannot be lower than bps/iops")]
    BurstBelowRate,
}

/// One rate with its bursts; units are bytes or operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Units per second in the long run; 0 is no limit.
    pub average: u64,
    /// Units per second in a burst; 0 is no bursts.
    pub burst: u64,
    /// How long a burst may last, in seconds; at least 1.
    pub burst_seconds: u32,
}

impl Rate {
    fn check(self) -> Result<(), LimitsError> {
        if self.average > GREATEST || self.burst > GREATEST {
            return Err(LimitsError::TooGreat);
        }
        if self.burst_seconds == 0 {
            return Err(LimitsError::NoLength);
        }
        if self.burst_seconds > 1 && self.burst == 0 {
            return Err(LimitsError::LengthWithoutRate);
        }
        if self.burst != 0 && u64::from(self.burst_seconds) > GREATEST / self.burst {
            return Err(LimitsError::TooLong);
        }
        if self.burst != 0 && self.average == 0 {
            return Err(LimitsError::BurstWithoutRate);
        }
        if self.burst != 0 && self.burst < self.average {
            return Err(LimitsError::BurstBelowRate);
        }
        Ok(())
    }
}

/// Declares the limits: for each rate its three members and its place in the list of rates.
macro_rules! limits {
    ($($(#[$doc:meta])* $average:ident $burst:ident $length:ident,)*) => {
        /// The limits of a group. The default limits nothing. Rates are per second.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
        #[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
        pub struct ThrottleLimits {
            $(
                $(#[$doc])*
                pub $average: u64,
                /// The same in a burst; 0 for no bursts.
                pub $burst: u64,
                /// How many seconds such a burst may last.
                pub $length: u32,
            )*
            /// A larger request counts as several operations of this many bytes; 0: as one.
            pub iops_size: u64,
        }

        impl Default for ThrottleLimits {
            fn default() -> Self {
                Self { $($average: 0, $burst: 0, $length: 1,)* iops_size: 0 }
            }
        }

        impl ThrottleLimits {
            /// All rates, in the order of [`RATES`].
            pub(super) fn rates(&self) -> [Rate; RATES] {
                [$(Rate {
                    average: self.$average,
                    burst: self.$burst,
                    burst_seconds: self.$length,
                },)*]
            }
        }
    };
}

limits! {
    /// Bytes, reads and writes together; 0 for no limit.
    bps_total bps_total_max bps_total_max_length,
    /// Bytes read.
    bps_read bps_read_max bps_read_max_length,
    /// Bytes written.
    bps_write bps_write_max bps_write_max_length,
    /// Operations, reads and writes together.
    iops_total iops_total_max iops_total_max_length,
    /// Read operations.
    iops_read iops_read_max iops_read_max_length,
    /// Write operations.
    iops_write iops_write_max iops_write_max_length,
}

/// Number of rates that a group limits.
pub(super) const RATES: usize = 6;

/// Places of the rates in [`ThrottleLimits::rates`].
pub(super) mod place {
    pub(crate) const BPS_TOTAL: usize = 0;
    pub(crate) const BPS_READ: usize = 1;
    pub(crate) const BPS_WRITE: usize = 2;
    pub(crate) const IOPS_TOTAL: usize = 3;
    pub(crate) const IOPS_READ: usize = 4;
    pub(crate) const IOPS_WRITE: usize = 5;
}

impl ThrottleLimits {
    /// # Errors
    /// The first contradiction, in QEMU's order.
    pub fn check(&self) -> Result<(), LimitsError> {
        let rates = self.rates();
        let conflict = |total: usize, read: usize, write: usize| {
            let apart = |of: fn(Rate) -> u64| {
                of(rates[total]) != 0 && (of(rates[read]) != 0 || of(rates[write]) != 0)
            };
            apart(|rate| rate.average) || apart(|rate| rate.burst)
        };
        if conflict(place::BPS_TOTAL, place::BPS_READ, place::BPS_WRITE)
            || conflict(place::IOPS_TOTAL, place::IOPS_READ, place::IOPS_WRITE)
        {
            return Err(LimitsError::TotalAndParts);
        }
        let limits_iops = self.iops_total != 0 || self.iops_read != 0 || self.iops_write != 0;
        if self.iops_size != 0 && !limits_iops {
            return Err(LimitsError::SizeWithoutIops);
        }
        rates.into_iter().try_for_each(Rate::check)
    }

    /// Whether anything is limited.
    #[must_use]
    pub fn is_limiting(&self) -> bool {
        self.rates().iter().any(|rate| rate.average != 0)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn limits(value: Value) -> ThrottleLimits {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn contradictions_are_refused_in_qemus_words() {
        let cases = [
            (
                json!({"bps-total": 1, "bps-read": 1}),
                LimitsError::TotalAndParts,
            ),
            (
                json!({"iops-total": 5, "iops-write": 1}),
                LimitsError::TotalAndParts,
            ),
            (json!({"iops-size": 1}), LimitsError::SizeWithoutIops),
            (json!({"bps-total": GREATEST + 1}), LimitsError::TooGreat),
            (json!({"bps-total-max-length": 0}), LimitsError::NoLength),
            (
                json!({"bps-total": 10, "bps-total-max-length": 2}),
                LimitsError::LengthWithoutRate,
            ),
            (
                json!({"bps-read": 10, "bps-read-max": 1_000_000_000,
                       "bps-read-max-length": 4_000_000_000_u32}),
                LimitsError::TooLong,
            ),
            (json!({"iops-total-max": 10}), LimitsError::BurstWithoutRate),
            (
                json!({"bps-total": 10, "bps-total-max": 5}),
                LimitsError::BurstBelowRate,
            ),
        ];
        for (value, expected) in cases {
            assert_eq!(limits(value.clone()).check(), Err(expected), "{value}");
        }
        let good = json!({"bps-read": 10, "bps-write": 20, "bps-write-max": 30,
                          "bps-write-max-length": 4, "iops-total": 5, "iops-size": 4096});
        assert_eq!(limits(good).check(), Ok(()));
        assert!(!ThrottleLimits::default().is_limiting());
        assert_eq!(ThrottleLimits::default().check(), Ok(()));
    }
}
