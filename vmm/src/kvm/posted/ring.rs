//! The ring that KVM puts stores into, and the one way to take them out.
#![expect(
    unsafe_code,
    reason = "the ring is memory that the kernel writes as well"
)]

use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, Ordering};

use kvm_bindings::{KVM_COALESCED_MMIO_PAGE_OFFSET, kvm_coalesced_mmio, kvm_coalesced_mmio_ring};
use kvm_ioctls::VcpuFd;
use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// Bytes of the ring: a page of x86's.
const RING_BYTES: usize = 4096;

/// Places of the ring, one of which is always free.
const PLACES: u32 = {
    let room = RING_BYTES - size_of::<kvm_coalesced_mmio_ring>();
    #[expect(clippy::cast_possible_truncation, reason = "less than a page")]
    let places = (room / size_of::<kvm_coalesced_mmio>()) as u32;
    places
};

/// The ring, mapped.
pub(super) struct Ring {
    mapping: NonNull<kvm_coalesced_mmio_ring>,
    /// Held by whoever carries out what is queued.
    carrying_out: Mutex<()>,
}

// SAFETY: the mapping is not bound to a thread.
unsafe impl Send for Ring {}
// SAFETY: the two indices are accessed atomically; entries are read by who holds `carrying_out` only, and written by
// the kernel only.
unsafe impl Sync for Ring {}

impl Ring {
    /// Maps the ring of the machine that `vcpu` is of.
    pub(super) fn map(vcpu: &VcpuFd) -> rustix::io::Result<Self> {
        // SAFETY: the descriptor is open as long as `vcpu` is borrowed.
        let vcpu = unsafe { BorrowedFd::borrow_raw(vcpu.as_raw_fd()) };
        let offset = u64::from(KVM_COALESCED_MMIO_PAGE_OFFSET) * RING_BYTES as u64;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let place = ptr::null_mut();
        // SAFETY: a new mapping at a place of the kernel's choice, which is unmapped when the value is dropped.
        Self::of(unsafe { mmap(place, RING_BYTES, access, MapFlags::SHARED, vcpu, offset) }?)
    }

    fn of(mapping: *mut std::ffi::c_void) -> rustix::io::Result<Self> {
        let mapping = NonNull::new(mapping.cast()).ok_or(Errno::NOMEM)?;
        Ok(Self {
            mapping,
            carrying_out: Mutex::new(()),
        })
    }

    /// Where the oldest entry is. Only [`Ring::drain`] writes it.
    fn first(&self) -> &AtomicU32 {
        // SAFETY: the field is in the mapping, which lives as long as `self`, and aligned; the kernel reads it, and
        // this process accesses it atomically only.
        unsafe { AtomicU32::from_ptr(&raw mut (*self.mapping.as_ptr()).first) }
    }

    /// Where the kernel puts the next entry.
    fn last(&self) -> &AtomicU32 {
        // SAFETY: as in `first`; the kernel alone writes it.
        unsafe { AtomicU32::from_ptr(&raw mut (*self.mapping.as_ptr()).last) }
    }

    /// Where the entry number `place` is, which is below [`PLACES`].
    fn entry(&self, place: u32) -> *mut kvm_coalesced_mmio {
        let place = usize::try_from(place % PLACES).unwrap_or(0);
        // SAFETY: the place is within the mapping, as `PLACES` says.
        unsafe {
            let entries = &raw mut (*self.mapping.as_ptr()).coalesced_mmio;
            entries.cast::<kvm_coalesced_mmio>().add(place)
        }
    }

