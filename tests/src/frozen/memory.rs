//! One directory of files in memory, and its answers.

use std::collections::BTreeMap;

use super::wire::{Answer, MAX_WRITE, Request, Words, opcode};

/// The directory's number.
const ROOT: u64 = 1;

/// `FUSE_ASYNC_READ`, `FUSE_POSIX_LOCKS`, `FUSE_BIG_WRITES`.
const WANTED: u32 = 1 | 1 << 1 | 1 << 5;

/// How many requests of its own the kernel sends at once; so many readers of a file can hang.
const BACKGROUND: u16 = 1024;

/// `FATTR_SIZE`: a SETATTR that changes the size.
const SIZE: u32 = 1 << 3;

/// Bytes of a block, of which a file takes whole ones.
const BLOCK: u64 = 512;

/// What the kernel remembers of names and attributes, in seconds: nothing, so that it asks each time.
const VALID: u64 = 0;

/// A lock of a byte range: what it was taken by, its bytes, and whether it is a write lock.
#[derive(Clone, Copy, Debug)]
struct Lock {
    handle: u64,
    first: u64,
    last: u64,
    kind: i32,
}

#[derive(Default)]
struct Stored {
    bytes: Vec<u8>,
    locks: Vec<Lock>,
}

/// See the [module](self).
#[derive(Default)]
pub(super) struct Memory {
    /// By their numbers; also those that have no name any more.
    files: BTreeMap<u64, Stored>,
    names: BTreeMap<String, u64>,
    /// Openings so far, which are numbered.
    opened: u64,
}

impl Memory {
    pub(super) fn add(&mut self, name: &str, bytes: &[u8]) -> u64 {
        let last = self.files.last_key_value().map_or(ROOT, |(last, _)| *last);
        let number = last + 1;
        let file = Stored {
            bytes: bytes.to_vec(),
            locks: Vec::new(),
        };
        self.files.insert(number, file);
        self.names.insert(name.to_owned(), number);
        number
    }

    pub(super) fn bytes(&self, name: &str) -> Option<Vec<u8>> {
        let number = self.names.get(name)?;
        Some(self.files.get(number)?.bytes.clone())
    }

    /// Does what a request asks for. None if it wants no answer.
    pub(super) fn answer(&mut self, request: &Request) -> Option<Answer> {
        match request.opcode {
            opcode::FORGET | opcode::BATCH_FORGET | opcode::INTERRUPT => return None,
            _ => {}
        }
        Some(match self.perform(request) {
            Ok(body) => Answer::done(request, &body),
            Err(errno) => Answer::error(request, errno),
        })
    }

    fn perform(&mut self, request: &Request) -> Result<Vec<u8>, i32> {
        match request.opcode {
            opcode::INIT => Ok(greeting(request)),
            opcode::LOOKUP => {
                let name = request.name(0);
                let number = *self.names.get(&name).ok_or(libc::ENOENT)?;
                self.entry(number)
            }
            opcode::GETATTR => self.attributes(request.node),
            opcode::SETATTR => {
                if request.u32(0) & SIZE != 0 {
                    let size = usize::try_from(request.u64(16)).map_err(|_| libc::EFBIG)?;
                    self.file(request.node)?.bytes.resize(size, 0);
                }
                self.attributes(request.node)
            }
            opcode::OPEN => Ok(self.open()),
            opcode::CREATE => {
                let number = self.add(&request.name(16), &[]);
                let mut body = self.entry(number)?;
                body.extend(self.open());
                Ok(body)
            }
            opcode::UNLINK => {
                self.names.remove(&request.name(0)).ok_or(libc::ENOENT)?;
                Ok(Vec::new())
            }
            opcode::READ => {
                let bytes = &self.file(request.node)?.bytes;
                let range = range(request.u64(8), request.u32(16).into())?;
                let end = range.end.min(bytes.len());
                Ok(bytes[range.start.min(end)..end].to_vec())
            }
            opcode::WRITE => {
                let size = request.u32(16);
                let data = request.body.get(40..).unwrap_or_default();
                let range = range(request.u64(8), size.into())?;
                let bytes = &mut self.file(request.node)?.bytes;
                bytes.resize(bytes.len().max(range.end), 0);
                bytes[range].copy_from_slice(data);
                Ok(Words::default().u32(size).u32(0).0)
            }
            opcode::STATFS => Ok(Words::default()
                .u64(1 << 20)
                .u64(1 << 20)
                .u64(1 << 20)
                .u64(1 << 20)
                .u64(1 << 20)
                .u32(4096)
                .u32(255)
                .u32(4096)
                .zeroes(28)
                .0),
            opcode::RELEASE => {
                let handle = request.u64(0);
                let locks = &mut self.file(request.node)?.locks;
                locks.retain(|lock| lock.handle != handle);
                Ok(Vec::new())
            }
            opcode::FSYNC | opcode::FLUSH => Ok(Vec::new()),
            opcode::GETLK => self.ask_lock(request),
            opcode::SETLK => self.set_lock(request),
            opcode::FALLOCATE => self.allocate(request),
            opcode::LSEEK => self.seek(request),
            _ => Err(libc::ENOSYS),
        }
    }

    fn file(&mut self, number: u64) -> Result<&mut Stored, i32> {
        self.files.get_mut(&number).ok_or(libc::ENOENT)
    }

