//! [`Reading`]: a read of a disk's medium, begun and on its way.
//!
//! Made for a request that has its token and its turn, in the loop that will poll it. As long as the token
//! is out, no section lets the graph change under the read.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use sluice_aio::current::Transfer;
use sluice_aio::{IoBuffer, Token};

use super::Backend;
use crate::driver::BlockFuture;
use crate::error::Result;

/// See the [module](self). It is small, for it is copied into the future of whoever waits for it.
pub(super) enum Reading {
    /// Nothing but this: no node is needed for it, and none is held on to.
    Transfer(Transfer),
    /// By the root's driver.
    Driver(BlockFuture<'static, ()>),
}

impl Future for Reading {
    type Output = Result<()>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        match self.get_mut() {
            Self::Transfer(transfer) => {
                let ended = Pin::new(transfer).poll(cx);
                ended.map(|result| Ok(result.map(drop)?))
            }
            Self::Driver(read) => Pin::new(read).poll(cx),
        }
    }
}

impl Backend {
    /// Begins a read whose turn it is, and that somebody else counts.
    ///
    /// # Errors
    /// No medium.
    pub(super) fn begin_read(
        &self,
        token: &Token,
        offset: u64,
        buffer: IoBuffer,
    ) -> Result<Reading> {
        self.on_root(token, |root| match root.transfer(offset, buffer) {
            Ok(transfer) => Reading::Transfer(transfer),
            Err(buffer) => {
                let root = Arc::clone(root);
                let read = async move { root.read_by_driver(offset, buffer).await };
                Reading::Driver(BlockFuture::new(read))
            }
        })
    }
}
