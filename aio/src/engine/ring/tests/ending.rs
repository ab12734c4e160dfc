//! What becomes of operations and their memory when a loop ends, or its ring does.

use std::cell::RefCell;
use std::future::Future;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Poll, Wake, Waker};

use vm_memory::GuestAddress;

use super::super::*;
use super::scripted::*;
use crate::aside::Aside;
use crate::buffer::{GuestRam, IoBuffer};
use crate::context::AioContext;
use crate::engine::{Completion, Core, EngineKind, Engines, Threads, WorkerPool};
use crate::event_loop::LoopConfig;

/// A read into memory that only the operation owns.
fn read_of_own_memory(bench: &mut Bench) -> (Key, Weak<GuestRam>) {
    let ram = ram();
    let watch = Arc::downgrade(&ram);
    let buffer = IoBuffer::from_guest(&ram, &[(GuestAddress(0), LEN)]).unwrap();
    (bench.start(OperationKind::Read, 0, buffer), watch)
}

#[test]
fn memory_is_kept_until_the_kernel_is_done_and_no_longer() {
    let mut bench = Bench::new(256);
    let (key, memory) = read_of_own_memory(&mut bench);
    bench.submit();
    drop(bench.table.abandon(key));
    assert_eq!(memory.strong_count(), 1, "freed under the kernel's feet");
    bench.kernel.complete(0, 100);
    bench.reap();
    assert_eq!(memory.strong_count(), 1, "the rest is still to come");
    bench.submit();
    bench.kernel.complete(1, WHOLE - 100);
    bench.reap();
    assert_eq!(memory.strong_count(), 0, "leaked");
    assert_eq!(bench.table.running(), 0);
}

#[test]
fn the_end_cancels_and_waits_for_what_is_in_flight() {
    let mut bench = Bench::new(2);
    let (in_flight, memory) = read_of_own_memory(&mut bench);
    bench.submit();
    bench.kernel.answer([Err(libc::EAGAIN)]);
    let unsubmitted = bench.reads(4);
    bench.submit();
    let user_data = bench.kernel.0.borrow().taken[0].0;
    let mut script = bench.kernel.0.borrow_mut();
    let short = vec![(user_data, 100)];
    script.arrivals.extend([Vec::new(), short]);
    drop(script);
    bench.ring.finish(&mut bench.table, Duration::MAX);
    assert_eq!(bench.kernel.0.borrow().cancels, 1);
    assert_eq!(bench.kernel.submits(), 2, "submitted at the end");
    assert_eq!(memory.strong_count(), 0);
    assert_eq!(bench.table.running(), 0);
    for key in unsubmitted.into_iter().chain([in_flight]) {
        assert_eq!(bench.errno(key), Some(libc::ECANCELED));
    }
}

#[test]
fn what_never_ends_is_leaked_not_freed() {
    let mut bench = Bench::new(256);
    let (_, memory) = read_of_own_memory(&mut bench);
    bench.submit();
    bench.ring.finish(&mut bench.table, Duration::MAX);
    assert_eq!(bench.table.running(), 1);
    drop(bench);
    assert_eq!(memory.strong_count(), 1, "freed under the kernel's feet");
}

/// The engines of a loop with this kernel.
fn engines(kernel: &Scripted) -> Engines {
    let context = AioContext::new("test", &LoopConfig::default()).unwrap();
    let workers = Rc::new(WorkerPool::new("test", 0, 2, Box::new(|| {})).unwrap());
    Engines {
        core: Rc::new(RefCell::new(Core {
            table: Table::default(),
            ring: Some(Box::new(Ring::with_port(kernel.clone()))),
            threads: Threads::new(Rc::clone(&workers)),
        })),
        workers,
        shared: context.0,
        prepared: Default::default(),
        refusal: Default::default(),
        end_patience: Default::default(),
    }
}

#[test]
fn an_end_is_as_patient_as_the_process_wants_then() {
    let kernel = Scripted::new(256);
    let engines = engines(&kernel);
    let file = Arc::new(tempfile::tempfile().unwrap().into());
    let route = EngineKind::IoUring.into();
    let read = engines.start(route, OperationKind::Read, file, 0, IoBuffer::alloc(LEN));
    engines.submit();
    let limit = Duration::from_millis(10);
    engines.end_patience.shorten(limit);
    engines.finish();
    assert_eq!(kernel.0.borrow().limits, [limit]);
    drop(read);
}

