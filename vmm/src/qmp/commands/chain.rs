//! `block-stream` and `block-commit`.

use std::sync::Arc;

use sluice_block::chain::{self, BlockCommit, BlockStream, CommitError};

use super::block::refuse_disk_name;
use super::{Done, Monitor};
use crate::qmp::error::{ErrorClass, QmpError};

pub(super) async fn block_stream(
    monitor: Arc<Monitor>,
    arguments: BlockStream,
) -> Result<Done, QmpError> {
    if let Some(name) = &arguments.filter_node_name {
        refuse_disk_name(&monitor, name)?;
    }
    chain::block_stream(&monitor.graph, &arguments, &monitor.main).await?;
    Ok(Done {})
}

pub(super) async fn block_commit(
    monitor: Arc<Monitor>,
    arguments: BlockCommit,
) -> Result<Done, QmpError> {
    if let Some(name) = &arguments.filter_node_name {
        refuse_disk_name(&monitor, name)?;
    }
    let started = chain::block_commit(&monitor.graph, &arguments, &monitor.main).await;
    started.map_err(|error| match error {
        CommitError::DeviceNotFound(_) => QmpError {
            class: ErrorClass::DeviceNotFound,
            desc: error.to_string(),
        },
        CommitError::Other(error) => error.into(),
    })?;
    Ok(Done {})
}
