//! Copying between files of the page cache, in a worker thread.
//!
//! `copy_file_range` lets file systems share the bytes (btrfs, xfs) or have a server copy them (NFS), and
//! copies once where neither is possible. All of that happens under the target's lock, so two threads are no
//! faster than one. In memory, where nothing else takes time, a thread that comes while another copies so goes
//! by a [mapping](super::mapped) of the target, which needs no lock. No more threads work at once than there are
//! processors: what comes then stands in line, and whoever is done takes the next, without anybody being woken.
//! Elsewhere everything that comes has a thread, and the file system decides.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io;
use std::mem;
use std::num::NonZero;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, OnceLock};
use std::thread;

use futures_channel::oneshot;
use parking_lot::{Mutex, MutexGuard};
use rustix::fs::{copy_file_range, fstatfs};
use rustix::io::Errno;

use super::mapped;
use super::opened::is_unsupported;
use crate::io::Place;

/// Bytes read and written at once: few enough to stay in a processor's own cache.
const PIECE: usize = 256 << 10;

/// `f_type` of the memory file system (statfs(2)).
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// How a thread copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lane {
    /// By the file's calls, under its lock.
    Calls,
    /// By a mapping.
    Mapping,
}

/// A copy that was put off until it has a lane. It must not panic.
type Work = Box<dyn FnOnce(Lane) + Send>;

/// Who copies to one file, and what stands in line for that.
pub struct Lanes {
    in_memory: bool,
    line: Mutex<Line>,
}

#[derive(Default)]
struct Line {
    waiting: VecDeque<Work>,
    calls: usize,
    mappings: usize,
}

impl Lanes {
    /// The lanes of `file`, a regular one.
    pub(super) fn of(file: &File) -> Self {
        // Where that is not known, nothing is won by lanes.
        let kind = fstatfs(file).map(|system| system.f_type);
        Self::new(kind == Ok(TMPFS_MAGIC))
    }

    fn new(in_memory: bool) -> Self {
        let line = Mutex::default();
        Self { in_memory, line }
    }

    /// Puts `work` into the line, and returns the turn of a thread if there is a lane for it. Otherwise those who are
    /// in the lanes will do it.
    fn join(self: &Arc<Self>, work: Work) -> Option<Turn> {
        let mut line = self.line.lock();
        line.waiting.push_back(work);
        let lane = self.enter(&mut line)?;
        Some(Turn {
            lanes: Arc::clone(self),
            lane,
            is_over: false,
        })
    }

    /// Takes a lane if there is one; that of the calls first.
    fn enter(&self, line: &mut Line) -> Option<Lane> {
        if line.calls == 0 || !self.in_memory {
            line.calls += 1;
            return Some(Lane::Calls);
        }
        let free = line.calls + line.mappings < processors();
        line.mappings += usize::from(free);
        free.then_some(Lane::Mapping)
    }
}

/// A lane that somebody has, and must use: until then it is lost for others.
#[must_use = "what stands in line waits for it"]
pub(crate) struct Turn {
    lanes: Arc<Lanes>,
    lane: Lane,
    is_over: bool,
}

impl Turn {
    /// Works the line off, however much joins it meanwhile; blocks.
    pub(crate) fn take(mut self) {
        let mut line = self.lanes.line.lock();
        while let Some(work) = line.waiting.pop_front() {
            MutexGuard::unlocked(&mut line, || work(self.lane));
        }
        // Nothing joins before the lane is left: the line is empty, and locked.
        self.leave(&mut line);
        drop(line);
        self.is_over = true;
    }

    fn leave(&self, line: &mut Line) {
        match self.lane {
            Lane::Calls => line.calls -= 1,
            Lane::Mapping => line.mappings -= 1,
        }
    }
}

impl Drop for Turn {
    /// No thread took it. What nobody else will do now comes to nothing, and its makers are told.
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        let mut line = self.lanes.line.lock();
        self.leave(&mut line);
        let is_last = line.calls + line.mappings == 0;
        let orphans = is_last.then(|| mem::take(&mut line.waiting));
        drop(line);
        drop(orphans);
    }
}

impl fmt::Debug for Lanes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lanes").finish_non_exhaustive()
    }
}

/// The processors that this program may use; asked once, since that takes long.
fn processors() -> usize {
    static COUNT: OnceLock<usize> = OnceLock::new();
    *COUNT.get_or_init(|| thread::available_parallelism().map_or(1, NonZero::get))
}

