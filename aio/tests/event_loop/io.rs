//! File I/O through both engines: shapes, sizes, errors, and many operations at once.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Seek as _, SeekFrom, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags, memfd_create, openat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen,
};
use sluice_aio::{Aside, EngineKind, EventLoop, IoBuffer, LoopConfig, Polling, Route, current};
use vm_memory::GuestAddress;
use vmm_sys_util::signal::Killable as _;

use crate::support::{
    ENDLESS, ENGINES, PAGE, alone_loop, event_loop, has_ring, pipe, ram, thread_id, until_asleep,
    ways,
};

fn file(content: &[u8]) -> Arc<Aside<File>> {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(content, 0).unwrap();
    Arc::new(file.into())
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from(at % 251).unwrap()).collect()
}

#[test]
fn what_is_written_is_read_back() {
    for (engine, mut event_loop) in ways() {
        let back = event_loop
            .run_until(async move {
                let file = file(&[]);
                let data = IoBuffer::copied_from(&pattern(10_000));
                current::write_at(engine, &file, 123, data).await.unwrap();
                current::fdatasync(engine, &file).await.unwrap();
                let back = IoBuffer::alloc(20_000);
                let read = current::read_at(engine, &file, 0, back.clone());
                let count = read.await.unwrap();
                back.to_vec()[..count].to_vec()
            })
            .unwrap();
        assert_eq!(back[..123], [0; 123]);
        assert_eq!(back[123..], pattern(10_000));
    }
}

#[test]
fn a_file_that_always_waits_is_read_and_written_in_order() {
    for (engine, mut event_loop) in ways() {
        let file = File::from(memfd_create("waits", MemfdFlags::CLOEXEC).unwrap());
        let route = Route::to(&file, engine);
        assert_eq!(route.engine(), engine);
        let file = Arc::new(file.into());
        let read = event_loop.run_until(async move {
            // Each kind of memory, and a read of what another operation has written.
            for (at, len) in [(0, 10_000), (10_000, 3 * PAGE)] {
                let whole = IoBuffer::copied_from(&pattern(len));
                current::write_at(route, &file, at, whole).await.unwrap();
            }
            let ram = ram(8);
            let ranges: Vec<_> = (0..4)
                .map(|piece| (GuestAddress(piece * 2 * PAGE as u64), PAGE))
                .collect();
            let scattered = IoBuffer::from_guest(&ram, &ranges).unwrap();
            let read = current::read_at(route, &file, 10_000, scattered.clone());
            (read.await.unwrap(), scattered.to_vec())
        });
        let (count, bytes) = read.unwrap();
        assert_eq!(count, 3 * PAGE);
        assert_eq!(bytes[..count], pattern(count));
    }
}

#[test]
fn more_segments_than_one_call_can_take() {
    const SEGMENTS: usize = 3000;
    for (engine, mut event_loop) in ways() {
        event_loop
            .run_until(async move {
                let ram = ram(SEGMENTS);
                // Half of every page, last page first: no two of them touch.
                let ranges: Vec<_> = (0..SEGMENTS)
                    .rev()
                    .map(|page| (GuestAddress((page * PAGE) as u64), PAGE / 2))
                    .collect();
                let buffer = IoBuffer::from_guest(&ram, &ranges).unwrap();
                let expected = pattern(buffer.len());
                buffer.copy_from_slice(0, &expected);
                let file = file(&[]);
                current::write_at(engine, &file, 0, buffer.clone())
                    .await
                    .unwrap();
                let mut written = vec![0; expected.len()];
                file.read_exact_at(&mut written, 0).unwrap();
                assert!(written == expected, "written wrongly");
                buffer.fill(0, buffer.len(), 0);
                let count = current::read_at(engine, &file, 0, buffer.clone()).await;
                assert_eq!(count.unwrap(), expected.len());
                assert!(buffer.to_vec() == expected, "read wrongly");
            })
            .unwrap();
    }
}

