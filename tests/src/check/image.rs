//! Reading disk images: hash, comparison, sector by sector.
//!
//! Images are read through the page cache, so what another process has written (or has in its
//! cache) is seen; the caller takes care that nobody writes meanwhile. Holes are not read: some
//! of this happens while a guest is held.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use rustix::{fs::SeekFrom, io::Errno};
use sluice_writer::SECTOR_SIZE;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// How much is read at once, in bytes.
const CHUNK: usize = 1 << 20;

/// What a chunk without data reads as.
static ZEROES: [u8; CHUNK] = [0; CHUNK];

/// How many differing sectors a comparison lists; the rest is only counted.
pub const LISTED: usize = 16;

/// An image that can't be read or is not of a whole number of sectors.
#[derive(Debug, thiserror::Error)]
#[error("{}: {error}", .path.display())]
pub struct ImageError {
    path: PathBuf,
    error: io::Error,
}

/// A disk image opened for reading.
#[derive(Debug)]
pub struct Image {
    path: PathBuf,
    file: File,
    len: u64,
}

/// A hash of a whole image: of the hashes of its chunks. It depends on the content alone, not on
/// where the image has holes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest(u64);

impl std::fmt::Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// What a comparison of two images found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Comparison {
    /// Hash (XXH3) of the first image.
    pub digest: Digest,
    /// How many sectors differ.
    pub differing: u64,
    /// The first [`LISTED`] of them.
    pub listed: Vec<u64>,
}

impl Image {
    /// Opens an image.
    ///
    /// # Errors
    /// It can't be opened, or its size is no multiple of the sector size.
    pub fn open(path: &Path) -> Result<Self, ImageError> {
        let fail = |error| ImageError {
            path: path.to_owned(),
            error,
        };
        let file = File::open(path).map_err(fail)?;
        let len = file.metadata().map_err(fail)?.len();
        if len % SECTOR_SIZE as u64 != 0 {
            return Err(fail(io::Error::other(
                "size is not a whole number of sectors",
            )));
        }
        Ok(Self {
            path: path.to_owned(),
            file,
            len,
        })
    }

    /// The path it was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Size in bytes.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has no sector at all.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), ImageError> {
        self.file
            .read_exact_at(bytes, offset)
            .map_err(|error| ImageError {
                path: self.path.clone(),
                error,
            })
    }

    /// Whether the file has no data in this range. A file system that does not know says no.
    fn is_hole(&self, offset: u64, size: usize) -> bool {
        match rustix::fs::seek(&self.file, SeekFrom::Data(offset)) {
            Ok(data) => data >= offset + size as u64,
            Err(error) => error == Errno::NXIO,
        }
    }

    /// The bytes at `offset`, read into `buffer` unless they are known to be zero.
    fn chunk<'a>(&self, offset: u64, buffer: &'a mut [u8]) -> Result<&'a [u8], ImageError> {
        if self.is_hole(offset, buffer.len()) {
            return Ok(&ZEROES[..buffer.len()]);
        }
        self.read(offset, buffer)?;
        Ok(buffer)
    }

    /// Calls `visit` with the number of the first sector and the bytes of each chunk.
    ///
    /// # Errors
    /// The image can't be read.
    pub fn chunks(&self, mut visit: impl FnMut(u64, &[u8])) -> Result<(), ImageError> {
        let mut bytes = vec![0; CHUNK];
        for (offset, size) in spans(self.len) {
            visit(
                offset / SECTOR_SIZE as u64,
                self.chunk(offset, &mut bytes[..size])?,
            );
        }
        Ok(())
    }

    /// Hash of the whole image.
    ///
    /// # Errors
    /// The image can't be read.
    pub fn digest(&self) -> Result<Digest, ImageError> {
        let mut hasher = Hasher::new();
        self.chunks(|_, bytes| hasher.update(bytes))?;
        Ok(hasher.digest())
    }

    /// Calls `visit` with the number of the first sector and the bytes of each chunk of both
    /// images.
    ///
    /// # Errors
    /// An image can't be read, or they are not of the same size.
    pub fn chunks_with(
        &self,
        other: &Self,
        mut visit: impl FnMut(u64, &[u8], &[u8]),
    ) -> Result<(), ImageError> {
        if other.len != self.len {
            let error = io::Error::other(format!("size {} instead of {}", other.len, self.len));
            return Err(ImageError {
                path: other.path.clone(),
                error,
            });
        }
        let (mut mine, mut others) = (vec![0; CHUNK], vec![0; CHUNK]);
        for (offset, size) in spans(self.len) {
            let mine = self.chunk(offset, &mut mine[..size])?;
            let others = other.chunk(offset, &mut others[..size])?;
            visit(offset / SECTOR_SIZE as u64, mine, others);
        }
        Ok(())
    }

    /// Compares with `other` and hashes this image, in one pass.
    ///
    /// # Errors
    /// An image can't be read, or they are not of the same size.
    pub fn compare(&self, other: &Self) -> Result<Comparison, ImageError> {
        let mut hasher = Hasher::new();
        let mut differing = 0;
        let mut listed = Vec::new();
        self.chunks_with(other, |first, mine, others| {
            hasher.update(mine);
            if std::ptr::eq(mine, others) || mine == others {
                return;
            }
            for (sector, (a, b)) in (first..).zip(sectors(mine).iter().zip(sectors(others))) {
                if a != b {
                    differing += 1;
                    if listed.len() < LISTED {
                        listed.push(sector);
                    }
                }
            }
        })?;
        Ok(Comparison {
            digest: hasher.digest(),
            differing,
            listed,
        })
    }
}

