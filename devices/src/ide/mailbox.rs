//! [`Mailbox`]: the way of a channel's requests to the one task that serves them.
//!
//! At most one request of a channel is alive, so there is room for one: what has died on its way gives
//! its place to the next. The task is started once, with its channel, and woken for each request: nothing
//! is allocated for one.
//!
//! Requests come from the threads of vCPUs, without any lock; the task runs in the channel's loop.

use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;

use super::request::Request;

#[derive(Default)]
struct Contents {
    request: Option<Request>,
    /// The channel is gone: nothing comes any more.
    closed: bool,
    /// The task is gone: nothing is taken any more.
    abandoned: bool,
}

/// See the [module](self).
#[derive(Default)]
pub(super) struct Mailbox {
    contents: Mutex<Contents>,
    server: AtomicWaker,
}

impl Mailbox {
    /// Hands a request over; gives it back if nobody will ever serve it. Any thread.
    pub fn send(&self, request: Request) -> Result<(), Request> {
        let mut contents = self.contents.lock();
        if contents.abandoned {
            return Err(request);
        }
        let dead = contents.request.replace(request);
        drop(contents);
        drop(dead);
        self.wake();
        Ok(())
    }

    /// Has the task look again: for a request, or whether the one it waits with is still wanted. Any thread.
    pub fn wake(&self) {
        self.server.wake();
    }

    /// Nothing comes any more. Any thread.
    pub fn close(&self) {
        self.contents.lock().closed = true;
        self.wake();
    }

    /// The task `context` belongs to is the one to be woken from now on.
    pub fn listen(&self, context: &Context<'_>) {
        self.server.register(context.waker());
    }

    /// The next request; none if there will be no further one.
    pub fn poll_receive(&self, context: &Context<'_>) -> Poll<Option<Request>> {
        // Before the look: what comes after it wakes.
        self.listen(context);
        let mut contents = self.contents.lock();
        match contents.request.take() {
            Some(request) => Poll::Ready(Some(request)),
            None if contents.closed => Poll::Ready(None),
            None => Poll::Pending,
        }
    }

    /// The task takes nothing any more; returns what it has not taken.
    pub fn abandon(&self) -> Option<Request> {
        let mut contents = self.contents.lock();
        contents.abandoned = true;
        contents.request.take()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Wake, Waker};

    use super::super::request::{Generation, Operation};
    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn flush(drive: usize) -> Request {
        Request {
            generation: Generation::default(),
            drive,
            operation: Operation::Flush,
            durable: false,
        }
    }

    #[test]
    fn a_request_wakes_the_task_and_takes_the_place_of_a_dead_one() {
        let mailbox = Mailbox::default();
        let woken = Arc::new(Count::default());
        let waker = Waker::from(Arc::clone(&woken));
        let context = Context::from_waker(&waker);
        assert!(mailbox.poll_receive(&context).is_pending());
        assert!(mailbox.send(flush(0)).is_ok());
        assert_eq!(woken.0.load(Ordering::SeqCst), 1);
        assert!(mailbox.send(flush(1)).is_ok());
        assert_eq!(mailbox.poll_receive(&context), Poll::Ready(Some(flush(1))));
        assert!(mailbox.poll_receive(&context).is_pending());
        mailbox.wake();
        assert_eq!(woken.0.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn either_end_may_go_first() {
        let context = Context::from_waker(Waker::noop());
        let mailbox = Mailbox::default();
        assert!(mailbox.send(flush(0)).is_ok());
        mailbox.close();
        // What is there is still served.
        assert!(mailbox.poll_receive(&context) == Poll::Ready(Some(flush(0))));
        assert!(mailbox.poll_receive(&context) == Poll::Ready(None));

        let mailbox = Mailbox::default();
        assert!(mailbox.send(flush(0)).is_ok());
        assert_eq!(mailbox.abandon(), Some(flush(0)));
        assert_eq!(mailbox.send(flush(1)), Err(flush(1)));
    }
}