#[test]
fn a_read_ends_at_the_end_of_the_file() {
    for (engine, mut event_loop) in ways() {
        event_loop
            .run_until(async move {
                let file = file(&pattern(1000));
                let ram = ram(4);
                let ranges = [(GuestAddress(0), 600), (GuestAddress(0x2000), 600)];
                let scattered = IoBuffer::from_guest(&ram, &ranges).unwrap();
                for (buffer, offset, expected) in [
                    (IoBuffer::alloc(1500), 0, 1000),
                    (scattered, 0, 1000),
                    (IoBuffer::alloc(10), 995, 5),
                    (IoBuffer::alloc(10), 1000, 0),
                    (IoBuffer::alloc(10), 5000, 0),
                    (IoBuffer::empty(), 0, 0),
                ] {
                    let read = current::read_at(engine, &file, offset, buffer.clone());
                    assert_eq!(read.await.unwrap(), expected);
                    let start = usize::try_from(offset).unwrap().min(1000);
                    let expected = &pattern(1000)[start..start + expected];
                    assert_eq!(buffer.to_vec()[..expected.len()], *expected);
                }
            })
            .unwrap();
    }
}

#[test]
fn the_kernels_errors_are_passed_on() {
    for (engine, mut event_loop) in ways() {
        event_loop
            .run_until(async move {
                let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
                let full = Arc::new(full.into());
                let data = IoBuffer::copied_from(&[1; 512]);
                let write = current::write_at(engine, &full, 0, data.clone());
                assert_eq!(write.await.unwrap_err().kind(), ErrorKind::StorageFull);
                // A file that is open only for writing can't be read, and the reverse.
                let read = current::read_at(engine, &full, 0, data.clone());
                assert_eq!(read.await.unwrap_err().raw_os_error(), Some(libc::EBADF));
                let zero = Arc::new(File::open("/dev/zero").unwrap().into());
                let write = current::write_at(engine, &zero, 0, data);
                assert_eq!(write.await.unwrap_err().raw_os_error(), Some(libc::EBADF));
                let sync = current::fdatasync(engine, &zero).await;
                assert_eq!(sync.unwrap_err().raw_os_error(), Some(libc::EINVAL));
            })
            .unwrap();
    }
}

#[test]
fn an_impossible_offset_is_an_error() {
    for (engine, mut event_loop) in ways() {
        event_loop
            .run_until(async move {
                let file = file(&pattern(1000));
                let largest = i64::MAX.unsigned_abs();
                for offset in [u64::MAX, largest + 1, largest - 5, u64::MAX - 5] {
                    let data = IoBuffer::alloc(10);
                    let read = current::read_at(engine, &file, offset, data.clone());
                    assert_eq!(read.await.unwrap_err().kind(), ErrorKind::InvalidInput);
                    let write = current::write_at(engine, &file, offset, data);
                    assert_eq!(write.await.unwrap_err().kind(), ErrorKind::InvalidInput);
                }
                let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                let refused = current::fallocate(engine, &file, punch, u64::MAX, 1).await;
                assert_eq!(refused.unwrap_err().kind(), ErrorKind::InvalidInput);
            })
            .unwrap();
    }
}

#[test]
fn punching_a_hole_zeroes_it() {
    for (engine, mut event_loop) in ways() {
        event_loop
            .run_until(async move {
                let file = file(&[0xff; 3 * PAGE]);
                let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                let page = PAGE as u64;
                current::fallocate(engine, &file, punch, page, page)
                    .await
                    .unwrap();
                let mut content = vec![1; 3 * PAGE];
                file.read_exact_at(&mut content, 0).unwrap();
                let (before, rest) = content.split_at(PAGE);
                let (hole, after) = rest.split_at(PAGE);
                assert!([before, after].iter().all(|part| **part == [0xff; PAGE]));
                assert_eq!(*hole, [0; PAGE]);
            })
            .unwrap();
    }
}

/// More at once than the submission and the completion queue hold together.
#[test]
fn more_operations_than_the_queues_hold() {
    const OPERATIONS: usize = 5000;
    for (engine, mut event_loop) in ways() {
        event_loop
            .run_until(async move {
                let content = pattern(OPERATIONS + 16);
                let file = file(&content);
                let tasks: Vec<_> = (0..OPERATIONS)
                    .map(|at| {
                        let file = Arc::clone(&file);
                        current::spawn_local(async move {
                            let buffer = IoBuffer::alloc(16);
                            let read = current::read_at(engine, &file, at as u64, buffer.clone());
                            assert_eq!(read.await.unwrap(), 16);
                            buffer.to_vec()
                        })
                    })
                    .collect();
                for (at, task) in tasks.into_iter().enumerate() {
                    assert_eq!(task.await.unwrap(), content[at..at + 16]);
                }
            })
            .unwrap();
    }
}

