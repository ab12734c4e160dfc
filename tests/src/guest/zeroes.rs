//! Discarded and zeroed stretches of a disk, checked on the host's file.

use std::{os::unix::fs::MetadataExt, path::Path};

use anyhow::{Context, Result, ensure};

use super::{lab::Lab, script::command_line};

const MIB: usize = 1 << 20;

/// What the disk holds before.
const OLD: u8 = 0x6f;

/// The file system's blocks, in bytes: its own may be smaller, never larger.
const BLOCK: usize = 4096;

/// Blocks in the file that is reserved, and which of them is written: so few that ext4 zeroes the
/// others (its `extent_max_zeroout_kb` is 32) instead of keeping account of them.
const RESERVED: usize = 7;
const WRITTEN: usize = 3;

/// Attaches one virtio disk, served by a thread of its own, whose discards reach the file.
fn arguments(image: &Path) -> Vec<String> {
    let path = image.display();
    let drive = format!("if=none,id=disk,format=raw,discard=unmap,file={path}");
    let device = "virtio-blk-pci,drive=disk,iothread=io0";
    let words = [
        "--object",
        "iothread,id=io0",
        "--drive",
        &drive,
        "--device",
        device,
    ];
    words.map(str::to_owned).to_vec()
}

/// Runs a script in a guest with this virtio disk.
fn run(lab: &Lab<'_>, image: &Path, script: &str) -> Result<()> {
    run_with(lab, &arguments(image), "/dev/vda", script)
}

/// Runs a script in a guest with the disk of these arguments, which it calls `device`.
fn run_with(lab: &Lab<'_>, arguments: &[String], device: &str, script: &str) -> Result<()> {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let line = command_line(script, &format!("sluice.wait={device}"));
    lab.start(&line, &arguments)?
        .finish_script()
        .map(|_console| ())
}

/// A virtio disk's discarded stretch is a hole in the host's file.
pub fn discard_makes_holes(lab: &Lab<'_>) -> Result<()> {
    makes_holes(lab, "/dev/vda", arguments)
}

/// An IDE disk's trimmed stretch is a hole in the host's file.
pub fn trim_makes_holes(lab: &Lab<'_>) -> Result<()> {
    makes_holes(lab, "/dev/sda", |image| {
        let path = image.display();
        let drive = format!("if=ide,format=raw,discard=unmap,file={path}");
        vec!["--drive".to_owned(), drive]
    })
}

/// A discarded stretch reads as zeroes and takes no room in the host's file; its neighbours stay.
fn makes_holes(lab: &Lab<'_>, device: &str, arguments: fn(&Path) -> Vec<String>) -> Result<()> {
    const SIZE: usize = 8 * MIB;
    const FROM: usize = 2 * MIB;
    const LENGTH: usize = 3 * MIB;
    let image = lab.image("disk.img", &vec![OLD; SIZE])?;
    // Delayed allocation would make the file seem empty.
    std::fs::File::open(&image)?.sync_all()?;
    let allocated = || std::fs::metadata(&image).map(|data| data.blocks() * 512);
    let before = allocated()?;
    let script = format!("blkdiscard -o {FROM} -l {LENGTH} {device}");
    run_with(lab, &arguments(&image), device, &script)?;
    std::fs::File::open(&image)?.sync_all()?;
    let after = allocated()?;
    let content = std::fs::read(&image)?;
    let differs = content.iter().enumerate().position(|(at, byte)| {
        let gone = (FROM..FROM + LENGTH).contains(&at);
        *byte != if gone { 0 } else { OLD }
    });
    ensure!(differs.is_none(), "wrong content at byte {differs:?}");
    ensure!(
        after + (LENGTH as u64) <= before,
        "the file takes {after} bytes, {before} before"
    );
    Ok(())
}

/// ext4 reserves blocks that hold something old, writes one of them, and has the others zeroed by
/// the disk (WRITE_ZEROES): there they are zeroes, in the host's file.
pub fn zeroes_replace_what_was_there(lab: &Lab<'_>) -> Result<()> {
    let image = lab.root_image()?;
    let (length, offset) = (RESERVED * BLOCK, WRITTEN);
    // All free blocks get an old content; `dioread_lock` makes ext4 zero rather than split.
    let script = format!(
        "mkdir /tmp/m && mount -t ext4 -o noinit_itable,dioread_lock /dev/vda /tmp/m && cd /tmp/m && \
         (yes ooooooooooooooo | dd of=old bs=64k; sync; rm old; sync; \
         fallocate -l {length} new && yes nnnnnnnnnnnnnnn | head -c {BLOCK} | \
         dd of=new bs={BLOCK} seek={offset} conv=notrunc,fsync) && \
         cd / && umount /tmp/m"
    );
    run(lab, &image, &script)?;
    let content = std::fs::read(&image)?;
    let text = |letter: u8| {
        let line: Vec<u8> = [vec![letter; 15], b"\n".to_vec()].concat();
        line.repeat(BLOCK / 16)
    };
    let (old, new) = (text(b'o'), text(b'n'));
    let blocks: Vec<&[u8]> = content.chunks_exact(1024).collect();
    let spoilt = blocks.iter().filter(|block| old.starts_with(block)).count();
    ensure!(spoilt > 1024, "only {spoilt} KiB had an old content");
    let at = content
        .chunks_exact(1024)
        .position(|block| new.starts_with(block))
        .context("the written block is not in the host's file")?
        * 1024;
    let start = at
        .checked_sub(WRITTEN * BLOCK)
        .context("written too early")?;
    let file = content
        .get(start..start + length)
        .context("written too late")?;
    let mut wanted = vec![0; length];
    wanted[WRITTEN * BLOCK..][..BLOCK].copy_from_slice(&new);
    let differs = file
        .iter()
        .zip(&wanted)
        .position(|(one, other)| one != other);
    ensure!(
        differs.is_none(),
        "byte {differs:?} of the file is neither zeroed nor what was written"
    );
    Ok(())
}
