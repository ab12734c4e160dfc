//! The pool's promises, by looking at which blocks come back.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::task::Waker;

use super::*;

fn poll<T>(future: &mut PooledFuture<'_, T>) -> Poll<T> {
    Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
}

fn block_of<T>(future: &PooledFuture<'_, T>) -> *const u8 {
    future.value.as_ptr().cast_const().cast()
}

/// Free blocks of `class` in this thread.
fn free(class: usize) -> usize {
    FREE.with_borrow(|free| free.0[class].len())
}

/// Counts how often it is dropped.
struct Counted(Rc<Cell<u32>>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.set(self.0.get() + 1);
    }
}

#[test]
fn a_layout_is_served_by_the_smallest_class_that_holds_it() {
    let class = |size, align| class_of(Layout::from_size_align(size, align).unwrap());
    assert_eq!(class(0, 1), Some(0));
    assert_eq!(class(64, 16), Some(0));
    assert_eq!(class(65, 1), Some(1));
    assert_eq!(class(8192, 8), Some(7));
    assert_eq!(class(8193, 8), None);
    assert_eq!(class(64, 32), None);
    assert_eq!(class(1, 4096), Some(8));
    assert_eq!(class(4097, 4096), Some(9));
    assert_eq!(class(64 << 10, 4096), Some(12));
    assert_eq!(class((64 << 10) + 1, 4096), None);
    assert_eq!(class(4096, 8192), None);
}

#[test]
fn a_future_of_a_like_size_gets_the_block_that_was_given_back() {
    let mut first = PooledFuture::new(async { 1 });
    let block = block_of(&first);
    assert_eq!(poll(&mut first), Poll::Ready(1));
    drop(first);
    let text = "text".to_owned();
    let mut second = PooledFuture::new(async { text.len() });
    assert_eq!(block_of(&second), block);
    let third = PooledFuture::new(async {});
    assert_ne!(block_of(&third), block);
    assert_eq!(poll(&mut second), Poll::Ready(4));
}

