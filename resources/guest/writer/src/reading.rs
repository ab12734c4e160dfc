//! Timing how long a disk takes to be read, one request after the other.

use std::{
    fs::OpenOptions,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use crate::{SECTOR_SIZE, buffer::AlignedBuffer};

/// Sectors of a request: 64 KiB.
const SECTORS: usize = (64 << 10) / SECTOR_SIZE;

/// Reads a disk from its start to its end past the page cache, each request after the end of the
/// one before. Returns how many bytes it has, and how long it took.
///
/// # Errors
/// It can't be opened, or a read fails.
pub fn time_reads(disk: &Path) -> Result<(u64, Duration)> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(disk)
        .with_context(|| format!("cannot open {}", disk.display()))?;
    let mut buffer = AlignedBuffer::new(SECTORS);
    let began = Instant::now();
    let mut bytes = 0;
    loop {
        let read = file
            .read_at(buffer.bytes_mut(SECTORS), bytes)
            .with_context(|| format!("cannot read {} at byte {bytes}", disk.display()))?;
        if read == 0 {
            return Ok((bytes, began.elapsed()));
        }
        bytes += read as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::time_reads;

    #[test]
    fn everything_is_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len((1 << 20) + 4096).unwrap();
        let (bytes, _time) = time_reads(file.path()).unwrap();
        assert_eq!(bytes, (1 << 20) + 4096);
    }

    #[test]
    fn a_missing_disk_is_named() {
        let error = time_reads("/nowhere/at/all".as_ref()).unwrap_err();
        assert!(error.to_string().contains("/nowhere/at/all"), "{error:#}");
    }
}
