//! Copying between files of the page cache, in a worker thread.
//!
//! `copy_file_range` lets file systems share the bytes (btrfs, xfs) or have a server copy them (NFS), and
//! copies once where neither is possible. All of that happens under the target's lock, so two threads are no
//! faster than one. In memory, where nothing else takes time, a thread that comes while another copies so goes
//! by a [mapping](super::mapped) of the target, which needs no lock.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use rustix::fs::{copy_file_range, fstatfs};
use rustix::io::Errno;

use super::mapped;
use super::opened::is_unsupported;
use crate::io::Place;

/// Bytes read and written at once: few enough to stay in a processor's own cache.
const PIECE: usize = 256 << 10;

/// `f_type` of the memory file system (statfs(2)).
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// Copies `len` bytes; blocks.
///
/// # Errors
/// Either file's, or `UnexpectedEof` if the source is shorter; some bytes may have been copied.
pub(crate) fn copy(from: &Place, to: &Place, len: u64) -> io::Result<()> {
    let turn = to.turn.try_lock();
    // What fails there does so here too, or it was only that it can't be mapped.
    if turn.is_none() && is_in_memory(&to.file)? && mapped::copy(from, to, len).is_ok() {
        return Ok(());
    }
    copy_by_calls(from, to, len)
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
                    turn: Arc::clone(&place.turn),
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

    use super::*;

    fn file(directory: &Path, contents: &[u8]) -> Place {
        let file = tempfile::tempfile_in(directory).unwrap();
        file.write_all_at(contents, 0).unwrap();
        Place {
            file: Arc::new(file),
            turn: Arc::default(),
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
                let turn = Arc::clone(&to.turn);
                let _turn = turn.lock();
                copy(&from, &to, contents.len() as u64).unwrap();
                assert_eq!(bytes(&to)[offset..], contents);
                let beyond = copy(&from, &to, contents.len() as u64 + 1).unwrap_err();
                assert_eq!(beyond.kind(), io::ErrorKind::UnexpectedEof);
            }
        }
    }
}
