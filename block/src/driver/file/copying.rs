//! Copying between files of the page cache, in a worker thread.
//!
//! `copy_file_range` lets file systems share the bytes (btrfs, xfs) or have a server copy them (NFS), and
//! copies once where neither is possible. All of that happens under the target's lock, so two threads are no
//! faster than one. In memory, where nothing else takes time, a thread that comes while another copies so goes
//! by a [mapping](super::mapped) of the target, which needs no lock. No more threads work at once than there are
//! processors: what comes then stands in line, and whoever is done takes the next, without anybody being woken.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io;
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

/// A copy that was put off until it has a lane.
type Work = Box<dyn FnOnce(Lane) + Send>;

/// Who copies to one file in memory, and what stands in line for that.
#[derive(Default)]
pub struct Lanes(Mutex<Line>);

#[derive(Default)]
struct Line {
    waiting: VecDeque<Work>,
    calls: bool,
    mappings: usize,
}

impl Line {
    /// Takes a lane if there is one; that of the calls first.
    fn enter(&mut self) -> Option<Lane> {
        if !self.calls {
            self.calls = true;
            return Some(Lane::Calls);
        }
        let free = self.mappings + 1 < processors();
        self.mappings += usize::from(free);
        free.then_some(Lane::Mapping)
    }

    fn leave(&mut self, lane: Lane) {
        match lane {
            Lane::Calls => self.calls = false,
            Lane::Mapping => self.mappings -= 1,
        }
    }
}

impl Lanes {
    /// Puts `work`, which must not panic, into the line. If a lane is free, works the line off, however much
    /// joins it meanwhile, and blocks; otherwise those in the lanes will do it.
    fn run(&self, work: Work) {
        let mut line = self.0.lock();
        line.waiting.push_back(work);
        let Some(lane) = line.enter() else {
            return;
        };
        while let Some(work) = line.waiting.pop_front() {
            MutexGuard::unlocked(&mut line, || work(lane));
        }
        // Nothing has joined since: both happen under one lock.
        line.leave(lane);
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
    /// Copies, or leaves it to a thread that copies to the same file already; blocks.
    pub(crate) fn carry_out(self) {
        // An error is met again by the copy, which tells it.
        if !is_in_memory(&self.to.file).unwrap_or(false) {
            return self.end(Lane::Calls);
        }
        let lanes = Arc::clone(&self.to.lanes);
        lanes.run(Box::new(|lane| self.end(lane)));
    }

    fn end(self, lane: Lane) {
        let copied = copy(lane, &self.from, &self.to, self.len);
        // Nobody may wait any more.
        let _ = self.done.send(copied);
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
                let rest = |place: &Place, offset| Place {
                    file: Arc::clone(&place.file),
                    lanes: Arc::clone(&place.lanes),
                    offset,
                };
                return copy_by_pieces(&rest(from, source), &rest(to, target), left);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn is_in_memory(file: &File) -> io::Result<bool> {
    Ok(fstatfs(file)?.f_type == TMPFS_MAGIC)
}

fn copy_by_pieces(from: &Place, to: &Place, len: u64) -> io::Result<()> {
    thread_local! {
        static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; PIECE]);
    }
    BUFFER.with_borrow_mut(|buffer| {
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
            file: Arc::new(file),
            lanes: Arc::default(),
            offset: 0,
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
            let at = |place: &Place, number: u64| Place {
                file: Arc::clone(&place.file),
                lanes: Arc::clone(&place.lanes),
                offset: number * LEN as u64,
            };
            thread::scope(|scope| {
                for number in 0..64 {
                    let (from, to, len) = (at(&from, number), at(&to, number), LEN as u64);
                    scope.spawn(move || {
                        let (done, copied) = oneshot::channel();
                        let copy = Copy {
                            from,
                            to,
                            len,
                            done,
                        };
                        copy.carry_out();
                        futures_util::FutureExt::now_or_never(copied)
                    });
                }
            });
            assert_eq!(bytes(&to), [0x5a; 64 * LEN]);
        }
    }

    /// However much comes, all of it is done, and no more at once than there are processors.
    #[test]
    fn what_finds_no_lane_is_done_by_those_who_have_one() {
        const EACH: usize = 200;
        let lanes = Lanes::default();
        let inside = Arc::new(AtomicUsize::new(0));
        let most = Arc::new(AtomicUsize::new(0));
        let done = Arc::new(AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..processors() + 4 {
                scope.spawn(|| {
                    for _ in 0..EACH {
                        let counts = [&inside, &most, &done].map(Arc::clone);
                        lanes.run(Box::new(move |_| {
                            let [inside, most, done] = counts;
                            most.fetch_max(inside.fetch_add(1, SeqCst) + 1, SeqCst);
                            thread::yield_now();
                            done.fetch_add(1, SeqCst);
                            inside.fetch_sub(1, SeqCst);
                        }));
                    }
                });
            }
        });
        assert_eq!(done.load(SeqCst), (processors() + 4) * EACH);
        assert!(most.load(SeqCst) <= processors());
        let line = lanes.0.lock();
        assert!(line.waiting.is_empty() && !line.calls && line.mappings == 0);
    }
}