#[test]
fn a_future_may_borrow_and_keeps_its_place_between_polls() {
    let number = Cell::new(1);
    let mut future = PooledFuture::new(async {
        let array = [number.get(); 40];
        let reference = &array;
        let mut waited = false;
        std::future::poll_fn(|_| {
            if std::mem::replace(&mut waited, true) {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
        number.set(2);
        reference.iter().sum::<i32>()
    });
    assert_eq!(poll(&mut future), Poll::Pending);
    let mut elsewhere = future;
    assert_eq!(poll(&mut elsewhere), Poll::Ready(40));
    drop(elsewhere);
    assert_eq!(number.get(), 2);
}

#[test]
fn dropping_before_the_end_drops_what_the_future_holds_once() {
    let drops = Rc::new(Cell::new(0));
    for polled in [false, true] {
        drops.set(0);
        let held = Counted(Rc::clone(&drops));
        let mut future = PooledFuture::new(async move {
            let _held = held;
            std::future::pending::<()>().await;
        });
        if polled {
            assert!(poll(&mut future).is_pending());
        }
        let before = free(0);
        drop(future);
        assert_eq!((drops.get(), free(0)), (1, before + 1));
    }
}

#[test]
fn a_panic_in_poll_loses_neither_memory_nor_drops() {
    let drops = Rc::new(Cell::new(0));
    let held = Counted(Rc::clone(&drops));
    let mut future = PooledFuture::new(async move {
        let _held = held;
        panic!("on purpose");
    });
    let outcome = catch_unwind(AssertUnwindSafe(|| -> Poll<()> { poll(&mut future) }));
    assert!(outcome.is_err());
    let before = free(0);
    drop(future);
    assert_eq!((drops.get(), free(0)), (1, before + 1));
}

#[test]
fn a_panic_in_drop_loses_no_memory() {
    struct Bad;
    impl Drop for Bad {
        fn drop(&mut self) {
            panic!("on purpose");
        }
    }
    let bad = Bad;
    let future = PooledFuture::new(async move {
        let _bad = bad;
    });
    let before = free(0);
    let outcome = catch_unwind(AssertUnwindSafe(|| drop(future)));
    assert!(outcome.is_err());
    assert_eq!(free(0), before + 1);
}

#[test]
fn futures_of_no_size_and_of_large_alignment_work() {
    struct Empty;
    impl Future for Empty {
        type Output = usize;
        fn poll(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<usize> {
            Poll::Ready(std::ptr::from_mut(self.get_mut()).addr())
        }
    }
    #[repr(align(256))]
    struct Aligned<const SIZE: usize>([u8; SIZE]);
    impl<const SIZE: usize> Future for Aligned<SIZE> {
        type Output = usize;
        fn poll(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<usize> {
            self.0.fill(1);
            Poll::Ready(std::ptr::from_mut(self.get_mut()).addr())
        }
    }
    assert_eq!(size_of::<Empty>(), 0);
    assert_eq!(size_of::<Aligned<0>>(), 0);
    let before: Vec<usize> = (0..CLASSES).map(free).collect();
    assert!(poll(&mut PooledFuture::new(Empty)).is_ready());
    for aligned in [
        PooledFuture::new(Aligned([0; 0])),
        PooledFuture::new(Aligned([0; 300])),
    ] {
        let mut aligned = aligned;
        let Poll::Ready(address) = poll(&mut aligned) else {
            panic!("it is ready at once");
        };
        assert_eq!(address % 256, 0);
    }
    let after: Vec<usize> = (0..CLASSES).map(free).collect();
    // Only the empty one used a class, and gave its block back.
    assert_eq!(after[0], before[0].max(1));
    assert_eq!(after[1..], before[1..]);
}

#[test]
fn what_is_larger_than_every_class_goes_back_to_the_allocator() {
    let before: Vec<usize> = (0..CLASSES).map(free).collect();
    let array = [7u8; 10_000];
    let mut future = PooledFuture::new(async move {
        std::future::ready(()).await;
        array.iter().map(|byte| u32::from(*byte)).sum::<u32>()
    });
    assert!(future.layout.size() > 8192);
    assert_eq!(poll(&mut future), Poll::Ready(70_000));
    drop(future);
    assert_eq!((0..CLASSES).map(free).collect::<Vec<_>>(), before);
}

#[test]
fn a_thread_keeps_no_more_than_its_bound() {
    for class in [FUTURES.classes - 1, CLASSES - 1] {
        let layout = LAYOUTS[class];
        let bound = place_of(class).0.kept / layout.size();
        let blocks: Vec<Memory> = (0..bound + 3).map(|_| Memory::take(layout)).collect();
        drop(blocks);
        assert_eq!(free(class), bound);
    }
}

#[test]
fn memory_may_be_given_back_by_another_thread() {
    let layout = Layout::from_size_align(1000, 8).unwrap();
    let class = class_of(layout).unwrap();
    let addresses: Vec<usize> = (0..10)
        .map(|_| Memory::take(layout).into_raw().as_ptr().expose_provenance())
        .collect();
    std::thread::spawn(move || {
        for address in &addresses {
            let pointer = NonNull::new(std::ptr::with_exposed_provenance_mut(*address)).unwrap();
            // SAFETY: the thread before left the block to us, taken for this layout.
            drop(unsafe { Memory::from_raw(pointer, layout) });
        }
        assert_eq!(free(class), 10);
        assert_eq!(
            Memory::take(layout).pointer.as_ptr().addr(),
            addresses[addresses.len() - 1]
        );
    })
    .join()
    .unwrap();
}

#[test]
fn a_thread_that_ends_can_still_make_and_drop_futures() {
    struct Last(Cell<Option<PooledFuture<'static, u32>>>);
    impl Drop for Last {
        fn drop(&mut self) {
            drop(self.0.take());
            assert_eq!(poll(&mut PooledFuture::new(async { 3 })), Poll::Ready(3));
        }
    }
    thread_local! {
        static LAST: Last = const { Last(Cell::new(None)) };
    }
    std::thread::spawn(|| {
        // Registered before the pool's lists, so it is destroyed after them.
        LAST.with(|last| last.0.set(None));
        let future = PooledFuture::new(async { 2 });
        LAST.with(|last| last.0.set(Some(future)));
    })
    .join()
    .unwrap();
}
