//! [`PooledFuture`]: a boxed future whose memory is used again and again.
//!
//! A call through `dyn` must put its future somewhere, and the block layer makes such a call for
//! every layer of every request; so must a loop that starts a task for every request. The general
//! allocator costs more than most layers do, so the memory comes from lists of free blocks that
//! each thread keeps: in steady state a request allocates nothing. Short [buffers](crate::IoBuffer) of
//! whole pages come from lists like these. All that is unsafe about the lists is in this file.
//!
//! # Why it is sound
//! * A block's size is a function of the layout alone (`class_of`), and whoever gives a block
//!   back names the layout it was asked for with. So a block goes to the list of its own size,
//!   whichever thread that list belongs to: blocks carry no owner and may change threads.
//! * A block is in exactly one place: in one thread's list, or behind the one `Memory` or
//!   [`Pooled`] value that was made of it. None of them can be copied.
//! * The lists are touched only by their thread, for the length of a push or a pop. No foreign code
//!   runs meanwhile, except the allocator, which knows nothing of them.
//! * What does not fit the classes (large, over-aligned) goes to the allocator and back, with its
//!   own layout; so does everything while a thread is ending and has lost its lists.

#![expect(
    unsafe_code,
    reason = "memory is reserved, filled and released by hand; see the module's argument"
)]

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::ptr::NonNull;
use std::task::{Context, Poll};

use crate::buffer::BUFFER_ALIGNMENT;
use crate::task::Work;

/// Blocks of one alignment: the smallest size, twice that, and so on.
struct Family {
    alignment: usize,
    /// Size in bytes of the smallest class; each further class is twice as large.
    smallest: usize,
    classes: usize,
    /// The most bytes that one thread keeps in free blocks of one class.
    kept: usize,
}

impl Family {
    const fn layout(&self, class: usize) -> Layout {
        match Layout::from_size_align(self.smallest << class, self.alignment) {
            Ok(layout) => layout,
            Err(_) => panic!("the classes are too large"),
        }
    }
}

/// Of futures, up to 8 KiB; general allocators align as much for nothing.
const FUTURES: Family = Family {
    alignment: 16,
    smallest: 64,
    classes: 8,
    kept: 1 << 20,
};
/// Of whole pages, up to 64 KiB.
const PAGES: Family = Family {
    alignment: BUFFER_ALIGNMENT,
    smallest: BUFFER_ALIGNMENT,
    classes: 5,
    kept: 256 << 10,
};
/// How many classes there are; first those of futures.
const CLASSES: usize = FUTURES.classes + PAGES.classes;

/// The family of a class and its number in there.
const fn place_of(class: usize) -> (&'static Family, usize) {
    match class.checked_sub(FUTURES.classes) {
        None => (&FUTURES, class),
        Some(number) => (&PAGES, number),
    }
}

/// The block layouts of all classes.
const LAYOUTS: [Layout; CLASSES] = {
    let mut layouts = [Layout::new::<u8>(); CLASSES];
    let mut class = 0;
    while class < CLASSES {
        let (family, number) = place_of(class);
        layouts[class] = family.layout(number);
        class += 1;
    }
    layouts
};

/// The class whose blocks serve `layout`; none if it is too large, or aligned to more than a future is and not
/// to a page.
const fn class_of(layout: Layout) -> Option<usize> {
    let (mut class, end) = if layout.align() <= FUTURES.alignment {
        (0, FUTURES.classes)
    } else if layout.align() == PAGES.alignment {
        (FUTURES.classes, CLASSES)
    } else {
        return None;
    };
    while class < end {
        if layout.size() <= LAYOUTS[class].size() {
            return Some(class);
        }
        class += 1;
    }
    None
}

/// One thread's free blocks, by class, the last one given back first.
struct FreeLists([Vec<NonNull<u8>>; CLASSES]);

impl Drop for FreeLists {
    fn drop(&mut self) {
        for (blocks, layout) in self.0.iter_mut().zip(LAYOUTS) {
            for block in blocks.drain(..) {
                // SAFETY: every block of this list was allocated with the class's layout, and
                // being in the list it has no other owner.
                unsafe { dealloc(block.as_ptr(), layout) };
            }
        }
    }
}

thread_local! {
    static FREE: RefCell<FreeLists> = const {
        RefCell::new(FreeLists([const { Vec::new() }; CLASSES]))
    };
}

/// A block of memory, not initialised, given back on drop. No constructor but [`Memory::take`] and
/// the unsafe [`Memory::from_raw`].
#[derive(Debug)]
pub(crate) struct Memory {
    pointer: NonNull<u8>,
    layout: Layout,
}

