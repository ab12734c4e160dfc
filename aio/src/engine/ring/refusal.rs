//! Why there is no ring here, and what the operator can do about it.
//!
//! The kernel's errno alone does not tell: `EPERM` is a sysctl as well as a sandbox's filter. What
//! else can be seen from inside the process decides, and where it does not, the message says so.

use std::fmt;
use std::fs;
use std::io;

/// A ring was refused.
#[derive(Debug, thiserror::Error)]
#[error("{cause}; {}", cause.remedy())]
pub(crate) struct Refusal {
    cause: Cause,
}

/// The reasons that are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// `kernel.io_uring_disabled` has this value (1: for unprivileged processes, 2: for all).
    Sysctl(u8),
    /// A system call filter answers in the kernel's place.
    Seccomp,
    /// Not permitted by something that can't be seen from here.
    Forbidden,
    /// The kernel has no such system call.
    Missing,
    /// The kernel has rings, but not what is needed of them.
    OldKernel,
    /// `RLIMIT_MEMLOCK` or the memory of the host.
    Memory,
    /// `RLIMIT_NOFILE` or the system's limit of open files.
    Descriptors,
    /// Something else: the errno.
    Other(i32),
}

/// What can be seen of the process's surroundings.
#[derive(Clone, Copy, Debug, Default)]
struct Surroundings {
    /// `/proc/sys/kernel/io_uring_disabled`, if there is such a thing.
    sysctl: Option<u8>,
    /// The process runs under a seccomp filter.
    filtered: bool,
}

impl Surroundings {
    fn look() -> Self {
        let sysctl = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok();
        // A filter holds for a thread: this one asks for the ring.
        let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
        Self {
            sysctl: sysctl.and_then(|value| value.trim().parse().ok()),
            filtered: is_filtered(&status),
        }
    }
}

/// Whether a `status` of proc(5) is that of a thread with a seccomp filter (mode 2).
fn is_filtered(status: &str) -> bool {
    let mut lines = status.lines();
    lines.any(|line| line.strip_prefix("Seccomp:").map(str::trim) == Some("2"))
}

impl Refusal {
    /// Of an errno of `io_uring_setup`, `io_uring_register` or `io_uring_enter`.
    pub(super) fn of(error: &io::Error) -> Self {
        let errno = error.raw_os_error().unwrap_or(0);
        Self::because(diagnose(errno, Surroundings::look()))
    }

    pub(super) fn because(cause: Cause) -> Self {
        Self { cause }
    }
}

fn diagnose(errno: i32, surroundings: Surroundings) -> Cause {
    match (errno, surroundings.sysctl) {
        (libc::EPERM, Some(value @ 1..)) => Cause::Sysctl(value),
        (libc::EPERM | libc::EACCES | libc::ENOSYS, _) if surroundings.filtered => Cause::Seccomp,
        // The kernel itself has the system call if it has the sysctl (Linux 6.6).
        (libc::ENOSYS, Some(_)) => Cause::Seccomp,
        (libc::EPERM | libc::EACCES, _) => Cause::Forbidden,
        (libc::ENOSYS, None) => Cause::Missing,
        (libc::EINVAL, _) => Cause::OldKernel,
        (libc::ENOMEM, _) => Cause::Memory,
        (libc::EMFILE | libc::ENFILE, _) => Cause::Descriptors,
        _ => Cause::Other(errno),
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sysctl(value) => write!(f, "sysctl kernel.io_uring_disabled is {value}"),
            Self::Seccomp => f.write_str("a seccomp filter forbids io_uring"),
            Self::Forbidden => f.write_str("io_uring is not permitted (EPERM)"),
            Self::Missing => f.write_str("this kernel has no io_uring (ENOSYS)"),
            Self::OldKernel => f.write_str("this kernel's io_uring is too old"),
            Self::Memory => f.write_str("no memory for a ring (ENOMEM)"),
            Self::Descriptors => f.write_str("no file descriptor left for a ring"),
            Self::Other(errno) => {
                write!(f, "io_uring: {}", io::Error::from_raw_os_error(*errno))
            }
        }
    }
}

