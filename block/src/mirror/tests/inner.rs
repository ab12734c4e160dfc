//! A mirror of a node that stands below a format, not at the top of a disk.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use sluice_aio::{IoBuffer, current};

use super::bench::{BLOCK, Bench, SIZE, block_value, common, pattern, run_both, write_block};
use crate::backend::Backend;
use crate::job::JobState;
use crate::mirror::CopyMode;
use crate::parting::tests::yield_often;

/// Where the disk begins in its file, in bytes, and how long it is.
const WINDOW: (u64, u64) = (1 << 20, 2 << 20);
/// Writers, each with a block of its own in a chunk of its own.
const WRITERS: u64 = 8;

fn file(bench: &Bench, name: &str) -> Value {
    json!({"driver": "file", "node-name": name, "filename": bench.path(name)})
}

/// Writes one value after the other to a block until it is told to end; returns the last one.
async fn write_on(disk: &Arc<Backend>, offset: u64, ends: &AtomicBool) -> u8 {
    let mut value = 0;
    while !ends.load(Ordering::Relaxed) {
        value = value % 250 + 1;
        write_block(disk, offset, value).await.unwrap();
        current::yield_now().await;
    }
    value
}

fn is_mirrored_under_a_guest_that_writes(mode: CopyMode) {
    run_both(move |bench| async move {
        std::fs::write(bench.path("old"), pattern(SIZE)).unwrap();
        bench.empty_image("new", SIZE);
        bench.node(file(&bench, "old")).await;
        bench.node(file(&bench, "new")).await;
        let (offset, size) = WINDOW;
        let raw = json!({
            "driver": "raw", "node-name": "raw", "file": "old", "offset": offset, "size": size
        });
        let raw = bench.node(raw).await;
        let disk = bench.attach("disk", &raw);
        let ends = Arc::new(AtomicBool::new(false));
        let place = |writer: u64| writer * (size / WRITERS);
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (disk, ends) = (Arc::clone(&disk), Arc::clone(&ends));
                let at = place(writer);
                bench
                    .context
                    .call(move || async move { write_on(&disk, at, &ends).await })
            })
            .collect();
        let mut arguments = common("old");
        arguments.copy_mode = mode;
        bench.mirror_with("new", arguments).await;
        bench.wait_for(JobState::Ready).await;
        assert_eq!(bench.complete().await, None);
        let below: Vec<_> = raw.children().into_iter().map(|(_, node)| node).collect();
        assert_eq!(below.len(), 1);
        assert_eq!(below[0].name(), "new");
        // They have gone on all the time, and do so on the new file.
        yield_often().await;
        ends.store(true, Ordering::Relaxed);
        let mut last = Vec::new();
        for writer in writers {
            last.push(writer.await.unwrap());
        }
        let mut wanted = pattern(SIZE);
        for (writer, value) in (0..WRITERS).zip(last) {
            let at = place(writer);
            let new = bench.bytes("new");
            assert_eq!(
                block_value(&new, offset + at),
                Some(value),
                "{mode:?}: {writer}"
            );
            let from = usize::try_from(offset + at).unwrap();
            wanted[from..from + usize::try_from(BLOCK).unwrap()].fill(value);
        }
        assert!(bench.bytes("new") == wanted);
        let read = IoBuffer::alloc(usize::try_from(size).unwrap());
        raw.read(0, read.clone()).await.unwrap();
        let from = usize::try_from(offset).unwrap();
        assert!(read.to_vec() == wanted[from..from + read.len()]);
    });
}

#[test]
fn a_node_below_a_format_is_mirrored_in_background() {
    is_mirrored_under_a_guest_that_writes(CopyMode::Background);
}

#[test]
fn a_node_below_a_format_is_mirrored_by_writes_to_both() {
    is_mirrored_under_a_guest_that_writes(CopyMode::WriteBlocking);
}
