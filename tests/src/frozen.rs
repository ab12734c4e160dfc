//! A file system in memory whose calls hang when a test says so, as those of an NFS or FUSE server that is gone.
//!
//! It is served by FUSE, from a thread of the test: each kind of system call can be *frozen*, which leaves what comes
//! without an answer until it thaws. Who waits for an answer can be killed, as with NFS. Locks of byte ranges are asked
//! of it, too, so they can hang like everything else.
//!
//! It is mounted in a mount namespace of the thread that asks for it, which programs inherit that this thread starts:
//! nobody else sees it, and nothing of it is left when they and the test have ended. A test that dies leaves
//! nobody hanging, for the kernel fails all that waits when the file system's descriptor goes.
#![expect(unsafe_code, reason = "a thread leaves its mount namespace")]

mod memory;
mod wire;

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fd::OwnedFd;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::thread::UnshareFlags;
use tempfile::TempDir;

use memory::Memory;
use wire::{Answer, Request};

/// How often those whose calls are frozen are asked whether they have been killed.
const ASKED: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 10_000_000,
};

/// The largest request: a write, with what the kernel puts before it.
const LARGEST: usize = wire::MAX_WRITE as usize + 4096;

/// Kinds of calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Call {
    /// A name is looked for: the first part of every call with a path.
    Find,
    /// stat(2), fstat(2).
    Look,
    /// ftruncate(2).
    Resize,
    /// open(2) of what is there.
    Open,
    /// open(2) of what is not.
    Create,
    /// unlink(2).
    Remove,
    /// read(2).
    Read,
    /// write(2).
    Write,
    /// fsync(2).
    Sync,
    /// close(2).
    Close,
    /// fcntl(2) with `F_OFD_SETLK`.
    Lock,
    /// fcntl(2) with `F_OFD_GETLK`.
    AskLock,
    /// fallocate(2).
    Allocate,
    /// lseek(2) for data and holes.
    Seek,
    /// statfs(2).
    LookAtSystem,
}

impl Call {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::Find,
        Self::Look,
        Self::Resize,
        Self::Open,
        Self::Create,
        Self::Remove,
        Self::Read,
        Self::Write,
        Self::Sync,
        Self::Close,
        Self::Lock,
        Self::AskLock,
        Self::Allocate,
        Self::Seek,
        Self::LookAtSystem,
    ];
}

#[derive(Default)]
struct State {
    memory: Memory,
    frozen: BTreeSet<Call>,
    /// What waits for an answer, in the order in which it came.
    held: Vec<(Call, Request)>,
}

struct Shared {
    state: Mutex<State>,
    /// Something is held that was not.
    held: Condvar,
    device: File,
    /// Rung when something thaws, and when the test ends.
    bell: OwnedFd,
}

/// See the [module](self).
pub struct FrozenFs {
    shared: Arc<Shared>,
    server: Option<JoinHandle<()>>,
    ends: Arc<OwnedFd>,
    directory: TempDir,
}

impl FrozenFs {
    /// Mounts an empty one for this thread and the programs that it starts. None, with the reason printed for the
    /// count of skipped tests, where that can't be had.
    #[must_use]
    pub fn mount() -> Option<Self> {
        match Self::try_mount() {
            Ok(mounted) => Some(mounted),
            Err(error) => {
                println!("SKIPPED: no FUSE file system can be mounted here: {error}");
                None
            }
        }
    }

