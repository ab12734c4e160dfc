//! `blkdebug`: a filter that holds requests and events at breakpoints, injects errors and delays,
//! and can ask for alignment and limits as awkward hardware does.
//!
//! A held request is *in flight*: a drained section of the node waits for it. That is how a test
//! stands exactly inside a window of the mirror's pivot, and how it shows what happens to a device
//! that would not wait. Requests that reach the node are events themselves; in QEMU the format
//! above tells of them, so here a node needs no format above it.

mod breakpoints;
mod config;
mod event;
mod rules;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use parking_lot::Mutex;
use sluice_aio::{IoBuffer, current};

use super::{BlockFuture, BlockStatus, Driver, Edge, ImageInfo, Limits, RequestFlags, Role};
use crate::error::{BlockError, Result};
use crate::options::{BlkdebugNode, BlockPermission};
use crate::permission::{Access, Permissions};
use breakpoints::Breakpoints;
pub use event::{DebugEvent, IoType};
pub use rules::{Delay, InjectError, SetState};
use rules::{Rules, Span};

/// The greatest limit that can be asked for, as in QEMU.
const GREATEST: u64 = 0x7fff_fffe;

/// What the options and the rules file say.
#[derive(Debug)]
pub(crate) struct Settings {
    rules: Rules,
    config: Option<PathBuf>,
    /// What is asked for, where it differs from the child's.
    limits: Wanted,
    take: Permissions,
    unshare: Permissions,
}

/// The limits by their names in the options; `None` leaves the child's.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    align: Option<u64>,
    max_transfer: Option<u64>,
    opt_write_zero: Option<u64>,
    max_write_zero: Option<u64>,
    opt_discard: Option<u64>,
    max_discard: Option<u64>,
}

impl Settings {
    /// Reads the rules file, if there is one: blocks.
    ///
    /// # Errors
    /// A mistake in the file or in a rule.
    pub(crate) fn load(node: &BlkdebugNode) -> Result<Self> {
        let mut rules = match &node.config {
            Some(path) => config::read(path)?,
            None => config::Config::default(),
        };
        rules.errors.extend(node.inject_error.iter().cloned());
        rules.changes.extend(node.set_state.iter().cloned());
        let permissions =
            |names: &[BlockPermission]| names.iter().copied().map(Permissions::from).collect();
        Ok(Self {
            rules: Rules::new(rules.errors, rules.changes, node.x_delay.clone())?,
            config: node.config.clone(),
            limits: Wanted {
                align: node.align,
                max_transfer: node.max_transfer.map(u64::from),
                opt_write_zero: node.opt_write_zero.map(u64::from),
                max_write_zero: node.max_write_zero.map(u64::from),
                opt_discard: node.opt_discard.map(u64::from),
                max_discard: node.max_discard.map(u64::from),
            },
            take: permissions(&node.take_child_perms),
            unshare: permissions(&node.unshare_child_perms),
        })
    }
}

impl Wanted {
    /// # Errors
    /// The limits don't fit each other, or the alignment below.
    fn check(self, below: Limits) -> Result<()> {
        let refused = |name: &str, value: u64| {
            BlockError::Refused(format!("Cannot meet constraints with {name} {value}"))
        };
        let fits = |name, value: Option<u64>, unit: u64| match value {
            Some(value) if value > GREATEST || value % unit.max(1) != 0 => {
                Err(refused(name, value))
            }
            _ => Ok(()),
        };
        if let Some(align) = self.align
            && (align > GREATEST || !align.is_power_of_two())
        {
            return Err(refused("align", align));
        }
        let align = self.align.unwrap_or(0).max(below.request_alignment.into());
        fits("max-transfer", self.max_transfer, align)?;
        fits("opt-write-zero", self.opt_write_zero, align)?;
        let unit = self.opt_write_zero.unwrap_or(0).max(align);
        fits("max-write-zero", self.max_write_zero, unit)?;
        fits("opt-discard", self.opt_discard, align)?;
        let unit = self.opt_discard.unwrap_or(0).max(align);
        fits("max-discard", self.max_discard, unit)
    }

