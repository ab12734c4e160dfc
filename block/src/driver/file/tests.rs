//! Files of all kinds as disks, on the file systems that are there: the one of the temporary
//! directory and, where it exists, the one in memory.

mod device;
mod durability;
mod engines;
mod qemu;

use std::fs::{File, OpenOptions};
use std::future::Future;
use std::io::Read as _;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use sluice_aio::{EngineKind, EventLoop, IoBuffer, LoopConfig};

use super::opened::BOUNCE;
use super::*;
use crate::driver::Allocation;

const SIZE: usize = 1 << 20;
const BLOCK: usize = 4096;

fn run<T: 'static, F: Future<Output = T> + 'static>(test: F) -> T {
    let mut event_loop = EventLoop::new("test", &LoopConfig::default()).unwrap();
    event_loop.run_until(test).unwrap()
}

/// A directory on each file system that there is to test.
fn directories() -> Vec<tempfile::TempDir> {
    let mut directories = vec![tempfile::tempdir().unwrap()];
    match tempfile::tempdir_in("/dev/shm") {
        Ok(directory) => directories.push(directory),
        Err(error) => println!("SKIPPED in part: no /dev/shm: {error}"),
    }
    directories
}

fn filled(directory: &Path, name: &str, value: u8) -> PathBuf {
    let path = directory.join(name);
    std::fs::write(&path, vec![value; SIZE]).unwrap();
    path
}

fn allocated(path: &Path) -> usize {
    usize::try_from(std::fs::metadata(path).unwrap().blocks() * SECTOR).unwrap()
}

fn open(options: FileOptions) -> FileDriver {
    FileDriver::open(options).unwrap()
}

fn refusal(options: FileOptions) -> String {
    FileDriver::open(options).unwrap_err().to_string()
}

#[test]
fn what_is_no_disk_is_refused_with_its_reason() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let said = refusal(FileOptions::new(path("missing")));
    assert!(
        said.contains("missing") && said.contains("No such file"),
        "{said}"
    );
    let said = refusal(FileOptions::new(directory.path()));
    assert!(said.contains("a directory"), "{said}");
    for (size, word) in [
        (1, "less than one sector"),
        (511, "less than one"),
        (513, "not a multiple"),
    ] {
        File::create(path("odd")).unwrap().set_len(size).unwrap();
        let said = refusal(FileOptions::new(path("odd")));
        assert!(
            said.contains(word) && said.contains(&size.to_string()),
            "{said}"
        );
    }
    File::create(path("sector")).unwrap().set_len(512).unwrap();
    assert_eq!(open(FileOptions::new(path("sector"))).size(), 512);
    let said = refusal(FileOptions::new("/dev/null"));
    assert!(said.contains("not a regular file"), "{said}");
}

/// Opening a pipe that nobody writes to would wait for ever.
#[test]
fn a_pipe_is_refused_and_not_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&path).status();
    assert!(made.unwrap().success());
    for read_only in [true, false] {
        let mut options = FileOptions::new(&path);
        options.read_only = read_only;
        let said = refusal(options);
        assert!(said.contains("not a regular file"), "{said}");
    }
}

/// Neither what is there is taken for an image, nor is one made of it.
#[test]
fn what_keeps_no_data_is_refused_when_it_is_opened() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let made = std::process::Command::new("mkfifo")
        .arg(path("pipe"))
        .status();
    assert!(made.unwrap().success());
    let _listener = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
    std::fs::create_dir(path("directory")).unwrap();
    for (path, reason) in [
        (
            path("pipe"),
            "it is not a regular file; a disk image is a file",
        ),
        (
            path("socket"),
            "it is not a regular file; a disk image is a file",
        ),
        (
            path("directory"),
            "it is a directory; a disk image is a file",
        ),
        (
            "/dev/null".into(),
            "it is not a regular file; a disk image is a file",
        ),
        (
            "/proc/self/mem".into(),
            "it is one of the kernel's own files (proc), which keep no data; a disk image needs a file system that keeps some",
        ),
        (
            "/sys/kernel/uevent_seqnum".into(),
            "it is one of the kernel's own files (sysfs), which keep no data; a disk image needs a file system that keeps some",
        ),
    ] {
        let text = format!("Could not open '{}': {reason}", path.display());
        for read_only in [true, false] {
            let mut options = FileOptions::new(&path);
            options.read_only = read_only;
            assert_eq!(refusal(options), text);
        }
        let image = NewImage::open(&path, 1 << 20, &[]);
        assert_eq!(image.unwrap_err().to_string(), text);
    }
    // A link in /proc leads to a file that is kept.
    std::fs::write(path("image"), vec![1; 512]).unwrap();
    let file = File::open(path("image")).unwrap();
    let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    assert_eq!(open(FileOptions::new(link)).size(), 512);
}

