//! A kernel, or a sandbox, that refuses io_uring: the loop goes on with worker threads, and says why.

use std::collections::BTreeMap;
use std::fmt::{Debug, Write as _};
use std::io;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;

use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};
use rustix::process::{Resource, getrlimit, setrlimit};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use sluice_aio::{EngineKind, EventLoop, IoBuffer, LoopConfig, current};

/// Makes one of the ring's system calls fail for the calling thread and those it starts.
fn refuse(call: i64, errno: i32) {
    let rules = BTreeMap::from([(call, Vec::new())]);
    let refusal = SeccompAction::Errno(u32::try_from(errno).unwrap());
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refusal, arch).unwrap();
    let program: BpfProgram = filter.try_into().unwrap();
    seccompiler::apply_filter(&program).unwrap();
}

#[test]
fn a_loop_without_a_ring_serves_files_all_the_same() {
    // In a thread of its own: a filter cannot be taken off again.
    let moved = thread::spawn(|| {
        refuse(libc::SYS_io_uring_setup, libc::EPERM);
        let refused = io_uring::IoUring::new(2).err().map(|error| error.kind());
        assert_eq!(refused, Some(io::ErrorKind::PermissionDenied));

        let config = LoopConfig {
            engine: EngineKind::IoUring,
            ..LoopConfig::default()
        };
        let mut event_loop = EventLoop::new("refused", &config).unwrap();
        let file = Arc::new(tempfile::tempfile().unwrap().into());
        event_loop
            .run_until(async move {
                let engine = EngineKind::IoUring;
                let data = IoBuffer::copied_from(&[0xa5; 4096]);
                current::write_at(engine, &file, 512, data).await.unwrap();
                current::fdatasync(engine, &file).await.unwrap();
                let back = IoBuffer::alloc(4096);
                let count = current::read_at(engine, &file, 512, back.clone())
                    .await
                    .unwrap();
                assert_eq!((count, back.to_vec()), (4096, vec![0xa5; 4096]));
            })
            .unwrap();
        event_loop.context().stats()
    });
    let stats = moved.join().unwrap();
    assert_eq!((stats.operations, stats.thread_operations), (0, 3));
    // Whoever looks is told why, and not only who reads the log.
    let why = stats.without_ring.unwrap();
    assert!(why.contains("seccomp"), "{why}");
}

/// A log that keeps what is written to it, as text.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<String>>);

impl tracing::field::Visit for Log {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn Debug) {
        write!(self.0.lock().unwrap(), "{field}={value:?} ").unwrap();
    }
}