    fn over(self, below: Limits) -> Limits {
        let small = |value: Option<u64>, below: u32| match value {
            Some(value) if value != 0 => u32::try_from(value).unwrap_or(below),
            _ => below,
        };
        // Zero is no limit, as in QEMU.
        let most = |value: Option<u64>, below| value.filter(|value| *value != 0).or(below);
        Limits {
            request_alignment: small(self.align, below.request_alignment)
                .max(below.request_alignment),
            max_transfer: most(self.max_transfer, below.max_transfer),
            write_zeroes_alignment: small(self.opt_write_zero, below.write_zeroes_alignment),
            max_write_zeroes: most(self.max_write_zero, below.max_write_zeroes),
            discard_alignment: small(self.opt_discard, below.discard_alignment),
            max_discard: most(self.max_discard, below.max_discard),
        }
    }
}

/// See the [module](self). Any thread.
#[derive(Debug)]
pub struct Blkdebug {
    image: Edge,
    breakpoints: Breakpoints,
    rules: Mutex<Rules>,
    config: Option<PathBuf>,
    limits: Wanted,
    take: Permissions,
    unshare: Permissions,
}

impl Blkdebug {
    /// A filter over `image`.
    ///
    /// # Errors
    /// The limits that are asked for don't fit each other, or the image.
    pub(crate) fn new(image: Edge, settings: Settings) -> Result<Self> {
        settings.limits.check(image.node().driver().limits())?;
        Ok(Self {
            image,
            breakpoints: Breakpoints::default(),
            rules: Mutex::new(settings.rules),
            config: settings.config,
            limits: settings.limits,
            take: settings.take,
            unshare: settings.unshare,
        })
    }

    /// Holds the next request or event of this kind under `tag`.
    ///
    /// # Errors
    /// The tag is in use.
    pub fn set_break(&self, event: DebugEvent, tag: &str) -> Result<()> {
        self.breakpoints.set(event, tag)
    }

    /// Removes the breakpoint `tag`, and lets go whoever is held under it.
    ///
    /// # Errors
    /// No such tag.
    pub fn remove_break(&self, tag: &str) -> Result<()> {
        self.breakpoints.remove(tag)
    }

    /// Lets go whoever is held under `tag`.
    ///
    /// # Errors
    /// Nobody is.
    pub fn resume(&self, tag: &str) -> Result<()> {
        self.breakpoints.resume(tag, 0)
    }

    /// Lets the request that is held under `tag` fail with `errno`.
    ///
    /// # Errors
    /// Nobody is held under it.
    pub fn fail(&self, tag: &str, errno: i32) -> Result<()> {
        self.breakpoints.resume(tag, errno)
    }

    /// Whether somebody is held under `tag` now.
    #[must_use]
    pub fn is_suspended(&self, tag: &str) -> bool {
        self.breakpoints.is_suspended(tag)
    }

    /// Waits until somebody is held under `tag`.
    ///
    /// # Errors
    /// No such tag (any more).
    pub async fn wait_break(&self, tag: &str) -> Result<()> {
        self.breakpoints.wait(tag).await
    }

    /// Adds an error rule, behind those that there are.
    pub fn inject(&self, rule: InjectError) {
        self.rules.lock().add(rule);
    }

    /// Drops all error rules.
    pub fn clear_errors(&self) {
        self.rules.lock().clear_errors();
    }

    /// Something happens: rules change, who comes may be held, or kept for a while.
    async fn happens(&self, event: DebugEvent, span: Span) -> Result<()> {
        let delay = self.rules.lock().happens(event, span);
        if !delay.is_zero() {
            current::sleep(delay).await;
        }
        self.breakpoints.pass(event).await
    }

    /// Fails the request, if a rule says so.
    async fn check(&self, iotype: IoType, span: Span) -> Result<()> {
        let injected = self.rules.lock().check(iotype, span);
        let Some(injected) = injected else {
            return Ok(());
        };
        if !injected.immediately {
            current::yield_now().await;
        }
        Err(injected.into())
    }
}