/// A file that was passed has no path whose file system could be asked for.
#[test]
fn what_keeps_no_data_is_refused_when_it_was_passed() {
    let mut options = FileOptions::new("/dev/fdset/3");
    let passed = File::open("/proc/version").unwrap();
    options
        .fd_sets
        .add(Some(3), std::os::fd::OwnedFd::from(passed), None)
        .unwrap();
    options.read_only = true;
    let said = refusal(options);
    assert!(
        said.contains("one of the kernel's own files (proc)"),
        "{said}"
    );
}

#[test]
fn a_file_that_may_not_be_written_is_opened_without_writing_if_that_is_allowed() {
    let directory = tempfile::tempdir().unwrap();
    let path = filled(directory.path(), "image", 1);
    let mut permissions = std::fs::metadata(&path).unwrap().permissions();
    permissions.set_readonly(true);
    std::fs::set_permissions(&path, permissions).unwrap();
    if OpenOptions::new().write(true).open(&path).is_ok() {
        println!("SKIPPED: this user may write to read-only files");
        return;
    }
    let said = refusal(FileOptions::new(&path));
    assert!(said.contains("read-only=on"), "{said}");
    let mut options = FileOptions::new(&path);
    options.auto_read_only = true;
    assert!(!open(options).is_writable());
}

#[test]
fn bytes_come_back_by_every_engine_and_cache_mode() {
    for directory in directories() {
        for engine in [EngineKind::IoUring, EngineKind::Threads] {
            for direct in [false, true] {
                let path = filled(directory.path(), "image", 0);
                let mut options = FileOptions::new(&path);
                options.engine = engine;
                options.direct = direct;
                let driver = match FileDriver::open(options) {
                    Ok(driver) => driver,
                    Err(error) if direct => {
                        // Said with what to do about it.
                        assert!(error.to_string().contains("cache.direct=off"), "{error}");
                        continue;
                    }
                    Err(error) => panic!("{error}"),
                };
                run(async move {
                    let whole = IoBuffer::alloc(BLOCK + 512);
                    // Memory that O_DIRECT would refuse, and memory that it takes.
                    for at in [0, 1, 512] {
                        let buffer = whole.slice(at, BLOCK);
                        buffer.fill(0, BLOCK, u8::try_from(at % 255 + 1).unwrap());
                        let offset = 512 * (at as u64 + 1);
                        driver
                            .write(offset, buffer.clone(), RequestFlags::empty())
                            .await
                            .unwrap();
                        let back = IoBuffer::alloc(BLOCK + 512).slice(at, BLOCK);
                        driver.read(offset, back.clone()).await.unwrap();
                        assert_eq!(back.to_vec(), buffer.to_vec());
                        let raw = std::fs::read(&driver.path).unwrap();
                        let from = usize::try_from(offset).unwrap();
                        assert_eq!(raw[from..from + BLOCK], buffer.to_vec());
                    }
                    driver.flush().await.unwrap();
                });
            }
        }
    }
}

/// More than what is copied to aligned memory at once.
#[test]
fn a_large_buffer_of_any_alignment_goes_by_o_direct_too() {
    const LARGE: usize = 2 * BOUNCE + 512;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    File::create(&path).unwrap().set_len(4 << 20).unwrap();
    let mut options = FileOptions::new(&path);
    options.direct = true;
    let Ok(driver) = FileDriver::open(options) else {
        println!("SKIPPED: no O_DIRECT on {}", path.display());
        return;
    };
    run(async move {
        let bytes: Vec<u8> = (0..LARGE)
            .map(|at| u8::try_from(at % 251).unwrap())
            .collect();
        let buffer = IoBuffer::alloc(LARGE + 1).slice(1, LARGE);
        buffer.copy_from_slice(0, &bytes);
        driver
            .write(512, buffer, RequestFlags::empty())
            .await
            .unwrap();
        let back = IoBuffer::alloc(LARGE + 1).slice(1, LARGE);
        driver.read(512, back.clone()).await.unwrap();
        assert_eq!(back.to_vec(), bytes);
    });
}

