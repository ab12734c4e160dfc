//! What a disk does about errors: the operator's `rerror=` and `werror=`.

use rustix::io::Errno;

use crate::event::{ErrorAction, IoOperation};
use crate::job::OnError;

/// A disk's error policy. The default is QEMU's: what can't be read is reported to the guest, and a
/// write for which there is no room stops the machine, so that room can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorPolicy {
    read: OnError,
    write: OnError,
}

impl ErrorPolicy {
    /// A policy for reads (`rerror`) and for everything else (`werror`). `Auto` is the default.
    #[must_use]
    pub fn new(read: OnError, write: OnError) -> Self {
        let or = |policy, default| match policy {
            OnError::Auto => default,
            given => given,
        };
        Self {
            read: or(read, OnError::Report),
            write: or(write, OnError::Enospc),
        }
    }

    fn of(self, operation: IoOperation) -> OnError {
        match operation {
            IoOperation::Read => self.read,
            IoOperation::Write => self.write,
        }
    }

    /// What to do about a failure.
    #[must_use]
    pub fn action(self, operation: IoOperation, error: Errno) -> ErrorAction {
        self.of(operation).action(error)
    }

    /// Whether an error of such an operation may stop the machine, so that it must be possible to
    /// repeat it.
    pub(super) fn may_stop(self, operation: IoOperation) -> bool {
        !matches!(self.of(operation), OnError::Report | OnError::Ignore)
    }

    /// Whether the disk has an I/O status to tell of.
    pub(super) fn has_status(self) -> bool {
        self.may_stop(IoOperation::Write) || self.read == OnError::Stop
    }
}

impl Default for ErrorPolicy {
    fn default() -> Self {
        Self::new(OnError::Auto, OnError::Auto)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_act_as_qemus_do() {
        use ErrorAction::{Ignore, Report, Stop};
        // Policy; action for a read and a write, each for no room and for other errors.
        let table = [
            (OnError::Report, [Report, Report, Report, Report]),
            (OnError::Ignore, [Ignore, Ignore, Ignore, Ignore]),
            (OnError::Stop, [Stop, Stop, Stop, Stop]),
            (OnError::Enospc, [Stop, Report, Stop, Report]),
            (OnError::Auto, [Report, Report, Stop, Report]),
        ];
        for (given, expected) in table {
            let policy = ErrorPolicy::new(given, given);
            let actions = [
                policy.action(IoOperation::Read, Errno::NOSPC),
                policy.action(IoOperation::Read, Errno::IO),
                policy.action(IoOperation::Write, Errno::NOSPC),
                policy.action(IoOperation::Write, Errno::IO),
            ];
            assert_eq!(actions, expected, "{given:?}");
        }
    }
}
