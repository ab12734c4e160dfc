//! How long the guest's writes to a device take the vCPU that makes them.
//!
//! A write of a register may set off I/O and must not wait for it; this is where anybody can see whether it does.
//! What is timed is the device's handler, by the clock that devices have: the way out of the guest and back is KVM's.
//! vCPU threads count without a lock; any thread may look.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sluice_aio::Histogram;

use crate::bus::PioDevice;
use crate::clock::Clock;

/// The times of the writes to one device.
pub struct ExitTimes {
    clock: Arc<dyn Clock>,
    /// Nanoseconds, as [`Histogram`] has them.
    writes: [AtomicU64; Histogram::BUCKETS],
    longest_ns: AtomicU64,
}

impl ExitTimes {
    /// No writes so far; `clock` tells how long those to come take.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            writes: std::array::from_fn(|_| AtomicU64::new(0)),
            longest_ns: AtomicU64::new(0),
        }
    }

    /// Makes a write, and counts how long it took.
    pub(crate) fn time(&self, write: impl FnOnce()) {
        let began = self.clock.monotonic_ns();
        write();
        let took = self.clock.monotonic_ns().saturating_sub(began);
        self.writes[Histogram::bucket(took)].fetch_add(1, Ordering::Relaxed);
        // A locked instruction only for those that are longest.
        if took > self.longest_ns.load(Ordering::Relaxed) {
            self.longest_ns.fetch_max(took, Ordering::Relaxed);
        }
    }

    /// How many nanoseconds writes took, and how many took so long. A string of accesses (`rep outs`) is one.
    pub fn writes(&self) -> Histogram {
        let count = |bucket: usize| self.writes[bucket].load(Ordering::Relaxed);
        Histogram::from_counts(std::array::from_fn(count))
    }

    /// The longest of them.
    pub fn longest(&self) -> Duration {
        Duration::from_nanos(self.longest_ns.load(Ordering::Relaxed))
    }
}

/// A device at its ports, with its writes timed.
pub struct TimedPorts {
    device: Arc<dyn PioDevice>,
    times: Arc<ExitTimes>,
}

impl TimedPorts {
    /// Puts the stopwatch `times` in front of `device`.
    pub fn new(device: Arc<dyn PioDevice>, times: Arc<ExitTimes>) -> Arc<Self> {
        Arc::new(Self { device, times })
    }
}

impl PioDevice for TimedPorts {
    fn read(&self, port: u16, data: &mut [u8]) {
        self.device.read(port, data);
    }

    fn write(&self, port: u16, data: &[u8]) {
        self.times.time(|| self.device.write(port, data));
    }

    fn read_string(&self, port: u16, width: usize, data: &mut [u8]) {
        self.device.read_string(port, width, data);
    }

    fn write_string(&self, port: u16, width: usize, data: &[u8]) {
        self.times
            .time(|| self.device.write_string(port, width, data));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Moves on by as much as is written.
    #[derive(Default)]
    struct Slow(AtomicU64);

    impl Clock for Slow {
        fn monotonic_ns(&self) -> u64 {
            self.0.load(Ordering::SeqCst)
        }

        fn unix_seconds(&self) -> i64 {
            0
        }
    }

    impl PioDevice for Slow {
        fn read(&self, _port: u16, data: &mut [u8]) {
            self.0.fetch_add(1000, Ordering::SeqCst);
            data.fill(1);
        }

        fn write(&self, _port: u16, data: &[u8]) {
            self.0.fetch_add(data[0].into(), Ordering::SeqCst);
        }
    }

    #[test]
    fn each_write_is_counted_with_its_time_and_reads_are_not() {
        let device = Arc::new(Slow::default());
        let times = Arc::new(ExitTimes::new(Arc::clone(&device) as _));
        let ports = TimedPorts::new(device, Arc::clone(&times));
        ports.write(0, &[0]);
        ports.write(0, &[5]);
        ports.write(0, &[200]);
        ports.write_string(0, 1, &[3, 3]);
        let mut byte = [0];
        ports.read(0, &mut byte);
        ports.read_string(0, 1, &mut byte);
        assert_eq!(byte, [1]);
        let writes: Vec<_> = times.writes().buckets().collect();
        assert_eq!(writes, [(1, 1), (8, 2), (256, 1)]);
        assert_eq!(times.longest(), Duration::from_nanos(200));
    }
}