#[test]
fn what_was_cut_off_behind_our_back_reads_as_zeroes() {
    for directory in directories() {
        let path = filled(directory.path(), "image", 7);
        let driver = open(FileOptions::new(&path));
        // In the middle of a sector, too.
        OpenOptions::new()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(BLOCK as u64 + 100)
            .unwrap();
        run(async move {
            let buffer = IoBuffer::alloc(2 * BLOCK);
            buffer.fill(0, 2 * BLOCK, 0xff);
            driver.read(0, buffer.clone()).await.unwrap();
            let bytes = buffer.to_vec();
            assert!(bytes[..BLOCK + 100].iter().all(|byte| *byte == 7));
            assert!(bytes[BLOCK + 100..].iter().all(|byte| *byte == 0));
            let mut at = 0;
            while at < SIZE as u64 {
                let status = driver.block_status(at, SIZE as u64 - at).await.unwrap();
                assert!(
                    status.len > 0 && status.len % SECTOR == 0,
                    "{at}: {status:?}"
                );
                let data = at < BLOCK as u64 + 100;
                assert_eq!(status.allocation == Allocation::Data, data, "{at}");
                at += status.len;
            }
        });
    }
}

#[test]
fn holes_and_data_are_told_apart() {
    for directory in directories() {
        let path = directory.path().join("image");
        let file = File::create(&path).unwrap();
        file.set_len(SIZE as u64).unwrap();
        file.write_all_at(&[1; BLOCK], 256 << 10).unwrap();
        let driver = open(FileOptions::new(&path));
        run(async move {
            let whole = SIZE as u64;
            let status = driver.block_status(0, whole).await.unwrap();
            assert_eq!(
                (status.allocation, status.len),
                (Allocation::Zero, 256 << 10)
            );
            let status = driver
                .block_status(256 << 10, whole - (256 << 10))
                .await
                .unwrap();
            assert_eq!(
                (status.allocation, status.len),
                (Allocation::Data, BLOCK as u64)
            );
            // Never more than was asked for, and from any sector on.
            let status = driver.block_status(512, 512).await.unwrap();
            assert_eq!((status.allocation, status.len), (Allocation::Zero, 512));
            let status = driver.block_status((256 << 10) + 512, 512).await.unwrap();
            assert_eq!((status.allocation, status.len), (Allocation::Data, 512));
            let status = driver.block_status(whole - 512, 512).await.unwrap();
            assert_eq!((status.allocation, status.len), (Allocation::Zero, 512));
        });
    }
}

fn zeroed(path: &Path, unmap: bool, flags: RequestFlags, offset: u64, len: u64) {
    let mut options = FileOptions::new(path);
    options.unmap = unmap;
    let driver = open(options);
    run(async move { driver.write_zeroes(offset, len, flags).await.unwrap() });
}

#[test]
fn zeroes_read_as_zeroes_and_are_holes_only_if_both_sides_want_that() {
    for directory in directories() {
        for (unmap, flags, holes) in [
            (true, RequestFlags::MAY_UNMAP, true),
            (true, RequestFlags::empty(), false),
            (false, RequestFlags::MAY_UNMAP, false),
            (false, RequestFlags::empty(), false),
        ] {
            let path = filled(directory.path(), "image", 9);
            zeroed(&path, unmap, flags, 512, SIZE as u64 - 1024);
            let bytes = std::fs::read(&path).unwrap();
            assert!(bytes[512..SIZE - 512].iter().all(|byte| *byte == 0));
            assert!(
                bytes[..512]
                    .iter()
                    .chain(&bytes[SIZE - 512..])
                    .all(|byte| *byte == 9)
            );
            assert_eq!(
                allocated(&path) < SIZE / 2,
                holes,
                "{} {unmap} {flags:?}",
                path.display()
            );
        }
    }
}

/// Zeroing what is a hole already must not fill a sparse image.
#[test]
fn zeroes_onto_holes_cost_nothing() {
    for directory in directories() {
        let path = directory.path().join("image");
        let file = File::create(&path).unwrap();
        file.set_len(SIZE as u64).unwrap();
        file.write_all_at(&[1; BLOCK], 512 << 10).unwrap();
        zeroed(&path, false, RequestFlags::empty(), 0, SIZE as u64);
        assert!(std::fs::read(&path).unwrap().iter().all(|byte| *byte == 0));
        assert!(allocated(&path) <= 64 << 10, "{}", allocated(&path));
    }
}

