//! Copying between files of the page cache, in a worker thread.
//!
//! `copy_file_range` lets file systems share the bytes (btrfs, xfs) or have a server copy them (NFS), and
//! copies once where neither is possible. All of that happens under the target's lock, so two threads are no
//! faster than one. In memory, where nothing else takes time, a thread that comes while another copies so goes
//! by a [mapping](super::mapped) of the target, which needs no lock; and no more threads work at once than there
//! are processors, while those that wait go on at once when one is free.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::num::NonZero;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, OnceLock};
use std::thread;

use parking_lot::{Condvar, Mutex};
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

/// Who copies to one file in memory.
#[derive(Debug, Default)]
pub struct Lanes {
    taken: Mutex<Taken>,
    left: Condvar,
}

#[derive(Debug, Default)]
struct Taken {
    calls: bool,
    mappings: usize,
}

/// A lane that is taken until this is dropped.
struct InLane<'a> {
    lanes: &'a Lanes,
    lane: Lane,
}

impl Lanes {
    /// Waits for a lane; by calls if it is free.
    fn take(&self) -> InLane<'_> {
        let mut taken = self.taken.lock();
        let lane = loop {
            if !taken.calls {
                taken.calls = true;
                break Lane::Calls;
            }
            if taken.mappings + 1 < processors() {
                taken.mappings += 1;
                break Lane::Mapping;
            }
            self.left.wait(&mut taken);
        };
        InLane { lanes: self, lane }
    }
}

impl Drop for InLane<'_> {
    fn drop(&mut self) {
        let mut taken = self.lanes.taken.lock();
        match self.lane {
            Lane::Calls => taken.calls = false,
            Lane::Mapping => taken.mappings -= 1,
        }
        drop(taken);
        self.lanes.left.notify_one();
    }
}

/// The processors that this program may use; asked once, since that takes long.
fn processors() -> usize {
    static COUNT: OnceLock<usize> = OnceLock::new();
    *COUNT.get_or_init(|| thread::available_parallelism().map_or(1, NonZero::get))
}

/// Copies `len` bytes; blocks.
///
/// # Errors
/// Either file's, or `UnexpectedEof` if the source is shorter; some bytes may have been copied.
pub(crate) fn copy(from: &Place, to: &Place, len: u64) -> io::Result<()> {
    if !is_in_memory(&to.file)? {
        return copy_by_calls(from, to, len);
    }
    let in_lane = to.lanes.take();
    // What fails by the mapping does so again, or it was only that the file can't be mapped.
    match in_lane.lane {
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
                copy(&from, &to, count as u64).unwrap();
                let after = bytes(&to);
                assert_eq!(after[1024..1024 + count], contents[512..512 + count]);
                let untouched = after[..1024].iter().chain(&after[1024 + count..]);
                assert!(untouched.copied().all(|byte| byte == 0xff));
                // Beyond the end there is nothing to copy.
                let beyond = copy(&from, &to, len as u64).unwrap_err();
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
                let lanes = Arc::clone(&to.lanes);
                let other = lanes.take();
                if processors() == 1 {
                    drop(other);
                }
                copy(&from, &to, contents.len() as u64).unwrap();
                assert_eq!(bytes(&to)[offset..], contents);
                let beyond = copy(&from, &to, contents.len() as u64 + 1).unwrap_err();
                assert_eq!(beyond.kind(), io::ErrorKind::UnexpectedEof);
            }
        }
    }

    /// However many come, each copies in the end, and no more at once than there are processors.
    #[test]
    fn those_that_find_no_lane_wait_for_one() {
        let lanes = Lanes::default();
        let inside = AtomicUsize::new(0);
        let most = AtomicUsize::new(0);
        let copies = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..processors() + 4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let _lane = lanes.take();
                        most.fetch_max(inside.fetch_add(1, SeqCst) + 1, SeqCst);
                        thread::yield_now();
                        copies.fetch_add(1, SeqCst);
                        inside.fetch_sub(1, SeqCst);
                    }
                });
            }
        });
        assert_eq!(copies.into_inner(), (processors() + 4) * 200);
        assert!(most.into_inner() <= processors());
        let first = lanes.take();
        assert_eq!(first.lane, Lane::Calls);
    }
}
