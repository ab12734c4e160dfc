//! Output to files that may block, standard output for one: through a bounded queue to a thread of its own.
//!
//! The guest's serial line comes here from vCPU threads ([`SerialSink`]), and what [`Printer`](super::Printer) prints
//! from tasks of the main context ([`QueuedOutput::print`]).
//!
//! # When nobody reads
//! The queue holds [`LIMIT`] bytes. When it is full, a vCPU waits for room, at most [`PATIENCE`],
//! before it takes the serial port's lock: nobody else waits with it. If the reader takes nothing
//! in that time, bytes are dropped (and counted) without waiting until it reads again. So a slow
//! reader slows the guest down and loses nothing, and one that stands still, a pager say, costs the
//! guest one pause and then only output. It is the one place where a vCPU waits for something
//! outside. Who prints a text waits for it to be written, and no longer either.
//!
//! Files are written in blocking mode by the thread: making standard output
//! non-blocking would do the same to every other process that shares it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::Builder;
use std::time::Duration;

use event_listener::Event;
use futures_util::future::{self, Either};
use parking_lot::{Condvar, Mutex};
use rustix::event::{PollFd, PollFlags, poll};
use sluice_aio::current;
use sluice_devices::legacy::SerialSink;

/// Bytes the queue holds.
pub const LIMIT: usize = 1 << 20;
/// Room beyond that for those who did not wait, or who did and were overtaken: at most one byte of
/// each vCPU, and the help for the escape key.
const SLACK: usize = 4096;
/// How long a vCPU waits for room in a queue that does not move, and a task for its text to be written.
pub const PATIENCE: Duration = Duration::from_secs(1);
/// How long the end of the process waits for output that does not move.
const LAST_PATIENCE: Duration = Duration::from_secs(1);

#[derive(Default)]
struct Queue {
    waiting: VecDeque<u8>,
    /// The reader did not move for [`PATIENCE`].
    stalled: bool,
    /// Output is impossible: the reader is gone.
    broken: bool,
    /// No more output will come.
    closed: bool,
    /// The thread has written all it will.
    finished: bool,
    dropped: u64,
    /// Bytes that were ever queued.
    queued: u64,
    /// Of these, those that the thread is done with.
    done: u64,
    /// Writes that ended; tells whether output moves.
    writes: u64,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    /// For the thread: there is something to write.
    filled: Condvar,
    /// For vCPUs and the end: there is room, or an end.
    moved: Condvar,
    /// The same for tasks.
    moved_for_tasks: Event,
}

impl Shared {
    fn tell_moved(&self) {
        self.moved.notify_all();
        self.moved_for_tasks.notify(usize::MAX);
    }
}

/// The queue's entrance. Any thread.
pub struct QueuedOutput {
    shared: Arc<Shared>,
}

impl QueuedOutput {
    /// Starts a thread that writes what is sent to `file`. `what` it is, in words, is for what is said of it, and the
    /// name of the thread.
    ///
    /// # Errors
    /// When the host has no thread left.
    pub fn start(file: OwnedFd, what: &'static str) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        Builder::new()
            .name(what.into())
            .spawn(move || write_all(&theirs, &file, what))?;
        Ok(Self { shared })
    }

    /// Sends a text, all of it or nothing, and waits until it has been written; not where nobody reads. In a task of
    /// the main context.
    pub async fn print(&self, text: &str) {
        let bytes = u64::try_from(text.len()).unwrap_or(u64::MAX);
        let (end, writes) = {
            let mut queue = self.shared.queue.lock();
            if queue.broken || queue.closed || queue.waiting.len() + text.len() > LIMIT {
                queue.dropped += bytes;
                return;
            }
            queue.waiting.extend(text.as_bytes());
            queue.queued += bytes;
            self.shared.filled.notify_one();
            if queue.stalled {
                return;
            }
            (queue.queued, queue.writes)
        };
        let written = std::pin::pin!(self.written(end));
        let patience = std::pin::pin!(current::sleep(PATIENCE));
        if let Either::Right(_) = future::select(written, patience).await {
            let mut queue = self.shared.queue.lock();
            queue.stalled = queue.writes == writes;
        }
    }

    /// Waits until the thread is done with that many bytes.
    async fn written(&self, end: u64) {
        loop {
            let moved = self.shared.moved_for_tasks.listen();
            {
                let queue = self.shared.queue.lock();
                if queue.done >= end || queue.finished {
                    return;
                }
            }
            moved.await;
        }
    }

    /// Ends output: waits until all is written, as long as it moves. Returns how many bytes were
    /// lost.
    pub fn close(&self) -> u64 {
        let mut queue = self.shared.queue.lock();
        queue.closed = true;
        self.shared.filled.notify_all();
        while !queue.finished {
            let before = queue.writes;
            let timeout = self
                .shared
                .moved
                .wait_for(&mut queue, LAST_PATIENCE)
                .timed_out();
            if timeout && queue.writes == before && !queue.finished {
                break;
            }
        }
        queue.dropped + u64::try_from(queue.waiting.len()).unwrap_or(u64::MAX)
    }
}