/// Operations that end all at once, long after they were submitted, overflow the completion queue.
#[test]
fn completions_that_overflow_their_queue_are_not_lost() {
    const OPERATIONS: usize = 3000;
    if !has_ring() {
        return;
    }
    let mut event_loop = event_loop();
    let (reader, mut writer) = pipe();
    event_loop
        .run_until(async move {
            let tasks: Vec<_> = (0..OPERATIONS)
                .map(|_| {
                    let reader = Arc::clone(&reader);
                    current::spawn_local(async move {
                        let byte = IoBuffer::alloc(1);
                        current::read_at(EngineKind::IoUring, &reader, 0, byte).await
                    })
                })
                .collect();
            for _ in 0..4 {
                current::yield_now().await;
            }
            writer.write_all(&[7; OPERATIONS]).unwrap();
            for task in tasks {
                assert_eq!(task.await.unwrap().unwrap(), 1);
            }
        })
        .unwrap();
}

/// Few enough to be handed over by the call that sleeps, and too many for it.
#[test]
fn a_loop_that_is_alone_hears_of_completions_however_it_sleeps() {
    for reads in [1, 300] {
        let mut event_loop = alone_loop(Polling::OFF);
        let (reader, mut writer) = pipe();
        let sleeper = thread_id();
        let (began, begun) = mpsc::channel();
        let writing = thread::spawn(move || {
            for _ in 0..3 {
                begun.recv().unwrap();
                until_asleep(sleeper);
                writer.write_all(&vec![7; reads]).unwrap();
            }
        });
        event_loop
            .run_until(async move {
                for _ in 0..3 {
                    let tasks: Vec<_> = (0..reads)
                        .map(|_| {
                            let reader = Arc::clone(&reader);
                            current::spawn_local(async move {
                                let byte = IoBuffer::alloc(1);
                                current::read_at(EngineKind::IoUring, &reader, 0, byte).await
                            })
                        })
                        .collect();
                    began.send(()).unwrap();
                    for task in tasks {
                        assert_eq!(task.await.unwrap().unwrap(), 1);
                    }
                }
            })
            .unwrap();
        writing.join().unwrap();
    }
}

#[test]
fn a_loop_that_is_alone_and_polls_sees_completions() {
    let mut event_loop = alone_loop(ENDLESS);
    let (reader, mut writer) = pipe();
    let (ask, asked) = mpsc::channel();
    let writing = thread::spawn(move || {
        while asked.recv().is_ok() {
            writer.write_all(&[7]).unwrap();
        }
    });
    event_loop
        .run_until(async move {
            for _ in 0..100 {
                ask.send(()).unwrap();
                let byte = IoBuffer::alloc(1);
                let read = current::read_at(EngineKind::IoUring, &reader, 0, byte);
                assert_eq!(read.await.unwrap(), 1);
            }
        })
        .unwrap();
    writing.join().unwrap();
}

#[test]
fn a_loop_without_a_ring_serves_ring_files_with_threads() {
    let config = LoopConfig {
        engine: EngineKind::Threads,
        ..LoopConfig::default()
    };
    let mut event_loop = EventLoop::new("test", &config).unwrap();
    let count = event_loop
        .run_until(async {
            let buffer = IoBuffer::alloc(100);
            current::read_at(EngineKind::IoUring, &file(&[7; 50]), 0, buffer).await
        })
        .unwrap();
    assert_eq!(count.unwrap(), 50);
}

/// A number that no other thread of this process is given meanwhile.
const FAR_AWAY: i32 = 900;
/// Another one.
const CLOSED_EARLY: i32 = 1000;

#[test]
fn a_descriptor_closed_behind_the_loops_back_fails_only_its_own_operations() {
    for (engine, mut event_loop) in ways() {
        event_loop
            .run_until(async move {
                let content = pattern(PAGE);
                let other = file(&content);
                let victim = rustix::io::fcntl_dupfd_cloexec(&*file(&content), FAR_AWAY).unwrap();
                let victim: Arc<Aside<File>> = Arc::new(File::from(victim).into());
                let read = |file: &Arc<Aside<File>>| {
                    let file = Arc::clone(file);
                    current::spawn_local(async move {
                        let buffer = IoBuffer::alloc(PAGE);
                        current::read_at(engine, &file, 0, buffer).await
                    })
                };
                assert_eq!(read(&victim).await.unwrap().unwrap(), PAGE);
                close_behind_its_back(&victim);
                let tasks = [read(&other), read(&victim), read(&other)];
                let [first, second, third] = tasks;
                assert_eq!(first.await.unwrap().unwrap(), PAGE);
                let error = second.await.unwrap().unwrap_err();
                assert_eq!(error.raw_os_error(), Some(libc::EBADF));
                assert_eq!(third.await.unwrap().unwrap(), PAGE);
                let sync = current::fdatasync(engine, &victim).await;
                assert_eq!(sync.unwrap_err().raw_os_error(), Some(libc::EBADF));
                // Closing it again would be somebody else's descriptor.
                std::mem::forget(victim);
            })
            .unwrap();
    }
}

