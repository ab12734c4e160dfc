//! A small seeded generator of pseudo-random numbers: the same seed gives the same run.
//!
//! Used for the plan of operations and for the filler of sectors. Not for secrets.

/// `SplitMix64` (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014):
/// one word of state, full period, good enough to fill sectors and to choose offsets.
#[derive(Clone, Debug)]
pub struct Prng(u64);

/// The golden ratio's odd 64-bit fraction, `SplitMix64`'s step.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

impl Prng {
    /// A generator whose stream is determined by `seed` alone.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A generator whose stream is determined by all of `parts`; different lists give unrelated
    /// streams.
    #[must_use]
    pub fn from_parts(parts: &[u64]) -> Self {
        let mut state = Self(0);
        for part in parts {
            state.0 ^= *part;
            state.0 = state.next_u64();
        }
        state
    }

    /// The next 64 bits.
    pub const fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `0..bound`, or 0 for a bound of 0. The bias of the modulo is harmless here:
    /// bounds are far below 2^64.
    pub const fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 {
            0
        } else {
            self.next_u64() % bound
        }
    }

    /// True in `numerator` of `denominator` cases.
    pub const fn chance(&mut self, numerator: u64, denominator: u64) -> bool {
        self.below(denominator) < numerator
    }
}

#[cfg(test)]
mod tests {
    use super::Prng;

    #[test]
    fn same_seed_same_stream_other_seed_another() {
        let stream = |parts: &[u64]| {
            let mut prng = Prng::from_parts(parts);
            (0..8).map(|_| prng.next_u64()).collect::<Vec<_>>()
        };
        assert_eq!(stream(&[1, 2, 3]), stream(&[1, 2, 3]));
        assert_ne!(stream(&[1, 2, 3]), stream(&[1, 3, 2]));
        assert_ne!(stream(&[0]), stream(&[0, 0]));
    }

    #[test]
    fn below_stays_below() {
        let mut prng = Prng::new(7);
        assert!((0..1000).all(|_| prng.below(5) < 5));
        assert_eq!(prng.below(0), 0);
    }
}