impl From<BlockPermission> for Permissions {
    fn from(permission: BlockPermission) -> Self {
        match permission {
            BlockPermission::ConsistentRead => Self::CONSISTENT_READ,
            BlockPermission::Write => Self::WRITE,
            BlockPermission::WriteUnchanged => Self::WRITE_UNCHANGED,
            BlockPermission::Resize => Self::RESIZE,
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

    fn limits(&self) -> Limits {
        self.limits.over(self.image.node().driver().limits())
    }

    fn read(&self, offset: u64, buffer: IoBuffer) -> BlockFuture<'_, ()> {
        BlockFuture::new(async move {
            let len = buffer.len() as u64;
            let span = Span { offset, len };
            self.happens(DebugEvent::ReadAio, span).await?;
            self.check(IoType::Read, span).await?;
            self.image.node().read(offset, buffer).await
        })
    }

    fn write(&self, offset: u64, buffer: IoBuffer, flags: RequestFlags) -> BlockFuture<'_, ()> {
        BlockFuture::new(async move {
            let len = buffer.len() as u64;
            let span = Span { offset, len };
            self.happens(DebugEvent::WriteAio, span).await?;
            self.happens(DebugEvent::Pwritev, span).await?;
            self.check(IoType::Write, span).await?;
            let result = self.image.node().write(offset, buffer, flags).await;
            self.happens(DebugEvent::PwritevDone, span).await?;
            result
        })
    }

    fn write_zeroes(&self, offset: u64, len: u64, flags: RequestFlags) -> BlockFuture<'_, ()> {
        BlockFuture::new(async move {
            let span = Span { offset, len };
            self.happens(DebugEvent::PwritevZero, span).await?;
            self.check(IoType::WriteZeroes, span).await?;
            let result = self.image.node().write_zeroes(offset, len, flags).await;
            self.happens(DebugEvent::PwritevDone, span).await?;
            result
        })
    }

    fn discard(&self, offset: u64, len: u64) -> BlockFuture<'_, ()> {
        BlockFuture::new(async move {
            let span = Span { offset, len };
            self.happens(DebugEvent::Pdiscard, span).await?;
            self.check(IoType::Discard, span).await?;
            self.image.node().discard(offset, len).await
        })
    }

    fn flush(&self) -> BlockFuture<'_, ()> {
        BlockFuture::new(async move {
            self.happens(DebugEvent::FlushToOs, Span::default()).await?;
            self.happens(DebugEvent::FlushToDisk, Span::default())
                .await?;
            self.check(IoType::Flush, Span::default()).await?;
            self.image.node().flush().await
        })
    }

    fn block_status(&self, offset: u64, len: u64) -> BlockFuture<'_, BlockStatus> {
        BlockFuture::new(async move {
            let span = Span { offset, len };
            self.happens(DebugEvent::BlockStatus, span).await?;
            self.check(IoType::BlockStatus, span).await?;
            self.image.node().layer_status(offset, len).await
        })
    }

    fn info(&self) -> ImageInfo {
        let inner = self.image.node().info();
        let config = self.config.as_deref().unwrap_or_else(|| "".as_ref());
        ImageInfo {
            filename: format!("blkdebug:{}:{}", config.display(), inner.filename),
            ..inner
        }
    }

    fn actual_size(&self) -> BlockFuture<'_, Option<u64>> {
        BlockFuture::new(async move {
            self.happens(DebugEvent::ActualSize, Span::default())
                .await?;
            Ok(self.image.node().look().await)
        })
    }

    fn debug_event(&self, event: DebugEvent) -> BlockFuture<'_, ()> {
        BlockFuture::new(async move {
            self.happens(event, Span::default()).await?;
            let injected = self.rules.lock().check_event(event);
            if let Some(injected) = injected {
                return Err(injected.into());
            }
            self.image.node().debug_event(event).await
        })
    }

    fn as_blkdebug(&self) -> Option<&Blkdebug> {
        Some(self)
    }

    fn child_access(&self, _role: Role, above: Access) -> Access {
        Access {
            used: above.used | self.take,
            shared: above.shared - self.unshare,
        }
    }
}