/// A copy of `len` bytes.
#[derive(Debug)]
pub(crate) struct Copy {
    pub(crate) from: Place,
    pub(crate) to: Place,
    pub(crate) len: u64,
    /// Is told of the end: either file's error, or `UnexpectedEof` if the source is shorter; some bytes
    /// may have been copied then.
    pub(crate) done: oneshot::Sender<io::Result<()>>,
}

impl Copy {
    /// Puts the copy into the line of those to its target. A turn that is returned must be taken in a worker thread.
    pub(crate) fn join(self) -> Option<Turn> {
        let lanes = Arc::clone(&self.to.lanes);
        lanes.join(Box::new(move |lane| {
            let copied = copy(lane, &self.from, &self.to, self.len);
            // Nobody may wait any more.
            let _ = self.done.send(copied);
        }))
    }
}

/// Copies `len` bytes; blocks.
fn copy(lane: Lane, from: &Place, to: &Place, len: u64) -> io::Result<()> {
    match lane {
        // What fails by the mapping does so again, or it was only that the file can't be mapped.
        Lane::Mapping if mapped::copy(from, to, len).is_ok() => Ok(()),
        _ => copy_by_calls(from, to, len),
    }
}

fn copy_by_calls(from: &Place, to: &Place, len: u64) -> io::Result<()> {
    let (mut source, mut target) = (from.offset, to.offset);
    let end = from.offset + len;
    while source < end {
        let left = end - source;
        let bytes = usize::try_from(left).unwrap_or(usize::MAX);
        // Both offsets move on.
        let (at, to_at) = (Some(&mut source), Some(&mut target));
        match copy_file_range(&from.file, at, &to.file, to_at, bytes) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            // Two file systems, or one that can't.
            Err(error) if is_unsupported(&error.into()) || error == Errno::XDEV => {
                return copy_by_pieces(&from.at(source), &to.at(target), left);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Lends a buffer of [`PIECE`] bytes, the thread's own: it is not to be asked for again inside.
pub(super) fn with_buffer<T>(work: impl FnOnce(&mut [u8]) -> T) -> T {
    thread_local! {
        static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; PIECE]);
    }
    BUFFER.with_borrow_mut(|buffer| work(buffer))
}

fn copy_by_pieces(from: &Place, to: &Place, len: u64) -> io::Result<()> {
    with_buffer(|buffer| {
        let mut done = 0;
        while done < len {
            let bytes = usize::try_from(len - done).map_or(PIECE, |left| left.min(PIECE));
            let piece = &mut buffer[..bytes];
            from.file.read_exact_at(piece, from.offset + done)?;
            to.file.write_all_at(piece, to.offset + done)?;
            done += bytes as u64;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::atomic::AtomicUsize;
    use std::sync::atomic::Ordering::SeqCst;

    use super::*;

    fn file(directory: &Path, contents: &[u8]) -> Place {
        let file = tempfile::tempfile_in(directory).unwrap();
        file.write_all_at(contents, 0).unwrap();
        Place {
            lanes: Arc::new(Lanes::of(&file)),
            file: Arc::new(file.into()),
            offset: 0,
            image: None,
        }
    }

    fn bytes(place: &Place) -> Vec<u8> {
        let len = place.file.metadata().unwrap().len();
        let mut bytes = vec![0; usize::try_from(len).unwrap()];
        place.file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    /// The disk, the memory, and from one to the other, which the kernel refuses to copy by itself.
    #[test]
    fn a_range_is_copied_wherever_the_files_are() {
        let len = 3 * PIECE + 4096;
        let contents: Vec<u8> = (0..len)
            .map(|at| u8::try_from(at / 512 % 251).unwrap())
            .collect();
        let disk = tempfile::tempdir().unwrap();
        let memory = tempfile::tempdir_in("/dev/shm").unwrap();
        for source in [disk.path(), memory.path()] {
            for target in [disk.path(), memory.path()] {
                let mut from = file(source, &contents);
                let mut to = file(target, &vec![0xff; len]);
                (from.offset, to.offset) = (512, 1024);
                let count = len - 2048;
                copy(Lane::Calls, &from, &to, count as u64).unwrap();
                let after = bytes(&to);
                assert_eq!(after[1024..1024 + count], contents[512..512 + count]);
                let untouched = after[..1024].iter().chain(&after[1024 + count..]);
                assert!(untouched.copied().all(|byte| byte == 0xff));
                // Beyond the end there is nothing to copy.
                let beyond = copy(Lane::Calls, &from, &to, len as u64).unwrap_err();
                assert_eq!(beyond.kind(), io::ErrorKind::UnexpectedEof);
            }
        }
    }

    /// One that comes while another copies may go another way, and must copy the same.
    #[test]
    fn a_range_is_copied_while_somebody_else_copies() {
        let contents: Vec<u8> = (0..3 * PIECE)
            .map(|at| u8::try_from(at / 512 % 251).unwrap())
            .collect();
        let disk = tempfile::tempdir().unwrap();
        let memory = tempfile::tempdir_in("/dev/shm").unwrap();
        for target in [disk.path(), memory.path()] {
            for offset in [0, 4096, 512] {
                let from = file(memory.path(), &contents);
                let mut to = file(target, &vec![0; offset + contents.len()]);
                to.offset = offset as u64;
                let len = contents.len() as u64;
                copy(Lane::Mapping, &from, &to, len).unwrap();
                assert_eq!(bytes(&to)[offset..], contents);
                let beyond = copy(Lane::Mapping, &from, &to, len + 1).unwrap_err();
                assert_eq!(beyond.kind(), io::ErrorKind::UnexpectedEof);
            }
        }
    }

    /// Whoever carries it out: each copy is made, and told of.
    #[test]
    fn copies_from_many_threads_are_all_made() {
        const LEN: usize = 16 << 10;
        let memory = tempfile::tempdir_in("/dev/shm").unwrap();
        for directory in [memory, tempfile::tempdir().unwrap()] {
            let from = file(directory.path(), &[0x5a; 64 * LEN]);
            let to = file(directory.path(), &[0; 64 * LEN]);
            let at = |place: &Place, number: u64| place.at(number * LEN as u64);
            let copies: Vec<_> = thread::scope(|scope| {
                let begin = |number| {
                    let (from, to, len) = (at(&from, number), at(&to, number), LEN as u64);
                    scope.spawn(move || {
                        let (done, copied) = oneshot::channel();
                        let copy = Copy {
                            from,
                            to,
                            len,
                            done,
                        };
                        if let Some(turn) = copy.join() {
                            turn.take();
                        }
                        copied
                    })
                };
                let threads: Vec<_> = (0..64).map(begin).collect();
                let ends = threads.into_iter().map(|thread| thread.join().unwrap());
                ends.collect()
            });
            for copied in copies {
                let copied = futures_util::FutureExt::now_or_never(copied);
                assert!(matches!(copied, Some(Ok(Ok(())))));
            }
            assert_eq!(bytes(&to), [0x5a; 64 * LEN]);
        }
    }

    /// However much comes, all of it is done, and no more at once than there are processors.
    #[test]
    fn what_finds_no_lane_is_done_by_those_who_have_one() {
        const EACH: usize = 200;
        let lanes = Arc::new(Lanes::new(true));
        let inside = Arc::new(AtomicUsize::new(0));
        let most = Arc::new(AtomicUsize::new(0));
        let done = Arc::new(AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..processors() + 4 {
                scope.spawn(|| {
                    for _ in 0..EACH {
                        let counts = [&inside, &most, &done].map(Arc::clone);
                        let turn = lanes.join(Box::new(move |_| {
                            let [inside, most, done] = counts;
                            most.fetch_max(inside.fetch_add(1, SeqCst) + 1, SeqCst);
                            thread::yield_now();
                            done.fetch_add(1, SeqCst);
                            inside.fetch_sub(1, SeqCst);
                        }));
                        turn.into_iter().for_each(Turn::take);
                    }
                });
            }
        });
        assert_eq!(done.load(SeqCst), (processors() + 4) * EACH);
        assert!(most.load(SeqCst) <= processors());
        let line = lanes.line.lock();
        assert!(line.waiting.is_empty() && line.calls + line.mappings == 0);
    }

    /// No worker could be had: whoever waits must learn that, and the lane is free again.
    #[test]
    fn a_turn_that_nobody_takes_ends_what_stands_in_line() {
        let lanes = Arc::new(Lanes::new(true));
        let join = || {
            let (told, told_of) = oneshot::channel();
            let turn = lanes.join(Box::new(move |_| told.send(()).unwrap()));
            (turn, told_of)
        };
        let (first, mut first_told) = join();
        let turns: Vec<_> = (1..processors()).map(|_| join().0.unwrap()).collect();
        let (none, mut last_told) = join();
        assert!(none.is_none());
        drop(turns);
        assert_eq!(last_told.try_recv(), Ok(None));
        drop(first);
        assert!(first_told.try_recv().is_err() && last_told.try_recv().is_err());
        let (turn, mut told) = join();
        turn.unwrap().take();
        assert_eq!(told.try_recv(), Ok(Some(())));
    }
}
