//! Reading disk images: hash, comparison, sector by sector.
//!
//! Images are read through the page cache, so what another process has written (or has in its
//! cache) is seen; the caller takes care that nobody writes meanwhile.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use sluice_writer::SECTOR_SIZE;
use xxhash_rust::xxh3::Xxh3;

/// How much is read at once, in bytes.
const CHUNK: usize = 1 << 20;

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

/// A hash of a whole image.
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

    /// Calls `visit` with the number of the first sector and the bytes of each chunk.
    ///
    /// # Errors
    /// The image can't be read.
    pub fn chunks(&self, mut visit: impl FnMut(u64, &[u8])) -> Result<(), ImageError> {
        let mut bytes = vec![0; CHUNK];
        for (offset, size) in spans(self.len) {
            self.read(offset, &mut bytes[..size])?;
            visit(offset / SECTOR_SIZE as u64, &bytes[..size]);
        }
        Ok(())
    }

    /// Hash of the whole image.
    ///
    /// # Errors
    /// The image can't be read.
    pub fn digest(&self) -> Result<Digest, ImageError> {
        let mut hasher = Xxh3::new();
        self.chunks(|_, bytes| hasher.update(bytes))?;
        Ok(Digest(hasher.digest()))
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
            self.read(offset, &mut mine[..size])?;
            other.read(offset, &mut others[..size])?;
            visit(offset / SECTOR_SIZE as u64, &mine[..size], &others[..size]);
        }
        Ok(())
    }

    /// Compares with `other` and hashes this image, in one pass.
    ///
    /// # Errors
    /// An image can't be read, or they are not of the same size.
    pub fn compare(&self, other: &Self) -> Result<Comparison, ImageError> {
        let mut hasher = Xxh3::new();
        let mut differing = 0;
        let mut listed = Vec::new();
        self.chunks_with(other, |first, mine, others| {
            hasher.update(mine);
            if mine == others {
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
            digest: Digest(hasher.digest()),
            differing,
            listed,
        })
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