/// Makes a [`Digest`] of chunks, in order.
struct Hasher {
    whole: Xxh3,
    /// The hash of a full chunk of zeroes, which is never hashed again.
    zeroes: u64,
}

impl Hasher {
    fn new() -> Self {
        Self {
            whole: Xxh3::new(),
            zeroes: xxh3_64(&ZEROES),
        }
    }

    fn update(&mut self, chunk: &[u8]) {
        let hash = if std::ptr::eq(chunk, &raw const ZEROES[..]) {
            self.zeroes
        } else {
            xxh3_64(chunk)
        };
        self.whole.update(&hash.to_le_bytes());
    }

    fn digest(&self) -> Digest {
        Digest(self.whole.digest())
    }
}

/// A chunk's sectors.
#[must_use]
pub fn sectors(bytes: &[u8]) -> &[[u8; SECTOR_SIZE]] {
    bytes.as_chunks().0
}

/// Offset and length of each chunk of a file of `len` bytes.
fn spans(len: u64) -> impl Iterator<Item = (u64, usize)> {
    (0..len).step_by(CHUNK).map(move |offset| {
        let rest = usize::try_from(len - offset).unwrap_or(usize::MAX);
        (offset, rest.min(CHUNK))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(dir: &tempfile::TempDir, name: &str, bytes: &[u8]) -> Image {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        Image::open(&path).unwrap()
    }

    #[test]
    fn one_differing_byte_anywhere_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let size = CHUNK + 3 * SECTOR_SIZE;
        let mut bytes = vec![1; size];
        let a = image(&dir, "a", &bytes);
        let same = a.compare(&image(&dir, "b", &bytes)).unwrap();
        assert_eq!((same.differing, same.digest), (0, a.digest().unwrap()));
        for at in [0, CHUNK - 1, CHUNK, size - 1] {
            bytes[at] = 2;
            let b = image(&dir, "b", &bytes);
            let comparison = a.compare(&b).unwrap();
            assert_eq!(comparison.listed, [(at / SECTOR_SIZE) as u64]);
            assert_ne!(a.digest().unwrap(), b.digest().unwrap());
            bytes[at] = 1;
        }
    }

    #[test]
    fn a_hole_is_as_good_as_zeroes() {
        let dir = tempfile::tempdir().unwrap();
        let mut bytes = vec![0; 4 * CHUNK + SECTOR_SIZE];
        bytes[CHUNK + 5] = 1;
        let full = image(&dir, "full", &bytes);
        let sparse = File::create_new(dir.path().join("sparse")).unwrap();
        sparse.set_len(bytes.len() as u64).unwrap();
        sparse.write_all_at(&[1], CHUNK as u64 + 5).unwrap();
        let sparse = Image::open(&dir.path().join("sparse")).unwrap();
        assert_eq!(
            full.compare(&sparse).unwrap(),
            sparse.compare(&full).unwrap()
        );
        assert_eq!(full.compare(&sparse).unwrap().differing, 0);
        assert_eq!(full.digest().unwrap(), sparse.digest().unwrap());
        let mut read = Vec::new();
        sparse
            .chunks(|_, chunk| read.extend_from_slice(chunk))
            .unwrap();
        assert!(read == bytes);
    }

    #[test]
    fn lists_few_and_counts_all() {
        let dir = tempfile::tempdir().unwrap();
        let a = image(&dir, "a", &vec![1; 100 * SECTOR_SIZE]);
        let b = image(&dir, "b", &vec![2; 100 * SECTOR_SIZE]);
        let comparison = a.compare(&b).unwrap();
        assert_eq!(
            (comparison.differing, comparison.listed.len()),
            (100, LISTED)
        );
    }

    #[test]
    fn other_size_odd_size_and_absence_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let a = image(&dir, "a", &[0; 2 * SECTOR_SIZE]);
        let b = image(&dir, "b", &[0; SECTOR_SIZE]);
        assert!(
            a.compare(&b)
                .unwrap_err()
                .to_string()
                .contains("size 512 instead of 1024")
        );
        std::fs::write(dir.path().join("odd"), [0; 100]).unwrap();
        assert!(Image::open(&dir.path().join("odd")).is_err());
        assert!(
            Image::open(&dir.path().join("none"))
                .unwrap_err()
                .to_string()
                .contains("none")
        );
    }
}
