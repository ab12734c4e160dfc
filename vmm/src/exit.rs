//! How the process ends: one exit status for every way, and one line that names it.
//!
//! 0 is an end that somebody asked for. Even numbers are failures, each its own kind. Odd numbers
//! come from the guest alone, through the debug-exit port.

use std::fmt;
use std::process::ExitCode;

/// The ways to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// The guest powered off, or reset under `--no-reboot`; or QMP, the console's escape or a
    /// signal asked the process to end.
    Success,
    /// The command line is wrong.
    Usage,
    /// A kernel, an initrd or a command line cannot be booted.
    BootImage,
    /// `/dev/kvm` is missing, forbidden or too old.
    NoKvm,
    /// Something the machine needs from the host cannot be had: a disk, a socket, memory.
    Setup,
    /// The guest reported that it panicked.
    GuestPanic,
    /// The guest's CPU shut down: a triple fault.
    TripleFault,
    /// KVM failed while the guest ran.
    KvmError,
    /// A defect of this program.
    Internal,
    /// The guest stored this value into the debug-exit port.
    DebugExit(u32),
}

impl ExitStatus {
    /// Every status but the debug-exit port's.
    pub const ALL: [Self; 9] = [
        Self::Success,
        Self::Usage,
        Self::BootImage,
        Self::NoKvm,
        Self::Setup,
        Self::GuestPanic,
        Self::TripleFault,
        Self::KvmError,
        Self::Internal,
    ];

    /// The number the parent process sees.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Usage => 2,
            Self::BootImage => 4,
            Self::NoKvm => 6,
            Self::Setup => 8,
            Self::GuestPanic => 10,
            Self::TripleFault => 12,
            Self::KvmError => 14,
            Self::Internal => 16,
            Self::DebugExit(value) => (value.to_le_bytes()[0] << 1) | 1,
        }
    }

    /// A few words for `--help`.
    #[must_use]
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Success => {
                "the guest powered off (or reset, with --no-reboot), or was told to end"
            }
            Self::Usage => "the command line is wrong",
            Self::BootImage => "the kernel or initrd cannot be booted",
            Self::NoKvm => "/dev/kvm is missing, forbidden or too old",
            Self::Setup => "a disk, a socket, memory or another thing of the host cannot be had",
            Self::GuestPanic => "the guest panicked",
            Self::TripleFault => "the guest's CPU shut down (triple fault)",
            Self::KvmError => "KVM failed while the guest ran",
            Self::Internal => "a defect of sluice",
            Self::DebugExit(_) => "the guest stored N in the debug-exit port: the status is 2*N+1",
        }
    }

    /// The table of all statuses, one a line, for `--help`.
    #[must_use]
    pub fn table() -> String {
        let mut table = String::from("Exit status:\n");
        for status in Self::ALL {
            table.push_str(&format!("  {:>3}  {}\n", status.code(), status.meaning()));
        }
        table.push_str(&format!("  odd  {}\n", Self::DebugExit(0).meaning()));
        table
    }
}

impl From<ExitStatus> for ExitCode {
    fn from(status: ExitStatus) -> Self {
        Self::from(status.code())
    }
}

/// An end with its reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// What the parent process sees.
    pub status: ExitStatus,
    /// The line for the user; none when there is nothing to say.
    pub reason: Option<String>,
}

impl Exit {
    /// An end with something to say.
    pub fn because(status: ExitStatus, reason: impl fmt::Display) -> Self {
        Self {
            status,
            reason: Some(reason.to_string()),
        }
    }

    /// An end that needs no word.
    #[must_use]
    pub const fn quiet(status: ExitStatus) -> Self {
        Self {
            status,
            reason: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn codes_are_distinct_and_leave_the_odd_ones_to_the_guest() {
        let codes: BTreeSet<u8> = ExitStatus::ALL.iter().map(|status| status.code()).collect();
        assert_eq!(codes.len(), ExitStatus::ALL.len());
        assert!(codes.iter().all(|code| code % 2 == 0));
        assert_eq!(ExitStatus::DebugExit(0).code(), 1);
        assert_eq!(ExitStatus::DebugExit(0x10).code(), 0x21);
        assert_eq!(ExitStatus::DebugExit(0x1_80).code(), 1);
    }

    #[test]
    fn table_names_every_code() {
        let table = ExitStatus::table();
        for status in ExitStatus::ALL {
            assert!(
                table.contains(&format!("  {:>3}  ", status.code())),
                "{status:?}"
            );
        }
    }
}
