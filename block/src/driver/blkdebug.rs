//! `blkdebug`: a filter that holds requests and events at breakpoints and injects errors.
//!
//! A breakpoint is set on an event under a tag; the next time the event happens, whoever caused it
//! is held until the tag is resumed. A held request is *in flight*: a drained section of the node
//! waits for it. That is how a test stands exactly inside a window of the mirror's pivot, and how
//! it shows what happens to a device that would not wait.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use sluice_aio::IoBuffer;

use super::{BlockFuture, Driver, Edge, ImageInfo, RequestFlags};
use crate::error::{BlockError, Result};

/// What a breakpoint or an error rule can be set on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DebugEvent {
    /// A read reaches the node.
    ReadAio,
    /// A write reaches the node.
    WriteAio,
    /// A write of zeroes reaches the node.
    PwriteZero,
    /// A discard reaches the node.
    Pdiscard,
    /// A flush reaches the node.
    FlushToDisk,
    /// A mirror onto this node has found its bitmap clean inside the last section, and is about to
    /// swap the root. Sluice's own event.
    PivotClean,
    /// A mirror onto this node has swapped the root and is about to end the section. Sluice's own.
    PivotSwapped,
}

/// An error to inject (`inject-error` in the options).
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields)]
pub struct InjectError {
    /// On which event.
    pub event: DebugEvent,
    /// Which error; EIO if not given.
    #[serde(default = "default_errno")]
    pub errno: i32,
    /// Only requests that cover this 512-byte sector.
    #[serde(default)]
    pub sector: Option<u64>,
    /// Only the first time.
    #[serde(default)]
    pub once: bool,
}

fn default_errno() -> i32 {
    libc::EIO
}

#[derive(Debug, Default)]
struct Breakpoint {
    event: Option<DebugEvent>,
    /// Those who stand at it.
    held: Vec<Waker>,
    hits: u64,
    /// Those who wait for somebody to arrive.
    watchers: Vec<Waker>,
}

/// See the [module](self).
#[derive(Debug)]
pub struct Blkdebug {
    image: Edge,
    breakpoints: Mutex<HashMap<String, Breakpoint>>,
    errors: Mutex<Vec<InjectError>>,
}

/// Bytes of a sector in error rules.
const SECTOR: u64 = 512;

impl Blkdebug {
    /// A filter over `image` with error rules.
    #[must_use]
    pub fn new(image: Edge, errors: Vec<InjectError>) -> Self {
        Self {
            image,
            breakpoints: Mutex::default(),
            errors: Mutex::new(errors),
        }
    }

    /// Holds the next request or event of this kind under `tag`.
    ///
    /// # Errors
    /// The tag is in use.
    pub fn set_break(&self, event: DebugEvent, tag: &str) -> Result<()> {
        let mut breakpoints = self.breakpoints.lock();
        if breakpoints.contains_key(tag) {
            return Err(BlockError::Refused(format!(
                "Breakpoint '{tag}' exists already"
            )));
        }
        let breakpoint = Breakpoint {
            event: Some(event),
            ..Breakpoint::default()
        };
        breakpoints.insert(tag.to_owned(), breakpoint);
        Ok(())
    }

    /// Adds an error rule, behind those that there are.
    pub fn inject(&self, rule: InjectError) {
        self.errors.lock().push(rule);
    }

    /// Drops all error rules.
    pub fn clear_errors(&self) {
        self.errors.lock().clear();
    }

    /// Lets go whoever is held under `tag` and removes the breakpoint.
    ///
    /// # Errors
    /// No such tag.
    pub fn resume(&self, tag: &str) -> Result<()> {
        let removed = self
            .breakpoints
            .lock()
            .remove(tag)
            .ok_or_else(|| not_found(tag))?;
        for waker in removed.held.into_iter().chain(removed.watchers) {
            waker.wake();
        }
        Ok(())
    }

