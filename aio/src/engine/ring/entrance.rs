//! How a ring's thread enters the kernel: by the ring's descriptor, or by its place in the thread's
//! own table of rings, which saves the kernel from looking the descriptor up (Linux 5.18,
//! `io_uring_register(2)`, `IORING_REGISTER_RING_FDS`).
//!
//! [`super::port::KernelPort`] enters here each time it submits. The `io-uring` crate has this too,
//! but forgets the place between two calls. Such a table belongs to a thread, so only a ring that
//! one thread alone may enter is put into it, and the kernel holds the ring open until it is taken
//! out again: [`Entrance::drop`] does that, or the end of the thread.

#![expect(unsafe_code, reason = "two system calls that no library offers so")]

use std::io;
use std::os::fd::RawFd;
use std::thread::{self, ThreadId};

use io_uring::EnterFlags;

/// What `io_uring_register(2)` does here.
#[derive(Clone, Copy)]
enum Registration {
    /// `IORING_REGISTER_RING_FDS`
    Register = 20,
    /// `IORING_UNREGISTER_RING_FDS`
    Unregister = 21,
}

/// The kernel's `struct io_uring_rsrc_update`.
#[repr(C)]
struct RingUpdate {
    /// The place in the thread's table.
    offset: u32,
    reserved: u32,
    /// The descriptor.
    data: u64,
}

impl RingUpdate {
    /// The kernel chooses the place, and writes it here.
    const ANY_PLACE: u32 = u32::MAX;
}

/// A ring's place in the table of its thread.
struct Place {
    index: u32,
    /// Elsewhere the index means another ring, or none.
    thread: ThreadId,
}

/// The way into one ring.
pub(super) struct Entrance {
    ring: RawFd,
    place: Option<Place>,
}

impl Entrance {
    /// By the descriptor. The ring must live longer than what is returned.
    pub(super) const fn by_descriptor(ring: RawFd) -> Self {
        Self { ring, place: None }
    }

    /// By a place in this thread's table, if the kernel grants one; only this thread may enter
    /// then. As above, the ring must live longer.
    pub(super) fn by_place(ring: RawFd) -> Self {
        let mut update = RingUpdate {
            offset: RingUpdate::ANY_PLACE,
            reserved: 0,
            data: u64::try_from(ring).unwrap_or(u64::MAX),
        };
        // An old kernel, a full table: then there is the descriptor.
        let place = register(ring, Registration::Register, &mut update).ok();
        let place = place.map(|()| Place {
            index: update.offset,
            thread: thread::current().id(),
        });
        Self { ring, place }
    }

    /// Whether the kernel has granted a place.
    #[cfg(test)]
    pub(super) fn has_place(&self) -> bool {
        self.place.is_some()
    }

    /// Submits `entries` and sleeps until there are `wanted` completions. Returns how many entries
    /// the kernel has taken.
    pub(super) fn enter(
        &self,
        entries: usize,
        wanted: u32,
        flags: EnterFlags,
    ) -> io::Result<usize> {
        let (ring, flags) = match &self.place {
            Some(place) => {
                debug_assert_eq!(
                    place.thread,
                    thread::current().id(),
                    "the ring's own thread"
                );
                (i64::from(place.index), flags | EnterFlags::REGISTERED_RING)
            }
            None => (i64::from(self.ring), flags),
        };
        let no_signals = std::ptr::null::<libc::sigset_t>();
        // SAFETY: no argument passes an address. What the entries in the queue point to is owned by
        // their operations until the kernel is done with it, which `engine::table` argues.
        let taken = unsafe {
            libc::syscall(
                libc::SYS_io_uring_enter,
                ring,
                entries,
                wanted,
                flags.bits(),
                no_signals,
                0_usize,
            )
        };
        // It returns a count, or -1 with `errno`.
        usize::try_from(taken).map_err(|_negative| io::Error::last_os_error())
    }
}

impl Drop for Entrance {
    fn drop(&mut self) {
        let Some(place) = &self.place else { return };
        if place.thread == thread::current().id() {
            let mut update = RingUpdate {
                offset: place.index,
                reserved: 0,
                data: 0,
            };
            // It can't fail, having been granted; and the end of the thread does it otherwise.
            let _ = register(self.ring, Registration::Unregister, &mut update);
        }
    }
}

fn register(ring: RawFd, what: Registration, update: &mut RingUpdate) -> io::Result<()> {
    const ONE: u32 = 1;
    // SAFETY: `update` is the one element that the kernel reads and writes, before the call ends.
    let done = unsafe {
        libc::syscall(
            libc::SYS_io_uring_register,
            i64::from(ring),
            what as u32,
            std::ptr::from_mut(update),
            ONE,
        )
    };
    // It returns how many were done, or -1 with `errno`.
    if done == i64::from(ONE) {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use io_uring::{EnterFlags, IoUring, opcode};

    use super::Entrance;

    /// A ring, unless the system refuses one.
    fn ring() -> Option<IoUring> {
        let ring = IoUring::builder().setup_single_issuer().build(8);
        ring.inspect_err(|error| println!("SKIPPED: no ring here: {error}"))
            .ok()
    }

    fn submits_by(entrance: &Entrance, ring: &mut IoUring) {
        let nop = opcode::Nop::new().build().user_data(7);
        // SAFETY: it points to nothing.
        unsafe { ring.submission().push(&nop).unwrap() };
        let taken = entrance.enter(1, 1, EnterFlags::GETEVENTS).unwrap();
        assert_eq!(taken, 1);
        assert_eq!(ring.completion().next().unwrap().user_data(), 7);
    }

    #[test]
    fn both_ways_lead_into_the_ring() {
        let Some(mut ring) = ring() else { return };
        let descriptor = Entrance::by_descriptor(ring.as_raw_fd());
        assert!(descriptor.place.is_none());
        submits_by(&descriptor, &mut ring);
        let place = Entrance::by_place(ring.as_raw_fd());
        submits_by(&place, &mut ring);
    }

    #[test]
    fn a_place_is_given_back() {
        /// `IO_RINGFD_REG_MAX`: places in a thread's table.
        const PLACES: usize = 16;
        let Some(mut ring) = ring() else { return };
        let all: Vec<_> = (0..PLACES)
            .map(|_| Entrance::by_place(ring.as_raw_fd()))
            .collect();
        let granted = all.iter().all(|entrance| entrance.place.is_some());
        assert!(granted, "Linux before 5.18");
        let late = Entrance::by_place(ring.as_raw_fd());
        assert!(late.place.is_none(), "the table is full");
        submits_by(&late, &mut ring);
        drop(all);
        let next = Entrance::by_place(ring.as_raw_fd());
        assert!(next.place.is_some());
        submits_by(&next, &mut ring);
    }
}