/// Worker threads have no operation that stays in the kernel for as long as a test likes.
#[test]
fn a_descriptor_closed_under_an_operation_in_flight_does_it_no_harm() {
    const LATE: &[u8] = b"late";
    if !has_ring() {
        return;
    }
    let mut event_loop = event_loop();
    event_loop
        .run_until(async {
            let (reader, mut writer) = pipe();
            let victim = rustix::io::fcntl_dupfd_cloexec(&*reader, CLOSED_EARLY).unwrap();
            let victim: Arc<Aside<File>> = Arc::new(File::from(victim).into());
            drop(reader);
            let watched = Arc::clone(&victim);
            let read = current::spawn_local(async move {
                // No more than comes at once: the rest would be asked for by the number again.
                let buffer = IoBuffer::alloc(LATE.len());
                current::read_at(EngineKind::IoUring, &watched, 0, buffer).await
            });
            // The task starts its read in the first turn, and the kernel has it after the next.
            for _ in 0..3 {
                current::yield_now().await;
            }
            close_behind_its_back(&victim);
            // What has the number now is not what is read.
            let other = file(&pattern(PAGE));
            let heir = rustix::io::fcntl_dupfd_cloexec(&*other, CLOSED_EARLY).unwrap();
            assert_eq!(heir.as_raw_fd(), victim.as_raw_fd());
            // Nobody but the kernel still has the pipe's other end.
            writer.write_all(LATE).unwrap();
            assert_eq!(read.await.unwrap().unwrap(), LATE.len());
            let buffer = IoBuffer::alloc(PAGE);
            let read = current::read_at(EngineKind::IoUring, &other, 0, buffer);
            assert_eq!(read.await.unwrap(), PAGE);
            // Closing it again would be somebody else's descriptor.
            std::mem::forget(victim);
        })
        .unwrap();
}

/// The kernel's log, at its end: one of few files at an offset of which a plain call may not be able to read
/// without waiting.
fn log_at_its_end() -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let log = File::from(rustix::fs::open("/dev/kmsg", flags, Mode::empty())?);
    (&log).seek(SeekFrom::End(0))?;
    Ok(log)
}

