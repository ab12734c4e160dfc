//! [`Home`]: the loop in which something works, with what keeps that loop's thread.
//!
//! Nodes and jobs have one. As long as any of them holds its home, whoever owns the thread finds that it is
//! in use (`object-del` of an iothread is refused).

use std::any::Any;
use std::sync::Arc;

use sluice_aio::AioContext;

/// See the [module](self). Two are equal if the loop is the same.
#[derive(Clone)]
pub struct Home {
    context: AioContext,
    /// Of a thread that nobody may take away; none of one that is there anyway.
    #[expect(dead_code, reason = "it is held, not looked at")]
    keeper: Option<Arc<dyn Any + Send + Sync>>,
}

impl Home {
    /// A loop whose thread stays while `keeper` is held.
    #[must_use]
    pub fn kept(context: AioContext, keeper: Arc<dyn Any + Send + Sync>) -> Self {
        Self {
            context,
            keeper: Some(keeper),
        }
    }

    /// The loop.
    #[must_use]
    pub fn context(&self) -> &AioContext {
        &self.context
    }

    /// The same loop, whose thread need not stay.
    pub(crate) fn unkept(&self) -> Self {
        Self::from(&self.context)
    }
}

impl From<&AioContext> for Home {
    /// A loop that ends with the machine, or that somebody else keeps.
    fn from(context: &AioContext) -> Self {
        Self {
            context: context.clone(),
            keeper: None,
        }
    }
}

impl std::fmt::Debug for Home {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Home({})", self.context.name())
    }
}

impl PartialEq for Home {
    fn eq(&self, other: &Self) -> bool {
        self.context == other.context
    }
}
