//! What the kernel and a FUSE file system say to each other (`linux/fuse.h`, version 7.31): numbers in the order of the
//! host, one after another.

use std::fs;

use super::Call;

/// The most bytes of a write.
pub(super) const MAX_WRITE: u32 = 128 << 10;

/// What a request asks for.
pub(super) mod opcode {
    pub(in super::super) const LOOKUP: u32 = 1;
    pub(in super::super) const FORGET: u32 = 2;
    pub(in super::super) const GETATTR: u32 = 3;
    pub(in super::super) const SETATTR: u32 = 4;
    pub(in super::super) const UNLINK: u32 = 10;
    pub(in super::super) const OPEN: u32 = 14;
    pub(in super::super) const READ: u32 = 15;
    pub(in super::super) const WRITE: u32 = 16;
    pub(in super::super) const STATFS: u32 = 17;
    pub(in super::super) const RELEASE: u32 = 18;
    pub(in super::super) const FSYNC: u32 = 20;
    pub(in super::super) const FLUSH: u32 = 25;
    pub(in super::super) const INIT: u32 = 26;
    pub(in super::super) const GETLK: u32 = 31;
    pub(in super::super) const SETLK: u32 = 32;
    pub(in super::super) const CREATE: u32 = 35;
    pub(in super::super) const INTERRUPT: u32 = 36;
    pub(in super::super) const BATCH_FORGET: u32 = 42;
    pub(in super::super) const FALLOCATE: u32 = 43;
    pub(in super::super) const LSEEK: u32 = 46;
}

/// Length of what comes before each request.
const HEAD: usize = 40;

/// `PF_EXITING` of a thread's flags.
const EXITING: u64 = 4;

/// A request of the kernel's.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) opcode: u32,
    unique: u64,
    /// The file or directory.
    pub(super) node: u64,
    /// The thread that waits for the answer; 0 if it is the kernel.
    thread: u32,
    /// What comes after the head.
    pub(super) body: Vec<u8>,
}

impl Request {
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let body = bytes.get(HEAD..)?.to_vec();
        Some(Self {
            opcode: u32_at(bytes, 4),
            unique: u64_at(bytes, 8),
            node: u64_at(bytes, 16),
            thread: u32_at(bytes, 32),
            body,
        })
    }

    /// The kind that a test knows it by.
    pub(super) fn call(&self) -> Option<Call> {
        Some(match self.opcode {
            opcode::LOOKUP => Call::Find,
            opcode::GETATTR => Call::Look,
            opcode::SETATTR => Call::Resize,
            opcode::OPEN => Call::Open,
            opcode::CREATE => Call::Create,
            opcode::UNLINK => Call::Remove,
            opcode::READ => Call::Read,
            opcode::WRITE => Call::Write,
            opcode::FSYNC => Call::Sync,
            opcode::FLUSH => Call::Close,
            opcode::SETLK => Call::Lock,
            opcode::GETLK => Call::AskLock,
            opcode::FALLOCATE => Call::Allocate,
            opcode::LSEEK => Call::Seek,
            opcode::STATFS => Call::LookAtSystem,
            _ => return None,
        })
    }

    /// Whether who waits for the answer has been killed, or is ending.
    pub(super) fn is_dying(&self) -> bool {
        let read = |file| fs::read_to_string(format!("/proc/{}/{file}", self.thread));
        let (Ok(status), Ok(stat)) = (read("status"), read("stat")) else {
            return true;
        };
        let pending = status.lines().find_map(|line| line.strip_prefix("SigPnd:"));
        let pending = pending.and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
        let killed = 1 << (libc::SIGKILL - 1);
        // The name, in parentheses, may hold anything; the flags are the seventh word behind it.
        let behind = stat.rsplit_once(')').map_or("", |(_, behind)| behind);
        let flags = behind.split_whitespace().nth(6).map(str::parse::<u64>);
        pending.is_some_and(|set| set & killed != 0)
            || matches!(flags, Some(Ok(flags)) if flags & EXITING != 0)
    }

    /// The number at `at` of the body; zero if it is too short.
    pub(super) fn u32(&self, at: usize) -> u32 {
        u32_at(&self.body, at)
    }

    /// See [`Self::u32`].
    pub(super) fn u64(&self, at: usize) -> u64 {
        u64_at(&self.body, at)
    }

    /// The name from `at` on.
    pub(super) fn name(&self, at: usize) -> String {
        let bytes = self.body.get(at..).unwrap_or_default();
        let name = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
        String::from_utf8_lossy(name).into_owned()
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let number = bytes
        .get(at..at + 4)
        .and_then(|bytes| bytes.try_into().ok());
    number.map_or(0, u32::from_ne_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let number = bytes
        .get(at..at + 8)
        .and_then(|bytes| bytes.try_into().ok());
    number.map_or(0, u64::from_ne_bytes)
}

/// An answer, as it goes to the kernel.
pub(super) struct Answer(pub(super) Vec<u8>);

impl Answer {
    pub(super) fn error(request: &Request, errno: i32) -> Self {
        Self::of(request, -errno, &[])
    }

    pub(super) fn done(request: &Request, body: &[u8]) -> Self {
        Self::of(request, 0, body)
    }

    fn of(request: &Request, error: i32, body: &[u8]) -> Self {
        let len = u32::try_from(16 + body.len()).unwrap_or(u32::MAX);
        let mut bytes = len.to_ne_bytes().to_vec();
        bytes.extend(error.to_ne_bytes());
        bytes.extend(request.unique.to_ne_bytes());
        bytes.extend(body);
        Self(bytes)
    }
}

/// Numbers one after another.
#[derive(Default)]
pub(super) struct Words(pub(super) Vec<u8>);

impl Words {
    pub(super) fn u16(mut self, number: u16) -> Self {
        self.0.extend(number.to_ne_bytes());
        self
    }

    pub(super) fn u32(mut self, number: u32) -> Self {
        self.0.extend(number.to_ne_bytes());
        self
    }

    pub(super) fn u64(mut self, number: u64) -> Self {
        self.0.extend(number.to_ne_bytes());
        self
    }

    pub(super) fn zeroes(mut self, count: usize) -> Self {
        self.0.resize(self.0.len() + count, 0);
        self
    }
}
