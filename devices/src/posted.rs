//! Posted writes: stores to registers that only keep what is written.
//!
//! Nothing happens on such a store until something else looks at the register, so the host may queue it and let the
//! guest go on: under KVM the store ends in the kernel, as with a doorbell. It is carried out, in order, before
//! anything else that the guest does with any device, and before anybody else looks at the device. Where there is
//! no KVM nothing is queued, and the store comes to the device at once; devices must serve both.

use std::ops::RangeInclusive;

/// The queue of posted writes of a machine. Any thread; no call waits for I/O.
pub trait PostedWrites: Send + Sync {
    /// From now on stores that lie within `ports` may be queued. A host that can't queue them does not.
    ///
    /// Only for registers whose write starts nothing, ends nothing and moves no interrupt.
    fn attach(&self, ports: RangeInclusive<u16>);

    /// Undoes an [`PostedWrites::attach`] with the same ports. What another processor stores meanwhile may still be
    /// queued.
    fn detach(&self, ports: RangeInclusive<u16>);

    /// Carries out what has been queued before this call. Not to be called under a lock that a device takes when it is
    /// written to.
    fn flush(&self);
}

/// A machine that queues nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unposted;

impl PostedWrites for Unposted {
    fn attach(&self, _ports: RangeInclusive<u16>) {}

    fn detach(&self, _ports: RangeInclusive<u16>) {}

    fn flush(&self) {}
}