impl tracing::Subscriber for Log {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::WARN
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        event.record(&mut self.clone());
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

/// What a loop says that is made where `call` is answered with `errno`, and then reads twice by each
/// of `engines`.
fn said_of(call: i64, errno: i32, engines: &'static [EngineKind]) -> String {
    said_where(move || refuse(call, errno), engines)
}

/// The same, of a loop in a thread that was prepared.
fn said_where(prepare: impl FnOnce() + Send + 'static, engines: &'static [EngineKind]) -> String {
    let moved = thread::spawn(move || {
        prepare();
        let log = Log::default();
        tracing::subscriber::with_default(log.clone(), || {
            let mut event_loop = EventLoop::new("refused", &LoopConfig::default()).unwrap();
            let reads = async move {
                let file = Arc::new(tempfile::tempfile().unwrap().into());
                for engine in engines.iter().chain(engines) {
                    let buffer = IoBuffer::alloc(512);
                    let count = current::read_at(*engine, &file, 0, buffer).await;
                    assert_eq!(count.unwrap(), 0);
                }
            };
            event_loop.run_until(reads).unwrap();
        });
        log.0.lock().unwrap().clone()
    });
    moved.join().unwrap()
}

/// A sandbox may forbid any of the three calls, and each must be found at the start: a ring that
/// is refused later, in the middle of a request, helps nobody.
#[test]
fn the_log_says_who_refuses_the_ring_and_what_to_do() {
    for call in [
        libc::SYS_io_uring_setup,
        libc::SYS_io_uring_register,
        libc::SYS_io_uring_enter,
    ] {
        for errno in [libc::EPERM, libc::ENOSYS] {
            let said = said_of(call, errno, &[EngineKind::IoUring]);
            let disabled = std::fs::read_to_string(SYSCTL);
            let by_sysctl = errno == libc::EPERM && disabled.is_ok_and(|value| value.trim() != "0");
            let cause = if by_sysctl { "sysctl" } else { "seccomp" };
            for words in ["loop_name=\"refused\"", cause, "use aio=threads"] {
                assert_eq!(said.matches(words).count(), 1, "{said}");
            }
        }
        let said = said_of(call, libc::ENOMEM, &[EngineKind::IoUring]);
        assert!(said.contains("RLIMIT_MEMLOCK"), "{said}");
    }
}

const SYSCTL: &str = "/proc/sys/kernel/io_uring_disabled";

/// Has the calling thread, and no other, read `value` where the kernel says whether it has switched
/// rings off.
#[expect(unsafe_code, reason = "the thread leaves what it shares with others")]
fn show_sysctl(value: &str) -> io::Result<()> {
    let shown = tempfile::NamedTempFile::new()?;
    std::fs::write(&shown, value)?;
    // SAFETY: no descriptors and no memory are left, only the mounts.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private)?;
    mount_bind(shown.path(), SYSCTL)?;
    Ok(())
}

/// The machine's sysctl is not a test's to change; so it is the message that is tested, from the file
/// to the log.
#[test]
fn the_log_names_the_sysctl_that_forbids_the_ring() {
    for (value, remedy) in [("1", "kernel.io_uring_group"), ("2", "set it to 0")] {
        let (sender, shown) = mpsc::channel();
        let prepare = move || {
            sender.send(show_sysctl(value)).unwrap();
            refuse(libc::SYS_io_uring_setup, libc::EPERM);
        };
        let said = said_where(prepare, &[EngineKind::IoUring]);
        if let Err(error) = shown.recv().unwrap() {
            return println!("SKIPPED: no file can be shown in another's place: {error}");
        }
        let cause = format!("sysctl kernel.io_uring_disabled is {value}");
        for words in [&*cause, remedy] {
            assert_eq!(said.matches(words).count(), 1, "{said}");
        }
    }
}

/// Set in the process that has few descriptors: a limit is the whole process's.
const FEW: &str = "SLUICE_TEST_FEW_DESCRIPTORS";

#[test]
fn a_loop_for_which_descriptors_run_out_says_so_and_leaves_none_open() {
    if std::env::var_os(FEW).is_none() {
        let name = "refused::a_loop_for_which_descriptors_run_out_says_so_and_leaves_none_open";
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(FEW, "1")
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{told}{output:?}");
        assert!(told.contains("1 passed"), "{told}");
        return;
    }
    let open = || {
        let descriptors = std::fs::read_dir("/proc/self/fd").unwrap();
        // One is the directory's.
        descriptors.count() as u64 - 1
    };
    let allow = |count| {
        let mut limit = getrlimit(Resource::Nofile);
        limit.current = Some(count);
        setrlimit(Resource::Nofile, limit).unwrap();
    };
    let before = open();
    let all = getrlimit(Resource::Nofile).current.unwrap();
    let mut refused = Vec::new();
    let mut without_ring = 0;
    for limit in 0.. {
        allow(limit);
        let made = EventLoop::new("poor", &LoopConfig::default());
        allow(all);
        match made {
            Err(error) => {
                assert_eq!(error.source.raw_os_error(), Some(libc::EMFILE), "{error}");
                assert!(error.to_string().contains("'poor'"), "{error}");
                refused.push(error.action);
            }
            // There may be too few for a ring only.
            Ok(event_loop) => match event_loop.context().stats().without_ring {
                Some(why) if why.contains("RLIMIT_NOFILE") => without_ring += 1,
                _ => break,
            },
        }
        assert_eq!(open(), before, "with {limit}");
    }
    assert!(refused.contains(&"create its event fd"), "{refused:?}");
    assert!(
        refused.contains(&"create its epoll instance"),
        "{refused:?}"
    );
    let ring = io_uring::IoUring::new(2).is_ok();
    assert!(!ring || without_ring > 0, "a ring needs descriptors too");
}

#[test]
fn the_log_does_not_tell_who_asks_for_no_ring_that_there_is_none() {
    let said = said_of(
        libc::SYS_io_uring_setup,
        libc::EPERM,
        &[EngineKind::Threads],
    );
    assert_eq!(said, "");
}
