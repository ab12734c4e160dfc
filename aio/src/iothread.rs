//! [`IoThread`]: a thread that runs one event loop and nothing else.

use std::io;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use futures_channel::oneshot;
use parking_lot::Mutex;

use crate::context::AioContext;
use crate::event_loop::{EventLoop, LoopConfig, LoopError};

/// An object `iothread`: its loop serves the devices that are bound to it.
///
/// Dropping it ends the loop in order (tasks cancelled, kernel I/O awaited) and joins the thread. What hangs in the
/// kernel beyond the loop's [patience](crate::EndPatience) is left behind, and with it the thread: the kernel lets no
/// thread go while a file system does not answer what it has asked for by its ring. In its own thread, by a task of its loop, it can't wait: the loop ends after the turn, nobody waits
/// for it, and an error is logged.
#[derive(Debug)]
pub struct IoThread {
    context: AioContext,
    thread_id: u32,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    /// Closed when the loop has ended, which is before the thread has.
    ended: Mutex<mpsc::Receiver<()>>,
}

impl IoThread {
    /// Starts a thread named `id` with a loop of that name.
    ///
    /// # Errors
    /// The thread or its loop can't be made.
    pub fn spawn(id: &str, config: LoopConfig) -> Result<Self, LoopError> {
        let config = LoopConfig {
            alone: true,
            ..config
        };
        let (ready_sender, ready) = mpsc::sync_channel(1);
        let (stop, stopped) = oneshot::channel();
        let (ends, ended) = mpsc::channel();
        let name = id.to_owned();
        let thread = thread::Builder::new()
            // A client may send any string; the system's names end at a NUL.
            .name(id.replace('\0', "?"))
            .spawn(move || {
                // Dropped after the loop, also if that panics.
                let _ends: mpsc::Sender<()> = ends;
                let mut event_loop = match EventLoop::new(&name, &config) {
                    Ok(event_loop) => event_loop,
                    Err(error) => {
                        drop(ready_sender.send(Err(error)));
                        return;
                    }
                };
                let thread_id = rustix::thread::gettid()
                    .as_raw_nonzero()
                    .get()
                    .unsigned_abs();
                drop(ready_sender.send(Ok((event_loop.context(), thread_id))));
                // Either a stop was sent or the owner is gone: both end the loop.
                if let Err(error) = event_loop.run_until(stopped) {
                    tracing::error!(%error, "an iothread ended");
                }
            })
            .map_err(|source| LoopError {
                name: id.to_owned(),
                action: "start its thread",
                source,
            })?;
        let (context, thread_id) = ready.recv().unwrap_or_else(|_| {
            let source = io::Error::other("its thread died");
            Err(LoopError {
                name: id.to_owned(),
                action: "start",
                source,
            })
        })?;
        Ok(Self {
            context,
            thread_id,
            stop: Some(stop),
            thread: Some(thread),
            ended: Mutex::new(ended),
        })
    }

    /// The loop's handle.
    #[must_use]
    pub fn context(&self) -> &AioContext {
        &self.context
    }

    /// The kernel's id of the thread.
    #[must_use]
    pub fn thread_id(&self) -> u32 {
        self.thread_id
    }
}

impl Drop for IoThread {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            if thread.thread().id() == thread::current().id() {
                let id = self.context.name();
                tracing::error!(id, "an iothread was dropped by a task of its own loop");
                return;
            }
            // Nothing is sent.
            let _closed = self.ended.get_mut().recv();
            if self.context.0.has_left() {
                let id = self.context.name();
                tracing::warn!(
                    id,
                    "an iothread's file system hangs; its thread is left behind"
                );
                return;
            }
            // A panic of the loop itself was logged by the thread's own handler.
            drop(thread.join());
        }
    }
}