    fn try_mount() -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        // A request whose caller is killed may be gone before it is read.
        options.custom_flags(libc::O_NONBLOCK);
        let device = options.open("/dev/fuse")?;
        // SAFETY: descriptors stay shared; only mounts become this thread's own.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }?;
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        rustix::mount::mount_change("/", private)?;
        let directory = tempfile::tempdir()?;
        let (user, group) = (rustix::process::getuid(), rustix::process::getgid());
        let options = format!(
            "fd={},rootmode=40000,user_id={},group_id={},allow_other",
            device.as_raw_fd(),
            user.as_raw(),
            group.as_raw()
        );
        let options = CString::new(options).unwrap_or_default();
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        rustix::mount::mount("frozen", directory.path(), "fuse", flags, &*options)?;
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let ends = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            held: Condvar::new(),
            device,
            bell,
        });
        let (served, end) = (Arc::clone(&shared), Arc::clone(&ends));
        let server = std::thread::Builder::new()
            .name("frozen".to_owned())
            .spawn(move || served.serve(&end))?;
        Ok(Self {
            shared,
            server: Some(server),
            ends,
            directory,
        })
    }

    /// The path of a file.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The same for an option or a command.
    #[must_use]
    pub fn text(&self, name: &str) -> String {
        self.path(name).to_string_lossy().into_owned()
    }

    /// Makes a file of these bytes, past the kernel, which must not know the name yet.
    pub fn add(&self, name: &str, bytes: &[u8]) {
        self.shared.lock().memory.add(name, bytes);
    }

    /// What a file holds, also while everything is frozen; none if it is not there.
    #[must_use]
    pub fn bytes(&self, name: &str) -> Option<Vec<u8>> {
        self.shared.lock().memory.bytes(name)
    }

    /// From now on such calls are not answered.
    pub fn freeze(&self, calls: &[Call]) {
        self.shared.lock().frozen.extend(calls);
    }

    /// All that was not answered is answered now, and all that comes.
    pub fn thaw(&self) {
        self.shared.lock().frozen.clear();
        // A bell that is full has been rung.
        let _full = rustix::io::write(&self.shared.bell, &1_u64.to_ne_bytes());
    }

    /// How many calls of a kind wait for their answer.
    #[must_use]
    pub fn held(&self, call: Call) -> usize {
        let state = self.shared.lock();
        state.held.iter().filter(|(held, _)| *held == call).count()
    }

    /// Waits until so many calls of a kind wait for their answer.
    ///
    /// # Errors
    /// They did not come in time; what is held instead.
    pub fn wait_held(&self, call: Call, count: usize, limit: Duration) -> Result<(), String> {
        let deadline = Instant::now() + limit;
        let mut state = self.shared.lock();
        loop {
            let held: Vec<_> = state.held.iter().map(|(held, _)| *held).collect();
            if held.iter().filter(|held| **held == call).count() >= count {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(format!("no {count} calls {call:?} came; held are {held:?}"));
            }
            let waited = self.shared.held.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for FrozenFs {
    fn drop(&mut self) {
        let _full = rustix::io::write(&*self.ends, &1_u64.to_ne_bytes());
        if let Some(server) = self.server.take() {
            let _panicked = server.join();
        }
        // Without it the directory could not be removed; who still uses it keeps the file system, which fails.
        let _gone = rustix::mount::unmount(self.directory.path(), UnmountFlags::DETACH);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves until the test ends or the file system is gone; answers what is held then with an error.
    fn serve(&self, ends: &OwnedFd) {
        let mut buffer = vec![0; LARGEST];
        loop {
            let timeout = (!self.lock().held.is_empty()).then_some(&ASKED);
            let mut ready = [
                PollFd::new(&self.device, PollFlags::IN),
                PollFd::new(&self.bell, PollFlags::IN),
                PollFd::new(ends, PollFlags::IN),
            ];
            match poll(&mut ready, timeout) {
                Err(rustix::io::Errno::INTR) => continue,
                Err(_) => break,
                Ok(_) => {}
            }
            let [has_request, rung, ended] = ready.map(|source| source.revents());
            if !ended.is_empty() || has_request.contains(PollFlags::ERR) {
                break;
            }
            if !rung.is_empty() {
                let _count = rustix::io::read(&self.bell, &mut [0_u8; 8]);
            }
            self.answer_held();
            if has_request.contains(PollFlags::IN) && !self.take(&mut buffer) {
                break;
            }
        }
        for (_, request) in std::mem::take(&mut self.lock().held) {
            self.send(&Answer::error(&request, libc::ENOTCONN));
        }
    }

    /// Answers what has thawed, and whoever was killed.
    fn answer_held(&self) {
        let mut state = self.lock();
        let held = std::mem::take(&mut state.held);
        for (call, request) in held {
            if !state.frozen.contains(&call) {
                let answer = state.memory.answer(&request);
                self.send_if_any(answer);
            } else if request.is_dying() {
                self.send(&Answer::error(&request, libc::EINTR));
            } else {
                state.held.push((call, request));
            }
        }
    }

    /// Takes the next request; false if there will be none any more.
    fn take(&self, buffer: &mut [u8]) -> bool {
        let taken = match (&self.device).read(buffer) {
            Ok(len) => &buffer[..len],
            Err(error) => {
                let again = [libc::EINTR, libc::EAGAIN, libc::ENOENT];
                return error.raw_os_error().is_some_and(|no| again.contains(&no));
            }
        };
        let Some(request) = Request::parse(taken) else {
            return false;
        };
        let mut state = self.lock();
        match request.call() {
            Some(call) if state.frozen.contains(&call) => {
                state.held.push((call, request));
                self.held.notify_all();
            }
            _ => {
                let answer = state.memory.answer(&request);
                self.send_if_any(answer);
            }
        }
        true
    }

    fn send_if_any(&self, answer: Option<Answer>) {
        if let Some(answer) = answer {
            self.send(&answer);
        }
    }

    /// Who is gone wants no answer.
    fn send(&self, answer: &Answer) {
        let _gone = (&self.device).write(&answer.0);
    }
}

#[cfg(test)]
mod tests;