/// A worker is not to wait for what its file's owner said must not be waited for.
#[test]
fn a_worker_that_would_have_to_wait_says_so() {
    /// No entry of the log is longer.
    const LONG: usize = 16 * PAGE;
    let log = match log_at_its_end() {
        Ok(log) => Arc::new(log.into()),
        Err(error) => return println!("SKIPPED: the kernel's log can't be read here: {error}"),
    };
    let read = event_loop().run_until(async move {
        let buffer = IoBuffer::alloc(LONG);
        current::read_at(EngineKind::Threads, &log, 0, buffer).await
    });
    assert_eq!(read.unwrap().unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn a_device_without_room_fails_the_write_and_nothing_else() {
    for (engine, mut event_loop) in ways() {
        event_loop
            .run_until(async move {
                let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
                let full = Arc::new(full.into());
                for _ in 0..3 {
                    let data = IoBuffer::copied_from(&pattern(PAGE));
                    let error = current::write_at(engine, &full, 0, data).await;
                    let error = error.unwrap_err();
                    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{engine:?}");
                }
                let file = file(&pattern(PAGE));
                let data = IoBuffer::copied_from(&pattern(PAGE));
                current::write_at(engine, &file, 0, data).await.unwrap();
            })
            .unwrap();
    }
}

/// A file in a memory file system of its own that has so many pages, and is in no directory.
fn small_file(pages: usize) -> Option<File> {
    let made = (|| {
        let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        // The root directory takes no page.
        fsconfig_set_string(&context, "size", (pages * PAGE).to_string())?;
        fsconfig_create(&context)?;
        let (flags, attributes) = (FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty());
        let mount = fsmount(&context, flags, attributes)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
        openat(&mount, "disk", flags, Mode::RUSR | Mode::WUSR)
    })();
    if let Err(error) = &made {
        println!("SKIPPED: no file system can be made here: {error}");
    }
    made.ok().map(File::from)
}

#[test]
fn a_file_system_that_fills_up_in_the_middle_of_a_write_fails_it() {
    for (engine, mut event_loop) in ways() {
        let Some(file) = small_file(4) else { return };
        for route in [Route::from(engine), Route::to(&file, engine)] {
            let file: Arc<Aside<File>> = Arc::new(file.try_clone().unwrap().into());
            file.set_len(0).unwrap();
            event_loop
                .run_until(async move {
                    let data = IoBuffer::copied_from(&pattern(6 * PAGE));
                    let write = current::write_at(route, &file, 0, data.clone()).await;
                    let errno = write.unwrap_err().raw_os_error();
                    assert_eq!(errno, Some(libc::ENOSPC), "{route:?}");
                    // The kernel has moved what there was room for, and said so first.
                    let mut back = vec![0; 4 * PAGE];
                    file.read_exact_at(&mut back, 0).unwrap();
                    assert!(back == pattern(6 * PAGE)[..4 * PAGE]);
                    assert_eq!(file.metadata().unwrap().len(), 4 * PAGE as u64);
                    // What there is room for is written as before.
                    let write = current::write_at(route, &file, 0, data.slice(0, 4 * PAGE));
                    write.await.unwrap();
                })
                .unwrap();
        }
    }
}

/// A signal that is handled without `SA_RESTART` interrupts every system call in which a loop sleeps.
#[test]
fn signals_disturb_no_loop() {
    extern "C" fn handle(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    const SIGNALS: usize = 200;
    let signal = vmm_sys_util::signal::SIGRTMIN();
    vmm_sys_util::signal::register_signal_handler(signal, handle).unwrap();
    for engine in ENGINES {
        for alone in [false, true] {
            if engine == EngineKind::IoUring && !has_ring() {
                continue;
            }
            let (reader, mut writer) = pipe();
            let (sender, identity) = mpsc::channel();
            let thread = thread::spawn(move || {
                let config = LoopConfig {
                    alone,
                    ..LoopConfig::default()
                };
                let mut event_loop = EventLoop::new("test", &config).unwrap();
                sender.send(thread_id()).unwrap();
                let buffer = IoBuffer::alloc(4);
                let read = event_loop.run_until(async move {
                    // A timer as well, whose end a sleep in the ring must hear of.
                    let timer = current::spawn_local(current::sleep(Duration::from_millis(1)));
                    timer.await.unwrap();
                    if engine == EngineKind::Threads {
                        // A plain positional read refuses a pipe; this loop sleeps in epoll.
                        current::readable(&*reader).await.unwrap();
                        let mut bytes = vec![0; 4];
                        return (rustix::io::read(&*reader, &mut bytes).unwrap(), bytes);
                    }
                    let read = current::read_at(engine, &reader, 0, buffer.clone());
                    (read.await.unwrap(), buffer.to_vec())
                });
                let turns = event_loop.context().stats().turns;
                (read.unwrap(), turns)
            });
            let id = identity.recv().unwrap();
            for _ in 0..SIGNALS {
                until_asleep(id);
                thread.kill(signal).unwrap();
            }
            writer.write_all(b"data").unwrap();
            let ((count, bytes), turns) = thread.join().unwrap();
            assert_eq!((count, &bytes[..]), (4, &b"data"[..]), "{engine:?}");
            // It was really woken, or this test shows nothing.
            assert!(turns > 10, "{turns} turns with {SIGNALS} signals");
        }
    }
}

#[expect(unsafe_code, reason = "closes what somebody else owns, on purpose")]
fn close_behind_its_back(file: &File) {
    // SAFETY: the number is used by nobody else, and its owner never closes it.
    drop(unsafe { OwnedFd::from_raw_fd(file.as_raw_fd()) });
}

#[test]
fn syncing_and_discarding_reach_the_file() {
    for (engine, mut event_loop) in ways() {
        event_loop
            .run_until(async move {
                let file = file(&pattern(PAGE));
                current::fsync(engine, &file).await.unwrap();
                current::fdatasync(engine, &file).await.unwrap();
                // Only a block device can be told to discard; that it was told shows here.
                let refused = current::discard(engine, &file, 0, PAGE as u64).await;
                assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::ENOTTY));
                let pipe = pipe().0;
                let refused = current::fsync(engine, &pipe).await;
                assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EINVAL));
            })
            .unwrap();
    }
}