impl Cause {
    /// What the operator can do.
    fn remedy(self) -> &'static str {
        match self {
            Self::Sysctl(1) => {
                "set it to 0, or run with CAP_SYS_ADMIN or in the group of \
                 kernel.io_uring_group, or use aio=threads"
            }
            Self::Sysctl(_) => "set it to 0, or use aio=threads",
            Self::Seccomp => {
                "allow io_uring_setup, io_uring_enter and io_uring_register in the profile of the \
                 container or service, or use aio=threads"
            }
            Self::Forbidden => {
                "look for a security module (SELinux: io_uring { create }) or a container's \
                 policy, or use aio=threads"
            }
            Self::Missing => "build it with CONFIG_IO_URING, or use aio=threads",
            Self::OldKernel => "Linux 5.6 is needed, or use aio=threads",
            Self::Memory => "raise RLIMIT_MEMLOCK ('ulimit -l') or free memory, or use aio=threads",
            Self::Descriptors => {
                "raise RLIMIT_NOFILE ('ulimit -n') or fs.file-max, or use aio=threads"
            }
            Self::Other(_) => "use aio=threads",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_seen_around_decides_what_an_errno_means() {
        let seen = |sysctl, filtered| Surroundings { sysctl, filtered };
        for (errno, surroundings, expected) in [
            (libc::EPERM, seen(Some(2), false), Cause::Sysctl(2)),
            // The sysctl is asked before any filter could matter.
            (libc::EPERM, seen(Some(1), true), Cause::Sysctl(1)),
            (libc::EPERM, seen(Some(0), true), Cause::Seccomp),
            (libc::EPERM, seen(None, true), Cause::Seccomp),
            (libc::EPERM, seen(Some(0), false), Cause::Forbidden),
            (libc::EACCES, seen(Some(2), false), Cause::Forbidden),
            (libc::ENOSYS, seen(None, true), Cause::Seccomp),
            (libc::ENOSYS, seen(Some(0), false), Cause::Seccomp),
            (libc::ENOSYS, seen(None, false), Cause::Missing),
            (libc::EINVAL, seen(None, false), Cause::OldKernel),
            (libc::ENOMEM, seen(Some(0), false), Cause::Memory),
            (libc::EMFILE, seen(Some(0), false), Cause::Descriptors),
            (libc::ENFILE, seen(Some(0), true), Cause::Descriptors),
            (libc::EIO, seen(Some(0), false), Cause::Other(libc::EIO)),
        ] {
            assert_eq!(diagnose(errno, surroundings), expected, "errno {errno}");
        }
    }

    #[test]
    fn every_refusal_names_its_cause_and_a_remedy() {
        for (cause, words) in [
            (
                Cause::Sysctl(1),
                ["kernel.io_uring_disabled is 1", "io_uring_group"],
            ),
            (
                Cause::Sysctl(2),
                ["kernel.io_uring_disabled is 2", "set it to 0"],
            ),
            (Cause::Seccomp, ["seccomp", "io_uring_enter"]),
            (Cause::Forbidden, ["EPERM", "SELinux"]),
            (Cause::Missing, ["ENOSYS", "CONFIG_IO_URING"]),
            (Cause::OldKernel, ["too old", "Linux 5.6"]),
            (Cause::Memory, ["ENOMEM", "RLIMIT_MEMLOCK"]),
            (Cause::Descriptors, ["descriptor", "RLIMIT_NOFILE"]),
            (Cause::Other(libc::EIO), ["os error 5", "io_uring"]),
        ] {
            let text = Refusal::because(cause).to_string();
            for word in words {
                assert!(text.contains(word), "{text}");
            }
            assert!(text.ends_with("use aio=threads"), "{text}");
        }
    }

    #[test]
    fn the_mode_of_seccomp_is_read_from_the_status() {
        assert!(is_filtered("Name:\tx\nSeccomp:\t2\nSeccomp_filters:\t1\n"));
        assert!(!is_filtered("Name:\tx\nSeccomp:\t0\nSeccomp_filters:\t2\n"));
        assert!(!is_filtered(""));
    }
}
