//! The error reply of QMP: a class, which programs act on, and a description, which people read.

use serde::Serialize;
use sluice_block::BlockError;
use sluice_block::driver::throttle::{LimitsError, ThrottleError};
use sluice_block::job;

use super::input::InputError;
use super::json::JsonError;
use crate::control::ControlError;
use crate::iothreads::IoThreadError;

/// The error classes of the protocol; there are no others (QEMU's `qapi/error.json`).
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
pub enum ErrorClass {
    /// Anything without a class of its own.
    GenericError,
    /// There is no such command, or not in the session's present mode.
    CommandNotFound,
    /// There is no such block job.
    DeviceNotActive,
    /// There is no such device.
    DeviceNotFound,
}

/// Why a command failed.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct QmpError {
    /// What a program acts on.
    pub class: ErrorClass,
    /// What a person reads.
    pub desc: String,
}

impl QmpError {
    /// An error of class `GenericError`.
    pub fn generic(desc: impl Into<String>) -> Self {
        Self {
            class: ErrorClass::GenericError,
            desc: desc.into(),
        }
    }

    /// An error of class `CommandNotFound`.
    pub fn command_not_found(desc: impl Into<String>) -> Self {
        Self {
            class: ErrorClass::CommandNotFound,
            desc: desc.into(),
        }
    }
}

/// Errors that have no class of their own.
macro_rules! generic {
    ($($error:ty),* $(,)?) => {
        $(impl From<$error> for QmpError {
            fn from(error: $error) -> Self {
                Self::generic(error.to_string())
            }
        })*
    };
}

generic!(
    JsonError,
    InputError,
    ControlError,
    IoThreadError,
    LimitsError,
    ThrottleError,
    job::CreateError,
    sluice_aio::Cancelled,
);

impl From<BlockError> for QmpError {
    fn from(error: BlockError) -> Self {
        Self::generic(match error.way_out() {
            Some(way_out) => format!("{error}; {way_out}"),
            None => error.to_string(),
        })
    }
}

impl From<job::VerbError> for QmpError {
    fn from(error: job::VerbError) -> Self {
        let class = match error.class() {
            job::ErrorClass::Generic => ErrorClass::GenericError,
            job::ErrorClass::DeviceNotActive => ErrorClass::DeviceNotActive,
        };
        Self {
            class,
            desc: error.to_string(),
        }
    }
}
