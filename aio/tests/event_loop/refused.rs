//! A kernel, or a sandbox, that refuses io_uring: the loop goes on with worker threads.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::thread;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use sluice_aio::{EngineKind, EventLoop, IoBuffer, LoopConfig, current};

/// Makes `io_uring_setup` fail with EPERM for the calling thread and those it starts.
fn refuse_io_uring() {
    let rules = BTreeMap::from([(libc::SYS_io_uring_setup, Vec::new())]);
    let refusal = SeccompAction::Errno(u32::try_from(libc::EPERM).unwrap());
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refusal, arch).unwrap();
    let program: BpfProgram = filter.try_into().unwrap();
    seccompiler::apply_filter(&program).unwrap();
}

#[test]
fn a_loop_without_a_ring_serves_files_all_the_same() {
    // In a thread of its own: a filter cannot be taken off again.
    let moved = thread::spawn(|| {
        refuse_io_uring();
        let refused = io_uring::IoUring::new(2).err().map(|error| error.kind());
        assert_eq!(refused, Some(io::ErrorKind::PermissionDenied));

        let config = LoopConfig {
            engine: EngineKind::IoUring,
            ..LoopConfig::default()
        };
        let mut event_loop = EventLoop::new("refused", &config).unwrap();
        let file = Arc::new(tempfile::tempfile().unwrap());
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
                (count, back.to_vec())
            })
            .unwrap()
    });
    let (count, bytes) = moved.join().unwrap();
    assert_eq!(count, 4096);
    assert_eq!(bytes, [0xa5; 4096]);
}
