//! A loop, an iothread and both engines moving real bytes.
#![cfg(not(loom))]

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use sluice_aio::{EngineKind, EventLoop, IoBuffer, IoThread, LoopConfig, current};

    fn round_trip(engine: EngineKind) {
        let file = Arc::new(tempfile::tempfile().unwrap());
        let mut event_loop = EventLoop::new("test", &LoopConfig::default()).unwrap();
        let back = event_loop
            .run_until(async move {
                let data = IoBuffer::copied_from(&[0x5a; 10_000]);
                current::write_at(engine, &file, 123, data).await.unwrap();
                current::fdatasync(engine, &file).await.unwrap();
                let back = IoBuffer::alloc(20_000);
                let count = current::read_at(engine, &file, 0, back.clone())
                    .await
                    .unwrap();
                back.to_vec()[..count].to_vec()
            })
            .unwrap();
        assert_eq!(back.len(), 10_123);
        assert!(back[..123].iter().all(|byte| *byte == 0));
        assert!(back[123..].iter().all(|byte| *byte == 0x5a));
    }

    #[test]
    fn the_ring_moves_bytes() {
        round_trip(EngineKind::IoUring);
    }

    #[test]
    fn worker_threads_move_bytes() {
        round_trip(EngineKind::Threads);
    }

    #[test]
    fn a_call_runs_in_the_iothread_and_returns() {
        let thread = IoThread::spawn("io0", LoopConfig::default()).unwrap();
        let context = thread.context().clone();
        let mut event_loop = EventLoop::new("main", &LoopConfig::default()).unwrap();
        let name = event_loop
            .run_until(async move {
                context
                    .call(|| async {
                        current::sleep(std::time::Duration::from_millis(1)).await;
                        std::thread::current().name().map(str::to_owned)
                    })
                    .await
            })
            .unwrap();
        assert_eq!(name.unwrap().as_deref(), Some("io0"));
    }
}
