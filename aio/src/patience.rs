//! [`EndPatience`]: how long the ends of loops wait for what hangs in the kernel.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How long the end of a loop waits for I/O and blocking calls of which nothing ends.
///
/// Long enough for a slow disk and for a server that is restarted; after that, what still runs is left
/// behind with its memory, and the end goes on. All loops whose configuration has a clone of it go by the
/// same: a process that ends shortens it for all of them. Any thread.
#[derive(Clone, Debug)]
pub struct EndPatience(Arc<AtomicU64>);

impl EndPatience {
    const MILLISECONDS: u64 = 30_000;

    /// Has ends that come from now on wait no longer than so long, which is counted in whole milliseconds. It does not get longer
    /// again.
    pub fn shorten(&self, to: Duration) {
        let to = u64::try_from(to.as_millis()).unwrap_or(u64::MAX);
        self.0.fetch_min(to, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::Relaxed))
    }
}

impl Default for EndPatience {
    fn default() -> Self {
        Self(Arc::new(AtomicU64::new(Self::MILLISECONDS)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_only_gets_shorter_and_for_all() {
        let patience = EndPatience::default();
        let other = patience.clone();
        other.shorten(Duration::from_secs(1));
        other.shorten(Duration::from_secs(2));
        assert_eq!(patience.get(), Duration::from_secs(1));
        patience.shorten(Duration::ZERO);
        assert_eq!(other.get(), Duration::ZERO);
    }
}