impl SerialSink for QueuedOutput {
    fn wait_for_room(&self) {
        let mut queue = self.shared.queue.lock();
        let full = |queue: &mut Queue| queue.waiting.len() >= LIMIT && !queue.broken;
        if full(&mut queue) && !queue.stalled {
            let waited = self.shared.moved.wait_while_for(&mut queue, full, PATIENCE);
            queue.stalled = waited.timed_out() && full(&mut queue);
        }
    }

    fn send(&self, byte: u8) {
        let mut queue = self.shared.queue.lock();
        if queue.broken || queue.waiting.len() >= LIMIT + SLACK {
            queue.dropped += 1;
            return;
        }
        queue.waiting.push_back(byte);
        queue.queued += 1;
        if queue.waiting.len() == 1 {
            self.shared.filled.notify_one();
        }
    }
}

/// The thread: writes until the queue is closed and empty.
fn write_all(shared: &Shared, file: &OwnedFd, what: &str) {
    let mut queue = shared.queue.lock();
    loop {
        while queue.waiting.is_empty() && !queue.closed {
            shared.filled.wait(&mut queue);
        }
        if queue.waiting.is_empty() || queue.broken {
            break;
        }
        let mut batch = std::mem::take(&mut queue.waiting);
        drop(queue);
        let written = write_batch(file, batch.make_contiguous());
        queue = shared.queue.lock();
        queue.writes += 1;
        queue.done += u64::try_from(batch.len()).unwrap_or(u64::MAX);
        queue.stalled = false;
        if let Err(error) = written {
            tracing::warn!(%error, "{what} is lost from here on");
            queue.broken = true;
        }
        shared.tell_moved();
    }
    queue.finished = true;
    shared.tell_moved();
}

fn write_batch(file: &OwnedFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(file, bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(rustix::io::Errno::INTR) => {}
            // Somebody who shares it made it non-blocking.
            Err(rustix::io::Errno::AGAIN) => {
                match poll(&mut [PollFd::new(file, PollFlags::OUT)], None) {
                    Ok(_) | Err(rustix::io::Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use sluice_aio::{EventLoop, LoopConfig};

    use super::*;

    fn output() -> (QueuedOutput, io::PipeReader) {
        let (reader, writer) = io::pipe().unwrap();
        (QueuedOutput::start(writer.into(), "test").unwrap(), reader)
    }

    /// Runs a task that prints.
    fn run<T: 'static>(task: impl Future<Output = T> + 'static) -> T {
        let mut event_loop = EventLoop::new("test", &LoopConfig::default()).unwrap();
        event_loop.run_until(task).unwrap()
    }

    /// As a vCPU does.
    fn put(output: &QueuedOutput, byte: u8) {
        output.wait_for_room();
        output.send(byte);
    }

    #[test]
    fn what_is_sent_arrives_in_order_and_whole() {
        let (output, mut reader) = output();
        let sent: Vec<u8> = (0..=255).cycle().take(300_000).collect();
        let expected = sent.clone();
        let sender = std::thread::spawn(move || {
            for byte in sent {
                put(&output, byte);
            }
            assert_eq!(output.close(), 0);
        });
        let mut got = Vec::new();
        // The writer's end stays open until its thread ended.
        reader.read_to_end(&mut got).unwrap();
        sender.join().unwrap();
        assert!(got == expected);
    }

    #[test]
    fn reader_that_stands_still_costs_output_and_not_the_guest() {
        let (output, reader) = output();
        // Queue, pipe and batch in flight hold less than this; all of it must be accepted.
        let sent = 2 * LIMIT + (1 << 20);
        for _ in 0..sent {
            put(&output, b'x');
        }
        let lost = output.close();
        assert!(lost > 0 && lost < u64::try_from(sent).unwrap());
        drop(reader);
    }

    #[test]
    fn reader_that_is_gone_costs_output_only() {
        let (output, reader) = output();
        drop(reader);
        for _ in 0..3 * LIMIT {
            put(&output, b'x');
        }
        assert!(output.close() > 0);
    }

    #[test]
    fn a_text_is_there_when_its_printing_ends() {
        let (output, mut reader) = output();
        rustix::io::ioctl_fionbio(&reader, true).unwrap();
        run(async move {
            for text in ["one\n", "two\n"] {
                output.print(text).await;
                let mut read = [0; 8];
                assert_eq!(reader.read(&mut read).unwrap(), text.len());
                assert_eq!(&read[..text.len()], text.as_bytes());
            }
        });
    }

    #[test]
    fn printing_to_a_reader_that_stands_still_or_is_gone_comes_to_an_end() {
        for is_there in [true, false] {
            let (output, reader) = output();
            let reader = is_there.then_some(reader);
            let lost = run(async move {
                // Beyond what queue, pipe and batch in flight hold.
                let text = "x".repeat(LIMIT / 2);
                for _ in 0..8 {
                    output.print(&text).await;
                }
                output.close()
            });
            assert!(lost > 0);
            drop(reader);
        }
    }

    #[test]
    fn sending_does_not_wait() {
        let (output, reader) = output();
        for _ in 0..2 * LIMIT + (1 << 20) {
            output.send(b'x');
        }
        let queue = output.shared.queue.lock();
        assert!(queue.dropped > 0);
        assert!(!queue.stalled, "somebody waited until patience ran out");
        drop(queue);
        drop(reader);
    }
}