#[test]
fn who_waits_for_a_ring_that_nobody_can_replace_is_woken() {
    let kernel = Scripted::new(256);
    let engines = engines(&kernel);
    // A pool that has ended starts no thread.
    assert_eq!(engines.workers.finish(Duration::MAX), 0);
    engines.reap();
    let file = Arc::new(tempfile::tempfile().unwrap().into());
    let buffer = IoBuffer::alloc(LEN);
    let mut read = engines.start(
        EngineKind::IoUring.into(),
        OperationKind::Read,
        file,
        0,
        buffer,
    );
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(Arc::clone(&woken));
    let mut cx = std::task::Context::from_waker(&waker);
    assert!(Pin::new(&mut read).poll(&mut cx).is_pending());
    assert!(!engines.has_completed());
    kernel.answer([Err(libc::EBADF)]);
    engines.submit();
    assert!(engines.has_completed(), "the loop would sleep");
    engines.reap();
    assert!(woken.0.load(Ordering::Relaxed));
    assert!(!engines.has_completed(), "the loop would spin");
    assert!(matches!(
        Pin::new(&mut read).poll(&mut cx),
        Poll::Ready(Err(_))
    ));
    engines.finish();
}

#[test]
fn an_operation_whose_future_is_dropped_leaves_nothing_behind() {
    let kernel = Scripted::new(256);
    let engines = engines(&kernel);
    let file = Arc::new(tempfile::tempfile().unwrap().into());
    let start = || {
        let route = EngineKind::IoUring.into();
        let buffer = IoBuffer::alloc(LEN);
        engines.start(route, OperationKind::Read, Arc::clone(&file), 0, buffer)
    };
    let (early, late) = (start(), start());
    engines.submit();
    drop(early);
    assert!(!engines.core.borrow().table.is_empty(), "the kernel has it");
    kernel.complete(0, WHOLE);
    kernel.complete(1, WHOLE);
    engines.reap();
    drop(late);
    assert!(engines.core.borrow().table.is_empty());
    engines.finish();
}

#[test]
fn who_waits_for_a_worker_that_hangs_is_told_at_the_end() {
    let engines = engines(&Scripted::new(256));
    let (file, ram) = (Arc::new(tempfile::tempfile().unwrap().into()), ram());
    let memory = Arc::downgrade(&ram);
    let buffer = IoBuffer::from_guest(&ram, &[(GuestAddress(0), LEN)]).unwrap();
    drop(ram);
    let route = EngineKind::Threads.into();
    let mut core = engines.core.borrow_mut();
    let key = core
        .table
        .insert(OperationKind::Read, route, file, 0, buffer);
    // As one that a worker has, which never gives it back.
    let lent = core.table.lend(key).unwrap();
    drop(core);
    let mut read = Completion {
        core: Rc::clone(&engines.core),
        key: Some(key),
    };
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(Arc::clone(&woken));
    let mut cx = std::task::Context::from_waker(&waker);
    assert!(Pin::new(&mut read).poll(&mut cx).is_pending());
    engines.finish();
    assert!(woken.0.load(Ordering::Relaxed), "waits for ever");
    let Poll::Ready(Err(error)) = Pin::new(&mut read).poll(&mut cx) else {
        panic!("it was never done");
    };
    assert_eq!(error.raw_os_error(), Some(libc::ECANCELED));
    drop((read, engines));
    assert_eq!(memory.strong_count(), 1, "freed under the worker's feet");
    drop(lent);
    assert_eq!(memory.strong_count(), 0, "leaked");
}

/// Whether a waker was used.
#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn what_a_retired_ring_left_is_done_by_workers() {
    let kernel = Scripted::new(256);
    let engines = engines(&kernel);
    let file = Arc::new(Aside::from(tempfile::tempfile().unwrap()));
    file.write_all_at(&[7; LEN], 0).unwrap();
    let start = || {
        let buffer = IoBuffer::alloc(LEN);
        let kind = OperationKind::Read;
        let file = Arc::clone(&file);
        let read = engines.start(EngineKind::IoUring.into(), kind, file, 0, buffer.clone());
        (read, buffer)
    };
    kernel.answer([Err(libc::ENXIO)]);
    let mut reads = vec![start(), start()];
    engines.submit();
    // And what comes later goes there directly.
    reads.push(start());
    for (mut read, buffer) in reads {
        assert_eq!(wait(&engines, &mut read).unwrap(), LEN);
        assert_eq!(buffer.to_vec(), [7; LEN]);
    }
    assert_eq!(kernel.submits(), 1);
    let stats = engines.shared.counters().snapshot();
    assert_eq!(stats.thread_operations, 3);
    let why = stats.without_ring.expect("whoever looks is told");
    assert!(why.contains("takes nothing any more"), "{why}");
    engines.finish();
}

fn wait(engines: &Engines, operation: &mut Completion) -> io::Result<usize> {
    let mut cx = std::task::Context::from_waker(Waker::noop());
    loop {
        engines.reap();
        if let Poll::Ready(result) = Pin::new(&mut *operation).poll(&mut cx) {
            return result;
        }
        std::thread::yield_now();
    }
}