impl Memory {
    /// Memory for one value of `layout`, which need not be more than zero bytes.
    pub(crate) fn take(layout: Layout) -> Self {
        let from_allocator = |layout| {
            // SAFETY: the layout's size is not zero: it is a class's, or larger than any class, or
            // that of an over-aligned type with its size made 1 below.
            let pointer = unsafe { alloc(layout) };
            NonNull::new(pointer).unwrap_or_else(|| handle_alloc_error(layout))
        };
        let pointer = match class_of(layout) {
            Some(class) => FREE
                .try_with(|free| free.borrow_mut().0[class].pop())
                .ok()
                .flatten()
                .unwrap_or_else(|| from_allocator(LAYOUTS[class])),
            None => from_allocator(never_empty(layout)),
        };
        Self { pointer, layout }
    }

    /// Takes back what [`Memory::into_raw`] gave away.
    ///
    /// # Safety
    /// `pointer` came from `into_raw` of memory taken for this same `layout`, and is given back
    /// only once.
    unsafe fn from_raw(pointer: NonNull<u8>, layout: Layout) -> Self {
        Self { pointer, layout }
    }

    /// Where it is; valid for reads and writes of its layout's size until it is dropped.
    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.pointer.as_ptr()
    }

    /// Leaves the block to the caller.
    fn into_raw(self) -> NonNull<u8> {
        let pointer = self.pointer;
        std::mem::forget(self);
        pointer
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let layout = match class_of(self.layout) {
            Some(class) => {
                let kept = FREE.try_with(|free| {
                    let blocks = &mut free.borrow_mut().0[class];
                    let room = (blocks.len() + 1) * LAYOUTS[class].size() <= place_of(class).0.kept;
                    if room {
                        blocks.push(self.pointer);
                    }
                    room
                });
                if kept == Ok(true) {
                    return;
                }
                LAYOUTS[class]
            }
            None => never_empty(self.layout),
        };
        // SAFETY: `take` had it from the allocator with this layout (in this thread or another),
        // and it has just not been put into a list.
        unsafe { dealloc(self.pointer.as_ptr(), layout) };
    }
}

/// The allocator's way to serve an over-aligned type of no size.
fn never_empty(layout: Layout) -> Layout {
    if layout.size() == 0 {
        return Layout::from_size_align(1, layout.align()).unwrap_or(layout);
    }
    layout
}

/// A value in pooled memory, pinned there; it stays in its thread. What `Pin<Box<T>>` is in general
/// code.
pub struct Pooled<T: ?Sized> {
    value: NonNull<T>,
    /// What the value's memory was taken for.
    layout: Layout,
    owned: PhantomData<Box<T>>,
}

/// A future of unknown type in pooled memory; it need not be `Send`.
///
/// Any thread may make one; making and dropping them in one thread, again and again, costs no
/// allocation.
pub type PooledFuture<'a, T> = Pooled<dyn Future<Output = T> + 'a>;

impl<'a, T> PooledFuture<'a, T> {
    /// Moves `future` into pooled memory.
    #[must_use]
    pub fn new<F: Future<Output = T> + 'a>(future: F) -> Self {
        let (value, layout) = place(future);
        Self {
            value,
            layout,
            owned: PhantomData,
        }
    }
}

impl Pooled<dyn Work> {
    /// Moves a task's work into pooled memory.
    pub(crate) fn work<W: Work + 'static>(work: W) -> Self {
        let (value, layout) = place(work);
        Self {
            value,
            layout,
            owned: PhantomData,
        }
    }
}

/// Moves `value` into a block of its own; returns it with the layout the block was taken for.
fn place<T>(value: T) -> (NonNull<T>, Layout) {
    let layout = Layout::new::<T>();
    let pointer = Memory::take(layout).into_raw().cast::<T>();
    // SAFETY: the block is ours, and large and aligned enough for a `T`.
    unsafe { pointer.write(value) };
    (pointer, layout)
}

impl<T: ?Sized> Pooled<T> {
    /// The value, in its place.
    pub fn as_mut(&mut self) -> Pin<&mut T> {
        // SAFETY: `place` initialised the value, only `drop` ends it, and the reference borrows
        // `self`, which alone leads to it. It is pinned: nothing moves it out of its block, and it
        // is dropped before the block is given back.
        unsafe { Pin::new_unchecked(self.value.as_mut()) }
    }
}

impl<T> Future for PooledFuture<'_, T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        self.as_mut().get_mut().as_mut().poll(cx)
    }
}

impl<T: ?Sized> Drop for Pooled<T> {
    fn drop(&mut self) {
        // First the owner of the memory, so that it is given back also if the value's drop panics.
        // SAFETY: `place` took the block for this layout; nobody gives it back but this one drop.
        let _memory = unsafe { Memory::from_raw(self.value.cast(), self.layout) };
        // SAFETY: `place` initialised the value, and nothing looks at it after this drop.
        unsafe { self.value.as_ptr().drop_in_place() };
    }
}

impl<T: ?Sized> fmt::Debug for Pooled<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pooled")
            .field("bytes", &self.layout.size())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
