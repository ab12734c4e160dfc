//! What is counted: for the log when a channel is retired, and for tests.

/// Counters of one drive since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct DriveStats {
    /// Commands given.
    pub commands: u64,
    /// Commands that ended with an error.
    pub aborted: u64,
    /// Sectors asked for by read requests.
    pub read_sectors: u64,
    /// Sectors carried by write requests.
    pub written_sectors: u64,
    /// Flush requests.
    pub flushes: u64,
    /// TRIM requests, however many ranges they had.
    pub trims: u64,
    /// Requests that had to wait for a drained section to end.
    pub parked: u64,
    /// Requests that ran while a reset began, and whose outcome was dropped.
    pub dropped: u64,
}

/// Counters of one channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ChannelStats {
    /// Its drives.
    pub drives: [Option<DriveStats>; 2],
    /// Resets of the channel: by the guest and by the machine.
    pub resets: u64,
    /// Whether a request waits for a drained section to end right now.
    pub parked_now: bool,
}
