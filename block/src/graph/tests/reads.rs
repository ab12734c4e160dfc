//! Reads that are one transfer of the loop's engine all the way down, and those that must not be.

use std::sync::atomic::Ordering;

use serde_json::{Value, json};
use sluice_aio::IoBuffer;

use super::bench::{Bench, run};
use crate::backend::{Account, Backend};
use crate::error::{BlockError, Result};

/// A file whose sectors hold their numbers, counted from 1.
fn numbered(directory: &std::path::Path, sectors: u8) -> Value {
    let path = directory.join("numbered");
    let bytes: Vec<u8> = (1..=sectors).flat_map(|number| [number; 512]).collect();
    std::fs::write(&path, bytes).unwrap();
    json!({"driver": "file", "node-name": "file", "filename": path})
}

async fn read(disk: &Backend, offset: u64, len: usize) -> Result<Vec<u8>> {
    let token = disk.enter().await?;
    let buffer = IoBuffer::alloc(len);
    disk.read(&token, offset, buffer.clone()).await?;
    Ok(buffer.to_vec())
}

async fn sector(disk: &Backend, number: u64) -> Result<u8> {
    Ok(read(disk, number * 512, 512).await?[100])
}

async fn disk(bench: &Bench, options: Value) -> std::sync::Arc<Backend> {
    let node = bench.add(options).await.unwrap();
    bench.graph.add_backend("disk", &node).unwrap()
}

/// The engine would read what lies outside: only the nodes know where the disk ends.
#[test]
fn a_window_of_a_file_is_all_that_is_read() {
    run(async |bench| {
        let directory = tempfile::tempdir().unwrap();
        let file = numbered(directory.path(), 8);
        let window = json!({"driver": "raw", "node-name": "window", "file": file, "offset": 1024, "size": 2048});
        let inner = json!({"driver": "raw", "node-name": "inner", "file": window, "offset": 512});
        let disk = disk(&bench, inner).await;
        assert_eq!(disk.len(), 1536);
        for number in 0..3 {
            assert_eq!(
                sector(&disk, number).await.unwrap(),
                u8::try_from(number).unwrap() + 4
            );
        }
        for (offset, len) in [(1536, 512), (1024, 1024), (0, 2048), (u64::MAX - 511, 512)] {
            let refused = read(&disk, offset, len).await.unwrap_err();
            let out = matches!(refused, BlockError::OutOfRange { .. });
            assert!(out, "{offset}+{len}: {refused}");
        }
        let reads = disk.stats().of(Account::Read);
        assert_eq!(reads.operations.load(Ordering::Relaxed), 3);
        assert_eq!(reads.invalid.load(Ordering::Relaxed), 4);
    });
}

/// A node that has something to do with a read is not passed by, whatever is above and below it.
#[test]
fn a_node_with_work_of_its_own_sees_every_read() {
    run(async |bench| {
        let directory = tempfile::tempdir().unwrap();
        let file = numbered(directory.path(), 8);
        let rule = json!([{"event": "none", "iotype": "read", "errno": 5, "sector": 3}]);
        let faulty = json!({"driver": "blkdebug", "node-name": "faulty", "image": file, "inject-error": rule});
        let disk = disk(
            &bench,
            json!({"driver": "raw", "node-name": "top", "file": faulty}),
        )
        .await;
        assert_eq!(sector(&disk, 2).await.unwrap(), 3);
        let failed = sector(&disk, 3).await.unwrap_err();
        assert_eq!(failed.errno(), libc::EIO);
        assert_eq!(
            disk.stats()
                .of(Account::Read)
                .failed
                .load(Ordering::Relaxed),
            1
        );
    });
}
