//! Numbers that look random and are the same in every run.

/// What a generator begins with.
pub(crate) const SEED: u64 = 0x9e37_79b9_7f4a_7c15;

/// The next number of a generator (xorshift), whose state must not be 0.
pub(crate) fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}
