//! The owner's end of a task.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use async_task::{FallibleTask, Task};

use crate::gate::Cancelled;

/// Waits for a task's result. Dropping the handle detaches the task: it runs on.
#[derive(Debug)]
pub struct JoinHandle<T>(Option<FallibleTask<T>>);

impl<T> JoinHandle<T> {
    pub(crate) fn new(task: Task<T>) -> Self {
        Self(Some(task.fallible()))
    }

    /// Lets the task run on without anybody waiting for it.
    pub fn detach(mut self) {
        self.release();
    }

    /// Stops the task: its future is dropped in its loop's thread, soon. Any thread.
    pub fn cancel(mut self) {
        drop(self.0.take());
    }

    fn release(&mut self) {
        if let Some(task) = self.0.take() {
            task.detach();
        }
    }
}

impl<T> Drop for JoinHandle<T> {
    fn drop(&mut self) {
        self.release();
    }
}

impl<T> Future for JoinHandle<T> {
    type Output = Result<T, Cancelled>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            // `None`: the task panicked or its loop ended.
            Some(task) => Pin::new(task)
                .poll(cx)
                .map(|result| result.ok_or(Cancelled)),
            None => Poll::Ready(Err(Cancelled)),
        }
    }
}