    fn open(&mut self) -> Vec<u8> {
        self.opened += 1;
        Words::default().u64(self.opened).zeroes(8).0
    }

    fn entry(&self, number: u64) -> Result<Vec<u8>, i32> {
        let body = Words::default().u64(number).u64(0).u64(VALID).u64(VALID);
        let mut body = body.zeroes(8).0;
        body.extend(self.inode(number)?);
        Ok(body)
    }

    fn attributes(&self, number: u64) -> Result<Vec<u8>, i32> {
        let mut body = Words::default().u64(VALID).zeroes(8).0;
        body.extend(self.inode(number)?);
        Ok(body)
    }

    fn inode(&self, number: u64) -> Result<Vec<u8>, i32> {
        let (size, mode) = if number == ROOT {
            (0, libc::S_IFDIR | 0o755)
        } else {
            let file = self.files.get(&number).ok_or(libc::ENOENT)?;
            (file.bytes.len() as u64, libc::S_IFREG | 0o644)
        };
        let (user, group) = (rustix::process::getuid(), rustix::process::getgid());
        Ok(Words::default()
            .u64(number)
            .u64(size)
            .u64(size.div_ceil(BLOCK))
            .zeroes(36)
            .u32(mode)
            .u32(1)
            .u32(user.as_raw())
            .u32(group.as_raw())
            .u32(0)
            .u32(4096)
            .u32(0)
            .0)
    }

    /// A lock that the one of the request would meet.
    fn conflict(&mut self, request: &Request) -> Result<Option<Lock>, i32> {
        let wanted = lock_of(request);
        let locks = &self.file(request.node)?.locks;
        let meets = |lock: &&Lock| {
            lock.handle != wanted.handle
                && lock.first <= wanted.last
                && wanted.first <= lock.last
                && (lock.kind == libc::F_WRLCK || wanted.kind == libc::F_WRLCK)
        };
        Ok(locks.iter().find(meets).copied())
    }

    fn ask_lock(&mut self, request: &Request) -> Result<Vec<u8>, i32> {
        let wanted = lock_of(request);
        let free = Lock {
            kind: libc::F_UNLCK,
            ..wanted
        };
        let found = self.conflict(request)?.unwrap_or(free);
        let words = Words::default().u64(found.first).u64(found.last);
        let kind = u32::try_from(found.kind).unwrap_or_default();
        Ok(words.u32(kind).u32(0).0)
    }

    /// Locks are of whole ranges, as those of images are, each of one byte.
    fn set_lock(&mut self, request: &Request) -> Result<Vec<u8>, i32> {
        let wanted = lock_of(request);
        if wanted.kind != libc::F_UNLCK && self.conflict(request)?.is_some() {
            return Err(libc::EAGAIN);
        }
        let locks = &mut self.file(request.node)?.locks;
        locks.retain(|lock| {
            (lock.handle, lock.first, lock.last) != (wanted.handle, wanted.first, wanted.last)
        });
        if wanted.kind != libc::F_UNLCK {
            locks.push(wanted);
        }
        Ok(Vec::new())
    }

    fn allocate(&mut self, request: &Request) -> Result<Vec<u8>, i32> {
        let range = range(request.u64(8), request.u64(16))?;
        let mode = i32::try_from(request.u32(24)).map_err(|_| libc::EINVAL)?;
        let bytes = &mut self.file(request.node)?.bytes;
        let end = if mode & libc::FALLOC_FL_KEEP_SIZE == 0 {
            bytes.resize(bytes.len().max(range.end), 0);
            range.end
        } else {
            range.end.min(bytes.len())
        };
        if mode & (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE) != 0 {
            bytes[range.start.min(end)..end].fill(0);
        }
        Ok(Vec::new())
    }

    /// All of a file is data.
    fn seek(&mut self, request: &Request) -> Result<Vec<u8>, i32> {
        let offset = request.u64(8);
        let size = self.file(request.node)?.bytes.len() as u64;
        if offset >= size {
            return Err(libc::ENXIO);
        }
        let whence = i32::try_from(request.u32(16)).map_err(|_| libc::EINVAL)?;
        let found = match whence {
            libc::SEEK_DATA => offset,
            libc::SEEK_HOLE => size,
            _ => return Err(libc::EINVAL),
        };
        Ok(Words::default().u64(found).0)
    }
}

fn greeting(request: &Request) -> Vec<u8> {
    let (readahead, flags) = (request.u32(8), request.u32(12));
    Words::default()
        .u32(7)
        .u32(31)
        .u32(readahead)
        .u32(flags & WANTED)
        .u16(BACKGROUND)
        .u16(BACKGROUND)
        .u32(MAX_WRITE)
        .u32(1)
        .zeroes(36)
        .0
}

fn lock_of(request: &Request) -> Lock {
    Lock {
        handle: request.u64(0),
        first: request.u64(16),
        last: request.u64(24),
        kind: i32::try_from(request.u32(32)).unwrap_or(libc::F_UNLCK),
    }
}

fn range(offset: u64, len: u64) -> Result<std::ops::Range<usize>, i32> {
    let end = offset.checked_add(len).ok_or(libc::EFBIG)?;
    let number = |at| usize::try_from(at).map_err(|_| libc::EFBIG);
    Ok(number(offset)?..number(end)?)
}
