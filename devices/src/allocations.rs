//! Counts what the calling thread allocates: a request in steady state is to allocate nothing.
//!
//! For tests only, of which each has a thread of its own that is both guest and loop.

#![expect(
    unsafe_code,
    reason = "an allocator is an unsafe trait; every call is passed on"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

thread_local! {
    // Without a destructor and an initialiser: it may be used while a thread begins and ends.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn note() {
    ALLOCATIONS.set(ALLOCATIONS.get() + 1);
}

// SAFETY: every call is passed on unchanged to the system's allocator, which keeps the contract.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note();
        // SAFETY: the caller keeps the contract of this very method.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note();
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        note();
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, new_size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// What this thread has allocated so far.
pub(crate) fn so_far() -> u64 {
    ALLOCATIONS.get()
}

/// What this thread allocates during `call`.
pub(crate) fn during(call: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.get();
    call();
    ALLOCATIONS.get() - before
}

/// Asserts that `request`, which returns what it has allocated, allocates nothing once it has been made
/// some times: tables and lists have grown by then.
pub(crate) fn assert_none_in_steady_state(what: &str, mut request: impl FnMut() -> u64) {
    const WARM_UP: usize = 64;
    const REQUESTS: usize = 256;
    for _ in 0..WARM_UP {
        request();
    }
    let allocated: u64 = (0..REQUESTS).map(|_| request()).sum();
    assert_eq!(allocated, 0, "{what}: allocations of {REQUESTS} requests");
}

#[test]
fn an_allocation_is_counted() {
    let mut kept = Vec::new();
    assert_eq!(during(|| kept.push(7)), 1);
    assert_eq!(during(|| kept[0] += 1), 0);
}
