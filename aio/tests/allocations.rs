//! Operations allocate nothing in steady state, in either engine, whatever the buffer's shape.
//!
//! The allocator of this program counts for the whole process, worker threads included; so this is
//! one test in a program of its own.
#![cfg(not(loom))]
#![expect(unsafe_code, reason = "an allocator that counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is the system's allocator's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(memory, layout) };
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::sync::Arc;

    use sluice_aio::{Aside, EngineKind, EventLoop, GuestRam, IoBuffer, LoopConfig, current};
    use vm_memory::GuestAddress;

    use super::*;

    const PAGE: usize = 4096;
    const ROUNDS: u64 = 200;
    /// Operations at once.
    const DEPTH: usize = 8;

    fn ram() -> Arc<GuestRam> {
        Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), 64 * PAGE)]).unwrap())
    }

    /// Makes the buffer of a request as a device does, and moves it both ways.
    async fn round(
        engine: EngineKind,
        file: Arc<Aside<File>>,
        ram: Arc<GuestRam>,
        segments: usize,
    ) {
        let mut ranges = [(GuestAddress(0), PAGE / 2); 16];
        for round in 0..ROUNDS {
            for (at, range) in ranges.iter_mut().enumerate() {
                range.0 = GuestAddress((at * PAGE) as u64);
            }
            let buffer = IoBuffer::from_guest(&ram, &ranges[..segments]).unwrap();
            let rest = buffer.slice(100, buffer.len());
            let offset = (round % 7) * PAGE as u64;
            current::write_at(engine, &file, offset, buffer.clone())
                .await
                .unwrap();
            let count = current::read_at(engine, &file, offset, rest).await;
            assert_eq!(count.unwrap(), buffer.len() - 100);
        }
        current::fdatasync(engine, &file).await.unwrap();
    }

    /// Allocations of [`DEPTH`] tasks that each do their rounds.
    async fn count(
        engine: EngineKind,
        file: &Arc<Aside<File>>,
        ram: &Arc<GuestRam>,
        segments: usize,
    ) -> usize {
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        let tasks: [_; DEPTH] = std::array::from_fn(|_| {
            let work = round(engine, Arc::clone(file), Arc::clone(ram), segments);
            current::spawn_local(work)
        });
        for task in tasks {
            task.await.unwrap();
        }
        ALLOCATIONS.load(Ordering::Relaxed) - before
    }

    #[test]
    fn operations_allocate_nothing_in_steady_state() {
        let config = LoopConfig {
            // As many workers as there are operations, all from the start.
            thread_pool_min: DEPTH,
            thread_pool_max: DEPTH,
            ..LoopConfig::default()
        };
        let mut event_loop = EventLoop::new("test", &config).unwrap();
        event_loop
            .run_until(async {
                let file = Arc::new(tempfile::tempfile().unwrap().into());
                let ram = ram();
                for engine in [EngineKind::IoUring, EngineKind::Threads] {
                    for segments in [1, 2, 3, 16] {
                        // Room grows to what is needed at once, which varies a little.
                        let mut counts = Vec::new();
                        for _ in 0..6 {
                            counts.push(count(engine, &file, &ram, segments).await);
                        }
                        counts.sort_unstable();
                        let judged = match engine {
                            EngineKind::IoUring => counts[counts.len() / 2],
                            // How many of the threads are awake at once varies more.
                            EngineKind::Threads => counts[0],
                        };
                        assert_eq!(judged, 0, "{engine:?}, {segments} segments: {counts:?}");
                    }
                }
            })
            .unwrap();
    }
}