#[test]
fn discards_reach_the_file_system_only_if_wanted() {
    for directory in directories() {
        for unmap in [true, false] {
            let path = filled(directory.path(), "image", 3);
            let mut options = FileOptions::new(&path);
            options.unmap = unmap;
            let driver = open(options);
            run(async move {
                driver.discard(0, SIZE as u64 / 2).await.unwrap();
                driver.discard(0, 0).await.unwrap();
            });
            assert_eq!(allocated(&path) < SIZE, unmap, "{}", path.display());
            let bytes = std::fs::read(&path).unwrap();
            assert!(bytes[SIZE / 2..].iter().all(|byte| *byte == 3));
        }
    }
}

fn new_image(path: &Path, size: usize) -> Arc<NewImage> {
    Arc::new(NewImage::open(path, size as u64, &[]).unwrap())
}

/// As for a job that begins.
fn empty(image: &Arc<NewImage>) {
    image.give();
    let image = Arc::clone(image);
    run(async move { image.emptied().await }).unwrap();
}

fn no_image(path: &Path, size: u64, in_use: &[FileIdentity]) -> String {
    let refused = NewImage::open(path, size, in_use);
    refused.unwrap_err().to_string()
}

#[test]
fn a_new_image_is_empty_and_sparse() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("new");
    empty(&new_image(&path, SIZE));
    assert_eq!(std::fs::read(&path).unwrap(), vec![0; SIZE]);
    assert!(allocated(&path) < SIZE);
    let path = filled(directory.path(), "old", 5);
    for size in [2 * SIZE, SIZE / 2] {
        empty(&new_image(&path, size));
        assert_eq!(std::fs::read(&path).unwrap(), vec![0; size]);
        assert!(allocated(&path) < SIZE);
    }
    // The lock was only for the making.
    let driver = open(FileOptions::new(&path));
    driver.prepare_access(Access::of_device(false)).unwrap();
}

/// Whatever sizes the two have.
#[test]
fn a_file_holds_what_it_held_until_it_is_emptied() {
    let directory = tempfile::tempdir().unwrap();
    let path = filled(directory.path(), "image", 5);
    let before = std::fs::read(&path).unwrap();
    for size in [SIZE / 2, SIZE, 2 * SIZE] {
        let image = new_image(&path, size);
        let driver = FileDriver::open_new(FileOptions::new(&path), &image).unwrap();
        assert_eq!(driver.size(), size as u64);
        driver.prepare_access(Access::of_device(false)).unwrap();
        assert!(std::fs::read(&path).unwrap().starts_with(&before));
        image.undo();
        assert_eq!(std::fs::read(&path).unwrap(), before);
    }
    // Before it is the job's nobody can have it emptied.
    let image = new_image(&path, SIZE);
    let driver = FileDriver::open_new(FileOptions::new(&path), &image).unwrap();
    run(async move {
        let write = driver.write(0, IoBuffer::alloc(512), RequestFlags::empty());
        assert_eq!(write.await.unwrap_err().errno(), libc::EBUSY);
        let status = driver.block_status(0, 512);
        assert_eq!(status.await.unwrap_err().errno(), libc::EBUSY);
        driver.flush().await.unwrap();
    });
    assert_eq!(std::fs::read(&path).unwrap(), before);
    empty(&image);
    image.undo();
    assert_eq!(std::fs::read(&path).unwrap(), vec![0; SIZE]);
}