    /// Gives `write` the address and the data of what was queued before this call, in order; when it returns, all of it
    /// has been carried out, if not by this thread.
    pub(super) fn drain(&self, mut write: impl FnMut(u64, &[u8])) {
        // In this order: `first` may have moved on to what `last` was by now, but never beyond.
        let last = self.last().load(Ordering::Acquire);
        if self.first().load(Ordering::Acquire) == last {
            return;
        }
        let _carrying_out = self.carrying_out.lock();
        let last = self.last().load(Ordering::Acquire);
        let mut next = self.first().load(Ordering::Acquire);
        while next != last {
            // SAFETY: the kernel filled the entry in before it moved `last` on, and writes to it again only after
            // `first` has moved on.
            let entry = unsafe { self.entry(next).read() };
            let length = usize::try_from(entry.len).unwrap_or(0);
            if let Some(data) = entry.data.get(..length) {
                write(entry.phys_addr, data);
            }
            // Only now: who finds the ring empty, without the lock, finds nothing half done.
            next = (next + 1) % PLACES;
            self.first().store(next, Ordering::Release);
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and nobody refers to it any more.
        if let Err(error) = unsafe { munmap(self.mapping.as_ptr().cast(), RING_BYTES) } {
            tracing::error!(%error, "the ring of posted writes stays mapped");
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::mm::mmap_anonymous;

    use super::*;

    impl Ring {
        /// A ring that the kernel knows nothing of.
        fn for_test() -> Self {
            let access = ProtFlags::READ | ProtFlags::WRITE;
            // SAFETY: as in `map`.
            let mapping =
                unsafe { mmap_anonymous(ptr::null_mut(), RING_BYTES, access, MapFlags::PRIVATE) };
            Self::of(mapping.unwrap()).unwrap()
        }

        /// Does what the kernel does; false if there is no room.
        fn push(&self, address: u64, byte: u8) -> bool {
            let last = self.last().load(Ordering::Relaxed);
            let next = (last + 1) % PLACES;
            if next == self.first().load(Ordering::Acquire) {
                return false;
            }
            let mut entry = kvm_coalesced_mmio {
                phys_addr: address,
                len: 1,
                ..kvm_coalesced_mmio::default()
            };
            entry.data[0] = byte;
            // SAFETY: nobody reads the place before `last` has moved on.
            unsafe { self.entry(last).write(entry) };
            self.last().store(next, Ordering::Release);
            true
        }

        fn drained(&self) -> Vec<(u64, Vec<u8>)> {
            let mut seen = Vec::new();
            self.drain(|address, data| seen.push((address, data.to_vec())));
            seen
        }
    }

    #[test]
    fn all_of_it_comes_out_once_in_order_many_times_around() {
        let ring = Ring::for_test();
        assert!(ring.drained().is_empty());
        let mut number = 0_u64;
        for count in (0..2 * PLACES).map(|round| round % PLACES) {
            let pushed: Vec<_> = (0..count)
                .map(|_| {
                    number += 1;
                    let byte = number.to_le_bytes()[0];
                    assert!(ring.push(number, byte));
                    (number, vec![byte])
                })
                .collect();
            assert_eq!(ring.drained(), pushed);
            assert!(ring.drained().is_empty());
        }
    }

    #[test]
    fn a_full_ring_takes_nothing_and_loses_nothing() {
        let ring = Ring::for_test();
        let taken = (0..).take_while(|number| ring.push(*number, 0)).count();
        assert_eq!(taken, 169);
        assert_eq!(ring.drained().len(), taken);
    }

    /// A guest on another processor may store as fast as it is carried out.
    #[test]
    fn what_comes_meanwhile_is_left_for_the_next_time() {
        let ring = Ring::for_test();
        assert!(ring.push(0, 0));
        let mut carried_out = 0;
        ring.drain(|address, _| {
            carried_out += 1;
            assert!(carried_out < 10, "a guest decides how long this takes");
            assert!(ring.push(address + 1, 0));
        });
        assert_eq!(carried_out, 1);
        assert_eq!(ring.drained(), [(1, vec![0])]);
    }

    /// A store of another processor's that is being carried out has not been: who looks must find it, and wait.
    #[test]
    fn nobody_finds_the_ring_empty_while_a_store_is_being_carried_out() {
        let ring = Ring::for_test();
        for number in 0..3 {
            assert!(ring.push(number, 0));
        }
        ring.drain(|number, _| {
            let (first, last) = (ring.first(), ring.last());
            assert_ne!(first.load(Ordering::Relaxed), last.load(Ordering::Relaxed));
            assert_eq!(u64::from(first.load(Ordering::Relaxed)), number);
            assert!(ring.carrying_out.is_locked());
        });
        assert!(ring.drained().is_empty());
    }
}