/// A file that may not grow: what does not fit fails in the middle of the request.
#[test]
fn an_error_in_the_middle_of_a_write_is_its_result() {
    for (engine, mut event_loop) in ways() {
        event_loop
            .run_until(async move {
                let memory = memfd_create("sealed", MemfdFlags::ALLOW_SEALING).unwrap();
                rustix::fs::ftruncate(&memory, 2 * PAGE as u64).unwrap();
                rustix::fs::fcntl_add_seals(&memory, SealFlags::GROW).unwrap();
                let file = Arc::new(File::from(memory).into());
                let data = IoBuffer::copied_from(&pattern(4 * PAGE));
                let write = current::write_at(engine, &file, 0, data.clone()).await;
                assert_eq!(write.unwrap_err().kind(), ErrorKind::PermissionDenied);
                // What fits can still be written.
                let write = current::write_at(engine, &file, 0, data.slice(0, 2 * PAGE));
                write.await.unwrap();
                let mut back = vec![0; 2 * PAGE];
                file.read_exact_at(&mut back, 0).unwrap();
                assert!(back == pattern(4 * PAGE)[..2 * PAGE]);
            })
            .unwrap();
    }
}

/// A pipe that takes and gives less than is asked makes every transfer a short one.
#[test]
fn short_transfers_are_completed() {
    const LEN: usize = 1 << 20;
    if !has_ring() {
        return;
    }
    let mut event_loop = event_loop();
    let (reader, writer) = pipe();
    let writer = Arc::new(writer.into());
    event_loop
        .run_until(async move {
            let engine = EngineKind::IoUring;
            let data = IoBuffer::copied_from(&pattern(LEN));
            let write =
                current::spawn_local(
                    async move { current::write_at(engine, &writer, 0, data).await },
                );
            let buffer = IoBuffer::alloc(LEN);
            let count = current::read_at(engine, &reader, 0, buffer.clone()).await;
            assert_eq!(count.unwrap(), LEN);
            write.await.unwrap().unwrap();
            assert!(buffer.to_vec() == pattern(LEN));
        })
        .unwrap();
}

/// A block device over a file; it goes when the last who has it open does.
fn block_device(content: &File) -> Option<Arc<Aside<File>>> {
    let path = format!("/proc/{}/fd/{}", std::process::id(), content.as_raw_fd());
    let losetup = |arguments: &[&str]| Command::new("losetup").args(arguments).output();
    let made = losetup(&["--find", "--show", &path]).ok()?;
    if !made.status.success() {
        println!("SKIPPED: no loop device can be had here");
        return None;
    }
    let device = String::from_utf8(made.stdout).unwrap();
    let device = device.trim();
    let file = OpenOptions::new().read(true).write(true).open(device);
    losetup(&["--detach", device]).unwrap();
    Some(Arc::new(file.unwrap().into()))
}

#[test]
fn discarding_on_a_block_device_gives_its_space_back() {
    const BLOCKS: usize = 256;
    for engine in ENGINES {
        let backing = tempfile::tempfile().unwrap();
        backing.write_all_at(&vec![7; BLOCKS * PAGE], 0).unwrap();
        let Some(device) = block_device(&backing) else {
            return;
        };
        let mut event_loop = event_loop();
        event_loop
            .run_until(async move {
                let half = (BLOCKS / 2 * PAGE) as u64;
                current::discard(engine, &device, 0, half).await.unwrap();
                let buffer = IoBuffer::alloc(BLOCKS * PAGE);
                let read = current::read_at(engine, &device, 0, buffer.clone());
                assert_eq!(read.await.unwrap(), BLOCKS * PAGE);
                let bytes = buffer.to_vec();
                let (discarded, kept) = bytes.split_at(BLOCKS / 2 * PAGE);
                assert!(discarded.iter().all(|byte| *byte == 0));
                assert!(kept.iter().all(|byte| *byte == 7));
                // Within a block nothing can be given up.
                let refused = current::discard(engine, &device, 1, half).await;
                assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EINVAL));
            })
            .unwrap();
    }
}