/// Whatever comes first, and however large the file was.
#[test]
fn no_request_meets_what_a_file_held() {
    type Request = fn(Arc<FileDriver>) -> BlockFuture<'static, ()>;
    let requests: [Request; 7] = [
        |driver| {
            BlockFuture::new(async move {
                let buffer = IoBuffer::alloc(512);
                buffer.copy_from_slice(0, &[9; 512]);
                driver.read(0, buffer.clone()).await?;
                assert_eq!(buffer.to_vec(), [0; 512]);
                Ok(())
            })
        },
        |driver| {
            BlockFuture::new(async move {
                let status = driver.block_status(0, SIZE as u64).await?;
                assert_eq!(status.allocation, Allocation::Zero);
                Ok(())
            })
        },
        |driver| {
            BlockFuture::new(async move {
                let flags = RequestFlags::MAY_UNMAP;
                driver.write_zeroes(0, 512, flags).await
            })
        },
        |driver| BlockFuture::new(async move { driver.discard(0, 512).await }),
        |driver| BlockFuture::new(async move { driver.flush().await }),
        |driver| BlockFuture::new(async move { driver.truncate(SIZE as u64).await }),
        |driver| {
            BlockFuture::new(async move {
                assert!(driver.place(0, 512).unwrap().ready().await);
                assert!(driver.old().is_none(), "a worker copies to what it holds");
                Ok(())
            })
        },
    ];
    let directory = tempfile::tempdir().unwrap();
    for request in requests {
        for old in [SIZE / 2, SIZE, 2 * SIZE] {
            let path = directory.path().join("image");
            std::fs::write(&path, vec![5; old]).unwrap();
            let image = new_image(&path, SIZE);
            let driver = FileDriver::open_new(FileOptions::new(&path), &image).unwrap();
            let buffer = IoBuffer::alloc(512);
            assert!(driver.transfer(0, buffer).is_err());
            // A mirror looks when it starts whether the kernel can copy.
            assert!(driver.place(0, 512).unwrap().image.is_some());
            image.give();
            assert!(driver.place(0, 512).unwrap().image.is_some());
            let driver = Arc::new(driver);
            run(async move {
                // Many at once: what one has written the next does not lose.
                let writes = (1..9_u64).map(|at| {
                    let data = IoBuffer::alloc(512);
                    data.copy_from_slice(0, &[3; 512]);
                    driver.write(at << 16, data, RequestFlags::empty())
                });
                let writes = futures_util::future::join_all(writes);
                let first = request(Arc::clone(&driver));
                let (first, others) = futures_util::future::join(first, writes).await;
                first.unwrap();
                assert!(others.iter().all(Result::is_ok));
                assert!(driver.place(0, 512).unwrap().image.is_none());
            });
            let after = std::fs::read(&path).unwrap();
            assert_eq!(after.len(), SIZE);
            for (at, byte) in after.iter().enumerate() {
                let is_written = (1..9).contains(&(at >> 16)) && at % (1 << 16) < 512;
                assert_eq!(*byte, if is_written { 3 } else { 0 }, "{at}");
            }
        }
    }
}

/// Another program, which has got the file once nobody here had it locked any more.
#[test]
fn what_somebody_else_has_by_now_is_left_to_them() {
    let directory = tempfile::tempdir().unwrap();
    let made = directory.path().join("made");
    let grown = filled(directory.path(), "grown", 5);
    for path in [&made, &grown] {
        let image = new_image(path, 2 * SIZE);
        lock::finish(&image.file(), Access::NONE);
        let other = open(FileOptions::new(path));
        other.prepare_access(Access::of_device(false)).unwrap();
        image.undo();
        assert_eq!(std::fs::metadata(path).unwrap().len(), 2 * SIZE as u64);
    }
}

#[test]
fn what_was_made_for_nothing_goes_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("new");
    new_image(&path, SIZE).undo();
    assert!(!path.exists());
    // Nobody has to ask for that.
    drop(new_image(&path, SIZE));
    assert!(!path.exists());
    // That it went in another way, its directory with it, is no failure.
    let within = directory.path().join("within");
    std::fs::create_dir(&within).unwrap();
    let image = new_image(&within.join("new"), SIZE);
    std::fs::remove_dir_all(&within).unwrap();
    image.undo();
    assert!(!within.exists());
    // Nothing can be that large.
    no_image(&path, !511, &[]);
    assert!(!path.exists());
    // A link to nothing is there before and after.
    let link = directory.path().join("link");
    std::os::unix::fs::symlink("new", &link).unwrap();
    let image = new_image(&link, SIZE);
    assert!(path.exists());
    image.undo();
    assert!(!path.exists());
    assert_eq!(link.read_link().unwrap(), PathBuf::from("new"));
    // Somebody else's file by now.
    let image = new_image(&path, SIZE);
    std::fs::remove_file(&path).unwrap();
    filled(directory.path(), "new", 5);
    image.undo();
    assert_eq!(std::fs::read(&path).unwrap(), vec![5; SIZE]);
    // The job's is the job's.
    let image = new_image(&directory.path().join("given"), SIZE);
    empty(&image);
    drop(image);
    assert!(directory.path().join("given").exists());
    // Going round in a circle ends.
    let circle = directory.path().join("circle");
    std::os::unix::fs::symlink("circle", &circle).unwrap();
    no_image(&circle, 512, &[]);
}