    /// Waits until somebody is held under `tag`.
    ///
    /// # Errors
    /// No such tag (any more).
    pub async fn wait_break(&self, tag: &str) -> Result<()> {
        std::future::poll_fn(|cx| {
            let mut breakpoints = self.breakpoints.lock();
            match breakpoints.get_mut(tag) {
                None => Poll::Ready(Err(not_found(tag))),
                Some(breakpoint) if breakpoint.hits > 0 => Poll::Ready(Ok(())),
                Some(breakpoint) => {
                    breakpoint.watchers.push(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// Stands at the breakpoint of `event`, if there is one that is not taken yet.
    fn pass(&self, event: DebugEvent) -> Held<'_> {
        let mut breakpoints = self.breakpoints.lock();
        let hit = breakpoints
            .iter_mut()
            .find(|(_, breakpoint)| breakpoint.event == Some(event) && breakpoint.hits == 0);
        let tag = hit.map(|(tag, breakpoint)| {
            breakpoint.hits += 1;
            for waker in breakpoint.watchers.drain(..) {
                waker.wake();
            }
            tag.clone()
        });
        Held { driver: self, tag }
    }

    fn injected(&self, event: DebugEvent, offset: u64, len: u64) -> Result<()> {
        let mut errors = self.errors.lock();
        let hit = errors.iter().position(|rule| {
            let covers = |sector: u64| {
                let start = sector.saturating_mul(SECTOR);
                start < offset.saturating_add(len) && offset < start.saturating_add(SECTOR)
            };
            rule.event == event && rule.sector.is_none_or(covers)
        });
        let Some(index) = hit else { return Ok(()) };
        let errno = errors[index].errno;
        if errors[index].once {
            errors.remove(index);
        }
        Err(io::Error::from_raw_os_error(errno).into())
    }

    async fn reached(&self, event: DebugEvent, offset: u64, len: u64) -> Result<()> {
        self.pass(event).await;
        self.injected(event, offset, len)
    }
}

fn not_found(tag: &str) -> BlockError {
    BlockError::Refused(format!("Breakpoint '{tag}' not found"))
}

/// Waits until a breakpoint is gone.
struct Held<'a> {
    driver: &'a Blkdebug,
    tag: Option<String>,
}

impl Future for Held<'_> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(tag) = &self.tag else {
            return Poll::Ready(());
        };
        match self.driver.breakpoints.lock().get_mut(tag) {
            None => Poll::Ready(()),
            Some(breakpoint) => {
                breakpoint.held.push(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Driver for Blkdebug {
    fn format_name(&self) -> &'static str {
        "blkdebug"
    }

    fn filtered(&self) -> Option<&Edge> {
        Some(&self.image)
    }

    fn read(&self, offset: u64, buffer: IoBuffer) -> BlockFuture<'_, ()> {
        BlockFuture::new(async move {
            self.reached(DebugEvent::ReadAio, offset, buffer.len() as u64)
                .await?;
            self.image.node().read(offset, buffer).await
        })
    }

    fn write(&self, offset: u64, buffer: IoBuffer, flags: RequestFlags) -> BlockFuture<'_, ()> {
        BlockFuture::new(async move {
            self.reached(DebugEvent::WriteAio, offset, buffer.len() as u64)
                .await?;
            self.image.node().write(offset, buffer, flags).await
        })
    }

    fn write_zeroes(&self, offset: u64, len: u64, flags: RequestFlags) -> BlockFuture<'_, ()> {
        BlockFuture::new(async move {
            self.reached(DebugEvent::PwriteZero, offset, len).await?;
            self.image.node().write_zeroes(offset, len, flags).await
        })
    }

    fn discard(&self, offset: u64, len: u64) -> BlockFuture<'_, ()> {
        BlockFuture::new(async move {
            self.reached(DebugEvent::Pdiscard, offset, len).await?;
            self.image.node().discard(offset, len).await
        })
    }

    fn flush(&self) -> BlockFuture<'_, ()> {
        BlockFuture::new(async move {
            self.reached(DebugEvent::FlushToDisk, 0, 0).await?;
            self.image.node().flush().await
        })
    }

    fn info(&self) -> ImageInfo {
        let inner = self.image.node().info();
        ImageInfo {
            filename: format!("blkdebug::{}", inner.filename),
            ..inner
        }
    }

    fn debug_event(&self, event: DebugEvent) -> BlockFuture<'_, ()> {
        BlockFuture::new(async move {
            self.reached(event, 0, 0).await?;
            self.image.node().debug_event(event).await
        })
    }

    fn as_blkdebug(&self) -> Option<&Blkdebug> {
        Some(self)
    }
}
