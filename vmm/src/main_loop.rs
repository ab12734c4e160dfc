//! The main thread's loop: an `event-manager` with the main [`EventLoop`], the signals and the
//! console as subscribers.
//!
//! All that changes the machine as a whole happens in tasks of the main [`EventLoop`]: it is nested
//! here by its epoll instance, level triggered, and takes one turn whenever it has something to do.

use std::cell::RefCell;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use futures_util::future;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use sluice_aio::{EventLoop, LoopError, current};
use thiserror::Error;

/// Why the loop cannot go on.
#[derive(Debug, Error)]
pub enum MainLoopError {
    /// The event manager.
    #[error("the main loop cannot wait: {0:?}")]
    Manager(event_manager::Error),
    /// The main event loop of the block layer.
    #[error(transparent)]
    Aio(#[from] LoopError),
    /// Signals cannot be caught.
    #[error("signal {signal} cannot be caught: {source}")]
    Signal {
        /// Its number.
        signal: i32,
        /// The host's answer.
        source: io::Error,
    },
}

/// The loop. Lives on the main thread.
pub struct MainLoop {
    manager: EventManager<Box<dyn MutEventSubscriber>>,
    failure: Rc<RefCell<Option<LoopError>>>,
}

impl MainLoop {
    /// A loop around `aio`.
    ///
    /// # Errors
    /// [`MainLoopError::Manager`] when the host has no epoll instance left.
    pub fn new(aio: EventLoop) -> Result<Self, MainLoopError> {
        let manager = EventManager::new().map_err(MainLoopError::Manager)?;
        let failure = Rc::new(RefCell::new(None));
        let mut main_loop = Self {
            manager,
            failure: Rc::clone(&failure),
        };
        main_loop.subscribe(Nested { aio, failure });
        Ok(main_loop)
    }

    /// Adds a source of events.
    pub fn subscribe(&mut self, subscriber: impl MutEventSubscriber + 'static) {
        self.manager.add_subscriber(Box::new(subscriber));
    }

    /// Calls `on_signal` with the number of each of `signals` that comes or has come.
    pub fn watch_signals(&mut self, signals: Signals, on_signal: impl Fn(i32) + Clone + 'static) {
        for (signal, caught) in signals.0 {
            let on_signal = on_signal.clone();
            self.subscribe(Signal {
                caught,
                on_signal: Box::new(move || on_signal(signal)),
            });
        }
    }

    /// Runs until `done` says so; it is asked after every round of events.
    ///
    /// # Errors
    /// [`MainLoopError`] when the host refuses to wait.
    pub fn run_until(&mut self, mut done: impl FnMut() -> bool) -> Result<(), MainLoopError> {
        while !done() {
            // Interruptions come back as a round without events.
            self.manager.run().map_err(MainLoopError::Manager)?;
            if let Some(error) = self.failure.borrow_mut().take() {
                return Err(error.into());
            }
        }
        Ok(())
    }
}

/// The signals that ask the process to end, caught from the beginning on: one that comes while the
/// machine is being built is seen to when the main loop runs.
pub struct Signals(Vec<(i32, UnixStream)>);

impl Signals {
    /// Catches them. The signal that would end the process for a file that grew too large is
    /// caught as well, and has no effect.
    ///
    /// # Errors
    /// [`MainLoopError::Signal`].
    pub fn catch() -> Result<Self, MainLoopError> {
        survive_file_size_limit()?;
        let ending = [SIGINT, SIGTERM, SIGHUP, SIGQUIT];
        let caught = ending.map(|signal| match catch(signal) {
            Ok(stream) => Ok((signal, stream)),
            Err(source) => Err(MainLoopError::Signal { signal, source }),
        });
        caught.into_iter().collect::<Result<_, _>>().map(Self)
    }
}

impl Signals {
    /// Waits until one of them has come, and leaves it to be seen to. In a task of a loop.
    pub async fn arrival(&self) {
        let arriving = self.0.iter().map(|(_, caught)| current::readable(caught));
        // One that can't be waited for must not end the process.
        let arriving = arriving.map(|arrival| async {
            if arrival.await.is_err() {
                std::future::pending::<()>().await;
            }
        });
        future::select_all(arriving.map(Box::pin)).await;
    }
}

/// Keeps the process alive when a file would grow beyond its limit (`ulimit -f`): the system call
/// fails with EFBIG, as any other error of a file.
fn survive_file_size_limit() -> Result<(), MainLoopError> {
    let signal = libc::SIGXFSZ;
    // Caught rather than ignored, which would be inherited.
    signal_hook::flag::register(signal, Arc::default())
        .map(drop)
        .map_err(|source| MainLoopError::Signal { signal, source })
}

/// The main event loop of the block layer, nested.
struct Nested {
    aio: EventLoop,
    failure: Rc<RefCell<Option<LoopError>>>,
}

impl MutEventSubscriber for Nested {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::new_raw(self.aio.as_raw_fd(), EventSet::IN)) {
            tracing::error!(?error, "the main event loop cannot be watched");
        }
        // What was spawned before this has made it readable already.
    }

    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        if let Err(error) = self.aio.dispatch() {
            *self.failure.borrow_mut() = Some(error);
        }
    }
}

fn catch(signal: i32) -> io::Result<UnixStream> {
    let (caught, sender) = UnixStream::pair()?;
    caught.set_nonblocking(true)?;
    signal_hook::low_level::pipe::register(signal, sender)?;
    Ok(caught)
}

struct Signal {
    caught: UnixStream,
    on_signal: Box<dyn Fn()>,
}

impl MutEventSubscriber for Signal {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::new(&self.caught, EventSet::IN)) {
            tracing::error!(?error, "a signal cannot be watched");
        }
    }

    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        let mut bytes = [0; 16];
        if matches!(self.caught.read(&mut bytes), Ok(1..)) {
            (self.on_signal)();
        }
    }
}