#[test]
fn a_file_in_use_is_not_emptied() {
    let directory = tempfile::tempdir().unwrap();
    let path = filled(directory.path(), "image", 5);
    let driver = open(FileOptions::new(&path));
    let before = std::fs::read(&path).unwrap();
    let identity = driver.file_identity().unwrap();
    let said = no_image(&path, 512, &[identity]);
    assert!(said.contains("another block node"), "{said}");
    // By another name, it is still the same file.
    let link = directory.path().join("link");
    std::fs::hard_link(&path, &link).unwrap();
    no_image(&link, 512, &[identity]);
    // Unknown here, but locked by somebody.
    driver.prepare_access(Access::of_device(false)).unwrap();
    for size in [512, 2 * SIZE as u64] {
        let said = no_image(&path, size, &[]);
        assert!(said.contains("\"write\" lock"), "{said}");
        assert_eq!(std::fs::read(&path).unwrap(), before);
    }
    driver.finish_access(Access::NONE);
    // Of two who want it one gets it.
    let image = new_image(&path, 512);
    let said = no_image(&path, 512, &[]);
    assert!(said.contains("\"write\" lock"), "{said}");
    empty(&image);
}

#[test]
fn images_are_made_only_where_files_can_be() {
    let directory = tempfile::tempdir().unwrap();
    for path in [
        directory.path().to_owned(),
        directory.path().join("no/image"),
        PathBuf::from("/dev/null"),
    ] {
        let said = no_image(&path, 512, &[]);
        assert!(said.contains(path.to_str().unwrap()), "{said}");
    }
    let path = filled(directory.path(), "image", 5);
    for size in [1, 511, 513, !511] {
        let said = no_image(&path, size, &[]);
        assert!(said.contains(path.to_str().unwrap()), "{said}");
        assert_eq!(std::fs::read(&path).unwrap(), vec![5; SIZE]);
    }
}

#[test]
fn there_is_one_writer_among_all_who_opened_the_file() {
    for directory in directories() {
        let path = filled(directory.path(), "image", 1);
        let (first, second) = (open(FileOptions::new(&path)), open(FileOptions::new(&path)));
        first.prepare_access(Access::of_device(false)).unwrap();
        let said = second
            .prepare_access(Access::of_device(false))
            .unwrap_err()
            .to_string();
        assert!(
            said.contains("Is another process using the image, or another node?"),
            "{said}"
        );
        // The refused one leaves no locks that would stand in anybody's way.
        second.finish_access(Access::NONE);
        first.finish_access(Access::NONE);
        first.prepare_access(Access::of_device(false)).unwrap();
        drop(first);
        second.prepare_access(Access::of_device(false)).unwrap();
    }
}

/// `qemu-io`, if it is there, as holder of the lock and as the one who is refused.
#[test]
fn qemus_programs_respect_the_locks_and_have_theirs_respected() {
    let directory = tempfile::tempdir().unwrap();
    let path = filled(directory.path(), "image", 1);
    let qemu_io = |commands: &[&str]| {
        let mut command = std::process::Command::new("qemu-io");
        command
            .args(["-f", "raw"])
            .args(commands.iter().flat_map(|text| ["-c", text]));
        command.arg(&path).stdin(std::process::Stdio::piped());
        command
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped());
        command.spawn()
    };
    let Ok(child) = qemu_io(&["read 0 512"]) else {
        println!("SKIPPED: there is no qemu-io here");
        return;
    };
    assert!(child.wait_with_output().unwrap().status.success());
    let driver = open(FileOptions::new(&path));
    driver.prepare_access(Access::of_device(false)).unwrap();
    let output = qemu_io(&["read 0 512"])
        .unwrap()
        .wait_with_output()
        .unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("\"write\" lock"), "{said}");
    driver.finish_access(Access::NONE);
    // Now it is the holder: without commands it prompts for them with the image open.
    let mut child = qemu_io(&[]).unwrap();
    let mut prompt = [0];
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut prompt)
        .unwrap();
    driver.prepare_access(Access::of_device(false)).unwrap_err();
    driver.finish_access(Access::NONE);
    drop(child.stdin.take());
    child.wait().unwrap();
    driver.prepare_access(Access::of_device(false)).unwrap();
}
